"""Annealed Gaussian gradient noise.

Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach & Martens, "Adding Gradient Noise Improves Learning for
Very Deep Networks", arXiv:1511.06807, 2015.

Before update t = 0, 1, 2, ... every entry of every gradient receives independent noise N(0, sigma_t^2) with

    sigma_t^2 = eta / (1 + t)^gamma                                                                       (1)

Eq. (1) is a variance: its square root scales the noise. The order of a step is gradient, clipping, noise, optimizer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["GradientNoise", "annealed_std"]


def annealed_std(t: int, eta: float = 0.3, gamma: float = 0.55) -> float:
    """Standard deviation of the noise at update `t`, the square root of Eq. (1).

    Args:
        t: number of updates already made, >= 0.
        eta: variance at the first update, > 0.
        gamma: decay exponent of the variance, >= 0; 0 keeps it constant.

    Raises:
        ValueError: if an argument lies outside its range.
    """
    if t < 0:
        raise ValueError(f"t counts the updates already made and must be >= 0, got {t}")
    _check_schedule(eta, gamma)
    return (eta / (1 + t) ** gamma) ** 0.5


class GradientNoise:
    """Adds annealed Gaussian noise to an optimizer's gradients before each of its steps.

    Attach it once; the training loop stays as it was. Clip gradients before `optimizer.step()` as usual: the noise
    comes after the clipping, as in the paper.

        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        noise = GradientNoise(optimizer, eta=0.3)

    The noise is not scaled by the learning rate, and momentum or Adam average it like any gradient. Parameters
    without a gradient are left alone. Noise is added once per `optimizer.step()`, so gradients may be accumulated.
    On several data-parallel replicas, give every replica a generator of the same seed: they must stay equal.

    With mixed precision, call `scaler.unscale_(optimizer)` before `scaler.step(optimizer)`; a step that the scaler
    skips does not count. With an optimizer that evaluates a closure, wrap it: `optimizer.step(noise.closure(fn))`.

    Args:
        optimizer: any `torch.optim.Optimizer`; all its parameter groups are perturbed.
        eta: variance of the noise at the first step, > 0. The paper picks it from {0.01, 0.3, 1.0}.
        gamma: decay exponent of the variance, >= 0. The paper keeps 0.55.
        std: if given, a constant standard deviation, > 0, in place of Eq. (1); 1e-3 for the paper's memory networks.
        sparse_rows_only: perturb only the rows present in a sparse gradient; by default such a gradient becomes
            dense and every row is perturbed.
        generator: source of the noise, for reproducible runs; the default generator if None. Noise is drawn on the
            generator's device, then moved to the gradient's.

    Raises:
        ValueError: if `eta` or `std` is not positive, or `gamma` is negative.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        eta: float = 0.3,
        gamma: float = 0.55,
        std: float | None = None,
        sparse_rows_only: bool = False,
        generator: torch.Generator | None = None,
    ):
        _check_schedule(eta, gamma)
        if std is not None and not std > 0:
            raise ValueError(f"std must be positive, got {std}; for no noise, do not attach GradientNoise")
        self.optimizer = optimizer
        self.eta, self.gamma = eta, gamma
        self.constant_std = std
        self.sparse_rows_only = sparse_rows_only
        self.generator = generator
        self.step = 0
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    @property
    def std(self) -> float:
        """Standard deviation of the noise at the coming step, Eq. (1)."""
        if self.constant_std is not None:
            return self.constant_std
        return annealed_std(self.step, self.eta, self.gamma)

    def closure(self, compute: Callable[[], Any]) -> Callable[[], Any]:
        """Wraps a closure for `optimizer.step`, so that each gradient it computes is perturbed before it is used.

        An optimizer that evaluates the closure several times in a step sees fresh noise each time, of one variance.
        """
        return _PerturbedClosure(self, compute)

    def remove(self) -> None:
        """Detaches the noise: from here on the optimizer steps as if it had never been there."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """The number of updates made and, if there is one, the state of the generator."""
        return {"step": self.step, "generator": None if self.generator is None else self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the noise exactly where `state_dict` was taken.

        Raises:
            ValueError: if one of the two noises has a generator of its own and the other has not.
        """
        if (state["generator"] is None) != (self.generator is None):
            saved, here = ("without" if one is None else "with" for one in (state["generator"], self.generator))
            raise ValueError(f"the state was saved {saved} a generator and is loaded into a noise {here} one")
        self.step = state["step"]
        if self.generator is not None:
            self.generator.set_state(state["generator"])

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            if not _overflowed(optimizer):
                self._perturb()
        elif not (isinstance(closure, _PerturbedClosure) and closure.noise is self):
            raise ValueError(
                f"optimizer.step received the closure {closure!r}, which computes the gradients after the noise was "
                "added; pass noise.closure(fn) instead"
            )

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _overflowed(optimizer):
            self.step += 1

    @torch.no_grad()
    def _perturb(self) -> None:
        if getattr(self.optimizer, "grad_scale", None) is not None:
            raise RuntimeError("the gradients are still scaled; call scaler.unscale_(optimizer) before scaler.step")
        std = self.std
        perturbed = 0
        for parameter in self._parameters():
            if parameter.grad is not None:
                entries = self._entries(parameter)
                entries.add_(self._normal_like(entries), alpha=std)
                perturbed += 1
        if not perturbed:
            raise RuntimeError("no parameter has a gradient; call loss.backward() before optimizer.step()")

    def _parameters(self) -> Iterator[nn.Parameter]:
        for group in self.optimizer.param_groups:
            yield from group["params"]

    def _entries(self, parameter: nn.Parameter) -> Tensor:
        """The entries of the gradient that receive noise, as a real dense tensor that shares its storage."""
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            # Row-wise noise needs each row once: an uncoalesced gradient lists a row per occurrence.
            gradient = gradient.coalesce() if self.sparse_rows_only else gradient.to_dense()
            parameter.grad = gradient
        entries = gradient.values() if gradient.is_sparse else gradient
        return torch.view_as_real(entries) if entries.is_complex() else entries

    def _normal_like(self, entries: Tensor) -> Tensor:
        """Standard normal draws; at least float32, since half precision has few normals to offer."""
        device = entries.device if self.generator is None else self.generator.device
        dtype = torch.promote_types(entries.dtype, torch.float32)
        return torch.randn(entries.shape, generator=self.generator, device=device, dtype=dtype).to(entries.device)


@dataclass(frozen=True)
class _PerturbedClosure:
    """A closure whose gradients are perturbed; a type of its own so that the hook can tell it from a bare one."""

    noise: GradientNoise
    compute: Callable[[], Any]

    def __call__(self) -> Any:
        loss = self.compute()
        if self.noise._handles:
            self.noise._perturb()
        return loss


def _check_schedule(eta: float, gamma: float) -> None:
    if not eta > 0:
        raise ValueError(f"eta must be positive, got {eta}; for no noise, do not attach GradientNoise")
    if not gamma >= 0:
        raise ValueError(f"gamma must be >= 0, got {gamma}")


def _overflowed(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler told a fused optimizer to skip this step; other optimizers it does not call at all."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf.item())
