"""Priors over the weights of a network, with hyperparameters that can be tuned, and the functions they induce.

Tran, Rossi, Milios & Filippone, JMLR 23, 2022, arXiv:2011.12829, section 3: Gaussian (GPi-G), hierarchical (GPi-H) and
normalising-flow (GPi-NF) priors. All have mean 0. Draws are differentiable by the hyperparameters.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from etude.theory.functional_priors.flows import PlanarFlow

__all__ = ["FlowWeightPrior", "GaussianWeightPrior", "HierarchicalWeightPrior", "WeightPrior"]

_INITIAL = math.log1p(math.e)
"""softplus(1) = 1.313, where the hyperparameters start."""

_PER = ("layer", "parameter")
_LARGE_FLOW = 20_000


class WeightPrior(nn.Module, ABC):
    """A distribution over all parameters of a network.

    Attributes:
        shapes: name of each parameter of the network -> its shape.
    """

    shapes: dict[str, torch.Size]

    def __init__(self, template: nn.Module):
        super().__init__()
        self._template = (template,)  # in a tuple: the network's own weights are no hyperparameters
        self.shapes = {name: parameter.shape for name, parameter in template.named_parameters()}
        if not self.shapes:
            raise ValueError(f"the network {type(template).__name__} has no parameters to put a prior on")

    @property
    def template(self) -> nn.Module:
        """The network; its own weights are not looked at."""
        return self._template[0]

    @abstractmethod
    def sample_params(self, n: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """n draws of all parameters: name -> (n, *shape). A generator must be on the prior's device."""

    @abstractmethod
    def log_prob(self, params: Mapping[str, Tensor]) -> Float[Tensor, "n"]:
        """Log-density of n sets of parameters, name -> (n, *shape)."""

    def sample_functions(
        self, x: Tensor, n: int, *, generator: torch.Generator | None = None, chunk_size: int | None = None
    ) -> Float[Tensor, "n points out"]:
        """n functions at the same inputs, differentiable by the hyperparameters.

        Args:
            x: (points, ...) inputs of the network.
            n: functions.
            generator: of the draws.
            chunk_size: how many functions are computed at once; all of them if None.
        """
        params = self.sample_params(n, generator=generator)
        x = x.to(next(iter(params.values())).dtype)
        return vmap(lambda one: functional_call(self.template, one, (x,)), chunk_size=chunk_size)(params)

    def _checked(self, params: Mapping[str, Tensor]) -> int:
        """The number of sets."""
        if set(params) != set(self.shapes):
            raise ValueError(f"parameters must be those of the network, {sorted(self.shapes)}, got {sorted(params)}")
        found = {name: tuple(value.shape[1:]) for name, value in params.items()}
        wrong = [name for name, shape in found.items() if shape != tuple(self.shapes[name])]
        if wrong or len({len(value) for value in params.values()}) > 1:
            at = wrong[0] if wrong else next(iter(found))
            raise ValueError(
                f"parameters must have shape (n, *shape) with one n, {at}: (n, {tuple(self.shapes[at])}), "
                f"got {tuple(params[at].shape)}"
            )
        return len(next(iter(params.values())))


def _key(name: str) -> str:
    return name.replace(".", "/")


def _softplus_inverse(value: float) -> float:
    return value + math.log(-math.expm1(-value))


class GaussianWeightPrior(WeightPrior):
    """Independent N(0, softplus(rho)^2), one rho for the weights of each layer and one for its biases: GPi-G.

        prior = GaussianWeightPrior(MLP(13, [100]))
        fixed = GaussianWeightPrior(MLP(13, [100]), std=1.0, trainable=False)      # FG, the usual N(0, 1)

    Args:
        template: the network.
        std: where all standard deviations start, > 0; softplus(1) = 1.31 by default.
        per: one rho a "layer" (its weights, its biases), or one for each "parameter".
        trainable: whether rho is a parameter.

    Raises:
        ValueError: if `std` is not positive or `per` unknown.
    """

    def __init__(self, template: nn.Module, *, std: float | int = _INITIAL, per: str = "layer", trainable: bool = True):
        super().__init__(template)
        if not 0 < std < math.inf:
            raise ValueError(f"std must be positive and finite, got {std}")
        if per not in _PER:
            raise ValueError(f"per must be one of {', '.join(_PER)}, got {per!r}")
        start = _softplus_inverse(float(std))
        self.rho = nn.ParameterDict(
            {
                _key(name): nn.Parameter(torch.full(() if per == "layer" else shape, start), requires_grad=trainable)
                for name, shape in self.shapes.items()
            }
        )

    def std(self, name: str) -> Tensor:
        """The standard deviation of a parameter of the network: a number, or of the parameter's shape."""
        return F.softplus(self.rho[_key(name)])

    def stds(self) -> dict[str, float]:
        """Of every parameter; the root mean square where there is one for each entry."""
        with torch.no_grad():
            return {name: float(self.std(name).square().mean().sqrt()) for name in self.shapes}

    def sample_params(self, n: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        draws = {}
        for name, shape in self.shapes.items():
            std = self.std(name)
            draws[name] = std * torch.randn(n, *shape, generator=generator, dtype=std.dtype, device=std.device)
        return draws

    def log_prob(self, params: Mapping[str, Tensor]) -> Float[Tensor, "n"]:
        n = self._checked(params)
        total: Tensor | float = 0.0
        for name, value in params.items():
            std = self.std(name)
            logs = torch.log(std) * (self.shapes[name].numel() if std.ndim == 0 else 1)
            constant = logs.sum() + 0.5 * math.log(2 * math.pi) * self.shapes[name].numel()
            total = total - 0.5 * (value / std).reshape(n, -1).square().sum(1) - constant
        assert isinstance(total, Tensor)
        return total


class HierarchicalWeightPrior(WeightPrior):
    """N(0, v) with v ~ InvGamma(softplus(a), softplus(c)), shape and rate, for weights and biases of each layer: GPi-H.

        prior = HierarchicalWeightPrior(MLP(13, [100]))
        fixed = HierarchicalWeightPrior(MLP(13, [100]), shape=1.0, rate=1.0, trainable=False)      # FH

    Every function has variances of its own, so that functions are independent draws from the prior. The official code
    draws one variance for all functions of a batch: `shared=True`.

    Args:
        template: the network.
        shape, rate: where the hyperparameters start, > 0; softplus(1) = 1.31 by default.
        shared: one draw of the variances for all functions of a call of `sample_params`.
        trainable: whether a and c are parameters.

    Raises:
        ValueError: if `shape` or `rate` is not positive.
    """

    def __init__(
        self,
        template: nn.Module,
        *,
        shape: float | int = _INITIAL,
        rate: float | int = _INITIAL,
        shared: bool = False,
        trainable: bool = True,
    ):
        super().__init__(template)
        if not (0 < shape < math.inf and 0 < rate < math.inf):
            raise ValueError(f"shape and rate must be positive and finite, got {shape} and {rate}")
        self.shared = shared
        self.a, self.c = (
            nn.ParameterDict(
                {
                    _key(name): nn.Parameter(torch.tensor(_softplus_inverse(float(value))), requires_grad=trainable)
                    for name in self.shapes
                }
            )
            for value in (shape, rate)
        )

    def shape_rate(self, name: str) -> tuple[Tensor, Tensor]:
        """Shape and rate of the inverse gamma distribution of a parameter's variance."""
        return F.softplus(self.a[_key(name)]), F.softplus(self.c[_key(name)])

    def sample_precisions(self, n: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """n draws of 1 / v for every parameter: name -> (n,)."""
        drawn = {}
        for name in self.shapes:
            shape, rate = self.shape_rate(name)
            drawn[name] = _gamma(shape.expand(n), rate.expand(n), generator)
        return drawn

    def sample_params(self, n: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        precisions = self.sample_precisions(1 if self.shared else n, generator=generator)
        draws = {}
        for name, shape in self.shapes.items():
            std = precisions[name].rsqrt().reshape(-1, *[1] * len(shape))
            draws[name] = std * torch.randn(n, *shape, generator=generator, dtype=std.dtype, device=std.device)
        return draws

    def log_prob(self, params: Mapping[str, Tensor], precisions: Mapping[str, Tensor] | None = None) -> Tensor:
        """Log-density (n,): with the variances integrated out, or given the precisions, name -> (n,)."""
        n = self._checked(params)
        total: Tensor | float = 0.0
        for name, value in params.items():
            count = self.shapes[name].numel()
            half = 0.5 * value.reshape(n, -1).square().sum(1)
            constant = 0.5 * count * math.log(2 * math.pi)
            if precisions is None:
                shape, rate = self.shape_rate(name)
                top = shape + 0.5 * count
                gammas = torch.lgamma(top) - torch.lgamma(shape) + shape * torch.log(rate)
                total = total + gammas - top * torch.log(rate + half) - constant
            else:
                precision = precisions[name]
                total = total + 0.5 * count * torch.log(precision) - precision * half - constant
        assert isinstance(total, Tensor)
        return total

    @torch.no_grad()
    def resample(self, params: Mapping[str, Tensor], *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """A Gibbs step: precisions given the parameters, Gamma(shape + n / 2, rate + sum theta^2 / 2).

        The softplus is applied to the hyperparameters only, not to these sums.
        """
        n = self._checked(params)
        drawn = {}
        for name, value in params.items():
            shape, rate = self.shape_rate(name)
            rate = rate + 0.5 * value.reshape(n, -1).square().sum(1)
            drawn[name] = _gamma((shape + 0.5 * self.shapes[name].numel()).expand(n), rate, generator)
        return drawn


def _gamma(shape: Tensor, rate: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gamma draws, differentiable by both; `torch.distributions` takes no generator."""
    standard = torch._standard_gamma(shape.contiguous(), generator=generator)
    return standard.clamp(min=torch.finfo(shape.dtype).tiny * 1e6) / rate


class FlowWeightPrior(WeightPrior):
    """A planar flow over each layer's weights and biases together, as one vector: GPi-NF.

        prior = FlowWeightPrior(MLP(1, [50, 50]))
        fixed = FlowWeightPrior(MLP(1, [50, 50]), trainable=False)      # the flow as it starts

    One planar map bends one direction of a space of thousands: on layers of 100 x 100 such flows do little more than
    their diagonal variances. They are meant for small networks.

    Args:
        template: the network; a layer is a module with parameters of its own.
        maps: planar maps of each layer.
        generator: draws their first parameters.
        trainable: whether the flow's parameters are trained.

    Raises:
        ValueError: if `maps` is negative, or a layer has more than 20,000 parameters.
    """

    def __init__(
        self,
        template: nn.Module,
        *,
        maps: int = 4,
        generator: torch.Generator | None = None,
        trainable: bool = True,
    ):
        super().__init__(template)
        self.groups: dict[str, list[str]] = {}
        for name in self.shapes:
            self.groups.setdefault(name.rpartition(".")[0], []).append(name)
        sizes = {layer: sum(self.shapes[name].numel() for name in names) for layer, names in self.groups.items()}
        layer, largest = max(sizes.items(), key=lambda item: item[1])
        if largest > _LARGE_FLOW:
            raise ValueError(
                f"layer {layer or type(template).__name__} has {largest:,} parameters: planar maps do nothing useful "
                f"above {_LARGE_FLOW:,}; take a GaussianWeightPrior or a narrower network"
            )
        self.flows = nn.ModuleDict({_key(layer) or "all": PlanarFlow(n, maps, generator) for layer, n in sizes.items()})
        self.requires_grad_(trainable)

    def _flow(self, layer: str) -> PlanarFlow:
        flow = self.flows[_key(layer) or "all"]
        assert isinstance(flow, PlanarFlow)
        return flow

    def sample_params(self, n: int, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        draws = {}
        for layer, names in self.groups.items():
            parts = self._flow(layer).rsample(n, generator).split([self.shapes[name].numel() for name in names], dim=1)
            draws.update({name: part.reshape(n, *self.shapes[name]) for name, part in zip(names, parts)})
        return draws

    def log_prob(self, params: Mapping[str, Tensor]) -> Float[Tensor, "n"]:
        n = self._checked(params)
        logs = [
            self._flow(layer).log_prob(torch.cat([params[name].reshape(n, -1) for name in names], 1))
            for layer, names in self.groups.items()
        ]
        return torch.stack(logs).sum(0)
