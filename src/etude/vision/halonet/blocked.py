"""The core of halo attention: blocks of queries against overlapping windows, a few rows of blocks at a time.

All the queries of a block share one window of keys, so a block is two small matrix products. Windows overlap: the
unfolded keys and values take (window / block)^2 times the memory of the map, and the attention weights much more.
Outside of traced graphs the work therefore goes through chunks of block rows, and the backward pass computes the
weights of a chunk again instead of storing those of the whole map: besides tensors of the size of the map, memory is
that of one chunk.

Maps are channels-last here, (batch, heads, height, width, dim): a row of a window is then one contiguous run.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Geometry", "attend"]

# Attention weights of a chunk, if the caller leaves the choice to us. On a CPU a chunk then stays in the cache (1 MiB
# of float32) and in memory that the allocator has at hand; on an accelerator it is large enough to fill the device.
_CPU_CHUNK = 2**18
_DEVICE_CHUNK = 2**26
# Attention weights up to this number are kept for the backward pass: 16 MiB of float32 whatever the image.
_KEPT_WEIGHTS = 2**22


@dataclass(frozen=True)
class Geometry:
    """Where blocks and windows lie on a map.

    Args:
        height, width: size of the map of keys, before any filling up.
        block: pixels on a side of a block.
        halo: pixels by which a window exceeds its block on every side.
        stride: distance in pixels of neighbouring queries; it divides `block`.
    """

    height: int
    width: int
    block: int
    halo: int
    stride: int = 1

    @property
    def rows(self) -> int:
        """Blocks from top to bottom; the last may reach beyond the map."""
        return -(-self.height // self.block)

    @property
    def columns(self) -> int:
        return -(-self.width // self.block)

    @property
    def window(self) -> int:
        """Pixels on a side of a window."""
        return self.block + 2 * self.halo

    @property
    def queries(self) -> int:
        """Queries on a side of a block."""
        return self.block // self.stride

    @property
    def fill(self) -> tuple[int, int]:
        """Rows and columns that fill the map up to whole blocks."""
        return self.rows * self.block - self.height, self.columns * self.block - self.width


def _query_blocks(x: Tensor, side: int) -> Tensor:
    """View of a map (n, heads, rows * side, columns * side, dim) as (n, heads, rows, columns, side, side, dim)."""
    return x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 1, 2, 4, 3, 5, 6)


def _windows(x: Tensor, g: Geometry) -> Tensor:
    """Windows of a padded map (n, heads, height, width, dim), as (n * heads * rows * columns, window^2, dim)."""
    w = g.window
    views = x.unfold(2, w, g.block).unfold(3, w, g.block)
    return views.permute(0, 1, 2, 3, 5, 6, 4).reshape(-1, w * w, x.shape[-1])


def _add_windows(total: Tensor, windows: Tensor, g: Geometry) -> None:
    """Adds windows back where `_windows` took them from: its transpose.

    Pieces of a window that lie a block apart do not overlap those of its neighbours, so each piece is one addition.
    """
    n, heads, height, width, dim = total.shape
    b, w = g.block, g.window
    rows, columns = (height - w) // b + 1, (width - w) // b + 1
    grid = windows.view(n, heads, rows, columns, w, w, dim)
    for top in range(0, w, b):
        tall = min(b, w - top)
        for left in range(0, w, b):
            wide = min(b, w - left)
            piece = total[:, :, top : top + (rows - 1) * b + tall, left : left + (columns - 1) * b + wide]
            piece = piece.unfold(2, tall, b).unfold(3, wide, b).permute(0, 1, 2, 3, 5, 6, 4)
            piece.add_(grid[..., top : top + tall, left : left + wide, :])


def _weights(
    blocks: Tensor,
    keys: Tensor,
    rel_rows: Tensor | None,
    rel_columns: Tensor | None,
    row_mask: Tensor | None,
    column_mask: Tensor | None,
    g: Geometry,
) -> Tensor:
    """Attention weights (instances, queries^2, window^2) of query blocks (n, heads, rows, columns, a, a, dim).

    The relative logits are sums of a term for the key's row and one for its column, (..., a, a, window) each; the
    masks, 0 or -inf for each (block row, window row) and (block column, window column), ride on these.
    """
    w, dim = g.window, blocks.shape[-1]
    scale = dim**-0.5
    queries = blocks.reshape(-1, g.queries**2, dim)
    if rel_rows is None and row_mask is None and column_mask is None:
        logits = torch.bmm(queries * scale, keys.transpose(1, 2))
    else:
        if rel_rows is None or rel_columns is None:
            by_row = by_column = blocks.new_zeros(*blocks.shape[:-1], w)
        else:
            by_row = torch.einsum("...acd,ayd->...acy", blocks, rel_rows)
            by_column = torch.einsum("...acd,cxd->...acx", blocks, rel_columns)
        if row_mask is not None:
            by_row = by_row + row_mask[:, None, None, None]
        if column_mask is not None:
            by_column = by_column + column_mask[:, None, None]
        # contiguous: the sum inherits the layout of its terms, and einsum's are permuted
        bias = by_row.contiguous().unsqueeze(-1) + by_column.contiguous().unsqueeze(-2)
        bias = bias.view(-1, g.queries**2, w * w)
        # out= rather than baddbmm_: PyTorch's FLOP counter does not know the latter
        spare = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else bias
        logits = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=scale, out=spare)
    return logits.softmax(-1, dtype=logits.dtype)  # an explicit dtype keeps autocast from widening the weights


def _chunks(batch: int, rows: int, chunk_rows: int) -> Iterator[tuple[slice, int, int]]:
    """(images, first block row, end block row) of chunks that hold at most `chunk_rows` rows of blocks."""
    images = max(1, chunk_rows // rows)
    step = min(chunk_rows, rows)
    for first in range(0, batch, images):
        for row in range(0, rows, step):
            yield slice(first, min(first + images, batch)), row, min(row + step, rows)


def _spans(first: int, end: int, g: Geometry) -> tuple[slice, slice]:
    """Rows of the query map and rows of the padded key map that block rows first..end use."""
    queries = slice(first * g.queries, end * g.queries)
    return queries, slice(first * g.block, (end - 1) * g.block + g.window)


def _rows_of(mask: Tensor | None, first: int, end: int) -> Tensor | None:
    return None if mask is None else mask[first:end]


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_rows: Tensor | None,
    rel_columns: Tensor | None,
    masks: tuple[Tensor | None, Tensor | None],
    g: Geometry,
    chunk_rows: int,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """Attention without autograd, chunk by chunk; also the weights of all chunks if they are to be kept."""
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    kept = []
    for images, first, end in _chunks(len(q), g.rows, chunk_rows):
        of_queries, of_keys = _spans(first, end, g)
        blocks = _query_blocks(q[images, :, of_queries], g.queries).contiguous()
        keys, values = _windows(k[images, :, of_keys], g), _windows(v[images, :, of_keys], g)
        weights = _weights(blocks, keys, rel_rows, rel_columns, _rows_of(masks[0], first, end), masks[1], g)
        target = _query_blocks(out[images, :, of_queries], g.queries)
        target.copy_(torch.bmm(weights, values).view(target.shape))
        if keep:
            kept.append(weights)
    return out, kept


def _traceable(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_rows: Tensor | None,
    rel_columns: Tensor | None,
    masks: tuple[Tensor | None, Tensor | None],
    g: Geometry,
    chunk_rows: int | None,
) -> Tensor:
    """The same in differentiable operations: for compilers, exporters and second derivatives."""
    step = min(chunk_rows or g.rows, g.rows)
    parts = []
    for first in range(0, g.rows, step):
        end = min(first + step, g.rows)
        of_queries, of_keys = _spans(first, end, g)
        blocks = _query_blocks(q[:, :, of_queries], g.queries)
        keys, values = _windows(k[:, :, of_keys], g), _windows(v[:, :, of_keys], g)
        weights = _weights(blocks, keys, rel_rows, rel_columns, _rows_of(masks[0], first, end), masks[1], g)
        mixed = torch.bmm(weights, values).view(*blocks.shape[:-1], v.shape[-1])
        parts.append(mixed.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


class _ChunkedAttention(torch.autograd.Function):
    """`_forward` with a backward pass that holds one chunk at a time."""

    @staticmethod
    def forward(ctx: Any, q, k, v, rel_rows, rel_columns, masks, g, chunk_rows, keep):
        out, kept = _forward(q, k, v, rel_rows, rel_columns, masks, g, chunk_rows, keep)
        ctx.save_for_backward(q, k, v, rel_rows, rel_columns, out, *kept)
        ctx.masks, ctx.geometry, ctx.chunk_rows = masks, g, chunk_rows
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        q, k, v, rel_rows, rel_columns, out, *kept = ctx.saved_tensors
        masks, g, chunk_rows = ctx.masks, ctx.geometry, ctx.chunk_rows
        inputs = (q, k, v, rel_rows, rel_columns)
        if torch.is_grad_enabled():  # create_graph=True: the gradients must be differentiable themselves
            wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad) if needed]
            again = _traceable(*inputs, masks, g, None)
            found = iter(torch.autograd.grad(again, wanted, grad, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:5]), None, None, None, None

        # Windows overlap and the tables sum over all queries: half precision would lose these sums.
        wide = torch.promote_types(q.dtype, torch.float32)
        dim, dim_value, w = q.shape[-1], v.shape[-1], g.window
        scale = dim**-0.5
        dq = torch.empty_like(q, memory_format=torch.contiguous_format)
        dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        d_rows = None if rel_rows is None else torch.zeros_like(rel_rows, dtype=wide)
        d_columns = None if rel_columns is None else torch.zeros_like(rel_columns, dtype=wide)
        centre = (grad * out).sum(-1, keepdim=True)
        for number, (images, first, end) in enumerate(_chunks(len(q), g.rows, chunk_rows)):
            of_queries, of_keys = _spans(first, end, g)
            blocks = _query_blocks(q[images, :, of_queries], g.queries).contiguous()
            keys, values = _windows(k[images, :, of_keys], g), _windows(v[images, :, of_keys], g)
            if kept:
                weights = kept[number]
            else:
                weights = _weights(blocks, keys, rel_rows, rel_columns, _rows_of(masks[0], first, end), masks[1], g)
            instances, many, _ = weights.shape
            upstream = _query_blocks(grad[images, :, of_queries], g.queries).contiguous()
            upstream = upstream.view(instances, many, dim_value)  # a reshape may stay strided, which slows bmm
            mean = _query_blocks(centre[images, :, of_queries], g.queries).reshape(instances, many, 1)
            _add_windows(dv[images, :, of_keys], torch.bmm(weights.transpose(1, 2), upstream), g)
            slope = torch.bmm(upstream, values.transpose(1, 2)).sub_(mean).mul_(weights)  # of the logits
            queries = blocks.view(instances, many, dim) * scale
            _add_windows(dk[images, :, of_keys], torch.bmm(slope.transpose(1, 2), queries), g)
            d_blocks = torch.bmm(slope, keys).mul_(scale).view(blocks.shape)
            if d_rows is not None and d_columns is not None:
                slope = slope.view(*blocks.shape[:-1], w, w)
                by_row, by_column = slope.sum(-1), slope.sum(-2)
                d_rows += torch.einsum("...acy,...acd->ayd", by_row, blocks)
                d_columns += torch.einsum("...acx,...acd->cxd", by_column, blocks)
                d_blocks += torch.einsum("...acy,ayd->...acd", by_row, rel_rows)
                d_blocks += torch.einsum("...acx,cxd->...acd", by_column, rel_columns)
            _query_blocks(dq[images, :, of_queries], g.queries).copy_(d_blocks)
        dtype = q.dtype
        grads = (dq, *(None if x is None else x.to(dtype) for x in (dk, dv, d_rows, d_columns)))
        return *grads, None, None, None, None


def attend(
    q: Float[Tensor, "batch heads query_height query_width dim"],
    k: Float[Tensor, "batch heads padded_height padded_width dim"],
    v: Float[Tensor, "batch heads padded_height padded_width dim_value"],
    rel_rows: Float[Tensor, "queries window dim"] | None,
    rel_columns: Float[Tensor, "queries window dim"] | None,
    masks: tuple[Tensor | None, Tensor | None],
    geometry: Geometry,
    chunk_rows: int | None,
) -> Float[Tensor, "batch heads query_height query_width dim_value"]:
    """Every block of queries attends to its window of keys.

    Args:
        q: queries, filled up to whole blocks.
        k, v: keys and values, filled up to whole blocks and padded by the halo.
        rel_rows, rel_columns: the table rows that a query row (column) of a block meets at each window row (column).
        masks: 0 or -inf for each (block row, window row) and (block column, window column); None masks nothing.
        geometry: blocks and windows.
        chunk_rows: rows of blocks at a time; None chooses by the size of their attention weights.
    """
    g = geometry
    if torch.compiler.is_compiling():
        return _traceable(q, k, v, rel_rows, rel_columns, masks, g, chunk_rows)
    row_weights = max(1, q.shape[1] * g.columns * g.queries**2 * g.window**2)
    rows = chunk_rows or max(1, (_CPU_CHUNK if q.device.type == "cpu" else _DEVICE_CHUNK) // row_weights)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, rel_rows, rel_columns)):
        keep = chunk_rows is None and row_weights * g.rows * len(q) <= _KEPT_WEIGHTS
        return _ChunkedAttention.apply(q, k, v, rel_rows, rel_columns, masks, g, rows, keep)
    return _forward(q, k, v, rel_rows, rel_columns, masks, g, rows, False)[0]
