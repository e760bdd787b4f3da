"""Ensembles of finite networks at initialisation, sampled: the referee of the recursions in `flow`.

All networks of an ensemble go through a layer in one batched product, for one input, without automatic
differentiation: with s = sigma(z_l), the next layer and its NTK over neurons are, exactly,

    z+ = b + W s,   H+ = (lambda_b + lambda_W mean s^2) I + (W diag s') H (W diag s')^T                     (1)

W and b are drawn with variances C_W / n and C_b, and z_1 ~ N(0, K_1) for each neuron. Where the NTK is not wanted, W
need not be drawn: given s, the neurons of z+ are independent N(0, Khat), Khat = C_b + C_W mean s^2, so that drawing
them so is the same ensemble at a cost of n a layer in place of n^2. Statistics are those of `flow`, Eqs. (3) to (9),
from pairs of different neurons, which estimates V without the noise of E z^4.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from etude.nn.gaussian import Estimate
from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.criticality import critical_init
from etude.theory.pdlt.flow import QUANTITIES, check_variances
from etude.theory.pdlt.moments import checked_variances

__all__ = ["EnsembleMoments", "next_layer", "sample_ensemble"]

_CHUNK = 1 << 21
"""Entries of one array of weights or kernels, R n^2; several are alive at a time."""


@dataclass(frozen=True, eq=False)
class EnsembleMoments:
    """Statistics of an ensemble at layers 1..depth, in the scale of `FlowTable`: coefficients of 1 / fan-in.

    Attributes:
        values, errors: quantity -> (depth,) and one standard error of each. "K" is E z^2 and "Theta" E H_11 of this
            width, K + G1 / n and Theta + T1 / n of the recursion; "Khat" is Var(Khat) / K^2 = cov(z_1^2, z_2^2) / K^2.
            Without the NTK there are K, V and Khat only.
        widths: of the layers. num_networks: how many were drawn.
    """

    values: dict[str, Float[Tensor, "depth"]]
    errors: dict[str, Float[Tensor, "depth"]]
    widths: tuple[int, ...]
    num_networks: int

    def __getitem__(self, name: str) -> Estimate:
        """A statistic and its standard error, one entry a layer."""
        if name not in self.values:
            raise KeyError(f"the ensemble has {', '.join(self.values)}, no {name!r}")
        return Estimate(self.values[name], self.errors[name])


def sample_ensemble(
    activation: Activation | Callable[[Tensor], Tensor],
    width: int | Sequence[int],
    depth: int,
    num_networks: int,
    generator: torch.Generator | None = None,
    *,
    C_b: float | int | None = None,
    C_W: float | int | None = None,
    K1: float | int | None = None,
    with_ntk: bool = False,
    weights: bool | None = None,
    Theta1: float | int | None = None,
    lambda_b: float | int = 1.0,
    lambda_W: float | int = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> EnsembleMoments:
    """Draws networks and measures, at each layer, what `FiniteWidthFlow` predicts.

        sample_ensemble(torch.tanh, 64, 5, 6_000, K1=0.5, with_ntk=True, Theta1=2.0)["V"]

    Args:
        activation: elementwise function or module, or an `Activation`.
        width: of every layer, or n_1..n_depth.
        depth: of the last layer, at least 1.
        num_networks: at least 2; memory is bounded by drawing them in parts.
        generator: of the weights.
        C_b, C_W: as for `FiniteWidthFlow`; those of `critical_init` if both are None.
        K1: C_b + C_W |x|^2 / n_0; K* if that is positive and nothing is given, else C_b + C_W.
        lambda_b, lambda_W: as for `FiniteWidthFlow`, for all layers alike.
        with_ntk: also the NTK, at n^3 a network and layer.
        weights: draw the weights themselves, n^2 a network and layer; by default only where the NTK needs them.
        Theta1: lambda_b + lambda_W |x|^2 / n_0; 0 if None, which leaves the first layer's own parameters out.
        dtype: float32 is far below the sampling error; moments add up in float64.
        device: where the networks live; draws are the generator's, on its device.
        progress: called with the number of networks done and of all.

    Raises:
        NoCriticalPoint: if C_b and C_W are not given and the activation has none.
        ValueError: if an argument is out of range, or the signal overflows.
    """
    act = as_activation(activation)
    if (C_b is None) != (C_W is None):
        raise ValueError(f"C_b and C_W belong together: give both, or neither for criticality, got {C_b} and {C_W}")
    if C_b is None or C_W is None:
        point = critical_init(act)
        C_b, C_W = point.C_b, point.C_W
        K1 = point.K_star if K1 is None and point.K_star > 0 else K1
    K1 = C_b + C_W if K1 is None else K1
    check_variances(C_b, C_W)
    checked_variances(K1)
    if num_networks < 2:
        raise ValueError(f"num_networks must be at least 2, for an error, got {num_networks}")
    if depth < 1:
        raise ValueError(f"depth counts layers and must be at least 1, got {depth}")
    widths = (width,) * depth if isinstance(width, int) else tuple(width)
    if len(widths) != depth or min(widths) < 2:
        raise ValueError(f"width must be one number or {depth}, each at least 2, for pairs of neurons, got {width}")
    if with_ntk and weights is False:
        raise ValueError("the NTK needs the weights: with_ntk=True and weights=False exclude each other")
    weights = with_ntk if weights is None else weights
    recipe = _Recipe(
        act, widths, float(C_b), float(C_W), float(K1), weights, float(Theta1 or 0.0) if with_ntk else None,
        float(lambda_b), float(lambda_W), dtype, torch.device(device), generator,
    )  # fmt: skip
    part = max(_CHUNK // max(widths) ** (2 if weights else 1), 1)
    rows: list[list[dict[str, Tensor]]] = [[] for _ in widths]
    done = 0
    while done < num_networks:
        count = min(part, num_networks - done)
        for layer, (z, H) in enumerate(_layers(recipe, count)):
            rows[layer].append(_per_network(z, H))
        done += count
        if progress is not None:
            progress(done, num_networks)
    values: dict[str, list[Tensor]] = {}
    errors: dict[str, list[Tensor]] = {}
    for layer, found in enumerate(rows):
        samples = {name: torch.cat([row[name] for row in found]) for name in found[0]}
        if not all(bool(torch.isfinite(x).all()) for x in samples.values()):
            raise ValueError(f"the signal overflows {dtype} at layer {layer + 1}: C_W = {C_W} is far from critical")
        fan_in = widths[layer - 1] if layer else 1
        for name, (value, error) in _statistics(samples, fan_in).items():
            values.setdefault(name, []).append(value)
            errors.setdefault(name, []).append(error)
    order = ["Khat", *QUANTITIES]
    return EnsembleMoments(
        {name: torch.stack(values[name]) for name in order if name in values},
        {name: torch.stack(errors[name]) for name in order if name in errors},
        widths,
        num_networks,
    )


def next_layer(
    act: Activation, z: Tensor, H: Tensor | None, W: Tensor, b: Tensor | None, lambda_b: float, lambda_W: float
) -> tuple[Tensor, Tensor | None]:
    """Eq. (1) for a batch of networks: z (networks, n), H (networks, n, n), W (networks, m, n), b (networks, m)."""
    s, slope = (act(z), z) if H is None else act.both(z)
    after = torch.bmm(W, s.unsqueeze(-1)).squeeze(-1)
    after = after if b is None else after + b
    if H is None:
        return after, None
    carried = W * slope.unsqueeze(-2)
    new = torch.bmm(torch.bmm(carried, H), carried.transpose(1, 2))
    own = lambda_b + lambda_W * s.square().mean(-1)
    new.diagonal(dim1=1, dim2=2).add_(own.unsqueeze(-1))
    return after, new


@dataclass(frozen=True)
class _Recipe:
    act: Activation
    widths: tuple[int, ...]
    C_b: float
    C_W: float
    K1: float
    weights: bool
    Theta1: float | None
    lambda_b: float
    lambda_W: float
    dtype: torch.dtype
    device: torch.device
    generator: torch.Generator | None

    def draw(self, *shape: int) -> Tensor:
        where = self.device if self.generator is None else self.generator.device
        return torch.randn(*shape, generator=self.generator, dtype=self.dtype, device=where).to(self.device)


def _layers(recipe: _Recipe, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """z and H of layer 1, 2, ... of `count` networks."""
    widths, C_b, C_W = recipe.widths, recipe.C_b, recipe.C_W
    z = recipe.draw(count, widths[0]) * math.sqrt(recipe.K1)
    H = None
    if recipe.Theta1 is not None:
        unit = torch.eye(widths[0], dtype=recipe.dtype, device=recipe.device)
        H = (recipe.Theta1 * unit).expand(count, -1, -1)
    yield z, H
    for before, after in pairwise(widths):
        if recipe.weights:
            W = recipe.draw(count, after, before).mul_(math.sqrt(C_W / before))
            b = recipe.draw(count, after).mul_(math.sqrt(C_b)) if C_b else None
            z, H = next_layer(recipe.act, z, H, W, b, recipe.lambda_b, recipe.lambda_W)
        else:
            kernel = C_b + C_W * recipe.act(z).square().mean(1, keepdim=True)
            z = recipe.draw(count, after) * kernel.sqrt()
        yield z, H


def _per_network(z: Tensor, H: Tensor | None) -> dict[str, Tensor]:
    """Means over the neurons, and over the pairs of different neurons, of each network; float64 (networks,)."""
    n = z.shape[1]
    pairs = n * (n - 1)
    z = z.double()
    z2 = z.square()
    total = z2.sum(1)
    found = {"z2": total / n, "z2z2": (total.square() - z2.square().sum(1)) / pairs}
    if H is not None:
        diagonal = H.diagonal(dim1=1, dim2=2).double()
        trace, squares = diagonal.sum(1), diagonal.square().sum(1)
        through = torch.bmm(H, z.to(H.dtype).unsqueeze(-1)).squeeze(-1).double()
        found["H"] = trace / n
        found["HH"] = (trace.square() - squares) / pairs
        found["Hz2"] = (trace * total - (diagonal * z2).sum(1)) / pairs
        found["H12zz"] = ((through * z).sum(1) - (diagonal * z2).sum(1)) / pairs
        found["H12H12"] = (H.flatten(1).square().sum(1).double() - squares) / pairs
    return found


def _statistics(x: dict[str, Tensor], fan_in: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Means and covariances over the ensemble, with standard errors by linearisation."""
    count = len(x["z2"])

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        return values.mean(), values.std() / math.sqrt(count)

    def covariance(product: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        value = product.mean() - left.mean() * right.mean()
        spread = (product - left.mean() * right - right.mean() * left).std()
        return fan_in * value, fan_in * spread / math.sqrt(count)

    found = {"K": mean(x["z2"]), "V": covariance(x["z2z2"], x["z2"], x["z2"])}
    K, product = x["z2"].mean(), x["z2z2"].mean()
    # Of (E z_1^2 z_2^2 - K^2) / K^2.
    spread = (x["z2z2"] / K.square() - 2 * product / K**3 * x["z2"]).std()
    found["Khat"] = (product / K.square() - 1, spread / math.sqrt(count))
    if "H" in x:
        found["Theta"] = mean(x["H"])
        found["A"] = covariance(x["HH"], x["H"], x["H"])
        found["D"] = covariance(x["Hz2"], x["H"], x["z2"])
        for name, key in (("F", "H12zz"), ("B", "H12H12")):
            value, error = mean(x[key])
            found[name] = (fan_in * value, fan_in * error)
    return found
