"""The constructed block: attention, banks, budget of errors, certificates, refusals."""

import math
import pickle
from itertools import product

import numpy as np
import pytest
import torch

from etude.theory.uat_transformer import (
    SingleLayerTransformer,
    Target,
    ToleranceNotReached,
    approximation_error,
    assemble,
    attention_error,
    build_at_width,
    build_universal,
    build_with_modes,
    check_points,
    cummax_target,
    gathered,
    mixing_matrix,
    outputs_in_blocks,
    plan_universal,
    plot_width_curve,
    prod_sin_target,
    random_target,
    recast,
    required_beta,
    ridge_expansion,
    ridge_network,
    sort_target,
    spline_pieces,
    width_curve,
    width_exponent,
)
from etude.theory.uat_transformer.curves import error_rate


def sequences(n, L, d=1, seed=0):
    return torch.rand(n, L, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(target):
    return lambda u: target(u.unflatten(1, (target.seq_len, target.in_dim))).flatten(1)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# Attention


@pytest.mark.parametrize(("L", "d"), [(2, 1), (3, 1), (2, 2), (4, 1), (1, 3)])
@pytest.mark.parametrize("beta", [1.0, 4.0, 30.0])
def test_slots_are_the_mixed_sequence_within_the_bound_and_the_inverse_brings_it_back(L, d, beta):
    expansion = ridge_expansion(lambda u: u.mean(dim=1, keepdim=True).expand(-1, L), L * d, K=1, n=4)
    network = ridge_network(expansion, spline_pieces(expansion, 0.5))
    model = assemble(network, L, d, 1, beta=beta)
    x = sequences(200, L, d)
    slots = gathered(model, x)
    mixed = torch.einsum("ab,nbd->nad", mixing_matrix(L, beta), x).flatten(1)
    bound = attention_error(L, beta)
    assert bound <= (L - 1) * math.exp(-beta)
    for i in range(L):
        assert torch.allclose(slots[:, i], mixed, atol=1e-14)
        assert float((slots[:, i] - x.flatten(1)).abs().max()) <= bound + 1e-14
        inverse = mixing_matrix(L, beta, inverse=True)
        back = torch.einsum("ab,nbd->nad", inverse, slots[:, i].unflatten(1, (L, d)))
        assert float((back - x).abs().max()) < 1e-12
    if L > 1:
        worst = torch.zeros(1, L, d, dtype=torch.float64)
        worst[:, 0] = 1.0  # the bound is met where one token differs from all others
        assert float((gathered(model, worst)[:, 0] - worst.flatten(1)).abs().max()) == pytest.approx(
            bound, rel=1e-6, abs=1e-15
        )


def test_the_mixing_matrix_is_a_row_of_softmax_weights():
    L, beta = 4, 1.7
    scores = beta * torch.eye(L, dtype=torch.float64)
    assert torch.allclose(mixing_matrix(L, beta), scores.softmax(dim=1), atol=1e-15)
    assert torch.allclose(mixing_matrix(L, beta, inverse=True), torch.linalg.inv(scores.softmax(dim=1)), atol=1e-13)


def test_the_beta_of_a_tolerance():
    assert required_beta(3, 0.01, 5.0, side=2.0) == pytest.approx(math.log(2 * 2 * 5 / 0.01), abs=1e-12)
    beta = required_beta(3, 0.01, 5.0)
    assert 5.0 * attention_error(3, beta) <= 0.01
    assert required_beta(1, 0.01, 5.0) == 1.0
    with pytest.raises(ValueError, match=r"> 80; reachable is 1.8e-35"):
        required_beta(2, 1e-40, 1.0)
    for bad in (0.0, -1.0, 81.0):
        with pytest.raises(ValueError, match=r"beta must lie in \(0, 80\]"):
            mixing_matrix(2, bad)


@pytest.mark.parametrize("beta", [0.5, 1.0, 10.0, 80.0])
def test_with_the_inverse_any_beta_gives_the_same_function(beta):
    target = prod_sin_target(2)
    sharp, _ = build_with_modes(target, 2, 1, 1, K=4, spline_error=0.1)
    model, report = build_with_modes(target, 2, 1, 1, K=4, spline_error=0.1, beta=beta)
    assert torch.allclose(model(sequences(300, 2)), sharp(sequences(300, 2)), atol=1e-12)
    assert report.attention_error == 0


def test_without_the_inverse_attention_costs_at_most_its_share():
    target = prod_sin_target(2)
    model, report = build_universal(target, 2, 1, 1, tol=0.4, exact=False)
    inverted = assemble(
        ridge_network(*_series(target, report.K, 0.1)), 2, 1, 1, beta=report.beta, exact=True
    )  # the same splines
    gap = float((model(sequences(2_000, 2)) - inverted(sequences(2_000, 2))).abs().max())
    assert 0 < gap <= report.attention_error <= 0.05 * (1 + 1e-9)
    assert report.measured.sup <= 0.4
    assert not report.exact
    with pytest.raises(ValueError, match=r"beta = 1.0 leaves an attention error of .* beta must be at least"):
        build_universal(target, 2, 1, 1, tol=0.4, exact=False, beta=1.0)


def _series(target, K, eps):
    expansion = ridge_expansion(flat(target), target.seq_len * target.in_dim, K)
    return expansion, spline_pieces(expansion, eps)


# The block


@pytest.mark.parametrize(
    ("target", "K", "digits"), [(sort_target(2), 32, 1e-14), (prod_sin_target(2), 8, 2e-14), (sort_target(3), 3, 1e-13)]
)
def test_the_block_equals_the_sum_of_its_splines(target, K, digits):
    L = target.seq_len
    expansion, pieces = _series(target, K, 0.02)
    model, _ = build_with_modes(target, L, 1, 1, K=K, spline_error=0.02, points=10)
    x = sequences(100, L, seed=3)
    u, (left, right) = x.flatten(1).numpy(), expansion.ranges()
    direct = np.tile(expansion.bias, (100, 1))
    for group, p in enumerate(expansion.directions):
        knots = np.linspace(left[group], right[group], pieces[group] + 1)
        values = expansion.profile(np.full(len(knots), group), knots)
        direct += np.stack([np.interp(u @ p, knots, values[:, k]) for k in range(L)], axis=1)
    found = outputs_in_blocks(model, x).flatten(1).numpy()
    assert np.abs(found - direct).max() < digits * max(1.0, 0.1 * len(expansion.directions))


def test_the_weights_load_into_a_fresh_block():
    model, report = build_with_modes(sort_target(2), 2, 1, 1, K=32, spline_error=0.02)
    fresh = SingleLayerTransformer(1, 6, 2, 2, 394, 1, head_dim=1, dtype="float64")
    fresh.load_state_dict(model.state_dict())
    x = sequences(500, 2)
    assert torch.equal(fresh(x), model(x))
    assert report.hidden == model.ffn_dim == 394


def test_the_width_of_three_sorted_tokens():
    plan = plan_universal(sort_target(3), 3, 1, 1, tol=0.08, start=6, max_grid=10**7, allocation="uniform")
    assert plan.hidden == 82_740
    assert plan.expansion.K == 6
    # d + L d + L + 1
    assert build_with_modes(sort_target(3), 3, 1, 1, K=1, spline_error=0.2)[0].dim == 8


def test_a_bank_answers_for_its_position_alone():
    model, report = build_with_modes(prod_sin_target(3), 3, 1, 1, K=3, spline_error=0.2, points=10)
    x = sequences(100, 3)
    before = model(x)
    weights = model.ffn_out.weight.detach().clone()
    for i in range(3):
        with torch.no_grad():
            model.ffn_out.weight[:, i * report.knots : (i + 1) * report.knots] += 0.1
        changed = (model(x) - before).abs().amax(dim=(0, 2)) > 0
        assert changed.tolist() == [place == i for place in range(3)]
        with torch.no_grad():
            model.ffn_out.weight.copy_(weights)
    active = torch.relu(model.ffn_in(model.attend(x)))
    for i, bank in product(range(3), range(3)):
        cut = active[:, i, bank * report.knots : (bank + 1) * report.knots]
        assert bool((cut > 0).any()) == (i == bank)


def test_the_width_is_banks_and_constants():
    for target in (sort_target(2), prod_sin_target(3)):
        L = target.seq_len
        model, report = build_with_modes(target, L, 1, 1, K=4, spline_error=0.1, points=10)
        assert report.hidden == model.ffn_dim == L * report.knots + L
        assert report.knots == spline_pieces(_series(target, 4, 0.1)[0], 0.1).sum()


@pytest.mark.parametrize("domain", [(0.0, 1.0), (-2.0, 3.0), ([-1.0, 0.0], [1.0, 5.0])])
def test_constants_and_linear_maps(domain):
    def constant(x):
        return torch.full((len(x), 1, 1), -1.5, dtype=x.dtype)

    model, report = build_universal(constant, 1, 2, 1, tol=1e-6, domain=domain, lipschitz=0.0)
    assert report.hidden == 1
    assert report.directions == 0
    assert report.measured.sup <= report.certified < 1e-12

    def linear(x):
        return x @ torch.tensor([[0.2], [-0.1]], dtype=x.dtype) + 0.3

    model, report = build_universal(linear, 1, 2, 1, tol=0.1, domain=domain, lipschitz=math.hypot(0.2, 0.1))
    assert report.measured.sup <= report.certified <= 0.1
    again = approximation_error(model, linear, 25, "grid", domain=domain)
    assert again.sup <= report.certified
    assert again.points == 625


def test_tokens_and_outputs_of_several_numbers():
    def f(x):
        first, second = x[:, :1], x[:, 1:]
        joint = (first * second).sum(dim=2, keepdim=True)
        return torch.cat(
            [torch.cat([joint, first.amax(2, keepdim=True)], 2), torch.cat([joint, second[..., :1]], 2)], 1
        )

    model, report = build_universal(f, 2, 2, 2, tol=0.6, domain=([0.0, 0.0], [1.0, 1.0]), points=500, max_grid=10**7)
    assert model(sequences(5, 2, 2)).shape == (5, 2, 2)
    assert report.measured.sup <= 0.6
    assert model.dim == 2 + 4 + 2 + 1
    assert report.dimension == 4


@pytest.mark.parametrize("L", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_the_sup_is_never_above_the_certificate(L, seed, exact):
    generator = torch.Generator().manual_seed(seed)
    target = random_target(L, lengthscale=0.6, features=8, generator=generator)
    model, report = build_universal(target, L, 1, 1, tol=0.6, lipschitz=target.lipschitz, exact=exact, points=200)
    assert report.certified == pytest.approx(report.bound(target.lipschitz))
    assert report.certified <= 0.6
    for kind, n in (("random", 3_000), ("diagonals", 900), ("corners", 1)):
        found = approximation_error(model, target, n, kind, generator=generator)
        assert found.sup <= report.certified


def test_the_lipschitz_constants_of_the_targets_hold():
    a, b = sequences(20_000, 2), sequences(20_000, 2, seed=1) * 0.02
    # The bound of a random map adds up the slopes of all its cosines, which rarely agree.
    for target, share in (
        (sort_target(2), 0.9),
        (cummax_target(2), 0.9),
        (prod_sin_target(2), 0.9),
        (random_target(2), 0.05),
    ):
        moved = (a + b).clamp(max=1.0)
        ratio = (target(moved) - target(a)).abs().amax((1, 2)) / (moved - a).flatten(1).norm(dim=1)
        assert share * target.lipschitz < float(ratio.max()) <= target.lipschitz * (1 + 1e-9)


def test_tolerances_are_met_and_kept_apart_from_certificates():
    target = cummax_target(2)
    for tol in (0.1, 0.05):
        model, report = build_universal(target, 2, 1, 1, tol)
        assert report.certified is None
        assert report.tol == tol
        fresh = approximation_error(model, target, 5_000, generator=torch.Generator().manual_seed(9))
        assert max(fresh.sup, report.measured.sup) <= tol
        assert report.series_error + tol / 4 <= tol
        assert report.spline_error <= tol / 4
        assert [attempt.K for attempt in report.attempts] == [4 * 2**k for k in range(len(report.attempts))]
        assert all(attempt.total > tol for attempt in report.attempts[:-1])


def test_a_known_lipschitz_constant_makes_the_tolerance_a_guarantee():
    target = sort_target(2)
    seen, _ = build_universal(target, 2, 1, 1, 0.06, points=100)
    model, report = build_universal(target, 2, 1, 1, 0.06, lipschitz=target.lipschitz, points=100)
    assert report.certified <= 0.06
    assert report.certified == pytest.approx(
        report.attention_error + report.spline_error + report.series_error
        + (1 + report.series_lipschitz) * report.spacing * math.sqrt(2) / 2
    )  # fmt: skip
    assert model.ffn_dim >= seen.ffn_dim
    with pytest.raises(ValueError, match="lipschitz must be at least 0"):
        report.bound(-1.0)


def test_more_width_is_spent_on_fewer_errors():
    narrow, wide = (build_at_width(sort_target(2), 2, 1, 1, hidden)[1] for hidden in (64, 512))
    assert narrow.hidden <= 64 < wide.hidden <= 512
    assert wide.series_error + wide.spline_error < 0.5 * (narrow.series_error + narrow.spline_error)
    # no K with as many units does better by the same measure
    for K in (4, 6, 12):
        _, other = build_with_modes(sort_target(2), 2, 1, 1, K, narrow.spline_error, points=10, allocation="balanced")
        assert other.hidden > 64 or other.series_error + other.spline_error > 0.95 * (
            narrow.series_error + narrow.spline_error
        )
    assert build_at_width(lambda x: torch.ones_like(x), 2, 1, 1, 64)[1].hidden == 2
    with pytest.raises(ValueError, match=r"hidden = 6 is too narrow: one mode a coordinate needs \d+ units"):
        build_at_width(prod_sin_target(2), 2, 1, 1, 6)


def test_single_precision_is_measured_anew():
    target = sort_target(2)
    model, report = build_with_modes(target, 2, 1, 1, K=16, spline_error=0.002)
    light, errors = recast(model, target)
    assert light.embed.weight.dtype == torch.float32
    x = sequences(500, 2)
    gap = (light(x.float()).double() - model(x)).abs().max()
    assert 1e-9 < float(gap) < 1e-4
    assert errors.sup == pytest.approx(report.measured.sup, abs=1e-4)
    with pytest.raises(ValueError, match="dtype must be one of"):
        recast(model, target, "int8")


# Measuring


def test_points_are_where_they_are_said_to_be():
    corners = check_points("corners", 1, 3, 1).flatten(1)
    assert sorted(map(tuple, corners.tolist())) == sorted(product((0.0, 1.0), repeat=3))
    diagonals = check_points("diagonals", 11, 2, 1).flatten(1)
    assert len(diagonals) == 22
    assert ((diagonals[:, 0] == diagonals[:, 1]) | ((diagonals.sum(1) - 1).abs() < 1e-15)).all()
    grid = check_points("grid", 3, 2, 1).flatten(1)
    assert sorted(map(tuple, grid.tolist())) == sorted(product((0.0, 0.5, 1.0), repeat=2))
    everything = check_points("all", 50, 3, 1)
    assert everything.shape == (50 + 8 + 201 * 4, 3, 1)
    with pytest.raises(ValueError, match="kind must be one of"):
        check_points("edges", 5, 2, 1)
    with pytest.raises(ValueError, match="n must be at least 1, and 2 on a grid"):
        check_points("grid", 1, 2, 1)
    with pytest.raises(ValueError, match="10,000,000"):
        check_points("grid", 100, 4, 1)


def test_errors_are_those_of_a_loop():
    model = SingleLayerTransformer(1, 8, 2, 2, 16, 1)
    target, generator = sort_target(2), torch.Generator().manual_seed(4)
    found = approximation_error(model, target, 400, "random", generator=generator, domain=(-1.0, 2.0))
    x = 3 * torch.rand(400, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64) - 1
    squares, worst = [], 0.0
    for sequence in x:
        with torch.no_grad():
            output = model(sequence[None, :, None].float())[0, :, 0].double()
        gap = (output - sequence.sort().values).abs()
        squares.append(float((gap**2).mean()))
        worst = max(worst, float(gap.max()))
    assert found.sup == pytest.approx(worst, rel=1e-5)
    assert found.rmse == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-5)
    assert found.rmse_error == pytest.approx(np.std(squares, ddof=1) / 20 / (2 * found.rmse), rel=1e-4)
    with pytest.raises(ValueError, match=r"f gives shape \(5, 2\) where the module gives \(5, 2, 1\)"):
        approximation_error(model, lambda x: x[..., 0], 5, "random")


# Curves


def test_a_rate_is_a_slope_with_its_error():
    assert float(width_exponent([0.1, 0.01], [30, 300]).value) == pytest.approx(1, abs=1e-12)
    x, y = np.array([4, 8, 16, 32]), np.array([0.055, 0.028, 0.014, 0.0065])
    slope, covariance = np.polyfit(np.log(x), np.log(y), 1, cov="unscaled")
    residual = np.log(y) - np.polyval([slope[0], slope[1]], np.log(x))
    error = math.sqrt(covariance[0, 0] * (residual**2).sum() / 2)
    found = error_rate(x.tolist(), y.tolist())
    assert float(found.value) == pytest.approx(slope[0], abs=1e-12)
    assert float(found.value) == pytest.approx(-1.02, abs=0.005)
    assert float(found.error) == pytest.approx(error, abs=1e-12)
    for bad in ([], [0.1], [0.1, 0.1], [0.1, -0.2]):
        with pytest.raises(ValueError, match="two or more different points"):
            width_exponent(bad, [3] * len(bad))


def test_a_curve_of_widths_and_its_plot():
    curve = width_curve(sort_target(2), 2, 1, 1, [0.05, 0.2, 0.1, 0.01], max_hidden=300, max_grid=10**6)
    assert curve.tols == (0.2, 0.1, 0.05, 0.01)
    assert curve.reached == (True, True, True, False)
    for tol, width in zip(curve.tols[:3], curve.hidden):
        assert plan_universal(sort_target(2), 2, 1, 1, tol).hidden == width
    assert curve.hidden[-1] > 300
    assert float(curve.exponent.value) > 0.5
    left, right = plot_width_curve(curve).axes
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["built", "projected", "tol^-2"]
    assert len(left.lines[0].get_xdata()) == len({a.K for a in curve.attempts if a.series_error == a.series_error})
    fine = width_curve(sort_target(2), 2, 1, 1, [0.05], growth=1.2)
    assert fine.hidden[0] <= curve.hidden[2]
    with pytest.raises(ValueError, match="at least one tolerance"):
        width_curve(sort_target(2), 2, 1, 1, [])


# Refusals


def test_a_jump_is_refused_with_the_gap_that_was_measured():
    def step(x):
        return (x > 0.4).double()

    with pytest.raises(
        ToleranceNotReached, match=r"the error does not fall with the width: is f continuous\?"
    ) as caught:
        build_universal(step, 1, 1, 1, tol=0.1, max_hidden=2_000)
    assert caught.value.achieved == pytest.approx(0.5 + 0.025, abs=0.1)
    assert caught.value.projected_width == math.inf
    assert len(caught.value.attempts) > 3


def test_a_spike_between_the_points_of_the_grid_is_seen_by_the_final_check():
    # The first of the random points that the check draws; no grid has it.
    at = float(check_points("random", 1, 1, 1, generator=torch.Generator().manual_seed(5)))

    def spike(x):
        return (1 - 1e7 * (x - at).abs()).clamp(min=0)

    with pytest.raises(ToleranceNotReached, match=r"the best is 1, at K = 4; .* is f continuous\?") as caught:
        build_universal(spike, 1, 1, 1, tol=0.1, generator=torch.Generator().manual_seed(5), points=1, max_grid=2_000)
    assert caught.value.achieved == pytest.approx(1)
    _, report = build_universal(spike, 1, 1, 1, tol=0.1, generator=torch.Generator().manual_seed(6), points=1)
    assert report.hidden == 1


def test_a_tolerance_out_of_reach_names_what_was_achieved_and_the_width():
    with pytest.raises(ToleranceNotReached, match=r"max_hidden = 2,000; projected hidden width") as caught:
        build_universal(prod_sin_target(2), 2, 1, 1, tol=0.05, max_hidden=2_000)
    error = caught.value
    assert 0.1 < error.achieved < 0.5
    assert 5_000 < error.projected_width < 200_000
    assert isinstance(error, ValueError)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.achieved, again.attempts[:2]) == (str(error), error.achieved, error.attempts[:2])
    with pytest.raises(ToleranceNotReached, match=r"more than max_grid = 200,000"):
        build_universal(prod_sin_target(2), 2, 1, 1, tol=0.001, max_grid=200_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 5}, r"seq_len \* dim = 5 exceeds 4: .* 29,524 at K = 4 already, and a hidden width .* 147,620 or"),
        ({"seq_len": 0}, "seq_len must be at least 1, got 0"),
        ({"out_dim": 0}, "out_dim must be at least 1, got 0"),
        ({"tol": 0.0}, "tol must be positive and finite, got 0.0"),
        ({"tol": math.nan}, "tol must be positive and finite"),
        ({"lipschitz": -1.0}, "lipschitz must be finite and at least 0, got -1.0"),
        ({"max_hidden": 0}, "max_hidden must be positive"),
        ({"domain": (1.0, 0.0)}, "finite low < high, got 1.0 and 0.0"),
        ({"domain": (0.0, math.inf)}, "finite low < high"),
        ({"domain": (0.0, 1.0, 2.0)}, r"domain must be a box, given as \(low, high\), got 3 items"),
        ({"domain": ([0.0, 0.0], [1.0, 1.0])}, r"numbers or have shape \(1,\), got shapes"),
        ({"out_dim": 2}, r"f must map \(9216, 2, 1\) to \(9216, 2, 2\), got \(9216, 2, 1\)"),
        ({"allocation": "greedy"}, "'uniform' or 'balanced'"),
        ({"damping": "fejer"}, "'none' or 'jackson'"),
        ({"beta": 100.0}, r"beta must lie in \(0, 80\]"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_universal(**{"f": sort_target(2), "seq_len": 2, "dim": 1, "out_dim": 1, "tol": 0.2, **options})


def test_another_length_than_the_one_built_for_is_refused():
    model, _ = build_universal(sort_target(2), 2, 1, 1, tol=0.2, points=10)
    with pytest.raises(ValueError, match="a model is built for one length"):
        model(sequences(4, 3))


def test_targets_are_what_they_say():
    x = sequences(50, 3)
    assert torch.equal(sort_target(3)(x), x.sort(dim=1).values)
    naive = torch.stack([x[:, : i + 1].amax(dim=1) for i in range(3)], dim=1)
    assert torch.equal(cummax_target(3)(x), naive)
    y = prod_sin_target(3)(x)[..., 0]
    a, b, c = x[..., 0].T
    assert torch.allclose(y, torch.stack([a * b, torch.sin(2 * math.pi * a) + c**2, (a + b + c) / 3], 1))
    with pytest.raises(ValueError, match="at least 2"):
        prod_sin_target(1)
    with pytest.raises(ValueError, match="must be positive"):
        random_target(2, lengthscale=0.0)
    assert isinstance(sort_target(2), Target)


def test_random_targets_are_draws_of_their_process():
    at = torch.tensor([[[0.1], [0.2]], [[0.4], [0.2]], [[0.9], [0.8]]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = [random_target(2, lengthscale=0.5, features=16, generator=generator)(at) for _ in range(400)]
    values = torch.stack(draws)[..., 0]
    covariance = torch.einsum("nai,nbi->ab", values, values) / values.shape[0] / 2
    kernel = torch.exp(-torch.cdist(at.flatten(1), at.flatten(1)).square() / (2 * 0.25))
    assert torch.allclose(covariance, kernel, atol=0.17)
    assert abs(float((values[:, :, 0] * values[:, :, 1]).mean())) < 0.15
