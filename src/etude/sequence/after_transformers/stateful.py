"""Mixers whose past fits in a state of fixed size: read whole, piece by piece, or token by token.

y, state = mixer.read(x[:, :100], mixer.init_state(batch))    # a prompt, all tokens at once
y_t, state = mixer.step(x[:, 100], state)                     # and on from there
"""

import abc
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from etude.nn.convolution import ShortConv
from etude.nn.mixers import Mixer

__all__ = ["StatefulMixer", "convolve_on", "mix_real_tokens", "wide"]


class StatefulMixer(Mixer):
    """A mixer with three forms that give the same: `forward`, `read` from any state, `step`.

    Attributes:
        chunk: tokens that `forward` takes at once, handing the state on; None: all. The memory of some mixers
            grows with it.
        slow: names of own parameters that learn at a rate of their own and do not decay (`parameter_groups`).
        undecayed: names of own parameters that do not decay.
    """

    recurrent = True
    chunk: int | None = None
    slow: tuple[str, ...] = ()
    undecayed: tuple[str, ...] = ()

    @abc.abstractmethod
    def init_state(self, batch: int) -> Any:
        """The state before the first token."""

    @abc.abstractmethod
    def read(self, x: Float[Tensor, "batch length dim"], state: Any) -> tuple[Float[Tensor, "batch length dim"], Any]:
        """The outputs for the next tokens, and the state after the last; the state given is left as it is."""

    @abc.abstractmethod
    def step(self, x: Float[Tensor, "batch dim"], state: Any) -> tuple[Float[Tensor, "batch dim"], Any]:
        """The output for the next token, and the state after it."""

    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Raises ValueError if there is no sample or no token."""
        if 0 in x.shape[:2]:
            raise ValueError(f"expected samples with tokens, got shape {tuple(x.shape)}")
        return self._whole(x) if mask is None else mix_real_tokens(self._whole, x, mask)

    def _whole(self, x: Tensor) -> Tensor:
        state = self.init_state(len(x))
        if self.chunk is None or self.chunk >= x.shape[1]:
            return self.read(x, state)[0]
        outputs = []
        for piece in x.split(self.chunk, dim=1):
            y, state = self.read(piece, state)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


def mix_real_tokens(mix: Any, x: Tensor, mask: Bool[Tensor, "batch length"]) -> Tensor:
    """Brings the real tokens to the front, mixes causally, and puts them back: padding, wherever, is never read."""
    order = torch.argsort(~mask, dim=1, stable=True)[..., None].expand_as(x)
    return torch.empty_like(x).scatter(1, order, mix(x.gather(1, order)))


def convolve_on(conv: ShortConv, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """What a causal convolution gives for (batch, length, dim) after `past`, its last inputs; and the last inputs."""
    window = torch.cat([past, x], dim=1)
    return conv.conv(window.transpose(1, 2)).transpose(1, 2), window[:, x.shape[1] :]


def wide(x: Tensor) -> Tensor:
    """In float32 at least: exponentials of sums of logarithms need it."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def check_chunk(chunk: int | None) -> None:
    """Raises ValueError if a chunk has no token."""
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
