"""Residual networks, for images of any size, with or without their skips.

He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
"""

from collections.abc import Sequence

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ResNet", "ResidualBlock"]

_DEPTHS = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}
_NORMS = ("batch", "group", "none")
_GROUPS = 8


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, or the bottleneck 1 x 1, 3 x 3, 1 x 1 that widens fourfold; and a skip.

    Args:
        channels: of the input.
        width: channels of the 3 x 3 convolutions.
        stride: of the first 3 x 3 convolution.
        bottleneck: whether the block is a bottleneck.
        skips: whether the input is added to the output; without, the convolution that would adapt it is absent too.
        norm: as for `ResNet`.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int = 1,
        *,
        bottleneck: bool = False,
        skips: bool = True,
        norm: str = "batch",
    ):
        super().__init__()
        self.out_channels = 4 * width if bottleneck else width
        self.bottleneck, self.skips = bottleneck, skips
        self.conv1 = _convolution(channels, width, *((1, 1) if bottleneck else (3, stride)))
        self.bn1 = _normalization(norm, width)
        self.conv2 = _convolution(width, width, 3, stride if bottleneck else 1)
        self.bn2 = _normalization(norm, width)
        if bottleneck:
            self.conv3 = _convolution(width, self.out_channels, 1, 1)
            self.bn3 = _normalization(norm, self.out_channels)
        self.downsample: nn.Module | None = None
        if skips and (stride != 1 or channels != self.out_channels):
            self.downsample = nn.Sequential(
                _convolution(channels, self.out_channels, 1, stride), _normalization(norm, self.out_channels)
            )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out new_height new_width"]:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.bottleneck:
            out = self.bn3(self.conv3(out.relu()))
        if self.skips:
            out = out + (x if self.downsample is None else self.downsample(x))
        return out.relu()


class ResNet(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/1512.03385"):
    """ResNet-18, 34, 50 or 101, or one of other blocks and widths.

        ResNet(18, num_classes=1000)
        ResNet(18, num_classes=10, small_images=True)          # the usual form for 32 x 32 pixels
        ResNet(blocks=[2, 2, 2], widths=[16, 32, 64], num_classes=10, small_images=True)

    Modules are named as torchvision's, so that its weights load.

    Args:
        depth: 18, 34, 50 or 101; None if `blocks` are given.
        num_classes: of the logits.
        in_channels: of the images.
        blocks: number of blocks in each stage, in place of `depth`; the stages after the first halve the image.
        widths: channels of the stages; a bottleneck's output has four times as many.
        bottleneck: whether blocks of `blocks` are bottlenecks.
        skips: whether each block's input is added to its output.
        norm: "batch"; "group", of eight groups, which does not couple the images of a batch; or "none".
        small_images: begin with a 3 x 3 convolution instead of a 7 x 7 one of stride 2 and a max pool.

    Raises:
        ValueError: if `depth` or `norm` is unknown, a number is not positive, or there are more `blocks` than `widths`.
    """

    def __init__(
        self,
        depth: int | None = None,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        blocks: Sequence[int] | None = None,
        widths: Sequence[int] = (64, 128, 256, 512),
        bottleneck: bool = False,
        skips: bool = True,
        norm: str = "batch",
        small_images: bool = False,
    ):
        super().__init__()
        if (depth is None) == (blocks is None):
            raise ValueError(f"give either depth or blocks, got depth={depth} and blocks={blocks}")
        if depth is not None:
            if depth not in _DEPTHS:
                raise ValueError(f"depth must be one of {', '.join(map(str, _DEPTHS))}, got {depth}")
            bottleneck, blocks = _DEPTHS[depth]
        assert blocks is not None
        if len(blocks) != len(widths) or not blocks:
            raise ValueError(f"blocks and widths must be as many stages, got {list(blocks)} and {list(widths)}")
        if min(num_classes, in_channels, *blocks, *widths) < 1:
            raise ValueError(
                "num_classes, in_channels, blocks and widths must be positive, "
                f"got {num_classes}, {in_channels}, {list(blocks)} and {list(widths)}"
            )
        channels = widths[0]
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = _convolution(in_channels, channels, kernel, stride)
        self.bn1 = _normalization(norm, channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = [f"layer{stage}" for stage in range(1, len(blocks) + 1)]
        for name, count, width in zip(self.stages, blocks, widths):
            stage: list[nn.Module] = []
            for index in range(count):
                halved = 2 if index == 0 and name != "layer1" else 1
                block = ResidualBlock(channels, width, halved, bottleneck=bottleneck, skips=skips, norm=norm)
                stage.append(block)
                channels = block.out_channels
            self.add_module(name, nn.Sequential(*stage))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "rows num_classes"]:
        """Logits of each image; what is attached to the features may add rows."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = getattr(self, name)(x)
        return self.fc(self.avgpool(x).flatten(1))


def _convolution(channels: int, out: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)


def _normalization(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "group":
        if channels % _GROUPS:
            raise ValueError(f"group norm needs multiples of {_GROUPS} channels, got {channels}")
        return nn.GroupNorm(_GROUPS, channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
