"""From a map of responses to a box: the box rule, windows scored by density, and how boxes are judged.

A map tells where a network that only knows image-level tags responds. Nothing here is learnt, and nothing here is
given a true box except `localization_recall`, which judges.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from etude.vision.face_attributes.pictures import check_boxes

__all__ = [
    "FoundBox",
    "box_from_response",
    "boxes_from_responses",
    "choose_threshold",
    "iou",
    "localization_recall",
    "non_maximum_suppression",
    "sliding_windows",
    "window_by_density",
]


class FoundBox(NamedTuple):
    """A box found in a map.

    Attributes:
        box: left, top, right, bottom in pixels, pixel p covering [p, p + 1).
        score: share of the (median-subtracted, positive) response that lies inside the box.
        confident: False if the map is constant, where the box is the whole image.
    """

    box: Tensor
    score: float
    confident: bool


def _prepared(response: Tensor, sigma: float) -> np.ndarray:
    """The map smoothed, less its median; zeros if it is constant."""
    from scipy.ndimage import gaussian_filter

    if response.ndim != 2:
        raise ValueError(f"a response map has two axes, got shape {tuple(response.shape)}")
    values = response.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise ValueError("the response map holds NaN or infinite values")
    smooth = values if sigma == 0 else gaussian_filter(values, sigma * min(values.shape), mode="nearest")
    smooth = smooth - np.median(smooth)
    # A constant map keeps the rounding of its smoothing.
    return smooth if np.abs(smooth).max() > 1e-9 * max(1.0, np.abs(values).max()) else np.zeros_like(smooth)


def box_from_response(
    response: Float[Tensor, "height width"],
    tau: float | int = 0.35,
    sigma: float | int = 0.05,
    min_side: float | int = 8,
    *,
    alpha: float | int = 1.0,
    component: str = "peak",
) -> FoundBox:
    """The box of the region that responds.

    The map is smoothed by a Gaussian of standard deviation `sigma` times its shorter side, its median is subtracted,
    and what exceeds `tau` times the maximum falls into connected components (four neighbours). The tight box of one
    of them is enlarged about its centre by `alpha`, to at least `min_side`, and moved to lie within the map.

    Args:
        response: responses, one a pixel.
        tau: threshold, as a fraction of the maximum, in (0, 1).
        sigma: smoothing in shorter sides, >= 0.
        min_side: least side of the box in pixels.
        alpha: factor of the box's sides, > 0.
        component: "peak", the one that holds the maximum, or "largest", where several faces are expected.

    Raises:
        ValueError: for a parameter out of range, or a map that is not of two axes or not finite.
    """
    if not 0 < tau < 1:
        raise ValueError(f"tau must lie in (0, 1), got {tau}")
    if sigma < 0 or min_side < 0 or alpha <= 0:
        raise ValueError(f"need sigma >= 0, min_side >= 0 and alpha > 0, got {sigma}, {min_side} and {alpha}")
    if component not in ("peak", "largest"):
        raise ValueError(f"component must be 'peak' or 'largest', got {component!r}")
    return _found(_prepared(response, float(sigma)), float(tau), float(min_side), float(alpha), component)


def _found(values: np.ndarray, tau: float, min_side: float, alpha: float, component: str) -> FoundBox:
    """The box of a smoothed map whose median is 0."""
    from scipy.ndimage import find_objects, label

    height, width = values.shape
    peak = values.max()
    if peak <= 0:
        return FoundBox(torch.tensor([0.0, 0.0, width, height]), 1.0, False)
    labels, _ = label(values > tau * peak)
    if component == "peak":
        chosen = labels[np.unravel_index(values.argmax(), values.shape)]
    else:
        chosen = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    rows, columns = find_objects(labels)[chosen - 1]
    left, right = _widened(columns.start, columns.stop, alpha, min_side, width)
    top, bottom = _widened(rows.start, rows.stop, alpha, min_side, height)
    positive = values.clip(min=0)
    inside = positive[round(top) : round(bottom), round(left) : round(right)].sum()
    return FoundBox(torch.tensor([left, top, right, bottom]), float(inside / positive.sum()), True)


def _widened(start: int, stop: int, alpha: float, least: float, limit: int) -> tuple[float, float]:
    """An interval enlarged about its middle and moved to lie within 0..limit."""
    side = max(alpha * (stop - start), least)
    if side >= limit:
        return 0.0, float(limit)
    begin = min(max((start + stop - side) / 2, 0.0), limit - side)
    return begin, begin + side


def boxes_from_responses(
    responses: Float[Tensor, "batch height width"],
    tau: float | int = 0.35,
    sigma: float | int = 0.05,
    min_side: float | int = 8,
    *,
    alpha: float | int = 1.0,
    component: str = "peak",
) -> tuple[Float[Tensor, "batch 4"], Float[Tensor, " batch"]]:
    """`box_from_response` of each map: the boxes, and their scores (0 where the map is constant)."""
    found = [box_from_response(r, tau, sigma, min_side, alpha=alpha, component=component) for r in responses]
    scores = torch.tensor([one.score if one.confident else 0.0 for one in found])
    return torch.stack([one.box for one in found]).float(), scores


def choose_threshold(
    responses: Float[Tensor, "batch height width"],
    taus: Sequence[float | int] = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    sigma: float | int = 0.05,
    *,
    boxes: Float[Tensor, "boxes 4"] | None = None,
) -> float:
    """The tau whose boxes hold much response on little area, judged without any true box unless some are given.

    With S the positive, median-subtracted response inside the box, A the box's area, S_all and A_all those of the
    image, the mean over maps of S / S_all - A / A_all is maximised: what the box holds beyond a box of its size in a
    map without structure. Density times coverage, (S / A) / (S_all / A_all) * (S / S_all), which divides where this
    subtracts, was tried first: on maps with a sharp peak, which networks learn, it takes half the true area.

    Args:
        responses: maps of training images.
        taus: thresholds to choose from, in (0, 1).
        sigma: smoothing, as in `box_from_response`.
        boxes: true boxes of these images, if known: the recall at an overlap of 0.5 is maximised instead, ties by
            the mean overlap.

    Raises:
        ValueError: if `taus` is empty or one lies outside (0, 1), or there are not as many boxes as maps.
    """
    if not taus or not 0 < min(taus) <= max(taus) < 1:
        raise ValueError(f"taus must lie in (0, 1), at least one, got {tuple(taus)}")
    if boxes is not None:
        check_boxes(boxes, len(responses))
    maps, pixels = [_prepared(response, float(sigma)) for response in responses], responses[0].numel()
    quality: list[tuple[float, ...]] = []
    for tau in taus:
        found = [_found(values, float(tau), 8.0, 1.0, "peak") for values in maps]
        if boxes is not None:
            quality.append(localization_recall(torch.stack([one.box for one in found]).float(), boxes.cpu()))
        else:
            areas = [float((one.box[2:] - one.box[:2]).prod()) / pixels for one in found]
            quality.append((float(np.mean([one.score - area for one, area in zip(found, areas)])),))
    return float(taus[max(range(len(taus)), key=quality.__getitem__)])


def window_by_density(
    response: Float[Tensor, "height width"], windows: Float[Tensor, "windows 4"], beta: float | int = 0.5
) -> Float[Tensor, " windows"]:
    """Scores of windows proposed elsewhere: (sum of the response inside) / area^beta.

    beta = 0 favours the whole image, beta = 1 the peak alone; in between the best window is the smallest that still
    holds most of the response. Windows are rounded to whole pixels.

    Raises:
        ValueError: for a degenerate window, one that reaches outside the map, or beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    check_boxes(windows)
    height, width = response.shape
    edges = windows.round().long()
    if bool((edges < 0).any()) or int(edges[:, 2].max()) > width or int(edges[:, 3].max()) > height:
        raise ValueError(f"windows must lie within the {height} x {width} map")
    check_boxes(edges.float())
    total = torch.zeros(height + 1, width + 1, dtype=torch.float64)
    total[1:, 1:] = response.detach().cpu().double().cumsum(0).cumsum(1)
    left, top, right, bottom = edges.cpu().T
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    area = ((right - left) * (bottom - top)).double()
    return (inside / area**beta).to(response)


def sliding_windows(
    size: tuple[int, int], sides: Sequence[float | int], stride: float | int
) -> Float[Tensor, "windows 4"]:
    """Square windows of the given sides, `stride` pixels apart, that lie within an image of `size` (height, width).

    Raises:
        ValueError: if the stride is not positive or no window fits.
    """
    if stride <= 0 or not sides or min(sides) <= 0:
        raise ValueError(f"sides and stride must be positive, got {tuple(sides)} and {stride}")
    height, width = size
    found = []
    for side in sides:
        if side > min(size):
            continue
        top, left = (torch.arange(0, limit - side + 1e-6, stride) for limit in (height, width))
        corner = torch.cartesian_prod(left, top).view(-1, 2)
        found.append(torch.cat([corner, corner + side], dim=1))
    if not found:
        raise ValueError(f"no window of sides {tuple(sides)} fits into {height} x {width}")
    return torch.cat(found).float()


def iou(one: Float[Tensor, "n 4"], other: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Intersection over union of every pair of boxes."""
    corner = torch.maximum(one[:, None, :2], other[None, :, :2])
    opposite = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = (opposite - corner).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (one, other)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def non_maximum_suppression(
    boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], threshold: float | int = 0.3
) -> Int[Tensor, " kept"]:
    """Rows of the boxes that remain, best first, each overlapping no better one by more than `threshold`.

    Raises:
        ValueError: for a degenerate box or a threshold outside [0, 1].
    """
    check_boxes(boxes)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], got {threshold}")
    order = scores.argsort(descending=True, stable=True)
    overlap = iou(boxes[order], boxes[order])
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for row in range(len(order)):
        if alive[row]:
            alive[row + 1 :] &= overlap[row, row + 1 :] <= threshold
    return order[alive]


def localization_recall(
    predicted: Float[Tensor, "n 4"], true: Float[Tensor, "n 4"], threshold: float | int = 0.5
) -> tuple[float, float]:
    """(share of images whose box overlaps the true one by at least `threshold`, mean overlap).

    Raises:
        ValueError: if there are no boxes, one is degenerate, or their numbers differ.
    """
    if not len(true):
        raise ValueError("there are no boxes to judge")
    check_boxes(predicted, len(true))
    check_boxes(true)
    corner = torch.maximum(predicted[:, :2], true[:, :2])
    shared = (torch.minimum(predicted[:, 2:], true[:, 2:]) - corner).clamp(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (predicted, true)]
    overlap = shared / (areas[0] + areas[1] - shared)
    return (overlap >= threshold).double().mean().item(), overlap.double().mean().item()
