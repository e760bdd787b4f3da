"""The classifier of a user's images: layouts, pixels, refusals."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from etude.vision.convit import ConViTClassifier

SMALL = {"dim": 8, "depth": 2, "num_heads": 4, "local_up_to_layer": 1, "epochs": 1, "batch_size": 8, "random_state": 0}


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


LABELS = np.array(["cat", "dog"] * 6)


def test_it_follows_the_contract_and_repeats():
    classifier = ConViTClassifier(**SMALL)
    assert clone(classifier).get_params() == classifier.get_params()
    x = images(12, 1, 9, 7)
    before = torch.get_rng_state()
    first, second = (clone(classifier).fit(x, LABELS).predict_proba(x) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.sum(1), 1, atol=1e-6)
    fitted = classifier.fit(x, LABELS)
    assert set(fitted.predict(x)) <= {"cat", "dog"}
    assert 0 <= fitted.score(x, LABELS) <= 1
    assert fitted.model_.img_size == (10, 8)  # padded to whole patches of 2
    assert len(fitted.losses_) == 1


@pytest.mark.parametrize("shape", [(12, 8, 8), (12, 1, 8, 8), (12, 8, 8, 1)])
def test_grey_images_come_in_every_layout(shape):
    x = images(12, 8, 8)
    wanted = ConViTClassifier(**SMALL).fit(x, LABELS).predict_proba(x)
    found = ConViTClassifier(**SMALL).fit(x.reshape(shape), LABELS).predict_proba(x.reshape(shape))
    np.testing.assert_array_equal(found, wanted)


def test_bytes_sixteen_bits_and_floats_mean_the_same():
    x = images(12, 3, 8, 8)
    wanted = ConViTClassifier(**SMALL).fit(x, LABELS).predict_proba(x)
    for same in (x.astype(np.uint16) * 257, (x / 255).astype(np.float32), torch.from_numpy(x), x.transpose(0, 2, 3, 1)):
        found = ConViTClassifier(**SMALL).fit(same, LABELS).predict_proba(same)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_transparency_is_laid_over_black():
    x = images(12, 8, 8, 4)
    x[..., 3] = np.where(x[..., 3] > 127, 255, 0)
    black = x[..., :3] * (x[..., 3:] > 0)
    wanted = ConViTClassifier(**SMALL).fit(black, LABELS).predict_proba(black)
    np.testing.assert_allclose(ConViTClassifier(**SMALL).fit(x, LABELS).predict_proba(x), wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (images(12, 8), LABELS, ValueError, r"pixels must have shape .*, got \(12, 8\)"),
        (images(12, 8, 8).astype(np.int32), LABELS, TypeError, "uint16 or floating point, got torch.int32"),
        (np.full((12, 8, 8), np.nan, np.float32), LABELS, ValueError, "NaN or infinite values, 768 of them"),
        (images(12, 8, 8), LABELS[:5], ValueError, r"y must have shape \(12,\), one label per image, got \(5,\)"),
        (images(12, 8, 8), ["cat"] * 12, ValueError, r"at least two classes, got \['cat'\]"),
    ],
)
def test_data_that_do_not_fit_are_refused(x, y, error, message):
    with pytest.raises(error, match=message):
        ConViTClassifier(**SMALL).fit(x, y)


def test_images_of_another_size_are_refused_in_prediction():
    classifier = ConViTClassifier(**SMALL).fit(images(12, 3, 8, 8), LABELS)
    with pytest.raises(ValueError, match=r"images must have shape \(3, 8, 8\), as in fit, got \(3, 8, 9\)"):
        classifier.predict(images(2, 3, 8, 9))
