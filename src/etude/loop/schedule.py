"""Learning-rate schedules as multipliers of each parameter group's own rate, stepped once an update."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["cosine_schedule"]


def cosine_schedule(optimizer: Optimizer, steps: int, warmup: int = 0) -> LambdaLR:
    """Linear warm-up to the optimizer's rate over `warmup` updates, then half a cosine to zero at update `steps`.

    Hand it to `fit(..., schedule=...)`, or call its `step()` after each `optimizer.step()`.

    Args:
        optimizer: whose groups' present learning rates are the peak.
        steps: updates in all, warm-up included.
        warmup: updates of the warm-up, 0 <= warmup < steps.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"need 0 <= warmup < steps, got warmup {warmup} and steps {steps}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup) / (steps - warmup), 1.0)))

    return LambdaLR(optimizer, factor)
