"""Stochastically subsampled self-attention: each query sees a random part of the sources while the model trains.

Hussain, Zaki & Subramanian, "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles", KDD 2023,
arXiv:2306.01705.

    from etude.sequence.ssa import apply_ssa, self_ensemble
    apply_ssa(model, fraction=0.25)                       # any model with torch's attention, in place
    ...                                                   # train: sampled; model.eval(): dense
    probabilities = self_ensemble(model, x, num_samples=32)
"""

from etude.sequence.ssa.analysis import (
    Ambiguity,
    ambiguity,
    disagreement,
    inclusion_probability,
    pathway_curve,
    plot_pathways,
)
from etude.sequence.ssa.attention import SubsampledAttention, subsampled_attention
from etude.sequence.ssa.modes import (
    SSASchedule,
    apply_ssa,
    dense_attention,
    layers_of,
    remove_ssa,
    self_ensemble,
    subsampled,
)
from etude.sequence.ssa.sampling import SAMPLERS, IndexSets, local_window, sample_sources
from etude.sequence.ssa.settings import Subsampling

__all__ = [
    "SAMPLERS",
    "Ambiguity",
    "IndexSets",
    "SSASchedule",
    "SubsampledAttention",
    "Subsampling",
    "ambiguity",
    "apply_ssa",
    "dense_attention",
    "disagreement",
    "inclusion_probability",
    "layers_of",
    "local_window",
    "pathway_curve",
    "plot_pathways",
    "remove_ssa",
    "sample_sources",
    "self_ensemble",
    "subsampled",
    "subsampled_attention",
]
