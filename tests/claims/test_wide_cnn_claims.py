"""What the claims compute: the arms are what their names say, and all of a seed see the same data."""

import math

import pytest
import torch

from etude.claims.theory import wide_cnn as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Setup, Trial
from etude.theory.wide_cnn import (
    fc_ntk,
    fit_power_law,
    hierarchical_kernel,
    kernel_spectrum,
    predict_beta,
    sample_grf,
    sample_multisphere,
)

CURVE = Setup(sizes=[16, 32, 64], test=50, fitted=2)


def trial(arm, setup=CURVE, seed=500, tuned=None, **options):
    return Trial("toy", arm=arm, seed=seed, setup=setup, tuned=tuned, **options)


@pytest.mark.parametrize("arm", ["local", "middle", "global", "fc", "matched"])
def test_an_arm_is_the_teacher_and_the_student_that_its_name_says(arm):
    run = trial(arm)
    found = claims.adaptivity(run, claims.d8())
    twin = trial("another")
    x = sample_multisphere(114, 4, 2, twin.generator("data"))
    teacher = {"middle": [2, 2], "global": [2, 2, 2]}.get(arm, [2])
    y = sample_grf(hierarchical_kernel(x, None, teacher), twin.generator("teacher"), count=32)
    seen = {"matched": [2]}.get(arm, [2, 2, 2])
    K = fc_ntk(x, None, 3) if arm == "fc" else hierarchical_kernel(x, None, seen)
    errors = []
    for n in (32, 64):
        missed = K[64:, :n] @ torch.linalg.solve(K[:n, :n], y[:n]) - y[64:]
        errors.append(float(missed.square().mean() / y[64:].var(dim=0, correction=0).mean()))
    assert found["error"] == pytest.approx(errors[-1], rel=1e-6)
    assert found["beta"] == pytest.approx(math.log2(errors[0] / errors[1]), rel=1e-6)
    if arm == "fc":
        assert "gap" not in found
    else:
        assert found["gap"] == pytest.approx(found["beta"] - predict_beta(teacher, seen))
    assert [step for step, _ in run.series["log10_error"]] == [math.log10(n) for n in (16, 32, 64)]


def test_the_predictions_of_the_arms_are_those_of_the_paper():
    found = {arm: claims.adaptivity(trial(arm), claims.d8())["predicted"] for arm in ("local", "middle", "global")}
    assert found == pytest.approx({"local": 0.625, "middle": 0.4167, "global": 0.25}, abs=1e-4)
    assert claims.adaptivity(trial("matched"), claims.d8())["predicted"] == 1.0


def test_inputs_of_27_coordinates_have_nine_patches_of_three():
    data = claims.d27()
    assert data.inputs == 27
    assert data.sample(4, torch.Generator()).shape == (4, 27)
    setup = CURVE.replace(sizes=[8, 16], test=10)
    assert claims.adaptivity(trial("global", setup), data)["predicted"] == pytest.approx(1 / 18)


def test_the_spectrum_claim_fits_the_declared_ranks_and_attributes_eigenvectors():
    setup = Setup(n=200, ranks=[5, 40], kind="ntk", leading=9, draws=300)
    run = trial("two_layers", setup)
    found = claims.spectrum(run)
    x = sample_multisphere(200, 2, 2, trial("another", setup).generator("data"))
    values = kernel_spectrum(hierarchical_kernel(x, None, [2, 2]))
    assert found["exponent"] == pytest.approx(fit_power_law(values, 5, 40).exponent)
    assert found["relative"] == pytest.approx(found["exponent"] / 1.5)
    assert 0.5 < found["pure"] < 1.5
    rank, value = run.series["log10_eigenvalue"][0]
    assert (rank, value) == pytest.approx((0.0, math.log10(float(values[0]))))


def pictures(n, generator=None):
    return Examples(torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 2)


IMAGES = ImageData(train=pictures(40), val=pictures(20), test=pictures(30), classes=("a", "b"), name="toy")
PICTURES = Setup(n=30, few=10, val=15, test=30, side=32, filters=[2, 2], teachers=3_000)


@pytest.mark.parametrize("arm", ["hierarchical", "fc", "rbf"])
def test_on_images_targets_err_by_the_posterior_variance(arm):
    tuned = {"ridge": 0.05, "gamma": 1.0 if arm == "rbf" else None}
    found = claims.on_images(trial(arm, PICTURES, tuned=tuned), IMAGES)
    assert found["identity"] == pytest.approx(1.0, abs=0.04)
    assert 0 < found["posterior"] < 1
    tuning = claims.on_images(trial(arm, PICTURES, tuned=tuned, tuning=True), IMAGES)
    assert tuning == {"val_accuracy": found["val_accuracy"]}


def test_images_are_padded_to_sides_that_the_filters_divide():
    image = torch.rand(2, 3, 6, 9)
    padded = claims._padded(trial("hierarchical", PICTURES), image)
    assert padded.shape == (2, 3, 8, 12)
    assert torch.equal(padded[:, :, :6, :9], image)
    assert not padded[:, :, 6:].any()
    assert not padded[..., 9:].any()


def test_splits_are_joined_whether_in_memory_or_not():
    part = pictures(4)
    listed = [(part.inputs[k], int(part.targets[k])) for k in range(4)]
    images, labels = claims._joined(32, part, listed)
    assert images.dtype == torch.float64
    assert torch.equal(images[:4], images[4:])
    assert labels.tolist() == [0, 1, 0, 1] * 2


def test_large_images_are_averaged_down_before_any_kernel_sees_them():
    part = Examples(torch.rand(3, 2, 8, 4), torch.zeros(3, dtype=torch.int64))
    images, _ = claims._joined(4, part)
    assert images.shape == (3, 2, 4, 4)
    assert torch.allclose(images[:, :, 0], part.inputs[:, :, :2].double().mean(2))
    assert claims._joined(8, part)[0].shape == (3, 2, 8, 4)


def test_the_width_of_the_gaussian_kernel_follows_the_data():
    x = torch.rand(20, 1, 4, 4, dtype=torch.float64)
    run = trial("rbf", PICTURES, tuned={"ridge": 0.1, "gamma": 2.0})
    distances = torch.cdist(x.flatten(1), x.flatten(1)).square()
    mean = distances.sum() / 20**2
    assert torch.allclose(claims._image_kernel(run, x)(x, None), torch.exp(-2 * distances / mean), atol=1e-12)
    assert torch.allclose(claims._image_kernel(run, 5 * x)(5 * x, None), torch.exp(-2 * distances / mean), atol=1e-12)
