"""On one's own images: the classifier, the search, the pictures."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from etude.data.kinds import Examples, ImageData
from etude.nas.nasnet import CellSearch, Genotype, NASNetClassifier, SearchSpace, plot_search, train_network
from etude.nas.nasnet.network import NASNet

SPACE = SearchSpace(blocks=1, ops=("sep_3x3", "max_3x3"))


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)

    def split(n):
        targets = torch.arange(n) % 2
        x = torch.rand(n, 1, 8, 8, generator=generator)
        x[targets == 1, :, :4] += 1
        return Examples(x, targets)

    return ImageData(split(40), split(20), split(20), classes=("dark", "bright"), name="halves")


def test_the_classifier_trains_predicts_and_scores(data):
    classifier = NASNetClassifier(Genotype.random(0, blocks=1), filters=4, epochs=6, batch_size=20, drop_path_keep=0.9)
    with pytest.raises(NotFittedError):
        classifier.score(data.test)
    before = torch.get_rng_state()
    classifier.fit(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(classifier.losses_) == 12
    assert classifier.model_.progress == 1
    probabilities = classifier.predict_proba(data.test.inputs)
    assert probabilities.shape == (20, 2)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(20), abs=1e-5)
    predicted = classifier.predict(data.test.inputs)
    truth = np.array(data.classes)[data.test.targets.numpy()]
    assert classifier.score(data.test) == pytest.approx(np.mean(predicted == truth))
    assert clone(classifier).get_params()["genotype"] == classifier.genotype
    with pytest.raises(TypeError, match="ImageData"):
        classifier.fit(data.train)


def test_a_search_ends_in_a_trained_network_of_its_best_cells(data):
    small = NASNetClassifier(filters=2, epochs=1, batch_size=20)
    found = CellSearch(6, space=SPACE, batch=3, finalists=2, classifier=small).fit(data)
    assert len(found.result_.history) == 6
    assert found.genotype_ == found.finalists_[0][0]
    assert found.finalists_[0][1] == max(value for _, value in found.finalists_)
    assert found.genotype_ in [genotype for genotype, _ in found.result_.top(2)]
    assert found.classifier_.genotype == found.genotype_
    assert found.predict(data.test.inputs).shape == (20,)
    assert found.score(data.test) == found.classifier_.score(data.test)
    with pytest.raises(ValueError, match="'evolution'"):
        CellSearch(6, "evolution").fit(data)
    failing = CellSearch(2, space=SPACE, evaluator=lambda genotype, seed: None)
    with pytest.raises(RuntimeError, match="none of 2"):
        failing.fit(data)


def test_training_refuses_what_it_does_not_know(data):
    model = NASNet(num_classes=2, in_chans=1, cells_per_stage=1, filters=2)
    with pytest.raises(ValueError, match="'lion'"):
        train_network(model, data.train, epochs=1, optimizer="lion")
    with pytest.raises(ValueError, match="got 0"):
        train_network(model, data.train, epochs=0)


def test_cells_and_searches_can_be_drawn(data):
    pytest.importorskip("matplotlib")
    from etude.nas.nasnet import NASNET_A, RandomSearch, plot_cell, plot_genotype, search

    texts = [text.get_text() for text in plot_cell(NASNET_A, reduction=True).texts]
    assert texts.count("sep 7x7") == 2
    assert texts.count("add") == 5
    assert {"h", "h_prev", "output"} <= set(texts)
    assert len(plot_genotype(Genotype.random(0)).axes) == 2
    result = search(RandomSearch(SPACE), lambda genotype, seed: 0.5, 4)
    ax = plot_search({"random": result}, k=2)
    assert ax.lines[0].get_ydata().tolist() == [0.5] * 4
    with pytest.raises(ValueError, match="no results"):
        plot_search({})
