"""Measurement sets: the inputs at which two priors over functions are compared, drawn afresh at every step.

Tran et al., JMLR 23, 2022, arXiv:2011.12829, section 3.3. None of them sees a target.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["GridMeasurementSet", "ImageMeasurementSet", "MeasurementSet", "TableMeasurementSet"]


@runtime_checkable
class MeasurementSet(Protocol):
    """Called with a generator it gives inputs (size, ...) of the network.

    Attributes:
        size: M, how many.
    """

    size: int

    def __call__(self, generator: torch.Generator | None = None) -> Tensor: ...


class GridMeasurementSet:
    """The same grid on [low, high] every time, for one input: (size, 1)."""

    def __init__(self, low: float | int = -6.0, high: float | int = 6.0, size: int = 200):
        if not low < high or size < 2:
            raise ValueError(f"a grid needs low < high and size >= 2, got {low}, {high} and {size}")
        self.size = size
        self.points = torch.linspace(float(low), float(high), size)[:, None]

    def __call__(self, generator: torch.Generator | None = None) -> Float[Tensor, "size 1"]:
        return self.points


class TableMeasurementSet:
    """Rows of the training inputs, without replacement, and uniform draws from the range of the inputs.

    Args:
        train: (n, features) training inputs, normalised.
        test: further inputs that widen the range; None for the training inputs' own.
        size: M.
        share: of the M that are training inputs, in [0, 1].

    Raises:
        ValueError: if more rows are wanted than there are, or `share` is out of range.
    """

    def __init__(
        self, train: Float[Tensor, "n features"], test: Tensor | None = None, size: int = 100, share: float | int = 0.7
    ):
        if not 0 <= share <= 1 or size < 1:
            raise ValueError(f"share must lie in [0, 1] and size be positive, got {share} and {size}")
        self.size, self.rows = size, round(share * size)
        if self.rows > len(train):
            raise ValueError(
                f"a measurement set of {size} takes {self.rows} different training inputs and there are {len(train)}: "
                f"at most size={int(len(train) / share)}"
            )
        self.train = train
        both = train if test is None else torch.cat([train, test])
        self.low, self.high = both.amin(0), both.amax(0)

    def __call__(self, generator: torch.Generator | None = None) -> Float[Tensor, "size features"]:
        rows = self.train[_order(len(self.train), generator)[: self.rows].to(self.train.device)]
        device = None if generator is None else generator.device
        uniform = torch.rand(self.size - self.rows, self.train.shape[1], generator=generator, device=device)
        uniform = uniform.to(self.train)
        return torch.cat([rows, self.low + uniform * (self.high - self.low)])


class ImageMeasurementSet:
    """A mini-batch of training images, without replacement.

    Args:
        images: (n, channels, height, width). size: M, the size of a mini-batch.
    """

    def __init__(self, images: Float[Tensor, "n channels height width"], size: int = 32):
        if not 1 <= size <= len(images):
            raise ValueError(f"size must lie in 1..{len(images)}, the number of images, got {size}")
        self.images, self.size = images, size

    def __call__(self, generator: torch.Generator | None = None) -> Float[Tensor, "size channels height width"]:
        return self.images[_order(len(self.images), generator)[: self.size].to(self.images.device)]


def _order(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(n, generator=generator, device=None if generator is None else generator.device)
