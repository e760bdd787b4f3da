"""One transformer block: a single layer of softmax self-attention and a position-wise ReLU network.

Gumaan, "Universal Approximation Theorem for a Single-Layer Transformer", arXiv:2507.10581, 2025. With E the embedding
and P the table of positions,

    H = X E + P,   A = H + concat_r softmax(H Q_r (H K_r)^T / sqrt(head_dim)) H V_r W_O,   y_i = W_2 relu(W_1 a_i)   (1)

(biases left out). The read-out has a width of its own, so no residual goes around the ReLU network.
"""

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SingleLayerTransformer", "padded", "to_multihead_attention"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


class SingleLayerTransformer(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2507.10581"
):
    """Eq. (1): tokens (batch, seq_len, in_dim) to outputs (batch, seq_len, out_dim).

        model = SingleLayerTransformer(1, 32, seq_len=3, num_heads=4, ffn_dim=256, out_dim=1)

    What `build_universal` returns is an instance of this class, whose weights are set instead of trained: its forward
    pass is this one, and it can be trained further.

    Args:
        in_dim: width of a token. dim: width of the model.
        seq_len: tokens of every sequence: the theorem is one for each length.
        num_heads: attention heads; 0 leaves attention out, which makes the block a function of single tokens.
        ffn_dim: hidden units of the ReLU network. out_dim: width of an output.
        head_dim: width of a head; dim / num_heads if None. `num_heads * head_dim` need not be `dim`.
        pos: "learned" adds a trainable table of positions; "none" leaves the block permutation-equivariant.
        norm: layer normalisation before the attention and before the ReLU network; the construction has none.
        dtype: name of the parameters' type, kept as text so that `from_pretrained` restores it.

    Raises:
        ValueError: if a size is not positive, `dim` has no share for each head, or `pos` or `dtype` is unknown.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        seq_len: int,
        num_heads: int,
        ffn_dim: int,
        out_dim: int,
        head_dim: int | None = None,
        pos: str = "learned",
        norm: bool = False,
        dtype: str = "float32",
    ):
        super().__init__()
        sizes = {"in_dim": in_dim, "dim": dim, "seq_len": seq_len, "ffn_dim": ffn_dim, "out_dim": out_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if num_heads < 0:
            raise ValueError(f"num_heads must be at least 0, got {num_heads}")
        if head_dim is None:
            if num_heads and dim % num_heads:
                raise ValueError(f"dim = {dim} is not a multiple of num_heads = {num_heads}: give head_dim")
            head_dim = dim // num_heads if num_heads else 1
        if head_dim < 1:
            raise ValueError(f"head_dim must be at least 1, got {head_dim}")
        if pos not in ("learned", "none"):
            raise ValueError(f"pos must be 'learned' or 'none', got {pos!r}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
        self.in_dim, self.dim, self.seq_len, self.num_heads = in_dim, dim, seq_len, num_heads
        self.ffn_dim, self.out_dim, self.head_dim, self.pos, self.norm = ffn_dim, out_dim, head_dim, pos, norm
        kind, inner = _DTYPES[dtype], num_heads * head_dim
        self.embed = nn.Linear(in_dim, dim, dtype=kind)
        # N(0, 1) as in `nn.Embedding`: with 0.02 a few tokens are told apart late, and training ends with more error.
        self.positions = nn.Parameter(torch.randn(seq_len, dim, dtype=kind)) if pos == "learned" else None
        self.norm_attention: nn.Module = nn.LayerNorm(dim, dtype=kind) if norm and num_heads else nn.Identity()
        self.norm_ffn: nn.Module = nn.LayerNorm(dim, dtype=kind) if norm else nn.Identity()
        # One matrix for queries, keys and values, in this order, as in `nn.MultiheadAttention`.
        self.in_proj = nn.Linear(dim, 3 * inner, dtype=kind) if num_heads else None
        self.out_proj = nn.Linear(inner, dim, dtype=kind) if num_heads else None
        self.ffn_in = nn.Linear(dim, ffn_dim, dtype=kind)
        self.ffn_out = nn.Linear(ffn_dim, out_dim, dtype=kind)

    def attend(self, x: Float[Tensor, "batch seq in_dim"]) -> Float[Tensor, "batch seq dim"]:
        """What the ReLU network reads: A of Eq. (1).

        Raises:
            ValueError: if the tokens are not `seq_len` of width `in_dim`.
        """
        if x.shape[1:] != (self.seq_len, self.in_dim):
            raise ValueError(
                f"x must have shape (batch, seq_len={self.seq_len}, in_dim={self.in_dim}), got {tuple(x.shape)}: "
                "a model is built for one length"
            )
        h = self.embed(x)
        if self.positions is not None:
            h = h + self.positions
        if self.in_proj is None or self.out_proj is None:
            return h
        qkv = self.in_proj(self.norm_attention(h)).unflatten(-1, (3, self.num_heads, self.head_dim))
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return h + self.out_proj(mixed.transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "batch seq in_dim"]) -> Float[Tensor, "batch seq out_dim"]:
        return self.ffn_out(F.relu(self.ffn_in(self.norm_ffn(self.attend(x)))))

    def extra_repr(self) -> str:
        return f"seq_len={self.seq_len}, num_heads={self.num_heads}, head_dim={self.head_dim}, pos={self.pos!r}"


def to_multihead_attention(module: SingleLayerTransformer) -> nn.MultiheadAttention:
    """The attention of a block as PyTorch's own module (`batch_first`), with the same weights.

        mha = to_multihead_attention(padded(model))

    Raises:
        ValueError: if the block has no attention, or num_heads * head_dim != dim, which `nn.MultiheadAttention` cannot
            hold; `padded` makes them equal.
    """
    if module.in_proj is None or module.out_proj is None:
        raise ValueError("the block has num_heads = 0: there is no attention to convert")
    if module.num_heads * module.head_dim != module.dim:
        raise ValueError(
            f"nn.MultiheadAttention needs num_heads * head_dim = dim, got {module.num_heads} * {module.head_dim} and "
            f"{module.dim}; use padded(module)"
        )
    weight = module.in_proj.weight
    mha = nn.MultiheadAttention(
        module.dim, module.num_heads, batch_first=True, dtype=weight.dtype, device=weight.device
    )
    state = {
        "in_proj_weight": weight, "in_proj_bias": module.in_proj.bias,
        "out_proj.weight": module.out_proj.weight, "out_proj.bias": module.out_proj.bias,
    }  # fmt: skip
    mha.load_state_dict({name: value.detach() for name, value in state.items()})
    return mha.train(module.training)


@torch.no_grad()
def padded(module: SingleLayerTransformer) -> SingleLayerTransformer:
    """The same function as a block with num_heads * head_dim = dim: widths filled up with zeros.

    Raises:
        ValueError: if the block has no attention, or normalises (zeros would change the statistics).
    """
    if module.in_proj is None or module.out_proj is None:
        raise ValueError("the block has num_heads = 0: there is no attention to pad")
    if module.norm:
        raise ValueError("a block with norm=True cannot be padded: zeros would change its layer normalisation")
    heads, old, old_dim = module.num_heads, module.head_dim, module.dim
    wide = max(old, -(-old_dim // heads))
    dim = heads * wide
    dtype = module.embed.weight.dtype
    result = SingleLayerTransformer(
        module.in_dim, dim, module.seq_len, heads, module.ffn_dim, module.out_dim, pos=module.pos,
        dtype=str(dtype).removeprefix("torch."),
    ).to(module.embed.weight.device)  # fmt: skip
    assert result.in_proj is not None
    assert result.out_proj is not None
    for parameter in result.parameters():
        parameter.zero_()
    result.embed.weight[:old_dim], result.embed.bias[:old_dim] = module.embed.weight, module.embed.bias
    if result.positions is not None and module.positions is not None:
        result.positions[:, :old_dim] = module.positions
    into = result.in_proj.weight.view(3, heads, wide, dim)
    into[:, :, :old, :old_dim] = module.in_proj.weight.view(3, heads, old, old_dim)
    biases = result.in_proj.bias.view(3, heads, wide)
    biases[:, :, :old] = module.in_proj.bias.view(3, heads, old)
    # Scores are divided by the root of the head's width, which has grown.
    for part in (into, biases):
        part[0] *= (wide / old) ** 0.5
    result.out_proj.weight.view(dim, heads, wide)[:old_dim, :, :old] = module.out_proj.weight.view(old_dim, heads, old)
    result.out_proj.bias[:old_dim] = module.out_proj.bias
    result.ffn_in.weight[:, :old_dim], result.ffn_in.bias[:] = module.ffn_in.weight, module.ffn_in.bias
    result.ffn_out.load_state_dict(module.ffn_out.state_dict())
    return result.train(module.training)
