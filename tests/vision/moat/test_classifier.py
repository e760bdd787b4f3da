"""From a user's pixels to predictions: conversions, strides, the estimator."""

import numpy as np
import pytest
import torch

from etude.vision.moat import to_images

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from etude.vision.moat import MOATClassifier
from etude.vision.moat.classifier import fitting_strides


@pytest.mark.parametrize(
    ("pixels", "value"),
    [
        (np.full((2, 5, 7), 51, np.uint8), 0.2),
        (np.full((2, 5, 7), 13107, np.uint16), 0.2),
        (np.full((2, 5, 7), 0.2), 0.2),
        (np.full((2, 5, 7), True), 1.0),
        (torch.full((2, 1, 5, 7), 51, dtype=torch.uint8), 0.2),
        (torch.full((2, 5, 7, 1), 51, dtype=torch.uint8), 0.2),
    ],
)
def test_grey_of_every_depth_is_scaled_and_repeated(pixels, value):
    for channels in (1, 3):
        images = to_images(pixels, channels)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, torch.full((2, channels, 5, 7), value))


def test_colour_becomes_luma_and_transparency_lies_over_black():
    rgba = np.zeros((1, 6, 5, 4), np.uint8)  # channels last
    rgba[..., 0], rgba[..., 3] = 255, 51
    torch.testing.assert_close(to_images(rgba, 3)[0, :, 0, 0], torch.tensor([0.2, 0.0, 0.0]))
    torch.testing.assert_close(to_images(rgba)[0, :, 0, 0], torch.tensor([0.2, 0.0, 0.0]))
    torch.testing.assert_close(to_images(rgba, 1)[0, :, 0, 0], torch.tensor([0.299 * 0.2]))
    grey = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1).expand(1, 2, 6, 6)
    torch.testing.assert_close(to_images(grey, 3)[0, :, 0, 0], torch.full((3,), 0.25))
    assert torch.equal(to_images(torch.ones(1, 4, 6, 6), 4), torch.ones(1, 4, 6, 6))


@pytest.mark.parametrize(
    ("side", "strides"),
    [(8, (1, 1, 1, 1)), (28, (2, 1, 1, 1)), (32, (2, 2, 1, 1)), (64, (2, 2, 2, 1)), (224, (2, 2, 2, 2))],
)
def test_the_last_map_keeps_four_pixels(side, strides):
    assert fitting_strides(side) == strides
    assert side // (2 * np.prod(strides)) >= 4


def pictures(n=24):
    labels = np.arange(n) % 3
    images = np.random.default_rng(0).integers(0, 40, (n, 12, 12, 3), dtype=np.uint8)
    for row, label in enumerate(labels):
        images[row, :, :, label] += 180
    return images, np.array(["red", "green", "blue"])[labels]


def classifier(**options):
    network = {"stem_dim": 8, "depths": (1, 1), "dims": (8, 16), "head_dim": 8, "strides": (1, 1)}
    return MOATClassifier(network=network, **({"epochs": 2, "batch_size": 8} | options))


def test_a_classifier_predicts_the_users_labels_and_repeats_itself():
    images, labels = pictures()
    before = torch.get_rng_state()
    first, second = (classifier().fit(images, labels) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first.classes_.tolist() == ["blue", "green", "red"]
    proba = first.predict_proba(images)
    assert proba.shape == (24, 3)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert np.array_equal(proba, second.predict_proba(images))
    assert set(first.predict(images)) <= set(labels)
    assert 0 <= first.score(images, labels) <= 1
    assert len(first.losses_) == 6


def test_a_fitted_classifier_takes_grey_images_of_sixteen_bits():
    images, labels = pictures()
    model = classifier(epochs=1).fit(images, labels)
    grey = np.full((2, 12, 12), 30_000, np.uint16)
    colour = np.full((2, 3, 12, 12), 30_000, np.uint16)
    assert np.array_equal(model.predict_proba(grey), model.predict_proba(colour))


def test_a_clone_has_the_settings_and_no_weights():
    images, _ = pictures()
    copy = clone(classifier(epochs=5, random_state=3))
    assert (copy.epochs, copy.random_state) == (5, 3)
    with pytest.raises(NotFittedError, match="MOATClassifier"):
        copy.predict_proba(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(5), r"y must have shape \(24,\), one label per image"),
        (np.zeros(24), r"at least two classes, got \[0.0\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(pictures()[0], labels)
