"""Cheap labels: one head, trained once on features of a rolling population of bodies, serves every body.

Mills et al., arXiv:2211.17228, and the authors' code. Instead of training a task's head anew for each of hundreds of
backbones, one shared head sees, at each image x, features drawn from what the bodies f_1, ..., f_P of a population say,

    z = mean_p f_p(x) + e * std_p f_p(x),   e ~ N(0, 1) element by element,                                      (1)

after which the oldest body is replaced by a fresh one of the same depth. A body with a short fine-tuning of the head's
copy beside it is then measured: its pseudo-label.
"""

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.loop import fit
from etude.loop.evaluation import mode

__all__ = ["BodyPopulation", "SharedHeadTrainer"]

SampleBody = Callable[[int, torch.Generator | None], nn.Module]


class BodyPopulation:
    """Bodies of several depths, of which the oldest makes room for a new one at every turn.

    Args:
        sample_body: `sample_body(bin, generator)` gives a fresh body whose depth lies in that bin. A body maps images
            (batch, channels, height, width) to a feature map or a list of them.
        bins: how many depth bins; the authors have 5.
        per_bin: bodies of each bin that are held.
        channels: channels that the feature maps of each level are filled up to with zeros, where bodies differ in
            width (256, 512, 1024, 2048 for the authors' ResNets); as they are if None.
        generator: source of the bodies.

    Raises:
        ValueError: if a number is not positive, or fewer than two bodies would have no standard deviation.
    """

    def __init__(
        self,
        sample_body: SampleBody,
        bins: int = 5,
        per_bin: int = 5,
        *,
        channels: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ):
        for what, value in (("bins", bins), ("per_bin", per_bin)):
            if value < 1:
                raise ValueError(f"{what} must be positive, got {value}")
        if bins * per_bin < 2:
            raise ValueError("a population needs at least 2 bodies, got 1")
        self.sample_body, self.bins, self.generator = sample_body, bins, generator
        self.channels = None if channels is None else tuple(channels)
        self._next = 0
        # Bin after bin, so that the oldest body always belongs to the bin whose turn it is.
        self.bodies: deque[tuple[int, nn.Module]] = deque(
            (index, self._fresh(index)) for _ in range(per_bin) for index in range(bins)
        )

    def _fresh(self, index: int) -> nn.Module:
        body = self.sample_body(index, self.generator)
        if not isinstance(body, nn.Module):
            raise TypeError(f"sample_body must give a torch.nn.Module, got {type(body).__name__}")
        # A body may share weights with a super-net: flags of theirs stay as they are, and `features` takes no gradient.
        return body

    def __len__(self) -> int:
        return len(self.bodies)

    def roll(self) -> None:
        """Replaces the oldest body by a fresh one of its bin."""
        self.bodies.popleft()
        self.bodies.append((self._next, self._fresh(self._next)))
        self._next = (self._next + 1) % self.bins

    def widened(self, maps: Any) -> list[Tensor]:
        """A body's feature maps as a list, each filled up with zero channels.

        Raises:
            ValueError: if there are more or fewer levels than `channels`, or a map is wider.
        """
        levels = [maps] if isinstance(maps, Tensor) else list(maps)
        if self.channels is None:
            return levels
        if len(levels) != len(self.channels):
            raise ValueError(f"expected {len(self.channels)} feature maps of a body, got {len(levels)}")
        for level, most in zip(levels, self.channels):
            if level.shape[1] > most:
                raise ValueError(f"a feature map has {level.shape[1]} channels, more than the {most} of its level")
        # Padding runs over the last dimensions first.
        return [
            F.pad(level, (0, 0) * (level.ndim - 2) + (0, most - level.shape[1]))
            for level, most in zip(levels, self.channels)
        ]

    @torch.no_grad()
    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """(bodies, batch, channels, height, width) of each level, without gradient.

        Raises:
            ValueError: if the bodies' maps differ in shape.
        """
        found: list[list[Tensor]] = []
        for _, body in self.bodies:
            with mode(body, training=False):
                found.append(self.widened(body(x)))
        stacked = []
        for level in zip(*found, strict=True):
            shapes = {tuple(one.shape) for one in level}
            if len(shapes) > 1:
                raise ValueError(f"the bodies' feature maps differ in shape: {sorted(shapes)}; give channels=")
            stacked.append(torch.stack(level))
        return stacked

    def sample(
        self, x: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Feature maps drawn by Eq. (1), one a level."""
        drawn = []
        for level in self.features(x):
            std, mean = torch.std_mean(level, dim=0)
            noise = torch.randn(std.shape, generator=generator, dtype=std.dtype).to(std.device)
            drawn.append(mean + noise * std)
        return drawn


class SharedHeadTrainer:
    """Trains a task's head for a whole family of bodies, and labels bodies with it.

        trainer = SharedHeadTrainer(sample_body, head, loss=F.cross_entropy)
        trainer.fit(train_images, steps=10_000)
        trainer.pseudo_label(body, train_images, lambda network: accuracy(network, val_images))

    Args:
        sample_body, bins, per_bin, channels: of the `BodyPopulation`.
        head: maps a list of feature maps (or the one map, if a body makes one) to predictions. Trained in place.
        loss: of predictions and targets.
        lr: of Adam.
        generator: source of bodies, order and noise.
    """

    def __init__(
        self,
        sample_body: SampleBody,
        head: nn.Module,
        bins: int = 5,
        per_bin: int = 5,
        *,
        channels: Sequence[int] | None = None,
        loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
        lr: float = 1e-3,
        generator: torch.Generator | None = None,
    ):
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.population = BodyPopulation(sample_body, bins, per_bin, channels=channels, generator=self.generator)
        self.head, self.loss, self.lr = head, loss, lr
        self.optimizer = torch.optim.Adam(head.parameters(), lr=lr)

    def step(self, x: Float[Tensor, "batch channels height width"], target: Any) -> float:
        """One update of the head, after which the population rolls; the loss before it."""
        self.head.train()
        z = self.population.sample(x, self.generator)
        value = self.loss(self.head(_unpacked(z)), target)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        self.population.roll()
        return float(value.detach())

    def fit(self, examples: Any, steps: int, batch_size: int = 1) -> list[float]:
        """`steps` updates on random examples; the loss of each.

        Args:
            examples: `etude.data.kinds.Examples` of images and targets.
            steps: updates, each with a population of its own.
            batch_size: images an update; the authors take 1, so that each image meets another population.

        Raises:
            ValueError: if there are no examples.
        """
        if len(examples) == 0:
            raise ValueError("there are no examples to train the head on")
        losses = []
        for _ in range(steps):
            rows = torch.randint(len(examples), (batch_size,), generator=self.generator)
            losses.append(self.step(*examples[rows]))
        return losses

    def network(self, body: nn.Module) -> "BodyWithHead":
        """A copy of a body with a copy of the head on top; neither original is touched by training it."""
        return BodyWithHead(copy.deepcopy(body), copy.deepcopy(self.head), self.population)

    def pseudo_label(
        self, body: nn.Module, examples: Any, measure: Callable[[nn.Module], float], *, steps: int = 750, **options: Any
    ) -> float:
        """What a body reaches after a short fine-tuning of it and a copy of the shared head.

        Args:
            body: to label; it stays as it is, and so does the head.
            examples: to fine-tune on. measure: the task's metric of a network, on held-out examples.
            steps: of the fine-tuning; the authors take 750 to 1000.
            options: of `etude.loop.fit`, such as `batch_size`.

        Raises:
            ValueError: if the metric is not finite.
        """
        network = self.network(body).requires_grad_(True)
        if steps:
            options.setdefault("generator", self.generator)
            fit(network, examples, torch.optim.Adam(network.parameters(), lr=self.lr), loss=self.loss, steps=steps,
                **options)  # fmt: skip
        label = float(measure(network))
        if label != label or label in (float("inf"), float("-inf")):
            raise ValueError(f"the metric of {type(body).__name__} is {label}: a label must be finite")
        return label


class BodyWithHead(nn.Module):
    """A body, its maps filled up as the population's are, and a head."""

    def __init__(self, body: nn.Module, head: nn.Module, population: BodyPopulation):
        super().__init__()
        self.body, self.head = body, head
        self._widened = population.widened

    def forward(self, x: Tensor) -> Any:
        return self.head(_unpacked(self._widened(self.body(x))))


def _unpacked(levels: list[Tensor]) -> Tensor | list[Tensor]:
    return levels[0] if len(levels) == 1 else levels
