"""Where proposals come from: the controller, trained by PPO, or chance. Both are asked and told alike."""

import abc
import math
import random
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from etude.nas.nasnet.controller import NASNetController
from etude.nas.nasnet.genotype import Genotype, SearchSpace

__all__ = ["PPOSearch", "RandomSearch", "Sampler", "checked_reward"]


def checked_reward(reward: Any) -> float | None:
    """The reward as a float; None, for a child that failed, stays None.

    Raises:
        TypeError: if it is no number.
        ValueError: if it is NaN or infinite.
    """
    if reward is None:
        return None
    if not isinstance(reward, Real) and not (isinstance(reward, Tensor) and reward.numel() == 1):
        raise TypeError(f"a reward must be a number, or None for a child that failed, got {reward!r}")
    value = float(reward)
    if not math.isfinite(value):
        raise ValueError(f"a reward must be finite, got {value}; tell None for a child that failed")
    return value


class Sampler(abc.ABC):
    """Proposes genotypes and learns from their rewards.

        genotypes = sampler.ask(20)
        sampler.tell([(genotype, reward(genotype)) for genotype in genotypes])

    Any loop, pool or cluster may stand between the two; results may come late, in any order, and in parts. A child
    that failed is told as None, and counts with reward 0.

    Attributes:
        told: results so far. failed: those of them that were None.
    """

    def __init__(self, space: SearchSpace | None):
        self.space = SearchSpace() if space is None else space
        self.asked = self.told = self.failed = 0
        self._pending: dict[int, tuple[tuple[int, ...], float]] = {}

    @abc.abstractmethod
    def _propose(self, n: int) -> tuple[Sequence[Sequence[int]], Sequence[float]]:
        """`n` lists of choices and their log-probabilities."""

    @abc.abstractmethod
    def _learn(self, results: list[tuple[int, tuple[int, ...], float, float]]) -> None:
        """From (number, choices, log-probability when proposed, reward)."""

    def ask(self, n: int) -> list[Genotype]:
        """`n` proposals; the same may come twice."""
        if n < 1:
            raise ValueError(f"n must be positive, got {n}")
        proposed, log_probs = self._propose(n)
        for actions, log_prob in zip(proposed, log_probs):
            self._pending[self.asked] = (tuple(actions), float(log_prob))
            self.asked += 1
        return [self.space.decode(actions) for actions in proposed]

    @property
    def pending(self) -> list[Genotype]:
        """Proposals whose rewards have not been told, oldest first."""
        return [self.space.decode(actions) for actions, _ in self._pending.values()]

    def tell(self, results: Sequence[tuple[Genotype, float | int | None]]) -> None:
        """Takes rewards of proposals; nothing is learned if any of them is refused.

        Raises:
            ValueError: for a genotype that was not asked for, or a reward that is NaN or infinite.
            TypeError: for a reward that is no number.
        """
        left = dict(self._pending)
        taken = []
        failed = 0
        for genotype, reward in results:
            value = checked_reward(reward)
            actions = self.space.encode(genotype)
            number = next((n for n, (given, _) in left.items() if given == actions), None)
            if number is None:
                raise ValueError(f"this genotype was not asked for, or told already: {genotype.to_json()}")
            failed += value is None
            taken.append((number, actions, left.pop(number)[1], 0.0 if value is None else value))
        if any(not 0 <= reward <= 1 for *_, reward in taken):
            warnings.warn("rewards outside [0, 1]: learning rates are meant for accuracies", stacklevel=2)
        self._pending = left
        self.told += len(taken)
        self.failed += failed
        self._learn(sorted(taken))

    def _identity(self) -> dict[str, Any]:
        """What a state must agree on to be loaded."""
        space = self.space
        return {
            "sampler": type(self).__name__, "blocks": space.blocks, "ops": list(space.ops),
            "combinations": list(space.combinations),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        pending = [[number, list(actions), log_prob] for number, (actions, log_prob) in self._pending.items()]
        return {
            "identity": self._identity(), "asked": self.asked, "told": self.told, "failed": self.failed,
            "pending": pending,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave.

        Raises:
            ValueError: if it is of another sampler, space or setting.
        """
        here, there = self._identity(), state.get("identity", {})
        apart = [name for name in here if there.get(name) != here[name]]
        if apart:
            raise ValueError(
                "the state is of another search: "
                + "; ".join(f"{name} is {there.get(name)!r}, here {here[name]!r}" for name in apart)
            )
        self.asked, self.told, self.failed = state["asked"], state["told"], state["failed"]
        self._pending = {number: (tuple(actions), log_prob) for number, actions, log_prob in state["pending"]}


class RandomSearch(Sampler):
    """Every choice uniform: the baseline of section 4.4.

    Args:
        space: the paper's if None.
        seed: of the proposals.
    """

    def __init__(self, space: SearchSpace | None = None, *, seed: int = 0):
        super().__init__(space)
        self._rng = random.Random(seed)

    def _propose(self, n: int) -> tuple[list[list[int]], list[float]]:
        choices = self.space.choices
        log_prob = -sum(math.log(alternatives) for alternatives in choices)
        return [[self._rng.randrange(alternatives) for alternatives in choices] for _ in range(n)], [log_prob] * n

    def _learn(self, results: list[tuple[int, tuple[int, ...], float, float]]) -> None:
        """Chance learns nothing."""

    def state_dict(self) -> dict[str, Any]:
        version, internal, gauss = self._rng.getstate()
        return super().state_dict() | {"random": [version, list(internal), gauss]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        version, internal, gauss = state["random"]
        self._rng.setstate((version, tuple(internal), gauss))


class PPOSearch(Sampler):
    """The controller, trained by proximal policy optimisation on the rewards of its proposals, section 2.1 and app. A.

        loss = -mean(min(r A, clip(r, 1 - clip, 1 + clip) A)) - entropy_weight H
        r = p(cells now) / p(cells when proposed),    A = reward - moving average of past rewards

    An update takes the next `batch_size` results; several at once are told as one in the order of their proposals, so
    that the order within does not matter. The defaults are meant for 20,000 children; small searches want more,
    such as `lr=0.01, batch_size=10, scale_advantage=True, max_grad_norm=1.0`.

    Args:
        space: the paper's if None.
        seed: of weights and proposals.
        hidden_dim: of the controller.
        lr: of Adam; the paper's 3.5e-4.
        batch_size: results of an update; the paper's 20.
        epochs: gradient steps of an update. The paper states neither this nor `clip`: the usual 4 and 0.2.
        clip: of the ratio.
        entropy_weight: of the bonus on the controller's entropy.
        baseline_decay: of the moving average, in batches; it starts at the first batch's mean.
        scale_advantage: divides A by its standard deviation over the batch.
        max_grad_norm: clips gradients.

    Attributes:
        controller: the policy. baseline: the moving average of rewards, None at first. updates: so far.

    Raises:
        ValueError: for arguments out of range.
    """

    def __init__(
        self,
        space: SearchSpace | None = None,
        *,
        seed: int = 0,
        hidden_dim: int = 100,
        lr: float | int = 3.5e-4,
        batch_size: int = 20,
        epochs: int = 4,
        clip: float | int = 0.2,
        entropy_weight: float | int = 1e-5,
        baseline_decay: float | int = 0.95,
        scale_advantage: bool = False,
        max_grad_norm: float | int | None = None,
    ):
        super().__init__(space)
        if batch_size < 1 or epochs < 1:
            raise ValueError(f"batch_size and epochs must be positive, got {batch_size} and {epochs}")
        if not lr > 0 or not clip > 0 or not 0 <= baseline_decay < 1:
            raise ValueError(
                f"need lr > 0, clip > 0 and baseline_decay in [0, 1), got {lr}, {clip} and {baseline_decay}"
            )
        if scale_advantage and batch_size < 2:
            raise ValueError(f"scale_advantage needs batches of at least two results, got batch_size={batch_size}")
        self.lr, self.batch_size, self.epochs, self.clip = lr, batch_size, epochs, clip
        self.entropy_weight, self.baseline_decay = entropy_weight, baseline_decay
        self.scale_advantage, self.max_grad_norm = scale_advantage, max_grad_norm
        self.baseline: float | None = None
        self.updates = 0
        self._results: list[tuple[int, tuple[int, ...], float, float]] = []
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.controller = NASNetController(self.space, hidden_dim)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=lr)

    def _propose(self, n: int) -> tuple[list[list[int]], list[float]]:
        actions, log_probs = self.controller.sample_actions(n, self._generator)
        return actions.tolist(), log_probs.tolist()

    def _learn(self, results: list[tuple[int, tuple[int, ...], float, float]]) -> None:
        self._results += results
        while len(self._results) >= self.batch_size:
            batch, self._results = self._results[: self.batch_size], self._results[self.batch_size :]
            self._update(sorted(batch))

    def _update(self, batch: list[tuple[int, tuple[int, ...], float, float]]) -> None:
        actions = torch.tensor([row for _, row, _, _ in batch])
        before = torch.tensor([log_prob for _, _, log_prob, _ in batch])
        rewards = torch.tensor([reward for *_, reward in batch], dtype=torch.float64)
        mean = rewards.mean().item()
        baseline = mean if self.baseline is None else self.baseline
        advantage = rewards - baseline
        if self.scale_advantage:
            advantage = advantage / (rewards.std() + 1e-8)
        advantage = advantage.float()
        self.baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * mean
        for _ in range(self.epochs):
            chosen = self.controller.distribution(actions)
            ratio = (chosen.log_prob(actions).sum(dim=1) - before).exp()
            limited = ratio.clamp(1 - self.clip, 1 + self.clip)
            loss = -torch.minimum(ratio * advantage, limited * advantage).mean()
            loss = loss - self.entropy_weight * chosen.entropy().sum(dim=1).mean()
            self.optimizer.zero_grad()
            loss.backward()
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(self.controller.parameters(), self.max_grad_norm)
            self.optimizer.step()
        self.updates += 1

    def _identity(self) -> dict[str, Any]:
        names = ("lr", "batch_size", "epochs", "clip", "entropy_weight", "baseline_decay", "scale_advantage")
        settings = {name: getattr(self, name) for name in (*names, "max_grad_norm")}
        return super()._identity() | settings | {"hidden_dim": self.controller.start.numel()}

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "controller": self.controller.state_dict(), "optimizer": self.optimizer.state_dict(),
            "baseline": self.baseline, "updates": self.updates, "generator": self._generator.get_state(),
            "results": [[number, list(row), log_prob, reward] for number, row, log_prob, reward in self._results],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.baseline, self.updates = state["baseline"], state["updates"]
        self._generator.set_state(state["generator"])
        self._results = [(number, tuple(row), log_prob, reward) for number, row, log_prob, reward in state["results"]]
