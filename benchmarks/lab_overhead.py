"""The lab's own overhead: a trial through worker and store beside the bare call of its function."""

import tempfile
from pathlib import Path

from benchmarks.compare import Comparison
from etude.lab import Trial
from etude.lab.paper import Setup
from etude.lab.plan import plan
from etude.lab.store import Store
from etude.lab.worker import execute, load_paper

__all__ = ["comparisons"]

_MODULE, _CLAIM = "etude.claims.training.gradient_noise", "poor_initialisation"


def comparisons() -> list[Comparison]:
    """One trial of a claim at small, stored, against the same function called by hand."""
    claim = load_paper(_MODULE).claims[_CLAIM]
    (job,) = plan([(_MODULE, _CLAIM, None)], "small", seeds=(900,))
    job.choose({})
    task = next(task for task in job.trial_tasks() if task.arm == "simple_noise")
    data = next(iter(claim.data.values())).load() if claim.data else None

    def through_the_lab() -> None:
        with tempfile.TemporaryDirectory() as folder, Store(Path(folder)) as store:
            outcome = execute(task)
            assert outcome.status == "done", outcome.error
            store.put(task, outcome, job.fingerprint)

    def by_hand() -> None:
        knobs = dict.fromkeys(claim.knobs()) | task.tuned
        trial = Trial(task.claim, task.arm, task.seed, task.scale, Setup(**task.setup), knobs)
        claim.function(*((trial, data) if data is not None else (trial,)))

    return [Comparison("a trial of gradient_noise at small", through_the_lab, by_hand, "bare call")]
