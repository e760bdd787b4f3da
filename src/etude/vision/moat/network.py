"""MOAT: the family of backbones.

Yang et al., ICLR 2023, arXiv:2210.01820, table 1 and the official code. A stem of two 3x3 convolutions halves the
image; four stages, each of which begins by halving its map, bring it to a 32nd: two of mobile convolutions (`MBConv`),
two of MOAT blocks. The head is an average over the pixels, a layer norm and a linear layer. Block i = 0, 1, ... of n
has the rate d i / n of stochastic depth.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from etude.vision.moat.attention import Window, window_pair
from etude.vision.moat.blocks import MBConv, MOATBlock, SameConv2d, batch_norm, init_weights, is_batch_norm

__all__ = [
    "MOAT",
    "moat_0",
    "moat_1",
    "moat_2",
    "moat_3",
    "moat_4",
    "tiny_moat_0",
    "tiny_moat_1",
    "tiny_moat_2",
    "tiny_moat_3",
]

_TRAINED_ON = 224
"""Side of the published networks' images: a stage of stride s has a position table for windows of 224 / s pixels."""


class MOAT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="etude",
    paper_url="https://arxiv.org/abs/2210.01820",
    tags=["moat", "image-classification"],
):
    """Mobile convolutions, then MOAT blocks. The published networks are `moat_0` to `moat_4` and `tiny_moat_0` to `_3`.

        model = MOAT(num_classes=10, stem_dim=16, depths=(1, 1, 2, 1), dims=(16, 32, 64, 64))
        logits = model(torch.randn(2, 3, 64, 64))

    Images of any size are taken; a side of s pixels becomes ceil(s / 2) at each halving. Where `window` is given, the
    maps of that stage must be multiples of it. Global attention takes memory of the square of a map's pixels for each
    head: beyond some 384 pixels give windows, such as `window=(None, None, 14, 7)`.

    Args:
        num_classes: outputs of the head.
        stem_dim: channels of the stem.
        depths: blocks of each stage.
        dims: channels of each stage.
        block_types: "mbconv" or "moat" for each stage; by default the later half are MOAT blocks.
        in_chans: channels of the images.
        strides: 1 or 2 for each stage; 2 everywhere if None. Small images want some 1s.
        window: height and width of the windows of attention for each stage, or one number for both, or None for
            global attention; a single None for all stages.
        global_last: global attention in the last block of each stage whatever its window.
        rel_pos: whether attention has a position bias.
        rel_pos_size: for each stage the window side p whose table is stored, max(1, 224 / its stride) if None.
        drop_path_rate: d, rate of stochastic depth.
        variant: order of the MOAT blocks, see `MOATBlock`.
        head_dim, expansion, se_ratio, shortcut_pool, tf_same_padding, checkpoint_attention: see the blocks.
        bn_momentum: share of a batch in the running statistics of batch norm; short trainings want 0.1.
        features_only: no head; the forward pass gives the maps of `features`.

    Raises:
        ValueError: if the stages' lists differ in length, or a size is out of range.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        stem_dim: int = 64,
        depths: Sequence[int] = (2, 3, 7, 2),
        dims: Sequence[int] = (96, 192, 384, 768),
        block_types: Sequence[str] | None = None,
        in_chans: int = 3,
        strides: Sequence[int] | None = None,
        window: Sequence[Window | None] | None = None,
        global_last: bool = False,
        rel_pos: bool = True,
        rel_pos_size: Sequence[int | None] | None = None,
        drop_path_rate: float | int = 0.0,
        variant: str = "moat",
        head_dim: int = 32,
        expansion: int = 4,
        se_ratio: float | int | None = 0.25,
        shortcut_pool: int = 2,
        tf_same_padding: bool = False,
        checkpoint_attention: bool = False,
        bn_momentum: float | int = 0.01,
        features_only: bool = False,
    ):
        super().__init__()
        stages = len(depths)
        types = ["mbconv" if stage < stages // 2 else "moat" for stage in range(stages)]
        types = types if block_types is None else list(block_types)
        strides = [2] * stages if strides is None else list(strides)
        windows = [None] * stages if window is None else list(window)
        lists: dict[str, Sequence[Any]] = {
            "depths": depths, "dims": dims, "block_types": types, "strides": strides, "window": windows,
            "rel_pos_size": [None] * stages if rel_pos_size is None else rel_pos_size,
        }  # fmt: skip
        if not stages or len({len(values) for values in lists.values()}) > 1:
            given = ", ".join(f"{name} {tuple(values)}" for name, values in lists.items())
            raise ValueError(f"each stage needs one entry in every list, got {given}")
        if unknown := set(types) - {"mbconv", "moat"}:
            raise ValueError(f"block_types must be 'mbconv' or 'moat', got {sorted(unknown)}")
        for name, value in (("num_classes", num_classes), ("stem_dim", stem_dim), ("in_chans", in_chans)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if min(depths) < 1:
            raise ValueError(f"every stage needs at least one block, got depths {tuple(depths)}")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {drop_path_rate}")
        self.num_classes, self.in_chans, self.features_only = num_classes, in_chans, features_only
        self.strides = tuple(strides)
        self.windows = tuple(None if size is None else window_pair(size) for size in windows)
        self.bn_frozen = False
        norm = partial(batch_norm, momentum=bn_momentum)
        shared: dict[str, Any] = {
            "expansion": expansion, "shortcut_pool": shortcut_pool, "norm": norm, "tf_same_padding": tf_same_padding,
        }  # fmt: skip
        self.stem = nn.Sequential(
            SameConv2d(in_chans, stem_dim, 3, stride=2, tf_same_padding=tf_same_padding), norm(stem_dim), nn.GELU(),
            SameConv2d(stem_dim, stem_dim, 3),
        )  # fmt: skip
        self.stem.apply(init_weights)
        self.stages = nn.ModuleList()
        info = [("stem", stem_dim, 2)]
        dim, scale, built, total = stem_dim, 2, 0, sum(depths)
        for stage in range(stages):
            scale *= strides[stage]
            size = lists["rel_pos_size"][stage]
            size = max(1, _TRAINED_ON // scale) if size is None else size
            blocks = nn.Sequential()
            for index in range(depths[stage]):
                block: dict[str, Any] = shared | {
                    "in_dim": dim, "dim": dims[stage], "stride": strides[stage] if index == 0 else 1,
                    "drop_path": drop_path_rate * built / total,
                }  # fmt: skip
                if types[stage] == "mbconv":
                    blocks.append(MBConv(**block, se_ratio=se_ratio))
                else:
                    whole = global_last and index == depths[stage] - 1
                    blocks.append(
                        MOATBlock(
                            **block, head_dim=head_dim, window=None if whole else self.windows[stage],
                            rel_pos_size=size if rel_pos else None, variant=variant,
                            checkpoint_attention=checkpoint_attention,
                        )
                    )  # fmt: skip
                dim, built = dims[stage], built + 1
            self.stages.append(blocks)
            info.append((f"stage{stage + 1}", dim, scale))
        self.feature_info = tuple(info)
        self.norm: nn.Module = nn.Identity() if features_only else nn.LayerNorm(dim, eps=1e-5)
        self.head: nn.Module = nn.Identity() if features_only else nn.Linear(dim, num_classes)
        self.head.apply(init_weights)

    def features(
        self, x: Shaped[Tensor, "batch in_chans height width"], *, activated: bool = False
    ) -> dict[str, Float[Tensor, "batch channels rows columns"]]:
        """The maps of the stem and of every stage, for dense tasks; `feature_info` holds name, channels and stride.

        Args:
            x: the images.
            activated: their GELU instead: residual sums are not activated, and some heads expect that they are.
        """
        maps = {"stem": self._stem(x)}
        out = maps["stem"]
        for number, stage in enumerate(self.stages, 1):
            out = maps[f"stage{number}"] = stage(out)
        return {name: F.gelu(value) for name, value in maps.items()} if activated else maps

    def forward_features(
        self, x: Shaped[Tensor, "batch in_chans height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The map of the last stage."""
        out = self._stem(x)
        for stage in self.stages:
            out = stage(out)
        return out

    def forward(
        self, x: Shaped[Tensor, "batch in_chans height width"]
    ) -> Float[Tensor, "batch classes"] | dict[str, Float[Tensor, "batch channels rows columns"]]:
        """Logits of the classes; the maps of `features` if made with `features_only`.

        Raises:
            TypeError: for pixels that are not floating point.
            ValueError: for images of other channels, or whose maps a stage's window does not divide.
        """
        if self.features_only:
            return self.features(x)
        return self.head(self.norm(self.forward_features(x).mean((2, 3))))

    def freeze_batch_norm(self, frozen: bool = True) -> "MOAT":
        """Fixes statistics, scales and shifts of all batch norms, for fine-tuning on small batches; or frees them.

        It stays in force through `train()`. Optimizers made before keep the frozen weights but get no gradient.
        """
        self.bn_frozen = frozen
        for module in filter(is_batch_norm, self.modules()):
            module.requires_grad_(not frozen)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "MOAT":
        super().train(mode)
        if self.bn_frozen:
            for module in filter(is_batch_norm, self.modules()):
                module.eval()
        return self

    def _stem(self, x: Tensor) -> Tensor:
        self._check_images(x)
        first, *others = self.stem
        # Channels last: convolutions are quicker, and the attention's tokens need not be copied together.
        out = first(x).contiguous(memory_format=torch.channels_last)
        for layer in others:
            out = layer(out)
        return out

    def _check_images(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"images must have shape (batch, {self.in_chans}, height, width), got {tuple(x.shape)}; "
                "etude.vision.pixels.to_images brings grey, colour and transparent ones to these channels"
            )
        if not x.is_floating_point():
            raise TypeError(
                f"images must be floating point, got {str(x.dtype).removeprefix('torch.')}; "
                "etude.vision.pixels.to_images scales integers to [0, 1]"
            )
        height, width = (-(-side // 2) for side in x.shape[2:])
        scale = 2
        for number, (stride, window) in enumerate(zip(self.strides, self.windows), 1):
            height, width, scale = -(-height // stride), -(-width // stride), scale * stride
            if window is not None and (height % window[0] or width % window[1]):
                raise ValueError(
                    f"windows of {window[0]} x {window[1]} must divide the maps of stage {number}, which are "
                    f"{height} x {width} for images of {x.shape[2]} x {x.shape[3]}; images of multiples of "
                    f"{window[0] * scale} x {window[1] * scale} pixels fit"
                )


def _published(changes: dict[str, Any], **published: Any) -> MOAT:
    return MOAT(**(published | changes))


def moat_0(**changes: Any) -> MOAT:
    """27,846,892 parameters with 1000 classes, 27,777,544 without position bias. Arguments of `MOAT` override."""
    return _published(changes, stem_dim=64, depths=(2, 3, 7, 2), dims=(96, 192, 384, 768), drop_path_rate=0.2)


def moat_1(**changes: Any) -> MOAT:
    """41,598,448 parameters with 1000 classes, 41,467,864 without position bias."""
    return _published(changes, stem_dim=64, depths=(2, 6, 14, 2), dims=(96, 192, 384, 768), drop_path_rate=0.3)


def moat_2(**changes: Any) -> MOAT:
    """73,422,408 parameters with 1000 classes, 73,248,296 without position bias."""
    return _published(changes, stem_dim=128, depths=(2, 6, 14, 2), dims=(128, 256, 512, 1024), drop_path_rate=0.3)


def moat_3(**changes: Any) -> MOAT:
    """189,958,040 parameters with 1000 classes, 189,536,280 without position bias."""
    return _published(changes, stem_dim=160, depths=(2, 12, 28, 2), dims=(160, 320, 640, 1280), drop_path_rate=0.6)


def moat_4(**changes: Any) -> MOAT:
    """483,214,184 parameters with 1000 classes, 482,539,368 without position bias."""
    return _published(changes, stem_dim=256, depths=(2, 12, 28, 2), dims=(256, 512, 1024, 2048), drop_path_rate=0.7)


def tiny_moat_0(**changes: Any) -> MOAT:
    """3,355,348 parameters with 1000 classes, 3,332,232 without position bias."""
    return _published(changes, stem_dim=32, depths=(2, 3, 7, 2), dims=(32, 64, 128, 256))


def tiny_moat_1(**changes: Any) -> MOAT:
    """5,122,895 parameters with 1000 classes, 5,094,000 without position bias."""
    return _published(changes, stem_dim=40, depths=(2, 3, 7, 2), dims=(40, 80, 160, 320))


def tiny_moat_2(**changes: Any) -> MOAT:
    """9,772,741 parameters with 1000 classes, 9,732,288 without position bias."""
    return _published(changes, stem_dim=56, depths=(2, 3, 7, 2), dims=(56, 112, 224, 448))


def tiny_moat_3(**changes: Any) -> MOAT:
    """19,534,390 parameters with 1000 classes, 19,476,600 without position bias."""
    return _published(changes, stem_dim=80, depths=(2, 3, 7, 2), dims=(80, 160, 320, 640), drop_path_rate=0.1)
