"""The heads' equivalences, the attention head's symmetry, and CKA."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.diffusion.diffusion_features import AttentionHead, ConvHead, LinearHead, MLPHead, linear_cka


def maps(n=5, channels=6, size=4, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_a_linear_head_is_average_pooling_and_a_linear_layer():
    head, x = LinearHead(6, 4, 3, pool=1), maps()
    layer = head.layers[-1]
    torch.testing.assert_close(head(x), x.mean(dim=(2, 3)) @ layer.weight.T + layer.bias)
    whole = LinearHead(6, 4, 3, pool=4)
    torch.testing.assert_close(whole(x), F.linear(x.flatten(1), whole.layers[-1].weight, whole.layers[-1].bias))
    assert sum(p.numel() for p in LinearHead(1024, 16, 1000, pool=2).parameters()) == 4096 * 1000 + 1000


def test_an_mlp_head_without_hidden_layers_is_linear_and_with_them_follows_its_widths():
    torch.manual_seed(0)
    linear = LinearHead(6, 4, 3)
    torch.manual_seed(0)
    assert torch.equal(MLPHead(6, 4, 3, hidden=())(maps()), linear(maps()))
    widths = [layer.out_features for layer in MLPHead(6, 4, 3, hidden=(7, 5)).layers if isinstance(layer, nn.Linear)]
    assert widths == [7, 5, 3]


def test_a_conv_head_halves_the_map_with_each_convolution():
    head = ConvHead(6, 5, 3, channels=(4, 8), pool=2)
    assert head.layers[:4](maps(size=5)).shape == (5, 8, 2, 2)
    assert head(maps(size=5)).shape == (5, 3)


def test_attention_from_the_tokens_on_knows_no_positions():
    torch.manual_seed(0)
    head = AttentionHead(6, 4, 3, dim=16, num_heads=4)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    tokens = head.tokens(maps())
    assert tokens.shape == (5, 16, 16)
    order = torch.randperm(16)
    torch.testing.assert_close(head.classify(tokens), head.classify(tokens[:, order]))
    torch.testing.assert_close(head(maps()), head.classify(tokens))


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_the_whole_attention_head_is_blind_to_order_at_the_start_and_with_batch_norm_ever_after(norm):
    torch.manual_seed(0)
    head, x = AttentionHead(6, 4, 3, dim=16, num_heads=4, norm=norm), maps()
    shuffled = x.flatten(2)[:, :, torch.randperm(16)].view_as(x)
    torch.testing.assert_close(head(x), head(shuffled))
    nn.init.normal_(head.norm.weight)
    differ = (head(x) - head(shuffled)).abs().max()
    assert (differ > 1e-3) == (norm == "layer")


def test_the_attention_head_has_the_papers_pieces():
    head = AttentionHead(1024, 32, 1000)
    assert head.norm.normalized_shape == (1024, 16, 16)
    assert head.project.weight.shape == (1024, 1024, 1, 1)
    assert not head.cls_token.any()
    assert len(head.blocks) == 2
    for block in head.blocks:
        assert block.attention.qkv.bias is None
        assert block.attention.num_heads == 8
        assert [layer.out_features for layer in block.mlp if isinstance(layer, nn.Linear)] == [4096, 1024]


def test_attention_equals_torchs_encoder_layer():
    torch.manual_seed(0)
    head = AttentionHead(6, 4, 3, dim=16, num_heads=4, depth=1)
    ours = head.blocks[0]
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
    weights = {
        "self_attn.in_proj_weight": ours.attention.qkv.weight, "self_attn.in_proj_bias": torch.zeros(48),
        "self_attn.out_proj.weight": ours.attention.proj.weight, "self_attn.out_proj.bias": ours.attention.proj.bias,
        "linear1.weight": ours.mlp[0].weight, "linear1.bias": ours.mlp[0].bias, "linear2.weight": ours.mlp[2].weight,
        "linear2.bias": ours.mlp[2].bias, "norm1.weight": ours.norm1.weight, "norm1.bias": ours.norm1.bias,
        "norm2.weight": ours.norm2.weight, "norm2.bias": ours.norm2.bias,
    }  # fmt: skip
    theirs.load_state_dict(weights)
    tokens = torch.randn(2, 7, 16)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearHead(6, 4, 3, pool=5), r"pool must lie in 1..4, the side of the map, got 5"),
        (lambda: LinearHead(0, 4, 3), "in_channels must be positive, got 0"),
        (lambda: LinearHead(6, 4, 1), "num_classes must be at least 2, got 1"),
        (lambda: ConvHead(6, 4, 3, channels=(4, 4), pool=2), "pool must lie in 1..1"),
        (lambda: AttentionHead(6, 4, 3, dim=10, num_heads=4), "num_heads must divide dim, got 4 and 10"),
        (lambda: AttentionHead(6, 4, 3, norm="none"), "norm must be layer or batch, got 'none'"),
        (lambda: LinearHead(6, 8, 3)(maps()), r"takes maps of shape \(6, 8, 8\), got \(6, 4, 4\)"),
    ],
)
def test_numbers_and_maps_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_cka_is_the_biased_hsic_of_centred_gram_matrices_and_ignores_rotation_and_scale():
    torch.manual_seed(0)
    a, b = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 7, dtype=torch.float64)
    centring = torch.eye(9, dtype=torch.float64) - 1 / 9
    k, m = centring @ a @ a.T @ centring, centring @ b @ b.T @ centring
    naive = (k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt()
    torch.testing.assert_close(linear_cka(a, b), naive)
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    torch.testing.assert_close(linear_cka(a, 3 * b @ rotation), naive)
    assert float(linear_cka(a, a)) == pytest.approx(1.0)
