"""The effective theory of deep networks at finite width: where they are critical, and how far from it width takes them.

Roberts, Yaida & Hanin, "The Principles of Deep Learning Theory", Cambridge University Press 2022, arXiv:2106.10165.

    from etude.theory.pdlt import FiniteWidthFlow, critical_init, init_critical_, network_fluctuation

    point = critical_init(torch.nn.GELU())                  # C_b, C_W, K*, universality class, nu, error bounds
    init_critical_(model, torch.nn.GELU())                  # your own nn.Sequential of nn.Linear, in place
    network_fluctuation(model, torch.nn.GELU())             # how much its outputs will differ from seed to seed
    FiniteWidthFlow(torch.tanh, C_b=0, C_W=1).run(K1=0.5, Theta1=2.0, depth=5)      # kernel, vertex, NTK, spread
    ntk_recursion(torch.nn.GELU(), point.C_b, point.C_W, X, depth=5)                # infinite width, your data

Any elementwise activation goes: averages are adaptive quadrature with a bound on the error, kinks are found, and closed
forms are used where they are known.
"""

from etude.theory.pdlt.activations import Activation, as_activation
from etude.theory.pdlt.aspect_ratio import Fluctuation, network_fluctuation, optimal_aspect_ratio, relative_fluctuation
from etude.theory.pdlt.criticality import (
    CorrelationLength,
    Criticality,
    NoCriticalPoint,
    Susceptibilities,
    UniversalityClass,
    classify,
    correlation_length,
    critical_init,
    susceptibilities,
)
from etude.theory.pdlt.ensemble import EnsembleMoments, sample_ensemble
from etude.theory.pdlt.flow import FiniteWidthFlow, FlowTable, WidthPrediction, scale_invariant_variance
from etude.theory.pdlt.kernels import KernelLayers, NTKLayers, PairBasis, kernel_recursion, ntk_recursion, pair_basis
from etude.theory.pdlt.moments import Moments, gauss_avg, moments
from etude.theory.pdlt.networks import (
    LearningRates,
    critical_param_groups,
    empirical_ntk,
    init_critical_,
    learning_rates,
    ntk_contributions,
)
from etude.theory.pdlt.plots import (
    plot_aspect_ratio,
    plot_contributions,
    plot_correlations,
    plot_flow,
    plot_susceptibilities,
)

__all__ = [
    "Activation",
    "CorrelationLength",
    "Criticality",
    "EnsembleMoments",
    "FiniteWidthFlow",
    "FlowTable",
    "Fluctuation",
    "KernelLayers",
    "LearningRates",
    "Moments",
    "NTKLayers",
    "NoCriticalPoint",
    "PairBasis",
    "Susceptibilities",
    "UniversalityClass",
    "WidthPrediction",
    "as_activation",
    "classify",
    "correlation_length",
    "critical_init",
    "critical_param_groups",
    "empirical_ntk",
    "gauss_avg",
    "init_critical_",
    "kernel_recursion",
    "learning_rates",
    "moments",
    "network_fluctuation",
    "ntk_contributions",
    "ntk_recursion",
    "optimal_aspect_ratio",
    "pair_basis",
    "plot_aspect_ratio",
    "plot_contributions",
    "plot_correlations",
    "plot_flow",
    "plot_susceptibilities",
    "relative_fluctuation",
    "sample_ensemble",
    "scale_invariant_variance",
    "susceptibilities",
]
