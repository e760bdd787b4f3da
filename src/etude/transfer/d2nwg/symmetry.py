"""Weights that compute the same function, brought to one representative before they are encoded.

Two things leave a classifier's predictions as they are: a constant added to all logits (the gauge of the softmax), and
hidden units that change places. Networks of one initialisation agree in the second by themselves; those of several do
not, and a distribution over their weights would mix what does not belong together.

Matching follows Ainsworth, Hayase & Srinivasa, "Git Re-Basin", arXiv:2209.04836, 2022 (section 3.2, algorithm 1):
units of a layer are assigned to those of a reference so that the inner product of all weights is largest, one layer
after the other until nothing moves.
"""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.transfer.d2nwg.codec import WeightCodec

__all__ = ["match_units", "remove_gauge", "sort_units"]

_POINTWISE = (
    nn.Dropout, nn.ELU, nn.Flatten, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.SELU, nn.Sigmoid, nn.SiLU,
    nn.Softplus, nn.Tanh,
)  # fmt: skip


def remove_gauge(
    vectors: Float[Tensor, "*batch params"], codec: WeightCodec, layer: str = ""
) -> Float[Tensor, "*batch params"]:
    """Subtracts the mean over output units from the last layer's weights and bias; softmax and argmax do not change.

    Args:
        vectors: networks.
        codec: of their architecture.
        layer: name of the last layer, "" if the network is that layer.

    Raises:
        ValueError: if there is no such layer.
    """
    prefix = f"{layer}." if layer else ""
    if f"{prefix}weight" not in codec.names:
        raise ValueError(f"the architecture has no layer {layer!r} with a weight; it has {', '.join(codec.names)}")
    tensors = codec.unflatten(vectors)
    for name in (f"{prefix}weight", f"{prefix}bias"):
        if name in tensors:
            # Output units come first, after the batch.
            axis = tensors[name].ndim - len(codec.shapes[name])
            tensors[name] = tensors[name] - tensors[name].mean(dim=axis, keepdim=True)
    return codec.gather(tensors)


def _layers(network: nn.Module) -> list[nn.Linear]:
    if not isinstance(network, nn.Sequential):
        raise TypeError(f"expected an nn.Sequential of linear layers, got {type(network).__name__}")
    layers: list[nn.Linear] = []
    for module in network:
        if isinstance(module, nn.Linear):
            layers.append(module)
        elif not isinstance(module, _POINTWISE) or (layers and isinstance(module, nn.Flatten)):
            raise TypeError(f"units pass through linear layers and pointwise activations only, got {module}")
    if len(layers) < 2:
        raise ValueError(f"a network without hidden units has no permutations, got {len(layers)} linear layer(s)")
    return layers


@torch.no_grad()
def _permute(layers: list[nn.Linear], index: int, order: Tensor) -> None:
    """Puts unit `order[i]` of a hidden layer in place i."""
    layers[index].weight.copy_(layers[index].weight[order].clone())
    if layers[index].bias is not None:
        layers[index].bias.copy_(layers[index].bias[order].clone())
    layers[index + 1].weight.copy_(layers[index + 1].weight[:, order].clone())


@torch.no_grad()
def sort_units(network: nn.Sequential) -> nn.Sequential:
    """A copy that computes the same, with the units of each hidden layer by falling norm of their incoming weights.

    Needs no reference, but near ties change places between networks that are almost alike: `match_units` is the
    better choice where a reference stands.

    Raises:
        TypeError, ValueError: if it is no `nn.Sequential` of two or more linear layers and pointwise activations.
    """
    network = copy.deepcopy(network)
    layers = _layers(network)
    for index, layer in enumerate(layers[:-1]):
        incoming = layer.weight if layer.bias is None else torch.cat([layer.weight, layer.bias[:, None]], dim=1)
        # A permutation of the layer below only reorders the terms of this norm.
        norms = incoming.double().norm(dim=1)
        _permute(layers, index, norms.argsort(descending=True, stable=True))
    return network


@torch.no_grad()
def match_units(network: nn.Sequential, reference: nn.Sequential, *, sweeps: int = 50) -> nn.Sequential:
    """A copy that computes the same, its hidden units in the order that lies nearest the reference.

    Args:
        network, reference: of one architecture, linear layers with pointwise activations between.
        sweeps: how often all layers are gone through at most.

    Raises:
        TypeError, ValueError: if they are no such networks, or differ in shape.
    """
    from scipy.optimize import linear_sum_assignment

    network = copy.deepcopy(network)
    mine, theirs = _layers(network), _layers(reference)
    if [layer.weight.shape for layer in mine] != [layer.weight.shape for layer in theirs]:
        shapes = [[tuple(layer.weight.shape) for layer in layers] for layers in (mine, theirs)]
        raise ValueError(f"network and reference must have one architecture, got layers {shapes[0]} and {shapes[1]}")
    for _ in range(sweeps):
        moved = False
        for index in range(len(mine) - 1):
            likeness = theirs[index].weight.double() @ mine[index].weight.double().T
            likeness += theirs[index + 1].weight.double().T @ mine[index + 1].weight.double()
            if mine[index].bias is not None:
                likeness += torch.outer(theirs[index].bias.double(), mine[index].bias.double())
            order = torch.as_tensor(linear_sum_assignment(likeness.cpu().numpy(), maximize=True)[1])
            gain = likeness[torch.arange(len(order)), order].sum() - likeness.diagonal().sum()
            if gain > 1e-9 * likeness.abs().max():
                _permute(mine, index, order.to(mine[index].weight.device))
                moved = True
        if not moved:
            break
    return network
