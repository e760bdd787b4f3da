"""Decisions out of scores: one threshold, two thresholds, and what a detector catches at a given false-alarm rate.

Scores are logits or probabilities of "jammed"; labels are 1 for jammed, 0 for normal.
"""

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = [
    "best_threshold",
    "cascade_score",
    "detection_rate",
    "logit",
    "threshold_at_false_alarm",
    "tune_eta",
    "uncertain",
]


def logit(p: float | int) -> float:
    """log(p / (1 - p)), infinite at 0 and 1."""
    if p in (0, 1):
        return math.inf if p else -math.inf
    return math.log(p / (1 - p))


def check_eta(eta: tuple[float | int, float | int]) -> tuple[float, float]:
    """`eta` as (low, high).

    Raises:
        ValueError: unless 0 <= low <= 0.5 <= high <= 1.
    """
    if len(eta) != 2 or not 0 <= eta[0] <= 0.5 <= eta[1] <= 1:
        raise ValueError(f"eta must be (low, high) with 0 <= low <= 0.5 <= high <= 1, got {tuple(eta)}")
    return float(eta[0]), float(eta[1])


def uncertain(logits: Float[Tensor, "n"], eta: tuple[float | int, float | int]) -> Bool[Tensor, "n"]:
    """Which examples lie strictly between the thresholds and go on to the second network.

    Logits are compared, not probabilities: a probability rounds to 0 or 1 where the logit is still finite.
    """
    low, high = (logit(value) for value in check_eta(eta))
    return (logits > low) & (logits < high)


def cascade_score(
    first: Float[Tensor, "n"],
    second: Float[Tensor, "n"],
    eta: tuple[float | int, float | int],
    passed: Bool[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """One score in 0..1 out of both networks' logits, with 0.5 as the decision.

    Outside the band it is p1; inside it runs linearly in p2 from eta_low through 0.5 (at p2 = 0.5) to eta_high, so
    that whatever the second network says stays inside the band.

    Args:
        first, second: logits; `second` counts only where `passed`.
        eta: thresholds (low, high).
        passed: examples that the second network decides.
    """
    low, high = check_eta(eta)
    p1, p2 = first.double().sigmoid(), second.double().sigmoid()
    inside = torch.where(p2 < 0.5, low + (0.5 - low) * 2 * p2, 0.5 + (high - 0.5) * (2 * p2 - 1))
    return torch.where(passed, inside, p1)


def tune_eta(
    logits: Float[Tensor, "n"], labels: Int64[Tensor, "n"], *, max_error: float | int = 0.01
) -> tuple[float, float]:
    """The widest certain regions that the first network's errors allow on validation examples.

    eta_low is the largest threshold <= 0.5 with at most `max_error` of jammed examples among those at or below it,
    eta_high the smallest >= 0.5 with at most `max_error` of normal ones among those at or above it; 0 and 1 where no
    threshold does that.

    Raises:
        ValueError: if `max_error` is outside [0, 1) or there are no examples.
    """
    if not 0 <= max_error < 1 or not len(logits):
        raise ValueError(f"max_error must lie in [0, 1) with some examples, got {max_error} and {len(logits)}")

    def widest(scores: Tensor, wrong: Tensor) -> float:
        """Largest score <= 0 whose region below it (ties whole) holds few wrong ones, as a probability."""
        order = scores.argsort()
        scores, wrong = scores[order], wrong[order].double()
        share = wrong.cumsum(0) / torch.arange(1, len(wrong) + 1, device=wrong.device)
        last_of_tie = torch.cat([scores[1:] > scores[:-1], torch.ones(1, dtype=torch.bool, device=wrong.device)])
        good = (share <= max_error) & (scores <= 0) & last_of_tie
        return scores[good].max().sigmoid().item() if bool(good.any()) else 0.0

    scores = logits.double()
    return min(widest(scores, labels == 1), 0.5), max(1 - widest(-scores, labels == 0), 0.5)


def threshold_at_false_alarm(scores: Float[Tensor, "n"], labels: Int64[Tensor, "n"], far: float | int = 0.05) -> float:
    """The least threshold at which at most a share `far` of the normal examples scores above it.

    Raises:
        ValueError: if `far` is outside 0..1 or there is no normal example.
    """
    normal = scores[labels == 0]
    if not 0 <= far <= 1 or not len(normal):
        raise ValueError(f"far must lie in 0..1 and some labels be 0, got {far} and {len(normal)} normal examples")
    allowed = min(math.floor(far * len(normal) + 1e-9), len(normal) - 1)
    return normal.sort(descending=True).values[allowed].item()


def detection_rate(
    scores: Float[Tensor, "n"],
    labels: Int64[Tensor, "n"],
    far: float | int = 0.05,
    *,
    threshold: float | int | None = None,
) -> float:
    """Share of jammed examples that score above the threshold of a false-alarm rate.

    Args:
        scores: higher means jammed.
        labels: 1 jammed, 0 normal.
        far: false-alarm rate that sets the threshold on these very examples.
        threshold: one chosen elsewhere, by `threshold_at_false_alarm` on validation examples; `far` is then not used.

    Raises:
        ValueError: if no example is jammed, or see `threshold_at_false_alarm`.
    """
    jammed = scores[labels == 1]
    if not len(jammed):
        raise ValueError("detection_rate needs at least one jammed example, got none")
    bar = threshold_at_false_alarm(scores, labels, far) if threshold is None else threshold
    return (jammed > bar).double().mean().item()


def best_threshold(scores: Float[Tensor, "n"], labels: Int64[Tensor, "n"]) -> float:
    """The threshold with the highest accuracy of `scores > threshold`, halfway between two scores."""
    order = scores.argsort()
    ordered, positive = scores[order].double(), (labels[order] == 1).double()
    below = torch.cat([positive.new_zeros(1), (1 - positive).cumsum(0)])
    above = positive.sum() - torch.cat([positive.new_zeros(1), positive.cumsum(0)])
    edges = torch.cat([ordered[:1] - 1, (ordered[1:] + ordered[:-1]) / 2, ordered[-1:] + 1])
    distinct = torch.cat([ordered.new_ones(1), (ordered[1:] > ordered[:-1]).double(), ordered.new_ones(1)])
    return edges[((below + above) * distinct).argmax()].item()
