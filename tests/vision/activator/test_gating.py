"""The gating unit and the block."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.vision.activator import ACTIVATIONS, ActivatorBlock, GatedMLP


def tokens(dim=6, length=5, dtype=torch.float64):
    return torch.randn(2, length, dim, dtype=dtype, generator=torch.Generator().manual_seed(0))


def made(cls, seed=0, **options):
    torch.manual_seed(seed)
    return cls(**{"dim": 6, "hidden_dim": 9} | options).double()


def layer_norm(x, norm):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", ["shared", "separate"])
def test_the_gate_is_activated_then_normed_and_the_value_normed_only(activation, norm):
    unit, x = made(GatedMLP, activation=activation, norm=norm), tokens()
    for parameter in unit.parameters():
        nn.init.normal_(parameter)
    phi = {
        "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / 2**0.5)), "silu": lambda v: v * torch.sigmoid(v),
        "relu": F.relu, "sigmoid": torch.sigmoid, "identity": lambda v: v,
    }[activation]  # fmt: skip
    u = layer_norm(phi(x @ unit.gate.weight.T + unit.gate.bias), unit.norm)
    v = layer_norm(x @ unit.value.weight.T + unit.value.bias, unit.value_norm or unit.norm)
    torch.testing.assert_close(unit(x), (u * v) @ unit.out.weight.T + unit.out.bias)


def test_without_norm_and_activation_it_is_bilinear():
    unit, x = made(GatedMLP, activation="identity", norm=None, bias=False), tokens()
    expected = ((x @ unit.gate.weight.T) * (x @ unit.value.weight.T)) @ unit.out.weight.T
    torch.testing.assert_close(unit(x), expected)
    torch.testing.assert_close(unit(3 * x), 9 * unit(x))


@pytest.mark.parametrize("use_mlp", [True, False])
def test_a_block_has_two_distinct_norms(use_mlp):
    block = made(ActivatorBlock, use_mlp=use_mlp)
    norms = {id(module): module for module in block.modules() if isinstance(module, nn.LayerNorm)}
    assert sorted(norm.normalized_shape for norm in norms.values()) == [(6,), (9,)]
    assert sum(isinstance(m, nn.LayerNorm) for m in made(ActivatorBlock, shared_norm=False).modules()) == 3


def test_a_block_follows_its_definition():
    block, x = made(ActivatorBlock, dropout=0.0), tokens()
    inner = x + block.glu(block.norm(x))
    torch.testing.assert_close(block(x), inner + block.mlp(block.norm(inner)))
    glu_only = made(ActivatorBlock, use_mlp=False)
    torch.testing.assert_close(glu_only(x), x + glu_only.glu(glu_only.norm(x)))
    apart = made(ActivatorBlock, dropout=0.0, shared_norm=False)
    nn.init.normal_(apart.mlp_norm.weight)
    inner = x + apart.glu(apart.norm(x))
    torch.testing.assert_close(apart(x), inner + apart.mlp(apart.mlp_norm(inner)))


@pytest.mark.parametrize("options", [{}, {"use_mlp": False}, {"mixing": "token", "num_tokens": 5}])
def test_zero_outputs_make_the_block_the_identity(options):
    block = made(ActivatorBlock, **options)
    for layer in [block.glu.out] + ([] if block.mlp is None else [block.mlp.fc2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert torch.equal(block(tokens()), tokens())


def test_gradients_match_finite_differences_through_both_arms_and_the_shared_norm():
    unit, x = made(GatedMLP, dim=3, hidden_dim=4), tokens(3, 2)
    names = [name for name, _ in unit.named_parameters()]

    def call(x, *values):
        return torch.func.functional_call(unit, dict(zip(names, values)), (x,))

    values = [p.detach().clone().requires_grad_() for p in unit.parameters()]
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *values))
    unit(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in unit.parameters())


def test_the_shared_norm_gets_the_sum_of_its_two_uses():
    shared, apart, x = made(GatedMLP), made(GatedMLP, norm="separate"), tokens()
    apart.load_state_dict(shared.state_dict(), strict=False)
    torch.testing.assert_close(shared(x), apart(x))
    for unit in (shared, apart):
        unit(x).square().sum().backward()
    torch.testing.assert_close(shared.norm.weight.grad, apart.norm.weight.grad + apart.value_norm.weight.grad)


def test_the_channel_gate_treats_each_token_by_itself_and_the_token_gate_each_channel():
    x = tokens()
    changed = x.clone()
    changed[:, 2] += 1
    channel = made(ActivatorBlock, dropout=0.0)
    moved = (channel(changed) - channel(x)).abs().amax((0, 2))
    assert (moved > 0).tolist() == [False, False, True, False, False]
    token = made(ActivatorBlock, dropout=0.0, mixing="token", num_tokens=5, token_hidden_dim=7)
    assert ((token(changed) - token(x)).abs().amax((0, 2)) > 0).all()
    assert token.glu.gate.weight.shape == (7, 5)
    normed = token.norm(x)
    expected = torch.stack([token.glu(normed[:, :, c]) for c in range(6)], dim=-1)
    inner = x + expected
    torch.testing.assert_close(token(x), inner + token.mlp(token.norm(inner)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: made(GatedMLP, activation="swish"), "activation must be one of gelu.*got 'swish'"),
        (lambda: made(GatedMLP, norm="batch"), "norm must be 'shared', 'separate' or None, got 'batch'"),
        (lambda: made(GatedMLP, dim=0), "dim and hidden_dim must be positive, got 0 and 9"),
        (lambda: made(ActivatorBlock, mixing="both"), "mixing must be one of channel, token, got 'both'"),
        (lambda: made(ActivatorBlock, mixing="token"), "mixing='token' needs num_tokens"),
        (
            lambda: made(ActivatorBlock, mixing="token", num_tokens=4)(tokens()),
            "mixing='token' is tied to 4 tokens, got 5",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
