import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats

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
from etude.lab.statistics import (
    benjamini_hochberg,
    expected_false_holds,
    holm,
    interval,
    look_level,
    power,
    resolvable,
    seeds_needed,
    sign_flip_p,
)
from etude.lab.verdict import ContrastVerdict, claim_p, claim_verdict, judge

NOISE = (0.02, -0.01, 0.0, 0.01, -0.02)
SEEDS = range(5)


def arms(metric="m", **scores):
    """Trials that went well: one score per seed and arm."""
    return {
        arm: {seed: {"status": "done", "metrics": {metric: score}, "reason": ""} for seed, score in enumerate(row)}
        for arm, row in scores.items()
    }


def around(mean, noise=NOISE):
    return [mean + deviation for deviation in noise]


def fail(results, arm, *seeds, status="failed", reason="diverged"):
    for seed in seeds:
        results[arm][seed] = {"status": status, "metrics": {}, "reason": reason}
    return results


FLAT = [0.5] * 5
WIDE = (0.3, -0.3, 0.1, -0.2, 0.1)

HIGHER = higher("a", than="b", metric="m", margin=0.1)
LOWER = lower("a", than="b", metric="m", margin=0.1)
NOT_WORSE = not_worse("a", than="b", metric="m", margin=0.1)
NOT_WORSE_LOSS = not_worse("a", than="b", metric="m", margin=0.1, better="lower")
EQUIVALENT = equivalent("a", to="b", metric="m", margin=0.1, control="c")
ABOVE = threshold("a", metric="m", above=0.6)
BELOW = threshold("a", metric="m", below=0.6)
BETWEEN = threshold("a", metric="m", above=0.4, below=0.6)
TREND = trend("m", slope=(0.5, 1.5), against={"a": 0, "b": 1, "c": 2})
OWN_TREND = trend("m", slope=(0.5, None), arm="a")
INTERACTION = interaction(("a", "b"), minus=("c", "d"), metric="m", margin=0.1)
SHAPE = shape("m", order=("a", "b", "c", "d"), optimum=("b", "c"))
SHAPE_LOSS = shape("m", order=("a", "b", "c", "d"), optimum=("b", "c"), better="lower")

TABLE = [
    (HIGHER, {"a": around(0.8), "b": FLAT}, "holds"),
    (HIGHER, {"a": around(0.4), "b": FLAT}, "fails"),
    (HIGHER, {"a": around(0.6), "b": FLAT}, "undecided"),
    (HIGHER, {"a": around(0.55), "b": FLAT}, "undecided"),
    (HIGHER, {"a": around(0.6, WIDE), "b": FLAT}, "undecided"),
    (LOWER, {"a": around(0.3), "b": FLAT}, "holds"),
    (LOWER, {"a": around(0.6), "b": FLAT}, "fails"),
    (LOWER, {"a": around(0.4), "b": FLAT}, "undecided"),
    (NOT_WORSE, {"a": around(0.47), "b": FLAT}, "holds"),
    (NOT_WORSE, {"a": around(0.3), "b": FLAT}, "fails"),
    (NOT_WORSE, {"a": around(0.4), "b": FLAT}, "undecided"),
    (NOT_WORSE_LOSS, {"a": around(0.53), "b": FLAT}, "holds"),
    (NOT_WORSE_LOSS, {"a": around(0.7), "b": FLAT}, "fails"),
    (NOT_WORSE_LOSS, {"a": around(0.6), "b": FLAT}, "undecided"),
    (EQUIVALENT, {"a": around(0.52), "b": FLAT, "c": around(0.9)}, "holds"),
    (EQUIVALENT, {"a": around(0.7), "b": FLAT, "c": around(0.9)}, "fails"),
    (EQUIVALENT, {"a": around(0.3), "b": FLAT, "c": around(0.5)}, "fails"),
    (EQUIVALENT, {"a": around(0.6), "b": FLAT, "c": around(0.9)}, "undecided"),
    (EQUIVALENT, {"a": around(0.5), "b": FLAT, "c": around(0.5)}, "undecided"),
    (ABOVE, {"a": around(0.7)}, "holds"),
    (ABOVE, {"a": around(0.5)}, "fails"),
    (ABOVE, {"a": around(0.6)}, "undecided"),
    (BELOW, {"a": around(0.5)}, "holds"),
    (BELOW, {"a": around(0.7)}, "fails"),
    (BELOW, {"a": around(0.6)}, "undecided"),
    (BETWEEN, {"a": around(0.5)}, "holds"),
    (BETWEEN, {"a": around(0.7)}, "fails"),
    (BETWEEN, {"a": around(0.3)}, "fails"),
    (BETWEEN, {"a": around(0.4)}, "undecided"),
    (TREND, {"a": around(0.0), "b": around(5.0, WIDE), "c": around(2.0, WIDE)}, "holds"),
    (TREND, {"a": around(2.0), "b": FLAT, "c": around(0.0, WIDE)}, "fails"),
    (TREND, {"a": around(0.0), "b": FLAT, "c": around(1.0, WIDE)}, "undecided"),
    (OWN_TREND, {"a": around(0.8)}, "holds"),
    (OWN_TREND, {"a": around(0.2)}, "fails"),
    (OWN_TREND, {"a": around(0.5)}, "undecided"),
    (INTERACTION, {"a": around(0.9), "b": FLAT, "c": FLAT, "d": FLAT}, "holds"),
    (INTERACTION, {"a": around(0.9), "b": FLAT, "c": [1.2] * 5, "d": FLAT}, "fails"),
    (INTERACTION, {"a": around(0.9), "b": FLAT, "c": [0.8] * 5, "d": FLAT}, "undecided"),
    (SHAPE, {"a": FLAT, "b": around(0.8), "c": around(0.9), "d": FLAT}, "holds"),
    (SHAPE, {"a": FLAT, "b": around(0.8), "c": around(0.9), "d": [0.95] * 5}, "fails"),
    (SHAPE, {"a": FLAT, "b": around(0.8), "c": around(0.9), "d": [0.85] * 5}, "undecided"),
    (SHAPE_LOSS, {"a": FLAT, "b": around(0.2), "c": around(0.3), "d": FLAT}, "holds"),
    (SHAPE_LOSS, {"a": FLAT, "b": around(0.2), "c": around(0.3), "d": [0.1] * 5}, "fails"),
    (SHAPE_LOSS, {"a": FLAT, "b": around(0.2), "c": around(0.3), "d": [0.25] * 5}, "undecided"),
]


@pytest.mark.parametrize(("contrast", "scores", "status"), TABLE)
def test_every_kind_holds_fails_and_stays_undecided(contrast, scores, status):
    assert judge(contrast, arms(**scores), SEEDS).status == status


@pytest.mark.parametrize(("contrast", "scores", "status"), TABLE)
def test_a_contrast_holds_exactly_when_its_p_value_is_below_five_percent(contrast, scores, status):
    p = judge(contrast, arms(**scores), SEEDS).p
    assert p is not None
    assert (p < 0.05) == (status == "holds")


@pytest.mark.parametrize(("contrast", "scores", "status"), TABLE)
def test_a_verdict_survives_json(contrast, scores, status):
    verdict = judge(contrast, arms(**scores), SEEDS)
    assert ContrastVerdict.from_json(json.loads(json.dumps(verdict.to_json(), allow_nan=False))) == verdict


@pytest.mark.parametrize(("contrast", "scores", "status"), TABLE)
def test_what_an_undecided_verdict_could_have_seen_stands_with_it(contrast, scores, status):
    verdict = judge(contrast, arms(**scores), SEEDS)
    assert (verdict.resolvable is not None) <= (status == "undecided")
    if status == "undecided" and contrast.kind != "equivalent":
        assert verdict.resolvable == pytest.approx(verdict.sd * 1.6820, rel=1e-3)


def test_the_json_of_a_verdict_has_the_fields_of_the_evidence():
    names = (
        "kind role text spec status n effect low high level margin sd p p_signflip resolvable needed_seeds differences "
        "flags reason"
    )
    assert list(judge(HIGHER, arms(a=around(0.8), b=FLAT), SEEDS).to_json()) == names.split()


def test_an_unknown_field_of_a_stored_verdict_is_passed_over():
    verdict = judge(HIGHER, arms(a=around(0.8), b=FLAT), SEEDS)
    assert ContrastVerdict.from_json({**verdict.to_json(), "later": 1}) == verdict


@pytest.mark.parametrize("n", [3, 5, 8])
def test_the_interval_is_that_of_a_paired_t_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.3, 1, n), rng.normal(0, 1, n)
    verdict = judge(higher("a", than="b", metric="m"), arms(a=a.tolist(), b=b.tolist()), range(n))
    reference = scipy.stats.ttest_rel(a, b)
    assert verdict.effect == pytest.approx((a - b).mean())
    assert verdict.sd == pytest.approx((a - b).std(ddof=1))
    assert (verdict.low, verdict.high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_the_p_value_is_that_of_a_paired_t_test_in_the_direction_of_the_claim():
    a, b = around(0.55), around(0.5, WIDE)
    results = arms(a=a, b=b)
    expected = scipy.stats.ttest_rel(a, b, alternative="greater").pvalue
    assert judge(higher("a", than="b", metric="m"), results, SEEDS).p == pytest.approx(2 * expected)
    assert judge(lower("a", than="b", metric="m"), results, SEEDS).p == 1.0


def test_the_interval_of_a_hand_computed_table():
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.high - found.mean == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)


def test_equivalence_uses_the_ninety_percent_interval_and_both_one_sided_tests():
    a, b = around(0.53), FLAT
    verdict = judge(EQUIVALENT, arms(a=a, b=b, c=[0.9, 0.91, 0.9, 0.9, 0.9]), SEEDS)
    below = scipy.stats.ttest_1samp(np.subtract(a, b), 0.1, alternative="less")
    assert verdict.level == pytest.approx(0.90)
    assert (verdict.low, verdict.high) == pytest.approx(tuple(scipy.stats.ttest_rel(a, b).confidence_interval(0.9)))
    assert verdict.p == pytest.approx(below.pvalue)


def test_an_equivalence_whose_control_does_not_differ_names_the_control():
    verdict = judge(EQUIVALENT, arms(a=around(0.5), b=FLAT, c=around(0.5)), SEEDS)
    assert "control c" in verdict.reason
    assert "not shown to differ" in verdict.reason


def test_swapping_the_arms_mirrors_the_interval():
    results = arms(a=around(0.7, WIDE), b=around(0.5))
    one = judge(higher("a", than="b", metric="m"), results, SEEDS)
    other = judge(higher("b", than="a", metric="m"), results, SEEDS)
    assert (one.low, one.high) == (-other.high, -other.low)


def test_lower_is_higher_of_the_negated_metric():
    a, b = around(0.3), around(0.5, WIDE)
    one = judge(lower("a", than="b", metric="m", margin=0.05), arms(a=a, b=b), SEEDS)
    other = judge(higher("a", than="b", metric="m", margin=0.05), arms(a=[-x for x in a], b=[-x for x in b]), SEEDS)
    assert (one.status, one.low, one.high) == (other.status, other.low, other.high)


def test_the_seeds_pair_the_arms():
    base = [0.1, 0.5, 0.9, 0.3, 0.7]
    results = arms(a=[x + 0.05 + noise / 10 for x, noise in zip(base, NOISE)], b=base)
    verdict = judge(higher("a", than="b", metric="m"), results, SEEDS)
    assert verdict.status == "holds"
    assert verdict.differences["1"] == pytest.approx(0.049)


def test_seeds_that_were_not_planned_are_passed_over():
    results = arms(a=[*around(0.8), -100.0], b=[*FLAT, 0.0])
    assert judge(HIGHER, results, SEEDS).n == 5
    assert set(judge(HIGHER, results, range(1, 4)).differences) == {"1", "2", "3"}


def test_a_log_contrast_compares_ratios():
    a, b = [1.0, 2.0, 4.0, 8.0, 1.0], [0.5, 1.1, 2.0, 3.9, 0.5]
    verdict = judge(higher("a", than="b", metric="m", transform="log"), arms(a=a, b=b), SEEDS)
    assert verdict.effect == pytest.approx(np.log(np.divide(a, b)).mean())


def test_a_logit_contrast_compares_log_odds():
    a, b = [0.9, 0.8, 0.95], [0.5, 0.6, 0.5]
    verdict = judge(higher("a", than="b", metric="m", transform="logit"), arms(a=a, b=b), range(3))
    logit = scipy.stats.logistic.ppf
    assert verdict.effect == pytest.approx((logit(a) - logit(b)).mean())


def test_a_threshold_on_a_log_scale_is_given_in_the_unit_of_the_metric():
    contrast = threshold("a", metric="m", above=100.0, transform="log")
    assert judge(contrast, arms(a=[200.0, 300.0, 250.0]), range(3)).status == "holds"
    assert judge(contrast, arms(a=[20.0, 30.0, 25.0]), range(3)).status == "fails"


def test_a_slope_per_seed_is_that_of_least_squares():
    rng = np.random.default_rng(0)
    x, scores = [1.0, 2.0, 4.0, 5.0], rng.normal(size=(4, 5))
    names = ["a", "b", "c", "d"]
    contrast = trend("m", slope=(0, None), against=dict(zip(names, x)))
    verdict = judge(contrast, arms(**{name: row.tolist() for name, row in zip(names, scores)}), SEEDS)
    slopes = [scipy.stats.linregress(x, scores[:, seed]).slope for seed in SEEDS]
    assert list(verdict.differences.values()) == pytest.approx(slopes)


def test_an_interaction_is_the_difference_of_differences():
    a, b, c, d = np.random.default_rng(1).normal(size=(4, 5)).tolist()
    verdict = judge(INTERACTION, arms(a=a, b=b, c=c, d=d), SEEDS)
    assert verdict.effect == pytest.approx(np.mean(np.subtract(a, b) - np.subtract(c, d)))


def test_a_shape_is_judged_by_the_arm_that_comes_closest_to_its_optimum():
    verdict = judge(SHAPE, arms(a=FLAT, b=around(0.8), c=around(0.9), d=[0.7] * 5), SEEDS)
    assert verdict.reason == "decided by d"
    assert verdict.effect == pytest.approx(0.15)


def test_a_shape_fails_by_an_arm_far_from_the_optimum_too():
    contrast = shape("m", order=("a", "b", "c", "d"), optimum=("a",))
    verdict = judge(contrast, arms(a=around(0.8), b=FLAT, c=FLAT, d=[0.9] * 5), SEEDS)
    assert (verdict.status, verdict.reason) == ("fails", "decided by d")


# efficient

EFFICIENT = efficient("a", than="b", cost="flops", quality="m", margin=0.1, max_ratio=0.6)


def priced(quality, cost, than_cost):
    results = arms(a=quality, b=FLAT)
    for arm, costs in (("a", cost), ("b", than_cost)):
        for seed, value in enumerate(costs):
            results[arm][seed]["metrics"]["flops"] = value
    return results


@pytest.mark.parametrize(
    ("quality", "cost", "status"),
    [
        (around(0.5), [5.0] * 5, "holds"),
        (around(0.3), [5.0] * 5, "fails"),
        (around(0.4), [5.0] * 5, "undecided"),
        (around(0.5), [10.0] * 5, "fails"),
        (around(0.5), [1.0, 1.0, 1.0, 1.0, 10.0], "fails"),
        (around(0.5), [7.0] * 5, "fails"),
    ],
    ids=["both", "worse", "perhaps worse", "as dear", "as dear on one seed", "ratio missed"],
)
def test_efficient_needs_a_lower_cost_on_every_seed_and_the_quality(quality, cost, status):
    verdict = judge(EFFICIENT, priced(quality, cost, [10.0] * 5), SEEDS)
    assert verdict.status == status
    assert "flops lower on" in verdict.reason
    assert verdict.p is not None
    assert (verdict.p < 0.05) == (status == "holds")


def test_a_transform_of_the_quality_leaves_the_cost_alone():
    contrast = efficient("a", than="b", cost="flops", quality="m", margin=0.5, transform="log")
    assert judge(contrast, priced(around(0.5), [0.0] * 5, [1.0] * 5), SEEDS).status == "holds"


# identity


@pytest.mark.parametrize(("gaps", "status"), [([1e-9, -1e-7, 0.0], "holds"), ([0.0, 0.0, -1e-3], "fails")])
def test_an_identity_looks_at_the_largest_deviation(gaps, status):
    verdict = judge(identity("a", metric="m", tolerance=1e-6, value=1.0), arms(a=[1 + gap for gap in gaps]), range(3))
    assert verdict.status == status
    assert verdict.effect == pytest.approx(max(gaps, key=abs))
    assert verdict.p is None


def test_an_identity_needs_one_seed_only():
    assert judge(identity("a", metric="m", tolerance=0), arms(a=[0.0]), range(1)).status == "holds"


def test_an_identity_that_fails_to_run_cannot_hold():
    contrast = identity("a", metric="m", tolerance=1)
    assert judge(contrast, fail(arms(a=[0.0, 0.0]), "a", 1), range(2)).status == "undecided"
    assert judge(contrast, fail(arms(a=[0.0]), "a", 0), range(1)).status == "undecided"
    assert judge(contrast, fail(arms(a=[2.0, 0.0]), "a", 1), range(2)).status == "fails"


# few seeds, missing and failed trials


def test_two_planned_seeds_decide_nothing():
    verdict = judge(HIGHER, arms(a=[5.0, 5.0], b=[0.0, 0.1]), range(2))
    assert (verdict.status, verdict.low) == ("undecided", None)
    assert "2 seeds planned, at least 3" in verdict.reason


def test_a_missing_trial_leaves_no_verdict():
    results = arms(a=around(0.8), b=FLAT[:3])
    verdict = judge(HIGHER, results, SEEDS)
    assert (verdict.status, verdict.reason, verdict.low) == ("none", "8 of 10 trials", None)


@pytest.mark.parametrize("status", ["pending", "running", "interrupted"])
def test_a_trial_that_has_not_ended_counts_as_missing(status):
    results = fail(arms(a=around(0.8), b=FLAT), "a", 2, status=status)
    assert judge(HIGHER, results, SEEDS).reason == "9 of 10 trials"


def test_an_arm_without_trials_leaves_no_verdict():
    assert judge(HIGHER, arms(a=around(0.8)), SEEDS).reason == "5 of 10 trials"


def test_a_seed_planned_twice_is_refused():
    with pytest.raises(ValueError, match="distinct"):
        judge(HIGHER, arms(a=around(0.8), b=FLAT), [0, 1, 1])


@pytest.mark.parametrize("status", ["failed", "timeout"])
def test_a_method_that_fails_on_one_seed_cannot_hold(status):
    verdict = judge(HIGHER, fail(arms(a=around(0.8), b=FLAT), "a", 2, status=status), SEEDS)
    assert (verdict.status, verdict.n, verdict.p) == ("undecided", 4, None)
    assert "a failed on 1 of 5 seeds (diverged)" in verdict.reason
    assert verdict.low is not None
    assert verdict.low > 0.1


def test_a_method_that_fails_on_one_seed_fails_where_the_rest_says_so():
    assert judge(HIGHER, fail(arms(a=around(0.3), b=FLAT), "a", 2), SEEDS).status == "fails"


def test_a_method_that_fails_on_nearly_all_seeds_leaves_no_interval():
    verdict = judge(HIGHER, fail(arms(a=around(0.3), b=FLAT), "a", 0, 1, 2), SEEDS)
    assert (verdict.status, verdict.n, verdict.low) == ("undecided", 2, None)


def test_the_worst_value_is_not_for_methods():
    results = fail(arms(a=around(0.8), b=FLAT), "a", 2)
    assert judge(HIGHER, results, SEEDS, worst={"m": 0.0}).n == 4


def test_a_baseline_that_fails_scores_its_declared_worst_value():
    results = fail(arms(a=around(0.9), b=[0.5, 0.4, 0.5, 0.4, 0.5]), "b", 4)
    verdict = judge(HIGHER, results, SEEDS, worst={"m": 0.3})
    assert verdict.differences["4"] == pytest.approx(0.9 - 0.02 - 0.3)
    assert (verdict.status, verdict.n, verdict.flags) == ("holds", 5, ("worst value",))
    assert "b failed on 1 of 5 seeds" in verdict.reason


def test_a_baseline_that_fails_without_a_worst_value_leaves_the_claim_undecided():
    for method in (0.9, 0.1):
        verdict = judge(HIGHER, fail(arms(a=around(method), b=FLAT), "b", 4), SEEDS, worst={"other": 0.0})
        assert (verdict.status, verdict.p) == ("undecided", None)
        assert "no worst value" in verdict.reason


def test_a_failed_baseline_of_an_efficient_contrast_needs_both_worst_values():
    results = fail(priced(around(0.9), [5.0] * 5, [10.0] * 5), "b", 4)
    assert judge(EFFICIENT, results, SEEDS, worst={"m": 0.0}).status == "undecided"
    assert judge(EFFICIENT, results, SEEDS, worst={"m": 0.0, "flops": 10.0}).status == "holds"


def test_a_control_that_fails_proves_no_equivalence():
    results = fail(arms(a=around(0.5), b=FLAT, c=around(0.9)), "c", 0)
    assert judge(EQUIVALENT, results, SEEDS, worst={"m": 0.0}).status == "undecided"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_metric_that_is_not_finite_is_a_failure(value):
    results = arms(a=[*around(0.8)[:4], value], b=FLAT)
    verdict = judge(HIGHER, results, SEEDS)
    assert (verdict.status, verdict.n) == ("undecided", 4)
    assert "a failed on 1 of 5 seeds (m is" in verdict.reason


def test_a_baseline_that_diverges_scores_its_worst_value():
    results = arms(a=around(0.8), b=[math.nan] * 5)
    assert judge(HIGHER, results, SEEDS, worst={"m": 0}).status == "holds"


def test_a_metric_outside_its_transform_is_a_failure():
    contrast = higher("a", than="b", metric="m", transform="logit")
    verdict = judge(contrast, arms(a=[0.9, 1.0, 0.8, 0.9, 0.9], b=FLAT), SEEDS)
    assert verdict.status == "undecided"
    assert "m is 1.0, not finite on the logit scale" in verdict.reason


# no variation


def test_differences_that_do_not_vary_give_a_point():
    verdict = judge(HIGHER, arms(a=[0.7] * 5, b=FLAT), SEEDS)
    assert verdict.low == verdict.high == verdict.effect
    assert (verdict.status, verdict.flags, verdict.p) == ("holds", ("deterministic",), 0.0)


def test_rounding_does_not_pass_for_variation():
    results = arms(a=[0.3, 0.9, 0.7], b=[0.1, 0.7, 0.5])
    assert judge(HIGHER, results, range(3)).flags == ("deterministic",)


def test_equal_arms_are_undecided_and_more_seeds_would_not_help():
    verdict = judge(higher("a", than="b", metric="m"), arms(a=FLAT, b=FLAT), SEEDS)
    assert (verdict.status, verdict.needed_seeds) == ("undecided", None)
    assert "more seeds would not decide" in verdict.reason


def test_equal_arms_are_equivalent_within_any_margin():
    contrast = equivalent("a", to="b", metric="m", margin=0, control="c")
    assert judge(contrast, arms(a=FLAT, b=FLAT, c=[0.6] * 5), SEEDS).status == "holds"


# power, re-used data, looks


@pytest.mark.parametrize(("n", "sds"), [(3, 3.3), (5, 1.7), (8, 1.2)])
def test_the_resolvable_effect_is_that_of_the_design(n, sds):
    assert round(resolvable(n), 1) == sds


@pytest.mark.parametrize("n", [3, 5, 8, 20])
def test_power_is_that_of_the_noncentral_t_distribution(n):
    critical = scipy.stats.t.ppf(0.975, n - 1)
    for effect in (0.2, 1.0, 2.0):
        assert power(effect, n) == pytest.approx(scipy.stats.nct.sf(critical, n - 1, effect * math.sqrt(n)), abs=1e-6)


@pytest.mark.parametrize(("effect", "sd"), [(1.0, 1.0), (0.5, 1.0), (0.1, 1.0), (2.0, 0.1)])
def test_the_seeds_needed_are_the_fewest_with_enough_power(effect, sd):
    n = seeds_needed(effect, sd)
    assert n is not None
    assert power(effect / sd, n) >= 0.8
    assert n == 3 or power(effect / sd, n - 1) < 0.8


def test_the_seeds_needed_are_capped_and_none_for_no_effect():
    assert seeds_needed(1e-6, 1.0) == 1000
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1.0, 0.0) == seeds_needed(1.0, 1e-9) == 3


def test_more_seeds_are_needed_than_were_spent_on_an_undecided_claim():
    verdict = judge(higher("a", than="b", metric="m"), arms(a=around(0.6, WIDE), b=FLAT), SEEDS)
    assert verdict.needed_seeds == seeds_needed(verdict.effect, verdict.sd)
    assert verdict.needed_seeds > 5


def test_an_effect_short_of_the_margin_is_not_decided_by_more_seeds():
    assert judge(HIGHER, arms(a=around(0.55), b=FLAT), SEEDS).needed_seeds is None


def test_resplitting_one_data_set_widens_the_interval_by_the_nadeau_bengio_factor():
    results = arms(a=around(0.8), b=FLAT)
    plain = judge(HIGHER, results, SEEDS)
    corrected = judge(HIGHER, results, SEEDS, resplit=0.25)
    factor = math.sqrt((1 / 5 + 0.25) / (1 / 5))
    assert corrected.high - corrected.low == pytest.approx(factor * (plain.high - plain.low))
    assert corrected.flags == ("resplit",)


def test_resplitting_one_data_set_raises_what_the_seeds_can_see():
    assert resolvable(5, resplit=0.25) == pytest.approx(resolvable(5) * math.sqrt((1 / 5 + 0.25) / (1 / 5)))
    assert seeds_needed(0.5, 1.0, resplit=0.25) == 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([1.0]), "at least two values, got 1"),
        (lambda: interval([1.0, 2.0], level=1.0), "level.*1.0"),
        (lambda: interval([1.0, 2.0], resplit=-0.1), "resplit.*-0.1"),
        (lambda: look_level(4), "looks.*got 4"),
    ],
)
def test_a_bad_argument_of_a_statistic_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_look_widens_the_interval():
    results = arms(a=around(0.8), b=FLAT)
    assert look_level(5) == pytest.approx(1 - 0.0198)
    assert judge(HIGHER, results, SEEDS, level=look_level(5)).low < judge(HIGHER, results, SEEDS).low


# permutation and several claims at once


@pytest.mark.parametrize("n", [1, 3, 5, 8])
def test_the_sign_flip_p_value_counts_all_patterns(n):
    differences = np.random.default_rng(n).normal(0.5, 1, n)
    means = [abs(np.mean(differences * signs)) for signs in itertools.product((1, -1), repeat=n)]
    expected = np.mean([mean >= abs(differences.mean()) - 1e-12 for mean in means])
    assert sign_flip_p(differences.tolist()) == pytest.approx(expected)


def test_the_sign_flip_p_value_cannot_go_below_its_least():
    assert sign_flip_p([1.0] * 5) == 2 / 2**5
    assert sign_flip_p([0.0] * 5) == 1.0


def test_there_is_no_exact_sign_flip_p_value_beyond_twelve_seeds():
    assert sign_flip_p([1.0] * 12) == 2 / 2**12
    assert sign_flip_p([1.0] * 13) is None


def test_the_sign_flip_p_value_of_a_threshold_is_taken_about_it():
    assert judge(ABOVE, arms(a=around(0.7)), SEEDS).p_signflip == 2 / 2**5
    assert judge(BETWEEN, arms(a=around(0.5)), SEEDS).p_signflip is None


def test_benjamini_hochberg_is_that_of_scipy():
    p_values = np.random.default_rng(0).uniform(size=20).tolist()
    assert benjamini_hochberg(p_values) == pytest.approx(scipy.stats.false_discovery_control(p_values).tolist())


def test_holm_of_a_hand_computed_table():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_corrections_of_no_claims_are_empty():
    assert benjamini_hochberg([]) == holm([]) == []


def test_one_in_forty_superiority_contrasts_holds_by_chance():
    assert expected_false_holds(100) == 2.5


# claims


HOLDS = judge(HIGHER, arms(a=around(0.8), b=FLAT), SEEDS)
FAILS = judge(HIGHER, arms(a=around(0.3), b=FLAT), SEEDS)
UNDECIDED = judge(HIGHER, arms(a=around(0.6), b=FLAT), SEEDS)
MISSING = judge(HIGHER, arms(a=around(0.6)), SEEDS)
SHOWN = judge(shown(HIGHER).contrasts[0], arms(a=around(0.3), b=FLAT), SEEDS)


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([HOLDS], "holds"),
        ([HOLDS, HOLDS, SHOWN], "holds"),
        ([HOLDS, FAILS], "fails"),
        ([UNDECIDED, FAILS], "fails"),
        ([MISSING, FAILS], "fails"),
        ([HOLDS, UNDECIDED], "undecided"),
        ([HOLDS, MISSING], "none"),
        ([SHOWN], "none"),
        ([], "none"),
    ],
)
def test_all_primary_contrasts_must_hold(verdicts, status):
    assert claim_verdict(verdicts)[0] == status


def test_the_reason_of_a_claim_names_the_contrasts_that_decide():
    assert claim_verdict([HOLDS, FAILS])[1] == "a > b + 0.1 (m)"
    assert claim_verdict([HOLDS, MISSING])[1] == "5 of 10 trials"
    assert claim_verdict([SHOWN])[1] == "no primary contrast"


def test_the_p_value_of_a_claim_is_its_largest():
    assert claim_p([HOLDS, UNDECIDED, SHOWN]) == UNDECIDED.p
    assert claim_p([HOLDS, MISSING]) is None
    assert claim_p([SHOWN]) is None
