"""N2N learning: a trained teacher becomes a much smaller student, by policies that remove and shrink layers.

Ashok, Rhinehart, Beainy & Kitani, "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement
Learning", ICLR 2018, arXiv:1709.06030.

    from etude.nas.n2n import two_stage
    student = two_stage(teacher, data, max_params=100_000)
    print(student.report())

| module | what |
|---|---|
| `tracing` | the layers of a network in the order in which they run, and its residual blocks |
| `students` | students with layers removed or shrunk, every weight new |
| `policies` | the two recurrent policies |
| `reward` | accuracy times compression, with limits that harden |
| `distillation` | training by the teacher's logits |
| `search` | REINFORCE: ask, tell, state |
| `running` | several workers, deaths of workers, resuming |
| `compression` | both stages and the final training for one's own teacher |
| `networks` | chains of convolutions, VGG-19 among them |
| `plots` | rewards over updates, accuracy over size |
"""

from etude.nas.n2n.compression import Limits, Student, best_within, two_stage
from etude.nas.n2n.distillation import LOSSES, Distillation, distill, distillation_loss
from etude.nas.n2n.networks import VGG19, chain
from etude.nas.n2n.plots import plot_rewards, plot_trade_off
from etude.nas.n2n.policies import RemovalPolicy, ShrinkPolicy, normalised
from etude.nas.n2n.reward import compression_reward, softening
from etude.nas.n2n.running import load_search, run_search, save_search
from etude.nas.n2n.search import NetworkCompressor, Rollout, Tried
from etude.nas.n2n.students import (
    CODE_FACTORS,
    FACTORS,
    InvalidStudent,
    Removal,
    Shrinkage,
    count_parameters,
    digest,
    initialise,
    remove_layers,
    shrink_layers,
)
from etude.nas.n2n.tracing import KINDS, Block, LayerTable, layer_table

__all__ = [
    "CODE_FACTORS",
    "FACTORS",
    "KINDS",
    "LOSSES",
    "VGG19",
    "Block",
    "Distillation",
    "InvalidStudent",
    "LayerTable",
    "Limits",
    "NetworkCompressor",
    "Removal",
    "RemovalPolicy",
    "Rollout",
    "ShrinkPolicy",
    "Shrinkage",
    "Student",
    "Tried",
    "best_within",
    "chain",
    "compression_reward",
    "count_parameters",
    "digest",
    "distill",
    "distillation_loss",
    "initialise",
    "layer_table",
    "load_search",
    "normalised",
    "plot_rewards",
    "plot_trade_off",
    "remove_layers",
    "run_search",
    "save_search",
    "shrink_layers",
    "softening",
    "two_stage",
]
