"""The layers of the paper as basic modules: shapes are (C, H, W) or (D,).

Windows follow TensorFlow: with "SAME" the output has ceil(h / s) rows, the input is padded by what is lacking, the odd
row at the end; max pooling pads with -inf, average pooling divides by the number of cells that are there; with
"VALID" it has ceil((h - k + 1) / s) rows. Initialisers: "he", normal with variance 2 / fan-in; "deeparchitect", as the
authors' code has it, with variance 2 / (product of all dimensions of the weight), smaller by the number of outputs;
"torch", what `torch.nn` does.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from etude.nas.deeparchitect.basic import BasicModule
from etude.nas.deeparchitect.language import InvalidModel, Shape, domain

__all__ = ["Affine", "AvgPool2d", "BatchNorm", "Conv2d", "Dropout", "MaxPool2d", "ReLU", "Sigmoid", "Squeeze", "Tanh"]

INITIALISERS = ("he", "deeparchitect", "torch")
PADDINGS = ("SAME", "VALID")


def _among(name: str, values: Any, allowed: tuple[str, ...], owner: str) -> Any:
    listed = domain(name, values, owner)
    if isinstance(listed, list) and not set(listed) <= set(allowed):
        raise ValueError(f"{owner}: {name} must be among {', '.join(allowed)}, got {listed}")
    return values


def _positive(name: str, values: Any, owner: str) -> Any:
    listed = domain(name, values, owner)
    if isinstance(listed, list) and not all(type(value) is int and value >= 1 for value in listed):
        raise ValueError(f"{owner}: {name} must be integers of at least 1, got {listed}")
    return values


def _initialised(layer: nn.Linear | nn.Conv2d, init: str) -> nn.Module:
    if init == "torch":
        return layer
    weight = layer.weight
    fan = weight[0].numel() if init == "he" else weight.numel()
    nn.init.normal_(weight, std=math.sqrt(2 / fan))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Affine(BasicModule):
    """A fully connected layer; an image is flattened first.

    Args:
        units: numbers of outputs.
        init: initialisers, "he", "deeparchitect" or "torch".
    """

    def __init__(self, units: Any, init: Any = "he"):
        super().__init__(units=_positive("units", units, "Affine"), init=_among("init", init, INITIALISERS, "Affine"))

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return (values["units"],)

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        layer = _initialised(nn.Linear(math.prod(in_shape), values["units"]), values["init"])
        return layer if len(in_shape) == 1 else nn.Sequential(nn.Flatten(), layer)


class _Windowed(BasicModule):
    """What slides a square window over an image."""

    def _window(self, in_shape: Shape, values: dict[str, Any]) -> tuple[list[int], tuple[int, int, int, int]]:
        """Rows and columns of the output, and the padding (left, right, top, bottom) of the input.

        Raises:
            InvalidModel: if the input is no image, or smaller than the window.
        """
        if len(in_shape) != 3:
            raise InvalidModel(f"needs an input of shape (C, H, W), got {in_shape}")
        kernel, stride = values["kernel"], values["stride"]
        if values["padding"] == "VALID":
            if kernel > min(in_shape[1:]):
                raise InvalidModel(f"a window of {kernel} does not fit on a map of {in_shape[1]} x {in_shape[2]}")
            return [math.ceil((size - kernel + 1) / stride) for size in in_shape[1:]], (0, 0, 0, 0)
        sizes = [math.ceil(size / stride) for size in in_shape[1:]]
        lacking = [max((out - 1) * stride + kernel - size, 0) for out, size in zip(sizes, in_shape[1:])]
        (top, bottom), (left, right) = ((amount // 2, amount - amount // 2) for amount in lacking)
        return sizes, (left, right, top, bottom)


class Conv2d(_Windowed):
    """A two-dimensional convolution with a bias.

    Args:
        filters: numbers of output channels.
        kernels, strides: sides of the window, and its steps.
        paddings: "SAME" or "VALID".
        init: initialisers.
    """

    def __init__(self, filters: Any, kernels: Any, strides: Any = 1, paddings: Any = "SAME", init: Any = "he"):
        super().__init__(
            filters=_positive("filters", filters, "Conv2d"),
            kernel=_positive("kernels", kernels, "Conv2d"),
            stride=_positive("strides", strides, "Conv2d"),
            padding=_among("paddings", paddings, PADDINGS, "Conv2d"),
            init=_among("init", init, INITIALISERS, "Conv2d"),
        )

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return (values["filters"], *self._window(in_shape, values)[0])

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        left, right, top, bottom = self._window(in_shape, values)[1]
        even = left == right and top == bottom
        layer = _initialised(
            nn.Conv2d(
                in_shape[0], values["filters"], values["kernel"], values["stride"], (top, left) if even else 0
            ),
            values["init"],
        )  # fmt: skip
        return layer if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), layer)


class _Pool2d(_Windowed):
    """A pooling layer.

    Args:
        kernels, strides: sides of the window, and its steps.
        paddings: "SAME" or "VALID".
    """

    def __init__(self, kernels: Any, strides: Any, paddings: Any = "SAME"):
        kind = type(self).__name__
        super().__init__(
            kernel=_positive("kernels", kernels, kind),
            stride=_positive("strides", strides, kind),
            padding=_among("paddings", paddings, PADDINGS, kind),
        )

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return (in_shape[0], *self._window(in_shape, values)[0])


class MaxPool2d(_Pool2d):
    __doc__ = f"Max pooling. {_Pool2d.__doc__}"

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        padding = self._window(in_shape, values)[1]
        pool = nn.MaxPool2d(values["kernel"], values["stride"])
        return nn.Sequential(nn.ConstantPad2d(padding, -math.inf), pool) if any(padding) else pool


class AvgPool2d(_Pool2d):
    __doc__ = f"Average pooling. {_Pool2d.__doc__}"

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        padding = self._window(in_shape, values)[1]
        pool = nn.AvgPool2d(values["kernel"], values["stride"])
        if not any(padding):
            return pool
        pad = nn.ZeroPad2d(padding)
        return nn.Sequential(pad, pool, _Rescale(1 / pool(pad(torch.ones(1, 1, *in_shape[1:])))))


class _Rescale(nn.Module):
    """Multiplies by fixed factors: turns a mean over window and padding into the mean over the cells that are there."""

    factors: Tensor

    def __init__(self, factors: Tensor):
        super().__init__()
        self.register_buffer("factors", factors)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors


class BatchNorm(BasicModule):
    """Batch normalisation over the channels, with momentum 0.1 and eps 1e-3.

    Args:
        affine: a scale and a shift are learned; if False the shift alone, as in the authors' code.
    """

    def __init__(self, affine: bool = True):
        super().__init__()
        self.affine = affine

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return in_shape

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        kind = nn.BatchNorm1d if len(in_shape) < 3 else nn.BatchNorm2d
        layer = kind(in_shape[0], eps=1e-3, momentum=0.1)
        layer.weight.requires_grad_(self.affine)
        return layer

    def _entries(self) -> tuple[Any, ...]:
        return (("BatchNorm",) if self.affine else ("BatchNorm", ("affine", False)),)

    def repr_program(self) -> tuple[Any, ...]:
        return ("BatchNorm",) if self.affine else ("BatchNorm", ("affine", (False,)))


class Dropout(BasicModule):
    """Dropout.

    Args:
        keep: probabilities to KEEP a unit, in (0, 1]; torch counts those that are dropped.
    """

    def __init__(self, keep: Any):
        listed = domain("keep", keep, "Dropout")
        if isinstance(listed, list) and not all(0 < value <= 1 for value in listed):
            raise ValueError(f"Dropout: keep must hold probabilities in (0, 1], got {listed}")
        super().__init__(keep=keep)

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return in_shape

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        return nn.Dropout(1 - values["keep"])


class _Elementwise(BasicModule):
    def __init__(self) -> None:
        super().__init__()

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return in_shape


class ReLU(_Elementwise):
    """max(x, 0)."""

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        return nn.ReLU()


class Tanh(_Elementwise):
    """The hyperbolic tangent."""

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        return nn.Tanh()


class Sigmoid(_Elementwise):
    """The logistic function."""

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        return nn.Sigmoid()


class Squeeze(_Elementwise):
    """Removes dimensions of one: (C, 1, 1) becomes (C,)."""

    def shape_of(self, in_shape: Shape, **values: Any) -> Shape:
        return tuple(size for size in in_shape if size > 1) or (1,)

    def build(self, in_shape: Shape, **values: Any) -> nn.Module:
        shape = self.shape_of(in_shape)
        return nn.Flatten() if len(shape) == 1 else nn.Sequential(nn.Flatten(), nn.Unflatten(1, shape))
