"""Alternating least squares beside the same network trained by torch, and the linear program beside the Lasso."""

from functools import partial

import numpy as np
import torch
from torch import nn

from benchmarks.compare import Comparison
from etude.transfer.active_mtrl import LinearMTR, LinearOracle, draw_instance, l1_relevance, subspace_error

_DIM, _RANK, _TASKS, _SAMPLES = 40, 5, 50, 100


def _trained(X: torch.Tensor, y: torch.Tensor, basis: torch.Tensor, steps: int) -> torch.Tensor:
    """y = X B w_t by full-batch L-BFGS on all tasks at once, from a random start."""
    B = nn.Parameter(basis.clone())
    W = nn.Parameter(torch.zeros(_TASKS, _RANK, dtype=torch.float64).fill_(0.1))
    optimizer = torch.optim.LBFGS([B, W], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (((X @ B) * W[:, None]).sum(-1) - y).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return torch.linalg.qr(B.detach())[0]


def _relaxed(heads: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The L1 program as a Lasso with next to no penalty."""
    from sklearn.linear_model import Lasso

    return Lasso(alpha=1e-4 / len(target), fit_intercept=False, max_iter=100_000, tol=1e-8).fit(heads, target).coef_


def comparisons() -> list[Comparison]:
    instance = draw_instance(_DIM, _RANK, _TASKS, np.random.default_rng(0))
    oracle = LinearOracle(instance, 0)
    data = [oracle(task, _SAMPLES) for task in range(_TASKS)]
    X, y = [x for x, _ in data], [labels for _, labels in data]
    stacked = torch.from_numpy(np.stack(X)), torch.from_numpy(np.stack(y))
    start = torch.randn(_DIM, _RANK, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = instance.basis @ instance.target
    ours = subspace_error(LinearMTR(_RANK).fit(X, y).basis_, direction)
    theirs = subspace_error(_trained(*stacked, start, 300).numpy(), direction)
    exact, relaxed = l1_relevance(instance.heads, instance.target), _relaxed(instance.heads, instance.target)
    return [
        Comparison(
            f"shared basis of {_TASKS} tasks x {_SAMPLES} samples, {_DIM} features, rank {_RANK}",
            lambda: LinearMTR(_RANK).fit(X, y), partial(_trained, *stacked, start, 300), "torch L-BFGS, 300 steps",
            f"the target's direction is missed by {ours:.4f} (ours) and {theirs:.4f}",
        ),
        Comparison(
            f"L1 relevance of {_TASKS} heads of rank {_RANK}",
            partial(l1_relevance, instance.heads, instance.target), partial(_relaxed, instance.heads, instance.target),
            "scikit-learn Lasso, lambda 1e-4",
            f"norms {np.abs(exact).sum():.4f} (a linear program, exact) and {np.abs(relaxed).sum():.4f}",
        ),
    ]  # fmt: skip
