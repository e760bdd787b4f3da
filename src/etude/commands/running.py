"""`etude run`: plan, execute, export the evidence, print the verdicts."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.commands.listing import evidence_folders
from etude.commands.parsing import BadUsage
from etude.commands.progress import Live
from etude.lab.engine import ENGINES, make_engine
from etude.lab.evidence import entry, evidence_folder, export, load_evidence
from etude.lab.paper import SCALES
from etude.lab.plan import Job, estimate, plan
from etude.lab.registry import load_registry, resolve
from etude.lab.run import JobResult
from etude.lab.run import run as run_jobs
from etude.lab.store import Store

__all__ = ["Request", "dry_run", "exit_status", "run"]


@dataclass(frozen=True)
class Request:
    """What `etude run` was asked for; the fields are its options."""

    names: list[str]
    scale: str
    seeds: tuple[int, ...] | None
    engine: str
    workers: int | None
    address: str | None
    device: str
    store: Path
    evidence: Path | None
    export: bool
    retry_failed: bool

    def __post_init__(self) -> None:
        if not self.names:
            raise BadUsage("name at least one paper, or all; `etude list` shows them")
        if self.scale not in SCALES:
            raise BadUsage(f"unknown scale {self.scale!r}; the scales are {', '.join(SCALES)}")
        if self.engine not in ENGINES:
            raise BadUsage(f"unknown engine {self.engine!r}; the engines are {', '.join(ENGINES)}")
        if self.workers is not None and self.workers < 1:
            raise BadUsage(f"--workers must be at least 1, got {self.workers}")


def jobs_of(request: Request) -> list[Job]:
    """The jobs asked for.

    Raises:
        ImportError: if the claims need an extra that is not installed; the message names it.
        BadUsage: if nothing named has a setup at the scale.
    """
    if request.device.startswith("cuda"):
        import torch

        elsewhere = request.engine == "ray" and request.address is not None
        if not elsewhere and not torch.cuda.is_available():
            raise BadUsage(f"--device {request.device}: this PyTorch sees no GPU")
    elif request.device != "cpu":
        raise BadUsage(f"--device must be cpu or cuda, got {request.device!r}")
    jobs: dict[str, Job] = {}
    for card, claim, data in resolve(request.names, load_registry()):
        try:
            planned = plan([(card["module"], claim, data)], request.scale, seeds=request.seeds, device=request.device)
        except ImportError as error:
            raise ImportError(
                f"{card['slug']} needs more than is installed ({error}): pip install 'etude[{card['extra']}]'"
            ) from None
        jobs |= {job.id: job for job in planned}
    if not jobs:
        raise BadUsage(f"nothing of {', '.join(request.names)} has a setup at the scale {request.scale}")
    return list(jobs.values())


def dry_run(request: Request, *, as_json: bool) -> str:
    """What `run` would do: trials planned and stored, and the expected time."""
    store = Store(request.store)
    past = past_seconds() if request.scale == "small" else {}
    rows: list[dict[str, Any]] = []
    for job in jobs_of(request):
        guess = estimate(job, store, past)
        rows.append(
            {
                "id": job.id, "scale": job.scale, "arms": list(job.claim.arms), "seeds": list(job.seeds),
                "trials": guess.trials, "stored": guess.stored, "seconds": guess.seconds,
            }
        )  # fmt: skip
    if as_json:
        return json.dumps(rows, indent=1)
    workers = request.workers or _default_workers(request.engine)
    lines = [
        f"{row['id']:<48} {row['trials'] - row['stored']:>4} of {row['trials']} trials to run"
        + (f", about {_duration(row['seconds'] / workers)}" if row["seconds"] is not None else ", time unknown")
        for row in rows
    ]
    known = sum(row["seconds"] or 0.0 for row in rows)
    lines.append(f"in all about {_duration(known / workers)} on {workers} worker(s), where times are known")
    return "\n".join(lines)


def past_seconds() -> dict[tuple[str, str], float]:
    """(claim id, arm) -> mean seconds of a trial, from the committed evidence."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for evidence in load_evidence(evidence_folders()).values():
        for claim_id, claim in evidence["claims"].items():
            for trial in claim["trials"]:
                if trial["status"] == "done":
                    seconds.setdefault((claim_id, trial["arm"]), []).append(trial["seconds"])
    return {key: sum(values) / len(values) for key, values in seconds.items()}


def run(request: Request, *, as_json: bool) -> int:
    """Runs the request, prints the verdicts and returns the exit status."""
    jobs = jobs_of(request)
    started = time.monotonic()
    with Store(request.store) as store:
        engine = make_engine(request.engine, workers=request.workers, address=request.address)
        with Live(quiet=as_json) as live:
            results = run_jobs(jobs, store, engine, observer=live, retry_failed=request.retry_failed)
        exported = _export(request, results, store)
        if as_json:
            print(json.dumps([{"id": result.job.id} | entry(result, store) for result in results], indent=1))
    if not as_json:
        live.table(results, time.monotonic() - started)
        for path in exported:
            live.say(f"evidence: {path}")
    return exit_status(results)


def _export(request: Request, results: list[JobResult], store: Store) -> list[Path]:
    """Writes the evidence of small and medium runs of the declared seeds."""
    if not request.export or request.scale not in ("small", "medium"):
        return []
    by_slug: dict[str, list[JobResult]] = {}
    for result in results:
        if result.job.declared_seeds:
            by_slug.setdefault(result.job.claim.paper.slug, []).append(result)
    folder = request.evidence or _own_evidence_folder(request.store)
    return [export(folder, slug, group, store) for slug, group in by_slug.items()]


def _own_evidence_folder(store: Path) -> Path:
    """The checkout's evidence folder; for an installed package, one in the store."""
    committed = evidence_folder()
    return committed if (committed.parent / "pyproject.toml").is_file() else store / "evidence"


def exit_status(results: list[JobResult]) -> int:
    """0 all hold, 1 a claim fails, 3 a trial errored, 4 none fails but some are undecided; 2 if an extra is missing.

    A failed trial of a claim whose verdict already says how failures count is data, not an error of the run.
    """
    statuses = {result.status for result in results}
    if "needs extra" in statuses:
        return 2
    if any(result.errored and result.status not in ("holds", "fails") for result in results):
        return 3
    if "fails" in statuses:
        return 1
    return 4 if "undecided" in statuses else 0


def _default_workers(engine: str) -> int:
    import os

    return 1 if engine == "inline" else os.cpu_count() or 1


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
