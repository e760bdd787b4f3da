"""DeepArchitect: a language for families of networks, and searches through them.

Negrinho & Gordon, "DeepArchitect: Automatically Designing and Training Deep Architectures", arXiv:1704.08792, 2017.

    space = Concat([
        UserHyperparams(lr=[1e-1, 1e-2, 1e-3]),
        Repeat(Concat([Affine([16, 32, 64]), ReLU(), Optional(Dropout([0.5, 0.9]))]), [1, 2, 4]),
        Affine(10),
    ])
    print(space)                                                        # a tree, with exact counts
    searcher = MCTSSearcher(Bisection(space), in_shape=(64,), seed=0)
    result = search(searcher, lambda candidate: my_score(candidate.compile(), **candidate.hyperparameters), 40)

`Layer` takes any `nn.Module`, `BasicModule` is what a kind of layer of one's own derives from, `Dependent` a domain
that follows from earlier choices. `search` saves and resumes, and evaluates several networks at once. `Training` is
the paper's evaluation; `ArchitectureSearch` puts all together for a table or images.

`ArchitectureSearch` and `SMBOSearcher` need scikit-learn, `plots` matplotlib, `RayExecutor` Ray.
"""

from typing import TYPE_CHECKING, Any

from etude.nas.deeparchitect.basic import BasicModule, Empty, Layer, UserHyperparams
from etude.nas.deeparchitect.composite import Bisection, Concat, MaybeSwap, Optional, Or, Repeat, RepeatTied, Residual
from etude.nas.deeparchitect.language import (
    Dependent,
    InvalidModel,
    SearchModule,
    enumerate_space,
    model_digest,
    replay,
)
from etude.nas.deeparchitect.layers import (
    Affine,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Squeeze,
    Tanh,
)
from etude.nas.deeparchitect.ray_executor import RayExecutor
from etude.nas.deeparchitect.running import SearchResult, WorkerLost, load_search, save_search, search
from etude.nas.deeparchitect.searchers import Candidate, MCTSSearcher, RandomSearcher, Searcher, Told
from etude.nas.deeparchitect.spaces import deepconv, hyperparameters, mlp, resnet, tfref
from etude.nas.deeparchitect.surrogate import SMBOSearcher, Surrogate
from etude.nas.deeparchitect.training import Trained, Training, input_shape

if TYPE_CHECKING:
    from etude.nas.deeparchitect.estimator import ArchitectureSearch

__all__ = [
    "Affine",
    "ArchitectureSearch",
    "AvgPool2d",
    "BasicModule",
    "BatchNorm",
    "Bisection",
    "Candidate",
    "Concat",
    "Conv2d",
    "Dependent",
    "Dropout",
    "Empty",
    "InvalidModel",
    "Layer",
    "MCTSSearcher",
    "MaxPool2d",
    "MaybeSwap",
    "Optional",
    "Or",
    "RandomSearcher",
    "RayExecutor",
    "ReLU",
    "Repeat",
    "RepeatTied",
    "Residual",
    "SMBOSearcher",
    "SearchModule",
    "SearchResult",
    "Searcher",
    "Sigmoid",
    "Squeeze",
    "Surrogate",
    "Tanh",
    "Told",
    "Trained",
    "Training",
    "UserHyperparams",
    "WorkerLost",
    "deepconv",
    "enumerate_space",
    "hyperparameters",
    "input_shape",
    "load_search",
    "mlp",
    "model_digest",
    "replay",
    "resnet",
    "save_search",
    "search",
    "tfref",
]


def __getattr__(name: str) -> Any:
    if name == "ArchitectureSearch":
        from etude.nas.deeparchitect.estimator import ArchitectureSearch

        return ArchitectureSearch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
