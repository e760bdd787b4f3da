"""What the claims of the constructive transformer build, and that their figures can go wrong."""

import math

import pytest
import torch

from etude.claims.theory import uat_transformer as claims
from etude.lab import Trial
from etude.theory.uat_transformer import approximation_error, build_with_modes, sort_target


def trial(arm, claim, seed=500, scale="smoke", **changes):
    found = claims.PAPER.claims[claim]
    return Trial(found.id, arm, seed, scale, found.setups[scale].replace(**changes))


def test_arms_are_the_tolerances_of_their_names():
    found = {
        arm: claims.tolerance(trial(arm, "tolerance", factor=1.0), sort_target(2)) for arm in ("tol_0.1", "tol_0.02")
    }
    for arm, values in found.items():
        assert values["sup"] <= claims.TOLERANCES[arm]
        assert values["sup"] >= values["rmse"]
    assert found["tol_0.02"]["modes"] > found["tol_0.1"]["modes"]


def test_only_the_certified_arm_knows_the_lipschitz_constant(monkeypatch):
    told = []
    original = claims.build_universal

    def watched(*arguments, lipschitz, **options):
        told.append(lipschitz)
        return original(*arguments, lipschitz=lipschitz, **options)

    monkeypatch.setattr(claims, "build_universal", watched)
    target = sort_target(2)
    found = [claims.tolerance(trial(arm, "tolerance", factor=1.0), target) for arm in ("tol_0.1", "certified_0.1")]
    assert told == [None, target.lipschitz]
    assert found[1]["certified"] <= 0.1
    assert all(values["sup"] <= values["certified"] for values in found)


def test_a_seed_draws_points_and_nothing_else():
    one, same, other = (claims.rate(trial("K4", "rate", seed=seed), sort_target(2)) for seed in (500, 500, 501))
    assert one == same
    assert one["rmse"] != other["rmse"]
    assert [one[key] for key in ("hidden", "certified")] == [other[key] for key in ("hidden", "certified")]


def test_the_floors_of_sorting_two_numbers_are_the_known_ones():
    values = claims.tolerance(trial("tol_0.1", "tolerance"), sort_target(2))
    assert values["tokenwise_floor"] == pytest.approx(math.sqrt(1 / 30), rel=0.02)
    assert values["equivariant_floor"] == pytest.approx(math.sqrt(1 / 24), rel=0.02)


def test_used_is_the_error_over_what_its_terms_allow():
    values = claims.three_tokens(trial("few", "three_tokens"), sort_target(3))
    block, report = build_with_modes(sort_target(3), 3, 1, 1, 2, 0.2, points=10)
    allowed = report.series_error + report.spline_error
    assert values["used"] == pytest.approx(values["sup"] / allowed)
    # A block that is wrong shows.
    with torch.no_grad():
        next(parameter for name, parameter in block.named_parameters() if name.endswith("bias")).add_(1.0)
    spoilt = approximation_error(block, sort_target(3), 50, generator=torch.Generator().manual_seed(0))
    assert spoilt.sup > allowed


@pytest.mark.parametrize(
    ("arm", "heads", "pos"), [("full", 4, "learned"), ("ffn_only", 0, "learned"), ("no_position", 4, "none")]
)
def test_trained_arms_are_their_classes(arm, heads, pos, monkeypatch):
    blocks = []
    monkeypatch.setattr(claims, "_train", lambda trial, block, target, steps: blocks.append(block))
    values = claims.trained(trial(arm, "trained"), sort_target(2))
    (block,) = blocks
    assert (block.num_heads, block.pos) == (heads, pos)
    floor = "equivariant_floor" if arm == "no_position" else "tokenwise_floor"
    assert values["over_floor"] == pytest.approx(values["rmse"] / values[floor])


def test_the_ablation_without_attention_has_at_least_as_many_weights(monkeypatch):
    monkeypatch.setattr(claims, "_train", lambda *_: None)
    weights = {
        arm: claims.trained(trial(arm, "trained"), sort_target(2))["weights"] for arm in ("full", "ffn_only", "narrow")
    }
    assert weights["ffn_only"] >= weights["full"] > weights["narrow"]


def test_the_construction_is_no_wider_than_the_trained_block():
    values = claims.trained(trial("constructed", "trained"), sort_target(2))
    assert values["hidden"] <= claims.PAPER.claims["trained"].setups["smoke"].ffn
    assert values["sup"] <= values["certified"]
