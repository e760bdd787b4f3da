"""The confounded protocol: in training a nuisance goes with the label, at the shifted test it goes against it (3.4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["DomainScores", "confounded_split", "domain_scores"]

SHARES = {"train": 0.4, "val": 0.1, "id": 0.25, "ood": 0.25}


@dataclass(frozen=True)
class DomainScores:
    """Accuracy in the training domain and under the shift: report both, their gap and their average."""

    id: float
    ood: float

    @property
    def gap(self) -> float:
        """|ID - OOD|."""
        return abs(self.id - self.ood)

    @property
    def average(self) -> float:
        """(ID + OOD) / 2."""
        return (self.id + self.ood) / 2

    def as_dict(self) -> dict[str, float]:
        return {"id": self.id, "ood": self.ood, "gap": self.gap, "average": self.average}


def domain_scores(classifier: Any, id: tuple[Any, Any], ood: tuple[Any, Any]) -> DomainScores:
    """Scores of anything with `score(inputs, labels)`."""
    return DomainScores(float(classifier.score(*id)), float(classifier.score(*ood)))


def confounded_split(
    y: Any,
    a: Any,
    rho_train: float | int = 1.0,
    rho_test: float | int = 0.0,
    seed: int = 0,
    *,
    sizes: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray]:
    """Rows of four disjoint parts in which the confounder agrees with the label at given rates.

    Of the n rows of a label in a part, round(rho n) have a = y and the others a != y: rho is `rho_train` in train,
    val and id, and `rho_test` in ood. Labels have in each part the shares that they have in `y`, up to one row.

    Args:
        y: (n,) labels. a: (n,) the confounder, in the labels' own values (which hospital goes with which label).
        rho_train, rho_test: rates of agreement in [0, 1].
        seed: of the draw.
        sizes: part -> rows, of the parts train, val, id and ood (or some of them); if None the largest parts of
            40, 10, 25 and 25 % that the data can fill.

    Raises:
        ValueError: for values out of range, or naming the cell (y, a) that lacks examples.
    """
    labels, nuisance = np.asarray(y), np.asarray(a)
    if labels.ndim != 1 or labels.shape != nuisance.shape or not len(labels):
        raise ValueError(f"y and a must be flat and equally long, got shapes {labels.shape} and {nuisance.shape}")
    for name, rho in (("rho_train", rho_train), ("rho_test", rho_test)):
        if not 0 <= rho <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {rho}")
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2:
        raise ValueError(f"y must hold at least two labels, got only {values.tolist()}")
    strange = sorted(set(nuisance.tolist()) - set(values.tolist()))
    if strange:
        raise ValueError(f"a must take the labels' values {values.tolist()}, got {strange[0]!r}")
    rng = np.random.default_rng(seed)
    cells = {
        (k, agrees): rng.permutation(np.flatnonzero((labels == k) & ((nuisance == k) == agrees)))
        for k in values.tolist()
        for agrees in (True, False)
    }
    rates = {part: float(rho_test if part == "ood" else rho_train) for part in SHARES}
    wanted = _largest(counts, cells, rates) if sizes is None else dict(sizes)
    unknown = sorted(set(wanted) - set(SHARES))
    if unknown or not wanted or min(wanted.values()) < 1:
        raise ValueError(f"sizes are positive, of the parts {', '.join(SHARES)}, got {wanted}")
    need = _need(wanted, counts, rates)
    for (place, agrees), amount in _totals(need).items():
        label = values.tolist()[place]
        if amount > len(cells[label, agrees]):
            others = [v for v in values.tolist() if v != label]
            cell = f"a={label!r}" if agrees else (f"a={others[0]!r}" if len(others) == 1 else f"a!={label!r}")
            raise ValueError(
                f"the cell (y={label!r}, {cell}) lacks examples: {amount} wanted, {len(cells[label, agrees])} there"
            )
    split = {}
    for part, amounts in need.items():
        rows = []
        for (place, agrees), amount in amounts.items():
            key = (values.tolist()[place], agrees)
            rows.append(cells[key][:amount])
            cells[key] = cells[key][amount:]
        split[part] = rng.permutation(np.concatenate(rows))
    return split


def _need(
    sizes: Mapping[str, int], counts: np.ndarray, rates: Mapping[str, float]
) -> dict[str, dict[tuple[int, bool], int]]:
    """Part -> (place of the label, agrees) -> rows."""
    need: dict[str, dict[tuple[int, bool], int]] = {}
    for part, size in sizes.items():
        exact = size * counts / counts.sum()
        rows = np.floor(exact).astype(int)
        # Largest remainders; among equal ones the first labels.
        rows[np.argsort(rows - exact, kind="stable")[: size - rows.sum()]] += 1
        need[part] = {}
        for place, amount in enumerate(rows.tolist()):
            agreeing = round(rates[part] * amount)
            need[part] |= {(place, True): agreeing, (place, False): amount - agreeing}
    return need


def _totals(need: Mapping[str, Mapping[tuple[int, bool], int]]) -> dict[tuple[int, bool], int]:
    totals: dict[tuple[int, bool], int] = {}
    for amounts in need.values():
        for cell, amount in amounts.items():
            totals[cell] = totals.get(cell, 0) + amount
    return totals


def _largest(counts: np.ndarray, cells: Mapping[Any, np.ndarray], rates: Mapping[str, float]) -> dict[str, int]:
    have = [len(rows) for rows in cells.values()]
    order = [(place, agrees) for place in range(len(counts)) for agrees in (True, False)]

    def sizes(total: int) -> dict[str, int]:
        return {part: max(int(share * total), 1) for part, share in SHARES.items()}

    def fits(total: int) -> bool:
        totals = _totals(_need(sizes(total), counts, rates))
        return all(totals[cell] <= there for cell, there in zip(order, have))

    low, high = 1, int(counts.sum())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return sizes(low)
