"""Networks of finite width: the architecture, their kernels against gradients and against the limit."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.theory.wide_cnn import (
    HierarchicalCNN,
    HierarchicalLCN,
    empirical_ntk,
    empirical_rfk,
    hierarchical_kernel,
    sample_multisphere,
    width_error,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_sequence_network_is_convolutions_whose_stride_is_their_size():
    network = HierarchicalCNN(5, 1, 16, [2, 2, 2], generator=seeded(), out_features=3).double()
    x = sample_multisphere(4, 8, 2, seeded(1))
    h = x[:, None]
    for layer, weight in enumerate(network.weights):
        channels = 1 if layer == 0 else 5
        filters = weight.T.reshape(5, 2, channels).transpose(1, 2)  # a place after the other, its channels together
        h = F.conv1d(h, filters, stride=2) / (1 if layer == 0 else math.sqrt(2 * channels))
        h = math.sqrt(2) * torch.relu(h)
    readout = network.readout.reshape(2, 5, 3)
    expected = torch.einsum("bcp,pco->bo", h, readout) / math.sqrt(10)
    assert torch.allclose(network(x), expected, atol=1e-12)


def test_an_image_network_is_convolutions_whose_stride_is_their_size():
    network = HierarchicalCNN(4, 3, (4, 8), [2, 2], normalize=False, generator=seeded()).double()
    x = torch.randn(3, 3, 4, 8, dtype=torch.float64, generator=seeded(1))
    first = network.weights[0].T.reshape(4, 3, 2, 2)
    second = network.weights[1].T.reshape(4, 2, 2, 4).permute(0, 3, 1, 2)
    h = math.sqrt(2) * torch.relu(F.conv2d(x, first, stride=2))
    h = math.sqrt(2) * torch.relu(F.conv2d(h, second, stride=2) / 4)
    expected = torch.einsum("bcij,jco->bo", h, network.readout.reshape(2, 4, 1)) / math.sqrt(8)
    assert torch.allclose(network(x), expected, atol=1e-12)


def test_locally_connected_filters_at_one_value_are_a_convolution():
    shared = HierarchicalCNN(6, 1, 8, [2, 2, 2], generator=seeded()).double()
    local = HierarchicalLCN(6, 1, 8, [2, 2, 2], generator=seeded(1)).double()
    assert [tuple(weight.shape) for weight in local.weights] == [(4, 2, 6), (2, 12, 6), (1, 12, 6)]
    with torch.no_grad():
        for own, common in zip(local.weights, shared.weights):
            own.copy_(common.expand_as(own))
        local.readout.copy_(shared.readout)
    x = sample_multisphere(5, 4, 2, seeded(2))
    assert torch.allclose(local(x), shared(x), atol=1e-13)


@pytest.mark.parametrize("make", [HierarchicalCNN, HierarchicalLCN])
@pytest.mark.parametrize("filters", [[2], [2, 2], [4, 2]])
def test_the_empirical_kernel_is_the_inner_product_of_gradients(make, filters):
    network = make(7, 1, 8, filters, generator=seeded()).double()
    x, y = sample_multisphere(4, 4, 2, seeded(1)), sample_multisphere(3, 4, 2, seeded(2))

    def gradients(inputs):
        rows = []
        for one in inputs:
            grads = torch.autograd.grad(network(one[None])[0, 0], list(network.parameters()))
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        return torch.stack(rows)

    assert torch.allclose(empirical_ntk(network, x, y), gradients(x) @ gradients(y).T, atol=1e-10)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("make", [HierarchicalLCN, HierarchicalCNN])
def test_four_networks_of_width_2048_have_the_limits_within_five_percent(make):
    x = sample_multisphere(6, 4, 2, seeded(7))
    found = {"ntk": 0.0, "rfk": 0.0}
    for seed in range(4):
        network = make(2048, 1, 8, [2, 2, 2], generator=seeded(seed))
        for kind, measure in (("ntk", empirical_ntk), ("rfk", empirical_rfk)):
            found[kind] = found[kind] + measure(network, x.float(), x.float()).detach().double() / 4
    for kind, mean in found.items():
        limit = hierarchical_kernel(x, None, [2, 2, 2], kind)
        assert float((mean - limit).norm() / limit.norm()) < 0.05
        assert float((mean / limit).mean()) == pytest.approx(1.0, abs=0.05)


def test_the_outputs_of_an_ensemble_have_the_covariance_of_the_rfk():
    x = sample_multisphere(3, 4, 2, seeded(7))
    # Readouts are independent given the rest of a network: each output is a member, of 40 in one network.
    outputs = [
        HierarchicalLCN(96, 1, 8, [2, 2, 2], out_features=40, generator=seeded(s)).double()(x).detach()
        for s in range(150)
    ]
    members = torch.cat(outputs, dim=1)
    found = members @ members.T / members.shape[1]
    assert torch.allclose(found, hierarchical_kernel(x, None, [2, 2, 2], "rfk"), atol=0.08)
    assert float(members.mean(1).abs().max()) < 0.06


def test_the_distance_to_the_limit_shrinks_with_the_root_of_the_width():
    x = sample_multisphere(5, 4, 2, seeded())
    calls = []
    found = {
        width: width_error(
            [2, 2], width, x, draws=12, generator=seeded(1), progress=lambda done, total: calls.append((done, total))
        )
        for width in (16, 256)
    }
    assert calls[-1] == (12, 12)
    assert float(found[16].value / found[256].value) == pytest.approx(4.0, rel=0.4)
    assert 0 < float(found[256].error) < float(found[256].value)
    image = torch.rand(4, 2, 4, 4, generator=seeded()).double()
    shared = width_error([2, 2], 64, image, kind="rfk", weight_sharing=True, draws=3, generator=seeded(1))
    assert 0 < float(shared.value) < 0.5


def test_a_blank_patch_stays_blank():
    network = HierarchicalCNN(4, 1, 8, [2, 2], generator=seeded())
    x = torch.zeros(2, 8)
    assert torch.equal(network(x), torch.zeros(2, 1))
    x[1, 0] = 1.0
    network(x).sum().backward()
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in network.parameters())


def test_networks_are_saved_and_come_back(tmp_path):
    for name, network in (
        ("local", HierarchicalLCN(4, 1, 8, [2, 2], out_features=2)), ("image", HierarchicalCNN(4, 2, (4, 4), [2, 2])),
    ):  # fmt: skip
        network.save_pretrained(tmp_path / name)
        again = type(network).from_pretrained(tmp_path / name)
        x = torch.randn(3, 8) if name == "local" else torch.randn(3, 2, 4, 4)
        assert torch.equal(again(x), network(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HierarchicalCNN(0, 1, 8, [2]), "width must be at least 1, got 0"),
        (lambda: HierarchicalCNN(4, 0, 8, [2]), "in_channels must be at least 1, got 0"),
        (lambda: HierarchicalCNN(4, 1, 8, [3]), "product 3, which does not divide the side 8"),
        (lambda: HierarchicalLCN(4, 1, (8, 6), [2, 2]), "product 4, which does not divide the side 6"),
        (lambda: width_error([2], 8, sample_multisphere(2, 2, 2), draws=1), "draws must be at least 2"),
        (lambda: width_error([2], 8, sample_multisphere(2, 2, 2), kind="nngp"), "kind must be"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
