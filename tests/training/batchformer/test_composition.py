"""BatchFormer under gradient noise in a plain loop; with SortedNet besides: `tests/training/test_composition.py`."""

import torch
from torch import nn

from etude.training.batchformer import attach_batchformer, param_groups_with_batchformer, two_stream_loss
from etude.training.gradient_noise import GradientNoise

STEPS = 3


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """The plain loop; the rows that the model returned in each step."""
    x, y = batch()
    rows = []
    for _ in range(STEPS):
        logits = model(x)
        rows.append(len(logits))
        optimizer.zero_grad()
        two_stream_loss(logits, y).backward()
        optimizer.step()
    return rows


def test_gradient_noise_reaches_the_network_and_the_layer():
    model = network()
    handle = attach_batchformer(model, "3", "4", dropout=0.0)
    optimizer = torch.optim.SGD(param_groups_with_batchformer(model, handle.batchformer, lr=1.0, bf_lr_scale=1.0))
    noise = GradientNoise(optimizer, std=1.0, generator=torch.Generator().manual_seed(2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    gradients = torch.autograd.grad(two_stream_loss(model(batch()[0]), batch()[1]), list(model.parameters()))
    optimizer.zero_grad()
    two_stream_loss(model(batch()[0]), batch()[1]).backward()
    optimizer.step()
    drawn = [old - gradient - new for old, gradient, new in zip(before, gradients, model.parameters())]
    assert sum(entry.numel() for entry in drawn) > 2_000
    torch.testing.assert_close(torch.cat([d.flatten() for d in drawn]).std(), torch.tensor(1.0), atol=0.1, rtol=0)
    assert train(model, optimizer) == [16] * STEPS
    assert noise.step == STEPS + 1
