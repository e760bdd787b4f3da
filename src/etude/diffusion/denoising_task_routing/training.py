"""Training a denoiser on images and their labels."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import ExponentialMovingAverage, fit
from etude.nn.diffusion import LossWeight, UncertaintyWeighting, constant, diffusion_losses

__all__ = ["denoising_loss", "fit_denoiser"]


class _Objective(nn.Module):
    """A batch (x0, t, noise, labels) -> the loss of each row: one module, so that processes average its gradients."""

    def __init__(self, model: nn.Module, scheduler: Any, weight: LossWeight, learn_sigma: bool, labelled: bool):
        super().__init__()
        self.model, self.weight = model, weight
        self.scheduler, self.learn_sigma, self.labelled = scheduler, learn_sigma, labelled

    def forward(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Float[Tensor, "batch"]:
        x0, t, noise, labels = batch
        return diffusion_losses(
            self.model, self.scheduler, x0, t, noise, y=labels if self.labelled else None, weight=self.weight,
            learn_sigma=self.learn_sigma,
        )  # fmt: skip


def fit_denoiser(
    model: nn.Module,
    train: Any,
    scheduler: Any,
    *,
    steps: int,
    batch_size: int = 64,
    lr: float | int = 1e-4,
    ema: ExponentialMovingAverage | None = None,
    weight: LossWeight = constant,
    weight_lr: float | int = 0.025,
    learn_sigma: bool = False,
    labelled: bool = True,
    order: torch.Generator | None = None,
    noise: torch.Generator | None = None,
    flip: bool = False,
    mixed_precision: str = "no",
    callbacks: Iterable[Callable[..., Any]] = (),
    every: int = 100,
    checkpoint: str | os.PathLike | None = None,
) -> ExponentialMovingAverage:
    """Trains a denoiser with AdamW, no weight decay, no clipping, and keeps the moving average of its weights.

        model = DiT(8, 2, 1, dim=64, depth=4, num_heads=4, num_classes=10, routing=Routing())
        ema = fit_denoiser(model, Examples(2 * images - 1, labels), DDPMScheduler(), steps=2_000, lr=2e-3)
        with ema.applied():
            made = sample(model, DDIMScheduler(), torch.randn(10, 1, 8, 8), torch.arange(10), steps=50)

    Args:
        model: called as `model(x, t, y)`, or `model(x, t)` if not `labelled`; trained in place.
        train: images, in [-1, 1] by custom, and labels: `Examples` or a map-style dataset of such pairs.
        scheduler: of diffusers.
        steps, batch_size, lr: of the training; 400,000, 256 and 1e-4 in the paper.
        ema: the average to keep, for callbacks that look at it; at a decay of 0.9999 with warm-up if None.
        weight: of the losses. An `UncertaintyWeighting` is trained along, at `weight_lr`, on batches that hold
            equally many rows of each of its clusters.
        learn_sigma: the model gives a variance too.
        labelled: whether the model takes the labels.
        order: CPU generator of the batches. noise: of timesteps, noise and flips. Seeded with 0 and 1 if None.
        flip: mirror half of the images.
        mixed_precision, callbacks, every, checkpoint: as for `fit`.

    Raises:
        ValueError: for arguments out of range.
    """
    drawn = torch.Generator().manual_seed(1) if noise is None else noise
    trained = scheduler.config.num_train_timesteps

    def draw(batch: tuple[Tensor, Tensor]) -> tuple[Any, Tensor]:
        x0, labels = batch
        if isinstance(weight, UncertaintyWeighting):
            t = weight.timesteps(len(x0), trained, drawn)
        else:
            t = torch.randint(trained, (len(x0),), generator=drawn)
        if flip:
            mirrored = torch.rand(len(x0), generator=drawn) < 0.5
            x0 = torch.where(mirrored.to(x0.device).view(-1, 1, 1, 1), x0.flip(-1), x0)
        eps = torch.randn(x0.shape, generator=drawn).to(x0.device)
        return (x0, t.to(x0.device), eps, labels), labels

    objective = _Objective(model, scheduler, weight, learn_sigma, labelled)
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if isinstance(weight, nn.Module):
        weight.to(next(model.parameters()).device)
        groups.append({"params": list(weight.parameters()), "lr": float(weight_lr)})
    optimizer = torch.optim.AdamW(groups, lr=float(lr), weight_decay=0.0, fused=True)
    ema = ExponentialMovingAverage(model, 0.9999, warmup=True) if ema is None else ema
    fit(
        objective, train, optimizer, loss=lambda losses, _: losses.mean(), steps=steps, batch_size=batch_size,
        generator=order, ema=ema, mixed_precision=mixed_precision, transform=draw, callbacks=callbacks, every=every,
        checkpoint=checkpoint, stateful=[drawn],
    )  # fmt: skip
    return ema


@torch.no_grad()
def denoising_loss(
    model: nn.Module,
    examples: Examples,
    scheduler: Any,
    *,
    bins: int = 4,
    draws: int = 4,
    labelled: bool = True,
    generator: torch.Generator,
) -> Float[Tensor, "bins"]:
    """Mean squared error of the prediction on held-out images, by equally long bins of timesteps, little noise first.

    Args:
        model: in evaluation mode.
        examples: images and labels.
        draws: timesteps of each bin drawn for each image.
        generator: of timesteps and noise, on the CPU.

    Raises:
        ValueError: if there are more bins than timesteps.
    """
    trained = scheduler.config.num_train_timesteps
    if not 1 <= bins <= trained:
        raise ValueError(f"bins must lie in 1..{trained}, got {bins}")
    device = next(model.parameters()).device
    channels = examples.inputs.shape[1]

    def mean(*inputs: Tensor) -> Tensor:
        return model(*inputs)[:, :channels]  # without a learned variance

    means = []
    for index in range(bins):
        low, high = index * trained // bins, (index + 1) * trained // bins
        x0, labels = (
            part.repeat(draws, *[1] * (part.ndim - 1)).to(device) for part in (examples.inputs, examples.targets)
        )
        t: Int64[Tensor, "batch"] = torch.randint(low, high, (len(x0),), generator=generator).to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        losses = [
            diffusion_losses(mean, scheduler, *rows[:3], y=rows[3] if labelled else None)
            for rows in zip(*(part.split(1024) for part in (x0, t, noise, labels)))
        ]
        means.append(torch.cat(losses).mean())
    return torch.stack(means)
