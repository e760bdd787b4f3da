"""How many samples to buy from each source.

For a given relevance nu the bound sum_t nu_t^2 / n_t is least, under sum_t a_t n_t = budget, at

    n_t proportional to |nu_t| / sqrt(a_t)

(Lagrange); with equal prices that is the L1 rule, n_t ~ |nu_t|. The earlier L2 rule is n_t ~ nu_t^2 (Chen, Jamieson &
Du, "Active Multi-Task Representation Learning", ICML 2022).
"""

import warnings

import numpy as np
from jaxtyping import Int64
from numpy.typing import ArrayLike

__all__ = ["allocate"]


def allocate(
    relevance: ArrayLike,
    *,
    budget: float | int,
    minimum: int = 0,
    power: float | int = 1.0,
    costs: ArrayLike | None = None,
    capacity: ArrayLike | None = None,
) -> Int64[np.ndarray, "tasks"]:
    """Whole numbers of samples: `minimum` each, and the rest in proportion to |relevance|^power / sqrt(cost).

        counts = allocate(nu, budget=5000, minimum=50)          # counts.sum() == 5000

    What rounding leaves goes to the largest fractions; what a source does not hold, to the others.

    Args:
        relevance: nu, (tasks,). If all of it is zero, samples are spread evenly, with a warning.
        budget: samples to buy in all, or the money for them where there are `costs`.
        minimum: samples of every source.
        power: 1 is the L1 rule, 2 the L2 rule.
        costs: price of a sample of each source, (tasks,), positive; by default 1.
        capacity: how many samples each source holds, (tasks,).

    Returns:
        Counts; they sum to `budget` exactly, or with `costs` leave less of it than the cheapest sample that is to be
        had costs.

    Raises:
        ValueError: if the budget does not pay the minimum, exceeds what the sources hold, or a number is out of range.
    """
    nu = np.abs(np.asarray(relevance, dtype=np.float64))
    if nu.ndim != 1 or not len(nu) or not bool(np.isfinite(nu).all()):
        raise ValueError(f"relevance must be finite numbers of shape (tasks,), got shape {nu.shape}")
    if not power > 0 or minimum < 0:
        raise ValueError(f"power must be positive and minimum not negative, got {power} and {minimum}")
    price = _prices(costs, len(nu))
    room = _rooms(capacity, len(nu))
    counts = np.minimum(float(minimum), room)
    if (needed := float(price @ counts)) > budget:
        raise ValueError(
            f"a budget of {budget} does not pay {minimum} samples of each of {len(nu)} sources: {needed:g}"
        )
    if costs is None and budget != int(budget):
        raise ValueError(f"without costs, budget counts samples and must be whole, got {budget}")
    if (held := float(price @ room)) < budget:
        raise ValueError(f"a budget of {budget} exceeds what the sources hold, {held:g}")
    if not nu.any():
        warnings.warn("no source is relevant; samples are spread evenly", RuntimeWarning, stacklevel=2)
        nu = np.ones_like(nu)
    shares = nu**power / np.sqrt(price)
    wanted = _poured(shares, float(budget) - needed, price, room - counts)
    extra = np.floor(wanted + 1e-9)
    counts = counts + extra
    return _rounded(counts, wanted - extra, shares, float(budget) - float(price @ counts), price, room)


def _poured(shares: np.ndarray, money: float, price: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Real numbers in proportion to `shares` that cost `money`, none above its room."""
    filled = np.zeros_like(shares)
    open_ = room > 0
    left = money
    while left > 1e-9 and open_.any():
        weights = np.where(open_, shares, 0.0)
        if not weights.any():
            weights = np.where(open_, 1.0, 0.0)
        step = weights * (left / float(price @ weights))
        over = open_ & (filled + step >= room)
        if not over.any():
            return filled + step
        # Those that would run over are full; the others' shares are dealt anew.
        filled[over] = room[over]
        open_ = open_ & ~over
        left = money - float(price @ filled)
    return filled


def _rounded(
    counts: np.ndarray, fractions: np.ndarray, shares: np.ndarray, left: float, price: np.ndarray, room: np.ndarray
) -> np.ndarray:
    """Single samples for what is left, the largest fractions first; then whatever can still be paid."""
    order = np.lexsort((-shares, -np.round(fractions, 9)))
    while True:
        bought = False
        for task in order:
            if price[task] <= left + 1e-9 and counts[task] + 1 <= room[task]:
                counts[task] += 1
                left -= price[task]
                bought = True
        if not bought:
            return counts.astype(np.int64)


def _prices(costs: ArrayLike | None, tasks: int) -> np.ndarray:
    price = np.ones(tasks) if costs is None else np.asarray(costs, dtype=np.float64)
    if price.shape != (tasks,) or not bool((price > 0).all()) or not bool(np.isfinite(price).all()):
        raise ValueError(f"costs must be {tasks} positive numbers, got {price.tolist()}")
    return price


def _rooms(capacity: ArrayLike | None, tasks: int) -> np.ndarray:
    room = np.full(tasks, np.inf) if capacity is None else np.asarray(capacity, dtype=np.float64)
    if room.shape != (tasks,) or not bool((room >= 0).all()):
        raise ValueError(f"capacity must be {tasks} numbers, none negative, got {room.tolist()}")
    return room
