"""Activation memory: what autograd keeps from the forward pass for the backward pass."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["saved_tensor_bytes"]


def saved_tensor_bytes(compute: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd holds for the backward pass when `compute` has run.

        saved_tensor_bytes(lambda: F.cross_entropy(model(x), y), exclude=model.parameters())

    Every storage counts once, with all its bytes, however many operations keep a view of it. Activations that are kept
    by no operation, and what `torch.utils.checkpoint` computes again in the backward pass, do not count.

    Args:
        compute: runs a forward pass and returns whatever holds its graph, such as the loss.
        exclude: tensors whose storages do not count, such as the parameters.
    """
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give_back(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, give_back):
        graph = compute()  # keeps the storages alive, so that no address can be counted for two of them
    for tensor in exclude:
        held.pop(tensor.untyped_storage().data_ptr(), None)
    del graph
    return sum(held.values())
