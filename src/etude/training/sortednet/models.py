"""Networks that hold a space of sub-models from the start.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023, sections 4 and 5: ResNet-18 by width and MobileNetV2 by width and
depth on CIFAR-10; transformers by depth, heads and width. Any other network is converted by `sorted_`.

Classifiers give a row of logits for each input; what is attached to them may add rows.
"""

from collections.abc import Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.nn.resnet import ResNet
from etude.training.sortednet.convert import sorted_
from etude.training.sortednet.submodels import SubModelSpace

__all__ = ["SortedMLP", "SortedMobileNetV2", "SortedResNet18", "SortedTransformerEncoder", "SortedTransformerLM"]

_PAPER = "https://arxiv.org/abs/2309.00255"


class _ResidualLayer(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, z: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return z + self.linear(z).relu()


class SortedMLP(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url=_PAPER):
    """z = relu(W_in x), then z + relu(W z) layer after layer, then a read-out shared by all depths.

        model = SortedMLP(64, 10, width=[8, 16, 32, 64, 128], depth=[1, 2, 3, 4])

    Args:
        in_dim: numbers in one input, whatever its shape.
        num_classes: number of outputs.
        width: truncation points of the width; the last is the network's.
        depth: truncation points of the number of hidden layers; the last is the network's.
    """

    def __init__(self, in_dim: int, num_classes: int, *, width: Sequence[int], depth: Sequence[int]):
        super().__init__()
        space = SubModelSpace(width=width, depth=depth)
        widest = width[-1]
        self.stem = nn.Linear(in_dim, widest)
        self.blocks = nn.Sequential(*(_ResidualLayer(widest) for _ in range(depth[-1])))
        self.head = nn.Linear(widest, num_classes)
        sorted_(self, space, depth="blocks")

    def enter(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch width"]:
        """What comes before the blocks."""
        return self.stem(x.flatten(start_dim=1)).relu()

    def leave(self, z: Float[Tensor, "batch width"]) -> Float[Tensor, "rows classes"]:
        """What comes after the blocks."""
        return self.head(z)

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "rows classes"]:
        """Logits of each input, which is flattened first."""
        return self.leave(self.blocks(self.enter(x)))


class SortedResNet18(ResNet, paper_url=_PAPER):
    """ResNet-18 by width. Parameters are named as torchvision's, so that its checkpoints load.

    Args:
        num_classes: number of outputs.
        width: shares of the channels of every layer; the paper's four by default.
        in_channels: of the images.
        small_images: begin with a 3 x 3 convolution, for images of about 32 pixels, instead of 7 x 7 and pooling.
        bn: whose statistics batch norm uses in evaluation, see `SortedBatchNorm`.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: Sequence[float | int] = (0.25, 0.5, 0.75, 1.0),
        in_channels: int = 3,
        small_images: bool = True,
        bn: str = "recalibrate",
    ):
        super().__init__(18, num_classes=num_classes, in_channels=in_channels, small_images=small_images)
        sorted_(self, SubModelSpace(width=width), bn=bn)


class _InvertedResidual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False), nn.BatchNorm2d(hidden),
            nn.ReLU6(), nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out),
        ]  # fmt: skip
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class SortedMobileNetV2(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url=_PAPER):
    """MobileNetV2 for images of about 32 pixels, by width and depth; 160 sub-models by default.

    Seven of its 17 blocks open a stage: they change the number of channels, and every depth keeps them. The ten others
    add to their input and are kept from the front, so that depth 8 is the seven and the first of the ten. The paper
    trains 160 sub-models and does not say which; 16 widths x 10 depths is our reading.

    Args:
        num_classes: number of outputs.
        width: shares of the channels of every layer, rounded layer by layer to whole channels.
        depth: numbers of blocks, 7 to 17.
        in_channels: of the images.
        bn: whose statistics batch norm uses in evaluation, see `SortedBatchNorm`.
    """

    # Sandler et al., arXiv:1801.04381, table 2: expansion, channels, blocks, stride; the first two strides are 1
    # here, as is usual for 32 x 32 images.
    _STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(
        self,
        num_classes: int,
        *,
        width: Sequence[float | int] = tuple(k / 16 for k in range(1, 17)),
        depth: Sequence[int] = tuple(range(8, 18)),
        in_channels: int = 3,
        bn: str = "recalibrate",
    ):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )  # fmt: skip
        blocks: list[nn.Module] = []
        opening = []
        channels = 32
        for expansion, out, count, stride in self._STAGES:
            opening.append(len(blocks))
            for index in range(count):
                blocks.append(_InvertedResidual(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.final = nn.Sequential(nn.Conv2d(channels, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
        self.head = nn.Linear(1280, num_classes)
        sorted_(self, SubModelSpace(width=width, depth=depth), depth={"blocks": opening}, bn=bn)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "rows classes"]:
        """Logits of each image."""
        return self.head(self.final(self.blocks(self.stem(x))).mean(dim=(2, 3)))


class _TransformerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_ratio: int, dropout: float | int, causal: bool):
        super().__init__()
        self.causal = causal
        self.norm1 = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, mlp_ratio * dim)
        self.contract = nn.Linear(mlp_ratio * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        y = self.norm1(x)
        length = x.shape[1]
        mask = None
        if self.causal:
            mask = torch.full((length, length), float("-inf"), dtype=x.dtype, device=x.device).triu(1)
        x = x + self.dropout(self.attention(y, y, y, need_weights=False, attn_mask=mask, is_causal=self.causal)[0])
        return x + self.dropout(self.contract(nn.functional.gelu(self.expand(self.norm2(x)))))


def _blocks(space: SubModelSpace, mlp_ratio: int, dropout: float | int, causal: bool) -> nn.Sequential:
    dim, heads, depth = (int(space.points[name][-1]) for name in ("width", "heads", "depth"))
    if dim % heads:
        raise ValueError(f"the full width {dim} must be a multiple of the {heads} heads")
    return nn.Sequential(*(_TransformerBlock(dim, heads, mlp_ratio, dropout, causal) for _ in range(depth)))


class SortedTransformerEncoder(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url=_PAPER):
    """A classifier of sequences of vectors (patches, frames, measurements) by depth, heads and width.

    Pre-norm blocks between a linear projection with learned positions, and the mean over the sequence, normalised and
    read out, which all depths share.

    Args:
        in_dim: numbers in one vector.
        num_classes: number of outputs.
        length: longest sequence.
        width: truncation points of the features; the last is the network's, a multiple of the heads.
        heads: truncation points of the attention heads.
        depth: truncation points of the number of blocks.
        mlp_ratio: hidden features of a block's MLP, as a multiple of the width.
        dropout: of attention weights and of each branch.
    """

    def __init__(
        self,
        in_dim: int,
        num_classes: int,
        length: int,
        *,
        width: Sequence[int],
        heads: Sequence[int],
        depth: Sequence[int],
        mlp_ratio: int = 4,
        dropout: float | int = 0.0,
    ):
        super().__init__()
        space = SubModelSpace(width=width, depth=depth, heads=heads)
        self.project = nn.Linear(in_dim, width[-1])
        self.positions = nn.Embedding(length, width[-1])
        self.blocks = _blocks(space, mlp_ratio, dropout, causal=False)
        self.norm = nn.LayerNorm(width[-1])
        self.head = nn.Linear(width[-1], num_classes)
        nn.init.normal_(self.positions.weight, std=0.02)
        sorted_(self, space, depth="blocks")

    def enter(self, x: Float[Tensor, "batch length features"]) -> Float[Tensor, "batch length width"]:
        """What comes before the blocks."""
        if x.shape[1] > self.positions.num_embeddings:
            raise ValueError(f"sequences may have {self.positions.num_embeddings} vectors, got {x.shape[1]}")
        return self.project(x) + self.positions(torch.arange(x.shape[1], device=x.device))

    def leave(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "rows classes"]:
        """What comes after the blocks."""
        return self.head(self.norm(x.mean(dim=1)))

    def forward(self, x: Float[Tensor, "batch length features"]) -> Float[Tensor, "rows classes"]:
        """Logits of each sequence."""
        return self.leave(self.blocks(self.enter(x)))


class SortedTransformerLM(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url=_PAPER):
    """A causal language model by depth, heads and width, with one language-model head for all depths.

    Args:
        vocab: number of tokens.
        length: longest sequence.
        width, heads, depth, mlp_ratio, dropout: as `SortedTransformerEncoder`.
    """

    def __init__(
        self,
        vocab: int,
        length: int,
        *,
        width: Sequence[int],
        heads: Sequence[int],
        depth: Sequence[int],
        mlp_ratio: int = 4,
        dropout: float | int = 0.0,
    ):
        super().__init__()
        space = SubModelSpace(width=width, depth=depth, heads=heads)
        self.tokens = nn.Embedding(vocab, width[-1])
        self.positions = nn.Embedding(length, width[-1])
        self.blocks = _blocks(space, mlp_ratio, dropout, causal=True)
        self.norm = nn.LayerNorm(width[-1])
        self.head = nn.Linear(width[-1], vocab, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        sorted_(self, space, depth="blocks")

    def enter(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length width"]:
        """What comes before the blocks."""
        if tokens.shape[1] > self.positions.num_embeddings:
            raise ValueError(f"sequences may have {self.positions.num_embeddings} tokens, got {tokens.shape[1]}")
        return self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))

    def leave(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length vocab"]:
        """What comes after the blocks."""
        return self.head(self.norm(x))

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        """Logits of the token after each."""
        return self.leave(self.blocks(self.enter(tokens)))
