"""A classifier for tasks that come one after another, as a scikit-learn estimator."""

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.transfer.hypernetworks.continual import learn_condition, learn_task
from etude.transfer.hypernetworks.design import HypernetDesign
from etude.transfer.hypernetworks.hypernetwork import Hypernetwork

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('HypernetClassifier needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["HypernetClassifier"]


class HypernetClassifier(ClassifierMixin, BaseEstimator):
    """Learns one task after another and keeps them all; the task is named at prediction.

        classifier = HypernetClassifier(random_state=0)
        for site, rows in table.groupby("site").indices.items():
            classifier.partial_fit(X[rows], y[rows], task=site)
        classifier.predict(X_new, task="north")

    Args:
        target: module from rows of X to logits, one for each class of the largest task; an MLP with one hidden layer
            on the flattened rows if None.
        width: of that layer.
        max_classes: outputs of that MLP; the classes of the first task if None.
        generation: "chunk", "once", "multiple", "component" or "component_chunk".
        hidden, cond_dim, chunk_size: of the hypernetwork; `chunk_size` is for generation by chunks.
        beta: of the regulariser that keeps the earlier tasks.
        steps, batch_size, lr: of each task.
        lookahead: whether the regulariser looks one step ahead.
        few_shot: whether every task after the first learns an embedding alone.
        standardize: whether features get mean 0 and deviation 1 over the first task's rows.
        random_state: seed of everything; torch's global generator if None.
        device: where to work.

    Attributes:
        classes_: all labels met, sorted.
        tasks_: name of a task -> its number.
        task_classes_: name of a task -> its labels, sorted.
        hypernet_: the `Hypernetwork`.
    """

    def __init__(
        self,
        target: nn.Module | None = None,
        *,
        width: int = 32,
        max_classes: int | None = None,
        generation: str = "chunk",
        hidden: tuple[int, ...] = (32, 32),
        cond_dim: int = 8,
        chunk_size: int = 512,
        beta: float | int = 0.1,
        steps: int = 300,
        batch_size: int = 64,
        lr: float | int = 2e-3,
        lookahead: bool = False,
        few_shot: bool = False,
        standardize: bool = True,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.target = target
        self.width = width
        self.max_classes = max_classes
        self.generation = generation
        self.hidden = hidden
        self.cond_dim = cond_dim
        self.chunk_size = chunk_size
        self.beta = beta
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.lookahead = lookahead
        self.few_shot = few_shot
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, task: Any = None) -> "HypernetClassifier":
        """Starts afresh and learns all tasks that `task` names, in ascending order of their names.

        Args:
            X: (n, features) or (n, channels, height, width); an array or a tensor.
            y: (n,) labels of any type.
            task: (n,) a name for each row; a single task if None.
        """
        for name in ("hypernet_", "tasks_", "task_classes_", "classes_"):
            self.__dict__.pop(name, None)
        if task is None:
            return self.partial_fit(X, y)
        names = np.asarray(task)
        rows, labels = np.asarray(X), np.asarray(y)
        if names.shape != (len(rows),):
            raise ValueError(f"task must have shape ({len(rows)},), a name for each row, got {names.shape}")
        for name in np.unique(names):
            self.partial_fit(rows[names == name], labels[names == name], task=name.item())
        return self

    def partial_fit(self, X: Any, y: Any, task: Hashable = "task") -> "HypernetClassifier":
        """Learns one more task.

        Raises:
            ValueError: if it has been learned, has a single class or more than the target has outputs, or X does not
                fit.
        """
        x, labels = self._rows(X), np.asarray(y)
        if labels.shape != (len(x),):
            raise ValueError(f"y must have shape ({len(x)},), one label a row, got {labels.shape}")
        classes, codes = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"task {task!r} must have at least two classes, got {classes.tolist()}")
        if task in getattr(self, "tasks_", {}):
            raise ValueError(f"task {task!r} has been learned already; those are {list(self.tasks_)}")
        seed = self.random_state if self.random_state is not None else int(torch.randint(2**31, ()))
        number = len(getattr(self, "tasks_", {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + number)
            if number == 0:
                self._begin(x, len(classes))
            self._learn(number, x, codes, len(classes), task, torch.Generator().manual_seed(seed + number))
        self.tasks_[task] = number
        self.task_classes_[task] = classes
        self.classes_ = np.unique(np.concatenate(list(self.task_classes_.values())))
        return self

    def predict_proba(self, X: Any, task: Hashable = "task") -> np.ndarray:
        """(n, classes of the task) probabilities."""
        number = self._number(task)
        with torch.no_grad():
            logits = self.hypernet_.call(self._scaled(self._rows(X)), number)
        return logits[:, : len(self.task_classes_[task])].softmax(dim=1).cpu().numpy()

    def predict(self, X: Any, task: Hashable = "task") -> np.ndarray:
        """(n,) labels of the task."""
        probabilities = self.predict_proba(X, task)
        return self.task_classes_[task][probabilities.argmax(axis=1)]

    def score(self, X: Any, y: Any, task: Hashable = "task") -> float:  # type: ignore[override]
        """Accuracy on a task.

        Raises:
            ValueError: if y holds a label that the task had not in training.
        """
        self._number(task)
        labels = np.asarray(y)
        unseen = np.setdiff1d(labels, self.task_classes_[task])
        if len(unseen):
            known = self.task_classes_[task].tolist()
            raise ValueError(f"y holds {unseen[:5].tolist()}, which task {task!r} had not in training; it has {known}")
        return float((self.predict(X, task) == labels).mean())

    def _begin(self, x: Tensor, classes: int) -> None:
        spread = x.std(dim=0, correction=0)
        plain = torch.zeros_like(spread), torch.ones_like(spread)
        self._center, self._scale = (x.mean(dim=0), spread.where(spread > 0, plain[1])) if self.standardize else plain
        features = x[0].numel()
        outputs = self.max_classes or classes
        target = self.target
        if target is None:
            target = nn.Sequential(
                nn.Flatten(), nn.Linear(features, self.width), nn.ReLU(), nn.Linear(self.width, outputs)
            )
        chunked = self.generation in ("chunk", "component_chunk")
        self.hypernet_ = Hypernetwork(
            target, HypernetDesign("task", self.generation), num_conditions=1, cond_dim=self.cond_dim,
            hidden=self.hidden, chunk_size=self.chunk_size if chunked else None, init="scaled", statistics="condition",
        ).to(self.device)  # fmt: skip
        self.tasks_: dict[Hashable, int] = {}
        self.task_classes_: dict[Hashable, np.ndarray] = {}
        self.n_features_in_ = features

    def _learn(
        self, number: int, x: Tensor, codes: np.ndarray, classes: int, task: Hashable, generator: torch.Generator
    ) -> None:
        examples = Examples(self._scaled(x), torch.from_numpy(codes.astype(np.int64)).to(self.device))
        with torch.no_grad():
            outputs = self.hypernet_.eval().call(examples.inputs[:2], 0).shape[-1]
        if classes > outputs:
            raise ValueError(
                f"task {task!r} has {classes} classes, the target {outputs} outputs; max_classes or the target must "
                "provide for the largest task"
            )
        if number and self.few_shot:
            learn_condition(self.hypernet_, examples, steps=self.steps, lr=self.lr)
            return
        if number:
            self.hypernet_.add_condition()
        learn_task(
            self.hypernet_, number, examples, beta=self.beta, steps=self.steps, batch_size=self.batch_size,
            lr=self.lr, generator=generator, lookahead=self.lookahead,
        )  # fmt: skip

    def _number(self, task: Hashable) -> int:
        check_is_fitted(self, "hypernet_")
        if task not in self.tasks_:
            raise ValueError(f"task {task!r} has not been learned; those are {list(self.tasks_)}")
        return self.tasks_[task]

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self._center) / self._scale

    def _rows(self, X: Any) -> Tensor:
        x = (X if isinstance(X, Tensor) else torch.from_numpy(np.asarray(X))).to(self.device, torch.float32)
        if x.ndim < 2 or len(x) == 0:
            raise ValueError(f"X must have shape (n, features) or (n, channels, height, width), got {tuple(x.shape)}")
        if hasattr(self, "hypernet_") and x.shape[1:] != self._center.shape:
            raise ValueError(
                f"rows of X have shape {tuple(x.shape[1:])}, those of training {tuple(self._center.shape)}"
            )
        bad = int((~torch.isfinite(x)).sum())
        if bad:
            raise ValueError(f"X holds NaN or infinite values, {bad} of them")
        return x
