"""torchvision's compiled operators where they load; the same functions in torch everywhere else."""

from functools import cache
from typing import Any

import torch

__all__ = ["torchvision_operators", "uses_torchvision"]


@cache
def torchvision_operators() -> Any:
    """The module `torchvision.ops`, or None if it or one of its compiled operators does not load."""
    try:
        from torchvision import ops

        box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        ops.nms(box, torch.ones(1), 0.5)
        ops.roi_align(torch.ones(1, 1, 2, 2), [box], 1, sampling_ratio=1, aligned=True)
    except (ImportError, RuntimeError, AttributeError, OSError):
        return None
    return ops


def uses_torchvision(backend: str) -> bool:
    """Whether the compiled operators are to be used.

    Raises:
        ValueError: for an unknown backend.
        ImportError: if torchvision's are asked for and do not load.
    """
    if backend not in ("auto", "torch", "torchvision"):
        raise ValueError(f"backend must be 'auto', 'torch' or 'torchvision', got {backend!r}")
    found = backend != "torch" and torchvision_operators() is not None
    if backend == "torchvision" and not found:
        raise ImportError("torchvision's compiled operators do not load; backend='torch' gives the same results")
    return found
