"""Infinitely wide and deep networks as classifiers: what they become, and activations that make them consistent.

Radhakrishnan, Belkin & Uhler, "Wide and Deep Neural Networks Achieve Optimality for Classification", PNAS 120(14),
2023, arXiv:2204.14126.

    from etude.theory.wide_deep_optimality import DeepNTKClassifier, OrthantSphere, classify_activation

    classify_activation(torch.nn.GELU())                       # where infinite depth leads: rule, A, A', B', alpha
    make_pipeline(OrthantSphere(), DeepNTKClassifier())        # the consistent network, infinitely wide and deep
    deep_ntk(xi, dual_activation(torch.relu), depth=3)         # the kernel of a network as deep as yours
    width_error(optimal_activation(2), width=512, depth=4, x=x)    # and how far your width is from it

An activation leads, with depth, to one of three classical rules: the nearest neighbour, the majority, or a vote with
the weights |x - x_i|^-alpha. With alpha the dimension of the data the last is Bayes-optimal in the limit of many data;
`optimal_activation` has it. The classifiers need scikit-learn and are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etude.theory.wide_deep_optimality.activations import (
    HermiteActivation,
    Standardized,
    activation_for_alpha,
    optimal_activation,
)
from etude.theory.wide_deep_optimality.geometry import squared_distances, to_orthant_sphere
from etude.theory.wide_deep_optimality.kernel import (
    RadialKernel,
    deep_ntk,
    kernel_matrix,
    koenigs,
    log_deep_ntk,
    log_diagonal,
    log_koenigs,
)
from etude.theory.wide_deep_optimality.networks import NTKNetwork, descent_prediction, empirical_ntk, width_error
from etude.theory.wide_deep_optimality.rare_cap import RareCap
from etude.theory.wide_deep_optimality.taxonomy import (
    Taxonomy,
    classify_activation,
    plot_taxonomy,
    singular_order,
    taxonomy_map,
)

if TYPE_CHECKING:
    from etude.theory.wide_deep_optimality.depth import DepthProfile, depth_profile, plot_depth_profile
    from etude.theory.wide_deep_optimality.estimators import DeepNTKClassifier, OrthantSphere, SingularKernelClassifier

_NEED_SKLEARN = {
    "DepthProfile": "depth",
    "depth_profile": "depth",
    "plot_depth_profile": "depth",
    "DeepNTKClassifier": "estimators",
    "OrthantSphere": "estimators",
    "SingularKernelClassifier": "estimators",
}

__all__ = [
    "DeepNTKClassifier",
    "DepthProfile",
    "HermiteActivation",
    "NTKNetwork",
    "OrthantSphere",
    "RadialKernel",
    "RareCap",
    "SingularKernelClassifier",
    "Standardized",
    "Taxonomy",
    "activation_for_alpha",
    "classify_activation",
    "deep_ntk",
    "depth_profile",
    "descent_prediction",
    "empirical_ntk",
    "kernel_matrix",
    "koenigs",
    "log_deep_ntk",
    "log_diagonal",
    "log_koenigs",
    "optimal_activation",
    "plot_depth_profile",
    "plot_taxonomy",
    "singular_order",
    "squared_distances",
    "taxonomy_map",
    "to_orthant_sphere",
    "width_error",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_SKLEARN:
        return getattr(importlib.import_module(f"{__name__}.{_NEED_SKLEARN[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
