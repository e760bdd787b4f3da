"""Filters from networks that learn without labels: a denoising auto-encoder and rotation prediction.

Vincent et al., "Extracting and composing robust features with denoising autoencoders", 2008; Gidaris, Singh &
Komodakis, "Unsupervised representation learning by predicting image rotations", arXiv:1803.07728.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["autoencoder_filters", "rotated", "rotation_filters"]


def _leaf(generator: torch.Generator, *shape: int) -> Tensor:
    """A He-initialised weight."""
    return (torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))).requires_grad_()


def _drawn(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return images[torch.randint(0, len(images), (count,), generator=generator)]


def _standardised(images: Tensor) -> Tensor:
    mean, std = images.mean(dim=(0, 2, 3), keepdim=True), images.std(dim=(0, 2, 3), keepdim=True)
    return (images - mean) / std.clamp_min(1e-6)


@torch.enable_grad()
def autoencoder_filters(
    images: Float[Tensor, "n channels height width"],
    size: int,
    num: int,
    generator: torch.Generator,
    *,
    tied: bool = True,
    noise: float | int = 0.2,
    steps: int = 200,
    lr: float | int = 3e-3,
    batch_size: int = 32,
) -> Float[Tensor, "num channels size size"]:
    """Encoder kernels of conv -> ReLU -> transposed conv, which restores standardised images.

    Args:
        images, size, num, generator: see `learn_filters`.
        tied: the decoder takes the encoder's kernels.
        noise: probability that a pixel (of all channels) is set to zero, its mean, before encoding.
        steps, lr, batch_size: of Adam.
    """
    if not 0 <= noise < 1:
        raise ValueError(f"noise must lie in [0, 1), got {noise}")
    data = _standardised(images)
    encoder = _leaf(generator, num, images.shape[1], size, size)
    decoder = encoder if tied else _leaf(generator, num, images.shape[1], size, size)
    with torch.no_grad():
        for weight in {id(encoder): encoder, id(decoder): decoder}.values():
            weight /= math.sqrt(num) * size  # so that the first restoration is no larger than the image
    hidden_bias = torch.zeros(num, requires_grad=True)
    bias = torch.zeros(images.shape[1], requires_grad=True)
    leaves = [encoder, hidden_bias, bias] + ([] if tied else [decoder])
    optimizer = torch.optim.Adam(leaves, lr=lr)
    for _ in range(steps):
        clean = _drawn(data, batch_size, generator)
        kept = torch.rand(clean[:, :1].shape, generator=generator) >= noise
        hidden = F.conv2d(clean * kept, encoder, hidden_bias).relu()
        restored = F.conv_transpose2d(hidden, decoder, bias)
        loss = F.mse_loss(restored, clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.detach()


def rotated(images: Float[Tensor, "n channels side side"], turns: Tensor) -> Float[Tensor, "n channels side side"]:
    """Square images, each turned by its number of quarter turns, 0 to 3, as `torch.rot90` does."""
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"quarter turns need square images, got {tuple(images.shape[2:])}")
    every = torch.stack([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
    return every[turns, torch.arange(len(images))]


@torch.enable_grad()
def rotation_filters(
    images: Float[Tensor, "n channels height width"],
    size: int,
    num: int,
    generator: torch.Generator,
    *,
    steps: int = 200,
    lr: float | int = 3e-3,
    batch_size: int = 64,
    width: int = 32,
) -> Float[Tensor, "num channels size size"]:
    """First kernels of conv - pool - conv - pool - linear, trained to tell by how many quarter turns images are turned.

    Images that are not square are cut to their middle square. Arguments as of `autoencoder_filters`; `width` is the
    second layer's.
    """
    side = min(images.shape[2:])
    top, left = (images.shape[2] - side) // 2, (images.shape[3] - side) // 2
    data = _standardised(images[:, :, top : top + side, left : left + side])
    first = _leaf(generator, num, images.shape[1], size, size)
    second = _leaf(generator, width, num, 3, 3)
    head = _leaf(generator, 4, width * 16)
    biases = [torch.zeros(count, requires_grad=True) for count in (num, width, 4)]
    optimizer = torch.optim.Adam([first, second, head, *biases], lr=lr)
    for _ in range(steps):
        turns = torch.randint(0, 4, (batch_size,), generator=generator)
        batch = rotated(_drawn(data, batch_size, generator), turns)
        hidden = F.conv2d(batch, first, biases[0], padding=size // 2).relu()
        hidden = F.max_pool2d(hidden, 2, ceil_mode=True)
        hidden = F.adaptive_avg_pool2d(F.conv2d(hidden, second, biases[1], padding=1).relu(), 4)
        loss = F.cross_entropy(F.linear(hidden.flatten(1), head, biases[2]), turns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return first.detach()
