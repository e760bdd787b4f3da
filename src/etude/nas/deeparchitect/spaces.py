"""Spaces: the three of the paper's experiments, their training hyperparameters, and fully connected networks."""

from collections.abc import Sequence

import numpy as np

from etude.nas.deeparchitect.basic import UserHyperparams
from etude.nas.deeparchitect.composite import Concat, MaybeSwap, Optional, Or, Repeat, RepeatTied, Residual
from etude.nas.deeparchitect.language import SearchModule
from etude.nas.deeparchitect.layers import (
    Affine,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Tanh,
)

__all__ = ["deepconv", "hyperparameters", "mlp", "resnet", "tfref"]

FILTERS = (48, 64, 80, 96, 112, 128)


def _narrowed(filters: Sequence[int], width: int) -> list[int]:
    """The filters over `width`, at least 1, each once."""
    if width < 1:
        raise ValueError(f"width divides numbers of filters and must be at least 1, got {width}")
    return list(dict.fromkeys(max(number // width, 1) for number in filters))


def tfref(num_classes: int, width: int = 1) -> SearchModule:
    """Two convolutions with pooling and two affine layers, after TensorFlow's tutorial: 2,025 networks.

    Args:
        num_classes: outputs. width: divides the numbers of filters.
    """
    filters = _narrowed((32, 48, 64, 96, 128), width)
    convolution = [Conv2d(filters, [1, 3, 5]), ReLU(), MaxPool2d(2, 2)]
    head = [Affine([256, 512, 1024]), ReLU(), Dropout([0.25, 0.5, 0.75]), Affine(num_classes)]
    return Concat([*convolution, *convolution, *head])


def deepconv(num_classes: int, width: int = 1) -> SearchModule:
    """Up to 66 convolutions in two stages: 60,466,176 networks, the space of the paper's comparison.

    Args:
        num_classes: outputs. width: divides the numbers of filters.
    """
    narrow, wide = _narrowed(FILTERS, width), _narrowed([2 * number for number in FILTERS], width)

    def stage(filters: list[int]) -> SearchModule:
        block = [Conv2d(filters, [3, 5]), MaybeSwap(ReLU(), BatchNorm()), Optional(Dropout([0.5, 0.9]))]
        return RepeatTied(Concat(block), [1, 2, 4, 8, 16, 32])

    reduction = Conv2d(narrow, [3, 5, 7], 2)
    return Concat([reduction, stage(narrow), reduction, stage(wide), Affine(num_classes)])


def resnet(num_classes: int, width: int = 1) -> SearchModule:
    """Residual blocks, with or without a second, wider stage.

    The last convolution of a block has strides 1, 3 or 5, as in the authors' code; the padding of the sum makes up
    for it.

    Args:
        num_classes: outputs. width: divides the numbers of filters.
    """

    def block(filters: list[int]) -> SearchModule:
        unit = Concat([Conv2d(filters, [1, 3, 5]), MaybeSwap(BatchNorm(), ReLU())])
        body = Concat([RepeatTied(unit, [1, 2, 4]), Conv2d(filters, [1, 3, 5], [1, 3, 5])])
        return Concat([Residual(body), Optional(Dropout([0.5, 0.9]))])

    narrow, wide = _narrowed(FILTERS, width), _narrowed([2 * number for number in FILTERS], width)
    second = Concat([AvgPool2d([3, 5], 2), Repeat(block(wide), [1, 2, 4, 8])])
    return Concat([Repeat(block(narrow), [1, 2, 4, 8]), Optional(second), Affine(num_classes)])


def hyperparameters(name: str) -> UserHyperparams:
    """The paper's training hyperparameters, for `Training`: "light" 128, "heavy" 4,096 settings.

    Rates fall from 1e-2 to 1e-7; `rate_mult` multiplies the rate after `rate_patience` epochs without a new best
    validation accuracy.
    """
    if name == "light":
        return UserHyperparams(
            optimizer=["adam", "sgd_mom"], lr=np.logspace(-2, -7, 8), rate_mult=[0.1, 0.5], rate_patience=[4, 8, 16, 32]
        )
    if name == "heavy":
        return UserHyperparams(
            optimizer=["adam", "sgd_mom"],
            lr=np.logspace(-2, -7, 32),
            rate_mult=np.logspace(-2, np.log10(0.9), 8),
            rate_patience=range(4, 33, 4),
        )
    raise ValueError(f"there are the hyperparameters 'light' and 'heavy', got {name!r}")


def mlp(num_outputs: int) -> SearchModule:
    """Fully connected networks of 2 to 8 hidden layers with optimiser and learning rate.

    Ours, for tables and small images: depth, width, nonlinearity, normalisation and dropout of two stages; learning
    rates from 1 to 1e-5.
    """

    def stage() -> SearchModule:
        nonlinearity = Or([ReLU(), Tanh(), Sigmoid()])
        layer = [
            Affine([8, 16, 32, 64, 128], init="torch"),
            MaybeSwap(nonlinearity, BatchNorm()),
            Optional(Dropout([0.25, 0.5, 0.9])),
        ]
        return RepeatTied(Concat(layer), [1, 2, 4])

    training = UserHyperparams(optimizer=["adam", "sgd"], lr=np.logspace(0, -5, 32))
    return Concat([training, stage(), stage(), Affine(num_outputs, init="torch")])
