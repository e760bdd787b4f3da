"""`etude bench`: the side-by-side comparisons of a checkout's `benchmarks/`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

__all__ = ["run"]


def run(names: list[str], *, as_json: bool, record: bool = False) -> str:
    """Runs the named benchmarks, or all; with `record`, keeps the figures in `benchmarks/RESULTS.md`.

    Raises:
        FileNotFoundError: outside a checkout.
    """
    root = Path(__file__).resolve().parents[3]
    if not (root / "benchmarks" / "compare.py").is_file():
        raise FileNotFoundError("benchmarks come with a checkout of the project, not with the installed package")
    sys.path.insert(0, str(root))
    compare = importlib.import_module("benchmarks.compare")
    rows = compare.run(names)
    if record:
        compare.record(rows)
    return json.dumps(rows, indent=1) if as_json else compare.text(rows)
