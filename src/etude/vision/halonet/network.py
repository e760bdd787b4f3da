"""HaloNets: residual networks whose 3x3 convolutions are halo attention, H0 to H7.

Vaswani et al., CVPR 2021, arXiv:2103.12731, section 3 and its table of the family. The stem is a ResNet's; a stage of
base width c stacks bottlenecks 1x1 (c) - attention (values of width r_v c) - 1x1 (r_b c), the first of which halves
the map by strided attention in every stage but the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.halonet.attention import HaloAttention

__all__ = [
    "VARIANTS",
    "HaloBottleneck",
    "HaloNet",
    "Variant",
    "halonet_h0",
    "halonet_h1",
    "halonet_h2",
    "halonet_h3",
    "halonet_h4",
    "halonet_h5",
    "halonet_h6",
    "halonet_h7",
]


@dataclass(frozen=True)
class Variant:
    """A row of the paper's table of the family.

    Args:
        block_size, halo_size: b and h.
        value_ratio: r_v, width of the values over the base width.
        block_ratio: r_b, output width of a block over the base width.
        blocks: bottlenecks in the third stage, l_3; the other stages have three.
        image_size: pixels on a side that the paper trains with.
        final_dim: d_f, channels of the last 1x1 convolution; none if None.
    """

    block_size: int
    halo_size: int
    value_ratio: float
    block_ratio: float
    blocks: int
    image_size: int
    final_dim: int | None = None


VARIANTS = {
    "h0": Variant(8, 3, 1.0, 0.5, 7, 256),
    "h1": Variant(8, 3, 1.0, 1.0, 10, 256),
    "h2": Variant(8, 3, 1.0, 1.25, 11, 256),
    "h3": Variant(10, 3, 1.0, 1.5, 12, 320, 1024),
    "h4": Variant(12, 2, 1.0, 3.0, 12, 384, 1280),
    "h5": Variant(14, 2, 2.5, 2.0, 23, 448, 1536),
    "h6": Variant(8, 4, 3.0, 2.75, 24, 512, 1536),
    "h7": Variant(10, 3, 4.0, 3.5, 26, 600, 2048),
}
"""The published networks by name."""


class HaloBottleneck(nn.Module):
    """1x1 convolution, halo attention and 1x1 convolution around a shortcut.

        block = HaloBottleneck(dim=64, width=64, dim_out=128, num_heads=4, block_size=8, halo_size=3)

    No convolution has a bias. The last normalisation starts at zero, so that the block starts as its shortcut.

    Args:
        dim: channels of the input.
        width: channels c of the input of the attention.
        dim_out: channels of the output; `width` if None.
        num_heads: heads; queries and keys have width // num_heads dims each.
        value_ratio: r_v; the values have round(r_v * width) channels.
        block_size, halo_size: b and h in pixels.
        stride: 1 or 2; with 2 the attention strides (or averages, if blocks are odd), the shortcut averages 2x2 pixels.
        warn_padding, chunk_rows: see `HaloAttention`.

    Raises:
        ValueError: as `HaloAttention`.
    """

    def __init__(
        self,
        *,
        dim: int,
        width: int,
        dim_out: int | None = None,
        num_heads: int,
        value_ratio: float = 1.0,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        warn_padding: bool = True,
        chunk_rows: int | None = None,
    ):
        super().__init__()
        dim_out = width if dim_out is None else dim_out
        values = round(value_ratio * width)
        self.conv1 = nn.Conv2d(dim, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.attention = HaloAttention(
            dim=width,
            dim_out=values,
            num_heads=num_heads,
            block_size=block_size,
            halo_size=halo_size,
            stride=stride,
            avg_down=stride == 2 and block_size % 2 == 1,
            warn_padding=warn_padding,
            chunk_rows=chunk_rows,
        )
        self.norm2 = nn.BatchNorm2d(values)
        self.conv3 = nn.Conv2d(values, dim_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(dim_out)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or dim != dim_out:
            project = [nn.Conv2d(dim, dim_out, 1, bias=False), nn.BatchNorm2d(dim_out)]
            # ceil_mode: odd maps shrink to ceil(size / 2), as the strided queries do
            pool = [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if stride == 2 else []
            self.shortcut = nn.Sequential(*pool, *project)
        for conv in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            if conv is not self.attention.q and conv is not self.attention.kv:
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.norm3.weight)

    def forward(
        self, x: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch dim_out new_height new_width"]:
        out = self.activation(self.norm1(self.conv1(x)))
        out = self.activation(self.norm2(self.attention(out)))
        return self.activation(self.norm3(self.conv3(out)) + self.shortcut(x))


class HaloNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="etude",
    paper_url="https://arxiv.org/abs/2103.12731",
    tags=["halonet", "image-classification"],
):
    """A residual network of halo attention. The defaults are those of H1.

        model = HaloNet(num_classes=10, widths=(32, 64), depths=(2, 2), block_size=4, halo_size=2, small_input=True)

    Images of any size are taken: maps that are no multiple of the block are filled up and cropped. The published
    sizes (`VARIANTS`) waste nothing, but on the last stage's 8x8 maps windows of 14x14 are mostly padding; the
    paper's networks are like that, and no warning is given here.

    Args:
        num_classes: outputs of the classifier.
        widths: base width c of each stage.
        depths: bottlenecks of each stage; the first stage keeps the size of its map, each later one halves it.
        block_size, halo_size: b and h in pixels.
        value_ratio, block_ratio: r_v and r_b; values have r_v c channels, blocks r_b c.
        dim_head: dim of queries and keys in a head, so that a stage has c / dim_head heads.
        num_heads: heads of every stage, or of each stage in turn; overrides `dim_head`.
        final_dim: channels of a last 1x1 convolution before pooling; none if None.
        in_chans: channels of the images.
        small_input: a 3x3 stem of stride 1 without pooling, for images of about 32 pixels.
        chunk_rows: see `halo_attention`.

    Raises:
        ValueError: if widths and depths differ in number, or heads do not divide the widths.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 3, 10, 3),
        block_size: int = 8,
        halo_size: int = 3,
        value_ratio: float = 1.0,
        block_ratio: float = 1.0,
        dim_head: int = 16,
        num_heads: int | Sequence[int] | None = None,
        final_dim: int | None = None,
        in_chans: int = 3,
        small_input: bool = False,
        chunk_rows: int | None = None,
    ):
        super().__init__()
        if not widths or len(widths) != len(depths) or min(*widths, *depths) < 1:
            raise ValueError(f"widths and depths must be as many, and positive, got {widths} and {depths}")
        for name, count in (("num_classes", num_classes), ("in_chans", in_chans), ("dim_head", dim_head)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        heads = _heads(widths, dim_head, num_heads)
        self.num_classes = num_classes
        dim = widths[0]
        stem = nn.Conv2d(in_chans, dim, 3, padding=1, bias=False)
        if not small_input:
            stem = nn.Conv2d(in_chans, dim, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        pool = [] if small_input else [nn.MaxPool2d(3, stride=2, padding=1)]
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(dim), nn.ReLU(inplace=True), *pool)
        self.stages = nn.Sequential()
        for stage, (width, depth) in enumerate(zip(widths, depths)):
            blocks = nn.Sequential()
            for index in range(depth):
                block = HaloBottleneck(
                    dim=dim,
                    width=width,
                    dim_out=round(block_ratio * width),
                    num_heads=heads[stage],
                    value_ratio=value_ratio,
                    block_size=block_size,
                    halo_size=halo_size,
                    stride=2 if stage > 0 and index == 0 else 1,
                    warn_padding=False,
                    chunk_rows=chunk_rows,
                )
                blocks.append(block)
                dim = round(block_ratio * width)
            self.stages.append(blocks)
        self.final: nn.Module = nn.Identity()
        if final_dim is not None:
            last = nn.Conv2d(dim, final_dim, 1, bias=False)
            nn.init.kaiming_normal_(last.weight, mode="fan_out", nonlinearity="relu")
            self.final = nn.Sequential(last, nn.BatchNorm2d(final_dim), nn.ReLU(inplace=True))
            dim = final_dim
        self.classifier = nn.Linear(dim, num_classes)

    def forward_features(
        self, x: Float[Tensor, "batch in_chans height width"]
    ) -> Float[Tensor, "batch dim map_height map_width"]:
        """The map before pooling."""
        return self.final(self.stages(self.stem(x)))

    def forward(self, x: Float[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of the classes."""
        return self.classifier(self.forward_features(x).mean((2, 3)))


def _heads(widths: Sequence[int], dim_head: int, num_heads: int | Sequence[int] | None) -> list[int]:
    if num_heads is None:
        wrong = [width for width in widths if width % dim_head]
        if wrong:
            raise ValueError(f"dim_head must divide every width, got {dim_head} and widths {wrong}")
        return [width // dim_head for width in widths]
    heads = [num_heads] * len(widths) if isinstance(num_heads, int) else list(num_heads)
    if len(heads) != len(widths):
        raise ValueError(f"num_heads must be one number or one per stage, {len(widths)}, got {heads}")
    return heads


def _variant(name: str, changes: dict[str, Any]) -> HaloNet:
    v = VARIANTS[name]
    arguments: dict[str, Any] = {
        "depths": (3, 3, v.blocks, 3),
        "block_size": v.block_size,
        "halo_size": v.halo_size,
        "value_ratio": v.value_ratio,
        "block_ratio": v.block_ratio,
        "final_dim": v.final_dim,
    }
    return HaloNet(**(arguments | changes))


def halonet_h0(**changes: Any) -> HaloNet:
    """HaloNet-H0, 5,488,424 parameters with 1000 classes. Arguments of `HaloNet` override the published ones."""
    return _variant("h0", changes)


def halonet_h1(**changes: Any) -> HaloNet:
    """HaloNet-H1, 8,084,936 parameters; 8,100,056 with `num_heads=8`, which is timm's `halonet_h1`."""
    return _variant("h1", changes)


def halonet_h2(**changes: Any) -> HaloNet:
    """HaloNet-H2, 9,388,328 parameters."""
    return _variant("h2", changes)


def halonet_h3(**changes: Any) -> HaloNet:
    """HaloNet-H3, 11,821,960 parameters."""
    return _variant("h3", changes)


def halonet_h4(**changes: Any) -> HaloNet:
    """HaloNet-H4, 19,082,632 parameters."""
    return _variant("h4", changes)


def halonet_h5(**changes: Any) -> HaloNet:
    """HaloNet-H5, 30,683,112 parameters."""
    return _variant("h5", changes)


def halonet_h6(**changes: Any) -> HaloNet:
    """HaloNet-H6, 43,425,544 parameters."""
    return _variant("h6", changes)


def halonet_h7(**changes: Any) -> HaloNet:
    """HaloNet-H7, 67,400,008 parameters."""
    return _variant("h7", changes)
