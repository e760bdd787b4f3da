"""Scales of labels."""

import numpy as np
import pytest

from etude.nas.aiop import TargetScaler, rank_correlation

Y, FLOPS = np.array([3.0, 8.0, 1.0, 4.0]), np.array([9.0, 99.0, 9_999.0, 0.0])


@pytest.mark.parametrize("kind", ["none", "standard", "standard_flops"])
def test_the_inverse_gives_the_labels_back(kind):
    scaler = TargetScaler(kind).fit(Y, FLOPS)
    assert scaler.inverse_transform(scaler.transform(Y, FLOPS), FLOPS) == pytest.approx(Y, rel=1e-12)


def test_flops_divide_as_the_formula_says():
    scaler = TargetScaler("standard_flops").fit(Y, FLOPS)
    divided = np.array([3 / 2, 8 / 3, 1 / 5, 4 / 1])
    assert scaler.mean == pytest.approx(divided.mean())
    assert scaler.std == pytest.approx(divided.std())
    assert scaler.transform(Y, FLOPS) == pytest.approx((divided - divided.mean()) / divided.std())
    assert scaler.scale(4, FLOPS) == pytest.approx(scaler.std * np.array([2.0, 3, 5, 1]))


def test_standardised_labels_have_mean_zero_and_deviation_one():
    z = TargetScaler().fit(Y).transform(Y)
    assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: TargetScaler("log"), "scaling must be one of none, standard, standard_flops, got 'log'"),
        (lambda: TargetScaler().fit([1.0]), "at least 2 labels are needed, got 1"),
        (lambda: TargetScaler().fit([2.0, 2.0, 2.0]), "the 3 labels are all 2"),
        (lambda: TargetScaler().fit([1.0, float("nan")]), "label 1 is nan"),
        (lambda: TargetScaler("standard_flops").fit(Y), "give flops="),
        (lambda: TargetScaler("standard_flops").fit(Y, [1.0, 2.0, -1.0, 3.0]), "flops must be 4 finite numbers"),
        (lambda: TargetScaler("standard_flops").fit(Y, [1.0]), "flops must be 4 finite numbers"),
        (lambda: rank_correlation([1.0, 2.0], [1.0]), "2 labels and 1 predictions"),
    ],
)
def test_bad_labels_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_rank_correlation_is_spearmans_and_zero_for_constants():
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 10.0, 100.0]) == pytest.approx(1.0)
    assert rank_correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]) == 0.0
