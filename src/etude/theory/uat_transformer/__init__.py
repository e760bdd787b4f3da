"""A single transformer layer as a universal approximator: built from a map and a tolerance, or trained.

Gumaan, "Universal Approximation Theorem for a Single-Layer Transformer", arXiv:2507.10581, 2025.

    from etude.theory.uat_transformer import build_universal, plot_width_curve, width_curve

    def f(x):                                                       # any continuous map of sequences in a box
        return x.sort(dim=1).values

    block, report = build_universal(f, seq_len=2, dim=1, out_dim=1, tol=0.05, lipschitz=1.0)
    report.measured.sup, report.certified, report.hidden            # seen, guaranteed, and at what width
    plot_width_curve(width_curve(f, 2, 1, 1, [0.2, 0.1, 0.05]))     # what other tolerances cost

The weights are those of a constructive version of the theorem, ours and not the paper's: see `universal`.
`SingleLayerTransformer` is the class of the constructed and of the trained block.
"""

from etude.theory.uat_transformer.assembly import (
    assemble,
    attention_error,
    gathered,
    mixing_matrix,
    required_beta,
)
from etude.theory.uat_transformer.curves import WidthCurve, error_rate, plot_width_curve, width_curve, width_exponent
from etude.theory.uat_transformer.measuring import Errors, approximation_error, check_points, outputs_in_blocks
from etude.theory.uat_transformer.model import SingleLayerTransformer, padded, to_multihead_attention
from etude.theory.uat_transformer.planning import Attempt, Plan, ToleranceNotReached, plan_universal
from etude.theory.uat_transformer.ridge import RidgeExpansion, max_directions, ridge_expansion
from etude.theory.uat_transformer.splines import ReluSpline, RidgeNetwork, relu_spline, ridge_network, spline_pieces
from etude.theory.uat_transformer.targets import Target, cummax_target, prod_sin_target, random_target, sort_target
from etude.theory.uat_transformer.trained import (
    equivariant_floor,
    tokenwise_floor,
    train_universal,
    uniform_sequences,
)
from etude.theory.uat_transformer.universal import (
    ApproximationReport,
    build_at_width,
    build_universal,
    build_with_modes,
    recast,
)

__all__ = [
    "ApproximationReport",
    "Attempt",
    "Errors",
    "Plan",
    "ReluSpline",
    "RidgeExpansion",
    "RidgeNetwork",
    "SingleLayerTransformer",
    "Target",
    "ToleranceNotReached",
    "WidthCurve",
    "approximation_error",
    "assemble",
    "attention_error",
    "build_at_width",
    "build_universal",
    "build_with_modes",
    "check_points",
    "cummax_target",
    "equivariant_floor",
    "error_rate",
    "gathered",
    "max_directions",
    "mixing_matrix",
    "outputs_in_blocks",
    "padded",
    "plan_universal",
    "plot_width_curve",
    "prod_sin_target",
    "random_target",
    "recast",
    "relu_spline",
    "required_beta",
    "ridge_expansion",
    "ridge_network",
    "sort_target",
    "spline_pieces",
    "to_multihead_attention",
    "tokenwise_floor",
    "train_universal",
    "uniform_sequences",
    "width_curve",
    "width_exponent",
]
