"""What looking costs: full-batch steps of a small network watched beside the same steps alone, and Lanczos steps."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.training.opposing_signals import (
    HessianOperator,
    OpposingSignalMonitor,
    SharpnessTracker,
    cross_entropy,
    full_batch_backward,
    mlp,
    sharpness,
)

_N, _DIM = 2_000, 256


def _problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return mlp(_DIM, (128, 128), 10), torch.randn(_N, _DIM), torch.randint(10, (_N,))


def _steps(count: int, watch: Callable[..., object] | None) -> Callable[[], None]:
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if watch is not None:
        watch(model, x, y, optimizer)

    def run() -> None:
        for _ in range(count):
            optimizer.zero_grad()
            full_batch_backward(model, cross_entropy, (x, y))
            optimizer.step()

    return run


def _monitored() -> Callable[[], None]:
    """A step whose losses the monitor takes over: one more forward pass is all it adds."""
    model, x, y = _problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    monitor = OpposingSignalMonitor(model, cross_entropy, x, y)

    def step() -> None:
        optimizer.zero_grad()
        monitor.step_begin(full_batch_backward(model, cross_entropy, (x, y)))
        optimizer.step()
        monitor.step_end()
        monitor.records.clear()

    return step


def _tracked(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer) -> object:
    return SharpnessTracker(model, cross_entropy, (x, y), every=10).attach(optimizer)


def _power() -> Callable[[], object]:
    model, x, y = _problem()
    return lambda: sharpness(model, cross_entropy, (x, y), method="power", tol=1e-3)


def _lanczos() -> Callable[[], object]:
    model, x, y = _problem()
    return lambda: sharpness(model, cross_entropy, (x, y), tol=1e-3)


def _products(rebuilt: bool) -> Callable[[], None]:
    model, x, y = _problem()
    vec = torch.randn(sum(p.numel() for p in model.parameters()))
    operator = HessianOperator(model, cross_entropy, (x, y))

    def run() -> None:
        for _ in range(10):
            (HessianOperator(model, cross_entropy, (x, y)) if rebuilt else operator)(vec)

    return run


def comparisons() -> list[Comparison]:
    sizes = f"MLP {_DIM}-128-128-10, {_N:,} examples"
    return [
        Comparison(
            name=f"full-batch step with monitor, {sizes}",
            ours=_monitored(),
            peer=_steps(1, None),
            peer_name="the same step alone",
            note="a record costs one forward pass over the set, about a third of a step",
        ),
        Comparison(
            name=f"ten steps with one sharpness, {sizes}",
            ours=_steps(10, _tracked),
            peer=_steps(10, None),
            peer_name="the same steps alone",
            note="a measurement takes about ten Hessian-vector products",
        ),
        Comparison(
            name="sharpness to a residual of 1e-3 by Lanczos",
            ours=_lanczos(),
            peer=_power(),
            peer_name="power iteration",
            note="from a random start",
        ),
        Comparison(
            name="ten Hessian-vector products on one graph",
            ours=_products(rebuilt=False),
            peer=_products(rebuilt=True),
            peer_name="the gradient rebuilt for each",
            note="what keeping the gradient's graph saves",
        ),
    ]
