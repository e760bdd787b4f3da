"""Filters learned from unlabelled images."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from etude.vision.filters import (
    METHODS,
    FilterLearner,
    LayerSpec,
    SelfOrganizingMap,
    Whitening,
    contrast_normalised,
    learn_filters,
    learn_from_patches,
    sample_patches,
)
from etude.vision.filters.learning import _seed
from etude.vision.filters.pretext import rotated

_FAST = {
    "autoencoder": {"steps": 5},
    "rotation": {"steps": 3},
    "hebbian": {"steps": 50},
    "rica": {"steps": 10},
    "som": {"steps": 20},
    "sparse_coding": {"max_iter": 1},
    "ica": {"max_iter": 5},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def images():
    """Smooth random images, (60, 1, 16, 16), in [0, 1]."""
    noise = torch.randn(60, 1, 20, 20, generator=generator())
    smooth = torch.nn.functional.avg_pool2d(noise, 5, stride=1)
    return (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())


@pytest.fixture(scope="module")
def patches(images):
    return sample_patches(images, 5, 2000, generator=generator())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_mean_free_unit_filters_and_repeats(method, images):
    first, second = (
        learn_filters(images, method, 5, 6, seed=1, patches=300, **_FAST.get(method, {})) for _ in range(2)
    )
    assert first.weight.shape == (6, 1, 5, 5)
    assert torch.equal(first.weight, second.weight)
    torch.testing.assert_close(first.weight.flatten(1).norm(dim=1), torch.ones(6))
    torch.testing.assert_close(first.weight.mean(dim=(1, 2, 3)), torch.zeros(6), atol=1e-6, rtol=0)


def test_pca_spans_the_subspace_of_sklearn(patches):
    bank = learn_from_patches(patches, "pca", 6)
    theirs = PCA(6).fit(contrast_normalised(patches).double().numpy()).components_
    angles = scipy.linalg.subspace_angles(bank.weight.flatten(1).double().numpy().T, theirs.T)
    assert angles.max() < 1e-3


def test_kmeans_filters_are_sklearns_centroids_mapped_back(patches):
    bank = learn_from_patches(patches, "kmeans", 8, reg=0.1, generator=generator(3))
    rows = contrast_normalised(patches)
    whitening = Whitening.fit(rows, 0.1)
    model = KMeans(8, n_init=1, max_iter=50, random_state=_seed(generator(3))).fit(whitening(rows).numpy())
    expected = torch.from_numpy(model.cluster_centers_).double() @ whitening.matrix
    expected = expected - expected.mean(dim=1, keepdim=True)
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(bank.weight.flatten(1).double(), expected, atol=1e-5, rtol=0)


def test_spherical_kmeans_finds_separated_directions():
    centres = torch.linalg.qr(torch.randn(25, 25, generator=generator())).Q[:, :4].T
    centres = centres - centres.mean(dim=1, keepdim=True)
    labels = torch.arange(400) % 4
    signs = torch.where(torch.rand(400, 1, generator=generator(1)) < 0.5, -1.0, 1.0)
    rows = signs * centres[labels] + 0.02 * torch.randn(400, 25, generator=generator(2))
    bank = learn_from_patches(rows.reshape(-1, 1, 5, 5), "kmeans", 40, spherical=True, whiten=False)
    cosines = torch.nn.functional.normalize(centres, dim=1) @ bank.weight.flatten(1).T
    assert cosines.abs().amax(dim=1).min() > 0.98


@pytest.mark.parametrize("reg", [0.01, 0.1])
def test_whitened_covariance_has_the_stated_eigenvalues(patches, reg):
    rows = contrast_normalised(patches.double())
    whitening = Whitening.fit(rows, reg)
    values = np.linalg.eigvalsh(np.cov(rows.numpy().T, bias=True))
    white = np.cov(whitening(rows).numpy().T, bias=True)
    np.testing.assert_allclose(np.linalg.eigvalsh(white), values / (values + reg), atol=1e-8)
    constant = np.full(25, 0.2)
    assert constant @ white @ constant == pytest.approx(0, abs=1e-12)


def test_filters_mapped_back_respond_as_directions_on_whitened_patches(patches):
    rows = contrast_normalised(patches.double())
    whitening = Whitening.fit(rows, 0.1)
    directions = torch.randn(3, 25, dtype=torch.float64, generator=generator())
    difference = rows @ whitening.filters(directions).T - whitening(rows) @ directions.T
    torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-10, rtol=0)


def test_sangers_rule_finds_the_components_and_ojas_their_subspace(patches):
    rows = contrast_normalised(patches).double().numpy()
    theirs = PCA(3).fit(rows).components_
    sanger = learn_from_patches(patches, "hebbian", 3, generator=generator()).weight.flatten(1).double().numpy()
    assert (np.abs((sanger * theirs).sum(axis=1)) > 0.97).all()
    oja = learn_from_patches(patches, "hebbian", 3, rule="oja", generator=generator()).weight.flatten(1).double()
    assert scipy.linalg.subspace_angles(oja.numpy().T, theirs.T).max() < 0.2


def test_a_map_quantises_better_than_it_starts_and_keeps_neighbours():
    data = torch.rand(2000, 2, generator=generator())
    som = SelfOrganizingMap(6, 6, steps=300)
    start = SelfOrganizingMap(6, 6, steps=1, rate=(1e-9, 1e-9)).fit(data, generator(1))
    som.fit(data, generator(1))
    shuffled = SelfOrganizingMap(6, 6)
    shuffled.weight = som.weight[torch.randperm(36, generator=generator(2))]
    assert som.quantisation_error(data) < 0.9 * start.quantisation_error(data)
    assert som.topographic_error(data) < 0.2 < 0.5 < shuffled.topographic_error(data)


def test_one_step_of_the_map_is_kohonens_rule():
    data = torch.tensor([[1.0, 0.0]])
    som = SelfOrganizingMap(1, 3, steps=1, batch_size=1, radius=(1.0, 1.0), rate=(0.5, 0.5))
    som.fit(torch.tensor([[1.0, 0.0]]), generator())  # every unit starts there and stays
    torch.testing.assert_close(som.weight, data.expand(3, 2))
    two = SelfOrganizingMap(1, 2, steps=1, batch_size=1, radius=(1.0, 1.0), rate=(0.5, 0.5))
    two.fit(torch.tensor([[0.0], [1.0]]), generator(5))
    source = generator(5)
    start = torch.tensor([[0.0], [1.0]])[torch.randint(0, 2, (2,), generator=source)]
    x = torch.tensor([[0.0], [1.0]])[torch.randint(0, 2, (1,), generator=source)]
    best = int((start - x).abs().argmin())
    near = torch.exp(-((torch.arange(2.0) - best) ** 2) / 2)[:, None]
    torch.testing.assert_close(two.weight, start + 0.5 * near * (x - start))


def test_patches_come_from_the_images_and_constant_ones_are_dropped():
    image = torch.arange(64.0).reshape(1, 1, 8, 8) / 64
    drawn = sample_patches(image, 3, 50, generator=generator())
    for patch in drawn:
        corner = int(patch[0, 0, 0] * 64)
        row, column = divmod(corner, 8)
        torch.testing.assert_close(patch, image[0, :, row : row + 3, column : column + 3])
    half = torch.cat([torch.zeros(1, 1, 8, 8), image])
    assert (sample_patches(half, 3, 50, generator=generator()).flatten(1).std(dim=1) > 0.02).all()


def test_colours_of_learned_filters():
    images = torch.rand(20, 3, 10, 10, generator=generator())
    shapes = [
        learn_filters(images, "pca", 3, 5, patches=200, color=c).weight.shape for c in ("joint", "luma", "per_channel")
    ]
    assert shapes == [(5, 3, 3, 3), (5, 1, 3, 3), (5, 1, 3, 3)]


@pytest.mark.parametrize("maps", ["joint", "each"])
def test_layers_are_learned_on_the_maps_of_the_layer_below(images, maps):
    specs = [LayerSpec("kmeans", 5, 6, pool=2), LayerSpec("pca", 3, 4, pool=1, maps=maps)]
    learner = FilterLearner(specs).fit(images)
    assert learner.banks_[1].channels == (6 if maps == "joint" else 1)
    out = learner.transform(images)
    assert out.shape == (60, 4 if maps == "joint" else 24, 8, 8)
    torch.testing.assert_close(learner.to_module()(images).detach(), out)
    assert out.std().item() == pytest.approx(1, rel=1e-4)
    first = torch.nn.functional.conv2d(images, learner.banks_[0].weight, padding=2).relu()
    first = torch.nn.functional.avg_pool2d(first, 2)
    assert learner.scales_[0] == pytest.approx(first.std().item(), rel=1e-4)


def test_images_are_turned_by_their_number_of_quarters():
    images = torch.rand(4, 2, 5, 5, generator=generator())
    turned = rotated(images, torch.tensor([0, 1, 2, 3]))
    for number in range(4):
        assert torch.equal(turned[number], torch.rot90(images[number], number, (1, 2)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "som2"}, "method must be one of"),
        ({"method": "pca", "num": 25}, "at most 24"),
        ({"method": "kmeans", "size": 17}, "do not fit"),
        ({"method": "rotation", "size": 17}, "do not fit"),
        ({"method": "pca", "num": 0}, "at least 1"),
        ({"method": "pca", "color": "hsv"}, "hsv"),
        ({"method": "pca", "steps": 3}, "steps"),
        ({"method": "som", "grid": (2, 2)}, "2 x 2"),
        ({"method": "rotation", "whiten": True}, "not whitened"),
        ({"method": "hebbian", "rule": "anti"}, "anti"),
    ],
)
def test_what_cannot_be_learned_is_refused(images, arguments, words):
    with pytest.raises(ValueError, match=words):
        learn_filters(images, **({"size": 5, "num": 6, "patches": 100} | arguments))


@pytest.mark.parametrize("method", ["pca", "autoencoder"])
def test_constant_images_are_refused(method):
    with pytest.raises(ValueError, match="nearly constant"):
        learn_filters(torch.full((5, 1, 8, 8), 0.5), method, 3, 4)


def test_few_patches_are_told_and_too_few_refused(patches):
    with pytest.warns(UserWarning, match="few for 10 filters"):
        learn_from_patches(patches[:50], "pca", 10)
    with pytest.raises(ValueError, match="at least as many"):
        learn_from_patches(patches[:5], "pca", 10)


def test_bad_whitening_is_refused():
    with pytest.raises(ValueError, match="alike"):
        Whitening.fit(torch.ones(10, 4))
    with pytest.raises(ValueError, match="singular"):
        Whitening.fit(contrast_normalised(torch.rand(20, 9)), 0.0)
    with pytest.raises(ValueError, match="negative"):
        Whitening.fit(torch.rand(20, 9), -1.0)


@pytest.mark.parametrize("arguments", [{"rows": 0}, {"rate": (0.0, 0.1)}, {"radius": (1.0, 0.0)}])
def test_bad_maps_are_refused(arguments):
    with pytest.raises(ValueError, match=r"positive|rate"):
        SelfOrganizingMap(**({"rows": 2, "columns": 2} | arguments))
