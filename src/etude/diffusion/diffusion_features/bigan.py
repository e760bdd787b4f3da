"""The adversarial baseline: a bidirectional GAN, whose encoder classifies.

Donahue, Krahenbuhl & Darrell, "Adversarial Feature Learning", ICLR 2017, arXiv:1605.09782. The discriminator D tells
pairs (x, E(x)) of images and their codes from pairs (G(z), z) of drawn codes and their images; with s = softplus

    L_D = E s(-D(x, E(x))) + E s(D(G(z), z)) + (gamma / 2) E |grad_x D(x, E(x))|^2                          (1)
    L_EG = E s(D(x, E(x))) + E s(-D(G(z), z)),    z ~ N(0, I)                                              (2)

where gamma > 0 adds the R1 penalty of Mescheder, Geiger & Nowozin, arXiv:1801.04406, 2018, and spectral normalisation
of D is that of Miyato et al., arXiv:1802.05957, 2018.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from etude.data.kinds import Examples
from etude.loop import fit
from etude.loop.evaluation import mode

__all__ = ["BiGAN", "Discriminator", "Encoder", "Generator", "fit_autoencoder", "fit_bigan"]

_LEAK = 0.2


def _down(source: int, target: int, normed: bool) -> nn.Sequential:
    conv = nn.Conv2d(source, target, 4, stride=2, padding=1)
    return nn.Sequential(conv, *([nn.BatchNorm2d(target)] if normed else []), nn.LeakyReLU(_LEAK))


def _up(source: int, target: int) -> nn.Sequential:
    conv = nn.ConvTranspose2d(source, target, 4, stride=2, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(target), nn.LeakyReLU(_LEAK))


class Encoder(nn.Module):
    """Three halving convolutions with batch norm, and a linear code.

    Args:
        channels: of the images. size: their side, a multiple of 8.
        width: channels of the first convolution; the others have twice as many.
        code: dimension of the code.
    """

    def __init__(self, channels: int, size: int, *, width: int = 32, code: int = 32):
        super().__init__()
        _check(channels, size, width, code)
        self.layers = nn.ModuleList(
            [_down(channels, width, True), _down(width, 2 * width, True), _down(2 * width, 2 * width, True)]
        )
        self.code = nn.Linear(2 * width * (size // 8) ** 2, code)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> list[Tensor]:
        """The maps of the three convolutions and the code."""
        found = []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return [*found, self.code(x.flatten(1))]

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch code"]:
        return self.features(x)[-1]


class Generator(nn.Module):
    """The encoder's mirror: a linear layer, three doubling transposed convolutions, tanh.

    Args: as for `Encoder`.
    """

    def __init__(self, channels: int, size: int, *, width: int = 32, code: int = 32):
        super().__init__()
        _check(channels, size, width, code)
        self.start = (2 * width, size // 8, size // 8)
        self.code = nn.Linear(code, 2 * width * (size // 8) ** 2)
        self.norm = nn.BatchNorm2d(2 * width)
        self.layers = nn.Sequential(
            _up(2 * width, 2 * width), _up(2 * width, width),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Float[Tensor, "batch code"]) -> Float[Tensor, "batch channels height width"]:
        return self.layers(F.leaky_relu(self.norm(self.code(z).unflatten(1, self.start)), _LEAK))


class Discriminator(nn.Module):
    """The encoder's convolutions without batch norm on the image, joined with the code; one hidden layer.

    Args: as for `Encoder`, and
        hidden: width of the hidden layer. spectral: whether all layers are spectrally normalised.
    """

    def __init__(
        self, channels: int, size: int, *, width: int = 32, code: int = 32, hidden: int = 256, spectral: bool = False
    ):
        super().__init__()
        _check(channels, size, width, code)
        self.layers = nn.Sequential(
            _down(channels, width, False), _down(width, 2 * width, False), _down(2 * width, 2 * width, False),
            nn.Flatten(),
        )  # fmt: skip
        self.joint = nn.Sequential(
            nn.Linear(2 * width * (size // 8) ** 2 + code, hidden), nn.LeakyReLU(_LEAK), nn.Linear(hidden, 1)
        )
        if spectral:
            for module in list(self.modules()):
                if isinstance(module, nn.Conv2d | nn.Linear):
                    spectral_norm(module)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], z: Float[Tensor, "batch code"]
    ) -> Float[Tensor, "batch"]:
        return self.joint(torch.cat([self.layers(x), z], dim=1))[:, 0]


def _check(channels: int, size: int, width: int, code: int) -> None:
    if min(channels, width, code) < 1:
        raise ValueError(f"channels, width and code must be positive, got {channels}, {width} and {code}")
    if size < 8 or size % 8:
        raise ValueError(f"size must be a multiple of 8, got {size}")


class BiGAN(nn.Module):
    """Encoder, generator and discriminator.

        bigan = BiGAN(1, 16)
        fit_bigan(bigan, images, steps=3000)
        bigan.encoder.features(images)

    Args: as for `Discriminator`.
    """

    def __init__(
        self, channels: int, size: int, *, width: int = 32, code: int = 32, hidden: int = 256, spectral: bool = False
    ):
        super().__init__()
        self.code = code
        self.encoder = Encoder(channels, size, width=width, code=code)
        self.generator = Generator(channels, size, width=width, code=code)
        self.discriminator = Discriminator(channels, size, width=width, code=code, hidden=hidden, spectral=spectral)

    def discriminator_loss(
        self, x: Float[Tensor, "batch channels height width"], z: Float[Tensor, "batch code"], r1: float | int = 0.0
    ) -> Float[Tensor, ""]:
        """Eq. (1); the encoder and the generator get no gradient."""
        with torch.no_grad():
            codes, images = self.encoder(x), self.generator(z)
        x = x.detach().requires_grad_(r1 > 0)
        real = self.discriminator(x, codes)
        loss = F.softplus(-real).mean() + F.softplus(self.discriminator(images, z)).mean()
        if r1 > 0:
            (slope,) = torch.autograd.grad(real.sum(), x, create_graph=True)
            loss = loss + r1 / 2 * slope.square().flatten(1).sum(dim=1).mean()
        return loss

    def encoder_generator_loss(
        self, x: Float[Tensor, "batch channels height width"], z: Float[Tensor, "batch code"]
    ) -> Float[Tensor, ""]:
        """Eq. (2)."""
        real, drawn = self.discriminator(x, self.encoder(x)), self.discriminator(self.generator(z), z)
        return F.softplus(real).mean() + F.softplus(-drawn).mean()


def fit_bigan(
    bigan: BiGAN,
    images: Float[Tensor, "n channels height width"],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float | int = 2e-4,
    lr_ratio: float | int = 1.0,
    betas: tuple[float, float] = (0.5, 0.999),
    r1: float | int = 0.0,
    order: torch.Generator | None = None,
    codes: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
) -> None:
    """Trains by turns: an update of the discriminator, then one of encoder and generator, on the same images.

    Args:
        bigan: trained in place.
        images: in [-1, 1].
        steps: turns.
        batch_size: images drawn for each turn.
        lr: of Adam, for encoder and generator. lr_ratio: the discriminator's, in multiples of it.
        betas: of Adam.
        r1: gamma of Eq. (1).
        order: of the images drawn. codes: of z. The default generator if None.
        callbacks: called as `callback(step, steps, discriminator=..., generator=...)` with the losses.

    Raises:
        ValueError: if a number is out of range.
    """
    if steps < 1 or batch_size < 2 or not lr > 0 or not lr_ratio > 0 or r1 < 0:
        raise ValueError(
            f"steps, lr and lr_ratio must be positive, batch_size at least 2 and r1 not negative, "
            f"got {steps}, {lr}, {lr_ratio}, {batch_size} and {r1}"
        )
    both = [*bigan.encoder.parameters(), *bigan.generator.parameters()]
    makers = torch.optim.Adam(both, lr=lr, betas=betas)
    judge = torch.optim.Adam(bigan.discriminator.parameters(), lr=lr * lr_ratio, betas=betas)
    device = both[0].device
    callbacks = tuple(callbacks)
    with mode(bigan, training=True):
        for step in range(1, steps + 1):
            x = images[torch.randint(len(images), (batch_size,), generator=order)].to(device)
            z = torch.randn(batch_size, bigan.code, generator=codes).to(device)
            loss_d = bigan.discriminator_loss(x, z, r1)
            judge.zero_grad()
            loss_d.backward()
            judge.step()
            loss_eg = bigan.encoder_generator_loss(x, z)
            makers.zero_grad()
            loss_eg.backward()
            makers.step()
            for callback in callbacks:
                callback(step, steps, discriminator=loss_d.item(), generator=loss_eg.item())


def fit_autoencoder(
    encoder: nn.Module,
    generator: nn.Module,
    images: Float[Tensor, "n channels height width"],
    *,
    steps: int,
    batch_size: int = 64,
    lr: float | int = 1e-3,
    corruption: float | int = 0.0,
    order: torch.Generator | None = None,
    noise: torch.Generator | None = None,
    **options: Any,
) -> list[float]:
    """Trains generator(encoder(x + corruption eps)) to be x, by Adam on the squared error: the GAN's plain rival.

    Args:
        encoder, generator: trained in place.
        images: in [-1, 1].
        steps: updates.
        batch_size: images of one update.
        lr: of Adam.
        corruption: standard deviation of the noise, >= 0; 0 is a plain autoencoder.
        order: of the images. noise: of eps.
        options: further ones of `etude.loop.fit`.

    Returns:
        The losses.

    Raises:
        ValueError: if `corruption` is negative.
    """
    if corruption < 0:
        raise ValueError(f"corruption must not be negative, got {corruption}")

    def corrupt(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, target = pair
        if corruption > 0:
            x = x + corruption * torch.randn(x.shape, generator=noise).to(x.device)
        return x, target

    model = nn.Sequential(encoder, generator)
    return fit(
        model, Examples(images, images), torch.optim.Adam(model.parameters(), lr=lr), loss=F.mse_loss, steps=steps,
        batch_size=batch_size, generator=order, transform=corrupt, **options,
    ).losses  # fmt: skip
