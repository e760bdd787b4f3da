"""Conformance suites: what every paper and every mixer of ours passes, and what a plug-in can check itself with.

from etude.testing import check_mixer, check_paper
"""

import importlib
from typing import Any

__all__ = ["SMOKE_SECONDS", "Conformance", "check_mixer", "check_paper"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{'mixers' if name == 'check_mixer' else 'papers'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
