"""MOAT: a mobile convolution before the attention in place of the MLP behind it, and the family of backbones.

Yang, Qiao, Yu, Yuan, Zhu, Yuille, Adam & Chen, "MOAT: Alternating Mobile Convolution and Attention Brings Strong
Vision Models", ICLR 2023, arXiv:2210.01820.

    block = MOATBlock(in_dim=64, dim=128, stride=2)                   # in a network of your own
    model = moat_0(num_classes=10)                                    # the family, 0 to 4 and tiny 0 to 3
    maps = MOATPyramid(tiny_moat_0(features_only=True))(images)       # p2 to p6, for a detector
    classifier = MOATClassifier(epochs=30).fit(images, labels)        # on your own images

The order of the layers, their biases and the position tables follow the official code (deeplab2, TensorFlow).
Convolutions pad both sides, as usual in PyTorch; `tf_same_padding=True` pads as the official code does.
"""

from typing import Any

from etude.vision.moat.attention import RelPosAttention2d, relative_position_bias, window_merge, window_partition
from etude.vision.moat.blocks import VARIANTS, MBConv, MOATBlock, SqueezeExcite, batch_norm
from etude.vision.moat.network import (
    MOAT,
    moat_0,
    moat_1,
    moat_2,
    moat_3,
    moat_4,
    tiny_moat_0,
    tiny_moat_1,
    tiny_moat_2,
    tiny_moat_3,
)
from etude.vision.moat.pyramid import MOATPyramid
from etude.vision.pixels import to_images

__all__ = [
    "MOAT",
    "VARIANTS",
    "MBConv",
    "MOATBlock",
    "MOATClassifier",
    "MOATPyramid",
    "RelPosAttention2d",
    "SqueezeExcite",
    "batch_norm",
    "moat_0",
    "moat_1",
    "moat_2",
    "moat_3",
    "moat_4",
    "relative_position_bias",
    "tiny_moat_0",
    "tiny_moat_1",
    "tiny_moat_2",
    "tiny_moat_3",
    "to_images",
    "window_merge",
    "window_partition",
]


def __getattr__(name: str) -> Any:
    if name == "MOATClassifier":
        from etude.vision.moat.classifier import MOATClassifier

        return MOATClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
