"""Depth over width: how much a critical network's outputs differ from seed to seed, and how deep it should be.

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", arXiv:2106.10165. At criticality the variance of the
kernel over networks grows by nu / n a layer (`Criticality.nu`), so that of depth L and width n only r = L / n matters:

    Var(kernel) / K^2 ~ nu r,   r* = 4 / ((20 + 3 n_out) nu)                                                 (1)

r* is the book's estimate of the best ratio, from a trade-off between what depth gains and what fluctuations cost; it
leaves constants to higher orders in r, and residual connections out.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from etude.nn.gaussian import Estimate
from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.criticality import critical_init
from etude.theory.pdlt.flow import FiniteWidthFlow, scale_invariant_variance
from etude.theory.pdlt.networks import linear_layers

__all__ = ["Fluctuation", "network_fluctuation", "optimal_aspect_ratio", "relative_fluctuation"]


class Fluctuation(NamedTuple):
    """The seed-to-seed variance of the output's kernel relative to its square, at critical initialisation.

    Attributes:
        first_order: V / (n K^2) of the recursion: the prediction to first order in 1 / width, with its numerical error.
        all_orders: the same to all orders, where it is known (scale-invariant activations); NaN elsewhere.
        nu_r: the rule of thumb nu L / n, Eq. (1), L / n the sum of 1 / n over the hidden layers.
    """

    first_order: Estimate
    all_orders: float
    nu_r: float


def optimal_aspect_ratio(nu: float | int, n_out: int) -> float:
    """r* = depth / width of Eq. (1), the book's estimate.

        256 * optimal_aspect_ratio(critical_init(torch.relu).nu, n_out=10)      # depth 4 at width 256

    Args:
        nu: of the activation, `critical_init(activation).nu`.
        n_out: outputs of the network.

    Raises:
        ValueError: if nu or n_out is not positive.
    """
    if not (math.isfinite(nu) and nu > 0):
        raise ValueError(f"nu must be positive and finite, got {nu}")
    if n_out < 1:
        raise ValueError(f"n_out counts outputs and must be at least 1, got {n_out}")
    return 4 / ((20 + 3 * n_out) * nu)


def relative_fluctuation(
    activation: Activation | Callable[[Tensor], Tensor], widths: Sequence[int], *, input_scale: float | int = 1.0
) -> Fluctuation:
    """How much the outputs of a critical network differ in size from seed to seed.

        relative_fluctuation(torch.relu, [128] * 8).all_orders      # 0.359: a standard deviation of 60 %

    Args:
        activation: elementwise function or module, or an `Activation`.
        widths: of the hidden layers.
        input_scale: |x|^2 / n_0; it matters where K* = 0.

    Warns if there are more hidden layers than neurons in the narrowest: then the first order means nothing.

    Raises:
        NoCriticalPoint: if the activation has none.
        ValueError: if there is no hidden layer, or a width is not positive.
    """
    sizes = [int(width) for width in widths]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"widths must be positive and at least one, got {list(widths)}")
    if len(sizes) > min(sizes):
        warnings.warn(
            f"{len(sizes)} hidden layers at a width of {min(sizes)}: depth / width is above 1, where an expansion in "
            "1 / width means nothing",
            stacklevel=2,
        )
    act = as_activation(activation)
    point = critical_init(act)
    K1 = point.K_star if point.K_star > 0 else point.C_W * input_scale
    table = FiniteWidthFlow(act, point.C_b, point.C_W).run(K1, depth=len(sizes) + 1, widths=sizes)
    scale = sizes[-1] * table.K[-1].square()
    all_orders = math.nan
    if point.cls == "scale-invariant":
        all_orders = float(scale_invariant_variance(act, sizes)[-1])
    first = Estimate(table.V[-1] / scale, table["V"].error[-1] / scale)
    return Fluctuation(first, all_orders, point.nu * sum(1 / size for size in sizes))


def network_fluctuation(
    module: nn.Module, activation: Activation | Callable[[Tensor], Tensor], *, input_scale: float | int = 1.0
) -> Fluctuation:
    """`relative_fluctuation` of a user's own network, whose hidden widths are read off its linear layers.

    Raises:
        TypeError, ValueError: as for `init_critical_`; ValueError if there is no hidden layer.
    """
    layers = linear_layers(module)
    return relative_fluctuation(activation, [layer.out_features for layer in layers[:-1]], input_scale=input_scale)
