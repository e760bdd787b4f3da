"""The multi-task recommender as a scikit-learn estimator over a log of behaviours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from etude.data.kinds_multitask import MultiTaskRows, behaviour_spans, joint_outcomes, untouched_items
from etude.nn.auc import gauc
from etude.ranking.dtrn.logs import check_complete, codes_of, column, labels_of, last_of, table_of, times_of
from etude.ranking.dtrn.metrics import task_aucs
from etude.ranking.dtrn.models import DTRN, Bottom, Field, HeadName
from etude.ranking.dtrn.training import fit_multitask, predict_multitask

try:
    import pandas as pd
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('MultiTaskRecommender needs scikit-learn and pandas: pip install "etude[run]"') from error

__all__ = ["MultiTaskRecommender"]


class MultiTaskRecommender(BaseEstimator):
    """Predicts several outcomes of showing an item to a user from what the user did before.

        recommender = MultiTaskRecommender(user="user", item="item", time="time", behaviour="behaviour")
        recommender.fit("log.csv")                             # one event a row: which behaviours come next?
        recommender.predict_proba(tomorrow)                    # (n, K); tomorrow has user, item and time

    or, with outcomes of one's own, `recommender.fit(shown, Y, log=events)`. The history of a row is what its user did
    strictly before it, in the log that was fitted. Every row of the input has a row in the output; values that were not
    fitted share the row "unknown" of their table.

    Args:
        user, item, time, behaviour: columns; times are numbers or datetimes.
        item_fields: further columns that describe the item (shop, category).
        context: columns of the row shown (hour, age of the user; the user's own column for a table of users).
        behaviours: the types, in this order; all that the log has, sorted, if None.
        head: see `DTRN`. interest, refinement: the two modules of the paper; both False is the plain recommender.
        dim, max_len: see `DTRN`.
        epochs, batch_size, lr: of Adam.
        validation: the last share of the rows, by time, that chooses the epoch; 0 keeps the last epoch.
        model_options: further arguments of `DTRN`.
        random_state: seed; torch's global generator and an order seeded with 0 if None.
        device: where to train.

    Attributes:
        tasks_: names of the K outcomes. behaviours_: names of the M types.
        features_: names of the F features that a refinement weighs.
        model_: the trained `DTRN`. fit_: the `MultiTaskFit` of the training.
        vocabulary_: by field, the values that have a row of their own.
        n_features_in_: how many columns are read.
    """

    def __init__(
        self,
        *,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        behaviour: str = "behaviour",
        item_fields: Sequence[str] = (),
        context: Sequence[str] = (),
        behaviours: Sequence[Any] | None = None,
        head: HeadName = "mmoe",
        interest: bool = True,
        refinement: bool = True,
        dim: int = 16,
        max_len: int = 20,
        epochs: int = 5,
        batch_size: int = 1024,
        lr: float | int = 1e-3,
        validation: float | int = 0.1,
        model_options: Mapping[str, Any] | None = None,
        random_state: int | None = None,
        device: str = "cpu",
    ):
        self.user = user
        self.item = item
        self.time = time
        self.behaviour = behaviour
        self.item_fields = item_fields
        self.context = context
        self.behaviours = behaviours
        self.head = head
        self.interest = interest
        self.refinement = refinement
        self.dim = dim
        self.max_len = max_len
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.validation = validation
        self.model_options = model_options
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, Y: Any = None, groups: Any = None, *, log: Any = None) -> "MultiTaskRecommender":
        """Trains.

        Args:
            X: rows shown: a DataFrame, a dict of columns, or the path of a `.csv` or `.parquet` file.
            Y: outcomes (n, K), 0, 1 or NaN where one is not known: an array, a DataFrame whose columns name them, or
                the names of columns of X. If None, X is a log of events, and the outcomes of a (user, item, time) are
                its types of behaviour; for each such row one more is made, with an item that the user never touches
                and no outcome (context columns are the row's own).
            groups: not used; there for the sake of scikit-learn's splitters.
            log: events, with the columns user, item, time, behaviour and the item fields, that histories are made of;
                the rows of X if None, of which those without a behaviour are no events.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if a column or value is missing, times are text or have no common zone, Y is not a matrix of 0,
                1 and NaN, an outcome has one value only among the training rows, a type of behaviour is not in the log,
                or all histories are empty.
        """
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must lie in [0, 1), got {self.validation}")
        shown = table_of(X)
        events = self._events(shown if log is None else table_of(log))
        if Y is None:
            shown, labels, names = self._outcomes(shown)
        else:
            labels, names = labels_of(shown, Y)
        self.tasks_ = names
        columns = self._columns(shown, len(labels))
        held_out = last_of(columns[self.time], float(self.validation))
        for task, known in zip(names, labels[~held_out].T):
            values = np.unique(known[~np.isnan(known)])
            if len(values) < 2:
                raise ValueError(f"the outcome {task!r} must be 0 and 1 among the training rows, it is {values}")
        self.vocabulary_ = self._vocabulary(columns, held_out, events)
        self.n_features_in_ = len(columns)
        self._past = events
        rows = self._rows(columns, labels)
        if not bool((rows.stops > rows.starts).any()):
            raise ValueError(
                f"every history is empty: of {len(labels)} rows none has an event of the same {self.user} before its "
                f"{self.time}"
            )
        self._train(rows, held_out)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, K) probabilities, in the order of the rows of X and of `tasks_`.

        Raises:
            ValueError: as for `fit`.
        """
        check_is_fitted(self, "model_")
        return predict_multitask(self.model_, self._read(X), self.max_len)

    def predict(self, X: Any) -> np.ndarray:
        """(n, K) outcomes, 0 or 1."""
        return (self.predict_proba(X) >= 0.5).astype(np.int64)

    def score(self, X: Any, Y: Any) -> float:
        """Mean AUC over the outcomes; see `task_scores` for each, which a mean can hide."""
        return float(np.mean(list(self.task_scores(X, Y).values())))

    def task_scores(self, X: Any, Y: Any) -> dict[str, float]:
        """AUC of each outcome, over the rows where it is known.

        Raises:
            ValueError: if an outcome has one value only.
        """
        scores = self.predict_proba(X)
        labels, _ = labels_of(table_of(X), Y)
        if labels.shape != scores.shape:
            raise ValueError(f"Y must have shape {scores.shape}, got {labels.shape}")
        return dict(zip(self.tasks_, task_aucs(labels, scores)))

    def gauc(self, X: Any, Y: Any, groups: Any = None) -> dict[str, float]:
        """For each outcome the mean over users of the AUC within a user, weighted by the user's rows.

        Args:
            X, Y: as for `score`.
            groups: (n,) whose row each is; the users if None.

        Users whose known labels are all alike have no AUC and take no part.

        Raises:
            ValueError: if no user has both labels of an outcome.
        """
        table, scores = table_of(X), self.predict_proba(X)
        labels, _ = labels_of(table, Y)
        whose = column(table, self.user) if groups is None else np.asarray(groups)
        found = {}
        for name, y, p in zip(self.tasks_, labels.T, scores.T):
            known = ~np.isnan(y)
            try:
                found[name] = gauc(y[known], p[known], whose[known])
            except ValueError as error:
                raise ValueError(f"no user has both labels of {name!r}: {error}") from error
        return found

    def refinement_weights(self, X: Any) -> np.ndarray:
        """How much each outcome makes of each feature: (n, K, F), in the order of `features_`; 1 is "as it is".

        Raises:
            ValueError: if the model was made without refinement.
        """
        if not self.refinement:
            raise ValueError("the model has no refinement: make the estimator with refinement=True")
        return self._bottoms(X, lambda bottom: bottom.weights)

    def interests(self, X: Any) -> np.ndarray:
        """What each outcome draws from each type of behaviour: (n, K, M, d); without `interest` (n, 1, M, d)."""
        return self._bottoms(X, lambda bottom: bottom.interests)

    def attention(self, X: Any) -> np.ndarray:
        """How much each outcome looks at each event: (n, K, M, T), oldest event first, 0 in the padding."""
        rows = self._read(X)
        longest = int((rows.stops - rows.starts).clamp(max=self.max_len).max()) if len(rows) else 0

        def padded(bottom: Bottom) -> torch.Tensor:
            return torch.nn.functional.pad(bottom.attention, (0, max(longest, 1) - bottom.attention.shape[-1]))

        return self._bottoms(X, padded)

    @property
    def _item_names(self) -> tuple[str, ...]:
        return (self.item, *self.item_fields)

    def _vocabulary(
        self, columns: dict[str, np.ndarray], held_out: np.ndarray, events: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The values of the training rows and of the events up to them; what comes later is unknown."""
        known = {name: columns[name][~held_out] for name in (*self._item_names, *self.context)}
        try:
            before = events[self.time] <= columns[self.time][~held_out].max()
            for name in self._item_names:
                known[name] = np.concatenate([known[name], events[name][before]])
            return {name: np.unique(values) for name, values in known.items()}
        except TypeError as error:
            raise ValueError(f"the log and the rows shown, or rows of one column, differ in type: {error}") from error

    def _train(self, rows: MultiTaskRows, held_out: np.ndarray) -> None:
        seeded = self.random_state is not None
        later = torch.from_numpy(held_out)
        val = rows.subset(later)
        both = all(len(known[~known.isnan()].unique()) == 2 for known in val.labels.unbind(1))
        with torch.random.fork_rng(enabled=seeded):
            if seeded:
                torch.manual_seed(self.random_state)
            sizes = {name: len(values) + 2 for name, values in self.vocabulary_.items()}
            self.model_ = DTRN(
                [Field(name, sizes[name]) for name in self._item_names], [str(name) for name in self.behaviours_],
                len(self.tasks_), self.head, self.interest, self.refinement,
                context=[Field(name, sizes[name]) for name in self.context], dim=self.dim, max_len=self.max_len,
                **dict(self.model_options or {}),
            ).to(self.device)  # fmt: skip
            self.features_ = [*self.context, self.item, *map(str, self.behaviours_)]
            self.fit_ = fit_multitask(
                self.model_, rows.subset(~later), val if both else None, max_len=self.max_len, epochs=self.epochs,
                batch_size=self.batch_size, lr=self.lr,
                generator=torch.Generator().manual_seed(self.random_state or 0),
            )  # fmt: skip

    @torch.no_grad()
    def _bottoms(self, X: Any, part: Any) -> np.ndarray:
        check_is_fitted(self, "model_")
        rows = self._read(X)
        self.model_.eval()
        parts = torch.arange(len(rows)).split(1024)
        bottoms = (self.model_.bottom(*rows.batch(index, self.max_len).to(self.device)) for index in parts)
        return torch.cat([part(bottom) for bottom in bottoms]).cpu().numpy()

    def _outcomes(self, log: Any) -> tuple[Any, np.ndarray, list[str]]:
        """Rows with an outcome for each behaviour of a log, then as many without any."""
        wanted = (self.user, self.time, *self._item_names, *self.context)
        there = pd.notna(column(log, self.behaviour))
        frame = pd.DataFrame({name: pd.Series(log[name]) for name in wanted})[there].reset_index(drop=True)
        kind = pd.Index(self.behaviours_).get_indexer(pd.Index(column(log, self.behaviour)[there]))
        user, item = (pd.factorize(frame[name])[0] for name in (self.user, self.item))
        moment = pd.factorize(frame[self.time])[0]
        first, outcomes = joint_outcomes(user, item, moment, kind, len(self.behaviours_))
        rng = np.random.default_rng(self.random_state or 0)
        never = untouched_items(user[first], item[first], rng)
        example = np.unique(item, return_index=True)[1][never]
        rows, others = frame.iloc[first].reset_index(drop=True), frame.iloc[first].reset_index(drop=True)
        for name in self._item_names:
            others[name] = frame[name].iloc[example].to_numpy()
        labels = np.concatenate([outcomes, np.zeros_like(outcomes)])
        return pd.concat([rows, others], ignore_index=True), labels, [str(name) for name in self.behaviours_]

    def _read(self, X: Any) -> MultiTaskRows:
        check_is_fitted(self, "vocabulary_")
        columns = self._columns(table_of(X), None)
        return self._rows(columns, np.full((len(columns[self.user]), len(self.tasks_)), np.nan))

    def _events(self, log: Any) -> dict[str, np.ndarray]:
        """The columns of the events, with the number of their type; sets `behaviours_`."""
        kinds = column(log, self.behaviour)
        there = pd.notna(kinds)
        found = sorted(set(kinds[there].tolist()))
        self.behaviours_ = found if self.behaviours is None else list(self.behaviours)
        absent = [name for name in self.behaviours_ if name not in found]
        unnamed = [name for name in found if name not in self.behaviours_]
        if absent or unnamed or not found:
            raise ValueError(
                f"the column {self.behaviour!r} holds {found}: of the behaviours asked for, {absent} are not there; "
                f"{unnamed} are not asked for"
            )
        columns = {name: column(log, name)[there] for name in (self.user, *self._item_names)}
        columns[self.time] = times_of(log, self.time)[there]
        check_complete(columns)
        columns[self.behaviour] = pd.Index(self.behaviours_).get_indexer(pd.Index(kinds[there]))
        return columns

    def _columns(self, table: Any, n: int | None) -> dict[str, np.ndarray]:
        # The user may be a context column too: then it has a table of its own.
        names = (self.user, *self._item_names, *(name for name in self.context if name != self.user))
        if len({*names, self.time, self.behaviour}) < len(names) + 2:
            raise ValueError(f"user, time, behaviour, item, item_fields and context must be different, got {names}")
        columns = {name: column(table, name) for name in names} | {self.time: times_of(table, self.time)}
        n = len(columns[self.user]) if n is None else n
        if not n:
            raise ValueError("there are no rows")
        for name, values in columns.items():
            if values.shape != (n,):
                raise ValueError(f"the column {name!r} must have {n} rows, got shape {values.shape}")
        check_complete(columns)
        return columns

    def _rows(self, columns: dict[str, np.ndarray], labels: np.ndarray) -> MultiTaskRows:
        """Rows as ids; the users are numbered with those of the events."""
        past = self._past
        before = len(past[self.user])
        try:
            _, users = np.unique(np.concatenate([past[self.user], columns[self.user]]), return_inverse=True)
            moments = np.concatenate([past[self.time], columns[self.time]])
        except TypeError as error:
            raise ValueError(f"{self.user!r} or {self.time!r} is of another type than in the log") from error
        order, starts, stops = behaviour_spans(
            users[:before], moments[:before], past[self.behaviour], len(self.behaviours_), users[before:],
            moments[before:],
        )  # fmt: skip

        def ids(source: Mapping[str, np.ndarray], names: Sequence[str], rows: Any = slice(None)) -> torch.Tensor:
            coded = [codes_of(source[name][rows], self.vocabulary_[name], name) for name in names]
            return torch.from_numpy(np.stack(coded, 1)) if coded else torch.empty(len(labels), 0, dtype=torch.int64)

        return MultiTaskRows(
            targets=ids(columns, self._item_names),
            events=ids(past, self._item_names, order),
            starts=torch.from_numpy(starts),
            stops=torch.from_numpy(stops),
            labels=torch.from_numpy(labels.astype(np.float32)),
            users=torch.from_numpy(users[before:].astype(np.int64)),
            context=ids(columns, tuple(self.context)),
        )
