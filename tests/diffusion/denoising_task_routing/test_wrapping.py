"""Routing put into models that know nothing of it: foreign transformers, and those of diffusers."""

import copy
import threading

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn

from etude.diffusion.denoising_task_routing import DiT, Routing, route_, route_unet_
from etude.nn.diffusion import DiffusersModel
from etude.nn.unet import UNet


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x, c):
        return x + self.mix(self.norm(x)) * c


class Foreign(nn.Module):
    """A transformer of a user, whose blocks take no timesteps."""

    def __init__(self, dim=10, depth=2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim) for _ in range(depth))
        self.out = nn.Linear(dim, dim)

    def forward(self, x, t, y=None):
        c = (t / 1000).view(-1, 1, 1)
        for block in self.blocks:
            x = block(x, c)
        return self.out(x)


def foreign_inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 10, generator=generator), torch.tensor([0, 500, 999])


def foreign():
    torch.manual_seed(0)
    return Foreign()


def diffusers_dit():
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=2, num_layers=2, norm_num_groups=2, sample_size=8,
        num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


def diffusers_unet():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    ).eval()  # fmt: skip


def test_a_foreign_transformer_is_routed_block_by_block():
    model, plain = route_(foreign(), beta=0.6, alpha=2, num_tasks=1000), foreign()
    x, t = foreign_inputs()
    z = x
    mask = model.blocks[0].task_router.mask[t][:, None]
    for block in plain.blocks:
        z = block(z * mask, (t / 1000).view(-1, 1, 1)) + z * ~mask
    torch.testing.assert_close(model(x, t), plain.out(z))
    assert torch.equal(model(x, t=t), model(x, t))
    assert isinstance(model, Foreign)
    assert isinstance(model.blocks[0], Block)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("build", [diffusers_dit, diffusers_unet, foreign], ids=["dit", "unet", "foreign"])
def test_a_share_of_one_changes_no_bit(build):
    plain, routed = build(), route_(build(), beta=1)
    if build is foreign:
        args = foreign_inputs()
    else:
        channels = 2 if build is diffusers_dit else 1
        args = (torch.randn(3, channels, 8, 8), torch.tensor([0, 500, 999]))
        if build is diffusers_dit:
            args += (torch.tensor([0, 1, 10]),)
        plain, routed = DiffusersModel(plain), DiffusersModel(routed)
    one, other = plain(*args), routed(*args)
    assert torch.equal(one, other)
    for out in (one, other):
        out.square().sum().backward()
    assert all(
        torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), routed.parameters()) if a.grad is not None
    )


@pytest.mark.parametrize("build", [diffusers_dit, diffusers_unet], ids=["dit", "unet"])
def test_models_of_diffusers_are_routed_row_by_row(build):
    plain, routed = DiffusersModel(build()), route_(DiffusersModel(build()), beta=0.5)
    assert list(plain.state_dict()) == list(routed.state_dict())
    channels = 2 if build is diffusers_dit else 1
    with torch.no_grad():
        for model in (plain, routed):
            for number, parameter in enumerate(model.parameters()):
                parameter.copy_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
                    / parameter[0].numel() ** 0.5
                )
    x, t = torch.randn(3, channels, 8, 8), torch.tensor([0, 500, 999])
    labels = (torch.tensor([0, 1, 10]),) if build is diffusers_dit else ()
    together = routed(x, t, *labels)
    assert not torch.allclose(together, plain(x, t, *labels))
    alone = torch.cat([routed(x[i : i + 1], t[i : i + 1], *(y[i : i + 1] for y in labels)) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    if build is diffusers_unet:  # its samplers pass one number for all rows
        number = routed.model(x, 500).sample
        torch.testing.assert_close(number, routed(x, torch.full((3,), 500)), rtol=1e-4, atol=1e-4)


def test_the_residual_branch_of_a_diffusers_block_reads_active_channels_and_its_skip_all():
    unet = route_(diffusers_unet(), beta=0.5)
    block = unet.down_blocks[0].resnets[0]
    seen = {}
    block.norm1.register_forward_hook(lambda module, args, out: seen.update(read=args[0]))
    norm = copy.deepcopy(block.norm1)
    block.conv1.register_forward_pre_hook(lambda module, args: seen.update(after=args[0]))
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0, 500, 999])
    unet(x, t)
    mask = block.norm1.task_router.mask[t][:, :, None, None]
    plain = nn.functional.group_norm(seen["read"] * mask, norm.num_groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(seen["after"], nn.functional.silu(plain))
    assert not torch.equal(seen["read"], seen["read"] * mask)


def test_our_own_networks_are_routed_by_their_hooks():
    sizes = {"input_size": 8, "in_channels": 1, "dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = route_(DiT(**sizes), beta=0.5)
    assert model.routing == Routing(beta=0.5)
    assert type(model) is DiT
    options = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "head_channels": 8}
    torch.manual_seed(0)
    unet = UNet(1, 1, attention_levels=(1,), **options)
    other = copy.deepcopy(unet)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0, 999])
    assert torch.equal(route_(unet, beta=0.5)(x, t), route_unet_(other, Routing(beta=0.5))(x, t))


def test_a_predicate_names_the_blocks():
    model = route_(foreign(), predicate=lambda name, module: name == "blocks.1", beta=0.5)
    assert not hasattr(model.blocks[0], "task_router")
    assert model.blocks[1].task_router.mask.shape == (1000, 10)


def test_copies_and_threads_do_not_mix():
    model = route_(foreign(), beta=0.6)
    x, t = foreign_inputs()
    expected = [model(x, t), model(x, t.flip(0))]
    assert torch.equal(copy.deepcopy(model)(x, t), expected[0])
    found = {}

    def call(index):
        for _ in range(20):
            found[index] = model(x, t if index == 0 else t.flip(0))

    threads = [threading.Thread(target=call, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[index], expected[index]) for index in range(2))


def test_bad_input_is_refused():
    x, t = foreign_inputs()
    model = route_(foreign())
    with pytest.raises(ValueError, match="routed already"):
        route_(model)
    with pytest.raises(IndexError, match=r"0\.\.999, got 1\.\.1000"):
        model(x, t + 1)
    with pytest.raises(TypeError, match="float32"):
        model(x, t.float())
    with pytest.raises(TypeError, match="with its timesteps, 't'"):
        model(x, None)
    with pytest.raises(RuntimeError, match="outside of its model's call"):
        model.blocks[0](x, torch.ones(3, 1, 1))
    with pytest.raises(ValueError, match=r"no blocks to route.* out"):
        route_(NoBlocks())
    with pytest.raises(ValueError, match="give dim"):
        route_(foreign(), predicate=lambda name, module: name == "out")
    with pytest.raises(ValueError, match="no argument noise, only x, t, y"):
        route_(foreign(), timestep="noise")
    with pytest.raises(ValueError, match="for 9 channels, got 10"):
        route_(foreign(), dim=9)(x, t)


class NoBlocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(2, 2)

    def forward(self, x, t):
        return self.out(x)
