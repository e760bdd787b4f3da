"""The published networks, their sizes and start; another resolution; refusals."""

import pytest
import torch

from etude.nn.transformer import SelfAttention
from etude.vision.convit import (
    ConViT,
    GatedPositionalSelfAttention,
    convit_base,
    convit_small,
    convit_tiny,
    vit_counterpart,
    weight_decay_groups,
)
from etude.vision.convit.patches import choose_patch_size, pad_to_patches

SMALL = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 3, "dim": 18, "depth": 3, "num_heads": 9}


def network(**changes):
    torch.manual_seed(0)
    return ConViT(**(SMALL | {"local_up_to_layer": 2} | changes))


@pytest.mark.parametrize(
    ("make", "count"), [(convit_tiny, 5_710_512), (convit_small, 27_777_322), (convit_base, 86_540_040)]
)
def test_published_sizes_have_their_parameters(make, count):
    with torch.device("meta"):
        model = make()
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_gated_blocks_come_first_and_the_baseline_has_none():
    kinds = [type(block.attn) for block in network().blocks]
    assert kinds == [GatedPositionalSelfAttention] * 2 + [SelfAttention]
    plain = vit_counterpart(**SMALL)
    assert [type(block.attn) for block in plain.blocks] == [SelfAttention] * 3
    assert plain.pos_embed.shape == network().pos_embed.shape
    assert all(block.norm1.eps == block.norm2.eps == 1e-6 for block in plain.blocks)


def test_the_class_token_joins_before_the_first_plain_block_without_a_position():
    model = network().eval()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda block, arguments: seen.append(arguments[0]))
    model(torch.randn(2, 1, 16, 16))
    assert [tokens.shape[1] for tokens in seen] == [16, 16, 17]
    assert torch.equal(seen[2][:, :1], model.cls_token.expand(2, -1, -1))


def test_logits_read_the_class_token_or_the_mean_of_the_patches():
    x = torch.randn(2, 1, 16, 16)
    model = network().eval()
    torch.testing.assert_close(model(x), model.head(model.forward_features(x)[:, 0]))
    pooled = network(pool="mean", local_up_to_layer=3).eval()
    assert pooled.cls_token is None
    torch.testing.assert_close(pooled(x), pooled.head(pooled.forward_features(x).mean(1)))


def test_weights_start_small_and_stochastic_depth_rises_linearly():
    model = network(drop_path_rate=0.2)
    assert [block.drop_path.rate for block in model.blocks] == [0.0, 0.1, 0.2]
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.weight.numel() > 300 and module not in (
            model.blocks[0].attn.v, model.blocks[1].attn.v
        ):  # fmt: skip
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
            assert module.bias is None or not module.bias.any()
    assert torch.equal(model.gates(), torch.sigmoid(torch.ones(2, 9)))


def test_arms_of_one_seed_share_the_weights_of_equal_parts():
    model = network()
    again = network(local_init=False)
    assert torch.equal(model.patch_embed.proj.weight, again.patch_embed.proj.weight)
    assert torch.equal(model.blocks[2].attn.qkv.weight, again.blocks[2].attn.qkv.weight)
    assert not torch.equal(model.blocks[0].attn.v.weight, again.blocks[0].attn.v.weight)


def test_another_resolution_needs_positions_that_are_interpolated():
    model = network().eval()
    larger = torch.randn(2, 1, 24, 20)
    with pytest.raises(ValueError, match=r"made for images of 16 x 16, got 24 x 20: call resize\(\) first"):
        model(larger)
    before, weights = model.pos_embed.detach().clone(), dict(model.blocks.state_dict())
    model.resize((24, 20))
    assert model(larger).shape == (2, 3)
    assert model.pos_embed.shape == (1, 30, 18)
    assert all(layer.grid_size == (6, 5) for layer in model.gated_layers())
    assert all(torch.equal(weights[name], value) for name, value in model.blocks.state_dict().items())
    # bicubic interpolation leaves constants as they are
    with torch.no_grad():
        model.pos_embed.fill_(1.5)
    model.resize(16)
    torch.testing.assert_close(model.pos_embed, torch.full_like(before, 1.5))


def test_resizing_to_the_same_grid_changes_nothing():
    model = network()
    positions = model.pos_embed
    assert model.resize(16).pos_embed is positions


def test_a_resized_model_comes_back_from_the_disk(tmp_path):
    model = network().eval().resize((24, 20))
    model.save_pretrained(tmp_path)
    again = ConViT.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 1, 24, 20)
    assert torch.equal(again(x), model(x))


def test_without_positions_the_gated_layers_know_the_grid():
    model = network(use_pos_embed=False).eval()
    assert model.pos_embed is None
    x = torch.randn(1, 1, 16, 16)
    assert (model(x) - model(x.flip(3))).abs().max() > 1e-6
    assert model.resize(32)(torch.randn(1, 1, 32, 32)).shape == (1, 3)


def test_gates_positions_and_one_dimensional_parameters_do_not_decay():
    model = network()
    decayed, free = weight_decay_groups(torch.nn.Sequential(model), 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(parameter)] for parameter in free["params"]}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert {"pos_embed", "cls_token", "blocks.0.attn.gate_logit", "norm.weight", "head.bias"} <= spared
    assert {names[id(parameter)] for parameter in decayed["params"]} | spared == set(names.values())
    assert all(name.endswith("weight") for name in set(names.values()) - spared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local_up_to_layer": 3}, "leaves none of 3 blocks to a class token: take at most 2, or pool='mean'"),
        ({"local_up_to_layer": 4}, r"must lie in 0..3, the depth, got 4"),
        ({"img_size": 18}, "multiple of the patch, 4, got 18 x 18"),
        ({"img_size": (16, 10)}, "multiple of the patch, 4, got 16 x 10"),
        ({"pool": "max"}, "pool must be 'token' or 'mean', got 'max'"),
        ({"num_classes": 0}, "must be at least 1, got 3 and 0"),
        ({"dim": 20}, "dim must be a multiple of num_heads, got 20 and 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        network(**changes)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.randn(1, 3, 16, 16), ValueError, r"expected 1 channels, got images of shape \(1, 3, 16, 16\)"),
        (torch.randn(1, 1, 18, 16), ValueError, "multiples of the patch, 4, got 18 x 16"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.uint8), TypeError, "must be floating point.*got torch.uint8"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        network()(images)


def test_the_patch_is_the_smallest_with_few_enough_tokens():
    assert [choose_patch_size(side, side) for side in (8, 16, 28, 32, 64)] == [2, 2, 4, 4, 8]
    assert choose_patch_size(8, 8, smallest=4) == 4
    assert choose_patch_size(100, 10, most_tokens=16) == 10
    images = torch.ones(1, 2, 5, 8)
    padded = pad_to_patches(images, 4)
    assert padded.shape == (1, 2, 8, 8)
    assert torch.equal(padded[:, :, :5], images)
    assert not padded[:, :, 5:].any()
    assert pad_to_patches(images[:, :, :4], 4).shape == (1, 2, 4, 8)
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        choose_patch_size(0, 3)
