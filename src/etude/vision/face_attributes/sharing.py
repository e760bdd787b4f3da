"""Convolution whose filters are shared within the cells of a grid, and its dense evaluation by interweaving.

A map is cut into g x g cells, and each cell (i, j) has filters of its own, W^ij and b^ij:

    y_p = sum_q W^{cell(p)}_q x_{p+q} + b^{cell(p)}                                                            (1)

where q runs over the kernel and reaches into neighbouring cells (the halo). Between a convolution (one cell) and an
unshared layer (a cell for every place), it fits faces, which are aligned by their box: an eye's filters need not be
a mouth's.

For windows that slide over a larger map, every place would be computed once for each window that covers it. But a
place only ever meets g^2 banks, so the whole map is convolved with each bank once, to g^2 maps M_ij. With cells of
c x c pixels, cell (i, j) of the window whose corner is (y, x) is the block of M_ij at (y + i c, x + j c): interwoven,
the blocks are exactly the layer's output on that window, with the full map's halo about it.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LocallySharedConv2d", "dense_positions"]


class LocallySharedConv2d(nn.Module):
    """A convolution, stride 1 and size-keeping, with one bank of filters for each cell of a grid, Eq. (1).

    A map that the grid does not divide is filled up with zeros on the right and below, and the output is cut back.

    Args:
        in_channels, out_channels: of the map.
        kernel_size: odd.
        grid: cells down and across.
        halo: see into neighbouring cells; without, each cell is surrounded by zeros.
        bias: one for each bank and channel.

    Attributes:
        weight: (rows, columns, out, in, kernel, kernel). bias: (rows, columns, out), or None.

    Raises:
        ValueError: if a number is not positive or the kernel is even.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        grid: tuple[int, int] = (3, 3),
        halo: bool = True,
        *,
        bias: bool = True,
    ):
        super().__init__()
        if min(in_channels, out_channels, kernel_size, *grid) < 1:
            raise ValueError(
                "in_channels, out_channels, kernel_size and grid must be positive, "
                f"got {in_channels}, {out_channels}, {kernel_size} and {grid}"
            )
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.grid, self.halo = tuple(grid), halo
        self.weight = nn.Parameter(torch.empty(*grid, out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(*grid, out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws every bank as `nn.Conv2d` draws its filters."""
        bound = (self.in_channels * self.kernel_size**2) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, grid={self.grid}, "
            f"halo={self.halo}, bias={self.bias is not None}"
        )

    def forward(
        self, x: Float[Tensor, "batch in_channels height width"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """The layer on a map that is one window, zeros around it.

        Raises:
            ValueError: for another number of channels, or a map with fewer pixels than the grid has cells.
        """
        height, width = self._checked(x)
        pad = self.kernel_size // 2
        down, right = -height % self.grid[0], -width % self.grid[1]
        return self.valid(F.pad(x, (pad, right + pad, pad, down + pad)))[..., :height, :width]

    def valid(
        self, x: Float[Tensor, "batch in_channels padded_height padded_width"]
    ) -> Float[Tensor, "batch out_channels height width"]:
        """The layer on a window with its surroundings, half a kernel on each side, given.

        Raises:
            ValueError: if the grid does not divide the window without its surroundings.
        """
        rows, columns = self.grid
        k, pad = self.kernel_size, self.kernel_size // 2
        height, width = x.shape[2] - 2 * pad, x.shape[3] - 2 * pad
        if height < rows or width < columns or height % rows or width % columns:
            raise ValueError(f"a window of {height} x {width} is not divided by the grid {self.grid}")
        c, d = height // rows, width // columns
        cells = x.unfold(2, c + 2 * pad, c).unfold(3, d + 2 * pad, d)  # (batch, in, rows, columns, ., .)
        if not self.halo:
            cells = F.pad(cells[..., pad : pad + c, pad : pad + d], (pad, pad, pad, pad))
        cells = cells.permute(0, 2, 3, 1, 4, 5).flatten(1, 3)
        bias = None if self.bias is None else self.bias.flatten()
        out = F.conv2d(cells, self.weight.view(-1, self.in_channels, k, k), bias, groups=rows * columns)
        out = out.view(len(x), rows, columns, self.out_channels, c, d)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(len(x), self.out_channels, height, width)

    def interweave(
        self, x: Float[Tensor, "batch in_channels height width"], window: tuple[int, int], stride: int = 1
    ) -> Float[Tensor, "batch down across out_channels window_height window_width"]:
        """The layer on every window of a larger map, from one dense pass with each bank.

        Windows see what lies around them in the map; only at the map's rim are there zeros.

        Args:
            x: the map.
            window: height and width of a window, which the grid must divide.
            stride: between windows, in pixels of the map.

        Raises:
            ValueError: for a wrong number of channels, window or stride, or a layer without halo.
        """
        rows, columns = self.grid
        c, d = self._window(x, window, stride)
        k = self.kernel_size
        weight, bias = self.weight.view(-1, self.in_channels, k, k), None if self.bias is None else self.bias.flatten()
        dense = F.conv2d(x, weight, bias, padding=k // 2).unflatten(1, (rows, columns, self.out_channels))
        down = (x.shape[2] - window[0]) // stride + 1
        across = (x.shape[3] - window[1]) // stride + 1
        out = dense.new_empty(len(x), down, across, self.out_channels, *window)
        for i in range(rows):
            for j in range(columns):
                blocks = dense[:, i, j, :, i * c : i * c + (down - 1) * stride + c, j * d :][
                    ..., : (across - 1) * stride + d
                ]
                blocks = blocks.unfold(2, c, stride).unfold(3, d, stride)  # (batch, out, down, across, c, d)
                out[..., i * c : (i + 1) * c, j * d : (j + 1) * d] = blocks.permute(0, 2, 3, 1, 4, 5)
        return out

    def one_by_one(
        self, x: Float[Tensor, "batch in_channels height width"], window: tuple[int, int], stride: int = 1
    ) -> Float[Tensor, "batch down across out_channels window_height window_width"]:
        """What `interweave` gives, with every window computed by itself: dearer where windows overlap much."""
        self._window(x, window, stride)
        pad = self.kernel_size // 2
        padded = F.pad(x, (pad, pad, pad, pad))
        windows = padded.unfold(2, window[0] + 2 * pad, stride).unfold(3, window[1] + 2 * pad, stride)
        windows = windows.permute(0, 2, 3, 1, 4, 5)
        out = self.valid(windows.flatten(0, 2))
        return out.unflatten(0, windows.shape[:3])

    def _window(self, x: Tensor, window: tuple[int, int], stride: int) -> tuple[int, int]:
        """Height and width of a cell of a window."""
        height, width = self._checked(x)
        if not self.halo:
            raise ValueError("windows are interwoven with the halo of the full map; this layer has halo=False")
        if stride < 1:
            raise ValueError(f"stride must be positive, got {stride}")
        if window[0] > height or window[1] > width:
            raise ValueError(f"a window of {window} does not fit into a map of {height} x {width}")
        if window[0] % self.grid[0] or window[1] % self.grid[1]:
            raise ValueError(f"a window of {window} is not divided by the grid {self.grid}")
        return window[0] // self.grid[0], window[1] // self.grid[1]

    def _checked(self, x: Tensor) -> tuple[int, int]:
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the map must have {self.in_channels} channels, got shape {tuple(x.shape)}")
        height, width = x.shape[2:]
        if height < self.grid[0] or width < self.grid[1]:
            raise ValueError(f"a map of {height} x {width} is smaller than the grid {self.grid}")
        return height, width


def dense_positions(
    size: tuple[int, int], window: tuple[int, int], stride: int, grid: tuple[int, int]
) -> dict[str, int]:
    """Output positions (each of in * out * kernel^2 multiply-adds) that all windows of a map take either way.

    Returns:
        "interwoven": banks times the map's pixels; "one_by_one": windows times a window's pixels.

    Raises:
        ValueError: if the stride is not positive or the window does not fit.
    """
    if stride < 1 or window[0] > size[0] or window[1] > size[1]:
        raise ValueError(f"no window of {window} fits into {size} at stride {stride}")
    windows = ((size[0] - window[0]) // stride + 1) * ((size[1] - window[1]) // stride + 1)
    return {
        "interwoven": grid[0] * grid[1] * size[0] * size[1],
        "one_by_one": windows * window[0] * window[1],
    }
