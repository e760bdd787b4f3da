"""The order of the layers, shortcuts, variants, and stochastic depth."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nn.transformer import DropPath
from etude.vision.moat import MBConv, MOATBlock, batch_norm


def randomised(block):
    torch.manual_seed(1)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return block


def normalised(x, norm):
    view = (1, -1, 1, 1)
    scale = norm.weight / (norm.running_var + 1e-3).sqrt()
    return x * scale.view(view) + (norm.bias - norm.running_mean * scale).view(view)


def written_out(block, x, stride, with_se):
    """Eq. (1) on its weights, in evaluation mode."""
    out = F.conv2d(normalised(x, block.pre_norm), block.expand.weight)
    out = F.gelu(normalised(out, block.expand_norm), approximate="none")
    out = F.conv2d(out, block.depthwise.weight, stride=stride, padding=1, groups=out.shape[1])
    out = F.gelu(normalised(out, block.depthwise_norm), approximate="none")
    if with_se:
        squeezed = F.conv2d(out.mean((2, 3), keepdim=True), block.se.reduce.weight, block.se.reduce.bias)
        squeezed = squeezed * squeezed.sigmoid()
        out = out * F.conv2d(squeezed, block.se.expand.weight, block.se.expand.bias).sigmoid()
    shortcut = F.avg_pool2d(x, 2) if stride == 2 else x
    if not isinstance(block.shortcut.conv, nn.Identity):
        shortcut = F.conv2d(shortcut, block.shortcut.conv.weight, block.shortcut.conv.bias)
    return shortcut + F.conv2d(out, block.shrink.weight, block.shrink.bias)


@pytest.mark.parametrize(("in_dim", "dim", "stride"), [(4, 8, 2), (4, 4, 2), (4, 8, 1), (4, 4, 1)])
@pytest.mark.parametrize("se_ratio", [0.25, None])
def test_mobile_convolution_is_its_equation(in_dim, dim, stride, se_ratio):
    block = randomised(MBConv(in_dim=in_dim, dim=dim, stride=stride, se_ratio=se_ratio).double()).eval()
    x = torch.randn(2, in_dim, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x), written_out(block, x, stride, se_ratio is not None))


def test_a_moat_block_is_mobile_convolution_without_se_then_attention():
    block = randomised(MOATBlock(in_dim=4, dim=8, stride=2, head_dim=4, rel_pos_size=3).double()).eval()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    y = written_out(block.conv, x, 2, with_se=False)
    channels_last = y.permute(0, 2, 3, 1)
    normal = F.layer_norm(channels_last, (8,), block.attention_norm.weight, block.attention_norm.bias, 1e-5)
    torch.testing.assert_close(block(x), y + block.attention(normal.permute(0, 3, 1, 2)))
    assert not any("mlp" in name for name, _ in block.named_parameters())


def test_the_other_orders_attend_first():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    for variant in ("attn_mlp", "attn_mbconv"):
        block = randomised(
            MOATBlock(in_dim=4, dim=8, stride=2, head_dim=4, rel_pos_size=3, variant=variant)
        ).eval()  # fmt: skip
        z = F.conv2d(F.avg_pool2d(x, 2), block.down[1].weight, block.down[1].bias)
        norm = block.attention_norm
        y = z + block.attention(
            F.layer_norm(z.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias).permute(0, 3, 1, 2)
        )  # fmt: skip
        if variant == "attn_mbconv":
            wanted = written_out(block.conv, y, 1, with_se=False)
        else:
            tokens = F.layer_norm(y.permute(0, 2, 3, 1), (8,), block.mlp_norm.weight, block.mlp_norm.bias)
            hidden = F.gelu(F.linear(tokens, block.mlp.fc1.weight, block.mlp.fc1.bias), approximate="none")
            wanted = y + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias).permute(0, 3, 1, 2)
        torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ["attn_mlp", "attn_mbconv"])
def test_no_down_sampling_layer_where_nothing_changes(variant):
    assert isinstance(MOATBlock(in_dim=8, dim=8, head_dim=4, variant=variant).down, nn.Identity)


def test_expansion_is_of_the_output_width():
    block = MBConv(in_dim=96, dim=192)
    assert block.expand.weight.shape == (768, 96, 1, 1)
    assert block.se.reduce.weight.shape == (48, 768, 1, 1)


def test_without_its_last_projections_a_block_is_the_shortcut():
    block = randomised(MOATBlock(in_dim=4, dim=8, stride=2, head_dim=4, rel_pos_size=3)).eval()
    for last in (block.conv.shrink, block.attention.proj):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    x = torch.randn(2, 4, 6, 6)
    conv = block.conv.shortcut.conv
    torch.testing.assert_close(block(x), F.conv2d(F.avg_pool2d(x, 2), conv.weight, conv.bias))


@pytest.mark.parametrize("size", [(7, 7), (7, 8), (1, 1), (2, 3)])
@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("tf_same_padding", [False, True])
def test_odd_maps_shrink_to_the_ceiling_in_branch_and_shortcut(size, pool, tf_same_padding):
    block = MBConv(in_dim=4, dim=4, stride=2, shortcut_pool=pool, tf_same_padding=tf_same_padding).eval()
    assert block(torch.randn(2, 4, *size)).shape == (2, 4, (size[0] + 1) // 2, (size[1] + 1) // 2)


def same(x, kernel, stride):
    """TensorFlow's SAME by its definition: pads and a mask of what is inside."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads), F.pad(torch.ones_like(x[:, :1]), pads)


@pytest.mark.parametrize("size", [(6, 6), (7, 6), (5, 7)])
@pytest.mark.parametrize("pool", [2, 3])
def test_padding_like_tensorflow_is_same_padding(size, pool):
    torch.manual_seed(0)
    block = MBConv(in_dim=4, dim=4, stride=2, shortcut_pool=pool, tf_same_padding=True)
    x = torch.randn(1, 4, *size)
    padded, inside = same(x, pool, 2)
    box = torch.ones(1, 1, pool, pool)
    sums = F.conv2d(padded, box.expand(4, 1, pool, pool), stride=2, groups=4)
    torch.testing.assert_close(block.shortcut(x), sums / F.conv2d(inside, box, stride=2))
    hidden = torch.randn(1, 16, *size)
    wanted = F.conv2d(same(hidden, 3, 2)[0], block.depthwise.weight, stride=2, groups=16)
    torch.testing.assert_close(block.depthwise(hidden), wanted)


def test_the_two_paddings_differ_on_even_sides_alone():
    blocks = [MBConv(in_dim=2, dim=2, stride=2, tf_same_padding=tf).eval() for tf in (False, True)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    for side, alike in ((7, True), (8, False)):
        x = torch.randn(1, 2, side, side)
        assert torch.allclose(blocks[0](x), blocks[1](x)) is alike


def support(block, depth, height=4, width=8):
    """Which pixels of the left window move any pixel of the right one, through `depth` blocks of windows of 4."""
    x = torch.randn(1, 4, height, width, dtype=torch.float64, requires_grad=True)
    out = x
    for _ in range(depth):
        out = block(out)
    (grad,) = torch.autograd.grad((out[:, :, :, width // 2 :] * torch.randn(1, 4, height, width // 2)).sum(), x)
    return grad.abs().sum((0, 1))[:, : width // 2] > 0


def test_information_crosses_windows_by_the_convolution_alone():
    block = randomised(MOATBlock(in_dim=4, dim=4, head_dim=4, window=4, rel_pos_size=4).double()).eval()
    assert not support(block.attention, 3).any()
    once = support(block, 1)
    assert once[:, 3].all()
    assert not once[:, :3].any()
    assert support(block, 2).all()


def test_stochastic_depth_drops_both_branches_of_its_own_accord():
    torch.manual_seed(0)
    block = MOATBlock(in_dim=8, dim=8, head_dim=4, rel_pos_size=2, drop_path=0.5)
    assert [m.rate for m in block.modules() if isinstance(m, DropPath)] == [0.5, 0.5]
    nn.init.zeros_(block.conv.shrink.weight)
    nn.init.ones_(block.conv.shrink.bias)  # the branch of the convolution adds 1 / (1 - 0.5), or nothing
    nn.init.zeros_(block.attention.proj.weight)
    nn.init.constant_(block.attention.proj.bias, 10.0)
    x = torch.zeros(400, 8, 2, 2)
    found, counts = block(x)[:, 0, 0, 0].round().unique(return_counts=True)
    assert found.tolist() == [0.0, 2.0, 20.0, 22.0]
    assert all(70 <= count <= 130 for count in counts.tolist())
    assert torch.equal(block.eval()(x), torch.full_like(x, 11.0))


def test_attention_computed_again_gives_the_same_gradients():
    blocks = [
        randomised(MOATBlock(in_dim=4, dim=4, head_dim=4, rel_pos_size=3, checkpoint_attention=again))
        for again in (False, True)
    ]  # fmt: skip
    x = torch.randn(2, 4, 3, 3)
    grads = [torch.autograd.grad(block(x).square().sum(), list(block.parameters())) for block in blocks]
    torch.testing.assert_close(*grads)


def test_batch_norm_is_the_official_one():
    norm = batch_norm(3)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_one_value_per_channel_is_refused_in_training_and_fine_in_evaluation():
    block = MBConv(in_dim=2, dim=2, stride=2)
    with pytest.raises(
        ValueError, match=r"batch norm has one value per channel .* \(1, 2, 2, 2\) leaves a map of 1 x 1"
    ):
        block(torch.randn(1, 2, 2, 2))
    assert block.eval()(torch.randn(1, 2, 2, 2)).shape == (1, 2, 1, 1)
    assert block.train()(torch.randn(1, 2, 4, 4)).shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (MBConv, {"stride": 3}, "stride must be 1 or 2, got 3"),
        (MBConv, {"kernel_size": 4}, "kernel_size must be odd, got 4"),
        (MBConv, {"shortcut_pool": 4}, "shortcut_pool must be 2 or 3, got 4"),
        (MBConv, {"se_ratio": 0}, "se_ratio must be positive or None, got 0"),
        (MBConv, {"expansion": 0}, "expansion must be at least 1, got 0"),
        (MOATBlock, {"variant": "mlp"}, "variant must be one of moat, attn_mbconv, attn_mlp, got 'mlp'"),
        (MOATBlock, {"dim": 48}, "dim must be a multiple of head_dim, got 48 and 32"),
    ],
)
def test_blocks_that_cannot_be_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**({"in_dim": 32, "dim": 32} | options))
