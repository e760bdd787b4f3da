"""Weights of guided-diffusion (https://github.com/openai/guided-diffusion) in our U-Net.

The same layers under other names; attention's 1 x 1 convolutions are one-dimensional there.
"""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.nn.unet import UNet

__all__ = ["adm_256", "from_guided_diffusion_state", "load_guided_diffusion_state"]

_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "emb",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
    "proj_out": "proj",
    "op": "conv",
}
"""Theirs -> ours, within a block; what is not here has the same name."""

_THEIRS = re.compile(rf"\.({'|'.join(re.escape(name) for name in _NAMES)})\.(?=(?:weight|bias)$)")


def adm_256(**changes: Any) -> UNet:
    """The unconditional network for 256 x 256 ImageNet, `256x256_diffusion_uncond.pt`; linear schedule, 1000 steps."""
    arguments: dict[str, Any] = {
        "in_channels": 3, "out_channels": 6, "base_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4),
        "num_res_blocks": 2, "attention_levels": (3, 4, 5), "head_channels": 64,
    }  # fmt: skip
    return UNet(**arguments | changes)


def from_guided_diffusion_state(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state dict of guided-diffusion under our names.

    Raises:
        ValueError: if it is not of such a U-Net, or of one with classes.
    """
    if "input_blocks.0.0.weight" not in state or "time_embed.0.weight" not in state:
        raise ValueError(
            f"there are no weights of a guided-diffusion U-Net here; the names begin with {list(state)[:3]}"
        )
    if "label_emb.weight" in state:
        raise ValueError("the weights are of a network with classes (label_emb.weight); features need one without")
    found = {}
    for name, value in state.items():
        own = _THEIRS.sub(lambda match: f".{_NAMES[match[1]]}.", name)
        flat = own.endswith((".qkv.weight", ".proj.weight")) and value.ndim == 3
        found[own] = value[..., None] if flat else value
    return found


def load_guided_diffusion_state(unet: UNet, source: Mapping[str, Any] | str | os.PathLike) -> UNet:
    """Loads weights of guided-diffusion into a U-Net of the same architecture.

        unet = load_guided_diffusion_state(adm_256(), "256x256_diffusion_uncond.pt")

    The attention order is the one called legacy there, which the published unconditional networks have. Files are
    read as plain tensors; nothing in them is executed.

    Args:
        unet: filled in place. A network with weights in half precision keeps them so.
        source: a state dict, or a file of one (`.safetensors`, or what `torch.save` wrote).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file or the architecture is another; the first few differences are named.
    """
    state = from_guided_diffusion_state(source if isinstance(source, Mapping) else _read(Path(source)))
    own = unet.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"the weights are of another architecture: missing {missing[:3]}, left over {extra[:3]}")
    for name, value in own.items():
        if state[name].shape != value.shape:
            raise ValueError(
                f"the weights are of another architecture: {name} has shape {tuple(state[name].shape)}, "
                f"the model's has {tuple(value.shape)}"
            )
    unet.load_state_dict(state)
    return unet


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}; download 256x256_diffusion_uncond.pt of guided-diffusion there")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(file))
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{file} does not hold plain tensors: {error}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{file} must hold a mapping of weights, got {type(loaded).__name__}")
    return loaded
