"""The paper's blocks: given an image and a noised label embedding, which class?

Li, Teh & Pascanu, arXiv:2503.24322, 2025, figure 6. Discrete time (`batch_norm`), at the paper's sizes:

- image path: conv(32) ReLU pool, conv(64) ReLU, conv(128) ReLU pool, dropout 0.2 after each; FC(256) BN;
- label path: r = ReLU BN FC(256) of z, then r + BN FC(256) ReLU BN FC(256) of r;
- fusion of both, concatenated: FC(256) BN ReLU, FC(128) BN ReLU, FC(classes).

Continuous time (`time_embed`): no batch norm; ReLU ends the image path; the label path is FC(256) ReLU; a sinusoidal
embedding of the time goes through FC(256) ReLU and joins the fusion. Where an embedding has as many values as an
image, the label path is a second image path. Convolutions are 3x3 with padding 1, which the paper does not state.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ImageClassifier", "NoPropBlock"]

_TIME_SCALE = 1000.0  # sinusoids are made for positions; a step of the paper's thousand is one position
_MAX_PERIOD = 10_000.0


class NoPropBlock(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2503.24322"):
    """Logits of the class from an image, a noised embedding and, in continuous time, the time.

        block = NoPropBlock(1, 28, num_classes=10, embed_dim=10)
        logits = block(x, z)

    Args:
        in_channels: of the images.
        image_size: height and width, or one number for both; at least 4, since they are halved twice.
        num_classes: m.
        embed_dim: d; if it equals in_channels * height * width, embeddings are read as images.
        hidden: width of the paths and of the first layer of the fusion.
        batch_norm: normalise the fully connected layers. None: where there is no `time_embed`, as in the paper.
        time_embed: size of the embedding of the time, even, for the continuous variants (64 in the paper); None for
            a block of the discrete variant, which has no time.
        channels: of the convolutions; pooling follows the first and the last.
        fusion: widths of the hidden layers of the fusion; (hidden, hidden / 2) if None.
        dropout: after each convolution.

    Raises:
        ValueError: if a size lies outside its range.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int | Sequence[int],
        num_classes: int,
        embed_dim: int,
        hidden: int = 256,
        batch_norm: bool | None = None,
        time_embed: int | None = None,
        channels: Sequence[int] = (32, 64, 128),
        fusion: Sequence[int] | None = None,
        dropout: float = 0.2,
    ):
        super().__init__()
        size = _checked_size(image_size)
        for name, value in (
            ("in_channels", in_channels), ("num_classes", num_classes), ("embed_dim", embed_dim), ("hidden", hidden),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if time_embed is not None and (time_embed < 2 or time_embed % 2):
            raise ValueError(f"time_embed must be even and at least 2, got {time_embed}")
        norm = time_embed is None if batch_norm is None else batch_norm
        self.image_shape, self.embed_dim, self.time_embed = (in_channels, *size), embed_dim, time_embed
        self.label_as_image = embed_dim == math.prod(self.image_shape)

        def image_path() -> nn.Sequential:
            end: list[nn.Module] = [] if time_embed is None else [nn.ReLU()]
            return nn.Sequential(
                _convolutions(in_channels, size, channels, dropout, hidden), *_normed(hidden, norm), *end
            )

        self.image = image_path()
        if self.label_as_image:
            self.label: nn.Module = image_path()
        else:
            first = [nn.Linear(embed_dim, hidden), *_normed(hidden, norm), nn.ReLU()]
            self.label = nn.Sequential(*first) if time_embed else nn.Sequential(*first, _Residual(hidden, norm))
        self.time = None if time_embed is None else nn.Sequential(nn.Linear(time_embed, hidden), nn.ReLU())
        widths = [
            hidden * (2 if time_embed is None else 3),
            *((hidden, max(hidden // 2, 1)) if fusion is None else fusion),
        ]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), *_normed(fan_out, norm), nn.ReLU()]
        self.fusion = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def image_features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch hidden"]:
        """The image path, which depends on neither z nor t: the many steps of inference share it."""
        _check_images(x, self.image_shape)
        return self.image(x)

    def classify(
        self,
        features: Float[Tensor, "batch hidden"],
        z: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """The rest of the block, from `image_features` on."""
        if z.shape[1] != self.embed_dim:
            raise ValueError(f"z must have {self.embed_dim} columns, the block's embed_dim, got shape {tuple(z.shape)}")
        if (t is None) != (self.time is None):
            needs, got = ("no time t", "one") if self.time is None else ("a time t", "None")
            raise ValueError(f"a block with time_embed={self.time_embed} takes {needs}, got {got}")
        label = self.label(z.unflatten(1, self.image_shape) if self.label_as_image else z)
        parts = [features, label]
        if self.time is not None:
            assert t is not None
            assert self.time_embed is not None
            parts.append(self.time(_sinusoids(t, self.time_embed)))
        return self.fusion(torch.cat(parts, dim=1))

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        z: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch classes"]:
        return self.classify(self.image_features(x), z, t)


class ImageClassifier(nn.Module):
    """One discrete-time block without its label path: the plain classifier beside which a chain of blocks must stand.

    Args:
        in_channels, image_size, num_classes, hidden, channels, fusion, dropout: as for `NoPropBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int | Sequence[int],
        num_classes: int,
        hidden: int = 256,
        channels: Sequence[int] = (32, 64, 128),
        fusion: Sequence[int] | None = None,
        dropout: float = 0.2,
    ):
        super().__init__()
        block = NoPropBlock(
            in_channels, image_size, num_classes, num_classes, hidden=hidden, channels=channels, fusion=fusion,
            dropout=dropout,
        )  # fmt: skip
        self.image_shape = block.image_shape
        first = block.fusion[0]
        assert isinstance(first, nn.Linear)
        block.fusion[0] = nn.Linear(hidden, first.out_features)
        self.layers = nn.Sequential(block.image, block.fusion)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        _check_images(x, self.image_shape)
        return self.layers(x)


class _Residual(nn.Module):
    def __init__(self, hidden: int, norm: bool):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(hidden, hidden), *_normed(hidden, norm), nn.ReLU(),
            nn.Linear(hidden, hidden), *_normed(hidden, norm),
        )  # fmt: skip

    def forward(self, r: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch hidden"]:
        return r + self.body(r)


def _convolutions(
    in_channels: int, size: tuple[int, int], channels: Sequence[int], dropout: float, hidden: int
) -> nn.Sequential:
    if len(channels) < 2:
        raise ValueError(f"channels must name at least two convolutions, got {tuple(channels)}")
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise([in_channels, *channels])):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.ReLU()]
        if index in (0, len(channels) - 1):
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Dropout(dropout))
    flat = channels[-1] * (size[0] // 4) * (size[1] // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, hidden))


def _normed(width: int, norm: bool) -> list[nn.Module]:
    return [nn.BatchNorm1d(width)] if norm else []


def _checked_size(image_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 4:
        raise ValueError(f"image_size must be at least 4 x 4, since it is halved twice, got {height} x {width}")
    return height, width


def _check_images(x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape[1:] != shape:
        raise ValueError(f"x must have shape (batch, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def _sinusoids(t: Float[Tensor, " batch"], size: int) -> Float[Tensor, "batch size"]:
    """Sines and cosines of the time, t in [0, 1], at `size` / 2 frequencies from 1 down to 1 / 10,000."""
    half = size // 2
    frequency = torch.exp(-math.log(_MAX_PERIOD) / half * torch.arange(half, device=t.device, dtype=t.dtype))
    angle = _TIME_SCALE * t[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
