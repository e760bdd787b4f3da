"""Detection of jammers of the 5G synchronisation signal block (SSB).

Asemian, Amini, Kantarci & Erol-Kantarci, "Over-The-Air Double-Threshold Deep Learner for Jamming Detection in 5G RF
domain", arXiv:2403.02645, 2024 (later "DT-DDNN: A Physical Layer Security Attack Detector in 5G RF Domain for CAVs").

`sequences`, `polar`, `pbch`, `ssb` and `ofdm` make the waveform of 3GPP TS 38.211 and 38.212; `channel`, `jammers` and
`dataset` draw received records; `features`, `wavelet`, `networks`, `decision` and `detector` tell jammed from normal.
"""

from etude.science.jamming.channel import TappedDelayChannel, apply_taps
from etude.science.jamming.dataset import SSBBatch, SSBJammingDataset, SSBScenario, agc
from etude.science.jamming.decision import (
    cascade_score,
    detection_rate,
    threshold_at_false_alarm,
    tune_eta,
)
from etude.science.jamming.detector import DTDDNNClassifier, EnergyDetector, SingleNetworkClassifier
from etude.science.jamming.features import (
    FeatureSet,
    SSBFeatures,
    block_grid,
    cut_block,
    epnre,
    find_blocks,
    pss_correlation,
    spectrum_summary,
)
from etude.science.jamming.jammers import JAMMER_KINDS, Jammer
from etude.science.jamming.networks import Perceptron, RawCNN, Schedule, train_deep_cascade, train_network
from etude.science.jamming.ofdm import ofdm_demodulate, ofdm_modulate
from etude.science.jamming.pbch import encode_pbch
from etude.science.jamming.polar import polar_encode, polar_rate_match
from etude.science.jamming.sequences import gold_sequence, pbch_dmrs, pss, sss
from etude.science.jamming.ssb import ssb_burst, ssb_grid, ssb_indices
from etude.science.jamming.wavelet import wavelet_bands

__all__ = [
    "JAMMER_KINDS",
    "DTDDNNClassifier",
    "EnergyDetector",
    "FeatureSet",
    "Jammer",
    "Perceptron",
    "RawCNN",
    "SSBBatch",
    "SSBFeatures",
    "SSBJammingDataset",
    "SSBScenario",
    "Schedule",
    "SingleNetworkClassifier",
    "TappedDelayChannel",
    "agc",
    "apply_taps",
    "block_grid",
    "cascade_score",
    "cut_block",
    "detection_rate",
    "encode_pbch",
    "epnre",
    "find_blocks",
    "gold_sequence",
    "ofdm_demodulate",
    "ofdm_modulate",
    "pbch_dmrs",
    "polar_encode",
    "polar_rate_match",
    "pss",
    "pss_correlation",
    "spectrum_summary",
    "ssb_burst",
    "ssb_grid",
    "ssb_indices",
    "sss",
    "threshold_at_false_alarm",
    "train_deep_cascade",
    "train_network",
    "tune_eta",
    "wavelet_bands",
]
