"""Learning to propose students by REINFORCE (paper, section 3.2; Williams 1992)."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.nas.n2n.policies import RemovalPolicy, ShrinkPolicy
from etude.nas.n2n.reward import INVALID
from etude.nas.n2n.students import InvalidStudent, count_parameters, digest

__all__ = ["NetworkCompressor", "Rollout", "Tried"]

_FORMAT = "etude n2n search 1"

Evaluate = Callable[[nn.Module], float | int]


@dataclass(frozen=True)
class Rollout:
    """A proposed student: its number, from 0, and the policy's actions."""

    id: int
    actions: Tensor


@dataclass(frozen=True)
class Tried:
    """What became of a proposed student.

    Attributes:
        id: number of the proposal.
        step: update of the policy that it served, from 0.
        actions: as the policy drew them.
        reward: -1 if it was not valid.
        accuracy: on the validation split; None if it was not valid, and was not trained.
        params: of the student; None if it could not be built.
        reason: why it was not valid.
    """

    id: int
    step: int
    actions: Tensor
    reward: float
    accuracy: float | None
    params: int | None
    reason: str


class NetworkCompressor:
    """A policy that proposes students and learns from their rewards.

        build = Removal(teacher, images[:1])
        compressor = NetworkCompressor(RemovalPolicy(), build, Distillation(teacher, data.train, data.val), reward)
        for _ in range(100):
            compressor.step()

    The update ascends the mean over the rollouts of (R_k - b) grad log pi(a_k). Advantages are not divided by
    their deviation, which means nothing over 5 rollouts. A student that cannot be built, or is not smaller than the
    network it is made from, has reward -1 and is not trained.

    Args:
        policy: draws actions for the layers of `build.table`; None draws uniformly and learns nothing.
        build: `Removal` or `Shrinkage`.
        evaluate: student -> validation accuracy, such as a `Distillation`. It should depend on the architecture alone,
            since networks that were seen before are not evaluated again (`cache`).
        reward: (accuracy, params, epoch) -> reward, such as `compression_reward` with its references.
        rollouts: students an update, the paper's 5.
        credit: "sample" weighs each rollout by its own reward. "shared" is the authors' code: every rollout is weighed
            by the mean reward, which makes the expected gradient `rollouts` times smaller.
        baseline: "ema", a moving average of the mean rewards of the steps before; at the first step each rollout's
            is the mean of the others. "mean" is the authors' code: the sum of the means before over their number + 1.
        decay: of the moving average.
        lr: of Adam, 3e-3 in the paper.
        cache: whether architectures of earlier updates are remembered; those of one update are evaluated once anyway.
        seed: of the proposals.

    Raises:
        ValueError: for arguments out of range, or a policy that does not fit the table or the factors.
    """

    def __init__(
        self,
        policy: RemovalPolicy | ShrinkPolicy | None,
        build: Any,
        evaluate: Evaluate,
        reward: Callable[[float, int, int], float],
        *,
        rollouts: int = 5,
        credit: str = "sample",
        baseline: str = "ema",
        decay: float | int = 0.8,
        lr: float | int = 3e-3,
        cache: bool = True,
        seed: int = 0,
    ):
        if rollouts < 1:
            raise ValueError(f"rollouts must be positive, got {rollouts}")
        if credit not in ("sample", "shared"):
            raise ValueError(f"credit must be 'sample' or 'shared', got {credit!r}")
        if baseline not in ("ema", "mean"):
            raise ValueError(f"baseline must be 'ema' or 'mean', got {baseline!r}")
        if not 0 <= decay < 1 or lr <= 0:
            raise ValueError(f"decay must lie in [0, 1) and lr be positive, got {decay} and {lr}")
        shrinks = getattr(build, "factors", None)
        if policy is not None:
            if getattr(policy, "factors", None) != shrinks:
                raise ValueError(f"{type(policy).__name__} does not choose what {type(build).__name__} builds from")
            policy._check(build.table.features)
        self.policy, self.build, self.evaluate, self.reward = policy, build, evaluate, reward
        self.rollouts, self.credit, self.baseline, self.decay = rollouts, credit, baseline, decay
        self.cache = cache
        self.optimizer = None if policy is None else torch.optim.Adam(policy.parameters(), lr=lr)
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch, self.asked = 0, 0
        self.means: list[float] = []
        self.history: list[Tried] = []
        self.pending: list[Rollout] = []
        self.known: dict[int, float] = {}
        self._prepared: dict[int, tuple[int | None, int | None, str]] = {}
        self._features, self._fixed = build.table.features, build.fixed
        if policy is not None:
            weight = next(policy.parameters())
            self._features, self._fixed = self._features.to(weight), self._fixed.to(weight.device)

    def ask(self) -> list[Rollout]:
        """The students of this update; the same ones until they are told."""
        if not self.pending:
            actions = self._uniform() if self.policy is None else self._drawn(self.policy)
            self.pending = [Rollout(self.asked + place, row) for place, row in enumerate(actions)]
            self.asked += self.rollouts
        return list(self.pending)

    def _drawn(self, policy: RemovalPolicy | ShrinkPolicy) -> Tensor:
        actions, _ = policy.sample(self._features, self._fixed, count=self.rollouts, generator=self.generator)
        return actions.cpu()

    def _uniform(self) -> Tensor:
        fixed = self.build.fixed
        factors = getattr(self.build, "factors", (0.0, 1.0))
        drawn = torch.randint(len(factors), (self.rollouts, *fixed.shape), generator=self.generator)
        drawn[:, fixed] = factors.index(1.0)
        return drawn

    def prepared(self, rollout: Rollout) -> tuple[int | None, int | None, str]:
        """(digest, parameters, reason) of a proposal; the reason says why it is not valid, and is empty if it is."""
        if rollout.id not in self._prepared:
            self._prepared[rollout.id] = self._look(rollout)
        return self._prepared[rollout.id]

    def _look(self, rollout: Rollout) -> tuple[int | None, int | None, str]:
        try:
            student = self.build(rollout.actions)
        except InvalidStudent as error:
            return None, None, str(error)
        params = count_parameters(student)
        if params >= self.build.params:
            return None, params, f"{params:,} parameters are no fewer than {self.build.params:,}"
        return digest(student), params, ""

    def tell(self, accuracies: Sequence[float | int | None]) -> list[Tried]:
        """Validation accuracies of the students asked for, in their order; None for those that are not valid.

        Raises:
            ValueError: if nothing was asked for, the number differs, or an accuracy or a reward is not finite.
        """
        if not self.pending or len(accuracies) != len(self.pending):
            raise ValueError(f"{len(self.pending)} students were asked for, got {len(accuracies)} accuracies")
        tried = []
        for rollout, accuracy in zip(self.pending, accuracies):
            _, params, reason = self.prepared(rollout)
            if (accuracy is None) != bool(reason):
                raise ValueError(f"student {rollout.id} has accuracy {accuracy}, but: {reason or 'it is valid'}")
            value = INVALID
            if accuracy is not None:
                assert params is not None
                value = self._worth(rollout, float(accuracy), params)
            known = None if accuracy is None else float(accuracy)
            tried.append(Tried(rollout.id, self.epoch, rollout.actions, value, known, params, reason))
        rewards = torch.tensor([each.reward for each in tried], dtype=torch.float64)
        if self.policy is not None:
            self._learn(self.policy, torch.stack([each.actions for each in tried]), rewards)
        self.means.append(float(rewards.mean()))
        self.epoch += 1
        self.history += tried
        self.pending = []
        self._prepared.clear()
        if not self.cache:
            self.known.clear()
        return tried

    def record(self, rollout: Rollout, accuracy: float | int) -> None:
        """Remembers the accuracy of a valid proposal.

        Raises:
            ValueError: if it is not finite.
        """
        if not math.isfinite(accuracy):
            raise ValueError(f"the accuracy of student {rollout.id} is {accuracy}; its actions: {_text(rollout)}")
        seen, _, reason = self.prepared(rollout)
        assert seen is not None, reason
        self.known[seen] = float(accuracy)

    def _worth(self, rollout: Rollout, accuracy: float, params: int) -> float:
        if not math.isfinite(accuracy):
            raise ValueError(f"the accuracy of student {rollout.id} is {accuracy}; its actions: {_text(rollout)}")
        value = float(self.reward(accuracy, params, self.epoch))
        if not math.isfinite(value):
            raise ValueError(
                f"the reward of student {rollout.id} is {value} (accuracy {accuracy:.4f}, {params:,} parameters, "
                f"epoch {self.epoch}); its actions: {_text(rollout)}"
            )
        return value

    def advantages(self, rewards: Tensor) -> Tensor:
        """R_k - b of this update's rewards, (rollouts,), with `credit` and `baseline` as they are set."""
        count = len(rewards)
        base: Tensor | float
        if self.baseline == "mean":
            base = sum(self.means) / (self.epoch + 1)
        elif self.means:
            base = self.means[0]
            for mean in self.means[1:]:
                base = self.decay * base + (1 - self.decay) * mean
        else:
            base = (rewards.sum() - rewards) / (count - 1) if count > 1 else 0.0
        own = rewards - base
        return own if self.credit == "sample" else own.mean().expand(count)

    def _learn(self, policy: RemovalPolicy | ShrinkPolicy, actions: Tensor, rewards: Tensor) -> None:
        assert self.optimizer is not None
        log_prob = policy.log_prob(self._features, self._fixed, actions.to(self._features.device))
        advantages = self.advantages(rewards).to(log_prob)
        self.optimizer.zero_grad()
        (-(advantages * log_prob).mean()).backward()
        self.optimizer.step()

    def accuracy_of(self, rollout: Rollout) -> float | None:
        """Builds and evaluates a proposal, or remembers it; None if it is not valid."""
        seen, _, reason = self.prepared(rollout)
        if reason:
            return None
        assert seen is not None
        if seen not in self.known:
            self.record(rollout, self.evaluate(self.build(rollout.actions)))
        return self.known[seen]

    def step(self) -> list[Tried]:
        """One update: asks, builds and evaluates, tells."""
        return self.tell([self.accuracy_of(rollout) for rollout in self.ask()])

    @property
    def best(self) -> Tried | None:
        """The valid student of the highest reward, the first of equals."""
        valid = [tried for tried in self.history if not tried.reason]
        return max(valid, key=lambda tried: (tried.reward, -tried.id), default=None)

    def _identity(self) -> str:
        table = self.build.table
        text = repr((
            type(self.build).__name__, table.names, table.features.tolist(), self.build.fixed.tolist(),
            getattr(self.build, "factors", None), self.rollouts, self.credit, self.baseline, self.decay,
            None if self.policy is None else repr(self.policy),
        ))  # fmt: skip
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """Everything that a search needs to go on as if it had not been stopped; tensors and plain values."""
        return {
            "format": _FORMAT, "search": self._identity(), "epoch": self.epoch, "asked": self.asked,
            "means": list(self.means), "known": dict(self.known), "generator": self.generator.get_state(),
            "policy": None if self.policy is None else self.policy.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "pending": [(rollout.id, rollout.actions) for rollout in self.pending],
            "history": [tuple(vars(tried).values()) for tried in self.history],
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from another search's state.

        Raises:
            ValueError: if it is no state, or that of another network, policy or setting.
        """
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError("this is not the state of an N2N search")
        if state["search"] != self._identity():
            raise ValueError("the state belongs to a search of another network, policy or setting")
        self.epoch, self.asked, self.means = state["epoch"], state["asked"], list(state["means"])
        self.known = dict(state["known"])
        self.generator.set_state(state["generator"])
        if self.policy is not None and self.optimizer is not None:
            self.policy.load_state_dict(state["policy"])
            self.optimizer.load_state_dict(state["optimizer"])
        self.pending = [Rollout(*fields) for fields in state["pending"]]
        self.history = [Tried(*fields) for fields in state["history"]]


def _text(rollout: Rollout) -> str:
    return str(rollout.actions.tolist())
