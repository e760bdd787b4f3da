"""The conformance suite of papers: what every paper of ours passes, and what a plug-in can check itself with.

    from etude.testing import check_paper

    def test_my_paper_conforms():
        check_paper("my_paper")

Trials run at the scale `smoke`, on the CPU, in this process.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from etude.lab.fingerprint import own_package
from etude.lab.paper import TUNING_SEED, Claim, Paper, Setup
from etude.lab.plan import Job, plan
from etude.lab.registry import load_registry, resolve
from etude.lab.task import Outcome, Task
from etude.lab.trial import Trial
from etude.lab.worker import execute, load_paper

__all__ = ["SMOKE_SECONDS", "Conformance", "check_paper"]

SMOKE_SECONDS = 10.0
"""What all smoke trials of a paper may take of one core; `etude run` has two, and starts its workers besides."""

_ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d{7}")
_UNKNOWN = "no_such_number"
_OTHER_SEED = 0x5DEECE66D  # any constant that changes a seed


@dataclass
class Conformance:
    """What the suite found.

    Attributes:
        slug: of the paper.
        problems: a line for everything that is wrong.
        skipped: a line for every claim that could not run here, because its data or an extra is missing.
        trials: how many trials were run.
        smoke_seconds: seconds of one core that the smoke trials took, each run once.
        seconds: what the whole suite took.
    """

    slug: str
    problems: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    trials: int = 0
    smoke_seconds: float = 0.0
    seconds: float = 0.0


def check_paper(slug: str, *, module: str | None = None, budget: float = SMOKE_SECONDS) -> Conformance:
    """Checks that a paper keeps the rules on which its evidence rests.

    - The card is complete, its method imports, its usage runs, and its claims agree with themselves.
    - Every arm runs at smoke and returns the metrics that the contrasts and the tuning need.
    - Trials are deterministic: run again, in another order, they give the same metrics bit for bit (`measured` apart).
    - Streams are isolated: no draw is made outside of them, and a method arm whose own draws are others leaves every
      other arm unchanged bit for bit; no arm leaves torch or NumPy with other settings than it found.
    - The smoke trials keep their budget, and bad setups are refused.

    Args:
        slug: of a paper of ours or of an installed plug-in.
        module: where the paper is, as `package.module:PAPER`, if it is not registered under its slug.
        budget: seconds of one core that the smoke trials may take together.

    Raises:
        AssertionError: with a line for each problem.
    """
    found = Conformance(slug)
    started = time.perf_counter()
    # The stream gives the caller's random state back in the end.
    with Trial("conformance", "", 0).stream("check"), warnings.catch_warnings():
        _check_all(found, module, budget)
    found.seconds = time.perf_counter() - started
    if found.problems:
        raise AssertionError("\n  - ".join([f"{slug} does not conform:", *found.problems]))
    return found


def _check_all(found: Conformance, module: str | None, budget: float) -> None:
    try:
        if module is None:
            ((row, _, _),) = resolve([found.slug], load_registry())
            module = row["module"]
        own_package(module)
        paper = load_paper(module)
    except Exception as error:
        found.problems.append(f"cannot be loaded: {type(error).__name__}: {error}")
        return
    if paper.slug != found.slug:
        found.problems.append(f"{module} holds the paper {paper.slug}")
    _check_card(found, paper)
    _check_usage(found, paper)
    for claim in paper.claims.values():
        _check_declaration(found, claim)
    warnings.simplefilter("default")  # as in a worker, where a warning ends no trial
    for job in plan([(module, None, None)], "smoke"):
        _check_job(found, job)
    if found.smoke_seconds > budget:
        found.problems.append(f"the smoke trials take {found.smoke_seconds:.1f} s of one core, more than {budget:g} s")


def _check_card(found: Conformance, paper: Paper) -> None:
    if not paper.summary.strip().endswith("."):
        found.problems.append(f"the summary must be a sentence with its full stop, got {paper.summary!r}")
    if not paper.arxiv and not paper.venue:
        found.problems.append("the card has neither arxiv nor venue: nobody can find the paper")
    if paper.arxiv and not _ARXIV.fullmatch(paper.arxiv):
        found.problems.append(f"arxiv must be an identifier such as 1511.06807, got {paper.arxiv!r}")
    if not paper.methods:
        found.problems.append("the card names no method modules")
    for name in paper.methods:
        try:
            importlib.import_module(name)
        except Exception as error:
            found.problems.append(f"the method {name} does not import: {type(error).__name__}: {error}")
    if not paper.claims:
        found.problems.append("there are no claims")


def _check_usage(found: Conformance, paper: Paper) -> None:
    if not paper.usage.strip():
        found.problems.append("the card has no usage")
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(paper.usage, f"<usage of {paper.slug}>", "exec"), {"__name__": "usage"})
    except Exception as error:
        found.problems.append(f"the usage does not run: {type(error).__name__}: {error}")


def _check_declaration(found: Conformance, claim: Claim) -> None:
    primary = [contrast for contrast in claim.contrasts if contrast.role == "primary"]
    if not claim.says.strip():
        found.problems.append(f"{claim.id}: the claim says nothing")
    if not primary:
        found.problems.append(f"{claim.id}: no primary contrast, so that it can neither hold nor fail")
    if set(claim.setups) == {"smoke"}:
        found.problems.append(f"{claim.id}: no scale beyond smoke, so that it is never judged")
    if any(contrast.kind != "identity" for contrast in primary):
        for scale, seeds in claim.seeds.items():
            if scale != "smoke" and len(seeds) < 3:
                found.problems.append(f"{claim.id}: {len(seeds)} seeds at {scale}; an interval needs at least 3")
    known = {metric for contrast in claim.contrasts for metric in contrast.metrics()}
    if set(claim.worst) - known:
        found.problems.append(
            f"{claim.id}: worst= names {sorted(set(claim.worst) - known)}, which no contrast compares"
        )
    for scales, what in (
        ({"smoke": Setup(), "small": Setup(**{_UNKNOWN: 1})}, "a setup with an unknown name"),
        ({"smoke": Setup(), "tiny": Setup()}, "a setup for an unknown scale"),
    ):
        if not _refuses(claim, scales):
            found.problems.append(f"{claim.id}: {what} is not refused")
    try:
        claim.setups["smoke"].replace(**{_UNKNOWN: 1})
        found.problems.append(f"{claim.id}: replacing an unknown name of the setup is not refused")
    except ValueError:
        pass


def _refuses(claim: Claim, changes: Mapping[str, Setup]) -> bool:
    """Whether the claim's declaration is refused with these names added to its setups."""
    setups = {name: setup.as_dict() for name, setup in claim.setups.items()}
    for scale, change in changes.items():
        setups[scale] = setups.get(scale, setups["smoke"]) | change.as_dict()
    scratch = replace(claim.paper, claims={})
    declare = scratch.claim(
        claim.says, arms=claim.arms, expect=claim.contrasts, data=claim.data,
        setup={scale: Setup(**values) for scale, values in setups.items()},
    )  # fmt: skip
    try:
        declare(claim.function)
    except ValueError:
        return True
    return False


def _check_job(found: Conformance, job: Job) -> None:
    job.choose({})
    tasks = job.trial_tasks()
    before = _settings()
    first: dict[str, Outcome] = {}
    for task in tasks:
        first[task.arm] = outcome = _run(found, task)
        if outcome.status in ("needs data", "needs extra"):
            found.skipped.append(f"{job.id}: {outcome.status}: {outcome.reason}")
            return
        found.smoke_seconds += outcome.cpu_seconds
        if outcome.status != "done":
            found.problems.append(f"{job.id}: the arm {task.arm} {outcome.status}: {outcome.reason}")
        left = [f"{name} {before[name]} -> {value}" for name, value in _settings().items() if value != before[name]]
        if left:
            found.problems.append(f"{job.id}: the arm {task.arm} leaves other settings behind: {', '.join(left)}")
            before = _settings()
    if any(outcome.status != "done" for outcome in first.values()):
        return
    _check_metrics(found, job, first)
    _check_repetition(found, job, tasks, first)
    _check_tuning(found, job, tasks)
    if job.setup.as_dict() and _run(found, replace(tasks[0], setup={})).status == "done":
        found.problems.append(f"{job.id}: the arm {tasks[0].arm} runs without its setup, whose numbers it should read")


def _check_metrics(found: Conformance, job: Job, first: Mapping[str, Outcome]) -> None:
    returned = {metric for outcome in first.values() for metric in outcome.metrics}
    absent = sorted(set(job.claim.measured) - returned)
    if absent:
        found.problems.append(f"{job.id}: measured= names {absent}, which no arm returns")


def _check_repetition(found: Conformance, job: Job, tasks: list[Task], first: Mapping[str, Outcome]) -> None:
    """Runs every arm again: the other way round, with another global seed, and after an edited method arm."""
    methods = {arm for contrast in job.claim.contrasts if contrast.role == "primary" for arm in contrast.method_arms()}
    edited = next((task for task in tasks if task.arm in methods), None)
    if edited is not None and len(tasks) > 1:
        with _reseeded("method", "stray"):
            _run(found, edited)
    for task in reversed(tasks):
        with _reseeded("stray"):
            again = _run(found, task)
        changes = _changes(job.claim, first[task.arm], again)
        if changes:
            found.problems.append(
                f"{job.id}: the arm {task.arm} {_cause(found, job.claim, task, first[task.arm])}: {changes}"
            )


def _cause(found: Conformance, claim: Claim, task: Task, first: Outcome) -> str:
    """Why a trial came out otherwise the second time."""
    second, third = _run(found, task), _run(found, task)
    if _changes(claim, second, third):
        return "is not deterministic"
    if _changes(claim, first, second):
        return "depends on what ran before it in the same process"
    return "draws outside of the trial's streams"


def _check_tuning(found: Conformance, job: Job, tasks: list[Task]) -> None:
    """Tuning is left out at smoke, so that a missing validation metric would show only at small."""
    task = next((task for task in tasks if job.claim.tunes(task.arm)), None)
    if task is not None:
        outcome = _run(found, replace(task, tuning=True, seed=TUNING_SEED))
        if outcome.status != "done":
            found.problems.append(f"{job.id}: a tuning trial of {task.arm} {outcome.status}: {outcome.reason}")


def _run(found: Conformance, task: Task) -> Outcome:
    found.trials += 1
    return execute(task)


@contextlib.contextmanager
def _reseeded(*names: str) -> Iterator[None]:
    """Inside, trials draw other numbers from the named streams; `stray` is where draws outside of all streams go."""
    original = Trial.stream_seed

    def other(trial: Trial, name: str) -> int:
        return original(trial, name) ^ (_OTHER_SEED if name in names else 0)

    Trial.stream_seed = other  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Trial.stream_seed = original  # type: ignore[method-assign]


def _changes(claim: Claim, one: Outcome, other: Outcome) -> str:
    """The metrics in which two outcomes of one trial differ in any bit; those of time do not count."""
    if other.status != "done":
        return f"{one.status}, then {other.status} ({other.reason})"
    names = sorted((one.metrics.keys() | other.metrics.keys()) - set(claim.measured))
    pairs = [(name, one.metrics.get(name), other.metrics.get(name)) for name in names]
    return ", ".join(f"{name} {old!r} -> {new!r}" for name, old, new in pairs if repr(old) != repr(new))


def _settings() -> dict[str, Any]:
    """Settings of the process on which the next trial's result may depend."""
    import numpy as np
    import torch

    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "NumPy errors": np.geterr(),
    }
