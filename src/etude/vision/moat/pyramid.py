"""A feature pyramid on MOAT, for detection and segmentation.

Lin et al., "Feature pyramid networks for object detection", CVPR 2017, arXiv:1612.03144: each map of the backbone
is brought to one width by a 1x1 convolution, the next coarser level, doubled by its nearest pixels, is added to it,
and a 3x3 convolution smooths the sum. Coarser levels than the backbone's take every second pixel of the last.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from etude.vision.moat.network import MOAT

__all__ = ["MOATPyramid"]


class MOATPyramid(nn.Module):
    """A MOAT backbone and the pyramid of its stages' maps.

        backbone = MOATPyramid(moat_0(features_only=True, shortcut_pool=3, window=(None, None, 14, 7)))
        maps = backbone(torch.randn(1, 3, 448, 448))          # p2 (256, 112, 112) ... p6 (256, 7, 7)

    The name of a level is the logarithm of its stride where strides double, as usual in detection: p2 has stride 4.

    Args:
        backbone: its head, if it has one, is not used.
        dim: channels of every level.
        levels: names of the backbone's maps, finest first, as in `MOAT.feature_info`.
        extra: coarser levels to add.
        activated: take the GELU of the backbone's maps, which end in sums.

    Raises:
        ValueError: for unknown levels, levels not in order, or a negative `extra`.
    """

    def __init__(
        self,
        backbone: MOAT,
        *,
        dim: int = 256,
        levels: Sequence[str] = ("stage1", "stage2", "stage3", "stage4"),
        extra: int = 1,
        activated: bool = False,
    ):
        super().__init__()
        names = [name for name, _, _ in backbone.feature_info]
        places = [names.index(level) if level in names else -1 for level in levels]
        if not levels or min(places) < 0 or places != sorted(set(places)):
            raise ValueError(f"levels must be some of {names}, finest first, got {list(levels)}")
        if dim < 1 or extra < 0:
            raise ValueError(f"dim must be positive and extra not negative, got {dim} and {extra}")
        self.backbone, self.levels, self.extra, self.activated = backbone, tuple(levels), extra, activated
        chosen = [backbone.feature_info[place] for place in places]
        self.lateral = nn.ModuleList(nn.Conv2d(channels, dim, 1) for _, channels, _ in chosen)
        self.smooth = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in chosen)
        for conv in (*self.lateral, *self.smooth):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)
        strides = [stride for _, _, stride in chosen]
        strides += [strides[-1] * 2 ** (step + 1) for step in range(extra)]
        names = [f"p{stride.bit_length() - 1}" for stride in strides]
        if len(set(names)) < len(names):
            raise ValueError(f"levels must have different strides, got {strides}")
        self.strides = dict(zip(names, strides))

    def forward(
        self, x: Shaped[Tensor, "batch in_chans height width"]
    ) -> dict[str, Float[Tensor, "batch dim rows columns"]]:
        """The levels by name, finest first; `strides` holds their strides."""
        maps = self.backbone.features(x, activated=self.activated)
        sums = [lateral(maps[level]) for lateral, level in zip(self.lateral, self.levels)]
        for place in range(len(sums) - 2, -1, -1):
            sums[place] = sums[place] + F.interpolate(sums[place + 1], size=sums[place].shape[2:], mode="nearest")
        found = [smooth(total) for smooth, total in zip(self.smooth, sums)]
        for _ in range(self.extra):
            found.append(F.max_pool2d(found[-1], 1, stride=2))
        return dict(zip(self.strides, found))
