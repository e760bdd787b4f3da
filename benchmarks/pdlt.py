"""Kernels of infinitely wide networks beside neural-tangents, and an ensemble beside networks one by one."""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.theory.pdlt import critical_init, init_critical_, kernel_recursion, ntk_recursion, sample_ensemble

_POINTS, _COLUMNS = 1_500, 64
_C_B, _C_W = 0.1, 1.9
_WHAT = ("nngp", "ntk")


def _neural_tangents(
    name: str, depth: int, x: np.ndarray, other: np.ndarray, what: str
) -> tuple[Callable[[], Any], float]:
    """The peer's call, compiled, and the seconds that its first call took more than its second."""
    import jax
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", True)
    activation = {"ReLU": stax.Relu(do_stabilize=False), "erf": stax.Erf(), "GELU": stax.Gelu(), "sin": stax.Sin()}[
        name
    ]
    dense = stax.Dense(1, W_std=math.sqrt(_C_W), b_std=math.sqrt(_C_B))
    layers = [dense]
    for _ in range(depth - 1):
        layers += [activation, dense]
    kernel = jax.jit(partial(stax.serial(*layers)[2], get=what))
    arrays = jax.numpy.asarray(x), jax.numpy.asarray(other)

    def call() -> Any:
        return kernel(*arrays).block_until_ready()

    started = time.perf_counter()
    call()
    first = time.perf_counter()
    call()
    return call, first - started - (time.perf_counter() - first)


def _ours(activation: Any, depth: int, x: Tensor, other: Tensor, what: str) -> Tensor:
    if what == "nngp":
        return kernel_recursion(activation, _C_B, _C_W, x, depth, other=other, keep="last").value[0]
    # lambda = C is the parameterisation of the peer.
    found = ntk_recursion(
        activation, _C_B, _C_W, x, depth, lambda_b=_C_B, lambda_W=_C_W, other=other, keep="last", with_kernel=False
    )  # fmt: skip
    return found.value[0]


def _against_neural_tangents() -> list[Comparison]:
    # One thread each: torch is told by `compare`, XLA when it starts.
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", flags)
    try:
        import neural_tangents  # noqa: F401
    except ImportError:
        return []
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(_POINTS, _COLUMNS, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for name, activation in (("ReLU", torch.relu), ("erf", torch.erf), ("GELU", nn.GELU()), ("sin", torch.sin)):
        for depth in (3, 10):
            for what in _WHAT:
                ours = partial(_ours, activation, depth, x, other, what)
                peer, compiling = _neural_tangents(name, depth, x.numpy(), other.numpy(), what)
                np.testing.assert_allclose(ours().numpy(), np.asarray(peer()), rtol=1e-8, atol=1e-10)
                found.append(
                    Comparison(
                        f"{what.upper()}, {name}, {depth} layers, {_POINTS} x {_POINTS}, float64", ours, peer,
                        "neural-tangents, compiled",
                        f"its {compiling:.2f} s of compiling, measured in this run, are left out; ours has none",
                    )
                )  # fmt: skip
    return found


def _one_by_one(width: int, depth: int, networks: int) -> Callable[[], None]:
    """The same networks as modules, each with its NTK over neurons by automatic differentiation."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.Tanh()]
    model, x = nn.Sequential(*layers[:-1]), torch.ones(1, width)

    def call() -> None:
        for _ in range(networks):
            init_critical_(model, torch.tanh, generator=generator)
            parameters = dict(model.named_parameters())

            def output(weights: dict[str, Tensor]) -> Tensor:
                return torch.func.functional_call(model, weights, (x,))[0]

            jacobians = torch.func.jacrev(output)(parameters)
            sum(j.flatten(1) @ j.flatten(1).T for j in jacobians.values())

    return call


def comparisons() -> list[Comparison]:
    width, depth, networks = 64, 5, 50
    point = critical_init(torch.tanh)
    ensemble = partial(
        sample_ensemble, torch.tanh, width, depth, networks, C_b=point.C_b, C_W=point.C_W, with_ntk=True, Theta1=2.0
    )
    return [
        *_against_neural_tangents(),
        Comparison(
            f"{networks} networks with their NTK, {depth} layers of width {width}",
            lambda: ensemble(torch.Generator().manual_seed(0)), _one_by_one(width, depth, networks),
            "torch.func.jacrev, network by network", "the sampler needs no automatic differentiation",
        ),
    ]  # fmt: skip
