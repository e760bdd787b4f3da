"""Training a detector on a data set of pairs (image, target)."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from etude.loop import fit
from etude.vision.cascade_rcnn.detector import CascadeRCNN

__all__ = ["collate", "random_flip", "step_schedule", "train_detector"]

Batched = tuple[tuple[list[Tensor], list[dict[str, Tensor]]], int]


def collate(items: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Batched:
    """Pairs (image, target) as `loop.fit` takes a batch."""
    images, targets = zip(*items)
    return (list(images), list(targets)), len(items)


def random_flip(generator: torch.Generator | None = None) -> Callable[[Batched], Batched]:
    """A transform of `loop.fit`: mirrors each image and its boxes with probability 1/2."""

    def flip(batch: Batched) -> Batched:
        (images, targets), count = batch
        chosen = (torch.rand(len(images), generator=generator) < 0.5).tolist()
        flipped = [image.flip(-1) if yes else image for image, yes in zip(images, chosen)]
        mirrored = []
        for image, target, yes in zip(images, targets, chosen):
            if yes:
                x1, y1, x2, y2 = target["boxes"].unbind(1)
                width = image.shape[-1]
                target = {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], dim=1)}
            mirrored.append(target)
        return (flipped, mirrored), count

    return flip


def step_schedule(optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
    """The paper's schedule: linear warm-up from a third over 500 updates, then a tenth at 2/3 and at 8/9 of `total`."""
    warm = min(500, max(total // 10, 1))

    def factor(step: int) -> float:
        rise = min(1.0, 1 / 3 + 2 / 3 * step / warm)
        return rise * 0.1 ** ((step >= total * 2 / 3) + (step >= total * 8 / 9))

    return LambdaLR(optimizer, factor)


class _Losses(nn.Module):
    """A detector as `loop.fit` calls it: (images, targets) -> the sum of its losses."""

    def __init__(self, model: CascadeRCNN, rpn_only: bool):
        super().__init__()
        self.model, self.rpn_only = model, rpn_only

    def forward(self, inputs: Any) -> Tensor:
        images, targets = inputs
        losses = self.model(images, targets, rpn_only=self.rpn_only)
        return torch.stack(list(losses.values())).sum()


def _itself(loss: Tensor, _: Any) -> Tensor:
    return loss


def train_detector(
    model: CascadeRCNN,
    data: Any,
    *,
    steps: int,
    rpn_steps: int = 0,
    batch_size: int = 8,
    lr: float | int = 2e-3,
    optimizer: str = "adamw",
    weight_decay: float | int = 1e-4,
    clip: float | int | None = 10.0,
    flip: bool = True,
    generator: torch.Generator | None = None,
    augment: torch.Generator | None = None,
    num_workers: int = 0,
    checkpoint: str | os.PathLike | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    **options: Any,
) -> list[float]:
    """Trains all parts of a detector together, after some steps of the proposals alone.

        train_detector(model, data.train, steps=1_500, batch_size=4)

    Args:
        model: trained in place.
        data: map-style data set of pairs (image, target); see `CascadeRCNN`.
        steps: updates in all.
        rpn_steps: the first of them, for backbone, pyramid and RPN alone: without them a network from scratch trains
            its head on random boxes.
        batch_size: images of an update.
        lr: peak of the rate.
        optimizer: "adamw", with one cycle of the rate; or "sgd", momentum 0.9, with the paper's steps.
        weight_decay: of the optimizer.
        clip: largest norm of the gradient.
        flip: mirror images at random.
        generator: CPU generator of the order of the images.
        augment: CPU generator of the flips.
        num_workers: processes that read the images.
        checkpoint: file to resume from and write.
        callbacks: as of `loop.fit`.
        options: further ones of `loop.fit`, such as `mixed_precision="bf16"`.

    Returns:
        The loss of each update.

    Raises:
        ValueError: for an unknown optimizer, or more `rpn_steps` than `steps`.
    """
    if not 0 <= rpn_steps <= steps or steps < 1:
        raise ValueError(f"need 0 <= rpn_steps <= steps and a step, got {rpn_steps} and {steps}")
    if optimizer not in ("adamw", "sgd"):
        raise ValueError(f"optimizer must be 'adamw' or 'sgd', got {optimizer!r}")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    schedule: LRScheduler
    if optimizer == "adamw":
        method: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
        schedule = OneCycleLR(method, float(lr), total_steps=steps + 1, pct_start=0.2, cycle_momentum=False)
    else:
        method = torch.optim.SGD(trained, lr=lr, momentum=0.9, weight_decay=weight_decay)
        schedule = step_schedule(method, steps)
    order = torch.Generator().manual_seed(0) if generator is None else generator
    loader = DataLoader(
        data, min(batch_size, len(data)), shuffle=True, drop_last=True, collate_fn=collate, generator=order,
        num_workers=num_workers,
    )  # fmt: skip
    losses: list[float] = []
    callbacks = tuple(callbacks)
    for phase, count in (("rpn", rpn_steps), ("all", steps - rpn_steps)):
        if count:
            losses += fit(
                _Losses(model, phase == "rpn"), loader, method, loss=_itself, steps=count, schedule=schedule,
                clip=clip, transform=random_flip(augment) if flip else None, callbacks=callbacks,
                checkpoint=None if checkpoint is None else Path(f"{checkpoint}.{phase}"),
                find_unused_parameters=phase == "rpn", **options,
            ).losses  # fmt: skip
    return losses
