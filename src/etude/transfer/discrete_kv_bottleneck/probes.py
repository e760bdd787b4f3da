"""What the bottleneck is compared with on the same frozen features: probes, replay, and the nearest class mean."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import fit

__all__ = ["NearestMean", "Reservoir", "learn_probe", "probe"]


def probe(dim: int, num_classes: int, hidden: int | None = None) -> nn.Module:
    """A linear map from features to logits, or one with a hidden layer of ReLUs."""
    if hidden is None:
        return nn.Linear(dim, num_classes)
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))


class Reservoir:
    """An even sample, of a fixed size, of the rows of all phases so far.

    Args:
        size: rows that are kept.
        generator: of every draw; the default generator if None.
    """

    def __init__(self, size: int, generator: torch.Generator | None = None):
        if size < 1:
            raise ValueError(f"size must be positive, got {size}")
        self.size, self.generator = size, generator
        self.rows = torch.empty(0, dtype=torch.int64)
        self.seen = 0

    def take(self, rows: Int[Tensor, "n"]) -> None:
        """Takes a phase in, in proportion to its share of what has been seen."""
        self.seen += len(rows)
        fresh = self._some(rows, round(self.size * len(rows) / self.seen))
        self.rows = torch.cat([self._some(self.rows, self.size - len(fresh)), fresh])

    def draw(self, n: int) -> Int[Tensor, "n"]:
        """Rows of earlier phases, with replacement."""
        if not len(self.rows):
            raise ValueError("nothing has been taken in yet")
        return self.rows[torch.randint(len(self.rows), (n,), generator=self.generator)]

    def _some(self, rows: Tensor, n: int) -> Tensor:
        return rows[torch.randperm(len(rows), generator=self.generator)[:n]]


def learn_probe(
    model: nn.Module,
    z: Tensor,
    labels: Int[Tensor, "n"],
    phases: Sequence[Tensor],
    *,
    epochs: int,
    lr: float | int,
    batch_size: int = 256,
    label_smoothing: float | int = 0.1,
    clip: float | int | None = 1.0,
    generator: torch.Generator | None = None,
    replay: Reservoir | None = None,
    after: Callable[[int], Any] | None = None,
) -> list[Any]:
    """`learn_in_phases` for a probe: plain SGD on phase after phase, in batches that are filled up.

    Args:
        model: from features to logits.
        replay: from the second phase on, every batch gets as many rows of earlier phases; none if None.
        z, labels, phases, epochs, lr, batch_size, label_smoothing, clip, generator, after: as for `learn_in_phases`.
    """
    order = torch.Generator().manual_seed(0) if generator is None else generator
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = partial(F.cross_entropy, label_smoothing=float(label_smoothing))
    found = []
    for number, rows in enumerate(phases):
        size = min(batch_size, len(rows))
        if replay is None or number == 0:
            fit(
                model, Examples(z[rows], labels[rows]), optimizer, loss=loss, epochs=epochs, batch_size=size,
                clip=clip, generator=order,
            )  # fmt: skip
        else:
            model.train()
            for _ in range(epochs):
                for batch in rows[torch.randperm(len(rows), generator=order)].split(size):
                    both = torch.cat([batch, replay.draw(len(batch))])
                    optimizer.zero_grad()
                    loss(model(z[both]), labels[both]).backward()
                    if clip is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), clip)
                    optimizer.step()
        if replay is not None:
            replay.take(rows)
        model.eval()
        found.append(None if after is None else after(number))
    return found


class NearestMean(nn.Module):
    """The class whose mean feature is nearest: nothing to forget, as no class's mean depends on the others.

    Args:
        dim: of the features.
        num_classes: in all; those that have not come are never chosen.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.register_buffer("sums", torch.zeros(num_classes, dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, z: Float[Tensor, "n dim"], labels: Int[Tensor, "n"]) -> "NearestMean":
        """Takes more rows in."""
        self.sums.index_add_(0, labels, z.double())
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        return self

    def forward(self, z: Float[Tensor, "n dim"]) -> Float[Tensor, "n classes"]:
        """Minus the distance to each mean."""
        if not bool(self.counts.any()):
            raise ValueError("no class has come yet")
        means = (self.sums / self.counts.clamp(min=1)[:, None]).to(z)
        return (-torch.cdist(z, means)).masked_fill(self.counts == 0, -math.inf)
