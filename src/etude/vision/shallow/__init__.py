"""Residual stacks in sequence and side by side, with one set of parameters.

Bermeitinger, Hrycej & Handschuh, "Make Deep Networks Shallow Again", KDIR 2023, arXiv:2309.08414.

A stack of residual layers x + f_k(x) expands into the identity, the single f_k, the products of two, and so on; cut
off after the first order it is one broad layer, y = x + sum_k f_k(x), of the same parameters.

    deep = ShallowNet(in_chans=3, num_classes=10, num_layers=8)
    shallow = ShallowNet(in_chans=3, num_classes=10, num_layers=8, layout="parallel")
    shallow.load_state_dict(deep.state_dict())
    ShallowClassifier(layout="parallel").fit(images, labels)             # needs the extra `run`
    parallelize(resnet, lambda block: isinstance(block, BasicBlock))     # blocks of your own network
"""

import importlib
from typing import Any

from etude.vision.shallow.branches import ACTIVATIONS, BottleneckBranch, ConvBranch, initialize_branch, is_linear
from etude.vision.shallow.convert import PartlyParallel, parallelize
from etude.vision.shallow.expansion import second_order_residual, taylor_expand
from etude.vision.shallow.network import ShallowNet, count_operators, gradient_ratio, overdetermination_ratio
from etude.vision.shallow.stack import LAYOUTS, ResidualStack
from etude.vision.shallow.study import (
    LOSSES,
    core_grid,
    depth_gap,
    grid,
    paired_summary,
    read_runs,
    run_grid,
    squared_error,
    train_once,
)

_LATE = {
    "ShallowClassifier": "etude.vision.shallow.estimator",
    "plot_depth_gap": "etude.vision.shallow.plots",
    "plot_losses": "etude.vision.shallow.plots",
}
"""What needs more than the parts do: loaded when asked for."""

__all__ = [
    "ACTIVATIONS",
    "LAYOUTS",
    "LOSSES",
    "BottleneckBranch",
    "ConvBranch",
    "PartlyParallel",
    "ResidualStack",
    "ShallowClassifier",
    "ShallowNet",
    "core_grid",
    "count_operators",
    "depth_gap",
    "gradient_ratio",
    "grid",
    "initialize_branch",
    "is_linear",
    "overdetermination_ratio",
    "paired_summary",
    "parallelize",
    "plot_depth_gap",
    "plot_losses",
    "read_runs",
    "run_grid",
    "second_order_residual",
    "squared_error",
    "taylor_expand",
    "train_once",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
