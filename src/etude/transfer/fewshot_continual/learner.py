"""Two-step consolidation: few-shot tasks in sequence, learned by fast weights and consolidated in slow ones.

Wang, Li, Zhong & Zhu, "Few-shot Continual Learning: a Brain-inspired Approach", arXiv:2104.09034, 2021.

What the paper states in its abstract: learning a sequence of tasks interferes with few-shot generalisation; a pair of
fast and slow weights is updated interdependently, the fast ones for continual learning and the slow ones for few-shot
learning; a two-step consolidation first learns the sequence without forgetting in the fast weights and then improves
generalisation without overfitting in the slow ones. The losses below are a reconstruction, and ours:

    base      slow weights: episodes of the base classes, cross-entropy among prototypes, L_meta
    step 1    fast weights: L_f = cross-entropy of pseudo-episodes of the task's shots (with the stored shots or
              prototypes of earlier classes, where wanted) + lambda sum_i Omega_i (theta_f,i - theta_f,i^prev)^2     (1)
    step 2    slow weights: Eq. (2) of `weights`; then, where wanted, steps of L_meta on pseudo-episodes of all stored
              shots + mu ||theta_s - theta_base||^2                                                                (2)

Omega is the mean of the importances (MAS or Fisher) that each task so far gave its own examples. Seen classes are told
apart jointly, without the task's identity, by the nearest prototype; new classes are met by the slow weights.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from etude.loop.evaluation import device_of, mode
from etude.transfer.fewshot_continual.embedding import embedded
from etude.transfer.fewshot_continual.episodes import (
    Augmentation,
    EpisodeSampler,
    episode_accuracy,
    episode_loss,
    pseudo_episode,
)
from etude.transfer.fewshot_continual.prototypes import PrototypeClassifier, PrototypeMemory, class_means
from etude.transfer.fewshot_continual.weights import FastSlow
from etude.transfer.importance import ImportanceAccumulator, QuadraticPenalty, diagonal_fisher, mas

__all__ = ["FewShotContinualLearner"]

MakeOptimizer = Callable[..., Optimizer]

_REPLAYS = ("none", "refresh", "support")
_BASE, _TASK, _REPLAY, _META = range(4)


class FewShotContinualLearner:
    """Learns classes a few shots at a time, from tasks that come one after the other.

        learner = FewShotContinualLearner(ConvEmbedding(1, 28), augment=random_affine)
        learner.pretrain(base_images, base_labels)
        for images, labels in tasks:
            learner.learn_task(images, labels)
        learner.predict(new_images)                                  # among all classes of all tasks

    During tasks the encoder runs in evaluation mode: batch norm keeps the statistics of the base, which a few shots
    could not estimate. Memory is twice the encoder's, and Omega where it is used; the cost of a task does not depend on
    how many there were, except for the refresh of the prototypes. With one seed, learners that differ in anything but
    the number of base episodes see the same episodes of the same tasks.

    Args:
        encoder: any module that gives one vector for each input. Copied twice; it may be pretrained already.
        classifier: of embeddings against prototypes; squared distances if None.
        replay: what is stored of a task. "none": its prototypes, which go stale as the encoder moves; "refresh": its
            shots, to compute prototypes anew after every task; "support": the same, and they are trained on again.
        replay_classes: earlier classes that join each pseudo-episode; with "support" only.
        seen_softmax: whether the prototypes of all earlier classes stand in the softmax of step 1, as constants.
        penalty_strength: lambda of Eq. (1), >= 0.
        importance: "mas" or "fisher".
        eta, kappa, restart: of the pair; see `FastSlow`.
        iters: updates of step 1 for each task; 0 leaves the weights alone.
        lr: of step 1.
        k_support: shots of each class on the support side of a pseudo-episode; three in five if None.
        meta_steps: updates of Eq. (2) after each consolidation; they need stored shots.
        meta_lr, meta_decay: their rate, and mu.
        augment: (examples, generator) -> augmented examples; `random_affine` for images. Tasks of one shot need one.
        optimizer: called as optimizer(parameters, lr=...) for each task; for pretraining too unless told otherwise.
        repeated: a class that comes again in a later task is refused ("raise") or its shots are added ("merge").
        seed: of all draws.

    Attributes:
        pair: the `FastSlow` encoder.
        memories: the prototypes under each of the two weights.
        steps: updates made for each task so far.
        losses: mean loss of step 1 over the last tenth of its updates, for each task.

    Raises:
        ValueError: if an argument lies outside its range.
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        classifier: PrototypeClassifier | None = None,
        replay: str = "refresh",
        replay_classes: int = 10,
        seen_softmax: bool = False,
        penalty_strength: float | int = 0.0,
        importance: str = "mas",
        eta: float | int = 0.1,
        kappa: float | int = 0.0,
        restart: float | int = 0.0,
        iters: int = 50,
        lr: float | int = 1e-3,
        k_support: int | None = None,
        meta_steps: int = 0,
        meta_lr: float | int = 1e-4,
        meta_decay: float | int = 1.0,
        augment: Augmentation | None = None,
        optimizer: MakeOptimizer = torch.optim.Adam,
        repeated: str = "raise",
        seed: int = 0,
    ):
        if replay not in _REPLAYS:
            raise ValueError(f"replay must be one of {', '.join(_REPLAYS)}, got {replay!r}")
        if importance not in ("mas", "fisher"):
            raise ValueError(f"importance must be 'mas' or 'fisher', got {importance!r}")
        for name, value, least in (("replay_classes", replay_classes, 1), ("iters", iters, 0),
                                   ("k_support", k_support, 1), ("meta_steps", meta_steps, 0)):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name, number in (("penalty_strength", penalty_strength), ("meta_decay", meta_decay)):
            if not 0 <= number < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {number}")
        if not (lr > 0 and meta_lr > 0):
            raise ValueError(f"lr and meta_lr must be positive, got {lr} and {meta_lr}")
        if meta_steps and replay == "none":
            raise ValueError("meta_steps train on stored shots, which replay='none' does not keep")
        if meta_steps and augment is None:
            raise ValueError("meta_steps tell shots from their copies by an augmentation, got augment=None")
        self.classifier = PrototypeClassifier() if classifier is None else classifier
        self.pair = FastSlow(encoder, eta=eta, kappa=kappa, restart=restart)
        self.replay, self.replay_classes, self.seen_softmax = replay, replay_classes, seen_softmax
        self.penalty_strength, self.importance = penalty_strength, importance
        self.iters, self.lr, self.k_support = iters, lr, k_support
        self.meta_steps, self.meta_lr, self.meta_decay = meta_steps, meta_lr, meta_decay
        self.augment, self.optimizer, self.repeated, self.seed = augment, optimizer, repeated, seed
        self.accumulator = ImportanceAccumulator("mean")
        self.memories: dict[str, PrototypeMemory] = {}
        self.steps: list[int] = []
        self.losses: list[float] = []
        self._remember_base()

    @property
    def classes(self) -> Int64[Tensor, "classes"]:
        """Labels of the classes learned so far, in the order in which they came."""
        return self.memories["slow"].classes if self.memories else torch.empty(0, dtype=torch.int64)

    def pretrain(
        self,
        X: Float[Tensor, "n ..."],
        y: Int64[Tensor, "labels"],
        *,
        episodes: int = 300,
        n_way: int = 10,
        k_shot: int = 3,
        n_query: int = 5,
        lr: float | int | None = None,
        optimizer: MakeOptimizer | None = None,
        callback: Callable[..., Any] | None = None,
    ) -> list[float]:
        """Trains the slow weights on episodes of the base classes and makes the fast ones equal to them.

        Args:
            X, y: examples of many classes, which are not those of the tasks.
            episodes: updates, one episode each.
            n_way, k_shot, n_query: of an episode.
            lr, optimizer: as for the tasks if None.
            callback: called as callback(step, episodes, loss=...).

        Returns:
            The loss of every episode.

        Raises:
            ValueError: if tasks were learned before, or the examples are too few for such episodes.
        """
        if self.steps:
            raise ValueError(f"pretrain comes before the tasks; {len(self.steps)} were learned already")
        _check(X, y)
        sampler = EpisodeSampler(y, n_way, k_shot, n_query, episodes, seed=self._stage_seed(_BASE, 0))
        generator = self._generator(_BASE, 1)
        encoder = self.pair.slow
        stepper = (optimizer or self.optimizer)(encoder.parameters(), lr=self.lr if lr is None else lr)
        device, losses = device_of(encoder), []
        with mode(encoder, training=True):
            for step, rows in enumerate(sampler, start=1):
                images = X[torch.tensor(rows, device=X.device)].to(device)
                if self.augment is not None:
                    images = self.augment(images, generator)
                loss = episode_loss(encoder, images.unflatten(0, (n_way, -1)), k_shot, self.classifier)
                _update(stepper, loss)
                losses.append(loss.detach())
                if callback is not None and (step % 50 == 0 or step == episodes):
                    callback(step, episodes, loss=loss.item())
        self.pair.sync()
        self._remember_base()
        return torch.stack(losses).tolist()

    def learn_task(self, X: Float[Tensor, "n ..."], y: Int64[Tensor, "labels"]) -> "FewShotContinualLearner":
        """Learns the classes of one task from their shots: both steps of the consolidation, and the prototypes.

        Args:
            X, y: a few examples of two classes or more, as many as there are: all of them are support.

        Raises:
            ValueError: if there is one class only, a class was learned before and may not come again, or a class has
                too few shots to be split and there is no augmentation.
        """
        _check(X, y)
        task = y.unique()
        if len(task) < 2:
            raise ValueError(f"a task needs two classes or more to tell apart, got class {task.tolist()} only")
        known = task[torch.isin(task, self.classes.to(task.device))]
        if len(known) and self.repeated == "raise":
            raise ValueError(f"class {int(known[0])} was learned before; repeated='merge' adds its shots")
        device = device_of(self.pair.fast)
        X, y = X.to(device), y.to(device)
        if not self.memories:
            dim = embedded(self.pair.slow, X[:1]).shape[1]
            # The slow memory holds the shots for both.
            self.memories["slow"] = PrototypeMemory(dim, 0 if self.replay == "none" else None, repeated=self.repeated)
            self.memories["fast"] = PrototypeMemory(dim, repeated=self.repeated)
        self._learn(X, y)
        self._memorise(X, y)
        return self

    @torch.no_grad()
    def logits(self, X: Float[Tensor, "n ..."], weights: str = "slow") -> Float[Tensor, "n classes"]:
        """Logits for all classes learned so far, in the order of `classes`.

        Raises:
            ValueError: if no task was learned yet.
        """
        if not len(self.classes):
            raise ValueError("there is no class to tell apart yet: call learn_task first")
        z = embedded(self.pair.copy_of(weights), X)
        return self.classifier(z, self.memories[weights].prototypes)

    def predict(self, X: Float[Tensor, "n ..."], weights: str = "slow") -> Int64[Tensor, "n"]:
        """The label of each example, among all classes learned so far."""
        chosen = self.logits(X, weights).argmax(dim=1)
        return self.classes[chosen]

    def score(self, X: Float[Tensor, "n ..."], y: Int64[Tensor, "labels"], weights: str = "slow") -> float:
        """Accuracy of `predict`.

        Raises:
            ValueError: if a label was never learned.
        """
        _check(X, y)
        unknown = y[~torch.isin(y, self.classes.to(y.device))]
        if len(unknown):
            raise ValueError(f"class {int(unknown[0])} was never learned; the classes are {self.classes.tolist()}")
        return (self.predict(X, weights) == y.to(self.classes.device)).double().mean().item()

    def few_shot_accuracy(self, X: Float[Tensor, "n ..."], sampler: EpisodeSampler, weights: str = "slow") -> float:
        """Mean accuracy on episodes of classes that were never seen, each learned from its supports alone.

        Args:
            X: the examples that the sampler's rows are of.
            sampler: draws the episodes.
            weights: the slow ones, which are there for it, or the fast ones.
        """
        z = embedded(self.pair.copy_of(weights), X)
        return episode_accuracy(z, sampler.episodes(), sampler.k_shot, self.classifier).double().mean().item()

    def _learn(self, X: Tensor, y: Tensor) -> None:
        previous = {name: weight.detach().clone() for name, weight in self.pair.fast.named_parameters()}
        self.pair.restart_fast()
        penalty = None
        if self.penalty_strength and self.accumulator.count:
            penalty = QuadraticPenalty(self.pair.fast, self.accumulator.value, previous, self.penalty_strength)
        task = len(self.steps)
        generators = self._generator(_TASK, task), self._generator(_REPLAY, task)
        others = None
        if self.seen_softmax and len(self.classes):
            others = self.memories["fast"].prototypes[~torch.isin(self.classes, y)]

        def loss() -> Tensor:
            episode, k_support = self._episode(X, y, *generators)
            value = episode_loss(self.pair.fast, episode, k_support, self.classifier, others)
            return value if penalty is None else value + penalty()

        self.losses.append(self._train(self.pair.fast.parameters(), self.lr, self.iters, loss))
        if self.penalty_strength or self.pair.kappa:
            self.accumulator.update(self._importance(X, y))
        self.pair.consolidate(self.accumulator.value if self.pair.kappa else None)
        self.steps.append(self.iters + self.meta_steps)

    def _episode(self, X: Tensor, y: Tensor, own: torch.Generator, replayed: torch.Generator) -> tuple[Tensor, int]:
        """A pseudo-episode of the task, and of earlier classes where they are replayed."""
        fewest = int(y.unique(return_counts=True)[1].min())
        k_support = max(1, -(-3 * fewest // 5)) if self.k_support is None else self.k_support
        n_query = max(1, fewest - k_support)
        episode = pseudo_episode(X, y, k_support, n_query, augment=self.augment, generator=own)
        if self.replay != "support" or not len(self.classes):
            return episode, k_support
        inputs, labels = self.memories["slow"].support
        if self.repeated == "merge":
            earlier = ~torch.isin(labels, y)
            if not bool(earlier.any()):
                return episode, k_support
            inputs, labels = inputs[earlier], labels[earlier]
        chosen = self._some_classes(labels, self.replay_classes, replayed)
        old = pseudo_episode(
            inputs[chosen], labels[chosen], k_support, n_query, augment=self.augment, generator=replayed
        )
        return torch.cat([episode, old]), k_support

    def _some_classes(self, labels: Tensor, most: int, generator: torch.Generator) -> Tensor:
        """Mask of the rows of a few classes drawn at random."""
        classes = labels.unique()
        drawn = classes[torch.randperm(len(classes), generator=generator)[:most].to(classes.device)]
        return torch.isin(labels, drawn)

    def _importance(self, X: Tensor, y: Tensor) -> dict[str, Tensor]:
        encoder = self.pair.fast
        if self.importance == "mas":
            return mas(encoder, X)
        classes, prototypes, _ = class_means(embedded(encoder, X), y)

        def loss(z: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(self.classifier(z, prototypes), target)

        return diagonal_fisher(encoder, X, torch.searchsorted(classes, y), loss_fn=loss)

    def _memorise(self, X: Tensor, y: Tensor) -> None:
        for weights, memory in self.memories.items():
            memory.add(y, embedded(self.pair.copy_of(weights), X), X)
        if self.meta_steps:
            self._consolidate_by_episodes()
        if self.replay != "none":
            for weights, memory in self.memories.items():
                memory.refresh(partial(embedded, self.pair.copy_of(weights)), self.memories["slow"].support)

    def _consolidate_by_episodes(self) -> None:
        """Eq. (2) on all stored shots."""
        slow, generator = self.pair.slow, self._generator(_META, len(self.steps))
        inputs, labels = self.memories["slow"].support

        def loss() -> Tensor:
            chosen = self._some_classes(labels, self.replay_classes, generator)
            fewest = int(labels.unique(return_counts=True)[1].min())
            # All shots are supports, and their augmented copies the queries: nothing is held out of the prototypes.
            episode = pseudo_episode(
                inputs[chosen], labels[chosen], fewest, fewest, augment=self.augment, generator=generator
            )
            drift = sum((weight - self.base[name]).square().sum() for name, weight in slow.named_parameters())
            return episode_loss(slow, episode, fewest, self.classifier) + self.meta_decay * drift

        self._train(slow.parameters(), self.meta_lr, self.meta_steps, loss)

    def _train(self, parameters: Iterable[Tensor], lr: float | int, steps: int, loss: Callable[[], Tensor]) -> float:
        """Takes `steps` updates; the mean loss over the last tenth of them."""
        if not steps:
            return 0.0
        optimizer = self.optimizer(list(parameters), lr=lr)
        values: list[Tensor] = []
        with mode(self.pair, training=False):
            for _ in range(steps):
                value = loss()
                _update(optimizer, value)
                values.append(value.detach())
        return torch.stack(values[-max(1, steps // 10) :]).mean().item()

    def _remember_base(self) -> None:
        self.base = {name: weight.detach().clone() for name, weight in self.pair.slow.named_parameters()}

    def _stage_seed(self, stage: int, index: int) -> int:
        return (self.seed * 1_000_003 + 4 * index + stage) % 2**63

    def _generator(self, stage: int, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._stage_seed(stage, index))


def _update(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _check(X: Tensor, y: Tensor) -> None:
    if len(X) != len(y) or len(X) == 0:
        raise ValueError(f"X and y must have equally many rows, at least one, got {len(X)} and {len(y)}")
    if y.dtype != torch.int64 or y.ndim != 1:
        raise ValueError(f"y must be int64 of shape (n,), got {y.dtype} of shape {tuple(y.shape)}")
    if not bool(torch.isfinite(X).all()):
        raise ValueError("X holds NaN or infinite values")
