"""How LNet and ANet learn: image-level tags, identities, and nothing else. No function here takes a box."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import cosine_schedule, fit
from etude.vision.face_attributes.anet import ANet, contrastive_loss
from etude.vision.face_attributes.localization import LNet
from etude.vision.face_attributes.pictures import flip_at_random

__all__ = ["binary_tags", "pretrain_classes", "pretrain_identities", "tag_loss", "train_tags"]


def binary_tags(tags: Tensor | np.ndarray | list) -> Int[Tensor, "n attributes"]:
    """Tags as 0 and 1; -1 and 1, CelebA's own, are converted, and one attribute may come as (n,).

    Raises:
        ValueError: for other values, more than two axes, or no tags.
    """
    values = torch.as_tensor(np.asarray(tags))
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"tags must have shape (n, attributes), got {tuple(values.shape)}")
    if values.dtype == torch.bool:
        return values.long()
    found = set(values.unique().tolist())
    if not (found <= {0, 1} or found <= {-1, 1}):
        raise ValueError(f"tags must be 0 and 1, or -1 and 1, got {sorted(found)[:5]}")
    return (values > 0).long()


def tag_loss(logits: Float[Tensor, "batch attributes"], tags: Float[Tensor, "batch attributes"]) -> Float[Tensor, ""]:
    """Binary cross-entropy summed over the attributes, mean over the batch."""
    return F.binary_cross_entropy_with_logits(logits, tags, reduction="sum") / len(logits)


def _optimizer(model: LNet | ANet, lr: float, weight_decay: float, top_factor: float) -> torch.optim.Optimizer:
    top = list((model.top if isinstance(model, LNet) else model.head).parameters())
    known = {id(parameter) for parameter in top}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": rest, "lr": lr}, {"params": top, "lr": lr * top_factor}]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)


def _run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    train: Any,
    loss: Callable[[Any, Any], Tensor],
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    flips: torch.Generator | None,
    callbacks: Iterable[Callable[..., Any]],
    **options: Any,
) -> list[float]:
    batch_size = min(batch_size, len(train))
    total = epochs * (len(train) // batch_size)
    transform = None if flips is None else (lambda batch: (flip_at_random(batch[0], flips), batch[1]))
    return fit(
        model, train, optimizer, loss=loss, epochs=epochs, batch_size=batch_size, generator=generator,
        schedule=cosine_schedule(optimizer, total, warmup=total // 5), transform=transform, callbacks=callbacks,
        **options,
    ).losses  # fmt: skip


def train_tags(
    model: LNet | ANet,
    train: Any,
    *,
    epochs: int,
    lr: float | int = 4e-3,
    batch_size: int = 50,
    weight_decay: float | int = 1e-4,
    top_factor: float | int = 1.0,
    generator: torch.Generator | None = None,
    flips: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    **options: Any,
) -> list[float]:
    """Fits a localiser or a feature network to tags, and to tags alone.

    AdamW with a warm-up over a fifth of the updates and a cosine; the paper's own fine-tuning, SGD at 1e-3 with ten
    times the rate on top, is `top_factor=10`'s.

    Args:
        model: with one output for each attribute.
        train: (images, tags) with tags float32 0 or 1: two tensors, `Examples`, or a map-style dataset.
        epochs: passes over the data.
        lr, weight_decay: of AdamW. top_factor: factor of the rate of the uppermost layer.
        batch_size: at most all examples.
        generator: of the order. flips: of mirror images; none are made if None.
        callbacks, options: for `etude.loop.fit` (device, mixed_precision, checkpoint, num_workers, ...).

    Returns:
        The losses of the updates.

    Raises:
        ValueError: if there are no examples, the tags are not 0 and 1, or their number is not the model's.
    """
    examples = train
    if isinstance(train, tuple):
        examples = Examples(train[0], binary_tags(train[1]).float())
    if not len(examples):
        raise ValueError("there are no tagged images to learn from")
    outputs = model.top.weight.shape[0] if isinstance(model, LNet) else model.head.out_features
    tags = examples[0][1]
    if tags.shape != (outputs,):
        raise ValueError(f"the model has {outputs} outputs, an example has tags of shape {tuple(tags.shape)}")
    optimizer = _optimizer(model, float(lr), float(weight_decay), float(top_factor))
    order = torch.Generator().manual_seed(0) if generator is None else generator
    return _run(
        model, optimizer, examples, tag_loss, epochs=epochs, batch_size=batch_size, generator=order, flips=flips,
        callbacks=callbacks, **options,
    )  # fmt: skip


def pretrain_classes(
    lnet: LNet,
    train: Any,
    num_attributes: int,
    *,
    epochs: int,
    lr: float | int = 0.01,
    batch_size: int = 128,
    generator: torch.Generator | None = None,
    **options: Any,
) -> LNet:
    """Stage A of LNet: learns the classes of general objects, ImageNet's in the paper, and gets a head for tags.

    SGD with momentum 0.9 and weight decay 5e-4 under a cosine.

    Args:
        lnet: with one output for each class. train: (image, class) examples, as `etude.loop.fit` takes them.
        num_attributes: of the new head.
        epochs, lr, batch_size, generator, options: for `etude.loop.fit`.

    Returns:
        The network.

    Raises:
        ValueError: if there are no examples.
    """
    if not len(train):
        raise ValueError("there are no images to learn classes from")
    optimizer = torch.optim.SGD(lnet.parameters(), lr=float(lr), momentum=0.9, weight_decay=5e-4)
    batch_size = min(batch_size, len(train))
    total = epochs * (len(train) // batch_size)
    fit(
        lnet, train, optimizer, steps=total, batch_size=batch_size, schedule=cosine_schedule(optimizer, total),
        generator=generator, **options,
    )  # fmt: skip
    return lnet.replace_head(num_attributes)


class _WithFeatures(nn.Module):
    """Logits and features side by side, for a loss on both."""

    def __init__(self, anet: ANet):
        super().__init__()
        self.anet = anet

    def forward(self, x: Tensor) -> Tensor:
        features = self.anet.features(x)
        return torch.cat([self.anet.head(features), features], dim=1)


def pretrain_identities(
    anet: ANet,
    crops: Float[Tensor, "n channels size size"],
    ids: Int[Tensor, " n"],
    *,
    epochs: int = 8,
    similarity_epochs: int = 4,
    weight: float | int = 0.05,
    margin: float | int | None = None,
    lr: float | int = 3e-3,
    batch_size: int = 100,
    weight_decay: float | int = 1e-4,
    generator: torch.Generator | None = None,
    flips: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    **options: Any,
) -> list[float]:
    """Pre-trains ANet to recognise people: softmax over identities first, then softmax and similarity together.

    The second phase adds `weight` times `contrastive_loss`; it is what makes features of one person alike, the first
    is there for its speed.

    Args:
        anet: with at least as many outputs as identities.
        crops, ids: faces and who they are, 0 .. num_outputs - 1.
        epochs, similarity_epochs: passes of the two phases.
        weight: lambda of the similarity.
        margin: of the similarity; None takes the median distance of two people's features after the first phase.
        lr, weight_decay, batch_size, generator, flips, callbacks, options: as for `train_tags`; the second phase has
            a third of the rate.

    Returns:
        The losses of the updates of both phases.

    Raises:
        ValueError: if there are fewer than two people, or an identity is no output of the network.
    """
    people = ids.unique()
    if len(people) < 2:
        raise ValueError(f"identities must name at least two people, got {people.tolist()}")
    if int(people.min()) < 0 or int(people.max()) >= anet.head.out_features:
        raise ValueError(
            f"ids must lie in 0..{anet.head.out_features - 1}, the outputs of the network, "
            f"got {int(people.min())}..{int(people.max())}"
        )
    order = torch.Generator().manual_seed(0) if generator is None else generator
    examples, outputs = Examples(crops, ids), anet.head.out_features
    plan = {"batch_size": batch_size, "generator": order, "flips": flips, "callbacks": callbacks, **options}
    losses: list[float] = []
    if epochs:
        optimizer = _optimizer(anet, float(lr), float(weight_decay), 1.0)
        losses += _run(anet, optimizer, examples, F.cross_entropy, epochs=epochs, **plan)
    if similarity_epochs:
        far = _margin(anet, crops, ids) if margin is None else float(margin)

        def loss(output: Tensor, target: Tensor) -> Tensor:
            logits, features = output[:, :outputs], output[:, outputs:]
            return F.cross_entropy(logits, target) + weight * contrastive_loss(features, target, far)

        optimizer = _optimizer(anet, float(lr) / 3, float(weight_decay), 1.0)
        losses += _run(_WithFeatures(anet), optimizer, examples, loss, epochs=similarity_epochs, **plan)
    return losses


def _margin(anet: ANet, crops: Tensor, ids: Tensor, most: int = 500) -> float:
    """Median distance between features of two people, over evenly spaced crops."""
    rows = torch.linspace(0, len(crops) - 1, min(most, len(crops))).long()
    features = anet.extract(crops[rows])
    distances = torch.cdist(features, features)
    found = distances[(ids[rows][:, None] != ids[rows]).cpu()].median().item()
    return found if math.isfinite(found) and found > 0 else 1.0
