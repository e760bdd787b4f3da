"""Turning a plain network into one that holds a space of sub-models.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023, section 3, which asks of an architecture only that its parts can
be sorted. Layers change their class and nothing else: parameters, optimizers that hold them, hooks and `state_dict`
stay, so that a pretrained network can be converted, and a converted one saved, as if nothing had happened.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.utils import parametrize

from etude.training.sortednet.attention import SortedMultiheadAttention
from etude.training.sortednet.batchnorm import SortedBatchNorm
from etude.training.sortednet.depth import SortedModuleList, SortedSequential
from etude.training.sortednet.slicing import (
    Cut,
    SortedConv2d,
    SortedEmbedding,
    SortedLayer,
    SortedLayerNorm,
    SortedLinear,
)
from etude.training.sortednet.submodels import SubModelSpace

__all__ = ["Rule", "sorted_"]

_SORTED: dict[type[nn.Module], type[SortedLayer]] = {
    nn.Linear: SortedLinear,
    nn.Conv2d: SortedConv2d,
    nn.Embedding: SortedEmbedding,
    nn.LayerNorm: SortedLayerNorm,
    nn.BatchNorm1d: SortedBatchNorm,
    nn.BatchNorm2d: SortedBatchNorm,
    nn.BatchNorm3d: SortedBatchNorm,
    nn.MultiheadAttention: SortedMultiheadAttention,
}
_STACKS: dict[type[nn.Module], type[SortedSequential | SortedModuleList]] = {
    nn.Sequential: SortedSequential,
    nn.ModuleList: SortedModuleList,
}
_WEIGHTED = (nn.Linear, nn.Conv2d, nn.Embedding)


@dataclass(frozen=True)
class Rule:
    """Which dimension of the space each side of a layer follows.

    Args:
        inputs: "width", "heads" or None for a side that is never cut. Layers with one size, as embeddings and
            normalisations, have no inputs.
        outputs: likewise; the features of a layer with one size.
        inputs_unit, outputs_unit: consecutive entries of a side that are kept or dropped together: the inner features
            of one head, or height x width of a channel that was flattened before a linear layer.
    """

    inputs: str | None = "width"
    outputs: str | None = "width"
    inputs_unit: int = 1
    outputs_unit: int = 1

    def __post_init__(self) -> None:
        for side in (self.inputs, self.outputs):
            if side not in (None, "width", "heads"):
                raise ValueError(f"a side of a layer follows 'width', 'heads' or None, got {side!r}")
        if self.inputs_unit < 1 or self.outputs_unit < 1:
            raise ValueError(f"units must be at least 1, got {self.inputs_unit} and {self.outputs_unit}")


def sorted_(
    module: nn.Module,
    space: SubModelSpace,
    *,
    rules: Mapping[str, Rule | None] | None = None,
    depth: str | Mapping[str, Sequence[int]] | None = None,
    bn: str = "recalibrate",
) -> nn.Module:
    """Makes a network hold every sub-model of `space`, in place; the whole network is in use at first.

        model = sorted_(torchvision.models.resnet18(), SubModelSpace(width=[0.25, 0.5, 0.75, 1.0]))
        model = sorted_(bert, SubModelSpace(depth=[6, 12]), depth="encoder.layer")

    Width cuts the channels of every `nn.Linear`, `nn.Conv2d`, `nn.Embedding`, `nn.LayerNorm`, `nn.BatchNorm1d/2d/3d`
    and `nn.MultiheadAttention`, on both sides, except for the inputs of the first layer and the outputs of the last,
    in the order in which they are registered. Heads cut every `nn.MultiheadAttention`. Depth cuts one stack of blocks.
    Where a network wants it otherwise, rules say so, layer by layer. Channels are cut by their position, so that
    layers whose outputs are concatenated keep their meaning only if a rule leaves them whole.

    Convert first, and attach other parts to layers afterwards: they then stay whole. Features that another module is
    to read at one width, a BatchFormer say, are the outputs of a converted encoder, whose last layer is not cut there.

    Args:
        module: any network. Layers are recognised by their exact class.
        space: its sub-models.
        rules: pattern of layer names, as "layer4.*.conv2" -> `Rule`, or None to leave the layer whole. The first
            pattern that matches counts.
        depth: name of the `nn.Sequential` or `nn.ModuleList` whose first blocks are kept; or {name: positions of
            blocks that every depth keeps, as they change shapes}.
        bn: whose statistics batch norm uses in evaluation, see `SortedBatchNorm`.

    Returns:
        the module itself.

    Raises:
        ValueError: if the space does not fit the network: other numbers of blocks, heads or channels; weights that two
            layers share, which would have to be cut two ways; layers that cannot be cut. The network is then as
            before.
    """
    held = [name for name, part in module.named_modules() if "sorted_space" in part.__dict__]
    if held:
        raise ValueError(f"{type(module).__name__} holds a space of sub-models already, at {held[0] or 'its root'!r}")
    stacks = _stacks(module, space, depth)
    plan = _plan(module, space, dict(rules or {}))
    _refuse_tied(module, [name for name, _, _ in plan])
    undo = []
    try:
        for name, layer, cuts in plan:
            undo.append((layer, type(layer), dict(layer.__dict__), dict(layer._modules)))
            plain = type(layer)
            layer.__class__ = _SORTED[plain]
            assert isinstance(layer, SortedLayer)
            if isinstance(layer, SortedBatchNorm):
                layer._plain = plain
                layer.set_policy(bn)
            layer.tie(cuts, space.submodels, name)
        for name, stack, always in stacks:
            undo.append((stack, type(stack), dict(stack.__dict__), dict(stack._modules)))
            stack.__class__ = _STACKS[type(stack)]
            assert isinstance(stack, SortedSequential | SortedModuleList)
            stack.tie(always, space.submodels, name)
    except Exception:
        for part, plain, attributes, children in reversed(undo):
            part.__class__ = plain
            part.__dict__.clear()
            part.__dict__.update(attributes)
            part._modules.clear()
            part._modules.update(children)
        raise
    for part in module.modules():
        _keep_off_fused_kernels(part)
    # Found once, as a search of the whole network would cost more than a small sub-model's layers.
    parts = [part for part in module.modules() if isinstance(part, SortedLayer | SortedSequential | SortedModuleList)]
    module.__dict__.update(sorted_space=space, sorted_parts=parts, sorted_active=space.full)
    for part in parts:
        part.activate(space.full)
    return module


def _stacks(
    module: nn.Module, space: SubModelSpace, depth: str | Mapping[str, Sequence[int]] | None
) -> list[tuple[str, nn.Module, Sequence[int]]]:
    if ("depth" in space.points) != (depth is not None):
        named = "no stack of blocks is named by `depth`" if depth is None else f"depth={depth!r} names one"
        raise ValueError(f"the space is {space}, and {named}: give both or neither")
    found = []
    for name, always in ({} if depth is None else {depth: ()} if isinstance(depth, str) else depth).items():
        try:
            stack = module.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"{type(module).__name__} has no stack of blocks {name!r}") from error
        if type(stack) not in _STACKS:
            raise ValueError(f"{name!r} must be an nn.Sequential or an nn.ModuleList, got {type(stack).__name__}")
        found.append((name, stack, always))
    if depth is not None and len(found) != 1:
        raise ValueError(f"depth names one stack of blocks, got {list(depth)}")
    return found


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with parameters of its own, by name; attention counts with its output projection as one."""
    found: list[tuple[str, nn.Module]] = []
    attention: list[str] = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention):
            attention.append(f"{name}." if name else "")
        if layer._parameters and not any(name != part[:-1] and name.startswith(part) for part in attention):
            found.append((name, layer))
    return found


def _plan(
    module: nn.Module, space: SubModelSpace, rules: dict[str, Rule | None]
) -> list[tuple[str, nn.Module, dict[str, Cut]]]:
    """The layers to cut, each with its cuts."""
    layers = _layers(module)
    weighted = [name for name, layer in layers if type(layer) in _WEIGHTED]
    first, last = (weighted[0], weighted[-1]) if weighted else (None, None)
    matched: set[str] = set()
    plan = []
    for name, layer in layers:
        pattern = next((pattern for pattern in rules if fnmatchcase(name, pattern)), None)
        if pattern is not None:
            matched.add(pattern)
            rule = rules[pattern]
        elif "width" in space.points or isinstance(layer, nn.MultiheadAttention):
            rule = Rule(None if name == first else "width", None if name == last else "width")
        else:
            rule = None
        if rule is not None:
            _refuse_unsupported(name, layer)
            cuts = _cuts(name, layer, rule, space)
            if any(cut.dimension for cut in cuts.values()):
                plan.append((name, layer, cuts))
    if unmatched := [pattern for pattern in rules if pattern not in matched]:
        names = [name for name, _ in layers]
        raise ValueError(f"rules for {unmatched} match no layer (or an earlier rule does); layers: {names}")
    return plan


def _refuse_unsupported(name: str, layer: nn.Module) -> None:
    plain = not parametrize.is_parametrized(layer) and {"weight", "in_proj_weight"} & layer._parameters.keys()
    if not plain and isinstance(layer, tuple(_SORTED)):
        raise ValueError(
            f"the weights of {name!r} are computed from others (weight_norm, spectral_norm or a parametrization), and "
            f"a prefix of them would not be; remove that first, or leave the layer whole: rules={{{name!r}: None}}"
        )
    if isinstance(layer, tuple(_SORTED)) and (attached := set(layer._modules) - {"out_proj"}):
        raise ValueError(
            f"{name!r} carries {', '.join(sorted(attached))}, which was attached to it and would be cut with it: call "
            "sorted_ first, and attach afterwards"
        )
    if type(layer) not in _SORTED:
        raise ValueError(
            f"{name!r} is a {type(layer).__name__}, whose parameters {list(layer._parameters)} cannot be cut; layers "
            f"that can: {', '.join(kind.__name__ for kind in _SORTED)}; to leave it whole: rules={{{name!r}: None}}"
        )


def _cuts(name: str, layer: nn.Module, rule: Rule, space: SubModelSpace) -> dict[str, Cut]:
    def cut(full: int, dimension: str | None, unit: int = 1) -> Cut:
        if dimension is None or dimension not in space.points:
            return Cut(full)
        top = space.points[dimension][-1]
        if full % unit:
            raise ValueError(f"{name!r} has {full} entries on one side, not a multiple of the unit {unit}")
        count = full // unit
        if dimension == "heads" and count != top:
            raise ValueError(f"{name!r} has {count} heads, and the space must end at that number, not at {top}")
        if isinstance(top, int) and count % top:
            raise ValueError(
                f"{name!r} has {count} channels on one side, and the space's width ends at {top}: it must end at the "
                "network's own width, of which every layer has a multiple; or be given as shares, ending at 1.0"
            )
        return Cut(full, dimension, top, unit)

    if isinstance(layer, nn.MultiheadAttention):
        return {"features": cut(layer.embed_dim, rule.outputs), "heads": cut(layer.num_heads, "heads")}
    if isinstance(layer, nn.Linear):
        sides = layer.in_features, layer.out_features
    elif isinstance(layer, nn.Conv2d):
        sides = layer.in_channels, layer.out_channels
    else:
        features = {nn.Embedding: "embedding_dim", nn.LayerNorm: "normalized_shape"}.get(type(layer), "num_features")
        size = getattr(layer, features)
        return {"features": cut(size[-1] if isinstance(size, tuple) else size, rule.outputs, rule.outputs_unit)}
    return {
        "inputs": cut(sides[0], rule.inputs, rule.inputs_unit),
        "outputs": cut(sides[1], rule.outputs, rule.outputs_unit),
    }


def _refuse_tied(module: nn.Module, cut: list[str]) -> None:
    """Refuses weights that stand in two places of the network, one of which is cut."""
    places: dict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        places[id(parameter)].append(name)
    for names in places.values():
        if len(names) > 1 and any(name == part or name.startswith(f"{part}.") for name in names for part in cut):
            raise ValueError(
                f"{' and '.join(map(repr, names))} are one tied tensor, which sub-models would have to cut in "
                "several ways at once; give each layer weights of its own before calling sorted_"
            )


def _keep_off_fused_kernels(part: nn.Module) -> None:
    """In evaluation, torch's encoder layers hand their weights to a fused kernel, whole, past the layers' forward."""
    if isinstance(part, nn.TransformerEncoderLayer):
        part.activation_relu_or_gelu = 0
    elif isinstance(part, nn.TransformerEncoder):
        part.enable_nested_tensor = part.use_nested_tensor = False
