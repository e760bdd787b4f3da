"""Gaussian processes as targets, the critic, the match, and measures of it that use no critic."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch.distributions import LogNormal

pytest.importorskip("gpytorch")

from etude.theory.functional_priors import (
    MLP,
    GaussianWeightPrior,
    GPFunctionPrior,
    GridMeasurementSet,
    HierarchicalWeightPrior,
    ImageMeasurementSet,
    LipschitzCritic,
    TableMeasurementSet,
    WassersteinPriorMatcher,
    autocovariance_error,
    gap_regression,
    gaussian_nll,
    nngp_kernel,
    plot_covariance,
    plot_functions,
    plot_match,
    plot_predictive,
    prior_covariance,
    prior_discrepancy,
    rbf_prior,
    sliced_w1,
    train_critic,
)
from etude.theory.functional_priors.gp import _gpytorch

gpytorch = _gpytorch()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rbf(x, other, length=1.0, variance=1.0):
    return variance * torch.exp(-torch.cdist(x, other).square() / (2 * length**2))


# Gaussian processes


def test_the_target_is_the_rbf_kernel_of_the_paper():
    x = torch.randn(6, 3, dtype=torch.float64)
    assert torch.allclose(rbf_prior(3).covariance(x), rbf(x, x, math.sqrt(6.0)), atol=1e-9)
    assert torch.allclose(rbf_prior(3, lengthscale=0.7, variance=2.0).covariance(x), rbf(x, x, 0.7, 2.0), atol=1e-9)


def test_functions_have_the_covariance_of_the_kernel():
    x = torch.linspace(-1, 1, 5)[:, None]
    gp = rbf_prior(1, lengthscale=0.6, num_outputs=2)
    f = gp.sample_functions(x, 40_000, generator=generator())
    assert f.shape == (40_000, 5, 2)
    assert f.dtype == torch.float64
    for out in range(2):
        assert autocovariance_error(f[:, :, out], gp.covariance(x)) < 0.02
    assert abs(float((f[:, :, 0] * f[:, :, 1]).mean())) < 0.02
    shifted = GPFunctionPrior(rbf, mean=lambda points: points[:, 0])
    f = shifted.sample_functions(x, 20_000, generator=generator())
    assert torch.allclose(f.mean(0)[:, 0], x[:, 0].double(), atol=0.03)


def test_hyperparameters_are_drawn_anew_for_every_function():
    gp = rbf_prior(2, lengthscale=0.5, hierarchical=True)
    f = gp.sample_functions(torch.zeros(1, 2), 40_000, generator=generator())[:, 0, 0]
    # Var f = E variance = exp(0.1 + 1 / 2); and the fourth moment is that of a mixture, 3 E variance^2.
    assert float(f.square().mean()) == pytest.approx(math.exp(0.6), rel=0.06)
    assert float(f.pow(4).mean()) > 2 * 3 * math.exp(0.6) ** 2
    kernel = gp._drawn_kernel(20_000, generator())
    logs = kernel.base_kernel.lengthscale.detach().log()
    assert logs.shape == (20_000, 1, 2)
    assert float(logs.mean()) == pytest.approx(math.log(0.5), abs=0.02)
    assert float(logs.std()) == pytest.approx(1.0, abs=0.02)
    assert float(gp.kernel.base_kernel.lengthscale[0, 0].detach()) == pytest.approx(0.5)


def test_draws_come_from_the_generator_alone():
    x = torch.linspace(-1, 1, 4)[:, None]
    gp = rbf_prior(1, hierarchical=True)
    before = torch.get_rng_state()
    first = gp.sample_functions(x, 3, generator=generator(5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, gp.sample_functions(x, 3, generator=generator(5)))


def test_any_kernel_of_gpytorch_serves():
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
    x = torch.linspace(-1, 1, 5)[:, None]
    assert GPFunctionPrior(kernel).sample_functions(x, 3).shape == (3, 5, 1)
    prior = GPFunctionPrior(kernel, hyperprior={"base_kernel.lengthscale": LogNormal(0.0, 1.0)})
    assert prior.sample_functions(x, 3).shape == (3, 5, 1)


def test_the_posterior_is_that_of_gpytorch():
    x, at = (
        torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None],
        torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None],
    )
    y = torch.sin(3 * x[:, 0])
    gp = rbf_prior(1, lengthscale=0.6, variance=1.3)
    mean, variance = gp.posterior(x, y, at, 0.1)

    class Exact(gpytorch.models.ExactGP):
        def __init__(self):
            likelihood = gpytorch.likelihoods.GaussianLikelihood()
            super().__init__(x, y, likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), gp.kernel

        def forward(self, points):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(points), self.covar_module(points))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Exact().double()
        model.likelihood.noise = 0.1
        model.eval()
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            peer = model(at)
            assert torch.allclose(mean, peer.mean, atol=1e-6)
            assert torch.allclose(variance, peer.variance, atol=1e-6)


def test_a_near_singular_covariance_gets_jitter():
    x = torch.cat([torch.zeros(30, 1), torch.full((30, 1), 1e-9)])
    assert bool(torch.isfinite(rbf_prior(1).sample_functions(x, 2)).all())


def test_a_function_that_is_no_kernel_is_refused_with_the_limit():
    x = torch.linspace(-2, 2, 6)[:, None]
    with pytest.raises(
        ValueError, match=r"not positive definite even with a jitter of 0\.0001.*eigenvalue is -.*kernel"
    ):
        GPFunctionPrior(lambda a, b: 1 - torch.cdist(a, b)).sample_functions(x, 2)
    with pytest.raises(ValueError, match="must be symmetric"):
        GPFunctionPrior(lambda a, b: torch.exp(a - b.T)).sample_functions(x, 2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        GPFunctionPrior(lambda a, b: torch.full((len(a), len(b)), math.inf)).sample_functions(x, 2)


def test_the_refusal_names_lengthscales_and_duplicates():
    class Broken(gpytorch.kernels.RBFKernel):
        def forward(self, x1, x2, diag=False, **params):
            return super().forward(x1, x2, diag=diag, **params) - 0.9

    with pytest.raises(ValueError, match=r"2 of the points are duplicates; the kernel has lengthscale = \[0\.6931\]"):
        GPFunctionPrior(Broken()).sample_functions(torch.tensor([[0.0], [0.0], [0.0], [9.0]]), 2)


def test_bad_processes_are_refused():
    with pytest.raises(ValueError, match="no hyperparameter 'scale'; it has lengthscale"):
        GPFunctionPrior(gpytorch.kernels.RBFKernel(), hyperprior={"scale": LogNormal(0.0, 1.0)})
    with pytest.raises(TypeError, match="a hyperprior needs a gpytorch kernel"):
        GPFunctionPrior(rbf, hyperprior={"lengthscale": LogNormal(0.0, 1.0)})
    with pytest.raises(ValueError, match=r"must be positive, got 1, 0.0"):
        rbf_prior(1, lengthscale=0.0)
    with pytest.raises(ValueError, match="no closed form"):
        rbf_prior(1, hierarchical=True).posterior(torch.zeros(2, 1), torch.zeros(2), torch.zeros(1, 1), 0.1)


# Measurement sets


def test_a_table_set_is_rows_and_a_box_around_all_inputs():
    train, test = torch.rand(50, 3), 2 + torch.rand(9, 3)
    drawn = TableMeasurementSet(train, test, size=20)
    x = drawn(generator())
    assert x.shape == (20, 3)
    rows = {tuple(row) for row in train.tolist()}
    assert len({tuple(row) for row in x[:14].tolist()} & rows) == 14
    assert not {tuple(row) for row in x[14:].tolist()} & rows
    both = torch.cat([train, test])
    assert bool((x[14:] >= both.amin(0)).all() and (x[14:] <= both.amax(0)).all())
    assert float(x[14:].max()) > 1
    assert not torch.equal(drawn(generator(1)), x)


def test_a_measurement_set_larger_than_the_training_set_is_refused():
    with pytest.raises(ValueError, match=r"70 different training inputs and there are 50: at most size=71"):
        TableMeasurementSet(torch.rand(50, 3), size=100)
    with pytest.raises(ValueError, match=r"1\.\.4, the number of images, got 5"):
        ImageMeasurementSet(torch.rand(4, 1, 8, 8), 5)
    with pytest.raises(ValueError, match="low < high"):
        GridMeasurementSet(1, -1)
    assert ImageMeasurementSet(torch.rand(4, 1, 8, 8), 3)(generator()).shape == (3, 1, 8, 8)
    assert GridMeasurementSet()().shape == (200, 1)


# The critic


def test_the_critics_gradient_is_that_of_autograd():
    critic = LipschitzCritic(7, 11, generator()).double()
    f = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    by_autograd = torch.autograd.grad(critic(f).sum(), f, create_graph=True)[0]
    assert torch.allclose(critic.gradient(f), by_autograd, atol=1e-12)
    ours = torch.autograd.grad(critic.gradient(f).norm(), list(critic.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(by_autograd.norm(), list(critic.parameters()), allow_unused=True)
    for a, b in zip(ours, theirs):
        assert (a is None) == (b is None) or float((a if a is not None else b).abs().max()) == 0
        if a is not None and b is not None:
            assert torch.allclose(a, b, atol=1e-10)


def test_a_fresh_critic_is_xavier_normal_with_unit_biases():
    critic = LipschitzCritic(100, 200, generator())
    assert float(critic.layer1.weight.detach().std()) == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert float(torch.cat([critic.layer1.bias, critic.layer2.bias]).detach().std()) == pytest.approx(1, rel=0.1)
    before = critic.layer2.weight.detach().clone()
    critic.reset(generator(1))
    assert not torch.equal(critic.layer2.weight, before)


def trained_distance(p, q, held_p, held_q, steps=250):
    critic = LipschitzCritic(p.shape[1], 64, generator())
    train_critic(critic, p, q, steps=steps, lr=0.05, threshold=0.0, generator=generator(1))
    return float(critic.distance(held_p, held_q).detach())


def test_two_equal_distributions_are_at_distance_zero():
    draws = [rbf_prior(1).sample_functions(torch.linspace(-1, 1, 10)[:, None], 1_000, generator=generator(k)).float()
             for k in range(4)]  # fmt: skip
    assert abs(trained_distance(*draws)) < 0.1


@pytest.mark.parametrize("shift", [0.2, 1.5])
def test_a_shift_of_the_mean_is_found(shift):
    base, held = (
        rbf_prior(1).sample_functions(torch.linspace(-1, 1, 16)[:, None], 1_000, generator=generator(k)).float()
        for k in range(2)
    )
    found = trained_distance(base + shift, base, held + shift, held)
    truth = shift * math.sqrt(16)
    # A slope of 1 + e gains e W and costs 10 e^2, so that e = W / 20: within 5 % up to W = 1, and as much above beyond.
    assert found == pytest.approx(truth * (1 + truth / 20), rel=0.02)
    assert truth > 1 or found == pytest.approx(truth, rel=0.05)


def test_the_distance_of_several_outputs_is_their_sum():
    critic = LipschitzCritic(5, 8, generator())
    p, q = torch.randn(6, 5, 3), torch.randn(4, 5, 3)
    single = sum(float(critic.distance(p[:, :, [k]], q[:, :, [k]]).detach()) for k in range(3))
    assert float(critic.distance(p, q).detach()) == pytest.approx(single, rel=1e-5)


def test_the_penalty_is_at_points_between_paired_rows():
    critic = LipschitzCritic(4, 8, generator())
    p = torch.randn(9, 4, 1)
    norm = critic.gradient(p[:, :, 0]).norm(dim=1).detach()
    assert float(critic.penalty(p, p).detach()) == pytest.approx(float((norm - 1).square().mean()), rel=1e-4)
    held = (norm - 1).clamp(min=0).square().mean()
    assert float(critic.penalty(p, p, one_sided=True).detach()) == pytest.approx(float(held), abs=1e-6)
    with pytest.raises(ValueError, match="rows are paired"):
        train_critic(critic, p, p[:4])


def test_training_stops_at_a_small_gradient():
    critic = LipschitzCritic(4, 8, generator())
    p = torch.randn(9, 4, 1)
    assert train_critic(critic, p, p + 1, steps=50, threshold=1e9) == 1
    assert train_critic(critic, p, p + 1, steps=5, threshold=0.0) == 5


# The match


def linear_match(**options):
    prior = GaussianWeightPrior(MLP(1, []))
    gp = GPFunctionPrior(lambda a, b: 0.8**2 + 2.0**2 * a @ b.T)
    settings = {"n": 256, "outer_steps": 100, "inner_steps": 20, "critic_hidden": 32, "critic_lr": 0.05, "lr": 0.04}
    matcher = WassersteinPriorMatcher(
        prior, gp, GridMeasurementSet(-1, 1, 8), threshold=0.01, generator=generator(1), **(settings | options)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if options else "error")  # of a poor match after a few steps
        return prior, matcher.fit()


def test_matching_a_linear_kernel_finds_its_two_scales():
    _prior, history = linear_match()
    settled = {name: float(np.mean(values[-30:])) for name, values in history.stds.items()}
    assert settled["layers.0.weight"] == pytest.approx(2.0, rel=0.05)
    assert settled["layers.0.bias"] == pytest.approx(0.8, rel=0.05)
    assert history.residual < 0.05 * history.scale
    assert len(history.distance) == len(history.inner_steps) == 100


def test_the_official_and_other_variants_run():
    for options in ({"keep_critic_state": True}, {"reset_critic": False}, {"one_sided": True}):
        _, history = linear_match(outer_steps=3, inner_steps=3, **options)
        assert len(history.distance) == 3


def test_matching_several_outputs_of_other_priors():
    prior = HierarchicalWeightPrior(MLP(2, [5], 3))
    target = rbf_prior(2, num_outputs=3)
    box = TableMeasurementSet(torch.randn(20, 2), size=10)
    matcher = WassersteinPriorMatcher(prior, target, box, n=16, outer_steps=2, inner_steps=2, generator=generator())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = matcher.fit()
    assert history.stds == {}
    assert all(float(a.detach()) != 1.0 for a in prior.a.values())


def test_a_poor_match_warns_of_what_remains():
    prior = GaussianWeightPrior(MLP(1, [10], activation="relu"), std=6.0)
    matcher = WassersteinPriorMatcher(
        prior, rbf_prior(1), GridMeasurementSet(-3, 3, 20), n=64, outer_steps=3, inner_steps=30, lr=1e-4,
        generator=generator(),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="a poor match: a distance of"):
        matcher.fit()


def test_bad_matches_are_refused():
    prior, grid = GaussianWeightPrior(MLP(1)), GridMeasurementSet(-1, 1, 5)
    with pytest.raises(ValueError, match="no trainable hyperparameter"):
        WassersteinPriorMatcher(GaussianWeightPrior(MLP(1), trainable=False), rbf_prior(1), grid)
    with pytest.raises(ValueError, match="outer_steps must be at least 1, got 0"):
        WassersteinPriorMatcher(prior, rbf_prior(1), grid, outer_steps=0)
    with pytest.raises(ValueError, match="lr and critic_lr must be > 0"):
        WassersteinPriorMatcher(prior, rbf_prior(1), grid, lr=0.0)
    with pytest.raises(ValueError, match="set num_outputs of the process"):
        WassersteinPriorMatcher(prior, rbf_prior(1, num_outputs=2), grid).fit()


# The task and distances without a critic


def test_the_task_leaves_a_gap():
    gp = rbf_prior(1, lengthscale=0.6)
    for seed in range(5):
        task = gap_regression(gp, 200, 50, generator=generator(seed))
        inner = task.x[:, 0].sort().values.diff()
        ends = torch.stack([task.x.min() + 2.2, 2.2 - task.x.max()])
        assert max(float(inner.max()), float(ends.max())) == pytest.approx(0.4 * 4.4, abs=0.15)
        assert float((task.y_test - task.truth).var()) == pytest.approx(0.1, rel=0.6)
        assert torch.equal(task.x_test[:, 0], torch.linspace(-2.2, 2.2, 50))
    with pytest.raises(ValueError, match=r"gap in \[0, 1\)"):
        gap_regression(gp, gap=1.0)


def test_the_negative_log_likelihood_is_that_of_the_normal_density():
    y, mean, variance = torch.randn(5), torch.randn(5), torch.rand(5) + 0.1
    expected = -torch.distributions.Normal(mean, variance.sqrt()).log_prob(y).mean()
    assert gaussian_nll(y, mean, variance) == pytest.approx(float(expected), rel=1e-5)


def test_sliced_w1_of_a_shift_and_of_equal_samples():
    a = torch.randn(1_000, 6, generator=generator())
    assert float(sliced_w1(a, a).value) == 0
    shift = torch.zeros(6)
    shift[0] = 3.0
    # Projected on a random direction u the shift is 3 |u_1|: E|u_1| of the sphere in 6 dimensions is 0.3395.
    found = sliced_w1(a, a + shift, projections=2_000, generator=generator(1))
    assert float(found.value) == pytest.approx(3 * 0.33953 * math.sqrt(6), abs=4 * float(found.error))
    assert float(found.error) < 0.05


def test_the_discrepancy_of_the_same_prior_is_its_floor():
    x = torch.linspace(-1, 1, 6)[:, None]
    gp = GPFunctionPrior(lambda a, b: 1 + a @ b.T)
    found = prior_discrepancy(GaussianWeightPrior(MLP(1, []), std=1.0), gp, x, 4_000, generator=generator())
    assert float(found["sliced_w1"].value) < 2.5 * float(found["floor_sliced_w1"].value)
    assert float(found["autocovariance"].value) < 0.15
    far = prior_discrepancy(GaussianWeightPrior(MLP(1, []), std=3.0), gp, x, 4_000, generator=generator())
    assert float(far["sliced_w1"].value) > 10 * float(found["sliced_w1"].value)
    assert float(far["autocovariance"].value) == pytest.approx(8.0, rel=0.1)


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match="the same shape"):
        sliced_w1(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least 2"):
        sliced_w1(torch.zeros(4, 3), torch.zeros(4, 3), projections=1)


def test_the_pictures_are_drawn():
    pytest.importorskip("matplotlib")
    x = torch.linspace(-1, 1, 6)[:, None]
    functions = {"GP": rbf_prior(1).sample_functions(x, 9), "FG": GaussianWeightPrior(MLP(1)).sample_functions(x, 9)}
    assert len(plot_functions(x, functions).axes) == 2
    assert len(plot_match(linear_match(outer_steps=2, inner_steps=2)[1]).axes) == 2
    figure = plot_predictive(x, x[:, 0], torch.ones(6), (x, x[:, 0]), x[:, 0])
    assert len(figure.axes[0].lines) == 3
    prior = GaussianWeightPrior(MLP(1, [5]))
    curves = {"GP": rbf_prior(1).covariance(x), "own": prior_covariance(prior, x, 50), "wide": nngp_kernel(x, 1)}
    assert len(plot_covariance(x, curves).axes[0].containers) == 3
