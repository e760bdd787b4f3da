"""Filters of convolutional networks: how they start, what shape they have, how many there are, how they are learned.

Hirani & Abdulla, "On filter design in deep convolutional neural network", arXiv:2410.21644, 2024. The survey has
no code and no experiments; every option that it collects stands here behind one interface.

    init_filters(conv.weight, "he")                               # starts: He, orthogonal, delta-orthogonal, LSUV, ...
    bank = filter_bank("gabor", size=7, num=32)                   # given: Gabor, DCT, wavelet, textures, ...
    bank = learn_filters(images, "kmeans", size=7, num=32)        # learned without labels: k-means, PCA, SOM, ...
    cnn.conv1 = bank.to_conv(in_chans=3, trainable=True)          # into any CNN
    FixedBankClassifier(bank).fit(images, labels)                 # or frozen, under a linear read-out
    compare_filters(images, labels).summary()                     # which of them serves these images

Diagnostics: `variance_profile`, `effective_receptive_field`, `filter_usage`, `filter_redundancy`, `separability`,
`frequency_response`, `fit_gabor`.
"""

import importlib
from typing import Any

from etude.vision.filters.analysis import (
    GaborFit,
    Redundancy,
    filter_redundancy,
    fit_gabor,
    frequency_response,
    gabor_share,
    separability,
)
from etude.vision.filters.bank import FilterBank
from etude.vision.filters.calibration import VarianceProfile, data_dependent, lsuv, variance_profile
from etude.vision.filters.fixed import filter_bank, max_response
from etude.vision.filters.initialisers import (
    SCHEMES,
    delta_orthogonal_,
    init_filters,
    init_network,
    scheme_variance,
)
from etude.vision.filters.learning import METHODS, learn_filters, learn_from_patches
from etude.vision.filters.network import SmallCNN
from etude.vision.filters.patches import Whitening, contrast_normalised, sample_patches
from etude.vision.filters.plots import (
    plot_comparison,
    plot_filter_usage,
    plot_filters,
    plot_frequency_response,
    plot_receptive_field,
    plot_variance_profiles,
)
from etude.vision.filters.receptive_field import ReceptiveField, effective_receptive_field
from etude.vision.filters.shapes import (
    conv_block,
    conv_parameters,
    equivalent_stack,
    factorise,
    filter_count_rules,
    separable_ratio,
)
from etude.vision.filters.som import SelfOrganizingMap
from etude.vision.filters.stacking import FilterLearner, LayerSpec
from etude.vision.filters.usage import FilterUsage, filter_usage
from etude.vision.filters.wavelets import packet_filters, wavelet_transform

_NEEDING_SKLEARN = {
    "FilterComparison": "comparison",
    "FixedBankClassifier": "estimator",
    "PCANetClassifier": "pcanet",
    "compare_filters": "comparison",
}

__all__ = [
    "METHODS",
    "SCHEMES",
    "FilterBank",
    "FilterComparison",
    "FilterLearner",
    "FilterUsage",
    "FixedBankClassifier",
    "GaborFit",
    "LayerSpec",
    "PCANetClassifier",
    "ReceptiveField",
    "Redundancy",
    "SelfOrganizingMap",
    "SmallCNN",
    "VarianceProfile",
    "Whitening",
    "compare_filters",
    "contrast_normalised",
    "conv_block",
    "conv_parameters",
    "data_dependent",
    "delta_orthogonal_",
    "effective_receptive_field",
    "equivalent_stack",
    "factorise",
    "filter_bank",
    "filter_count_rules",
    "filter_redundancy",
    "filter_usage",
    "fit_gabor",
    "frequency_response",
    "gabor_share",
    "init_filters",
    "init_network",
    "learn_filters",
    "learn_from_patches",
    "lsuv",
    "max_response",
    "packet_filters",
    "plot_comparison",
    "plot_filter_usage",
    "plot_filters",
    "plot_frequency_response",
    "plot_receptive_field",
    "plot_variance_profiles",
    "sample_patches",
    "scheme_variance",
    "separability",
    "separable_ratio",
    "variance_profile",
    "wavelet_transform",
]


def __getattr__(name: str) -> Any:
    """The estimators, which need scikit-learn, when they are asked for."""
    if name in _NEEDING_SKLEARN:
        return getattr(importlib.import_module(f"{__name__}.{_NEEDING_SKLEARN[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
