"""RoIAlign: the features under a box, on a grid of bins.

With a box's corner x1 and width w in cells of the map (pixels times `spatial_scale`; minus half a cell if aligned),
sample s of S in bin i of n lies at

    x = x1 + (i + (s + 1/2) / S) w / n                                                                        (1)

A sample is bilinear, 0 outside [-1, size], and taken at the border within that range; a bin is the mean of its S x S
samples. Position, weight and range are each a product of one axis by the other, so that every bin is one weighted sum
of (2S)^2 rows of the map seen as a table of cells: `embedding_bag` forms it without writing the samples down, which
would take 411 MB an image for 512 boxes of 256 channels.

He, Gkioxari, Dollar & Girshick, "Mask R-CNN", ICCV 2017, arXiv:1703.06870; the level of a box is Eq. (1) of Lin et al.,
"Feature Pyramid Networks for Object Detection", CVPR 2017, arXiv:1612.03144.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from etude.vision.cascade_rcnn.operators import torchvision_operators, uses_torchvision

__all__ = ["MultiScaleRoIAlign", "roi_align"]


def _axis(
    start: Tensor, length: Tensor, size: Tensor, bins: int, samples: int
) -> tuple[Int32[Tensor, "boxes bins taps"], Float[Tensor, "boxes bins taps"]]:
    """Cells and weights along one axis, 2S of them a bin."""
    steps = torch.arange(bins * samples, device=start.device, dtype=start.dtype)
    place = start[:, None] + (steps + 0.5) * (length[:, None] / (bins * samples))  # Eq. (1)
    last = size[:, None] - 1
    inside = (place >= -1) & (place <= size[:, None])
    at = torch.minimum(place.clamp(min=0), last)
    low = at.floor()
    share = at - low
    high = torch.minimum(low + 1, last)
    weight = inside.to(start.dtype) / samples
    cells = torch.stack([low, high], dim=-1).int()
    weights = torch.stack([(1 - share) * weight, share * weight], dim=-1)
    return cells.unflatten(1, (bins, samples)).flatten(2), weights.unflatten(1, (bins, samples)).flatten(2)


class _WeightedRows(torch.autograd.Function):
    """Sums of weighted rows of a table: the product of a sparse matrix with it, and of its transpose backward.

    On the CPU SciPy's transposed product takes a quarter of the time of the gradient of `embedding_bag`, which sorts.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, cells: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(cells, weights)
        ctx.rows = len(table)
        offsets = torch.arange(0, cells.numel(), cells.shape[1], device=cells.device, dtype=cells.dtype)
        return F.embedding_bag(cells.reshape(-1), table, offsets, mode="sum", per_sample_weights=weights.reshape(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cells, weights = ctx.saved_tensors
        if grad.device.type != "cpu":
            total = grad.new_zeros(ctx.rows, grad.shape[1])
            for cell, weight in zip(cells.unbind(1), weights.unbind(1)):
                total.index_add_(0, cell, grad * weight[:, None])
            return total, None, None
        ends = np.arange(0, cells.numel() + 1, cells.shape[1], dtype=np.int32)
        entries = (weights.reshape(-1).numpy(), cells.reshape(-1).numpy(), ends)
        matrix = csr_matrix(entries, shape=(len(cells), ctx.rows))
        return torch.from_numpy(matrix.T @ grad.contiguous().numpy()), None, None


def _pool(
    table: Tensor,
    boxes: Tensor,
    *,
    scale: Tensor,
    height: Tensor,
    width: Tensor,
    first: Tensor,
    output_size: tuple[int, int],
    samples: int,
    aligned: bool,
) -> Tensor:
    """Pooled features (boxes, channels, *output_size) from rows of `table`; a box's map begins at its row `first`."""
    if not len(boxes):
        return table.new_zeros(0, table.shape[1], *output_size)
    x1, y1, x2, y2 = (boxes.detach() * scale[:, None]).unbind(1)
    w, h = x2 - x1, y2 - y1
    if aligned:
        x1, y1 = x1 - 0.5, y1 - 0.5
    else:
        w, h = w.clamp(min=1), h.clamp(min=1)
    rows, row_weights = _axis(y1, h, height, output_size[0], samples)
    columns, column_weights = _axis(x1, w, width, output_size[1], samples)
    starts = first.int()[:, None, None] + rows * width.int()[:, None, None]
    cells = starts[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    taps = (2 * samples) ** 2
    pooled = _WeightedRows.apply(table, cells.view(-1, taps), weights.to(table.dtype).view(-1, taps))
    return pooled.view(len(boxes), *output_size, -1).permute(0, 3, 1, 2)


def _flat(boxes_per_image: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """All boxes in float32 at least, and the number of each one's image."""
    boxes = torch.cat(list(boxes_per_image))
    counts = torch.tensor([len(b) for b in boxes_per_image], device=boxes.device)
    images = torch.repeat_interleave(torch.arange(len(counts), device=boxes.device), counts)
    return boxes if boxes.dtype == torch.float64 else boxes.float(), images


def _check(output_size: tuple[int, int], sampling_ratio: int, batch: int, images: int) -> None:
    if min(output_size) < 1 or sampling_ratio < 1:
        raise ValueError(
            f"output_size and sampling_ratio must be positive, got {output_size} and {sampling_ratio} "
            "(there is no adaptive sampling)"
        )
    if batch != images:
        raise ValueError(f"there must be boxes for each of the {batch} feature maps, got {images}")


def roi_align(
    feats: Float[Tensor, "batch channels height width"],
    boxes_per_image: Sequence[Float[Tensor, "_ 4"]],
    output_size: int | tuple[int, int] = 7,
    spatial_scale: float | int = 1.0,
    sampling_ratio: int = 2,
    aligned: bool = True,
    backend: str = "auto",
) -> Float[Tensor, "boxes channels out_height out_width"]:
    """Features under boxes, image by image. Gradients reach the features, not the boxes.

    Args:
        feats: one map.
        boxes_per_image: corners in pixels, one tensor an image.
        output_size: bins, of both axes or (height, width).
        spatial_scale: cells a pixel, such as 1/4.
        sampling_ratio: samples a bin and axis, S of Eq. (1).
        aligned: cell centres at half-integers (the right ones). Without it boxes lie half a cell off, and sides of
            less than a cell become one.
        backend: "auto" takes torchvision's operator if it loads.

    Raises:
        ValueError: for numbers out of range, or boxes of another number of images.
    """
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    _check(size, sampling_ratio, len(feats), len(boxes_per_image))
    if uses_torchvision(backend):
        return torchvision_operators().roi_align(
            feats, [b.to(feats.dtype) for b in boxes_per_image], size, float(spatial_scale), sampling_ratio, aligned
        )
    boxes, images = _flat(boxes_per_image)
    _, channels, height, width = feats.shape
    wide = feats if feats.dtype == torch.float64 else feats.float()
    whole = torch.ones_like(boxes[:, 0])
    return _pool(
        wide.permute(0, 2, 3, 1).reshape(-1, channels), boxes, scale=whole * spatial_scale, height=whole * height,
        width=whole * width, first=images * (height * width), output_size=size, samples=sampling_ratio, aligned=aligned,
    ).to(feats.dtype)  # fmt: skip


class MultiScaleRoIAlign(nn.Module):
    """RoIAlign of each box on the pyramid's level that fits its size.

        k = floor(canonical_level + log2(sqrt(w h) / canonical_size + 1e-6)), kept within the levels

    Args:
        levels: names of the maps; "p3" has a cell every 2^3 pixels.
        output_size: bins along each axis.
        sampling_ratio: samples a bin and axis.
        canonical_size: side of the square that belongs on the level `canonical_level`; 224 and 4 in the FPN paper.
        canonical_level: see there.
        aligned: see `roi_align`.
        backend: see `roi_align`.

    Raises:
        ValueError: if a level is not named "p" and a number, or they do not rise one by one.
    """

    def __init__(
        self,
        levels: Sequence[str] = ("p2", "p3", "p4", "p5"),
        output_size: int = 7,
        sampling_ratio: int = 2,
        canonical_size: float | int = 224,
        canonical_level: int = 4,
        aligned: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        self.levels = tuple(levels)
        self.numbers = [int(name[1:]) if name[:1] == "p" and name[1:].isdigit() else -1 for name in levels]
        if (
            not levels
            or self.numbers != list(range(self.numbers[0], self.numbers[0] + len(levels)))
            or -1 in self.numbers
        ):
            raise ValueError(f"levels must be named p2, p3, ... without a gap, got {self.levels}")
        if canonical_size <= 0:
            raise ValueError(f"canonical_size must be positive, got {canonical_size}")
        self.output_size, self.sampling_ratio, self.aligned, self.backend = (
            output_size,
            sampling_ratio,
            aligned,
            backend,
        )
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    def level_of(self, boxes: Float[Tensor, "n 4"]) -> Int64[Tensor, "n"]:
        """The number of each box's level."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        level = torch.floor(self.canonical_level + torch.log2(side / self.canonical_size + 1e-6))
        return level.clamp(self.numbers[0], self.numbers[-1]).long()

    def forward(
        self, features: Mapping[str, Tensor], boxes_per_image: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "boxes channels out out"]:
        """Pooled features of all boxes, image after image.

        Raises:
            ValueError: if a level is missing from `features`.
        """
        if self.levels[0] in features:
            size = (self.output_size, self.output_size)
            _check(size, self.sampling_ratio, len(features[self.levels[0]]), len(boxes_per_image))
        return self.flat(features, *_flat(boxes_per_image))

    def flat(
        self, features: Mapping[str, Tensor], boxes: Float[Tensor, "boxes 4"], images: Int64[Tensor, "boxes"]
    ) -> Float[Tensor, "boxes channels out out"]:
        """The same for boxes in any order, each with the number of its image."""
        missing = [name for name in self.levels if name not in features]
        if missing:
            raise ValueError(f"features lack {', '.join(missing)}; there are {', '.join(features)}")
        maps = [features[name] for name in self.levels]
        size = (self.output_size, self.output_size)
        level = self.level_of(boxes) - self.numbers[0]
        if uses_torchvision(self.backend):
            rois = torch.cat([images[:, None].to(boxes.dtype), boxes], dim=1)
            pooled = maps[0].new_zeros(len(boxes), maps[0].shape[1], *size)
            for index, (number, feats) in enumerate(zip(self.numbers, maps)):
                rows = (level == index).nonzero()[:, 0]
                part = torchvision_operators().roi_align(
                    feats, rois[rows].to(feats.dtype), size, 0.5**number, self.sampling_ratio, self.aligned
                )
                pooled = pooled.index_copy(0, rows, part.to(pooled.dtype))
            return pooled
        wide = [m if m.dtype == torch.float64 else m.float() for m in maps]
        table = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in wide])
        heights, widths = (torch.tensor([m.shape[axis] for m in maps], device=boxes.device) for axis in (2, 3))
        cells = heights * widths
        begin = (cells * len(maps[0])).cumsum(0) - cells * len(maps[0])
        scale = 0.5 ** torch.tensor(self.numbers, device=boxes.device, dtype=boxes.dtype)
        return _pool(
            table, boxes, scale=scale[level], height=heights[level].to(boxes), width=widths[level].to(boxes),
            first=begin[level] + images * cells[level], output_size=size, samples=self.sampling_ratio,
            aligned=self.aligned,
        ).to(maps[0].dtype)  # fmt: skip
