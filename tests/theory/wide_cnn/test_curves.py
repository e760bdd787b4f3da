"""Gaussian teachers, the exact error of regression on them, and learning curves."""

import math
from functools import partial

import pytest
import torch

from etude.theory.wide_cnn import (
    expected_errors,
    fc_ntk,
    fit_power_law,
    hierarchical_kernel,
    learning_curve,
    mean_interval,
    plot_learning_curves,
    posterior_variance,
    predict_beta,
    sample_grf,
    sample_multisphere,
    teacher_student,
)
from etude.theory.wide_cnn.fields import cholesky
from etude.theory.wide_cnn.spectrum import check_kernel


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def kernel(filters):
    return partial(hierarchical_kernel, filter_sizes=filters)


def parts(K, n):
    return K[:n, :n], K[n:, :n], K[n:, n:].diagonal()


def test_a_field_has_the_covariance_of_its_kernel():
    K = hierarchical_kernel(sample_multisphere(6, 4, 2, seeded()), None, [2, 2])
    y = sample_grf(K, seeded(1), count=200_000)
    # The variance of an entry of the sample covariance is (K_ii K_jj + K_ij^2) / draws.
    error = ((K.diagonal()[:, None] * K.diagonal() + K**2) / 200_000).sqrt()
    assert float((((y @ y.T) / 200_000 - K).abs() / error).max()) < 4.5
    assert torch.allclose(y.square().mean(1), K.diagonal(), rtol=0.02)
    assert float((y.mean(1).abs() / (K.diagonal() / 200_000).sqrt()).max()) < 4.5
    assert torch.equal(sample_grf(K, seeded(1), count=3), sample_grf(K, seeded(1), count=3))


@pytest.mark.parametrize("filters", [[2], [2, 2], [2, 2, 2]])
def test_a_student_that_is_the_teacher_errs_by_the_posterior_variance(filters):
    K = hierarchical_kernel(sample_multisphere(240, 4, 2, seeded()), None, filters)
    nn, tn, diagonal = parts(K, 180)
    bayes = posterior_variance(nn, tn, diagonal)
    inverse = diagonal - (tn @ torch.linalg.inv(nn) * tn).sum(1)
    assert torch.allclose(bayes, inverse, rtol=1e-6, atol=1e-9)
    assert torch.allclose(expected_errors(nn, tn, diagonal, nn, tn), bayes, rtol=0, atol=1e-9)
    # And so does the mean over teachers that are drawn, without any slope to fit.
    y = sample_grf(K, seeded(1), count=4000)
    missed = (tn @ torch.linalg.solve(nn, y[:180]) - y[180:]).square().mean(0)
    assert abs(float(missed.mean() - bayes.mean())) < 4 * float(missed.std()) / math.sqrt(4000)


def test_no_other_kernel_errs_less_than_the_teachers_own():
    x = sample_multisphere(200, 4, 2, seeded())
    nn, tn, diagonal = parts(hierarchical_kernel(x, None, [2]), 150)
    bayes = posterior_variance(nn, tn, diagonal)
    for student in (hierarchical_kernel(x, None, [2, 2, 2]), fc_ntk(x, None, 3)):
        errors = expected_errors(nn, tn, diagonal, *parts(student, 150)[:2])
        assert float((errors - bayes).min()) > -1e-9
        assert float(errors.mean()) > 1.05 * float(bayes.mean())


def test_the_exact_error_of_another_student_is_that_over_drawn_teachers():
    x = sample_multisphere(120, 4, 2, seeded())
    K, student = hierarchical_kernel(x, None, [2]), hierarchical_kernel(x, None, [2, 2, 2])
    (nn, tn, diagonal), (own, across, _) = parts(K, 90), parts(student, 90)
    y = sample_grf(K, seeded(1), count=4000)
    noise = 0.5 * torch.randn(90, 4000, generator=seeded(2), dtype=torch.float64)
    weights = torch.linalg.solve(own + 0.01 * torch.eye(90, dtype=torch.float64), y[:90] + noise)
    missed = (across @ weights - y[90:]).square().mean(0)
    exact = expected_errors(nn, tn, diagonal, own, across, 0.01, noise=0.25).mean()
    assert abs(float(missed.mean() - exact)) < 4 * float(missed.std()) / math.sqrt(4000)
    # With the noise as its ridge the teacher's own kernel is Bayes again.
    same = expected_errors(nn, tn, diagonal, nn, tn, 0.25, noise=0.25)
    assert torch.allclose(same, posterior_variance(nn, tn, diagonal, 0.25), atol=1e-10)


def test_all_sizes_of_a_curve_equal_a_solve_of_their_own():
    x = sample_multisphere(96, 4, 2, seeded())
    K, S = hierarchical_kernel(x, None, [2]), hierarchical_kernel(x, None, [2, 2, 2])
    run = teacher_student(x, [16, 32, 64], kernel([2]), kernel([2, 2, 2]), teachers=5, generator=seeded(1))
    y = sample_grf(K, seeded(1), count=5)
    variance = y[64:].var(dim=0, correction=0).mean()
    spread = K[64:, 64:].diagonal().mean() - K[64:, 64:].mean()
    for place, n in enumerate((16, 32, 64)):
        missed = (S[64:, :n] @ torch.linalg.solve(S[:n, :n], y[:n]) - y[64:]).square().mean(0) / variance
        assert float(run.errors[place]) == pytest.approx(float(missed.mean()), rel=1e-7)
        assert float(run.error_bars[place]) == pytest.approx(float(missed.std()) / math.sqrt(5), rel=1e-7)
        exact = expected_errors(K[:n, :n], K[64:, :n], K[64:, 64:].diagonal(), S[:n, :n], S[64:, :n]).mean()
        assert float(run.expected[place]) == pytest.approx(float(exact / spread), rel=1e-7)


def test_a_learning_curve_returns_slopes_with_intervals_beside_the_prediction():
    calls = []
    curve = learning_curve(
        [2], [2, 2, 2], [16, 32, 64, 128], seeds=[5, 6, 7], test=64, teachers=8, fitted=3,
        progress=lambda *done: calls.append(done),
    )  # fmt: skip
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert curve.errors.shape == curve.expected.shape == (3, 4)
    generator = seeded(6)
    x = sample_multisphere(192, 4, 2, generator)
    run = teacher_student(x, curve.sizes, kernel([2]), kernel([2, 2, 2]), teachers=8, generator=generator)
    assert torch.equal(curve.errors[1], run.errors)
    assert torch.equal(curve.expected[1], run.expected)
    expected = fit_power_law(run.errors[1:], against=[32.0, 64.0, 128.0]).exponent
    assert float(curve.slopes[1]) == pytest.approx(expected)
    assert curve.beta == mean_interval(curve.slopes)
    assert curve.beta.low < curve.beta.mean < curve.beta.high
    assert curve.predicted == predict_beta([2], [2, 2, 2])
    axes = plot_learning_curves({"pairs": curve}).axes[0]
    assert len(axes.lines) >= 3


def test_a_curve_takes_kernels_of_any_make_and_inputs_of_any_length():
    curve = learning_curve(
        [3], partial(fc_ntk, depth=3), [16, 32], seeds=[5], inputs=9, patch=3, test=20, teachers=3, fitted=2
    )
    assert curve.predicted is None
    assert math.isnan(curve.beta.low)
    wide = learning_curve([2], [2, 2], [16, 32], seeds=[5], inputs=8, test=20, teachers=3, kinds=("rfk", "rfk"))
    assert wide.predicted == predict_beta([2], [2, 2], 1.5, 1.5)
    assert len(plot_learning_curves({"a": curve, "b": wide}).axes[0].get_legend().get_texts()) == 3


def test_the_factor_of_a_matrix_with_ridge():
    K = hierarchical_kernel(sample_multisphere(20, 4, 2, seeded()), None, [2, 2])
    before = K.clone()
    L = cholesky(K, 0.5)
    assert torch.allclose(L @ L.T, K + 0.5 * torch.eye(20, dtype=torch.float64), atol=1e-13)
    assert torch.equal(K, before)


X = sample_multisphere(20, 4, 2, seeded(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cholesky(hierarchical_kernel(torch.cat([X, X[:1]]), None, [2])),
         r"K \+ 0 is not positive definite to double precision: its pivot 20 of 21 .*Row 20 repeats an earlier point"),
        (lambda: cholesky(-torch.eye(3, dtype=torch.float64)), "pivot 0 of 3 is below .* or K is no kernel"),
        (lambda: cholesky(torch.eye(3, dtype=torch.float64), -1.0), "ridge must be finite and >= 0, got -1"),
        (lambda: check_kernel(torch.ones(2, 3, dtype=torch.float64)), r"square matrix, got shape \(2, 3\)"),
        (lambda: sample_grf(torch.diag(torch.tensor([1.0, -1.0]).double())), "covariance K .* not positive definite"),
        (lambda: sample_grf(torch.eye(2).double(), count=0), "count must be at least 1, got 0"),
        (lambda: teacher_student(X, [5, 20], kernel([2]), kernel([2])), "sizes, 20, must leave test points of 20"),
        (lambda: teacher_student(X, [8, 5], kernel([2]), kernel([2])), r"increasing .* got \[8, 5\]"),
        (lambda: teacher_student(X, [5, 9], kernel([2]), kernel([2]), teachers=1), "teachers must be at least 2"),
        (lambda: teacher_student(torch.cat([X, X]), [5, 30], kernel([2]), kernel([2]), ridge=0.0),
         r"student K \+ 0 is not positive definite"),
        (lambda: teacher_student(X, [5, 19], kernel([2]), kernel([2])), "constant on the test points"),
        (lambda: learning_curve([3], [2, 2], [8, 16]), r"same first filter, got \[3\] and \[2, 2\]"),
        (lambda: learning_curve([2], partial(fc_ntk, depth=2), [8, 16]), "needs inputs= and patch="),
        (lambda: learning_curve([2], [2], [8, 16], inputs=5), "divide inputs, got patch=2 and inputs=5"),
        (lambda: learning_curve([2], [2], [8, 16], patch=1), "patch must be at least 2"),
        (lambda: learning_curve([2], [2], [8, 16], fitted=1), "fitted must be at least 2 sizes, got 1"),
        (lambda: learning_curve([2], [2], [8, 16], test=1), "test must be at least 2 points, got 1"),
        (lambda: learning_curve([2], [2], [8, 16], seeds=[]), "at least one seed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
