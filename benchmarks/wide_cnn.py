"""Hierarchical kernels beside neural-tangents and all patches at once; empirical kernels beside torch.func."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.compare import Comparison
from etude.theory.wide_cnn import (
    HierarchicalLCN,
    empirical_ntk,
    hierarchical_kernel,
    sample_multisphere,
)

_POINTS = 1_000


def _neural_tangents(
    filters: Sequence[int], kind: str, x: np.ndarray, y: np.ndarray | None
) -> tuple[Callable[[], Any], float]:
    """The peer's kernel, compiled, and the seconds that compiling took."""
    import jax
    from neural_tangents import stax

    jax.config.update("jax_enable_x64", True)
    layers, images = [], x.ndim == 4
    for size in filters:
        shape = (size, size) if images else (size,)
        layers += [
            stax.Conv(1, shape, strides=shape, padding="VALID", W_std=math.sqrt(2), b_std=None),
            stax.Relu(do_stabilize=False),
        ]
    layers += [stax.Flatten(), stax.Dense(1, W_std=math.sqrt(2), b_std=None)]
    kernel = stax.serial(*layers)[2]
    get = "nngp" if kind == "rfk" else "ntk"

    def channels_last(rows: np.ndarray) -> Any:
        return jax.numpy.asarray(rows.transpose(0, 2, 3, 1) if images else rows[:, :, None])

    inputs = [channels_last(x)] if y is None else [channels_last(x), channels_last(y)]
    started = time.perf_counter()
    compiled = jax.jit(lambda a, b=None: kernel(a, b, get)).lower(*inputs).compile()
    seconds = time.perf_counter() - started
    return lambda: compiled(*inputs).block_until_ready(), seconds


def _against_neural_tangents(tasks: list[tuple[str, list[int], str, Tensor, Tensor | None]]) -> list[Comparison]:
    try:
        import neural_tangents  # noqa: F401
    except ImportError:
        return []
    found = []
    for name, filters, kind, x, y in tasks:
        peer, seconds = _neural_tangents(filters, kind, x.numpy(), None if y is None else y.numpy())
        images = x.ndim == 4
        ours = partial(hierarchical_kernel, x, y, filters, kind, normalize=not images, dim=2 if images else 1)
        ratio = np.asarray(peer()) / ours().numpy()
        # The peer divides the first layer by its fan-in: one constant.
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-7)
        found.append(
            Comparison(
                name, ours, peer, "neural-tangents, compiled",
                f"one kernel but for a constant; the peer's compilation took {seconds:.2f} s in this run and is not "
                "counted, ours has none",
            )
        )  # fmt: skip
    return found


def _all_at_once(x: Tensor, y: Tensor, filters: Sequence[int]) -> Tensor:
    """The recursion with every patch of every pair in memory."""
    c = torch.einsum("npi,mpi->pnm", *(z.unflatten(1, (-1, filters[0])) for z in (x, y)))
    t = c
    for fan in (*filters[1:], c.shape[0] // math.prod(filters[1:])):
        c = c.clamp(-1, 1)
        angle = torch.arccos(c)
        slope = 1 - angle / math.pi
        value = (torch.sqrt(1 - c**2) / math.pi + slope * c).unflatten(0, (-1, fan)).mean(1)
        t = (slope * t).unflatten(0, (-1, fan)).mean(1) + value
        c = value
    return t[0]


def _gradients(network: HierarchicalLCN, x: Tensor) -> Tensor:
    """The empirical NTK with the gradients of every input in memory, by torch.func."""
    from torch.func import functional_call, grad, vmap

    parameters = dict(network.named_parameters())

    def output(weights: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(network, weights, (one[None],))[0, 0]

    rows = vmap(grad(output), in_dims=(None, 0))(parameters, x)
    return sum(part.flatten(1) @ part.flatten(1).T for part in rows.values())  # type: ignore[return-value]


def comparisons() -> list[Comparison]:
    generator = torch.Generator().manual_seed(0)
    x, y = (sample_multisphere(_POINTS, 4, 2, generator) for _ in range(2))
    long, other = (sample_multisphere(_POINTS, 32, 2, generator) for _ in range(2))
    images = torch.rand(300, 3, 16, 16, generator=generator, dtype=torch.float64)
    pair = f"{_POINTS} x {_POINTS}"
    found = _against_neural_tangents(
        [
            (f"NTK, filters 2, 2, 2, d = 8, {pair}, float64", [2, 2, 2], "ntk", x, y),
            (f"RFK, filters 2, 2, 2, d = 8, {pair}, float64", [2, 2, 2], "rfk", x, y),
            (f"NTK, filters 2, 2, 2, d = 8, {pair}, x with itself", [2, 2, 2], "ntk", x, None),
            (f"NTK, filters 2, 2, 2, d = 64, {pair}, float64", [2, 2, 2], "ntk", long, other),
            ("NTK of images as they are, filters 2, 2, 3 x 16 x 16, 300 x 300", [2, 2], "ntk", images, images.clone()),
        ]
    )
    np.testing.assert_allclose(hierarchical_kernel(long, other, [2, 2, 2]), _all_at_once(long, other, [2, 2, 2]), 1e-9)
    for name, a, b in (("8", x, y), ("64", long, other)):
        found.append(
            Comparison(
                f"NTK, filters 2, 2, 2, d = {name}, {pair}, float64",
                partial(hierarchical_kernel, a, b, [2, 2, 2]), partial(_all_at_once, a, b, [2, 2, 2]),
                "all patches at once, PyTorch",
                f"the peer holds {24 * _POINTS**2 * a.shape[1] // 2 / 1e6:.0f} MB beside the result, ours 3 MB",
            )
        )  # fmt: skip
    network = HierarchicalLCN(256, 1, 8, [2, 2, 2], generator=generator).double()
    few = x[:50].contiguous()
    torch.testing.assert_close(empirical_ntk(network, few, few), _gradients(network, few))
    found.append(
        Comparison(
            "empirical NTK of a network of width 256, 50 x 50",
            partial(empirical_ntk, network, few, few), partial(_gradients, network, few),
            "gradients of every input, torch.func", "no matrix of inputs by parameters is made",
        )
    )  # fmt: skip
    return found
