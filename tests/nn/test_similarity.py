"""Similarities of representations: the formulas, their invariances, their biases and what they refuse."""

import itertools
import math
import warnings

import pytest
import torch

from etude.nn.similarity import (
    MinibatchCKA,
    cka_from_grams,
    linear_cka,
    linear_gram,
    procrustes_similarity,
    rbf_cka,
    ridge_similarity,
    rsa_similarity,
)

SIMILARITIES = [linear_cka, rbf_cka, rsa_similarity, procrustes_similarity, ridge_similarity]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def related(batch: int = 12, p: int = 5, q: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    x = normal(batch, p)
    return x, x @ normal(p, q, seed=1) + normal(batch, q, seed=2)


def hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - torch.ones(n, n, dtype=k.dtype) / n
    return ((h @ k @ h) * (h @ m @ h)).sum()


def unbiased_hsic(k: torch.Tensor, m: torch.Tensor) -> float:
    """The U-statistic as Song et al. define it: the mean over ordered quadruples of distinct examples."""
    n, total, count = len(k), 0.0, 0
    for i, j, q, r in itertools.permutations(range(n), 4):
        total += float(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]))
        count += 1
    return total / count


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_representation_is_like_itself(similarity):
    x = normal(10, 4)
    options = {"penalty": 1e-9} if similarity is ridge_similarity else {}
    assert similarity(x, x, **options).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_orthogonal_transforms_and_scales_do_not_matter(similarity):
    x, y = related()
    rotation = torch.linalg.qr(normal(5, 5, seed=3)).Q
    expected = similarity(x, y).item()
    assert 0.01 < expected < 0.99
    assert similarity(3.0 * x @ rotation, y).item() == pytest.approx(expected, abs=1e-10)
    assert similarity(x, 0.01 * y).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("similarity", [linear_cka, rbf_cka, procrustes_similarity, ridge_similarity])
def test_added_constants_do_not_matter(similarity):
    x, y = related()
    expected = similarity(x, y).item()
    assert similarity(x + normal(5, seed=4), y - 2.0).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("similarity", [linear_cka, rsa_similarity, procrustes_similarity, rbf_cka])
def test_these_are_symmetric(similarity):
    x, y = related()
    assert similarity(x, y).item() == pytest.approx(similarity(y, x).item(), abs=1e-12)


def test_linear_cka_equals_the_centring_formula():
    x, y = related()
    k, m = x @ x.T, y @ y.T
    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert linear_cka(x, y).item() == pytest.approx(expected.item(), abs=1e-12)
    assert linear_cka(x.float(), y.float()).item() == pytest.approx(expected.item(), abs=1e-6)


def test_unbiased_cka_equals_the_mean_over_quadruples():
    x, y = related(batch=6)
    k, m = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, m) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert linear_cka(x, y, unbiased=True).item() == pytest.approx(expected, abs=1e-10)


def test_rbf_cka_equals_its_formula():
    x, y = related(batch=7)
    kernels = []
    for features in (x, y):
        distances = torch.cdist(features, features)
        median = distances[torch.triu(torch.ones(7, 7, dtype=torch.bool), diagonal=1)].median()
        kernels.append(torch.exp(-(distances**2) / (2 * (0.8 * median) ** 2)))
    k, m = kernels
    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert rbf_cka(x, y, sigma=0.8).item() == pytest.approx(expected.item(), abs=1e-10)


def test_a_wide_rbf_kernel_tends_to_the_linear_one():
    x, y = related()
    assert rbf_cka(x, y, sigma=300.0).item() == pytest.approx(linear_cka(x, y).item(), abs=1e-4)
    assert abs(rbf_cka(x, y, sigma=0.4).item() - linear_cka(x, y).item()) > 1e-2


def test_rsa_is_the_correlation_of_the_cosine_matrices():
    x, y = related(batch=6)
    cosines = [torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=-1).flatten() for z in (x, y)]
    expected = torch.corrcoef(torch.stack(cosines))[0, 1]
    assert rsa_similarity(x, y).item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(("p", "q"), [(5, 7), (40, 3), (30, 50)])
def test_procrustes_is_the_nuclear_norm(p, q):
    x, y = related(p=p, q=q)
    x, y = x - x.mean(0), y - y.mean(0)
    expected = torch.linalg.matrix_norm(x.T @ y, "nuc") / (x.norm() * y.norm())
    assert procrustes_similarity(x, y).item() == pytest.approx(expected.item(), abs=1e-10)


def test_ridge_is_the_explained_variance_of_a_ridge_regression():
    x, y = related()
    x, y = x - x.mean(0), y - y.mean(0)
    penalty = 0.05 * x.square().sum()
    coefficients = torch.linalg.solve(x.T @ x + penalty * torch.eye(5, dtype=x.dtype), x.T @ y)
    expected = 1 - (y - x @ coefficients).square().sum() / y.square().sum()
    assert ridge_similarity(x, y, penalty=0.05).item() == pytest.approx(expected.item(), abs=1e-10)


def test_orthogonal_centred_features_have_cka_zero():
    basis = torch.linalg.qr(torch.cat([torch.ones(8, 1, dtype=torch.float64), normal(8, 7)], dim=1)).Q[:, 1:]
    assert linear_cka(basis[:, :3], basis[:, 3:]).item() == pytest.approx(0.0, abs=1e-12)


def test_cka_of_single_columns_is_the_squared_correlation():
    x, y = related(p=1, q=1)
    expected = torch.corrcoef(torch.cat([x, y], dim=1).T)[0, 1] ** 2
    assert linear_cka(x, y).item() == pytest.approx(expected.item(), abs=1e-12)


def test_biased_cka_of_independent_features_is_high_and_the_unbiased_one_is_not():
    x, y = normal(64, 1000), normal(64, 1000, seed=1)
    assert linear_cka(x, y).item() == pytest.approx(0.94, abs=0.01)
    assert abs(linear_cka(x, y, unbiased=True).item()) < 0.02


@pytest.mark.parametrize("scale", [1e-12, 1e-30, 1e12])
def test_tiny_and_huge_features_keep_their_similarity_and_their_gradient(scale):
    x, y = (features.float() for features in related())
    plain = x.clone().requires_grad_()
    scaled = (x * scale).requires_grad_()
    values = [linear_cka(features, y) for features in (plain, scaled)]
    for value in values:
        value.backward()
    assert values[1].item() == pytest.approx(values[0].item(), abs=1e-6)
    torch.testing.assert_close(scaled.grad.double() * scale, plain.grad.double(), rtol=1e-3, atol=1e-6)


def test_features_of_any_shape_are_flattened():
    x, y = normal(8, 3, 4, 4), normal(8, 5)
    assert linear_cka(x, y).item() == linear_cka(x.flatten(1), y).item()


@pytest.mark.parametrize(
    "similarity",
    [*SIMILARITIES, lambda x, y: linear_cka(x, y, unbiased=True), lambda x, y: rbf_cka(x, y, unbiased=True)],
)
def test_gradients_match_finite_differences(similarity):
    x, y = related(batch=6, p=3, q=4)
    assert torch.autograd.gradcheck(similarity, (x.requires_grad_(), y.requires_grad_()))


def test_gradients_pass_where_features_outnumber_examples():
    x, y = related(batch=5, p=9, q=8)
    for similarity in SIMILARITIES:
        assert torch.autograd.gradcheck(similarity, (x.clone().requires_grad_(), y))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_constant_features_have_similarity_zero_a_warning_and_no_nan(similarity):
    constant = torch.full((9, 4), 0.1).requires_grad_()
    y = normal(9, 3, dtype=torch.float32)
    with pytest.warns(RuntimeWarning, match="same for all examples"):
        value = similarity(constant, y)
    assert value.item() == 0.0
    value.backward()
    assert constant.grad is not None
    assert torch.isfinite(constant.grad).all()


def test_what_varies_below_the_rounding_of_a_constant_counts_as_constant():
    varying = 1.0 + 1e-8 * normal(9, 4)
    with pytest.warns(RuntimeWarning):
        assert linear_cka(varying.float(), normal(9, 3).float()).item() == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert linear_cka(varying, normal(9, 3)).item() > 0.0


def test_half_precision_and_autocast_are_computed_in_single_precision():
    x, y = (features.float() for features in related())
    expected = linear_cka(x.bfloat16().float(), y.bfloat16().float()).item()
    assert linear_cka(x.bfloat16(), y.bfloat16()).item() == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_cka(x.bfloat16(), y.bfloat16()).item() == expected
    assert linear_cka(x, y).dtype == torch.float32
    assert linear_cka(x.double(), y).dtype == torch.float64


def test_stacks_of_gram_matrices_are_compared_at_once():
    xs, ys = normal(3, 8, 4), normal(3, 8, 6, seed=1)
    values = cka_from_grams(linear_gram(xs), linear_gram(ys))
    for value, x, y in zip(values, xs, ys):
        assert value.item() == pytest.approx(linear_cka(x, y).item(), abs=1e-12)


def test_minibatch_cka_of_one_batch_is_the_unbiased_cka():
    xs, ys = [normal(9, 4), normal(9, 2, 3, seed=1)], [normal(9, 5, seed=2)]
    cka = MinibatchCKA()
    cka.update(xs, ys)
    expected = [[linear_cka(x, y, unbiased=True).item() for y in ys] for x in xs]
    assert torch.allclose(cka.compute(), torch.tensor(expected, dtype=torch.float64), atol=1e-10)


def test_minibatch_cka_averages_the_estimates_over_batches():
    cka, sums, total = MinibatchCKA(), [0.0, 0.0, 0.0], 0
    for index, n in enumerate((6, 5, 7)):
        x, y = 10.0**index * normal(n, 4, seed=index), normal(n, 3, seed=index + 9) + 1
        cka.update([x], [y])
        k, m = x @ x.T, y @ y.T
        for place, (a, b) in enumerate(((k, m), (k, k), (m, m))):
            sums[place] += n * unbiased_hsic(a, b)
        total += n
    expected = sums[0] / math.sqrt(sums[1] * sums[2])
    assert cka.compute().item() == pytest.approx(expected, abs=1e-9)


def test_minibatch_cka_does_not_depend_on_the_batch_size_as_the_biased_one_does():
    x = normal(960, 40)
    y = x + normal(960, 40, seed=1)
    whole = linear_cka(x, y, unbiased=True).item()
    for size in (16, 80):
        cka, biased = MinibatchCKA(), []
        for a, b in zip(x.split(size), y.split(size)):
            cka.update([a], [b])
            biased.append(linear_cka(a, b).item())
        assert cka.compute().item() == pytest.approx(whole, abs=0.03)
        if size == 16:
            assert sum(biased) / len(biased) > whole + 0.2


def test_minibatch_cka_of_constant_layers_is_zero_with_a_warning():
    cka = MinibatchCKA()
    cka.update([torch.ones(5, 3), normal(5, 3, dtype=torch.float32)], [normal(5, 2, dtype=torch.float32)])
    with pytest.warns(RuntimeWarning):
        values = cka.compute()
    assert values[0, 0].item() == 0.0
    assert values[1, 0].item() != 0.0


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.ones(3, 2), torch.ones(3, 2), "at least 4 examples in a batch, got 3"),
        (torch.ones(1, 2), torch.ones(1, 2), "got 1"),
        (torch.ones(8, 2), torch.ones(6, 2), "batches of 8 and 6"),
        (torch.ones(8), torch.ones(8, 2), r"x must have shape \(batch, ...\) with features, got \(8,\)"),
        (torch.ones(8, 2), torch.ones(8, 2, device="meta"), "one device, got cpu and meta"),
    ],
)
def test_what_cannot_be_compared_is_refused(similarity, x, y, message):
    inner = getattr(similarity, "__wrapped__", similarity)
    with pytest.raises(Exception, match=message) as refusal:
        inner(x, y)
    assert refusal.type is ValueError


def test_integer_features_are_refused():
    inner = getattr(linear_cka, "__wrapped__", linear_cka)
    with pytest.raises(TypeError, match="floating-point features"):
        inner(torch.ones(8, 2, dtype=torch.int64), torch.ones(8, 2))


def test_numbers_out_of_range_are_refused():
    x, y = related()
    with pytest.raises(ValueError, match="sigma must be positive, got 0"):
        rbf_cka(x, y, sigma=0)
    with pytest.raises(ValueError, match=r"penalty must be positive, got -1"):
        ridge_similarity(x, y, penalty=-1)


def test_minibatch_cka_refuses_what_it_cannot_add_up():
    cka = MinibatchCKA()
    with pytest.raises(RuntimeError, match="no batch"):
        cka.compute()
    with pytest.raises(ValueError, match="layers on both sides, got 0 and 1"):
        cka.update([], [normal(5, 2)])
    cka.update([normal(5, 2)], [normal(5, 2)])
    with pytest.raises(ValueError, match="1 and 1 layers before, now 2 and 1"):
        cka.update([normal(5, 2)] * 2, [normal(5, 2)])
    with pytest.raises(ValueError, match="batches of 5 and 6"):
        cka.update([normal(5, 2)], [normal(6, 2)])
