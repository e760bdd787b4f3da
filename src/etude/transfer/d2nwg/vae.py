"""The autoencoder of weight vectors, in whose latent space the diffusion works.

Soro et al., arXiv:2402.18153, and its code. With reconstruction x', posterior N(m, s^2) and batch mean <.>,

    loss = l1 <sum |x - x'|> + kl <sum KL(N(m, s^2) || N(0, 1))> + mse mean (x - x')^2                      (1)

with l1 = 1, kl = 1e-6, mse = 1000 by default. How well decoded networks classify is the measure of success, not (1).

The convolutional form is that of latent diffusion (Rombach et al., arXiv:2112.10752) on an image of one channel to
which a linear layer brings the vector: three levels of 128, 128 and 256 channels, two residual blocks each, attention
in the middle.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["WeightVAE", "kl_to_standard"]


class _MLP(nn.Module):
    """Vector to moments, and latent to vector, by perceptrons."""

    def __init__(self, dim: int, latent_dim: int, hidden: int, depth: int):
        super().__init__()
        self.encoder = _perceptron(dim, hidden, 2 * latent_dim, depth)
        self.decoder = _perceptron(latent_dim, hidden, dim, depth)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)


def _perceptron(dim_in: int, hidden: int, dim_out: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(hidden if index else dim_in, hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden if depth else dim_in, dim_out))


class _Conv(nn.Module):
    """The published layout: a linear layer to a square image, then the autoencoder of latent diffusion."""

    def __init__(self, dim: int, latent_shape: tuple[int, int, int], channels: Sequence[int]):
        super().__init__()
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise ImportError("the convolutional autoencoder needs diffusers: pip install 'etude[transfer]'") from error
        latent_channels, height, width = latent_shape
        self.side = height * 2 ** (len(channels) - 1)
        if height != width:
            raise ValueError(f"the convolutional latent is square, got {latent_shape}")
        self.fc_in = nn.Linear(dim, self.side**2)
        self.fc_out = nn.Linear(self.side**2, dim)
        levels = len(channels)
        self.core: Any = AutoencoderKL(
            in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels, block_out_channels=tuple(channels), layers_per_block=2,
            latent_channels=latent_channels, norm_num_groups=math.gcd(32, *channels), sample_size=self.side,
        )  # fmt: skip

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        image = nn.functional.leaky_relu(self.fc_in(x)).unflatten(-1, (1, self.side, self.side))
        posterior = self.core.encode(image).latent_dist
        return posterior.mean, posterior.logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.fc_out(self.core.decode(z).sample.flatten(1))


class WeightVAE(nn.Module):
    """Variational autoencoder of vectors, Eq. (1).

        vae = WeightVAE(42, (24,))                                      # small networks
        vae = WeightVAE(2864, (4, 16, 16), arch="conv")                 # the published sizes

    Args:
        dim: length of a vector.
        latent_shape: of a latent; (L,) for "mlp", (channels, side, side) for "conv".
        arch: "mlp" or "conv".
        hidden, depth: width and number of hidden layers of the perceptrons.
        channels: of the convolutional levels.
        kl_weight, l1_weight, mse_weight: of Eq. (1), not negative.

    Raises:
        ValueError: for a latent of the wrong rank or numbers out of range.
    """

    def __init__(
        self,
        dim: int,
        latent_shape: Sequence[int],
        *,
        arch: str = "mlp",
        hidden: int = 256,
        depth: int = 1,
        channels: Sequence[int] = (128, 128, 256),
        kl_weight: float | int = 1e-6,
        l1_weight: float | int = 1.0,
        mse_weight: float | int = 1000.0,
    ):
        super().__init__()
        shape = tuple(latent_shape)
        if dim < 1 or not shape or min(shape) < 1:
            raise ValueError(f"dim and latent_shape must be positive, got {dim} and {shape}")
        for name, value in (("kl_weight", kl_weight), ("l1_weight", l1_weight), ("mse_weight", mse_weight)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.dim, self.latent_shape = dim, shape
        self.kl_weight, self.l1_weight, self.mse_weight = kl_weight, l1_weight, mse_weight
        self.net: _MLP | _Conv
        if arch == "mlp":
            if len(shape) != 1:
                raise ValueError(f"the perceptron's latent has one dimension, got {shape}")
            self.net = _MLP(dim, shape[0], hidden, depth)
        elif arch == "conv":
            if len(shape) != 3:
                raise ValueError(f"the convolutional latent has three dimensions, got {shape}")
            self.net = _Conv(dim, (shape[0], shape[1], shape[2]), channels)
        else:
            raise ValueError(f"arch must be 'mlp' or 'conv', got {arch!r}")

    def encode(
        self, x: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, "batch *latent"], Float[Tensor, "batch *latent"]]:
        """Mean and log-variance of the posterior, the latter in [-30, 20]."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"expected vectors of {self.dim} entries, got shape {tuple(x.shape)}")
        mean, logvar = self.net.encode(x)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch dim"]:
        if tuple(z.shape[1:]) != self.latent_shape:
            raise ValueError(f"expected latents of shape {self.latent_shape}, got {tuple(z.shape)}")
        return self.net.decode(z)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """The reconstruction, from the mean of the posterior."""
        return self.decode(self.encode(x)[0])

    def loss(
        self,
        x: Float[Tensor, "batch dim"],
        noise: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """Eq. (1).

        Args:
            x: vectors.
            noise: standard normal numbers in the shape of its argument; `torch.randn_like` if None.
        """
        mean, logvar = self.encode(x)
        drawn = torch.randn_like(mean) if noise is None else noise(mean)
        error = self.decode(mean + (0.5 * logvar).exp() * drawn) - x
        loss = self.mse_weight * error.square().mean() + self.kl_weight * kl_to_standard(mean, logvar).mean()
        return loss + self.l1_weight * error.abs().sum(dim=-1).mean() if self.l1_weight else loss


def kl_to_standard(
    mean: Float[Tensor, "batch *latent"], logvar: Float[Tensor, "batch *latent"]
) -> Float[Tensor, "batch"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)), summed over the latent."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)
