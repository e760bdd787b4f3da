"""Basic modules: one layer each, with a finite domain for every hyperparameter; and modules of a user's own."""

import abc
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from etude.nas.deeparchitect.language import (
    Context,
    Dependent,
    InvalidModel,
    SearchModule,
    Shape,
    describe,
    domain,
    merge,
)

__all__ = ["BasicModule", "Empty", "Layer", "UserHyperparams"]


class BasicModule(SearchModule):
    """One layer with named hyperparameters, decided in the order in which they are given.

    A user's own kind of layer is a subclass that says what its output's shape is and how it is built:

        class Scale(BasicModule):
            def __init__(self, factors):
                super().__init__(factor=factors)
            def shape_of(self, in_shape, factor):
                return in_shape
            def build(self, in_shape, factor):
                return MyScale(factor)

    Args:
        **domains: the values of each hyperparameter: a finite sequence, one value, or a `Dependent`.

    Raises:
        ValueError: if a domain is empty, not a finite sequence, or holds a value twice.
    """

    def __init__(self, **domains: Any):
        super().__init__()
        kind = type(self).__name__
        self._domains = {name: domain(name, values, kind) for name, values in domains.items()}
        for position, (name, values) in enumerate(self._domains.items()):
            later = list(self._domains)[position:]
            if isinstance(values, Dependent) and set(values.on) & set(later):
                raise ValueError(f"{kind}: {name} must depend on what is decided before it, got on={values.on}")

    @abc.abstractmethod
    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        """The output's shape without the batch.

        Raises:
            InvalidModel: if the input's shape does not fit.
        """

    @abc.abstractmethod
    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        """The layer, with new weights."""

    @property
    def values(self) -> Context:
        """What is decided so far."""
        return dict(self._values)

    def _reset(self) -> None:
        super()._reset()
        self._values: Context = {}
        self._next: tuple[str, Sequence[Any]] | None = None
        self._shape: Shape = ()

    def _start(self) -> None:
        self._look()

    def _look(self) -> None:
        """Finds the next decision; after the last one, the shape, so that what does not fit shows at once."""
        if len(self._values) < len(self._domains):
            name = list(self._domains)[len(self._values)]
            self._next = f"{self.name}.{name}", self._domain(name)
            return
        self._next = None
        try:
            self._shape = tuple(self.shape_of(self._in_shape, **self._values))
        except InvalidModel as error:
            raise InvalidModel(f"{self.name}: {error}") from error
        if any(size < 1 for size in self._shape):
            raise InvalidModel(f"{self.name}: nothing is left of an input of shape {self._in_shape}: {self._shape}")

    def _domain(self, name: str) -> list[Any]:
        assert self._scope is not None
        return self._listed(name, {**self._scope.values, **self._values}, self.name)

    def _listed(self, name: str, known: Context, owner: str) -> list[Any]:
        values = self._domains[name]
        if not isinstance(values, Dependent):
            return values
        lacking = [needed for needed in values.on if needed not in known]
        if lacking:
            raise ValueError(
                f"{owner}.{name} depends on {', '.join(lacking)}, published by no UserHyperparams before it"
            )
        found = domain(name, values.values(*(known[needed] for needed in values.on)), owner)
        if isinstance(found, Dependent):
            raise ValueError(f"{owner}.{name}: a dependent domain must give values, got {found}")
        return found

    def _pending(self) -> tuple[str, Sequence[Any]] | None:
        return self._next

    def _commit(self, index: int) -> None:
        assert self._next is not None
        name = list(self._domains)[len(self._values)]
        self._values[name] = self._next[1][index]
        self._look()

    def _out_shape(self) -> Shape:
        return self._shape

    def _compile(self) -> nn.Module:
        return self.build(self._in_shape, **self._values)

    def _entries(self) -> tuple[Any, ...]:
        return ((self._kind(), *self._values.items()),)

    def _kind(self) -> str:
        return type(self).__name__

    def repr_program(self) -> tuple[Any, ...]:
        return (self._kind(), *((name, _plain(values)) for name, values in self._domains.items()))

    def _needs(self) -> Sequence[str]:
        asked = [needed for values in self._domains.values() if isinstance(values, Dependent) for needed in values.on]
        return [needed for needed in asked if needed not in self._domains]

    def _tally(self, contexts: list[tuple[Context, int]], needed: frozenset[str]) -> list[tuple[Context, int]]:
        published = needed & set(self._publishes())
        if not published and not any(isinstance(values, Dependent) for values in self._domains.values()):
            product = math.prod(len(values) for values in self._domains.values() if isinstance(values, list))
            return [(context, number * product) for context, number in contexts]
        found: list[tuple[Context, int]] = []
        for context, number in contexts:
            chosen: list[Context] = [{}]
            for name in self._domains:
                chosen = [
                    {**before, name: value}
                    for before in chosen
                    for value in self._listed(name, {**context, **before}, self.name)
                ]
            found += [({**context, **{name: own[name] for name in published}}, number) for own in chosen]
        return merge(found)

    def _line(self) -> str:
        if self._scope is None:
            return self._counted(f"{self._kind()}({describe(self._domains)})")
        return f"{self._kind()}({describe(self._values)})"


def _plain(values: list[Any] | Dependent) -> Any:
    return tuple(values) if isinstance(values, list) else ("depends on", *values.on)


class Empty(BasicModule):
    """Nothing: the identity."""

    def __init__(self) -> None:
        super().__init__()

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return in_shape

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        return nn.Identity()


class UserHyperparams(Empty):
    """The identity in the network; publishes its values for the training procedure and for `Dependent` domains.

        UserHyperparams(optimizer=["adam", "sgd"], lr=np.logspace(-2, -7, 8))

    Args:
        **domains: the values of each hyperparameter.
    """

    def __init__(self, **domains: Any):
        if not domains:
            raise ValueError("UserHyperparams needs at least one hyperparameter")
        BasicModule.__init__(self, **domains)

    def _publishes(self) -> Sequence[str]:
        return list(self._domains)

    def _look(self) -> None:
        super()._look()
        if self._next is None:
            assert self._scope is not None
            self._scope.values.update(self._values)


class Layer(BasicModule):
    """Any function that gives an `nn.Module`, as a member of the language.

        Layer(nn.PReLU)
        Layer(nn.Softshrink, lambd=[0.1, 0.5])
        Layer(lambda in_shape, width: nn.Linear(in_shape[0], width), "Dense", width=[16, 32])

    Args:
        factory: `factory(**values)` gives the layer; if it takes `in_shape`, it gets the input's shape as well.
        name: of the kind of layer; that of the factory if None, which a lambda does not have.
        out_shape: `out_shape(in_shape, **values)`. If None, the layer is built on torch's meta device, and takes a
            batch of two there: nothing is computed.
        **domains: the values of the factory's arguments.

    Raises:
        ValueError: for a lambda without `name`, or a bad domain.
    """

    def __init__(
        self,
        factory: Callable[..., nn.Module],
        name: str | None = None,
        out_shape: Callable[..., Sequence[int]] | None = None,
        **domains: Any,
    ):
        if not callable(factory):
            raise TypeError(f"factory must be a function that gives an nn.Module, got {factory!r}")
        kind = str(name or getattr(factory, "__name__", "<lambda>"))
        if kind == "<lambda>":
            raise ValueError("a layer made by a lambda needs a name=, which models are told apart by")
        self._layer_kind = kind
        super().__init__(**domains)
        self.factory, self._shape_function = factory, out_shape
        self._shapes: dict[str, Shape] = {}
        try:
            self._wants_shape = "in_shape" in inspect.signature(factory).parameters
        except (TypeError, ValueError):  # a callable without a signature takes its values alone
            self._wants_shape = False

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        if self._shape_function is not None:
            return tuple(self._shape_function(in_shape, **values))
        key = repr((in_shape, values))
        if key not in self._shapes:
            self._shapes[key] = self._traced(in_shape, values)
        return self._shapes[key]

    def _traced(self, in_shape: Shape, values: Context) -> Shape:
        with torch.device("meta"):
            layer = self.build(in_shape, **values).to("meta").eval()
            try:
                with torch.no_grad():
                    output = layer(torch.zeros(2, *in_shape))
            except RuntimeError as error:
                raise InvalidModel(f"{self._layer_kind} does not take shape {in_shape}: {error}") from error
        if not isinstance(output, torch.Tensor) or output.shape[:1] != (2,):
            raise TypeError(f"{self._layer_kind} must give one tensor with a row for each of the batch")
        return tuple(output.shape[1:])

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        layer = self.factory(in_shape=in_shape, **values) if self._wants_shape else self.factory(**values)
        if not isinstance(layer, nn.Module):
            raise TypeError(f"the factory of {self._layer_kind} must give an nn.Module, got {type(layer).__name__}")
        return layer

    def _kind(self) -> str:
        return self._layer_kind
