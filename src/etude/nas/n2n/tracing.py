"""A teacher as the policies see it: its layers in the order in which they run, and its residual blocks.

Ashok, Rhinehart, Beainy & Kitani, "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement
Learning", ICLR 2018, arXiv:1709.06030, section 3.1: a layer is (type, kernel, stride, out, padding), and with skips
also its distances from the beginning and the end of its residual block.

The network is followed by `torch.fx`, so that the order is that of execution and not of registration. It must be a
chain, but for additions of a shortcut. A functional call such as `F.relu` stays where it is and is no layer.
"""

import operator
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jaxtyping
import torch
from torch import Tensor, fx, nn

from etude.loop.evaluation import device_of, mode

__all__ = ["KINDS", "Block", "LayerTable", "layer_table"]

KINDS = ("other", "conv", "maxpool", "relu", "batchnorm", "linear", "dropout", "logsoftmax", "avgpool")
"""Types of layers; their places are the type indices, 8 the largest."""

_KIND_OF: dict[type[nn.Module], str] = {
    nn.Conv2d: "conv", nn.MaxPool2d: "maxpool", nn.ReLU: "relu", nn.BatchNorm1d: "batchnorm",
    nn.BatchNorm2d: "batchnorm", nn.Linear: "linear", nn.Dropout: "dropout", nn.Dropout2d: "dropout",
    nn.LogSoftmax: "logsoftmax", nn.AvgPool2d: "avgpool", nn.AdaptiveAvgPool2d: "avgpool",
}  # fmt: skip
_ELEMENTWISE = (nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh,
                nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Softsign)  # fmt: skip
_MOVES = (nn.Flatten, nn.Unflatten, nn.Identity)
_REBUILT = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Block:
    """A residual block: two paths from one tensor to an addition.

    Attributes:
        path: of the module whose forward pass adds; it is what an emptied block is replaced in.
        main: names of the modules on the longer path, in order. shortcut: of those on the other; empty if it is bare.
        replaceable: whether `path` holds the whole block, so that it can vanish.
    """

    path: str
    main: tuple[str, ...]
    shortcut: tuple[str, ...]
    replaceable: bool


@dataclass(frozen=True, eq=False)
class LayerTable:
    """The layers of a network in the order in which they run; modules on shortcuts are not among them.

    Attributes:
        names: paths of the modules in the network.
        modules: the modules themselves.
        features: raw values, (layers, 5 or 7): type, kernel, stride, out, padding (the larger side of each), and with
            `skip_support` the positions from the beginning and the end of the residual block, from 1, or 0 outside.
        fixed: (layers,) bool: layers that are always kept.
        adjustable: (layers, 5) bool: attributes that shrinkage may choose a factor for.
        blocks: the residual blocks, inner before outer.
        softmax: whether the network ends in a softmax, so that its outputs are no logits.
    """

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    features: Tensor
    fixed: Tensor
    adjustable: Tensor
    blocks: tuple[Block, ...]
    softmax: bool

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(KINDS[int(index)] for index in self.features[:, 0])


def layer_table(
    model: nn.Module,
    example_input: Tensor,
    *,
    skip_support: bool = False,
    fix: tuple[type[nn.Module], ...] = (),
) -> LayerTable:
    """Lists the layers of a network.

    Always kept are the first and the last layer, every Linear and average pooling, every convolution of another stride
    than 1, whatever changes shapes and is none of the types, and a weightless module that runs several times.

    Args:
        model: a chain of modules, with residual additions or without; any classes, if `torch.fx` can trace it.
        example_input: (n, channels, height, width), on the model's device.
        skip_support: whether layers are given their places in residual blocks.
        fix: further types that are always kept whole, such as `nn.MaxPool2d`.

    Raises:
        ValueError: naming the module or the call that cannot be compressed: not traceable, modules with weights other
            than plain Conv2d, BatchNorm1d, BatchNorm2d and Linear, weights used twice, joins other than additions.
    """
    program = Program(model, example_input)
    return program.table(skip_support, fix)


@contextmanager
def _unchecked() -> Iterator[None]:
    """Tracing runs forward passes on proxies, which checkers of shapes would refuse."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


class _Shapes(fx.Interpreter):
    """Runs the program and keeps the shape of every tensor."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


class Program:
    """The traced network: its graph, the shape of every tensor in it, and its residual blocks."""

    def __init__(self, model: nn.Module, example_input: Tensor):
        name = type(model).__name__
        if example_input.device != device_of(model):
            raise ValueError(f"example_input is on {example_input.device}, the model on {device_of(model)}")
        with _unchecked(), mode(model, training=False), torch.no_grad():
            try:
                graph = fx.Tracer().trace(model)
            except Exception as error:  # tracing runs the user's code, which may raise anything
                raise ValueError(f"{name} cannot be traced by torch.fx: {str(error).strip()}") from error
            self.traced = fx.GraphModule(model, graph)
            runner = _Shapes(self.traced)
            try:
                output = runner.run(example_input)
            except Exception as error:
                shape = tuple(example_input.shape)
                raise ValueError(f"{name} does not take an input of shape {shape}: {error}") from error
        if not isinstance(output, Tensor):
            raise ValueError(f"{name} must return one tensor, got {type(output).__name__}")
        self.model, self.shapes, self.out_shape = model, runner.shapes, tuple(output.shape)
        self.modules = dict(model.named_modules())
        self.nodes = [node for node in graph.nodes if node in self.shapes and node.op != "output"]
        self._refuse()
        self.additions = {node: self._block(node) for node in self.nodes if len(self._sources(node)) == 2}
        self.blocks = tuple(block for block, _, _ in self.additions.values())

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in self.shapes]

    def _refuse(self) -> None:
        leaves = [str(node.target) for node in self.nodes if node.op == "call_module"]
        wrong = []
        for name in dict.fromkeys(leaves):
            module = self.modules[name]
            if type(module) is nn.Conv2d and module.groups > 1:
                wrong.append(f"{name} (Conv2d of {module.groups} groups)")
            elif type(module) not in _REBUILT and any(True for _ in module.parameters()):
                wrong.append(f"{name} ({type(module).__name__})")
        if wrong:
            raise ValueError(
                f"unsupported modules: {', '.join(wrong)}; those with weights must be Conv2d without groups, "
                "BatchNorm1d, BatchNorm2d or Linear"
            )
        for name, times in Counter(leaves).items():
            if times > 1 and any(True for _ in self.modules[name].parameters()):
                raise ValueError(f"module {name!r} runs {times} times: layers that share weights cannot be compressed")
        if sum(node.op == "placeholder" for node in self.nodes) != 1:
            raise ValueError("the model must take one tensor")
        for node in self.nodes:
            if node.op == "get_attr":
                raise ValueError(f"the model uses the tensor {node.target!r} outside of a module of torch.nn")
            joins = len(self._sources(node))
            if joins > 2 or (joins == 2 and node.target not in _ADDITIONS):
                raise ValueError(
                    f"{node.target if isinstance(node.target, str) else node.target.__name__!r} in module "
                    f"{_owner(node)!r} joins {joins} paths: the model must be a chain, but for residual additions"
                )

    def _ancestors(self, node: fx.Node) -> set[fx.Node]:
        found, waiting = {node}, [node]
        while waiting:
            new = [source for source in self._sources(waiting.pop()) if source not in found]
            found.update(new)
            waiting += new
        return found

    def _block(self, node: fx.Node) -> tuple[Block, fx.Node, fx.Node]:
        """The block that an addition ends, the node that it forks from, and the shortcut's end."""
        ends = self._sources(node)
        above = [self._ancestors(end) for end in ends]
        common = above[0] & above[1]
        fork = max(common, key=self.nodes.index)
        paths = [[each for each in self.nodes if each in own - common] for own in above]
        weights = [sum(self._weighted(each) for each in path) for path in paths]
        main = 0 if (weights[0], len(paths[0])) >= (weights[1], len(paths[1])) else 1
        for each in paths[1 - main]:
            if each.op != "call_module":
                raise ValueError(
                    f"the shortcut in module {_owner(node)!r} calls {each.name!r}; only modules can stand there"
                )
        names = [tuple(str(each.target) for each in path if each.op == "call_module") for path in paths]
        owner = _owner(node)
        inside = owner != "" and all(name.startswith(owner + ".") for name in (*names[main], *names[1 - main]))
        block = Block(owner, names[main], names[1 - main], inside and bool(names[main]))
        return block, fork, ends[1 - main]

    def _weighted(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.modules[str(node.target)], nn.Conv2d | nn.Linear)

    def table(self, skip_support: bool, fix: tuple[type[nn.Module], ...]) -> LayerTable:
        skipped = {name for block in self.blocks for name in block.shortcut}
        runs = Counter(str(node.target) for node in self.nodes if node.op == "call_module")
        names = [name for name in runs if name not in skipped and not isinstance(self.modules[name], _MOVES)]
        if not names:
            raise ValueError(f"{type(self.model).__name__} runs no layers of torch.nn")
        modules = [self.modules[name] for name in names]
        kept = {names[0], names[-1]}
        for block in self.blocks:
            convs = [name for name in block.main if isinstance(self.modules[name], nn.Conv2d)]
            if not block.replaceable:
                kept.update(convs[:1])
        fixed = [name in kept or runs[name] > 1 or _always(module, fix) for name, module in zip(names, modules)]
        places = self._places(names)
        rows = [_features(module) + (places[name] if skip_support else ()) for name, module in zip(names, modules)]
        inside = {name for block in self.blocks for name in block.main}
        ends = {_last_conv(block.main, self.modules) for block in self.blocks if not block.shortcut}
        adjustable = [
            _adjustable(module, row, name in inside, name in ends, fix)
            for name, module, row in zip(names, modules, rows)
        ]
        last = [node for node in self.nodes if node.target not in ("flatten", "view", "squeeze")][-1]
        softmax = "softmax" in (type(modules[-1]).__name__ + last.name).lower()
        return LayerTable(
            tuple(names), tuple(modules), torch.tensor(rows, dtype=torch.float32), torch.tensor(fixed),
            torch.tensor(adjustable), self.blocks, softmax,
        )  # fmt: skip

    def _places(self, names: list[str]) -> dict[str, tuple[int, ...]]:
        places: dict[str, tuple[int, ...]] = dict.fromkeys(names, (0, 0))
        for block in reversed(self.blocks):  # of nested ones the inner counts
            listed = [name for name in block.main if name in places]
            places |= {name: (place + 1, len(listed) - place) for place, name in enumerate(listed)}
        return places


def _owner(node: fx.Node) -> str:
    """Path of the innermost module whose forward pass made the call."""
    stack = list(node.meta.get("nn_module_stack", {}))
    return str(stack[-1]).partition("@")[0] if stack else ""


def _always(module: nn.Module, fix: tuple[type[nn.Module], ...]) -> bool:
    if isinstance(module, nn.Conv2d):
        return _largest(module.stride) != 1 or isinstance(module, fix)
    if type(module) in _KIND_OF:
        return _KIND_OF[type(module)] in ("linear", "avgpool") or isinstance(module, fix)
    return not isinstance(module, _ELEMENTWISE) or isinstance(module, fix)


def _largest(size: Any) -> int:
    return max(size) if isinstance(size, tuple) else int(size)


def padding_of(module: nn.Module) -> Any:
    """Padding as a number or a pair; that of "same" for kernels of odd size."""
    padding: Any = getattr(module, "padding", 0)
    if not isinstance(padding, str):
        return padding
    assert isinstance(module, nn.Conv2d)
    if padding == "valid":
        return 0
    return tuple((size - 1) * step // 2 for size, step in zip(module.kernel_size, module.dilation))


def _features(module: nn.Module) -> tuple[int, ...]:
    kind = _KIND_OF.get(type(module), "other")
    kernel = stride = out = padding = 0
    if kind in ("conv", "maxpool") or type(module) is nn.AvgPool2d:
        pool: Any = module
        kernel, stride, padding = _largest(pool.kernel_size), _largest(pool.stride), _largest(padding_of(pool))
    if isinstance(module, nn.Conv2d):
        out = module.out_channels
    if isinstance(module, nn.Linear):
        out = module.out_features
    return KINDS.index(kind), kernel, stride, out, padding


def _adjustable(
    module: nn.Module, row: tuple[int, ...], inside: bool, tied: bool, fix: tuple[type[nn.Module], ...]
) -> tuple[bool, ...]:
    _, kernel, stride, out, padding = row[:5]
    if not isinstance(module, nn.Conv2d | nn.MaxPool2d) or _always(module, fix):
        return (False,) * 5
    if inside:
        return False, False, False, out > 1 and not tied, False
    padded = padding > 0 and not isinstance(getattr(module, "padding", 0), str)
    return False, kernel > 1, stride > 1, out > 1, padded


def _last_conv(names: tuple[str, ...], modules: dict[str, nn.Module]) -> str | None:
    return next((name for name in reversed(names) if isinstance(modules[name], nn.Conv2d)), None)
