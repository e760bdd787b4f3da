"""Residual blocks of other networks, side by side."""

import pytest
import torch
from torch import nn

from etude.nn.resnet import ResidualBlock, ResNet
from etude.vision.shallow import parallelize


class Block(nn.Module):
    def __init__(self, dim, out=None):
        super().__init__()
        self.layer = nn.Linear(dim, out or dim)

    def forward(self, x):
        return x + self.layer(x).tanh() if self.layer.out_features == x.shape[-1] else self.layer(x)


def is_block(module):
    return isinstance(module, Block)


def test_runs_become_sums_and_everything_else_stays():
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(3, 4), Block(4), Block(4), Block(4), nn.ReLU(), Block(4), Block(4, 5), nn.Tanh())
    x = torch.randn(2, 3)
    shallow = parallelize(chain, is_block)
    base = chain[0](x)
    inner = base + sum(block.layer(base).tanh() for block in list(chain)[1:4])
    torch.testing.assert_close(shallow(x), chain[7](chain[6](chain[5](inner.relu()))))
    assert list(shallow.state_dict()) == list(chain.state_dict())
    assert all(a is b for a, b in zip(shallow.parameters(), chain.parameters(), strict=True))
    assert shallow.runs == ((1, 4),)


def test_blocks_of_unequal_shape_stay_in_sequence():
    chain = nn.Sequential(Block(4), Block(4, 5), Block(5), Block(5))
    assert parallelize(chain, is_block).runs == ((2, 4),)
    assert parallelize(nn.Sequential(Block(4), Block(4, 5)), is_block).__class__ is nn.Sequential


def test_a_resnet_keeps_its_names_and_trains():
    torch.manual_seed(0)
    net = ResNet(blocks=[3, 2], widths=[4, 8], num_classes=3, small_images=True)
    names = list(net.state_dict())
    x = torch.randn(2, 3, 8, 8)
    before = net.eval()(x)
    assert parallelize(net, lambda module: isinstance(module, ResidualBlock)) is net
    assert list(net.state_dict()) == names
    after = net(x)
    assert after.shape == before.shape
    assert not torch.allclose(after, before)
    after.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_to_first_order_in_the_blocks_nothing_changes():
    torch.manual_seed(0)
    chain = nn.Sequential(*(Block(4) for _ in range(4))).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    gaps = []
    for eps in (1e-2, 1e-3):
        with torch.no_grad():
            for parameter in chain.parameters():
                parameter.copy_(eps * torch.ones_like(parameter))
        gaps.append((parallelize(chain, is_block)(x) - chain(x)).norm().item())
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.2)


def test_a_block_that_changes_the_shape_is_named():
    class Growing(Block):
        def forward(self, x):
            return torch.cat([x, x], dim=-1)

    with pytest.raises(ValueError, match=r"block 0 \(Growing\) turns shape \(2, 4\) into \(2, 8\)"):
        parallelize(nn.Sequential(Growing(4), Growing(4)), is_block)(torch.ones(2, 4))
