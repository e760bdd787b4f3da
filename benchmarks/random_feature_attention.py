"""Fits, searches of the penalty and predictions beside scikit-learn's on explicit features; the kernel by blocks."""

import math
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.compare import Comparison
from etude.theory.random_feature_attention import (
    RIDGES,
    RandomFeatureAttention,
    RFAKernel,
    RFARegressor,
    Target,
    Tokens,
    TokenTask,
    fit_ridge,
)

_N, _DIM, _KEYS, _HEADS, _RIDGE = 1_024, 8, 8, 400, 1e-4
_SIZES = f"n = {_N:,}, d = N = {_DIM}, {_HEADS} heads"
_FOLDS = 5


def _explicit(layer: RandomFeatureAttention, tokens: Tokens) -> np.ndarray:
    """Psi, all heads and examples at once, as one would write it down."""
    x0, x = F.pad(tokens.query, (0, 1), value=1.0), F.pad(tokens.keys, (0, 1), value=1.0)
    scores = torch.einsum("ne,mef,nif->nmi", x0, layer.weight.double(), x)
    phi = torch.einsum("nmi,nif->nmf", scores.relu(), x) / x.shape[1]
    return (phi.flatten(1) / math.sqrt(layer.num_heads)).numpy()


def _kernel_at_once(tokens: Tokens) -> Tensor:
    """The kernel of infinitely many heads from arrays over all pairs of keys."""
    x0, x = F.pad(tokens.query, (0, 1), value=1.0), F.pad(tokens.keys, (0, 1), value=1.0)
    products = torch.einsum("nie,mje->nmij", x, x)
    lengths = x0.norm(dim=1)[:, None] * x.norm(dim=2)
    scales = lengths[:, None, :, None] * lengths[None, :, None, :]
    rho = ((x0 @ x0.T)[:, :, None, None] * products / scales).clamp(-1, 1)
    kappa = ((1 - rho.square()).sqrt() + (math.pi - rho.arccos()) * rho) / math.pi
    return (products * scales * kappa / 8).mean((2, 3))


def comparisons() -> list[Comparison]:
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold

    task = TokenTask(_DIM, _KEYS, (Target("mean_power", 2),))
    generator = torch.Generator().manual_seed(0)
    tokens, y = task(_N, generator)
    y = (y - y.mean(0)) / y.std(0, correction=0)
    layer = RandomFeatureAttention(_DIM, _HEADS, generator=generator).double()
    scale = float(layer.gram(tokens).diagonal().mean())
    targets = y[:, 0].numpy()

    ridge = Ridge(alpha=_RIDGE * scale * _N, fit_intercept=False)
    fit_ridge(layer, tokens, y, _RIDGE)
    np.testing.assert_allclose(
        layer.predict(tokens)[:, 0], ridge.fit(psi := _explicit(layer, tokens), targets).predict(psi), atol=1e-6
    )
    kernel_ridge = KernelRidge(alpha=_RIDGE * scale * _N, kernel="linear")

    X = torch.cat([tokens.query[:, None], tokens.keys], dim=1).numpy()
    folds = KFold(_FOLDS)
    ours = RFARegressor(_HEADS, cv=folds, random_state=0)
    grid = {"alpha": [value * scale * _N for value in RIDGES]}
    search = GridSearchCV(Ridge(fit_intercept=True), grid, cv=folds, scoring="neg_mean_squared_error")

    few = tokens[:128]
    torch.testing.assert_close(RFAKernel().gram(few), _kernel_at_once(few))
    return [
        Comparison(
            f"features, {_SIZES}, float64",
            partial(layer.features, tokens.query, tokens.keys), partial(_explicit, layer, tokens),
            "einsum over everything at once", "checks of the tokens included",
        ),
        Comparison(
            f"fit at one ridge, {_SIZES}", partial(fit_ridge, layer, tokens, y, _RIDGE),
            lambda: ridge.fit(_explicit(layer, tokens), targets), "scikit-learn Ridge, explicit features",
            "the same solution to six digits; ours holds 16 MB of features at a time, the peer all 30",
        ),
        Comparison(
            f"fit at one ridge, {_SIZES}", partial(fit_ridge, layer, tokens, y, _RIDGE),
            lambda: kernel_ridge.fit(_explicit(layer, tokens), targets), "scikit-learn KernelRidge, linear",
            "ours also turns the dual solution into values",
        ),
        Comparison(
            f"fit with {len(RIDGES)} ridges by {_FOLDS} folds, {_SIZES}",
            lambda: ours.fit(X, targets), lambda: search.fit(_explicit(layer, tokens), targets),
            "GridSearchCV of Ridge, explicit features", "one eigendecomposition a fold serves all ridges",
        ),
        Comparison(
            f"prediction, {_SIZES}", partial(layer.predict, tokens),
            lambda: ridge.predict(_explicit(layer, tokens)), "explicit features, scikit-learn Ridge",
        ),
        Comparison(
            f"kernel of infinitely many heads, 128 x 128, N = {_KEYS}",
            partial(RFAKernel().gram, few), partial(_kernel_at_once, few), "arrays over all pairs of keys",
            "half the pairs, by symmetry, in blocks that caches hold",
        ),
    ]  # fmt: skip
