"""Opposing signals: finding the outliers that pull a network both ways, and measuring how sharp they make its loss.

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163.

`OpposingSignalMonitor` finds the groups in any training loop, `group_opposition` says how far their gradients oppose
each other, and `SharpnessTracker` follows the sharpness to the edge of stability. `inject_opposing_patch` plants known
groups in data, `OpposingSignalsToy` is the two-layer model that explains them, and `SplitSGD` the optimizer with which
the paper takes Adam apart.
"""

from etude.training.opposing_signals.curvature import (
    HessianOperator,
    Spectrum,
    adam_preconditioner,
    hessian_vector_product,
    sharpness,
    stability_threshold,
)
from etude.training.opposing_signals.descent import gradient_at, gradient_descent_, gradient_flow
from etude.training.opposing_signals.examples import (
    FixedSet,
    cross_entropy,
    example_losses,
    flat_gradient,
    full_batch_backward,
)
from etude.training.opposing_signals.injection import (
    PatchedImages,
    colour_shift,
    inject_opposing_patch,
    remove_examples,
)
from etude.training.opposing_signals.monitor import (
    Group,
    OpposingSignalMonitor,
    StepRecord,
    StepReport,
    change_share,
    flip_count,
    oscillation,
)
from etude.training.opposing_signals.networks import mlp, vgg11
from etude.training.opposing_signals.opposition import Opposition, group_opposition, random_group_baseline
from etude.training.opposing_signals.plots import plot_group_images, plot_group_losses, plot_sharpness
from etude.training.opposing_signals.split_sgd import SplitSGD
from etude.training.opposing_signals.toy import OpposingSignalsToy, ToyRun
from etude.training.opposing_signals.tracking import SharpnessRecord, SharpnessTracker

__all__ = [
    "FixedSet",
    "Group",
    "HessianOperator",
    "OpposingSignalMonitor",
    "OpposingSignalsToy",
    "Opposition",
    "PatchedImages",
    "SharpnessRecord",
    "SharpnessTracker",
    "Spectrum",
    "SplitSGD",
    "StepRecord",
    "StepReport",
    "ToyRun",
    "adam_preconditioner",
    "change_share",
    "colour_shift",
    "cross_entropy",
    "example_losses",
    "flat_gradient",
    "flip_count",
    "full_batch_backward",
    "gradient_at",
    "gradient_descent_",
    "gradient_flow",
    "group_opposition",
    "hessian_vector_product",
    "inject_opposing_patch",
    "mlp",
    "oscillation",
    "plot_group_images",
    "plot_group_losses",
    "plot_sharpness",
    "random_group_baseline",
    "remove_examples",
    "sharpness",
    "stability_threshold",
    "vgg11",
]
