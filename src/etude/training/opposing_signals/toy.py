"""A two-layer linear model in which opposing outliers alone sharpen the loss, in closed form.

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163, section 3. The paper's constants are not all stated where we could read them; this model is a
reconstruction with the properties that its theorems assert, each derived below.

Inputs x = (x1, x2): x1 ~ N(0, I) is signal; x2 is +s u or -s u, each with probability 1 / (2 k), else 0, with u a unit
vector and k the heaviness of the tail. The target is y = beta . x1 + |u . x2| / 2: the sign of the opposing feature
says nothing linear about it. The model is f(x) = c b . x with b = (b1, b2) and a number c. With v = u . b2 and
alpha = s^2 / k the population loss is

    L = 1/2 |c b1 - beta|^2 + alpha c^2 v^2 / 2 + alpha / 8                                               (1)
    dL/db1 = c (c b1 - beta),  dL/db2 = alpha c^2 v u,  dL/dc = b1 . (c b1 - beta) + alpha c v^2          (2)
    H: b1 b1 c^2 I,  b2 b2 alpha c^2 u u',  c c |b1|^2 + alpha v^2,  b1 c 2 c b1 - beta,  b2 c 2 alpha c v u   (3)

At v = 0 the two groups' gradients in b2 are opposite and cancel, and their loss is stuck at alpha / 8 of L. The flow
conserves c^2 - |b|^2 and the part of b2 orthogonal to u, drives v to 0, and so ends, with
q = c(0)^2 - |b(0)|^2 + |b2_orth(0)|^2, at

    c^2 = (q + sqrt(q^2 + 4 |beta|^2)) / 2                                                                (4)
    sharpness = max(alpha c^2, c^2 + |beta|^2 / c^2), about max(alpha, 2) |beta|                          (5)

so that above alpha = 2 the sharpest direction is the outliers', and learning the signal sharpens it. Gradient descent
whose 2 / eta lies below (5) oscillates along b2, which shrinks c and with it the sharpness, and settles below 2 / eta.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.optim import Optimizer

from etude.training.opposing_signals.descent import gradient_flow

__all__ = ["OpposingSignalsToy", "ToyRun"]


@dataclass(frozen=True)
class OpposingSignalsToy:
    """The model above; parameters are flat vectors (b1, b2, c) in float64, and every method takes batches of them.

        toy = OpposingSignalsToy(beta_norm=4.0)
        theta = toy.init(torch.Generator().manual_seed(0))
        run = toy.run(theta, lambda params: torch.optim.SGD(params, lr=0.15), steps=3000)
        run.sharpness.max(), run.sharpness[-1]      # above and below 2 / 0.15

    Args:
        d1, d2: dimensions of the signal and of the opposing feature.
        k: heaviness of the tail: one input in k is an outlier, > 0.
        alpha: strength s^2 / k of the opposing feature, >= 0; 0 leaves the outliers out, and up to 2 they are never
            the sharpest direction.
        beta_norm: |beta|, > 0, the size of the signal, spread evenly over its d1 entries.

    Raises:
        ValueError: if an argument lies outside its range.
    """

    d1: int = 10
    d2: int = 4
    k: float = 50.0
    alpha: float = 5.0
    beta_norm: float = 4.0

    def __post_init__(self):
        if self.d1 < 1 or self.d2 < 1:
            raise ValueError(f"d1 and d2 must be positive, got {self.d1} and {self.d2}")
        if not (0 < self.k < math.inf and 0 < self.beta_norm < math.inf):
            raise ValueError(f"k and beta_norm must be positive, got {self.k} and {self.beta_norm}")
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be >= 0, got {self.alpha}")

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.d1 + self.d2 + 1

    @property
    def s(self) -> float:
        """Length of the outliers."""
        return math.sqrt(self.alpha * self.k)

    @property
    def beta(self) -> Float64[Tensor, " d1"]:
        return torch.full((self.d1,), self.beta_norm / math.sqrt(self.d1), dtype=torch.float64)

    @property
    def u(self) -> Float64[Tensor, " d2"]:
        return torch.full((self.d2,), 1 / math.sqrt(self.d2), dtype=torch.float64)

    @property
    def floor(self) -> float:
        """The loss that no parameters remove: that of the outliers, balanced."""
        return self.alpha / 8

    def init(self, generator: torch.Generator, std: float = 0.1) -> Float64[Tensor, " size"]:
        """b1 ~ N(0, std^2), b2 ~ N(0, 9 std^2), c = 3 std: small, and c large enough that the signal is learned."""
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        draws = torch.randn(self.size, generator=generator, dtype=torch.float64, device=generator.device) * std
        draws[self.d1 : -1] *= 3
        draws[-1] = 3 * std
        return draws

    def split(self, theta: Float64[Tensor, "*batch size"]) -> tuple[Tensor, Tensor, Tensor]:
        """b1, b2 and c.

        Raises:
            ValueError: if there are more or fewer entries.
        """
        if theta.shape[-1] != self.size:
            raise ValueError(f"theta must hold {self.size} parameters (b1, b2, c), got {theta.shape[-1]}")
        return theta[..., : self.d1], theta[..., self.d1 : -1], theta[..., -1]

    def opposing_weight(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch"]:
        """v = u . b2, which the valley's walls push to 0 from both sides."""
        return self.split(theta)[1] @ self.u

    def loss(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch"]:
        """Eq. (1)."""
        b1, b2, c = self.split(theta)
        signal = (c[..., None] * b1 - self.beta).square().sum(-1)
        return signal / 2 + self.alpha * (c * (b2 @ self.u)).square() / 2 + self.floor

    def group_losses(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch 2"]:
        """Mean losses of the inputs with x2 = +s u and with x2 = -s u."""
        b1, b2, c = self.split(theta)
        signal = (c[..., None] * b1 - self.beta).square().sum(-1, keepdim=True)
        signs = torch.tensor([1.0, -1.0], dtype=theta.dtype)
        return signal / 2 + self.s**2 * ((c * (b2 @ self.u))[..., None] * signs - 0.5).square() / 2

    def grad(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch size"]:
        """Eq. (2)."""
        b1, b2, c = self.split(theta)
        error = c[..., None] * b1 - self.beta
        v = b2 @ self.u
        return torch.cat([
            c[..., None] * error,
            (self.alpha * c.square() * v)[..., None] * self.u,
            ((b1 * error).sum(-1) + self.alpha * c * v.square())[..., None],
        ], dim=-1)  # fmt: skip

    def hessian(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch size size"]:
        """Eq. (3)."""
        b1, b2, c = self.split(theta)
        v, d1 = b2 @ self.u, self.d1
        matrix = theta.new_zeros(*theta.shape, self.size)
        c_squared = c.square()[..., None, None]
        matrix[..., :d1, :d1] = c_squared * torch.eye(d1, dtype=theta.dtype)
        matrix[..., d1:-1, d1:-1] = self.alpha * c_squared * torch.outer(self.u, self.u)
        matrix[..., -1, -1] = b1.square().sum(-1) + self.alpha * v.square()
        cross = torch.cat([
            2 * c[..., None] * b1 - self.beta,
            (2 * self.alpha * c * v)[..., None] * self.u,
        ], dim=-1)  # fmt: skip
        matrix[..., :-1, -1] = cross
        matrix[..., -1, :-1] = cross
        return matrix

    def sharpness(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch"]:
        """Largest eigenvalue of the Hessian."""
        return torch.linalg.eigvalsh(self.hessian(theta))[..., -1]

    def conserved(self, theta: Float64[Tensor, "*batch size"]) -> Float64[Tensor, "*batch"]:
        """c^2 - |b|^2, constant along the gradient flow."""
        return theta[..., -1].square() - theta[..., :-1].square().sum(-1)

    def flow_end(self, theta: Float64[Tensor, " size"]) -> tuple[float, float]:
        """c^2 and the sharpness at the end of the flow from `theta`, Eqs. (4) and (5)."""
        b2 = self.split(theta)[1]
        # Without outliers nothing drives v to 0: all of b2 stays.
        kept = b2 - (b2 @ self.u) * self.u if self.alpha else b2
        q = float(self.conserved(theta) + kept.square().sum())
        c_squared = (q + math.sqrt(q * q + 4 * self.beta_norm**2)) / 2
        return c_squared, max(self.alpha * c_squared, c_squared + self.beta_norm**2 / c_squared)

    def flow(self, theta: Float64[Tensor, " size"], *, tol: float = 1e-9) -> Float64[Tensor, " size"]:
        """The end of the gradient flow from `theta`: where the gradient's norm is below `tol`."""
        return gradient_flow(
            self.grad, theta, time=1e6, max_step=lambda at: 0.25 / max(float(self.sharpness(at)), 1e-3),
            until=lambda at: float(self.grad(at).norm()) < tol,
        )  # fmt: skip

    def run(
        self, theta: Float64[Tensor, " size"], make_optimizer: Callable[[list[Tensor]], Optimizer], *, steps: int
    ) -> "ToyRun":
        """Descends the population loss with any optimizer.

        Args:
            theta: where to start; not changed.
            make_optimizer: parameters -> optimizer.
            steps: number of updates.

        Raises:
            FloatingPointError: if the parameters are not finite any more; the message names the step.
        """
        parameter = nn.Parameter(theta.detach().clone())
        optimizer = make_optimizer([parameter])
        thetas = theta.new_empty(steps + 1, self.size)
        thetas[0] = theta.detach()
        for step in range(steps):
            parameter.grad = self.grad(parameter.detach())
            optimizer.step()
            thetas[step + 1] = parameter.detach()
        finite = torch.isfinite(thetas).all(dim=1)
        if not bool(finite.all()):
            raise FloatingPointError(f"the parameters are not finite after step {int((~finite).nonzero()[0]) - 1}")
        return ToyRun(self, thetas)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Float64[Tensor, "n inputs"], Float64[Tensor, " n"]]:
        """`n` inputs and their targets."""
        signal = torch.randn(n, self.d1, generator=generator, dtype=torch.float64)
        chance = torch.rand(n, generator=generator, dtype=torch.float64)
        sign = (chance < 0.5 / self.k).double() - (chance > 1 - 0.5 / self.k).double()
        opposing = (self.s * sign)[:, None] * self.u
        return torch.cat([signal, opposing], dim=1), signal @ self.beta + (opposing @ self.u).abs() / 2

    def predict(self, theta: Float64[Tensor, " size"], x: Float[Tensor, "n inputs"]) -> Float[Tensor, " n"]:
        """f(x) = c b . x."""
        return theta[-1] * (x @ theta[:-1])


@dataclass(frozen=True, eq=False)
class ToyRun:
    """The parameters after 0, 1, 2, ... updates, and what follows from them.

    Attributes:
        toy: the model.
        thetas: parameters, one row a step.
    """

    toy: OpposingSignalsToy
    thetas: Float64[Tensor, "steps size"]

    @cached_property
    def losses(self) -> Float64[Tensor, " steps"]:
        return self.toy.loss(self.thetas)

    @cached_property
    def group_losses(self) -> Float64[Tensor, "steps 2"]:
        return self.toy.group_losses(self.thetas)

    @cached_property
    def sharpness(self) -> Float64[Tensor, " steps"]:
        return self.toy.sharpness(self.thetas)

    @cached_property
    def opposing_weight(self) -> Float64[Tensor, " steps"]:
        return self.toy.opposing_weight(self.thetas)
