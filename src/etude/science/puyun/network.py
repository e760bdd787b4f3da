"""The network: two states of the atmosphere in, the next one out.

Patches of both frames are embedded together, stages of large-kernel attention follow, and what they add to the last
frame is the forecast:

    x_{t+1} = x_t + PixelShuffle( Conv1x1( [stage_1, ..., stage_L] ) )                                             (1)

The last convolution begins at zero, so that an untrained network is persistence.

How stages are joined is no settled matter: the abstract calls the network a fully convolutional one of large kernels
and gives no drawing. `fusion="concat"`, all stages' outputs side by side as in Eq. (1), is the default; with
`fusion="unet"` the stages in the middle work at coarser resolutions and each rise takes in the output of the stage
that descended from there.
"""

from collections.abc import Sequence

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etude.science.puyun.attention import LKABlock, Pointwise, lka_kernels
from etude.science.puyun.geometry import SphericalPad2d

__all__ = ["PUYUN_CHANNELS", "PUYUN_LEVELS", "PuYun", "time_encoding"]

PUYUN_LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
"""Pressure levels of the published model, in hPa."""
PUYUN_CHANNELS = (
    *(f"{name}{level}" for name in "ztuvr" for level in PUYUN_LEVELS), "t2m", "u10", "v10", "msl",
)  # fmt: skip
"""The 69 channels of the published model, in their order."""
_UNIT = np.timedelta64(1, "s")


def time_encoding(times: np.ndarray, hours: float | int = 6, two_pi: bool = True) -> Float[Tensor, "batch 12"]:
    """Features of the times before, at and after each of `times`.

    For t - hours, t and t + hours: with d = day of the year / 366 (1 January is 1 / 366) and h = hour / 24, the
    numbers sin(d), sin(h), cos(d), cos(h).

    Args:
        times: (batch,) of datetime64, the time of the last frame.
        hours: of one step.
        two_pi: take the angles 2 pi d and 2 pi h, so that the year and the day close. False is what the authors'
            inference code does: sine and cosine of the fractions themselves.

    Raises:
        ValueError: if `times` are no datetimes or `hours` not positive.
    """
    times = np.asarray(times)
    if times.dtype.kind != "M" or times.ndim != 1 or np.isnat(times).any():
        raise ValueError(f"times must be datetime64 of shape (batch,), got {times.dtype} of shape {times.shape}")
    if hours <= 0:
        raise ValueError(f"hours must be positive, got {hours}")
    step = np.timedelta64(round(3600 * hours), "s")
    around = times.astype("datetime64[s]")[:, None] + step * np.arange(-1, 2)
    day = around.astype("datetime64[D]")
    day_of_year = (day - around.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.int64) + 1
    hour = (around - day) / _UNIT // 3600
    angles = np.stack([day_of_year / 366, hour / 24], axis=-1) * (2 * np.pi if two_pi else 1.0)
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    return torch.from_numpy(features.reshape(len(times), 12).astype(np.float32))


class PuYun(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2409.02123"):
    """A forecaster of one step: (two frames, features of time) -> the next frame, all standardised.

        model = PuYun(3, grid=(32, 64), patch_size=2, dim=32, depths=(2, 2), kernel_size=15, time_dim=0)
        following = model(frames)                       # (batch, 2, 3, 32, 64) -> (batch, 3, 32, 64)

    Args:
        num_channels: fields of a state.
        grid: (latitudes, longitudes).
        patch_size: cells of a token in each direction; 4 suits 0.25 degrees.
        dim: channels of a token; the published width is not known, 768 stands for it.
        depths: blocks of each stage.
        kernel_size, dilation: of the attention, in tokens.
        mlp_ratio, mlp_conv: of the blocks' perceptrons.
        padding: "sphere", "replicate" or "zeros".
        time_dim: length of the features of time; 0 for a world without seasons and days.
        fusion: "concat" or "unet".
        num_statics: static maps (land-sea mask, orography, ...) as further inputs; give them with `set_statics`.
        position_bias: a learned bias for each token.
        uneven: what is done with latitudes that the patches do not divide. "refuse"; "crop" leaves out the last row
            if it is the only one too many (the south pole of 721 rows) and interpolates its forecast across the pole
            from the row before; "pad" goes on across the south pole up to a whole patch. The default crops where that
            is all it takes.
        checkpoint_blocks: recompute the blocks in the backward pass, for memory.

    Raises:
        ValueError: for a grid that the patches do not divide, an odd number of columns with sphere padding, or an
            argument out of range.
    """

    def __init__(
        self,
        num_channels: int,
        grid: Sequence[int] = (721, 1440),
        patch_size: int = 4,
        dim: int = 768,
        depths: Sequence[int] = (12, 12, 12, 12),
        kernel_size: int = 21,
        dilation: int = 3,
        mlp_ratio: int = 4,
        mlp_conv: bool = True,
        padding: str = "sphere",
        time_dim: int = 12,
        fusion: str = "concat",
        num_statics: int = 0,
        position_bias: bool = True,
        uneven: str = "crop",
        checkpoint_blocks: bool = False,
    ):
        super().__init__()
        self.statics: Tensor | None
        if min(num_channels, patch_size, dim) < 1 or not depths or min(depths) < 1 or num_statics < 0:
            raise ValueError(
                f"num_channels, patch_size, dim and depths must be positive, got {num_channels}, {patch_size}, {dim}, "
                f"{tuple(depths)}; num_statics must not be negative, got {num_statics}"
            )
        if fusion not in ("concat", "unet"):
            raise ValueError(f"fusion must be 'concat' or 'unet', got {fusion!r}")
        self.grid, self.num_channels, self.patch_size = (grid[0], grid[1]), num_channels, patch_size
        self.fusion, self.time_dim, self.checkpoint_blocks = fusion, time_dim, checkpoint_blocks
        self.extra_rows = _extra_rows(self.grid, patch_size, uneven)
        rows, columns = (grid[0] + self.extra_rows) // patch_size, grid[1] // patch_size
        if padding == "sphere" and columns % 2:
            raise ValueError(
                f"padding across the poles needs an even number of columns of tokens, got {columns} "
                f"({grid[1]} longitudes, patches of {patch_size})"
            )
        self.embed = nn.Conv2d(2 * num_channels + num_statics, dim, patch_size, patch_size)
        self.position = nn.Parameter(torch.zeros(dim, rows, columns)) if position_bias else None
        self.register_buffer("statics", torch.zeros(num_statics, *self.grid) if num_statics else None)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                LKABlock(
                    dim, kernel_size, dilation, mlp_ratio=mlp_ratio, mlp_conv=mlp_conv, padding=padding,
                    time_dim=time_dim,
                )
                for _ in range(depth)
            )
            for depth in depths
        )  # fmt: skip
        # How many times each stage's map is halved: 0, 1, ..., 1, 0.
        self.coarseness = [min(i, len(depths) - 1 - i) if fusion == "unet" else 0 for i in range(len(depths))]
        factor = 2 ** max(self.coarseness)
        if rows % factor or columns % (2 * factor if padding == "sphere" else factor):
            raise ValueError(
                f"the U shape halves {rows} x {columns} tokens {max(self.coarseness)} times: not divisible"
            )
        reach = dilation * (lka_kernels(kernel_size, dilation)[1] - 1) // 2
        if padding == "sphere" and reach > rows // factor:
            raise ValueError(
                f"the kernel reaches {reach} tokens across the pole, of {rows // factor} rows of tokens: take a "
                "smaller kernel_size or patch_size"
            )
        self.moves = nn.ModuleList(self._move(dim, a, b) for a, b in zip(self.coarseness, self.coarseness[1:]))
        rises = sum(a > b for a, b in zip(self.coarseness, self.coarseness[1:]))
        self.joins = nn.ModuleList(Pointwise(2 * dim, dim) for _ in range(rises))
        width = dim * len(depths) if fusion == "concat" else dim
        self.head = Pointwise(width, num_channels * patch_size**2)
        self.shuffle = nn.PixelShuffle(patch_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @staticmethod
    def _move(dim: int, before: int, after: int) -> nn.Module:
        if after > before:
            return nn.Conv2d(dim, dim, 2, 2)
        if after < before:
            return nn.Sequential(Pointwise(dim, 4 * dim), nn.PixelShuffle(2))
        return nn.Identity()

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def set_statics(self, maps: Float[Tensor, "statics height width"]) -> "PuYun":
        """Gives the static maps, standardised; they are kept with the weights.

        Raises:
            ValueError: if their shape is not (num_statics, *grid) or they hold NaN.
        """
        expected = () if self.statics is None else tuple(self.statics.shape)
        if self.statics is None or tuple(maps.shape) != expected:
            raise ValueError(f"statics must have shape {expected}, got {tuple(maps.shape)}")
        if not bool(maps.isfinite().all()):
            raise ValueError("statics hold NaN or infinite values")
        self.statics.copy_(maps)
        return self

    def forward(
        self,
        x: Float[Tensor, "batch 2 channels height width"],
        time_features: Float[Tensor, "batch features"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        if tuple(x.shape[2:]) != (self.num_channels, *self.grid):
            raise ValueError(
                f"frames must have shape (batch, 2, {self.num_channels}, *{self.grid}), got {tuple(x.shape)}"
            )
        if self.time_dim and (time_features is None or time_features.shape[-1] != self.time_dim):
            given = None if time_features is None else tuple(time_features.shape)
            raise ValueError(f"time_features must have shape (batch, {self.time_dim}), got {given}")
        frames = x.flatten(1, 2)
        if self.statics is not None:
            frames = torch.cat([frames, self.statics.expand(len(x), -1, -1, -1)], dim=1)
        tokens = self.embed(self._whole_patches(frames)).contiguous(memory_format=torch.channels_last)
        if self.position is not None:
            tokens = tokens + self.position[None].contiguous(memory_format=torch.channels_last)
        change = self.shuffle(self.head(self._features(tokens, time_features)))
        return x[:, 1] + self._whole_grid(change)

    def _features(self, tokens: Tensor, time_features: Tensor | None) -> Tensor:
        outputs: list[Tensor] = []
        waiting: list[Tensor] = []
        joins = iter(self.joins)
        for index, stage in enumerate(self.stages):
            if index:
                before, after = self.coarseness[index - 1 : index + 1]
                if after > before:
                    waiting.append(tokens)
                tokens = self.moves[index - 1](tokens)
                if after < before:
                    tokens = next(joins)(torch.cat([tokens, waiting.pop()], dim=1))
            for block in stage:  # type: ignore[attr-defined]
                if self.checkpoint_blocks and torch.is_grad_enabled():
                    tokens = checkpoint(block, tokens, time_features, use_reentrant=False)  # type: ignore[assignment]
                else:
                    tokens = block(tokens, time_features)
            outputs.append(tokens)
        return torch.cat(outputs, dim=1) if self.fusion == "concat" else tokens

    def _whole_patches(self, frames: Tensor) -> Tensor:
        if self.extra_rows < 0:
            return frames[..., : self.extra_rows, :]
        if self.extra_rows > 0:
            # Rows beyond the south pole only.
            return SphericalPad2d((self.extra_rows, 0))(frames)[..., self.extra_rows :, :]
        return frames

    def _whole_grid(self, change: Tensor) -> Tensor:
        if self.extra_rows > 0:
            return change[..., : -self.extra_rows, :]
        if self.extra_rows < 0:
            last = change[..., -1:, :]
            pole = (last + last.roll(last.shape[-1] // 2, dims=-1)) / 2
            return torch.cat([change, pole], dim=-2)
        return change


def _extra_rows(grid: tuple[int, int], patch_size: int, uneven: str) -> int:
    """Rows that are added to the grid (or, negative, left out) so that patches divide it."""
    if uneven not in ("refuse", "crop", "pad"):
        raise ValueError(f"uneven must be 'refuse', 'crop' or 'pad', got {uneven!r}")
    rows, columns = grid
    if min(grid) < patch_size or columns % patch_size:
        raise ValueError(f"patches of {patch_size} must divide the longitudes, got a grid of {rows} x {columns}")
    over = rows % patch_size
    if over == 0:
        return 0
    if uneven == "pad":
        return patch_size - over
    if uneven == "crop" and over == 1:
        return -1
    raise ValueError(
        f"patches of {patch_size} do not divide {rows} latitudes: choose another patch_size, or uneven='pad'"
    )
