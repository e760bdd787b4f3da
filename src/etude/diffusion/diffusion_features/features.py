"""Features of a diffusion model at chosen blocks and timesteps.

An image x_0 in [-1, 1] is noised to timestep t with fresh Gaussian noise, in training and in use,

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,                                                         (1)

the frozen model runs on (x_t, t) up to block b, and the feature is that block's output f_b.
"""

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from etude.diffusion.diffusion_features.blocks import block_model
from etude.loop.evaluation import device_of, mode

__all__ = ["DiffusionFeatures", "Place", "to_signed"]

Place = tuple[int, int]
"""(timestep, block)."""

_ROUNDING = 1e-4
"""How far a pixel may lie beyond [-1, 1]: resizing in float32 rounds."""


def to_signed(pixels: Any) -> Float[Tensor, "n channels height width"]:
    """Images in [-1, 1] from bytes, or from floats in [0, 1].

        features(to_signed(data.test.inputs))

    Args:
        pixels: uint8 or floating point, tensor or array (n, channels, height, width).

    Raises:
        TypeError: for another dtype.
        ValueError: for floats outside [0, 1] or another shape.
    """
    x = torch.as_tensor(pixels)
    if x.ndim != 4:
        raise ValueError(f"pixels must have shape (n, channels, height, width), got {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return x.to(torch.float32) / 127.5 - 1
    if not x.is_floating_point():
        raise TypeError(f"pixels must be uint8 or floating point, got {x.dtype}")
    low, high = _range(x)
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise ValueError(f"floating-point pixels must lie in [0, 1], got [{low:.4g}, {high:.4g}]")
    return (2 * x.to(torch.float32) - 1).clamp(-1, 1)


def _range(x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x) if x.numel() else (torch.zeros(()), torch.zeros(()))
    return float(low), float(high)


class DiffusionFeatures(nn.Module):
    """Maps of a diffusion model's blocks on noised images, Eq. (1).

        features = DiffusionFeatures(unet, DDPMScheduler(), blocks=[24], timesteps=[90], pool=2)
        features(images)[90, 24]                                       # (n, 1024, 2, 2)

    One forward per timestep, which ends at the last block asked for. The model runs without gradients and in
    evaluation mode, whatever mode it is in, and is left as it was.

    Args:
        unet: what `block_model` takes: our `UNet`, a U-Net or DiT of diffusers, `HookedBlocks`.
        diffusion: the scheduler of diffusers whose noise the model was trained to remove.
        blocks: numbers of the blocks, 1 to `num_blocks`.
        timesteps: of training, 0 (the least noise) to `num_train_timesteps` - 1.
        pool: average each map over pool x pool cells, before it is stored; None leaves it as it is.
        generator: of the noise; the default one of the device if None.
        check_range: refuse images outside [-1, 1]; False for latents.
        dtype: of the model's forward, as float16 for a model in half precision; features are float32 always.

    Raises:
        IndexError: if a block or a timestep is out of range.
        TypeError: if they are not integers, or the model has no numbered blocks.
        ValueError: if there are none, or `pool` is not positive.
    """

    def __init__(
        self,
        unet: nn.Module,
        diffusion: Any,
        *,
        blocks: Iterable[Any],
        timesteps: Iterable[Any],
        pool: int | None = None,
        generator: torch.Generator | None = None,
        check_range: bool = True,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        model = block_model(unet)
        assert isinstance(model, nn.Module)
        self.unet: Any = model
        self.diffusion, self.generator, self.check_range, self.dtype = diffusion, generator, check_range, dtype
        self.blocks = _integers("block", blocks, 1, self.unet.num_blocks)
        self.timesteps = _integers("t", timesteps, 0, diffusion.config.num_train_timesteps - 1)
        if pool is not None and pool < 1:
            raise ValueError(f"pool must be positive, got {pool}")
        self.pool = pool

    @property
    def places(self) -> list[Place]:
        """(timestep, block), in the order in which features come."""
        return [(t, block) for t in self.timesteps for block in self.blocks]

    def over(
        self, blocks: Sequence[int] | None = None, timesteps: Sequence[int] | None = None, pool: int | None = None
    ) -> "DiffusionFeatures":
        """The same model read elsewhere; `pool` stays if None."""
        return DiffusionFeatures(
            self.unet, self.diffusion, blocks=self.blocks if blocks is None else blocks,
            timesteps=self.timesteps if timesteps is None else timesteps, pool=self.pool if pool is None else pool,
            generator=self.generator, check_range=self.check_range, dtype=self.dtype,
        )  # fmt: skip

    def __sklearn_clone__(self) -> "DiffusionFeatures":
        return self  # a frozen model is shared, not copied

    def noised(self, x: Float[Tensor, "batch channels height width"], t: int) -> Tensor:
        """Eq. (1) with fresh noise, every image with its own."""
        generator = self.generator
        source = x.device if generator is None else generator.device
        noise = torch.randn(x.shape, generator=generator, device=source, dtype=x.dtype).to(x.device)
        return self.diffusion.add_noise(x, noise, torch.full((len(x),), t, device=x.device))

    @torch.no_grad()
    def forward(self, x: Shaped[Tensor, "batch channels height width"]) -> dict[Place, Tensor]:
        """(timestep, block) -> maps (batch, channels, height, width), float32.

        Raises:
            ValueError: if pixels lie outside [-1, 1], `pool` exceeds a map, or the model refuses the shape.
        """
        self.check(x)
        return self._read(x)

    def _read(self, x: Tensor) -> dict[Place, Tensor]:
        x = x.to(device_of(self.unet))
        found = {}
        with mode(self.unet, training=False):
            for t in self.timesteps:
                noisy = self.noised(x, t)
                if self.dtype is not None:
                    noisy = noisy.to(self.dtype)
                maps = self.unet.features(noisy, torch.full((len(x),), t, device=x.device), self.blocks)
                for block in self.blocks:
                    found[t, block] = self._pooled(maps[block].float(), block)
        return found

    def check(self, x: Tensor) -> None:
        """Refuses what was not scaled to [-1, 1].

        Raises:
            ValueError: with the range seen.
        """
        low, high = _range(x)
        if not x.is_floating_point():
            raise ValueError(f"images must be floats in [-1, 1], got {x.dtype} in [{low:g}, {high:g}]; see to_signed")
        if not self.check_range:
            return
        if not (low >= -1 - _ROUNDING and high <= 1 + _ROUNDING):
            raise ValueError(f"images must lie in [-1, 1], got [{low:.4g}, {high:.4g}]; see to_signed")
        if low >= 0 and high > 0:
            warnings.warn(
                f"no pixel is below 0 (they lie in [{low:.4g}, {high:.4g}]); images must be scaled to [-1, 1], see "
                f"to_signed",
                stacklevel=3,
            )

    def _pooled(self, maps: Tensor, block: int) -> Tensor:
        if self.pool is None:
            return maps
        if self.pool > min(maps.shape[2:]):
            raise ValueError(f"pool = {self.pool} exceeds the {maps.shape[2]} x {maps.shape[3]} map of block {block}")
        return F.adaptive_avg_pool2d(maps, self.pool)

    @torch.no_grad()
    def extract(
        self, images: Shaped[Tensor, "n channels height width"], *, noise_samples: int = 1, batch_size: int = 256
    ) -> dict[Place, Tensor]:
        """Features of many images on the CPU: the mean over `noise_samples` draws of the noise.

        Raises:
            ValueError: as `forward`, or if a number is not positive.
        """
        if noise_samples < 1 or batch_size < 1:
            raise ValueError(f"noise_samples and batch_size must be positive, got {noise_samples} and {batch_size}")
        self.check(images)
        parts = []
        for batch in images.split(batch_size):
            total = self._read(batch)
            for _ in range(noise_samples - 1):
                for place, maps in self._read(batch).items():
                    total[place] += maps
            parts.append({place: (maps / noise_samples).cpu() for place, maps in total.items()})
        return {place: torch.cat([part[place] for part in parts]) for place in self.places}


def _integers(name: str, values: Iterable[Any], low: int, high: int) -> tuple[int, ...]:
    found = []
    for value in values:
        if isinstance(value, bool):
            raise TypeError(f"{name} must be an integer in {low}..{high}, got {value!r}")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer in {low}..{high}, got {value!r}") from None
        if not low <= number <= high:
            raise IndexError(f"{name} must lie in {low}..{high}, got {number}")
        if number not in found:
            found.append(number)
    if not found:
        raise ValueError(f"give at least one {name}")
    return tuple(found)
