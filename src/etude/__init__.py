"""Deep-learning papers as composable PyTorch parts, each proven by claims that run."""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["try_on"]


def __getattr__(name: str) -> Any:
    if name == "try_on":  # loaded when asked for: the parts need nothing of it
        return importlib.import_module("etude.commands.trying").try_on
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
