"""What the claims' trials are made of: equal parameters, paired arms, and curves that the metrics are read from."""

import pytest
import torch

from etude.claims.theory import random_feature_attention as claims
from etude.lab import Trial
from etude.theory.random_feature_attention import RandomFeatures

CLAIMS = claims.PAPER.claims


def trial(claim, arm, seed=700, scale="smoke"):
    return Trial(f"random_feature_attention/{claim}", arm, seed, scale, CLAIMS[claim].setups[scale])


@pytest.mark.parametrize("scale", ["smoke", "small", "medium", "full"])
def test_every_layer_trains_the_same_number_of_parameters(scale):
    for claim in ("vs_mlp", "biased"):
        setup = CLAIMS[claim].setups[scale]
        expected = setup.heads * (setup.dim + 1)
        for arm in CLAIMS[claim].arms:
            made = trial(claim, arm, scale=scale)
            for model in claims._models(made, claims._task(setup)):
                if isinstance(model, RandomFeatures):
                    assert sum(p.numel() for p in model.parameters()) == expected


def test_full_is_the_size_of_the_paper():
    setup = CLAIMS["vs_mlp"].setups["full"]
    assert (setup.dim, setup.num_keys, setup.heads, setup.heads * (setup.dim + 1)) == (16, 16, 1000, 17_000)
    assert (setup.sizes[0], setup.sizes[-1]) == (2**5, 2**14)
    assert len(CLAIMS["vs_mlp"].seeds["full"]) == 10


def test_arms_of_a_seed_see_the_same_examples_and_the_same_gaussian_part():
    task = claims._task(CLAIMS["biased"].setups["smoke"])
    splits = [claims._split(trial("biased", arm), task) for arm in ("rfa", "bias4", "rfmlp")]
    for other in splits[1:]:
        assert torch.equal(splits[0].test[0].keys, other.test[0].keys)
        assert torch.equal(splits[0].train[1], other.train[1])
    (plain,) = claims._models(trial("biased", "rfa"), task)
    (four,) = claims._models(trial("biased", "bias4"), task)
    candidates = claims._models(trial("biased", "rfa_biased"), task)
    assert [model.bias for model in candidates] == [1.0, 2.0, 4.0]
    assert torch.equal(candidates[2].weight, four.weight)
    shift = four.weight - plain.weight
    torch.testing.assert_close(shift[:, : task.dim, : task.dim], (4 * torch.eye(task.dim)).expand(8, -1, -1))
    assert float(shift[:, task.dim].abs().max()) == 0.0


def test_metrics_are_read_from_the_curves():
    made = trial("biased", "rfa_biased")
    metrics = claims.biased(made)
    for target in claims.TARGETS:
        points = dict(made.series[target.name])
        assert metrics[target.name] == points[16.0]
    points = dict(made.series["correlation1"])
    assert (metrics["correlation1_fewest"], metrics["correlation1_few"]) == (points[8.0], points[16.0])
    assert {value for _, value in made.series["bias_similarity2"]} <= {1.0, 2.0, 4.0}


def test_a_number_of_samples_that_is_not_reached_is_flagged_as_a_lower_bound():
    made = trial("token_gap", "keys8")
    metrics = claims.token_gap(made)
    for name, flag in (("rfmlp", "censored"), ("rfa", "rfa_missed")):
        reached = min(value for _, value in made.series[name]) <= claims.LEVEL
        assert metrics[flag] == float(not reached)
        assert reached or metrics[f"samples_{name}"] == 16
    assert metrics["ratio"] == metrics["samples_rfmlp"] / metrics["samples_rfa"]


def test_what_the_theory_does_not_promise_is_shown_and_not_judged():
    primary = [contrast for claim in CLAIMS.values() for contrast in claim.contrasts if contrast.role == "primary"]
    judged = {metric for contrast in primary for metric in contrast.metrics()}
    assert judged == {
        "mean_power2", "correlation1", "similarity2", "correlation1_fewest", "correlation1_few", "ratio",
    }  # fmt: skip
    outside = [target.name for target in claims.TARGETS if not target.is_mean_over_keys]
    assert outside == ["query_mean2", "key_mean2"]
    shown = {metric for contrast in CLAIMS["vs_mlp"].contrasts for metric in contrast.metrics()} - judged
    assert {"query_mean2", "key_mean2", "mean_power3", "correlation2"} <= shown
