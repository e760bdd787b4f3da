"""What the claims of Orchid train and compare."""

import inspect
import math

import pytest
import torch

from etude.claims.sequence import orchid as claims
from etude.data.images import digits
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.sequence.orchid import Orchid


def run(name, arm, data=None, **changes):
    claim = claims.PAPER.claims[name]
    trial = Trial(f"orchid/{name}", arm, 500, "smoke", claim.setups["smoke"].replace(**changes), {"lr": 1e-3})
    function = inspect.unwrap(claim.function)
    return function(trial) if data is None else function(trial, data)


def made(arm):
    torch.manual_seed(0)
    return claims.Recall(arm, claims.RECALL)


def test_arms_of_recall_differ_in_the_mixer_alone():
    static, *others = (made(arm) for arm in ("static", "type1", "type2"))
    names = dict(static.named_parameters())
    for model in others:
        extra = {name for name, _ in model.named_parameters()} - set(names)
        assert extra
        assert all(".kernels." in name for name in extra)
        assert 1 < sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in static.parameters()) < 1.04
    attention = made("attention")
    assert all(isinstance(block.mixer, claims.Attention) for block in attention.encoder.blocks)
    assert attention.encoder.blocks[0].mixer.short.padding == "circular"
    assert static.encoder.blocks[0].mixer.residual_filter is not None


def test_training_validation_and_test_sequences_are_others():
    seen = []
    original = claims.associative_recall
    try:
        claims.associative_recall = lambda *args, seed: seen.append(seed) or original(*args, seed=seed)
        found = run("adaptive_beats_static", "type2")
    finally:
        claims.associative_recall = original
    assert len(set(seen)) == 3
    assert found["kernel_ratio"] > 0
    assert run("adaptive_beats_static", "static")["kernel_ratio"] == 0


def test_equivariance_holds_for_circles_and_for_nothing_else():
    errors = {arm: run("shift_equivariance", arm)["error"] for arm in claims.SHIFTED}
    assert max(errors["orchid"], errors["orchid_type2"]) < 1e-4
    assert min(errors["orchid_zeros"], errors["orchid_official"], errors["attention"]) > 1e-2


def test_slopes_and_crossings_are_those_of_known_curves():
    lengths = [100, 200, 400, 800]
    assert claims._log_slope(lengths, [n**1.7 for n in lengths]) == pytest.approx(1.7)
    assert claims._crossing(lengths, [300.0 * n for n in lengths], [float(n * n) for n in lengths]) == pytest.approx(
        300
    )
    assert claims._crossing(lengths, [1.0] * 4, [2.0] * 4) == 100
    assert claims._crossing(lengths, [2.0] * 4, [1.0] * 4) == 1e9


def test_counted_operations_grow_as_the_claim_says():
    long = claims.PAPER.claims["quasilinear"].setups["small"].lengths
    found = {arm: run("quasilinear", arm, lengths=[32, 64]) for arm in ("orchid", "attention")}
    assert set(found["orchid"]) == {"slope", "seconds", "crossover", "flops_slope"}
    assert found["attention"]["crossover"] == 0
    layer = Orchid(32, 1)
    assert claims._log_slope(long, [layer.flops(n) for n in long]) < 1.1


def test_digits_are_dealt_out_evenly_and_once(monkeypatch):
    def digits_of(first, count):
        pixels = torch.arange(first, first + count, dtype=torch.float32)[:, None, None, None]
        return Examples(pixels, torch.arange(count) % 10)

    whole = ImageData(digits_of(0, 3500), digits_of(3500, 500), digits_of(4000, 1000), tuple("0123456789"), "mnist")
    monkeypatch.setattr(claims.images, "mnist5k", lambda: whole)
    data = claims.mnist()
    parts = (data.train, data.val, data.test)
    assert [len(part) for part in parts] == [2000, 1000, 2000]
    assert all(len(set(part.targets.bincount().tolist())) == 1 for part in parts)
    assert torch.equal(torch.cat([part.inputs for part in parts]).flatten().sort().values, torch.arange(5000.0))


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (30, 45), (100, 70)])
def test_images_of_any_size_become_whole_patches(size):
    fitted = claims.Padded(size, 32, 4)
    out = fitted(torch.zeros(2, 1, *size))
    assert out.shape[2:] == fitted.size
    assert all(length % 4 == 0 for length in fitted.size)
    assert math.prod(fitted.size) < 64 * 100


@pytest.mark.parametrize("arm", ["vit", "hyena_vit", "orchid_vit", "orchid_vit_positions"])
def test_vision_takes_a_users_images(arm):
    found = run("vision", arm, digits())
    assert 0 <= found["accuracy"] <= 1


def test_users_are_asked_about_the_adaptive_kernel_alone():
    asked = claims.PAPER.claims["vision"].for_users()
    assert set(asked.arms) == {"orchid_vit", "hyena_vit"}
    assert asked.candidates("orchid_vit") == asked.candidates("hyena_vit") == [{"lr": 1e-3}, {"lr": 3e-3}]
