"""Initialisers of convolution filters, in place.

A weight has shape (O, I, kh, kw), fan_in = I kh kw and fan_out = O kh kw. With independent inputs of second moment q,
a unit's pre-activation has variance fan_in Var[w] q, and a ReLU halves the second moment. Hence

    He        Var[w] = 2 / ((1 + a^2) fan_in)    keeps q from layer to layer (a: slope of a leaky ReLU)           (1)
    Xavier    Var[w] = 2 / (fan_in + fan_out)    halves it under ReLU where fan_in = fan_out: 2^-n after n layers  (2)
    LeCun     Var[w] = 1 / fan_in                the same as Xavier where fan_in = fan_out                         (3)

A constant keeps all filters of a layer identical as long as the layer above treats them alike.

LeCun et al., "Efficient BackProp", 1998; Martens, "Deep learning via Hessian-free optimization", 2010 (sparse); Glorot
& Bengio, 2010; Saxe et al., arXiv:1312.6120 (orthogonal); He et al., arXiv:1502.01852; Xiao et al., arXiv:1806.05393
(delta-orthogonal).
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from etude.vision.filters.bank import FilterBank

__all__ = ["SCHEMES", "delta_orthogonal_", "init_filters", "init_network", "scheme_variance"]

SCHEMES = (
    "zeros", "constant", "uniform", "normal", "lecun", "xavier", "he", "orthogonal", "delta_orthogonal", "identity",
    "sparse", "bank",
)  # fmt: skip

_DISTRIBUTIONS = ("normal", "uniform")


def _fans(weight: Tensor) -> tuple[int, int]:
    taps = weight[0, 0].numel()
    return weight.shape[1] * taps, weight.shape[0] * taps


def scheme_variance(weight: Tensor, scheme: str, negative_slope: float | int = 0.0) -> float:
    """Variance that "lecun", "xavier" or "he" gives the entries of `weight`, Eqs. (1) to (3)."""
    fan_in, fan_out = _fans(weight)
    variances = {
        "lecun": 1 / fan_in,
        "xavier": 2 / (fan_in + fan_out),
        "he": 2 / ((1 + negative_slope**2) * fan_in),
    }
    if scheme not in variances:
        raise ValueError(f"scheme must be one of {', '.join(variances)}, got {scheme!r}")
    return variances[scheme]


@torch.no_grad()
def init_filters(
    weight: Tensor,
    scheme: str,
    *,
    gain: float | int = 1.0,
    distribution: str = "normal",
    value: float | int = 0.01,
    std: float | int = 0.01,
    negative_slope: float | int = 0.0,
    nonzeros: int = 15,
    bank: "FilterBank | None" = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fills the weight of a convolution (or of a linear layer) in place.

        init_filters(conv.weight, "he")
        init_filters(conv.weight, "bank", bank=filter_bank("gabor", 7, 32))

    Args:
        weight: (O, I, *kernel), at least two dimensions.
        scheme: one of `SCHEMES`.
            "zeros", "constant" (`value`), "uniform" and "normal" (mean 0, standard deviation `std`);
            "lecun", "xavier", "he": Eqs. (1) to (3), drawn from `distribution`;
            "orthogonal": the (O, fan_in) matrix has orthonormal rows, or columns where O > fan_in;
            "delta_orthogonal": see `delta_orthogonal_`;
            "identity": each output channel copies the input channel of its number (Dirac), rest zero;
            "sparse": `nonzeros` entries of each filter, at random places, N(0, 2 / nonzeros);
            "bank": the filters of `bank`, tiled over input channels, centred, and scaled to the norm sqrt(2) that He
            gives on average, so that such a layer differs from "he" in shape and not in scale.
        gain: multiplies the result of every random scheme and of "bank"; sqrt(2) for "orthogonal" under ReLU.
        distribution: "normal" or "uniform", of equal variance.
        value, std, negative_slope, nonzeros, bank: of the schemes above.
        generator: source of the draws; the default generator if None.

    Returns:
        The weight.

    Raises:
        ValueError: if the scheme or the distribution is unknown, a number is out of range, or the bank does not fit.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"weight must have shape (out, in, *kernel) without empty axes, got {tuple(weight.shape)}")
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(_DISTRIBUTIONS)}, got {distribution!r}")
    if not std > 0 or not gain > 0:
        raise ValueError(f"std and gain must be positive, got {std} and {gain}")
    if scheme == "zeros":
        return weight.zero_()
    if scheme == "constant":
        return weight.fill_(value)
    if scheme == "orthogonal":
        return nn.init.orthogonal_(weight, gain, generator=generator)
    if scheme == "delta_orthogonal":
        return delta_orthogonal_(weight, gain, generator=generator)
    if scheme == "identity":
        return weight.copy_(torch.eye(*weight.shape)) if weight.ndim == 2 else nn.init.dirac_(weight)
    if scheme == "sparse":
        return _sparse(weight, nonzeros, gain, generator)
    if scheme == "bank":
        return _from_bank(weight, bank, gain)
    if scheme in ("uniform", "normal"):
        deviation, distribution = gain * std, scheme
    else:
        deviation = gain * math.sqrt(scheme_variance(weight, scheme, negative_slope))
    if distribution == "normal":
        return weight.normal_(0, deviation, generator=generator)
    bound = math.sqrt(3) * deviation
    return weight.uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def delta_orthogonal_(weight: Tensor, gain: float | int = 1.0, *, generator: torch.Generator | None = None) -> Tensor:
    """Zero but for the centre tap, whose (O, I) channel map has orthonormal columns: dynamical isometry.

    The convolution then keeps the norm of every input, times `gain`, whatever the padding.

    Raises:
        ValueError: if O < I, or a side of the kernel is even.
    """
    out_chans, in_chans, *kernel = weight.shape
    if out_chans < in_chans:
        raise ValueError(f"delta_orthogonal needs at least as many outputs as inputs, got {out_chans} < {in_chans}")
    if any(side % 2 == 0 for side in kernel):
        raise ValueError(f"delta_orthogonal needs a kernel of odd sides, got {tuple(kernel)}")
    centre = torch.empty(out_chans, in_chans, dtype=weight.dtype, device=weight.device)
    nn.init.orthogonal_(centre, gain, generator=generator)
    weight.zero_()
    weight.flatten(2)[:, :, math.prod(kernel) // 2] = centre  # the middle of a kernel of odd sides
    return weight


def _sparse(weight: Tensor, nonzeros: int, gain: float | int, generator: torch.Generator | None) -> Tensor:
    fan_in, _ = _fans(weight)
    if not 1 <= nonzeros <= fan_in:
        raise ValueError(f"nonzeros must lie in 1..{fan_in}, the entries of a filter, got {nonzeros}")
    rows = weight.view(weight.shape[0], fan_in) if weight.is_contiguous() else None
    if rows is None:
        raise ValueError("sparse needs a contiguous weight")
    kept = torch.rand(rows.shape, generator=generator, device=rows.device).argsort(dim=1)[:, :nonzeros]
    drawn = torch.randn(kept.shape, generator=generator, device=rows.device, dtype=rows.dtype)
    rows.zero_().scatter_(1, kept, drawn * gain * math.sqrt(2 / nonzeros))
    return weight


def _from_bank(weight: Tensor, bank: "FilterBank | None", gain: float | int) -> Tensor:
    if bank is None:
        raise ValueError("the scheme 'bank' needs bank=, a FilterBank")
    filters = bank.weight.to(weight)
    if weight.ndim != 4 or filters.shape[2:] != weight.shape[2:]:
        raise ValueError(
            f"the bank's filters are {tuple(filters.shape[2:])}, the weight has shape {tuple(weight.shape)}"
        )
    if len(filters) < weight.shape[0]:
        raise ValueError(f"the layer has {weight.shape[0]} filters, the bank {bank.name!r} only {len(filters)}")
    if filters.shape[1] not in (1, weight.shape[1]):
        raise ValueError(
            f"the bank has {filters.shape[1]} channels, the weight {weight.shape[1]}; only a bank of one is tiled"
        )
    tiled = filters[: weight.shape[0]].expand(-1, weight.shape[1], -1, -1)
    centred = tiled - tiled.mean(dim=(1, 2, 3), keepdim=True)
    norms = centred.flatten(1).norm(dim=1)
    if bool((norms <= 1e-6 * tiled.flatten(1).norm(dim=1)).any()):
        raise ValueError(f"the bank {bank.name!r} holds a constant filter, of which centring leaves nothing")
    return weight.copy_(centred * (gain * math.sqrt(2) / norms).view(-1, 1, 1, 1))


def init_network(
    model: nn.Module, scheme: str, *, linear: bool = True, generator: torch.Generator | None = None, **arguments
) -> nn.Module:
    """Gives every `Conv2d` (and `Linear`, unless `linear` is False) of a model the same scheme, and zero biases.

    Linear layers of a network of "delta_orthogonal" filters are "orthogonal", since they may have fewer outputs.

    Args:
        model: any module. scheme, arguments, generator: see `init_filters`.

    Returns:
        The model.
    """
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d) and not (linear and isinstance(layer, nn.Linear)):
            continue
        flat = isinstance(layer, nn.Linear) and scheme == "delta_orthogonal"
        init_filters(layer.weight, "orthogonal" if flat else scheme, generator=generator, **arguments)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return model
