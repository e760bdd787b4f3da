"""Runs the comparisons: ours and the peer's turn by turn in one process, so that both meet the same weather."""

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Comparison", "run", "text"]

_WARM_UPS = 3
_ROUNDS = 15
_SECONDS = 20.0


@dataclass(frozen=True)
class Comparison:
    """Two callables that do equal work.

    Args:
        name: what is done, with its sizes.
        ours, peer: do it once each.
        peer_name: whose code the peer is.
        note: what a reader must know of the comparison.
    """

    name: str
    ours: Callable[[], Any]
    peer: Callable[[], Any]
    peer_name: str
    note: str = ""


def measure(comparison: Comparison) -> dict[str, Any]:
    """Medians of both in milliseconds, and their ratio (below 1: ours is faster)."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    work = {"ours": comparison.ours, "peer": comparison.peer}
    for _ in range(_WARM_UPS):
        for call in work.values():
            call()
    started = time.perf_counter()
    while len(times["peer"]) < _ROUNDS or (len(times["peer"]) < 4 * _ROUNDS and time.perf_counter() - started < 1.0):
        for name, call in work.items():
            begun = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - begun)
        if time.perf_counter() - started > _SECONDS and len(times["peer"]) >= 5:
            break
    ours, peer = statistics.median(times["ours"]), statistics.median(times["peer"])
    return {
        "name": comparison.name, "peer": comparison.peer_name, "ours_ms": 1e3 * ours, "peer_ms": 1e3 * peer,
        "ratio": ours / peer, "rounds": len(times["peer"]), "note": comparison.note,
    }  # fmt: skip


def run(names: list[str]) -> list[dict[str, Any]]:
    """Measures the named benchmarks, or all, on one thread.

    Raises:
        FileNotFoundError: if there is no benchmark of that name.
    """
    folder = Path(__file__).parent
    known = sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "__main__", "compare"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise FileNotFoundError(f"no benchmark of {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in names or known:
        try:
            comparisons = importlib.import_module(f"benchmarks.{name}").comparisons()
        except ImportError as error:
            rows.append({"slug": name, "name": "skipped", "note": f"the peer is not installed: {error}"})
            continue
        rows.extend({"slug": name, **measure(comparison)} for comparison in comparisons)
    return rows


def text(rows: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = []
    for row in rows:
        if "ratio" not in row:
            lines.append(f"{row['slug']:<16} {row['name']}: {row['note']}")
            continue
        lines.append(
            f"{row['slug']:<16} {row['name']:<52} {row['ours_ms']:>9.3f} ms"
            f"  {row['peer']:<28} {row['peer_ms']:>9.3f} ms  ratio {row['ratio']:.2f}"
            + (f"  ({row['note']})" if row["note"] else "")
        )
    return "\n".join(lines)
