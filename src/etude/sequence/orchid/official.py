"""Weights of the released block for a layer of ours (github.com/Karami-m/orchid, `orchid_standalone`)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.sequence.orchid.kernel import OrchidKernel
from etude.sequence.orchid.operator import Orchid

__all__ = ["load_official"]


@torch.no_grad()
def load_official(layer: Orchid, state: Mapping[str, Tensor]) -> Orchid:
    """Copies the state of a released `OrchidOperator` into a layer made with `official=True`.

    The released filters learn their features of the time, at a rate of 1e-5. Here they are buffers that no state
    dictionary keeps: what was learned is copied, and is lost where the layer is saved and loaded.

    Args:
        layer: of the same sizes and kind.
        state: `OrchidOperator.state_dict()`.

    Returns:
        The layer.

    Raises:
        ValueError: if the layer is not official; if a tensor is missing, left over, or of another shape.
    """
    if not layer.official:
        raise ValueError("weights of the released block need a layer made with official=True")
    left = dict(state)

    def put(target: Tensor, name: str) -> None:
        if name not in left:
            raise ValueError(f"the state has no {name}; it has {', '.join(state)}")
        source = left.pop(name)
        if source.numel() != target.numel():
            raise ValueError(f"{name} has shape {tuple(source.shape)}, the layer expects {tuple(target.shape)}")
        target.copy_(source.reshape(target.shape))

    def linear(module: nn.Module, name: str) -> None:
        for part, parameter in module.named_parameters():
            put(parameter, f"{name}.{part}")

    linear(layer.in_proj, "in_linear")
    linear(layer.short.conv, "conv1d_short")
    linear(layer.out_proj, "out_linear")
    for stack, name in _stacks(layer):
        for at, (conv, norm) in enumerate(zip(stack.convs, stack.norms)):
            linear(conv, f"conv_kernel_nn.{name}.conv1d_ls.{at}")
            linear(norm, f"conv_kernel_nn.{name}.norm_ls.{at}.norm_conv_kernel")
    for made, skip, name in (
        (layer.filter, layer.skip, "fixed_conv"),
        (layer.residual_filter, layer.residual_skip, "fixed_conv_res"),
    ):
        if made is not None and skip is not None:
            put(skip, f"{name}.bias")
            put(made.features, f"{name}.pos_emb.z")
            put(made.time, f"{name}.pos_emb.t")
            put(made.rates, f"{name}.modulation.deltas")
            made.rates.abs_()
            mlp = f"{name}.implicit_filter"
            for at, module in enumerate([*made.layers, made.out]):
                linear(module, f"{mlp}.{2 * at}")
                if at < len(made.layers):  # one sine, listed after each layer
                    put(made.freq, f"{mlp}.{2 * at + 1}.freq")
    buffers = [name for name in left if name.rsplit(".", 1)[-1] in ("Pr", "Pi", "Qr", "Qi", "scale")]
    if len(left) > len(buffers):
        raise ValueError(f"the layer has no place for {', '.join(name for name in left if name not in buffers)}")
    return layer


def _stacks(layer: Orchid) -> list[tuple[Any, str]]:
    found: list[tuple[Any, str]] = []
    for kernel in layer.kernels:
        assert isinstance(kernel, OrchidKernel)
        named = (
            ("nn_model_k", "nn_model_q", "nn_model_frq") if kernel.query is not None else ("nn_model", "", "nn_model2")
        )
        parts = zip((kernel.key, kernel.query, kernel.freq), named)
        found += [(stack, name) for stack, name in parts if stack is not None]
    return found
