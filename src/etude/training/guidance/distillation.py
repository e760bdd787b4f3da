"""The control: distillation hands over the guide's answers where guidance hands over its representations.

Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, 2015.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["distillation_loss"]


def distillation_loss(
    logits: Float[Tensor, "batch classes"],
    guide_logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    *,
    temperature: float | int = 1.0,
    weight: float | int = 1.0,
) -> Float[Tensor, ""]:
    """Cross-entropy against the labels, plus `weight` times that against the guide's softened softmax.

    Args:
        logits: of the target.
        guide_logits: of the guide, for the same inputs; no gradient reaches it.
        labels: classes of the inputs.
        temperature: divides both logits of the second term, > 0, which is scaled by its square, so that its
            gradient keeps its size.
        weight: of the second term, >= 0.

    Raises:
        ValueError: if shapes differ, a label is no class, or a number is out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight}")
    if logits.shape != guide_logits.shape:
        raise ValueError(
            f"target and guide must give as many logits, got {tuple(logits.shape)} and {tuple(guide_logits.shape)}"
        )
    if len(labels) != len(logits):
        raise ValueError(f"there must be one label a row of logits, {len(logits)}, got {len(labels)}")
    classes = logits.shape[1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    soft = F.softmax(guide_logits.detach() / temperature, dim=1)
    return F.cross_entropy(logits, labels) + weight * temperature**2 * F.cross_entropy(logits / temperature, soft)
