"""Images as users have them, the classifiers, the network and the comparison."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone

from etude.data.kinds import Examples
from etude.vision.filters import (
    FixedBankClassifier,
    PCANetClassifier,
    SmallCNN,
    compare_filters,
    filter_bank,
)
from etude.vision.filters.estimator import make_bank, rectified_features


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def stripes():
    """Horizontal and vertical stripes of random phase with noise: (images, labels)."""
    axis, phase = torch.arange(14.0), torch.rand(80, 1, 1, generator=generator()) * 6
    labels = torch.arange(80) % 2
    wave = torch.sin(axis[None, :, None] * 1.5 + phase).expand(-1, 14, 14)
    images = torch.where(labels.view(-1, 1, 1) == 0, wave, wave.transpose(1, 2))
    noise = 0.1 * torch.randn(80, 14, 14, generator=generator(1))
    return (images / 2 + 0.5 + noise).clamp(0, 1)[:, None].contiguous(), labels


def test_features_are_split_rectified_averages(stripes):
    images = stripes[0][:3]
    bank = filter_bank("gabor", 5, 4)
    features = rectified_features(images, bank, threshold=0.2, grid=2)
    responses = F.conv2d(images, bank.weight)
    cell = responses[1, 2, :5, 5:]
    positive = features[1].reshape(2, 4, 2, 2)[0, 2, 0, 1]
    negative = features[1].reshape(2, 4, 2, 2)[1, 2, 0, 1]
    torch.testing.assert_close(positive, (cell - 0.2).clamp_min(0).mean())
    torch.testing.assert_close(negative, (-cell - 0.2).clamp_min(0).mean())


@pytest.mark.parametrize("readout", ["ridge", "logistic", "svm"])
def test_a_frozen_bank_tells_stripes_apart(stripes, readout):
    images, labels = stripes
    names = np.array(["across", "down"])[labels]
    model = FixedBankClassifier("gabor", size=5, num=8, threshold=0.1, readout=readout)
    model.fit(images[:60], names[:60])
    assert model.score(images[60:], names[60:]) > 0.9
    assert set(model.predict(images[60:])) == {"across", "down"}
    assert clone(model).get_params()["num"] == 8


def test_test_images_change_nothing_and_seeds_repeat(stripes):
    images, labels = stripes
    first, second = (
        FixedBankClassifier("kmeans", size=5, num=6, bank_arguments={"patches": 300}, random_state=3).fit(
            Examples(images[:60], labels[:60]), unlabelled=images[60:70]
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(first.transform(images), second.transform(images))
    np.testing.assert_array_equal(first.transform(images)[:2], first.transform(images[:2]))
    assert first.score(Examples(images[60:], labels[60:])) == first.score(images[60:], labels[60:])


def test_a_bank_by_name_or_by_hand():
    x = torch.rand(10, 3, 8, 8, generator=generator())
    assert make_bank("random", x, size=3, num=4).channels == 3
    assert make_bank("gabor", x, size=3, num=4).channels == 1
    assert not make_bank("kmeans_nowhite", x, size=3, num=4, patches=100).meta["whitened"]
    weight = torch.rand(2, 3, 3, 3)
    assert torch.equal(make_bank(weight, x, size=None, num=None).weight, weight)


def test_pcanet_histograms_equal_a_naive_loop(stripes):
    images, labels = stripes
    model = PCANetClassifier(size=3, num=(2, 3), block=4, overlap=0.5, patches=300).fit(images[:20], labels[:20])
    found = model.transform(images[:2]).toarray()
    first, second = model.banks_
    expected = []
    for image in images[:2]:
        row = []
        for kernel in first.weight:
            stage = F.conv2d(image[None], kernel[None], padding=1)
            bits = (F.conv2d(stage, second.weight, padding=1)[0] > 0).long()
            code = bits[0] + 2 * bits[1] + 4 * bits[2]
            for top in range(0, 11, 2):
                for left in range(0, 11, 2):
                    row.append(torch.bincount(code[top : top + 4, left : left + 4].flatten(), minlength=8))
        expected.append(torch.cat(row))
    np.testing.assert_array_equal(found, torch.stack(expected).numpy())
    assert model.score(images[:20], labels[:20]) > 0.9


def test_pcanets_first_filters_are_the_components_of_mean_free_patches(stripes):
    images, labels = stripes
    model = PCANetClassifier(size=3, num=(3, 2), patches=20_000).fit(images, labels)
    rows = F.unfold(images, 3).transpose(1, 2).reshape(-1, 9).double()
    rows = rows - rows.mean(dim=1, keepdim=True)
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :3]
    overlap = vectors.T @ model.banks_[0].weight.flatten(1).double().T
    assert torch.linalg.svdvals(overlap).min() > 0.99


def test_a_network_takes_a_bank_as_its_first_layer():
    bank = filter_bank("gabor", 5, 8)
    model = SmallCNN(3, 4, widths=[8, 6], kernel_sizes=[5, 3], strides=2, first_layer=bank, freeze_first=True)
    assert model(torch.rand(2, 3, 12, 12)).shape == (2, 4)
    cosine = F.cosine_similarity(model.first.weight[:, 1].flatten(1), bank.weight.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(8))
    assert not model.first.weight.requires_grad
    assert model.first.bias.requires_grad
    by_name = SmallCNN(1, 2, widths=[8], kernel_sizes=5, strides=1, first_layer="gabor")
    torch.testing.assert_close(by_name.first.weight[:, 0] / 2**0.5, bank.weight[:, 0])


@pytest.mark.parametrize("protocol", ["readout", "cnn"])
def test_options_are_compared_on_the_same_rows(stripes, protocol):
    arguments = {"threshold": 0.1} if protocol == "readout" else {"epochs": 1, "widths": (4,)}
    found = compare_filters(
        *stripes, {"one": {"bank": "gabor"}, "two": {"bank": "gabor"}, "noise": {"bank": "random"}}, protocol, 3,
        size=5, num=8, n_train=30, n_test=20, arguments=arguments,
    )  # fmt: skip
    assert len(found.table) == 9
    np.testing.assert_array_equal(found.scores("one"), found.scores("two"))
    summary = found.summary(against="one").set_index("option")
    lead = found.scores("noise") - found.scores("one")
    assert summary.loc["noise", "lead"] == pytest.approx(lead.mean())
    half = 4.302653 * lead.std(ddof=1) * (1 / 3 + 20 / 30) ** 0.5
    assert summary.loc["noise", "high"] - summary.loc["noise", "lead"] == pytest.approx(half, rel=1e-5)
    assert found.plot().axes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x, y: FixedBankClassifier("gabors").fit(x, y), "gabors"),
        (lambda x, y: FixedBankClassifier("gabor", size=14).fit(x, y), "fewer than the grid"),
        (lambda x, y: FixedBankClassifier("gabor", readout="tree").fit(x, y), "tree"),
        (lambda x, y: FixedBankClassifier("gabor", strengths=()).fit(x, y), "strengths"),
        (lambda x, y: FixedBankClassifier("gabor").fit(x, y[:-1]), r"\(80,\)"),
        (lambda x, y: FixedBankClassifier("gabor").fit(x), "labels"),
        (lambda x, y: FixedBankClassifier("gabor").fit(x, y * 0), "two classes"),
        (lambda x, y: FixedBankClassifier("gabor").fit(x, y).predict(x.expand(-1, 3, -1, -1)), "as in fit"),
        (lambda x, y: PCANetClassifier(size=4).fit(x, y), "odd"),
        (lambda x, y: PCANetClassifier(num=(4, 13)).fit(x, y), "12"),
        (lambda x, y: PCANetClassifier(overlap=1.0).fit(x, y), "overlap"),
        (lambda x, y: PCANetClassifier(block=15).fit(x, y), "smaller than a block"),
        (lambda x, y: SmallCNN(1, 2, widths=[4, 4], strides=[1]), "one length"),
        (lambda x, y: SmallCNN(1, 2, kernel_sizes=4), "odd"),
        (lambda x, y: SmallCNN(3, 2)(x), "3 channels"),
        (lambda x, y: compare_filters(x, y, protocol="vote"), "vote"),
        (lambda x, y: compare_filters(x, y, []), "at least one option"),
        (lambda x, y: compare_filters(x, y, n_train=70, n_test=20), "80 images"),
    ],
)
def test_bad_input_is_refused(stripes, make, words):
    with pytest.raises(ValueError, match=words):
        make(*stripes)
