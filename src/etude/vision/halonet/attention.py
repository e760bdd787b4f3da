"""Halo attention: the functional form, and the layer that replaces a 3x3 convolution.

Vaswani et al., CVPR 2021, arXiv:2103.12731, section 2. The map is cut into blocks of b x b pixels; all queries of a
block share one window of keys, the block and a halo of h pixels on every side, (b + 2h)^2 pixels in all:

    logits_ij = q_i . k_j / sqrt(d) + s (q_i . r^H_dy + q_i . r^W_dx),   (dy, dx) = pixel of key j - pixel of query i
    out_i = sum_j softmax_j(logits_ij) v_j                                                                         (1)

The row of a relative table is the offset + window - 1. Only the middle 2b + 2h - 1 rows are within reach of a query;
all 2 (b + 2h) - 1 are allocated, as is usual, so that parameter counts compare.
"""

import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.halonet.blocked import Geometry, attend

__all__ = ["HaloAttention", "halo_attention", "sasa_attention"]


def halo_attention(
    q: Float[Tensor, "batch heads dim query_height query_width"],
    k: Float[Tensor, "batch heads dim height width"],
    v: Float[Tensor, "batch heads dim_value height width"],
    *,
    block_size: int,
    halo_size: int,
    rel_h: Float[Tensor, "offsets dim"] | None = None,
    rel_w: Float[Tensor, "offsets dim"] | None = None,
    stride: int = 1,
    mask_padding: bool = True,
    scale_rel: bool = False,
    dense_offsets: bool = False,
    chunk_rows: int | None = None,
) -> Float[Tensor, "batch channels query_height query_width"]:
    """Blocked local attention, Eq. (1), on projected maps.

    A height or width that is no multiple of `block_size` is filled up at the bottom and right with pixels that no
    query sees. Block sizes as large as the map give global attention, `halo_size=0` isolated blocks, `block_size=1`
    per-pixel windows (`sasa_attention`).

    Besides tensors of the size of the maps, memory is that of a few rows of blocks, in training too: the backward
    pass computes attention weights again. Traced graphs (`torch.compile`, `torch.export`) leave this to the compiler.

    Args:
        q: queries; with `stride=2` those of every second pixel, ceil(height / 2) x ceil(width / 2).
        k: keys, of the queries' dim.
        v: values; their dim may differ.
        block_size: pixels b on a side of a block, >= 1.
        halo_size: pixels h of the halo, >= 0.
        rel_h, rel_w: relative tables of rows and columns, 2 (b + 2h) - 1 offsets each and shared by all heads; both
            or neither.
        stride: 1, or 2 to subsample the queries inside each block (the paper's attention down-sampling).
        mask_padding: whether the halo beyond the border is left out of the softmax. With False its keys are zeros
            that take part, as in timm, and attention at the border is diluted.
        scale_rel: whether 1 / sqrt(dim) also scales the relative logits (s in Eq. (1)); s = 1 otherwise.
        dense_offsets: index the tables of a strided layer as if its queries were neighbours. This is what timm
            computes, and of use only for weights trained that way.
        chunk_rows: rows of blocks, counted over all images, that are unfolded at a time, >= 1; None chooses by size.

    Raises:
        ValueError: on block, halo or stride out of range, a stride that does not divide the block, or shapes that do
            not fit together.
    """
    _check_sizes(block_size, halo_size, stride)
    if block_size % stride:
        raise ValueError(f"stride {stride} must divide block_size, got {block_size}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1 or None, got {chunk_rows}")
    _check_maps(q, k, v, stride)
    g = Geometry(k.shape[3], k.shape[4], block_size, halo_size, stride)
    _check_tables(rel_h, rel_w, 2 * g.window - 1, q.shape[2])
    dtype = _working_dtype(q)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)

    rel_rows = rel_columns = None
    if rel_h is not None and rel_w is not None:
        step = 1 if dense_offsets else stride
        query = torch.arange(g.queries, device=q.device)[:, None]
        key = torch.arange(g.window, device=q.device) - g.halo
        row = key - step * query + g.window - 1
        strength = q.shape[2] ** -0.5 if scale_rel else 1.0
        rel_rows, rel_columns = rel_h[row].to(dtype) * strength, rel_w[row].to(dtype) * strength
    fill_h, fill_w = g.fill
    masks = (
        _border_mask(q, g.height, fill_h, g, mask_padding),
        _border_mask(q, g.width, fill_w, g, mask_padding),
    )
    lacking = (0, g.columns * g.queries - q.shape[4], 0, g.rows * g.queries - q.shape[3])
    margins = (0, 0, g.halo, g.halo + fill_w, g.halo, g.halo + fill_h)
    out = attend(
        F.pad(q.permute(0, 1, 3, 4, 2), (0, 0, *lacking)),
        F.pad(k.permute(0, 1, 3, 4, 2), margins),
        F.pad(v.permute(0, 1, 3, 4, 2), margins),
        rel_rows,
        rel_columns,
        masks,
        g,
        chunk_rows,
    )
    return out[:, :, : q.shape[3], : q.shape[4]].permute(0, 1, 4, 2, 3).flatten(1, 2)


def sasa_attention(
    q: Float[Tensor, "batch heads dim height width"],
    k: Float[Tensor, "batch heads dim height width"],
    v: Float[Tensor, "batch heads dim_value height width"],
    *,
    window_size: int,
    rel_h: Float[Tensor, "offsets dim"] | None = None,
    rel_w: Float[Tensor, "offsets dim"] | None = None,
    mask_padding: bool = True,
    scale_rel: bool = False,
    chunk_rows: int | None = None,
) -> Float[Tensor, "batch channels height width"]:
    """Stand-alone self-attention (Ramachandran et al., arXiv:1906.05909): every pixel has its own centred window.

    Halo attention with blocks of one pixel: exactly equivariant to shifts away from the border, and far slower.

    Args:
        window_size: pixels on a side of the window, odd. The tables have 2 * window_size - 1 rows.

    The other arguments are those of `halo_attention`.

    Raises:
        ValueError: if `window_size` is not a positive odd number.
    """
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size must be a positive odd number, got {window_size}")
    return halo_attention(
        q,
        k,
        v,
        block_size=1,
        halo_size=window_size // 2,
        rel_h=rel_h,
        rel_w=rel_w,
        mask_padding=mask_padding,
        scale_rel=scale_rel,
        chunk_rows=chunk_rows,
    )


class HaloAttention(nn.Module):
    """Halo attention on a feature map, in place of a 3x3 convolution.

        layer = HaloAttention(dim=64, num_heads=4, block_size=8, halo_size=3)
        y = layer(x)                                # (batch, 64, height, width)

    The number of parameters depends on the window through the two relative tables only. Tables and projections are
    laid out as in timm's `HaloAttn`, whose tables are this layer's moved down by `halo_size` rows.

    Args:
        dim: channels of the input.
        dim_out: channels of the output, which are those of the values; `dim` if None.
        num_heads: heads; it must divide `dim_out`.
        dim_head: dim of queries and keys in a head; `dim // num_heads` if None. The paper's networks have 16.
        block_size, halo_size: b and h in pixels. The paper finds b = 8, h = 3 good.
        stride: 1 or 2; 2 halves the map by subsampling the queries of each block.
        avg_down: with `stride=2`, attend densely and average 2x2 pixels instead; blocks may then be odd.
        qkv_bias: whether the projections have a bias.
        mask_padding, scale_rel, dense_offsets, chunk_rows: see `halo_attention`.
        warn_padding: whether to warn when a window is larger than the map, so that it is mostly padding.

    Raises:
        ValueError: on sizes out of range, or heads that do not divide the dims.
    """

    def __init__(
        self,
        *,
        dim: int,
        dim_out: int | None = None,
        num_heads: int = 8,
        dim_head: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        avg_down: bool = False,
        qkv_bias: bool = False,
        mask_padding: bool = True,
        scale_rel: bool = False,
        dense_offsets: bool = False,
        chunk_rows: int | None = None,
        warn_padding: bool = True,
    ):
        super().__init__()
        _check_sizes(block_size, halo_size, stride)
        dim_out = dim if dim_out is None else dim_out
        for name, value in (("dim", dim), ("dim_out", dim_out), ("num_heads", num_heads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if dim_head is None:
            if dim % num_heads:
                raise ValueError(f"num_heads must divide dim unless dim_head is given, got {num_heads} and {dim}")
            dim_head = dim // num_heads
        if dim_head < 1:
            raise ValueError(f"dim_head must be at least 1, got {dim_head}")
        if dim_out % num_heads:
            raise ValueError(f"num_heads must divide dim_out, got {num_heads} and {dim_out}")
        if stride == 2 and block_size % 2 and not avg_down:
            raise ValueError(f"block_size must be even with stride 2 unless avg_down=True, got {block_size}")
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"chunk_rows must be at least 1 or None, got {chunk_rows}")
        self.dim, self.dim_out, self.num_heads, self.dim_head = dim, dim_out, num_heads, dim_head
        self.block_size, self.halo_size, self.stride, self.avg_down = block_size, halo_size, stride, avg_down
        self.mask_padding, self.scale_rel, self.dense_offsets = mask_padding, scale_rel, dense_offsets
        self.chunk_rows, self.warn_padding = chunk_rows, warn_padding
        self.query_stride = 1 if avg_down else stride
        self.q = nn.Conv2d(dim, num_heads * dim_head, 1, stride=self.query_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, num_heads * dim_head + dim_out, 1, bias=qkv_bias)
        self.rel_h = nn.Parameter(torch.empty(2 * self.window_size - 1, dim_head))
        self.rel_w = nn.Parameter(torch.empty(2 * self.window_size - 1, dim_head))
        self.reset_parameters()

    @property
    def window_size(self) -> int:
        """Pixels on a side of a window, b + 2h."""
        return self.block_size + 2 * self.halo_size

    def reset_parameters(self) -> None:
        """Projections N(0, 1 / dim), relative tables N(0, 1 / dim_head), biases zero."""
        for projection in (self.q, self.kv):
            nn.init.normal_(projection.weight, std=self.dim**-0.5)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        for table in (self.rel_h, self.rel_w):
            nn.init.normal_(table, std=self.dim_head**-0.5)

    def forward(
        self, x: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch dim_out new_height new_width"]:
        """Attends from each block to its window; the map shrinks to ceil(size / stride)."""
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (batch, {self.dim}, height, width), got {tuple(x.shape)}")
        if self.warn_padding and self.window_size > min(x.shape[2:]) and not torch.compiler.is_compiling():
            warnings.warn(
                f"a window of {self.window_size} x {self.window_size} pixels exceeds the map of {x.shape[2]} x "
                f"{x.shape[3]}: most of its keys are padding; a smaller block_size or halo_size computes less",
                stacklevel=2,
            )
        q = self.q(x).unflatten(1, (self.num_heads, -1))
        k, v = (
            self.kv(x).unflatten(1, (self.num_heads, -1)).split((self.dim_head, self.dim_out // self.num_heads), dim=2)
        )
        out = halo_attention(
            q,
            k,
            v,
            block_size=self.block_size,
            halo_size=self.halo_size,
            rel_h=self.rel_h,
            rel_w=self.rel_w,
            stride=self.query_stride,
            mask_padding=self.mask_padding,
            scale_rel=self.scale_rel,
            dense_offsets=self.dense_offsets,
            chunk_rows=self.chunk_rows,
        )
        if self.avg_down and self.stride == 2:
            out = F.avg_pool2d(out, 2, ceil_mode=True, count_include_pad=False)
        return out

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, {self.dim_out}, heads={self.num_heads}, block_size={self.block_size}, "
            f"halo_size={self.halo_size}, stride={self.stride}"
        )


def _check_sizes(block_size: int, halo_size: int, stride: int) -> None:
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if halo_size < 0:
        raise ValueError(f"halo_size must be at least 0, got {halo_size}")
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")


def _check_maps(q: Tensor, k: Tensor, v: Tensor, stride: int) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 5:
            raise ValueError(f"{name} must have shape (batch, heads, dim, height, width), got {tuple(x.shape)}")
    if k.shape[:3] != q.shape[:3]:
        raise ValueError(f"q and k must share batch, heads and dim, got {tuple(q.shape)} and {tuple(k.shape)}")
    if v.shape[:2] != k.shape[:2] or v.shape[3:] != k.shape[3:]:
        raise ValueError(f"k and v may differ in dim only, got {tuple(k.shape)} and {tuple(v.shape)}")
    if min(k.shape[1:]) < 1 or v.shape[2] < 1:
        raise ValueError(f"k and v must not be empty, got {tuple(k.shape)} and {tuple(v.shape)}")
    expected = tuple(-(-size // stride) for size in k.shape[3:])
    if tuple(q.shape[3:]) != expected:
        raise ValueError(
            f"with stride {stride} and keys of {k.shape[3]} x {k.shape[4]} pixels, q must have "
            f"{expected[0]} x {expected[1]}, got {q.shape[3]} x {q.shape[4]}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")


def _check_tables(rel_h: Tensor | None, rel_w: Tensor | None, offsets: int, dim: int) -> None:
    if (rel_h is None) != (rel_w is None):
        raise ValueError("rel_h and rel_w belong together: give both or neither")
    for name, table in (("rel_h", rel_h), ("rel_w", rel_w)):
        if table is not None and tuple(table.shape) != (offsets, dim):
            raise ValueError(
                f"{name} must have shape ({offsets}, {dim}), 2 * (block_size + 2 * halo_size) - 1 offsets of the "
                f"queries' dim, got {tuple(table.shape)}"
            )


def _working_dtype(x: Tensor) -> torch.dtype:
    """Autocast's dtype where it is on (its own casts would not reach the in-place sums), else that of `x`."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _border_mask(like: Tensor, size: int, fill: int, g: Geometry, mask_padding: bool) -> Tensor | None:
    """(blocks, window): 0 where a window's row (column) may be seen, -inf where it may not; None if all may be."""
    if not fill and not (mask_padding and g.halo):
        return None
    blocks = (size + fill) // g.block
    start = torch.arange(blocks, device=like.device) * g.block - g.halo
    pixel = start[:, None] + torch.arange(g.window, device=like.device)
    seen = (pixel >= 0) & (pixel < size)
    if not mask_padding:
        seen |= (pixel < 0) | (pixel >= size + fill)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))
