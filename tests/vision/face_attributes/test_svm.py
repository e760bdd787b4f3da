"""The classifiers of attributes and the tools that look into features."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.base import clone

from etude.vision.face_attributes import (
    AttributeSVM,
    attribute_count_study,
    balanced_accuracy_per_attribute,
    binarized_accuracy,
    binary_tags,
    neuron_activation,
    plot_attribute_counts,
    plot_localization,
    plot_sparse_combinations,
    rank_neurons,
    sparse_combinations,
    top_images,
)


def features(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=generator)
    return x, torch.stack([x[:, 0] > 0, x[:, 1] + x[:, 2] > 0.5], dim=1).long()


def test_tags_of_both_conventions_are_taken_and_others_refused():
    signed = np.array([[-1, 1], [1, -1]])
    assert torch.equal(binary_tags(signed), binary_tags(signed > 0))
    assert binary_tags([0, 1, 1]).shape == (3, 1)
    for wrong in ([[0, 2]], [[-1, 0]], [[0.5]], np.zeros((2, 0))):
        with pytest.raises(ValueError, match="tags must"):
            binary_tags(wrong)


def test_linear_attributes_are_learnt_on_either_convention():
    x, tags = features()
    z, truth = features(seed=1)
    svm = AttributeSVM(pca=None).fit(x, tags)
    assert svm.score(z, truth) > 0.9
    assert np.array_equal(AttributeSVM(pca=None).fit(x, 2 * tags - 1).predict(z), svm.predict(z))
    assert np.array_equal(svm.predict(z), (svm.decision_function(z) > 0).astype(int))


def test_features_that_do_not_vary_say_nothing():
    _, tags = features()
    svm = AttributeSVM(C=1e-2).fit(torch.ones(len(tags), 4), tags)
    assert np.abs(svm.decision_function(torch.rand(5, 4))).max() < 1
    assert svm.n_components_ == 4


def test_components_are_of_the_training_rows_alone():
    x, tags = features()
    svm = AttributeSVM(pca=0.95).fit(x, tags)
    before = svm.decision_function(x[:5])
    svm.predict(1000 * features(seed=2)[0])
    assert np.array_equal(svm.decision_function(x[:5]), before)
    scaled = (x.numpy() - x.numpy().mean(0)) / x.numpy().std(0)
    variances = np.linalg.svd(scaled - scaled.mean(0))[1] ** 2
    shares = np.cumsum(variances) / variances.sum()
    assert svm.n_components_ == int(np.searchsorted(shares, 0.95)) + 1


def test_an_attribute_that_all_or_none_have_is_skipped_with_a_warning():
    x, tags = features()
    tags = torch.cat([tags, torch.ones(120, 1).long(), torch.zeros(120, 1).long()], dim=1)
    with pytest.warns(UserWarning, match=r"attribute [23] is [01] in all 120 training rows"):
        svm = AttributeSVM(C=0.01).fit(x, tags)
    assert svm.predict(x)[:, 2:].tolist() == [[1, 0]] * 120
    assert np.isnan(svm.C_[2:]).all()


def test_a_constant_prediction_has_balanced_accuracy_of_a_half():
    true = np.array([[1, 0]] * 3 + [[0, 0]] * 7)
    found = balanced_accuracy_per_attribute(np.zeros_like(true), true)
    assert found[0] == 0.5
    assert np.isnan(found[1])
    found = balanced_accuracy_per_attribute([[1], [1], [0], [0]], [[1], [0], [0], [0]])
    assert found[0] == pytest.approx((1 + 2 / 3) / 2)


def test_it_is_an_estimator():
    svm = clone(AttributeSVM(C=0.5, class_weight=None))
    assert svm.get_params() == {"pca": 0.95, "C": 0.5, "class_weight": None}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: AttributeSVM(C="best").fit(x, y), "'cv' or a positive number, got 'best'"),
        (lambda x, y: AttributeSVM(C=0).fit(x, y), "'cv' or a positive number, got 0"),
        (lambda x, y: AttributeSVM().fit(x[:-1], y), "equally many rows"),
        (lambda x, y: AttributeSVM().fit(x * float("inf"), y), "NaN or infinite"),
        (lambda x, y: AttributeSVM(C=0.1).fit(x, y).predict(x[:, 1:]), "8 features, got 7"),
        (lambda x, y: balanced_accuracy_per_attribute(y, y[1:]), "one shape"),
        (lambda x, y: inspect.unwrap(neuron_activation)(x, y[1:]), "equally many rows"),
        (lambda x, y: top_images(x, 0), r"k must lie in 1..120, got 0"),
        (lambda x, y: sparse_combinations(x, y[:, 0] * 0, x, y[:, 0]), "0 in all 120 images"),
        (lambda x, y: sparse_combinations(x, y[:, 0], x, y[:, 0], (0.0,)), "strengths must be positive"),
        (lambda x, y: attribute_count_study(len, y, (3,), len), r"counts must lie in 1..2, got 3"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(*features())


def test_neurons_of_an_attribute_by_hand():
    x = torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 5.0], [0.0, 4.0, 5.0], [0.0, 2.0, 5.0]])
    tags = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])
    assert neuron_activation(x, tags, relative=False).tolist() == [[2, 0, 5], [0, 3, 5]]
    relative = neuron_activation(x, tags)
    expected = torch.tensor([2 / x[:, 0].std(correction=0), -3 / x[:, 1].std(correction=0), 0.0])
    torch.testing.assert_close(relative[0], expected)
    assert rank_neurons(x, tags).tolist() == [[0, 2, 1], [1, 2, 0]]
    assert top_images(x, 2)[:2].tolist() == [[1, 0], [2, 3]]


def test_a_sparse_attribute_takes_few_neurons_and_a_weak_penalty_more():
    x, tags = features(400)
    z, truth = features(400, seed=1)
    found = sparse_combinations(x, tags[:, 0], z, truth[:, 0], (0.01, 10.0))
    assert found[0].nonzeros == 1
    assert found[1].nonzeros > 4
    assert int(np.abs(found[0].weights).argmax()) == 0
    assert found[0].accuracy > 0.95


def test_signs_keep_what_only_depends_on_them():
    x, tags = features(400)
    found = binarized_accuracy(x, tags[:, :1], x, tags[:, :1], AttributeSVM(pca=None, C=0.1))
    assert found["binary"] == 1.0
    assert found["real"] < 1.0


def test_the_study_hands_out_the_first_attributes():
    tags = torch.tensor([[0, 1, 0], [1, 0, 1]])
    handed = []

    def train(given):
        handed.append(given)
        return given.shape[1]

    assert inspect.unwrap(attribute_count_study)(train, tags, (1, 3), lambda net: net / 4) == {1: 0.25, 3: 0.75}
    assert torch.equal(handed[0], tags[:, :1])


def test_figures_are_drawn():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, tags = features()
    figures = [
        plot_localization(
            torch.rand(2, 3, 20, 20), torch.rand(2, 20, 20), torch.tensor([[1.0, 2, 9, 9]] * 2), torch.rand(2, 4)
        ),
        plot_attribute_counts({5: 0.4, 40: 0.9}),
        plot_sparse_combinations({"a": sparse_combinations(x, tags[:, 0], x, tags[:, 0])}),
    ]
    assert [len(figure.axes) for figure in figures] == [4, 1, 1]
    plt.close("all")
    with pytest.raises(ValueError, match="equally many rows, got 1, 2 and 2"):
        inspect.unwrap(plot_localization)(torch.rand(1, 3, 20, 20), torch.rand(2, 20, 20), torch.rand(2, 4))
