"""Weights of timm's and the official ConViT in ours, and back.

Both sides name their parameters alike (https://github.com/facebookresearch/convit, timm's `models/convit.py`) and
differ from ours in the gate only; what else is done here is to find the weights in a training checkpoint, to
interpolate positions, and to say plainly what does not fit.
"""

import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.vision.convit.network import ConViT
from etude.vision.convit.patches import resized_positions

__all__ = ["from_timm_state", "load_timm", "to_timm_state"]

_THEIRS, _OURS = "gating_param", "gate_logit"
_HOLDERS = ("model_ema", "state_dict_ema", "model", "state_dict")


def from_timm_state(state: Mapping[str, Any], *, ema: bool = False) -> dict[str, Tensor]:
    """A state dict of timm's or the official model under our names.

    A training checkpoint is looked through for its weights, a prefix `module.` (of distributed training) is dropped,
    and so are stored coordinates, which are not parameters.

    Args:
        state: name -> tensor, or a checkpoint that holds such a mapping.
        ema: take the averaged weights of a checkpoint that has them.

    Raises:
        ValueError: if there are no weights of a ConViT.
    """
    weights: Mapping[str, Any] = state
    holders = _HOLDERS if ema else _HOLDERS[2:]
    for name in holders:
        if isinstance(state.get(name), Mapping):
            weights = state[name]
            break
    found = {}
    for name, value in weights.items():
        own = name.removeprefix("module.")
        if isinstance(value, Tensor) and not own.endswith("rel_indices"):
            found[_renamed(own, _THEIRS, _OURS)] = value
    if not any(name.startswith("blocks.") for name in found):
        raise ValueError(f"there are no weights of a ConViT here; the names begin with {list(state)[:3]}")
    return found


def to_timm_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of ours under the names of timm and the official code."""
    return {_renamed(name, _OURS, _THEIRS): value for name, value in state.items()}


def _renamed(name: str, old: str, new: str) -> str:
    return name.removesuffix(old) + new if name.endswith(f".attn.{old}") else name


def load_timm(
    model: ConViT, source: Mapping[str, Any] | str | os.PathLike, *, new_head: bool = False, ema: bool = False
) -> ConViT:
    """Loads timm's or the official weights into a model of the same width and depth.

        model = load_timm(convit_small(), "convit_small.pth")
        model = load_timm(convit_small(num_classes=10, img_size=192), "convit_small.safetensors", new_head=True)

    Positions of another grid are interpolated. Files are read as plain tensors; nothing in them is executed.

    Args:
        model: filled in place.
        source: a state dict, a checkpoint, or a file of one (`.safetensors`, or what `torch.save` wrote).
        new_head: keep the model's own classifier, for other classes.
        ema: see `from_timm_state`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if parameters are missing, left over or of other shapes; the first few are named.
    """
    state = from_timm_state(source if isinstance(source, Mapping) else _read(Path(source)), ema=ema)
    own = model.state_dict()
    if new_head:
        state |= {name: own[name] for name in ("head.weight", "head.bias")}
    positions = state.get("pos_embed")
    if positions is not None and "pos_embed" in own and positions.shape[1] != own["pos_embed"].shape[1]:
        side = math.isqrt(positions.shape[1])
        if side * side != positions.shape[1]:
            raise ValueError(f"the positions must be of a square grid to be interpolated, got {positions.shape[1]}")
        state["pos_embed"] = resized_positions(positions, (side, side), model.grid_size)
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"the weights are of another model: missing {missing[:3]}, left over {extra[:3]}")
    for name, value in own.items():
        if state[name].shape != value.shape:
            hint = "; new_head=True keeps the model's own classifier" if name.startswith("head.") else ""
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the model's has {tuple(value.shape)}{hint}")
    model.load_state_dict(state)
    return model


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(file))
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} holds more than plain tensors; load it yourself and pass its state dict") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{file} must hold a mapping of weights, got {type(loaded).__name__}")
    return loaded
