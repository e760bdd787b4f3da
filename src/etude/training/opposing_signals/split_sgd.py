"""SGD that takes sign steps where its momentum is large: which part of Adam handles opposing signals.

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163, section 4, name dampened momentum and bounded steps on large coordinates as what SGD lacks.
With gradients g, momentum coefficient beta and a threshold r that stays fixed,

    m <- beta m + (1 - beta) g,   m_hat = m / (1 - beta^t)                                                (1)
    theta_i <- theta_i - lr m_hat_i             where |m_hat_i| <= r                                      (2)
    theta_i <- theta_i - sign_lr sign(m_hat_i)  elsewhere                                                 (3)

A reconstruction from the paper's description: its constants could not be checked against the authors' code, which is
not public, and no parity with its figures is claimed.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["SplitSGD"]


class SplitSGD(Optimizer):
    """SGD on the coordinates whose momentum is small, sign descent on the others, Eqs. (1) to (3).

    Args:
        params: parameters or groups of them.
        lr: step size on small coordinates, > 0.
        sign_lr: size of the step on large coordinates, > 0; `lr * threshold` if None, the value at which (2) and (3)
            meet, which bounds each coordinate's momentum by the threshold.
        momentum: beta, in [0, 1).
        dampening: average the gradients as in Eq. (1); if False, sum them as `torch.optim.SGD` does:
            m <- beta m + g, m_hat = m.
        threshold: r, > 0; if None the quantile below of |m_hat| over all coordinates at the first step.
        threshold_quantile: in (0, 1).

    Raises:
        ValueError: if an argument lies outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        sign_lr: float | None = None,
        momentum: float = 0.9,
        dampening: bool = True,
        threshold: float | None = None,
        threshold_quantile: float = 0.9,
    ):
        for name, value in (("lr", lr), ("sign_lr", sign_lr), ("threshold", threshold)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if not 0 < threshold_quantile < 1:
            raise ValueError(f"threshold_quantile must lie in (0, 1), got {threshold_quantile}")
        defaults = {
            "lr": lr, "sign_lr": sign_lr, "momentum": momentum, "dampening": dampening, "threshold": threshold,
            "threshold_quantile": threshold_quantile,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update; the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momenta = [(p, self._momentum(p, group)) for p in group["params"] if p.grad is not None]
            if not momenta:
                continue
            if group["threshold"] is None:
                group["threshold"] = _quantile([m for _, m in momenta], group["threshold_quantile"])
            threshold, lr = group["threshold"], group["lr"]
            sign_step = lr * threshold if group["sign_lr"] is None else group["sign_lr"]
            for p, m in momenta:
                p.sub_(torch.where(m.abs() <= threshold, lr * m, sign_step * m.sign()))
        return loss

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """m_hat of Eq. (1)."""
        if p.grad.is_sparse:  # type: ignore[union-attr]
            raise RuntimeError("SplitSGD takes dense gradients, got a sparse one")
        state, beta = self.state[p], group["momentum"]
        if not state:
            state["step"], state["momentum_buffer"] = 0, torch.zeros_like(p)
        state["step"] += 1
        buffer: Tensor = state["momentum_buffer"]
        buffer.mul_(beta).add_(p.grad, alpha=1 - beta if group["dampening"] else 1)  # type: ignore[arg-type]
        return buffer / (1 - beta ** state["step"]) if group["dampening"] else buffer


def _quantile(tensors: list[Tensor], q: float) -> float:
    """The q-quantile of all magnitudes; by selection, since `torch.quantile` takes at most 2^24 entries."""
    sizes = torch.cat([tensor.reshape(-1).abs() for tensor in tensors])
    value = float(sizes.kthvalue(max(1, math.ceil(q * len(sizes)))).values)
    if not 0 < value < math.inf:
        raise ValueError(
            f"the {q:g}-quantile of the first momentum is {value}; pass threshold= where most gradients are zero"
        )
    return value
