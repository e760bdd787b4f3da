import pytest
import torch
from torch import nn

from etude.nn.transformer import DropPath, FeedForward, PatchEmbedding, SelfAttention, SwiGLU


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    x = torch.ones(20_000, 2, 3)
    out = drop(x)
    kept = out[:, 0, 0] != 0
    assert torch.equal(out, kept.float()[:, None, None].expand_as(x) / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert drop.eval()(x) is x
    assert DropPath(0.0)(x) is x
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match="rate"):
            DropPath(rate)


def test_self_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(12, 3, qkv_bias=True), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.proj.state_dict())
    x = torch.randn(2, 5, 12)
    out, weights = theirs(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(ours(x), out)
    torch.testing.assert_close(ours.attention(x), weights)
    with pytest.raises(ValueError, match="12 and 5"):
        SelfAttention(12, 5)


def test_attention_dropout_acts_while_training_only():
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, attn_drop=0.5), torch.randn(1, 6, 8)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_patch_embedding_is_a_linear_map_of_each_patch_row_by_row():
    torch.manual_seed(0)
    embed, images = PatchEmbedding(3, 7, 2), torch.randn(2, 3, 4, 6)
    tokens = embed(images)
    assert tokens.shape == (2, 6, 7)
    patch = images[:, :, 2:4, 0:2].flatten(1)
    torch.testing.assert_close(tokens[:, 3], patch @ embed.proj.weight.flatten(1).T + embed.proj.bias)
    with pytest.raises(ValueError, match="5 x 6"):
        embed(torch.randn(1, 3, 5, 6))
    with pytest.raises(ValueError, match="3 channels"):
        embed(torch.randn(1, 1, 4, 6))


def test_feed_forward_is_the_two_layers():
    torch.manual_seed(0)
    layer, x = FeedForward(4, 9, activation=nn.Tanh(), dropout=0.3).eval(), torch.randn(2, 3, 4)
    torch.testing.assert_close(layer(x), layer.fc2(torch.tanh(layer.fc1(x))))


def test_swiglu_is_a_gated_product():
    torch.manual_seed(0)
    layer, x = SwiGLU(4, 9), torch.randn(2, 3, 4)
    gate = x @ layer.gate.weight.T
    torch.testing.assert_close(layer(x), (gate * gate.sigmoid() * (x @ layer.up.weight.T)) @ layer.down.weight.T)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 4 * 9
