"""Where samples of the source tasks come from: a linear instance of which all is known, or a user's own tables.

An oracle is called with a task and a number, and gives that many new samples of it. It is the only way to source data,
and it counts. Each task is a stream of its own, so that whoever asks for more of a task gets what another asked for
before, and then more: strategies are compared on the same data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

__all__ = ["LinearInstance", "LinearOracle", "Oracle", "TableOracle", "draw_instance"]

Samples = tuple[np.ndarray, np.ndarray]


@runtime_checkable
class Oracle(Protocol):
    """What `ActiveMTRL` asks for samples.

    Attributes:
        num_tasks: source tasks, numbered from 0.
        capacity: how many samples each holds in all, or None where there is no end.
    """

    num_tasks: int
    capacity: np.ndarray | None

    def __call__(self, task: int, n: int) -> Samples:
        """The next n samples of a task: (n, d) and (n,)."""
        ...


@dataclass(frozen=True)
class LinearInstance:
    """Tasks y = <B w_t, x> + noise with x ~ N(0, I), of which all is known.

    Attributes:
        basis: B, (d, k), orthonormal columns. heads: W, (k, tasks). target: w, (k,).
        noise: standard deviation of the noise.
    """

    basis: np.ndarray
    heads: np.ndarray
    target: np.ndarray
    noise: float

    def target_samples(self, n: int, rng: np.random.Generator) -> Samples:
        """n samples of the target task: (n, d) and (n,)."""
        return _linear(rng, rng, self.basis @ self.target, n, self.noise)

    def excess_risk(self, basis: Float[np.ndarray, "d k"], head: Float[np.ndarray, "k"]) -> float:
        """||B_hat w_hat - B w||^2, the error of a prediction beyond the noise."""
        return float(np.square(basis @ head - self.basis @ self.target).sum())


def draw_instance(
    dim: int,
    rank: int,
    num_tasks: int,
    rng: np.random.Generator,
    *,
    mixed: int | None = 2,
    noise: float | int = 1.0,
) -> LinearInstance:
    """An instance with a random basis and Gaussian heads of length 1 in the mean square.

    Args:
        dim, rank, num_tasks: d, k and T; 1 <= k <= d and k <= T.
        rng: of every draw.
        mixed: the target is the normalised sum of the heads of this many sources; None makes it the first source's
            head, of length 1 too.
        noise: standard deviation of the noise of a label.

    Raises:
        ValueError: if a number is out of range.
    """
    if not 1 <= rank <= min(dim, num_tasks):
        raise ValueError(f"rank must lie in 1..{min(dim, num_tasks)}, the features and tasks, got {rank}")
    if mixed is not None and not 1 <= mixed <= num_tasks:
        raise ValueError(f"mixed must lie in 1..{num_tasks}, the number of tasks, got {mixed}")
    if not noise >= 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    basis = np.linalg.qr(rng.standard_normal((dim, rank)))[0]
    heads = rng.standard_normal((rank, num_tasks)) / np.sqrt(rank)
    chosen = [0] if mixed is None else rng.choice(num_tasks, size=mixed, replace=False)
    target = heads[:, chosen].sum(axis=1)
    target /= np.linalg.norm(target)
    if mixed is None:
        heads[:, 0] = target
    return LinearInstance(basis, heads, target, float(noise))


@dataclass
class LinearOracle:
    """Endless samples of the sources of a `LinearInstance`.

    Args:
        instance: what to draw from.
        seed: of the streams; the same seed gives the same samples of each task, however they are asked for.

    Attributes:
        counts: samples given of each task so far.
    """

    instance: LinearInstance
    seed: int
    capacity: np.ndarray | None = None
    counts: np.ndarray = field(init=False)

    def __post_init__(self):
        self.num_tasks = self.instance.heads.shape[1]
        self.counts = np.zeros(self.num_tasks, dtype=np.int64)
        self._streams = [
            tuple(np.random.default_rng([self.seed, task, part]) for part in (0, 1)) for task in range(self.num_tasks)
        ]

    def __call__(self, task: int, n: int) -> Samples:
        """n more samples of a task: (n, d) and (n,).

        Raises:
            ValueError: if there is no such task or n is negative.
        """
        _check_call(task, n, self.num_tasks)
        self.counts[task] += n
        inputs, noises = self._streams[task]
        return _linear(inputs, noises, self.instance.basis @ self.instance.heads[:, task], n, self.instance.noise)


class TableOracle:
    """A user's own rows as source tasks, given out in a fixed random order and never twice.

        oracle = TableOracle.from_frame(table, task="shop", target="sales", exclude=["ours"])

    Args:
        tasks: name -> features (n, d) and labels (n,).
        seed: of the order.

    Attributes:
        names: of the tasks, in the order of their numbers.
        capacity: rows of each task. counts: rows given so far.

    Raises:
        ValueError: if there are no tasks, they differ in features, or numbers are missing.
    """

    def __init__(self, tasks: Mapping[str, tuple[ArrayLike, ArrayLike]], seed: int = 0):
        if not tasks:
            raise ValueError("there must be at least one source task")
        self.names = tuple(tasks)
        self._rows: list[Samples] = []
        for index, (name, (features, labels)) in enumerate(tasks.items()):
            x, y = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
            if x.ndim != 2 or y.shape != (len(x),) or not len(x):
                raise ValueError(f"task {name!r} must have features (n, d) and labels (n,), got {x.shape}, {y.shape}")
            if self._rows and x.shape[1] != self._rows[0][0].shape[1]:
                raise ValueError(f"task {name!r} has {x.shape[1]} features, others {self._rows[0][0].shape[1]}")
            if not bool(np.isfinite(x).all() and np.isfinite(y).all()):
                raise ValueError(f"task {name!r} holds missing or infinite numbers")
            order = np.random.default_rng([seed, index]).permutation(len(x))
            self._rows.append((x[order], y[order]))
        self.num_tasks = len(self._rows)
        self.capacity: np.ndarray | None = np.array([len(y) for _, y in self._rows])
        self.counts = np.zeros(self.num_tasks, dtype=np.int64)

    @classmethod
    def from_frame(
        cls, frame: Any, *, task: str, target: str, exclude: Sequence[Any] = (), seed: int = 0
    ) -> "TableOracle":
        """A pandas table, one task for each value of a column.

        Args:
            frame: columns of numbers, `task` and `target`.
            task: the column whose values are the tasks.
            target: the column to predict.
            exclude: tasks left out, such as the one to be learned.
            seed: of the order in which rows are given out.

        Raises:
            ValueError: if a column is missing or does not hold numbers.
        """
        from pandas.api.types import is_numeric_dtype

        for column in (task, target):
            if column not in frame.columns:
                raise ValueError(f"the table has no column {column!r}, it has {list(frame.columns)}")
        features = frame.drop(columns=[task, target])
        words = [str(name) for name in features.columns if not is_numeric_dtype(features[name])]
        if words:
            raise ValueError(f"features must be numbers; encode or drop {', '.join(words)}")
        groups = {
            str(name): (features.loc[rows].to_numpy(), frame.loc[rows, target].to_numpy())
            for name, rows in frame.groupby(task, sort=True).groups.items()
            if name not in exclude
        }
        return cls(groups, seed=seed)

    def __call__(self, task: int, n: int) -> Samples:
        """n more rows of a task: (n, d) and (n,).

        Raises:
            ValueError: if there is no such task, or it has not so many rows left.
        """
        _check_call(task, n, self.num_tasks)
        start, rows = int(self.counts[task]), self._rows[task]
        if start + n > len(rows[1]):
            raise ValueError(f"task {self.names[task]!r} has {len(rows[1]) - start} rows left, {n} were asked for")
        self.counts[task] += n
        return rows[0][start : start + n], rows[1][start : start + n]


def _check_call(task: int, n: int, tasks: int) -> None:
    if not 0 <= task < tasks:
        raise ValueError(f"task must lie in 0..{tasks - 1}, got {task}")
    if n < 0:
        raise ValueError(f"n must not be negative, got {n}")


def _linear(
    inputs: np.random.Generator, noises: np.random.Generator, direction: np.ndarray, n: int, noise: float
) -> Samples:
    x = inputs.standard_normal((n, len(direction)))
    # Row by row the same sum, however many rows are asked for at once.
    return x, (x * direction).sum(axis=1) + noise * noises.standard_normal(n)
