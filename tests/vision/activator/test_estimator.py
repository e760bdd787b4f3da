"""The estimator's contract."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from etude.vision.activator import ActivatorClassifier

SMALL = {"epochs": 1, "dim": 8, "hidden_dim": 8, "depth": 1, "batch_size": 8}


def pictures(n=24):
    draw = np.random.default_rng(0)
    return draw.random((n, 8, 8)), np.array(["cat", "dog", "emu"])[np.arange(n) % 3]


@pytest.mark.parametrize("use_mlp", [True, False])
@pytest.mark.parametrize("mixing", ["channel", "token"])
def test_every_variant_fits_and_predicts_labels(use_mlp, mixing):
    x, y = pictures()
    state = torch.get_rng_state()
    classifier = ActivatorClassifier(use_mlp, mixing=mixing, random_state=0, **SMALL).fit(x, y)
    assert torch.equal(state, torch.get_rng_state())
    assert classifier.classes_.tolist() == ["cat", "dog", "emu"]
    probabilities = classifier.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (classifier.predict(x) == classifier.classes_[probabilities.argmax(1)]).all()
    assert 0 <= classifier.score(x, y) <= 1
    assert len(classifier.losses_) == 3
    again = clone(classifier).fit(torch.from_numpy(x)[:, None], y)
    assert (again.predict_proba(x) == probabilities).all()


def test_bytes_and_sixteen_bits_are_scaled():
    x, y = pictures()
    bytes_, words = (x * 255).astype(np.uint8), (x * 255).astype(np.uint16) * 257
    first, second = (ActivatorClassifier(random_state=0, **SMALL).fit(a, y).predict_proba(a) for a in (bytes_, words))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_colour_is_converted():
    x, y = pictures()
    classifier = ActivatorClassifier(channels=1, random_state=0, **SMALL).fit(np.stack([x, x, x], -1), y)
    assert classifier.model_.patches.proj.in_channels == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ActivatorClassifier(patch_size=3).fit(x, y), "multiples of the patch, 3, got 8 x 8"),
        (lambda x, y: ActivatorClassifier().fit(x[:, 0], y), r"pixels must have shape .* got \(24, 8\)"),
        (
            lambda x, y: ActivatorClassifier().fit(x, y[:5]),
            r"y must have shape \(24,\), one label per image, got \(5,\)",
        ),
        (lambda x, y: ActivatorClassifier().fit(x, y[:1].repeat(24)), r"at least two classes, got \['cat'\]"),
        (lambda x, y: ActivatorClassifier().fit(np.full_like(x, np.nan), y), "NaN or infinite values"),
        (
            lambda x, y: ActivatorClassifier(**SMALL).fit(x, y).predict(x[:, :4]),
            r"images must have shape \(1, 8, 8\), as in fit, got \(1, 4, 8\)",
        ),
    ],
)
def test_the_estimator_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pictures())
