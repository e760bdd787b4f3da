"""The conditioning network: from a sequence to the spectrum of the kernel that will be convolved with it.

Karami & Ghodsi, arXiv:2402.18508, section 3. With F the transform along the sequence,

    type1    h = F^-1[ Conv1D( |F(Conv1D(v))|^2 ) ]                                                             (2)
    type2    h = F^-1[ conj(F(Conv1D_k(v))) sigma(F(Conv1D_q(v))) ]                                             (3)

where the convolutions are short and depthwise; the outer one of (2) runs along frequency. A circular shift of v turns
the phases of F alone, which the magnitude of (2) and the product of (3) forget: h stays as it was.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from etude.sequence.orchid.transforms import dct, idct

__all__ = ["KINDS", "NONLINEARITIES", "OrchidKernel"]

KINDS = ("type1", "type2")
NONLINEARITIES = ("identity", "tanh", "softshrink", "sigmoid", "softsign")
"""sigma of type II: with the ending "_abs" of magnitudes, without it of real and of imaginary parts."""
_MAGNITUDES = ("abs2", "abs")
_SIGMA: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "softshrink": F.softshrink,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
}


class _ConvStack(nn.Module):
    """Depthwise convolutions along the tokens, each but the last with GELU, and all with a norm over channels.

    Args:
        dim: groups of channels.
        inputs, outputs: channels of a group, before and after.
        circular: whether the ends meet; zeros stand beyond them if not.
    """

    def __init__(self, dim: int, kernel_size: int, num_layers: int, *, inputs: int, outputs: int, circular: bool):
        super().__init__()
        self.circular, self.reach = circular, kernel_size // 2
        self.convs = nn.ModuleList(
            nn.Conv1d(dim * (outputs if layer else inputs), dim * outputs, kernel_size, groups=dim)
            for layer in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim * outputs) for _ in range(num_layers))

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length outputs"]:
        length = x.shape[1]
        x = x.to(next(self.parameters()).dtype)  # spectra come in single precision, weights may be in half
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            if not self.circular:
                x = F.pad(x, (0, 0, self.reach, self.reach))
            elif self.reach <= length:
                x = torch.cat([x[:, length - self.reach :], x, x[:, : self.reach]], dim=1)
            else:
                x = x[:, torch.arange(-self.reach, length + self.reach, device=x.device) % length]
            assert isinstance(conv, nn.Conv1d)
            # As an image of one line with its channels last, which takes half the time of conv1d on a CPU.
            image = x.transpose(1, 2).unsqueeze(2)
            x = F.conv2d(image, conv.weight.unsqueeze(2), conv.bias, groups=conv.groups).squeeze(2).transpose(1, 2)
            if layer < len(self.convs) - 1:
                x = F.gelu(x)
            x = norm(x)
        return x


class OrchidKernel(nn.Module):
    """A kernel for each channel, as long as the sequence and made from it.

        kernel = OrchidKernel(64, kind="type2")
        spectrum = kernel(v)                                 # (batch, dim, length // 2 + 1), complex
        y = torch.fft.irfft(torch.fft.rfft(v.mT) * spectrum, n=v.shape[1])

    Scales. The conditioning path transforms orthonormally, so that its numbers are of order one for any length; what
    it emits is read as a spectrum in torch's default convention, that is to be added to `rfft` of a static kernel.
    With `padding="circular"` and Fourier's transform, circular shifts of the sequence leave the kernel unchanged; the
    cosine transform has no such property.

    Args:
        dim: channels.
        kind: "type1", Eq. (2), or "type2", Eq. (3).
        kernel_size: taps of the short convolutions, odd.
        num_layers: short convolutions in a row, in either domain.
        transform: "fft", or "dct" for the orthonormal DCT-II, whose spectra are real and have `length` entries.
        nonlinearity: of type I "abs2" (the authors' code) or "abs" (the paper), by default the first with "fft" and
            the second with "dct"; of type II one of `NONLINEARITIES`, with "_abs" or without, by default "identity".
        freq_conv: whether a convolution along frequency follows: always in type I; in type II not by default, in the
            released code it does. It is padded with zeros in any case, which shifts of the sequence do not meet.
        padding: "circular" or "zeros", of the convolutions along the sequence.
        official: scales and lengths of the released code: forward transforms divided by their length, type I of
            twice the length with the first half of the kernel kept, zeros for padding. The sum with a static kernel's
            spectrum is then to be made with that divided by the length.

    Raises:
        ValueError: for names or sizes that are not as above.
    """

    def __init__(
        self,
        dim: int,
        kind: str = "type1",
        *,
        kernel_size: int = 3,
        num_layers: int = 1,
        transform: str = "fft",
        nonlinearity: str | None = None,
        freq_conv: bool | None = None,
        padding: str = "circular",
        official: bool = False,
    ):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be type1 or type2, got {kind!r}")
        if transform not in ("fft", "dct"):
            raise ValueError(f"transform must be fft or dct, got {transform!r}")
        if padding not in ("circular", "zeros"):
            raise ValueError(f"padding must be circular or zeros, got {padding!r}")
        if dim < 1 or num_layers < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                "dim and num_layers must be positive and kernel_size odd, "
                f"got {dim}, {num_layers} and {kernel_size}"
            )  # fmt: skip
        if nonlinearity is None:
            nonlinearity = "identity" if kind == "type2" else "abs2" if transform == "fft" else "abs"
        known = _MAGNITUDES if kind == "type1" else (*NONLINEARITIES, *(f"{name}_abs" for name in NONLINEARITIES))
        if nonlinearity not in known:
            raise ValueError(f"nonlinearity of {kind} must be one of {', '.join(known)}, got {nonlinearity!r}")
        if kind == "type1" and freq_conv is False:
            raise ValueError("type1 needs freq_conv: without its norm the squared magnitudes range too far")
        self.dim, self.kind, self.transform, self.official = dim, kind, transform, official
        self.nonlinearity = nonlinearity
        circular = padding == "circular" and not official
        self.key = _ConvStack(dim, kernel_size, num_layers, inputs=1, outputs=1, circular=circular)
        self.query: nn.Module | None = None
        if kind == "type2":
            self.query = _ConvStack(dim, kernel_size, num_layers, inputs=1, outputs=1, circular=circular)
        self.freq: nn.Module | None = None
        if kind == "type1" or (official if freq_conv is None else freq_conv):
            parts = 2 if transform == "fft" else 1
            inputs = 1 if kind == "type1" else parts
            self.freq = _ConvStack(dim, kernel_size, num_layers, inputs=inputs, outputs=parts, circular=False)

    def forward(
        self, v: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Complex[Tensor, "batch dim bins"] | Float[Tensor, "batch dim bins"]:
        """Spectra of the kernels.

        Args:
            v: the sequence that conditions them.
            mask: true for real tokens; the others are left out of the spectra.
        """
        if v.shape[-1] != self.dim:
            raise ValueError(f"expected {self.dim} channels, got a sequence of shape {tuple(v.shape)}")
        if mask is not None:
            v = v * mask[..., None]
        spectrum = self._spectrum(self.key(v), mask)
        if self.query is None:
            return self._from_magnitudes(self._magnitude(spectrum), v.shape[1])
        product = spectrum.conj() * self._sigma(self._spectrum(self.query(v), mask))
        return product if self.freq is None else self._filtered_product(product)

    def time_kernel(
        self, v: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch dim length"]:
        """The kernels themselves."""
        spectrum = self(v, mask=mask)
        return idct(spectrum) if self.transform == "dct" else torch.fft.irfft(spectrum, n=v.shape[1])

    def _spectrum(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Of (batch, length, dim), for each channel: (batch, dim, bins)."""
        x = (x if mask is None else x * mask[..., None]).transpose(1, 2)
        x = x if x.dtype == torch.float64 else x.float()
        if self.transform == "dct":
            return dct(x)
        if not self.official:
            return torch.fft.rfft(x, norm="ortho")
        length = x.shape[-1] * (2 if self.kind == "type1" else 1)
        return torch.fft.rfft(x, n=length, norm="forward")

    def _magnitude(self, spectrum: Tensor) -> Tensor:
        if self.nonlinearity == "abs":
            return spectrum.abs()
        return torch.view_as_real(spectrum).square().sum(-1) if spectrum.is_complex() else spectrum.square()

    def _from_magnitudes(self, magnitudes: Tensor, length: int) -> Tensor:
        assert self.freq is not None
        h = self.freq(magnitudes.transpose(1, 2))
        h = h if h.dtype == torch.float64 else h.float()
        if self.transform == "dct":
            return h.transpose(1, 2)
        h = torch.view_as_complex(h.unflatten(-1, (self.dim, 2)).contiguous()).transpose(1, 2)
        if not self.official:
            return h
        kernel = torch.fft.irfft(h, n=2 * length, norm="forward")[..., :length]
        return torch.fft.rfft(kernel, norm="forward")

    def _filtered_product(self, product: Tensor) -> Tensor:
        """The convolution along frequency of type II; a group joins stacked parts 2g and 2g + 1, as released."""
        assert self.freq is not None
        product = product.transpose(1, 2)
        if not product.is_complex():
            return self.freq(product).transpose(1, 2)
        parts = self.freq(torch.cat([product.real, product.imag], dim=-1))
        parts = parts if parts.dtype == torch.float64 else parts.float()
        return torch.complex(parts[..., : self.dim], parts[..., self.dim :]).transpose(1, 2)

    def _sigma(self, spectrum: Tensor) -> Tensor:
        if self.nonlinearity.startswith("identity"):
            return spectrum
        sigma = _SIGMA[self.nonlinearity.removesuffix("_abs")]
        if self.nonlinearity.endswith("_abs"):
            size = spectrum.abs()
            return sigma(size) * spectrum / size.clamp(min=1e-6)
        if spectrum.is_complex():
            return torch.complex(sigma(spectrum.real), sigma(spectrum.imag))
        return sigma(spectrum)

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.kind}, transform={self.transform}, nonlinearity={self.nonlinearity}"
