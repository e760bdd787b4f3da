"""The two transforms of Orchid along the sequence: Fourier's, and the cosine transform DCT-II.

Both are orthonormal here. The cosine transform is taken by one Fourier transform of the same length (Makhoul, "A fast
cosine transform in one and two dimensions", 1980), so that it costs O(length log length), too; the authors multiply
by its matrix.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["dct", "idct"]


def _turns(length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-i pi k / 2 N), and what makes the unnormalised DCT-II orthonormal, for k < N."""
    k = torch.arange(length, device=like.device, dtype=like.dtype)
    angle = -math.pi / (2 * length) * k
    scale = torch.full_like(k, math.sqrt(2 / length))
    scale[0] = math.sqrt(1 / length)
    return torch.complex(angle.cos(), angle.sin()), scale


def dct(x: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch length"]:
    """The orthonormal DCT-II, X_k = s_k sum_n x_n cos(pi (2n + 1) k / 2N), s_0 = 1 / sqrt(N), s_k = sqrt(2 / N)."""
    turn, scale = _turns(x.shape[-1], x)
    folded = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    return (torch.fft.fft(folded) * turn).real * scale


def idct(x: Float[Tensor, "*batch length"]) -> Float[Tensor, "*batch length"]:
    """The inverse of `dct`."""
    length = x.shape[-1]
    turn, scale = _turns(length, x)
    c = x / scale
    mirrored = torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:].flip(-1)], dim=-1)
    folded = torch.fft.ifft(torch.complex(c, -mirrored) * turn.conj()).real
    half = (length + 1) // 2
    out = torch.empty_like(folded)
    out[..., ::2], out[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
    return out
