import json
import math
import subprocess
import sys

import pytest

from etude.lab.contrast import Contrast, Efficient, Shape, Trend
from etude.lab.expect import (
    efficient,
    equivalent,
    higher,
    identity,
    interaction,
    lower,
    not_worse,
    shape,
    shown,
    threshold,
    trend,
)

ONE_OF_EACH = [
    higher("noise", than="plain", metric="accuracy", margin=0.01, transform="logit"),
    lower("noise", than="plain", metric="loss"),
    not_worse("small", than="large", metric="loss", margin=0.1, better="lower", transform="log"),
    equivalent("fast", to="exact", metric="accuracy", margin=0.02, control="broken"),
    efficient("small", than="large", cost="flops", quality="accuracy", margin=0.01, max_ratio=0.5),
    threshold("noise", metric="accuracy", above=0.5, below=0.9),
    trend("error", slope=(-1.5, -0.5), against={"n10": 1, "n100": 2, "n1000": 3}, transform="log"),
    trend("slope", slope=(0.0, math.inf), arm="noise"),
    interaction(("a", "b"), minus=("c", "d"), metric="accuracy", margin=0.1),
    shape("accuracy", order=("k1", "k3", "k5", "k7"), optimum=("k3", "k5")),
    identity("noise", metric="gap", tolerance=1e-6, value=1),
]


@pytest.mark.parametrize("contrast", ONE_OF_EACH, ids=lambda contrast: contrast.kind)
def test_a_spec_survives_json(contrast):
    spec = json.loads(json.dumps(contrast.spec(), allow_nan=False))
    assert Contrast.from_spec(spec) == contrast
    assert spec["kind"] == contrast.kind


@pytest.mark.parametrize("contrast", ONE_OF_EACH, ids=lambda contrast: contrast.kind)
def test_every_arm_is_a_method_or_a_baseline_but_not_both(contrast):
    assert contrast.arms() == contrast.method_arms() + contrast.baseline_arms()
    assert len(set(contrast.arms())) == len(contrast.arms())


@pytest.mark.parametrize("contrast", ONE_OF_EACH, ids=lambda contrast: contrast.kind)
def test_contrasts_are_primary_hashable_and_name_their_arms(contrast):
    assert contrast.role == "primary"
    assert hash(contrast) == hash(Contrast.from_spec(contrast.spec()))
    assert all(arm in contrast.text() for arm in contrast.arms())


def test_all_kinds_of_the_design_are_there():
    kinds = "higher lower not_worse equivalent efficient threshold trend interaction shape identity"
    assert {contrast.kind for contrast in ONE_OF_EACH} == set(kinds.split())


@pytest.mark.parametrize(
    ("contrast", "text"),
    [
        (higher("noise", than="plain", metric="accuracy"), "noise > plain (accuracy)"),
        (higher("noise", than="plain", metric="accuracy", margin=0.01), "noise > plain + 0.01 (accuracy)"),
        (lower("noise", than="plain", metric="loss", margin=1, transform="log"), "noise < plain - 1 (log loss)"),
        (not_worse("s", than="l", metric="acc", margin=0.1), "s not worse than l (acc, margin 0.1)"),
        (equivalent("s", to="l", metric="acc", margin=0.1, control="c"), "s within 0.1 of l (acc), c differs"),
        (
            efficient("s", than="l", cost="flops", quality="acc", margin=0.1, max_ratio=0.5),
            "s < 0.5 x l (flops), not worse (acc, margin 0.1)",
        ),
        (threshold("s", metric="acc", above=0.5), "s > 0.5 (acc)"),
        (threshold("s", metric="acc", below=0.5), "s < 0.5 (acc)"),
        (threshold("s", metric="acc", above=0.1, below=0.5), "0.1 < s < 0.5 (acc)"),
        (trend("acc", slope=(0.5, None), against={"a": 1, "b": 2}), "slope of acc over a, b > 0.5"),
        (trend("rate", slope=(-1, 1), arm="s"), "-1 < s: rate < 1"),
        (interaction(("a", "b"), minus=("c", "d"), metric="acc"), "(a - b) - (c - d) > 0 (acc)"),
        (shape("loss", order=("a", "b", "c"), optimum="b", better="lower"), "loss lowest at b among a, b, c"),
        (identity("s", metric="gap", tolerance=1e-6), "s = 0 within 1e-06 (gap)"),
    ],
)
def test_text_is_short_and_holds_the_margin(contrast, text):
    assert contrast.text() == text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: higher("a", than="b", metric="m", margin=-0.1), "margin.*-0.1"),
        (lambda: higher("a", than="b", metric="m", margin=math.nan), "margin.*nan"),
        (lambda: higher("a", than="a", metric="m"), "differ, got a, a"),
        (lambda: higher("a", than="", metric="m"), "empty"),
        (lambda: lower("a", than="b", metric=""), "empty"),
        (lambda: lower("a", than="b", metric="m", transform="sqrt"), "transform.*'sqrt'"),
        (lambda: not_worse("a", than="b", metric="m", margin=0.1, better="more"), "better.*'more'"),
        (lambda: not_worse("a", than="b", metric="m", margin=-1), "margin.*-1"),
        (lambda: equivalent("a", to="b", metric="m", margin=-1, control="c"), "margin.*-1"),
        (lambda: equivalent("a", to="b", metric="m", margin=0.1, control="b"), "differ"),
        (lambda: efficient("a", than="b", cost="c", quality="q", margin=0.1, max_ratio=1.5), "max_ratio.*1.5"),
        (lambda: efficient("a", than="b", cost="c", quality="q", margin=0.1, max_ratio=0), "max_ratio.*0"),
        (lambda: efficient("a", than="b", cost="", quality="q", margin=0.1), "empty"),
        (lambda: threshold("a", metric="m"), "above, below or both"),
        (lambda: threshold("a", metric="m", above=0.9, below=0.5), "above=0.9 and below=0.5"),
        (lambda: threshold("a", metric="m", above=math.inf), "above.*inf"),
        (lambda: threshold("a", metric="m", above=0.0, transform="log"), "log scale.*0.0"),
        (lambda: trend("m", slope=(0, 1)), "exactly one of against and arm"),
        (lambda: trend("m", slope=(0, 1), against={"a": 1, "b": 2}, arm="a"), "exactly one of against and arm"),
        (lambda: trend("m", slope=(1, 0), arm="a"), "low <= high"),
        (lambda: trend("m", slope=(None, math.inf), arm="a"), "one finite end"),
        (lambda: trend("m", slope=(1,), arm="a"), r"\(low, high\), got \(1,\)"),
        (lambda: trend("m", slope=(0, 1), against={"a": 1, "b": 1}), "two different positions"),
        (lambda: trend("m", slope=(0, 1), against={"a": math.nan, "b": 1}), "against.*nan"),
        (lambda: interaction(("a",), minus=("c", "d"), metric="m"), "two pairs"),
        (lambda: interaction(("a", "b"), minus=("c", "b"), metric="m"), "differ"),
        (lambda: interaction(("a", "b"), minus=("c", "d"), metric="m", margin=-1), "margin.*-1"),
        (lambda: shape("m", order=("a", "b"), optimum=("c",)), "optimum.*'c'"),
        (lambda: shape("m", order=("a", "b"), optimum=()), "optimum"),
        (lambda: shape("m", order=("a", "b", "c"), optimum=("a", "c")), "leave an arm"),
        (lambda: shape("m", order=("a", "b", "b"), optimum=("a",)), "differ"),
        (lambda: shape("m", order=("a", "b"), optimum=("a",), better="best"), "better.*'best'"),
        (lambda: identity("a", metric="m", tolerance=-1), "tolerance.*-1"),
        (lambda: identity("a", metric="m", tolerance=1, value=math.inf), "value.*inf"),
        (lambda: shown(), "distinct names"),
        (lambda: shown("a", "a"), "distinct names"),
        (lambda: Contrast.from_spec({"kind": "best"}), "kind.*'best'"),
        (lambda: Contrast.from_spec({}), "kind.*''"),
    ],
)
def test_a_bad_argument_is_refused_with_its_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_infinite_end_of_a_slope_is_stored_as_open():
    contrast = trend("m", slope=(-math.inf, 2), arm="a")
    assert isinstance(contrast, Trend)
    assert contrast.slope == (None, 2.0)


def test_an_optimum_spans_the_arms_between_its_ends():
    contrast = shape("m", order=("a", "b", "c", "d", "e"), optimum=("d", "b"))
    assert isinstance(contrast, Shape)
    assert contrast.optimum == ("b", "c", "d")
    assert contrast.baseline_arms() == ("a", "e")


def test_efficient_needs_the_cost_and_the_quality_of_both_arms():
    contrast = efficient("small", than="large", cost="flops", quality="accuracy", margin=0)
    assert isinstance(contrast, Efficient)
    assert contrast.metrics() == ("flops", "accuracy")
    assert contrast.arms() == ("small", "large")


def test_the_control_of_an_equivalence_must_not_be_replaced_by_a_worst_value():
    contrast = equivalent("fast", to="exact", metric="m", margin=0.1, control="broken")
    assert contrast.method_arms() == ("fast", "broken")
    assert contrast.baseline_arms() == ("exact",)


def test_shown_takes_arms_and_turns_contrasts_into_shown_ones():
    item = shown("he_init", higher("noise", than="plain", metric="speed"), "oracle")
    assert item.arms == ("he_init", "oracle")
    assert [contrast.role for contrast in item.contrasts] == ["shown"]
    assert Contrast.from_spec(item.contrasts[0].spec()).role == "shown"


def test_importing_expectations_and_verdicts_imports_no_numerical_library():
    heavy = ["torch", "numpy", "scipy"]
    code = (
        "import sys, types; package = types.ModuleType('etude.lab'); import etude; "
        f"package.__path__ = [etude.__path__[0] + '/lab']; sys.modules['etude.lab'] = package; "
        "import etude.lab.expect, etude.lab.verdict, etude.lab.audit; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
