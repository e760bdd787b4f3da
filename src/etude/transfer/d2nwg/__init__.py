"""Weights of networks, drawn by a diffusion model that is given a data set (D2NWG).

Soro, Andreis, Lee, Jeong, Chong, Hutter & Hwang, "Diffusion-based Neural Network Weights Generation", ICLR 2025,
arXiv:2402.18153.

    from etude.transfer.d2nwg import HeadGenerator

    generator = HeadGenerator(ways=2).fit(inputs, labels)            # or column=..., tasks parted by a column
    classifier = generator.adapt(few_inputs, few_labels)            # classes never seen; no gradient step
    classifier.score(more_inputs, more_labels)

Inputs and labels may be a folder of images or an `.npz` (`data = etude.data.user.load(path)`, then
`data.train.inputs` and `data.train.targets`), or the numbers of a table, with another of its columns as `column`.

The parts stand alone: networks as vectors (`WeightCodec`) without their symmetries (`remove_gauge`, `sort_units`,
`match_units`), tasks by class or by column (`TaskSampler`), a zoo trained in one optimisation (`train_networks`,
`ModelZoo`), the autoencoder (`WeightVAE`), the set-transformer encoder of data sets (`DatasetEncoder`), their
alignment (`soft_contrastive_loss`), the diffusion, and `D2NWG`, which puts them together for any architecture.
"""

from etude.transfer.d2nwg.alignment import soft_contrastive_loss
from etude.transfer.d2nwg.codec import WeightCodec
from etude.transfer.d2nwg.diffusion import MLPDenoiser, UNetDenoiser, ddim, ddpm, noise_loss, sample
from etude.transfer.d2nwg.encoders import DatasetEncoder, MLPDatasetEncoder
from etude.transfer.d2nwg.estimator import GeneratedClassifier, HeadGenerator, outputs_of
from etude.transfer.d2nwg.features import PrincipalFeatures
from etude.transfer.d2nwg.generator import D2NWG
from etude.transfer.d2nwg.plots import plot_starts, plot_weights
from etude.transfer.d2nwg.selection import (
    best_on_support,
    nearest_by_features,
    nearest_by_support,
    recalibrate_bn,
    support_losses,
)
from etude.transfer.d2nwg.sets import ISAB, MAB, PMA, SAB, SetTransformer
from etude.transfer.d2nwg.symmetry import match_units, remove_gauge, sort_units
from etude.transfer.d2nwg.tasks import TaskSampler, as_support
from etude.transfer.d2nwg.vae import WeightVAE, kl_to_standard
from etude.transfer.d2nwg.zoo import (
    ModelZoo,
    batched_accuracy,
    batched_logits,
    batched_loss,
    initial_weights,
    train_networks,
)

__all__ = [
    "D2NWG",
    "ISAB",
    "MAB",
    "PMA",
    "SAB",
    "DatasetEncoder",
    "GeneratedClassifier",
    "HeadGenerator",
    "MLPDatasetEncoder",
    "MLPDenoiser",
    "ModelZoo",
    "PrincipalFeatures",
    "SetTransformer",
    "TaskSampler",
    "UNetDenoiser",
    "WeightCodec",
    "WeightVAE",
    "as_support",
    "batched_accuracy",
    "batched_logits",
    "batched_loss",
    "best_on_support",
    "ddim",
    "ddpm",
    "initial_weights",
    "kl_to_standard",
    "match_units",
    "nearest_by_features",
    "nearest_by_support",
    "noise_loss",
    "outputs_of",
    "plot_starts",
    "plot_weights",
    "recalibrate_bn",
    "remove_gauge",
    "sample",
    "soft_contrastive_loss",
    "sort_units",
    "support_losses",
    "train_networks",
]
