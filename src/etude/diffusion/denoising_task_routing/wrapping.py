"""Routing put into an existing model, in place and without touching its weights or their names.

Blocks of transformers are routed by Eq. (2) of `routing`. In U-Nets of diffusers the normalisation at the head of each
residual and attention block reads x m and the skip all of x, Eq. (1) of `unet`.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from etude.diffusion.denoising_task_routing.dit import DiT
from etude.diffusion.denoising_task_routing.routing import Routing, TaskRouter
from etude.diffusion.denoising_task_routing.unet import route_unet_
from etude.nn.diffusion import DiffusersModel
from etude.nn.unet import UNet

__all__ = ["route_"]

_TIMES = ("t", "timestep", "timesteps")
_BLOCKS = ("blocks", "transformer_blocks")
# Of the call of a routed model that is under way, in this thread: two models, or one on several devices, do not mix.
_current: ContextVar[Tensor | None] = ContextVar("timesteps of the call under way", default=None)
_Model = TypeVar("_Model", bound=nn.Module)


def route_(
    model: _Model,
    *,
    alpha: float | int = 4.0,
    beta: float | int = 0.8,
    method: str = "dtr",
    num_tasks: int = 1000,
    seed: int = 0,
    predicate: Callable[[str, nn.Module], bool] | None = None,
    dim: int | None = None,
    timestep: str | None = None,
) -> _Model:
    """Routes the blocks of a DiT, of ours or yours or of diffusers, or of a U-Net, in place; gives the model back.

        model = route_(MyDiT.load(...), beta=0.8)
        model(x, t, y)                                # called as before

    Parameters, their names and (but for `method="random"`) the state dict stay the same, so that checkpoints load
    before or after. A model trained without routing must be trained on: its blocks have never read part of x.

    The blocks get the timesteps from the model's own call, by name; they must be those of training, even where a
    sampler takes fewer steps. A block recomputed outside of that call (gradient checkpointing) only knows them if
    they are an argument of its own, as in diffusers' transformers.

    Args:
        model: called with the timesteps as `t`, `timestep` or `timesteps`; its blocks take x, (batch, tokens, dim),
            first and give it back with what they add to it.
        alpha, beta, method, num_tasks: as for `routing_mask`.
        seed: of random masks.
        predicate: (name, module) -> whether it is a block to route; the members of lists named `blocks` or
            `transformer_blocks` if None. U-Nets choose for themselves.
        dim: channels of x; the width of the block's first normalisation if None.
        timestep: name of the timesteps in the model's call, if it is another.

    Raises:
        ValueError: if there is no block to route, a block is routed already, or the timesteps have no known name.
    """
    routing = Routing(method=method, alpha=alpha, beta=beta, num_tasks=num_tasks, seed=seed)
    if isinstance(model, DiffusersModel):
        route_(
            model.model, alpha=alpha, beta=beta, method=method, num_tasks=num_tasks, seed=seed, predicate=predicate,
            dim=dim, timestep=timestep,
        )  # fmt: skip
        return model
    if isinstance(model, UNet):
        route_unet_(model, routing)
        return model
    if isinstance(model, DiT) and predicate is None:
        model.route_(routing)
        return model
    if predicate is None and (heads := _heads_of_unet(model)):
        kind: type = _RoutedReading
        blocks, widths, channel_dim = heads, [_width(head) for head in heads], 1
    else:
        kind, channel_dim = _RoutedBlock, -1
        blocks = _blocks(model, predicate)
        widths = [dim or _width(block) for block in blocks]
    if any(isinstance(block, _Routed) or isinstance(model, _Routed) for block in blocks):
        raise ValueError("the network is routed already")
    name = _timestep_name(model, timestep)
    for block, router in zip(blocks, routing.routers(widths, channel_dim=channel_dim)):
        _recast(block, kind)
        block.task_router = router.to(_device_of(block))  # type: ignore[assignment]
    _recast(model, _RoutedModel)
    model._timestep = name  # type: ignore[assignment]
    return model


def _recast(module: nn.Module, kind: type) -> None:
    """Gives a module a class of its own that puts `kind` before the one it had, as parametrizations do."""
    own = type(module)
    module.__class__ = type(
        f"Routed{own.__name__}", (kind, own), {"__module__": own.__module__, "__doc__": own.__doc__}
    )


def _device_of(block: nn.Module) -> torch.device:
    return next((parameter.device for parameter in block.parameters()), torch.device("cpu"))


class _Routed:
    """What a routed part of a model has."""

    task_router: TaskRouter


class _RoutedModel(_Routed):
    """A model that tells its blocks the timesteps."""

    _timestep: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = super().forward  # type: ignore[misc]
        t = inspect.signature(call).bind(*args, **kwargs).arguments.get(self._timestep)
        if t is None:
            raise TypeError(f"a routed model must be called with its timesteps, {self._timestep!r}")
        with _timesteps(t):
            return call(*args, **kwargs)


@contextmanager
def _timesteps(t: Any) -> Iterator[None]:
    token = _current.set(torch.as_tensor(t))
    try:
        yield
    finally:
        _current.reset(token)


def _rows_of(t: Any, x: Tensor) -> Tensor:
    """One timestep a row: samplers of diffusers pass a single number for all."""
    if t is None:
        raise RuntimeError("a routed block was called outside of its model's call, and without timesteps of its own")
    return torch.as_tensor(t, device=x.device).expand(len(x))


class _RoutedBlock(_Routed):
    """Eq. (2) of `routing` around the block's own forward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        t = next((kwargs[name] for name in _TIMES if kwargs.get(name) is not None), None)
        t = _current.get() if t is None else t
        block = super().forward  # type: ignore[misc]
        return self.task_router(x, _rows_of(t, x), lambda z: block(z, *args, **kwargs))


class _RoutedReading(_Routed):
    """A module that reads x m."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        t = _rows_of(_current.get(), x)
        if x.ndim == 3 and x.shape[1] != self.task_router.mask.shape[1]:
            raise ValueError(f"expected maps of {self.task_router.mask.shape[1]} channels, got {tuple(x.shape)}")
        return super().forward(self.task_router.masked(x, t), *args, **kwargs)  # type: ignore[misc]


def _heads_of_unet(model: nn.Module) -> list[nn.Module]:
    """First normalisations of the residual and attention blocks of diffusers' U-Net, if the model is one."""
    if not type(model).__name__.startswith("UNet2D"):
        return []
    heads: list[nn.Module] = []
    for module in model.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            heads.append(module.norm1)  # type: ignore[arg-type]
        elif kind == "Attention" and getattr(module, "group_norm", None) is not None:
            heads.append(module.group_norm)  # type: ignore[arg-type]
        elif kind in ("Transformer2DModel", "TransformerTemporalModel"):
            heads.append(module.norm)  # type: ignore[arg-type]
    return heads


def _blocks(model: nn.Module, predicate: Callable[[str, nn.Module], bool] | None) -> list[nn.Module]:
    if predicate is None:
        lists = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in _BLOCKS
        ]
        blocks = [block for members in lists for block in members]
    else:
        blocks = [module for name, module in model.named_modules() if predicate(name, module)]
    if not blocks:
        children = ", ".join(name for name, _ in model.named_children()) or "none"
        raise ValueError(
            f"{type(model).__name__} has no blocks to route: give a predicate of (name, module); its children are "
            f"{children}"
        )
    return blocks


def _width(block: nn.Module) -> int:
    for module in block.modules():
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[-1])
        if isinstance(module, nn.GroupNorm):
            return module.num_channels
    raise ValueError(f"the width of {type(block).__name__} cannot be told: it has no normalisation; give dim")


def _timestep_name(model: nn.Module, name: str | None) -> str:
    known = list(inspect.signature(model.forward).parameters)
    found = [candidate for candidate in (_TIMES if name is None else (name,)) if candidate in known]
    if not found:
        raise ValueError(
            f"the call of {type(model).__name__} has no argument {name or ' or '.join(_TIMES)}, only "
            f"{', '.join(known)}: name the timesteps by timestep="
        )
    return found[0]
