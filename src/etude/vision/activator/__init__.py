"""Activator: blocks of gated linear units in place of attention.

Abdullah & Aydin, "Activator: GLU Activations as The Core Functions of a Vision Transformer", 2024, arXiv:2405.15953.
Equations and defaults follow the authors' code (github.com/Abdullah-88/Activator).

What it can and cannot mix. In that code, and by default here, the gated unit works on the channels of each token by
itself: between the patch embedding and the final mean **no information passes from one patch to another**, and there
are no positions. The network is a bag of patches, a deep function of each patch followed by an average: permuting the
patches of an image changes nothing, and what only the arrangement of patches tells cannot be learned. The paper's text
speaks of interaction between tokens; `mixing="token"` is this library's extension in that direction, a gate along the
token axis, and not what the published figures come from.

    model = Activator(in_chans=3, num_classes=10)                      # GLU and MLP in each block
    model = Activator(in_chans=3, num_classes=10, use_mlp=False)       # GLU only
    block = ActivatorBlock(dim=64, hidden_dim=128, use_mlp=False)      # for your own network
    count_macs(model, (1, 3, 32, 32))
    ActivatorClassifier().fit(images, labels)                          # needs the extra `run`
"""

from typing import Any

from etude.vision.activator.frame import (
    Activator,
    MixerBlock,
    PatchClassifier,
    ViTBlock,
    mixer_block,
    vit_block,
)
from etude.vision.activator.gating import ACTIVATIONS, MIXINGS, ActivatorBlock, GatedMLP
from etude.vision.activator.measuring import count_macs, count_parameters, shuffle_patches

__all__ = [
    "ACTIVATIONS",
    "MIXINGS",
    "Activator",
    "ActivatorBlock",
    "ActivatorClassifier",
    "GatedMLP",
    "MixerBlock",
    "PatchClassifier",
    "ViTBlock",
    "count_macs",
    "count_parameters",
    "mixer_block",
    "shuffle_patches",
    "vit_block",
]


def __getattr__(name: str) -> Any:
    if name == "ActivatorClassifier":  # needs scikit-learn: loaded when asked for
        from etude.vision.activator.estimator import ActivatorClassifier

        return ActivatorClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
