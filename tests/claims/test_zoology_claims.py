"""What the claims of Zoology train and compare."""

import inspect

import pytest
import torch

from etude.claims.sequence import zoology as claims
from etude.data import text
from etude.lab import Trial
from etude.sequence.zoology import IGNORED, RecallLM

DATA = text.from_text("the quick brown fox jumps over the lazy dog and the slow red hen " * 60, level="word")


def trial_of(name, arm, *, scale="smoke", tuning=False, **changes):
    claim = claims.PAPER.claims[name]
    setup = claim.setups[scale].replace(**changes)
    return Trial(f"zoology/{name}", arm, 500, scale, setup, {"lr": 3e-3}, tuning=tuning)


def run(name, arm, **options):
    trial = trial_of(name, arm, **options)
    function = inspect.unwrap(claims.PAPER.claims[name].function)
    return function(trial, DATA) if claims.PAPER.claims[name].data else function(trial)


def test_sizes_of_the_arms_are_those_that_the_card_names():
    sizes = {
        name: sum(p.numel() for p in RecallLM(256, dim, mixer=claims.MIXERS[name]).parameters())
        for name, dim in (("base_conv", 64), ("conv_attention", 64), ("base_conv@wide", 80))
    }
    assert sizes["base_conv"] == 26_496
    assert sizes["conv_attention"] == 37_824
    assert "26,496" in claims.PAPER.notes
    assert "37,824" in claims.PAPER.notes
    assert sizes["base_conv"] < sizes["base_conv@wide"] < sizes["conv_attention"]


def test_arms_of_a_seed_see_the_same_examples_and_parts_differ():
    one, other = (claims.splits(trial_of("attention_recalls", arm)) for arm in ("base_conv", "hyena"))
    assert all(torch.equal(a, b) for part, same in zip(one, other) for a, b in zip(part, same))
    assert not torch.equal(one[0][0][:8], one[1][0])
    assert not torch.equal(one[1][0], one[2][0])
    assert [len(inputs) for inputs, _ in one] == [32, 8, 8]


def test_the_protocol_is_the_sheets():
    s = claims.SMALL
    assert (s.vocab, s.length, s.pairs, s.dim, s.train, s.val, s.test, s.steps) == (
        256, 64, 8, 64, 20_000, 512, 1000, 2000,
    )  # fmt: skip
    inputs, labels = claims.splits(trial_of("attention_recalls", "hyena", scale="small", train=40))[0]
    assert inputs.shape == (40, 64)
    assert ((labels != IGNORED).sum(1) == 8).all()
    assert ((inputs != 0).sum(1) == 24).all()  # no random filler


def test_the_mark_lies_four_fifths_of_the_way_between_the_arms_of_the_seed():
    found = run("selection_closes_the_gap", "four_fifths", steps=4, every=4, train=40, test=40)
    gap = found["attention_accuracy"] - found["conv_accuracy"]
    assert found["accuracy"] == pytest.approx(found["conv_accuracy"] + 0.8 * gap)
    assert found["gap"] == pytest.approx(gap)
    trial = trial_of("selection_closes_the_gap", "learned", steps=4, every=4, train=40, test=40)
    parts = claims.splits(trial)
    for name, key in (("base_conv", "conv_accuracy"), ("conv_attention", "attention_accuracy")):
        model, _ = claims.trained(trial, parts, claims.MIXERS[name], lr=3e-3)
        assert claims.evaluate_recall(model, parts[2]) == found[key]


def test_what_is_selected_is_counted_among_what_is_scored():
    assert run("selection_closes_the_gap", "programmatic")["hits_at_k"] == 1.0
    share = run("selection_closes_the_gap", "random", test=2000, kept=0.25)["hits_at_k"]
    assert share == pytest.approx(0.25, abs=0.03)
    assert 0 <= run("selection_closes_the_gap", "learned")["hits_at_k"] <= 1


def test_tuning_trains_for_fewer_updates_and_looks_at_no_test():
    found = run("attention_recalls", "hyena", steps=4, tuning_steps=2, tuning=True)
    assert found["steps"] == 2
    assert "accuracy" not in found
    assert run("attention_recalls", "hyena", steps=4, tuning_steps=2)["steps"] == 4


def test_the_older_task_has_its_own_vocabulary_and_one_question():
    trial = trial_of("old_task_hides_it", "base_conv@classic", scale="medium", train=30)
    inputs, labels = claims.splits(trial, "classic")[0]
    assert inputs.shape == (30, 32)
    assert int(inputs.max()) < 20
    assert ((labels != IGNORED).sum(1) == 1).all()


def test_parts_of_the_loss_add_up_and_the_excess_is_their_difference():
    found = run("recall_explains_the_gap", "base_conv")
    assert found["hits_part"] + found["others_part"] == pytest.approx(found["loss"])
    assert found["hits_excess"] == pytest.approx(found["hits_part"] - found["others_part"])
    assert found["hits_part"] == pytest.approx(found["hits_share"] * found["hits_loss"])


def test_the_grid_covers_every_length_and_width():
    found = run("accuracy_by_width", "attention")
    assert {"accuracy_16_8", "accuracy_16_16"} <= set(found)
    assert found["accuracy"] == pytest.approx((found["accuracy_16_8"] + found["accuracy_16_16"]) / 2)
    assert found["gain_with_width"] == pytest.approx(found["accuracy_16_16"] - found["accuracy_16_8"])
