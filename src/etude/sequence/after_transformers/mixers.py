"""All mixers of the survey; importing this registers them."""

from etude.sequence.after_transformers.attention import Attention, WindowAttention
from etude.sequence.after_transformers.gated import GRU, LSTM, MinGated
from etude.sequence.after_transformers.linear_attention import LinearAttention
from etude.sequence.after_transformers.mamba import Mamba, Mamba2, selective_scan
from etude.sequence.after_transformers.matrix_state import matrix_scan
from etude.sequence.after_transformers.retention import Retention, chunked_retention, parallel_retention
from etude.sequence.after_transformers.rwkv import RWKV, RWKVChannelMix, wkv
from etude.sequence.after_transformers.s4d import S4D
from etude.sequence.after_transformers.stateful import StatefulMixer
from etude.sequence.after_transformers.token_mixing import GMLP, FNet, MLPMixer
from etude.sequence.after_transformers.xlstm import MLSTM, SLSTM

__all__ = [
    "GMLP",
    "GRU",
    "LSTM",
    "MLSTM",
    "RWKV",
    "S4D",
    "SLSTM",
    "Attention",
    "FNet",
    "LinearAttention",
    "MLPMixer",
    "Mamba",
    "Mamba2",
    "MinGated",
    "RWKVChannelMix",
    "Retention",
    "StatefulMixer",
    "WindowAttention",
    "chunked_retention",
    "matrix_scan",
    "parallel_retention",
    "selective_scan",
    "wkv",
]
