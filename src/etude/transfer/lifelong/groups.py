"""Who owns what: units and outputs belong to tasks, and weights fall into groups by the owners of their two ends.

Tasks are numbered 1, 2, ... in the order of learning; 0 owns the units that are free. At every layer

    G[i->j] = the weights from units of i to units of j       own weights (i = j), forward (i < j), backward (i > j)
    H[i->j] = the weights from units of i to the outputs of j (heads)

so that a matrix (out, in) is tiled by pairs of owners. An input has no owner: a row of the first layer belongs to its
unit. Neither has a bias nor the affine weight of a norm layer, which belong to their unit alike (our choice).

A group is named by a selector, `[parameter:]kind[source->target]`:

    "G[1->2]"              at every layer            "H[old->new]"          `new`: the task at hand, `old`: those before
    "*[free->*]"           both kinds, free units    "layers.0.*:G[*->*]"   at the parameters that match the pattern
"""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["FREE", "KINDS", "MASKED", "Owners", "Rules", "Selector", "check_b", "layer_owners"]

FREE = 0
"""Number of the owner of free units."""
KINDS = ("G", "H")
"""Features and heads."""
MASKED = "masked"
"""In a rule, in place of b: the group is disconnected, held at exactly zero."""

Rules = Mapping[str, float | int | str]
"""Selector -> b, or "masked"; later entries override earlier ones."""

_SELECTOR = re.compile(r"(?:(?P<name>[^\[\]]+):)?(?P<kind>G|H|\*)\[(?P<src>[^\[\]>]+)->(?P<dst>[^\[\]>]+)\]")
_WORDS = ("*", "old", "new", "free")


@dataclass(frozen=True, eq=False)
class Owners:
    """Owners of the two ends of every entry of a parameter.

    Args:
        kind: "G" or "H".
        dst: owner of each row, in the order of the parameter's first dimension; a scalar for a parameter without one.
        src: (out, in), owner of what each entry reads; None where it reads an input or nothing: then its own row's.
    """

    kind: str
    dst: Tensor
    src: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name, owners in (("dst", self.dst), ("src", self.src)):
            if owners is not None and (owners.dtype != torch.int64 or bool((owners < FREE).any())):
                raise ValueError(f"{name} must hold task numbers from {FREE} up as int64, got {owners}")
        if self.src is not None and (self.src.ndim != 2 or self.src.shape[0] != len(self.dst)):
            raise ValueError(f"src must have shape ({len(self.dst)}, in), got {tuple(self.src.shape)}")

    def clone(self) -> "Owners":
        """A copy that stays as it is when units change hands."""
        return Owners(self.kind, self.dst.clone(), None if self.src is None else self.src.clone())

    def index(self) -> tuple[Tensor, Tensor]:
        """(source, target) of every entry, to index a table B[source, target]."""
        if self.src is None:
            return self.dst, self.dst
        return self.src, self.dst[:, None].expand_as(self.src)

    def fits(self, shape: torch.Size) -> bool:
        lead = self.dst.shape if self.src is None else self.src.shape
        return tuple(shape[: len(lead)]) == tuple(lead)


def layer_owners(
    layer: nn.Module, out: Int64[Tensor, "out"], inp: Int64[Tensor, "in"] | None = None, *, kind: str = "G"
) -> dict[str, Owners]:
    """Owners of the parameters of a layer: linear, convolutional (grouped ones too) or normalising.

    Args:
        layer: `nn.Linear`, `nn.Conv1d` to `nn.Conv3d`, or a norm layer with one affine weight per unit.
        out: owner of each unit (channel) that the layer computes.
        inp: owner of each unit that it reads; None if it reads inputs.
        kind: "G" for features, "H" for heads.

    Returns:
        Name of the parameter within the layer -> its owners.

    Raises:
        TypeError: for another kind of layer.
        ValueError: if the owners are not as many as the layer's units.
    """
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        raise TypeError("a transposed convolution has its outputs in the second dimension: give its Owners by hand")
    if isinstance(layer, nn.Linear):
        units, reads = layer.out_features, layer.in_features
    elif isinstance(layer, nn.modules.conv._ConvNd):
        units, reads = layer.out_channels, layer.in_channels
    elif isinstance(layer, _BatchNorm | nn.GroupNorm | nn.LayerNorm) or hasattr(layer, "owner"):
        weight = getattr(layer, "weight", None)
        units, reads, inp = (0 if weight is None else weight.numel()), 0, None
        if weight is not None and weight.ndim != 1:
            raise TypeError(f"a norm over {tuple(weight.shape)} has no unit of its own per weight")
    else:
        raise TypeError(f"layer must be linear, convolutional or a norm, got {type(layer).__name__}")
    found = dict(layer.named_parameters(recurse=False))
    if found and len(out) != units:
        raise ValueError(f"out must name the owners of {units} units, got {len(out)}")
    if inp is not None and len(inp) != reads:
        raise ValueError(f"inp must name the owners of {reads} units, got {len(inp)}")
    owners = {}
    for name, weight in found.items():
        src = None
        if inp is not None and weight.ndim > 1:
            groups = getattr(layer, "groups", 1)
            src = inp.reshape(groups, -1).repeat_interleave(units // groups, dim=0)
        owners[name] = Owners(kind, out, src)
    return owners


@dataclass(frozen=True)
class Selector:
    """A parsed selector; `str()` gives its text back."""

    name: str
    kind: str
    src: str
    dst: str

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """The selector that `text` writes.

        Raises:
            ValueError: if it is not of the form `[parameter:]kind[source->target]`.
        """
        match = _SELECTOR.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"a selector reads [parameter:]G[i->j], H[i->j] or *[i->j], got {text!r}")
        for end in (match["src"].strip(), match["dst"].strip()):
            if end not in _WORDS and not end.isdecimal():
                raise ValueError(f"an end of {text!r} must be a task's number or one of {', '.join(_WORDS)}: {end!r}")
        return cls(match["name"] or "*", match["kind"], match["src"].strip(), match["dst"].strip())

    def __str__(self) -> str:
        prefix = "" if self.name == "*" else f"{self.name}:"
        return f"{prefix}{self.kind}[{self.src}->{self.dst}]"

    def covers(self, name: str, kind: str) -> bool:
        return self.kind in ("*", kind) and fnmatch.fnmatchcase(name, self.name)

    def ends(self, tasks: int, new: int | None) -> tuple[list[int], list[int]]:
        """Numbers of the owners at the two ends, when there are `tasks` tasks and `new` is the one at hand."""
        return self._numbers(self.src, tasks, new), self._numbers(self.dst, tasks, new)

    def _numbers(self, end: str, tasks: int, new: int | None) -> list[int]:
        if end == "*":
            return list(range(1, tasks + 1))
        if end == "free":
            return [FREE]
        if end.isdecimal():
            if int(end) > tasks:
                raise ValueError(f"{self} names task {end}; there are tasks 1..{tasks}, and 0 for free units")
            return [int(end)]
        if new is None:
            raise ValueError(f"{self} speaks of {end!r}, but no task is at hand: give its number as new")
        return [new] if end == "new" else [number for number in range(1, tasks + 1) if number != new]


def check_b(b: float | int | str) -> float | None:
    """b as a number, None if the group is masked.

    Raises:
        ValueError: if b is negative or not a number.
    """
    if isinstance(b, str):
        if b == MASKED:
            return None
        if b != "inf":
            raise ValueError(f"b must be a number from 0 to inf, or {MASKED!r}, got {b!r}")
    value = float(b)
    if not value >= 0:
        raise ValueError(f"b must lie in [0, inf], got {value}")
    return value
