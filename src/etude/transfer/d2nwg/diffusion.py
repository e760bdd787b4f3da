"""Conditional diffusion of latents: noise schedule, loss, denoisers and sampler, thin over diffusers.

Ho, Jain & Abbeel, arXiv:2006.11239, 2020 (training and DDPM); Song, Meng & Ermon, arXiv:2010.02502, 2021 (DDIM);
the schedule of Rombach et al., arXiv:2112.10752, which Soro et al. took over: T = 1024,

    beta_t = (linspace(sqrt(.0015), sqrt(.0155), T)_t)^2,    abar_t = prod_{s <= t} (1 - beta_s)
    loss = E |eps - denoiser(sqrt(abar_t) z + sqrt(1 - abar_t) eps, t, c)|^2                               (1)
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, DDPMScheduler

__all__ = ["MLPDenoiser", "UNetDenoiser", "ddim", "ddpm", "noise_loss", "sample", "timestep_features"]

_SCHEDULE: dict[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155, "prediction_type": "epsilon",
    "clip_sample": False,  # latents have no bounds; diffusers would clip at 1
}  # fmt: skip
_MISSING = "the diffusion needs diffusers: pip install 'etude[transfer]'"


def ddpm(timesteps: int = 1024) -> "DDPMScheduler":
    """The schedule with ancestral sampling; the variance of a step is that of the posterior."""
    try:
        from diffusers import DDPMScheduler
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return DDPMScheduler(num_train_timesteps=timesteps, variance_type="fixed_small", **_SCHEDULE)


def ddim(timesteps: int = 1024) -> "DDIMScheduler":
    """The schedule with DDIM sampling, from the last step on: diffusers' default would begin below full noise."""
    try:
        from diffusers import DDIMScheduler
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return DDIMScheduler(num_train_timesteps=timesteps, timestep_spacing="trailing", set_alpha_to_one=True, **_SCHEDULE)


def timestep_features(t: Int64[Tensor, "batch"], dim: int) -> Float[Tensor, "batch dim"]:
    """Cosines and sines of t at `dim / 2` frequencies from 1 down to nearly 1/10,000."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLPDenoiser(nn.Module):
    """A perceptron on [z_t, c, features of t], for small latents.

    Args:
        latent_dim: numbers of a latent; other shapes are flattened.
        cond_dim: numbers of the condition.
        hidden: width of the hidden layers. depth: their number.
        time_dim: features of t, even.
    """

    def __init__(self, latent_dim: int, cond_dim: int, *, hidden: int = 256, depth: int = 2, time_dim: int = 64):
        super().__init__()
        if time_dim < 2 or time_dim % 2 or depth < 1:
            raise ValueError(f"time_dim must be even and depth positive, got {time_dim} and {depth}")
        self.latent_dim, self.cond_dim, self.time_dim = latent_dim, cond_dim, time_dim
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(hidden if index else latent_dim + cond_dim + time_dim, hidden), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden, latent_dim))

    def forward(
        self, z: Float[Tensor, "batch *latent"], t: Int64[Tensor, "batch"], cond: Float[Tensor, "batch cond"]
    ) -> Float[Tensor, "batch *latent"]:
        flat = torch.cat([z.flatten(1), cond, timestep_features(t, self.time_dim)], dim=-1)
        return self.net(flat).view_as(z)


class UNetDenoiser(nn.Module):
    """A U-Net on latents laid out as a square image; the condition is a second channel, or is attended to.

    The published sizes: latents (4, 16, 16) as 32 x 32, 256 channels times (1, 1, 1, 2), attention at a quarter and
    an eighth of the side, 2 residual blocks, scale-shift normalisation. Heads have 128 channels each, so that the
    256-channel level has 2 heads.

    Args:
        latent_shape: of a latent, as many numbers as a square has.
        cond_dim: numbers of the condition; with "concat" as many as the latent's.
        conditioning: "concat" (published) or "cross" (attention to the condition as one token).
        channels: of the levels; attention stands in the last two.
        head_dim: channels of a head.
    """

    def __init__(
        self,
        latent_shape: Sequence[int],
        cond_dim: int,
        *,
        conditioning: str = "concat",
        channels: Sequence[int] = (256, 256, 256, 512),
        head_dim: int = 128,
    ):
        super().__init__()
        try:
            from diffusers import UNet2DConditionModel, UNet2DModel
        except ImportError as error:
            raise ImportError(_MISSING) from error
        numbers = math.prod(latent_shape)
        self.side = math.isqrt(numbers)
        if self.side**2 != numbers or self.side % 2 ** (len(channels) - 1):
            raise ValueError(
                f"a latent must fill a square whose side is a multiple of {2 ** (len(channels) - 1)}, "
                f"got {tuple(latent_shape)}"
            )
        if conditioning not in ("concat", "cross"):
            raise ValueError(f"conditioning must be 'concat' or 'cross', got {conditioning!r}")
        if conditioning == "concat" and cond_dim != numbers:
            raise ValueError(f"a condition beside the latent has its {numbers} numbers, got {cond_dim}")
        self.conditioning = conditioning
        plain = max(len(channels) - 2, 0)
        attended = len(channels) - plain
        common: dict[str, Any] = {
            "sample_size": self.side, "out_channels": 1, "block_out_channels": tuple(channels), "layers_per_block": 2,
            "norm_num_groups": math.gcd(32, *channels), "resnet_time_scale_shift": "scale_shift",
            "attention_head_dim": head_dim,
        }  # fmt: skip
        if conditioning == "concat":
            self.net: Any = UNet2DModel(
                in_channels=2, down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D",) * attended,
                up_block_types=("AttnUpBlock2D",) * attended + ("UpBlock2D",) * plain, **common,
            )  # fmt: skip
        else:
            # diffusers calls the number of heads `attention_head_dim` here.
            common["attention_head_dim"] = max(channels[-1] // head_dim, 1)
            self.net = UNet2DConditionModel(
                in_channels=1, cross_attention_dim=cond_dim,
                down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * attended,
                up_block_types=("CrossAttnUpBlock2D",) * attended + ("UpBlock2D",) * plain, **common,
            )  # fmt: skip

    def forward(
        self, z: Float[Tensor, "batch *latent"], t: Int64[Tensor, "batch"], cond: Float[Tensor, "batch cond"]
    ) -> Float[Tensor, "batch *latent"]:
        image = z.reshape(len(z), 1, self.side, self.side)
        if self.conditioning == "concat":
            image = torch.cat([image, cond.view_as(image)], dim=1)
            return self.net(image, t).sample.view_as(z)
        return self.net(image, t, cond[:, None]).sample.view_as(z)


def noise_loss(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    scheduler: Any,
    z0: Float[Tensor, "batch *latent"],
    cond: Float[Tensor, "batch cond"],
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Eq. (1), a step t and noise drawn for each row.

    Args:
        denoiser: (z_t, t, cond) -> noise.
        scheduler: of diffusers, with `add_noise`.
        generator: on the CPU.
    """
    t = torch.randint(scheduler.config.num_train_timesteps, (len(z0),), generator=generator).to(z0.device)
    noise = torch.randn(z0.shape, generator=generator).to(z0)
    return (denoiser(scheduler.add_noise(z0, noise, t), t, cond) - noise).square().mean()


@torch.no_grad()
def sample(
    denoiser: Callable[[Tensor, Tensor, Tensor], Tensor],
    scheduler: Any,
    shape: Sequence[int],
    cond: Float[Tensor, "batch cond"],
    *,
    steps: int = 64,
    eta: float | int = 0.0,
    generator: torch.Generator,
) -> Float[Tensor, "batch *latent"]:
    """Latents from noise, one for each row of the condition.

    Args:
        denoiser: (z_t, t, cond) -> noise.
        scheduler: `ddim()` or `ddpm()`.
        shape: of one latent.
        cond: conditions.
        steps: of the sampler; divides the steps of training, so that strides are equal. DDPM takes all.
        eta: of DDIM: 0 deterministic, 1 with the variance of DDPM.
        generator: of the noise, on the CPU.

    Raises:
        ValueError: if there are no steps or no conditions, or the number of steps does not divide that of training.
    """
    trained = scheduler.config.num_train_timesteps
    if steps < 1 or trained % steps:
        raise ValueError(f"steps must be at least 1 and divide the {trained} steps of training, got {steps}")
    if len(cond) == 0:
        raise ValueError("there is no condition to sample for: the budget of samples is 0")
    options = {"eta": float(eta)} if "eta" in inspect.signature(scheduler.step).parameters else {}
    if not options and steps != trained:
        raise ValueError(f"DDPM takes all {trained} steps, got {steps}")
    scheduler.set_timesteps(steps)
    z = torch.randn((len(cond), *shape), generator=generator).to(cond)
    for t in scheduler.timesteps.tolist():
        times = torch.full((len(z),), t, device=z.device)
        noise = denoiser(z, times, cond)
        z = scheduler.step(noise, t, z, generator=generator, **options).prev_sample
    return z
