"""The Sigma language model: a decoder with DiffQKV attention and SwiGLU networks.

Lin et al., arXiv:2501.13629, section 3 and table 14. Weights start N(0, 0.02), those that write to the residual stream
divided by sqrt(2 layers): this library's choice.
"""

import math
from dataclasses import asdict, dataclass, replace

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.nn.transformer import SwiGLU
from etude.sequence.sigma.attention import DiffQKVAttention
from etude.sequence.sigma.cache import DiffKVCache
from etude.sequence.sigma.functional import check_heads

__all__ = ["SigmaConfig", "SigmaLM", "generate"]


@dataclass(frozen=True)
class SigmaConfig:
    """Sizes of a model.

    Args:
        vocab_size: tokens.
        dim: D.
        num_layers: blocks.
        ffn_dim: inner width of the SwiGLU network.
        num_q_heads, num_k_heads, num_v_heads, head_dim, k_head_dim, v_head_dim, q_aug_dim, rope_theta, k_expand,
            qk_norm: see `DiffQKVAttention`.
        tie_embeddings: whether the head is the embedding.
        norm_eps: of the RMS norms.
    """

    vocab_size: int
    dim: int = 64
    num_layers: int = 3
    ffn_dim: int = 160
    num_q_heads: int = 8
    num_k_heads: int = 1
    num_v_heads: int = 4
    head_dim: int | None = None
    k_head_dim: int | None = None
    v_head_dim: int | None = None
    q_aug_dim: int | None = None
    rope_theta: float = 10_000.0
    k_expand: str = "linear"
    qk_norm: bool = False
    tie_embeddings: bool = False
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_heads(self.num_q_heads, self.num_k_heads, self.num_v_heads)
        if min(self.vocab_size, self.dim, self.num_layers, self.ffn_dim) < 1:
            raise ValueError(
                "vocab_size, dim, num_layers and ffn_dim must be positive, got "
                f"{self.vocab_size}, {self.dim}, {self.num_layers} and {self.ffn_dim}"
            )

    @classmethod
    def sigma_1_5b(cls, **changes: object) -> "SigmaConfig":
        """The 1.5B model of table 14; the name leaves the augmented queries out."""
        config = cls(
            vocab_size=128_256, dim=2048, num_layers=26, ffn_dim=6144, num_q_heads=32, num_k_heads=4, num_v_heads=16,
            q_aug_dim=3072, rope_theta=50_000.0,
        )  # fmt: skip
        return replace(config, **changes)  # type: ignore[arg-type]

    @classmethod
    def sigma_10b(cls, **changes: object) -> "SigmaConfig":
        """The 10B model of table 14."""
        config = cls(
            vocab_size=128_256, dim=4096, num_layers=32, ffn_dim=14_336, num_q_heads=32, num_k_heads=4, num_v_heads=16,
            q_aug_dim=6144, rope_theta=500_000.0,
        )  # fmt: skip
        return replace(config, **changes)  # type: ignore[arg-type]

    def standard(self) -> "SigmaConfig":
        """The model that the paper measures against: as many key heads as value heads, no augmented queries."""
        return replace(self, num_k_heads=self.num_v_heads, q_aug_dim=None)

    def attention(self) -> DiffQKVAttention:
        """A layer of attention of these sizes."""
        return DiffQKVAttention(
            self.dim, self.num_q_heads, self.num_k_heads, self.num_v_heads, head_dim=self.head_dim,
            k_head_dim=self.k_head_dim, v_head_dim=self.v_head_dim, q_aug_dim=self.q_aug_dim,
            rope_theta=self.rope_theta, k_expand=self.k_expand, qk_norm=self.qk_norm,
        )  # fmt: skip


class _Block(nn.Module):
    def __init__(self, config: SigmaConfig):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.attention = config.attention()
        self.norm2 = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.ffn = SwiGLU(config.dim, config.ffn_dim)

    def forward(self, x: Tensor, mask: Tensor | None, cache: DiffKVCache | None, select_v: int | None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask=mask, cache=cache, select_v=select_v)
        return x + self.ffn(self.norm2(x))


class SigmaLM(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="etude",
    paper_url="https://arxiv.org/abs/2501.13629",
    coders={SigmaConfig: (asdict, lambda sizes: SigmaConfig(**sizes))},
):
    """A causal language model.

        model = SigmaLM(SigmaConfig(vocab_size=65))
        logits = model(ids)
        print(generate(model, ids[:, :8], 100))

    Args:
        sizes: of the model; kept as `config`.
    """

    def __init__(self, sizes: SigmaConfig):
        super().__init__()
        config = self.config = sizes
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.dim, eps=config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                last = name.endswith(("o_proj.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * config.num_layers) if last else 1))
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        *,
        mask: Bool[Tensor, "batch keys"] | None = None,
        caches: list[DiffKVCache] | None = None,
        select_v: int | None = None,
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits of the token that follows each.

        Args:
            ids: tokens; those after the ones in the caches, if there are some.
            mask: true for real tokens, those in the caches included.
            caches: one a layer, of `make_caches`.
            select_v: see `DiffQKVAttention.forward`.

        Raises:
            ValueError: if a token lies outside the vocabulary (on the CPU; elsewhere the device says so).
        """
        if ids.device.type == "cpu" and ids.numel():
            low, high = int(ids.min()), int(ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(f"tokens must lie in 0..{self.config.vocab_size - 1}, got {low}..{high}")
        x = self.embedding(ids)
        for index, block in enumerate(self.blocks):
            x = block(x, mask, None if caches is None else caches[index], select_v)
        return self.head(self.norm(x))

    def make_caches(self, batch: int, max_len: int) -> list[DiffKVCache]:
        """An empty cache for each layer."""
        layers = [module for module in self.modules() if isinstance(module, DiffQKVAttention)]
        return [layer.make_cache(batch, max_len) for layer in layers]


@torch.no_grad()
def generate(
    model: SigmaLM,
    ids: Int[Tensor, "batch length"],
    new_tokens: int,
    *,
    temperature: float | int = 0.0,
    top_k: int | None = None,
    select_v: int | None = None,
    chunk: int | None = None,
    max_len: int | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "batch all"]:
    """Continues texts token by token, with caches.

    Args:
        model: put into evaluation mode while it generates.
        ids: the beginnings, all of one length, at least one token.
        new_tokens: how many follow.
        temperature: of the softmax that is drawn from; 0 takes the likeliest.
        top_k: draw among so many likeliest tokens; all if None.
        select_v: values that each query reads; all if None.
        chunk: tokens of the beginning that are read at once; all if None.
        max_len: of the caches; just enough if None.
        generator: of the draws.

    Returns:
        The beginnings with what follows.

    Raises:
        ValueError: for an empty beginning, or numbers out of range.
    """
    if ids.shape[1] < 1 or new_tokens < 0 or temperature < 0 or (chunk is not None and chunk < 1):
        raise ValueError(
            f"need a token, new_tokens >= 0, temperature >= 0 and chunk >= 1, got {tuple(ids.shape)}, {new_tokens}, "
            f"{temperature} and {chunk}"
        )
    caches = model.make_caches(len(ids), ids.shape[1] + new_tokens if max_len is None else max_len)
    training = model.training
    model.eval()
    try:
        for part in ids.split(chunk or ids.shape[1], dim=1):
            logits = model(part, caches=caches, select_v=select_v)[:, -1]
        for index in range(new_tokens):
            token = _drawn(logits, temperature, top_k, generator)
            ids = torch.cat([ids, token], dim=1)
            if index + 1 < new_tokens:
                logits = model(token, caches=caches, select_v=select_v)[:, -1]
    finally:
        model.train(training)
    return ids


def _drawn(logits: Tensor, temperature: float | int, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    return torch.multinomial(torch.softmax(logits.float() / temperature, dim=-1), 1, generator=generator)
