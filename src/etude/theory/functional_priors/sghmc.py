"""Scale-adapted stochastic-gradient Hamiltonian Monte Carlo, and Hamiltonian Monte Carlo with full batches.

Springenberg, Klein, Falkner & Hutter, "Bayesian Optimization with Robust Bayesian Neural Networks", NIPS 2016, as used
in arXiv:2011.12829, appendix. With all states beginning at tau = g = v = 1, m = 0, and G the gradient of the potential
U = -log posterior, each entry moves by

    during burn-in:  t = 1 / (tau + 1),  tau <- tau + 1 - tau g^2 / v,  g <- g + t (G - g),  v <- v + t (G^2 - v)  (1)
    always:          M = 1 / sqrt(v),  m <- m - lr^2 M G - mdecay m + N(0, 2 lr^2 mdecay M - lr^4)                 (2)
                     theta <- theta + m

The scale M is fixed after burn-in: adapting it further would change what the chain is stationary for. Parameters may
have a leading dimension of chains; everything here acts entry by entry.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["AdaptiveSGHMC", "draw_normal", "hmc_step"]

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_normal(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal draws of the shape of `like`; of several generators, each draws one row."""
    if generator is None or isinstance(generator, torch.Generator):
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
    if len(generator) != len(like):
        raise ValueError(f"there must be one generator a chain, {len(like)}, got {len(generator)}")
    rows = [torch.randn(like.shape[1:], generator=one, dtype=like.dtype, device=one.device) for one in generator]
    return torch.stack(rows).to(like.device)


class AdaptiveSGHMC(Optimizer):
    """Draws from exp(-U) by Eqs. (1) and (2), as a `torch.optim` optimizer: `backward` on U, then `step`.

        theta = torch.zeros(4000, 1, requires_grad=True)                    # 4,000 chains side by side
        sampler = AdaptiveSGHMC([theta], lr=0.1, mdecay=0.05, burn_in=500)
        for _ in range(2000):
            sampler.zero_grad()
            (0.5 * theta.square().sum()).backward()
            sampler.step()

    Args:
        params: as for any optimizer.
        lr: step size. mdecay: friction.
        burn_in: steps during which scales adapt.
        eps: added to the root of v, for entries without any gradient.
        adaptive: False leaves M at 1, which is plain SGHMC (Chen, Fox & Guestrin, ICML 2014).
        generator: of the noise; or one for each row of the parameters, so that a chain is the same alone or among
            others.

    Attributes:
        clamped_fraction: share of all entries and steps whose variance in Eq. (2) was not positive, because
            lr^2 > 2 mdecay M, and was raised to 1e-16.
        noise_deficit: mean of lr^2 / (2 mdecay M), at most 1: the share of the noise that the term lr^4 takes away. It
            is meant to make room for the noise of mini-batches, but does not grow with it; with full batches the
            variance of the draws falls short by about as much. Take a smaller lr or a larger mdecay.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | int = 1e-2,
        mdecay: float | int = 1e-2,
        burn_in: int = 2_000,
        eps: float | int = 1e-10,
        *,
        adaptive: bool = True,
        generator: Generators = None,
    ):
        if not lr > 0 or not 0 < mdecay <= 1 or burn_in < 0 or eps < 0:
            raise ValueError(
                f"lr > 0, mdecay in (0, 1], burn_in >= 0 and eps >= 0 are needed, got {lr}, {mdecay}, {burn_in}, {eps}"
            )
        super().__init__(params, {"lr": lr, "mdecay": mdecay, "burn_in": burn_in, "eps": eps, "adaptive": adaptive})
        self.generator = generator
        self._clamped: Any = 0
        self._deficit: Any = 0.0
        self._entries = 0

    @property
    def clamped_fraction(self) -> float:
        return int(self._clamped) / max(self._entries, 1)

    @property
    def noise_deficit(self) -> float:
        return float(self._deficit) / max(self._entries, 1)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, theta: Tensor, group: dict[str, Any]) -> None:
        state, grad = self.state[theta], theta.grad
        assert grad is not None
        if not state:
            state["step"] = 0
            state["tau"], state["g"], state["v"] = (torch.ones_like(theta) for _ in range(3))
            state["m"] = torch.zeros_like(theta)
        state["step"] += 1
        if group["adaptive"] and state["step"] <= group["burn_in"]:
            tau, g, v = state["tau"], state["g"], state["v"]
            rate = 1 / (tau + 1)
            tau.add_(1 - tau * g.square() / (v + group["eps"]))
            g.add_(rate * (grad - g))
            v.add_(rate * (grad.square() - v))
            state.pop("kick", None)
        if "kick" not in state:
            # After burn-in these do not change any more.
            inverse = 1 / (state["v"].sqrt() + group["eps"]) if group["adaptive"] else torch.ones_like(theta)
            lr = group["lr"]
            variance = 2 * lr**2 * group["mdecay"] * inverse - lr**4
            state["kick"], state["noise"] = lr**2 * inverse, variance.clamp(min=1e-16).sqrt()
            state["clamped"] = (variance < 1e-16).sum()
            state["deficit"] = (lr**2 / (2 * group["mdecay"] * inverse)).clamp(max=1).sum()
        self._clamped, self._deficit = self._clamped + state["clamped"], self._deficit + state["deficit"]
        self._entries += theta.numel()
        noise = draw_normal(theta, self.generator)
        momentum = state["m"]
        momentum.mul_(1 - group["mdecay"]).addcmul_(state["kick"], grad, value=-1).addcmul_(state["noise"], noise)
        theta.add_(momentum)


def hmc_step(
    potential: Callable[[Tensor], Tensor],
    theta: Tensor,
    *,
    step_size: float | int,
    leapfrog: int = 20,
    generator: Generators = None,
) -> tuple[Tensor, Tensor]:
    """One step of Hamiltonian Monte Carlo for every chain at once, with the full batch: leapfrog, then Metropolis.

    Neal, "MCMC Using Hamiltonian Dynamics", 2011, with unit masses.

    Args:
        potential: U of (chains, dim), one value a chain.
        theta: (chains, dim).
        step_size, leapfrog: of the integrator.
        generator: of momenta and acceptance, as for `AdaptiveSGHMC`.

    Returns:
        The new state and which chains accepted, bool (chains,). A proposal whose energy is not finite is rejected.
    """

    def gradient(at: Tensor) -> tuple[Tensor, Tensor]:
        at = at.detach().requires_grad_()
        energy = potential(at)
        return energy.detach(), torch.autograd.grad(energy.sum(), at)[0]

    if not step_size > 0 or leapfrog < 1:
        raise ValueError(f"step_size must be positive and leapfrog at least 1, got {step_size} and {leapfrog}")
    drawn = draw_normal(torch.cat([theta, theta[:, :1]], 1), generator)
    momentum = drawn[:, :-1]
    energy, slope = gradient(theta)
    before = energy + 0.5 * momentum.square().sum(1)
    place = theta.detach()
    for _ in range(leapfrog):
        momentum = momentum - 0.5 * step_size * slope
        place = place + step_size * momentum
        energy, slope = gradient(place)
        momentum = momentum - 0.5 * step_size * slope
    after = energy + 0.5 * momentum.square().sum(1)
    uniform = 0.5 * torch.special.erfc(drawn[:, -1] / math.sqrt(2))
    accepted = torch.isfinite(after) & (uniform < torch.exp(before - after))
    return torch.where(accepted[:, None], place, theta.detach()), accepted
