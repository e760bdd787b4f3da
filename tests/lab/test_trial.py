"""Trials: named streams of randomness, logged curves, and the metrics that are let through."""

import random

import numpy as np
import pytest
import torch

from etude.lab import Trial


def trial(arm="a", seed=0, claim="toy/claim"):
    return Trial(claim, arm, seed)


def draws():
    return torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]


def test_a_stream_gives_every_arm_the_same_draws():
    with trial("a").stream("init"):
        first = draws()
    with trial("b").stream("init"):
        assert draws() == first


def test_streams_differ_by_name_seed_and_claim():
    seen = []
    for other, name in [
        (trial(), "init"),
        (trial(), "data"),
        (trial(seed=1), "init"),
        (trial(claim="toy/other"), "init"),
    ]:
        with other.stream(name):
            seen.append(tuple(draws()))
    assert len(set(seen)) == 4


def test_a_stream_leaves_the_draws_outside_untouched():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    plain = draws()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    with trial().stream("method"):
        draws()
    assert draws() == plain


def test_a_stream_entered_again_goes_on_where_it_was_left():
    whole, parts = trial(), trial()
    with whole.stream("dropout"):
        expected = [draws(), draws()]
    found = []
    for _ in range(2):
        with parts.stream("dropout"):
            found.append(draws())
    assert found == expected


def test_a_stream_is_restored_after_an_error():
    one = trial()
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), one.stream("init"):
        torch.rand(1 // 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_are_reproducible_and_kept():
    one, other = trial("a"), trial("b")
    assert one.generator("order") is one.generator("order")
    assert torch.equal(
        torch.randperm(9, generator=one.generator("order")), torch.randperm(9, generator=other.generator("order"))
    )
    assert one.rng("data").normal() == other.rng("data").normal()


def test_long_curves_are_thinned_and_keep_their_ends():
    one = trial()
    for step in range(10_000):
        one.log(step, loss=1 / (1 + step))
    points = one.series["loss"]
    assert len(points) <= 4_000
    assert points[0][0] == 0
    assert points[-1][0] >= 9_990


def test_metrics_become_floats():
    assert trial().check_metrics({"score": torch.tensor(0.5), "n": 3}, {"score"}) == {"score": 0.5, "n": 3.0}


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ({"score": float("nan")}, ValueError, "'score' is nan"),
        ({"score": float("inf")}, ValueError, "'score' is inf"),
        ({"other": 1.0}, ValueError, "no metric score"),
        ({"score": "high"}, TypeError, "'high'"),
        (0.5, TypeError, "float"),
    ],
)
def test_metrics_that_are_no_numbers_are_refused(metrics, error, message):
    with pytest.raises(error, match=message):
        trial().check_metrics(metrics, {"score"})


def test_a_figure_must_be_svg_of_a_sane_size():
    one = trial()
    one.figure("dot", "<?xml version='1.0'?><svg></svg>")
    assert one.figures["dot"] == "<svg></svg>"
    with pytest.raises(ValueError, match="not SVG"):
        one.figure("text", "hello")
    with pytest.raises(ValueError, match="bytes"):
        one.figure("huge", "<svg>" + "x" * 300_000 + "</svg>")
