"""Boxes as corners (x1, y1, x2, y2) in pixels, their overlap, and the code in which a regressor moves them.

A box spans x2 - x1 by y2 - y1 pixels: no pixel is added to a side. Centres and sizes of a proposal p and a target g
give (section 3 of the Cascade R-CNN paper; the weights are one over the standard deviations of its normalisation)

    d = ((gx - px) / pw, (gy - py) / ph, log(gw / pw), log(gh / ph)),    code = (d - mean) * weights           (1)
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["BoxCoder", "box_iou", "check_boxes", "clip_boxes", "collect_delta_statistics"]

MAX_LOG_RATIO = math.log(1000 / 16)
"""The largest growth of a side in one step, as a logarithm; it keeps exp finite early in training."""


def check_boxes(boxes: Tensor, where: str = "boxes") -> None:
    """Refuses what are not boxes.

    Raises:
        ValueError: if the shape is not (n, 4), a number is not finite, or x2 <= x1 or y2 <= y1; with the index.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise ValueError(f"{where} must be floats of shape (n, 4), got {boxes.dtype} of {tuple(boxes.shape)}")
    wrong = ~torch.isfinite(boxes).all(1) | (boxes[:, 2:] <= boxes[:, :2]).any(1)
    if bool(wrong.any()):
        index = int(wrong.nonzero()[0])
        raise ValueError(
            f"{where} must be (x1, y1, x2, y2) with x1 < x2 and y1 < y2, box {index} is {boxes[index].tolist()}"
        )


def _single(boxes: Tensor) -> Tensor:
    """Half precision cannot tell pixels above 2,048 apart."""
    return boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes


def box_iou(a: Float[Tensor, "*#batch n 4"], b: Float[Tensor, "*#batch m 4"]) -> Float[Tensor, "... n m"]:
    """Intersection over union of every box of `a` with every box of `b`; 0 where both are empty. Batches broadcast."""
    first, second = _single(a)[..., :, None, :].unbind(-1), _single(b)[..., None, :, :].unbind(-1)
    # At most three matrices at a time, where the plain formula holds five.
    width = torch.minimum(first[2], second[2]).sub_(torch.maximum(first[0], second[0])).clamp_(min=0)
    height = torch.minimum(first[3], second[3]).sub_(torch.maximum(first[1], second[1])).clamp_(min=0)
    shared = width * height
    del width, height
    union = (_area(first) + _area(second)).sub_(shared)
    return shared / union.clamp_(min=torch.finfo(union.dtype).tiny)


def _area(corners: Sequence[Tensor]) -> Tensor:
    x1, y1, x2, y2 = corners
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def clip_boxes(boxes: Float[Tensor, "*batch 4"], sizes: Tensor) -> Float[Tensor, "*batch 4"]:
    """Boxes cut off at the borders of their images.

    Args:
        boxes: corners.
        sizes: height and width, (2,) or broadcast against (*batch, 2).
    """
    limit = sizes.to(boxes).flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([limit, limit], dim=-1))


class BoxCoder:
    """Between boxes and the code of Eq. (1).

        coder = BoxCoder((20, 20, 10, 10))                       # the second stage's
        coder.decode(proposals, coder.encode(proposals, targets))

    Args:
        weights: one over the standard deviation of each delta. The stages of the paper's detector have
            (10, 10, 5, 5), (20, 20, 10, 10) and (30, 30, 15, 15).
        mean: of each delta.
        clip: largest logarithm of a side's growth.

    Raises:
        ValueError: if there are not four positive weights and four means.
    """

    def __init__(
        self,
        weights: Sequence[float | int] = (10, 10, 5, 5),
        clip: float | int = MAX_LOG_RATIO,
        mean: Sequence[float | int] = (0, 0, 0, 0),
    ):
        if len(weights) != 4 or min(weights) <= 0 or len(mean) != 4:
            raise ValueError(f"a coder has four positive weights and four means, got {tuple(weights)}, {tuple(mean)}")
        self.weights, self.mean, self.clip = tuple(map(float, weights)), tuple(map(float, mean)), float(clip)

    def __repr__(self) -> str:
        return f"BoxCoder(weights={self.weights}, mean={self.mean})"

    @classmethod
    def from_statistics(cls, mean: Float[Tensor, "4"], std: Float[Tensor, "4"]) -> "BoxCoder":
        """A coder whose codes have mean 0 and standard deviation 1 (see `collect_delta_statistics`)."""
        if bool((std <= 0).any()):
            raise ValueError(f"standard deviations must be positive, got {std.tolist()}")
        return cls((1 / std).tolist(), mean=mean.tolist())

    def encode(self, proposals: Float[Tensor, "*n 4"], targets: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
        """The codes that turn proposals into targets."""
        deltas = _deltas(_single(proposals), _single(targets))
        return (deltas - deltas.new_tensor(self.mean)) * deltas.new_tensor(self.weights)

    def decode(
        self, proposals: Float[Tensor, "*n 4"], deltas: Float[Tensor, "*n 4"], image_size: Tensor | None = None
    ) -> Float[Tensor, "*n 4"]:
        """The boxes that the codes `deltas` turn proposals into, cut off at the image if its (height, width) is given.

        Computed in float32 at least.
        """
        boxes, codes = _single(proposals), _single(deltas)
        steps = codes / codes.new_tensor(self.weights) + codes.new_tensor(self.mean)
        size = boxes[..., 2:] - boxes[..., :2]
        centre = boxes[..., :2] + size / 2 + steps[..., :2] * size
        half = steps[..., 2:].clamp(max=self.clip).exp() * size / 2
        decoded = torch.cat([centre - half, centre + half], dim=-1)
        return decoded if image_size is None else clip_boxes(decoded, image_size)


def _deltas(proposals: Tensor, targets: Tensor) -> Tensor:
    size, wanted = proposals[..., 2:] - proposals[..., :2], targets[..., 2:] - targets[..., :2]
    # Sums of corners, twice the centres: a box is exactly at its own.
    shift = ((targets[..., :2] + targets[..., 2:]) - (proposals[..., :2] + proposals[..., 2:])) / (2 * size)
    return torch.cat([shift, torch.log(wanted / size)], dim=-1)


def collect_delta_statistics(
    proposals: Float[Tensor, "n 4"], targets: Float[Tensor, "n 4"]
) -> tuple[Float[Tensor, "4"], Float[Tensor, "4"]]:
    """Mean and standard deviation of the deltas of Eq. (1) before any normalisation.

    Raises:
        ValueError: for fewer than two pairs.
    """
    if len(proposals) < 2:
        raise ValueError(f"statistics need at least two pairs of boxes, got {len(proposals)}")
    deltas = _deltas(_single(proposals), _single(targets))
    return deltas.mean(0), deltas.std(0)
