"""Training a network of cells on images: by the recipe of the paper's children, or quickly by AdamW."""

import os
from collections.abc import Callable
from typing import Any

import torch

from etude.loop import cosine_schedule, fit
from etude.nas.nasnet.network import NASNet, auxiliary_loss

__all__ = ["train_network"]


def train_network(
    model: NASNet,
    train: Any,
    *,
    epochs: int,
    batch_size: int = 32,
    optimizer: str = "sgd",
    lr: float | int = 0.025,
    weight_decay: float | int = 5e-4,
    clip: float | int | None = 5.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    transform: Callable[[tuple[Any, Any]], tuple[Any, Any]] | None = None,
    callbacks: tuple[Callable[..., Any], ...] = (),
    checkpoint: str | os.PathLike | None = None,
    constant_drop_path: bool = False,
) -> list[float]:
    """Trains with a cosine schedule, ScheduledDropPath in step with it, and the second head's loss where there is one.

    The defaults are those of the paper's CIFAR networks, 600 epochs of which are a full training.

    Args:
        model: trained in place. train: as for `etude.loop.fit`.
        epochs: passes over the data.
        batch_size: of an update; smaller data are one batch.
        optimizer: "sgd" with Nesterov momentum 0.9, or "adamw".
        lr: at the start. weight_decay: of all weights. clip: norm of the gradient at most.
        generator: order of the examples. device: where to train.
        transform, callbacks, checkpoint: as for `fit`.
        constant_drop_path: paths are dropped as at the end of the schedule from the start on, for comparison.

    Returns:
        Loss of every update.

    Raises:
        ValueError: for an unknown optimizer, or `epochs` that are not positive; as `fit`.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be positive, got {epochs}")
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=weight_decay
        )
    elif optimizer == "adamw":
        chosen = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    else:
        raise ValueError(f"optimizer must be 'sgd' or 'adamw', got {optimizer!r}")
    batch_size = min(batch_size, len(train))
    steps = epochs * (len(train) // batch_size)
    model.set_progress(1.0 if constant_drop_path else 0.0)
    follow = () if constant_drop_path else (model.follow,)
    return fit(
        model, train, chosen, loss=auxiliary_loss, steps=steps, batch_size=batch_size, clip=clip, generator=generator,
        schedule=cosine_schedule(chosen, steps), device=device, transform=transform, checkpoint=checkpoint,
        callbacks=(*follow, *callbacks),
    ).losses  # fmt: skip
