"""Patches that suit images of any size, and positions that suit another grid of them."""

import math

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["choose_patch_size", "pad_to_patches", "resized_positions"]


def choose_patch_size(height: int, width: int, *, smallest: int = 2, most_tokens: int = 64) -> int:
    """The smallest multiple of `smallest` that cuts images into at most `most_tokens` patches.

    Sides that are no multiple of it are for `pad_to_patches`.
    """
    if min(height, width, smallest, most_tokens) < 1:
        raise ValueError(f"sizes must be at least 1, got {height} x {width}, {smallest} and {most_tokens}")
    patch = smallest
    while math.ceil(height / patch) * math.ceil(width / patch) > most_tokens:
        patch += smallest
    return patch


def pad_to_patches(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Images with zeros at the bottom and the right, up to multiples of the patch."""
    down, right = (-side % patch_size for side in images.shape[2:])
    return F.pad(images, (0, right, 0, down)) if down or right else images


def resized_positions(
    positions: Float[Tensor, "1 tokens dim"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "1 new_tokens dim"]:
    """Positions of a grid `old` (height, width) interpolated to `new`, bicubic and antialiased."""
    planes = positions.unflatten(1, old).permute(0, 3, 1, 2)
    planes = F.interpolate(planes.float(), size=new, mode="bicubic", antialias=True, align_corners=False)
    return planes.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
