"""Hybrids: halo attention in the last stages of a residual network of the user's own.

Vaswani et al., CVPR 2021, arXiv:2103.12731, use this for detection: attention in the last one or two stages (C4, C5)
of a ResNet-50, with blocks of 8 and halos of 3 or 4, and convolutions before.
"""

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from etude.vision.halonet.attention import HaloAttention

__all__ = ["convert_resnet_to_halo"]

Module = TypeVar("Module", bound=nn.Module)


def convert_resnet_to_halo(
    module: Module,
    stages: Sequence[str] = ("layer3", "layer4"),
    block_size: int = 8,
    halo_size: int = 3,
    *,
    dim_head: int = 16,
    chunk_rows: int | None = None,
) -> Module:
    """Replaces every 3x3 convolution of the named stages by halo attention, in place.

        resnet = convert_resnet_to_halo(torchvision.models.resnet50(), stages=("layer4",))

    A convolution of stride 2 becomes strided attention. The rest of the network, its weights included, stays; the
    attention is new and must be trained. Works on any module whose stages are attributes (dots reach inside), such
    as the ResNets of torchvision and timm.

    Args:
        module: the network; it is changed.
        stages: names of submodules of `module`.
        block_size, halo_size: b and h in pixels; maps whose sides are no multiple of b are filled up.
        dim_head: dim of queries and keys in a head; the heads are input channels // dim_head.
        chunk_rows: see `halo_attention`.

    Returns:
        `module`.

    Raises:
        ValueError: if a stage does not exist or holds no 3x3 convolution, if a convolution is grouped, dilated,
            not padded by 1 or strided by more than 2, or if `dim_head` does not divide its channels. Nothing is
            changed then.
    """
    names = dict(module.named_modules())
    new: dict[str, HaloAttention] = {}
    for stage in stages:
        if stage not in names or not stage:
            children = [name for name, _ in module.named_children()]
            raise ValueError(f"no stage {stage!r} in {type(module).__name__}; its parts are {children}")
        found = {
            name: part
            for name, part in names.items()
            if (name == stage or name.startswith(f"{stage}.")) and isinstance(part, nn.Conv2d)
        }
        spatial = {name: conv for name, conv in found.items() if conv.kernel_size == (3, 3)}
        if not spatial:
            raise ValueError(f"stage {stage!r} holds no 3x3 convolution")
        for name, conv in spatial.items():
            new[name] = _attention_like(name, conv, block_size, halo_size, dim_head, chunk_rows)
    for name, layer in new.items():
        module.set_submodule(name, layer)
    return module


def _attention_like(
    name: str, conv: nn.Conv2d, block_size: int, halo_size: int, dim_head: int, chunk_rows: int | None
) -> HaloAttention:
    stride = conv.stride[0]
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding in ((1, 1), "same")
    if not plain or conv.stride not in ((1, 1), (2, 2)):
        raise ValueError(f"{name} must be a plain 3x3 convolution of stride 1 or 2 padded by 1, got {conv}")
    if conv.in_channels % dim_head:
        raise ValueError(f"dim_head must divide the channels of {name}, got {dim_head} and {conv.in_channels}")
    layer = HaloAttention(
        dim=conv.in_channels,
        dim_out=conv.out_channels,
        num_heads=conv.in_channels // dim_head,
        dim_head=dim_head,
        block_size=block_size,
        halo_size=halo_size,
        stride=stride,
        avg_down=stride == 2 and block_size % 2 == 1,
        qkv_bias=conv.bias is not None,
        chunk_rows=chunk_rows,
    )
    layer.train(conv.training)
    return layer.to(device=conv.weight.device, dtype=conv.weight.dtype)
