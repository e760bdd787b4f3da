"""The Orchid operator: a gated long convolution whose kernel is made from the sequence.

Karami & Ghodsi, arXiv:2402.18508, section 3 and algorithm 1.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from etude.nn.convolution import ImplicitFilter, ShortConv, long_conv
from etude.nn.mixers import Mixer, register_mixer
from etude.sequence.orchid.kernel import OrchidKernel
from etude.sequence.orchid.transforms import dct, idct

__all__ = ["Orchid", "parameter_groups"]


@register_mixer("orchid")
class Orchid(Mixer):
    """Mixes tokens in both directions by a global convolution that depends on them.

        mixer = Orchid(64, max_len=256)
        y = mixer(x)                                        # (batch, length, 64), length <= 256

    With p = Linear(u), conditioned on p's last `dim` channels, and x_0, ..., x_{order-1}, v the short depthwise
    convolution of p:

        y <- v;  for each gate x_i, i = order - 1 ... 1:   y <- F^-1[ F(y x_i) (F(k_i) + alpha H_i) ] + D_i y x_i
        out = Linear( x_0 y + k' * u + D' u )

    k_i and k' are implicit filters, H_i the spectra of `OrchidKernel`. All convolutions are circular over the length
    of the sequence. By default, with Fourier's transform, a circular shift of u shifts the output likewise, exactly.

    Not causal: the kernel depends on the whole sequence, so that a language model that is to predict the next token
    would see it. There is no causal form, and asking for one is refused.

    Padding tokens that the mask hides count as zeros and do not enter the kernels, but the circle is as long as the
    padded sequence: what a sequence gives depends on how many there are. For results that do not, let a batch hold
    sequences of one length.

    Args:
        dim: features of a token.
        max_len: longest sequence; the parameters do not depend on it.
        order: gates, at least 2; there are order - 1 convolutions.
        short_kernel: taps of the short convolution, odd unless it is causal.
        kind, kernel_size, num_layers, transform, nonlinearity, freq_conv: of the conditioning network.
        padding: of the conditioning network's convolutions along the sequence, "circular" or "zeros".
        causal_short: whether the short convolution reaches back only, into zeros, as released; centred and circular
            if not.
        residual_conv: whether the static long convolution of the input is added.
        static, adaptive: which of the two kernels there are.
        alpha: weight of the adaptive kernel.
        filter_dim, emb_dim, num_inner, freq: of the implicit filters.
        official: the released block: zeros for padding, causal short convolution, forward transforms divided by
            their length (so that convolutions are), conditioning at twice the length for type I. It overrides
            `padding`, `causal_short` and `freq_conv`, and has order 2, as the released code runs with no other.
        causal: must be False.

    Raises:
        ValueError: if a causal mixer is asked for, there is no kernel at all, or for sizes that are not as above.
    """

    causal = False
    cost = "O(L log L D + L D^2)"

    def __init__(
        self,
        dim: int,
        max_len: int,
        order: int = 2,
        *,
        short_kernel: int = 3,
        kind: str = "type1",
        padding: str = "circular",
        causal_short: bool = False,
        residual_conv: bool = True,
        static: bool = True,
        adaptive: bool = True,
        alpha: float | int = 1.0,
        kernel_size: int = 3,
        num_layers: int = 1,
        transform: str = "fft",
        nonlinearity: str | None = None,
        freq_conv: bool | None = None,
        filter_dim: int = 64,
        emb_dim: int = 3,
        num_inner: int = 2,
        freq: float | int = 1.0,
        official: bool = False,
        causal: bool = False,
    ):
        super().__init__()
        if causal:
            raise ValueError("Orchid's kernel depends on the whole sequence: it cannot be causal without a leak")
        if dim < 1 or max_len < 1:
            raise ValueError(f"dim and max_len must be positive, got {dim} and {max_len}")
        if order < 2 or (official and order != 2):
            raise ValueError(f"order must be at least 2, and 2 in the released block, got {order}")
        if not (static or adaptive):
            raise ValueError("a kernel must be static, adaptive or both, got neither")
        if transform not in ("fft", "dct"):
            raise ValueError(f"transform must be fft or dct, got {transform!r}")
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be finite, got {alpha}")
        self.dim, self.order, self.kind, self.alpha = dim, order, kind, alpha
        self.transform, self.official = transform, official
        self.length_bound = max_len if static or residual_conv else None
        causal_short = causal_short or official
        self.in_proj = nn.Linear(dim, (order + 1) * dim)
        self.short = ShortConv((order + 1) * dim, short_kernel, padding="causal" if causal_short else "circular")
        implicit: dict[str, Any] = {"hidden_dim": filter_dim, "emb_dim": emb_dim, "num_inner": num_inner, "freq": freq}
        convs = order - 1
        self.filter = ImplicitFilter(convs * dim, max_len, **implicit) if static else None
        self.skip = nn.Parameter(torch.randn(convs, dim))
        self.kernels = nn.ModuleList(
            OrchidKernel(
                dim, kind, kernel_size=kernel_size, num_layers=num_layers, transform=transform,
                nonlinearity=nonlinearity, freq_conv=True if official else freq_conv,
                padding=padding, official=official,
            )
            for _ in range(convs if adaptive else 0)
        )  # fmt: skip
        self.residual_filter = ImplicitFilter(dim, max_len, **implicit) if residual_conv else None
        self.residual_skip = nn.Parameter(torch.randn(dim)) if residual_conv else None
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Raises ValueError for sequences longer than `max_len`."""
        self.check_length(x.shape[1])
        x = _hidden(x, mask)
        p = _hidden(self.in_proj(x), mask)
        static, adaptive = self._spectra(p, mask)
        *gates, v = self.short(p).transpose(1, 2).chunk(self.order + 1, dim=1)
        dtype = v.dtype
        y = _wide(v)
        for at in range(self.order - 1):
            y = y * _wide(gates[self.order - 1 - at])
            if mask is not None:
                y = y * mask[:, None]
            mixed = self._product(y, static, adaptive, at)
            y = mixed + self.skip[at, :, None] * y
        y = (y * _wide(gates[0])).to(dtype)
        if self.residual_filter is not None:
            assert self.residual_skip is not None
            u = x.transpose(1, 2)
            y = y + self._static_conv(u, self.residual_filter(x.shape[1])) + self.residual_skip[:, None] * u
        return self.out_proj(y.transpose(1, 2))

    def spectra(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> tuple[
        Complex[Tensor, "convs dim bins"] | Float[Tensor, "convs dim bins"] | None,
        list[Complex[Tensor, "batch dim bins"] | Float[Tensor, "batch dim bins"]],
    ]:
        """Spectra of the static kernels, and for each convolution those of the adaptive ones, alpha not in them."""
        return self._spectra(_hidden(self.in_proj(_hidden(x, mask)), mask), mask)

    @torch.no_grad()
    def kernel_ratio(self, x: Float[Tensor, "batch length dim"]) -> float:
        """|alpha h_adapt| / |k_static|, norms over all convolutions, channels and times; root mean square of the batch.

        Raises:
            ValueError: if the layer lacks one of the two.
        """
        static, adaptive = self.spectra(x)
        if static is None or not adaptive:
            raise ValueError("there is no ratio with one kernel only")
        inverse = idct if self.transform == "dct" else lambda s: torch.fft.irfft(s, n=x.shape[1])
        sizes = [inverse(part).square().mean() for part in (torch.stack(adaptive), static)]
        return abs(self.alpha) * float((sizes[0] / sizes[1]).sqrt())

    def state_size(self, length: int) -> int:
        return self.dim * length

    def flops(self, length: int) -> int:
        """Fourier transforms count 2.5 L log2 L for each channel; those of static kernels are left to the batch."""
        d, convs = self.dim, self.order - 1
        per_kernel = 0 if not self.kernels else 2 if self.kind == "type2" else 1
        transforms = convs * (2 + per_kernel) + (2 if self.residual_filter is not None else 0)
        linear = 2 * length * d * d * (self.order + 2)
        short = 2 * length * d * (self.order + 1) * self.short.conv.kernel_size[0]
        return int(linear + short + 2.5 * transforms * d * length * max(1.0, math.log2(length)))

    def _spectra(self, p: Tensor, mask: Tensor | None) -> tuple[Tensor | None, list[Tensor]]:
        static = None
        if self.filter is not None:
            kernels = _wide(self.filter(p.shape[1]).unflatten(0, (self.order - 1, self.dim)))
            static = self._forward(kernels, scaled=True)
        v = p[..., -self.dim :]
        return static, [kernel(v, mask=mask) for kernel in self.kernels]

    def _forward(self, x: Tensor, *, scaled: bool = False) -> Tensor:
        if self.transform == "dct":
            return dct(x)
        return torch.fft.rfft(x, norm="forward" if scaled and self.official else "backward")

    def _product(self, y: Tensor, static: Tensor | None, adaptive: list[Tensor], at: int) -> Tensor:
        """F^-1[ F(y) (F(k) + alpha H) ]."""
        spectrum: Any = 0
        if adaptive:
            spectrum = adaptive[at] if self.alpha == 1 else self.alpha * adaptive[at]
        if static is not None:
            spectrum = spectrum + static[at]
        product = self._forward(y) * spectrum
        return idct(product) if self.transform == "dct" else torch.fft.irfft(product, n=y.shape[-1])

    def _static_conv(self, u: Tensor, kernel: Tensor) -> Tensor:
        if self.transform == "dct":
            return idct(dct(_wide(u)) * dct(_wide(kernel))).to(u.dtype)
        y = long_conv(u, kernel.to(u.dtype), circular=True)
        return y / u.shape[-1] if self.official else y

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.kind}, order={self.order}, transform={self.transform}, official={self.official}"


def _hidden(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def _wide(x: Tensor) -> Tensor:
    """In a precision that Fourier transforms have."""
    return x if x.dtype == torch.float64 else x.float()


def parameter_groups(
    model: nn.Module, *, lr: float | int, weight_decay: float | int = 0.0, filter_lr: float | int | None = 1e-3
) -> list[dict[str, Any]]:
    """Groups for an optimizer: implicit filters without weight decay and at a rate of their own, as released.

        optimizer = torch.optim.AdamW(parameter_groups(model, lr=3e-4, weight_decay=0.05))

    Args:
        model: any network with Orchid layers.
        lr, weight_decay: of all other parameters.
        filter_lr: of the implicit filters; `lr` if None.
    """
    own = {id(p) for part in model.modules() if isinstance(part, ImplicitFilter) for p in part.parameters()}
    filters = [p for p in model.parameters() if id(p) in own]
    rest = [p for p in model.parameters() if id(p) not in own]
    return [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {"params": filters, "lr": lr if filter_lr is None else filter_lr, "weight_decay": 0.0},
    ]
