"""Two public tables of the Bayesian deep-learning literature: Boston housing with ten splits, and the banana set.

Both lie in folders that `etude data fetch uci_boston_splits` and `etude data fetch banana` download. The ten splits are
the ones that Hernandez-Lobato & Adams, "Probabilistic Backpropagation", ICML 2015, and most papers since report on.
"""

import numpy as np
import torch

from etude.data.catalogue import locate
from etude.data.kinds import Examples, TableData
from etude.data.splitting import cut, stratified_order

__all__ = ["BOSTON_SPLITS", "banana", "boston"]

BOSTON_SPLITS = 10

_BOSTON_COLUMNS = (
    "CRIM", "ZN", "INDUS", "CHAS", "NOX", "RM", "AGE", "DIS", "RAD", "TAX", "PTRATIO", "B", "LSTAT",
)  # fmt: skip


def boston(split: int = 0) -> TableData:
    """506 suburbs, 13 measurements, the median value of a home in thousands of dollars.

    Features are the columns 0 to 12 of `data.txt` and the target is the last one; the files `index_features.txt` and
    `index_target.txt` beside it name other columns and are not read. Test rows are the published ones of the split; the
    validation rows, a tenth of the published training rows, are always the same.

    Args:
        split: 0 to 9.

    Raises:
        ValueError: if there is no such split, or the files do not hold 506 x 14 numbers and rows of them.
        FileNotFoundError: if the set is not here; the message says how to get it.
    """
    if not 0 <= split < BOSTON_SPLITS:
        raise ValueError(f"split must lie in 0..{BOSTON_SPLITS - 1}, got {split}")
    folder = locate("uci_boston_splits")
    table = np.loadtxt(folder / "data.txt")
    if table.shape != (506, 14):
        raise ValueError(f"{folder / 'data.txt'} must hold 506 x 14 numbers, got {' x '.join(map(str, table.shape))}")
    rows = [
        np.loadtxt(folder / "original" / f"index_{part}_{split}.txt").astype(np.int64) for part in ("train", "test")
    ]
    if not np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(table))):
        raise ValueError(f"the rows of split {split} in {folder / 'original'} must be each of 0..505 once")
    held = len(rows[0]) // 10
    order = stratified_order(np.zeros(len(rows[0]), dtype=np.int64))
    kept, val = (rows[0][part] for part in cut(order, len(rows[0]) - held, held))
    train, val, test = (
        Examples(torch.from_numpy(table[part, :-1]).float(), torch.from_numpy(table[part, -1]).float())
        for part in (kept, val, rows[1])
    )
    return TableData(
        train=train, val=val, test=test, columns=_BOSTON_COLUMNS, classes=(), name=f"boston, split {split}"
    )


def banana() -> TableData:
    """400 points of the plane in two curved classes; split 60 / 20 / 20, stratified, always the same.

    Raises:
        ValueError: if the files do not hold 400 points and as many labels 0 and 1.
        FileNotFoundError: if the set is not here; the message says how to get it.
    """
    folder = locate("banana")
    x = np.loadtxt(folder / "banana_X_train", delimiter=",")
    y = np.loadtxt(folder / "banana_Y_train").astype(np.int64)
    if x.shape != (400, 2) or y.shape != (400,) or not np.array_equal(np.unique(y), [0, 1]):
        raise ValueError(f"{folder} must hold 400 points and labels 0 and 1, got {x.shape} and {np.unique(y)[:5]}")
    train, val, test = (
        Examples(torch.from_numpy(x[part]).float(), torch.from_numpy(y[part]))
        for part in cut(stratified_order(y), 240, 80, 80)
    )
    return TableData(train=train, val=val, test=test, columns=("x1", "x2"), classes=("0", "1"), name="banana")
