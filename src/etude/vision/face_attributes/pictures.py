"""Arrays of pictures as tensors of given channels, and cutting boxes out of them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["convert_images", "crop_and_resize", "flip_at_random", "multi_patch"]

_LUMA = (0.299, 0.587, 0.114)


def convert_images(images: Tensor | np.ndarray, channels: int = 3) -> Float[Tensor, "batch channels height width"]:
    """Pictures of the usual layouts and depths as floats in [0, 1] with the channels wanted.

    (n, h, w), (n, c, h, w) and (n, h, w, c) are taken, c being 1, 2 (grey and alpha), 3 or 4 (colour and alpha).
    Integers of 8 and 16 bits are divided by their largest value, floats must lie in [0, 1]. Transparency is laid over
    black; grey becomes equal channels, colour becomes one of luma (ITU-R 601).

    Raises:
        ValueError: for another shape, kind of numbers or range, no pictures, or channels other than 1 and 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    x = torch.as_tensor(images)
    shape = tuple(x.shape)
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and shape[1] not in (1, 2, 3, 4) and shape[3] in (1, 2, 3, 4):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 2, 3, 4) or 0 in shape:
        raise ValueError(f"images must have shape (n, h, w), (n, c, h, w) or (n, h, w, c) with c <= 4, got {shape}")
    if x.dtype in (torch.uint8, torch.uint16):
        x = x.to(torch.float32) / torch.iinfo(x.dtype).max
    elif not x.is_floating_point():
        raise ValueError(f"images must be uint8, uint16 or floats in [0, 1], got {x.dtype}")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images of floats must lie in [0, 1], got {low:g}..{high:g}")
    if x.shape[1] in (2, 4):
        x = x[:, :-1] * x[:, -1:]
    if x.shape[1] < channels:
        x = x.expand(-1, channels, -1, -1)
    elif x.shape[1] > channels:
        x = (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return x.contiguous()


def check_boxes(boxes: Tensor, count: int | None = None) -> None:
    """Refuses boxes that are not (n, 4), not finite, or without area."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or (count is not None and len(boxes) != count):
        wanted = "(n, 4)" if count is None else f"({count}, 4)"
        raise ValueError(f"boxes must have shape {wanted}: left, top, right, bottom; got {tuple(boxes.shape)}")
    bad = ~(torch.isfinite(boxes).all(1) & (boxes[:, :2] < boxes[:, 2:]).all(1))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"a box needs left < right and top < bottom, got {boxes[row].tolist()} in row {row}")


def crop_and_resize(
    images: Float[Tensor, "batch channels height width"],
    boxes: Float[Tensor, "batch 4"],
    size: int | tuple[int, int],
) -> Float[Tensor, "batch channels new_height new_width"]:
    """Cuts one box out of each image and scales it, bilinearly, to `size`.

    Boxes are in pixels, pixel p covering [p, p + 1); what of a box lies outside its image repeats the rim. Where a box
    is more than twice as large as `size`, the image is averaged over areas first.

    Raises:
        ValueError: for a degenerate box, a box that does not touch its image, or a size below 1.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size must be positive, got {size}")
    check_boxes(boxes, len(images))
    rows, columns = images.shape[2:]
    outside = (boxes[:, 0] >= columns) | (boxes[:, 1] >= rows) | (boxes[:, 2:] <= 0).any(1)
    if bool(outside.any()):
        row = int(outside.nonzero()[0])
        raise ValueError(f"box {boxes[row].tolist()} in row {row} lies outside its {rows} x {columns} image")
    boxes = boxes.to(images)
    oversampling = 1
    extent = boxes[:, 2:] - boxes[:, :2]
    while bool((extent / extent.new_tensor([width, height]) > 2 * oversampling).any()):
        oversampling *= 2
    y = (torch.arange(height * oversampling).to(images) + 0.5) / (height * oversampling)
    x = (torch.arange(width * oversampling).to(images) + 0.5) / (width * oversampling)
    across = boxes[:, 0, None] + extent[:, 0, None] * x
    down = boxes[:, 1, None] + extent[:, 1, None] * y
    grid = torch.stack(
        [
            (2 * across / columns - 1)[:, None, :].expand(-1, len(y), -1),
            (2 * down / rows - 1)[:, :, None].expand(-1, -1, len(x)),
        ],
        dim=-1,
    )
    cut = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.avg_pool2d(cut, oversampling) if oversampling > 1 else cut


def multi_patch(
    images: Float[Tensor, "batch channels height width"],
    boxes: Float[Tensor, "batch 4"],
    size: int | tuple[int, int],
    *,
    crops: int = 5,
    scales: Sequence[float | int] = (1.0, 1.15),
    shift: float | int = 0.1,
    flips: bool = False,
) -> Float[Tensor, "batch patches channels new_height new_width"]:
    """Several crops of each region, whose features are joined for the attribute classifiers.

    Args:
        images, boxes, size: as for `crop_and_resize`.
        crops: 1, the region itself, or 5, with the region shifted to its four corners as well.
        scales: factors of the region's sides.
        shift: how far a corner crop is shifted along each side, in sides.
        flips: add the mirror image of every crop.

    Raises:
        ValueError: for other numbers of crops, or a scale that is not positive.
    """
    if crops not in (1, 5):
        raise ValueError(f"crops must be 1 or 5, got {crops}")
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive, at least one, got {tuple(scales)}")
    check_boxes(boxes, len(images))
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    offsets = [(0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1)][:crops]
    patches = []
    for scale in scales:
        for offset in offsets:
            middle = centre + shift * extent * extent.new_tensor(offset)
            patch = crop_and_resize(
                images, torch.cat([middle - scale * extent / 2, middle + scale * extent / 2], 1), size
            )
            patches += [patch, patch.flip(3)] if flips else [patch]
    return torch.stack(patches, dim=1)


def flip_at_random(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Mirrors every other image on average."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
