import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from etude.vision.classifier import ImageClassifier


class Linear(ImageClassifier):
    def __init__(self, epochs=30, batch_size=8, lr=0.05, channels=None, random_state=0, device="cpu"):
        self.epochs, self.batch_size, self.lr, self.channels = epochs, batch_size, lr, channels
        self.random_state, self.device = random_state, device

    def _network(self, in_chans, num_classes, size):
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * size[0] * size[1], num_classes))


class Padded(Linear):
    def _arranged(self, x):
        return nn.functional.pad(x, (0, 1, 0, 0))


def bright_or_dark():
    rng = np.random.default_rng(0)
    labels = np.array(["dark", "bright"] * 10)
    images = rng.integers(0, 60, (20, 3, 6, 6)) + 180 * (labels == "bright")[:, None, None, None]
    return images.astype(np.uint8), labels


def test_it_learns_repeats_and_leaves_the_global_state_alone():
    images, labels = bright_or_dark()
    before = torch.get_rng_state()
    first, second = Linear().fit(images, labels), clone(Linear()).fit(images, labels)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.losses_ == second.losses_
    assert first.classes_.tolist() == ["bright", "dark"]
    assert first.score(images, labels) == 1
    assert first.losses_[-1] < first.losses_[0]
    probabilities = first.predict_proba(images)
    assert probabilities.shape == (20, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)


def test_channels_are_standardised_over_the_training_images():
    images, labels = bright_or_dark()
    model = Linear(epochs=1).fit(images, labels)
    x = model._prepared(torch.from_numpy(images).float() / 255)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))
    flat = Linear(epochs=1).fit(np.zeros((4, 3, 3), dtype=np.uint8), [0, 1, 0, 1])
    assert flat.std_.item() == 1


def test_a_subclass_may_arrange_the_images():
    images, labels = bright_or_dark()
    assert Padded(epochs=1).fit(images, labels).model_[1].in_features == 3 * 6 * 7


def test_other_forms_are_converted_and_other_sizes_refused():
    images, labels = bright_or_dark()
    model = Linear(epochs=2, channels=1).fit(images, labels)
    assert model.image_shape_ == (1, 6, 6)
    assert len(model.predict(images[:2].transpose(0, 2, 3, 1))) == 2
    with pytest.raises(ValueError, match=r"\(1, 6, 6\), as in fit, got \(1, 5, 6\)"):
        model.predict(np.zeros((1, 5, 6), dtype=np.uint8))
    with pytest.raises(ValueError, match="one label per image"):
        Linear().fit(images, labels[:-1])
    with pytest.raises(ValueError, match="two classes"):
        Linear().fit(images, ["dark"] * 20)


def test_predicting_before_fitting_is_refused():
    with pytest.raises(NotFittedError):
        Linear().predict(np.zeros((1, 6, 6), dtype=np.uint8))


def test_a_network_must_be_given():
    with pytest.raises(TypeError, match="abstract"):
        ImageClassifier()
