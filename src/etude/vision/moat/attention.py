"""Windows of a feature map, and self-attention in them with a relative position bias.

Yang et al., ICLR 2023, arXiv:2210.01820, section 2 and the official code. Head m takes from key j to query i

    softmax_j(q_i . k_j / sqrt(d) + T_m[dy + h - 1, dx + w - 1]),   (dy, dx) = pixel of key j - pixel of query i   (1)

in a window of h x w pixels. T_m, one learned table per head, does not depend on the content. It is stored for one
window, (2p - 1) x (2p - 1), and resized bilinearly to (2h - 1) x (2w - 1) for any other, so that a network takes
images of other sizes than those it was trained on.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["RelPosAttention2d", "Window", "relative_position_bias", "window_merge", "window_partition"]

Window = int | Sequence[int]
"""Height and width of a window in pixels, or one number for both."""


def window_pair(window: Window, name: str = "window") -> tuple[int, int]:
    """Height and width.

    Raises:
        ValueError: if either is not positive, or they are not two.
    """
    pair = (window, window) if isinstance(window, int) else tuple(window)
    if len(pair) != 2 or min(pair) < 1:
        raise ValueError(f"{name} must be a positive height and width, or one number for both, got {window}")
    return pair[0], pair[1]


def window_partition(
    x: Shaped[Tensor, "batch height width channels"], window: Window
) -> Shaped[Tensor, "windows window_height window_width channels"]:
    """Cuts maps into windows that do not overlap: image by image, row of windows by row of windows.

    Raises:
        ValueError: if the window does not divide the map.
    """
    rows, columns = window_pair(window)
    batch, height, width, channels = x.shape
    if height % rows or width % columns:
        raise ValueError(f"a window of {rows} x {columns} must divide the map, got {height} x {width}")
    cut = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return cut.transpose(2, 3).reshape(-1, rows, columns, channels)


def window_merge(
    windows: Shaped[Tensor, "windows window_height window_width channels"], size: tuple[int, int]
) -> Shaped[Tensor, "batch height width channels"]:
    """Undoes `window_partition`.

    Args:
        windows: as `window_partition` gives them.
        size: height and width of the maps.

    Raises:
        ValueError: if whole maps of that size cannot be put together from the windows.
    """
    count, rows, columns, channels = windows.shape
    height, width = size
    down, right = height // rows, width // columns
    if height % rows or width % columns or down < 1 or right < 1 or count % (down * right):
        raise ValueError(f"{count} windows of {rows} x {columns} do not make up maps of {height} x {width}")
    return (
        windows.reshape(-1, down, right, rows, columns, channels).transpose(2, 3).reshape(-1, height, width, channels)
    )


def relative_position_bias(
    table: Float[Tensor, "heads rows columns"], height: int, width: int
) -> Float[Tensor, "heads tokens tokens"]:
    """What is added to the logits in a window of `height` x `width` pixels, Eq. (1): query by key.

    Args:
        table: T, of any odd size; resized (half-pixel centres, no antialiasing) unless it fits the window.
    """
    size = (2 * height - 1, 2 * width - 1)
    if tuple(table.shape[1:]) != size:
        table = F.interpolate(table[None], size=size, mode="bilinear", align_corners=False)[0]
    row, column = (torch.arange(length, device=table.device) for length in (height, width))
    dy = row[None, :] - row[:, None] + height - 1
    dx = column[None, :] - column[:, None] + width - 1
    # One axis after the other: the backward pass keeps an index for each, not one for every pair of pixels.
    pairs = table.index_select(2, dx.flatten()).index_select(1, dy.flatten())
    split = pairs.unflatten(2, (width, width)).unflatten(1, (height, height))
    return split.transpose(2, 3).reshape(len(table), height * width, height * width)


class RelPosAttention2d(nn.Module):
    """Multi-head self-attention of a feature map's pixels, global or in windows, Eq. (1).

        attention = RelPosAttention2d(dim=64, head_dim=32, rel_pos_size=14, window=14)
        y = attention(x)                            # (batch, 64, 28, 28), in four windows

    Windows are not shifted and no pixel is masked: in a MOAT block the convolution before the attention carries
    information from window to window. The layer has neither a norm nor a residual; the block has.

    On a CPU, training computes the weights explicitly, which is quicker there than the fused kernel; elsewhere
    `torch.nn.functional.scaled_dot_product_attention` does. Weights are normalised in float32 at least.

    Args:
        dim: channels, a multiple of `head_dim`.
        head_dim: dim d of a head; the number of heads is dim / head_dim.
        rel_pos_size: p, the side of the window whose table is stored; no position bias if None.
        window: height and width of the windows, or one number for both; None for the whole map.

    Raises:
        ValueError: if `head_dim` does not divide `dim`, or a size is not positive.
    """

    def __init__(self, *, dim: int, head_dim: int = 32, rel_pos_size: int | None = None, window: Window | None = None):
        super().__init__()
        if min(dim, head_dim) < 1 or dim % head_dim:
            raise ValueError(f"dim must be a multiple of head_dim, got {dim} and {head_dim}")
        if rel_pos_size is not None and rel_pos_size < 1:
            raise ValueError(f"rel_pos_size must be at least 1 or None, got {rel_pos_size}")
        self.dim, self.head_dim, self.num_heads = dim, head_dim, dim // head_dim
        self.rel_pos_size = rel_pos_size
        self.window = None if window is None else window_pair(window)
        # Three projections of their own, stored one below the other: one product is quicker than three.
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos: nn.Parameter | None = None
        if rel_pos_size is not None:
            self.rel_pos = nn.Parameter(torch.empty(self.num_heads, 2 * rel_pos_size - 1, 2 * rel_pos_size - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Matrices and tables N(0, 0.02^2), biases zero."""
        for weight in (self.qkv.weight, self.proj.weight, self.rel_pos):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Raises ValueError for other channels, or a map that the windows do not divide."""
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise ValueError(f"x must have shape (batch, {self.dim}, height, width), got {tuple(x.shape)}")
        height, width = x.shape[2:]
        rows, columns = (height, width) if self.window is None else self.window
        tokens = x.permute(0, 2, 3, 1)
        if self.window is not None:
            tokens = window_partition(tokens, self.window)
        q, k, v = self.qkv(tokens.flatten(1, 2)).unflatten(2, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        bias = None if self.rel_pos is None else relative_position_bias(self.rel_pos, rows, columns).to(q.dtype)
        out = self.proj(_attend(q, k, v, bias).transpose(1, 2).flatten(2)).unflatten(1, (rows, columns))
        if self.window is not None:
            out = window_merge(out, (height, width))
        return out.permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, heads={self.num_heads}, window={self.window}, rel_pos_size={self.rel_pos_size}"


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None or q.device.type != "cpu" or not (torch.is_grad_enabled() and bias.requires_grad):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[None])
    # The CPU's fused kernel gives no gradient for the bias; what stands in for it there is slower than this.
    logits = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1)).add_(bias)
    normalised = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return torch.softmax(logits, dim=-1, dtype=normalised).to(v.dtype) @ v
