"""Gradient noise, BatchFormer and SortedNet, switched on together in one plain training loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training import batchformer
from etude.training.gradient_noise import GradientNoise
from etude.training.sortednet import (
    Rule,
    SortedMLP,
    SortedSampler,
    SubModelSpace,
    extract,
    set_submodel,
    sorted_,
    sorted_step,
    space_of,
    submodel_regions,
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batches():
    draw = generator(0)
    return [(torch.randn(8, 6, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(6)]


def test_all_three_in_one_plain_loop(batches):
    torch.manual_seed(0)
    # The outputs of a converted network's last layer stay whole: features for the BatchFormer at every width.
    encoder = sorted_(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8)), SubModelSpace(width=[0.25, 0.5, 1.0])
    )
    mixer, head = batchformer.BatchFormer(dim=8, dropout=0.0), nn.Linear(8, 3)
    model = nn.ModuleList([encoder, mixer, head])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    noise = GradientNoise(optimizer, std=1e-3, generator=generator(1))
    sampler = SortedSampler(space_of(encoder), accumulate=2, generator=generator(2))
    sampler.attach(encoder)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for x, y in batches:
        features, labels = mixer(encoder(x), y)
        assert features.shape == (16, 8)
        (F.cross_entropy(head(features), labels) / 2).backward()
        if sampler.update_due:
            optimizer.step()
            optimizer.zero_grad()
    assert noise.step == 3
    assert sampler.micro_batches == 6
    assert all(not torch.equal(parameter, start) for parameter, start in zip(model.parameters(), before))
    model.eval()
    for b in space_of(encoder):
        with set_submodel(encoder, b), torch.no_grad():
            expected = head(mixer(encoder(batches[0][0])))
        torch.testing.assert_close(head(extract(encoder, b)(batches[0][0])), expected)


@pytest.mark.parametrize("mask", [False, True])
def test_an_attached_batchformer_trains_with_the_depths_of_a_network(mask, batches):
    torch.manual_seed(0)
    model = SortedMLP(6, 3, width=[8], depth=[1, 2, 3])
    handle = batchformer.attach_batchformer(model, None, "head", dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    GradientNoise(optimizer, std=1e-3, generator=generator(1))
    sampler = SortedSampler(space_of(model), generator=generator(2))
    before = [parameter.detach().clone() for parameter in handle.parameters()]
    for batch in batches:
        sorted_step(model, batchformer.two_stream_loss, batch, optimizer, sampler, mask_updates=mask)
    assert all(not torch.equal(parameter, start) for parameter, start in zip(handle.parameters(), before))
    handle.remove()
    x, smallest = batches[0][0], space_of(model).smallest
    with set_submodel(model, smallest):
        torch.testing.assert_close(extract(model, smallest).eval()(x), model.eval()(x))


def test_noise_keeps_off_weights_that_masked_updates_leave_alone(batches):
    torch.manual_seed(0)
    model = SortedMLP(6, 3, width=[4, 8], depth=[1, 2])
    space = space_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    GradientNoise(optimizer, std=0.1, generator=generator(1))
    sampler = SortedSampler(space, p=[float(b == space.smallest) for b in space])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    sorted_step(model, F.cross_entropy, batches[0], optimizer, sampler, mask_updates=True)
    regions = submodel_regions(model, space.smallest)
    for name, parameter in model.named_parameters():
        outside = torch.ones_like(parameter, dtype=torch.bool)
        for region in regions[name]:
            outside[region] = False
        assert torch.equal(parameter[outside], before[name][outside])
        assert bool((parameter != before[name])[~outside].all())


def test_only_the_sub_network_in_use_learns_through_either_half_of_a_doubled_batch(batches):
    torch.manual_seed(0)
    space = SubModelSpace(width=[0.25, 1.0])
    # The features keep their length, which is the layer's: sub-networks are narrower inside only.
    rules = {"2": Rule(outputs=None), "4": Rule(inputs=None, outputs=None)}
    layers = [nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)]
    model = sorted_(nn.Sequential(*layers), space, rules=rules)
    batchformer.attach_batchformer(model, "3", "4", dropout=0.0)
    x, y = batches[0]
    with set_submodel(model, space.smallest):
        batchformer.two_stream_loss(model(x), y).backward()
    gradient = layers[0].weight.grad
    assert gradient[:8].any(dim=1).sum() > 4
    assert not gradient[8:].any()
