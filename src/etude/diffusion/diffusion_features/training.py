"""Training a diffusion model on images without labels, to take its features."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import ExponentialMovingAverage, fit
from etude.nn.diffusion import diffusion_loss

__all__ = ["Denoising", "fit_diffusion"]


class Denoising(nn.Module):
    """The training loss of a diffusion model as a function of clean images: uniform timesteps, fresh noise.

    Args:
        model: called as `model(x, t)`.
        diffusion: the scheduler of diffusers.
        generator: CPU generator of timesteps and noise; the default one if None.
        learn_sigma: whether the model has channels for the variance.
    """

    def __init__(
        self, model: nn.Module, diffusion: Any, *, generator: torch.Generator | None = None, learn_sigma: bool = False
    ):
        super().__init__()
        self.model, self.diffusion, self.generator, self.learn_sigma = model, diffusion, generator, learn_sigma

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
        count = self.diffusion.config.num_train_timesteps
        t = torch.randint(count, (len(x),), generator=self.generator).to(x.device)
        noise = torch.randn(x.shape, generator=self.generator).to(x.device)
        return diffusion_loss(self.model, self.diffusion, x, t, noise, learn_sigma=self.learn_sigma)


def _itself(value: Tensor, _target: Any) -> Tensor:
    return value


def fit_diffusion(
    model: nn.Module,
    diffusion: Any,
    images: Any,
    *,
    steps: int,
    batch_size: int = 32,
    lr: float | int = 1e-3,
    decay: float | int = 0.999,
    learn_sigma: bool = False,
    generator: torch.Generator | None = None,
    order: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    **options: Any,
) -> list[float]:
    """Trains a model to remove noise, by AdamW without weight decay, and leaves the average of its weights in it.

        fit_diffusion(unet, DDPMScheduler(), images, steps=1500)

    Args:
        model: called as `model(x, t)`; trained in place.
        diffusion: the scheduler of diffusers.
        images: (n, channels, height, width) in [-1, 1], or a dataset of pairs (image, anything).
        steps: updates.
        batch_size: images of one update.
        lr: of AdamW.
        decay: of the moving average, which begins with a small one.
        learn_sigma: whether the model has channels for the variance.
        generator: of timesteps and noise. order: of the images.
        callbacks: as for `etude.loop.fit`. options: further ones of it (mixed precision, checkpoints, ...).

    Returns:
        The losses.
    """
    train = Examples(images, torch.zeros(len(images))) if isinstance(images, Tensor) else images
    average = ExponentialMovingAverage(model, decay, warmup=True)
    losses = fit(
        Denoising(model, diffusion, generator=generator, learn_sigma=learn_sigma), train,
        torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), loss=_itself, steps=steps,
        batch_size=batch_size, ema=average, generator=order, callbacks=callbacks, **options,
    ).losses  # fmt: skip
    average.copy_to(model)
    return losses
