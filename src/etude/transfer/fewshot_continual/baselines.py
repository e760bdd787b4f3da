"""What two-step consolidation is measured against, made of the same parts and given the same steps.

    frozen      the base weights, never changed: the nearest class mean of its embedding
    finetune    one set of weights, trained on task after task
    ewc         the same, held by the importance of its weights (Kirkpatrick et al., arXiv:1612.00796)
    er          the same, trained on stored shots of earlier classes too (experience replay)
    joint       from the base weights again for every task, on all shots so far, with as many times the steps

A single set of weights is the limit eta = 1, kappa = 0 of the pair: its slow copy is its fast one.
"""

from collections.abc import Collection
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from etude.transfer.fewshot_continual.embedding import embedded
from etude.transfer.fewshot_continual.episodes import episode_loss, pseudo_episode
from etude.transfer.fewshot_continual.learner import _REPLAY, FewShotContinualLearner

__all__ = ["BASELINES", "JointLearner", "baseline"]

BASELINES: dict[str, dict[str, Any]] = {
    "frozen": {"iters": 0, "eta": 0.0, "kappa": 0.0, "restart": 0.0, "penalty_strength": 0.0, "meta_steps": 0},
    "finetune": {"eta": 1.0, "kappa": 0.0, "restart": 0.0, "penalty_strength": 0.0, "meta_steps": 0},
    "ewc": {"eta": 1.0, "kappa": 0.0, "restart": 0.0, "meta_steps": 0, "importance": "fisher"},
    "er": {"eta": 1.0, "kappa": 0.0, "restart": 0.0, "penalty_strength": 0.0, "meta_steps": 0, "replay": "support"},
    "joint": {},
}
"""The options of `FewShotContinualLearner` that make it each baseline."""


def baseline(name: str, encoder: nn.Module, **options: Any) -> FewShotContinualLearner:
    """One of the five baselines; `ewc` wants a `penalty_strength`.

        baseline("finetune", encoder, iters=50, lr=1e-4)

    Args:
        name: frozen, finetune, ewc, er or joint.
        encoder, options: as for `FewShotContinualLearner` (`JointLearner`); what makes the baseline cannot be set.

    Raises:
        ValueError: if the name is unknown, an option is one that makes the baseline, or `ewc` has no strength.
    """
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, got {name!r}")
    fixed = BASELINES[name]
    taken = sorted(key for key in options if key in fixed and options[key] != fixed[key])
    # `frozen` has no steps of its own, whatever the others have.
    taken = [key for key in taken if (name, key) != ("frozen", "iters")]
    if taken:
        raise ValueError(f"{name} is defined by {taken[0]}={fixed[taken[0]]}, got {options[taken[0]]}")
    if name == "ewc" and not options.get("penalty_strength"):
        raise ValueError("ewc needs a penalty_strength above 0; without one it is finetune")
    if name == "joint":
        return JointLearner(encoder, **options)
    return FewShotContinualLearner(encoder, **{**options, **fixed})


class JointLearner(FewShotContinualLearner):
    """Learns all tasks so far together, from the base weights again each time: the bound that forgetting cannot touch.

    After task t it has made t `iters` updates on shots of all classes so far, each of as many classes as a learner with
    replay has in its episodes (those of the task, and `replay_classes` more).

    Args:
        encoder, options: as for `FewShotContinualLearner`; the pair, the penalty and the consolidation have no part
            in it, and all shots are stored.
        head: "prototype": episodes and prototypes, as everywhere; "linear": a softmax classifier on the embedding,
            trained on mini-batches of as many shots.
        epochs: factor of the number of updates, >= 1; more than 1 trains a linear head to convergence, at more steps
            than any other learner has.
        train_after: numbers of the tasks, counted from 1, after which it trains; after the others it stores their
            shots only. After all of them if None.

    Raises:
        ValueError: if `head` is unknown or an argument lies outside its range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        head: str = "prototype",
        epochs: int = 1,
        train_after: Collection[int] | None = None,
        **options: Any,
    ):
        if head not in ("prototype", "linear"):
            raise ValueError(f"head must be 'prototype' or 'linear', got {head!r}")
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        for name, value in (("eta", 1.0), ("replay", "support")):
            if options.setdefault(name, value) != value:
                raise ValueError(f"joint training is defined by {name}={value}, got {options[name]}")
        for name in ("kappa", "restart", "penalty_strength", "meta_steps", "seen_softmax"):
            if options.get(name):
                raise ValueError(f"joint training has no {name}, got {options[name]}")
        super().__init__(encoder, **options)
        self.head, self.epochs, self.train_after = head, epochs, train_after
        self.linear: nn.Linear | None = None

    @torch.no_grad()
    def logits(self, X: Float[Tensor, "n ..."], weights: str = "slow") -> Float[Tensor, "n classes"]:
        """Logits for all classes learned so far, of the head."""
        if self.linear is None:
            return super().logits(X, weights)
        return self.linear(embedded(self.pair.copy_of(weights), X))

    def _learn(self, X: Tensor, y: Tensor) -> None:
        if self.train_after is not None and len(self.steps) + 1 not in self.train_after:
            self.steps.append(0)
            return
        inputs, labels = X, y
        if len(self.classes):
            old = self.memories["slow"].support
            inputs, labels = torch.cat([old[0], X]), torch.cat([old[1], y])
        task = len(self.steps)
        with torch.no_grad():
            for name, weight in self.pair.fast.named_parameters():
                weight.copy_(self.base[name])
        generator = self._generator(_REPLAY, task)
        steps = self.iters * (task + 1) * self.epochs
        way = len(y.unique()) + self.replay_classes
        if self.head == "linear":
            self._train_head(inputs, labels, len(X) // len(y.unique()) * way, steps, generator)
        else:
            fewest = int(labels.unique(return_counts=True)[1].min())
            k_support = max(1, -(-3 * fewest // 5)) if self.k_support is None else self.k_support

            def loss() -> Tensor:
                chosen = self._some_classes(labels, way, generator)
                episode = pseudo_episode(
                    inputs[chosen], labels[chosen], k_support, max(1, fewest - k_support), augment=self.augment,
                    generator=generator,
                )  # fmt: skip
                return episode_loss(self.pair.fast, episode, k_support, self.classifier)

            self.losses.append(self._train(self.pair.fast.parameters(), self.lr, steps, loss))
        self.pair.consolidate()
        self.steps.append(steps)

    def _train_head(self, inputs: Tensor, labels: Tensor, batch: int, steps: int, generator: torch.Generator) -> None:
        # In the order in which the memory will hold the classes: the new ones come last, in ascending order.
        new = labels.unique()
        order = torch.cat([self.classes.to(labels.device), new[~torch.isin(new, self.classes.to(labels.device))]])
        targets = (labels[:, None] == order).int().argmax(dim=1)
        dim = embedded(self.pair.fast, inputs[:1]).shape[1]
        self.linear = nn.Linear(dim, len(order)).to(inputs.device)
        nn.init.zeros_(self.linear.weight)  # no draws: all classes begin alike
        nn.init.zeros_(self.linear.bias)

        def loss() -> Tensor:
            rows = torch.randperm(len(inputs), generator=generator)[:batch].to(inputs.device)
            images = inputs[rows] if self.augment is None else self.augment(inputs[rows], generator)
            assert self.linear is not None
            return F.cross_entropy(self.linear(self.pair.fast(images)), targets[rows])

        parameters = [*self.pair.fast.parameters(), *self.linear.parameters()]
        self.losses.append(self._train(parameters, self.lr, steps, loss))
