"""Backbone and feature pyramid.

The pyramid follows Lin, Dollar, Girshick, He, Hariharan & Belongie, "Feature Pyramid Networks for Object Detection",
CVPR 2017, arXiv:1612.03144: 1 x 1 laterals, nearest upsampling, sums, and a 3 x 3 convolution on each level.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.resnet import ResNet

__all__ = ["FPN", "ResNetBackbone", "TinyResNet"]

_NORMS = {"bn": "batch", "gn": "group", "frozen_bn": "batch"}


class ResNetBackbone(nn.Module):
    """The maps C2, C3, ... of a residual network, at strides 4, 8, ...

    Args:
        depth: 18, 34, 50 or 101; None if `blocks` and `widths` are given.
        norm: "bn"; "frozen_bn", whose statistics and scales are constants, as fine-tuned detectors have it; or "gn".
        frozen_stages: how much of the network does not train: 1 freezes the stem, 2 also the stage of C2, and so on.
        in_channels: of the images.
        blocks, widths: of each stage, in place of a depth.

    Raises:
        ValueError: for an unknown norm, or more frozen stages than there are.
    """

    def __init__(
        self,
        depth: int | None = 50,
        norm: str = "frozen_bn",
        frozen_stages: int = 2,
        *,
        in_channels: int = 3,
        blocks: Sequence[int] | None = None,
        widths: Sequence[int] = (64, 128, 256, 512),
    ):
        super().__init__()
        if norm not in _NORMS:
            raise ValueError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
        network = ResNet(depth, num_classes=1, in_channels=in_channels, blocks=blocks, widths=widths, norm=_NORMS[norm])
        self.stem = nn.Sequential()
        for name in ("conv1", "bn1", "relu", "maxpool"):
            self.stem.add_module(name, getattr(network, name))
        stages: list[nn.Sequential] = [getattr(network, name) for name in network.stages]
        if not 0 <= frozen_stages <= len(stages) + 1:
            raise ValueError(f"frozen_stages must lie in 0..{len(stages) + 1}, got {frozen_stages}")
        self.in_channels = in_channels
        self.out_channels: list[int] = [stage[-1].out_channels for stage in stages]  # type: ignore[misc]
        self.stages = nn.ModuleList(stages)
        for part in [self.stem, *stages][:frozen_stages]:
            part.requires_grad_(False)
        self._constant_norms = norm == "frozen_bn"
        if self._constant_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "ResNetBackbone":
        """Training mode for all but constant norms."""
        super().train(mode)
        if self._constant_norms:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Float[Tensor, "batch in_channels height width"]) -> list[Tensor]:
        """C2, C3, ... of the images."""
        x = self.stem(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def load_imagenet(self, state: Mapping[str, Tensor]) -> None:
        """Takes the weights of a ResNet classifier whose modules are named as torchvision's (`layer1.0.conv1.weight`).

        Raises:
            ValueError: if weights are missing or left over, classifier and counters apart.
        """
        renamed = {}
        for name, value in state.items():
            head, _, rest = name.partition(".")
            if head.startswith("layer"):
                renamed[f"stages.{int(head[5:]) - 1}.{rest}"] = value
            elif head != "fc":
                renamed[f"stem.{name}"] = value
        result = self.load_state_dict(renamed, strict=False)
        missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
        if missing or result.unexpected_keys:
            raise ValueError(
                f"these are not the weights of this ResNet: missing {missing[:3]}, unknown {result.unexpected_keys[:3]}"
            )


class TinyResNet(ResNetBackbone):
    """A small residual network that trains from scratch; C2 has `width` channels, each further map twice as many.

    Args:
        width: channels of C2; a multiple of 8 for group norm.
        num_blocks: blocks of each stage; as many maps come out.
        norm: "bn" or "gn".
        in_channels: of the images.
    """

    def __init__(
        self, width: int = 16, num_blocks: Sequence[int] = (1, 1, 1, 1), norm: str = "gn", in_channels: int = 3
    ):
        widths = [width * 2**stage for stage in range(len(num_blocks))]
        super().__init__(None, norm, 0, in_channels=in_channels, blocks=num_blocks, widths=widths)


class FPN(nn.Module):
    """A pyramid "p2", "p3", ... of equally many channels out of C2, C3, ...

    Args:
        in_channels: of C2, C3, ...
        out_channels: of every level.
        extra: "pool" adds a coarser level, the last one with every other cell (P6 of the paper's detector, for the
            RPN); "none" adds nothing.

    Raises:
        ValueError: for no maps or an unknown `extra`.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, extra: str = "pool"):
        super().__init__()
        if not in_channels or extra not in ("pool", "none"):
            raise ValueError(f"FPN takes at least one map and extra 'pool' or 'none', got {in_channels}, {extra!r}")
        self.out_channels = out_channels
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.outputs = nn.ModuleList(nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        names = [f"p{index + 2}" for index in range(len(in_channels))]
        self.pooled = f"p{len(in_channels) + 2}" if extra == "pool" else None
        self.levels = (*names, self.pooled) if self.pooled else tuple(names)
        for module in (*self.laterals, *self.outputs):
            nn.init.kaiming_uniform_(module.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """The levels by name, finest first."""
        if len(maps) != len(self.laterals):
            raise ValueError(f"FPN was made for {len(self.laterals)} maps, got {len(maps)}")
        inner = [lateral(feature) for lateral, feature in zip(self.laterals, maps)]
        for index in range(len(inner) - 2, -1, -1):
            coarse = F.interpolate(inner[index + 1], size=inner[index].shape[2:], mode="nearest")
            inner[index] = inner[index] + coarse
        levels = {f"p{index + 2}": output(x) for index, (output, x) in enumerate(zip(self.outputs, inner))}
        if self.pooled:
            levels[self.pooled] = F.max_pool2d(levels[f"p{len(inner) + 1}"], 1, stride=2)
        return levels


def strides(levels: Sequence[str]) -> list[int]:
    """Pixels a cell of each level."""
    return [2 ** int(name[1:]) for name in levels]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x` itself, whose gradient comes back times `factor`."""
    return x if factor == 1 else x * factor + x.detach() * (1 - factor)


def sizes_tensor(sizes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(images, 2), heights and widths."""
    return torch.tensor(list(sizes), device=like.device, dtype=torch.float32)
