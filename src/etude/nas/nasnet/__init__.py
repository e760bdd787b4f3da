"""NASNet: cells that a controller finds on small images, stacked into networks for any.

Zoph, Vasudevan, Shlens & Le, "Learning Transferable Architectures for Scalable Image Recognition", CVPR 2018,
arXiv:1707.07012; official code of the networks, not of the search: tensorflow/models, research/slim/nets/nasnet.

The published cells:

    model = nasnet_a_mobile(num_classes=1000)
    model = NASNet(num_classes=10, cells_per_stage=2, filters=16, aux_head=True, image_size=32, drop_path_keep=0.6)
    train_network(model, data.train, epochs=600)

Cells of one's own:

    sampler = PPOSearch(SearchSpace(), seed=0)
    result = search(sampler, CachedEvaluator(TrainEvaluator(data)), budget=1_000, save="search.pt", workers=8)
    model = NASNet(result.top(1)[0][0], num_classes=10)

`Sampler.ask` and `tell` fit any loop, pool or cluster. `NASNetClassifier` and `CellSearch` put all together for one's
own images (they need scikit-learn); `plot_genotype` draws cells (matplotlib).
"""

from typing import TYPE_CHECKING, Any

from etude.nas.nasnet.cell import NASNetCell
from etude.nas.nasnet.controller import NASNetController
from etude.nas.nasnet.drawing import plot_cell, plot_genotype, plot_search
from etude.nas.nasnet.evaluators import CachedEvaluator, RandomFeatureEvaluator, TrainEvaluator
from etude.nas.nasnet.genotype import NASNET_A, OPS, Block, Genotype, SearchSpace
from etude.nas.nasnet.network import (
    DropPathSchedule,
    NASNet,
    auxiliary_loss,
    nasnet_a_cifar,
    nasnet_a_large,
    nasnet_a_mobile,
)
from etude.nas.nasnet.operations import FactorizedReduction
from etude.nas.nasnet.samplers import PPOSearch, RandomSearch, Sampler
from etude.nas.nasnet.searching import SearchResult, reevaluate, search
from etude.nas.nasnet.training import train_network

if TYPE_CHECKING:
    from etude.nas.nasnet.estimator import CellSearch, NASNetClassifier

__all__ = [
    "NASNET_A",
    "OPS",
    "Block",
    "CachedEvaluator",
    "CellSearch",
    "DropPathSchedule",
    "FactorizedReduction",
    "Genotype",
    "NASNet",
    "NASNetCell",
    "NASNetClassifier",
    "NASNetController",
    "PPOSearch",
    "RandomFeatureEvaluator",
    "RandomSearch",
    "Sampler",
    "SearchResult",
    "SearchSpace",
    "TrainEvaluator",
    "auxiliary_loss",
    "nasnet_a_cifar",
    "nasnet_a_large",
    "nasnet_a_mobile",
    "plot_cell",
    "plot_genotype",
    "plot_search",
    "reevaluate",
    "search",
    "train_network",
]


def __getattr__(name: str) -> Any:
    if name in ("CellSearch", "NASNetClassifier"):
        from etude.nas.nasnet import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
