"""Infinitely wide convolutional networks: kernels, spectra by receptive field, and what they learn how fast.

Cagnetta, Favero & Wyart, "What Can Be Learnt With Wide Convolutional Neural Networks?", ICML 2023, PMLR 202,
arXiv:2208.01003.

    from etude.theory.wide_cnn import hierarchical_kernel, learning_curve, predict_beta, sector_spectrum

    predict_beta([2], [2, 2, 2])                            # 0.625: error ~ n^-0.625 on targets of pairs of inputs
    learning_curve([2], [2, 2, 2], [64, 128, 256, 512])     # the same measured, and exact, with intervals
    sector_spectrum([2, 2, 2]).trace                        # how the kernel divides its variance by receptive field
    HierarchicalKernelRegressor([2, 2, 2]).fit(X, y)        # your network's filters on your data

A network whose patches do not overlap learns a target that lives on small patches at a rate that depends on the
patch, though the network sees everything; only a target on the whole input is cursed by its dimension. The estimators
need scikit-learn and are imported when first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from etude.theory.wide_cnn.curves import LearningCurve, TeacherStudent, learning_curve, teacher_student
from etude.theory.wide_cnn.exponents import (
    MeanInterval,
    PowerLaw,
    fit_power_law,
    mean_interval,
    predict_beta,
    predict_spectrum,
)
from etude.theory.wide_cnn.fields import expected_errors, posterior_variance, sample_grf
from etude.theory.wide_cnn.kernel import fc_ntk, hierarchical_kernel, kernel_diagonal
from etude.theory.wide_cnn.networks import (
    HierarchicalCNN,
    HierarchicalLCN,
    empirical_ntk,
    empirical_rfk,
    width_error,
)
from etude.theory.wide_cnn.patches import effective_dimensions, sample_multisphere, to_patches
from etude.theory.wide_cnn.plots import plot_learning_curves, plot_sectors, plot_spectra
from etude.theory.wide_cnn.sectors import SectorSpectrum, sector_shares, sector_spectrum
from etude.theory.wide_cnn.spectrum import SpectrumStudy, kernel_spectrum, spectrum_study

if TYPE_CHECKING:
    from etude.theory.wide_cnn.estimators import HierarchicalKernelClassifier, HierarchicalKernelRegressor

_NEED_SKLEARN = ("HierarchicalKernelClassifier", "HierarchicalKernelRegressor")

__all__ = [
    "HierarchicalCNN",
    "HierarchicalKernelClassifier",
    "HierarchicalKernelRegressor",
    "HierarchicalLCN",
    "LearningCurve",
    "MeanInterval",
    "PowerLaw",
    "SectorSpectrum",
    "SpectrumStudy",
    "TeacherStudent",
    "effective_dimensions",
    "empirical_ntk",
    "empirical_rfk",
    "expected_errors",
    "fc_ntk",
    "fit_power_law",
    "hierarchical_kernel",
    "kernel_diagonal",
    "kernel_spectrum",
    "learning_curve",
    "mean_interval",
    "plot_learning_curves",
    "plot_sectors",
    "plot_spectra",
    "posterior_variance",
    "predict_beta",
    "predict_spectrum",
    "sample_grf",
    "sample_multisphere",
    "sector_shares",
    "sector_spectrum",
    "spectrum_study",
    "teacher_student",
    "to_patches",
    "width_error",
]


def __getattr__(name: str) -> Any:
    if name in _NEED_SKLEARN:
        return getattr(importlib.import_module(f"{__name__}.estimators"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
