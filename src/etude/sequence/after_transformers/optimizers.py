"""Two of the survey's training ideas as optimizers; the moving average of weights is `etude.loop`'s.

Chen et al., "Symbolic discovery of optimization algorithms" (Lion), 2023, arXiv:2302.06675; Foret, Kleiner, Mobahi &
Neyshabur, "Sharpness-aware minimization", 2021, arXiv:2010.01412.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["SAM", "Lion"]


class Lion(Optimizer):
    """The sign of an interpolated momentum:

        u = sign(b1 m + (1 - b1) g),   w <- w - lr (u + weight_decay w),   m <- b2 m + (1 - b2) g

    Args:
        params: parameters or groups.
        lr: a third to a tenth of AdamW's, as published.
        betas: b1 and b2.
        weight_decay: three to ten times AdamW's, as published.

    Raises:
        ValueError: for a rate or decay below zero, or betas outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | int = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float | int = 0.0,
    ):
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"need lr >= 0, weight_decay >= 0 and betas in [0, 1), got {lr}, {weight_decay} and {betas}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update; `closure` is evaluated before it, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            one, two = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"]
                direction = momentum.lerp(weight.grad, 1 - one).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                momentum.lerp_(weight.grad, 1 - two)
        return loss


class SAM:
    """Sharpness-aware minimisation around any optimizer: the gradient is taken rho g / |g| uphill.

        sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
        loss = sam.step(lambda: F.cross_entropy(model(x), y))

    Args:
        optimizer: that takes the step.
        rho: length of the way uphill, over all parameters together.

    Raises:
        ValueError: if `rho` is negative.
    """

    def __init__(self, optimizer: Optimizer, *, rho: float | int = 0.05):
        if rho < 0:
            raise ValueError(f"rho must not be negative, got {rho}")
        self.optimizer, self.rho = optimizer, rho

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One update; `closure` returns the loss of the batch, and is called twice. Returns the first loss."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.optimizer.zero_grad()
        loss = closure()
        loss.backward()  # type: ignore[no-untyped-call]
        moved = [weight for weight in weights if weight.grad is not None]
        kept = [weight.detach().clone() for weight in moved]
        norm = torch.stack([weight.grad.norm() for weight in moved]).norm()
        with torch.no_grad():
            for weight in moved:
                weight.add_(weight.grad * (self.rho / (norm + 1e-12)))
        self.optimizer.zero_grad()
        closure().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight, before in zip(moved, kept):
                weight.copy_(before)
        self.optimizer.step()
        return loss.detach()
