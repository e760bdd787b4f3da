"""Cosine series as ridge functions, and the splines that draw them."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from etude.theory.uat_transformer import (
    cummax_target,
    max_directions,
    prod_sin_target,
    relu_spline,
    ridge_expansion,
    ridge_network,
    sort_target,
    spline_pieces,
)
from etude.theory.uat_transformer.planning import grid_error
from etude.theory.uat_transformer.ridge import grid_size


def flat(target):
    return lambda u: target(u.unflatten(1, (target.seq_len, 1))).flatten(1)


def points(n, D, seed=0):
    return np.random.default_rng(seed).random((n, D))


def product_of_cosines(k):
    return lambda u: torch.cos(math.pi * u * torch.tensor(k)).prod(dim=1, keepdim=True)


@pytest.mark.parametrize("k", [(3,), (0, 5), (2, 3), (4, 6), (1, 2, 2), (3, 0, 3), (1, 1, 2, 1), (2, 0, 0, 3)])
def test_a_product_of_cosines_is_a_sum_of_ridges_with_one_set_of_directions(k):
    D = len(k)
    expansion = ridge_expansion(product_of_cosines(k), D, K=6, n=14)
    nonzero = sum(entry > 0 for entry in k)
    assert len(expansion.vectors) == 2 ** (nonzero - 1)
    assert (np.abs(expansion.vectors) == np.array(k)).all()
    first = [next(entry for entry in v if entry) for v in expansion.vectors]
    assert min(first) > 0
    assert expansion.coefficients == pytest.approx(2.0 ** (1 - nonzero), abs=1e-12)
    assert (expansion.multiples == math.gcd(*k)).all()
    u = points(50, D)
    naive = np.prod([np.cos(math.pi * k[i] * u[:, i]) for i in range(D)], axis=0)
    assert expansion(u)[:, 0] == pytest.approx(naive, abs=1e-12)


@pytest.mark.parametrize(("D", "K"), [(1, 5), (2, 4), (3, 3), (4, 2)])
def test_ridges_directions_and_modes_are_three_forms_of_one_series(D, K):
    weights = torch.linspace(-1, 1, D, dtype=torch.float64)

    def f(u):
        return torch.stack([torch.exp(u @ weights), (u - 0.3).abs().sum(1)], dim=1)

    expansion = ridge_expansion(f, D, K, n=12)
    u = points(40, D)
    by_modes = np.zeros((40, 2))
    for k in product(range(K + 1), repeat=D):
        by_modes += np.prod(np.cos(math.pi * np.array(k) * u), axis=1)[:, None] * expansion.modes[k]
    assert expansion(u) == pytest.approx(by_modes, abs=1e-12)
    by_direction = np.tile(expansion.bias, (40, 1))
    for group, p in enumerate(expansion.directions):
        assert math.gcd(*p.tolist()) == 1
        by_direction += expansion.profile(np.full(40, group), u @ p)
    assert expansion(u) == pytest.approx(by_direction, abs=1e-12)
    axis = np.linspace(0, 1, 7)
    for grid, values in expansion.slabs(axis):
        assert values == pytest.approx(expansion(grid), abs=1e-12)


@pytest.mark.parametrize(("D", "K"), [(1, 9), (2, 6), (3, 3)])
def test_coefficients_are_weighted_means_over_midpoints(D, K):
    n = grid_size(D, K) // 4

    def f(u):
        return u.square().sum(dim=1, keepdim=True) * u[:, :1]

    expansion = ridge_expansion(f, D, K, n=n)
    axis = (np.arange(n) + 0.5) / n
    grid = np.array(list(product(axis, repeat=D)))
    values = f(torch.from_numpy(grid)).numpy()[:, 0]
    for k in list(product(range(K + 1), repeat=D))[:: max(1, K // 2)]:
        weight = math.prod(1 if entry == 0 else 2 for entry in k)
        mean = weight * np.mean(values * np.prod(np.cos(math.pi * np.array(k) * grid), axis=1))
        assert float(expansion.modes[k][0]) == pytest.approx(mean if abs(mean) >= 1e-5 else 0, abs=1e-12)


def test_grids_are_those_of_the_construction():
    assert [grid_size(D, 8) for D in (1, 2, 3, 4)] == [96, 96, 40, 24]
    assert [grid_size(D, 40) for D in (1, 2, 3, 4)] == [120, 120, 124, 120]
    assert max_directions(2, 4) == 40
    assert max_directions(4, 8) == (17**4 - 1) // 2


def test_constants_and_negligible_modes_leave_no_direction():
    expansion = ridge_expansion(lambda u: torch.full((len(u), 2), 0.7, dtype=u.dtype), 3, 2)
    assert len(expansion.vectors) == len(expansion.directions) == 0
    assert expansion.bias == pytest.approx([0.7, 0.7], abs=1e-12)
    assert expansion(points(3, 3)) == pytest.approx(np.full((3, 2), 0.7), abs=1e-12)
    # 0.9e-5 is below what counts, 1.1e-5 is not
    for size, terms in ((0.9e-5, 0), (1.1e-5, 1)):
        assert len(ridge_expansion(lambda u, s=size: s * torch.cos(math.pi * u), 1, 2).vectors) == terms


def test_a_damped_series_never_leaves_the_range_of_the_function():
    def step(u):
        return (u[:, :1] + u[:, 1:] > 0.9).double()

    axis = points(3_000, 2)
    damped = ridge_expansion(step, 2, 10, damping="jackson")(axis)
    # Dropped modes cost a little.
    assert damped.min() > -2e-3
    assert damped.max() < 1 + 2e-3
    plain = ridge_expansion(step, 2, 10)(axis)
    assert plain.max() > 1.05


@pytest.mark.parametrize("bound", ["lipschitz", "curvatures"])
def test_bounds_on_slopes_and_curvatures_hold(bound):
    expansion = ridge_expansion(flat(prod_sin_target(2)), 2, 6)
    if bound == "lipschitz":
        a, b = points(2_000, 2), points(2_000, 2, seed=1)
        ratios = np.abs(expansion(a) - expansion(b)).max(1) / np.linalg.norm(a - b, axis=1)
        assert 0.1 * expansion.lipschitz < ratios.max() <= expansion.lipschitz
        return
    left, right = expansion.ranges()
    for group, curvature in enumerate(expansion.curvatures()):
        t = np.linspace(left[group], right[group], 4_001)
        second = np.diff(expansion.profile(np.full(4_001, group), t), n=2, axis=0) / (t[1] - t[0]) ** 2
        assert np.abs(second).max() <= curvature * (1 + 1e-6) + 1e-4


def test_the_grid_of_the_error_has_corners_and_diagonals():
    expansion = ridge_expansion(flat(sort_target(2)), 2, 4)
    axis = np.linspace(0, 1, 4 * expansion.n + 1)
    naive = 0.0
    for first in axis:
        u = np.stack([np.full(len(axis), first), axis], axis=1)
        naive = max(naive, float(np.abs(np.sort(u, axis=1) - expansion(u)).max()))
    error, spacing = grid_error(expansion, flat(sort_target(2)))
    assert error == pytest.approx(naive, abs=1e-12)
    assert spacing == 1 / 384
    diagonal = np.stack([axis, axis], axis=1)
    assert float(np.abs(diagonal - expansion(diagonal)).max()) == pytest.approx(error, abs=1e-12)


# Splines


def test_a_spline_of_a_piecewise_linear_function_with_knots_on_the_grid_is_exact():
    knots = np.array([-1.0, -0.25, 0.5, 0.75, 2.0])
    values = np.array([[0.3, 1.0], [1.0, -2.0], [-0.5, 0.0], [0.2, 0.1], [0.0, 5.0]])
    spline = relu_spline(knots, values)
    t = np.linspace(-1, 2, 301)
    for column in range(2):
        assert spline(t)[:, column] == pytest.approx(np.interp(t, knots, values[:, column]), abs=1e-13)
    assert spline(np.array([-5.0])) == pytest.approx(values[:1])
    assert len(spline.knots) == 4


@pytest.mark.parametrize("allocation", ["uniform", "balanced"])
@pytest.mark.parametrize("eps", [0.3, 0.02, 0.001])
def test_the_spline_error_is_certified(allocation, eps):
    expansion = ridge_expansion(flat(prod_sin_target(2)), 2, 6)
    network = ridge_network(expansion, spline_pieces(expansion, eps, allocation=allocation))
    u = points(4_000, 2)
    gap = np.abs(network(u) - expansion(u)).max()
    assert gap <= network.error <= eps
    assert gap > 0.01 * eps


def test_pieces_follow_the_formula_and_balance_saves_knots():
    expansion = ridge_expansion(flat(prod_sin_target(2)), 2, 8)
    left, right = expansion.ranges()
    share = 0.02 / len(expansion.directions)
    expected = [
        math.ceil((r - l) * math.sqrt(c / (8 * share)))
        for l, r, c in zip(left, right, expansion.curvatures())  # noqa: E741
    ]
    assert spline_pieces(expansion, 0.02).tolist() == expected
    assert spline_pieces(expansion, 0.02, allocation="balanced").sum() < 0.9 * sum(expected)


def test_the_network_is_the_sum_of_interpolated_profiles():
    expansion = ridge_expansion(flat(prod_sin_target(3)), 3, 4)
    pieces = spline_pieces(expansion, 0.05)
    network = ridge_network(expansion, pieces)
    u, (left, right) = points(60, 3), expansion.ranges()
    naive = np.tile(expansion.bias, (60, 1))
    for group, p in enumerate(expansion.directions):
        knots = np.linspace(left[group], right[group], pieces[group] + 1)
        values = expansion.profile(np.full(len(knots), group), knots)
        naive += np.stack([np.interp(u @ p, knots, values[:, k]) for k in range(3)], axis=1)
    assert network(u) == pytest.approx(naive, abs=1e-12)
    assert len(network.knots) == pieces.sum()
    a, b = points(3_000, 3), points(3_000, 3, seed=1)
    ratios = np.abs(network(a) - network(b)).max(1) / np.abs(a - b).max(1)
    assert ratios.max() <= network.lipschitz


WIDTHS = [
    (sort_target(2), 8, 98), (sort_target(2), 16, 140), (sort_target(2), 32, 196),
    (cummax_target(2), 8, 103), (cummax_target(2), 16, 146), (cummax_target(2), 32, 205),
    (prod_sin_target(2), 8, 519), (prod_sin_target(2), 16, 1_725), (prod_sin_target(2), 32, 4_023),
    (sort_target(3), 6, 27_579), (sort_target(3), 10, 162_561),
    (prod_sin_target(3), 6, 332), (prod_sin_target(3), 10, 807),
]  # fmt: skip


@pytest.mark.parametrize(("target", "K", "knots"), WIDTHS)
def test_hidden_units_of_a_bank(target, K, knots):
    expansion = ridge_expansion(flat(target), target.seq_len, K)
    assert spline_pieces(expansion, 0.02).sum() == knots


ERRORS = [
    (sort_target(2), 8, 0.0056, 0.029), (sort_target(2), 16, 0.0023, 0.016), (sort_target(2), 32, 0.0009, 0.0076),
    (cummax_target(2), 8, 0.0052, 0.028), (cummax_target(2), 16, 0.0021, 0.013),
    (cummax_target(2), 32, 0.0008, 0.0069),
    (prod_sin_target(2), 8, 0.025, 0.164), (prod_sin_target(2), 16, 0.0085, 0.082),
    (prod_sin_target(2), 32, 0.003, 0.042), (prod_sin_target(3), 6, 0.030, 0.265),
    (prod_sin_target(3), 10, 0.014, 0.134),
]  # fmt: skip


@pytest.mark.parametrize(("target", "K", "rmse", "sup"), ERRORS)
def test_errors_at_random_points_are_those_on_record(target, K, rmse, sup):
    expansion = ridge_expansion(flat(target), target.seq_len, K)
    network = ridge_network(expansion, spline_pieces(expansion, 0.02))
    u = points(4_000, target.seq_len)
    gap = network(u) - flat(target)(torch.from_numpy(u)).numpy()
    # They were taken at 4,000 other points: the largest of so many scatters.
    assert float(np.sqrt((gap**2).mean())) == pytest.approx(rmse, rel=0.1)
    assert float(np.abs(gap).max()) == pytest.approx(sup, rel=0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: ridge_expansion(f, 5, 4), r"D must lie in 1..4, got 5: a series has up to 29,524 directions"),
        (lambda f: ridge_expansion(f, 2, 0), "K must be at least 1"),
        (lambda f: ridge_expansion(f, 2, 8, n=8), "n must exceed K"),
        (lambda f: ridge_expansion(f, 2, 8, damping="fejer"), "'none' or 'jackson', got 'fejer'"),
        (lambda f: ridge_expansion(lambda u: u[:, 0], 2, 8), r"f must map \(9216, 2\) to \(9216, outputs\), got"),
        (lambda f: ridge_expansion(lambda u: 0.3 / (u - u[:1]), 1, 8), "f must be finite on the whole box"),
        (lambda f: spline_pieces(ridge_expansion(f, 2, 8), 0), "eps must be positive, got 0"),
        (lambda f: spline_pieces(ridge_expansion(f, 2, 8), 0.1, allocation="greedy"), "'uniform' or 'balanced'"),
        (lambda f: ridge_network(ridge_expansion(f, 2, 8), np.zeros(3, dtype=int)), "directions needs at least one"),
        (lambda f: relu_spline(np.zeros(1), np.zeros((1, 1))), "at least 2 knots"),
        (lambda f: relu_spline(np.zeros(2), np.zeros((2, 1))), "knots must increase"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(flat(sort_target(2)))
