"""Weight priors: what they draw, their densities and gradients; the flow's exact inverse."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from etude.theory.functional_priors import (
    MLP,
    FlowWeightPrior,
    GaussianWeightPrior,
    HierarchicalWeightPrior,
    PlanarFlow,
    PlanarMap,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def strong_map(dim, seed, scale=3.0):
    """A map that bends much, near the border of invertibility."""
    planar = PlanarMap(dim, generator(seed)).double()
    with torch.no_grad():
        planar.u.copy_(scale * torch.randn(dim, generator=generator(seed + 1), dtype=torch.float64))
        planar.w.copy_(2 * torch.randn(dim, generator=generator(seed + 2), dtype=torch.float64))
    return planar


# Gaussian


def test_the_sampled_std_of_a_layer_is_the_softplus_of_rho():
    prior = GaussianWeightPrior(MLP(1, [1]))
    with torch.no_grad():
        for place, name in enumerate(prior.shapes):
            prior.rho[name.replace(".", "/")].fill_(0.5 * place - 0.5)
    draws = {name: value.detach() for name, value in prior.sample_params(50_000, generator=generator()).items()}
    for place, name in enumerate(prior.shapes):
        expected = math.log1p(math.exp(0.5 * place - 0.5))
        assert float(draws[name].std()) == pytest.approx(expected, rel=0.01)
        assert float(draws[name].mean()) == pytest.approx(0, abs=0.02 * expected)


def test_rho_starts_at_one():
    assert all(rho.item() == pytest.approx(1.0, abs=1e-6) for rho in GaussianWeightPrior(MLP(2)).rho.values())
    assert list(GaussianWeightPrior(MLP(2), std=2.5).stds().values()) == pytest.approx([2.5] * 4, rel=1e-5)


def test_the_gradient_of_the_log_density_is_minus_theta_over_the_variance():
    for per in ("layer", "parameter"):
        prior = GaussianWeightPrior(MLP(3, [4]), std=0.7, per=per)
        params = {name: value.detach().requires_grad_() for name, value in prior.sample_params(2).items()}
        prior.log_prob(params).sum().backward()
        for value in params.values():
            assert torch.allclose(value.grad, -value.detach() / 0.7**2, rtol=1e-4)


def test_the_gaussian_log_density_is_that_of_scipy():
    prior = GaussianWeightPrior(MLP(3, [4]), std=0.7)
    params = prior.sample_params(3, generator=generator())
    flat = torch.cat([value.flatten(1) for value in params.values()], 1).detach().numpy()
    expected = stats.norm(0, 0.7).logpdf(flat).sum(1)
    assert prior.log_prob(params).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_draws_are_differentiable_by_the_hyperparameters():
    for prior in (GaussianWeightPrior(MLP(1, [3])), HierarchicalWeightPrior(MLP(1, [3])), FlowWeightPrior(MLP(1, [3]))):
        prior.sample_functions(torch.randn(5, 1), 4).square().sum().backward()
        assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in prior.parameters())


def test_a_fixed_prior_has_nothing_to_train():
    net = MLP(1, [3])
    for prior in (
        GaussianWeightPrior(net, trainable=False),
        HierarchicalWeightPrior(net, trainable=False),
        FlowWeightPrior(net, trainable=False),
    ):
        assert not any(value.requires_grad for value in prior.parameters())
        assert not prior.sample_functions(torch.zeros(2, 1), 2).requires_grad


# Hierarchical


def test_variances_are_inverse_gamma():
    prior = HierarchicalWeightPrior(MLP(1, []), shape=3.0, rate=2.0)
    precisions = prior.sample_precisions(20_000, generator=generator())["layers.0.weight"]
    distance = stats.kstest((1 / precisions).detach().numpy(), stats.invgamma(3.0, scale=2.0).cdf).statistic
    assert distance < 0.015


def test_every_function_has_a_variance_of_its_own_unless_shared():
    net = MLP(40, [])
    spread = {}
    for shared in (False, True):
        prior = HierarchicalWeightPrior(net, shape=2.0, rate=2.0, shared=shared)
        weights = prior.sample_params(200, generator=generator())["layers.0.weight"]
        stds = weights.flatten(1).std(1).detach()
        spread[shared] = float(stds.std() / stds.mean())
    assert spread[True] < 0.15 < 0.3 < spread[False]


def test_the_density_with_variances_integrated_out_is_a_multivariate_t():
    prior = HierarchicalWeightPrior(MLP(3, []), shape=1.7, rate=0.8)
    params = {"layers.0.weight": torch.randn(4, 1, 3), "layers.0.bias": torch.randn(4, 1)}
    expected = 0.0
    for value in params.values():
        flat = value.flatten(1).numpy()
        t = stats.multivariate_t(loc=[0.0] * flat.shape[1], shape=0.8 / 1.7, df=2 * 1.7)
        expected = expected + t.logpdf(flat)
    assert prior.log_prob(params).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_density_given_the_variances_is_gaussian():
    prior = HierarchicalWeightPrior(MLP(3, []))
    params = prior.sample_params(2, generator=generator())
    precisions = {name: torch.tensor([4.0, 0.25]) for name in prior.shapes}
    for row, std in enumerate((0.5, 2.0)):
        own = {name: value[row : row + 1] for name, value in params.items()}
        expected = GaussianWeightPrior(MLP(3, []), std=std).log_prob(own)
        assert prior.log_prob(params, precisions)[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_gibbs_step_has_the_moments_of_the_inverse_gamma_posterior():
    net = MLP(4, [])
    prior = HierarchicalWeightPrior(net, shape=2.0, rate=1.5)
    row = {"layers.0.weight": torch.tensor([[[0.5, -1.0, 2.0, 0.3]]]), "layers.0.bias": torch.tensor([[0.7]])}
    many = {name: value.expand(40_000, *value.shape[1:]) for name, value in row.items()}
    drawn = prior.resample(many, generator=generator())
    for name, value in row.items():
        shape, rate = 2.0 + 0.5 * value.numel(), 1.5 + 0.5 * float(value.square().sum())
        variances = (1 / drawn[name]).double()
        assert float(variances.mean()) == pytest.approx(rate / (shape - 1), rel=0.03)
        assert float(drawn[name].mean()) == pytest.approx(shape / rate, rel=0.01)
        assert float(drawn[name].var()) == pytest.approx(shape / rate**2, rel=0.04)


# Flows


@pytest.mark.parametrize("seed", range(3))
def test_the_inverse_of_a_planar_map_gives_x_back(seed):
    planar = strong_map(7, seed)
    x = 3 * torch.randn(200, 7, generator=generator(9), dtype=torch.float64)
    y, log_determinant = planar(x)
    back, same = planar.inverse(y)
    assert torch.allclose(back, x, atol=1e-6)
    assert torch.allclose(same, log_determinant, atol=1e-6)


def test_the_log_determinant_is_that_of_the_jacobian():
    planar = strong_map(4, 5)
    x = torch.randn(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda point: planar(point[None])[0][0], x)
    assert planar(x[None])[1].item() == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), abs=1e-9)


def test_the_density_of_a_flow_integrates_to_one():
    flow = PlanarFlow(2, 3, generator()).double()
    for seed, planar in enumerate(flow.maps):
        planar.load_state_dict(strong_map(2, seed, 1.0).state_dict())
    with torch.no_grad():
        flow.log_variance.copy_(torch.tensor([0.3, -0.5]))
    line = torch.linspace(-8, 8, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        mass = float(flow.log_prob(grid).exp().sum() * (line[1] - line[0]) ** 2)
    assert mass == pytest.approx(1.0, abs=1e-4)


def test_the_density_of_a_flow_is_that_of_its_draws():
    flow = PlanarFlow(2, 2, generator()).double()
    for seed, planar in enumerate(flow.maps):
        planar.load_state_dict(strong_map(2, seed).state_dict())
    with torch.no_grad():
        draws = flow.rsample(40_000, generator(3))
        inside = ((draws > 0) & (draws < 1)).all(1).double().mean()
        line = torch.linspace(0.0025, 0.9975, 200, dtype=torch.float64)
        mass = flow.log_prob(torch.cartesian_prod(line, line)).exp().mean()
    assert float(inside) == pytest.approx(float(mass), abs=0.005)


def test_the_gradients_of_the_density_are_right():
    flow = PlanarFlow(3, 2, generator()).double()
    for seed, planar in enumerate(flow.maps):
        planar.load_state_dict(strong_map(3, seed).state_dict())
    y = torch.randn(4, 3, generator=generator(1), dtype=torch.float64, requires_grad=True)
    names, values = zip(*flow.named_parameters())
    values = tuple(value.detach().clone().requires_grad_() for value in values)

    def density(point, *parameters):
        return torch.func.functional_call(_Density(flow), {f"flow.{n}": v for n, v in zip(names, parameters)}, (point,))

    assert torch.autograd.gradcheck(density, (y, *values), atol=1e-5)


class _Density(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, y):
        return self.flow.log_prob(y)


def test_a_flow_without_maps_is_gaussian():
    prior = FlowWeightPrior(MLP(2, [3]), maps=0)
    params = prior.sample_params(3, generator=generator())
    assert torch.allclose(prior.log_prob(params), GaussianWeightPrior(MLP(2, [3]), std=1.0).log_prob(params), rtol=1e-4)


def test_a_flow_keeps_weights_and_biases_of_a_layer_together():
    prior = FlowWeightPrior(MLP(2, [3], 1))
    assert prior.groups == {
        "layers.0": ["layers.0.weight", "layers.0.bias"], "layers.1": ["layers.1.weight", "layers.1.bias"],
    }  # fmt: skip
    assert [len(flow.log_variance) for flow in prior.flows.values()] == [9, 4]
    lone = FlowWeightPrior(nn.Linear(2, 1))
    assert lone.sample_functions(torch.zeros(4, 2), 3).shape == (3, 4, 1)


def test_the_maps_stay_invertible_wherever_training_takes_them():
    planar = PlanarMap(2).double()
    with torch.no_grad():
        planar.u.copy_(torch.tensor([-30.0, 0.0]))
        planar.w.copy_(torch.tensor([4.0, 0.0]))
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)[:, None] * torch.ones(2, dtype=torch.float64)
    y, _ = planar(x)
    assert bool((y[1:, 0] > y[:-1, 0]).all())
    assert torch.allclose(planar.inverse(y)[0], x, atol=1e-6)
    assert F.softplus(planar.w @ planar.u).item() >= 0


# Refusals


def test_bad_hyperparameters_are_refused():
    net = MLP(2, [3])
    with pytest.raises(ValueError, match="std must be positive and finite, got 0"):
        GaussianWeightPrior(net, std=0)
    with pytest.raises(ValueError, match="per must be one of layer, parameter, got 'unit'"):
        GaussianWeightPrior(net, per="unit")
    with pytest.raises(ValueError, match="shape and rate must be positive"):
        HierarchicalWeightPrior(net, rate=-1.0)
    with pytest.raises(ValueError, match="has no parameters"):
        GaussianWeightPrior(nn.Tanh())
    with pytest.raises(ValueError, match="maps >= 0"):
        PlanarFlow(3, -1)


def test_a_flow_on_a_large_layer_is_refused_with_the_limit():
    with pytest.raises(ValueError, match=r"layers.1 has 40,200 parameters.*20,000"):
        FlowWeightPrior(MLP(1, [200, 200]))


def test_parameters_of_another_network_are_refused():
    prior = GaussianWeightPrior(MLP(2, [3]))
    params = prior.sample_params(2)
    with pytest.raises(ValueError, match="must be those of the network"):
        prior.log_prob({"weight": torch.zeros(2, 3)})
    params["layers.0.bias"] = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"layers.0.bias: \(n, \(3,\)\), got \(2, 4\)"):
        prior.log_prob(params)
