"""What the claims of Sigma compare has the sizes that they say, and the control reads what it may."""

import inspect

import pytest
import torch

from etude.claims.sequence import sigma as claims
from etude.data import text
from etude.lab import Trial
from etude.sequence.sigma import SigmaConfig, SigmaLM

DATA = text.from_text("the quick brown fox jumps over the lazy dog, " * 60)


def run(name, arm, **changes):
    claim = claims.PAPER.claims[name]
    setup = claim.setups["smoke"].replace(**changes)
    trial = Trial(f"sigma/{name}", arm, 500, "smoke", setup, {"lr": 1e-3} if claim.tune else {})
    return inspect.unwrap(claim.function)(trial, DATA)


def test_both_ways_to_spend_parameters_cost_the_same():
    sizes = {"dim": 64, "layers": 3, "ffn": 160, "heads": 8}
    found = {arm: run("augmented_queries", arm, **sizes) for arm in ("aug_q", "aug_f", "base")}
    rest = 2 * (65 - DATA.vocab_size) * 64  # embedding and head of 65 characters
    assert found["aug_q"]["parameters"] == found["aug_f"]["parameters"] == 186_944 - rest
    assert found["base"]["parameters"] < found["aug_q"]["parameters"]
    assert found["aug_q"]["cache_bytes"] == found["base"]["cache_bytes"]


def test_cuts_of_keys_and_of_values_save_the_same():
    found = {arm: run("key_heads_are_cheap", arm) for arm in ("v_cut", "k_cut", "uncut")}
    for metric in ("parameters", "cache_bytes"):
        assert found["v_cut"][metric] == found["k_cut"][metric] < found["uncut"][metric]
    assert found["k_cut"]["cache_bytes"] / found["uncut"]["cache_bytes"] == 0.625


def test_the_compared_models_have_the_parameters_of_the_protocol():
    sizes = {"dim": 64, "layers": 3, "ffn": 160, "heads": 8}
    rest = 2 * (65 - DATA.vocab_size) * 64
    assert run("half_width_keys", "full_keys", **sizes)["parameters"] == 150_080 - rest
    assert run("half_width_keys", "half_keys", **sizes)["parameters"] == 144_032 - rest


@pytest.mark.parametrize("count", [4, 99])
def test_reading_the_likeliest_values_is_the_models_own_selection(count):
    torch.manual_seed(0)
    model = SigmaLM(SigmaConfig(vocab_size=9, dim=16, num_q_heads=4, num_k_heads=2, num_v_heads=2)).eval()
    ids = torch.randint(9, (2, 12))
    own = model(ids, select_v=count)
    torch.testing.assert_close(claims.Reading(model, count)(ids), own)


def test_keys_drawn_at_random_are_visible_ones():
    torch.manual_seed(0)
    model = SigmaLM(SigmaConfig(vocab_size=9, dim=16, num_q_heads=4, num_k_heads=2, num_v_heads=2)).eval()
    ids = torch.randint(9, (2, 12))
    reading = claims.Reading(model, 3, torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 7] = (ids[:, 7] + 1) % 9
    one = reading(ids)
    reading.generator = torch.Generator().manual_seed(0)
    assert torch.equal(reading(other)[:, :7], one[:, :7])
