"""What comes after transformers? Mixers of sequences behind one interface.

Schneider, "What comes after transformers? A selective survey connecting ideas in deep learning", 2024,
arXiv:2408.00386.

    from etude.sequence.after_transformers import Budget, SequenceModel, compare, selective_copy
    model = SequenceModel("mamba2", 64, 4, vocab=256)
    table = compare(["attention", "mamba2"], {"copy": parts}, seeds=3, budget=Budget(steps=2000))
"""

from etude.nn.mixers import build_mixer, mixer_names, register_mixer
from etude.nn.scan import scan
from etude.sequence.after_transformers import meter, tasks
from etude.sequence.after_transformers.channels import KAN, KANLinear, MoE, auxiliary_loss, build_channel
from etude.sequence.after_transformers.comparison import Budget, MixerTable, compare, matched_ratio, model_for, pareto
from etude.sequence.after_transformers.forward_forward import ForwardForwardLayer, ForwardForwardTrainer, ridge_readout
from etude.sequence.after_transformers.meter import (
    DecodeCost,
    StepCost,
    decode_cost,
    quality,
    random_state,
    state_bytes,
    step_cost,
    train,
    training_growth,
)
from etude.sequence.after_transformers.mixers import (
    GMLP,
    GRU,
    LSTM,
    MLSTM,
    RWKV,
    S4D,
    SLSTM,
    Attention,
    FNet,
    LinearAttention,
    Mamba,
    Mamba2,
    MinGated,
    MLPMixer,
    Retention,
    RWKVChannelMix,
    StatefulMixer,
    WindowAttention,
    chunked_retention,
    matrix_scan,
    parallel_retention,
    selective_scan,
    wkv,
)
from etude.sequence.after_transformers.model import Block, SequenceModel, match_parameters, parameter_groups
from etude.sequence.after_transformers.optimizers import SAM, Lion
from etude.sequence.after_transformers.tasks import (
    IGNORED,
    SequenceTask,
    adding,
    char_lm,
    copying,
    dyck,
    from_examples,
    induction,
    listops,
    majority,
    parity,
    selective_copy,
    sequential_pixels,
)

__all__ = [
    "GMLP", "GRU", "IGNORED", "KAN", "LSTM", "MLSTM", "RWKV", "S4D", "SAM", "SLSTM", "Attention", "Block", "Budget",
    "DecodeCost", "FNet", "ForwardForwardLayer", "ForwardForwardTrainer", "KANLinear", "LinearAttention", "Lion",
    "MLPMixer", "Mamba", "Mamba2", "MinGated", "MixerTable", "MoE", "RWKVChannelMix", "Retention", "SequenceModel",
    "SequenceTask", "StatefulMixer", "StepCost", "WindowAttention", "adding", "auxiliary_loss", "build_channel",
    "build_mixer", "char_lm", "chunked_retention", "compare", "copying", "decode_cost", "dyck", "from_examples",
    "induction", "listops", "majority", "match_parameters", "matched_ratio", "matrix_scan", "meter",
    "mixer_names", "model_for",
    "parallel_retention",
    "parameter_groups", "pareto", "parity", "quality", "random_state", "register_mixer", "ridge_readout", "scan",
    "selective_copy", "selective_scan", "sequential_pixels", "state_bytes", "step_cost", "tasks", "train",
    "training_growth",
    "wkv",
]  # fmt: skip
