"""Noise schedules of the label: how much of the class embedding is left in z_t. Time runs from noise (0) to label.

Li, Teh & Pascanu, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
arXiv:2503.24322, 2025. With abar increasing in time, the noised label is

    q(z_t | y) = N(sqrt(abar_t) u_y, (1 - abar_t) I),    SNR(t) = abar_t / (1 - abar_t)                   (1)

and one step of inference, from z_{t-1} and the prediction u of the clean embedding u_y, with
alpha = abar_{t-1} / abar_t,

    z_t = a_t u + b_t z_{t-1} + sqrt(c_t) eps,    eps ~ N(0, I)                                           (2)

    a_t = sqrt(abar_t) (1 - alpha) / (1 - abar_{t-1})
    b_t = sqrt(alpha) (1 - abar_t) / (1 - abar_{t-1})
    c_t = (1 - abar_t) (1 - alpha) / (1 - abar_{t-1}).

If u = u_y, Eq. (2) takes q(z_{t-1} | y) to q(z_t | y). The continuous variant learns its schedule, gamma:

    SNR(t) = exp(-gamma(t)),    gamma(t) = gamma_0 + (gamma_1 - gamma_0) (1 - g(t)),                       (3)
    g(t) = (h(t) - h(0)) / (h(1) - h(0)),    h a network of two layers with positive weights, hence increasing.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

__all__ = ["CosineLabelSchedule", "LabelSchedule", "LearnedLabelSchedule", "normal"]


def normal(shape: Sequence[int], like: Tensor, generator: torch.Generator | None) -> Shaped[Tensor, "..."]:
    """Standard normal draws of the dtype and on the device of `like`, made on the generator's device."""
    device = like.device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=device, dtype=like.dtype).to(like.device)


class LabelSchedule:
    """A fixed schedule of T steps, Eqs. (1) and (2).

    Args:
        alpha_bar: the T + 1 values abar_0 < ... < abar_T, all in (0, 1).

    Attributes:
        alpha_bar, snr: float64 (T + 1), indexed by t = 0..T.
        a, b, c: float64 (T), the coefficients of step t at index t - 1.

    Raises:
        ValueError: if there are fewer than two values, or they do not increase strictly within (0, 1).
    """

    def __init__(self, alpha_bar: Shaped[Tensor, " times"] | Sequence[float]):
        abar = torch.as_tensor(alpha_bar, dtype=torch.float64)
        if len(abar) < 2:
            raise ValueError(f"alpha_bar needs at least 2 values, for one step, got {len(abar)}")
        if not (abar[0] > 0 and abar[-1] < 1 and bool((abar.diff() > 0).all())):
            raise ValueError(
                f"alpha_bar must increase strictly within (0, 1), got {[round(v, 6) for v in abar.tolist()]}"
            )
        self.alpha_bar = abar
        self.snr = abar / (1 - abar)
        before, after = abar[:-1], abar[1:]
        alpha = before / after
        self.a = after.sqrt() * (1 - alpha) / (1 - before)
        self.b = alpha.sqrt() * (1 - after) / (1 - before)
        self.c = (1 - after) * (1 - alpha) / (1 - before)
        self._steps = list(zip(self.a.tolist(), self.b.tolist(), self.c.sqrt().tolist()))

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def snr_gain(self, t: int) -> float:
        """SNR(t) - SNR(t - 1) > 0, the weight of step t = 1..T."""
        self.check(t)
        return (self.snr[t] - self.snr[t - 1]).item()

    def noised(
        self, u: Float[Tensor, "batch dim"], t: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch dim"]:
        """A draw of z_t given the clean embeddings, Eq. (1); t = 0..T."""
        self.check(t, first=0)
        abar = self.alpha_bar[t].item()
        return math.sqrt(abar) * u + math.sqrt(1 - abar) * normal(u.shape, u, generator)

    def step(
        self,
        t: int,
        z: Float[Tensor, "batch dim"],
        u: Float[Tensor, "batch dim"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """z_t from z_{t-1} and the predicted embeddings, Eq. (2); t = 1..T."""
        self.check(t)
        a, b, noise = self._steps[t - 1]
        return a * u + b * z + noise * normal(z.shape, z, generator)

    def check(self, t: int, first: int = 1) -> None:
        """Refuses a step outside of first..T."""
        if not first <= t <= self.num_steps:
            raise ValueError(f"t must lie in {first}..{self.num_steps}, got {t}")


class CosineLabelSchedule(LabelSchedule):
    """The cosine schedule of the discrete variant: abar_t = low + (high - low) f(t), f(0) = 0, f(T) = 1.

    The paper says "fixed cosine" and no more; f is that of Nichol & Dhariwal (arXiv:2102.09672), turned round in time.
    Scaling it into [low, high] instead of clamping it there keeps it strictly increasing for any number of steps.
    The weights span orders of magnitude: with the defaults and T = 10 the last step's SNR gain is 40,000 times the
    first's, so never clip the gradients of several blocks by one common norm.

    Args:
        num_steps: T >= 1.
        s: offset of the cosine, >= 0.
        low, high: abar_0 and abar_T, 0 < low < high < 1.

    Raises:
        ValueError: if an argument lies outside its range.
    """

    def __init__(self, num_steps: int, s: float = 0.008, low: float = 1e-4, high: float = 0.999):
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if s < 0:
            raise ValueError(f"s must be >= 0, got {s}")
        if not 0 < low < high < 1:
            raise ValueError(f"low and high must satisfy 0 < low < high < 1, got {low} and {high}")
        fraction = 1 - torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        f = torch.cos((fraction + s) / (1 + s) * math.pi / 2) ** 2 / math.cos(s / (1 + s) * math.pi / 2) ** 2
        super().__init__(low + (high - low) * f)


class LearnedLabelSchedule(nn.Module):
    """The trained schedule of the continuous variant, Eq. (3).

    gamma decreases from gamma_1 at t = 0, all noise, to gamma_0 at t = 1. Everything is differentiable in the
    schedule's parameters and computed in the dtype of the times, so double times give exact small steps.

    Args:
        hidden: width of h.
        gamma_0, gamma_1: log noise-to-signal ratios at t = 1 and t = 0 to start from, gamma_0 < gamma_1; both train,
            and their order is kept. The paper does not state them.

    Raises:
        ValueError: if `hidden` is not positive or gamma_0 is not below gamma_1.
    """

    def __init__(self, hidden: int = 64, gamma_0: float = -5.0, gamma_1: float = 5.0):
        super().__init__()
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}")
        if not gamma_0 < gamma_1:
            raise ValueError(f"gamma_0 must be below gamma_1, got {gamma_0} and {gamma_1}")
        self.gamma_0 = nn.Parameter(torch.tensor(float(gamma_0)))
        gap = gamma_1 - gamma_0
        self.raw_gap = nn.Parameter(torch.tensor(gap + math.log(-math.expm1(-gap))))
        # Sigmoids of unit slope whose centres cover [0, 1]: nearly a straight line to start from.
        self.raw_inner = nn.Parameter(torch.full((hidden,), math.log(math.expm1(1.0))))
        self.inner_bias = nn.Parameter(-torch.linspace(0, 1, hidden))
        self.raw_outer = nn.Parameter(torch.zeros(hidden))

    @property
    def gamma_1(self) -> Float[Tensor, ""]:
        return self.gamma_0 + F.softplus(self.raw_gap)

    def gamma(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """Log noise-to-signal ratio at times in [0, 1]."""
        return self._gamma(t)[0]

    def alpha_bar(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return torch.sigmoid(-self.gamma(t))

    def snr(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return torch.exp(-self.gamma(t))

    def snr_grad(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """dSNR/dt = -gamma'(t) exp(-gamma(t)) > 0; gamma' in closed form, so that no second backward pass is needed."""
        gamma, slope = self._gamma(t)
        return -slope * torch.exp(-gamma)

    def step_coefficients(
        self, t_prev: Float[Tensor, "*times"], t: Float[Tensor, "*times"]
    ) -> tuple[Float[Tensor, "*times"], Float[Tensor, "*times"], Float[Tensor, "*times"]]:
        """a, b and c of Eq. (2) for the step from t_prev to a later t.

        Raises:
            ValueError: if a t is not later than its t_prev.
        """
        if not bool((t > t_prev).all()):
            raise ValueError(
                f"t must be later than t_prev, got {t.flatten()[:3].tolist()} after {t_prev.flatten()[:3].tolist()}"
            )
        before, after = self.gamma(t_prev), self.gamma(t)
        log_alpha = F.softplus(after) - F.softplus(before)  # log abar = -softplus(gamma)
        renewed = -torch.expm1(log_alpha)  # 1 - alpha, without cancellation in short steps
        noise_before, noise_after = torch.sigmoid(before), torch.sigmoid(after)
        a = torch.sigmoid(-after).sqrt() * renewed / noise_before
        b = (log_alpha / 2).exp() * noise_after / noise_before
        return a, b, noise_after * renewed / noise_before

    def _gamma(self, t: Float[Tensor, "*times"]) -> tuple[Float[Tensor, "*times"], Float[Tensor, "*times"]]:
        """gamma and its derivative."""
        if not t.is_floating_point():
            raise TypeError(f"times must be floating point in [0, 1], got {t.dtype}")
        inner, outer = F.softplus(self.raw_inner).to(t.dtype), F.softplus(self.raw_outer).to(t.dtype)
        bias = self.inner_bias.to(t.dtype)
        start, end = torch.sigmoid(bias) @ outer, torch.sigmoid(inner + bias) @ outer
        unit = torch.sigmoid(t[..., None] * inner + bias)
        gap = F.softplus(self.raw_gap).to(t.dtype)
        gamma = self.gamma_0.to(t.dtype) + gap * (1 - (unit @ outer - start) / (end - start))
        return gamma, -gap * ((unit * (1 - unit)) @ (inner * outer)) / (end - start)
