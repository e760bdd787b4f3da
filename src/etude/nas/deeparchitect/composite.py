"""Composite modules: modules made of modules, up to the bisected tree."""

import abc
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from etude.nas.deeparchitect.basic import Empty
from etude.nas.deeparchitect.language import Context, SearchModule, Shape, domain, merge

__all__ = ["Bisection", "Concat", "MaybeSwap", "Optional", "Or", "Repeat", "RepeatTied", "Residual"]


class _Composite(SearchModule):
    """Parts that come one after the other, each made when the one before it is specified and its shape known."""

    def __init__(self, parts: Sequence[SearchModule]):
        super().__init__()
        kind = type(self).__name__
        if not isinstance(parts, Sequence):
            raise ValueError(f"{kind} takes a list of modules, got {type(parts).__name__}")
        if not parts:
            raise ValueError(f"{kind} needs at least one module, got an empty list")
        for part in parts:
            if not isinstance(part, SearchModule):
                raise TypeError(f"{kind} is made of search modules, got {type(part).__name__}; Layer wraps your own")
        self._written = tuple(parts)

    def _reset(self) -> None:
        super()._reset()
        self._live: list[SearchModule] = []
        self._waiting: list[SearchModule] = []

    def _parts(self) -> Sequence[SearchModule]:
        return self._written

    def _made(self) -> Sequence[SearchModule]:
        return self._live

    def _advance(self) -> None:
        """Makes parts until one has a decision to take, or none is left."""
        while self._waiting and (not self._live or self._live[-1]._current is None):
            shape = self._live[-1]._out_shape() if self._live else self._in_shape
            self._live.append(self._waiting.pop(0).fresh().initialize(shape, self._scope))

    def _pending(self) -> tuple[str, Sequence[Any]] | None:
        return self._live[-1]._current if self._live else None

    def _commit(self, index: int) -> None:
        self._live[-1].choose(index)
        self._advance()

    def _halves(self) -> tuple[int, int] | None:
        return self._live[-1]._halves() if self._live else None

    def _out_shape(self) -> Shape:
        return self._live[-1]._out_shape()

    def _compile(self) -> nn.Module:
        layers = [part._compile() for part in self._live]
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def _entries(self) -> tuple[Any, ...]:
        return tuple(entry for part in self._live for entry in part._entries())

    def repr_program(self) -> tuple[Any, ...]:
        return (type(self).__name__, *(part.repr_program() for part in self._written))

    def _publishes(self) -> Sequence[str]:
        return [name for part in self._written for name in part._publishes()]

    def _line(self) -> str:
        return self._counted(type(self).__name__) if self._scope is None else type(self).__name__


class Concat(_Composite):
    """Modules one after the other.

    Args:
        parts: the modules, one or more.
    """

    def __init__(self, parts: Sequence[SearchModule]):
        super().__init__(parts)
        names = list(self._publishes())
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{type(self).__name__}: {', '.join(twice)} is published twice; each name once")

    def _start(self) -> None:
        self._waiting = list(self._written)
        self._advance()

    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        for part in self._written:
            contexts = part._tally(contexts, needed)
        return contexts


class _Deciding(_Composite):
    """A composite with one decision of its own, taken before its parts are made."""

    def _reset(self) -> None:
        super()._reset()
        self._own: int | None = None

    @abc.abstractmethod
    def _options(self) -> tuple[str, list[Any]]:
        """Name and values of its own decision."""

    @abc.abstractmethod
    def _decide(self, index: int) -> None:
        """Lists the parts to be made."""

    def _pending(self) -> tuple[str, Sequence[Any]] | None:
        if self._own is None:
            name, values = self._options()
            return f"{self.name}.{name}", values
        return super()._pending()

    def _commit(self, index: int) -> None:
        if self._own is None:
            self._own = index
            self._decide(index)
            self._advance()
        else:
            super()._commit(index)

    def _halves(self) -> tuple[int, int] | None:
        return None if self._own is None else super()._halves()


class Or(_Deciding):
    """One of several modules; which one is decided before the module's own decisions.

    Args:
        branches: the modules, one or more.
    """

    def __init__(self, branches: Sequence[SearchModule]):
        super().__init__(branches)

    def _options(self) -> tuple[str, list[Any]]:
        return "branch", list(range(len(self._written)))

    def _decide(self, index: int) -> None:
        self._waiting = [self._written[index]]

    def _publishes(self) -> Sequence[str]:
        return list(dict.fromkeys(super()._publishes()))

    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        return merge([found for branch in self._written for found in branch._tally(contexts, needed)])


class Optional(Or):
    """A module or nothing."""

    def __init__(self, module: SearchModule):
        super().__init__([Empty(), module])


class MaybeSwap(Or):
    """Two modules in either order."""

    def __init__(self, first: SearchModule, second: SearchModule):
        super().__init__([Concat([first, second]), Concat([second, first])])


class Repeat(_Deciding):
    """A module several times in a row, each time with choices of its own.

    Args:
        module: what is repeated.
        times: how often: a list of integers of at least 1, or one.

    Raises:
        ValueError: if a number is below 1, or the module publishes names, which would be published several times.
    """

    def __init__(self, module: SearchModule, times: Any):
        super().__init__([module])
        kind = type(self).__name__
        values = domain("times", times, kind)
        if not isinstance(values, list) or not all(isinstance(k, int) and k >= 1 for k in values):
            raise ValueError(f"{kind}: times must be integers of at least 1, got {times}; Optional gives none or one")
        self.times: list[int] = values
        if module._publishes():
            raise ValueError(f"{kind}: {', '.join(module._publishes())} would be published several times")

    def _options(self) -> tuple[str, list[Any]]:
        return "times", self.times

    def _decide(self, index: int) -> None:
        self._waiting = [self._written[0]] * self.times[index]

    def repr_program(self) -> tuple[Any, ...]:
        return (type(self).__name__, ("times", tuple(self.times)), self._written[0].repr_program())

    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        # A module that publishes nothing leaves its context as it is, so that its number is a power.
        return [
            (context, number * sum(self._ways(context, k, needed) for k in self.times)) for context, number in contexts
        ]

    def _ways(self, context: Context, k: int, needed: frozenset[str]) -> int:
        return sum(number for _, number in self._written[0]._tally([(context, 1)], needed)) ** k

    def _line(self) -> str:
        kind = type(self).__name__
        if self._scope is None:
            return self._counted(f"{kind}({', '.join(map(str, self.times))})")
        return kind if self._own is None else f"{kind}({self.times[self._own]})"


class RepeatTied(Repeat):
    """A module several times in a row; what is chosen for the first is chosen for all. Weights are not tied.

    The indices of the choices are replayed, once the first is specified.
    """

    def _reset(self) -> None:
        super()._reset()
        self._history: list[int] = []
        self._copies = 0

    def _decide(self, index: int) -> None:
        self._waiting = [self._written[0]]
        self._copies = self.times[index] - 1

    def _commit(self, index: int) -> None:
        if self._own is not None:
            self._history.append(index)
        super()._commit(index)

    def _advance(self) -> None:
        super()._advance()
        while self._copies and self._live[-1]._current is None:
            copy = self._written[0].fresh().initialize(self._live[-1]._out_shape(), self._scope)
            for index in self._history:
                copy.choose(index)
            self._live.append(copy)
            self._copies -= 1

    def _ways(self, context: Context, k: int, needed: frozenset[str]) -> int:
        return super()._ways(context, 1, needed)


class Residual(_Composite):
    """b(x) + x; the smaller of the two is padded with zeros at the end of each dimension.

    Of different ranks, both are flattened first.
    """

    def __init__(self, module: SearchModule):
        super().__init__([module])

    def _start(self) -> None:
        self._waiting = list(self._written)
        self._advance()

    def _out_shape(self) -> Shape:
        inner = self._live[0]._out_shape()
        if len(inner) == len(self._in_shape):
            return tuple(map(max, inner, self._in_shape))
        return (max(math.prod(inner), math.prod(self._in_shape)),)

    def _compile(self) -> nn.Module:
        return PaddedSum(self._live[0]._compile(), self._out_shape())

    def _entries(self) -> tuple[Any, ...]:
        return (("Residual", self._live[0]._entries()),)

    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        return self._written[0]._tally(contexts, needed)


class PaddedSum(nn.Module):
    """body(x) + x, both padded with zeros at the end of each dimension to `shape` (without the batch)."""

    def __init__(self, body: nn.Module, shape: Shape):
        super().__init__()
        self.body, self.shape = body, tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, ...). Gives (batch, *shape)."""
        return self._padded(self.body(x)) + self._padded(x)

    def _padded(self, x: Tensor) -> Tensor:
        if x.ndim - 1 != len(self.shape):
            x = x.flatten(1)
        lacking = [wanted - size for wanted, size in zip(self.shape, x.shape[1:])]
        if not any(lacking):
            return x
        return F.pad(x, [amount for size in reversed(lacking) for amount in (0, size)])

    def extra_repr(self) -> str:
        return f"shape={self.shape}"


class Bisection(_Composite):
    """A space whose decisions among v ordered values become sequences of halvings.

    Values l, ..., r - 1 part at floor((l + r) / 2) until one is left. Neighbouring values then share their
    statistics, so order domains (rates, widths) before. Same networks, same count, same `repr_model`; a history is
    the sequence of sides, 0 or 1.

    Args:
        space: what is restructured.
    """

    def __init__(self, space: SearchModule):
        super().__init__([space])

    def _reset(self) -> None:
        super()._reset()
        self._low, self._high = 0, 0

    def _start(self) -> None:
        self._waiting = list(self._written)
        self._advance()
        self._open()

    def _open(self) -> None:
        pending = self._live[0]._current
        self._low, self._high = 0, 0 if pending is None else len(pending[1])

    def _middle(self) -> int:
        return (self._low + self._high) // 2

    def _pending(self) -> tuple[str, Sequence[Any]] | None:
        pending = self._live[0]._current
        if pending is None:
            return None
        name, values = pending
        middle = self._middle()
        return name, [tuple(values[self._low : middle]), tuple(values[middle : self._high])]

    def _commit(self, index: int) -> None:
        middle = self._middle()
        self._low, self._high = (middle, self._high) if index else (self._low, middle)
        if self._high - self._low == 1:
            self._live[0].choose(self._low)
            self._open()

    def _halves(self) -> tuple[int, int] | None:
        if self._live[0]._current is None:
            return None
        inner = self._live[0]._halves()
        middle = self._middle()
        return inner if inner is not None else (middle - self._low, self._high - middle)

    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        return self._written[0]._tally(contexts, needed)
