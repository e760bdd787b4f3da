"""Convolutions on a latitude-longitude grid: the globe has no border.

Longitude is periodic. Across a pole the meridian at longitude x goes on along x + 180 degrees, so the rows that pad a
pole are the rows next to it, in reverse and turned by half the circle. Vector components would change their sign
there; what is padded here are features of a network, which have none: an approximation of the paper's kind.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["PADDINGS", "SphereConv2d", "SphericalPad2d"]

PADDINGS = ("sphere", "replicate", "zeros")


def _check_mode(mode: str) -> None:
    if mode not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {mode!r}")


def _sphere_pad(x: Tensor, rows: int, columns: int) -> Tensor:
    height, width = x.shape[-2:]
    if rows and width % 2:
        raise ValueError(f"padding across the poles turns rows by half a circle: the width must be even, got {width}")
    if rows > height:
        raise ValueError(f"padding across the poles takes at most the {height} rows there are, got {rows}")
    if columns > width:
        x = _SpherePad.apply(x, rows, 0)
        return x.index_select(-1, torch.arange(-columns, width + columns, device=x.device) % width)
    return _SpherePad.apply(x, rows, columns) if rows or columns else x


class _SpherePad(torch.autograd.Function):
    """Padding on the sphere; its gradient adds the borders to where they came from, in a few operations in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, columns: int) -> Tensor:
        ctx.pad = rows, columns
        height, width = x.shape[-2:]
        if rows:
            half = width // 2
            north = torch.cat([x[..., :rows, half:], x[..., :rows, :half]], dim=-1).flip(-2)
            last = x[..., height - rows :, :]
            south = torch.cat([last[..., half:], last[..., :half]], dim=-1).flip(-2)
            x = torch.cat([north, x, south], dim=-2)
        return torch.cat([x[..., width - columns :], x, x[..., :columns]], dim=-1) if columns else x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.pad
        gradient = gradients[0]
        width = gradient.shape[-1] - 2 * columns
        inner = gradient[..., columns : columns + width].clone()
        if columns:
            inner[..., width - columns :] += gradient[..., :columns]
            inner[..., :columns] += gradient[..., columns + width :]
        if rows:
            half = width // 2
            north, south = inner[..., :rows, :].flip(-2), inner[..., -rows:, :].flip(-2)
            inner = inner[..., rows:-rows, :]
            for part, border in ((inner[..., :rows, :], north), (inner[..., -rows:, :], south)):
                part[..., half:] += border[..., :half]
                part[..., :half] += border[..., half:]
        return inner, None, None


class SphericalPad2d(nn.Module):
    """Pads maps (..., latitude, longitude) on all sides.

    Args:
        pad: cells on each side, of both axes or (latitude, longitude), >= 0.
        mode: "sphere" goes on across the date line and the poles: row -1 - k, column j is row k, column
            (j + width / 2) mod width; the longitudes may be padded by more than their number. "replicate" and "zeros"
            treat the map as a flat picture.

    Raises:
        ValueError: for a negative `pad` or an unknown mode; when called, for an odd width or a padding of more rows
            than there are, where rows are padded across the poles.
    """

    def __init__(self, pad: int | tuple[int, int], mode: str = "sphere"):
        super().__init__()
        _check_mode(mode)
        rows, columns = (pad, pad) if isinstance(pad, int) else pad
        if min(rows, columns) < 0:
            raise ValueError(f"pad must not be negative, got {pad}")
        self.pad, self.mode = (rows, columns), mode

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
        rows, columns = self.pad
        if self.mode == "sphere":
            return _sphere_pad(x, rows, columns)
        sides = (columns, columns, rows, rows)
        return F.pad(x, sides) if self.mode == "zeros" else F.pad(x, sides, mode="replicate")

    def extra_repr(self) -> str:
        return f"{self.pad}, mode={self.mode!r}"


class SphereConv2d(nn.Conv2d):
    """A convolution that keeps the size of the map, padded as `SphericalPad2d` does; stride 1, odd kernels.

    Args:
        in_channels, out_channels: as of `nn.Conv2d`.
        kernel_size: odd.
        dilation: spacing of the kernel's points, >= 1.
        groups: as of `nn.Conv2d`; `in_channels` for a depthwise convolution.
        bias: whether a bias is added.
        padding: "sphere", "replicate" or "zeros".

    Raises:
        ValueError: if the kernel is even or an argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        padding: str = "sphere",
    ):
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that the map keeps its size, got {kernel_size}")
        if dilation < 1:
            raise ValueError(f"dilation must be at least 1, got {dilation}")
        super().__init__(in_channels, out_channels, kernel_size, groups=groups, dilation=dilation, bias=bias)
        self.surround = SphericalPad2d(dilation * (kernel_size - 1) // 2, padding)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        return super().forward(self.surround(x))
