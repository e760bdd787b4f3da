"""Guidance: a frozen network of another architecture lends a target its inductive bias, layer by layer.

Subramaniam, Mayo, Conwell, Poggio, Katz, Cheung & Barbu, "Training the Untrainable: Introducing Inductive Bias via
Representational Alignment", NeurIPS 2025, arXiv:2410.20035.

The method is `Guidance`, a term to add to any loss, of any two networks; `align_initialization` uses it once, before
training. `FeatureTap` reads layers, `cka_matrix` compares networks, `distillation_loss` is the control. The other
modules hold the paper's targets, guides and tasks. The similarities are in `etude.nn.similarity`.
"""

from etude.training.guidance.analysis import LayerSimilarity, cka_matrix
from etude.training.guidance.distillation import distillation_loss
from etude.training.guidance.features import DEFAULT_LAYERS, FeatureTap
from etude.training.guidance.guide import METRICS, Guidance
from etude.training.guidance.initialization import align_initialization, noise_images, noise_tokens
from etude.training.guidance.mapping import layer_map
from etude.training.guidance.networks import DeepFCN, DeepMLP, PlainResNet, WideFCN
from etude.training.guidance.sequences import (
    IGNORED,
    PARITY_PAD,
    ParityRNN,
    ParityTransformer,
    TransformerLM,
    VanillaRNNLM,
    copy_batch,
    parity_batch,
)

__all__ = [
    "DEFAULT_LAYERS",
    "IGNORED",
    "METRICS",
    "PARITY_PAD",
    "DeepFCN",
    "DeepMLP",
    "FeatureTap",
    "Guidance",
    "LayerSimilarity",
    "ParityRNN",
    "ParityTransformer",
    "PlainResNet",
    "TransformerLM",
    "VanillaRNNLM",
    "WideFCN",
    "align_initialization",
    "cka_matrix",
    "copy_batch",
    "distillation_loss",
    "layer_map",
    "noise_images",
    "noise_tokens",
    "parity_batch",
]
