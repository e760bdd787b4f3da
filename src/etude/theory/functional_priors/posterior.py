"""Draws from the posterior of a network under a weight prior, all chains at once.

Tran et al., JMLR 23, 2022, arXiv:2011.12829, section 4. The potential over mini-batches of B of N rows is

    U = ((N / B) sum -log p(y | f(x)) - log p(theta)) / temperature                                          (1)

The prior is not divided by the mini-batches. Chains are a leading dimension of one vector of parameters; the network
is applied to all of them by `torch.func.vmap`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from etude.theory.functional_priors.diagnostics import effective_sample_size, split_rhat
from etude.theory.functional_priors.sghmc import AdaptiveSGHMC, hmc_step
from etude.theory.functional_priors.weight_priors import (
    GaussianWeightPrior,
    HierarchicalWeightPrior,
    WeightPrior,
)

__all__ = ["CategoricalLikelihood", "GaussianLikelihood", "Posterior", "sample_posterior"]

_SAMPLERS = ("adaptive_sghmc", "sghmc", "hmc")


@dataclass(frozen=True)
class GaussianLikelihood:
    """y ~ N(f, noise_variance), for one output or several."""

    noise_variance: float | int

    def __post_init__(self):
        if not 0 < self.noise_variance < math.inf:
            raise ValueError(f"noise_variance must be positive and finite, got {self.noise_variance}")

    def __call__(self, f: Float[Tensor, "n out"], y: Tensor) -> Float[Tensor, ""]:
        """-sum log p(y | f)."""
        squares = (f - y.reshape(f.shape)).square().sum()
        return 0.5 * (squares / self.noise_variance + f.numel() * math.log(2 * math.pi * self.noise_variance))


@dataclass(frozen=True)
class CategoricalLikelihood:
    """Classes by the softmax of the outputs."""

    def __call__(self, f: Float[Tensor, "n classes"], y: Tensor) -> Float[Tensor, ""]:
        """-sum log p(y | f)."""
        return F.cross_entropy(f, y, reduction="sum")


class Posterior:
    """Draws of all parameters of a network.

    Attributes:
        params: name -> (chains, draws, *shape).
        clamped_fraction, noise_deficit: see `AdaptiveSGHMC`; 0 under "hmc".
        acceptance: share of proposals accepted under "hmc"; else None.
    """

    def __init__(
        self,
        module: nn.Module,
        params: dict[str, Tensor],
        clamped_fraction: float = 0.0,
        noise_deficit: float = 0.0,
        acceptance: float | None = None,
    ):
        self.params, self.clamped_fraction, self.noise_deficit = params, clamped_fraction, noise_deficit
        self.acceptance = acceptance
        self._module = module
        self.chains, self.draws = next(iter(params.values())).shape[:2]

    def functions(self, x: Tensor, chunk_size: int | None = 256) -> Float[Tensor, "chains draws n out"]:
        """The network's outputs at inputs under every draw."""
        flat = {name: value.flatten(0, 1) for name, value in self.params.items()}
        x = x.to(next(iter(flat.values())))
        with torch.no_grad():
            f = vmap(lambda one: functional_call(self._module, one, (x,)), chunk_size=chunk_size)(flat)
        return f.unflatten(0, (self.chains, self.draws))

    def moments(self, x: Tensor) -> tuple[Float[Tensor, "n out"], Float[Tensor, "n out"]]:
        """Mean and variance of the function over all draws."""
        f = self.functions(x).flatten(0, 1)
        return f.mean(0), f.var(0)

    def probabilities(self, x: Tensor) -> Float[Tensor, "n classes"]:
        """Mean of the softmax over all draws."""
        return self.functions(x).softmax(-1).mean(dim=(0, 1))

    def diagnostics(self, x: Tensor) -> dict[str, Tensor]:
        """`r_hat` and `ess` of the function at inputs, each (n, out). Weights themselves have too many symmetries."""
        f = self.functions(x)
        return {"r_hat": split_rhat(f), "ess": effective_sample_size(f)}


def sample_posterior(
    module: nn.Module,
    prior: WeightPrior,
    likelihood: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    *,
    chains: int = 4,
    burn_in: int = 2_000,
    samples: int = 40,
    keep_every: int = 2_000,
    discard: int = 10,
    batch_size: int = 32,
    lr: float | int = 1e-2,
    mdecay: float | int = 1e-2,
    sampler: str = "adaptive_sghmc",
    leapfrog: int = 20,
    temperature: float | int = 1.0,
    gibbs_every: int = 1_000,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """Runs the chains, from draws of the prior, and keeps every `keep_every`-th state after the burn-in.

        posterior = sample_posterior(MLP(13, [100]), prior, GaussianLikelihood(0.1), (x, y))
        mean, variance = posterior.moments(x_new)

    The defaults are the paper's for UCI tables: 2,000 + 40 x 2,000 steps, of whose samples the first 10 are left out.

    Args:
        module: the network; its own weights are not looked at.
        prior: over its parameters. Under a `HierarchicalWeightPrior` the precisions of the layers are drawn by a Gibbs
            step every `gibbs_every` steps.
        likelihood: -log-likelihood of outputs (n, out) and targets, summed; such as `GaussianLikelihood`.
        data: inputs (n, ...) and targets (n, ...), in the units of the network.
        chains: how many.
        burn_in, samples, keep_every, discard: the schedule; `discard` of the `samples` of each chain are left out.
        batch_size: rows of a mini-batch, each chain its own; all rows if there are fewer. "hmc" takes all.
        lr, mdecay: as for `AdaptiveSGHMC`; lr is the step size of "hmc".
        sampler: "adaptive_sghmc", "sghmc" (plain) or "hmc".
        leapfrog: steps of the integrator in each step of "hmc".
        temperature: of the posterior, > 0.
        generator: of all draws; or one for each chain, whose draws are then the same alone or among others.
        progress: called at times with the steps done and all.

    Raises:
        ValueError: if a number is out of range, inputs and targets differ in length, or a chain diverges.
    """
    x, y = data
    _check_schedule(chains, burn_in, samples, keep_every, discard, batch_size, temperature, gibbs_every)
    if sampler not in _SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(_SAMPLERS)}, got {sampler!r}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"inputs and targets must be as many rows, at least one, got {len(x)} and {len(y)}")
    generators = _one_each(generator, chains)
    start = [prior.sample_params(1, generator=one) for one in generators]
    start = [{name: value.detach() for name, value in each.items()} for each in start]
    shapes = prior.shapes
    theta = torch.cat([torch.cat([each[name].flatten() for name in shapes])[None] for each in start])
    x = x.to(theta)
    batch = len(x) if sampler == "hmc" else min(batch_size, len(x))
    y = y.to(theta.device, theta.dtype if y.is_floating_point() else y.dtype)
    weights = _precisions(prior, start)

    def unpacked(flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in shapes.values()], dim=-1)
        return {name: part.reshape(*flat.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts)}

    def loss(params: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        return likelihood(functional_call(module, params, (inputs,)), targets)

    each_its_own = vmap(loss)
    all_alike = vmap(loss, in_dims=(0, None, None))

    def potential(flat: Tensor, rows: Tensor | None, precisions: Tensor | None) -> Tensor:
        params = unpacked(flat)
        data_term = all_alike(params, x, y) if rows is None else each_its_own(params, x[rows], y[rows])
        # A Gaussian prior is a quadratic form, up to a constant that moves nothing.
        minus_prior = -prior.log_prob(params) if precisions is None else 0.5 * (flat.square() * precisions).sum(1)
        return ((len(x) / batch) * data_term + minus_prior) / temperature

    def gradient(flat: Tensor, rows: Tensor | None, precisions: Tensor | None) -> Tensor:
        flat = flat.detach().requires_grad_()
        return torch.autograd.grad(potential(flat, rows, precisions).sum(), flat)[0]

    frozen = [value for value in prior.parameters() if value.requires_grad]
    for value in frozen:
        value.requires_grad_(False)
    try:
        theta.requires_grad_(True)
        move = AdaptiveSGHMC(
            [theta], lr=lr, mdecay=mdecay, burn_in=burn_in, adaptive=sampler == "adaptive_sghmc", generator=generators
        )
        batches = _Batches(len(x), batch, generators, theta.device)
        total, kept, accepted = burn_in + samples * keep_every, [], 0.0
        if sampler != "hmc" and total >= _WORTH_TRACING:
            rows = None if batch == len(x) else torch.arange(batch, device=theta.device).repeat(chains, 1)
            gradient = _traced(gradient, theta.detach(), rows, weights)
        for step in range(1, total + 1):
            if sampler == "hmc":
                state, taken = hmc_step(
                    partial(potential, rows=None, precisions=weights),
                    theta,
                    step_size=lr,
                    leapfrog=leapfrog,
                    generator=generators,
                )
                with torch.no_grad():
                    theta.copy_(state)
                accepted += float(taken.double().mean()) / total
            else:
                theta.grad = gradient(theta, batches.draw(), weights)
                move.step()
            if isinstance(prior, HierarchicalWeightPrior) and step % gibbs_every == 0:
                weights = _gibbs(prior, unpacked(theta.detach()), generators)
            if step > burn_in and (step - burn_in) % keep_every == 0:
                kept.append(theta.detach().clone())
            if step % 100 == 0 or step == total:
                if not bool(torch.isfinite(theta).all()):
                    raise ValueError(f"a chain has diverged within {step} steps at lr={lr}; take a smaller lr")
                if progress is not None:
                    progress(step, total)
    finally:
        for value in frozen:
            value.requires_grad_(True)
    drawn = unpacked(torch.stack(kept[discard:], dim=1))
    rate = accepted if sampler == "hmc" else None
    return Posterior(module, drawn, move.clamped_fraction, move.noise_deficit, rate)


_WORTH_TRACING = 500
"""Steps from which on it saves time to write the gradient's operations down first."""


def _traced(gradient: Callable[..., Tensor], *example: Tensor | None) -> Callable[..., Tensor]:
    """The same operations on the same numbers, without the bookkeeping of `vmap` and of autograd at every step.

    A function that cannot be written down, or whose operations depend on the numbers, stays as it is.
    """
    given = [value for value in example if value is not None]

    def whole(*values: Tensor) -> Tensor:
        rest = iter(values)
        return gradient(*(None if value is None else next(rest) for value in example))

    moved = [value.clone() if value.is_floating_point() else value.flip(-1) for value in given]
    moved[0].mul_(-2)
    try:
        graph = make_fx(whole)(*given)
        if not torch.equal(graph(*moved), whole(*moved)):
            return gradient
    except Exception:  # whatever a user's module holds against it
        return gradient
    run = graph.forward
    return lambda *values: run(*(value for value in values if value is not None))


def _check_schedule(
    chains: int,
    burn_in: int,
    samples: int,
    keep_every: int,
    discard: int,
    batch: int,
    temperature: float | int,
    gibbs: int,
) -> None:
    if min(chains, samples, keep_every, batch, gibbs) < 1 or burn_in < 0:
        raise ValueError(
            "chains, samples, keep_every, batch_size and gibbs_every must be at least 1 and burn_in at least 0, got "
            f"{chains}, {samples}, {keep_every}, {batch}, {gibbs} and {burn_in}"
        )
    if not 0 <= discard < samples:
        raise ValueError(f"discard must lie in 0..{samples - 1}, below the number of samples, got {discard}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _one_each(generator: Any, chains: int) -> list[torch.Generator]:
    """A generator for each chain, seeded from the one given."""
    if generator is not None and not isinstance(generator, torch.Generator):
        if len(generator) != chains:
            raise ValueError(f"there must be one generator a chain, {chains}, got {len(generator)}")
        return list(generator)
    device = torch.device("cpu") if generator is None else generator.device
    seeds = torch.randint(2**62, (chains,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds]


def _precisions(prior: WeightPrior, start: list[dict[str, Tensor]]) -> Tensor | None:
    """Of a Gaussian prior, or one given its variances, the precision of each entry, (chains, parameters).

    A hierarchical prior begins with precisions that belong to the first state.
    """
    if isinstance(prior, GaussianWeightPrior):
        each = {name: prior.std(name).detach().expand(shape) ** -2 for name, shape in prior.shapes.items()}
        return torch.cat([value.flatten() for value in each.values()])[None]
    if isinstance(prior, HierarchicalWeightPrior):
        drawn = [1 / each[name].flatten(1).square().mean(1).clamp(min=1e-12) for each in start for name in prior.shapes]
        return _spread(prior, torch.cat(drawn).reshape(len(start), -1))
    return None


def _gibbs(prior: HierarchicalWeightPrior, params: dict[str, Tensor], generators: list[torch.Generator]) -> Tensor:
    """Precisions given the parameters; each chain draws its own."""
    rows = []
    for chain, one in enumerate(generators):
        drawn = prior.resample({name: value[chain : chain + 1] for name, value in params.items()}, generator=one)
        rows.append(torch.cat([drawn[name] for name in prior.shapes]))
    return _spread(prior, torch.stack(rows))


def _spread(prior: WeightPrior, each: Tensor) -> Tensor:
    """(chains, names) to one number an entry."""
    counts = torch.tensor([shape.numel() for shape in prior.shapes.values()], device=each.device)
    return each.repeat_interleave(counts, dim=1)


class _Batches:
    """Rows of mini-batches, each chain in an order of its own, without replacement within an epoch."""

    def __init__(self, rows: int, batch: int, generators: list[torch.Generator], device: torch.device):
        self.rows, self.batch, self.generators, self.device = rows, batch, generators, device
        self.place = rows

    def draw(self) -> Tensor | None:
        """(chains, batch); None for all rows."""
        if self.batch == self.rows:
            return None
        if self.place + self.batch > self.rows:
            orders = [torch.randperm(self.rows, generator=one, device=one.device) for one in self.generators]
            self.order, self.place = torch.stack(orders).to(self.device), 0
        self.place += self.batch
        return self.order[:, self.place - self.batch : self.place]
