"""Medium-range weather by convolutions with large kernels, and a cascade of models over the lead.

Zhu, Chen, Yu, Qu, Zhou, Ma, Zhao, Liu, Mi & Wang, "PuYun: Medium-Range Global Weather Forecasting Using Large Kernel
Attention Convolutional Networks", arXiv:2409.02123, 2024.

`geometry`, `attention` and `network` make the model of one step; `rollout` and `training` make it a forecaster of many,
and a cascade; `metrics` scores on the sphere; `spectral` and `simulator` are a small world to learn from; `forecaster`
is all of it for a user's own fields, and `plotting` draws them. `etude.data.fields` reads NetCDF and Zarr.

Training details (optimizer, rates, curriculum, width) are not published with the paper; those here are of its family
(FuXi, GraphCast, VAN) and named as such where they stand.
"""

from etude.science.puyun.attention import ChannelNorm, LargeKernelAttention, LKABlock, lka_kernels
from etude.science.puyun.dataset import Scaling, SphereDataset, step_features
from etude.science.puyun.forecaster import Forecaster, score_forecast
from etude.science.puyun.geometry import SphereConv2d, SphericalPad2d
from etude.science.puyun.metrics import (
    Climatology,
    RunningScores,
    climatology,
    latitude_weights,
    weighted_acc,
    weighted_bias,
    weighted_rmse,
    zonal_spectrum,
)
from etude.science.puyun.network import PUYUN_CHANNELS, PUYUN_LEVELS, PuYun, time_encoding
from etude.science.puyun.plotting import plot_forecast, plot_map, plot_scores, plot_spectra
from etude.science.puyun.rollout import Cascade, rollout
from etude.science.puyun.simulator import BarotropicSphere, Forcing, jet_profile
from etude.science.puyun.spectral import SphericalTransform
from etude.science.puyun.training import (
    StageInputs,
    cache_stage_inputs,
    channel_weights,
    finetune_rollout,
    next_stage,
    predict,
    train_one_step,
    weighted_loss,
)

__all__ = [
    "PUYUN_CHANNELS",
    "PUYUN_LEVELS",
    "BarotropicSphere",
    "Cascade",
    "ChannelNorm",
    "Climatology",
    "Forcing",
    "Forecaster",
    "LKABlock",
    "LargeKernelAttention",
    "PuYun",
    "RunningScores",
    "Scaling",
    "SphereConv2d",
    "SphereDataset",
    "SphericalPad2d",
    "SphericalTransform",
    "StageInputs",
    "cache_stage_inputs",
    "channel_weights",
    "climatology",
    "finetune_rollout",
    "jet_profile",
    "latitude_weights",
    "lka_kernels",
    "next_stage",
    "plot_forecast",
    "plot_map",
    "plot_scores",
    "plot_spectra",
    "predict",
    "rollout",
    "score_forecast",
    "step_features",
    "time_encoding",
    "train_one_step",
    "weighted_acc",
    "weighted_bias",
    "weighted_loss",
    "weighted_rmse",
    "zonal_spectrum",
]
