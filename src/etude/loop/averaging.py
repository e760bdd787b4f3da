"""Exponential moving average of a model's weights.

After update k = 1, 2, ... of the model's weights w_k, the average is

    a_k = d_k a_{k-1} + (1 - d_k) w_k,    a_0 = w_0,    d_k = decay, or min(decay, k / (9 + k)) with warm-up     (1)

so that with warm-up the average forgets a random initialisation quickly.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """Keeps the moving average of a model's floating-point weights beside the model.

        ema = ExponentialMovingAverage(model, decay=0.999)
        fit(model, train, optimizer, steps=1000, ema=ema)
        with ema.applied():                      # the model holds the average inside the block
            print(accuracy(model, test))

    Buffers (the running statistics of batch norm, counters) are copied from the model as they are.

    Args:
        model: whose weights are averaged.
        decay: weight of the past, in [0, 1); 0 keeps a copy of the last weights.
        warmup: begin with a small decay, Eq. (1).
    """

    def __init__(self, model: nn.Module, decay: float | int = 0.999, *, warmup: bool = False):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.model, self.decay, self.warmup = model, decay, warmup
        self.updates = 0
        self._sources = {name: weight for name, weight in model.named_parameters() if weight.is_floating_point()}
        self._weights = {name: weight.detach().clone() for name, weight in self._sources.items()}
        self._buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the model's present weights, Eq. (1)."""
        self.updates += 1
        decay = min(self.decay, self.updates / (9 + self.updates)) if self.warmup else self.decay
        for name, weight in self._sources.items():
            average = self._weights[name]
            if average.device != weight.device:  # the model has moved since the average was made
                average = self._weights[name] = average.to(weight.device)
            average.lerp_(weight, 1 - decay)
        for name, buffer in self.model.named_buffers():
            self._buffers[name].copy_(buffer)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Writes the average (and the buffers) into `model`, one of the same architecture."""
        for name, weight in model.named_parameters():
            if name in self._weights:
                weight.copy_(self._weights[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[name])

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the average in it; its own weights come back after the block."""
        own = {name: value.detach().clone() for name, value in (*self._sources.items(), *self.model.named_buffers())}
        self.copy_to(self.model)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                for name, value in (*self.model.named_parameters(), *self.model.named_buffers()):
                    if name in own:
                        value.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": dict(self._weights), "buffers": dict(self._buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for kind, mine in (("weights", self._weights), ("buffers", self._buffers)):
            if state[kind].keys() != mine.keys():
                differing = sorted(state[kind].keys() ^ mine.keys())
                raise ValueError(f"the average is of another model: {kind} {differing[:3]} stand in one only")
            for name, value in state[kind].items():
                if value.shape != mine[name].shape:
                    raise ValueError(
                        f"the average is of another model: {name} has shape {tuple(value.shape)}, "
                        f"the model's has {tuple(mine[name].shape)}"
                    )
                mine[name] = value.detach().clone().to(mine[name].device)
        self.updates = state["updates"]
