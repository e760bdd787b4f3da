"""Alignment on noise before training, the noise itself, the distillation control, and the matrix of layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from etude.nn.resnet import ResNet
from etude.nn.similarity import linear_cka
from etude.training.guidance import (
    DeepFCN,
    FeatureTap,
    Guidance,
    align_initialization,
    cka_matrix,
    distillation_loss,
    noise_images,
    noise_tokens,
)


def networks() -> tuple[DeepFCN, ResNet]:
    torch.manual_seed(0)
    guide = ResNet(blocks=[1, 1], widths=[4, 6], in_channels=1, num_classes=3, small_images=True)
    return DeepFCN(64, 3, depth=4, width=16, first_width=None, dropout=0.0), guide


def test_alignment_alone_raises_the_mean_cka():
    target, guide = networks()
    x = noise_images((32, 1, 8, 8), torch.Generator().manual_seed(0))
    losses = align_initialization(target, guide, lambda: x, steps=100, lr=3e-3)
    assert len(losses) == 100
    assert losses[-1] < losses[0] - 0.05 * 6


def test_alignment_leaves_the_logits_the_mode_and_the_guide_alone():
    target, guide = networks()
    before, guide_before = copy.deepcopy(target.state_dict()), copy.deepcopy(guide.state_dict())
    target.eval()
    align_initialization(target, Guidance(guide), lambda: noise_images((8, 1, 8, 8)), steps=2)
    after = target.state_dict()
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(after["blocks.0.0.weight"], before["blocks.0.0.weight"])
    assert all(torch.equal(value, guide_before[name]) for name, value in guide.state_dict().items())
    assert not any(module.training for module in target.modules())
    assert all(parameter.grad is None for parameter in target.parameters())


def test_alignment_goes_on_past_a_stop_without_the_guide():
    target, guide = networks()
    losses = align_initialization(target, Guidance(guide, stop_after=1), lambda: noise_images((8, 1, 8, 8)), steps=3)
    assert losses[0] > 0
    assert losses[1:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": -1}, "steps must be >= 0, got -1"), ({"lr": 0.0}, "lr must be positive")]
)
def test_bad_numbers_of_alignment_are_refused(options, message):
    target, guide = networks()
    with pytest.raises(ValueError, match=message):
        align_initialization(target, guide, lambda: torch.zeros(8, 1, 8, 8), **options)
    with pytest.raises(ValueError, match="weight 0"):
        align_initialization(target, Guidance(guide, weight=0), lambda: torch.zeros(8, 1, 8, 8))


def test_noise_images_are_clamped_normal_draws():
    noise = noise_images((100, 1, 50, 50), torch.Generator().manual_seed(0))
    assert noise.min() == 0.0
    assert noise.max() == 1.0
    assert (noise == 0).double().mean().item() == pytest.approx(0.5, abs=0.005)
    beyond = 1 - torch.distributions.Normal(0, (1 + 0.1**2) ** 0.5).cdf(torch.tensor(1.0)).item()
    assert (noise == 1).double().mean().item() == pytest.approx(beyond, abs=0.005)
    assert torch.equal(noise, noise_images((100, 1, 50, 50), torch.Generator().manual_seed(0)))


def test_noise_tokens_are_uniform():
    tokens = noise_tokens((1000, 30), 5, torch.Generator().manual_seed(0))
    assert tokens.flatten().bincount(minlength=5).double().div(30_000).sub(0.2).abs().max() < 0.01
    with pytest.raises(ValueError, match="vocab must be at least 1, got 0"):
        noise_tokens((2, 2), 0)


def test_distillation_adds_the_cross_entropy_against_the_softened_guide():
    generator = torch.Generator().manual_seed(0)
    logits, hints = (torch.randn(6, 4, generator=generator).requires_grad_() for _ in range(2))
    labels = torch.randint(4, (6,), generator=generator)
    loss = distillation_loss(logits, hints, labels, temperature=2.0, weight=0.5)
    soft = (hints / 2).softmax(1)
    expected = F.cross_entropy(logits, labels) - 0.5 * 4 * (soft * (logits / 2).log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    loss.backward()
    assert hints.grad is None
    # At the guide's own logits the second term has no gradient.
    own = hints.detach().clone().requires_grad_()
    (distillation_loss(own, hints, labels) - F.cross_entropy(own, labels)).backward()
    assert own.grad is not None
    assert own.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([0, 4, 1])), {}, r"labels must lie in 0..3, got 0..4"),
        ((torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([0, -1, 1])), {}, r"0..3, got -1..1"),
        ((torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([0, 1, 1])), {"temperature": 0}, "temperature must be"),
        ((torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([0, 1, 1])), {"weight": -1}, "weight must be >= 0"),
    ],
)
def test_labels_and_numbers_out_of_range_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        distillation_loss(*arguments, **options)


def test_unequal_logits_and_labels_are_refused():
    inner = getattr(distillation_loss, "__wrapped__", distillation_loss)
    with pytest.raises(ValueError, match=r"as many logits, got \(3, 4\) and \(3, 5\)"):
        inner(torch.zeros(3, 4), torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="one label a row of logits, 3, got 2"):
        inner(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64))


def test_the_matrix_holds_every_pair_of_layers():
    target, guide = networks()
    x = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = cka_matrix(guide.train(), target, DataLoader(TensorDataset(x, torch.zeros(24)), batch_size=24))
    assert guide.training
    assert found.rows[0] == "conv1"
    assert found.columns == tuple(f"blocks.{index}.0" for index in range(4))
    assert found.values.shape == (len(found.rows), 4)
    guide.eval(), target.eval()
    with FeatureTap(guide) as rows, FeatureTap(target) as columns:
        guide(x)
        target(x)
    for row, column in ((0, 0), (2, 3)):
        a, b = rows[found.rows[row]].flatten(1), columns[found.columns[column]]
        assert found.values[row, column].item() == pytest.approx(linear_cka(a, b, unbiased=True).item(), abs=1e-5)


def test_the_matrix_of_a_network_with_itself_has_a_unit_diagonal():
    target, _ = networks()
    x = torch.rand(3, 10, 64, generator=torch.Generator().manual_seed(0))
    found = cka_matrix(target, target, x)
    torch.testing.assert_close(found.values.diagonal(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found.values, found.values.T)


def test_a_matrix_without_batches_or_of_small_ones_is_refused():
    target, guide = networks()
    with pytest.raises(ValueError, match="the loader gave no batch"):
        cka_matrix(target, guide, [])
    with pytest.raises(ValueError, match="at least 4 examples in a batch, got 2"):
        cka_matrix(target, guide, [torch.zeros(2, 1, 8, 8)])
