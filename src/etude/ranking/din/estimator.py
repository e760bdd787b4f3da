"""DIN as a scikit-learn estimator over a click log."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from etude.data.kinds_clicks import UNKNOWN, ClickData, Clicks, history_spans
from etude.nn.auc import auc, gauc
from etude.ranking.din.activation import Activation
from etude.ranking.din.models import DIN, Field, Pooling
from etude.ranking.din.training import fit_clicks, inputs_of, predict_clicks

try:
    import pandas as pd
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('DINClassifier needs scikit-learn and pandas: pip install "etude[run]"') from error

__all__ = ["DINClassifier"]


class DINClassifier(ClassifierMixin, BaseEstimator):
    """Predicts clicks from a log: one row an impression, with its user, item, time and label.

        classifier = DINClassifier(user="user_id", item="item_id", time="timestamp", behaviours=("category",))
        classifier.fit(log, log["click"])
        classifier.predict_proba(tomorrow)[:, 1]
        classifier.gauc(tomorrow, tomorrow["click"])

    The history of a row is what its user clicked strictly before it, in the log that was fitted. Every row of the
    input has a row in the output; items that were not fitted share the row "unknown" of their table.

    Args:
        user, item, time: columns of the log; times are numbers or datetimes.
        behaviours: further columns that describe the item (shop, category).
        context: columns of the impression itself (hour, age of the user).
        dim: columns of each table.
        max_len: behaviours kept of each history.
        hidden_dims, pooling, activation, sparse: see `DIN`.
        mba: lambda of mini-batch aware regularisation; None for none.
        epochs, batch_size, lr: of Adam.
        validation: the last share of the rows, by time, that chooses the epoch; 0 keeps the last epoch.
        model_options: further arguments of `DIN`.
        random_state: seed; torch's global generator and an order seeded with 0 if None.
        device: where to train.

    Attributes:
        classes_: the two labels; the second is a click.
        model_: the trained `DIN`.
        fit_: the `ClickFit` of the training.
        vocabulary_: by field, the values that have a row of their own.
        n_features_in_: how many columns are read.
    """

    def __init__(
        self,
        *,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        behaviours: Sequence[str] = (),
        context: Sequence[str] = (),
        dim: int = 12,
        max_len: int = 50,
        hidden_dims: Sequence[int] = (200, 80),
        pooling: Pooling = "attention",
        activation: Activation = "dice",
        sparse: bool = True,
        mba: float | int | None = 0.01,
        epochs: int = 5,
        batch_size: int = 256,
        lr: float | int = 1e-3,
        validation: float | int = 0.1,
        model_options: Mapping[str, Any] | None = None,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.user = user
        self.item = item
        self.time = time
        self.behaviours = behaviours
        self.context = context
        self.dim = dim
        self.max_len = max_len
        self.hidden_dims = hidden_dims
        self.pooling = pooling
        self.activation = activation
        self.sparse = sparse
        self.mba = mba
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation = validation
        self.model_options = model_options
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> "DINClassifier":
        """Trains on a log.

        Args:
            X: a DataFrame, a dict of columns, the path of a `.parquet` or `.csv` file; or, alone, a `ClickData`,
                whose validation part then chooses the epoch.
            y: (n,) labels, two values; or the name of the column of X that holds them.
            groups: not used; there for the sake of scikit-learn's splitters.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a column is missing, a value is missing, times are text, labels are not of two values, or
                no row has a history.
        """
        if isinstance(X, ClickData):
            return self._fit_data(X)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must lie in [0, 1), got {self.validation}")
        log = _table(X)
        if y is None:
            raise ValueError("fit needs y, the labels of the rows or the name of their column")
        labels = self._column(log, y) if isinstance(y, str) else np.asarray(y)
        self.classes_ = np.unique(labels)
        if len(self.classes_) != 2:
            raise ValueError(f"y must hold two values, click and no click, got {self.classes_[:5].tolist()}")
        columns = self._columns(log, len(labels))
        clicked = labels == self.classes_[1]
        held_out = _last(columns[self.time], float(self.validation))
        names = (*self._behaviour_fields, *self.context)
        self.vocabulary_ = {name: np.unique(columns[name][~held_out]) for name in names}
        self.n_features_in_ = len(columns)
        self._past = {name: columns[name][clicked] for name in (self.user, self.time, *self._behaviour_fields)}
        clicks = self._clicks(columns, clicked)
        if not bool((clicks.stops > clicks.starts).any()):
            raise ValueError(
                f"every history is empty: of {len(labels)} rows none has a click of the same {self.user} before its "
                f"{self.time}"
            )
        rows = torch.from_numpy(held_out)
        self._train(
            {name: len(values) + 2 for name, values in self.vocabulary_.items()},
            clicks.subset(~rows),
            clicks.subset(rows) if held_out.any() and len(np.unique(clicked[held_out])) == 2 else None,
            self.max_len,
        )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, 2) probabilities, in the order of the rows of X (a log without labels, or `Clicks`).

        Raises:
            ValueError: as for `fit`.
        """
        check_is_fitted(self)
        p = predict_clicks(self.model_, self._as_clicks(X), self._max_len)
        return np.stack([1 - p, p], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(1)]

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:  # type: ignore[override]
        """AUC. For `Clicks` the labels are their own.

        Raises:
            ValueError: if y holds one class only.
        """
        labels, p = self._judged(X, y)
        return auc(labels, p)

    def gauc(self, X: Any, y: Any = None, groups: Any = None) -> float:
        """AUC within users, weighted by their impressions; `groups` are the users of the rows if None."""
        labels, p = self._judged(X, y)
        if groups is None:
            groups = X.users.numpy() if isinstance(X, Clicks) else self._column(_table(X), self.user)
        return gauc(labels, p, np.asarray(groups))

    def attention(self, X: Any) -> list[np.ndarray]:
        """For each row the weights of its history, oldest behaviour first; an empty history has none."""
        check_is_fitted(self)
        clicks = self._as_clicks(X)
        found: list[np.ndarray] = []
        self.model_.eval()
        for rows in torch.arange(len(clicks)).split(1024):
            candidate, history, mask, _ = inputs_of(self.model_, clicks, rows, self._max_len)
            with torch.no_grad():
                weights = self.model_.attention(candidate, history, mask).cpu()
            found += [row[valid].numpy() for row, valid in zip(weights, mask.cpu())]
        return found

    @property
    def _behaviour_fields(self) -> tuple[str, ...]:
        return (self.item, *self.behaviours)

    def _fit_data(self, data: ClickData) -> "DINClassifier":
        self.classes_ = np.array([0, 1])
        self.vocabulary_ = {}
        self.n_features_in_ = len(data.fields) + len(data.context)
        self._train(dict(data.fields) | dict(data.context), data.train, data.val, data.max_len, list(data.fields))
        return self

    def _train(
        self, sizes: dict[str, int], train: Clicks, val: Clicks | None, max_len: int, sequence: Any = None
    ) -> None:
        self._max_len = max_len
        seeded = self.random_state is not None
        with torch.random.fork_rng(enabled=seeded):
            if seeded:
                torch.manual_seed(self.random_state)
            fields = [Field(name, size, self.dim) for name, size in sizes.items()]
            options: dict[str, Any] = dict(self.model_options or {})
            self.model_ = DIN(
                fields, list(self._behaviour_fields) if sequence is None else sequence, tuple(self.hidden_dims),
                pooling=self.pooling, activation=self.activation, sparse=self.sparse, **options,
            ).to(self.device)  # fmt: skip
            generator = torch.Generator().manual_seed(self.random_state or 0)
            self.fit_ = fit_clicks(
                self.model_, train, val, max_len=max_len, epochs=self.epochs, batch_size=self.batch_size, lr=self.lr,
                mba=self.mba, generator=generator,
            )  # fmt: skip

    def _judged(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        p = self.predict_proba(X)[:, 1]
        if y is None and isinstance(X, Clicks):
            return X.labels.numpy(), p
        if y is None:
            raise ValueError("y, the labels, is needed")
        labels = self._column(_table(X), y) if isinstance(y, str) else np.asarray(y)
        if labels.shape != p.shape:
            raise ValueError(f"y must have shape {p.shape}, got {labels.shape}")
        unknown = np.setdiff1d(labels, self.classes_)
        if len(unknown):
            raise ValueError(f"y must hold the labels {self.classes_.tolist()}, got {unknown[:5].tolist()}")
        return (labels == self.classes_[1]).astype(np.float64), p

    def _as_clicks(self, X: Any) -> Clicks:
        if isinstance(X, Clicks):
            return X
        if not self.vocabulary_:
            raise ValueError(f"fitted on ClickData, this estimator takes Clicks, got {type(X).__name__}")
        log = _table(X)
        columns = self._columns(log, None)
        return self._clicks(columns, np.zeros(len(columns[self.user]), dtype=bool))

    def _columns(self, log: Any, n: int | None) -> dict[str, np.ndarray]:
        names = (self.user, self.time, *self._behaviour_fields, *self.context)
        if len(set(names)) < len(names):
            raise ValueError(f"user, time, item, behaviours and context must be different columns, got {names}")
        columns = {name: self._column(log, name) for name in names}
        n = len(columns[self.user]) if n is None else n
        for name, values in columns.items():
            if values.shape != (n,):
                raise ValueError(f"the column {name!r} must have {n} rows, got shape {values.shape}")
            missing = int(pd.isna(values).sum())
            if missing:
                raise ValueError(f"the column {name!r} has no value in {missing} of {n} rows")
        if columns[self.time].dtype.kind not in "iufM":
            raise ValueError(
                f"{self.time!r} must hold numbers or datetimes without a zone, got such as {columns[self.time][0]!r}: "
                "convert it with pandas.to_datetime"
            )
        return columns

    def _column(self, log: Any, name: str) -> np.ndarray:
        if name not in log:
            raise ValueError(f"the log has no column {name!r}; it has {', '.join(map(str, log))}")
        return np.asarray(log[name])

    def _clicks(self, columns: dict[str, np.ndarray], clicked: np.ndarray) -> Clicks:
        """Rows as ids; the users are numbered with those of the past."""
        past = self._past
        _, users = np.unique(np.concatenate([past[self.user], columns[self.user]]), return_inverse=True)
        before = len(past[self.user])
        order, starts, stops = history_spans(users[:before], past[self.time], users[before:], columns[self.time])

        def ids(source: Mapping[str, np.ndarray], names: Sequence[str], rows: Any = slice(None)) -> torch.Tensor:
            coded = [_codes(source[name][rows], self.vocabulary_[name], name) for name in names]
            length = len(source[self.user])
            return torch.from_numpy(np.stack(coded, 1) if coded else np.empty((length, 0), dtype=np.int64))

        return Clicks(
            candidates=ids(columns, self._behaviour_fields),
            behaviours=ids(past, self._behaviour_fields, order),
            starts=torch.from_numpy(starts),
            stops=torch.from_numpy(stops),
            labels=torch.from_numpy(clicked.astype(np.float32)),
            users=torch.from_numpy(users[before:].astype(np.int64)),
            context=ids(columns, tuple(self.context)),
        )


def _table(X: Any) -> Any:
    if isinstance(X, str | os.PathLike):
        path = os.fspath(X)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no log at {path}; a .parquet or .csv file is expected")
        if path.endswith(".parquet"):
            return pd.read_parquet(path)
        if path.endswith(".csv"):
            return pd.read_csv(path)
        raise ValueError(f"a log must end in .parquet or .csv, got {path}")
    if isinstance(X, Mapping) or hasattr(X, "columns"):
        return X
    raise ValueError(f"X must be a DataFrame, a dict of columns or the path of a log, got {type(X).__name__}")


def _last(time: np.ndarray, share: float) -> np.ndarray:
    """The last share of the rows by time; all rows of one time are on one side."""
    if not share:
        return np.zeros(len(time), dtype=bool)
    return time > np.sort(time)[min(int(len(time) * (1 - share)), len(time) - 1)]


def _codes(values: np.ndarray, known: np.ndarray, name: str) -> np.ndarray:
    """Places of values among the known ones, from 2 up; 1 for a value that is not known."""
    try:
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
    except TypeError as error:
        raise ValueError(f"the column {name!r} holds values of another type than those that were fitted") from error
    return np.where(known[place] == values, place + 2, UNKNOWN).astype(np.int64)
