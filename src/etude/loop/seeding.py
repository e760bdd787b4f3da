"""The global random state of torch, NumPy and Python: set for a while, taken down, put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "seeded", "set_random_state"]


def random_state() -> dict[str, Any]:
    """The state of the global generators of torch (CPU and each CUDA device in use), NumPy and Python.

    Tensors and plain numbers only, so that `torch.load(..., weights_only=True)` reads it back.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    assert name == "MT19937", name
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` took down; CUDA states beyond the devices at hand are left out."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda, device)
    keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch, NumPy and Python inside the block and puts their states back after it.

    with seeded(0):
        model = nn.Linear(3, 4)     # the same weights every time, and nothing else notices
    """
    before = random_state()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        set_random_state(before)
