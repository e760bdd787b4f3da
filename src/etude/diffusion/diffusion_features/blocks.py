"""The numbered blocks of any diffusion model: ours, those of diffusers, or any module whose blocks have names.

Blocks are numbered 1, 2, ... in the order in which they run, as in `etude.nn.unet`: in a U-Net the stem, one for each
residual block with its attention, one for each down-sampling, the middle, and one for each decoder block with the
up-sampling after it. A block's feature is its output, and what follows the last block asked for is not run.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

__all__ = ["BlockModel", "HookedBlocks", "block_model", "diffusers_block_names"]


@runtime_checkable
class BlockModel(Protocol):
    """What features are taken from; `etude.nn.unet.UNet` is one."""

    @property
    def num_blocks(self) -> int: ...

    def block_names(self) -> list[str]: ...

    def features(self, x: Tensor, t: Tensor, blocks: Iterable[int]) -> dict[int, Tensor]: ...


class _Reached(Exception):
    """The last wanted block has run."""


class HookedBlocks(nn.Module):
    """A model's named submodules as numbered blocks; the forward is left when the last wanted one has run.

        blocks = HookedBlocks(vit, [f"blocks.{i}" for i in range(12)])
        blocks.features(x, t, [6])

    Outputs (batch, tokens, dim) become maps (batch, dim, height, width) if there is one token a patch; of a tuple the
    first entry counts.

    Args:
        model: anything called on noisy images and timesteps.
        names: paths of its blocks, in the order in which they run.
        call: (x, t) -> runs the model; `model(x, t)` if None.

    Raises:
        AttributeError: if the model has no module of such a name.
        ValueError: if there are no names.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], call: Callable[[Tensor, Tensor], Any] | None = None):
        super().__init__()
        if not names:
            raise ValueError("names is empty: name at least one block")
        for name in names:
            model.get_submodule(name)
        self.model, self._names, self._call = model, list(names), call

    @property
    def num_blocks(self) -> int:
        return len(self._names)

    def block_names(self) -> list[str]:
        return list(self._names)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        """The whole model."""
        return self.model(x, t) if self._call is None else self._call(x, t)

    def features(
        self, x: Float[Tensor, "batch channels height width"], t: Real[Tensor, "batch"], blocks: Iterable[int]
    ) -> dict[int, Tensor]:
        """Outputs of the numbered blocks, as maps.

        Raises:
            IndexError: if a number is out of range.
            ValueError: if there are no numbers, or an output is no map.
            RuntimeError: if a block does not run.
        """
        wanted = sorted(set(blocks))
        if not wanted:
            raise ValueError("blocks is empty: name at least one block")
        for block in wanted:
            if not 1 <= block <= self.num_blocks:
                raise IndexError(f"block must lie in 1..{self.num_blocks}, got {block}")
        found: dict[int, Tensor] = {}
        with self._caught(wanted, found), suppress(_Reached):
            self.forward(x, t)
        if missing := [self._names[block - 1] for block in wanted if block not in found]:
            raise RuntimeError(f"these blocks did not run: {', '.join(missing)}")
        return {block: _as_map(found[block], x) for block in wanted}

    @contextmanager
    def _caught(self, wanted: list[int], found: dict[int, Tensor]) -> Iterator[None]:
        def hook(block: int) -> Callable[[nn.Module, Any, Any], None]:
            def catch(_module: nn.Module, _args: Any, output: Any) -> None:
                found[block] = _tensor(output)
                if block == wanted[-1]:
                    raise _Reached

            return catch

        modules = [(block, self.model.get_submodule(self._names[block - 1])) for block in wanted]
        handles = [module.register_forward_hook(hook(block)) for block, module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _tensor(output: Any) -> Tensor:
    if isinstance(output, tuple):
        output = output[0]
    return output if isinstance(output, Tensor) else output.sample


def _as_map(feature: Tensor, x: Tensor) -> Tensor:
    if feature.ndim == 4:
        return feature
    if feature.ndim == 3:
        patch = math.sqrt(x.shape[2] * x.shape[3] / feature.shape[1])
        height, width = round(x.shape[2] / patch), round(x.shape[3] / patch)
        if height * width == feature.shape[1]:
            return feature.transpose(1, 2).unflatten(2, (height, width))
    raise ValueError(
        f"a block's output must be (batch, channels, height, width), or (batch, tokens, dim) with one token a patch of "
        f"the {x.shape[2]} x {x.shape[3]} input, got shape {tuple(feature.shape)}"
    )


def diffusers_block_names(model: nn.Module) -> list[str]:
    """Paths of the blocks of a U-Net or a DiT of diffusers, numbered as ours.

    Raises:
        TypeError: if the model is neither.
    """
    transformer: Any = getattr(model, "transformer_blocks", None)
    if transformer is not None:
        return [f"transformer_blocks.{index}" for index in range(len(transformer))]
    if not all(hasattr(model, part) for part in ("conv_in", "down_blocks", "mid_block", "up_blocks")):
        raise TypeError(
            f"{type(model).__name__} has no numbered blocks: neither `features` and `num_blocks`, nor a module list "
            f"`blocks` (a DiT), nor conv_in, down_blocks, mid_block and up_blocks (a U-Net of diffusers), nor "
            f"transformer_blocks (a DiT of diffusers); name its blocks with HookedBlocks"
        )
    down: Any = model.down_blocks
    up: Any = model.up_blocks
    names = ["conv_in"]
    for index, block in enumerate(down):
        names += _layers(f"down_blocks.{index}", block)
        if getattr(block, "downsamplers", None):
            names.append(f"down_blocks.{index}.downsamplers.{len(block.downsamplers) - 1}")
    names.append("mid_block")
    for index, block in enumerate(up):
        layers = _layers(f"up_blocks.{index}", block)
        if getattr(block, "upsamplers", None):
            layers[-1] = f"up_blocks.{index}.upsamplers.{len(block.upsamplers) - 1}"
        names += layers
    return names


def _layers(path: str, block: Any) -> list[str]:
    """A residual block each, or the attention after it."""
    part = "attentions" if getattr(block, "attentions", None) else "resnets"
    return [f"{path}.{part}.{index}" for index in range(len(block.resnets))]


def _labelled_call(model: nn.Module) -> Callable[[Tensor, Tensor], Any] | None:
    null: Any = getattr(model, "num_classes", None)
    if not null:
        return None
    return lambda x, t: model(x, t, torch.full((len(x),), null, device=x.device))


def block_model(model: nn.Module, **conditions: Any) -> BlockModel:
    """The numbered blocks of a model: itself if it has them, else those of a DiT, or of a U-Net or DiT of diffusers.

        block_model(UNet2DModel.from_pretrained("google/ddpm-cifar10-32"))
        block_model(unet, encoder_hidden_states=empty_prompt)          # of a text-conditional U-Net: (1, tokens, dim)

    A DiT with classes is asked for its null label, by DiT's convention the number of classes (of diffusers' unless
    `class_labels` is given).

    Args:
        model: a `UNet` of `etude.nn`, `HookedBlocks`, a DiT (a module list `blocks`; called as `model(x, t)`, or as
            `model(x, t, y)` if it has `num_classes`), or a model of diffusers.
        conditions: tensors with one row (repeated for every image) that the model of diffusers takes.

    Raises:
        TypeError: if the model is none of these.
    """
    if isinstance(model, BlockModel):
        if conditions:
            raise TypeError(f"{type(model).__name__} takes no conditions, got {', '.join(conditions)}")
        return model
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.ModuleList) and not hasattr(model, "config"):
        if conditions:
            raise TypeError(f"{type(model).__name__} takes no conditions, got {', '.join(conditions)}")
        return HookedBlocks(model, [f"blocks.{index}" for index in range(len(blocks))], _labelled_call(model))
    if hasattr(model, "model") and hasattr(model.model, "config"):  # wrapped, as by etude.nn.diffusion.DiffusersModel
        model = model.model  # type: ignore[assignment]
    names = diffusers_block_names(model)
    null = getattr(getattr(model, "config", None), "num_embeds_ada_norm", None)
    if null is not None and "class_labels" not in conditions:
        conditions = {**conditions, "class_labels": torch.tensor([null])}

    def call(x: Tensor, t: Tensor) -> Any:
        rows = {name: value.to(x.device).expand(len(x), *value.shape[1:]) for name, value in conditions.items()}
        return model(x, timestep=t, **rows)

    return HookedBlocks(model, names, call)
