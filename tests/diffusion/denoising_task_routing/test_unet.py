"""Routing of residual blocks with changes of channels and resolution, and of whole U-Nets."""

import pytest
import torch

from etude.diffusion.denoising_task_routing import ResidualRouter, RoutedResBlock, Routing, route_unet_
from etude.nn.unet import AttentionBlock, ResBlock, UNet


def awake(module):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def small_unet(**options):
    sizes = {"base_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
    return awake(UNet(1, 1, norm_groups=4, head_channels=8, **sizes, **options))


def small_inputs(n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 8, 8, generator=generator), torch.tensor([0, 500, 999])[:n]


@pytest.mark.parametrize(
    ("out", "resample"), [(8, "same"), (12, "same"), (8, "down"), (12, "up")], ids=["plain", "wider", "down", "up"]
)
def test_the_skip_sees_everything_and_the_branch_the_active_channels(out, resample):
    options = {"resample": resample, "norm_groups": 4}
    block = awake(RoutedResBlock(8, out, 16, routing=Routing(num_tasks=5, beta=0.5), **options))
    generator = torch.Generator().manual_seed(0)
    x, emb = torch.randn(3, 8, 4, 4, generator=generator), torch.randn(3, 16, generator=generator)
    t = torch.tensor([0, 2, 4])
    mask = block.router.mask[t][:, :, None, None]
    expected = block.shortcut(x) + block.residual(x * mask, emb)
    assert torch.equal(block(x, t, emb), expected)
    changed = x + torch.randn(x.shape, generator=generator) * ~mask
    moved = block(changed, t, emb) - block(x, t, emb)
    torch.testing.assert_close(moved, block.shortcut(changed) - block.shortcut(x), rtol=0, atol=1e-4)


def test_a_share_of_one_is_the_plain_unet_bit_for_bit():
    x, t = small_inputs()
    results = []
    for routing in (None, Routing(beta=1), Routing(method="random", beta=1)):
        unet = small_unet()
        if routing is not None:
            route_unet_(unet, routing)
        out = unet(x, t)
        out.square().mean().backward()
        results.append([out, *(parameter.grad for parameter in unet.parameters())])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_every_block_of_a_unet_is_routed_by_a_mask_of_its_own_width():
    plain, unet = small_unet(), route_unet_(small_unet(), Routing(beta=0.5))
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock | AttentionBlock)]
    assert all(block.router.mask.shape == (1000, block.in_channels) for block in blocks)
    assert len({id(block.router) for block in blocks if isinstance(block, ResBlock)}) == len(
        {block.in_channels for block in blocks if isinstance(block, ResBlock)}
    )
    assert list(unet.state_dict()) == list(plain.state_dict())
    assert sum(p.numel() for p in unet.parameters()) == sum(p.numel() for p in plain.parameters())
    x, t = small_inputs()
    assert not torch.allclose(unet(x, t), plain(x, t))
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(unet(x, t), alone, rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused():
    x, t = small_inputs()
    unet = route_unet_(small_unet(), Routing())
    with pytest.raises(ValueError, match="routed already"):
        route_unet_(unet, Routing())
    with pytest.raises(IndexError, match=r"0\.\.999"):
        unet(x, t + 1)
    with pytest.raises(TypeError, match="float32"):
        unet(x, t.float())
    router = ResidualRouter(dim=8, channel_dim=1)
    with pytest.raises(TypeError, match="method `block` of a ResBlock"):
        router(torch.randn(1, 8, 4, 4), torch.tensor([0]), lambda z: z)
