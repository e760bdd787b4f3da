"""Training on one graph, all nodes at a time, with the paper's choice of the epoch.

Liu, Gao & Ji, "Towards Deeper Graph Neural Networks", KDD 2020, arXiv:2007.09296, section 6 and the authors' code: Adam
with weight decay on all parameters; after epoch E/2 training stops as soon as the validation loss exceeds its mean over
the `patience` epochs before; the weights of the epoch with the lowest validation loss are the result.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from etude.graphs.dagnn.propagation import Propagator
from etude.graphs.dagnn.sparse import SparseMatrix

__all__ = ["NodeFit", "accuracy", "fit_nodes"]


class NodeFit(NamedTuple):
    """How a training went; the losses and accuracies are those of the chosen epoch, without dropout."""

    epochs: int
    best_epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


def accuracy(logits: Float[Tensor, "nodes classes"], y: Int64[Tensor, "nodes"], mask: Bool[Tensor, "nodes"]) -> float:
    """Share of the nodes of `mask` whose largest logit is that of their class."""
    return (logits[mask].argmax(1) == y[mask]).double().mean().item()


def fit_nodes(
    model: nn.Module,
    x: Float[Tensor, "nodes features"] | SparseMatrix,
    adj: Propagator,
    y: Int64[Tensor, "nodes"],
    train_mask: Bool[Tensor, "nodes"],
    val_mask: Bool[Tensor, "nodes"],
    *,
    lr: float = 0.01,
    weight_decay: float = 0.005,
    epochs: int = 1000,
    patience: int = 100,
    select: Literal["loss", "accuracy"] = "loss",
    callback: Callable[..., None] | None = None,
) -> NodeFit:
    """Trains `model(x, adj=adj)` on the nodes of `train_mask` and leaves it at its best validation epoch, in eval mode.

    Dropout draws from torch's global generator.

    Args:
        model: gives logits (n, c).
        x: features; a `SparseMatrix` saves its preparation at each step.
        adj: the propagation matrix.
        y: classes; those outside the two masks are not looked at.
        train_mask, val_mask: disjoint and not empty.
        lr, weight_decay: of Adam.
        epochs: the most that are run.
        patience: see above; 0 never stops early.
        select: the validation figure that chooses the epoch: the loss as for citation graphs, or the accuracy as for
            ogbn-arxiv.
        callback: called as `callback(epoch, epochs, loss=..., val_loss=..., val_accuracy=...)`.

    Raises:
        ValueError: if a mask is empty or of another size, the masks overlap, `epochs` is not positive, or `select` is
            unknown.
        FloatingPointError: if no epoch has a finite validation loss.
    """
    _check_masks(len(y), train_mask, val_mask)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if select not in ("loss", "accuracy"):
        raise ValueError(f'select must be "loss" or "accuracy", got {select!r}')
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    history: list[float] = []
    best, best_epoch, best_score = None, 0, float("-inf")
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x, adj=adj)[train_mask], y[train_mask])
        loss.backward()
        optimizer.step()

        model.eval()
        with torch.no_grad():
            logits = model(x, adj=adj)
        val_loss = F.cross_entropy(logits[val_mask], y[val_mask]).item()
        val_accuracy = accuracy(logits, y, val_mask)
        score = -val_loss if select == "loss" else val_accuracy
        if score > best_score:
            best = {name: value.clone() for name, value in model.state_dict().items()}
            best_epoch, best_score, best_logits = epoch, score, logits
        if callback is not None:
            callback(epoch, epochs, loss=loss.item(), val_loss=val_loss, val_accuracy=val_accuracy)
        recent = history[-patience:] if patience else []
        history.append(val_loss)
        if recent and epoch > epochs // 2 and val_loss > sum(recent) / len(recent):
            break
    if best is None:
        raise FloatingPointError(f"no epoch had a finite validation loss; the last was {history[-1]}")
    model.load_state_dict(best)
    return NodeFit(
        epochs=epoch,
        best_epoch=best_epoch,
        train_loss=F.cross_entropy(best_logits[train_mask], y[train_mask]).item(),
        train_accuracy=accuracy(best_logits, y, train_mask),
        val_loss=F.cross_entropy(best_logits[val_mask], y[val_mask]).item(),
        val_accuracy=accuracy(best_logits, y, val_mask),
    )


def _check_masks(nodes: int, train_mask: Tensor, val_mask: Tensor) -> None:
    for name, mask in (("train_mask", train_mask), ("val_mask", val_mask)):
        if mask.dtype != torch.bool or mask.shape != (nodes,):
            raise ValueError(f"{name} must be bool of shape ({nodes},), got {mask.dtype} of shape {tuple(mask.shape)}")
        if not bool(mask.any()):
            raise ValueError(f"{name} selects no node")
    shared = int((train_mask & val_mask).sum())
    if shared:
        raise ValueError(f"train_mask and val_mask must not overlap, {shared} nodes stand in both")
