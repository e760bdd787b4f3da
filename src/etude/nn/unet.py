"""The U-Net of diffusion models, whose blocks can be read one by one.

Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis" (ADM), NeurIPS 2021, arXiv:2105.05233, after
Ho, Jain & Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, arXiv:2006.11239.

With N = GroupNorm, s = SiLU and the embedding e of the timestep, a residual block computes

    h = conv3(s(N(x))),    (g, c) = W s(e),    out = skip(x) + conv3_0(dropout(s(N(h) (1 + g) + c)))             (1)

where conv3_0 starts at zero and a change of resolution stands between the first s and its convolution, and in the
skip. Attention is out = x + W_0 softmax(q k^T / sqrt(d)) v over N(x), whose channels are split into heads first and
into q, k, v inside each head. Every encoder block's output is kept and concatenated to the input of the decoder block
that mirrors it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Real
from torch import Tensor, nn

from etude.nn.diffusion import timestep_embedding

__all__ = ["AttentionBlock", "ResBlock", "UNet"]

_SCALES = {"same": 1.0, "down": 0.5, "up": 2.0}


def _resampled(x: Tensor, how: str) -> Tensor:
    """Twice or half as large (nearest neighbour, 2 x 2 means), or as it is."""
    if how == "same":
        return x
    return F.avg_pool2d(x, 2) if how == "down" else F.interpolate(x, scale_factor=2, mode="nearest")


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """A residual block with a timestep, Eq. (1).

    A module set as `router` is called as `router(x, t, self.block, emb)` in place of `self.block(x, emb)`: it decides
    what of `x` the block sees at the timesteps `t`, and what goes round it.

    Args:
        in_channels, out_channels: of the maps; the skip is a 1 x 1 convolution if they differ.
        emb_dim: of the timestep's embedding.
        resample: "same", "down" (half the side) or "up" (twice).
        norm_groups: groups of the normalisation.
        dropout: probability, before the last convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, emb_dim: int, *, resample: str = "same", norm_groups: int = 32,
        dropout: float | int = 0.0,
    ):  # fmt: skip
        super().__init__()
        if resample not in _SCALES:
            raise ValueError(f"resample must be one of {', '.join(_SCALES)}, got {resample!r}")
        self.in_channels, self.out_channels, self.resample = in_channels, out_channels, resample
        self.norm1 = nn.GroupNorm(norm_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(norm_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.router: nn.Module | None = None

    def shortcut(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        """skip(x) of Eq. (1)."""
        return self.skip(_resampled(x, self.resample))

    def residual(
        self, x: Float[Tensor, "batch channels height width"], emb: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch out rows columns"]:
        """What Eq. (1) adds to skip(x)."""
        h = self.conv1(_resampled(F.silu(self.norm1(x)), self.resample))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.conv2(self.dropout(F.silu(h)))

    def block(
        self, x: Float[Tensor, "batch channels height width"], emb: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch out rows columns"]:
        """Eq. (1), without the router."""
        return self.shortcut(x) + self.residual(x, emb)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], t: Real[Tensor, "batch"], emb: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch out rows columns"]:
        return self.block(x, emb) if self.router is None else self.router(x, t, self.block, emb)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, with a residual connection.

    A module set as `router` is called as `router(x, t, self.block)`, as in `ResBlock`.

    Args:
        channels: of the maps. head_channels: of each head. norm_groups: groups of the normalisation.
    """

    def __init__(self, channels: int, *, head_channels: int = 64, norm_groups: int = 32):
        super().__init__()
        self.in_channels = self.out_channels = channels
        self.num_heads = channels // head_channels
        self.norm = nn.GroupNorm(norm_groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = _zeroed(nn.Conv2d(channels, channels, 1))
        self.router: nn.Module | None = None

    def block(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Attention and its residual connection, without the router."""
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b (head three d) h w -> three b head (h w) d", head=self.num_heads, three=3)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(rearrange(mixed, "b head (h w) d -> b (head d) h w", h=x.shape[2]))

    def forward(
        self, x: Float[Tensor, "batch channels height width"], t: Real[Tensor, "batch"], emb: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch channels height width"]:
        return self.block(x) if self.router is None else self.router(x, t, self.block)


class _Resample(nn.Module):
    """A change of resolution by a 3 x 3 convolution of its own."""

    def __init__(self, channels: int, how: str):
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if how == "down" else 1, padding=1)

    def forward(self, x: Tensor, t: Tensor, emb: Tensor) -> Tensor:
        return self.conv(_resampled(x, "up") if self.how == "up" else x)


class _Stem(nn.Conv2d):
    def forward(self, x: Tensor, t: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class _Block(nn.ModuleList):
    """Modules that stand between two of the U-Net's numbered outputs."""

    def forward(self, x: Tensor, t: Tensor, emb: Tensor) -> Tensor:
        for module in self:
            x = module(x, t, emb)
        return x


class UNet(nn.Module, PyTorchModelHubMixin):
    """The ADM U-Net; its blocks are numbered 1, 2, ... from the stem over the middle to the last decoder block.

        unet = UNet(1, 1, base_channels=16, norm_groups=8, head_channels=16)
        unet(x, t)                               # what the network says of the noise in x at the timesteps t
        unet.features(x, t, [4, 8])              # the outputs of blocks 4 and 8; nothing after block 8 is computed

    A block's output is what it hands on: a residual block with the attention after it, if any, is one block, and so is
    a decoder block with its up-sampling. With `resample_in_block` a down-sampling residual block is a block of its own.
    `UNet(3, 6, base_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), attention_levels=(3, 4, 5))` is ADM's unconditional
    network for 256 x 256 pixels, 552,814,086 parameters in 37 blocks.

    Args:
        in_channels, out_channels: of the images and of the output (twice as many if a variance is learned).
        base_channels: width that `channel_mult` multiplies.
        channel_mult: width of each level in multiples of that; each level has half the side of the one before.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attention_levels: levels with attention after each residual block, the first level being 0, so that one
            network serves images of any side. The middle block always has one.
        head_channels: channels of an attention head.
        norm_groups: groups of the normalisations.
        resample_in_block: change resolution inside a residual block, as ADM does, or by a convolution.
        dropout: probability inside residual blocks.
        sinusoids: cosines and sines of the timestep, even; base_channels if None. time_dim: of the embedding made of
            them; 4 * base_channels if None.

    Raises:
        ValueError: if a number is out of range, or `norm_groups` or `head_channels` does not divide a width it meets.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        base_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (2,),
        head_channels: int = 64,
        norm_groups: int = 32,
        resample_in_block: bool = True,
        dropout: float | int = 0.0,
        sinusoids: int | None = None,
        time_dim: int | None = None,
    ):
        super().__init__()
        levels = len(channel_mult)
        sinusoids = base_channels if sinusoids is None else sinusoids
        emb_dim = 4 * base_channels if time_dim is None else time_dim
        counts = {
            "in_channels": in_channels, "out_channels": out_channels, "base_channels": base_channels,
            "num_res_blocks": num_res_blocks, "head_channels": head_channels, "norm_groups": norm_groups,
            "sinusoids": sinusoids, "time_dim": emb_dim,
        }  # fmt: skip
        _check(counts, levels, attention_levels)
        self.in_channels, self.out_channels, self.sinusoids, self.levels = in_channels, out_channels, sinusoids, levels
        self.time_embed = nn.Sequential(nn.Linear(sinusoids, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))

        def residual(source: int, target: int, resample: str = "same") -> ResBlock:
            for width in (source, target):
                _divides("norm_groups", norm_groups, width)
            return ResBlock(source, target, emb_dim, resample=resample, norm_groups=norm_groups, dropout=dropout)

        def attention(width: int) -> AttentionBlock:
            _divides("head_channels", head_channels, width)
            return AttentionBlock(width, head_channels=head_channels, norm_groups=norm_groups)

        def resampler(width: int, how: str) -> nn.Module:
            return residual(width, width, how) if resample_in_block else _Resample(width, how)

        width = base_channels * channel_mult[0]
        shapes = [(width, 0)]
        self.input_blocks = nn.ModuleList([_Block([_Stem(in_channels, width, 3, padding=1)])])
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                parts: list[nn.Module] = [residual(width, mult * base_channels)]
                width = mult * base_channels
                if level in attention_levels:
                    parts.append(attention(width))
                self.input_blocks.append(_Block(parts))
                shapes.append((width, level))
            if level < levels - 1:
                self.input_blocks.append(_Block([resampler(width, "down")]))
                shapes.append((width, level + 1))
        skips = [channels for channels, _ in shapes]
        self.middle_block = _Block([residual(width, width), attention(width), residual(width, width)])
        shapes.append((width, levels - 1))
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for number in range(num_res_blocks + 1):
                parts = [residual(width + skips.pop(), mult * base_channels)]
                width = mult * base_channels
                if level in attention_levels:
                    parts.append(attention(width))
                above = level > 0 and number == num_res_blocks
                if above:
                    parts.append(resampler(width, "up"))
                self.output_blocks.append(_Block(parts))
                shapes.append((width, level - above))
        self._shapes = tuple(shapes)
        self.out = nn.Sequential(
            nn.GroupNorm(norm_groups, width), nn.SiLU(), _zeroed(nn.Conv2d(width, out_channels, 3, padding=1))
        )

    @property
    def num_blocks(self) -> int:
        return len(self._shapes)

    def block_names(self) -> list[str]:
        """Paths of the blocks' modules, in the order of their numbers: entry b - 1 is block b."""
        return [
            *(f"input_blocks.{index}" for index in range(len(self.input_blocks))),
            "middle_block",
            *(f"output_blocks.{index}" for index in range(len(self.output_blocks))),
        ]

    def block_shapes(self, size: int | tuple[int, int]) -> list[tuple[int, int, int]]:
        """Channels, height and width of every block's output for images of that side, or (height, width).

        Raises:
            ValueError: if the side cannot be halved as often as the network does.
        """
        height, width = (size, size) if isinstance(size, int) else size
        self._check_sides(height, width)
        return [(channels, height >> level, width >> level) for channels, level in self._shapes]

    def forward(
        self, x: Float[Tensor, "batch channels height width"], t: Real[Tensor, "batch"]
    ) -> Float[Tensor, "batch out height width"]:
        """The network's output for noisy images `x` at timesteps `t`.

        Raises:
            ValueError: if the images have other channels, or a side that cannot be halved as often as needed.
        """
        h = x
        for h in self._walk(x, t):  # noqa: B007 (the last one counts)
            pass
        return self.out(h)

    def features(
        self, x: Float[Tensor, "batch channels height width"], t: Real[Tensor, "batch"], blocks: Iterable[int]
    ) -> dict[int, Tensor]:
        """Outputs of the numbered blocks; nothing after the last of them is computed.

        Args:
            x, t: as for `forward`.
            blocks: numbers, 1 to `num_blocks`.

        Raises:
            IndexError: if a number is out of range.
            ValueError: as for `forward`, or if there are no numbers.
        """
        wanted = set(blocks)
        if not wanted:
            raise ValueError("blocks is empty: name at least one block")
        for block in sorted(wanted):
            if not 1 <= block <= self.num_blocks:
                raise IndexError(f"block must lie in 1..{self.num_blocks}, got {block}")
        found: dict[int, Tensor] = {}
        for number, h in enumerate(self._walk(x, t), start=1):
            if number in wanted:
                found[number] = h
            if number == max(wanted):
                break
        return found

    def _walk(self, x: Tensor, t: Tensor) -> Iterator[Tensor]:
        """Outputs of the blocks one after another, each computed when it is asked for."""
        if x.shape[1] != self.in_channels:
            raise ValueError(f"the network takes {self.in_channels} channels, got images of shape {tuple(x.shape)}")
        self._check_sides(*x.shape[2:])
        dtype = next(self.time_embed.parameters()).dtype
        emb = self.time_embed(timestep_embedding(t, self.sinusoids).to(dtype))
        skips = []
        h = x
        for module in self.input_blocks:
            h = module(h, t, emb)
            skips.append(h)
            yield h
        h = self.middle_block(h, t, emb)
        yield h
        for module in self.output_blocks:
            h = module(torch.cat([h, skips.pop()], dim=1), t, emb)
            yield h

    def _check_sides(self, height: int, width: int) -> None:
        unit = 2 ** (self.levels - 1)
        if height % unit or width % unit or not height * width:
            valid = tuple(max(1, math.ceil(side / unit)) * unit for side in (height, width))
            raise ValueError(
                f"the sides must be multiples of {unit} (2^(levels - 1)), got {height} x {width}; "
                f"the next valid size is {valid[0]} x {valid[1]}"
            )


def _check(counts: dict[str, int], levels: int, attention_levels: Sequence[int]) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")
    if counts["sinusoids"] % 2:
        raise ValueError(f"sinusoids must be even (half cosines, half sines), got {counts['sinusoids']}")
    if levels < 1:
        raise ValueError("channel_mult needs at least one level, got none")
    wrong = [level for level in attention_levels if not 0 <= level < levels]
    if wrong:
        raise ValueError(f"attention_levels must lie in 0..{levels - 1}, got {wrong}")


def _divides(name: str, value: int, width: int) -> None:
    if width % value:
        raise ValueError(f"{name} = {value} does not divide a width of {width} channels")
