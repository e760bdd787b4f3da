"""Frozen encoders, and how the small one is pretrained."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nn.resnet import ResNet
from etude.transfer.discrete_kv_bottleneck import (
    BottleneckClassifier,
    ChannelwiseEncoder,
    ConvEncoder,
    FrozenEncoder,
    KeyValueBottleneck,
    hub_encoder,
    pretrain_classes,
    pretrain_contrastive,
    truncate_resnet,
)
from etude.transfer.discrete_kv_bottleneck.encoders import _rolled, _transformed


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=40, side=16):
    return torch.rand(n, 1, side, side, generator=gen(1))


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConvEncoder(widths=(4, 6))


def test_a_frozen_encoder_ignores_the_training_mode_and_keeps_its_statistics():
    inner = small()
    encoder = FrozenEncoder(inner)
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    features = encoder.train()(pictures())
    assert not inner.training
    assert not features.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in inner.state_dict().items())
    assert torch.equal(features, encoder.eval()(pictures()))


def test_a_classifier_freezes_whatever_encoder_it_is_given():
    inner = small()
    net = BottleneckClassifier(inner, KeyValueBottleneck(inner.out_dim(16, 16), 3, 5, 2, 4)).train()
    assert not inner.training
    assert [p is net.bottleneck.values for p in net.trainable()] == [True]


def test_features_come_flat_averaged_or_as_a_map():
    inner = small()
    maps = FrozenEncoder(inner, "map")(pictures())
    assert maps.shape == (40, 6, 4, 4)
    assert torch.equal(FrozenEncoder(inner)(pictures()), maps.flatten(1))
    torch.testing.assert_close(FrozenEncoder(inner, "pool")(pictures()), maps.mean(dim=(2, 3)))
    assert inner.out_dim(16, 16) == 96
    assert ConvEncoder().out_dim(28, 28) == 576


def test_a_residual_network_is_cut_after_a_stage():
    class TorchvisionNames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1, self.relu, self.maxpool = (
                nn.Conv2d(3, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.MaxPool2d(2),
            )
            self.layer1, self.layer2, self.layer3, self.layer4 = (nn.Conv2d(4, 4, 1) for _ in range(4))
            self.fc = nn.Linear(4, 2)

    net = TorchvisionNames().eval()
    x = torch.rand(2, 3, 12, 12, generator=gen())
    by_hand = net.layer3(net.layer2(net.layer1(net.maxpool(F.relu(net.bn1(net.conv1(x)))))))
    assert torch.equal(truncate_resnet(net)(x), by_hand)
    assert torch.equal(truncate_resnet(net, 4)(x), net.layer4(by_hand))
    with pytest.raises(ValueError, match="no layer5"):
        truncate_resnet(net, 5)
    with pytest.raises(ValueError, match="Linear cannot be cut"):
        truncate_resnet(nn.Linear(2, 2))


def test_rolls_move_each_image_by_itself():
    x = pictures(30, 8)
    rolled = _rolled(x, 2, gen())
    found = set()
    for one, other in zip(x, rolled):
        shifts = [(a, b) for a in range(-2, 3) for b in range(-2, 3) if torch.equal(one.roll((a, b), (1, 2)), other)]
        assert len(shifts) == 1
        found.add(shifts[0])
    assert len(found) > 5


def test_views_of_an_image_are_like_it_and_different_from_each_other():
    x = F.pad(torch.ones(50, 1, 8, 8), (8, 8, 8, 8))
    one, other = _transformed(x, gen(0)), _transformed(x, gen(1))
    assert not torch.equal(one, other)
    overlap = (one * x).sum(dim=(1, 2, 3)) / one.sum(dim=(1, 2, 3))
    assert bool((overlap > 0.4).all())


def test_pretraining_by_classes_lowers_the_loss_and_is_reproducible():
    labels = torch.arange(40) % 4
    images = pictures() * 0.3 + 0.7 * (labels.view(-1, 1, 1, 1) / 3)
    states, losses = [], []
    for _ in range(2):
        encoder = small()
        losses.append([])
        pretrain_classes(
            encoder, images, labels, epochs=6, batch_size=10, lr=1e-2, generator=gen(),
            callback=lambda step, total, loss: losses[-1].append(loss),
        )  # fmt: skip
        assert not encoder.training
        states.append(encoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(losses[0]) == 24
    assert sum(losses[0][-4:]) < sum(losses[0][:4])


def test_pretraining_without_labels_lowers_the_loss_and_is_reproducible():
    states, losses = [], []
    for _ in range(2):
        losses.append([])
        encoder = pretrain_contrastive(
            small(), pictures(), epochs=6, batch_size=20, lr=1e-2, generator=gen(),
            callback=lambda step, total, loss: losses[-1].append(loss),
        )  # fmt: skip
        states.append(encoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert sum(losses[0][-4:]) < sum(losses[0][:4])


def test_the_contrastive_loss_of_one_batch_is_that_of_its_definition():
    class Flat(nn.Module):
        def forward(self, x):
            return x

    losses = []
    x = pictures(6, 4)
    pretrain_contrastive(Flat(), x, epochs=1, batch_size=6, lr=1e-30, temperature=0.5, generator=gen(),
                         callback=lambda step, total, loss: losses.append(loss))  # fmt: skip
    replay = gen()
    head = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64))
    from etude.transfer.discrete_kv_bottleneck.encoders import _redraw

    _redraw(head, replay)
    rows = torch.randperm(6, generator=replay)
    views = [head(_transformed(x[rows], replay).flatten(1)) for _ in range(2)]
    z = F.normalize(torch.cat(views), dim=1)
    total = 0.0
    for i in range(12):
        partner = (i + 6) % 12
        similarities = [(z[i] @ z[j] / 0.5).exp() for j in range(12) if j != i]
        total -= ((z[i] @ z[partner] / 0.5).exp() / sum(similarities)).log().item()
    assert losses == [pytest.approx(total / 12, rel=1e-5)]


def test_the_residual_network_of_the_house_can_be_cut():
    net = ResNet(18, num_classes=5, in_channels=1, widths=(4, 4, 4, 4), small_images=True).eval()
    features = FrozenEncoder(truncate_resnet(net, 2), "pool")(torch.rand(2, 1, 16, 16, generator=gen()))
    assert features.shape == (2, 4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="got 'mean'"):
        FrozenEncoder(small(), "mean")
    with pytest.raises(ValueError, match="at least two classes"):
        pretrain_classes(small(), pictures(), torch.zeros(40, dtype=torch.int64))
    with pytest.raises(ValueError, match="got 1 images"):
        pretrain_contrastive(small(), pictures(1))
    with pytest.raises(ValueError, match="at least 4 x 4, got 3 x 9"):
        small().out_dim(3, 9)
    with pytest.raises(ValueError, match="channels and widths"):
        ConvEncoder(widths=())
    with pytest.raises(ValueError, match="name must be one of dino_resnet50"):
        hub_encoder("resnet18")

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="one tensor, got tuple"):
        FrozenEncoder(Two())(pictures())


def test_channels_of_any_number_and_size_are_encoded_one_by_one():
    inner = small()
    encoder = ChannelwiseEncoder(inner.eval(), 16, batch_size=7)
    x = torch.rand(5, 3, 16, 16, generator=gen())
    expected = torch.cat([inner(x[:, [channel]]).flatten(1) for channel in range(3)], dim=1)
    torch.testing.assert_close(encoder(x), expected)
    assert encoder(torch.rand(5, 1, 40, 20, generator=gen())).shape == (5, 96)
    with pytest.raises(ValueError, match="size and batch_size must be positive, got 0"):
        ChannelwiseEncoder(inner, 0)
