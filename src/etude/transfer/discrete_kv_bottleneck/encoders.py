"""Frozen encoders: any module held still, pretrained residual networks cut short, and a small one to pretrain here.

The paper's encoders are self-supervised ResNets cut after residual stage 3: the features of the last stage are those
of the data that the network was trained on. Without a network connection `ConvEncoder` takes their place, pretrained
without labels (`pretrain_contrastive`) or with the labels of other classes (`pretrain_classes`).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = [
    "ChannelwiseEncoder",
    "ConvEncoder",
    "FrozenEncoder",
    "hub_encoder",
    "pretrain_classes",
    "pretrain_contrastive",
    "truncate_resnet",
]

_OUTPUTS = ("flat", "pool", "map")
_HUB = {
    "dino_resnet50": ("facebookresearch/dino:main", "dino_resnet50"),
    "swav_resnet50": ("facebookresearch/swav:main", "resnet50"),
    "swav_resnet50w2": ("facebookresearch/swav:main", "resnet50w2"),
    "vicreg_resnet50": ("facebookresearch/vicreg:main", "resnet50"),
}
_STEM = ("padding", "conv1", "bn1", "relu", "maxpool")


class FrozenEncoder(nn.Module):
    """A module that never trains: evaluation mode, no gradient, no parameter that requires one.

    `train()` does not reach it, so that batch norm keeps its statistics.

    Args:
        encoder: from inputs to embeddings (n, ...).
        output: "flat" flattens what it gives, "pool" averages over places, "map" leaves (n, m, height, width).
    """

    def __init__(self, encoder: nn.Module, output: str = "flat"):
        super().__init__()
        if output not in _OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(_OUTPUTS)}, got {output!r}")
        self.encoder, self.output = encoder.eval().requires_grad_(False), output

    def train(self, mode: bool = True) -> "FrozenEncoder":
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        if not isinstance(features, Tensor):
            raise TypeError(f"the encoder must return one tensor, got {type(features).__name__}")
        if self.output == "pool" and features.ndim > 2:
            return features.flatten(2).mean(dim=2)
        return features.flatten(1) if self.output == "flat" else features


class ConvEncoder(nn.Module):
    """Blocks of 3 x 3 convolution, batch norm, ReLU and 2 x 2 pooling.

    Args:
        channels: of the images.
        widths: channels of each block; the default gives 64 x 3 x 3 from 28 x 28.
    """

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (32, 64, 64)):
        super().__init__()
        if channels < 1 or not widths or min(widths) < 1:
            raise ValueError(f"channels and widths must be positive, got {channels} and {widths}")
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths), widths):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*layers)
        self.channels, self.widths = channels, tuple(widths)

    def out_dim(self, height: int, width: int) -> int:
        """Features of an image, flattened."""
        shrink = 2 ** len(self.widths)
        if height < shrink or width < shrink:
            raise ValueError(f"images must be at least {shrink} x {shrink}, got {height} x {width}")
        return self.widths[-1] * (height // shrink) * (width // shrink)

    def forward(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n features rows columns"]:
        return self.blocks(x)


class ChannelwiseEncoder(nn.Module):
    """An encoder of grey images of one size for images of any size and number of channels.

    Each channel is scaled and encoded by itself; the features stand side by side.

    Args:
        encoder: takes (n, 1, size, size).
        size: height and width that it was trained at.
        batch_size: channels that are encoded at a time.
    """

    def __init__(self, encoder: nn.Module, size: int, batch_size: int = 512):
        super().__init__()
        if size < 1 or batch_size < 1:
            raise ValueError(f"size and batch_size must be positive, got {size} and {batch_size}")
        self.encoder, self.size, self.batch_size = encoder, size, batch_size

    def forward(self, x: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n features"]:
        grey = x.flatten(0, 1)[:, None]
        shape = (self.size, self.size)
        if grey.shape[2:] != shape:
            grey = F.interpolate(grey, size=shape, mode="bilinear", antialias=True, align_corners=False)
        features = torch.cat([self.encoder(part).flatten(1) for part in grey.split(self.batch_size)])
        return features.view(len(x), -1)


def truncate_resnet(resnet: nn.Module, stages: int = 3) -> nn.Sequential:
    """The stem and the first residual stages of a network with torchvision's names, as a map (n, m, height, width).

    Args:
        resnet: has conv1, bn1, relu, maxpool, layer1, ...; a `padding` in front is kept.
        stages: 1..4; the paper's experiments cut after the third.

    Raises:
        ValueError: if a stage is missing.
    """
    names = [name for name in _STEM if hasattr(resnet, name)] + [f"layer{stage}" for stage in range(1, stages + 1)]
    absent = [name for name in ("conv1", *names) if not isinstance(getattr(resnet, name, None), nn.Module)]
    if stages < 1 or absent:
        raise ValueError(f"{type(resnet).__name__} cannot be cut after stage {stages}: it has no {', '.join(absent)}")
    return nn.Sequential(*(getattr(resnet, name) for name in names))


def hub_encoder(name: str, stages: int = 3) -> FrozenEncoder:
    """A self-supervised ResNet-50 from torch.hub, cut after a stage and averaged over places: the paper's encoders.

    It takes colour images in [0, 1], which it standardises by the statistics of ImageNet.

    Args:
        name: "dino_resnet50", "swav_resnet50", "swav_resnet50w2" or "vicreg_resnet50".
        stages: as for `truncate_resnet`.

    Raises:
        ValueError: for another name. What torch.hub raises without a network connection.
    """
    if name not in _HUB:
        raise ValueError(f"name must be one of {', '.join(_HUB)}, got {name!r}")
    repository, entry = _HUB[name]
    return FrozenEncoder(
        nn.Sequential(_ImageNetScale(), truncate_resnet(torch.hub.load(repository, entry), stages)), "pool"
    )


class _ImageNetScale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
        return (x - mean[:, None, None]) / std[:, None, None]


def pretrain_classes(
    encoder: nn.Module,
    images: Float[Tensor, "n channels height width"],
    labels: Int[Tensor, "n"],
    *,
    epochs: int = 4,
    batch_size: int = 64,
    lr: float = 1e-3,
    shift: int = 2,
    generator: torch.Generator | None = None,
    callback: Callable[..., Any] | None = None,
) -> nn.Module:
    """Trains an encoder to tell classes apart that the later stream does not have.

    Args:
        encoder: from images to features; trained in place by Adam and returned, in evaluation mode.
        images, labels: of other classes.
        epochs, batch_size, lr: of training.
        shift: each image is rolled by up to so many pixels both ways.
        generator: of the linear head, the order and the shifts; the default generator if None.
        callback: called as `callback(step, total, loss=...)`.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    num_classes = int(labels.max()) + 1 if len(labels) else 0
    if num_classes < 2 or int(labels.min()) < 0:
        raise ValueError(f"labels must be 0, 1, ... of at least two classes, got {labels.unique().tolist()}")
    head = nn.Linear(_out_dim(encoder, images), num_classes)
    _redraw(head, generator)

    def loss(rows: Tensor) -> Tensor:
        shifted = _rolled(images[rows], shift, generator)
        return F.cross_entropy(head(encoder(shifted).flatten(1)), labels[rows])

    return _pretrain(encoder, head, loss, len(images), epochs, batch_size, lr, generator, callback)


def pretrain_contrastive(
    encoder: nn.Module,
    images: Float[Tensor, "n channels height width"],
    *,
    epochs: int = 4,
    batch_size: int = 128,
    lr: float = 1e-3,
    temperature: float | int = 0.2,
    dim: int = 64,
    generator: torch.Generator | None = None,
    callback: Callable[..., Any] | None = None,
) -> nn.Module:
    """Trains an encoder without labels: two random views of an image are to be nearer than views of others.

    The loss is the normalised cross-entropy of pairs (Chen, Kornblith, Norouzi & Hinton, "A Simple Framework for
    Contrastive Learning of Visual Representations", ICML 2020, Eq. 1), behind two linear layers that are thrown away.
    Views are random rotations, scalings, shears and shifts.

    Args:
        encoder, epochs, batch_size, lr, generator, callback: as for `pretrain_classes`.
        images: without labels.
        temperature: of the similarities.
        dim: of the space in which views are compared.
    """
    if len(images) < 2 or batch_size < 2:
        raise ValueError(f"views are compared with those of others: got {len(images)} images, batches of {batch_size}")
    features = _out_dim(encoder, images)
    head = nn.Sequential(nn.Linear(features, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
    _redraw(head, generator)

    def loss(rows: Tensor) -> Tensor:
        views = torch.cat([_transformed(images[rows], generator) for _ in range(2)])
        z = F.normalize(head(encoder(views).flatten(1)), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / temperature).masked_fill(itself, -math.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(rows))
        return F.cross_entropy(similarity, partner)

    return _pretrain(encoder, head, loss, len(images), epochs, batch_size, lr, generator, callback)


def _pretrain(
    encoder: nn.Module, head: nn.Module, loss: Callable[[Tensor], Tensor], n: int, epochs: int, batch_size: int,
    lr: float, generator: torch.Generator | None, callback: Callable[..., Any] | None,
) -> nn.Module:  # fmt: skip
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=lr)
    encoder.train()
    total, step = epochs * max(n // batch_size, 1), 0
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=generator).split(batch_size):
            if len(rows) < min(batch_size, n):
                continue
            optimizer.zero_grad()
            value = loss(rows)
            value.backward()
            optimizer.step()
            step += 1
            if callback is not None:
                callback(step, total, loss=value.item())
    return encoder.eval()


@torch.no_grad()
def _out_dim(encoder: nn.Module, images: Tensor) -> int:
    return encoder.eval()(images[:1]).flatten(1).shape[1]


@torch.no_grad()
def _redraw(head: nn.Module, generator: torch.Generator | None) -> None:
    """torch's own initialisation, from the generator."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            for parameter in (layer.weight, layer.bias):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)


def _rolled(x: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    n, _, height, width = x.shape
    down, right = torch.randint(-most, most + 1, (2, n, 1), generator=generator)
    rows, columns = (torch.arange(height) - down) % height, (torch.arange(width) - right) % width
    samples = torch.arange(n)[:, None, None]
    return x.transpose(0, 1)[:, samples, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _transformed(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Images turned by up to 20 degrees, scaled by 0.75 to 1.25, sheared by 0.2, shifted by a tenth; zero beyond."""
    draws = 2 * torch.rand(5, len(x), generator=generator) - 1
    angle, scale, shear = draws[0] * math.radians(20), 1 / (1 + 0.25 * draws[1]), 0.2 * draws[2]
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack(
        [cos, shear * cos - sin, 0.2 * draws[3], sin, shear * sin + cos, 0.2 * draws[4]], dim=1
    ).view(-1, 2, 3)  # fmt: skip
    grid = F.affine_grid(matrix.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
