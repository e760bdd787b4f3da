"""Initial scales of generated weights.

Chang, Flokas & Lipson, "Principled Weight Initialization for Hypernetworks", ICLR 2020 (hyperfan).

A generated weight of layer l should have variance c / fan_in_l, with c = 2 before a rectifier and 1 elsewhere. An
output of the head is a sum over h hidden units of one hidden vector, so its entries need the variance

    Var(H_out) = c / (fan_in_l h m2),    m2 = mean of hidden^2                                                   (1)

with m2 the second moment, since rectified units have a mean. It is measured over the conditions that there are: all
layers share a hidden vector, whose norm's deviation from expectation would be raised to the target's depth.

`once` and `multiple` have rows of H_out for each weight, which take (1) themselves; those of biases and norms are zero.
Where pieces share rows, H_out has variance 1 / (h m2), each piece is multiplied by sqrt(m2 / m2 of the piece), which
makes up for what its place does to the hidden vector (for fixed targets, whose pieces are known), and each element of
Theta by sqrt(c / fan_in) of its own layer. Rows are then no bias's alone: biases start at the scale 1 / sqrt(fan_in),
as torch's own layers do, which adds 1 / fan_in to the second moment of a layer's output.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from etude.transfer.hypernetworks.design import HypernetDesign
from etude.transfer.hypernetworks.generators import MLPTrunk
from etude.transfer.hypernetworks.spec import TargetSpec

__all__ = ["INITS", "calibrate_heads", "element_offset", "element_scale", "initialise_trunk", "silent"]

INITS = ("hyperfan", "hyperfan_out", "scaled", "default")


def wanted_std(spec: TargetSpec, init: str) -> Float[Tensor, "params"]:
    """sqrt(c / fan) of every weight, 0 for biases and norms."""
    fans = [tensor.fan_in if init == "hyperfan" else tensor.fan_out for tensor in spec.tensors]
    return spec.each(
        [(tensor.gain / fan) ** 0.5 if tensor.role == "weight" else 0.0 for tensor, fan in zip(spec.tensors, fans)]
    )


def element_scale(
    spec: TargetSpec, design: HypernetDesign, init: str, output_scale: float | int
) -> Float[Tensor, "params"] | None:
    """What each raw output is multiplied with; None for nothing.

    `scaled` takes output_scale / sqrt(fan_in) of the element's own layer.
    """
    if init == "scaled":
        return output_scale * spec.prior_std
    if init == "default" or not design.piecewise:
        return None
    std = wanted_std(spec, init)
    return torch.where(std > 0, std, spec.prior_std)


def element_offset(spec: TargetSpec) -> Float[Tensor, "params"] | None:
    """1 for the scales of norms, 0 elsewhere: gamma = 1 + out, beta = 0 + out."""
    offset = spec.each([float(tensor.role == "norm_scale") for tensor in spec.tensors])
    return offset if bool(offset.any()) else None


def initialise_trunk(trunk: nn.Module) -> None:
    """Kaiming-normal weights and zero biases of fully connected layers; other trunks keep torch's own.

    A weight under spectral normalisation has its scale from there.
    """
    for part in trunk.modules() if isinstance(trunk, MLPTrunk | nn.ModuleList) else ():
        if isinstance(part, nn.Linear):
            if not is_parametrized(part, "weight"):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            nn.init.zeros_(part.bias)


def silent(hidden: list[Tensor]) -> int:
    """Conditions for which some head reads nothing but zeros: its weights would be all zero, and so their gradients."""
    off = torch.stack([(features == 0).flatten(1).all(dim=1) for features in hidden])
    return int(off.any(dim=0).sum())


@torch.no_grad()
def calibrate_heads(
    heads: list[nn.Linear], hidden: list[Tensor], spec: TargetSpec, design: HypernetDesign, init: str
) -> None:
    """Draws the heads' weights at the variance of Eq. (1) for the hidden vectors at hand, and zeroes their biases.

    Raises:
        ValueError: if the hidden units are all zero, so that no weight makes anything of them.
    """
    rows = torch.ones(()) if design.piecewise else wanted_std(spec, init)
    first = 0
    for head, features in zip(heads, hidden):
        moment = float(features.square().mean())
        if not moment > 0:
            raise ValueError("the hidden units of the hypernetwork are zero for every condition at hand")
        nn.init.normal_(head.weight, std=(head.in_features * moment) ** -0.5)
        if not design.piecewise:
            mine = rows[first : first + head.out_features]
            head.weight.mul_(mine[:, None].to(head.weight))
            first += head.out_features
        if head.bias is not None:
            nn.init.zeros_(head.bias)
