"""Gradient noise, and the networks on which its paper shows what it does.

Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach & Martens, "Adding Gradient Noise Improves Learning for
Very Deep Networks", arXiv:1511.06807, 2015.

The method is `GradientNoise`, two lines in any training loop. The other modules hold the paper's test pieces: a very
deep ReLU network, the end-to-end memory network with its questions, and the convolutional gated recurrent network.
"""

from etude.training.gradient_noise.babi import (
    Question,
    QuestionBatch,
    babi_like,
    build_vocab,
    load_babi,
    vectorize_babi,
)
from etude.training.gradient_noise.conv_gated import (
    ConvGatedRecurrent,
    ConvGatedUnit,
    binary_multiplication_batch,
)
from etude.training.gradient_noise.deep_mlp import DeepMLP, critical_eta
from etude.training.gradient_noise.memory_network import MemN2N, position_encoding, random_times
from etude.training.gradient_noise.noise import GradientNoise, annealed_std

__all__ = [
    "ConvGatedRecurrent",
    "ConvGatedUnit",
    "DeepMLP",
    "GradientNoise",
    "MemN2N",
    "Question",
    "QuestionBatch",
    "annealed_std",
    "babi_like",
    "binary_multiplication_batch",
    "build_vocab",
    "critical_eta",
    "load_babi",
    "position_encoding",
    "random_times",
    "vectorize_babi",
]
