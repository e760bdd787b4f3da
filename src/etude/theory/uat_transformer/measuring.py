"""How far a block is from a map: sup and root mean square, at random points and where kinks sit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.theory.uat_transformer.assembly import Box

__all__ = ["Errors", "approximation_error", "check_points", "outputs_in_blocks"]

KINDS = ("random", "grid", "corners", "diagonals", "all")
DIAGONAL_POINTS = 201
MAX_POINTS = 10_000_000
_ELEMENTS = 2**18
"""Hidden activations held at a time: 2 MB in double precision, which stay in the cache."""

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Errors:
    """Errors at a number of points.

    Attributes:
        sup: the largest of all points and outputs: a lower bound of the sup on the box.
        rmse: root mean square over points and outputs.
        rmse_error: standard error of `rmse` as an estimate over the box; it means that for random points only.
        points: how many.
    """

    sup: float
    rmse: float
    rmse_error: float
    points: int


def outputs_in_blocks(
    module: nn.Module, x: Float[Tensor, "n seq in_dim"], *, elements: int = _ELEMENTS
) -> Float[Tensor, "n seq out_dim"]:
    """The block's outputs without gradient, so many sequences at a time that `elements` hidden activations are held.

    Args:
        module: takes x, moved to its own type and device. The results are double, on the CPU.
    """
    parameter = next(module.parameters(), torch.zeros(0, dtype=torch.float64))
    rows = max(1, elements // (x.shape[1] * int(getattr(module, "ffn_dim", 1_024))))
    with torch.no_grad():
        found = [module(part.to(parameter)).to("cpu", torch.float64) for part in x.split(rows)]
    return torch.cat(found)


def check_points(
    kind: str, n: int, seq_len: int, in_dim: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "points seq_len in_dim"]:
    """Sequences in the unit cube of dimension D = seq_len * in_dim, in double precision.

    Args:
        kind: "random": n uniform points. "grid": n a side, the corners included. "corners": all 2^D. "diagonals": n
            points on each of the 2^(D-1) diagonals, where the kinks of sorting meet. "all": n random points, the
            corners, and 201 points on each diagonal.
        n: see `kind`; corners do not use it.
        generator: of the random points; seeded with 0 if None.

    Raises:
        ValueError: if `kind` is unknown, n is too small, or the points are more than 10 million.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    D = seq_len * in_dim
    if n < (2 if kind in ("grid", "diagonals") else 1):
        raise ValueError(f"n must be at least 1, and 2 on a grid or diagonals, got {n}")
    counts = {
        "grid": n**D,
        "corners": 2**D,
        "diagonals": n * 2 ** (D - 1),
        "all": n + 2**D + DIAGONAL_POINTS * 2 ** (D - 1),
    }
    count = counts.get(kind, n)
    if count > MAX_POINTS:
        raise ValueError(f"{kind} points with n = {n} in dimension {D} are {count:,}, more than {MAX_POINTS:,}")
    parts = []
    if kind in ("random", "all"):
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        parts.append(torch.rand(n, D, generator=generator, dtype=torch.float64))
    if kind == "grid":
        parts.append(torch.cartesian_prod(*[torch.linspace(0, 1, n, dtype=torch.float64)] * D).reshape(-1, D))
    if kind in ("corners", "all"):
        parts.append(torch.tensor(list(product((0.0, 1.0), repeat=D)), dtype=torch.float64))
    if kind in ("diagonals", "all"):
        t = torch.linspace(0, 1, DIAGONAL_POINTS if kind == "all" else n, dtype=torch.float64)[:, None]
        for flipped in product((0.0, 1.0), repeat=D - 1):
            flip = torch.tensor((0.0, *flipped), dtype=torch.float64)
            parts.append(t * (1 - flip) + (1 - t) * flip)
    return torch.cat(parts).unflatten(1, (seq_len, in_dim))


def approximation_error(
    module: nn.Module,
    f: Map,
    n: int = 4_000,
    kind: str = "all",
    *,
    seq_len: int | None = None,
    in_dim: int | None = None,
    domain: Sequence = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Errors:
    """The distance of a block from a map on a box.

        approximation_error(model, lambda x: x.sort(dim=1).values, 4_000)

    Random points alone miss where a map with kinks is farthest: `kind="all"` has corners and diagonals besides.

    Args:
        module: a block, constructed or trained, or any module from (n, seq_len, in_dim) to (n, seq_len, out_dim).
        f: the map, on double points.
        n, kind, generator: as for `check_points`.
        seq_len, in_dim: the block's own if None.
        domain: (low, high) of the tokens' coordinates.

    Raises:
        ValueError: if the shapes of f and of the module's outputs differ, or as `check_points`.
    """
    own: Any = module
    L = own.seq_len if seq_len is None else seq_len
    d = own.in_dim if in_dim is None else in_dim
    x = Box.of(domain, d).from_unit(check_points(kind, n, L, d, generator=generator))
    wanted, found = f(x), outputs_in_blocks(module, x)
    if wanted.shape != found.shape:
        raise ValueError(f"f gives shape {tuple(wanted.shape)} where the module gives {tuple(found.shape)}")
    gap = (found - wanted.to("cpu", torch.float64)).abs()
    squares = gap.square().flatten(1).mean(1)
    mean = float(squares.mean())
    spread = float(squares.std(correction=1)) / math.sqrt(len(squares)) if len(squares) > 1 else math.inf
    rmse = math.sqrt(mean)
    return Errors(float(gap.max()), rmse, spread / (2 * rmse) if rmse else 0.0, len(x))
