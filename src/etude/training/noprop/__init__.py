"""NoProp: blocks that are trained apart, each to denoise the label given the image.

Li, Teh & Pascanu, "NoProp: Training Neural Networks without Back-propagation or Forward-propagation",
arXiv:2503.24322, 2025.

    from etude.training.noprop import LabelEmbedding, NoPropBlock, NoPropDT, block_optimizers, train_noprop_epoch

    model = NoPropDT([NoPropBlock(1, 28, 10, embed_dim=10) for _ in range(10)], LabelEmbedding(10))
    optimizers = block_optimizers(model)
    train_noprop_epoch(model, loader, optimizers)
    labels = model.predict(x)

Training runs one block at a time, without the others' forward or backward passes; inference runs the chain, from noise
to a label. `NoPropDT` has T blocks in discrete time, `NoPropCT` and `NoPropFM` one block in continuous time.
`BackpropChain` and `BackpropODE` train the same blocks end to end. `train_blocks` trains the blocks of `NoPropDT` in
separate processes or on Ray. `NoPropClassifier` needs scikit-learn and is imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from etude.training.noprop.backprop import BackpropChain, BackpropODE
from etude.training.noprop.block import ImageClassifier, NoPropBlock
from etude.training.noprop.continuous import NoPropCT, NoPropFM
from etude.training.noprop.discrete import NoPropDT
from etude.training.noprop.embedding import LabelEmbedding, RadialHead, aligned_head, prior_kl, prototypes
from etude.training.noprop.memory import saved_tensor_bytes
from etude.training.noprop.parallel import BlockTraining, train_blocks
from etude.training.noprop.schedule import CosineLabelSchedule, LabelSchedule, LearnedLabelSchedule
from etude.training.noprop.training import BlockOptimizers, Minibatches, block_optimizers, train_noprop_epoch

if TYPE_CHECKING:
    from etude.training.noprop.estimator import NoPropClassifier

__all__ = [
    "BackpropChain",
    "BackpropODE",
    "BlockOptimizers",
    "BlockTraining",
    "CosineLabelSchedule",
    "ImageClassifier",
    "LabelEmbedding",
    "LabelSchedule",
    "LearnedLabelSchedule",
    "Minibatches",
    "NoPropBlock",
    "NoPropCT",
    "NoPropClassifier",
    "NoPropDT",
    "NoPropFM",
    "RadialHead",
    "aligned_head",
    "block_optimizers",
    "prior_kl",
    "prototypes",
    "saved_tensor_bytes",
    "train_blocks",
    "train_noprop_epoch",
]


def __getattr__(name: str) -> Any:
    if name == "NoPropClassifier":
        from etude.training.noprop.estimator import NoPropClassifier

        return NoPropClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
