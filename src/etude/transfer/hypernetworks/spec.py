"""What a target network wants generated: names, shapes, fans, and the graph by which its components are joined."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

__all__ = ["KINDS", "TargetSpec", "TensorSpec", "slice_parameters"]

KINDS = ("linear", "conv", "norm", "embedding", "other")
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.ELU)
_TRANSPARENT = (nn.Dropout, nn.Flatten, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass(frozen=True)
class TensorSpec:
    """A parameter of the target.

    Attributes:
        name, shape: as in `named_parameters`.
        module: name of the module that owns it; "" for the target itself.
        kind: of the module, one of `KINDS`.
        fan_in, fan_out: of the module's weight, for its bias too; the number of features for norms.
        gain: c of the wanted variance c / fan_in: 2 before a rectifier, else 1.
        role: "weight", "bias", "norm_scale" or "norm_shift".
    """

    name: str
    shape: tuple[int, ...]
    module: str
    kind: str
    fan_in: int
    fan_out: int
    gain: float
    role: str

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class TargetSpec:
    """The generated parameters of a target, laid end to end in one vector Theta of P numbers.

    The order is that of the names, whole numbers in them compared as numbers: it does not depend on the order in
    which modules were registered.

        spec = TargetSpec.from_module(net)
        spec.numel, spec.names
        TargetSpec.from_module(net, generate=["head.*"])

    Attributes:
        tensors: in the order of Theta.
        edges: (from, to), names of modules whose output reaches the other without passing a third.
    """

    tensors: tuple[TensorSpec, ...]
    edges: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ValueError("nothing is to be generated: the target has no parameters, or no pattern fits their names")

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        generate: str | Sequence[str] = "*",
        *,
        gains: Mapping[str, float | int] | None = None,
        tied: str = "refuse",
    ) -> "TargetSpec":
        """Reads a module.

        Args:
            module: any; its values do not matter.
            generate: patterns of parameter names (`fnmatch`); others stay ordinary parameters.
            gains: pattern -> c, where what is found is wrong: c is 2 for a layer followed by a rectifier module, and
                in a module without any activation modules 2 for all layers but the last.
            tied: what a parameter of several names gets: "refuse", or "share", generated once under its first name.

        Raises:
            ValueError: if no name fits, a pattern fits none, a parameter is tied or complex.
        """
        if tied not in ("refuse", "share"):
            raise ValueError(f"tied must be 'refuse' or 'share', got {tied!r}")
        patterns = [generate] if isinstance(generate, str) else list(generate)
        parameters = dict(module.named_parameters())
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in parameters):
                raise ValueError(f"no parameter of the target fits {pattern!r}; there are {', '.join(parameters)}")
        chosen = {
            name: value for name, value in parameters.items() if any(fnmatchcase(name, each) for each in patterns)
        }
        if tied == "refuse":
            _refuse_tied(module, chosen)
        found = _gains(module)
        tensors = []
        for name in sorted(chosen, key=_natural):
            if not chosen[name].is_floating_point():
                raise ValueError(f"parameter {name} is {chosen[name].dtype}: only real numbers are generated")
            owner = name.rpartition(".")[0]
            tensors.append(_describe(name, chosen[name], module.get_submodule(owner), found.get(owner, 1.0), gains))
        return cls(tuple(tensors), _edges(module, {tensor.module for tensor in tensors}))

    @cached_property
    def numel(self) -> int:
        """P."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.tensors)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(tensor.numel for tensor in self.tensors)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Names of the owning modules, in the order of Theta."""
        return tuple(dict.fromkeys(tensor.module for tensor in self.tensors))

    def split(self, theta: Float[Tensor, "*batch params"]) -> dict[str, Tensor]:
        """Theta as name -> tensor of its shape, leading dimensions kept. Nothing is copied."""
        if theta.shape[-1] != self.numel:
            raise ValueError(f"theta must have {self.numel} numbers in its last dimension, got {tuple(theta.shape)}")
        lead = theta.shape[:-1]
        parts = theta.split(self.sizes, dim=-1)
        return {tensor.name: part.reshape(*lead, *tensor.shape) for tensor, part in zip(self.tensors, parts)}

    def flatten(self, parameters: Mapping[str, Tensor]) -> Float[Tensor, "params"]:
        """Theta of given tensors; the inverse of `split`."""
        return torch.cat([parameters[name].reshape(-1) for name in self.names])

    def each(self, values: Sequence[float | int]) -> Float[Tensor, "params"]:
        """One number a tensor, repeated for each of its elements."""
        numbers = torch.tensor([float(value) for value in values])
        return numbers.repeat_interleave(torch.tensor(self.sizes))

    @property
    def prior_std(self) -> Float[Tensor, "params"]:
        """1 / sqrt(fan_in) of each element's own layer."""
        return self.each([tensor.fan_in**-0.5 for tensor in self.tensors])


def slice_parameters(parameters: Mapping[str, Tensor], spec: TargetSpec) -> dict[str, Tensor]:
    """The leading corner, [:c_out, :c_in, ...], of each generated tensor, for a narrower target of the same names.

    The semantics of pruning by a hypernetwork: a target of width w uses the first w units of the maximal one.

    Args:
        parameters: of the maximal target, with any leading dimensions.
        spec: of the narrower target.

    Raises:
        ValueError: if a name is missing or a shape does not fit into the maximal one.
    """
    sliced = {}
    for tensor in spec.tensors:
        if tensor.name not in parameters:
            raise ValueError(f"{tensor.name} is not among the generated tensors {', '.join(parameters)}")
        value = parameters[tensor.name]
        room = tuple(value.shape[value.ndim - len(tensor.shape) :])
        if value.ndim < len(tensor.shape) or any(wanted > there for wanted, there in zip(tensor.shape, room)):
            raise ValueError(f"{tensor.name} of shape {tensor.shape} does not fit into the generated {room}")
        for dim, width in enumerate(tensor.shape, start=value.ndim - len(tensor.shape)):
            value = value.narrow(dim, 0, width)
        sliced[tensor.name] = value
    return sliced


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)|\.", name) if part]


def _refuse_tied(module: nn.Module, chosen: Mapping[str, Tensor]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for value in chosen.values():
        shared = names[id(value)]
        if len(shared) > 1:
            raise ValueError(
                f"the target has tied weights: {' and '.join(shared)} are one tensor; "
                "tied='share' generates it once for all of them"
            )


def _kind(owner: nn.Module) -> str:
    if isinstance(owner, _NORMS):
        return "norm"
    if isinstance(owner, _ConvNd):
        return "conv"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    return "linear" if isinstance(owner, nn.Linear) else "other"


def _fans(weight: Tensor, owner: nn.Module) -> tuple[int, int]:
    """fan_in and fan_out, counting a grouped convolution's own channels."""
    if weight.ndim < 2:
        return max(weight.numel(), 1), max(weight.numel(), 1)
    field = int(weight[0, 0].numel())
    groups = getattr(owner, "groups", 1)
    if isinstance(owner, _ConvTransposeNd):
        return int(weight.shape[0]) * field // groups, int(weight.shape[1]) * field
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        # A row is read as it is: one number in, so that its entries have unit variance.
        return 1, int(weight.shape[1])
    return int(weight.shape[1]) * field, int(weight.shape[0]) * field // groups


def _describe(
    name: str, value: Tensor, owner: nn.Module, gain: float, gains: Mapping[str, float | int] | None
) -> TensorSpec:
    kind, local = _kind(owner), name.rpartition(".")[2]
    weight = getattr(owner, "weight", None)
    reference = value if value.ndim >= 2 or not isinstance(weight, Tensor) else weight
    fan_in, fan_out = _fans(reference, owner)
    for pattern, override in (gains or {}).items():
        if fnmatchcase(name, pattern):
            gain = float(override)
    if kind == "norm":
        role = "norm_scale" if local == "weight" else "norm_shift"
    else:
        role = "bias" if value.ndim < 2 else "weight"
    return TensorSpec(name, tuple(value.shape), name.rpartition(".")[0], kind, fan_in, fan_out, float(gain), role)


def _gains(module: nn.Module) -> dict[str, float]:
    leaves = [(name, part) for name, part in module.named_modules() if not list(part.children())]
    layers = [name for name, part in leaves if any(True for _ in part.parameters(recurse=False))]
    layers = [name for name in layers if _kind(module.get_submodule(name)) != "norm"]
    activations = (*_RECTIFIERS, nn.Tanh, nn.Sigmoid, nn.Softmax, nn.SELU, nn.Softplus)
    if not any(isinstance(part, activations) for _, part in leaves):
        return {name: 2.0 if name != layers[-1] else 1.0 for name in layers}
    gains = {}
    for place, (name, _) in enumerate(leaves):
        after = (part for _, part in leaves[place + 1 :] if not isinstance(part, (*_NORMS, *_TRANSPARENT)))
        gains[name] = 2.0 if isinstance(next(after, None), _RECTIFIERS) else 1.0
    return gains


def _edges(module: nn.Module, owners: set[str]) -> tuple[tuple[str, str], ...]:
    """The data flow between owners, by symbolic tracing; the order of their names where a module cannot be traced."""
    try:
        graph = _Tracer(owners).trace(module)
    except Exception:
        ordered = sorted(owners, key=_natural)
        return tuple(pairwise(ordered))
    sources: dict[torch.fx.Node, frozenset[str]] = {}
    edges: dict[tuple[str, str], None] = {}
    for node in graph.nodes:
        reached = frozenset().union(*(sources[each] for each in node.all_input_nodes))
        owner = str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
        if node.op in ("call_module", "get_attr") and owner in owners:
            edges.update(dict.fromkeys((start, owner) for start in sorted(reached, key=_natural) if start != owner))
            reached = frozenset([owner])
        sources[node] = reached
    return tuple(edges)


class _Tracer(torch.fx.Tracer):
    """Looks into every module that has children, and into none that owns generated parameters."""

    def __init__(self, owners: set[str]):
        super().__init__()
        self.owners = owners

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.owners or not list(m.children())
