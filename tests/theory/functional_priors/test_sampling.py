"""SGHMC and HMC against closed forms, chains side by side against chains alone, diagnostics against naive loops."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

import etude.theory.functional_priors.posterior as posterior_module
from etude.theory.functional_priors import (
    MLP,
    AdaptiveSGHMC,
    CategoricalLikelihood,
    FlowWeightPrior,
    GaussianLikelihood,
    GaussianWeightPrior,
    HierarchicalWeightPrior,
    effective_sample_size,
    hmc_step,
    sample_posterior,
    split_rhat,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# The samplers


def test_a_step_is_its_equations():
    theta = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    sampler = AdaptiveSGHMC([theta], lr=0.1, mdecay=0.05, burn_in=2, eps=0.0, generator=generator())
    noise = torch.Generator().manual_seed(0)
    by_hand = theta.detach().clone()
    tau = g = v = torch.ones(2, dtype=torch.float64)
    m = torch.zeros(2, dtype=torch.float64)
    for step in range(4):
        sampler.zero_grad()
        (0.5 * (3 * theta).square().sum()).backward()
        grad = 9 * by_hand
        sampler.step()
        if step < 2:
            t = 1 / (tau + 1)
            tau, g, v = tau + 1 - tau * g**2 / v, g + t * (grad - g), v + t * (grad**2 - v)
        inverse = 1 / v.sqrt()
        variance = (2 * 0.1**2 * 0.05 * inverse - 0.1**4).clamp(min=1e-16)
        drawn = torch.randn(2, generator=noise, dtype=torch.float64)
        m = m - 0.1**2 * inverse * grad - 0.05 * m + variance.sqrt() * drawn
        by_hand = by_hand + m
        assert torch.allclose(theta.detach(), by_hand, atol=1e-12)
    assert torch.allclose(sampler.state[theta]["v"], v)  # fixed after burn-in


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_variance_of_a_gaussian_target_is_right(adaptive):
    theta = torch.zeros(5_000, 1, requires_grad=True)
    sampler = AdaptiveSGHMC([theta], lr=0.05, mdecay=0.1, burn_in=200, adaptive=adaptive, generator=generator())
    found = []
    for step in range(800):
        theta.grad = theta.detach() / 1.5**2
        sampler.step()
        if step >= 500 and step % 30 == 0:
            found.append(float(theta.detach().var()))
    assert np.mean(found) == pytest.approx(1.5**2, rel=0.05)
    assert sampler.clamped_fraction == 0 or adaptive


def test_clamped_variances_are_counted():
    theta = torch.zeros(4, requires_grad=True)
    sampler = AdaptiveSGHMC([theta], lr=0.9, mdecay=0.01, adaptive=False)
    theta.grad = torch.zeros(4)
    sampler.step()
    assert sampler.clamped_fraction == sampler.noise_deficit == 1.0
    theta.grad = torch.zeros(4)
    gentle = AdaptiveSGHMC([theta], lr=0.1, mdecay=0.05, adaptive=False)
    gentle.step()
    assert gentle.clamped_fraction == 0
    assert gentle.noise_deficit == pytest.approx(0.1**2 / (2 * 0.05))


def test_hamiltonian_monte_carlo_draws_a_correlated_gaussian():
    precision = torch.linalg.inv(torch.tensor([[1.0, 0.8], [0.8, 1.5]], dtype=torch.float64))
    theta = torch.zeros(4_000, 2, dtype=torch.float64)
    rate = 0.0
    for _ in range(25):
        theta, accepted = hmc_step(
            lambda flat: 0.5 * ((flat @ precision) * flat).sum(1), theta, step_size=0.4, leapfrog=6,
            generator=generator(int(1000 * rate)),
        )  # fmt: skip
        rate += float(accepted.double().mean()) / 25
    assert 0.7 < rate < 1
    assert torch.allclose(theta.T.cov(), torch.linalg.inv(precision), atol=0.08)


def test_a_step_beyond_all_bounds_is_rejected():
    theta = torch.ones(3, 1)
    moved, accepted = hmc_step(lambda flat: flat.square().sum(1), theta, step_size=1e20, leapfrog=5)
    assert not bool(accepted.any())
    assert torch.equal(moved, theta)


# The posterior


def regression(n=30, features=2):
    x = torch.randn(n, features, generator=generator(1))
    return x, x[:, 0] - 0.5 + 0.3 * torch.randn(n, generator=generator(2))


def closed_form(x, y, std, noise):
    """Mean and covariance of (weights, bias) of a scaled linear model."""
    design = torch.cat([x / math.sqrt(x.shape[1]), torch.ones(len(x), 1)], 1).double()
    covariance = torch.linalg.inv(design.T @ design / noise + torch.eye(design.shape[1]) / std**2)
    return covariance @ design.T @ y.double() / noise, covariance


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("hmc", {"lr": 0.08, "leapfrog": 8, "burn_in": 15, "samples": 3, "keep_every": 4}),
        ("sghmc", {"lr": 0.015, "mdecay": 0.1, "burn_in": 150, "samples": 3, "keep_every": 30}),
    ],
)
def test_the_posterior_of_linear_regression_is_the_closed_form(sampler, options):
    x, y = regression()
    net = MLP(2, [])
    posterior = sample_posterior(
        net, GaussianWeightPrior(net, std=1.2), GaussianLikelihood(0.2), (x, y), chains=1000, batch_size=30,
        discard=0, sampler=sampler, generator=generator(), **options,
    )  # fmt: skip
    flat = torch.cat([value.flatten(2) for value in posterior.params.values()], 2).flatten(0, 1).double()
    mean, covariance = closed_form(x, y, 1.2, 0.2)
    spread = covariance.diagonal().sqrt()
    assert float(((flat.mean(0) - mean) / spread).abs().max()) < 0.1
    assert float(((flat.T.cov() - covariance) / spread[:, None] / spread).abs().max()) < 0.1
    assert (posterior.acceptance is None) == (sampler != "hmc")
    f, variance = posterior.moments(x)
    assert float((f[:, 0] - (x @ mean[:2].float() / math.sqrt(2) + mean[2].float())).abs().max()) < 0.05
    assert variance.shape == (30, 1)


def test_the_potential_scales_mini_batches_and_not_the_prior():
    # With as many rows as a batch, repeated, and likelihood halved, the posterior must be the same.
    x, y = regression(16)
    net = MLP(2, [])
    prior = GaussianWeightPrior(net, std=0.5)
    doubled = (torch.cat([x, x]), torch.cat([y, y]))
    settings = {"chains": 300, "burn_in": 150, "samples": 2, "keep_every": 20, "discard": 0, "lr": 0.03, "mdecay": 0.1}
    means = [
        sample_posterior(net, prior, GaussianLikelihood(0.2), data, batch_size=16, generator=generator(), **settings)
        .moments(x)[0]
        for noise, data in ((0.2, (x, y)), (0.4, doubled))
    ]  # fmt: skip
    assert float((means[0] - means[1]).abs().max()) < 0.06


def test_chains_side_by_side_are_the_chains_alone():
    x, y = regression(40)
    net = MLP(2, [5])
    settings = {"burn_in": 6, "samples": 4, "keep_every": 3, "discard": 1, "batch_size": 8, "gibbs_every": 5}
    for prior in (GaussianWeightPrior(net), HierarchicalWeightPrior(net), FlowWeightPrior(net, generator=generator())):
        together = sample_posterior(
            net,
            prior,
            GaussianLikelihood(0.1),
            (x, y),
            chains=3,
            generator=[generator(k) for k in range(3)],
            **settings,
        )
        for k in range(3):
            alone = sample_posterior(
                net, prior, GaussianLikelihood(0.1), (x, y), chains=1, generator=[generator(k)], **settings
            )
            for name, value in alone.params.items():
                assert value.shape[:2] == (1, 3)
                assert torch.allclose(value[0], together.params[name][k], atol=1e-4)


def test_vectorised_chains_are_a_plain_loop():
    x, y = regression(12)
    net = MLP(2, [4])
    prior = GaussianWeightPrior(net, std=0.8)
    posterior = sample_posterior(
        net, prior, GaussianLikelihood(0.3), (x, y), chains=1, burn_in=5, samples=3, keep_every=5, discard=0,
        generator=[generator(7)],
    )  # fmt: skip
    source = generator(7)
    params = {name: value.detach().clone() for name, value in prior.sample_params(1, generator=source).items()}
    theta = torch.cat([value.flatten() for value in params.values()]).requires_grad_()
    sampler = AdaptiveSGHMC([theta], lr=1e-2, mdecay=1e-2, burn_in=5, generator=source)
    kept = []
    for step in range(20):
        parts = theta.split([value.numel() for value in params.values()])
        state = {name: part.reshape(params[name].shape[1:]) for name, part in zip(params, parts)}
        f = functional_call(net, state, (x,))[:, 0]
        sampler.zero_grad()
        ((f - y).square().sum() / (2 * 0.3) + theta.square().sum() / (2 * 0.8**2)).backward()
        sampler.step()
        if step >= 5 and (step - 4) % 5 == 0:
            kept.append(theta.detach().clone())
    for draw, expected in enumerate(kept):
        found = torch.cat([value[0, draw].flatten() for value in posterior.params.values()])
        assert torch.allclose(found, expected, atol=1e-4)


def test_classes_are_drawn_by_their_softmax():
    f, y = torch.randn(6, 3), torch.tensor([0, 2, 1, 1, 0, 2])
    expected = -sum(torch.log_softmax(row, 0)[label] for row, label in zip(f, y))
    assert float(CategoricalLikelihood()(f, y)) == pytest.approx(float(expected), rel=1e-5)
    net = MLP(2, [4], 3)
    posterior = sample_posterior(
        net, GaussianWeightPrior(net), CategoricalLikelihood(), (torch.randn(6, 2), y), chains=2, burn_in=4, samples=5,
        keep_every=2, discard=1, generator=generator(),
    )  # fmt: skip
    x = torch.randn(3, 2)
    by_hand = torch.stack([
        functional_call(net, {name: value[c, d] for name, value in posterior.params.items()}, (x,)).softmax(-1)
        for c in range(2) for d in range(4)
    ]).mean(0)  # fmt: skip
    assert torch.allclose(posterior.probabilities(x), by_hand, atol=1e-5)
    assert posterior.diagnostics(x)["r_hat"].shape == (3, 3)


def test_the_hyperparameters_are_left_as_they_were():
    net = MLP(2, [3])
    prior = GaussianWeightPrior(net)
    sample_posterior(net, prior, GaussianLikelihood(0.1), regression(), burn_in=2, samples=2, keep_every=1, discard=0)
    assert all(value.requires_grad and value.grad is None for value in prior.parameters())


def test_bad_schedules_and_data_are_refused():
    net = MLP(2, [3])
    prior, likelihood, data = GaussianWeightPrior(net), GaussianLikelihood(0.1), regression()
    for options, message in (
        ({"samples": 5, "discard": 5}, r"discard must lie in 0\.\.4"),
        ({"sampler": "nuts"}, "sampler must be one of adaptive_sghmc, sghmc, hmc, got 'nuts'"),
        ({"chains": 0}, "must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"generator": [generator()], "chains": 2}, "one generator a chain, 2, got 1"),
        (
            {"lr": 40.0, "sampler": "sghmc", "burn_in": 200, "samples": 11, "keep_every": 10},
            "diverged within .* at lr=40",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            sample_posterior(net, prior, likelihood, data, **options)
    with pytest.raises(ValueError, match="as many rows, at least one, got 30 and 4"):
        sample_posterior(net, prior, likelihood, (data[0], data[1][:4]))
    with pytest.raises(ValueError, match="noise_variance must be positive"):
        GaussianLikelihood(0.0)
    with pytest.raises(ValueError, match=r"mdecay in \(0, 1\]"):
        AdaptiveSGHMC([torch.zeros(1, requires_grad=True)], mdecay=0.0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        hmc_step(lambda flat: flat.sum(1), torch.zeros(1, 1), step_size=0.0)


# Diagnostics


def autoregressive(chains, draws, rho, seed=0):
    noise = np.random.RandomState(seed).randn(chains, draws)
    out = np.zeros_like(noise)
    out[:, 0] = noise[:, 0]
    for t in range(1, draws):
        out[:, t] = rho * out[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return torch.from_numpy(out)


def test_r_hat_is_its_definition_over_halved_chains():
    draws = autoregressive(3, 41, 0.7).numpy()
    halves = [half for chain in draws for half in (chain[:20], chain[-20:])]
    within = np.mean([half.var(ddof=1) for half in halves])
    between = 20 * np.var([half.mean() for half in halves], ddof=1)
    expected = math.sqrt((19 / 20 * within + between / 20) / within)
    assert float(split_rhat(torch.from_numpy(draws))) == pytest.approx(expected, rel=1e-10)


def test_r_hat_tells_agreement_from_separation_and_drift():
    same = autoregressive(4, 500, 0.0)
    assert float(split_rhat(same)) < 1.02
    assert float(split_rhat(same + torch.arange(4)[:, None])) > 1.4
    assert float(split_rhat(same + torch.linspace(0, 4, 500))) > 1.3
    assert float(split_rhat(torch.ones(2, 10))) == 1


def test_the_effective_sample_size_of_autoregressive_chains():
    for rho in (0.0, 0.5, 0.9):
        found = float(effective_sample_size(autoregressive(8, 4_000, rho)))
        assert found == pytest.approx(8 * 4_000 * (1 - rho) / (1 + rho), rel=0.12)


def test_the_effective_sample_size_is_a_naive_loop():
    draws = autoregressive(2, 60, 0.6, seed=3).numpy()
    halves = np.stack([half for chain in draws for half in (chain[:30], chain[-30:])])
    halves = halves[[0, 2, 1, 3]]
    m, n = halves.shape
    within = halves.var(1, ddof=1).mean()
    total = within * (n - 1) / n + halves.mean(1).var(ddof=1)
    rho = [1.0]
    for lag in range(1, n):
        products = []
        for chain in halves:
            centred = chain - chain.mean()
            products.append((centred[: n - lag] * centred[lag:]).sum() / (n - 1))
        rho.append(1 - (within - np.mean(products)) / total)
    time, lowest = -1.0, math.inf
    for k in range(0, n - 1, 2):
        pair = rho[k] + rho[k + 1]
        if pair <= 0:
            break
        lowest = min(lowest, pair)
        time += 2 * lowest
    assert float(effective_sample_size(torch.from_numpy(draws))) == pytest.approx(m * n / time, rel=1e-8)


def test_diagnostics_keep_the_shape_and_refuse_few_or_diverged_draws():
    draws = torch.randn(3, 20, 4, 2)
    assert split_rhat(draws).shape == effective_sample_size(draws).shape == (4, 2)
    assert float(split_rhat(draws)[1, 1]) == pytest.approx(float(split_rhat(draws[:, :, 1, 1])))
    assert float(effective_sample_size(draws)[1, 1]) == pytest.approx(float(effective_sample_size(draws[:, :, 1, 1])))
    with pytest.raises(ValueError, match=r"at least 4 draws, got \(2, 3\)"):
        split_rhat(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="a chain has diverged"):
        effective_sample_size(torch.full((2, 8), math.nan))


def chains_of(module, steps):
    data = torch.linspace(-1, 1, 24)[:, None], torch.linspace(-1, 1, 24).sin()
    return sample_posterior(
        module, GaussianWeightPrior(module), GaussianLikelihood(0.1), data, chains=2, burn_in=steps, samples=2,
        keep_every=1, discard=0, batch_size=8, generator=[torch.Generator().manual_seed(i) for i in range(2)],
    )  # fmt: skip


def test_written_down_operations_give_the_same_chains(monkeypatch):
    module = MLP(1, [5])
    traced = chains_of(module, 20)
    monkeypatch.setattr(posterior_module, "_WORTH_TRACING", 0)
    used = []
    original = posterior_module._traced

    def watched(gradient, *example):
        used.append((gradient, original(gradient, *example)))
        return used[-1][1]

    monkeypatch.setattr(posterior_module, "_traced", watched)
    again = chains_of(module, 20)
    assert used[0][0] is not used[0][1]
    for name, value in traced.params.items():
        assert torch.equal(value, again.params[name])


def test_what_depends_on_the_numbers_is_not_written_down():
    def gradient(flat, rows, precisions):
        return flat if float(flat.sum()) > 0 else 2 * flat

    assert posterior_module._traced(gradient, torch.ones(2, 3), None, None) is gradient
