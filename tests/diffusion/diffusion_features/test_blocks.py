"""Blocks of diffusers' models: numbering, early exit and refusals."""

import pytest
import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn

from etude.diffusion.diffusion_features import DiffusionFeatures, HookedBlocks, UNet, block_model, diffusers_block_names
from etude.nn.diffusion import DiffusersModel


def theirs(**changes):
    torch.manual_seed(0)
    arguments = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16, 24),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), "norm_num_groups": 4, "attention_head_dim": 8,
    }  # fmt: skip
    return UNet2DModel(**arguments | changes).eval()


def inputs(n=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.tensor([3, 700])[:n]


def test_a_unet_of_diffusers_is_numbered_as_ours():
    names = diffusers_block_names(theirs())
    assert names == [
        "conv_in", "down_blocks.0.resnets.0", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0",
        "down_blocks.1.downsamplers.0", "down_blocks.2.attentions.0", "mid_block",
        "up_blocks.0.attentions.0", "up_blocks.0.upsamplers.0", "up_blocks.1.resnets.0", "up_blocks.1.upsamplers.0",
        "up_blocks.2.resnets.0", "up_blocks.2.resnets.1",
    ]  # fmt: skip
    ours = UNet(1, 1, 8, (1, 2, 3), 1, (2,), head_channels=8, norm_groups=4)
    assert len(names) == ours.num_blocks
    x, t = inputs()
    with torch.no_grad():
        found = block_model(theirs()).features(x, t, range(1, 14))
    assert [tuple(found[block].shape[1:]) for block in range(1, 14)] == ours.block_shapes(8)


def test_features_of_diffusers_models_are_their_modules_outputs_and_later_ones_do_not_run():
    model, (x, t) = theirs(), inputs()
    caught, last = {}, []
    model.mid_block.register_forward_hook(lambda _, __, out: caught.update(mid=out))
    model.conv_out.register_forward_hook(lambda *_: last.append(1))
    with torch.no_grad():
        out = model(x, t).sample
        full = caught["mid"]
        assert len(last) == 1
        found = block_model(model).features(x, t, [7])[7]
        assert torch.equal(found, full)
        assert len(last) == 1
        assert torch.equal(model(x, t).sample, out)  # no hook is left behind
        wrapped = block_model(DiffusersModel(model)).features(x, t, [7])[7]
    assert torch.equal(wrapped, full)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 2


def test_a_dit_of_diffusers_gives_maps_and_gets_its_null_label():
    torch.manual_seed(0)
    dit = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=2,
    ).eval()  # fmt: skip
    x, t = inputs()
    blocks = block_model(dit)
    assert blocks.block_names() == ["transformer_blocks.0", "transformer_blocks.1", "transformer_blocks.2"]
    caught = {}
    dit.transformer_blocks[1].register_forward_hook(lambda _, __, out: caught.update(tokens=out))
    with torch.no_grad():
        found = blocks.features(x, t, [2])[2]
        assert found.shape == (2, 8, 4, 4)
        assert torch.equal(found[:, :, 1, 3], caught["tokens"][:, 1 * 4 + 3])
        dit(x, timestep=t, class_labels=torch.tensor([5, 5]))
        assert torch.equal(caught["tokens"].transpose(1, 2).reshape(2, 8, 4, 4), found)
    features = DiffusionFeatures(dit, DDPMScheduler(), blocks=[1], timesteps=[90], pool=2)
    assert features(torch.tanh(x))[90, 1].shape == (2, 8, 2, 2)


@pytest.mark.parametrize("classes", [None, 5])
def test_a_dit_of_ours_is_read_by_its_list_of_blocks_without_a_label(classes):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_classes, self.labels = classes, []
            self.embed = nn.Conv2d(1, 6, 2, stride=2)
            self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

        def forward(self, x, t, y=None):
            self.labels.append(y)
            return self.blocks[1](self.blocks[0](self.embed(x).flatten(2).transpose(1, 2)))

    model, (x, t) = Tokens(), inputs()
    blocks = block_model(model)
    found = blocks.features(x, t, [1])[1]
    assert blocks.num_blocks == 2
    torch.testing.assert_close(found, model.blocks[0](model.embed(x).movedim(1, 3)).movedim(3, 1))
    assert (model.labels[0] is None) if classes is None else model.labels[0].tolist() == [5, 5]


def test_a_conditional_unet_takes_its_condition_for_every_image():
    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6, norm_num_groups=4, attention_head_dim=4,
    ).eval()  # fmt: skip
    prompt = torch.randn(1, 3, 6)
    x, t = inputs()
    with torch.no_grad():
        found = block_model(model, encoder_hidden_states=prompt).features(x, t, [2, 5])
        other = block_model(model, encoder_hidden_states=prompt + 1).features(x, t, [2])
    assert found[2].shape == (2, 8, 8, 8)
    assert not torch.equal(found[2], other[2])


def test_refusals():
    x, t = inputs()
    blocks = block_model(theirs())
    with pytest.raises(IndexError, match=r"block must lie in 1..13, got 14"):
        blocks.features(x, t, [14])
    with pytest.raises(ValueError, match="at least one block"):
        blocks.features(x, t, [])
    with pytest.raises(TypeError, match="has no numbered blocks"):
        block_model(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="takes no conditions, got prompt"):
        block_model(UNet(1, 1, 8, (1,), 1, (), head_channels=8, norm_groups=4), prompt=x)
    with pytest.raises(AttributeError, match="missing"):
        HookedBlocks(theirs(), ["missing"])
    with pytest.raises(ValueError, match="at least one block"):
        HookedBlocks(theirs(), [])


def test_outputs_that_are_no_maps_and_blocks_that_do_not_run_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x, t):
            return self.used(x[:, 0, :5])

    x, t = inputs()
    with pytest.raises(ValueError, match=r"one token a patch of the 8 x 8 input, got shape \(2, 5, 3\)"):
        HookedBlocks(Odd(), ["used"]).features(x, t, [1])
    with pytest.raises(RuntimeError, match="these blocks did not run: unused"):
        HookedBlocks(Odd(), ["used", "unused"]).features(x, t, [2])
