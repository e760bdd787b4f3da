"""The estimator's contract."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from etude.training.noprop import NoPropClassifier

SMALL = {"epochs": 1, "num_blocks": 2, "hidden": 8, "channels": (2, 4), "batch_size": 8, "num_steps": 3}


def images(n=24):
    draw = np.random.default_rng(0)
    return draw.random((n, 8, 8)), np.array(["cat", "dog", "emu"])[np.arange(n) % 3]


@pytest.mark.parametrize("variant", ["dt", "ct", "fm"])
@pytest.mark.parametrize("embedding", ["one_hot", "learned", "prototype"])
def test_every_variant_and_embedding_fits_and_predicts_labels(variant, embedding):
    x, y = images()
    classifier = NoPropClassifier(variant, embedding=embedding, random_state=0, **SMALL).fit(x, y)
    assert classifier.classes_.tolist() == ["cat", "dog", "emu"]
    probabilities = classifier.predict_proba(x)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (classifier.predict(x) == classifier.classes_[probabilities.argmax(1)]).all()
    assert 0 <= classifier.score(x, y) <= 1
    assert len(classifier.history_) == 1


def test_a_seed_repeats_everything_and_leaves_the_global_generator_alone():
    x, y = images()
    state = torch.get_rng_state()
    first, second, other = (
        NoPropClassifier(random_state=seed, **SMALL).fit(x, y).predict_proba(x) for seed in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert (first == second).all()
    assert (first != other).any()


def test_the_estimator_clones_and_takes_tensors_with_channels():
    x, y = images()
    classifier = clone(NoPropClassifier("ct", random_state=0, **SMALL))
    grey = classifier.fit(x, y).predict_proba(x)
    tensors = clone(classifier).fit(torch.from_numpy(x)[:, None], y).predict_proba(torch.from_numpy(x)[:, None])
    assert (grey == tensors).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: NoPropClassifier("sde").fit(x, y), "variant must be one of dt, ct, fm, got 'sde'"),
        (lambda x, y: NoPropClassifier().fit(x[:, 0], y), r"X must have shape .* got \(24, 8\)"),
        (lambda x, y: NoPropClassifier().fit(x, y[:5]), r"y must have shape \(24,\), one label per image, got \(5,\)"),
        (lambda x, y: NoPropClassifier().fit(x, y[:1].repeat(24)), r"at least two classes, got \['cat'\]"),
        (lambda x, y: NoPropClassifier().fit(np.full_like(x, np.nan), y), "X holds NaN or infinite values"),
        (lambda x, y: NoPropClassifier().fit(x[:, :3], y), "image_size must be at least 4 x 4"),
        (
            lambda x, y: NoPropClassifier(**SMALL).fit(x, y).predict(x[:, :4]),
            r"images must have shape \(1, 8, 8\), as in fit, got \(1, 4, 8\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*images())
