"""What the claims of subsampled attention train and compare."""

import inspect

import pytest
import torch

from etude.claims.sequence import ssa as claims
from etude.data import text
from etude.lab import Trial
from etude.sequence.ssa import SubsampledAttention, sample_sources

DATA = text.from_text("the quick brown fox jumps over the lazy dog, " * 60)


def run(name, arm, **changes):
    claim = claims.PAPER.claims[name]
    trial = Trial(f"ssa/{name}", arm, 500, "smoke", claim.setups["smoke"].replace(**changes), {"dropout": 0.1})
    return inspect.unwrap(claim.function)(trial, DATA) if claim.data else inspect.unwrap(claim.function)(trial)


def test_the_protocol_samples_a_quarter_of_the_sources():
    s = claims.SMALL
    sets = sample_sources(s.length, window=s.window, sigma=s.sigma, causal=True)
    assert sets.sources.shape == (8, 2 * s.window)
    assert sets.sources.shape[1] / s.length == 0.25


def test_arms_have_the_same_parameters_and_start_alike():
    torch.manual_seed(0)
    one = claims.Decoder(65, claims.SMALL)
    torch.manual_seed(0)
    other = claims.Decoder(65, claims.SMALL, dropout=0.3, attention_dropout=0.3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))
    count = 2 * 65 * 64 + 64 + 3 * (4 * 64 * 64 + 3 * 64 * 160 + 2 * 64)
    assert sum(p.numel() for p in one.parameters()) == count
    assert sum(isinstance(module, SubsampledAttention) for module in one.modules()) == 3


def test_the_kept_step_is_the_best_by_validation():
    claim = claims.PAPER.claims["ssa_regularises"]
    trial = Trial("ssa/ssa_regularises", "ssa", 500, "smoke", claim.setups["smoke"].replace(steps=8), {"dropout": 0.0})
    seen = []
    trial.log = lambda step, **metrics: seen.append(metrics["val_loss"])
    model = claims.trained(trial, DATA, samples=True, dropout=0.0)
    kept = claims.mean_loss(model, claims.windows(trial, DATA, "val"), loss=claims.next_token_loss)
    assert len(seen) == 4
    assert kept == pytest.approx(min(seen), abs=1e-6)
    assert not model.training


def test_the_temperature_softens_what_is_too_sure():
    logits = torch.tensor([[4.0, 0.0]]).repeat(10, 1)
    targets = torch.tensor([0] * 7 + [1] * 3)
    best = claims._temperature(logits, targets)
    assert best == pytest.approx(4 / torch.logit(torch.tensor(0.7)).item(), rel=0.05)


def test_gains_and_rises_follow_from_the_losses():
    found = run("self_ensembles", "ssa")
    assert found["gain"] == pytest.approx(found["loss"] - found["ensemble_loss"])
    assert 0 <= found["disagreement"] <= 1
    assert set(run("pathways_exist", "dense")) == {"loss", "rise", "rise_half", "rise_eighth"}


def test_memory_falls_with_the_fraction():
    assert run("cost", "ssa@4", tokens=[256])["memory_ratio"] == pytest.approx(0.25, rel=0.05)
    assert run("cost", "ssa@8", tokens=[256])["memory_ratio"] == pytest.approx(0.125, rel=0.07)
