"""Tapped delay lines: an exponential Rician profile and the TDL-A to TDL-E models of 3GPP TR 38.901, section 7.7.2.

A channel does not change during the few milliseconds of a burst. Delays are whole samples; taps of a model that fall
on the same sample add up.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Complex
from torch import Tensor

__all__ = ["TDL_MODELS", "TappedDelayChannel", "apply_taps", "complex_normal", "sample_taps"]

# Delays in units of the delay spread and powers in dB (tables 7.7.2-1 to 7.7.2-5). In TDL-D and TDL-E the first tap is
# the direct path; the others fade after Rayleigh, as do all taps of TDL-A to TDL-C.
TDL_MODELS: dict[str, tuple[bool, tuple[float, ...], tuple[float, ...]]] = {
    "TDL-A": (
        False,
        (0.0, 0.3819, 0.4025, 0.5868, 0.4610, 0.5375, 0.6708, 0.5750, 0.7618, 1.5375, 1.8978, 2.2242)
        + (2.1718, 2.4942, 2.5119, 3.0582, 4.0810, 4.4579, 4.5695, 4.7966, 5.0066, 5.3043, 9.6586),
        (-13.4, 0.0, -2.2, -4.0, -6.0, -8.2, -9.9, -10.5, -7.5, -15.9, -6.6, -16.7)
        + (-12.4, -15.2, -10.8, -11.3, -12.7, -16.2, -18.3, -18.9, -16.6, -19.9, -29.7),
    ),
    "TDL-B": (
        False,
        (0.0, 0.1072, 0.2155, 0.2095, 0.2870, 0.2986, 0.3752, 0.5055, 0.3681, 0.3697, 0.5700, 0.5283)
        + (1.1021, 1.2756, 1.5474, 1.7842, 2.0169, 2.8294, 3.0219, 3.6187, 4.1067, 4.2790, 4.7834),
        (0.0, -2.2, -4.0, -3.2, -9.8, -1.2, -3.4, -5.2, -7.6, -3.0, -8.9, -9.0)
        + (-4.8, -5.7, -7.5, -1.9, -7.6, -12.2, -9.8, -11.4, -14.9, -9.2, -11.3),
    ),
    "TDL-C": (
        False,
        (0.0, 0.2099, 0.2219, 0.2329, 0.2176, 0.6366, 0.6448, 0.6560, 0.6584, 0.7935, 0.8213, 0.9336)
        + (1.2285, 1.3083, 2.1704, 2.7105, 4.2589, 4.6003, 5.4902, 5.6077, 6.3065, 6.6374, 7.0427, 8.6523),
        (-4.4, -1.2, -3.5, -5.2, -2.5, 0.0, -2.2, -3.9, -7.4, -7.1, -10.7, -11.1)
        + (-5.1, -6.8, -8.7, -13.2, -13.9, -13.9, -15.8, -17.1, -16.0, -15.7, -21.6, -22.8),
    ),
    "TDL-D": (
        True,
        (0.0, 0.0, 0.035, 0.612, 1.363, 1.405, 1.804, 2.596, 1.775, 4.042, 7.937, 9.424, 9.708, 12.525),
        (-0.2, -13.5, -18.8, -21.0, -22.8, -17.9, -20.1, -21.9, -22.9, -27.8, -23.6, -24.8, -30.0, -27.7),
    ),
    "TDL-E": (
        True,
        (0.0, 0.0, 0.5133, 0.5440, 0.5630, 0.5440, 0.7112, 1.9092, 1.9293, 1.9589, 2.6426, 3.7136)
        + (5.4524, 12.0034, 20.6519),
        (-0.03, -22.03, -15.8, -18.1, -19.8, -22.9, -22.4, -18.6, -20.8, -22.6, -22.3, -25.6) + (-20.2, -29.8, -29.2),
    ),
}


def complex_normal(
    *shape: int,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """Circular complex normal numbers of unit mean power."""
    return torch.randn(*shape, generator=generator, device=device, dtype=dtype)


class TappedDelayChannel:
    """A random channel h(0), h(1), ... of unit mean power.

        channel = TappedDelayChannel.exponential()
        taps = channel.sample(32, generator)
        received = apply_taps(signals, taps)

    Args:
        delays: of the fading taps, in samples, >= 0 and whole.
        powers: mean powers of the fading taps, in any unit.
        rice_k_db: power of a direct path without delay and with uniform phase over that of all fading taps together,
            in dB; None if there is no direct path, infinite if nothing fades.

    Raises:
        ValueError: if delays or powers are negative, or their numbers differ.
    """

    def __init__(
        self, delays: Sequence[float | int], powers: Sequence[float | int], *, rice_k_db: float | int | None = None
    ):
        if len(delays) != len(powers) or not delays:
            raise ValueError(f"a channel needs one power per delay, got {len(delays)} delays and {len(powers)} powers")
        if min(delays) < 0 or any(delay != int(delay) for delay in delays):
            raise ValueError(f"delays must be whole numbers of samples >= 0, got {tuple(delays)}")
        if min(powers) < 0 or sum(powers) <= 0:
            raise ValueError(f"powers must be >= 0 with a positive sum, got {tuple(powers)}")
        self.direct = 0.0 if rice_k_db is None else 1 / (1 + 10 ** (-rice_k_db / 10))
        self.delays = tuple(int(delay) for delay in delays)
        self.powers = tuple((1 - self.direct) * power / sum(powers) for power in powers)

    @classmethod
    def exponential(
        cls, num_taps: int = 6, decay: float | int = 1.5, rice_k_db: float | int | None = 6.0
    ) -> "TappedDelayChannel":
        """A direct path and fading taps on successive samples with powers exp(-delay / decay)."""
        if num_taps < 1 or decay <= 0:
            raise ValueError(f"num_taps and decay must be positive, got {num_taps} and {decay}")
        powers = [math.exp(-delay / decay) for delay in range(num_taps)]
        return cls(range(num_taps), powers, rice_k_db=rice_k_db)

    @classmethod
    def flat(cls, fading: bool = False) -> "TappedDelayChannel":
        """One tap: of modulus 1 and uniform phase, or fading after Rayleigh."""
        return cls((0,), (1.0,), rice_k_db=None if fading else math.inf)

    @classmethod
    def tdl(cls, model: str, *, delay_spread: float | int, sample_rate: float | int) -> "TappedDelayChannel":
        """A model of TR 38.901, its delays rounded to samples.

        Args:
            model: "TDL-A" to "TDL-E".
            delay_spread: root mean square delay in seconds, >= 0.
            sample_rate: in Hz.

        Raises:
            ValueError: if the model is unknown or a number negative.
        """
        if model not in TDL_MODELS:
            raise ValueError(f"model must be one of {', '.join(TDL_MODELS)}, got {model!r}")
        if delay_spread < 0 or sample_rate <= 0:
            raise ValueError(f"delay_spread must be >= 0 and sample_rate > 0, got {delay_spread} and {sample_rate}")
        line_of_sight, delays, powers_db = TDL_MODELS[model]
        samples = [round(delay * delay_spread * sample_rate) for delay in delays]
        powers = [10 ** (power / 10) for power in powers_db]
        if not line_of_sight:
            return cls(samples, powers)
        return cls(samples[1:], powers[1:], rice_k_db=10 * math.log10(powers[0] / sum(powers[1:])))

    @property
    def length(self) -> int:
        """Samples of the impulse response."""
        return max(self.delays) + 1

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.complex64,
    ) -> Complex[Tensor, "n taps"]:
        """`n` independent impulse responses."""
        fading = complex_normal(n, len(self.delays), generator=generator, device=device, dtype=dtype)
        gains = fading * torch.tensor(self.powers, device=device).sqrt()
        taps = torch.zeros(n, self.length, dtype=dtype, device=device)
        taps.index_add_(1, torch.tensor(self.delays, device=device), gains)
        if self.direct:
            turn = 2 * math.pi * torch.rand(n, generator=generator, device=device)
            taps[:, 0] += torch.polar(torch.full_like(turn, self.direct**0.5), turn)
        return taps


def sample_taps(
    channels: Sequence[TappedDelayChannel],
    n: int,
    generator: torch.Generator | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Complex[Tensor, "n taps"]:
    """`n` impulse responses, each from one of `channels` with equal chances."""
    taps = torch.zeros(n, max(channel.length for channel in channels), dtype=torch.complex64, device=device)
    choice = torch.randint(len(channels), (n,), generator=generator, device=device)
    for position, channel in enumerate(channels):
        chosen = (choice == position).nonzero().squeeze(1)
        taps[chosen, : channel.length] = channel.sample(len(chosen), generator, device=device)
    return taps


def apply_taps(
    x: Complex[Tensor, "n *looks samples"], taps: Complex[Tensor, "n taps"]
) -> Complex[Tensor, "n *looks longer"]:
    """Full convolution of each signal with its impulse response: samples + taps - 1 values."""
    samples, length = x.shape[-1], taps.shape[-1]
    output = x.new_zeros(*x.shape[:-1], samples + length - 1)
    used = (taps != 0).any(dim=0).nonzero().squeeze(1).tolist()
    gains = taps.reshape(len(taps), *(1,) * (x.ndim - 2), length)
    for delay in used:
        output[..., delay : delay + samples].addcmul_(x, gains[..., delay : delay + 1])
    return output
