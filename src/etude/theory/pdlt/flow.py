"""How the statistics of a finitely wide network flow from layer to layer, to first order in 1 / width.

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", arXiv:2106.10165, chapters 4, 5 and 8. The network is

    z_1 = b_1 + W_1 x,  z_(l+1) = b + W sigma(z_l),  Var b = C_b,  Var W = C_W / n,  dW/dt ~ lambda_W / n     (1)

without any 1 / sqrt(n) in the module. Averages <.> and their derivatives are at K_l, C = C_W, and at l = 1 all of
V, G1, D, F, A, B, T1 are 0. With s = sigma(z), g = <s^2>, h = <s'^2>, the infinitely wide network has

    K+ = C_b + C g,   Theta+ = lambda_b + lambda_W g + chi_perp Theta,   chi_par = C g',  chi_perp = C h     (2)

and its first corrections, for one input and two different neurons 1 and 2 of a layer, are (H is the NTK over neurons)

    cov(z_1^2, z_2^2) = V / n:   V+ = C^2 (<s^4> - g^2) + chi_par^2 V                                       (3)
    E z^2 = K + G1 / n:          G1+ = C (g' G1 + g'' V / 2)                                                (4)
    E[H_12 z_1 z_2] = F / n:     F+ = chi_par^2 F + C^2 <s^2 s'^2> Theta                                    (5)
    E H_12^2 = B / n:            B+ = chi_perp^2 B + C^2 <s'^4> Theta^2                                     (6)
    cov(H_11, z_2^2) = D / n:    D+ = (lambda_W / C) V+ + C^2 c,
                                 c = (<s^2 s'^2> - g h) Theta + g' h' V Theta + h g' D                      (7)
    cov(H_11, H_22) = A / n:     A+ = lambda_W^2 V+ / C^2 + 2 lambda_W C c + C^2 [(<s'^4> - h^2) Theta^2
                                      + h'^2 V Theta^2 + 2 h h' Theta D + h^2 A]                            (8)
    E H_11 = Theta + T1 / n:     T1+ = chi_perp T1 + lambda_W (g' G1 + g'' V / 2)
                                      + C (h' G1 + h'' V / 2) Theta + C h' (D + 2 F)                        (9)

n is the width of the layer before, the fan-in. With unequal widths, every old V, G1, D, F, A, B, T1 on the right is
multiplied by n_l / n_(l-1).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from etude.nn.gaussian import Estimate
from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.bounded import Bounded
from etude.theory.pdlt.moments import Moments, checked_variances, moments

__all__ = ["QUANTITIES", "FiniteWidthFlow", "FlowTable", "WidthPrediction", "scale_invariant_variance"]

QUANTITIES = ("K", "V", "G1", "Theta", "T1", "D", "F", "A", "B")

_CORRECTIONS = ("V", "G1", "T1", "D", "F", "A", "B")


@dataclass(frozen=True)
class WidthPrediction:
    """What a layer of a network of given widths is expected to show, over draws of its weights.

    Attributes:
        kernel: E z^2 of a neuron, K + G1 / n.
        kernel_spread: the standard deviation of the kernel over networks, sqrt(V / n): how much the size of outputs
            differs from seed to seed.
        ntk: E H_11, Theta + T1 / n.
        ntk_spread: the standard deviation of the diagonal of the NTK over networks, sqrt(A / n).
        ntk_mixing: the root mean square of H between two neurons, sqrt(B / n).
        relative: V / (n K^2), the expansion parameter: the next order is about its square.
    """

    kernel: float
    kernel_spread: float
    ntk: float
    ntk_spread: float
    ntk_mixing: float
    relative: float


@dataclass(frozen=True, eq=False)
class FlowTable:
    """The recursions (2) to (9) at layers 1..depth; rows are layers.

    Attributes:
        values, errors: quantity -> (depth, *batch): "K", "V", "G1", "Theta", "T1", "D", "F", "A" and "B", and bounds on
            their numerical error.
        widths: n_1..n_depth if they were given, else empty: equal widths.
    """

    values: dict[str, Float[Tensor, "depth *batch"]]
    errors: dict[str, Float[Tensor, "depth *batch"]]
    widths: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Tensor:
        if name in QUANTITIES:
            return self.values[name]
        raise AttributeError(f"a flow table has {', '.join(QUANTITIES)}, no {name!r}")

    def __getitem__(self, name: str) -> Estimate:
        """A quantity and the bound on its error."""
        return Estimate(self.values[name], self.errors[name])

    @property
    def depth(self) -> int:
        return len(self.values["K"])

    @property
    def relative_variance(self) -> Float[Tensor, "depth *batch"]:
        """V / K^2 of each layer; over n, the relative variance of the kernel."""
        return self.V / self.K.square()

    def at_width(self, width: int | None = None, *, layer: int = -1) -> WidthPrediction:
        """The prediction for a layer of a network of this width; of the table's own widths if None.

        Warns if the relative variance exceeds 1 or depth exceeds width: then the expansion in 1 / n means nothing.

        Raises:
            ValueError: if there is no such layer, no width, or the table holds a batch of inputs.
        """
        place = layer - 1 if layer > 0 else self.depth + layer
        if layer == 0 or not 0 <= place < self.depth:
            raise ValueError(f"layer must lie in 1..{self.depth} or count from the end, got {layer}")
        if self.K.ndim > 1:
            raise ValueError(
                f"predictions are for one input, the table holds a batch of shape {tuple(self.K.shape[1:])}"
            )
        if width is None:
            if not self.widths:
                raise ValueError("width must be given: the table is for any width")
            width = self.widths[place - 1] if place else self.widths[0]
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        at = {name: float(column[place]) for name, column in self.values.items()}
        relative = at["V"] / (width * at["K"] ** 2)
        if relative > 1 or place + 1 > width:
            warnings.warn(
                f"depth {place + 1} at width {width}: V / (n K^2) = {relative:.2g}; to first order in 1 / width the "
                "prediction holds where this is well below 1 and the depth below the width",
                stacklevel=2,
            )
        return WidthPrediction(
            at["K"] + at["G1"] / width, math.sqrt(at["V"] / width), at["Theta"] + at["T1"] / width,
            math.sqrt(max(at["A"], 0.0) / width), math.sqrt(at["B"] / width), relative,
        )  # fmt: skip

    def __str__(self) -> str:
        if self.K.ndim > 1:
            return f"FlowTable(depth={self.depth}, inputs={tuple(self.K.shape[1:])})"
        head = "layer" + "".join(f"{name:>12}" for name in QUANTITIES)
        rows = [
            f"{layer + 1:>5}" + "".join(f"{float(self.values[name][layer]):>12.4g}" for name in QUANTITIES)
            for layer in range(self.depth)
        ]
        return "\n".join([head, *rows])


@dataclass(frozen=True, eq=False)
class FiniteWidthFlow:
    """The flow of a network with this activation, initialisation and learning rates, Eqs. (2) to (9).

        flow = FiniteWidthFlow(torch.tanh, C_b=0.0, C_W=1.0).run(K1=0.5, Theta1=2.0, depth=5)
        print(flow)                              # K, V, G1, Theta, T1, D, F, A, B of layers 1..5
        flow.at_width(64).kernel_spread          # how much the kernel of a net of width 64 differs from seed to seed

    Args:
        activation: elementwise function or module, or an `Activation`.
        C_b, C_W: variance of a bias, and of a weight times its fan-in.
        lambda_b, lambda_W: learning rate of a bias, and of a weight times its fan-in; a number, or one for each of the
            layers 2..depth.
        tol: of the Gaussian averages, relative.

    Raises:
        ValueError: if C_b is negative, C_W not positive, or one is not finite; if the activation jumps.
    """

    activation: Activation | Callable[[Tensor], Tensor]
    C_b: float | int
    C_W: float | int
    lambda_b: float | int | Sequence[float | int] = 1.0
    lambda_W: float | int | Sequence[float | int] = 1.0
    tol: float = 1e-12
    _act: Activation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_variances(self.C_b, self.C_W)
        object.__setattr__(self, "_act", as_activation(self.activation))
        self._act.require_slope()

    def run(
        self,
        K1: float | int | Float[Tensor, "*batch"],
        Theta1: float | int | Float[Tensor, "*batch"] | None = None,
        depth: int = 2,
        *,
        widths: Sequence[int] | None = None,
    ) -> FlowTable:
        """The flow from layer 1 to layer `depth`.

        Args:
            K1: C_b + C_W |x|^2 / n_0 of one input or of a batch, > 0.
            Theta1: lambda_b + lambda_W |x|^2 / n_0; without it, the learning rates of layer 1 are taken as 0, so that
                what is counted are the layers above.
            depth: of the last layer, at least 1.
            widths: n_1, n_2, ... up to the last or last but one layer, if they differ: layer l's corrections are
                then the coefficients of 1 / n_(l-1).

        Raises:
            ValueError: if a kernel is not positive or an average diverges, or an argument is out of range.
        """
        if depth < 1:
            raise ValueError(f"depth counts layers and must be at least 1, got {depth}")
        K = Bounded.exact(checked_variances(K1))
        theta = Bounded.exact(
            torch.as_tensor(0.0 if Theta1 is None else Theta1, dtype=torch.float64).expand_as(K.value)
        )
        if bool((theta.value < 0).any()):
            raise ValueError(f"an NTK is not negative, got Theta1 = {float(theta.value.min()):g}")
        ratios, sizes = _ratios(widths, depth)
        rates = [_per_layer(name, getattr(self, name), depth) for name in ("lambda_b", "lambda_W")]
        zero = Bounded.exact(torch.zeros_like(K.value))
        state = {"K": K, "Theta": theta, **dict.fromkeys(_CORRECTIONS, zero)}
        rows = [state]
        for layer in range(depth - 1):
            state = self._step(state, ratios[layer], rates[0][layer], rates[1][layer], layer + 1)
            rows.append(state)
        return FlowTable(
            {name: torch.stack([row[name].value for row in rows]) for name in QUANTITIES},
            {name: torch.stack([row[name].error for row in rows]) for name in QUANTITIES},
            sizes,
        )

    def _step(
        self, old: dict[str, Bounded], ratio: float, lambda_b: float, lambda_W: float, layer: int
    ) -> dict[str, Bounded]:
        C, lW = float(self.C_W), lambda_W
        if not bool(torch.isfinite(old["K"].value).all()) or bool((old["K"].value > 1e150).any()):
            raise ValueError(f"the kernel explodes: K = {float(old['K'].value.max()):g} at layer {layer}")
        m = moments(self._act, old["K"].value, tol=self.tol).shifted(old["K"].error)
        return advance(
            m, {**old, **{name: ratio * old[name] for name in _CORRECTIONS}}, float(self.C_b), C, lambda_b, lW
        )


def advance(
    m: Moments, old: dict[str, Bounded], C_b: float, C: float, lambda_b: float, lambda_W: float
) -> dict[str, Bounded]:
    """One layer of Eqs. (2) to (9)."""
    g, g1, g2 = (m["s2", k] for k in range(3))
    h, h1, h2 = (m["d2", k] for k in range(3))
    mixed, s4, d4 = m["s2d2", 0], m["s4", 0], m["d4", 0]
    theta, V, G1, T1, D, F, A, B = (old[name] for name in ("Theta", "V", "G1", "T1", "D", "F", "A", "B"))
    par, perp = C * g1, C * h
    new: dict[str, Bounded] = {"K": C_b + C * g, "Theta": lambda_b + lambda_W * g + perp * theta}
    new["V"] = C**2 * (s4 - g.square()) + par.square() * V
    mean_shift = g1 * G1 + 0.5 * (g2 * V)
    new["G1"] = C * mean_shift
    new["F"] = par.square() * F + C**2 * (mixed * theta)
    new["B"] = perp.square() * B + C**2 * (d4 * theta.square())
    cross = (mixed - g * h) * theta + g1 * h1 * V * theta + h * g1 * D
    new["D"] = (lambda_W / C) * new["V"] + C**2 * cross
    spread = (d4 - h.square() + h1.square() * V) * theta.square() + 2 * (h * h1 * theta * D) + h.square() * A
    new["A"] = (lambda_W / C) ** 2 * new["V"] + 2 * lambda_W * C * cross + C**2 * spread
    new["T1"] = perp * T1 + lambda_W * mean_shift + C * ((h1 * G1 + 0.5 * (h2 * V)) * theta) + C * (h1 * (D + 2 * F))
    return new


def scale_invariant_variance(
    activation: Activation | Callable[[Tensor], Tensor], widths: Sequence[int]
) -> Float[Tensor, "layers"]:
    """Var(Khat_l) / K^2 at criticality to all orders in 1 / width, for activations with sigma(c z) = c sigma(z), c > 0.

    Khat_(l+1) = C_W mean sigma(z_l)^2 is the kernel given the weights below. Each of the hidden layers of widths n_1,
    n_2, ... multiplies E Khat^2 by 1 + nu / n, nu = 3 A_4 / A_2^2 - 1 (5 for the ReLU):

        Var(Khat_(l+1)) / K^2 = prod_(k <= l) (1 + nu / n_k) - 1

    Args:
        activation: a leaky ReLU, or any other such function.
        widths: of the hidden layers, n_1, n_2, ...

    Returns:
        The relative variance at layers 1..len(widths) + 1; it also is cov(z_i^2, z_j^2) / K^2 for i != j.

    Raises:
        ValueError: if the activation is not scale-invariant or zero, or a width is not positive.
    """
    slopes = as_activation(activation).homogeneous_slopes()
    if slopes is None or not any(slopes):
        raise ValueError("the activation is not scale-invariant: sigma(c z) = c sigma(z) for c > 0 does not hold")
    if not len(widths) or min(widths) < 1:
        raise ValueError(f"widths must be positive and at least one, got {list(widths)}")
    nu = 3 * 2 * (slopes[0] ** 4 + slopes[1] ** 4) / (slopes[0] ** 2 + slopes[1] ** 2) ** 2 - 1
    growth = torch.log1p(nu / torch.tensor(list(widths), dtype=torch.float64)).cumsum(0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), torch.expm1(growth)])


def check_variances(C_b: float | int, C_W: float | int) -> None:
    if not (math.isfinite(C_b) and C_b >= 0):
        raise ValueError(f"C_b, the variance of the biases, must be finite and not negative, got {C_b}")
    if not (math.isfinite(C_W) and C_W > 0):
        raise ValueError(f"C_W, the variance of the weights times their fan-in, must be positive and finite, got {C_W}")


def _per_layer(name: str, rate: float | int | Sequence[float | int], depth: int) -> list[float]:
    rates = [float(rate)] * (depth - 1) if isinstance(rate, float | int) else [float(x) for x in rate]
    if len(rates) != depth - 1:
        raise ValueError(
            f"{name} needs one rate for each of the layers 2..{depth}, {depth - 1} in all, got {len(rates)}"
        )
    if not all(math.isfinite(x) and x >= 0 for x in rates):
        raise ValueError(f"{name} must be finite and not negative, got {rate}")
    return rates


def _ratios(widths: Sequence[int] | None, depth: int) -> tuple[list[float], tuple[int, ...]]:
    """n_l / n_(l-1) for l = 1..depth-1; the first multiplies zeros."""
    if widths is None:
        return [1.0] * (depth - 1), ()
    sizes = tuple(int(width) for width in widths)
    if len(sizes) not in (depth - 1, depth) or min(sizes, default=1) < 1:
        raise ValueError(
            f"widths must be {depth - 1} (n_1..n_{depth - 1}) or {depth} positive numbers, got {list(widths)}"
        )
    return [1.0] + [after / before for before, after in pairwise(sizes)][: depth - 2], sizes
