"""HaloNet: blocked local self-attention with halos, and the family of networks built from it.

Vaswani, Ramachandran, Srinivas, Parmar, Hechtman & Shlens, "Scaling Local Self-Attention for Parameter Efficient
Visual Backbones", CVPR 2021, arXiv:2103.12731.

    attention = HaloAttention(dim=64, num_heads=4, block_size=8, halo_size=3)     # in place of a 3x3 convolution
    model = halonet_h1(num_classes=10)                                            # the family, H0 to H7
    model = convert_resnet_to_halo(resnet, stages=("layer4",))                    # a hybrid of your own ResNet
"""

from etude.vision.halonet.attention import HaloAttention, halo_attention, sasa_attention
from etude.vision.halonet.boundary import boundary_task, straddles
from etude.vision.halonet.convert import convert_resnet_to_halo
from etude.vision.halonet.network import (
    VARIANTS,
    HaloBottleneck,
    HaloNet,
    Variant,
    halonet_h0,
    halonet_h1,
    halonet_h2,
    halonet_h3,
    halonet_h4,
    halonet_h5,
    halonet_h6,
    halonet_h7,
)
from etude.vision.halonet.reference import local_attention_reference

__all__ = [
    "VARIANTS",
    "HaloAttention",
    "HaloBottleneck",
    "HaloNet",
    "Variant",
    "boundary_task",
    "convert_resnet_to_halo",
    "halo_attention",
    "halonet_h0",
    "halonet_h1",
    "halonet_h2",
    "halonet_h3",
    "halonet_h4",
    "halonet_h5",
    "halonet_h6",
    "halonet_h7",
    "local_attention_reference",
    "sasa_attention",
    "straddles",
]
