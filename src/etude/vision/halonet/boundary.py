"""The boundary task: images on which isolated blocks cannot tell half of what there is to tell."""

import torch
from torch import Tensor

from etude.data.kinds import Examples

__all__ = ["boundary_task", "straddles"]

_SIZE, _NEAR, _FAR, _BLOCK = 16, 2, 6, 4


def boundary_task(n: int, generator: torch.Generator | None = None) -> Examples:
    """Two marks in a row of a 16 x 16 canvas: are they 2 (label 1) or 6 (label 0) columns apart?

    Mark A (channel 0) lies at a random row and a column drawn from 0..7, mark B (channel 1) to its right. Both
    distances are 2 modulo 4, so in blocks of 4 x 4 pixels a mark's place inside its block says nothing about the
    label, and the column's range makes that place uniform for both labels. Whatever looks at blocks one by one sees
    label 1 only where both marks share a block, half of the time, and can be right on 75% of the images at most.

    Args:
        n: number of images.
        generator: source of the draws.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    row = torch.randint(_SIZE, (n,), generator=generator)
    column = torch.randint(_SIZE // 2, (n,), generator=generator)
    labels = torch.randint(2, (n,), generator=generator)
    images = torch.zeros(n, 2, _SIZE, _SIZE)
    image = torch.arange(n)
    images[image, 0, row, column] = 1
    images[image, 1, row, column + torch.where(labels == 1, _NEAR, _FAR)] = 1
    return Examples(images, labels)


def straddles(images: Tensor) -> Tensor:
    """Where a block of 4 x 4 pixels cannot hold both marks even if they are near: bool, one per image."""
    column = images[:, 0].flatten(1).argmax(1) % _SIZE
    return column % _BLOCK + _NEAR >= _BLOCK
