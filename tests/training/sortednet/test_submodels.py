"""SubModel and SubModelSpace: nesting, order, sampling, and what they refuse."""

import math

import pytest
import torch

from etude.training.sortednet import SubModel, SubModelSpace


def test_a_submodel_is_nested_in_another_where_every_dimension_is():
    assert SubModel(width=8, depth=2) <= SubModel(width=16, depth=2)
    assert SubModel(width=8, depth=2) < SubModel(width=16, depth=2)
    assert not SubModel(width=8, depth=3) <= SubModel(width=16, depth=2)
    assert not SubModel(width=16, depth=2) <= SubModel(width=8, depth=3)
    assert not SubModel(width=8) < SubModel(width=8)
    assert {SubModel(width=8), SubModel(width=8)} == {SubModel(width=8)}


def test_submodels_that_cut_different_dimensions_are_not_compared():
    with pytest.raises(ValueError, match="cut different dimensions"):
        assert SubModel(width=8) <= SubModel(depth=2)


def test_a_space_is_every_combination_in_order():
    space = SubModelSpace(heads=[2, 4], width=[0.5, 1.0], depth=[1, 2, 3])
    assert len(space) == 12 == len(set(space))
    assert space.smallest == SubModel(0.5, 1, 2)
    assert space.full == SubModel(1.0, 3, 4)
    assert list(space)[:3] == [SubModel(0.5, 1, 2), SubModel(0.5, 1, 4), SubModel(0.5, 2, 2)]
    assert all(space.smallest <= b <= space.full for b in space)
    assert SubModel(0.5, 3, 2) in space
    assert SubModel(0.25, 3, 2) not in space


def test_a_space_lies_within_another_if_its_submodels_do():
    wide = SubModelSpace(width=[8, 16, 32], depth=[1, 2])
    assert SubModelSpace(width=[8, 32], depth=[2]) <= wide
    assert not SubModelSpace(width=[8, 24], depth=[2]) <= wide
    assert SubModelSpace(width=[8, 16]) == SubModelSpace(width=(8, 16)) != wide


def test_sampling_is_uniform():
    space = SubModelSpace(width=[1, 2, 3, 4], depth=[1, 2, 3])
    draw = torch.Generator().manual_seed(0)
    counts = torch.tensor([0] * 12)
    for _ in range(10_000):
        counts[space.submodels.index(space.sample(draw))] += 1
    chi2 = float(((counts - 10_000 / 12) ** 2 / (10_000 / 12)).sum())
    # 99.9 % quantile of chi-squared with 11 degrees of freedom.
    assert chi2 < 31.26


def test_sampling_follows_given_probabilities():
    space = SubModelSpace(depth=[1, 2, 3])
    draw = torch.Generator().manual_seed(0)
    drawn = [space.sample(draw, [0, 3, 1]).depth for _ in range(4000)]
    assert 1 not in drawn
    # Five standard deviations of a share of 1/4.
    assert drawn.count(3) / 4000 == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 4000))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({}, "at least one of width, depth and heads"),
        ({"depth": []}, "depth needs at least one truncation point"),
        ({"width": [16, 8, 32]}, r"width must increase from point to point, got \[16, 8, 32\]"),
        ({"depth": [1, 2, 2]}, r"depth must increase from point to point, got \[1, 2, 2\]"),
        ({"heads": [0, 2]}, r"heads must be positive, got \[0, 2\]"),
        ({"width": [0.25, 0.5]}, r"must end at 1.0, the whole width, got \[0.25, 0.5\]"),
        ({"width": [0.5, 1.0, 2]}, r"must end at 1.0"),
    ],
)
def test_bad_truncation_points_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        SubModelSpace(**points)


@pytest.mark.parametrize("p", [[1, 1], [1, -1, 1], [0, 0, 0], [1, 1, math.inf]])
def test_bad_probabilities_are_refused(p):
    with pytest.raises(ValueError, match="p must"):
        SubModelSpace(depth=[1, 2, 3]).sample(torch.Generator(), p)
