"""The parallel layout for residual blocks that somebody else wrote."""

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["PartlyParallel", "parallelize"]


class PartlyParallel(nn.Sequential):
    """A chain some of whose runs of residual blocks stand side by side, under the names that the chain gave them.

    A block g with its own skip inside computes x + f(x) (or an activation of it), so f(x) = g(x) - x, and a run of
    blocks g_1 .. g_K becomes x + sum_k (g_k(x) - x).

    Args:
        chain: whose modules are taken over; they stay shared.
        runs: (start, stop) of each run, in order.
    """

    def __init__(self, chain: nn.Sequential, runs: list[tuple[int, int]]):
        super().__init__()
        for name, module in chain.named_children():
            self.add_module(name, module)
        self.runs = tuple(runs)
        self.training = chain.training

    def forward(self, x: Tensor) -> Tensor:
        modules = list(self)
        place = 0
        for start, stop in (*self.runs, (len(modules), len(modules))):
            for module in modules[place:start]:
                x = module(x)
            if start < stop:
                x = _side_by_side(modules[start:stop], start, x)
            place = stop
        return x

    def extra_repr(self) -> str:
        return f"parallel runs={list(self.runs)}"


def parallelize(module: nn.Module, predicate: Callable[[nn.Module], bool]) -> nn.Module:
    """Turns runs of residual blocks of equal shape, in any `nn.Sequential` inside a module, into parallel layers.

        parallelize(resnet, lambda block: isinstance(block, BasicBlock))

    A run is two or more neighbours which `predicate` takes for residual blocks and whose parameters have the same
    shapes; a block that changes width or resolution stays where it is. All weights, and their names in the state
    dict, stay. Without further training the function changes, except to first order in the blocks.

    Args:
        module: changed in place; a module that is an `nn.Sequential` itself is not, its successor is returned.
        predicate: whether a module is a residual block, its skip included.

    Returns:
        The module.
    """
    for name, child in list(module.named_children()):
        if not predicate(child):
            setattr(module, name, parallelize(child, predicate))
    if isinstance(module, nn.Sequential) and not isinstance(module, PartlyParallel):
        runs = _runs(list(module), predicate)
        if runs:
            return PartlyParallel(module, runs)
    return module


def _runs(modules: list[nn.Module], predicate: Callable[[nn.Module], bool]) -> list[tuple[int, int]]:
    shapes = [_shape(module) if predicate(module) else None for module in modules]
    runs, start = [], 0
    for index in range(1, len(modules) + 1):
        if index == len(modules) or shapes[index] is None or shapes[index] != shapes[start]:
            if index - start > 1 and shapes[start] is not None:
                runs.append((start, index))
            start = index
    return runs


def _shape(block: nn.Module) -> tuple[object, ...]:
    return (type(block), *((name, tuple(value.shape)) for name, value in block.named_parameters()))


def _side_by_side(blocks: list[nn.Module], start: int, x: Tensor) -> Tensor:
    total = x
    for index, block in enumerate(blocks, start):
        out = block(x)
        if out.shape != x.shape:
            raise ValueError(
                f"block {index} ({type(block).__name__}) turns shape {tuple(x.shape)} into {tuple(out.shape)}; "
                "residual blocks keep the shape"
            )
        total = total + (out - x)
    return total
