"""Targets of a doubled batch, its two halves, and its loss.

Hou et al., "BatchFormer", CVPR 2022, arXiv:2203.01522, section 3.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["repeat_targets", "split_streams", "two_stream_loss"]


def repeat_targets(targets: Any, n: int = 2) -> Any:
    """The targets of a batch that stands n times in a row, in the order [batch; batch; ...].

    Args:
        targets: a tensor with a row per sample (labels, soft labels of mixup, masks, teacher logits, weights); a
            list with an entry per sample (the dicts of a detector); or a dict or tuple of such, each of which is
            repeated. Numbers, strings, None and tensors without a dimension belong to the whole batch and stay.
        n: how many times, >= 1.

    Raises:
        ValueError: if n is not positive.
        TypeError: for anything else.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if isinstance(targets, Tensor):
        return targets if targets.ndim == 0 else torch.cat([targets] * n)
    if isinstance(targets, Mapping):
        return {key: repeat_targets(value, n) for key, value in targets.items()}
    if isinstance(targets, tuple):
        return tuple(repeat_targets(value, n) for value in targets)
    if isinstance(targets, list):
        return targets * n
    if targets is None or isinstance(targets, int | float | str):
        return targets
    raise TypeError(f"targets must be tensors, lists, or dicts or tuples of them, got {type(targets).__name__}")


def count_samples(targets: Any) -> int | None:
    """How many samples the targets are of; None if nothing in them has a row per sample.

    Raises:
        ValueError: if parts of them disagree.
    """
    if isinstance(targets, Tensor):
        return None if targets.ndim == 0 else len(targets)
    if isinstance(targets, list):
        return len(targets)
    if isinstance(targets, Mapping | tuple):
        parts = targets.values() if isinstance(targets, Mapping) else targets
        counts = {count for part in parts if (count := count_samples(part)) is not None}
        if len(counts) > 1:
            raise ValueError(f"the parts of the targets must be of equally many samples, got {sorted(counts)}")
        return counts.pop() if counts else None
    return None


def split_streams(
    x: Float[Tensor, "rows *rest"],
) -> tuple[Float[Tensor, "samples *rest"], Float[Tensor, "samples *rest"]]:
    """The plain and the mixed half of a doubled batch.

    Raises:
        ValueError: if the number of rows is odd.
    """
    if len(x) % 2:
        raise ValueError(f"a doubled batch has an even number of rows, got shape {tuple(x.shape)}")
    plain, mixed = x.chunk(2)
    return plain, mixed


def two_stream_loss(
    logits: Float[Tensor, "rows *rest"],
    targets: Any,
    loss: Callable[[Tensor, Any], Tensor] = F.cross_entropy,
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """The loss of a model with BatchFormer against the targets of its N samples, doubled where the model doubled.

    With L1 the loss of the plain half and L2 that of the mixed half, "mean" is (L1 + L2) / 2, of the scale of the
    same model's loss without BatchFormer, so that a learning rate means the same in both; "sum" is L1 + L2. The
    authors' balanced-softmax trainer adds the mean to the sum: three times "mean", hence three times the rate.

    Args:
        logits: 2N rows, plain half first, or N rows (at test), for which it is the plain loss.
        targets: of the N samples, not doubled; as for `repeat_targets`.
        loss: (logits, targets) -> mean over the rows.
        reduction: "mean" or "sum".

    Raises:
        ValueError: if `reduction` is unknown or the rows are neither N nor 2N.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    samples = count_samples(targets)
    if samples is None or len(logits) not in (samples, 2 * samples):
        raise ValueError(
            f"logits must have as many rows as there are targets, or twice as many: {len(logits)} rows and "
            f"{samples} targets"
        )
    if len(logits) == samples:
        return loss(logits, targets)
    if reduction == "mean":
        return loss(logits, repeat_targets(targets))
    plain, mixed = split_streams(logits)
    return loss(plain, targets) + loss(mixed, targets)
