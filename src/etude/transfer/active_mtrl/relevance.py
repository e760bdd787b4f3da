"""Which source tasks matter to a target: mixing vectors nu with W nu = w.

The heads of the source tasks are the columns of W (k, T), w (k,) is the target's head:

    nu^1 = argmin ||nu||_1  s.t. W nu = w          a linear program; a vertex has at most k non-zeros            (1)
    nu^2 = argmin ||nu||_2  s.t. W nu = w          = W^+ w, dense                                                (2)
    nu_lambda = argmin 1/2 ||W nu - w||^2 + lambda ||nu||_1      where both are estimates                        (3)

Always ||nu^1||_1 <= ||nu^2||_1 <= sqrt(T) ||nu^2||_2. With n_t samples of source t and noise of variance s^2, the error
of the target's head that the sources leave is bounded by s^2 times

    sum_t nu_t^2 / n_t   for a given nu,  and is   w' (sum_t n_t w_t w_t')^-1 w   for the best nu.               (4)
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import linprog

__all__ = ["l1_relevance", "l2_relevance", "lasso_relevance", "realised_risk", "risk_bound"]

Vector = Float[np.ndarray, "tasks"]

_SPANNED = 1e-8
"""Share of ||w|| below which a residual is rounding."""
_ON_THE_PATH = 200


def l1_relevance(heads: ArrayLike, target: ArrayLike, *, weights: Sequence[float] | ArrayLike | None = None) -> Vector:
    """The sparsest explanation of the target, Eq. (1), as a linear program.

        nu = l1_relevance(model.heads_, target_head)

    Args:
        heads: W, (k, tasks). target: w, (k,).
        weights: positive weights of |nu_t|; sqrt(a_t) where a sample of task t costs a_t.

    Returns:
        nu, (tasks,): a vertex of the program, with at most k entries that are not zero.

    Raises:
        ValueError: if w is no mixture of the columns (fewer tasks than k, or W of a lower rank), or shapes do not fit.
    """
    W, w = _checked(heads, target)
    tasks = W.shape[1]
    price = np.ones(tasks) if weights is None else np.asarray(weights, dtype=np.float64)
    if price.shape != (tasks,) or not bool(np.all(price > 0)) or not bool(np.isfinite(price).all()):
        raise ValueError(f"weights must be {tasks} positive numbers, got {price.tolist()[:12]}")
    residual = float(np.linalg.norm(W @ (np.linalg.pinv(W) @ w) - w))
    # The scale of w is taken out, so that the solver's absolute tolerances are relative ones.
    scale = float(np.linalg.norm(w))
    if residual > _SPANNED * scale:
        raise ValueError(
            f"infeasible: no mixture of the {tasks} heads is the target; {residual:.3g} of its length {scale:.3g} lies "
            f"outside their span of dimension {np.linalg.matrix_rank(W)} of {len(w)}"
        )
    if scale == 0:
        return np.zeros(tasks)
    found = linprog(np.tile(price, 2), A_eq=np.hstack([W, -W]), b_eq=w / scale, bounds=(0, None), method="highs-ds")
    if not found.success:
        raise ValueError(f"the linear program has no solution: {found.message}")
    nu = found.x[:tasks] - found.x[tasks:]
    support = np.flatnonzero(nu)
    if len(support) <= len(w):
        # A vertex is known by its support; solving there takes the solver's tolerance away.
        refined = np.linalg.lstsq(W[:, support], w / scale, rcond=None)[0]
        if np.allclose(refined, nu[support], atol=1e-6):
            nu[support] = refined
    return scale * nu


def l2_relevance(heads: ArrayLike, target: ArrayLike) -> Vector:
    """The shortest explanation of the target, Eq. (2); of its projection, with a warning, if it is no mixture.

    Args:
        heads: W, (k, tasks). target: w, (k,).

    Raises:
        ValueError: if shapes do not fit or a number is not finite.
    """
    W, w = _checked(heads, target)
    nu = np.linalg.pinv(W) @ w
    residual = float(np.linalg.norm(W @ nu - w))
    if residual > _SPANNED * float(np.linalg.norm(w)):
        warnings.warn(
            f"the target is no mixture of the heads: {residual:.3g} of its length {float(np.linalg.norm(w)):.3g} lies "
            "outside their span, and the relevance is that of its projection",
            RuntimeWarning,
            stacklevel=2,
        )
    return nu


def lasso_relevance(
    heads: ArrayLike,
    target: ArrayLike,
    *,
    lam: float | int | str = "auto",
    noise: float | int | None = None,
    max_tasks: int | None = None,
) -> Vector:
    """Relevance from estimated heads, Eq. (3), by scikit-learn's Lasso.

        nu = lasso_relevance(model.heads_, estimated_target_head, lam=0.05)

    Args:
        heads: estimate of W, (k, tasks). target: estimate of w, (k,).
        lam: lambda; scikit-learn's alpha is lambda / k. "auto" takes the sparsest point of the path whose residual
            ||W nu - w|| is what the target's own noise leaves, 1.5 `noise` sqrt(k).
        noise: standard error of an entry of `target`; needed by "auto".
        max_tasks: instead of `lam`, the point with the least lambda that uses no more tasks than this.

    Returns:
        nu, (tasks,). It is all zero if lambda is at least max |W' w|.

    Raises:
        ValueError: if lambda is negative, `noise` is missing, or `max_tasks` is below 1.
    """
    from sklearn.linear_model import Lasso, lasso_path

    W, w = _checked(heads, target)
    k = len(w)
    if max_tasks is None and not isinstance(lam, str):
        if not 0 <= lam < float("inf"):
            raise ValueError(f"lam must be finite and not negative, got {lam}")
        if lam == 0:
            return l1_relevance(W, w) if np.linalg.matrix_rank(W) == k else l2_relevance(W, w)
        model = Lasso(alpha=lam / k, fit_intercept=False, max_iter=100_000, tol=1e-8)
        return np.asarray(model.fit(W, w).coef_, dtype=np.float64)
    if max_tasks is None and lam != "auto":
        raise ValueError(f'lam must be a number or "auto", got {lam!r}')
    if max_tasks is not None and max_tasks < 1:
        raise ValueError(f"max_tasks must be at least 1, got {max_tasks}")
    largest = float(np.abs(W.T @ w).max())
    if largest == 0:
        return np.zeros(W.shape[1])
    alphas = largest / k * np.geomspace(1, 1e-5, _ON_THE_PATH)
    _, path, _ = lasso_path(W, w, alphas=alphas, max_iter=100_000, tol=1e-8)
    if max_tasks is not None:
        fits = (path != 0).sum(axis=0) <= max_tasks
        return path[:, int(np.flatnonzero(fits)[-1])] if not fits.all() else path[:, -1]
    if noise is None or not 0 <= noise < float("inf"):
        raise ValueError(f'lam="auto" needs noise, the standard error of the target head, not negative; got {noise}')
    residuals = np.linalg.norm(W @ path - w[:, None], axis=0)
    enough = np.flatnonzero(residuals <= 1.5 * noise * np.sqrt(k))
    return path[:, int(enough[0]) if len(enough) else -1]


def risk_bound(relevance: ArrayLike, samples: ArrayLike) -> float:
    """sum_t nu_t^2 / n_t, Eq. (4): what a plan of samples leaves if the target is explained by this nu.

    Args:
        relevance: nu, (tasks,). samples: n, (tasks,), not negative; infinite where a relevant task has none.
    """
    nu, n = np.asarray(relevance, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    if nu.shape != n.shape or nu.ndim != 1 or bool((n < 0).any()):
        raise ValueError(f"relevance and samples must be as many, none negative, got {nu.shape} and {n.shape}")
    used = nu != 0
    if bool((n[used] == 0).any()):
        return float("inf")
    return float((nu[used] ** 2 / n[used]).sum())


def realised_risk(heads: ArrayLike, target: ArrayLike, samples: ArrayLike) -> float:
    """w' (sum_t n_t w_t w_t')^-1 w, Eq. (4): the least `risk_bound` over all nu; infinite where the samples do not
    span w.

    Args:
        heads: W, (k, tasks). target: w, (k,). samples: n, (tasks,), not negative.
    """
    W, w = _checked(heads, target)
    n = np.asarray(samples, dtype=np.float64)
    if n.shape != (W.shape[1],) or bool((n < 0).any()):
        raise ValueError(f"samples must be {W.shape[1]} numbers, none negative, got shape {n.shape}")
    gram = (W * n) @ W.T
    solution = np.linalg.pinv(gram, hermitian=True) @ w
    if float(np.linalg.norm(gram @ solution - w)) > 1e-6 * float(np.linalg.norm(w)):
        return float("inf")
    return float(w @ solution)


def _checked(heads: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    W, w = np.asarray(heads, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if W.ndim != 2 or w.shape != (W.shape[0],) or not W.size:
        raise ValueError(f"heads must be (k, tasks) and target (k,), got shapes {W.shape} and {w.shape}")
    if not bool(np.isfinite(W).all() and np.isfinite(w).all()):
        raise ValueError("heads and target must be finite")
    return W, w
