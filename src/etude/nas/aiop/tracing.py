"""The computation graph of any `torch.nn.Module`, through `torch.fx`, or `torch.export` where that cannot follow it.

Nodes take the vocabulary's words. What only moves numbers about (views, flattening, dropout, indexing) is left out and
its neighbours are joined; what is no word of the vocabulary becomes "oov", with one warning that names it.
"""

import logging
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.utils.flop_counter import FlopCounterMode

from etude.loop.evaluation import mode
from etude.nas.aiop.graph import VOCABULARY, WEIGHTED, ComputeGraph, op_index

__all__ = ["graph_from_module"]

_log = logging.getLogger(__name__)

# Names of operations (lower case, without underscores and digits) that are other words in the vocabulary.
_ALIASES = {
    "linear": "matmul", "addmm": "matmul", "mm": "matmul", "bmm": "matmul", "baddbmm": "matmul", "einsum": "matmul",
    "silu": "swish", "hardswish": "swish", "cat": "concat", "concatenate": "concat", "pad": "paddings",
    "iadd": "add", "sub": "add", "imul": "mul", "multiply": "mul", "div": "mul", "truediv": "mul",
    "pixelshuffle": "depthtospacend", "pixelunshuffle": "spacetodepthnd", "clone": "identity",
    "interpolate": "identity", "upsample": "identity", "zeropadd": "paddings", "constantpadd": "paddings",
    "reflectionpadd": "paddings", "replicationpadd": "paddings",
}  # fmt: skip
_MOVES = frozenset((
    "flatten", "view", "reshape", "permute", "transpose", "t", "contiguous", "size", "getattr", "getitem", "squeeze",
    "unsqueeze", "dropout", "dropoutd", "featuredropout", "alphadropout", "detach", "to", "expand", "chunk", "split",
    "unbind", "select", "slice", "unflatten", "dim", "float", "type", "typeas", "repeat", "swapaxes", "movedim",
    "assertasync", "asserttensormetadata", "symsize", "arange", "viewas", "reshapeas", "splitwithsizes", "unsafeview",
))  # fmt: skip
_IMAGE_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class _Node:
    """One call of the traced program."""

    name: str
    word: str | None  # None: it only moves numbers about
    called: str
    inputs: list[str]
    shape_in: tuple[int, ...] | None
    shape_out: tuple[int, ...] | None
    kernel: tuple[int, int] = (0, 0)
    bias: bool = False


def graph_from_module(
    model: nn.Module,
    example_input: Tensor | tuple[Any, ...],
    *,
    tracer: Literal["auto", "fx", "export"] = "auto",
    is_leaf: Callable[[nn.Module], bool] | None = None,
    name: str | None = None,
) -> ComputeGraph:
    """The computation graph of a network.

        graph = graph_from_module(network, torch.zeros(1, 3, 224, 224))

    Sizes are those at `example_input`: use the image size that the labels belong to. Of (batch, channels, height,
    width) all three are taken; of (batch, tokens, channels) tokens count as height and the width is 1; of (batch,
    channels) the size is 1 x 1.
    The network runs once, in evaluation mode and without gradients, and is left as it was. `flops` of the graph are its
    multiply-adds for one example.

    Args:
        model: the network.
        example_input: what it takes, or a tuple of several things.
        tracer: "fx" reads the forward pass symbolically and keeps each `torch.nn` module whole; "export" follows the
            example through `torch.export`; "auto" tries one after the other.
        is_leaf: modules that "fx" keeps whole besides those of `torch.nn`.
        name: what the graph is called; the class of the network if None.

    Raises:
        ValueError: if it cannot be traced; the message says what stood in the way.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    if tracer not in ("auto", "fx", "export"):
        raise ValueError(f"tracer must be auto, fx or export, got {tracer!r}")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    label = type(model).__name__ if name is None else name
    tracers = {"fx": lambda: _by_fx(model, inputs, is_leaf), "export": lambda: _by_export(model, inputs)}
    with mode(model, training=False), torch.no_grad():
        faults = []
        for way in ("fx", "export") if tracer == "auto" else (tracer,):
            try:
                nodes = tracers[way]()
                break
            except Exception as error:  # tracing runs the user's code, which may raise anything
                _log.debug("torch.%s cannot trace %s", way, label, exc_info=True)
                faults.append(f"torch.{way}: {str(error).strip().splitlines()[0] if str(error) else error!r}")
        else:
            raise ValueError(f"{label} cannot be traced: {'; '.join(faults)}")
        batch = next((len(value) for value in inputs if isinstance(value, Tensor) and value.ndim), 1)
        counter = FlopCounterMode(display=False)
        with counter:
            model(*inputs)
    # The counter takes a multiply-add for two operations.
    return _assemble(nodes, label, counter.get_total_flops() / 2 / max(batch, 1))


def _plain(name: str) -> str:
    return re.sub(r"[\d_]", "", name.lower())


def _word(called: str, out: tuple[int, ...] | None) -> str | None:
    """The vocabulary's word for an operation; None if it only moves numbers about."""
    plain = _plain(called)
    if plain in _MOVES or out is None:
        return None
    if plain in _ALIASES:
        return _ALIASES[plain]
    if "adaptive" in plain and "avg" in plain:
        return "mean" if all(size == 1 for size in out[2:]) else "avgpool"
    found = VOCABULARY[op_index(called.replace("_", ""))]
    # "MultiheadAttention" holds "mul" by accident.
    if "attention" in plain or found in ("oov", "input", "output") or found.startswith("reserved"):
        return "oov"
    return found


class _Tracer(fx.Tracer):
    def __init__(self, is_leaf: Callable[[nn.Module], bool] | None):
        super().__init__()
        self._more = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or (self._more is not None and self._more(m))


def _shape_of(meta: Any) -> tuple[int, ...] | None:
    """Of a value that a node made: the first tensor's, if it made several."""
    if isinstance(meta, TensorMetadata | Tensor):
        return tuple(int(size) for size in meta.shape)
    if isinstance(meta, tuple | list) and meta:
        return _shape_of(meta[0])
    return None


def _by_fx(model: nn.Module, inputs: tuple[Any, ...], is_leaf: Callable[[nn.Module], bool] | None) -> list[_Node]:
    traced = fx.GraphModule(model, _Tracer(is_leaf).trace(model))
    ShapeProp(traced).propagate(*inputs)
    modules = dict(traced.named_modules())
    nodes = []
    for node in traced.graph.nodes:
        sources = [source.name for source in node.all_input_nodes]
        shape_in = next((s for source in node.all_input_nodes if (s := _made(source)) is not None), None)
        out = _made(node)
        if node.op == "placeholder":
            nodes.append(_Node(node.name, "input" if out is not None else None, "input", [], out, out))
        elif node.op == "output":
            nodes.append(_Node(node.name, "output", "output", sources, shape_in, shape_in))
        elif node.op == "call_module":
            nodes.append(_of_module(node.name, modules[node.target], sources, shape_in, out))
        elif node.op == "get_attr":  # a weight, or a buffer: no operation
            nodes.append(_Node(node.name, None, "weight", [], None, out))
        else:
            called = node.target if isinstance(node.target, str) else node.target.__name__
            tensors = [_weight_shape(modules, source) for source in node.all_input_nodes]
            nodes.append(_of_function(node.name, called, sources, shape_in, out, [t for t in tensors if t is not None]))
    return nodes


def _made(node: fx.Node) -> tuple[int, ...] | None:
    return _shape_of(node.meta.get("tensor_meta"))


def _weight_shape(modules: dict[str, nn.Module], node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a weight that a function is given."""
    if node.op != "get_attr":
        return None
    path, _, leaf = str(node.target).rpartition(".")
    value = getattr(modules.get(path), leaf, None)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _of_module(
    name: str, module: nn.Module, sources: list[str], shape_in: tuple[int, ...] | None, out: tuple[int, ...] | None
) -> _Node:
    word = _word(type(module).__name__, out)
    kernel, bias = (0, 0), getattr(module, "bias", None) is not None
    if isinstance(module, _IMAGE_CONVS):
        size = tuple(module.kernel_size)
        kernel = (int(size[0]), int(size[1]) if len(size) > 1 else 1)
        depthwise = module.groups > 1 and module.groups == module.in_channels
        word = "depthwise" if depthwise else "conv"
    return _Node(name, word, type(module).__name__, sources, shape_in, out, kernel, bias)


def _of_function(
    name: str, called: str, sources: list[str], shape_in: tuple[int, ...] | None, out: tuple[int, ...] | None,
    weights: list[tuple[int, ...]],
) -> _Node:  # fmt: skip
    word, kernel = _word(called, out), (0, 0)
    matrix = next((shape for shape in weights if len(shape) >= 2), None)
    if word in ("conv", "depthwise") and matrix is not None and len(matrix) >= 3:
        kernel = (matrix[2], matrix[3] if len(matrix) > 3 else 1)
        if matrix[1] == 1 and shape_in is not None and shape_in[1] == matrix[0] > 1:
            word = "depthwise"
    bias = any(len(shape) == 1 for shape in weights) and word in ("conv", "depthwise", "matmul")
    return _Node(name, word, called, sources, shape_in, out, kernel, bias)


def _by_export(model: nn.Module, inputs: tuple[Any, ...]) -> list[_Node]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, inputs, strict=False)
    own = set(program.graph_signature.user_inputs)
    held = {node.name: _shape_of(node.meta.get("val")) for node in program.graph.nodes
            if node.op == "placeholder" and node.name not in own}  # fmt: skip
    nodes = []
    for node in program.graph.nodes:
        if node.name in held or node.op == "get_attr":
            continue
        arguments = [source for source in node.all_input_nodes if source.name not in held]
        sources, shapes = [a.name for a in arguments], [_shape_of(a.meta.get("val")) for a in arguments]
        shape_in = next((shape for shape in shapes if shape is not None), None)
        out = _shape_of(node.meta.get("val"))
        if node.op == "placeholder":
            nodes.append(_Node(node.name, "input" if out is not None else None, "input", [], out, out))
        elif node.op == "output":
            nodes.append(_Node(node.name, "output", "output", sources, shape_in, shape_in))
        else:
            # aten.conv2d.default is called conv2d
            called = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
            given = (held.get(source.name) for source in node.all_input_nodes)
            weights = [shape for shape in given if shape is not None]
            if "batch" in called and "norm" in called:
                called = "batchnorm"
            nodes.append(_of_function(node.name, called, sources, shape_in, out, weights))
    return nodes


def _size(shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Height, width and channels."""
    if shape is None or len(shape) < 2:
        return 1, 1, 1 if not shape else shape[-1]
    if len(shape) == 2:
        return 1, 1, shape[1]
    if len(shape) == 3:
        return shape[1], 1, shape[2]
    return shape[-2], shape[-1], shape[1]


def _assemble(nodes: list[_Node], name: str, flops: float) -> ComputeGraph:
    reached: dict[str, list[int]] = {}  # node -> the kept nodes whose results it hands on
    kept: list[_Node] = []
    edges: set[tuple[int, int]] = set()
    for node in nodes:
        sources = [index for source in node.inputs for index in reached.get(source, [])]
        if node.word is None:
            # Sizes and other plain numbers carry nothing of the tensor they were asked of.
            reached[node.name] = [] if node.shape_out is None else list(dict.fromkeys(sources))
            continue
        reached[node.name] = [len(kept)]
        edges.update((source, len(kept)) for source in sources)
        kept.append(node)
    kept, edges = _joined_sums(kept, edges)
    unknown = sorted({node.called for node in kept if node.word == "oov"})
    if unknown:
        warnings.warn(
            f"{name}: {', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} no word of the vocabulary and "
            "taken as 'oov'",
            stacklevel=3,
        )
    op = torch.tensor([VOCABULARY.index(node.word or "oov") for node in kept])
    weighted = torch.tensor([index in WEIGHTED for index in op.tolist()])
    biased = torch.tensor([int(node.bias) for node in kept])
    shapes = []
    for node in kept:
        (h_in, w_in, c_in), (h, w, c) = _size(node.shape_in), _size(node.shape_out)
        shapes.append((h_in, h, w_in, w, c if node.word == "concat" else c_in, c))
    ordered = sorted(edges)
    return ComputeGraph(
        op=op,
        shape=torch.tensor(shapes, dtype=torch.float32),
        kernel=torch.tensor([node.kernel for node in kept]),
        bias=torch.stack([1 - biased, biased], dim=1).float() * weighted[:, None],
        weighted=weighted,
        edge_index=torch.tensor(ordered).T.contiguous() if ordered else torch.empty(2, 0, dtype=torch.int64),
        name=name,
        flops=float(flops),
    )


def _joined_sums(nodes: list[_Node], edges: set[tuple[int, int]]) -> tuple[list[_Node], set[tuple[int, int]]]:
    """Makes one node of additions that feed one another and nothing else: a + b + c is one sum of three."""
    follows: dict[int, list[int]] = {}
    for source, target in edges:
        follows.setdefault(source, []).append(target)
    into = list(range(len(nodes)))
    for index in reversed(range(len(nodes))):
        after = follows.get(index, [])
        if len(after) == 1 and nodes[index].word == nodes[after[0]].word == "add":
            into[index] = into[after[0]]
    left = [index for index in range(len(nodes)) if into[index] == index]
    place = {index: number for number, index in enumerate(left)}
    joined = {(place[into[source]], place[into[target]]) for source, target in edges if into[source] != into[target]}
    return [nodes[index] for index in left], joined
