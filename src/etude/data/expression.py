"""Gene-expression tables of tumours and tissues: few samples, thousands of genes.

    from etude.data import expression
    data = expression.microarray("alon", split=3)

They lie in the folder that `etude data fetch microarray` downloads: R objects of the package datamicroarray, each a
matrix samples x genes and a factor of classes. They are read by the Python package rdata; nothing in them is executed.
"""

import warnings
from pathlib import Path

import numpy as np
import torch

from etude.data.catalogue import locate
from etude.data.kinds import Examples, TableData
from etude.data.splitting import cut, stratified_order

__all__ = ["MICROARRAYS", "RESPLIT", "microarray", "resplit"]

MICROARRAYS: dict[str, tuple[int, int, bool]] = {
    "alon": (62, 2_000, True),
    "golub": (72, 7_129, True),
    "gordon": (181, 12_533, True),
    "khan": (63, 2_308, False),
    "singh": (102, 12_600, True),
    "su": (102, 5_565, False),
}
"""Name -> samples, genes, and whether the values are raw intensities (else logarithms already)."""

TEST_SHARE = 0.35
VAL_SHARE = 0.2
"""Of the rows that are not test rows."""
RESPLIT = TEST_SHARE / (1 - TEST_SHARE)
"""n_test / n_train of `microarray` and `resplit`, for claims whose seeds re-split one table."""
_FLOOR = 20.0


def microarray(name: str, split: int = 0) -> TableData:
    """One of `MICROARRAYS`: a row a sample, a column a gene, the target its tumour or tissue.

    Raw intensities x become log2(max(x, 20)): below 20 they are noise, and negative after background correction.

    Args:
        name: alon (colon, tumour or normal), golub (leukaemia, ALL or AML), gordon (lung, two tumours), khan (four
            small round blue-cell tumours), singh (prostate, tumour or normal) or su (four tissues).
        split: 35 % test rows and of the others 20 % validation rows, stratified; other ones for every number.

    Raises:
        ValueError: for an unknown name, a negative split, or a file that does not hold the table.
        FileNotFoundError: if the set is not here; the message says how to get it.
        ImportError: if rdata is not installed.
    """
    if name not in MICROARRAYS:
        raise ValueError(f"name must be one of {', '.join(MICROARRAYS)}, got {name!r}")
    values, labels, columns = _read(locate("microarray") / "data" / f"{name}.RData", name)
    if MICROARRAYS[name][2]:
        values = np.log2(np.maximum(values, _FLOOR))
    classes, codes = np.unique(labels, return_inverse=True)
    rows = Examples(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(codes.astype(np.int64)))
    train, val, test = _split(rows, split)
    named = tuple(str(label) for label in classes)
    return TableData(train=train, val=val, test=test, columns=columns, classes=named, name=f"{name}, split {split}")


def resplit(data: TableData, split: int) -> TableData:
    """The rows of all three parts of a table, split anew as `microarray` splits.

    Raises:
        ValueError: for a negative split, or a table too small to be split.
    """
    parts = [data.train, data.val, data.test]
    rows = Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))
    train, val, test = _split(rows, split)
    name = f"{data.name.split(', split ')[0]}, split {split}"
    return TableData(train=train, val=val, test=test, columns=data.columns, classes=data.classes, name=name)


def _split(rows: Examples, split: int) -> list[Examples]:
    if split < 0:
        raise ValueError(f"split must not be negative, got {split}")
    # The order of the rows must not depend on the split that they came from.
    key = np.lexsort(rows.inputs[:, : min(8, rows.inputs.shape[1])].numpy().T)
    labels = rows.targets.numpy()[key]
    n = len(labels)
    test = round(TEST_SHARE * n)
    val = round(VAL_SHARE * (n - test))
    order = key[stratified_order(labels if rows.targets.dtype == torch.int64 else np.zeros(n), seed=split)]
    return [rows.subset(torch.from_numpy(part)) for part in cut(order, n - test - val, val, test)]


def _read(path: Path, name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Values (samples, genes) float64, a label each, the genes' names."""
    try:
        import rdata
    except ImportError as error:
        raise ImportError("gene-expression tables need rdata: pip install rdata") from error
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: run `etude data fetch microarray`")
    with warnings.catch_warnings():
        # The files are older than R's note of the encoding; all text in them is ASCII.
        warnings.simplefilter("ignore")
        objects = rdata.read_rda(path)
    found = objects.get(name)
    if not isinstance(found, dict) or not {"x", "y"} <= set(found):
        raise ValueError(f"{path} must hold an R list {name} with x and y, got {sorted(objects)}")
    table = found["x"]
    values = np.asarray(table, dtype=np.float64)
    labels = np.asarray(found["y"]).astype(str)
    samples, genes, _ = MICROARRAYS[name]
    if values.shape != (samples, genes) or labels.shape != (samples,):
        raise ValueError(f"{path} must hold {samples} samples x {genes} genes, got {values.shape} and {labels.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path} holds {int((~np.isfinite(values)).sum())} values that are not finite")
    if hasattr(table, "columns"):
        names = [str(column) for column in table.columns]
    elif "dim_1" in getattr(table, "coords", {}):
        names = [str(column) for column in table.coords["dim_1"].values]
    else:
        names = [f"gene {j}" for j in range(1, genes + 1)]
    return values, labels, tuple(names)
