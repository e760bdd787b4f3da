"""The U-Net: its numbering, its blocks, early exit, routers and refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nn.unet import AttentionBlock, ResBlock, UNet


def adm():
    with torch.device("meta"):
        return UNet(3, 6, 256, (1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5))


def small(seed=0, zeros=False, **changes):
    """A U-Net of 13 blocks; the convolutions that start at zero are drawn too, so that they pass something on."""
    torch.manual_seed(seed)
    arguments = {
        "base_channels": 8,
        "channel_mult": (1, 2, 3),
        "num_res_blocks": 1,
        "head_channels": 4,
        "norm_groups": 4,
    }
    unet = UNet(1, 1, **arguments | changes)
    if not zeros:
        for parameter in unet.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.3)
    return unet.eval()


def batch(n=3, side=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, side, side, generator=generator), torch.randint(0, 1000, (n,), generator=generator)


def test_the_unconditional_adm_of_256_pixels_has_its_published_parameters_channels_and_sides():
    unet = adm()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 552_814_086
    shapes = unet.block_shapes(256)
    assert [channels for channels, _, _ in shapes] == [256] * 7 + [512] * 6 + [1024] * 12 + [512] * 6 + [256] * 6
    sides = [256] * 3 + [128] * 3 + [64] * 3 + [32] * 3 + [16] * 3 + [8] * 6
    sides += [16] * 3 + [32] * 3 + [64] * 3 + [128] * 3 + [256] * 4
    assert [height for _, height, _ in shapes] == [width for _, _, width in shapes] == sides
    assert shapes[23] == (1024, 16, 16)
    names = unet.block_names()
    assert len(names) == unet.num_blocks == 18 + 1 + 18
    assert names[0] == "input_blocks.0"
    assert names[18] == "middle_block"
    assert names[19] == "output_blocks.0"


@pytest.mark.parametrize(
    "changes", [{}, {"resample_in_block": False}, {"num_res_blocks": 2, "attention_levels": (0, 1)}]
)
def test_shapes_are_those_of_the_maps_and_features_those_of_the_full_forward(changes):
    unet, (x, t) = small(**changes), batch()
    caught = {}
    for number, name in enumerate(unet.block_names(), 1):
        unet.get_submodule(name).register_forward_hook(lambda _, __, out, number=number: caught.update({number: out}))
    with torch.no_grad():
        out = unet(x, t)
        full = dict(caught)
        assert [tuple(full[number].shape[1:]) for number in sorted(full)] == unet.block_shapes(8)
        assert out.shape == x.shape
        for block in range(1, unet.num_blocks + 1):
            caught.clear()
            found = unet.features(x, t, [block])
            assert list(found) == [block]
            assert torch.equal(found[block], full[block])
            assert max(caught) == block  # nothing after it was computed
        several = unet.features(x, t, (9, 2))
    assert sorted(several) == [2, 9]
    assert torch.equal(several[2], full[2])


def test_a_skip_reaches_exactly_the_decoder_block_that_takes_it_and_those_after():
    unet, (x, t) = small(), batch()
    encoder = len(unet.input_blocks)
    with torch.no_grad():
        before = unet.features(x, t, range(1, unet.num_blocks + 1))
        for index, block in enumerate(unet.output_blocks):
            skipped = unet.block_shapes(8)[encoder - 1 - index][0]

            def without_skip(_, args, skipped=skipped):
                x, *rest = args
                return (torch.cat([x[:, :-skipped], torch.zeros_like(x[:, -skipped:])], dim=1), *rest)

            handle = block.register_forward_pre_hook(without_skip)
            after = unet.features(x, t, range(1, unet.num_blocks + 1))
            handle.remove()
            changed = [number for number in before if not torch.equal(before[number], after[number])]
            assert changed == list(range(encoder + 2 + index, unet.num_blocks + 1))


def test_a_fresh_network_says_zero_and_its_blocks_are_their_skips():
    unet, (x, t) = small(zeros=True), batch()
    with torch.no_grad():
        assert torch.equal(unet(x, t), torch.zeros_like(x))
        found = unet.features(x, t, (1, 2, 3))
    assert torch.equal(found[1], found[2])
    assert torch.equal(F.avg_pool2d(found[2], 2), found[3])


def test_a_residual_block_follows_its_equation():
    torch.manual_seed(0)
    block = ResBlock(4, 8, 5, resample="down", norm_groups=2)
    nn.init.normal_(block.conv2.weight)
    x, t, emb = torch.randn(2, 4, 6, 6), torch.tensor([3, 4]), torch.randn(2, 5)
    h = block.conv1(F.avg_pool2d(F.silu(block.norm1(x)), 2))
    scale_shift = emb.mul(emb.sigmoid()) @ block.emb.weight.T + block.emb.bias
    h = torch.stack(
        [block.norm2(h)[i] * (1 + scale_shift[i, :8, None, None]) + scale_shift[i, 8:, None, None] for i in range(2)]
    )
    expected = block.skip(F.avg_pool2d(x, 2)) + block.conv2(F.silu(h))
    torch.testing.assert_close(block(x, t, emb), expected)


def test_attention_splits_heads_before_queries_keys_and_values():
    torch.manual_seed(0)
    block = AttentionBlock(6, head_channels=3, norm_groups=2)
    nn.init.normal_(block.proj.weight)
    x = torch.randn(2, 6, 2, 3)
    qkv = block.qkv(block.norm(x)).flatten(2)
    heads = []
    for head in range(2):
        q, k, v = qkv[:, 9 * head : 9 * head + 9].split(3, dim=1)
        weights = torch.softmax((q.transpose(1, 2) * 3**-0.25) @ (k * 3**-0.25), dim=-1)
        heads.append(v @ weights.transpose(1, 2))
    expected = x + block.proj(torch.cat(heads, dim=1).view(2, 6, 2, 3))
    torch.testing.assert_close(block(x, torch.tensor([0, 0]), torch.zeros(2, 1)), expected)


class Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, t, fn, *args):
        self.seen.append((t, len(args)))
        return fn(2 * x, *args) - fn(x, *args)


def test_a_router_stands_around_the_whole_block_and_sees_the_timesteps():
    unet, (x, t) = small(), batch()
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock | AttentionBlock)]
    assert all(block.router is None for block in blocks)
    names = set(dict(unet.named_parameters()))
    plain = next(block for block in blocks if isinstance(block, ResBlock))
    emb, maps = torch.randn(3, 32), torch.randn(3, 8, 8, 8)
    expected = plain.block(2 * maps, emb) - plain.block(maps, emb)
    assert torch.equal(plain.block(maps, emb), plain.shortcut(maps) + plain.residual(maps, emb))
    router = Doubling()
    for block in blocks:
        block.router = router
    assert torch.equal(plain(maps, t, emb), expected)
    router.seen.clear()
    with torch.no_grad():
        unet(x, t)
    assert len(router.seen) == len(blocks)
    assert all(torch.equal(seen, t) for seen, _ in router.seen)
    assert {args for _, args in router.seen} == {0, 1}  # attention has no embedding
    assert set(dict(unet.named_parameters())) == names


def test_the_timestep_matters_and_examples_do_not_mix():
    unet, (x, t) = small(), batch()
    with torch.no_grad():
        out = unet(x, t)
        assert not torch.allclose(out, unet(x, (t + 1) % 1000))
        alone = torch.cat([unet(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, out)


def test_sides_need_not_be_equal_and_sinusoids_and_embedding_have_sizes_of_their_own():
    unet = small(sinusoids=6, time_dim=10)
    assert [layer.in_features for layer in (unet.time_embed[0], unet.time_embed[2])] == [6, 10]
    assert unet.block_shapes((4, 12))[6] == (24, 1, 3)
    assert unet(torch.randn(1, 1, 4, 12), torch.tensor([7])).shape == (1, 1, 4, 12)


def test_gradients_reach_every_parameter():
    unet, (x, t) = small(), batch()
    unet(x, t).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in unet.parameters())


def test_weights_survive_saving(tmp_path):
    unet, (x, t) = small(), batch()
    unet.save_pretrained(tmp_path)
    again = UNet.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(unet(x, t), again(x, t))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_groups": 5}, r"norm_groups = 5 does not divide a width of 8"),
        ({"head_channels": 5}, r"head_channels = 5 does not divide a width of 24"),
        ({"attention_levels": (3,)}, r"attention_levels must lie in 0..2, got \[3\]"),
        ({"channel_mult": ()}, "at least one level"),
        ({"num_res_blocks": 0}, "num_res_blocks must be positive, got 0"),
        ({"sinusoids": 7}, "sinusoids must be even"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_sides_channels_and_blocks_out_of_range_are_refused():
    unet, (x, t) = small(), batch()
    with pytest.raises(ValueError, match=r"multiples of 4.*got 9 x 8; the next valid size is 12 x 8"):
        unet(torch.randn(3, 1, 9, 8), t)
    with pytest.raises(ValueError, match="the next valid size is 12 x 12"):
        unet.block_shapes(10)
    with pytest.raises(ValueError, match="takes 1 channels"):
        unet(torch.randn(3, 2, 8, 8), t)
    for block in (0, 14, -1):
        with pytest.raises(IndexError, match=f"block must lie in 1..13, got {block}"):
            unet.features(x, t, [block])
    with pytest.raises(ValueError, match="at least one block"):
        unet.features(x, t, [])
    with pytest.raises(ValueError, match="resample must be one of"):
        ResBlock(4, 4, 4, resample="left", norm_groups=2)
    assert math.prod(unet.block_shapes(8)[0]) == 8 * 64
