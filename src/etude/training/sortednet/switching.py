"""Which sub-model of a network is in use.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023: as all sub-models are prefixes of one network, going from one to
another changes a few integers and moves no weights.
"""

from types import TracebackType

from torch import nn

from etude.training.sortednet.depth import SortedModuleList, SortedSequential
from etude.training.sortednet.slicing import Region, SortedLayer
from etude.training.sortednet.submodels import SubModel, SubModelSpace

__all__ = ["active_submodel", "count_parameters", "set_submodel", "space_of", "submodel_regions"]


def sorted_root(model: nn.Module) -> nn.Module:
    """The module that `sorted_` was called on: `model`, or what a wrapper such as DistributedDataParallel holds.

    Raises:
        ValueError: if there is none, or several.
    """
    if "sorted_space" in model.__dict__:
        return model
    roots = [module for module in model.modules() if "sorted_space" in module.__dict__]
    if len(roots) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(roots)} networks with a space of sub-models, it must be one: call "
            "sorted_(model, space) once"
        )
    return roots[0]


def space_of(model: nn.Module) -> SubModelSpace:
    """The sub-models of a network made by `sorted_`."""
    return sorted_root(model).__dict__["sorted_space"]


def active_submodel(model: nn.Module) -> SubModel:
    """The sub-model in use."""
    return sorted_root(model).__dict__["sorted_active"]


class set_submodel:
    """Switches a network to one of its sub-models, from now on or for a `with` block.

        set_submodel(model, SubModel(width=0.5, depth=4))
        with set_submodel(model, space.smallest):
            y = model(x)

    Args:
        model: made by `sorted_`, perhaps wrapped.
        b: a sub-model of its space.

    Raises:
        ValueError: if `b` is not in the space, or the model has none.
    """

    def __init__(self, model: nn.Module, b: SubModel):
        self._root = sorted_root(model)
        space = self._root.__dict__["sorted_space"]
        if b not in space:
            raise ValueError(f"{b!r} is none of the {len(space)} sub-models of {space}")
        self._before: SubModel = self._root.__dict__["sorted_active"]
        _switch(self._root, b)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _switch(self._root, self._before)


def _switch(root: nn.Module, b: SubModel) -> None:
    for part in root.__dict__["sorted_parts"]:
        part.activate(b)
    root.__dict__["sorted_active"] = b


def submodel_regions(model: nn.Module, b: SubModel) -> dict[str, list[Region]]:
    """The weights theta_b of sub-model `b` as parts of those of the network.

    Returns:
        for each parameter, by its name in `model`, the slices along its leading axes that make up its part in theta_b:
        none if the sub-model skips it, an empty tuple of slices where it uses the parameter whole.
    """
    with set_submodel(model, b):
        regions: dict[str, list[Region]] = {name: [] for name, _ in model.named_parameters(remove_duplicate=False)}
        _collect(model, "", regions)
    return regions


def _collect(module: nn.Module, where: str, regions: dict[str, list[Region]]) -> None:
    if isinstance(module, SortedLayer):
        regions.update({where + name: kept for name, kept in module.regions().items()})
        children = [name for name in module._modules if name not in module.parts]
    else:
        regions.update({where + name: [()] for name, part in module._parameters.items() if part is not None})
        children = list(module._modules)
        if isinstance(module, SortedSequential | SortedModuleList):
            children = [children[index] for index in module.kept()]
    for name in children:
        child = module._modules[name]
        if child is not None:
            _collect(child, f"{where}{name}.", regions)


def count_parameters(model: nn.Module, b: SubModel) -> int:
    """Number of parameters of sub-model `b`: those that `extract(model, b)` has."""
    parameters = dict(model.named_parameters())
    return sum(
        parameters[name][region].numel()
        for name, kept in submodel_regions(model, b).items()
        if name in parameters
        for region in kept
    )
