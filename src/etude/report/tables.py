"""The tables of a claim: arms side by side, arm by seed, failures, and the tuning grid with its choice."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etude.report.formatting import describe_tuned, finite, format_column, format_means, format_number, format_value

__all__ = ["arm_names", "arm_summary", "failures", "metric_names", "seed_tables", "tuning_tables"]

Record = Mapping[str, Any]
"""The entry of a claim in the evidence."""


def arm_names(record: Record) -> list[str]:
    """The arms in their declared order, and after them any that only trials name."""
    return list(dict.fromkeys([*(record.get("arms") or ()), *(trial["arm"] for trial in record.get("trials") or ())]))


def metric_names(record: Record) -> tuple[list[str], list[str]]:
    """The metrics that contrasts name, and all others that trials returned."""
    specs = [contrast.get("spec") or {} for contrast in record.get("contrasts") or ()]
    named = [str(spec[key]) for spec in specs for key in ("metric", "quality", "cost") if spec.get(key)]
    returned = dict.fromkeys(name for trial in record.get("trials") or () for name in trial.get("metrics") or ())
    judged = [name for name in dict.fromkeys(named) if name in returned]
    return judged, [name for name in returned if name not in judged]


def arm_summary(record: Record) -> dict[str, Any]:
    """Mean and standard deviation of every metric for each arm, with how many of its trials are done."""
    judged, others = metric_names(record)
    shown, measured = set(record.get("shown") or ()), set(record.get("measured") or ())
    names, rows = [*judged, *others], []
    arms = {arm: [one for one in record.get("trials") or () if one["arm"] == arm] for arm in arm_names(record)}
    columns = [
        format_means([_mean_sd(_metric(one, name) for one in trials if _done(one)) for trials in arms.values()])
        for name in names
    ]
    for number, (arm, trials) in enumerate(arms.items()):
        done = sum(map(_done, trials))
        seconds = [value for trial in trials if (value := finite(trial.get("seconds"))) is not None]
        rows.append(
            {
                "arm": arm,
                "number": number,
                "shown": arm in shown,
                "cells": [column[number] for column in columns],
                "done": done,
                "failed": len(trials) - done,
                "trials": len(trials),
                "seconds": math.fsum(seconds) / len(seconds) if seconds else None,
            }
        )
    metrics = [{"name": name, "judged": name in judged, "time": name in measured} for name in names]
    return {"metrics": metrics, "rows": rows}


def seed_tables(record: Record) -> list[dict[str, Any]]:
    """For each judged metric a row an arm and a column a seed; a trial that failed keeps its place, marked."""
    trials = {(trial["arm"], str(trial["seed"])): trial for trial in record.get("trials") or ()}
    seeds = _seeds(record)
    judged, others = metric_names(record)
    tables = []
    for metric in judged or others[:1]:
        values = {place: _metric(trial, metric) for place, trial in trials.items()}
        texts = dict(zip(values, format_column(list(values.values()))))
        rows = []
        for number, arm in enumerate(arm_names(record)):
            cells = []
            for seed in seeds:
                trial = trials.get((arm, seed))
                status = str(trial.get("status")) if trial else "none"
                cells.append({"status": status, "text": texts.get((arm, seed), "–")})
            rows.append({"arm": arm, "number": number, "cells": cells})
        tables.append({"metric": metric, "seeds": seeds, "rows": rows})
    return tables


def failures(record: Record) -> list[dict[str, str]]:
    """Every trial that is not done, with its reason."""
    return [
        {
            "arm": str(trial["arm"]),
            "seed": str(trial["seed"]),
            "status": str(trial.get("status")),
            "reason": _shorten(str(trial.get("reason") or "no reason was recorded"), 300),
        }
        for trial in record.get("trials") or ()
        if not _done(trial)
    ]


def tuning_tables(record: Record, limit: int) -> list[dict[str, Any]]:
    """The grid of each tuned arm with its scores, at most `limit` rows, the chosen one always among them."""
    numbers = {arm: number for number, arm in enumerate(arm_names(record))}
    tables = []
    for arm, tuning in (record.get("tuning") or {}).items():
        grid, chosen = tuning.get("table") or [], tuning.get("chosen") or {}
        if not grid:
            continue
        knobs = list(dict.fromkeys(knob for row in grid for knob in row.get("values") or {}))
        seeds = list(dict.fromkeys(seed for row in grid for seed in row.get("scores") or {}))
        columns = [format_column([(row.get("scores") or {}).get(seed) for row in grid]) for seed in seeds]
        means = format_column([row.get("mean") for row in grid])
        rows = []
        for index, row in enumerate(grid):
            values = row.get("values") or {}
            rows.append(
                {
                    "values": [format_value(values[knob]) if knob in values else "–" for knob in knobs],
                    "scores": [column[index] for column in columns],
                    "mean": means[index],
                    "chosen": values == chosen,
                }
            )
        kept = [row for index, row in enumerate(rows) if index < limit or row["chosen"]]
        tables.append(
            {
                "arm": arm,
                "number": numbers.get(arm, 0),
                "by": str(tuning.get("by") or "the score"),
                "goal": "lowest" if tuning.get("goal") == "min" else "highest",
                "chosen": describe_tuned(chosen),
                "edges": _edges(grid, chosen),
                "knobs": knobs,
                "seeds": seeds,
                "rows": kept,
                "hidden": len(rows) - len(kept),
                "seconds": finite(tuning.get("seconds")),
            }
        )
    return tables


def _edges(grid: Sequence[Record], chosen: Mapping[str, Any]) -> list[str]:
    """A line for each knob whose choice is the smallest or largest of the values that were tried."""
    lines = []
    for knob, value in chosen.items():
        tried = sorted({number for row in grid if (number := finite((row.get("values") or {}).get(knob))) is not None})
        number = finite(value)
        if number is None or len(tried) < 2 or number not in (tried[0], tried[-1]):
            continue
        end, beyond = ("smallest", "below") if number == tried[0] else ("largest", "above")
        lines.append(
            f"{knob} = {format_value(value)} is the {end} of the {len(tried)} values tried "
            f"({format_number(tried[0])} to {format_number(tried[-1])}); the best may lie {beyond} it."
        )
    return lines


def _seeds(record: Record) -> list[str]:
    planned = [str(seed) for seed in record.get("seeds") or ()]
    ran = sorted({trial["seed"] for trial in record.get("trials") or ()})
    return list(dict.fromkeys([*planned, *map(str, ran)]))


def _metric(trial: Record, metric: str) -> float | None:
    return finite((trial.get("metrics") or {}).get(metric)) if _done(trial) else None


def _done(trial: Record) -> bool:
    return trial.get("status") == "done"


def _mean_sd(values: Iterable[Any]) -> tuple[float | None, float | None]:
    known = [number for value in values if (number := finite(value)) is not None]
    if not known:
        return None, None
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
