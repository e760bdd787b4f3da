"""One interface for filters of every origin: a bank that any CNN can take as a layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["COLORS", "LUMA", "FilterBank", "unit_filters"]

COLORS = ("joint", "luma", "per_channel")
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R 601)."""


@dataclass(frozen=True, eq=False)
class FilterBank:
    """Filters, their name, and what is known about each.

        bank = filter_bank("gabor", size=7, num=32)
        cnn.conv1 = bank.to_conv(in_chans=3, stride=2, padding=3, trainable=True)

    Args:
        weight: (num, channels, height, width), floating point; fixed banks have one channel.
        name: what the bank is called.
        meta: what is known: a value for the whole bank, or a tensor or sequence with an entry for each filter
            ("orientation" in radians, "frequency" in cycles per pixel, "band", ...).
    """

    weight: Tensor
    name: str
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.weight.ndim != 4 or not self.weight.is_floating_point() or self.weight.numel() == 0:
            raise ValueError(
                f"weight must be floating point of shape (num, channels, height, width), got {self.weight.dtype} of "
                f"shape {tuple(self.weight.shape)}"
            )
        if not bool(torch.isfinite(self.weight).all()):
            raise ValueError(f"the filters of {self.name!r} hold NaN or infinite values")

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def channels(self) -> int:
        return self.weight.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a filter."""
        return self.weight.shape[2], self.weight.shape[3]

    @property
    def steered(self) -> bool:
        """Whether the orientation and the frequency of each filter are known."""
        return {"orientation", "frequency"} <= self.meta.keys()

    def take(self, index: Sequence[int] | Tensor | slice) -> "FilterBank":
        """The filters at `index`, with what is known about them."""
        rows = torch.arange(len(self))[index if isinstance(index, slice | Tensor) else torch.as_tensor(list(index))]
        meta: dict[str, Any] = {}
        for key, value in self.meta.items():
            if isinstance(value, Tensor) and value.ndim and len(value) == len(self):
                meta[key] = value[rows]
            elif isinstance(value, list | tuple) and len(value) == len(self):
                meta[key] = [value[row] for row in rows.tolist()]
            else:
                meta[key] = value
        return FilterBank(self.weight[rows], self.name, meta)

    def join(self, other: "FilterBank", name: str | None = None) -> "FilterBank":
        """Both banks' filters in one, which must have the same shape; only common per-filter facts are kept."""
        if other.weight.shape[1:] != self.weight.shape[1:]:
            raise ValueError(
                f"filters must have one shape, got {tuple(self.weight.shape[1:])} and {tuple(other.weight.shape[1:])}"
            )
        meta = {}
        for key in self.meta.keys() & other.meta.keys():
            one, two = self.meta[key], other.meta[key]
            if isinstance(one, Tensor) and isinstance(two, Tensor) and len(one) == len(self) and len(two) == len(other):
                meta[key] = torch.cat([one, two])
        return FilterBank(torch.cat([self.weight, other.weight.to(self.weight)]), name or self.name, meta)

    def normalised(self, *, dc: bool = False) -> "FilterBank":
        """Filters of mean zero (unless `dc`) and unit L2 norm.

        Raises:
            ValueError: if a filter has nothing left.
        """
        return FilterBank(unit_filters(self.weight, dc=dc, name=self.name), self.name, self.meta)

    def to_conv(
        self,
        in_chans: int = 1,
        stride: int = 1,
        padding: int | str = "same",
        trainable: bool = False,
        *,
        color: str = "joint",
        padding_mode: str = "zeros",
    ) -> nn.Conv2d:
        """A convolution without bias that holds these filters.

        Args:
            in_chans: channels of its input.
            stride, padding, padding_mode: as of `nn.Conv2d`; "same" is replaced by half the kernel where it strides.
            trainable: whether the filters learn.
            color: what a bank of one channel does with several.
                "joint": every filter looks at all channels alike, divided by sqrt(in_chans): unit norm, num outputs.
                "luma": at the brightness of red, green and blue, num outputs.
                "per_channel": at each channel by itself, num * in_chans outputs, channel by channel.

        Raises:
            ValueError: if the bank's channels do not fit `in_chans`, or "luma" meets other than three channels.
        """
        if color not in COLORS:
            raise ValueError(f"color must be one of {', '.join(COLORS)}, got {color!r}")
        if in_chans < 1:
            raise ValueError(f"in_chans must be positive, got {in_chans}")
        if self.channels > 1 and (self.channels != in_chans or color != "joint"):
            raise ValueError(
                f"the bank {self.name!r} has filters of {self.channels} channels: it takes inputs of as many, jointly; "
                f"got in_chans={in_chans}, color={color!r}"
            )
        weight, groups = self.weight.detach(), 1
        if self.channels == 1 and in_chans > 1:
            if color == "luma":
                if in_chans != 3:
                    raise ValueError(f"color='luma' needs red, green and blue, got in_chans={in_chans}")
                weight = weight * torch.tensor(LUMA).to(weight).view(1, 3, 1, 1)
            elif color == "joint":
                weight = weight.expand(-1, in_chans, -1, -1) / in_chans**0.5
            else:
                weight, groups = weight.repeat(in_chans, 1, 1, 1), in_chans
        if padding == "same" and stride > 1:
            padding = max(self.size) // 2
        conv = nn.Conv2d(
            in_chans, len(weight), self.size, stride=stride, padding=padding, groups=groups, bias=False,
            padding_mode=padding_mode,  # type: ignore[arg-type]
        )  # fmt: skip
        conv.weight = nn.Parameter(weight.clone().contiguous(), requires_grad=trainable)
        return conv

    def frequency_response(self, n: int = 32) -> Float[Tensor, "num channels n n"]:
        """Magnitude of each filter's Fourier transform on n x n frequencies, zero in the middle."""
        from etude.vision.filters.analysis import frequency_response

        return frequency_response(self.weight, n)

    def plot(self, columns: int | None = None) -> Any:
        """The filters side by side, each on its own symmetric scale: a `matplotlib.figure.Figure`."""
        from etude.vision.filters.plots import plot_filters

        return plot_filters(self.weight, title=self.name, columns=columns)


def unit_filters(weight: Tensor, *, dc: bool = False, name: str = "bank") -> Tensor:
    """Filters (num, channels, height, width) of mean zero, unless `dc`, and unit norm."""
    before = weight.flatten(1).norm(dim=1)
    centred = weight if dc else weight - weight.mean(dim=(1, 2, 3), keepdim=True)
    norms = centred.flatten(1).norm(dim=1)
    empty = norms <= 1e-6 * before.clamp_min(1e-12)
    if bool(empty.any()):
        raise ValueError(f"{int(empty.sum())} filters of {name!r} are {'zero' if dc else 'constant'}")
    return centred / norms.view(-1, 1, 1, 1)
