"""One attention layer with frozen random query-key matrices: what it can learn, and from how many samples.

Fu, Guo, Bai & Mei, "What can a Single Attention Layer Learn? A Study Through the Random Features Lens", NeurIPS 2023,
arXiv:2307.11353. Not the linear-time approximation of softmax attention of the same name (Peng et al., ICLR 2021).

    from etude.theory.random_feature_attention import RFARegressor, RandomFeatureAttention, bias_gain, from_arrays

    RFARegressor(num_heads=400).fit(X, y).predict(X_new)       # X: (n, 1 + num_keys, dim), token 0 the query
    RandomFeatureAttention(dim=16, num_heads=1000)              # the same as a module, for descent or `fit_ridge`
    RFAKernel(bias=1.0).gram(tokens)                            # infinitely many heads, in closed form
    bias_gain(from_arrays(X, y), 8, 400, [64, 128, 256])        # do biased query-key matrices help on your data?

Where a target is a mean over keys, attention needs fewer samples than a network on the concatenated tokens, and the
more keys the fewer (`sample_complexity`). The estimators need scikit-learn and are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etude.theory.random_feature_attention.curves import (
    BiasGain,
    ErrorCurve,
    Reached,
    SampleComplexity,
    Split,
    bias_gain,
    error_curve,
    plot_bias_gain,
    plot_sample_complexity,
    sample_complexity,
    samples_to_reach,
)
from etude.theory.random_feature_attention.kernel import (
    HeadError,
    MLPKernel,
    RFAKernel,
    arc_cosine,
    head_error,
    rfa_kernel,
    rfmlp_kernel,
)
from etude.theory.random_feature_attention.layers import (
    RandomFeatureAttention,
    RandomFeatureDeepSet,
    RandomFeatureMLP,
    RandomFeatures,
)
from etude.theory.random_feature_attention.ridge import RIDGES, RidgePath, cross_validate, fit_ridge
from etude.theory.random_feature_attention.targets import (
    Target,
    TokenTask,
    approximation_bound,
    complexity,
    excess_risk_bound,
    permutation_invariant_targets,
    rfmlp_sample_ratio,
)
from etude.theory.random_feature_attention.tokens import Tokens, from_arrays

if TYPE_CHECKING:
    from etude.theory.random_feature_attention.estimators import RFAClassifier, RFARegressor

_NEED_SKLEARN = ("RFAClassifier", "RFARegressor")

__all__ = [
    "RIDGES",
    "BiasGain",
    "ErrorCurve",
    "HeadError",
    "MLPKernel",
    "RFAClassifier",
    "RFAKernel",
    "RFARegressor",
    "RandomFeatureAttention",
    "RandomFeatureDeepSet",
    "RandomFeatureMLP",
    "RandomFeatures",
    "Reached",
    "RidgePath",
    "SampleComplexity",
    "Split",
    "Target",
    "TokenTask",
    "Tokens",
    "approximation_bound",
    "arc_cosine",
    "bias_gain",
    "complexity",
    "cross_validate",
    "error_curve",
    "excess_risk_bound",
    "fit_ridge",
    "from_arrays",
    "head_error",
    "permutation_invariant_targets",
    "plot_bias_gain",
    "plot_sample_complexity",
    "rfa_kernel",
    "rfmlp_kernel",
    "rfmlp_sample_ratio",
    "sample_complexity",
    "samples_to_reach",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_SKLEARN:
        return getattr(importlib.import_module(f"{__name__}.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
