"""What a ranker is trained on: losses f(scores, labels, mask) over groups of candidates of one query.

    pointwise   each candidate by itself: cross-entropy with "is it relevant", or squared error with the grade
    pairwise    every pair whose grades differ: hinge; RankNet (Burges et al., ICML 2005)
    listwise    the whole group: ListNet (Cao et al., ICML 2007), ListMLE (Xia et al., ICML 2008), softmax over one
                relevant and several others (DSSM), LambdaLoss (Wang et al., CIKM 2018; weights of LambdaRank)

Scores, labels and mask are (batch, group); masked entries change nothing. Pairwise and listwise losses take nothing
from a group whose labels are all equal: it says nothing about order. They are means over the groups (pairwise: over the
pairs) that say something.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = [
    "OBJECTIVES", "CalibratedPointwise", "hinge_pair_loss", "lambda_loss", "listmle_loss", "listnet_loss",
    "pointwise_loss", "ranknet_loss", "softmax_loss",
]  # fmt: skip

Scores = Float[Tensor, "batch group"]
Mask = Bool[Tensor, "batch group"] | None


def _real(scores: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
    if scores.shape != labels.shape:
        raise ValueError(f"scores and labels must have one shape, got {tuple(scores.shape)} and {tuple(labels.shape)}")
    return torch.ones_like(scores, dtype=torch.bool) if mask is None else mask


def _mean(values: Tensor, real: Tensor) -> Tensor:
    """Over the real entries; 0, with a zero gradient, if there is none."""
    return values.masked_fill(~real, 0.0).sum() / real.sum().clamp_min(1)


def _told(labels: Tensor, real: Tensor) -> Bool[Tensor, " batch"]:
    """Groups with at least two different labels."""
    high = labels.masked_fill(~real, -torch.inf).amax(dim=1)
    low = labels.masked_fill(~real, torch.inf).amin(dim=1)
    return real.any(dim=1) & (high > low)


def pointwise_loss(
    scores: Scores, labels: Scores, mask: Mask = None, *, kind: Literal["bce", "mse"] = "bce"
) -> Float[Tensor, ""]:
    """Mean over candidates of the cross-entropy of sigmoid(score) with label > 0, or of (score - label)^2.

    Each candidate counts by itself, in groups of equal labels too: whether a document is relevant is told without any
    other.

    Raises:
        ValueError: for another kind, or if the shapes differ.
    """
    real = _real(scores, labels, mask)
    if kind == "bce":
        values = F.binary_cross_entropy_with_logits(scores, (labels > 0).to(scores.dtype), reduction="none")
    elif kind == "mse":
        values = (scores - labels) ** 2
    else:
        raise ValueError(f"kind must be 'bce' or 'mse', got {kind!r}")
    return _mean(values, real)


class CalibratedPointwise(nn.Module):
    """`pointwise_loss` of a + b s, with a and b trained: for scores whose range fits no logarithm of odds.

    A score between -1 and 1, such as DRMM's, gives probabilities between .27 and .73 whatever is learnt; a pointwise
    loss then has a handicap that pairwise losses do not have. b stays positive, so that the order is
    the model's.
    """

    def __init__(self):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, scores: Scores, labels: Scores, mask: Mask = None) -> Float[Tensor, ""]:
        return pointwise_loss(self.offset + self.log_scale.exp() * scores, labels, mask)


def _pairs(scores: Tensor, labels: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """s_i - s_j (batch, group, group), and where i is better than j."""
    better = (labels[:, :, None] > labels[:, None, :]) & real[:, :, None] & real[:, None, :]
    return scores[:, :, None] - scores[:, None, :], better


def hinge_pair_loss(scores: Scores, labels: Scores, mask: Mask = None, *, margin: float = 1.0) -> Float[Tensor, ""]:
    """Mean over pairs with y_i > y_j of max(0, margin - s_i + s_j)."""
    gaps, better = _pairs(scores, labels, _real(scores, labels, mask))
    return _mean(F.relu(margin - gaps), better)


def ranknet_loss(scores: Scores, labels: Scores, mask: Mask = None) -> Float[Tensor, ""]:
    """Mean over pairs with y_i > y_j of ln(1 + exp(-(s_i - s_j)))."""
    gaps, better = _pairs(scores, labels, _real(scores, labels, mask))
    return _mean(F.softplus(-gaps), better)


def listnet_loss(
    scores: Scores, labels: Scores, mask: Mask = None, *, target: Literal["softmax", "share"] = "softmax"
) -> Float[Tensor, ""]:
    """Cross-entropy -sum_i t_i log softmax(s)_i with the top-one probabilities t of the labels.

    Args:
        scores, labels, mask: (batch, group).
        target: t = softmax(y) as in the paper; "share": t = y / sum(y), which puts nothing on what is irrelevant, and
            with one relevant candidate is `softmax_loss`.

    Raises:
        ValueError: for another target, or if the shapes differ.
    """
    real = _real(scores, labels, mask)
    if target not in ("softmax", "share"):
        raise ValueError(f"target must be 'softmax' or 'share', got {target!r}")
    told = _told(labels, real)
    logs = scores.masked_fill(~real, -1e9).log_softmax(dim=1)
    if target == "softmax":
        shares = labels.masked_fill(~real, -torch.inf).masked_fill(~told[:, None], 0.0).softmax(dim=1)
    else:
        kept = labels.masked_fill(~real, 0.0)
        shares = kept / kept.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return _mean(-(shares * logs).masked_fill(~real, 0.0).sum(dim=1), told)


def softmax_loss(scores: Scores, labels: Scores, mask: Mask = None) -> Float[Tensor, ""]:
    """-log softmax(s) of the relevant candidates, averaged over them: DSSM's P(d+ | q) with one of them."""
    real = _real(scores, labels, mask)
    relevant = (labels > 0) & real
    logs = scores.masked_fill(~real, -1e9).log_softmax(dim=1).masked_fill(~relevant, 0.0)
    return _mean(-logs.sum(dim=1) / relevant.sum(dim=1).clamp_min(1), _told(labels, real) & relevant.any(dim=1))


def listmle_loss(scores: Scores, labels: Scores, mask: Mask = None) -> Float[Tensor, ""]:
    """-ln of the Plackett-Luce probability of the order of the labels; equal labels in the order given."""
    real = _real(scores, labels, mask)
    order = labels.masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True)
    ordered, kept = scores.gather(1, order), real.gather(1, order)
    ordered = ordered.masked_fill(~kept, -1e9)
    rest = ordered.flip(1).logcumsumexp(dim=1).flip(1)
    return _mean((rest - ordered).masked_fill(~kept, 0.0).sum(dim=1), _told(labels, real))


def lambda_loss(
    scores: Scores, labels: Scores, mask: Mask = None, *, gain: Literal["exponential", "linear"] = "exponential"
) -> Float[Tensor, ""]:
    """RankNet with each pair weighted by how much nDCG changes if the two swap places in the present order.

        w_ij = |G_i - G_j| |1 / log2(1 + r_i) - 1 / log2(1 + r_j)| / max DCG,    G = 2^y - 1 or y,

    the ranks r and so the weights without gradient; a sum over the pairs, a mean over the groups.

    Raises:
        ValueError: for another gain, or if the shapes differ.
    """
    real = _real(scores, labels, mask)
    if gain not in ("exponential", "linear"):
        raise ValueError(f"gain must be 'exponential' or 'linear', got {gain!r}")
    gaps, better = _pairs(scores, labels, real)
    with torch.no_grad():
        gains = (torch.exp2(labels) - 1 if gain == "exponential" else labels).masked_fill(~real, 0.0)
        places = scores.masked_fill(~real, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        discounts = 1 / torch.log2(places.to(scores.dtype) + 2)
        steps = torch.arange(scores.shape[1], device=scores.device, dtype=scores.dtype)
        best = (gains.sort(dim=1, descending=True).values / torch.log2(steps + 2)).sum(dim=1).clamp_min(1e-12)
        weights = (gains[:, :, None] - gains[:, None, :]).abs() * (discounts[:, :, None] - discounts[:, None, :]).abs()
        weights = (weights / best[:, None, None]).masked_fill(~better, 0.0)
    return _mean((weights * F.softplus(-gaps)).sum(dim=(1, 2)), _told(labels, real))


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "pointwise": pointwise_loss,
    "mse": lambda scores, labels, mask=None: pointwise_loss(scores, labels, mask, kind="mse"),
    "pairwise": hinge_pair_loss,
    "ranknet": ranknet_loss,
    "listwise": listnet_loss,
    "softmax": softmax_loss,
    "listmle": listmle_loss,
    "lambda": lambda_loss,
}
"""By name."""
