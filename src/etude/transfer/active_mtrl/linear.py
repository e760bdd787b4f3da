"""Linear representations that many tasks share, by alternating least squares.

    y_t = X_t B w_t + noise,  B (d, k) with orthonormal columns, one head w_t a task                             (1)
    (B, W) = argmin sum_t ||y_t - X_t B w_t||^2 + ridge (||B w_t||^2 summed over tasks)                          (2)

The sum runs over samples, so that a task counts as much as it has of them: that is how an allocation of samples acts.
Each task enters by A_t = X_t' X_t and c_t = X_t' y_t alone:

    w_t = (B' A_t B + ridge I)^+ B' c_t;    sum_t (w_t w_t') kron (A_t + ridge I) vec B = vec sum_t c_t w_t'      (3)

in turns, from the first left singular vectors of the tasks' ridge solutions, weighted by sqrt(n_t); after each step B
is made orthonormal again, which changes nothing in (2).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.base import BaseEstimator

__all__ = ["LinearMTR", "head_noise", "subspace_distance", "subspace_error"]

_DENSE = 4_000
"""Unknowns dk up to which Eq. (3) is written out: 128 MB."""
_START = 1e-2
"""Ridge of the start relative to the mean of the squared features, so that tasks of few samples have one solution."""
_CG_STEPS = 10


class LinearMTR(BaseEstimator):
    """A shared linear representation and a head for each task, Eq. (2).

        model = LinearMTR(rank=5).fit([X1, X2, X3], [y1, y2, y3])
        head = model.fit_head(X_target, y_target)
        model.predict(X_new, head)

    Args:
        rank: k.
        ridge: penalty on the size of B w_t, >= 0.
        max_iter: rounds at most.
        tol: rounds end when the projector B B' moves by less than this in Frobenius' norm.
        solver: of Eq. (3): "dense" writes the dk x dk system out, "cg" runs conjugate gradients from the last B for 10
            steps, "auto" takes "dense" up to 4,000 unknowns.

    Attributes:
        basis_: B, (d, k). heads_: W, (k, tasks).
        objective_: Eq. (2) after each round, never rising with the dense solver.
        n_iter_: rounds.

    Raises:
        ValueError: if lists or shapes do not fit, the rank exceeds the features, numbers are not finite, or the dense
            system is asked for above 4,000 unknowns.
    """

    def __init__(
        self,
        rank: int,
        ridge: float | int = 0.0,
        max_iter: int = 50,
        tol: float | int = 1e-6,
        solver: str = "auto",
    ):
        self.rank, self.ridge, self.max_iter, self.tol, self.solver = rank, ridge, max_iter, tol, solver

    def fit(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> "LinearMTR":
        """Fits all tasks.

        Args:
            X: for each task (n_t, d), n_t >= 1. y: for each task (n_t,).
        """
        tasks = [_task(index, features, labels) for index, (features, labels) in enumerate(_paired(X, y))]
        features = {rows.shape[1] for rows, _ in tasks}
        if len(features) != 1:
            raise ValueError(f"all tasks must have as many features, got {sorted(features)}")
        A = np.stack([rows.T @ rows for rows, _ in tasks])
        c = np.stack([rows.T @ labels for rows, labels in tasks])
        counts = np.array([len(labels) for _, labels in tasks], dtype=np.float64)
        return self._fit(A, c, counts, float(sum(labels @ labels for _, labels in tasks)))

    def _fit(self, A: np.ndarray, c: np.ndarray, counts: np.ndarray, energy: float) -> "LinearMTR":
        d = A.shape[1]
        if not 1 <= self.rank <= d:
            raise ValueError(f"rank must lie in 1..{d}, the number of features, got {self.rank}")
        if not 0 <= self.ridge < math.inf or self.max_iter < 1:
            raise ValueError(f"ridge >= 0 and max_iter >= 1 are needed, got {self.ridge} and {self.max_iter}")
        solver = self._solver(d)
        if self.ridge:
            A = A + self.ridge * np.eye(d)
        basis = _start(A, c, counts, self.rank)
        heads = _heads(basis, A, c)
        self.objective_: list[float] = []
        for _ in range(self.max_iter):
            previous = basis
            basis = np.linalg.qr(solver(A, c, heads, basis))[0]
            heads = _heads(basis, A, c)
            self.objective_.append(_objective(basis, heads, A, c, energy))
            if subspace_distance(basis, previous) < self.tol:
                break
        self.basis_, self.heads_, self.n_iter_ = basis, heads.T, len(self.objective_)
        return self

    def _solver(self, d: int) -> Any:
        if self.solver not in ("auto", "dense", "cg"):
            raise ValueError(f'solver must be "auto", "dense" or "cg", got {self.solver!r}')
        size = d * self.rank
        if self.solver == "dense" and size > _DENSE:
            raise ValueError(
                f"the dense system of {d} x {self.rank} = {size} unknowns takes {8 * size**2 / 1e9:.1f} GB; "
                f'up to {_DENSE} are solved so: take solver="cg"'
            )
        return _dense if self.solver != "cg" and size <= _DENSE else _conjugate_gradients

    def fit_head(self, X: ArrayLike, y: ArrayLike) -> Float[np.ndarray, "rank"]:
        """The head of a new task on the basis that was learned: argmin_w ||y - X B w||^2 + ridge ||w||^2.

        Args:
            X: (n, d). y: (n,).
        """
        rows, labels = _task("new", X, y)
        inner = rows @ self._learned()
        gram = inner.T @ inner + self.ridge * np.eye(self.rank)
        return np.linalg.pinv(gram, hermitian=True) @ (inner.T @ labels)

    def head_noise(self, X: ArrayLike, y: ArrayLike, head: ArrayLike) -> float:
        """Standard error of an entry of a head that was fitted to these samples, root mean square over entries.

        Args:
            X: (n, d). y: (n,). head: (k,).
        """
        rows, labels = _task("new", X, y)
        inner = rows @ self._learned()
        return head_noise(inner, labels - inner @ np.asarray(head, dtype=np.float64), self.ridge)

    def predict(self, X: ArrayLike, task: int | ArrayLike) -> Float[np.ndarray, "n"]:
        """X B w.

        Args:
            X: (n, d).
            task: number of a task that was fitted, or a head (k,).
        """
        head = self.heads_[:, task] if isinstance(task, int) else np.asarray(task, dtype=np.float64)
        rows = np.asarray(X, dtype=np.float64)
        basis = self._learned()
        if rows.ndim != 2 or rows.shape[1] != len(basis) or head.shape != (self.rank,):
            raise ValueError(
                f"X must be (n, {len(basis)}) and a head ({self.rank},), got shapes {rows.shape} and {head.shape}"
            )
        return rows @ basis @ head

    def _learned(self) -> np.ndarray:
        if not hasattr(self, "basis_"):
            raise ValueError("there is no basis yet: call fit first")
        return self.basis_


def head_noise(features: Float[np.ndarray, "n k"], residuals: Float[np.ndarray, "n"], ridge: float | int) -> float:
    """Root mean square standard error of least-squares coefficients.

    Args:
        features: of each sample. residuals: of the fit. ridge: its penalty.
    """
    n, k = features.shape
    variance = float(residuals @ residuals) / max(n - k, 1)
    inverse = np.linalg.pinv(features.T @ features + ridge * np.eye(k), hermitian=True)
    return math.sqrt(variance * float(np.trace(inverse)) / k)


def subspace_error(basis: Float[np.ndarray, "d k"], direction: Float[np.ndarray, "d"]) -> float:
    """||(I - B B') v||^2: how much of a direction the representation misses.

    Args:
        basis: B, orthonormal columns. direction: v.
    """
    return float(np.square(direction - basis @ (basis.T @ direction)).sum())


def subspace_distance(basis: Float[np.ndarray, "d k"], other: Float[np.ndarray, "d k"]) -> float:
    """||B B' - C C'|| in Frobenius' norm, for orthonormal columns."""
    # ||BB' - CC'||^2 = 2 k - 2 ||B'C||^2 would lose half of its digits; this does not.
    return math.sqrt(2) * float(np.linalg.norm(basis - other @ (other.T @ basis)))


def _paired(X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> list[tuple[ArrayLike, ArrayLike]]:
    if len(X) != len(y) or not len(X):
        raise ValueError(f"X and y must be lists of as many tasks, at least one, got {len(X)} and {len(y)}")
    return list(zip(X, y))


def _task(index: int | str, features: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    rows, aims = np.asarray(features, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if rows.ndim != 2 or aims.shape != (len(rows),) or not len(rows):
        raise ValueError(
            f"task {index} must have X (n, d) and y (n,) with n > 0, got shapes {rows.shape} and {aims.shape}"
        )
    if not bool(np.isfinite(rows).all() and np.isfinite(aims).all()):
        raise ValueError(f"task {index} holds NaN or infinite numbers")
    return rows, aims


def _start(A: np.ndarray, c: np.ndarray, counts: np.ndarray, rank: int) -> np.ndarray:
    d = A.shape[1]
    ridge = _START * float(np.trace(A.sum(0))) / d / counts.sum()
    solved = np.linalg.solve(A + ridge * np.eye(d), c[..., None])[..., 0]
    left, values, _ = np.linalg.svd((solved * np.sqrt(counts)[:, None]).T, full_matrices=len(counts) < rank)
    if len(values) < rank or values[rank - 1] <= 1e-12 * values[0]:
        # Fewer directions than the rank: any completion serves.
        left = np.linalg.qr(np.hstack([left[:, : len(values)], np.eye(d)]))[0]
    return left[:, :rank]


def _heads(basis: np.ndarray, A: np.ndarray, c: np.ndarray) -> np.ndarray:
    """(tasks, k); the shortest where a task has fewer samples than k."""
    inner = basis.T @ A @ basis
    return (np.linalg.pinv(inner, hermitian=True) @ (c @ basis)[..., None])[..., 0]


def _objective(basis: np.ndarray, heads: np.ndarray, A: np.ndarray, c: np.ndarray, energy: float) -> float:
    theta = heads @ basis.T
    quadratic = float(np.einsum("ti,tij,tj->", theta, A, theta, optimize=True))
    return energy - 2 * float((theta * c).sum()) + quadratic


def _dense(A: np.ndarray, c: np.ndarray, heads: np.ndarray, basis: np.ndarray) -> np.ndarray:
    d, k = basis.shape
    outer = (heads[:, :, None] * heads[:, None, :]).reshape(len(heads), k * k)
    system = (outer.T @ A.reshape(len(A), d * d)).reshape(k, k, d, d).transpose(0, 2, 1, 3).reshape(k * d, k * d)
    right = (heads.T @ c).reshape(k * d)
    try:
        solution = cho_solve(cho_factor(system, check_finite=False), right, check_finite=False)
        if not bool(np.isfinite(solution).all()):
            raise np.linalg.LinAlgError
    except np.linalg.LinAlgError:
        solution = np.linalg.lstsq(system, right, rcond=None)[0]
    return solution.reshape(k, d).T


def _conjugate_gradients(A: np.ndarray, c: np.ndarray, heads: np.ndarray, basis: np.ndarray) -> np.ndarray:
    d, k = basis.shape

    def product(flat: np.ndarray) -> np.ndarray:
        theta = heads @ flat.reshape(k, d)
        return (heads.T @ (A @ theta[..., None])[..., 0]).reshape(-1)

    operator = LinearOperator((d * k, d * k), matvec=product, dtype=np.float64)
    solution, _ = cg(operator, (heads.T @ c).reshape(-1), x0=basis.T.reshape(-1), rtol=1e-10, maxiter=_CG_STEPS)
    return solution.reshape(k, d).T
