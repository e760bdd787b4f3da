"""Layers of which a prefix can be used alone: linear, convolution, embedding, layer normalisation.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023, section 3. Each layer is the torch layer of that name, with the
same arguments, parameters and `state_dict`, and one more attribute, `active`: how many of its inputs and outputs take
part. The others cost nothing, as weights are sliced, not masked, and they receive a gradient of zero.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.training.sortednet.submodels import SubModel

__all__ = ["Cut", "Region", "SortedConv2d", "SortedEmbedding", "SortedLayer", "SortedLayerNorm", "SortedLinear"]

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Cut:
    """How many of the `full` entries along one axis of a layer a sub-model keeps.

    The count is the entries' share w / top, rounded to whole units: a sub-model of width w of a space whose widest
    is `top` keeps max(1, round(full / unit * w / top)) units.

    Args:
        full: entries of the whole layer.
        dimension: "width" or "heads", which the axis follows; None if it is never cut.
        top: the last truncation point of that dimension.
        unit: consecutive entries that stay together: the features of a head, the pixels of a flattened channel.
    """

    full: int
    dimension: str | None = None
    top: float | int = 1
    unit: int = 1

    def __call__(self, b: SubModel) -> int:
        point = None if self.dimension is None else getattr(b, self.dimension)
        if point is None:
            return self.full
        # Half is rounded up: Python's round() to even would give 0.5 of 5 and of 7 channels different shares.
        return self.unit * max(1, math.floor(self.full / self.unit * point / self.top + 0.5))


class SortedLayer(nn.Module):
    """What all sliced layers share: the sizes that tie them to sub-models, and the prefix in use.

    Attributes:
        axes: what the sizes of the layer are sizes of.
        parts: child modules that belong to the layer itself; any other was attached to it.
        sizes: sub-model -> entries it keeps along `axes`; empty until `sorted_` ties the layer to a space.
    """

    axes: tuple[str, ...] = ("features",)
    parts: tuple[str, ...] = ()
    sizes: Mapping[SubModel, tuple[int, ...]] = MappingProxyType({})
    _name = ""
    _active: tuple[int, ...] | None = None

    def full_sizes(self) -> tuple[int, ...]:
        """Sizes of the whole layer along `axes`."""
        raise TypeError(f"{type(self).__name__} does not say which of its axes are cut")

    def regions(self) -> dict[str, list[Region]]:
        """Which entries of each parameter take part: parameter name -> slices, one per leading axis."""
        raise TypeError(f"{type(self).__name__} does not say which of its parameters are cut")

    def extracted(self) -> nn.Module:
        """The part in use as a torch layer of its own, with copied weights."""
        raise TypeError(f"{type(self).__name__} does not say how it is cut out")

    @property
    def active(self) -> tuple[int, ...]:
        """The entries in use along `axes`, from the front."""
        return self.full_sizes() if self._active is None else self._active

    @active.setter
    def active(self, sizes: tuple[int, ...] | int) -> None:
        wanted = (sizes,) if isinstance(sizes, int) else tuple(sizes)
        full = self.full_sizes()
        if len(wanted) != len(full) or not all(1 <= size <= whole for size, whole in zip(wanted, full)):
            bounds = ", ".join(f"{axis} in 1..{whole}" for axis, whole in zip(self.axes, full))
            raise ValueError(f"active of {self._label()} takes {bounds}, got {wanted}")
        self._check_active(wanted)
        self._active = wanted

    def activate(self, b: SubModel) -> None:
        """Switches to the prefix of sub-model `b`."""
        if self.sizes:
            self._active = self.sizes[b]

    def tie(self, cuts: dict[str, Cut], submodels: tuple[SubModel, ...], name: str) -> None:
        """Ties the layer to a space, after checking that it can take every one of its sub-models."""
        self._name = name
        self.sizes = {b: tuple(cuts[axis](b) for axis in self.axes) for b in submodels}
        for sizes in self.sizes.values():
            self._check_active(sizes)

    def _check_active(self, sizes: tuple[int, ...]) -> None:
        """Refuses sizes that are in range but do not go together."""

    def _label(self) -> str:
        return f"{type(self).__name__} {self._name!r}" if self._name else type(self).__name__

    def _expect(self, x: Tensor, axis: int, size: int) -> None:
        if x.ndim < -axis or x.shape[axis] != size:
            raise ValueError(
                f"{self._label()} has {size} of {self.full_sizes()[0]} inputs active and expects them along axis "
                f"{axis}, got an input of shape {tuple(x.shape)}; if the layer before is cut differently, say so in "
                "the rules of sorted_"
            )


def prefix(tensor: Tensor, *sizes: int) -> Tensor:
    """The leading `sizes` entries along the leading axes; the tensor itself where nothing is cut."""
    if all(size == whole for size, whole in zip(sizes, tensor.shape)):
        return tensor
    return tensor[prefix_region(*sizes)]


def prefix_region(*sizes: int) -> Region:
    """The slices of a prefix."""
    return tuple(slice(0, size) for size in sizes)


def cut_out(layer: nn.Module, plain: nn.Module, tensors: dict[str, Tensor | None]) -> nn.Module:
    """`plain` with copies of the given tensors in place of its own, in the mode of `layer`.

    `plain` is made on the meta device, so that cutting a layer out draws no random numbers.
    """
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        if name in plain._parameters:
            trained = getattr(layer, name).requires_grad
            plain._parameters[name] = nn.Parameter(copy, requires_grad=trained)
        else:
            plain._buffers[name] = copy
    return plain.train(layer.training)


class SortedLinear(SortedLayer, nn.Linear):
    """`nn.Linear` that can use W[:out, :in] and b[:out] alone.

    layer = SortedLinear(64, 32)
    layer.active = (16, 8)
    layer(torch.randn(5, 16)).shape  # (5, 8)
    """

    axes = ("inputs", "outputs")

    def full_sizes(self) -> tuple[int, ...]:
        return self.in_features, self.out_features

    def forward(self, input: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Maps the active inputs to the active outputs."""
        inputs, outputs = self.active
        self._expect(input, -1, inputs)
        bias = None if self.bias is None else prefix(self.bias, outputs)
        return F.linear(input, prefix(self.weight, outputs, inputs), bias)

    def regions(self) -> dict[str, list[Region]]:
        inputs, outputs = self.active
        regions = {"weight": [prefix_region(outputs, inputs)]}
        return regions if self.bias is None else {**regions, "bias": [prefix_region(outputs)]}

    def extracted(self) -> nn.Module:
        inputs, outputs = self.active
        plain = nn.Linear(inputs, outputs, bias=self.bias is not None, device="meta")
        bias = None if self.bias is None else self.bias[:outputs]
        return cut_out(self, plain, {"weight": self.weight[:outputs, :inputs], "bias": bias})


class SortedConv2d(SortedLayer, nn.Conv2d):
    """`nn.Conv2d` that can use W[:out, :in] and b[:out] alone; with groups, whole groups from the front."""

    axes = ("inputs", "outputs")

    def full_sizes(self) -> tuple[int, ...]:
        return self.in_channels, self.out_channels

    def _check_active(self, sizes: tuple[int, ...]) -> None:
        inputs, outputs = sizes
        per_in, per_out = self.in_channels // self.groups, self.out_channels // self.groups
        if self.groups > 1 and (inputs % per_in or outputs % per_out or inputs // per_in != outputs // per_out):
            raise ValueError(
                f"{self._label()} has {self.groups} groups of {per_in} input and {per_out} output channels and is cut "
                f"by whole groups; {inputs} inputs and {outputs} outputs are not"
            )

    def forward(
        self, input: Float[Tensor, "*batch inputs height width"]
    ) -> Float[Tensor, "*batch outputs out_height out_width"]:
        """Convolves the active input channels into the active output channels."""
        inputs, outputs = self.active
        self._expect(input, -3, inputs)
        per_group = self.in_channels // self.groups
        weight = prefix(self.weight, outputs, inputs if self.groups == 1 else per_group)
        bias = None if self.bias is None else prefix(self.bias, outputs)
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        groups = 1 if self.groups == 1 else inputs // per_group
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, groups)  # type: ignore[arg-type]

    def regions(self) -> dict[str, list[Region]]:
        inputs, outputs = self.active
        regions = {"weight": [prefix_region(outputs, inputs if self.groups == 1 else self.weight.shape[1])]}
        return regions if self.bias is None else {**regions, "bias": [prefix_region(outputs)]}

    def extracted(self) -> nn.Module:
        inputs, outputs = self.active
        groups = 1 if self.groups == 1 else inputs * self.groups // self.in_channels
        plain = nn.Conv2d(
            inputs, outputs, self.kernel_size, self.stride, self.padding, self.dilation, groups,  # type: ignore[arg-type]
            bias=self.bias is not None, padding_mode=self.padding_mode, device="meta",
        )  # fmt: skip
        bias = None if self.bias is None else self.bias[:outputs]
        return cut_out(self, plain, {"weight": self.weight[:outputs, : inputs // groups], "bias": bias})


class SortedEmbedding(SortedLayer, nn.Embedding):
    """`nn.Embedding` that can use the first columns of its table alone."""

    def full_sizes(self) -> tuple[int, ...]:
        return (self.embedding_dim,)

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """The active features of each index.

        Raises:
            ValueError: if the table renormalises its rows or has sparse gradients, which a part of it cannot.
        """
        if self.max_norm is not None or self.sparse:
            raise ValueError(f"{self._label()} cannot be cut with max_norm={self.max_norm}, sparse={self.sparse}")
        table = prefix(self.weight, self.num_embeddings, *self.active)
        return F.embedding(input, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)

    def regions(self) -> dict[str, list[Region]]:
        return {"weight": [prefix_region(self.num_embeddings, *self.active)]}

    def extracted(self) -> nn.Module:
        (features,) = self.active
        plain = nn.Embedding(
            self.num_embeddings, features, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq, device="meta"
        )
        return cut_out(self, plain, {"weight": self.weight[:, :features]})


class SortedLayerNorm(SortedLayer, nn.LayerNorm):
    """`nn.LayerNorm` over the active features alone: their mean and variance, gamma[:d] and beta[:d]."""

    def full_sizes(self) -> tuple[int, ...]:
        return (self.normalized_shape[-1],)

    def _check_active(self, sizes: tuple[int, ...]) -> None:
        if len(self.normalized_shape) != 1:
            raise ValueError(f"{self._label()} normalises axes {self.normalized_shape}; only the last can be cut")

    def forward(self, input: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features"]:
        """Normalises the active features."""
        (features,) = self.active
        self._expect(input, -1, features)
        weight, bias = (None if part is None else prefix(part, features) for part in (self.weight, self.bias))
        return F.layer_norm(input, (features,), weight, bias, self.eps)

    def regions(self) -> dict[str, list[Region]]:
        kept = [prefix_region(*self.active)]
        return {name: kept for name, part in self._parameters.items() if part is not None}

    def extracted(self) -> nn.Module:
        (features,) = self.active
        plain = nn.LayerNorm(features, self.eps, self.elementwise_affine, self.bias is not None, device="meta")
        parts = {name: None if part is None else part[:features] for name, part in self._parameters.items()}
        return cut_out(self, plain, parts)
