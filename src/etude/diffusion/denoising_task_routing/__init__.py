"""Denoising task routing (DTR): fixed masks of channels by timestep, for diffusion transformers and U-Nets.

Park, Woo, Go, Kim & Kim, ICLR 2024, arXiv:2310.07138.
"""

from etude.diffusion.denoising_task_routing.dit import DiT, RoutedDiTBlock, dit_b_2, dit_l_2, dit_s_2, dit_xl_2
from etude.diffusion.denoising_task_routing.frechet import DigitFeatures, frechet_distance, train_features
from etude.diffusion.denoising_task_routing.plots import plot_images, plot_masks
from etude.diffusion.denoising_task_routing.routing import Routing, TaskRouter, routing_mask
from etude.diffusion.denoising_task_routing.training import denoising_loss, fit_denoiser
from etude.diffusion.denoising_task_routing.unet import ResidualRouter, RoutedResBlock, route_unet_
from etude.diffusion.denoising_task_routing.wrapping import route_

__all__ = [
    "DiT",
    "DigitFeatures",
    "ResidualRouter",
    "RoutedDiTBlock",
    "RoutedResBlock",
    "Routing",
    "TaskRouter",
    "denoising_loss",
    "dit_b_2",
    "dit_l_2",
    "dit_s_2",
    "dit_xl_2",
    "fit_denoiser",
    "frechet_distance",
    "plot_images",
    "plot_masks",
    "route_",
    "route_unet_",
    "routing_mask",
    "train_features",
]
