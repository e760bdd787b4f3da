"""What the claims of task routing fix: data, masks, common noise, the sizes of `full`."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from etude.claims.diffusion import denoising_task_routing as claims
from etude.claims.diffusion.denoising_task_routing import PAPER, Judge, digits, in_memory, network, patch_of, scaled
from etude.data import images
from etude.data.kinds import ImageData
from etude.lab import Trial


def trial(claim, arm, seed=2000, scale="smoke"):
    setup = PAPER.claims[claim].setups[scale]
    return Trial("toy", arm=arm, seed=seed, scale=scale, setup=setup)


def test_digits_are_cut_as_the_protocol_says():
    data = digits()
    assert len(data.train) == 1500
    assert len(data.test) == 297
    rows = torch.cat([data.train.inputs, data.test.inputs]).flatten(1)
    every = images.digits()
    whole = torch.cat([part.inputs for part in (every.train, every.val, every.test)]).flatten(1)
    assert torch.equal(rows, whole)
    assert torch.bincount(data.test.targets).min() >= 20
    assert float(scaled(data.train, latent=False).inputs.min()) == -1
    assert scaled(data.train, latent=True) is data.train


def test_arms_share_weights_noise_and_labels_across_arms_and_noise_across_seeds():
    data = digits()
    train = scaled(data.train, latent=False)
    networks = {arm: network(trial("structure", arm), data, (1, 8, 8), arm) for arm in ("plain", "dtr", "random")}
    plain = networks["plain"].state_dict()
    for model in networks.values():
        assert all(torch.equal(value, plain[name]) for name, value in model.state_dict().items() if name in plain)
    judges = [Judge(trial("structure", arm, seed), data, train) for arm, seed in (("dtr", 2000), ("random", 2001))]
    assert torch.equal(judges[0].noise, judges[1].noise)
    assert torch.equal(judges[0].labels, judges[1].labels)
    assert torch.equal(judges[0].reference, judges[1].reference)
    other = network(trial("structure", "random", 2001), data, (1, 8, 8), "random")
    assert not torch.equal(other.blocks[0].router.mask, networks["random"].blocks[0].router.mask)
    assert not torch.equal(other.blocks[0].router.mask, other.blocks[1].router.mask)


def test_routing_is_that_of_the_paper_at_every_scale():
    for claim in PAPER.claims.values():
        for scale, setup in claim.setups.items():
            if claim.name != "zero_cost":
                assert (setup.alpha, setup.beta) == (4.0, 0.8), (claim.id, scale)


def test_full_is_the_published_network():
    run = trial("routing", "dtr", scale="full")
    parts = digits()
    data = ImageData(parts.train, parts.val, parts.test, tuple(map(str, range(1000))), "thousand")
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "device", "meta")
        model = network(run, data, (4, 32, 32), "plain")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(458.1, abs=0.5)
    assert model.grid == (16, 16)


@pytest.mark.parametrize(
    ("size", "patch"), [((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((10, 20), 2), ((7, 7), 7), ((9, 11), 1)]
)
def test_patches_fit_the_images_of_users(size, patch):
    assert patch_of(size, 2, 64) == patch


def test_latents_on_disk_are_read_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "locate", lambda name: tmp_path)
    for stem in ("train", "val"):
        np.save(tmp_path / f"{stem}_latents.npy", np.arange(6 * 4 * 2 * 2, dtype=np.float16).reshape(6, 4, 2, 2))
        np.save(tmp_path / f"{stem}_labels.npy", np.arange(6))
    data = claims.imagenet()
    chosen = in_memory(data.train, 3)
    assert chosen.inputs.shape == (3, 4, 2, 2)
    assert chosen.targets.tolist() == [0, 2, 5]
    assert chosen.inputs.dtype == torch.float32
    assert scaled(data.train, latent=True) is data.train


def test_full_runs_as_declared_with_small_numbers(tmp_path, monkeypatch):
    """Latents from disk, learned variance, guided DDPM, a decoder and other features; only their sizes are toys."""
    monkeypatch.setattr(claims, "locate", lambda name: tmp_path)
    generator = np.random.default_rng(0)
    for stem, rows in (("train", 24), ("val", 8)):
        np.save(tmp_path / f"{stem}_latents.npy", generator.normal(size=(rows, 4, 4, 4)).astype(np.float16))
        np.save(tmp_path / f"{stem}_labels.npy", np.arange(rows))
    torch.manual_seed(0)
    decoder = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2, layers_per_block=1)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", lambda name: decoder)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    monkeypatch.setattr(claims, "inception", lambda: pooled)
    full = PAPER.claims["with_weights"].setups["full"]
    setup = full.replace(
        dim=8, depth=1, heads=2, steps=2, batch=8, every=1, sampling=3, samples=8, at_once=4, curve=[1],
        curve_samples=4, curve_sampling=2, reference=16, held_out=8,
    )  # fmt: skip
    for arm in ("uw_dtr", "min_snr_plain"):
        run = Trial("toy", arm=arm, seed=2000, scale="full", setup=setup)
        values = PAPER.claims["with_weights"].function(run, claims.imagenet())
        assert values["frechet_cnn"] > 0
        assert "sample_accuracy" not in values
        assert len(run.series["frechet_of_few"]) == 1


def test_routing_is_counted_in_the_operations():
    values = {arm: PAPER.claims["zero_cost"].function(trial("zero_cost", arm)) for arm in ("plain", "dtr", "random")}
    assert values["plain"]["extra_flops_percent"] == 0
    for arm in ("dtr", "random"):
        assert values[arm]["extra_parameters"] == 0
        assert 0 < values[arm]["extra_flops_percent"] < 0.1
