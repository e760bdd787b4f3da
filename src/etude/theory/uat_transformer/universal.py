"""From a continuous map and a tolerance to a transformer block that meets it: a constructive version of the theorem.

Gumaan, "Universal Approximation Theorem for a Single-Layer Transformer", arXiv:2507.10581, 2025, proves that one layer
of softmax attention and a ReLU network approximate every continuous map from sequences of a fixed length in a compact
set to sequences, uniformly. The construction here is not that paper's: it proves the same for maps on a box by weights
that can be written down. Attention copies the sequence into every token (`assembly`), a cosine series makes the map a
sum of ridge functions (`ridge`), splines make those a ReLU network (`splines`), and a bank of units for each position
makes it answer for that position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from etude.theory.uat_transformer.assembly import Box, assemble, attention_error, required_beta
from etude.theory.uat_transformer.measuring import Errors, Map, approximation_error
from etude.theory.uat_transformer.model import SingleLayerTransformer
from etude.theory.uat_transformer.planning import (
    MAX_GRID,
    Attempt,
    Plan,
    ToleranceNotReached,
    between_points,
    check_sizes,
    grid_error,
    plan_universal,
    unit_function,
)
from etude.theory.uat_transformer.ridge import NEGLIGIBLE, RidgeExpansion, grid_size, ridge_expansion
from etude.theory.uat_transformer.splines import pieces_for_width, ridge_network, spline_pieces

__all__ = ["ApproximationReport", "build_at_width", "build_universal", "build_with_modes", "recast"]

EXACT_BETA = 10.0


@dataclass(frozen=True)
class ApproximationReport:
    """What is known of a constructed block. Errors are in the unit of the outputs.

    Attributes:
        tol: the tolerance asked for; None where modes or a width were asked for instead.
        beta: sharpness of the attention. exact: whether its mixing is inverted.
        K: modes of a coordinate. directions: of the ridge functions.
        hidden: width of the ReLU network, m = L * knots + L. knots: of one bank.
        attention_error: certified eps_a. spline_error: certified eps_s.
        series_error: eps_K as measured on the grid. spacing: of that grid, in units of the box's sides.
        series_lipschitz: of the series on the unit cube, in the Euclidean norm. side: longest side of the box.
        dimension: D, the numbers of a sequence.
        measured: sup and root mean square of the block itself at random points, corners and diagonals.
        certified: a bound on the error at every point of the box; None without a Lipschitz constant of the map.
        attempts: the K that were tried before, and this one.
    """

    tol: float | None
    beta: float
    exact: bool
    K: int
    directions: int
    hidden: int
    knots: int
    attention_error: float
    spline_error: float
    series_error: float
    spacing: float
    series_lipschitz: float
    side: float
    dimension: int
    measured: Errors
    certified: float | None
    attempts: tuple[Attempt, ...]

    def bound(self, lipschitz: float | int) -> float:
        """A bound on the error at every point of the box, for a map with this Lipschitz constant.

        Args:
            lipschitz: of each output, in the Euclidean norm of the sequence's numbers.

        Raises:
            ValueError: if it is negative.
        """
        if not lipschitz >= 0:
            raise ValueError(f"lipschitz must be at least 0, got {lipschitz}")
        between = between_points(lipschitz * self.side + self.series_lipschitz, self.spacing, self.dimension)
        return self.attention_error + self.spline_error + self.series_error + between


def build_universal(
    f: Map,
    seq_len: int,
    dim: int,
    out_dim: int,
    tol: float | int,
    domain: Sequence = (0.0, 1.0),
    max_hidden: int = 200_000,
    exact: bool = True,
    lipschitz: float | int | None = None,
    *,
    beta: float | int | None = None,
    allocation: str = "uniform",
    damping: str = "none",
    points: int = 4_000,
    generator: torch.Generator | None = None,
    max_grid: int = MAX_GRID,
) -> tuple[SingleLayerTransformer, ApproximationReport]:
    """A transformer block within `tol` of a continuous map, by weights that are set, not trained.

        block, report = build_universal(lambda x: x.sort(dim=1).values, seq_len=2, dim=1, out_dim=1, tol=0.05)

    K starts at 4 and doubles until the error measured on a fine grid and the certified errors of splines and attention
    add up to at most `tol`, and until no point of the final check is farther off. With `lipschitz` the sum is a bound
    on the whole box; without, it is one at the grid's points, and a map may do as it likes between them.

    Args:
        f: double sequences (N, seq_len, dim) to (N, seq_len, out_dim), continuous on the box.
        seq_len: L, tokens of every sequence. dim: width d of a token; L * d <= 4. out_dim: width of an output.
        tol: largest error allowed, of any output.
        domain: the box, (low, high): numbers, or one for each of a token's coordinates.
        max_hidden: largest width of the ReLU network.
        exact: invert the attention's mixing in the ReLU network's first layer; else beta is chosen so large that it
            costs at most an eighth of the tolerance.
        lipschitz: a Lipschitz constant of every output of f, in the Euclidean norm of the L * d numbers.
        beta: sharpness of the attention; if None 10 with `exact`, and chosen without.
        allocation: "uniform": every direction's spline has the same error; "balanced": fewest knots in all.
        damping: "jackson" damps the series; for maps that are merely continuous.
        points, generator: random points of the final check.
        max_grid: most points of a grid on which the error is measured: four times finer than that of the fit, or three
            times or twice where that is too many.

    Returns:
        The block, in double precision (`recast` changes that), and the report.

    Raises:
        ToleranceNotReached: if the width or the grid would exceed its limit, with the error that was achieved and the
            projected width; a map with a jump ends here.
        ValueError: if f returns another shape or what is not finite, L * d exceeds 4, the domain is not a box, or an
            argument is out of range.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    state = generator.get_state()
    start, failed = 4, list[Attempt]()
    while True:
        try:
            plan = plan_universal(
                f, seq_len, dim, out_dim, tol, domain=domain, max_hidden=max_hidden, exact=exact, lipschitz=lipschitz,
                allocation=allocation, damping=damping, start=start, max_grid=max_grid,
            )  # fmt: skip
        except ToleranceNotReached as error:
            raise (error.after(failed) if failed else error) from None
        generator.set_state(state)  # every check has the same points: none is passed by drawing others
        block, report = _realise(plan, f, seq_len, dim, out_dim, domain, beta, lipschitz, points, generator)
        if report.measured.sup <= tol:
            return block, replace(report, attempts=(*failed, *report.attempts))
        failed += [*plan.attempts[:-1], replace(plan.attempts[-1], total=report.measured.sup)]
        start = 2 * plan.expansion.K


def build_with_modes(
    f: Map,
    seq_len: int,
    dim: int,
    out_dim: int,
    K: int,
    spline_error: float | int,
    *,
    domain: Sequence = (0.0, 1.0),
    exact: bool = True,
    lipschitz: float | int | None = None,
    beta: float | int | None = None,
    allocation: str = "uniform",
    damping: str = "none",
    points: int = 4_000,
    generator: torch.Generator | None = None,
) -> tuple[SingleLayerTransformer, ApproximationReport]:
    """The block of a given number of modes and a certified spline error: the terms of the error one by one.

    Without `exact` the attention may cost half the spline error.

        build_with_modes(lambda x: x.sort(dim=1).values, 2, 1, 1, K=32, spline_error=0.02)    # hidden width 394

    Other arguments, and errors, as for `build_universal`.
    """
    check_sizes(seq_len, dim, out_dim)
    g = unit_function(f, Box.of(domain, dim), seq_len, dim, out_dim)
    expansion = ridge_expansion(g, seq_len * dim, K, damping=damping)
    pieces = spline_pieces(expansion, spline_error, allocation=allocation)
    error, spacing = grid_error(expansion, g)
    plan = _given(expansion, pieces, error, spacing, float(spline_error), exact, seq_len)
    return _realise(plan, f, seq_len, dim, out_dim, domain, beta, lipschitz, points, generator)


def build_at_width(
    f: Map,
    seq_len: int,
    dim: int,
    out_dim: int,
    hidden: int,
    *,
    domain: Sequence = (0.0, 1.0),
    lipschitz: float | int | None = None,
    allocation: str = "balanced",
    points: int = 4_000,
    generator: torch.Generator | None = None,
) -> tuple[SingleLayerTransformer, ApproximationReport]:
    """The block with the smallest total error among those of at most `hidden` units: modes against knots.

        build_at_width(lambda x: x.sort(dim=1).values, 2, 1, 1, hidden=256)

    Other arguments, and errors, as for `build_universal`.

    Raises:
        ValueError: if the width is too small for a single mode; the message gives the least.
    """
    check_sizes(seq_len, dim, out_dim)
    D = seq_len * dim
    g = unit_function(f, Box.of(domain, dim), seq_len, dim, out_dim)
    best: Plan | None = None
    K = 1
    while (4 * grid_size(D, K) + 1) ** D <= MAX_GRID:
        expansion = ridge_expansion(g, D, K)
        found = pieces_for_width(expansion, hidden // seq_len - 1, allocation=allocation)
        if found is None:
            if best is None:
                least = seq_len * (len(expansion.directions) + 1)
                raise ValueError(f"hidden = {hidden} is too narrow: one mode a coordinate needs {least} units")
            break
        error, spacing = grid_error(expansion, g)
        plan = _given(expansion, found[1], error, spacing, found[0], True, seq_len)
        if best is None or error + found[0] < best.series_error + best.spline_share:
            best = plan
            if error + found[0] < NEGLIGIBLE:
                break
        elif found[0] > best.series_error + best.spline_share:
            break  # more modes leave too few knots, and ever fewer
        K = K + 1 if K < 4 else K * 5 // 4
    assert best is not None
    return _realise(best, f, seq_len, dim, out_dim, domain, None, lipschitz, points, generator)


def _given(
    expansion: RidgeExpansion, pieces: np.ndarray, error: float, spacing: float, share: float, exact: bool, seq_len: int
) -> Plan:
    hidden = seq_len * int(pieces.sum()) + seq_len
    attempt = Attempt(expansion.K, len(expansion.directions), hidden, error, error + share)
    attention = 0.0 if exact or seq_len == 1 else share / 2
    return Plan(math.nan, exact, expansion, pieces, hidden, error, spacing, share, attention, (attempt,))


def _realise(
    plan: Plan,
    f: Map,
    seq_len: int,
    dim: int,
    out_dim: int,
    domain: Sequence,
    beta: float | int | None,
    lipschitz: float | int | None,
    points: int,
    generator: torch.Generator | None,
) -> tuple[SingleLayerTransformer, ApproximationReport]:
    """The plan's block and its report."""
    network = ridge_network(plan.expansion, plan.pieces)
    leak = 0.0
    if plan.exact:
        beta = EXACT_BETA if beta is None else beta
    elif plan.attention_share:
        least = required_beta(seq_len, plan.attention_share, network.lipschitz)
        beta = least if beta is None else beta
        leak = network.lipschitz * attention_error(seq_len, beta)
        if leak > plan.attention_share * (1 + 1e-9):
            raise ValueError(
                f"beta = {beta} leaves an attention error of {leak:.3g}, more than {plan.attention_share:.3g}: "
                f"without the inverse beta must be at least {least:.3f}"
            )
    beta = EXACT_BETA if beta is None else float(beta)
    block = assemble(network, seq_len, dim, out_dim, beta=beta, exact=plan.exact, domain=domain)
    measured = approximation_error(block, f, points, "all", domain=domain, generator=generator)
    report = ApproximationReport(
        tol=None if math.isnan(plan.tol) else plan.tol, beta=beta, exact=plan.exact, K=plan.expansion.K,
        directions=len(plan.expansion.directions), hidden=plan.hidden, knots=len(network.knots),
        attention_error=leak, spline_error=network.error, series_error=plan.series_error, spacing=plan.spacing,
        series_lipschitz=plan.expansion.lipschitz, side=Box.of(domain, dim).side, dimension=plan.expansion.D,
        measured=measured, certified=None, attempts=plan.attempts,
    )  # fmt: skip
    return block, report if lipschitz is None else replace(report, certified=report.bound(lipschitz))


def recast(
    block: SingleLayerTransformer,
    f: Map,
    dtype: str = "float32",
    *,
    domain: Sequence = (0.0, 1.0),
    points: int = 4_000,
    generator: torch.Generator | None = None,
) -> tuple[SingleLayerTransformer, Errors]:
    """The block in another precision, and its error measured anew: certificates hold for double precision alone.

        light, errors = recast(block, f)

    The slopes of more than 100,000 knots add up and cancel; in single precision that may cost a digit or more.

    Raises:
        ValueError: if `dtype` is not the name of a floating-point type.
    """
    cast = SingleLayerTransformer(
        block.in_dim, block.dim, block.seq_len, block.num_heads, block.ffn_dim, block.out_dim, block.head_dim,
        block.pos, block.norm, dtype,
    )  # fmt: skip
    cast.load_state_dict(block.state_dict())
    return cast, approximation_error(cast, f, points, "all", domain=domain, generator=generator)
