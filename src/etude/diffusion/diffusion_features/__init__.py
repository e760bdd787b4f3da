"""Features of a frozen diffusion model, and classifiers on them.

Mukhopadhyay, Gwilliam, Agarwal, Padmanabhan, Swaminathan, Hegde, Zhou & Shrivastava, "Diffusion Models Beat GANs on
Image Classification", arXiv:2307.08702, 2023; superseded by "Do Text-free Diffusion Models Learn Discriminative Visual
Representations?", ECCV 2024, arXiv:2311.17921.

`DiffusionFeatures` reads any block of any diffusion model at any timestep, `DiffusionProbe` classifies by what it
reads, `select_block_timestep` says where to read. The other modules hold the heads, a cache, the loader of
guided-diffusion's weights, and the adversarial baseline.
"""

from etude.diffusion.diffusion_features.bigan import (
    BiGAN,
    Discriminator,
    Encoder,
    Generator,
    fit_autoencoder,
    fit_bigan,
)
from etude.diffusion.diffusion_features.blocks import BlockModel, HookedBlocks, block_model, diffusers_block_names
from etude.diffusion.diffusion_features.cache import cached_features
from etude.diffusion.diffusion_features.checkpoint import (
    adm_256,
    from_guided_diffusion_state,
    load_guided_diffusion_state,
)
from etude.diffusion.diffusion_features.features import DiffusionFeatures, Place, to_signed
from etude.diffusion.diffusion_features.heads import AttentionHead, ConvHead, LinearHead, MLPHead
from etude.diffusion.diffusion_features.plots import plot_places
from etude.diffusion.diffusion_features.probe import (
    DiffusionProbe,
    PlaceTable,
    ProbedHead,
    logistic_probe,
    select_block_timestep,
)
from etude.diffusion.diffusion_features.training import Denoising, fit_diffusion
from etude.nn.similarity import linear_cka
from etude.nn.unet import UNet

__all__ = [
    "AttentionHead",
    "BiGAN",
    "BlockModel",
    "ConvHead",
    "Denoising",
    "DiffusionFeatures",
    "DiffusionProbe",
    "Discriminator",
    "Encoder",
    "Generator",
    "HookedBlocks",
    "LinearHead",
    "MLPHead",
    "Place",
    "PlaceTable",
    "ProbedHead",
    "UNet",
    "adm_256",
    "block_model",
    "cached_features",
    "diffusers_block_names",
    "fit_autoencoder",
    "fit_bigan",
    "fit_diffusion",
    "from_guided_diffusion_state",
    "linear_cka",
    "load_guided_diffusion_state",
    "logistic_probe",
    "plot_places",
    "select_block_timestep",
    "to_signed",
]
