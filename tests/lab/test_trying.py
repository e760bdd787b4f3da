"""Methods tried on a user's data: what fits, what is left at screening, verdicts on fresh seeds, resume, budget."""

import gc
import json

import pytest
from etude_toys.users import PAPER

from etude.data import tables, user
from etude.lab import Paper, Setup, efficient, higher, identity, threshold
from etude.lab.engine import make_engine
from etude.lab.paper import TUNING_SEED
from etude.lab.store import Store
from etude.lab.trying import Finding, Material, Trying, _decided, _rank, false_finds, questions
from etude.lab.verdict import ContrastVerdict

MODULE = "etude_toys.users:PAPER"


@pytest.fixture(autouse=True, scope="module")
def spared():
    """The collection after each trial passes over what is there already, as in the workers."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    data = tables.breast_cancer()
    folder = user.keep(data, tmp_path_factory.mktemp("data") / "tumours")
    train, val, test = user.rows(data)
    source = {"loader": "etude.data.user:load", "arguments": {"path": str(folder)}}
    return Material("TableData", "tumours", user.digest(folder), source, train, val, test)


def asked(material, *names):
    found, _ = questions([(MODULE, name) for name in names or (None,)], material, "small")
    return found


def ask(material, path, *names, budget=600.0, **options):
    with Store(path) as store:
        trying = Trying(
            asked(material, *names), material, store, lambda: make_engine("inline"), workers=1, budget=budget, **options
        )
        return {finding.claim.partition("/")[2]: finding for finding in trying.run()}


def test_every_question_of_the_kind_is_asked_with_two_arms(material):
    found = {question.claim.name: question.claim for question in asked(material)}
    assert set(found) == {"means", "reversal", "twins", "picky"}
    assert found["means"].arms == ("more", "guess")
    assert len(found["means"].contrasts) == 1


def test_an_arm_that_follows_another_is_tuned_by_itself(material):
    (question,) = asked(material, "means")
    assert question.claim.candidates("more") == [{"power": 1.0}, {"power": 2.0}]
    assert not question.claim.tunes("guess")


def test_a_grid_of_another_arms_own_is_taken_over():
    paper = Paper("toy", "theory", "T", "A", 2000)

    @paper.claim(
        "x", arms=("a", "b", "c"), expect=[higher("a", than="b", metric="m")], setup={"smoke": Setup()},
        data={"d": tables.wine}, tune={"lr": [1, 2], "noise": {"a": [3, 4]}}, tune_by="v", tuned_like={"c": "a"},
        helps=higher("c", than="b", metric="m"),
    )  # fmt: skip
    def claim(trial, data): ...

    cut = paper.claims["claim"].for_users()
    assert cut.candidates("c") == [{"lr": lr, "noise": noise} for lr in (1, 2) for noise in (3, 4)]
    assert cut.candidates("b") == [{"lr": 1}, {"lr": 2}]


def test_a_question_needs_data_and_two_arms():
    paper = Paper("toy", "theory", "T", "A", 2000)
    common = {"arms": ("a", "b"), "expect": [], "setup": {"smoke": Setup()}}
    with pytest.raises(ValueError, match="needs data= and a contrast of two arms"):
        paper.claim("x", helps=higher("a", than="b", metric="m"), **common)(lambda trial: {})
    with pytest.raises(ValueError, match="needs data= and a contrast of two arms"):
        paper.claim("x", helps=threshold("a", metric="m", above=1), data={"d": tables.wine}, **common)(
            lambda trial, data: {}
        )
    with pytest.raises(ValueError, match="helps_tables= is for a claim with helps= that takes ImageData"):
        paper.claim("x", helps_tables=True, data={"d": tables.wine}, **common)(lambda trial, data: {})
    with pytest.raises(ValueError, match="unknown arms"):
        paper.claim("x", helps=higher("a", than="z", metric="m"), data={"d": tables.wine}, **common)(
            lambda trial, data: {}
        )
    with pytest.raises(ValueError, match="asks nothing of a user's data"):
        PAPER.claims["silent"].for_users()


def test_other_kinds_are_named_and_not_asked(material):
    other = Material("GraphData", "g", "0" * 64, {}, 100, 10, 50)
    found, others = questions([(MODULE, None)], other, "small")
    assert not found
    assert "toy_users/means" in others


def test_rows_of_a_table_serve_claims_that_flatten_images(material):
    images = {"loader": "etude.data.user:load_rows_as_images", "arguments": {}}
    both = Material("TableData", "t", "0" * 64, {}, 100, 10, 50, as_images=images)
    found, others = questions([("etude.claims.training.gradient_noise", None)], both, "small")
    assert [(question.claim.name, question.source) for question in found] == [("poor_initialisation", images)]
    found, others = questions([("etude.claims.vision.halonet", None)], both, "small")
    assert not found
    assert others == ["halonet/param_efficiency"]


def test_findings_say_what_helps_and_what_does_not(material, tmp_path):
    found = ask(material, tmp_path)
    assert {name: finding.status for name, finding in found.items()} == {
        "means": "helps", "twins": "keeps up", "reversal": "hurts", "picky": "does not fit",
    }  # fmt: skip
    assert list(found) == ["means", "twins", "reversal", "picky"]
    assert found["picky"].reason == "ValueError: at most 20 features are taken, got 30"
    means = found["means"]
    assert means.verdict.n == 8
    assert means.verdict.low > 0
    assert means.holm < 0.05
    assert means.tuned["guess"] == {"power": 1.0} or means.tuned["guess"] == {}
    assert means.baseline == pytest.approx(0.37, abs=0.02)
    assert means.cost > 0
    assert means.seconds > 0
    assert means.gain is None  # the guess has no validation score to be compared with
    assert found["reversal"].gain < 0
    assert json.loads(json.dumps([finding.to_json() for finding in found.values()]))
    assert false_finds(found.values()) == (3, pytest.approx(0.075))


def test_verdicts_come_from_seeds_that_chose_nothing(material, tmp_path):
    ask(material, tmp_path, "means")
    trials = [result.trial for result in Store(tmp_path).results()]
    assert {trial["seed"] for trial in trials if trial["tuning"]} == {TUNING_SEED, TUNING_SEED + 1}
    assert {trial["seed"] for trial in trials if not trial["tuning"] and trial["scale"] == "small"} == set(range(8))
    assert {trial["claim"] for trial in trials} == {f"toy_users/means@tumours-{material.digest[:8]}"}


def test_what_is_stored_is_not_run_again(material, tmp_path):
    class Counting:
        ran = 0

        def started(self, jobs, trials): ...
        def submitted(self, task):
            self.ran += 1

        def progressed(self, task, step, total, metrics): ...
        def ended(self, task, outcome, stored): ...
        def judged(self, result): ...

    first = ask(material, tmp_path, "means", "twins")
    observer = Counting()
    again = ask(material, tmp_path, "means", "twins", observer=observer)
    assert observer.ran == 0
    assert [finding.verdict for finding in again.values()] == [finding.verdict for finding in first.values()]


def test_the_plan_is_written_before_the_verdicts_and_kept(material, tmp_path):
    ask(material, tmp_path, "means", "twins")
    (file,) = (tmp_path / "try").glob("*.json")
    plan = json.loads(file.read_text())
    assert sorted(plan["survivors"]) == ["toy_users/means", "toy_users/twins"]
    assert plan["seeds"] == 8
    file.write_text(json.dumps({"survivors": ["toy_users/twins"], "seeds": 3}))
    found = ask(material, tmp_path, "means", "twins")
    assert found["twins"].verdict.n == 3
    assert found["means"].status == "no time"
    file.write_text("torn")
    assert ask(material, tmp_path, "means", "twins")["means"].verdict.n == 8


def test_without_time_nothing_is_pretended(material, tmp_path):
    found = ask(material, tmp_path, budget=1e-9)
    assert {finding.status for finding in found.values()} == {"no time"}
    assert not any(finding.verdict for finding in found.values())
    assert false_finds(found.values()) == (0, 0.0)


def test_the_less_promising_half_is_left_at_screening(material, tmp_path, monkeypatch):
    # Trials are said to take so long that the budget carries two of three questions, on three seeds.
    monkeypatch.setattr(Trying, "_per_trial", lambda self, claim, arm: 20.0)
    found = ask(material, tmp_path, "means", "twins", "reversal", budget=600.0)
    assert found["reversal"].status == "left at screening"
    assert {found["means"].verdict.n, found["twins"].verdict.n} <= {3, 5}


def test_the_budget_carries_the_most_promising(material, tmp_path, monkeypatch):
    monkeypatch.setattr(Trying, "_per_trial", lambda self, claim, arm: 60.0)
    found = ask(material, tmp_path, "means", "twins", budget=420.0)
    (judged,) = [finding for finding in found.values() if finding.verdict is not None]
    (other,) = [finding for finding in found.values() if finding.verdict is None]
    assert judged.verdict.n == 3
    assert other.status in ("no time", "left at screening")
    assert other.reason


def verdict(kind, status, p=0.01):
    return ContrastVerdict(kind, "primary", "", {"metric": "accuracy"}, status, p=p, effect=0.1)


@pytest.mark.parametrize(
    ("kind", "status", "adjusted", "expected"),
    [
        ("higher", "holds", 0.01, "helps"),
        ("lower", "holds", 0.01, "helps"),
        ("efficient", "holds", 0.01, "keeps up"),
        ("higher", "holds", 0.06, "undecided"),
        ("higher", "fails", 1.0, "hurts"),
        ("not_worse", "fails", 1.0, "falls behind"),
        ("higher", "undecided", 0.2, "undecided"),
    ],
)
def test_a_verdict_must_survive_the_number_of_questions(kind, status, adjusted, expected):
    found, reason = _decided(verdict(kind, status), adjusted)
    assert found == expected
    assert ("so many questions" in reason) == (status == "holds" and expected == "undecided")


def test_the_largest_effect_stands_in_front():
    def finding(name, status, effect):
        return Finding(name, "p", "t", "s", "c", status, verdict=verdict("higher", "holds") if effect else None)

    ranked = sorted([finding("b", "no time", None), finding("a", "hurts", 1), finding("c", "helps", 1)], key=_rank)
    assert [item.claim for item in ranked] == ["c", "a", "b"]


def test_a_contrast_with_costs_can_be_asked():
    paper = Paper("toy", "theory", "T", "A", 2000)

    @paper.claim(
        "x", arms=("a", "b"), expect=[identity("a", metric="m", tolerance=0)], setup={"smoke": Setup()},
        data={"d": tables.wine}, helps=efficient("a", than="b", cost="size", quality="m", margin=0.1),
    )  # fmt: skip
    def claim(trial, data): ...

    assert paper.claims["claim"].metrics("b") == {"size", "m"}
