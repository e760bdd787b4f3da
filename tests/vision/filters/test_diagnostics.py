"""What filters are like and which are used; the pictures of both."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from etude.vision.filters import (
    SmallCNN,
    effective_receptive_field,
    filter_bank,
    filter_redundancy,
    filter_usage,
    fit_gabor,
    frequency_response,
    gabor_share,
    plot_frequency_response,
    separability,
    variance_profile,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_redundancy_of_orthogonal_and_of_equal_filters():
    basis = filter_redundancy(filter_bank("dct", 4, 16, dc=True).weight)
    assert basis.mean_abs_cosine == pytest.approx(0, abs=1e-6)
    assert basis.effective_rank == pytest.approx(16, rel=1e-5)
    alike = filter_redundancy(torch.ones(5, 1, 3, 3) * torch.arange(1.0, 6).view(-1, 1, 1, 1))
    assert alike.mean_abs_cosine == pytest.approx(1)
    assert alike.effective_rank == pytest.approx(1, rel=1e-4)


def test_redundancy_is_the_mean_over_pairs():
    rows = torch.randn(4, 1, 3, 3, generator=generator()).double()
    cosines = [
        abs(float(torch.cosine_similarity(rows[i].flatten(), rows[j].flatten(), dim=0)))
        for i in range(4)
        for j in range(i)
    ]
    assert filter_redundancy(rows).mean_abs_cosine == pytest.approx(np.mean(cosines))


def test_separability_is_one_for_outer_products():
    weight = torch.stack([torch.outer(torch.arange(1.0, 6), torch.ones(5)), torch.eye(5), torch.zeros(5, 5)])[:, None]
    assert separability(weight).flatten().tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_the_response_peaks_at_the_frequency_of_the_filter():
    bank = filter_bank("gabor", 15, wavelengths=[4.0], phases=[0.0], orientations=4)
    response = bank.frequency_response(64)[:, 0]
    for picture, theta in zip(response, bank.meta["orientation"].tolist()):
        row, column = np.unravel_index(int(picture.argmax()), (64, 64))
        expected = np.array([math.sin(theta), math.cos(theta)]) / 4
        found = (np.array([row, column]) - 32) / 64
        assert min(np.abs(found - expected).max(), np.abs(found + expected).max()) < 0.03
    kernel = torch.randn(1, 1, 3, 3, generator=generator())
    assert frequency_response(kernel, 8)[0, 0, 4, 4].item() == pytest.approx(abs(kernel.sum().item()), rel=1e-5)


def test_gabor_fits_find_the_parameters_of_a_gabor_bank():
    bank = filter_bank("gabor", 11, wavelengths=[6.0], orientations=4)
    fit = fit_gabor(bank.weight)
    assert fit.r2.min() > 0.999
    away = np.abs(fit.orientation - bank.meta["orientation"].numpy())
    assert np.minimum(away, np.pi - away).max() < 0.02
    assert np.abs(fit.frequency - 1 / 6).max() < 0.02
    assert gabor_share(bank.weight) == 1.0


def test_noise_is_hardly_gabor_like():
    noise = filter_bank("random", 11, 6)
    assert gabor_share(noise.weight, 0.8) == 0.0
    assert fit_gabor(torch.zeros(1, 1, 5, 5)).r2.tolist() == [0.0]


def test_usage_counts_what_a_loop_counts():
    model = SmallCNN(1, 3, widths=[4, 5], strides=1, generator=generator())
    with torch.no_grad():
        model.features[0].bias[1] = -100.0  # never active
    x = torch.rand(7, 1, 6, 6, generator=generator())
    usage = filter_usage(model, x, batch_size=3)
    assert list(usage.layers) == ["features.0", "features.2"]
    first = usage.layers["features.0"]
    output = model.features[0](x).detach().double()
    for number in range(4):
        values = output[:, number]
        assert first.active[number].item() == pytest.approx((values > 0).double().mean().item())
        assert first.strength[number].item() == pytest.approx(values.clamp_min(0).mean().item(), rel=1e-6)
    correlation = np.corrcoef(output.transpose(0, 1).flatten(1).numpy())
    assert first.effective_number == pytest.approx(np.trace(correlation) ** 2 / (correlation**2).sum(), rel=1e-6)
    assert first.dead.tolist() == [False, True, False, False]
    assert first.selectivity[1] == 0
    assert usage.dead_share == pytest.approx((1 + int(usage.layers["features.2"].dead.sum())) / 9)


def test_usage_looks_behind_a_normalisation():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    nn.init.constant_(model[1].bias, -100.0)
    assert filter_usage(model, torch.rand(2, 1, 5, 5)).layers["0"].dead.all()
    assert not filter_usage(model[:1], torch.rand(2, 1, 5, 5)).layers["0"].dead.all()


def test_every_picture_is_drawn():
    model = SmallCNN(1, 3, widths=[4, 5], strides=1, generator=generator())
    x = torch.rand(4, 1, 9, 9, generator=generator())
    bank = filter_bank("gabor", 5, 8)
    pictures = [
        bank.plot(), filter_usage(model, x).plot(), variance_profile(model, x).plot(),
        effective_receptive_field(model, 15).plot(), plot_frequency_response(bank.weight, 16),
    ]  # fmt: skip
    for picture in pictures:
        picture.canvas.draw()
        assert picture.axes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: filter_redundancy(torch.zeros(3, 1, 2, 2)), "non-zero"),
        (lambda: frequency_response(torch.rand(1, 1, 5, 5), 4), "at least"),
        (lambda: fit_gabor(torch.rand(1, 1, 2, 2)), "square kernels"),
        (lambda: gabor_share(torch.rand(1, 1, 5, 5), 1.0), r"\(0, 1\)"),
        (lambda: filter_usage(nn.Flatten(), torch.rand(1, 1, 5, 5)), "no Conv2d"),
        (lambda: filter_usage(nn.Conv2d(1, 1, 3), torch.rand(0, 1, 5, 5)), "no images"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
