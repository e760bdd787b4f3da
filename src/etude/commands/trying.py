"""`etude try`: which methods help on a user's own data? Also as a function, `etude.try_on`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.commands.parsing import BadUsage
from etude.commands.progress import Live
from etude.commands.running import past_seconds
from etude.lab.engine import make_engine
from etude.lab.paper import SCALES
from etude.lab.registry import load_registry, resolve
from etude.lab.store import Store
from etude.lab.trying import Finding, Material, Trying, false_finds, questions

if TYPE_CHECKING:
    from etude.data.user import UserData

__all__ = ["Answer", "Request", "as_json", "ask", "seconds_of", "text", "try_on"]

_FEW_TRAIN, _FEW_TEST = 50, 30
_NAME = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Request:
    """What `etude try` was asked for; the fields are its options."""

    path: Path
    names: Sequence[str] = ()
    target: str | None = None
    task: str | None = None
    size: int | None = None
    window: int | None = None
    sample_rate: float | None = None
    budget: float = 600.0
    scale: str = "small"
    engine: str = "process"
    workers: int | None = None
    device: str = "cpu"
    store: Path = Path("runs")

    def __post_init__(self) -> None:
        if self.scale not in SCALES[1:]:
            raise BadUsage(f"--scale must be {', '.join(SCALES[1:])} (smoke gives no verdicts), got {self.scale!r}")
        if self.engine not in ("inline", "process"):
            raise BadUsage(f"--engine must be inline or process, got {self.engine!r}: the data lie on this machine")
        if not 0 < self.budget < math.inf:
            raise BadUsage(f"--budget must be a positive time, got {self.budget:g} s")

    def options(self) -> dict[str, Any]:
        """What the loader is told, as far as the user said anything."""
        told = {
            "target": self.target, "task": self.task, "size": self.size, "window": self.window,
            "sample_rate": self.sample_rate,
        }  # fmt: skip
        return {name: value for name, value in told.items() if value is not None}


@dataclass
class Answer:
    """What `etude try` found: the findings, what helps most in front.

    Attributes:
        material: the data that were tried.
        findings: one for each question.
        others: claims that ask something of other kinds of data.
        missing: papers whose extra is not installed, with what to install.
        usage: paper -> its few lines of code.
        tested: contrasts that had a verdict. by_chance: how many of them would hold if no method did anything.
    """

    material: Material
    findings: list[Finding]
    others: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    usage: dict[str, str] = field(default_factory=dict)
    tested: int = 0
    by_chance: float = 0.0

    def to_json(self) -> dict[str, Any]:
        data = {
            "name": self.material.name, "kind": self.material.kind, "digest": self.material.digest,
            "train": self.material.train, "val": self.material.val, "test": self.material.test,
        }  # fmt: skip
        return {
            "data": data, "findings": [finding.to_json() for finding in self.findings], "others": self.others,
            "missing": self.missing, "tested": self.tested, "by_chance": self.by_chance,
        }  # fmt: skip


def seconds_of(budget: str) -> float:
    """Seconds of a time such as 90, 90s, 20m or 1.5h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", budget.strip())
    if match is None or float(match[1]) == 0:
        raise BadUsage(f"--budget takes a time such as 90s, 20m or 1h, got {budget!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def ask(request: Request, *, quiet: bool = False) -> Answer:
    """Puts to the data at the path all questions that fit their kind.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        BadUsage: if the data cannot be read, are too few for any verdict, or nothing takes their kind.
    """
    material = _material(request)
    chosen, missing = _chosen(request.names)
    asked, others = questions(chosen, material, request.scale)
    if not asked:
        kinds = ", ".join(others) or "none of those named"
        raise BadUsage(f"no claim takes {material.kind}; claims with a question for other kinds: {kinds}")
    engine_of = lambda: make_engine(request.engine, workers=request.workers)  # noqa: E731
    with Store(request.store) as store, Live(quiet=quiet) as live:
        live.say(_heading(material, len(asked), request.budget))
        trying = Trying(
            asked, material, store, engine_of, workers=engine_of().workers, budget=request.budget,
            scale=request.scale, device=request.device, observer=live, past=_past(),
        )  # fmt: skip
        findings = trying.run()
    tested, by_chance = false_finds(findings)
    usage = {card["slug"]: card["usage"] for card in load_registry()}
    return Answer(material, findings, others, missing, usage, tested, by_chance)


def _material(request: Request) -> Material:
    from etude.data import user

    options = request.options()
    path = request.path.resolve()
    try:
        data = user.load(path, **options)
    except FileNotFoundError:
        raise
    except ValueError as error:
        raise BadUsage(str(error)) from error
    train, val, test = user.rows(data)
    if train < _FEW_TRAIN or test < _FEW_TEST:
        raise BadUsage(
            f"{train} training and {test} test rows are too few to tell a method from luck; at least {_FEW_TRAIN} "
            f"and {_FEW_TEST} are needed (a fifth of the rows is for testing unless you say which)"
        )
    arguments = {"path": str(path), **options}
    table = type(data).__name__ == "TableData" and bool(getattr(data, "classes", ()))
    return Material(
        kind=type(data).__name__, name=_NAME.sub("-", data.name) or "data", digest=user.digest(path, **options),
        source={"loader": "etude.data.user:load", "arguments": arguments}, train=train, val=val, test=test,
        as_images={"loader": "etude.data.user:load_rows_as_images", "arguments": arguments} if table else None,
    )  # fmt: skip


def _chosen(names: Sequence[str]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """(claims module, claim) of what was named, or of all; and what cannot be loaded for want of an extra."""
    chosen: list[tuple[str, str | None]] = []
    missing: list[str] = []
    for card, claim, data in resolve(list(names) or ["all"], load_registry()):
        if data is not None:
            raise BadUsage(f"{card['slug']}/{claim}@{data} names a data set of ours; `etude try` takes yours")
        try:
            __import__(card["module"].partition(":")[0])
        except ImportError as error:
            missing.append(f"{card['slug']} ({error}): pip install 'etude[{card['extra']}]'")
            continue
        chosen.append((card["module"], claim))
    return list(dict.fromkeys(chosen)), missing


def _past() -> dict[tuple[str, str], float]:
    """(claim id without data set, arm) -> seconds of a trial in the committed evidence."""
    return {(claim.partition("@")[0], arm): seconds for (claim, arm), seconds in past_seconds().items()}


def _heading(material: Material, asked: int, budget: float) -> str:
    return (
        f"{material.name}: {material.kind}, {material.train} rows to train, {material.val} to validate, "
        f"{material.test} to test; {asked} questions, {_minutes(budget)}"
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def text(answer: Answer) -> str:
    """The findings as a table, what they are worth, and how to use what helps."""
    rows = [("", "method", "asked", "effect [95 % interval]", "time")]
    for finding in answer.findings:
        verdict = finding.verdict
        effect = "" if verdict is None or verdict.effect is None else f"{verdict.effect:+.4f}"
        if verdict is not None and verdict.low is not None and verdict.high is not None:
            effect += f" [{verdict.low:+.4f}, {verdict.high:+.4f}], n = {verdict.n}"
        cost = "" if finding.cost is None else f"x {finding.cost:.2g}"
        rows.append((finding.status, finding.claim, finding.contrast, effect, cost))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    notes = [f"{finding.claim}: {finding.status}: {finding.reason}" for finding in answer.findings if finding.reason]
    lines += ["", *notes, *([""] if notes else []), *_worth(answer)]
    for finding in answer.findings:
        if finding.status in ("helps", "keeps up") and answer.usage.get(finding.paper):
            lines += ["", f"# {finding.title}", answer.usage[finding.paper].rstrip()]
    return "\n".join(lines)


def _worth(answer: Answer) -> list[str]:
    """What to make of the verdicts, in sentences."""
    helped = [finding for finding in answer.findings if finding.status in ("helps", "keeps up")]
    lines = []
    if answer.tested:
        lines.append(
            f"{answer.tested} contrast(s) came to a verdict on fresh seeds. If no method did anything, about "
            f"{answer.by_chance:.2g} of them would hold by chance; after Holm's correction the chance that any of "
            f"those called a help is false is at most 5 %."
        )
        lines.append(
            "Intervals are over seeds on one split of your rows: they say what another training run would give, not "
            "what other rows would."
        )
    else:
        lines.append("Nothing came to a verdict; a larger --budget would carry more questions that far.")
    for finding in helped:
        luck = _luck(finding, answer.material.test)
        if luck is not None and finding.verdict is not None and abs(finding.verdict.effect or 0.0) < luck:
            lines.append(
                f"{finding.claim}: {answer.material.test} test rows are few: another test set could move the "
                f"difference by {luck:.3f}, more than the effect. Take it as a hint."
            )
    if answer.tested and not helped:
        lines.append("Nothing here is shown to help on these data.")
    for name in answer.missing:
        lines.append(f"not tried: {name}")
    return lines


def _luck(finding: Finding, test: int) -> float | None:
    """How far another test set of that size could move a difference of two shares of right answers, with 95 %.

    As if the two models erred independently, which is the worst case of two that mostly err together.
    """
    if finding.verdict is None or finding.baseline is None or "accuracy" not in str(finding.verdict.spec["metric"]):
        return None
    share = min(max(finding.baseline, 0.0), 1.0)
    return 1.96 * math.sqrt(2 * share * (1 - share) / test)


def try_on(data: UserData | str | Path, *papers: str, **options: Any) -> Answer:
    """Puts to a user's data the questions of all papers, or of those named; the Python twin of `etude try`.

        answer = etude.try_on("photos/", budget=600)
        for finding in answer.findings:
            print(finding.status, finding.claim, finding.verdict)

    Args:
        data: a path that `etude.data.user.load` can read, or data in memory: ImageData, TableData, GraphData,
            SignalData.
        papers: slugs or slug/claim; all if none is named.
        options: fields of `Request`, such as budget (seconds), target, workers, store.

    Raises:
        ValueError: if the data are too few, or of a kind that nothing takes.
    """
    if isinstance(data, str | Path):
        return ask(Request(Path(data), papers, **options), quiet=True)
    import tempfile

    from etude.data import user

    with tempfile.TemporaryDirectory(prefix="etude-") as folder:
        kept = user.keep(data, Path(folder) / _NAME.sub("-", data.name))
        return ask(Request(kept, papers, **options), quiet=True)


def as_json(answer: Answer) -> str:
    return json.dumps(answer.to_json(), indent=1)
