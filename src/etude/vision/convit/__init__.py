"""ConViT: gated positional self-attention, a soft convolutional start for vision transformers.

d'Ascoli, Touvron, Leavitt, Morcos, Biroli & Sagun, "ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases", ICML 2021, arXiv:2103.10697.

    layer = GatedPositionalSelfAttention(dim=144, num_heads=9)                # in a transformer of your own
    model = convit_small(num_classes=10)                                      # the published sizes
    profile = locality_profile(model, images)                                 # which heads have left locality
    classifier = ConViTClassifier(epochs=50).fit(images, labels)              # your own images

`ConViTClassifier` needs scikit-learn and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.vision.convit.attention import (
    GatedPositionalSelfAttention,
    gpsa_from_attention,
    gpsa_from_conv,
    grid_of,
    head_offsets,
    relative_coordinates,
)
from etude.vision.convit.checkpoint import from_timm_state, load_timm, to_timm_state
from etude.vision.convit.inspection import (
    LocalityProfile,
    attention_maps,
    locality_profile,
    non_locality,
    plot_attention,
    plot_locality,
)
from etude.vision.convit.network import (
    ConViT,
    ConViTBlock,
    convit_base,
    convit_small,
    convit_tiny,
    vit_counterpart,
    weight_decay_groups,
)
from etude.vision.convit.patches import choose_patch_size, pad_to_patches
from etude.vision.convit.recipe import RECIPE, DeiTAugmentation, RepeatedAugmentation, mix_images

if TYPE_CHECKING:
    from etude.vision.convit.estimator import ConViTClassifier

__all__ = [
    "RECIPE",
    "ConViT",
    "ConViTBlock",
    "ConViTClassifier",
    "DeiTAugmentation",
    "GatedPositionalSelfAttention",
    "LocalityProfile",
    "RepeatedAugmentation",
    "attention_maps",
    "choose_patch_size",
    "convit_base",
    "convit_small",
    "convit_tiny",
    "from_timm_state",
    "gpsa_from_attention",
    "gpsa_from_conv",
    "grid_of",
    "head_offsets",
    "load_timm",
    "locality_profile",
    "mix_images",
    "non_locality",
    "pad_to_patches",
    "plot_attention",
    "plot_locality",
    "relative_coordinates",
    "to_timm_state",
    "vit_counterpart",
    "weight_decay_groups",
]


def __getattr__(name: str) -> Any:
    if name == "ConViTClassifier":
        from etude.vision.convit.estimator import ConViTClassifier

        return ConViTClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
