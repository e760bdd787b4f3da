"""Students made from a network: layers removed, sizes shrunk, every weight new (paper, sections 3.2 and 3.3).

The student is a copy of the teacher's own modules: a removed layer becomes `nn.Identity`, an emptied residual block
its shortcut, and a kept layer is made again for the channels that reach it.
"""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, fx, nn

from etude.loop.evaluation import mode
from etude.loop.seeding import seeded
from etude.nas.n2n.tracing import Program, _unchecked

__all__ = [
    "CODE_FACTORS",
    "FACTORS",
    "InvalidStudent",
    "Removal",
    "Shrinkage",
    "count_parameters",
    "digest",
    "initialise",
    "remove_layers",
    "shrink_layers",
]

FACTORS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The paper's factors."""
CODE_FACTORS = (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Those of the authors' code."""

LINEAR_INPUTS = (10, 50_000)
"""Fewest and most inputs of a Linear; a teacher's that has fewer or more may keep them."""


class InvalidStudent(ValueError):
    """The chosen layers or sizes make no network."""


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def remove_layers(
    model: nn.Module, keep: Bool[Tensor, "layers"] | Int[Tensor, "layers"], example_input: Tensor
) -> nn.Module:
    """A copy of `model` with new weights and without the layers whose `keep` is 0.

    Args:
        model: as for `layer_table`.
        keep: one value for each layer of `layer_table`; fixed layers stay whatever it says.
        example_input: (n, channels, height, width).

    Raises:
        InvalidStudent: if shapes do not fit, or a Linear would have more than 50,000 or fewer than 10 inputs.
        ValueError: if `keep` has another length than the table, or holds anything but 0 and 1.
    """
    return Removal(model, example_input)(keep)


def shrink_layers(
    model: nn.Module,
    factors: Float[Tensor, "layers 5"],
    example_input: Tensor,
    *,
    min_channels: int = 10,
) -> nn.Module:
    """A copy of `model` with new weights and smaller layers.

    Kernel and stride become max(int(size * factor), 1), the padding int(padding * factor), and the number of filters
    max(int(out * factor), min_channels), but never more than it was. Attributes that are not `adjustable` in the
    table keep their sizes.

    Args:
        model: as for `layer_table`.
        factors: in (0, 1], for (type, kernel, stride, out, padding) of each layer of `layer_table`.
        example_input: (n, channels, height, width).
        min_channels: fewest filters of a convolution.

    Raises:
        InvalidStudent: as for `remove_layers`.
        ValueError: for factors of another shape or outside (0, 1].
    """
    return Shrinkage(model, example_input, min_channels=min_channels).apply(factors)


class _Build:
    """A network and how students are made from it."""

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        *,
        skip_support: bool = False,
        fix: tuple[type[nn.Module], ...] = (),
    ):
        self.model, self.example, self.fix = model, example_input[:2], fix
        self.skip_support = skip_support
        self._program = Program(model, self.example)
        self.table = self._program.table(skip_support, fix)
        self.params = count_parameters(model)

    def __getstate__(self) -> dict[str, Any]:
        """Traced programs are made again where they arrive."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_program", "table")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._program = Program(self.model, self.example)
        self.table = self._program.table(self.skip_support, self.fix)

    def _student(self, removed: set[str], factors: dict[str, Sequence[float]], min_channels: int) -> nn.Module:
        program = self._program
        emptied = set()
        for block in program.blocks:
            own = [name for name in self.table.names if name.startswith(block.path + ".")]
            if block.replaceable and own and removed.issuperset(own):
                emptied.add(block.path)
        builder = _Builder(program, removed, factors, min_channels, emptied)
        with _unchecked(), mode(self.model, training=False), torch.no_grad():
            try:
                builder.run(self.example)
            except InvalidStudent:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise InvalidStudent(_reason(error)) from error
        # What is in the memo is taken instead of being copied: no weight of the teacher's is.
        memo: dict[int, Any] = {id(program.modules[name]): module for name, module in builder.made.items()}
        for path in emptied:
            shortcut = [name for block in program.blocks if block.path == path for name in block.shortcut]
            modules = [builder.made[name] for name in shortcut]
            memo[id(program.modules[path])] = nn.Sequential(*modules) if modules else nn.Identity()
        student = copy.deepcopy(self.model, memo)
        with _unchecked(), mode(student, training=False), torch.no_grad():
            try:
                shape = tuple(student(self.example).shape)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise InvalidStudent(_reason(error)) from error
        if shape != program.out_shape:
            raise InvalidStudent(f"the output has shape {shape} instead of {program.out_shape}")
        return student.train()


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    return next((line for line in reversed(lines) if line.strip() and "%" not in line), lines[0])


class Removal(_Build):
    """Builds students with layers removed; called with actions (layers,), 1 to keep.

        build = Removal(teacher, images[:1])
        student = build(torch.randint(2, (len(build.table),)))

    Args:
        model: what is compressed, as for `layer_table`.
        example_input: (n, channels, height, width) on the model's device.
        skip_support, fix: as for `layer_table`.

    Raises:
        ValueError: as for `layer_table`, and if no layer can be removed.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        *,
        skip_support: bool = False,
        fix: tuple[type[nn.Module], ...] = (),
    ):
        super().__init__(model, example_input, skip_support=skip_support, fix=fix)
        if bool(self.table.fixed.all()):
            raise ValueError(f"{type(model).__name__} has no layer that can be removed")

    @property
    def fixed(self) -> Bool[Tensor, "layers"]:
        """Positions without a decision."""
        return self.table.fixed

    def __call__(self, keep: Bool[Tensor, "layers"] | Int[Tensor, "layers"]) -> nn.Module:
        if keep.shape != (len(self.table),) or not bool(((keep == 0) | (keep == 1)).all()):
            raise ValueError(f"keep must be {len(self.table)} zeros and ones, got {keep.tolist()}")
        removed = {
            name for name, kept, fixed in zip(self.table.names, keep, self.table.fixed) if not kept and not fixed
        }
        return self._student(removed, {}, 1)

    def changes(self, keep: Tensor) -> list[str]:
        """What the actions did, a line a layer."""
        table = self.table
        return [
            f"removed {name} ({type(module).__name__})"
            for name, module, kept, fixed in zip(table.names, table.modules, keep, table.fixed)
            if not kept and not fixed
        ]


class Shrinkage(_Build):
    """Builds students with smaller layers; called with actions (layers, 5), indices into `factors`.

    Args:
        model, example_input, skip_support, fix: as for `Removal`.
        factors: what sizes are multiplied by.
        min_channels: fewest filters of a convolution.

    Raises:
        ValueError: as for `layer_table`, for factors outside (0, 1], and if nothing can shrink.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor,
        *,
        factors: Sequence[float] = FACTORS,
        min_channels: int = 10,
        skip_support: bool = False,
        fix: tuple[type[nn.Module], ...] = (),
    ):
        super().__init__(model, example_input, skip_support=skip_support, fix=fix)
        if min_channels < 1:
            raise ValueError(f"min_channels must be positive, got {min_channels}")
        if not factors or not all(0 < factor <= 1 for factor in factors):
            raise ValueError(f"factors must lie in (0, 1], got {tuple(factors)}")
        if not bool(self.table.adjustable.any()):
            raise ValueError(f"{type(model).__name__} has no layer that can shrink")
        self.factors, self.min_channels = tuple(factors), min_channels

    @property
    def fixed(self) -> Bool[Tensor, "layers 5"]:
        """Positions without a decision."""
        return ~self.table.adjustable

    def __call__(self, actions: Int[Tensor, "layers 5"]) -> nn.Module:
        if actions.numel() and not 0 <= int(actions.min()) <= int(actions.max()) < len(self.factors):
            raise ValueError(f"actions must index {len(self.factors)} factors, got {actions.tolist()}")
        return self.apply(torch.tensor(self.factors, dtype=torch.float64)[actions])

    def apply(self, factors: Float[Tensor, "layers 5"]) -> nn.Module:
        """The student whose sizes are multiplied by these factors."""
        if factors.shape != (len(self.table), 5) or not bool(((factors > 0) & (factors <= 1)).all()):
            raise ValueError(f"factors must be {len(self.table)} x 5 numbers in (0, 1], got {factors.tolist()}")
        ones = torch.where(self.table.adjustable, factors.double(), 1.0)
        return self._student(set(), dict(zip(self.table.names, ones.tolist())), self.min_channels)

    def changes(self, actions: Tensor) -> list[str]:
        """What the actions did, a line a layer."""
        chosen = torch.tensor(self.factors, dtype=torch.float64)[actions]
        ones = torch.where(self.table.adjustable, chosen, 1.0)
        lines = []
        for name, row, factors in zip(self.table.names, self.table.features.tolist(), ones.tolist()):
            sizes = []
            for place, word in ((1, "kernel"), (2, "stride"), (3, "filters"), (4, "padding")):
                least = {3: self.min_channels, 4: 0}.get(place, 1)
                new = scaled(int(row[place]), factors[place], least)
                if new != int(row[place]):
                    sizes.append(f"{word} {int(row[place])} -> {new}")
            if sizes:
                lines.append(f"shrank {name}: {', '.join(sizes)}")
        return lines


def scaled(size: int, factor: float, least: int) -> int:
    """int(size * factor), at least `least` and at most `size`; the slack keeps 0.7 * 90 at 63, in float32 too."""
    return min(max(int(size * factor + 1e-4), least), size)


class _Builder(fx.Interpreter):
    """Runs the example through the program and makes each layer anew for the tensor that reaches it."""

    def __init__(
        self,
        program: Program,
        removed: set[str],
        factors: dict[str, Sequence[float]],
        min_channels: int,
        emptied: set[str],
    ):
        super().__init__(program.traced, garbage_collect_values=False)
        self.program, self.removed, self.factors = program, removed, factors
        self.min_channels, self.emptied = min_channels, emptied
        self.made: dict[str, nn.Module] = {}
        self.extra_traceback = False
        self._tied: dict[str, fx.Node] = {}
        self._following: dict[str, tuple[str | None, fx.Node]] = {}
        for block, fork, _ in program.additions.values():
            if block.path in emptied:
                continue
            end = self._end(block.main)
            if not block.shortcut and end is not None:
                self._tied.setdefault(end, fork)
            follower = next((name for name in reversed(block.shortcut) if self._is_conv(name)), None)
            if follower is not None:
                self._following[follower] = end, fork

    def _is_conv(self, name: str) -> bool:
        return isinstance(self.program.modules[name], nn.Conv2d)

    def _end(self, names: tuple[str, ...]) -> str | None:
        """The last convolution that is left of a path."""
        return next((name for name in reversed(names) if self._is_conv(name) and name not in self.removed), None)

    def run_node(self, n: fx.Node) -> Any:
        if n in self.program.additions:
            block, _, end = self.program.additions[n]
            if block.path in self.emptied:
                return self.env[end]
        return super().run_node(n)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target)
        if name not in self.made:
            self.made[name] = self._make(name, args[0])
        return self.made[name].eval()(*args, **kwargs)

    def _make(self, name: str, x: Tensor) -> nn.Module:
        if name in self.removed:
            return nn.Identity()
        old = self.program.modules[name]
        if isinstance(old, nn.Conv2d):
            return self._convolution(name, old, x)
        if isinstance(old, nn.Linear):
            least, most = LINEAR_INPUTS
            if not min(least, old.in_features) <= x.shape[-1] <= max(most, old.in_features):
                raise InvalidStudent(f"{name} (Linear) would have {x.shape[-1]} inputs")
            where: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
            return nn.Linear(x.shape[-1], old.out_features, old.bias is not None, **where)
        if isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d):
            where = {"device": x.device, "dtype": x.dtype if old.weight is None else old.weight.dtype}
            return type(old)(x.shape[1], old.eps, old.momentum, old.affine, old.track_running_stats, **where)
        new = copy.deepcopy(old)
        if isinstance(new, nn.MaxPool2d):
            new.kernel_size, new.stride, new.padding = self._window(name, new, new.padding)
        return new

    def _window(self, name: str, module: Any, padding: Any) -> tuple[Any, Any, Any]:
        _, kernel, stride, _, pad = self.factors.get(name, (1.0,) * 5)
        return (
            _each(module.kernel_size, kernel, 1), _each(module.stride, stride, 1),
            padding if isinstance(padding, str) else _each(padding, pad, 0),
        )  # fmt: skip

    def _convolution(self, name: str, old: nn.Conv2d, x: Tensor) -> nn.Conv2d:
        kernel, stride, padding = self._window(name, old, old.padding)
        dilation: Any = old.dilation
        return nn.Conv2d(
            x.shape[1], self._out(name), kernel, stride, padding, dilation, bias=old.bias is not None,
            padding_mode=old.padding_mode, device=old.weight.device, dtype=old.weight.dtype,
        )  # fmt: skip

    def _out(self, name: str) -> int:
        """Filters of a convolution: tied to a bare shortcut's width, as a shortcut's to its block's, or shrunk."""
        if name in self._tied:
            return self.env[self._tied[name]].shape[1]
        if name in self._following:
            end, fork = self._following[name]
            return self.env[fork].shape[1] if end is None else self._out(end)
        out: Any = self.program.modules[name].out_channels
        return scaled(out, self.factors.get(name, (1.0,) * 5)[3], self.min_channels)


def _each(size: Any, factor: float, least: int) -> Any:
    if isinstance(size, tuple):
        return tuple(scaled(each, factor, least) for each in size)
    return scaled(size, factor, least)


def digest(student: nn.Module, seed: int = 0) -> int:
    """A 63-bit number of the architecture and the run: equal networks have equal ones, whatever their weights."""
    shapes = [(name, tuple(parameter.shape)) for name, parameter in student.named_parameters()]
    text = f"{student!r}\0{shapes}\0{seed}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def initialise(student: nn.Module, seed: int) -> None:
    """Draws every weight anew by the modules' own rule, from `seed`."""
    with seeded(seed):
        for module in student.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
