"""Diffusion features: leaving the network early, and the U-Net against that of diffusers.

The peer of the first lines is our own whole forward with a hook on the block, which is how features are commonly
caught; the note gives the share of floating-point operations that the early exit runs. diffusers' `UNet2DModel` has
the same widths, residual blocks, scale-shift norm, residual resampling and attention, and so nearly the parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compare import Comparison
from etude.diffusion.diffusion_features import DiffusionFeatures, UNet

_WIDTHS = (64, 128, 192)
_SIDE = 32


def _ours() -> UNet:
    torch.manual_seed(0)
    return UNet(3, 3, 64, (1, 2, 3), num_res_blocks=2, attention_levels=(2,), head_channels=32).eval()


def _diffusers() -> Any:
    torch.manual_seed(0)
    model: Any = UNet2DModel(
        sample_size=_SIDE, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=_WIDTHS,
        down_block_types=("ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift", norm_num_groups=32,
        attention_head_dim=32,
    )  # fmt: skip
    return model.eval()


def _operations(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _size(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def comparisons() -> list[Comparison]:
    unet, theirs = _ours(), _diffusers()
    listed = []
    x = torch.rand(4, 3, _SIDE, _SIDE) * 2 - 1
    t = torch.full((4,), 90)
    kept: dict[str, Tensor] = {}

    def whole(name: str) -> Callable[[], Any]:
        """The forward of all blocks, of which a hook keeps one's output."""

        def call() -> None:
            handle = unet.get_submodule(name).register_forward_hook(lambda _, __, out: kept.update(found=out))
            with torch.no_grad():
                unet(x, t)
            handle.remove()

        return call

    def early(block: int) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad():
                kept["early"] = unet.features(x, t, [block])[block]

        return call

    middle = len(unet.input_blocks) + 1
    for block in (5, middle, middle + 2, unet.num_blocks):
        mine, other = early(block), whole(unet.block_names()[block - 1])
        mine(), other()
        assert torch.equal(kept["early"], kept["found"])
        share = _operations(mine) / _operations(other)
        listed.append(
            Comparison(
                f"features of block {block} of {unet.num_blocks}, 4 images of 32 x 32", mine, other,
                "full forward and a hook", f"{100 * share:.0f} % of the operations",
            )
        )  # fmt: skip
    reader, hooked = (
        DiffusionFeatures(model, DDPMScheduler(), blocks=[middle], timesteps=[90]) for model in (unet, theirs)
    )
    listed.append(
        Comparison(
            f"DiffusionFeatures at block {middle}", lambda: reader(x), lambda: hooked(x), "diffusers, same exit",
            f"{_size(unet):.2f} M and {_size(theirs):.2f} M parameters",
        )
    )  # fmt: skip

    def forward(model: nn.Module) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad():
                model(x, t)

        return call

    listed.append(Comparison("U-Net forward, 4 images", forward(unet), forward(theirs), "diffusers UNet2DModel"))
    return listed
