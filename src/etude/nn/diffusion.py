"""Training and sampling of diffusion models on the schedulers of diffusers.

Ho, Jain & Abbeel, arXiv:2006.11239, 2020; Nichol & Dhariwal, arXiv:2102.09672, 2021 (learned variance); Ho & Salimans,
arXiv:2207.12598, 2022 (classifier-free guidance); Hang et al., arXiv:2303.09556, 2023 (min-SNR); Go et al.,
arXiv:2306.00354, 2023 (clusters of timesteps with uncertainty weights). With abar_t the scheduler's `alphas_cumprod`,

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    SNR(t) = abar_t / (1 - abar_t)                       (1)
    loss = mean_i w(t_i) mean |target - model(x_t, t_i, y_i)|^2                                            (2)

where the target is eps, x_0 or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0, as the scheduler's `prediction_type` says.
Models are called `model(x, t)`, or `model(x, t, y)` if there are labels; t are the timesteps of training, 0 the least
noise, whatever the steps of the sampler.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

__all__ = [
    "DiffusersModel",
    "UncertaintyWeighting",
    "check_timesteps",
    "constant",
    "diffusion_loss",
    "diffusion_losses",
    "min_snr",
    "sample",
    "signal_to_noise",
    "timestep_embedding",
]

LossWeight = Callable[[Any, Tensor], Tensor]
"""(scheduler, t) -> the weight of each row's loss."""


def timestep_embedding(
    t: Shaped[Tensor, "batch"], dim: int, *, max_period: float | int = 10_000.0
) -> Float[Tensor, "batch dim"]:
    """Cosines, then sines, of t at `dim // 2` frequencies from 1 down to nearly 1 / `max_period`; a 0 if `dim` is odd.

    Raises:
        ValueError: if `dim` is below 2 or `max_period` not positive.
    """
    if dim < 2 or not max_period > 0:
        raise ValueError(f"dim must be at least 2 and max_period positive, got {dim} and {max_period}")
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


def check_timesteps(t: Tensor, num_timesteps: int) -> None:
    """Refuses what are not timesteps of training. On an accelerator the range is left to indexing, to not wait for it.

    Raises:
        TypeError: if `t` is not int64.
        IndexError: if a value lies outside 0 .. `num_timesteps` - 1.
    """
    if t.dtype != torch.int64:
        raise TypeError(
            f"t must be int64 timesteps in 0..{num_timesteps - 1}, got {str(t.dtype).removeprefix('torch.')}; a time "
            f"u in [0, 1] is round(u * {num_timesteps - 1})"
        )
    if t.device.type != "cpu" or torch.compiler.is_compiling() or t.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(t))
    if low < 0 or high >= num_timesteps:
        raise IndexError(f"t must lie in 0..{num_timesteps - 1}, got {low}..{high}")


def signal_to_noise(scheduler: Any, t: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """SNR(t), Eq. (1), in float64."""
    alpha = scheduler.alphas_cumprod.to(t.device).double()[t]
    return alpha / (1 - alpha)


def constant(scheduler: Any, t: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """w = 1."""
    return torch.ones(t.shape, device=t.device)


def min_snr(k: float | int = 5.0) -> LossWeight:
    """min(SNR, k) / SNR for a network that predicts the noise; over SNR + 1 for v, over 1 for x_0.

    Raises:
        ValueError: if `k` is not positive.
    """
    if not k > 0:
        raise ValueError(f"k must be positive, got {k}")

    def weight(scheduler: Any, t: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        snr = signal_to_noise(scheduler, t)
        over = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[_prediction_type(scheduler)]
        return (snr.clamp(max=k) / over).float()

    return weight


class UncertaintyWeighting(nn.Module):
    """Learned weights of clusters of timesteps: the loss of cluster k becomes (exp(-s_k) L_k + s_k) / 2.

    The timesteps are cut into equally long clusters. The batch should hold equally many rows of each (`timesteps`);
    s has an optimizer of its own in the paper, at a rate of 0.025 without weight decay.

        weighting = UncertaintyWeighting()
        t = weighting.timesteps(64, 1000, generator)
        loss = diffusion_loss(model, scheduler, x0, t, noise, weight=weighting)

    Args:
        num_clusters: how many, at least 1; 8 in the paper.
    """

    def __init__(self, num_clusters: int = 8):
        super().__init__()
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
        self.s = nn.Parameter(torch.zeros(num_clusters))

    def clusters(self, scheduler: Any, t: Int64[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
        return t * len(self.s) // scheduler.config.num_train_timesteps

    def forward(self, scheduler: Any, t: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The factor exp(-s_k) / 2 of each row."""
        return torch.exp(-self.s[self.clusters(scheduler, t)]) / 2

    def penalty(self, scheduler: Any, t: Int64[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """The summand s_k / 2 of each row."""
        return self.s[self.clusters(scheduler, t)] / 2

    def timesteps(self, n: int, num_timesteps: int, generator: torch.Generator | None = None) -> Int64[Tensor, "n"]:
        """Uniform timesteps, equally many of each cluster, on the CPU.

        Raises:
            ValueError: if `n` is not a multiple of the number of clusters, or there are fewer timesteps than clusters.
        """
        count = len(self.s)
        if n % count or num_timesteps < count:
            raise ValueError(
                f"{n} rows of {num_timesteps} timesteps cannot be shared equally among {count} clusters: take a "
                f"multiple of {count} rows"
            )
        # The cluster of t is t * count // T: its first timestep is ceil(k * T / count).
        edges = -(-torch.arange(count + 1) * num_timesteps // count)
        lengths = edges.diff().repeat(n // count)
        drawn = (torch.rand(n, generator=generator, dtype=torch.float64) * lengths).long()
        return edges[:-1].repeat(n // count) + drawn


def diffusion_loss(
    model: Callable[..., Tensor],
    scheduler: Any,
    x0: Float[Tensor, "batch *shape"],
    t: Tensor,
    noise: Tensor,
    *,
    y: Int64[Tensor, "batch"] | None = None,
    weight: LossWeight = constant,
    learn_sigma: bool = False,
) -> Float[Tensor, ""]:
    """The training loss, Eq. (2).

        t = torch.randint(1000, (len(x0),), generator=generator)
        loss = diffusion_loss(model, DDPMScheduler(), x0, t, torch.randn(x0.shape, generator=generator))

    Args:
        model: called as `model(x, t)`, or `model(x, t, y)`.
        scheduler: of diffusers, DDPM or DDIM; gives abar and the kind of prediction.
        x0: clean data.
        t: timesteps of training, one a row.
        noise: standard normal, of the shape of `x0`.
        y: labels.
        weight: (scheduler, t) -> (batch,); one that has `penalty(scheduler, t)` adds its mean.
        learn_sigma: the model has twice the channels, the second half v in [-1, 1] interpolating the log variance of
            a step between its bounds; the variational bound in bits a dimension, mean detached, is added (unweighted).

    Raises:
        TypeError, IndexError: for timesteps that are none (`check_timesteps`).
        ValueError: if shapes do not agree.
    """
    losses = diffusion_losses(model, scheduler, x0, t, noise, y=y, weight=weight, learn_sigma=learn_sigma)
    return losses.mean()


def diffusion_losses(
    model: Callable[..., Tensor],
    scheduler: Any,
    x0: Float[Tensor, "batch *shape"],
    t: Tensor,
    noise: Tensor,
    *,
    y: Int64[Tensor, "batch"] | None = None,
    weight: LossWeight = constant,
    learn_sigma: bool = False,
) -> Float[Tensor, "batch"]:
    """The summands of `diffusion_loss`, one a row."""
    check_timesteps(t, scheduler.config.num_train_timesteps)
    if noise.shape != x0.shape or t.shape != x0.shape[:1]:
        raise ValueError(
            f"x0 {tuple(x0.shape)}, noise {tuple(noise.shape)} and t {tuple(t.shape)} must have one shape and one t a "
            "row"
        )
    noisy = scheduler.add_noise(x0, noise, t)
    output = model(noisy, t) if y is None else model(noisy, t, y)
    channels = x0.shape[1]
    if output.shape != (len(x0), channels * (1 + learn_sigma), *x0.shape[2:]):
        raise ValueError(
            f"the model must give {channels * (1 + learn_sigma)} channels on {tuple(x0.shape)} with "
            f"learn_sigma={learn_sigma}, got {tuple(output.shape)}"
        )
    prediction = output[:, :channels]
    target = {
        "epsilon": lambda: noise,
        "sample": lambda: x0,
        "v_prediction": lambda: scheduler.get_velocity(x0, noise, t),
    }[_prediction_type(scheduler)]()
    losses = weight(scheduler, t) * (prediction - target).square().flatten(1).mean(dim=1)
    if learn_sigma:
        losses = losses + _variational_bound(scheduler, x0, noisy, t, prediction.detach(), output[:, channels:])
    penalty = getattr(weight, "penalty", None)
    return losses if penalty is None else losses + penalty(scheduler, t)


def _prediction_type(scheduler: Any) -> str:
    kind = scheduler.config.prediction_type
    if kind not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(f"prediction_type must be epsilon, sample or v_prediction, got {kind!r}")
    return kind


def _variational_bound(
    scheduler: Any, x0: Tensor, noisy: Tensor, t: Tensor, prediction: Tensor, v: Tensor
) -> Float[Tensor, "batch"]:
    """KL(q(x_{t-1} | x_t, x_0) || p) in bits a dimension; at t = 0 the code length of x_0 in 256 bins on [-1, 1]."""

    def column(values: Tensor) -> Tensor:
        return values[t].view(-1, *[1] * (x0.ndim - 1))

    alpha = scheduler.alphas_cumprod.to(t.device).double()
    before = torch.cat([alpha.new_ones(1), alpha[:-1]])
    beta = 1 - alpha / before
    posterior = beta * (1 - before) / (1 - alpha)
    posterior[0] = posterior[1] if len(posterior) > 1 else beta[0]  # log 0 at t = 0, where there is no posterior
    signal, spread = column(alpha.sqrt()), column((1 - alpha).sqrt())
    predicted = {
        "epsilon": lambda: (noisy - spread * prediction) / signal,
        "sample": lambda: prediction.double(),
        "v_prediction": lambda: signal * noisy - spread * prediction,
    }[_prediction_type(scheduler)]()
    of_clean = column(before.sqrt() * beta / (1 - alpha))
    of_noisy = column((1 - before) * (1 - beta).sqrt() / (1 - alpha))
    true_mean, mean = (of_clean * clean + of_noisy * noisy for clean in (x0, predicted))
    low, high = column(posterior.log()), column(beta.log())
    log_variance = low + (v + 1) / 2 * (high - low)
    kl = 0.5 * (log_variance - low + (low - log_variance).exp() + (true_mean - mean) ** 2 * (-log_variance).exp() - 1)
    first = -_log_bin_probability(x0.double(), mean, (0.5 * log_variance).exp())
    nats = torch.where((t == 0).view(-1, *[1] * (x0.ndim - 1)), first, kl)
    return (nats.flatten(1).mean(dim=1) / math.log(2)).to(x0.dtype)


def _log_bin_probability(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of a Gaussian's mass in the bin of width 2/255 around x; the outermost bins reach to infinity."""
    normal = torch.special.ndtr
    above, below = normal((x - mean + 1 / 255) / std), normal((x - mean - 1 / 255) / std)
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    scheduler: Any,
    noise: Float[Tensor, "batch channels *size"],
    y: Int64[Tensor, "batch"] | None = None,
    *,
    steps: int,
    guidance: float | int = 1.0,
    null_label: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch channels *size"]:
    """Data from noise, by the scheduler's own sampler.

        images = sample(model, DDIMScheduler(), torch.randn(16, 3, 32, 32), steps=50)

    The model is called with timesteps of training, on whatever grid of `steps` the scheduler lays out (its
    `timestep_spacing`), in evaluation mode if it is a module. With guidance g the prediction is
    (1 - g) model(x, t, null) + g model(x, t, y), on all channels; a learned variance is that of the labelled pass.

    Args:
        model: called as `model(x, t)`, or `model(x, t, y)`; channels beyond those of `noise` are a learned variance.
        scheduler: `DDPMScheduler` or `DDIMScheduler` of diffusers; left as it is.
        noise: standard normal.
        y: labels.
        steps: of the sampler, at most as many as in training.
        guidance: 1 takes the labelled prediction alone, at half the cost.
        null_label: label of "no label"; the model's `num_classes` if None.
        generator: of the noise that DDPM adds; the default one if None.

    Raises:
        ValueError: if `steps` is out of range, or guidance lacks labels or a null label.
    """
    trained = scheduler.config.num_train_timesteps
    if not 1 <= steps <= trained:
        raise ValueError(f"steps must lie in 1..{trained}, the timesteps of training, got {steps}")
    if guidance != 1:
        null_label = getattr(model, "num_classes", None) if null_label is None else null_label
        if y is None or null_label is None:
            raise ValueError(
                f"guidance {guidance} needs labels y and a null_label (or a model with num_classes), "
                f"got y={'None' if y is None else 'labels'} and null_label={null_label}"
            )
    scheduler = copy.copy(scheduler)
    scheduler.set_timesteps(steps)
    learned = getattr(scheduler.config, "variance_type", "") in ("learned", "learned_range")
    channels = noise.shape[1]
    x = noise * scheduler.init_noise_sigma
    with _evaluating(model):
        for step in scheduler.timesteps.tolist():
            t = torch.full((len(x),), step, device=x.device)
            if guidance == 1:
                output = model(x, t) if y is None else model(x, t, y)
            else:
                labels = torch.cat([y, torch.full_like(y, null_label)])  # type: ignore[list-item, arg-type]
                output, unlabelled = model(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
                mean, free = output[:, :channels], unlabelled[:, :channels]
                output = torch.cat([free + guidance * (mean - free), output[:, channels:]], dim=1)
            if not learned:
                output = output[:, :channels]
            x = scheduler.step(output, step, x, generator=generator).prev_sample
    return x


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    modes = {part: part.training for part in model.modules()} if isinstance(model, nn.Module) else {}
    for part in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


class DiffusersModel(nn.Module):
    """A model of diffusers as `model(x, t)` or `model(x, t, y)`, tensors in and out.

        model = DiffusersModel(DiTTransformer2DModel.from_pretrained("facebook/DiT-XL-2-256", subfolder="transformer"))

    Args:
        model: such as `UNet2DModel` or `DiTTransformer2DModel`: called with `timestep` and, if there are labels,
            `class_labels`; returns an object with `sample`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        if not hasattr(model, "config"):
            raise TypeError(f"a model of diffusers has a config, {type(model).__name__} has none")
        self.model = model

    @property
    def num_classes(self) -> int | None:
        """Number of classes and, by the convention of DiT, the null label; None without classes."""
        config: Any = self.model.config
        for name in ("num_embeds_ada_norm", "num_class_embeds"):
            if getattr(config, name, None) is not None:
                return getattr(config, name)
        return None

    def forward(
        self,
        x: Float[Tensor, "batch channels *size"],
        t: Int64[Tensor, "batch"],
        y: Int64[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch out *size"]:
        labels = {} if y is None else {"class_labels": y}
        return self.model(x, timestep=t, **labels).sample
