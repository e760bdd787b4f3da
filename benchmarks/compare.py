"""Runs the comparisons: ours and the peer's turn by turn in one process, so that both meet the same weather."""

import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Comparison", "record", "run", "text"]

FOLDER = Path(__file__).parent
_TOOLS = ("__init__", "__main__", "compare")
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


@contextmanager
def _one_core() -> Iterator[None]:
    """Keeps the process to one core where the system can: not every peer heeds the number of threads it is told."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def run(names: list[str]) -> list[dict[str, Any]]:
    """Measures the named benchmarks, or all, on one thread of one core.

    Raises:
        FileNotFoundError: if there is no benchmark of that name.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in _TOOLS)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise FileNotFoundError(f"no benchmark of {', '.join(unknown)}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with _one_core():
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


def record(rows: list[dict[str, Any]]) -> Path:
    """Keeps the rows in `results.json`, in place of older ones of the same benchmarks, and writes `RESULTS.md`."""
    path = FOLDER / "results.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for slug in {row["slug"] for row in rows}:
        measured = [row for row in rows if row["slug"] == slug and "ratio" in row]
        if measured:
            machine = f"{platform.machine()}, {os.cpu_count()} cores of which one is used, torch {torch.__version__}"
            kept[slug] = {"machine": machine, "rows": measured}
    path.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    lines = [_HEAD]
    for slug, entry in sorted(kept.items()):
        lines += [f"\n## {slug}\n", f"{entry['machine']}.\n", "| what | ours, ms | peer | its ms | ratio | |"]
        lines.append("| --- | ---: | --- | ---: | ---: | --- |")
        for row in entry["rows"]:
            name, peer, note = (row[key].replace("|", "\\|") for key in ("name", "peer", "note"))
            lines.append(
                f"| {name} | {row['ours_ms']:.3g} | {peer} | {row['peer_ms']:.3g} | {row['ratio']:.2f} | {note} |"
            )
    page = FOLDER / "RESULTS.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


_HEAD = """\
# Speed beside peers

Medians of calls taken turn by turn in one process; a ratio below 1 means that ours is faster. `etude bench SLUG`
measures again, `etude bench SLUG --record` writes this page. Peers that are not installed are left out
(timm: `pip install --no-deps timm`)."""
