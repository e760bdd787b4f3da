"""Kernels beside neural-tangents, the Hilbert estimate beside scikit-learn, the designed activation beside GELU."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.nn.dual import DualActivation, dual_activation
from etude.theory.wide_deep_optimality import (
    DeepNTKClassifier,
    RareCap,
    SingularKernelClassifier,
    deep_ntk,
    kernel_matrix,
    koenigs,
    optimal_activation,
    squared_distances,
)

_POINTS = 1_500


def _kernel(x: Tensor, other: Tensor, dual: DualActivation, depth: int) -> Tensor:
    e = squared_distances(x, other).div_(2)
    return deep_ntk(1 - e, dual, depth, scaled=False, complement=e)


def _limit(x: Tensor, other: Tensor, dual: DualActivation) -> Tensor:
    e = squared_distances(x, other).div_(2)
    return koenigs(1 - e, dual, complement=e)


def _neural_tangents(name: str, depth: int, x: np.ndarray, other: np.ndarray) -> Callable[[], Any]:
    import jax
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", True)
    activation, gain = {
        "ReLU": (stax.Relu(do_stabilize=False), 2.0),
        "erf": (stax.Erf(), math.pi / 2 / math.asin(2 / 3)),
    }[name]
    layers = [stax.Dense(1, W_std=1, b_std=None)]
    for _ in range(depth):
        layers += [activation, stax.Dense(1, W_std=math.sqrt(gain), b_std=None)]
    kernel = jax.jit(partial(stax.serial(*layers)[2], get="ntk"))
    # Its inputs are scaled by 1 / columns.
    scaled = [jax.numpy.asarray(rows * math.sqrt(rows.shape[1])) for rows in (x, other)]
    return lambda: kernel(*scaled).block_until_ready()


def _against_neural_tangents(x: Tensor, other: Tensor) -> list[Comparison]:
    try:
        import neural_tangents  # noqa: F401
    except ImportError:
        return []
    found = []
    for name, phi in (("ReLU", torch.relu), ("erf", torch.erf)):
        dual = dual_activation(phi)
        for depth in (3, 10):
            peer = _neural_tangents(name, depth, x.numpy(), other.numpy())
            for what, ours in (("layer by layer", _kernel), ("by table", kernel_matrix)):
                found.append(
                    Comparison(
                        f"NTK, {name}, {depth} layers, {_POINTS} x {_POINTS}, float64, {what}",
                        partial(ours, x, other, dual, depth), peer, "neural-tangents, compiled",
                        "its compile time is left out; ours has none, and making the table counts",
                    )
                )  # fmt: skip
            mine = kernel_matrix(x, other, dual, depth) * dual.q1 ** (0 if dual.q0 else depth)
            np.testing.assert_allclose(mine.numpy(), np.asarray(peer()), rtol=1e-8)
    return found


def _training_step(activation: nn.Module) -> Callable[[], None]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 1024), activation, nn.Linear(1024, 1024), activation, nn.Linear(1024, 10))
    x, y = torch.randn(128, 64), torch.randint(10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def comparisons() -> list[Comparison]:
    from sklearn.neighbors import KNeighborsClassifier

    task = RareCap(2)
    x, y, _ = task.sample(_POINTS, torch.Generator().manual_seed(0))
    other, _, _ = task.sample(_POINTS, torch.Generator().manual_seed(1))
    found = _against_neural_tangents(x, other)
    designed = dual_activation(optimal_activation(2))
    found.append(
        Comparison(
            f"kernel of infinite depth, {_POINTS} x {_POINTS}, by table",
            partial(kernel_matrix, x, other, designed, None), partial(_limit, x, other, designed),
            "every pair through all layers", "ten digits in common; making the table counts",
        )
    )  # fmt: skip
    points, labels, new = x.numpy(), y.numpy(), other.numpy()
    votes = KNeighborsClassifier(len(points), weights=lambda distance: distance**-2.0, algorithm="brute")
    votes.fit(points, labels)
    hilbert = SingularKernelClassifier(2.0).fit(points, labels)
    np.testing.assert_allclose(hilbert.predict_proba(new), votes.predict_proba(new), atol=1e-9)
    for name, ours in (("Hilbert estimate", hilbert), ("network of infinite depth", DeepNTKClassifier())):
        ours.fit(points, labels)
        found.append(
            Comparison(
                f"{name}, {_POINTS} test x {_POINTS} training points",
                partial(ours.predict, new), partial(votes.predict, new), "scikit-learn kNN, weights |x - x_i|^-2",
                "the same votes" if ours is hilbert else "the peer computes what it tends to",
            )
        )  # fmt: skip
    found.append(
        Comparison(
            "training step, MLP of width 1,024, batch 128",
            _training_step(optimal_activation(2)), _training_step(nn.GELU()), "the same step with GELU",
            "what the designed activation costs in a network",
        )
    )  # fmt: skip
    return found
