"""Training graph predictors: the base, an adapter beside it, a fine-tuning on few networks."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.stats import spearmanr
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import fit
from etude.nas.aiop.adapters import AdaptedPredictor
from etude.nas.aiop.graph import GraphBatch
from etude.nas.aiop.scaling import check_labels

__all__ = ["finetune", "fit_graphs", "predict_graphs", "rank_correlation", "train_adapter"]

Callback = Callable[..., Any]


class _OfRows(nn.Module):
    """A network of graphs as one of their row numbers, which the training loop can shuffle."""

    def __init__(self, model: nn.Module, graphs: GraphBatch):
        super().__init__()
        self.model, self.graphs = model, graphs

    def forward(self, rows: Tensor) -> Tensor:
        return self.model(self.graphs[rows])


def fit_graphs(
    model: nn.Module,
    graphs: GraphBatch,
    z: ArrayLike,
    *,
    parameters: Iterable[nn.Parameter] | None = None,
    epochs: int = 40,
    batch_size: int = 32,
    lr: float = 1e-4,
    clip: float | int | None = 5.0,
    penalty: Callable[[], Tensor] | None = None,
    generator: torch.Generator | None = None,
    callbacks: Iterable[Callback] = (),
) -> list[float]:
    """Trains on scaled labels by Adam and the mean squared error, as the authors do.

    Args:
        model: maps a `GraphBatch` to (graphs,) numbers, in place.
        graphs: to train on.
        z: (graphs,) labels on the common scale of a `TargetScaler`.
        parameters: what is trained; all that is not frozen if None.
        epochs, batch_size, lr, clip: of the training; the authors take 40, 32, 1e-4 and norm 5. A last batch that is
            not full is left out, another one in each epoch.
        penalty: added to the loss at every step.
        generator: source of the order of examples.
        callbacks: called as `callback(step, total, loss=, lr=)` once an epoch.

    Returns:
        The loss of every update.

    Raises:
        ValueError: if labels are not finite or not as many as graphs, or a number is out of range.
    """
    labels = check_labels(z)
    if len(labels) != len(graphs):
        raise ValueError(f"there are {len(graphs)} graphs and {len(labels)} labels")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    device = next(model.parameters()).device
    chosen = list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    # Frozen parts run forward only.
    optimizer = torch.optim.Adam(chosen, lr=lr, fused=True)
    rows = Examples(torch.arange(len(graphs)), torch.from_numpy(labels).float())

    def loss(predicted: Tensor, target: Tensor) -> Tensor:
        value = F.mse_loss(predicted, target)
        return value if penalty is None else value + penalty()

    result = fit(
        _OfRows(model, graphs.to(device)), rows, optimizer, loss=loss, epochs=epochs, batch_size=batch_size, clip=clip,
        generator=generator, callbacks=callbacks, every=max(len(graphs) // batch_size, 1),
    )  # fmt: skip
    return result.losses


def train_adapter(
    model: AdaptedPredictor, graphs: GraphBatch, z: ArrayLike, *, adapter: int | None = None, **options: Any
) -> list[float]:
    """Trains one adapter on its task; the base and the other adapters stay as they are, bit for bit.

    Args:
        model: a base with adapters.
        graphs, z: of the task.
        adapter: which one; the last if None.
        options: of `fit_graphs`.

    Raises:
        ValueError: as `fit_graphs`, or if there is no such adapter.
    """
    index = len(model.adapters) - 1 if adapter is None else adapter
    before = model.active
    model.active = index
    model._check()
    model.requires_grad_(False)
    chosen = list(model.adapters[index].requires_grad_().parameters())
    try:
        return fit_graphs(model, graphs, z, parameters=chosen, **options)
    finally:
        model.active = before
        model.requires_grad_(False)


def finetune(
    model: AdaptedPredictor,
    graphs: GraphBatch,
    z: ArrayLike,
    *,
    mode: int | Literal["rescale"] = 1,
    rescale: float | int = 0.0,
    penalty: Literal["l1", "l2"] = "l1",
    epochs: int = 100,
    batch_size: int = 1,
    lr: float = 1e-4,
    **options: Any,
) -> list[float]:
    """Fits the mean of all adapters to the labels of a few networks of the target.

    Args:
        model: a base with trained adapters, changed in place.
        graphs, z: some twenty networks of the target task and their scaled labels.
        mode: what is trained: as in `finetune_parameters`, or "rescale", alpha and b of each head's last layer alone.
        rescale: weight of the penalty on b. penalty: "l1" or "l2".
        epochs, batch_size, lr: the authors take 100, 1 and 1e-4.
        options: of `fit_graphs`.

    Raises:
        ValueError: as `fit_graphs` and `finetune_parameters`, or if `rescale` is negative.
    """
    if rescale < 0:
        raise ValueError(f"rescale must not be negative, got {rescale}")
    chosen = model.rescale_parameters() if mode == "rescale" else model.finetune_parameters(int(mode))
    before, model.active = model.active, None
    weighed = (lambda: rescale * model.rescale_penalty(penalty)) if mode == "rescale" and rescale else None
    try:
        return fit_graphs(
            model, graphs, z, parameters=chosen, epochs=epochs, batch_size=batch_size, lr=lr, penalty=weighed, **options
        )
    finally:
        model.active = before
        model.requires_grad_(False)


@torch.no_grad()
def predict_graphs(model: nn.Module, graphs: GraphBatch, *, batch_size: int = 256, each: bool = False) -> np.ndarray:
    """Predictions on the common scale, float64.

    Args:
        model: maps a `GraphBatch` to (graphs,) numbers.
        graphs: to predict.
        batch_size: graphs at once.
        each: (adapters, graphs) predictions of an `AdaptedPredictor` instead of (graphs,).
    """
    device = next(model.parameters()).device
    call: Any = model.predictions if each else model
    parts = [call(graphs[rows].to(device)) for rows in torch.arange(len(graphs)).split(batch_size)]
    return torch.cat(parts, dim=-1).double().cpu().numpy()


def rank_correlation(y: ArrayLike, predicted: ArrayLike) -> float:
    """Spearman's correlation; 0 if either side is constant, where it is not defined.

    Raises:
        ValueError: if labels are not finite, fewer than 2, or not as many as predictions.
    """
    labels, given = check_labels(y, 2), check_labels(predicted)
    if len(labels) != len(given):
        raise ValueError(f"there are {len(labels)} labels and {len(given)} predictions")
    if np.ptp(labels) == 0 or np.ptp(given) == 0:
        return 0.0
    return float(spearmanr(labels, given).statistic)
