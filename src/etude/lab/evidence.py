"""Evidence: what a `small` or `medium` run leaves in `evidence/<slug>.json`, and how it is read and checked again.

The file holds the metrics of all trials, at most 100 points a curve, the tuning tables, cost and environment, so that
every page can be shown and every verdict recomputed from a fresh clone, before anything is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from etude.lab.contrast import Contrast
from etude.lab.run import JobResult, judge_trials, now
from etude.lab.store import Store, StoreError
from etude.lab.verdict import claim_verdict, deciding

__all__ = ["check", "entry", "evidence_folder", "export", "load_evidence", "summary", "thin"]

_log = logging.getLogger(__name__)
_POINTS = 100
_TOLERANCE = 1e-9
_INDEX = "index.json"
_POINT = re.compile(r"\[\n\s*(-?[\d.eE+-]+),\n\s*(-?[\d.eE+-]+)\n\s*\]")
_SUMMARY_KEYS = ("status", "reason", "n", "effect", "low", "high", "seconds", "fingerprint", "version", "scale")


def evidence_folder() -> Path:
    """Where committed evidence lies: beside the sources of a checkout, else inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "src").is_dir():
        return checkout / "evidence"
    return package / "evidence"


def thin(points: list[tuple[float, float]], limit: int = _POINTS) -> list[list[float]]:
    """At most `limit` points of a curve: the lowest and highest of each bucket, ends kept; five significant digits."""
    if len(points) > limit:
        buckets = limit // 2 - 1
        size = (len(points) - 2) / buckets
        kept = [points[0]]
        for number in range(buckets):
            bucket = points[1 + int(number * size) : 1 + int((number + 1) * size)]
            extremes = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
            kept.extend(sorted(extremes))
        points = [*kept, points[-1]]
    return [[step, float(f"{value:.5g}")] for step, value in points if math.isfinite(value)]


def entry(result: JobResult, store: Store) -> dict[str, Any]:
    """A claim's part of the evidence file."""
    job, claim = result.job, result.job.claim
    trials = []
    series: dict[str, dict[str, dict[str, list[list[float]]]]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for record in result.trials:
        trial = record["trial"]
        trials.append(
            {
                "id": record["id"], "arm": trial["arm"], "seed": trial["seed"], "status": record["status"],
                "reason": record["reason"], "metrics": record["metrics"], "seconds": round(record["seconds"], 3),
                "cpu_seconds": round(record["cpu_seconds"], 3), "peak_memory_mb": record["peak_memory_mb"],
                "tuned": trial["tuned"], "fingerprint": record["fingerprint"],
            }
        )  # fmt: skip
        stored = store.get(record["id"], record["fingerprint"])
        for metric, points in (stored.series() if stored is not None else {}).items():
            series.setdefault(trial["arm"], {}).setdefault(metric, {})[str(trial["seed"])] = thin(points)
        for name, svg in record.get("figures", {}).items():
            key = f"{name} ({trial['arm']})"
            if key not in figures:
                figures[key] = {"arm": trial["arm"], "seed": trial["seed"], "svg": svg}
    tuning = {
        arm: {
            "by": claim.tune_by, "goal": claim.tune_goal, "chosen": job.choices.get(arm, {}), "table": table,
            "seconds": round(
                sum(record["seconds"] for record in result.tuning_records if record["trial"]["arm"] == arm), 3
            ),
        }
        for arm, table in result.tuning.items()
    }  # fmt: skip
    seconds = sum(trial["seconds"] for trial in trials)
    tuning_seconds = sum(table["seconds"] for table in tuning.values())
    cpu_seconds = sum(record["cpu_seconds"] for record in [*result.trials, *result.tuning_records])
    return {
        "version": claim.version, "scale": job.scale, "says": claim.says, "seeds": list(job.seeds),
        "status": result.status, "reason": result.reason, "reported": claim.reported, "notes": claim.notes,
        "setup": job.setup.as_dict(), "data": job.data, "measured": list(claim.measured), "worst": dict(claim.worst),
        "resplit": claim.resplit, "arms": list(claim.arms), "shown": list(claim.shown),
        "fingerprint": job.fingerprint, "contrasts": [verdict.to_json() for verdict in result.contrasts],
        "tuning": tuning, "trials": trials, "series": series, "figures": figures,
        "cost": {
            "seconds": round(seconds, 3), "tuning_seconds": round(tuning_seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
        },
    }  # fmt: skip


def export(folder: Path, slug: str, results: Iterable[JobResult], store: Store) -> Path:
    """Writes or updates `<slug>.json` with the results, and the folder's index.

    Raises:
        StoreError: if the folder cannot be written; the old file is untouched then.
    """
    path = folder / f"{slug}.json"
    results = list(results)
    evidence = _read(path) or {"claims": {}}
    claims = evidence["claims"]
    environment: dict[str, Any] = evidence.get("environment", {})
    for result in results:
        claims[result.job.id] = entry(result, store)
        for record in result.trials:
            environment = record["environment"] or environment
    known = {claim_id for result in results for claim_id in _known_ids(result)}
    evidence["claims"] = {claim_id: claims[claim_id] for claim_id in sorted(claims) if claim_id in known}
    seconds = sum(claim["cost"]["seconds"] + claim["cost"]["tuning_seconds"] for claim in evidence["claims"].values())
    cpu = sum(claim["cost"]["cpu_seconds"] for claim in evidence["claims"].values())
    whole = {
        "schema": 1, "slug": slug, "scale": "small", "exported": now(), "environment": environment,
        "cost": {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}, "claims": evidence["claims"],
    }  # fmt: skip
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, _compact(json.dumps(whole, indent=1, allow_nan=False)))
        write_index(folder)
    except OSError as error:
        raise StoreError(f"cannot write the evidence {path}: {error.strerror or error}") from error
    return path


def _known_ids(result: JobResult) -> set[str]:
    """Ids that the paper declares today; evidence of claims that are gone is dropped."""
    return {claim_id for claim_id, _, _ in result.job.claim.paper.claim_ids()}


def load_evidence(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """slug -> evidence, from the first folder that has it; an unreadable file is named in the log and left out."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            if path.name != _INDEX and path.stem not in found and (evidence := _read(path)) is not None:
                found[path.stem] = evidence
    return found


def summary(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """claim id -> status, effect, interval, seeds and processor time: what a list needs, read from the folder's index.

    A file that changed since the index was written is read itself.
    """
    rows: dict[str, dict[str, Any]] = {}
    slugs: set[str] = set()
    for folder in folders:
        if not folder.is_dir():
            continue
        index = _read(folder / _INDEX) or {}
        for path in sorted(folder.glob("*.json")):
            if path.name == _INDEX or path.stem in slugs:
                continue
            slugs.add(path.stem)
            known = index.get(path.stem)
            if known is None or known["sha256"] != _digest(path):
                known = _index_row(path)
            rows.update(known["claims"])
    return rows


def write_index(folder: Path) -> None:
    """Writes `index.json`, the short form of all evidence files."""
    index = {path.stem: _index_row(path) for path in sorted(folder.glob("*.json")) if path.name != _INDEX}
    _write(folder / _INDEX, json.dumps(index, indent=1, sort_keys=True))


def _index_row(path: Path) -> dict[str, Any]:
    evidence = _read(path) or {"claims": {}}
    claims = {}
    for claim_id, claim in evidence["claims"].items():
        primary = [contrast for contrast in claim["contrasts"] if contrast["role"] == "primary"]
        headline = deciding(primary, claim["status"])
        row = {**claim, **{key: headline.get(key) for key in ("n", "effect", "low", "high")}}
        row["seconds"] = round(claim["cost"]["cpu_seconds"], 1)
        claims[claim_id] = {key: row.get(key) for key in _SUMMARY_KEYS}
    return {"sha256": _digest(path), "claims": claims}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check(evidence: Mapping[str, Any]) -> list[str]:
    """Recomputes every verdict of an evidence file from its trials; one line for each disagreement above 1e-9."""
    problems = []
    for claim_id, claim in evidence["claims"].items():
        if claim["status"] in ("needs data", "needs extra"):
            continue
        contrasts = [Contrast.from_spec(contrast["spec"]) for contrast in claim["contrasts"]]
        again = judge_trials(contrasts, claim["trials"], tuple(claim["seeds"]), claim["worst"], claim["resplit"])
        status, _ = claim_verdict(again)
        if status != claim["status"]:
            problems.append(f"{claim_id}: committed {claim['status']}, recomputed {status}")
        for stored, verdict in zip(claim["contrasts"], again, strict=True):
            problems.extend(f"{claim_id}: {stored['text']}: {line}" for line in _differences(stored, verdict.to_json()))
    return problems


def _differences(stored: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in again:
        old, new = stored.get(key), again[key]
        if isinstance(old, (int, float)) and isinstance(new, (int, float)):
            same = math.isclose(old, new, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        elif isinstance(old, Mapping) and isinstance(new, Mapping) and key == "differences":
            same = set(old) == set(new) and all(
                math.isclose(old[seed], new[seed], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for seed in new
            )
        else:
            same = old == new
        if not same:
            lines.append(f"{key} {old} != {new}")
    return lines


def _compact(text: str) -> str:
    """Puts each point of a curve on one line: half the size, and a diff of a line for a point that changed."""
    return _POINT.sub(r"[\1, \2]", text)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _log.warning("ignored the unreadable evidence %s (%s)", path, error)
        return None
    return content if isinstance(content, dict) else None


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
