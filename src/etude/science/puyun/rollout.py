"""Forecasts of many steps, and the cascade of models that share them.

A model of one step feeds on its own output: from the frames (t - 1, t) it makes t + 1, and goes on from (t, t + 1).
The cascade hands the forecast from one specialist to the next after `steps_per_stage` steps: 20 steps of 6 hours make
the 5 days of PuYun-Short, after which PuYun-Medium takes over.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from etude.science.puyun.dataset import step_features

__all__ = ["Cascade", "rollout", "rollout_features"]


class Cascade(nn.Module):
    """Models for successive stretches of a forecast; called as a model is, with the number of the step besides.

    Args:
        models: of one step each, in order; a model may stand twice.
        steps_per_stage: steps that each makes; the last one makes all that remain.

    Raises:
        ValueError: without a model or for a stage without steps.
    """

    def __init__(self, models: Sequence[nn.Module], steps_per_stage: int = 20):
        super().__init__()
        if not models or steps_per_stage < 1:
            raise ValueError(f"a cascade needs a model and steps, got {len(models)} models, {steps_per_stage} steps")
        self.models = nn.ModuleList(models)
        self.steps_per_stage = steps_per_stage

    @property
    def horizon(self) -> int:
        """Steps that the stages were made for."""
        return len(self.models) * self.steps_per_stage

    def stage(self, step: int) -> int:
        """The number of the model that makes step `step` = 0, 1, ..."""
        return min(step // self.steps_per_stage, len(self.models) - 1)

    def forward(
        self,
        x: Float[Tensor, "batch 2 channels height width"],
        time_features: Float[Tensor, "batch features"] | None = None,
        step: int = 0,
    ) -> Float[Tensor, "batch channels height width"]:
        return self.models[self.stage(step)](x, time_features)


def rollout(
    model: nn.Module,
    x: Float[Tensor, "batch 2 channels height width"],
    steps: int,
    times: np.ndarray | None = None,
    checkpoint: bool = False,
    *,
    hours: float | int = 6,
    two_pi: bool = True,
    first_step: int = 0,
) -> Float[Tensor, "batch steps channels height width"]:
    """Forecasts `steps` steps from two standardised frames.

    Args:
        model: of one step, or a `Cascade`.
        x: the frames at t - 1 and t.
        steps: how many.
        times: datetime64 (batch,) of the frame t; None for a model without features of time.
        checkpoint: keep no activations of a step for the backward pass but compute them again: memory for time.
        hours: of a step. two_pi: as of `time_encoding`.
        first_step: the number of the first step, where a forecast goes on from an earlier one.

    Raises:
        ValueError: if `steps` is not positive or the shapes do not fit.
    """
    features = None if times is None else step_features(times, steps, hours, two_pi).to(x.device)
    return rollout_features(model, x, steps, features, checkpoint=checkpoint, first_step=first_step)


def rollout_features(
    model: nn.Module,
    x: Float[Tensor, "batch 2 channels height width"],
    steps: int,
    features: Float[Tensor, "batch leads features"] | None = None,
    *,
    checkpoint: bool = False,
    first_step: int = 0,
) -> Float[Tensor, "batch steps channels height width"]:
    """`rollout` with the features of time of each step given."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if features is not None and features.shape[1] < steps:
        raise ValueError(f"features of {steps} steps were expected, got {features.shape[1]}")
    if isinstance(model, Cascade) and first_step + steps > model.horizon:
        warnings.warn(
            f"{first_step + steps} steps go beyond the {model.horizon} of the cascade: its last model makes them all",
            stacklevel=3,
        )
    made = []
    for step in range(steps):
        network = model.models[model.stage(first_step + step)] if isinstance(model, Cascade) else model
        # A model of a world without seasons is not given any.
        now = None if features is None or getattr(network, "time_dim", 1) == 0 else features[:, step]
        if checkpoint and torch.is_grad_enabled():
            following = recompute(network, x, now, use_reentrant=False)
        else:
            following = network(x, now)
        assert isinstance(following, Tensor)
        made.append(following)
        x = torch.stack([x[:, 1], following], dim=1)
    return torch.stack(made, dim=1)
