"""Products of a constant sparse matrix with dense ones, quick forward and backward.

Autograd of a CSR product transposes the matrix anew at each backward; on a citation graph that costs ten times the
product itself. The matrices of a graph network never change, so the transpose is made once and kept.
"""

import warnings
from functools import cached_property
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

__all__ = ["SparseMatrix", "csr_tensor", "dropout"]


def dropout(x: Float[Tensor, "..."], p: float, training: bool) -> Float[Tensor, "..."]:
    """`torch.nn.functional.dropout`, which on a CPU spends most of a training step of these small models in its draws.

    Uniform draws are four times as quick as its Bernoulli draws.
    """
    if not training or p == 0 or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return F.dropout(x, p, training)
    return x * (torch.rand_like(x) >= p).to(x.dtype).mul_(1 / (1 - p))


def csr_tensor(
    row_starts: Shaped[Tensor, "rows_and_one"],
    columns: Shaped[Tensor, "entries"],
    values: Float[Tensor, "entries"],
    shape: tuple[int, int],
) -> Float[Tensor, "rows columns"]:
    """A CSR tensor with 32-bit indices where they suffice; MKL would convert wider ones at each product."""
    fits = max(len(columns), *shape) < 2**31
    index = torch.int32 if fits else torch.int64
    return torch.sparse_csr_tensor(row_starts.to(index), columns.to(index), values, shape, check_invariants=False)


def _silence_beta_warning() -> None:
    """Torch says once a process that CSR is a beta feature: let it say so here, unheard.

    A filter around each construction would also make Python forget which warnings it has already shown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        csr_tensor(torch.zeros(2), torch.zeros(0), torch.zeros(0), (1, 1))


_silence_beta_warning()

Matrix = TypeVar("Matrix", bound="SparseMatrix")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dense: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.matrices = (transposed, matrix)
        return torch.sparse.mm(matrix, dense)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _Product.apply(grads[0], *ctx.matrices), None, None


class SparseMatrix:
    """A constant CSR matrix that multiplies dense ones; gradients flow to the dense factor only.

    Products are made in the precision of the matrix, also under autocast, and given back in that of the dense factor.

        features = SparseMatrix(x)              # once
        hidden = features.dropout(0.8) @ weight

    Args:
        matrix: a `torch.sparse_csr` tensor of floating point, without gradient.

    Raises:
        ValueError: if the tensor is not CSR, not floating point, or requires a gradient.
    """

    def __init__(self, matrix: Float[Tensor, "rows columns"]):
        if matrix.layout != torch.sparse_csr or not matrix.is_floating_point():
            raise ValueError(f"expected a floating-point sparse_csr tensor, got {matrix.dtype} of {matrix.layout}")
        if matrix.requires_grad:
            raise ValueError("the sparse matrix is a constant here, it must not require a gradient")
        rows, columns = matrix.shape
        self.matrix = csr_tensor(matrix.crow_indices(), matrix.col_indices(), matrix.values(), (rows, columns))

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.matrix.shape
        return rows, columns

    @property
    def dtype(self) -> torch.dtype:
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @cached_property
    def _order(self) -> Shaped[Tensor, "entries"]:
        """Where each entry of the transpose stands among the entries of the matrix."""
        return torch.argsort(self.matrix.col_indices(), stable=True)

    @cached_property
    def transposed(self) -> Float[Tensor, "columns rows"]:
        """The transpose in CSR; the matrix itself if it is symmetric, to the last bit."""
        matrix, (rows, columns) = self.matrix, self.shape
        row_of_entry = torch.repeat_interleave(
            torch.arange(rows, device=self.device), matrix.crow_indices().diff().to(torch.int64)
        )
        counts = torch.bincount(matrix.col_indices(), minlength=columns)
        transpose = csr_tensor(
            F.pad(counts.cumsum(0), (1, 0)), row_of_entry[self._order], matrix.values()[self._order], (columns, rows)
        )
        parts = ((part(transpose), part(matrix)) for part in (Tensor.crow_indices, Tensor.col_indices, Tensor.values))
        return matrix if rows == columns and all(torch.equal(*pair) for pair in parts) else transpose

    def __matmul__(self, dense: Float[Tensor, "columns width"]) -> Float[Tensor, "rows width"]:
        if dense.ndim != 2 or dense.shape[0] != self.shape[1]:
            raise ValueError(f"expected a dense matrix of {self.shape[1]} rows, got shape {tuple(dense.shape)}")
        precise = dense.to(self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            if torch.is_grad_enabled() and dense.requires_grad:
                product = _Product.apply(precise, self.matrix, self.transposed)
            else:
                product = torch.sparse.mm(self.matrix, precise)
        return product.to(dense.dtype)

    def dropout(self, p: float, training: bool = True) -> "SparseMatrix":
        """Dropout of the stored entries: the same as of the dense matrix, as zeros stay zeros."""
        if not training or p == 0:
            return self
        return self._with_values(dropout(self.matrix.values(), p, training))

    def to(self: Matrix, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Matrix:
        """The matrix on another device or in another precision; itself if it is there already."""
        device, dtype = torch.device(device or self.device), dtype or self.dtype
        if (device, dtype) == (self.device, self.dtype):
            return self
        return type(self)(self.matrix.to(device=device, dtype=dtype))

    def _with_values(self, values: Float[Tensor, "entries"]) -> "SparseMatrix":
        changed = SparseMatrix(csr_tensor(self.matrix.crow_indices(), self.matrix.col_indices(), values, self.shape))
        if torch.is_grad_enabled():
            changed.__dict__["_order"] = self._order
            changed.__dict__["transposed"] = csr_tensor(
                *self._transposed_structure, values[self._order], (self.shape[1], self.shape[0])
            )
        return changed

    @cached_property
    def _transposed_structure(self) -> tuple[Tensor, Tensor]:
        return self.transposed.crow_indices(), self.transposed.col_indices()

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"{type(self).__name__}({rows} x {columns}, {self.matrix.values().numel()} entries, {self.dtype})"
