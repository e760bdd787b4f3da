"""The distance against its closed forms and scipy, the feature network, pictures."""

import numpy as np
import pytest
import scipy.linalg
import torch

from etude.data.kinds import Examples
from etude.diffusion.denoising_task_routing import (
    DigitFeatures,
    frechet_distance,
    plot_images,
    plot_masks,
    routing_mask,
    train_features,
)


def test_the_distance_is_the_one_of_the_matrix_square_root():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    b = torch.randn(300, 6, generator=generator) + 1
    first, second = np.cov(a.double().numpy().T), np.cov(b.double().numpy().T)
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    root = scipy.linalg.sqrtm(first @ second).real
    expected = gap + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-8)


def test_a_shift_counts_by_its_square_and_a_set_is_at_no_distance_from_itself():
    a = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(25, rel=1e-9)


def test_features_that_never_fire_do_no_harm():
    a = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    a[:, 1:] = 0
    assert frechet_distance(a, 3 * a) == pytest.approx(
        4 * a[:, 0].double().mean().item() ** 2 + 4 * a[:, 0].double().var().item(), rel=1e-6
    )


def test_one_number_a_row_has_a_variance():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert frechet_distance(a, b) == pytest.approx(1 + (2**0.5) ** 2)


def test_the_feature_network_is_the_named_one():
    network = DigitFeatures()
    counts = [parameter.numel() for parameter in network.parameters()]
    assert counts == [32 * 9, 32, 32 * 32 * 9, 32, 512 * 64, 64, 64 * 10, 10]
    features = network.features(torch.randn(3, 1, 8, 8))
    assert features.shape == (3, 64)
    assert float(features.detach().min()) == 0
    assert torch.equal(network(torch.ones(1, 1, 8, 8)), network.head(network.features(torch.ones(1, 1, 8, 8))))


def test_the_feature_network_is_a_function_of_its_seed_alone():
    generator = torch.Generator().manual_seed(0)
    data = Examples(torch.randn(40, 1, 4, 4, generator=generator), torch.arange(40) % 3)
    states = []
    for seed, stray in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(stray)
        before = torch.get_rng_state()
        states.append(torch.cat([p.flatten() for p in train_features(data, 3, steps=3, seed=seed).parameters()]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="a needs at least two rows"):
        frechet_distance(torch.ones(1, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="b holds NaN"):
        frechet_distance(torch.ones(2, 2), torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), got \(1, 6, 8\)"):
        DigitFeatures()(torch.ones(1, 1, 6, 8))
    with pytest.raises(ValueError, match="1 x 1 x 8"):
        DigitFeatures(1, 1, 8)


def test_pictures_show_every_mask_and_every_set():
    masks = plot_masks(
        {name: routing_mask(20, 10, method=name, generator=torch.Generator()) for name in ("dtr", "none")}
    )
    assert [axes.get_title() for axes in masks.axes] == ["dtr", "none"]
    assert np.array_equal(masks.axes[0].images[0].get_array(), routing_mask(20, 10).numpy())
    grey, colour = torch.rand(3, 1, 4, 4), torch.rand(2, 3, 4, 4)
    for sets in ({"made": grey, "data": grey[:2]}, {"made": colour}):
        figure = plot_images(sets)
        assert [axes.get_ylabel() for axes in figure.axes] == list(sets)
    with pytest.raises(ValueError, match="no masks"):
        plot_masks({})
    with pytest.raises(ValueError, match="no images"):
        plot_images({})
