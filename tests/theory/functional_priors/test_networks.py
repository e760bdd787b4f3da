"""Networks with the scaling in the forward pass, and the Gaussian processes that wide ones tend to."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from etude.theory.functional_priors import (
    MLP,
    GaussianWeightPrior,
    LeNet5,
    PreResNet,
    ScaledConv2d,
    ScaledLinear,
    nngp_kernel,
    prior_covariance,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_layer_divides_by_the_root_of_the_fan_in_once():
    layer, x = ScaledLinear(9, 4), torch.randn(5, 9)
    by_hand = torch.stack([layer.weight @ row / 3 + layer.bias for row in x])
    assert torch.allclose(layer(x), by_hand, atol=1e-6)
    convolution, images = ScaledConv2d(4, 2, 3, padding=1), torch.randn(2, 4, 5, 5)
    plain = nn.functional.conv2d(images, convolution.weight, padding=1) / 6 + convolution.bias[:, None, None]
    assert torch.allclose(convolution(images), plain, atol=1e-5)


def test_the_network_is_its_equation():
    net, x = MLP(3, [4, 5], 2), torch.randn(6, 3)
    first, second, third = net.layers
    h = torch.tanh(x @ first.weight.T / math.sqrt(3) + first.bias)
    h = torch.tanh(h @ second.weight.T / math.sqrt(4) + second.bias)
    assert torch.allclose(net(x), h @ third.weight.T / math.sqrt(5) + third.bias, atol=1e-6)


def test_a_linear_network_has_exactly_the_linear_kernel():
    net = MLP(3, []).double()
    prior = GaussianWeightPrior(net).double()
    with torch.no_grad():
        for rho, value in zip(prior.rho.values(), (0.7, -0.3)):
            rho.fill_(value)
    prior.requires_grad_(False)
    x = torch.randn(5, 3, dtype=torch.float64)
    zero = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in prior.shapes.items()}
    jacobian = jacrev(lambda params: functional_call(net, params, (x,)).squeeze(1))(zero)
    covariance = sum(prior.std(name) ** 2 * value.flatten(1) @ value.flatten(1).T for name, value in jacobian.items())
    sw, sb = (float(prior.std(name)) for name in ("layers.0.weight", "layers.0.bias"))
    assert torch.allclose(covariance, sb**2 + sw**2 * x @ x.T / 3, atol=1e-12)
    limit = nngp_kernel(x, 0, weight_std=sw, bias_std=sb)
    assert torch.allclose(limit.value, covariance.detach(), atol=1e-12)
    assert float(limit.error.max()) == 0


def test_a_wide_network_has_the_covariance_of_the_limit():
    x = torch.linspace(-2, 2, 5)[:, None]
    net = MLP(1, [300, 300])
    prior = GaussianWeightPrior(net, std=1.5, trainable=False)
    sampled = prior_covariance(prior, x, 1_000, generator=generator())
    limit = nngp_kernel(x, 2, "tanh", weight_std=1.5, bias_std=1.5)
    assert float(limit.error.max()) < 1e-5
    assert float(((sampled.value - limit.value).abs() / (4 * sampled.error + 0.02)).max()) < 1


def test_the_limit_of_erf_is_the_arcsine_kernel():
    x = torch.randn(6, 2, dtype=torch.float64)
    base = 0.5**2 + 1.2**2 * x @ x.T / 2
    norm = (1 + 2 * base.diagonal()).sqrt()
    expected = 0.4**2 + 0.9**2 * 2 / math.pi * torch.asin(2 * base / norm[:, None] / norm)
    found = nngp_kernel(x, 1, torch.erf, weight_std=[1.2, 0.9], bias_std=[0.5, 0.4])
    assert torch.allclose(found.value, expected, atol=1e-8)
    assert bool(((found.value - expected).abs() <= found.error + 1e-10).all())


def test_the_error_bar_of_the_limit_covers_a_kink():
    x = torch.randn(6, 3, dtype=torch.float64)
    base = x @ x.T / 3
    scale = (base.diagonal()[:, None] * base.diagonal()).sqrt()
    angle = torch.arccos((base / scale).clamp(-1, 1))
    expected = scale * (torch.sin(angle) + (math.pi - angle) * torch.cos(angle)) / (2 * math.pi)
    found = nngp_kernel(x, 1, "relu", bias_std=0.0)
    assert float((found.value - expected).abs().max()) < 4 * float(found.error.max())
    assert float((found.value - expected).abs().max()) < 0.01


def test_convolutional_networks_have_the_sizes_of_the_papers():
    assert sum(p.numel() for p in LeNet5(1, 10, 28).parameters()) == 44_426
    net = PreResNet(20)
    # 2 x 3 x 3 convolutions of 3 x 3, one before, and two 1 x 1 that adapt the shortcuts.
    expected = 3 * 16 * 9 + 6 * 16 * 16 * 9 + 16 * 32 * 9 + 5 * 32 * 32 * 9 + 32 * 64 * 9 + 5 * 64 * 64 * 9
    expected += 16 * 32 + 32 * 64 + 64 * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == expected
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert LeNet5(3, 7, 32)(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_convolutional_functions_are_drawn_all_at_once_as_one_by_one():
    for net in (LeNet5(1, 3, 16), PreResNet(8, 3, widths=(4, 8, 8))):
        images = torch.randn(4, 1 if isinstance(net, LeNet5) else 3, 16, 16)
        prior = GaussianWeightPrior(net)
        f = prior.sample_functions(images, 3, generator=generator(1))
        params = prior.sample_params(3, generator=generator(1))
        for k in range(3):
            one = functional_call(net, {name: value[k] for name, value in params.items()}, (images,))
            assert torch.allclose(f[k], one, atol=1e-4)
        chunked = prior.sample_functions(images, 3, generator=generator(1), chunk_size=2)
        assert torch.allclose(chunked, f, atol=1e-4)


def test_the_residual_network_normalises_each_channel_without_memory():
    net = PreResNet(8, widths=(4, 4, 4))
    seen = []
    net.blocks[0].conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = 5 + 3 * torch.randn(4, 3, 8, 8)
    net(x)
    h = net.conv1(x)
    variance, mean = torch.var_mean(h, dim=(0, 2, 3), keepdim=True, correction=0)
    assert torch.allclose(seen[0], ((h - mean) / variance.sqrt()).relu(), atol=1e-5)
    assert not [name for name, _ in net.named_buffers()]
    assert torch.equal(net.train()(x), net.eval()(x))


def test_bad_sizes_and_names_are_refused():
    with pytest.raises(ValueError, match="must be positive, got 0 and 3"):
        ScaledLinear(0, 3)
    with pytest.raises(ValueError, match=r"one of tanh, relu.*got 'swish'"):
        MLP(2, activation="swish")
    with pytest.raises(ValueError, match=r"6 n \+ 2.*got 19"):
        PreResNet(19)
    with pytest.raises(ValueError, match=r"at least 16.*got 12"):
        LeNet5(size=12)
    with pytest.raises(ValueError, match="one for each of 3 layers"):
        nngp_kernel(torch.zeros(2, 1), 2, weight_std=[1.0, 2.0])
    with pytest.raises(ValueError, match="depth must be >= 0"):
        nngp_kernel(torch.zeros(2, 1), -1)
    with pytest.raises(ValueError, match="at least 2"):
        prior_covariance(GaussianWeightPrior(MLP(1)), torch.zeros(2, 1), 1)


def test_the_limit_at_a_point_without_spread():
    # No bias and x = 0: the variance there is 0 at every layer.
    found = nngp_kernel(torch.tensor([[0.0], [1.0]]), 3, bias_std=0.0)
    np.testing.assert_allclose(found.value[0].numpy(), 0.0, atol=1e-12)


def test_networks_are_saved_and_loaded(tmp_path):
    x, images = torch.randn(4, 3), torch.randn(2, 3, 16, 16)
    for place, (net, inputs) in enumerate(
        ((MLP(3, [4], 2, "relu"), x), (LeNet5(3, 5, 16), images), (PreResNet(8, 5, widths=[4, 4, 8]), images))
    ):
        net.save_pretrained(tmp_path / str(place))
        again = type(net).from_pretrained(tmp_path / str(place))
        assert torch.equal(again(inputs), net(inputs))
