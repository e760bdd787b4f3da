"""Zoology: a synthetic task of recall, a ladder of mixers, attention at chosen tokens, and loss by recall.

Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra & Ré, "Zoology: Measuring and Improving Recall in Efficient
Language Models", ICLR 2024, arXiv:2312.04927.

    from etude.sequence.zoology import RecallLM, fit_recall, mqar
    train, val = (mqar(256, n, 64, 8, random_non_queries=False, seed=seed) for seed, n in ((0, 20_000), (1, 500)))
    model = RecallLM(256, 64, mixer=["base_conv", {"name": "selective", "k": 0.25, "penalty": 0.1}])
    fit_recall(model, train, val, steps=1500, lr=3e-3, warmup=50, clip=1.0)

Other papers' mixers, such as attention, are known by name after `etude.sequence.load_mixers()`.
"""

from etude.sequence.zoology.based import Based, taylor_features
from etude.sequence.zoology.convolutions import BaseConv, Hyena, ImplicitLongConv, LongConv
from etude.sequence.zoology.model import MixerSpec, RecallLM, hybrid, make_mixer
from etude.sequence.zoology.mqar import (
    IGNORED,
    MQARDataset,
    accuracy_by_slice,
    ar_classic,
    mqar,
    mqar_from_draws,
    recall_accuracy,
    recall_loss,
    slot_probabilities,
)
from etude.sequence.zoology.selective import SelectiveAttention, collect_aux_loss, occurred_before
from etude.sequence.zoology.slicing import BigramCounts, RecallSlices, ar_hits, gap_explained, recall_slices
from etude.sequence.zoology.state_space import H3, DiagonalSSM
from etude.sequence.zoology.sweep import (
    RecallFit,
    best_rates,
    evaluate_recall,
    fit_recall,
    plot_recall,
    recall_sweep,
)

__all__ = [
    "H3",
    "IGNORED",
    "BaseConv",
    "Based",
    "BigramCounts",
    "DiagonalSSM",
    "Hyena",
    "ImplicitLongConv",
    "LongConv",
    "MQARDataset",
    "MixerSpec",
    "RecallFit",
    "RecallLM",
    "RecallSlices",
    "SelectiveAttention",
    "accuracy_by_slice",
    "ar_classic",
    "ar_hits",
    "best_rates",
    "collect_aux_loss",
    "evaluate_recall",
    "fit_recall",
    "gap_explained",
    "hybrid",
    "make_mixer",
    "mqar",
    "mqar_from_draws",
    "occurred_before",
    "plot_recall",
    "recall_accuracy",
    "recall_loss",
    "recall_slices",
    "recall_sweep",
    "slot_probabilities",
    "taylor_features",
]
