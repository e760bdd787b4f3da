"""The declaration of papers and claims: what is refused, and what a claim knows of itself."""

import pickle

import pytest

from etude.lab import Paper, Setup, Source, higher, shown

SETUP = {"smoke": Setup(steps=1), "small": Setup(steps=10)}
EXPECT = [higher("b", than="a", metric="score")]


def paper() -> Paper:
    return Paper(slug="toy", domain="theory", title="Toy", authors="Nobody", year=2000)


def function(trial):
    return {"score": 0.0}


def declare(**changes):
    target = paper()
    options = {"arms": ("a", "b"), "expect": EXPECT, "setup": SETUP} | changes
    target.claim("b beats a", **options)(function)
    return target.claims["function"]


def test_a_setup_is_immutable_equal_by_value_and_survives_pickling():
    setup = Setup(steps=3, width=8)
    with pytest.raises(AttributeError, match="replace"):
        setup.steps = 4
    assert setup.replace(steps=4) == Setup(steps=4, width=8)
    assert pickle.loads(pickle.dumps(setup)) == setup
    assert hash(setup) == hash(Setup(steps=3, width=8))


def test_an_unknown_name_of_a_setup_is_named():
    with pytest.raises(AttributeError, match="'depth'; it has steps"):
        _ = Setup(steps=3).depth
    with pytest.raises(ValueError, match="no depth"):
        Setup(steps=3).replace(depth=1)


def test_a_setup_value_without_a_json_form_is_refused():
    with pytest.raises(TypeError, match="JSON"):
        Setup(model=object())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("a", "a")}, "distinct"),
        ({"arms": ("a", "c")}, r"unknown arms \['b'\]"),
        ({"arms": ("a", "b", "two words")}, "two words"),
        ({"expect": [*EXPECT, shown("z")]}, "unknown arms"),
        ({"setup": {"small": Setup(steps=1)}}, "smoke is required"),
        ({"setup": {**SETUP, "huge": Setup(steps=1)}}, "huge"),
        ({"setup": {"smoke": Setup(steps=1), "small": Setup(width=1)}}, "differ"),
        ({"tune": {"lr": [0.1, 1.0]}}, "tune_by"),
        ({"tune": {"lr": []}, "tune_by": "val"}, "empty"),
        ({"tune": {"lr": [0.1]}, "tune_by": "val", "tune_goal": "best"}, "best"),
        ({"tuned_like": {"a": "b"}}, "not tuned"),
        ({"seeds": range(998, 1002)}, "seeds must lie"),
        ({"data": {"digits": lambda: None}}, "belong together"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_a_contradictory_declaration_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        declare(**changes)


def test_a_bad_card_is_refused():
    with pytest.raises(ValueError, match="Bad Slug"):
        Paper(slug="Bad Slug", domain="theory", title="Toy", authors="Nobody", year=2000)
    with pytest.raises(ValueError, match="12"):
        Paper(slug="toy", domain="theory", title="Toy", authors="Nobody", year=12)


def test_a_claim_cannot_be_declared_twice():
    target = paper()
    options = {"arms": ("a", "b"), "expect": EXPECT, "setup": SETUP}
    target.claim("b beats a", **options)(function)
    with pytest.raises(ValueError, match="twice"):
        target.claim("b beats a", **options)(function)


def test_ids_carry_the_data_set_only_where_there_are_several():
    def with_data(trial, data):
        return {"score": 0.0}

    target = paper()
    options = {"arms": ("a", "b"), "expect": EXPECT, "setup": SETUP | {"full": Setup(steps=99)}}
    sets = {"small_set": Source(dict, scales=("smoke", "small")), "large_set": Source(dict, scales=("full",))}
    target.claim("b beats a", data=sets, **options)(with_data)
    claim = target.claims["with_data"]
    assert claim.ids("small") == [("toy/with_data@small_set", "small_set")]
    assert claim.ids("full") == [("toy/with_data@large_set", "large_set")]
    assert declare().ids() == [("toy/function", None)]


def test_the_grid_is_a_product_over_the_knobs_that_an_arm_has():
    claim = declare(tune={"lr": [1, 2], "eta": {"b": [3, 4]}}, tune_by="val")
    assert claim.candidates("a") == [{"lr": 1}, {"lr": 2}]
    assert claim.candidates("b") == [{"lr": 1, "eta": 3}, {"lr": 1, "eta": 4}, {"lr": 2, "eta": 3}, {"lr": 2, "eta": 4}]
    assert declare(tune={"lr": [1, 2]}, tune_by="val", untuned=("a",)).candidates("a") == [{}]


def test_smoke_takes_one_seed_and_scales_may_differ_in_theirs():
    claim = declare(seeds={"small": range(1, 7)})
    assert claim.seeds == {"smoke": (0,), "small": (1, 2, 3, 4, 5, 6)}
