"""Infinite heads: closed forms against quadrature and against many heads; the targets and their complexity."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from etude.nn.dual import dual_activation
from etude.theory.random_feature_attention import (
    MLPKernel,
    RandomFeatureAttention,
    RandomFeatureMLP,
    RFAKernel,
    RidgePath,
    Target,
    Tokens,
    TokenTask,
    approximation_bound,
    arc_cosine,
    complexity,
    excess_risk_bound,
    head_error,
    permutation_invariant_targets,
    rfa_kernel,
    rfmlp_kernel,
    rfmlp_sample_ratio,
)
from etude.theory.random_feature_attention.kernel import relu_moment


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(n=6, keys=3, dim=4, seed=0):
    return TokenTask(dim, keys, (Target("mean_power", 2),))(n, generator(seed))[0]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def off(found, exact):
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [0.0, 1.0, 4.0])
def test_many_heads_converge_to_the_kernel(bias):
    left, right = tokens(5), tokens(4, seed=1)
    layer = RandomFeatureAttention(4, 20_000, bias=bias, generator=generator())
    assert off(layer.gram(left), RFAKernel(bias=bias).gram(left)) < 0.02
    assert off(layer.gram(left, right), RFAKernel(bias=bias).gram(left, right)) < 0.02


def test_the_error_of_finitely_many_heads_falls_like_the_root_of_their_number():
    few, many = (head_error(tokens(20), number, draws=8) for number in (100, 1600))
    # A ratio of 4, with two standard errors on either side.
    slack = 2 * (few.std_error / few.mean + many.std_error / many.mean)
    assert few.mean / many.mean == pytest.approx(4, rel=slack)
    assert 0 < few.std_error < few.mean / 2


@pytest.mark.parametrize("activation", ["exp", torch.tanh, torch.nn.GELU()], ids=["exp", "tanh", "gelu"])
def test_other_activations_converge_to_theirs(activation):
    layer = RandomFeatureAttention(4, 20_000, activation=activation, generator=generator())
    assert off(layer.gram(tokens()), RFAKernel(activation=activation).gram(tokens())) < 0.03


def test_a_wide_mlp_converges_to_its_arc_cosine_kernel():
    layer = RandomFeatureMLP(4, 3, 20_000, generator=generator())
    assert off(layer.gram(tokens()), MLPKernel().gram(tokens())) < 0.02


def test_the_kernel_is_a_double_loop_over_keys():
    left, right = tokens(3), tokens(2, keys=2, seed=1)
    pad = torch.nn.functional.pad
    found = rfa_kernel(left.query, left.keys, right.query, right.keys, weight_std=0.7)
    for a in range(3):
        for b in range(2):
            q, p = (pad(part, (0, 1), value=1.0) for part in (left.query[a], right.query[b]))
            total = 0.0
            for k in pad(left.keys[a], (0, 1), value=1.0):
                for m in pad(right.keys[b], (0, 1), value=1.0):
                    one, two = torch.outer(q, k).flatten(), torch.outer(p, m).flatten()
                    norms = float(one.norm() * two.norm())
                    t = float(one @ two) / norms
                    kappa = (math.sqrt(1 - t * t) + (math.pi - math.acos(t)) * t) / math.pi
                    total += float(k @ m) * 0.7**2 * norms * kappa / 2
            assert float(found[a, b]) == pytest.approx(total / 6, rel=1e-12)


def test_the_kernel_holds_at_any_lengths_of_tokens():
    left = Tokens(1.7 * tokens().query, 0.3 * tokens().keys)
    for bias in (0.0, 2.0):
        layer = RandomFeatureAttention(4, 40_000, bias=bias, generator=generator())
        assert off(layer.gram(left), RFAKernel(bias=bias).gram(left)) < 0.02


def test_masked_keys_are_as_if_they_were_not_there():
    whole = tokens()
    mask = double(1, 0, 1).bool().expand(6, 3)
    masked, short = Tokens(whole.query, whole.keys, mask), Tokens(whole.query, whole.keys[:, [0, 2]])
    for kernel in (RFAKernel(), RFAKernel(bias=1.0), RFAKernel(activation=torch.tanh)):
        torch.testing.assert_close(kernel.gram(masked), kernel.gram(short))
        torch.testing.assert_close(kernel.gram(whole, masked), kernel.gram(whole, short))
    torch.testing.assert_close(
        rfa_kernel(whole.query, whole.keys, whole.query, whole.keys, key_mask=mask), RFAKernel().gram(masked, whole)
    )


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_blocks_and_symmetry_change_no_result(bias, monkeypatch):
    left, kernel = tokens(9), RFAKernel(bias=bias)
    whole = kernel.gram(left)
    monkeypatch.setattr("etude.theory.random_feature_attention.kernel._BLOCK_PAIRS", 40)
    torch.testing.assert_close(kernel.gram(left), whole)
    torch.testing.assert_close(kernel.gram(left, left), whole)
    assert torch.equal(whole, whole.T)


@pytest.mark.parametrize("kernel", [RFAKernel(), RFAKernel(bias=2.0), MLPKernel()], ids=["plain", "biased", "mlp"])
def test_kernels_are_positive_definite(kernel):
    RidgePath(kernel.gram(tokens(40)), torch.ones(40, 1))


def test_the_arc_cosine_kernel_at_known_angles():
    found = arc_cosine(double(1, 0.5, 0, -1, 1 + 1e-12))
    sixty = (math.sqrt(0.75) + 2 * math.pi / 3 * 0.5) / math.pi
    torch.testing.assert_close(found, double(1, sixty, 1 / math.pi, 0, 1), rtol=1e-12, atol=1e-12)


def test_the_arc_cosine_kernel_is_the_dual_of_the_relu():
    rho = torch.linspace(0, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(arc_cosine(rho), dual_activation(torch.relu)(rho), rtol=1e-13, atol=0.0)


def test_an_expanded_activation_is_its_closed_form():
    x = tokens()
    for closed, phi in (("relu", torch.nn.ReLU()), ("exp", torch.exp)):
        # A kink leaves 1e-4 of the variance to degrees above 100; no error where two examples are one.
        exact, found = RFAKernel(activation=closed).gram(x), RFAKernel(activation=phi).gram(x)
        assert off(found, exact) < (1e-5 if closed == "relu" else 1e-12)


@pytest.mark.parametrize("rho", [-0.999, -0.5, 0.0, 0.6, 0.9999])
def test_the_moment_of_two_relus_with_means_is_its_integral(rho):
    r = math.sqrt((1 - rho) * (1 + rho))
    for h in (-1.5, 0.0, 3.0):
        for k in (-0.7, 0.0, 2.0):

            def slice_(z, h=h, k=k):
                inner = k + rho * z
                return (z + h) * stats.norm.pdf(z) * (inner * stats.norm.cdf(inner / r) + r * stats.norm.pdf(inner / r))

            breaks = sorted({-h, *([-k / rho] if rho and -h < -k / rho < 9 else []), 12.0})
            exact = sum(
                integrate.quad(slice_, a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
                for a, b in itertools.pairwise(breaks)
            )
            assert float(relu_moment(double(h), double(k), double(rho))[0]) == pytest.approx(exact, abs=1e-10)


def test_the_moment_without_means_is_the_arc_cosine_kernel_and_at_the_ends_exact():
    rho = torch.linspace(-1, 1, 101, dtype=torch.float64)
    zero = torch.zeros_like(rho)
    torch.testing.assert_close(relu_moment(zero, zero, rho), arc_cosine(rho) / 2, rtol=0.0, atol=1e-9)
    h = torch.linspace(-3, 3, 31, dtype=torch.float64)
    square = (1 + h.numpy() ** 2) * stats.norm.cdf(h) + h.numpy() * stats.norm.pdf(h)
    np.testing.assert_allclose(relu_moment(h, h, torch.ones_like(h)), square, rtol=0, atol=1e-9)
    np.testing.assert_allclose(relu_moment(h, -h, -torch.ones_like(h)), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: head_error(tokens(), 4, draws=1), "draws must be at least 2"),
        (lambda: RFAKernel(activation="softmax"), "no closed form of softmax"),
        (lambda: RFAKernel(weight_std=0.0), "weight_std must be positive"),
        (lambda: RFAKernel(bias=1.0, activation=torch.tanh), "only relu and exp have a kernel with bias"),
        (lambda: RFAKernel(activation=lambda z: torch.exp(z.square())).gram(tokens()), "finite variance"),
        (lambda: RFAKernel().gram(tokens(), tokens(dim=5)), "tokens must have one dim, got 4 and 5"),
        (lambda: MLPKernel().gram(tokens(), tokens(keys=2)), "same keys and dim"),
        (lambda: RFAKernel(activation=torch.tanh).gram(Tokens(tokens().query, 2 * tokens().keys),
                                                      tokens()), "needs tokens of one length"),
    ],
)  # fmt: skip
def test_kernels_without_a_value_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_mlp_kernel_between_two_lists():
    left, right = tokens(), tokens(2, seed=1)
    found = rfmlp_kernel(left.query, left.keys, right.query, right.keys)
    torch.testing.assert_close(found, MLPKernel().gram(left, right))


def test_targets_are_what_their_names_say():
    x, beta = tokens(4, keys=3), double(0.5, -0.5, 0.5, 0.5)
    kinds = ("mean_power", "correlation", "similarity", "query_mean", "key_mean")
    found = permutation_invariant_targets(x.query, x.keys, beta, [(kind, 3) for kind in kinds])
    for n in range(4):
        along = [float(beta @ key) for key in x.keys[n]]
        similar = [float(x.query[n] @ key) for key in x.keys[n]]
        expected = [
            sum(a**3 for a in along) / 3,
            sum(s**3 * a for s, a in zip(similar, along)) / 3,
            sum(s**3 for s in similar) / 3,
            float(x.query[n] @ x.keys[n].mean(0)) ** 3,
            (sum(along) / 3) ** 3,
        ]
        assert found[n].tolist() == pytest.approx(expected, rel=1e-12)
    order = torch.tensor([2, 0, 1])
    moved = permutation_invariant_targets(x.query, x.keys[:, order], beta, [(kind, 3) for kind in kinds])
    torch.testing.assert_close(moved, found)


def test_targets_leave_masked_keys_out():
    x, beta = tokens(4, keys=3), double(1, 0, 0, 0)
    mask = double(1, 0, 1).bool().expand(4, 3)
    for kind in ("mean_power", "key_mean"):
        short = permutation_invariant_targets(x.query, x.keys[:, [0, 2]], beta, [Target(kind, 2)])
        torch.testing.assert_close(
            permutation_invariant_targets(x.query, x.keys, beta, [Target(kind, 2)], key_mask=mask), short
        )


def test_only_means_over_keys_belong_to_the_class():
    inside = [Target(kind, p) for kind in ("mean_power", "correlation", "similarity") for p in (1, 2)]
    assert all(target.is_mean_over_keys for target in [*inside, Target("query_mean", 1), Target("key_mean", 1)])
    assert not Target("query_mean", 2).is_mean_over_keys
    assert complexity(Target("key_mean", 2), 8) == math.inf


def test_complexity_is_the_norm_of_the_tensors_weighted_by_degree():
    dim = 3
    beta = torch.nn.functional.normalize(torch.randn(dim, generator=generator()), dim=0).double()
    eye = torch.eye(dim, dtype=torch.float64)
    tensors = {
        ("mean_power", 2): (2, torch.einsum("a,b->ab", beta, beta)),
        ("similarity", 2): (2, torch.einsum("ab,cd->abcd", eye, eye)),
        ("correlation", 1): (2, torch.einsum("ab,c->abc", eye, beta)),
        ("correlation", 2): (3, torch.einsum("ab,cd,e->abcde", eye, eye, beta)),
    }
    for (kind, power), (k, tensor) in tensors.items():
        expected = k**4.5 * 4**k * float(tensor.square().sum())
        assert complexity(Target(kind, power), dim) == pytest.approx(expected, rel=1e-6)


def test_bounds_scale_as_the_theorems_say():
    B = complexity(Target("mean_power", 2), 8)
    assert approximation_bound(B, 8, 400) == pytest.approx((64 + math.log(400)) * B / 40)
    assert approximation_bound(B, 8, 400, delta=0.05) == pytest.approx(2 * approximation_bound(B, 8, 400))
    assert excess_risk_bound(B, 400) == pytest.approx(excess_risk_bound(B, 100) / 2)
    assert rfmlp_sample_ratio(Target("mean_power", 2), 8) == 64
    assert rfmlp_sample_ratio(Target("correlation", 2), 4) == 64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Target("softmax", 2), "kind must be one of mean_power"),
        (lambda: Target("similarity", 0), "power must be an integer >= 1, got 0"),
        (lambda: TokenTask(0, 4, (Target("similarity"),)), "must be at least 1, got 0, 4 and 1"),
        (lambda: TokenTask(4, 4, ()), "must be at least 1"),
        (lambda: TokenTask(1, 4, (Target("mean_power", 2),)), "at dim = 1 all tokens are .* mean_power2 is constant"),
        (lambda: Target("similarity")(tokens().query, tokens().keys, torch.ones(3).double()), "beta must have shape"),
        (lambda: permutation_invariant_targets(tokens().query, tokens().keys, double(1, 0, 0, 0), []), "at least one"),
        (lambda: approximation_bound(1.0, 4, 4, delta=1.0), "need 0 < delta < 1"),
        (lambda: excess_risk_bound(1.0, 0), "need n >= 1"),
        (lambda: rfmlp_sample_ratio(Target("key_mean", 2), 8), "no mean over keys"),
        (lambda: rfmlp_sample_ratio(Target("key_mean", 1), 0), "num_keys must be at least 1"),
        (lambda: complexity(Target("similarity"), 0), "dim must be at least 1"),
    ],
)
def test_targets_and_bounds_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
