"""What the claims of the survey of mixers train and compare."""

import inspect

import pytest
import torch

from etude.claims.sequence import after_transformers as claims
from etude.data import text
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.sequence.zoology.sweep import RecallFit

TEXT = text.from_text("the quick brown fox jumps over the lazy dog and the slow red hen " * 40)


def tiny_images():
    def part(count, seed):
        inputs = torch.rand(count, 1, 2, 3, generator=torch.Generator().manual_seed(seed))
        return Examples(inputs, torch.arange(count) % 3)

    return ImageData(part(12, 0), part(6, 1), part(6, 2), ("a", "b", "c"), "tiny")


def trial_of(name, arm, *, scale="smoke", tuning=False, **changes):
    claim = claims.PAPER.claims[name]
    setup = claim.setups[scale].replace(**changes)
    return Trial(f"after_transformers/{name}", arm, 500, scale, setup, {"lr": 3e-3}, tuning=tuning)


def run(name, arm, data=None, **options):
    function = inspect.unwrap(claims.PAPER.claims[name].function)
    trial = trial_of(name, arm, **options)
    return function(trial) if data is None else function(trial, data)


def seen(monkeypatch, name, *, at=claims.meter, say="train"):
    """Records what a training is given, and trains nothing."""
    calls = []

    def record(model, task, **options):
        calls.append((model, task, options))
        return []

    monkeypatch.setattr(at, say, record)
    return calls


def test_the_copying_protocol_is_the_sheets(monkeypatch):
    calls = seen(monkeypatch, "selection_beats_fixed")
    sizes = {
        arm: run("selection_beats_fixed", arm, scale="small", train=40, val=8, test=8)["parameters"]
        for arm in ("s4d", "mamba", "attention", "retention")
    }
    assert sizes == {"s4d": 14_504, "mamba": 17_512, "attention": 19_624 - 34 * 32, "retention": 19_368}
    for model, task, options in calls:
        assert (options["steps"], options["batch_size"], options["warmup"], options["weight_decay"]) == (
            2000,
            32,
            50,
            0.01,
        )
        assert task.inputs.shape == (40, 30)
        assert len(model.blocks) == 2
    assert [model.positions is None for model, *_ in calls] == [True, True, False, True]
    mamba = calls[1][0].mixers()[0]
    assert (mamba.channels, mamba.states) == (32, 8)
    s = claims.COPY
    assert (s.train, s.val, s.test) == (20_000, 500, 1000)


def test_arms_of_a_seed_see_the_same_examples(monkeypatch):
    calls = seen(monkeypatch, "selection_beats_fixed")
    for arm in ("s4d", "mamba"):
        run("selection_beats_fixed", arm)
    assert torch.equal(calls[0][1].inputs, calls[1][1].inputs)
    run("selection_beats_fixed", "s4d", tuning=True)
    assert calls[2][2]["steps"] == 1


def test_tuning_looks_at_no_test(monkeypatch):
    seen(monkeypatch, "selection_beats_fixed")
    assert "accuracy" not in run("selection_beats_fixed", "s4d", tuning=True)
    assert "accuracy" not in run("long_signals", "gru", tiny_images(), tuning=True)
    assert "accuracy" not in run("fixed_state_falls_behind", "retention@few", tuning=True)


def test_recall_differs_in_pairs_alone(monkeypatch):
    given = {}

    def record(model, train, val, **options):
        given[len(given)] = (model, train[1], options)
        return RecallFit(1, 0.5)

    monkeypatch.setattr(claims, "fit_recall", record)
    for arm in claims.PAPER.claims["fixed_state_falls_behind"].arms:
        run("fixed_state_falls_behind", arm, scale="small", train=10, val=4, test=4)
    pairs = [int((labels != -100).sum(1)[0]) for _, labels, _ in given.values()]
    assert pairs == [16, 16, 4, 4]
    kinds = [type(model.blocks[1].mixer).__name__ for model, *_ in given.values()]
    assert kinds == ["Attention", "Retention"] * 2
    assert all(type(model.blocks[0].mixer).__name__ == "BaseConv" for model, *_ in given.values())
    assert torch.equal(given[0][1], given[1][1])


def test_attention_keeps_sixteen_times_more_and_the_others_the_same():
    for arm in claims.PAPER.claims["decoding_is_constant"].arms:
        found = run("decoding_is_constant", arm)
        assert found["bytes_ratio"] == (16.0 if arm == "attention" else 1.0)
    assert claims.DECODE.lengths[-1] == 16 * claims.DECODE.lengths[0]
    assert set(claims.RECURRENT) < set(claims.PAPER.claims["decoding_is_constant"].arms)


def test_pixels_are_read_one_by_one(monkeypatch):
    calls = seen(monkeypatch, "long_signals")
    for arm in ("attention", "s4d", "gru", "fnet"):
        run("long_signals", arm, tiny_images())
    assert all(task.inputs.shape == (12, 6, 1) for _, task, _ in calls)
    assert [model.mixers()[0].causal for model, *_ in calls] == [False, True, True, False]
    assert [model.positions is not None for model, *_ in calls] == [True, False, False, True]


def test_forward_forward_arms_begin_alike():
    data = tiny_images()
    scores = {arm: run("forward_forward_learns", arm, data)["accuracy"] for arm in ("untrained", "ridge", "backprop")}
    assert all(0 <= score <= 1 for score in scores.values())
    none = run("forward_forward_learns", "forward_forward", data, epochs=0)["accuracy"]
    assert none == scores["untrained"]


def test_experts_are_balanced_between_none_and_all():
    found = run("experts_help", "moe", TEXT)
    assert 0 <= found["entropy"] <= 1
    assert found["balance"] > 0
    dense = run("experts_help", "dense", TEXT)
    assert dense["parameters"] < found["parameters"]
    assert "entropy" not in dense


def test_the_panel_covers_the_four_tasks_at_one_size(monkeypatch):
    assert len(claims.SPECS) == 14
    few = {name: claims.SPECS[name] for name in ("attention", "min_gated", "mamba")}
    monkeypatch.setattr(claims, "SPECS", few)
    calls = seen(monkeypatch, "panel")
    found = run("panel", "min_gated", TEXT, scale="medium", length=32, dim=16, batch=2, windows=4, train=6, held=6,
                repeats=1)  # fmt: skip
    assert {"bpc", "recall_accuracy", "copying_accuracy", "listops_accuracy", "step_milliseconds", "step_megabytes",
            "state_size", "parameters"} <= set(found)  # fmt: skip
    assert [task.name for _, task, _ in calls] == ["recall", "selective_copy", "listops", "char_lm"]
    largest = max(
        claims.matched_ratio(calls[3][1], spec, None, claims.Budget(16, 2), learned=name in claims.POSITIONED)[1]
        for name, spec in claims.SPECS.items()
    )
    assert found["parameters"] == pytest.approx(largest, rel=0.03)
