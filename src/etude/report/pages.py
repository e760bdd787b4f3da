"""What the page of a paper shows, as plain values for its template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from etude.report.catalogue import ClaimLine, PaperLine, reference, zone
from etude.report.charts import Svg, difference_dots, learning_curves, swatch
from etude.report.figures import claim_figures
from etude.report.formatting import finite, format_number, format_value
from etude.report.series import clean
from etude.report.tables import arm_names, arm_summary, failures, metric_names, seed_tables, tuning_tables

__all__ = ["DETAILS", "Detail", "paper_context"]


@dataclass(frozen=True)
class Detail:
    """How much a page draws.

    Attributes:
        points, seed_lines, charts: of learning curves: points of a line, thin lines of a chart, charts of a claim.
        tuning_rows: rows of a tuning table.
        trials: whether every trial has its cell.
        shown_dots: whether contrasts that are only shown have a chart.
        primary_dots: how many primary contrasts of a claim have a chart.
    """

    points: int = 60
    seed_lines: int = 0
    charts: int = 6
    tuning_rows: int = 40
    trials: bool = True
    shown_dots: bool = True
    primary_dots: int = 1000


DETAILS = (
    Detail(seed_lines=8),
    Detail(),
    Detail(points=30, charts=3, tuning_rows=20),
    Detail(points=16, charts=1, tuning_rows=6),
    Detail(points=16, charts=1, tuning_rows=0, trials=False),
    Detail(charts=0, tuning_rows=0, trials=False, shown_dots=False),
    Detail(charts=0, tuning_rows=0, trials=False, shown_dots=False, primary_dots=1),
    Detail(charts=0, tuning_rows=0, trials=False, shown_dots=False, primary_dots=0),
)
"""From the richest page to the leanest; a page takes the first that stays inside its size."""


def paper_context(paper: PaperLine, evidence: Mapping[str, Any] | None, detail: Detail) -> dict[str, Any]:
    """Everything that the template of a paper's page reads, except where the site's files lie."""
    stored: Mapping[str, Any] = (evidence or {}).get("claims") or {}
    environment: Mapping[str, Any] = (evidence or {}).get("environment") or {}
    cost: Mapping[str, Any] = (evidence or {}).get("cost") or {}
    scales = [claim.scale for claim in paper.claims if claim.scale]
    claims = [_claim(paper.slug, line, stored.get(line.id), detail) for line in paper.claims]
    names = ["", *(line.id.partition("@")[0] for line in paper.claims)]
    for claim, (before, name) in zip(claims, pairwise(names)):
        claim["same"] = before == name  # one claim on several data sets: its words stand once
    return {
        "paper": paper,
        "card": paper.card,
        "claims": claims,
        "environment": [(name, format_value(value)) for name, value in environment.items()],
        "cost": {"seconds": finite(cost.get("seconds")), "cpu": finite(cost.get("cpu_seconds"))},
        "scale": scales[0] if scales else "small",
        "has_evidence": bool(stored),
        "lean": detail != DETAILS[0],
    }


def _claim(slug: str, line: ClaimLine, record: Mapping[str, Any] | None, detail: Detail) -> dict[str, Any]:
    if record is None:
        return {"line": line, "record": None}
    figures = claim_figures(slug, record)
    curves, hidden = _curves(record, detail)
    return {
        "line": line,
        "record": record,
        "reported": str(record.get("reported") or ""),
        "notes": str(record.get("notes") or ""),
        "setup": [(name, format_value(value)) for name, value in (record.get("setup") or {}).items()],
        "data": record.get("data"),
        "version": record.get("version", 1),
        "seeds": _seed_range(record.get("seeds") or ()),
        "contrasts": _contrasts(record.get("contrasts") or (), detail),
        "summary": arm_summary(record),
        "seed_tables": seed_tables(record) if detail.trials else [],
        "failures": failures(record),
        "legend": [(arm, swatch(number)) for number, arm in enumerate(arm_names(record))],
        "curves": curves,
        "hidden_curves": hidden,
        "tuning": tuning_tables(record, detail.tuning_rows),
        "grids": detail.tuning_rows > 0,
        "figures": [figure for figure in figures if figure.svg],
        "refused": [figure.name for figure in figures if not figure.svg],
    }


def _contrasts(contrasts: Sequence[Mapping[str, Any]], detail: Detail) -> list[dict[str, Any]]:
    rows, drawn = [], 0
    for contrast in contrasts:
        primary = contrast.get("role", "primary") == "primary"
        rows.append(_contrast(contrast, drawn < detail.primary_dots if primary else detail.shown_dots))
        drawn += primary
    return rows


def _contrast(contrast: Mapping[str, Any], dots: bool) -> dict[str, Any]:
    text = str(contrast.get("text") or contrast.get("kind") or "contrast")
    differences = {str(seed): finite(value) for seed, value in (contrast.get("differences") or {}).items()}
    effect, low, high = (finite(contrast.get(name)) for name in ("effect", "low", "high"))
    primary = contrast.get("role", "primary") == "primary"
    chart = Svg("")
    if differences and dots:
        chart = difference_dots(
            differences,
            effect=effect,
            low=low,
            high=high,
            reference=reference(contrast),
            zone=zone(contrast),
            title=f"{text}: one value a seed, their mean and its interval",
        )
    spec: Mapping[str, Any] = contrast.get("spec") or {}
    transform = spec.get("transform") or "none"
    return {
        "text": text,
        "kind": contrast.get("kind"),
        "primary": primary,
        "status": contrast.get("status") or "none",
        "effect": effect,
        "low": low,
        "high": high,
        "level": finite(contrast.get("level")),
        "margin": finite(contrast.get("margin")),
        "n": contrast.get("n"),
        "p": finite(contrast.get("p")),
        "p_signflip": finite(contrast.get("p_signflip")),
        "axis": _axis_name(contrast, spec) + ("" if transform == "none" else f" ({transform} scale)"),
        "outlook": _outlook(contrast),
        "flags": list(contrast.get("flags") or ()),
        "reason": str(contrast.get("reason") or ""),
        "chart": chart,
    }


def _axis_name(contrast: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """What the horizontal axis of a contrast's chart measures, in words."""
    metric = spec.get("metric") or spec.get("quality") or "metric"
    arm, than = spec.get("arm"), spec.get("than") or spec.get("to")
    match contrast.get("kind"):
        case "lower":
            return f"{metric}: {than} minus {arm}"
        case "not_worse" | "efficient" if spec.get("better") == "lower":
            return f"{metric}: {than} minus {arm}"
        case "higher" | "not_worse" | "efficient" | "equivalent":
            return f"{metric}: {arm} minus {than}"
        case "threshold":
            return f"{metric} of {arm}"
        case "identity":
            return f"{metric} of {arm}: deviation from {format_number(finite(spec.get('value')) or 0.0)}"
        case "trend":
            return f"slope of {metric}"
        case "interaction":
            return f"{metric}: difference of differences"
        case "shape":
            return f"{metric}: optimum minus the arm that decides"
        case _:
            return f"{metric}: difference"


def _outlook(contrast: Mapping[str, Any]) -> str:
    """What an undecided contrast could have seen, and what it would take."""
    visible, needed = finite(contrast.get("resolvable")), contrast.get("needed_seeds")
    parts = []
    if visible is not None:
        parts.append(f"These {contrast.get('n')} seeds could have seen an effect of {format_number(visible)}")
    if needed is not None:
        words = "an effect of the observed size needs" if parts else "An effect of the observed size needs"
        parts.append(f"{words} about {needed} seeds")
    return "; ".join(parts) + "." if parts else ""


def _curves(record: Mapping[str, Any], detail: Detail) -> tuple[list[dict[str, Any]], int]:
    """The learning curves of each metric, those that contrasts name first, and how many were left out."""
    series: Mapping[str, Any] = record.get("series") or {}
    numbers = {arm: number for number, arm in enumerate(arm_names(record))}
    returned = dict.fromkeys(metric for metrics in series.values() for metric in metrics)
    judged, _ = metric_names(record)
    metrics = [*(metric for metric in judged if metric in returned), *(m for m in returned if m not in judged)]
    charts: list[dict[str, Any]] = []
    for metric in metrics[: detail.charts]:
        lines = {
            numbers.setdefault(arm, len(numbers)): {seed: clean(points) for seed, points in sorted(seeds.items())}
            for arm, by_metric in series.items()
            if (seeds := by_metric.get(metric))
        }
        chart = learning_curves(
            dict(sorted(lines.items())),
            title=f"{metric} by step: the mean of each arm over its seeds",
            points=detail.points,
            seed_lines=detail.seed_lines,
        )
        if chart:
            charts.append({"metric": metric, "chart": chart, "seeds": max(len(seeds) for seeds in lines.values())})
    return charts, max(0, len(metrics) - detail.charts)


def _seed_range(seeds: Sequence[Any]) -> str:
    """Seeds as a range where they are one: `0 to 4`."""
    numbers = list(seeds)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))
