"""A small language model around any mixer, and layers that differ.

Arora et al., arXiv:2312.04927, appendix on MQAR: embedding, blocks x + mixer(norm(x)), no feed-forward network unless
asked for, final norm, head tied to the embedding. Weights start N(0, 0.02), the maps that write to the residual stream
divided by sqrt(2 layers), biases 0. Positions are learned, for attention, or there are none.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from etude.nn.mixers import Mixer, build_mixer, register_mixer
from etude.nn.transformer import FeedForward
from etude.sequence.zoology.mqar import IGNORED

__all__ = ["MixerSpec", "RecallLM", "hybrid", "make_mixer"]

MixerSpec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""A mixer's name; or {"name": ..., options}; or a list of these, of which layer i takes entry i, around again."""
_OUTPUTS = ("out", "fc2")


def make_mixer(spec: MixerSpec, dim: int, *, max_len: int, layer: int = 0) -> Mixer:
    """The mixer of a layer.

    Raises:
        ValueError: for an empty list, an entry without a name, or a name that is not known.
        TypeError: if a mixer takes no such option.
    """
    if not isinstance(spec, str | Mapping):
        if not spec:
            raise ValueError("a list of mixers must not be empty")
        spec = spec[layer % len(spec)]
    options = {"name": spec} if isinstance(spec, str) else dict(spec)
    if "name" not in options:
        raise ValueError(f"a mixer needs a name, got {options}")
    return build_mixer(options.pop("name"), dim, max_len=max_len, layer=layer, **options)


@register_mixer("hybrid")
def hybrid(dim: int, max_len: int, layer: int = 0, *, configs: Sequence[str | Mapping[str, Any]]) -> Mixer:
    """Layer i is what `configs[i mod n]` describes, so that networks may alternate mixers.

    Args:
        dim, max_len, layer: as for `build_mixer`.
        configs: names, or {"name": ..., options}.

    Raises:
        ValueError, TypeError: as `make_mixer`.
    """
    return make_mixer(list(configs), dim, max_len=max_len, layer=layer)


class _Block(nn.Module):
    def __init__(self, dim: int, mixer: Mixer, mlp_ratio: float | int | None, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.takes_ids = "ids" in inspect.signature(mixer.forward).parameters
        self.mlp = None
        if mlp_ratio is not None:
            self.mlp_norm = nn.LayerNorm(dim)
            self.mlp = FeedForward(dim, round(dim * mlp_ratio), dropout=dropout)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + (self.mixer(normed, ids=ids) if self.takes_ids else self.mixer(normed))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))


class RecallLM(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2312.04927"
):  # fmt: skip
    """A causal language model whose layers mix as they are told.

        model = RecallLM(256, 64, 2, mixer=[{"name": "base_conv", "kernel_sizes": 3}, "attention"], max_len=64)
        logits = model(ids)

    Args:
        vocab_size: tokens.
        dim: D.
        depth: layers.
        mixer: a name, a name with options, or a list that layers take in turn (`MixerSpec`).
        max_len: longest sequence of mixers and positions that have a bound.
        positions: "none" or "learned".
        mlp_ratio: hidden width over width of a feed-forward network in each layer; None: no such network.
        dropout: of the embeddings (the paper: 0.1), and in feed-forward networks.

    Raises:
        ValueError: for sizes below 1, another kind of positions, or an unknown mixer.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 64,
        depth: int = 2,
        *,
        mixer: MixerSpec = "base_conv",
        max_len: int = 64,
        positions: str = "none",
        mlp_ratio: float | int | None = None,
        dropout: float | int = 0.1,
    ):
        super().__init__()
        if min(vocab_size, dim, depth, max_len) < 1:
            raise ValueError(
                f"vocab_size, dim, depth and max_len must be positive, got {vocab_size}, {dim}, {depth} and {max_len}"
            )
        if positions not in ("none", "learned"):
            raise ValueError(f"positions must be none or learned, got {positions!r}")
        self.max_len = max_len
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_len, dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            _Block(dim, make_mixer(mixer, dim, max_len=max_len, layer=layer), mlp_ratio, dropout)
            for layer in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                last = name.rpartition(".")[2] in _OUTPUTS and isinstance(module, nn.Linear)
                nn.init.normal_(module.weight, std=0.02 / (math.sqrt(2 * depth) if last else 1))
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """What the head reads.

        Raises:
            ValueError: if a token lies outside the vocabulary (on the CPU; elsewhere the device says so), or the
                sequence is longer than learned positions or a mixer allow.
        """
        if ids.device.type == "cpu" and ids.numel():
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.embedding.num_embeddings:
                raise ValueError(f"tokens must lie in 0..{self.embedding.num_embeddings - 1}, got {low}..{high}")
        x = self.embedding(ids)
        if self.positions is not None:
            if ids.shape[1] > self.max_len:
                raise ValueError(f"there are positions for {self.max_len} tokens, got {ids.shape[1]}")
            x = x + self.positions.weight[: ids.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, ids)
        return self.norm(x)

    def forward(self, ids: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        """Logits at every token; errors as `features`."""
        return self.features(ids) @ self.embedding.weight.T

    def scored_logits(
        self, ids: Int[Tensor, "batch length"], labels: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "scored vocab"]:
        """Logits where a label is not `IGNORED`, row by row: the others are never formed."""
        return self.features(ids)[labels != IGNORED] @ self.embedding.weight.T

    def state_size(self, length: int) -> int:
        """Numbers that the mixers of all layers keep of a sequence."""
        return sum(part.state_size(length) for part in self.modules() if isinstance(part, Mixer))
