"""Evaluators, genotype and seed -> reward: a child trained as in the paper, a cheap one untrained, and a cache."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import Examples, ImageData
from etude.loop import accuracy, seeded
from etude.nas.nasnet.cell import NASNetCell
from etude.nas.nasnet.genotype import Genotype
from etude.nas.nasnet.network import NASNet
from etude.nas.nasnet.operations import conv_bn, initialize
from etude.nas.nasnet.training import train_network

__all__ = ["CachedEvaluator", "Evaluator", "RandomFeatureEvaluator", "TrainEvaluator"]

Evaluator = Callable[[Genotype, int], float | int | None]


class TrainEvaluator:
    """Trains the child and gives its accuracy on the validation split: the paper's reward.

        search(PPOSearch(), TrainEvaluator(images.hub("uoft-cs/cifar10")), budget=20_000)

    Genotypes that are equal up to swapped arms score equally with equal seeds.

    Args:
        data: its test split is never looked at.
        cells_per_stage, filters: N and F of the child; the paper's 2 and 32.
        epochs: the paper's 20.
        device: where to train.
        network: further options of `NASNet`.
        training: further options of `train_network`, such as `optimizer="adamw", lr=2e-3`.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        cells_per_stage: int = 2,
        filters: int = 32,
        epochs: int = 20,
        device: str = "cpu",
        network: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
    ):
        self.data, self.epochs, self.device = data, epochs, device
        sizes = {"cells_per_stage": cells_per_stage, "filters": filters, "in_chans": data.channels}
        self.network = {**sizes, "num_classes": data.num_classes, **(network or {})}
        self.training = dict(training or {})

    def __call__(self, genotype: Genotype, seed: int) -> float:
        return accuracy(self.train(genotype, seed), self.data.val)

    def train(self, genotype: Genotype, seed: int) -> NASNet:
        """The trained child."""
        genotype = genotype.canonical()
        with seeded(_mixed(seed, genotype)):
            model = NASNet(genotype, **self.network).to(self.device)
            order = torch.Generator().manual_seed(_mixed(seed, genotype))
            train_network(
                model, self.data.train, epochs=self.epochs, generator=order, device=self.device, **self.training
            )
        return model

    def __repr__(self) -> str:
        named = {**self.network, "epochs": self.epochs, **self.training}
        return f"TrainEvaluator({_sizes(self.data)}, {', '.join(f'{key}={value}' for key, value in named.items())})"


class _Features(nn.Module):
    """A 3 x 3 convolution, one normal cell, one reduction cell, global average."""

    def __init__(self, genotype: Genotype, in_chans: int, widths: tuple[int, int]):
        super().__init__()
        self.stem = conv_bn(in_chans, widths[0], 3, activate=False)
        self.normal = NASNetCell(genotype, reduction=False, dim=widths[0], filters=widths[0])
        self.reduction = NASNetCell(
            genotype, reduction=True, dim=self.normal.out_dim, filters=widths[1], prev_dim=widths[0]
        )
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.reduction(self.normal(h), h).relu().mean(dim=(2, 3))


class RandomFeatureEvaluator:
    """A cheap reward that depends on the architecture: how well a child with random weights separates the classes.

    The child is a 3 x 3 convolution, one normal and one reduction cell, untrained, batch norms on the statistics of
    the batch; a ridge regression on one-hot classes reads its pooled output (in closed form). Tens of milliseconds.

    Genotypes that are equal up to swapped arms score equally with equal seeds. A cell with more states that no block
    reads gives the regression more features, so wider outputs are part of what the reward prefers; `project` takes
    that away.

    Args:
        data: splits in memory; the regression is fitted on `train` and scored on `val`.
        widths: filters of the two cells.
        ridge: penalty of the regression, on standardised features.
        project: random combinations of the features that the regression sees instead of them; all of them if None.
        device: where the child runs.

    Raises:
        TypeError: if a split is not in memory.
        ValueError: for numbers that are not positive.
    """

    def __init__(
        self,
        data: ImageData,
        *,
        widths: tuple[int, int] = (6, 8),
        ridge: float | int = 1.0,
        project: int | None = None,
        device: str = "cpu",
    ):
        for split in (data.train, data.val):
            if not isinstance(split, Examples):
                raise TypeError(f"RandomFeatureEvaluator needs Examples in memory, got {type(split).__name__}")
        if min(widths) < 1 or not ridge > 0 or (project is not None and project < 1):
            raise ValueError(f"sizes must be positive, got widths={widths}, ridge={ridge}, project={project}")
        self.data, self.widths, self.ridge, self.project, self.device = data, widths, ridge, project, device

    def __call__(self, genotype: Genotype, seed: int) -> float:
        return self.score(genotype, seed, self.data.val)

    def num_features(self, genotype: Genotype) -> int:
        """Features that the child gives, before `project`."""
        return len(genotype.cell(True)[1]) * self.widths[1]

    @torch.no_grad()
    def score(self, genotype: Genotype, seed: int, examples: Any) -> float:
        """Accuracy on `examples` of the regression fitted on the train split."""
        train = self.data.train
        assert isinstance(train, Examples)
        genotype = genotype.canonical()
        with seeded(_mixed(seed, genotype)):
            child = _Features(genotype, self.data.channels, self.widths).to(self.device).train()
            fitted, asked = (child(part.inputs.to(self.device)).double() for part in (train, examples))
            if self.project is not None:
                mix = torch.randn(fitted.shape[1], self.project, dtype=torch.float64).to(fitted)
                fitted, asked = fitted @ mix, asked @ mix
        std, mean = torch.std_mean(fitted, dim=0, correction=0)
        fitted, asked = ((part - mean) / std.clamp_min(1e-12) for part in (fitted, asked))
        targets = F.one_hot(train.targets.to(fitted.device), self.data.num_classes).to(fitted)
        eye = torch.eye(fitted.shape[1], dtype=fitted.dtype, device=fitted.device)
        weights = torch.linalg.solve(fitted.T @ fitted + self.ridge * eye, fitted.T @ (targets - targets.mean(dim=0)))
        return accuracy(asked @ weights + targets.mean(dim=0), examples.targets.to(fitted.device))

    def __repr__(self) -> str:
        return f"RandomFeatureEvaluator({_sizes(self.data)}, {self.widths}, {self.ridge}, {self.project})"


class CachedEvaluator:
    """Remembers rewards by canonical genotype and seed, in memory and, given a path, in a file of JSON lines.

    Lines of another evaluator and torn lines are passed over, and several processes may write to one file.

    Args:
        evaluator: any function of a genotype and a seed. Its `repr` must say what it is.
        path: of the file; read now, appended to after each evaluation.

    Attributes:
        hits, misses: what was remembered, and what was not.
    """

    def __init__(self, evaluator: Evaluator, path: str | os.PathLike | None = None):
        self.evaluator, self.path = evaluator, None if path is None else Path(path)
        self.name = getattr(evaluator, "__qualname__", None) or repr(evaluator)
        self.hits = self.misses = 0
        self.rewards: dict[tuple[str, int], float | None] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    if entry["evaluator"] == self.name:
                        self.rewards[entry["genotype"], entry["seed"]] = entry["reward"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue

    def __call__(self, genotype: Genotype, seed: int) -> float | None:
        key = (genotype.canonical().to_json(), seed)
        if key in self.rewards:
            self.hits += 1
            return self.rewards[key]
        self.misses += 1
        reward = self.evaluator(genotype, seed)
        self.rewards[key] = None if reward is None else float(reward)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"evaluator": self.name, "genotype": key[0], "seed": seed, "reward": self.rewards[key]}
            with self.path.open("a", encoding="utf-8") as file:
                # A newline in front: the line before may have been torn.
                file.write("\n" + json.dumps(entry) + "\n")
        return self.rewards[key]

    def __repr__(self) -> str:
        return f"CachedEvaluator({self.name})"


def _mixed(seed: int, genotype: Genotype) -> int:
    """Another seed for every genotype, so that luck with the weights is each one's own."""
    return (seed * 0x9E3779B1 + genotype.digest()) % 2**62


def _sizes(data: ImageData) -> str:
    return f"{data.name}, {len(data.train)} + {len(data.val)}"  # type: ignore[arg-type]
