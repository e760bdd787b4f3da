"""Contrastive alignment of data sets with the networks that were trained on them.

Soro et al., arXiv:2402.18153, section 3.4, after the soft targets of CLIP variants. With latents w_i of networks and
embeddings d_i of their data sets, row by row, and temperature tau,

    logits = w d^T / tau,    G = softmax_rows((w w^T + d d^T) tau / 2)
    loss = (CE(logits, G) + CE(logits^T, G^T)) / 2,    CE(a, p) = -mean_i sum_j p_ij log softmax(a_i)_j       (1)

The rows of G^T need not sum to one; the published code uses them so, and so does this.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["soft_contrastive_loss"]


def soft_contrastive_loss(
    w: Float[Tensor, "batch dim"],
    d: Float[Tensor, "batch dim"],
    temperature: float | int = 1.0,
    *,
    detach_targets: bool = True,
    normalize: bool = False,
) -> Float[Tensor, ""]:
    """Eq. (1).

    Args:
        w: latents of networks, flat.
        d: embeddings of their data sets, in the same order.
        temperature: tau, > 0.
        detach_targets: no gradient flows through G; the published code lets it flow.
        normalize: bring rows to length 1 first, which the published code does not do.

    Raises:
        ValueError: for a temperature that is not positive, or a batch of one, which has nothing to contrast.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if len(w) < 2:
        raise ValueError(f"a contrast needs two pairs or more, got {len(w)}")
    if normalize:
        w, d = F.normalize(w, dim=1), F.normalize(d, dim=1)
    logits = w @ d.T / temperature
    targets = torch.softmax((w @ w.T + d @ d.T) / 2 * temperature, dim=1)
    if detach_targets:
        targets = targets.detach()
    rows = -(targets * F.log_softmax(logits, dim=1)).sum(dim=1)
    columns = -(targets.T * F.log_softmax(logits.T, dim=1)).sum(dim=1)
    return ((rows + columns) / 2).mean()
