"""The coordinator: what is run, what is taken from the store, tuning, failures, and the verdicts in the end."""

import json

import pytest

from etude.lab.engine import Done, make_engine
from etude.lab.evidence import _compact, check, entry, export, load_evidence, summary, thin
from etude.lab.plan import estimate, plan
from etude.lab.run import run
from etude.lab.store import Store
from etude.lab.task import Outcome

SHRINKAGE, TROUBLE = "etude_toys.shrinkage:PAPER", "etude_toys.trouble:PAPER"


class Counting:
    """An observer that counts."""

    def __init__(self):
        self.ran, self.stored, self.verdicts = [], [], []

    def started(self, jobs, trials):
        self.trials = trials

    def submitted(self, task): ...

    def progressed(self, task, step, total, metrics): ...

    def ended(self, task, outcome, stored):
        (self.stored if stored else self.ran).append(task)

    def judged(self, result):
        self.verdicts.append(result.job.id)


def execute(path, module, claim=None, *, scale="small", engine="inline", workers=None, **options):
    observer = Counting()
    with Store(path) as store:
        results = run(
            plan([(module, claim, None)], scale),
            store,
            make_engine(engine, workers=workers),
            observer=observer,
            **options,
        )
    return results, observer


def only(results):
    (result,) = results
    return result


def test_a_claim_is_run_and_judged(tmp_path):
    results, observer = execute(tmp_path, SHRINKAGE)
    assert {result.job.id: result.status for result in results} == {
        "toy_shrinkage/dominates": "holds", "toy_shrinkage/factor": "holds", "toy_shrinkage/positive_part": "holds",
    }  # fmt: skip
    assert len(observer.ran) == observer.trials == 25
    assert sorted(observer.verdicts) == sorted(result.job.id for result in results)


def test_a_second_run_answers_from_the_store(tmp_path):
    first, _ = execute(tmp_path, SHRINKAGE)
    second, observer = execute(tmp_path, SHRINKAGE)
    assert observer.ran == []
    assert len(observer.stored) == 25
    assert [result.contrasts for result in first] == [result.contrasts for result in second]


def test_only_what_is_missing_is_run(tmp_path):
    (job,) = plan([(TROUBLE, "steady", None)], "small", seeds=(0, 1))
    with Store(tmp_path) as store:
        run([job], store, make_engine("inline"))
        (wider,) = plan([(TROUBLE, "steady", None)], "small", seeds=(0, 1, 2))
        observer = Counting()
        run([wider], store, make_engine("inline"), observer=observer)
    assert [(task.arm, task.seed) for task in observer.ran] == [("baseline", 2), ("method", 2)]


def test_tuning_chooses_by_validation_on_its_own_seeds(tmp_path):
    result = only(execute(tmp_path, SHRINKAGE, "factor")[0])
    assert result.job.choices == {"one": {}, "tuned": {"factor": 0.5}}
    (table,) = result.tuning.values()
    assert [row["values"] for row in table] == [{"factor": 0.1}, {"factor": 0.5}, {"factor": 0.9}]
    assert set(table[0]["scores"]) == {"1000", "1001"}
    assert all(record["trial"]["seed"] < 1000 for record in result.trials)


def test_smoke_takes_the_first_candidate_and_gives_no_verdict(tmp_path):
    result = only(execute(tmp_path, SHRINKAGE, "factor", scale="smoke")[0])
    assert result.job.choices["tuned"] == {"factor": 0.1}
    assert (result.status, result.contrasts) == ("none", [])


def test_a_failed_baseline_leaves_the_claim_undecided(tmp_path):
    result = only(execute(tmp_path, TROUBLE, "raises")[0])
    assert result.status == "undecided"
    assert "the sum of the parts" in result.contrasts[0].reason
    assert result.errored


def test_a_failed_baseline_scores_its_declared_worst_value(tmp_path):
    result = only(execute(tmp_path, TROUBLE, "raises_with_worst")[0])
    assert result.contrasts[0].n == 3
    assert result.contrasts[0].differences[1 if 1 in result.contrasts[0].differences else "1"] > 5


def test_a_failed_method_cannot_hold(tmp_path):
    assert only(execute(tmp_path, TROUBLE, "diverges")[0]).status == "undecided"


def test_a_failure_is_data_until_it_is_asked_for_again(tmp_path):
    execute(tmp_path, TROUBLE, "diverges")
    _, observer = execute(tmp_path, TROUBLE, "diverges")
    assert observer.ran == []
    _, observer = execute(tmp_path, TROUBLE, "diverges", retry_failed=True)
    assert [(task.arm, task.seed) for task in observer.ran] == [("method", 2)]


def test_missing_data_are_the_status_and_nothing_is_stored(tmp_path):
    result = only(execute(tmp_path, TROUBLE, "needs_data")[0])
    assert (result.status, result.trials) == ("needs data", [])
    assert "place absent.txt" in result.reason
    assert list(Store(tmp_path).results()) == []


def test_a_worker_that_dies_once_is_replaced_and_the_trial_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_TOY_MARKER", str(tmp_path / "marker"))
    result = only(execute(tmp_path / "runs", TROUBLE, "dies_once", engine="process", workers=2)[0])
    assert result.status == "holds"
    (attempts,) = {record["attempts"] for record in result.trials if record["attempts"] > 1}
    assert attempts == 2


def test_a_worker_that_dies_always_is_given_up_and_tried_afresh_by_the_next_run(tmp_path):
    result = only(execute(tmp_path, TROUBLE, "dies", engine="process", workers=2)[0])
    assert result.status != "holds"
    (crashed,) = [record for record in result.trials if record["status"] == "crashed"]
    assert crashed["attempts"] == 3
    (job,) = plan([(TROUBLE, "dies", None)], "small")
    guess = estimate(job, Store(tmp_path))
    assert (guess.trials, guess.stored) == (6, 5)


def test_an_interrupt_keeps_what_has_finished(tmp_path):
    class Impatient(Counting):
        def ended(self, task, outcome, stored):
            super().ended(task, outcome, stored)
            if len(self.ran) == 5:
                raise KeyboardInterrupt

    jobs = plan([(TROUBLE, "steady", None)], "small", seeds=tuple(range(10)))
    with Store(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        run(jobs, store, make_engine("inline"), observer=Impatient())
    assert len(list(Store(tmp_path).results())) == 5
    observer = Counting()
    with Store(tmp_path) as store:
        run(
            plan([(TROUBLE, "steady", None)], "small", seeds=tuple(range(10))),
            store,
            make_engine("inline"),
            observer=observer,
        )
    assert (len(observer.ran), len(observer.stored)) == (15, 5)


def test_an_estimate_learns_from_the_past(tmp_path):
    (job,) = plan([(TROUBLE, "steady", None)], "small", seeds=(0, 1))
    with Store(tmp_path) as store:
        assert estimate(job, store).seconds is None
        run([job], store, make_engine("inline"))
        (wider,) = plan([(TROUBLE, "steady", None)], "small", seeds=(0, 1, 2, 3))
        guess = estimate(wider, store)
    assert (guess.trials, guess.stored) == (8, 4)
    assert guess.seconds >= 4 * 0.01


def exported(tmp_path):
    with Store(tmp_path / "runs") as store:
        results = run(plan([(SHRINKAGE, None, None)], "small"), store, make_engine("inline"))
        export(tmp_path / "evidence", "toy_shrinkage", results, store)
    return load_evidence([tmp_path / "evidence"])["toy_shrinkage"]


def test_evidence_recomputes_to_its_own_verdicts(tmp_path):
    evidence = exported(tmp_path)
    assert check(evidence) == []
    claim = evidence["claims"]["toy_shrinkage/dominates"]
    assert claim["status"] == "holds"
    assert len(claim["trials"]) == 12
    assert claim["series"]["james_stein"]["error"]["0"]
    assert evidence["environment"]["threads"] == 1


def test_a_changed_metric_is_found_by_the_check(tmp_path):
    evidence = exported(tmp_path)
    evidence["claims"]["toy_shrinkage/dominates"]["trials"][0]["metrics"]["error"] += 1e-3
    assert any("toy_shrinkage/dominates" in line for line in check(evidence))


def test_evidence_of_one_claim_updates_the_file_and_keeps_the_others(tmp_path):
    exported(tmp_path)
    with Store(tmp_path / "runs") as store:
        results = run(plan([(SHRINKAGE, "factor", None)], "small"), store, make_engine("inline"))
        export(tmp_path / "evidence", "toy_shrinkage", results, store)
    assert len(load_evidence([tmp_path / "evidence"])["toy_shrinkage"]["claims"]) == 3


def test_the_summary_follows_a_file_that_changed_after_the_index(tmp_path):
    exported(tmp_path)
    assert summary([tmp_path / "evidence"])["toy_shrinkage/dominates"]["status"] == "holds"
    path = tmp_path / "evidence" / "toy_shrinkage.json"
    path.write_text(path.read_text().replace('"holds"', '"fails"'))
    assert summary([tmp_path / "evidence"])["toy_shrinkage/dominates"]["status"] == "fails"


def test_an_entry_quotes_the_protocol(tmp_path):
    with Store(tmp_path) as store:
        result = only(run(plan([(SHRINKAGE, "factor", None)], "small"), store, make_engine("inline")))
        row = entry(result, store)
    assert row["setup"] == {"repeats": 400}
    assert row["tuning"]["tuned"]["chosen"] == {"factor": 0.5}
    assert row["cost"]["tuning_seconds"] > 0


def test_thinning_keeps_extremes_and_ends():
    points = [(float(step), 0.0) for step in range(10_000)]
    points[1234] = (1234.0, 9.0)
    kept = thin(points)
    assert len(kept) <= 100
    assert [1234.0, 9.0] in kept
    assert kept[0][0] == 0
    assert kept[-1][0] == 9_999


def test_the_points_of_a_curve_stand_on_a_line_each_and_read_back_the_same():
    content = {"series": {"loss": [[1.0, -2e-05], [2.0, 3.0]]}, "seeds": [0, 1], "note": "a [1.0, 2.0] in words"}
    text = _compact(json.dumps(content, indent=1))
    assert json.loads(text) == content
    assert "[1.0, -2e-05]" in text


class Unlucky:
    """An engine on which every trial meets the given ends before it is done."""

    name, workers = "unlucky", 1

    def __init__(self, *ends):
        self.ends, self.tasks, self.met = ends, [], {}

    @property
    def free(self):
        return self.workers - len(self.tasks)

    def submit(self, task):
        self.tasks.append(task)

    def poll(self, timeout):
        task = self.tasks.pop()
        left = self.met.setdefault(task.id, list(self.ends))
        status = left.pop(0) if left else "done"
        yield Done(task, Outcome(status, reason="bad luck", metrics={"score": float(task.seed)}))

    def close(self): ...


@pytest.mark.parametrize(
    ("ends", "status", "attempts"),
    [
        ((), "done", 1),
        (("crashed", "crashed"), "done", 3),
        (("crashed",) * 9, "crashed", 3),
        (("lost",) * 9, "done", 10),
        (("lost", "crashed", "lost", "crashed", "lost"), "done", 6),
        (("lost",) * 99, "crashed", 20),
    ],
)
def test_a_trial_is_blamed_for_its_worker_and_not_for_its_machine(tmp_path, ends, status, attempts):
    with Store(tmp_path) as store:
        jobs = plan([(TROUBLE, "steady", None)], "small", seeds=(0, 1, 2))
        result = only(run(jobs, store, Unlucky(*ends)))
    assert len(result.trials) == 6
    assert {(record["status"], record["attempts"]) for record in result.trials} == {(status, attempts)}


def test_a_worker_has_its_next_trial_before_the_last_one_is_written(tmp_path):
    order = []

    class Watched(Store):
        def put(self, task, outcome, fingerprint):
            order.append(("put", task.id))
            return super().put(task, outcome, fingerprint)

    class Watching(Counting):
        def submitted(self, task):
            order.append(("submitted", task.id))

    with Watched(tmp_path) as store:
        run(plan([(TROUBLE, "steady", None)], "small", seeds=(0,)), store, make_engine("inline"), observer=Watching())
    assert [what for what, _ in order] == ["submitted", "submitted", "put", "put"]
