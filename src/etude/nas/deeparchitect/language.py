"""The language in which a family of networks is written: modules with undecided hyperparameters.

Negrinho & Gordon, "DeepArchitect: Automatically Designing and Training Deep Architectures", arXiv:1704.08792, 2017,
sections 3 and 4.

A module passes through: written -> initialised (it knows its input's shape) -> partly chosen -> specified -> compiled.
Decisions come one at a time, in the order of the network; a decision with one value is taken silently (propagation),
so whoever chooses sees decisions of two values or more, and the decisions of a space form a tree.

What is written is never changed by what is chosen: a composite makes its parts afresh from the ones that it was
written with, and `fresh()` gives a whole space afresh.
"""

import abc
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

__all__ = [
    "Dependent",
    "InvalidModel",
    "Scope",
    "SearchModule",
    "domain",
    "enumerate_space",
    "flatten",
    "model_digest",
    "replay",
]

Shape = tuple[int, ...]
Context = dict[str, Any]


class InvalidModel(ValueError):
    """The choices so far admit no network: shapes do not fit. Searchers turn back here, other errors they pass on."""


class Scope:
    """Names given, and values published, within one network.

    Attributes:
        values: published hyperparameters (`UserHyperparams`), name -> value.
    """

    def __init__(self) -> None:
        self.values: Context = {}
        self._counts: Counter[str] = Counter()

    def register(self, kind: str) -> str:
        """A name that no module of the network has: `Conv2d-3` for the third of its kind."""
        self._counts[kind] += 1
        return f"{kind}-{self._counts[kind]}"


class Dependent:
    """A domain that follows from values chosen before.

        Conv2d([16, 32], [3, 5], strides=Dependent(lambda kernel: [1] if kernel == 3 else [1, 2], on="kernel"))

    One value makes it no decision at all: `Dependent(lambda width: [2 * width], on="width")`.

    Args:
        values: gives the domain, a finite sequence, for the values of the names in `on`.
        on: one name or several: earlier hyperparameters of the same module, or published by a `UserHyperparams` that
            stands before it.
    """

    def __init__(self, values: Callable[..., Sequence[Any]], on: str | Sequence[str]):
        if not callable(values):
            raise TypeError(f"values must be a function of the values that the domain depends on, got {values!r}")
        self.on = (on,) if isinstance(on, str) else tuple(on)
        if not self.on:
            raise ValueError("on must name at least one hyperparameter")
        self.values = values

    def __repr__(self) -> str:
        return f"f({', '.join(self.on)})"


def domain(name: str, values: Any, owner: str) -> list[Any] | Dependent:
    """The values of a hyperparameter as a list of distinct plain values; one number or word is a domain of one value.

    Raises:
        ValueError: if they are no finite sequence (a generator, a set, a distribution), empty, or twice the same.
    """
    if isinstance(values, Dependent):
        return values
    if values is None or isinstance(values, str | bool | int | float | np.generic):
        values = [values]
    if not isinstance(values, Sequence | np.ndarray):
        raise ValueError(
            f"{owner}: the domain of {name} must be a finite sequence such as a list, got {type(values).__name__}"
        )
    listed = [value.item() if isinstance(value, np.generic) else value for value in values]
    if not listed:
        raise ValueError(f"{owner}: the domain of {name} is empty; it needs at least one value")
    if len({repr(value) for value in listed}) < len(listed):
        raise ValueError(f"{owner}: the domain of {name} holds a value twice: {listed}")
    return listed


class SearchModule(abc.ABC):
    """A family of networks, and on the way from family to network the choices made so far.

    A new kind of basic module is best a `BasicModule`; this is what all kinds have in common.

    Attributes:
        name: unique name within its network, such as `Conv2d-3`; the kind alone before `initialize`.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._scope: Scope | None = None
        self._in_shape: Shape = ()
        self._current: tuple[str, Sequence[Any]] | None = None
        self.name = type(self).__name__

    def fresh(self) -> "SearchModule":
        """The same family with nothing chosen; what is chosen in one never shows in the other."""
        other = object.__new__(type(self))  # copy.copy, which takes longer than all the rest
        other.__dict__.update(self.__dict__)
        other._reset()
        return other

    def initialize(self, in_shape: Sequence[int], scope: Scope | None = None) -> "SearchModule":
        """Tells the module its input's shape without the batch, (C, H, W) or (D,); takes decisions of one value.

        Raises:
            RuntimeError: if it is initialised already.
            ValueError: if the shape holds anything but positive integers.
            InvalidModel: if no network of the family takes this shape.
        """
        if self._scope is not None:
            raise RuntimeError(f"{self.name} is initialised already; fresh() gives the same space anew")
        shape = tuple(in_shape)
        if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
            raise ValueError(f"{self.name}: in_shape must hold positive integers, such as (3, 32, 32), got {in_shape}")
        self._scope = Scope() if scope is None else scope
        self._in_shape = shape
        self.name = self._scope.register(type(self).__name__)
        self._start()
        self._propagate()
        return self

    def get_choices(self) -> tuple[str, list[Any]]:
        """The next undecided hyperparameter, `Conv2d-3.filters`, and its values, two or more.

        Raises:
            RuntimeError: if nothing is undecided, or before `initialize`.
        """
        name, values = self._decision()
        return name, list(values)

    def choose(self, index: int) -> None:
        """Takes the value at `index` of `get_choices`, and all decisions that then have one value.

        Raises:
            ValueError: if the index is out of range.
            RuntimeError: if nothing is undecided, or before `initialize`.
            InvalidModel: if no network of the family fits.
        """
        name, values = self._decision()
        if not 0 <= index < len(values):
            raise ValueError(f"{name} has {len(values)} values: choose an index in 0..{len(values) - 1}, got {index}")
        self._commit(index)
        self._propagate()

    def is_specified(self) -> bool:
        """Whether every decision is taken."""
        self._check_initialised()
        return self._current is None

    def out_shape(self) -> Shape:
        """Shape of the output without the batch."""
        self._check_specified("out_shape")
        return self._out_shape()

    def compile(self) -> nn.Module:
        """The network, a plain `nn.Module` of `torch.nn` layers with new weights from torch's generator."""
        self._check_specified("compile")
        return self._compile()

    def repr_model(self) -> tuple[Any, ...]:
        """What was chosen: (kind, (hyperparameter, value), ...) of each layer in order; equal for equal networks.

        A residual block is ("Residual", entries of what is inside).
        """
        self._check_specified("repr_model")
        return self._entries()

    @property
    def hyperparameters(self) -> Context:
        """Published values (`UserHyperparams`), for whoever trains the network."""
        self._check_initialised()
        assert self._scope is not None
        return dict(self._scope.values)

    def count(self) -> int:
        """How many histories lead to a network: exact, without enumeration, whatever the input's shape.

        Choices whose shapes turn out not to fit are counted too.
        """
        needed = frozenset(name for part in self._walk() for name in part._needs())
        return sum(number for _, number in self._tally([({}, 1)], needed))

    @abc.abstractmethod
    def repr_program(self) -> tuple[Any, ...]:
        """The space as nested tuples of names, domains and parts."""

    def tree(self) -> str:
        """The space as a tree of lines, each with its part of the count; of a network under way, what is chosen."""
        return "\n".join(self._lines())

    def __str__(self) -> str:
        return self.tree()

    # What a kind of module defines.

    @abc.abstractmethod
    def _pending(self) -> tuple[str, Sequence[Any]] | None:
        """The next decision, even of one value."""

    @abc.abstractmethod
    def _commit(self, index: int) -> None:
        """Takes a value of the pending decision."""

    @abc.abstractmethod
    def _out_shape(self) -> Shape: ...

    @abc.abstractmethod
    def _compile(self) -> nn.Module: ...

    @abc.abstractmethod
    def _entries(self) -> tuple[Any, ...]: ...

    @abc.abstractmethod
    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        """Histories by what they publish: (published before, number) -> (published after, number)."""

    @abc.abstractmethod
    def _line(self) -> str:
        """What the tree says of the module itself."""

    def _start(self) -> None:  # noqa: B027 (nothing to do is a fair default)
        """Called once the input's shape is known."""

    def _parts(self) -> Sequence["SearchModule"]:
        """Modules that the module was written with."""
        return ()

    def _made(self) -> Sequence["SearchModule"]:
        """Modules made so far on the way to the network."""
        return ()

    def _needs(self) -> Sequence[str]:
        """Published names that a domain of the module depends on."""
        return ()

    def _publishes(self) -> Sequence[str]:
        return ()

    def _halves(self) -> tuple[int, int] | None:
        """How many values stand on the two sides of a pending bisection; None for any other decision."""
        return None

    # What all share.

    def _walk(self) -> Iterator["SearchModule"]:
        yield self
        for part in self._parts():
            yield from part._walk()

    def _propagate(self) -> None:
        while (pending := self._pending()) is not None and len(pending[1]) == 1:
            self._commit(0)
        self._current = pending

    def _lines(self, first: str = "", rest: str = "") -> Iterator[str]:
        yield first + self._line()
        parts = list(self._parts() if self._scope is None else self._made())
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            yield from part._lines(rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    def _counted(self, text: str) -> str:
        try:
            number = f"{self.count():,}"
        except ValueError:  # alone, a part may lack what it depends on
            return text
        return f"{text}  ·{number}" if number != "1" else text

    def _decision(self) -> tuple[str, Sequence[Any]]:
        self._check_initialised()
        if self._current is None:
            raise RuntimeError(f"{self.name} is specified: there is nothing left to choose")
        return self._current

    def _check_initialised(self) -> None:
        if self._scope is None:
            raise RuntimeError(f"{self.name} is not initialised: call initialize(in_shape) first")

    def _check_specified(self, asked: str) -> None:
        self._check_initialised()
        if self._current is not None:
            raise RuntimeError(f"{self.name}.{asked} needs every decision taken; {self._current[0]} is undecided")


def merge(contexts: list[tuple[Context, int]]) -> list[tuple[Context, int]]:
    """Adds the numbers of equal contexts."""
    found: dict[str, tuple[Context, int]] = {}
    for context, number in contexts:
        key = repr(sorted(context.items()))
        found[key] = (context, number + (found[key][1] if key in found else 0))
    return list(found.values())


def replay(space: SearchModule, in_shape: Sequence[int], history: Sequence[int]) -> SearchModule:
    """The module that `history`, indices of choices on the space as given, leads to; binary ones of a `Bisection`.

    Raises:
        ValueError: if the history chooses too little, too much or out of range.
    """
    module = space.fresh().initialize(in_shape)
    for position, index in enumerate(history):
        if module.is_specified():
            raise ValueError(f"the history has {len(history)} choices, the network is specified after {position}")
        module.choose(index)
    if not module.is_specified():
        raise ValueError(f"the history ends after {len(history)} choices with {module.get_choices()[0]} undecided")
    return module


def enumerate_space(space: SearchModule, in_shape: Sequence[int]) -> Iterator[tuple[tuple[int, ...], SearchModule]]:
    """Every network of the space with its history, depth first; choices whose shapes do not fit are left out."""

    following: list[int] | None = []
    while following is not None:
        module = space.fresh().initialize(in_shape)
        history: list[int] = []
        sizes: list[int] = []
        try:
            while not module.is_specified():
                sizes.append(len(module.get_choices()[1]))
                history.append(following[len(history)] if len(history) < len(following) else 0)
                module.choose(history[-1])
        except InvalidModel:
            pass
        else:
            yield tuple(history), module
        while history and history[-1] == sizes[len(history) - 1] - 1:
            history.pop()
        following = [*history[:-1], history[-1] + 1] if history else None


def flatten(entries: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The entries of `repr_model` one after the other, those inside a residual block after ("Residual",)."""
    for entry in entries:
        if entry[0] == "Residual":
            yield ("Residual",)
            yield from flatten(entry[1])
        else:
            yield entry


def model_digest(module: SearchModule, seed: int = 0) -> int:
    """A 63-bit seed that depends on the network and its hyperparameters, and not on the history that led there."""
    content = repr((module.repr_model(), seed)).encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


def describe(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    if isinstance(value, list):
        if len(value) == 1:
            return _short(value[0])
        shown = value if len(value) <= 8 else [*value[:3], "...", value[-1]]
        return "{" + ", ".join(item if item == "..." else _short(item) for item in shown) + "}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
