"""Matching the functions of a weight prior to those of a Gaussian process in 1-Wasserstein distance.

Tran et al., JMLR 23, 2022, arXiv:2011.12829, section 3, algorithm 1. By Kantorovich's duality, over functions phi of
the M values at a measurement set that are 1-Lipschitz,

    W_1 = max_phi E phi(f_bnn) - E phi(f_gp)                                                                 (1)

phi is a network, held near the constraint by the penalty 10 E(|grad phi(z)| - 1)^2 at points z between paired rows
(Gulrajani et al., "Improved Training of Wasserstein GANs", 2017). Each outer step draws a measurement set and two bags
of functions from both priors: one trains a fresh critic, the other gives one step on the hyperparameters of the weight
prior. No target of any data enters.

The penalty holds softly. Where the distance is W a slope of 1 + e gains e W and costs 10 e^2, so that the critic gives
about W (1 + W / 20): right near a match, too much far from one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.theory.functional_priors.gp import GPFunctionPrior
from etude.theory.functional_priors.measurement import MeasurementSet
from etude.theory.functional_priors.weight_priors import GaussianWeightPrior, WeightPrior

__all__ = ["LipschitzCritic", "MatchHistory", "WassersteinPriorMatcher", "train_critic"]

_POOR = 0.05
"""A residual distance, relative to the length of the process' vectors, above which the match is called poor."""


class LipschitzCritic(nn.Module):
    """phi of Eq. (1): M -> hidden -> hidden -> 1 with softplus, and its gradient by the input in closed form.

    Args:
        points: M. hidden: width of both layers.
        generator: draws the weights (Xavier normal) and biases (N(0, 1)).
    """

    def __init__(self, points: int, hidden: int = 200, generator: torch.Generator | None = None):
        super().__init__()
        if min(points, hidden) < 1:
            raise ValueError(f"points and hidden must be positive, got {points} and {hidden}")
        # Without PyTorch's own initialisation, which would draw from the global state.
        sizes = ((points, hidden), (hidden, hidden), (hidden, 1))
        device = "cpu" if generator is None else generator.device
        self.layer1, self.layer2, self.layer3 = (nn.utils.skip_init(nn.Linear, n, m, device=device) for n, m in sizes)
        self.reset(generator)

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draws all weights anew."""
        for layer in (self.layer1, self.layer2, self.layer3):
            nn.init.xavier_normal_(layer.weight, generator=generator)
            layer.bias.normal_(generator=generator)

    def forward(self, f: Float[Tensor, "n points"]) -> Float[Tensor, "n"]:
        return self.layer3(F.softplus(self.layer2(F.softplus(self.layer1(f))))).squeeze(1)

    def gradient(self, f: Float[Tensor, "n points"]) -> Float[Tensor, "n points"]:
        """d phi / d f, differentiable once by the weights: autograd would go through the network twice."""
        first = self.layer1(f)
        second = self.layer2(F.softplus(first))
        inner = (torch.sigmoid(second) * self.layer3.weight) @ self.layer2.weight
        return (torch.sigmoid(first) * inner) @ self.layer1.weight

    def distance(self, p: Float[Tensor, "n points out"], q: Float[Tensor, "m points out"]) -> Tensor:
        """E phi(p) - E phi(q), summed over the outputs."""
        total = self.layer3.weight.new_zeros(())
        for out in range(p.shape[2]):
            values = self(torch.cat([p[:, :, out], q[:, :, out]]))
            total = total + values[: len(p)].mean() - values[len(p) :].mean()
        return total

    def penalty(
        self,
        p: Float[Tensor, "n points out"],
        q: Float[Tensor, "n points out"],
        *,
        one_sided: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """E(|grad phi(z)| - 1)^2, z uniform between paired rows, summed over the outputs.

        `one_sided` leaves gradients below 1 alone (the "lp" penalty of Petzka, Fischer & Lukovnikov, ICLR 2018).
        """
        total = self.layer3.weight.new_zeros(())
        for out in range(p.shape[2]):
            device = p.device if generator is None else generator.device
            mix = torch.rand(len(p), 1, generator=generator, dtype=p.dtype, device=device).to(p.device)
            excess = self.gradient(q[:, :, out] + mix * (p[:, :, out] - q[:, :, out])).norm(dim=1) - 1
            total = total + (excess.clamp(min=0) if one_sided else excess).square().mean()
        return total


def train_critic(
    critic: LipschitzCritic,
    p: Float[Tensor, "n points out"],
    q: Float[Tensor, "m others out"],
    *,
    steps: int = 200,
    lr: float | int = 0.02,
    optimizer: torch.optim.Optimizer | None = None,
    threshold: float | int = 0.01,
    penalty: float | int = 10.0,
    one_sided: bool = False,
    generator: torch.Generator | None = None,
) -> int:
    """Maximises Eq. (1) less the penalty by Adagrad, and returns the number of steps taken.

    Args:
        critic: trained in place.
        p, q: as many functions of both distributions.
        steps: at most.
        lr: of a new Adagrad; not used if an `optimizer` is given.
        threshold: norm of the gradient below which to stop.
        penalty: weight of the penalty.
        one_sided: as for `LipschitzCritic.penalty`.
        generator: of the points between rows.

    Raises:
        ValueError: if p and q differ in shape.
    """
    if p.shape != q.shape:
        raise ValueError(f"p and q must have the same shape, for rows are paired, got {p.shape} and {q.shape}")
    optimizer = torch.optim.Adagrad(critic.parameters(), lr=lr) if optimizer is None else optimizer
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        held = critic.penalty(p, q, one_sided=one_sided, generator=generator)
        (penalty * held - critic.distance(p, q)).backward()
        norm = torch.stack([weight.grad.norm() for weight in critic.parameters() if weight.grad is not None]).norm()
        optimizer.step()
        if float(norm) < threshold:
            return step
    return steps


@dataclass
class MatchHistory:
    """What happened at each outer step.

    Attributes:
        distance: the critic's estimate of W_1 on functions that it was not trained on.
        inner_steps: critic steps taken.
        stds: of a Gaussian prior, parameter -> its standard deviation after each step.
        scale: sqrt(E |f_gp|^2), the length of the process' vectors, to which distances compare.
        residual: mean distance of the last tenth of the steps.
    """

    distance: list[float] = field(default_factory=list)
    inner_steps: list[int] = field(default_factory=list)
    stds: dict[str, list[float]] = field(default_factory=dict)
    scale: float = 0.0

    @property
    def residual(self) -> float:
        last = self.distance[-max(len(self.distance) // 10, 1) :]
        return sum(last) / len(last)


class WassersteinPriorMatcher:
    """Tunes the hyperparameters of a weight prior so that its functions are distributed as a Gaussian process.

        prior = GaussianWeightPrior(MLP(13, [100]))
        history = WassersteinPriorMatcher(prior, rbf_prior(13), TableMeasurementSet(x_train, x_test)).fit()

    The defaults are the paper's for UCI tables; its 1-D figures have n=512, 800 outer and 1,000 inner steps, an lr of
    0.01, a critic_lr of 0.08 and a threshold of 0.01. An outer step costs `inner_steps` times a forward and backward
    pass of 3 n rows through the critic: on a GPU for M > 500.

    Args:
        weight_prior: tuned in place; it must have trainable hyperparameters.
        gp_prior: the target.
        measurement_set: gives the inputs of an outer step.
        n: functions of each prior in each of the two bags.
        outer_steps, inner_steps: of the prior, and of the critic at most in each.
        lr: of RMSprop on the hyperparameters. critic_lr: of Adagrad on the critic.
        critic_hidden: width of the critic.
        threshold: as for `train_critic`.
        one_sided: the "lp" penalty.
        reset_critic: begin each outer step with fresh weights; False trains one critic all along.
        keep_critic_state: one Adagrad for all outer steps, as in the official code. Its accumulator survives the fresh
            weights, so that later critics learn ever less; hence not the default.
        generator: of all draws; on the weight prior's device.

    Raises:
        ValueError: if a number is out of range, the outputs differ in number, or nothing can be trained.
    """

    def __init__(
        self,
        weight_prior: WeightPrior,
        gp_prior: GPFunctionPrior,
        measurement_set: MeasurementSet,
        *,
        n: int = 128,
        outer_steps: int = 200,
        inner_steps: int = 200,
        lr: float | int = 0.05,
        critic_lr: float | int = 0.02,
        critic_hidden: int = 200,
        threshold: float | int = 0.1,
        one_sided: bool = False,
        reset_critic: bool = True,
        keep_critic_state: bool = False,
        generator: torch.Generator | None = None,
    ):
        for name, value in (("n", n), ("outer_steps", outer_steps), ("inner_steps", inner_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not (lr > 0 and critic_lr > 0 and threshold >= 0):
            raise ValueError(f"lr and critic_lr must be > 0 and threshold >= 0, got {lr}, {critic_lr}, {threshold}")
        self._trained = [value for value in weight_prior.parameters() if value.requires_grad]
        if not self._trained:
            raise ValueError("the weight prior has no trainable hyperparameter; was it made with trainable=False?")
        self.weight_prior, self.gp_prior, self.measurement_set = weight_prior, gp_prior, measurement_set
        self.n, self.outer_steps, self.inner_steps, self.lr, self.critic_lr = n, outer_steps, inner_steps, lr, critic_lr
        self.critic_hidden, self.threshold, self.one_sided = critic_hidden, threshold, one_sided
        self.reset_critic, self.keep_critic_state, self.generator = reset_critic, keep_critic_state, generator

    def fit(self, progress: Callable[[int, int], None] | None = None) -> MatchHistory:
        """Runs all outer steps; `progress` is called with the steps done and all.

        Warns if what remains of the distance is more than a twentieth of the process' length: then the network cannot
        produce such functions (ReLU networks and a smooth process, say), or there were too few steps.
        """
        reference, generator = self._trained[0], self.generator
        critic = LipschitzCritic(self.measurement_set.size, self.critic_hidden, generator).to(reference)
        adagrad = torch.optim.Adagrad(critic.parameters(), lr=self.critic_lr)
        optimizer = torch.optim.RMSprop(self._trained, lr=self.lr)
        history, squares = MatchHistory(), 0.0
        for step in range(self.outer_steps):
            x = self.measurement_set(generator).to(reference)
            target = self.gp_prior.sample_functions(x, self.n, generator=generator).to(reference)
            own = self.weight_prior.sample_functions(x, self.n, generator=generator)
            if own.shape != target.shape:
                raise ValueError(
                    f"the network has functions of shape (n, points, out) {tuple(own.shape)}, the process "
                    f"{tuple(target.shape)}; set num_outputs of the process to the network's outputs"
                )
            if step and self.reset_critic:
                critic.reset(generator)
                if not self.keep_critic_state:
                    adagrad = torch.optim.Adagrad(critic.parameters(), lr=self.critic_lr)
            with torch.no_grad():
                bag = self.weight_prior.sample_functions(x, self.n, generator=generator)
            other = self.gp_prior.sample_functions(x, self.n, generator=generator).to(reference)
            critic.requires_grad_(True)
            history.inner_steps.append(
                train_critic(
                    critic, bag, other, steps=self.inner_steps, optimizer=adagrad, threshold=self.threshold,
                    one_sided=self.one_sided, generator=generator,
                )
            )  # fmt: skip
            critic.requires_grad_(False)
            optimizer.zero_grad()
            distance = critic.distance(own, target)
            distance.backward()
            optimizer.step()
            history.distance.append(float(distance.detach()))
            if isinstance(self.weight_prior, GaussianWeightPrior):
                for name, std in self.weight_prior.stds().items():
                    history.stds.setdefault(name, []).append(std)
            squares += float(target.square().sum(dim=(1, 2)).mean()) / self.outer_steps
            if progress is not None:
                progress(step + 1, self.outer_steps)
        history.scale = squares**0.5
        if history.residual > _POOR * history.scale:
            warnings.warn(
                f"a poor match: a distance of {history.residual:.3g} remains between functions of length "
                f"{history.scale:.3g}, more than {_POOR:.0%}; more steps, another activation or a Gaussian process "
                "that the network can imitate may help",
                stacklevel=2,
            )
        return history
