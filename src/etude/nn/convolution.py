"""Convolutions over sequences: by FFT with kernels as long as the sequence, short ones, and kernels made by a network.

Poli et al., "Hyena hierarchy: towards larger convolutional language models", 2023, arXiv:2302.10866, for the implicit
filter.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ImplicitFilter", "ShortConv", "long_conv"]


def long_conv(
    x: Float[Tensor, "batch dim length"],
    kernel: Float[Tensor, "#batch dim taps"] | Float[Tensor, "dim taps"],
    *,
    circular: bool = False,
) -> Float[Tensor, "batch dim length"]:
    """y[t] = sum_s kernel[s] x[t - s] for each channel, in O(length log length).

    Args:
        x: a signal for each channel.
        kernel: (dim, length), or (batch, dim, length) if samples have kernels of their own.
        circular: whether t - s is taken modulo the length; if not, what precedes the signal is zero.

    Raises:
        ValueError: if signals and kernels differ in length or channels.
    """
    if kernel.shape[-2:] != x.shape[-2:]:
        raise ValueError(
            f"kernels must have channels and length of the signals, got {tuple(kernel.shape)} for {tuple(x.shape)}"
        )
    length = x.shape[-1]
    size = length if circular else 2 * length
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    product = torch.fft.rfft(x.to(dtype), n=size) * torch.fft.rfft(kernel.to(dtype), n=size)
    return torch.fft.irfft(product, n=size)[..., :length].to(x.dtype)


class ShortConv(nn.Module):
    """A depthwise convolution along the sequence with a few taps.

    Args:
        dim: features of a token.
        kernel_size: taps.
        padding: "causal": taps reach back only, into zeros before the start; "zeros": centred; "circular": centred,
            around the ends.
        bias: whether each feature has one.

    Raises:
        ValueError: for another padding, no tap, or an even number of taps that should be centred.
    """

    def __init__(self, dim: int, kernel_size: int = 3, *, padding: str = "causal", bias: bool = True):
        super().__init__()
        if padding not in ("causal", "zeros", "circular"):
            raise ValueError(f"padding must be causal, zeros or circular, got {padding!r}")
        if kernel_size < 1 or (padding != "causal" and kernel_size % 2 == 0):
            raise ValueError(f"kernel_size must be positive, and odd to be centred, got {kernel_size}")
        self.padding = padding
        self.conv = nn.Conv1d(dim, dim, kernel_size, groups=dim, bias=bias)

    def forward(self, x: Float[Tensor, "batch length dim"]) -> Float[Tensor, "batch length dim"]:
        taps = self.conv.kernel_size[0]
        before, after = (taps - 1, 0) if self.padding == "causal" else (taps // 2, taps // 2)
        signal = x.transpose(1, 2)
        if self.padding == "circular":  # F.pad wraps around once only; sequences may be shorter than that
            places = torch.arange(-before, x.shape[1] + after, device=x.device) % x.shape[1]
            signal = signal[..., places]
        else:
            signal = F.pad(signal, (before, after))
        return self.conv(signal).transpose(1, 2)

    def init_state(self, batch: int) -> Float[Tensor, "batch taps dim"]:
        """The last inputs, all zero before the first.

        Raises:
            TypeError: if the convolution is not causal.
        """
        self._check_causal()
        weight = self.conv.weight
        return weight.new_zeros(batch, self.conv.kernel_size[0] - 1, weight.shape[0])

    def step(
        self, x: Float[Tensor, "batch dim"], state: Float[Tensor, "batch taps dim"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch taps dim"]]:
        """The output for the next token and the state after it."""
        self._check_causal()
        window = torch.cat([state, x[:, None]], dim=1)
        y = torch.einsum("btd,dt->bd", window, self.conv.weight[:, 0])
        return y if self.conv.bias is None else y + self.conv.bias, window[:, 1:]

    def _check_causal(self) -> None:
        if self.padding != "causal":
            raise TypeError(f"a convolution with padding {self.padding!r} reads later tokens: it has no step form")


class ImplicitFilter(nn.Module):
    """Kernels as long as the sequence, made by a network of sines from the time: Hyena's filter.

    z(n) = [t, cos(f w), -sin(f w)] with t = n / (max_len - 1), w = 2 pi n / max_len and (emb_dim - 1) / 2 bands f
    from 1e-4 to their number less one; h = MLP(z) exp(-t |delta_d|), where delta_d lies evenly between ln(.01) / 1.5
    and ln(.01) / .3. Each layer of the MLP but the last is followed by sin(freq x), with one learnable freq for each
    hidden feature that all layers share; the last has no bias. Shorter kernels are the first rows of the longest.

    Args:
        dim: channels.
        max_len: longest kernel.
        hidden_dim: width of the network.
        emb_dim: features of the time, odd, at least 3.
        num_inner: hidden layers after the first.
        freq: of the sines, at first.
        decay: whether the kernels decay as above.

    Raises:
        ValueError: if `emb_dim` is even or below 3, or `max_len` below 1.
    """

    time: Tensor
    features: Tensor
    rates: Tensor

    def __init__(
        self,
        dim: int,
        max_len: int,
        *,
        hidden_dim: int = 64,
        emb_dim: int = 3,
        num_inner: int = 2,
        freq: float | int = 1.0,
        decay: bool = True,
    ):
        super().__init__()
        if emb_dim < 3 or emb_dim % 2 == 0:
            raise ValueError(f"emb_dim must be odd and at least 3, got {emb_dim}")
        if max_len < 1:
            raise ValueError(f"max_len must be at least 1, got {max_len}")
        self.max_len, self.decay = max_len, decay
        time = torch.linspace(0, 1, max_len)[:, None]
        bands = (emb_dim - 1) // 2
        angle = torch.arange(max_len)[:, None] * (2 * math.pi / max_len) * torch.linspace(1e-4, bands - 1, bands)
        self.register_buffer("time", time, persistent=False)
        self.register_buffer("features", torch.cat([time, angle.cos(), -angle.sin()], dim=1), persistent=False)
        low, high = math.log(0.01) / 1.5, math.log(0.01) / 0.3
        self.register_buffer("rates", torch.linspace(low, high, dim).abs(), persistent=False)
        self.layers = nn.ModuleList(nn.Linear(width, hidden_dim) for width in [emb_dim] + [hidden_dim] * num_inner)
        self.out = nn.Linear(hidden_dim, dim, bias=False)
        self.freq = nn.Parameter(torch.full((1, hidden_dim), float(freq)))

    def forward(self, length: int | None = None) -> Float[Tensor, "dim length"]:
        """Kernels of `length`, or of `max_len` if None.

        Raises:
            ValueError: if the length exceeds `max_len`.
        """
        length = self.max_len if length is None else length
        if not 1 <= length <= self.max_len:
            raise ValueError(f"kernels have 1 to {self.max_len} taps, {length} were asked for")
        h = self.features[:length]
        for layer in self.layers:
            h = torch.sin(self.freq * layer(h))
        h = self.out(h)
        if self.decay:
            h = h * torch.exp(-self.time[:length] * self.rates)
        return h.T
