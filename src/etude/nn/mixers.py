"""One interface for what mixes the tokens of a sequence: attention, convolutions, recurrences, and who knows which.

    mixer = build_mixer("retention", 64, max_len=256)
    y = mixer(x)                                   # (batch, length, dim), all tokens at once

    state = mixer.init_state(batch)                # where a step form exists: one token at a time, the same numbers
    y_t, state = mixer.step(x_t, state)

Papers register their mixers by name; `etude.sequence.load_mixers()` makes all of this library's known.
"""

import abc
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Mixer", "build_mixer", "mixer_names", "register_mixer"]


class Mixer(nn.Module, abc.ABC):
    """Maps a sequence of tokens to one of the same shape.

    Attributes:
        causal: whether a token's output depends on it and on earlier tokens alone.
        recurrent: whether `step` needs a state whose size does not grow with what has been read. A mixer that keeps
            all it has read, such as attention, may have `step` as well.
        cost: of mixing a sequence, in the order of multiplications.
        length_bound: the longest sequence it takes; None if there is no bound.
    """

    causal: ClassVar[bool] = True
    recurrent: ClassVar[bool] = False
    cost: ClassVar[str] = ""
    length_bound: int | None = None

    @abc.abstractmethod
    def forward(
        self, x: Float[Tensor, "batch length dim"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """The mixed sequence.

        Args:
            x: tokens.
            mask: true for real tokens; the others, padding, change the output of none. None: all are real.
        """

    @abc.abstractmethod
    def state_size(self, length: int) -> int:
        """Numbers kept for each sequence after `length` tokens, to go on; a complex number counts as two.

        What cannot go on token by token keeps its whole input, dim * length.
        """

    @abc.abstractmethod
    def flops(self, length: int) -> int:
        """Multiplications and additions, each counted, for one sequence of `length` tokens, to leading order."""

    @property
    def has_step(self) -> bool:
        """Whether `step` exists: only what is causal can go on token by token."""
        return self.causal and type(self).step is not Mixer.step

    def init_state(self, batch: int) -> Any:
        """The state before the first token: a tensor, or a tuple or dictionary of tensors.

        Raises:
            TypeError: if the mixer has no step form.
        """
        raise TypeError(f"{type(self).__name__} has no step form: it reads whole sequences")

    def step(self, x: Float[Tensor, "batch dim"], state: Any) -> tuple[Float[Tensor, "batch dim"], Any]:
        """The output for the next token, and the state after it; the state given is left as it is.

        Raises:
            TypeError: if the mixer has no step form.
        """
        raise TypeError(f"{type(self).__name__} has no step form: it reads whole sequences")

    def check_length(self, length: int) -> None:
        """Raises ValueError if a sequence is longer than the mixer takes."""
        if self.length_bound is not None and length > self.length_bound:
            raise ValueError(f"{type(self).__name__} takes at most {self.length_bound} tokens, got {length}")


_REGISTRY: dict[str, Callable[..., Mixer]] = {}
_T = TypeVar("_T", bound=Callable[..., Mixer])


def register_mixer(name: str) -> Callable[[_T], _T]:
    """A decorator that makes a class, or a function that returns a mixer, known to `build_mixer`.

    Its first argument is the dimension; `max_len` and `layer` are given to it if it takes them.

    Raises:
        ValueError: if another one has the name.
    """

    def register(made: _T) -> _T:
        present = _REGISTRY.get(name)
        if present is not None and (present.__module__, present.__qualname__) != (made.__module__, made.__qualname__):
            raise ValueError(f"there is a mixer {name!r} already, {present.__module__}.{present.__qualname__}")
        _REGISTRY[name] = made
        return made

    return register


def mixer_names() -> list[str]:
    """Names of the mixers that are known."""
    return sorted(_REGISTRY)


def build_mixer(name: str, dim: int, *, max_len: int, layer: int = 0, **options: Any) -> Mixer:
    """A mixer by its name.

    Args:
        name: one of `mixer_names()`.
        dim: features of a token.
        max_len: longest sequence; mixers without a bound ignore it.
        layer: which layer of a network it is, counted from 0, for mixers that differ by layer.
        options: further arguments of the mixer.

    Raises:
        ValueError: if the name is not known.
        TypeError: if the mixer takes no such option.
    """
    if name not in _REGISTRY:
        known = ", ".join(mixer_names()) or "none yet, see etude.sequence.load_mixers"
        raise ValueError(f"unknown mixer {name!r}; known are {known}")
    made = _REGISTRY[name]
    parameters = inspect.signature(made).parameters
    for option, value in (("max_len", max_len), ("layer", layer)):
        if option in parameters:
            options.setdefault(option, value)
    foreign = [option for option in options if option not in parameters]
    if foreign and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        raise TypeError(f"mixer {name!r} takes no {', '.join(foreign)}; it takes {', '.join(list(parameters)[1:])}")
    return made(dim, **options)
