"""The gated linear unit and the block made of it."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.transformer import FeedForward

__all__ = ["ACTIVATIONS", "MIXINGS", "ActivatorBlock", "GatedMLP"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
"""Gates by name: GEGLU, SwiGLU, ReGLU, the original GLU, and the bilinear layer."""

MIXINGS = ("channel", "token")
_NORMS = ("shared", "separate", None)


class GatedMLP(nn.Module):
    """The gating unit, on the last dimension:

        u = LN(phi(W1 x + b1)),   v = LN(W2 x + b2),   G(x) = W3 (u * v) + b3                                    (1)

    As in the official code phi is the exact GELU and one layer norm over the hidden dimension serves both arms: the
    gate arm after its activation, the value arm straight after its projection. The hidden dimension is not cut to two
    thirds, as language models do. Each row of the input is treated by itself.

    Args:
        dim: D, features of input and output.
        hidden_dim: M, features between.
        activation: phi: "gelu" (GEGLU, the paper's), "silu" (SwiGLU), "relu" (ReGLU), "sigmoid" (GLU) or "identity"
            (bilinear).
        norm: "shared" (the paper's), "separate" (a norm an arm) or None.
        bias: of the three projections.

    Raises:
        ValueError: for sizes below 1 or unknown names.
    """

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int,
        activation: str = "gelu",
        norm: str | None = "shared",
        bias: bool = True,
    ):
        super().__init__()
        if min(dim, hidden_dim) < 1:
            raise ValueError(f"dim and hidden_dim must be positive, got {dim} and {hidden_dim}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if norm not in _NORMS:
            raise ValueError(f"norm must be 'shared', 'separate' or None, got {norm!r}")
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.value = nn.Linear(dim, hidden_dim, bias=bias)
        self.out = nn.Linear(hidden_dim, dim, bias=bias)
        self.activation = ACTIVATIONS[activation]()
        self.norm: nn.Module = nn.LayerNorm(hidden_dim) if norm is not None else nn.Identity()
        self.value_norm = nn.LayerNorm(hidden_dim) if norm == "separate" else None

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Eq. (1)."""
        value_norm = self.norm if self.value_norm is None else self.value_norm
        return self.out(self.norm(self.activation(self.gate(x))) * value_norm(self.value(x)))


class ActivatorBlock(nn.Module):
    """A gating unit and, in the full variant, an ordinary MLP, each on normed input beside a skip:

        x = x + G(LN(x));   x = x + FFN(LN(x))        full: `use_mlp=True`
        x = x + G(LN(x))                              GLU only: `use_mlp=False`

    What it mixes: with `mixing="channel"`, the official code and the default here, all of it works on the channels of
    each token by itself. **No information passes between tokens**, whatever the depth; a network of such blocks is a
    bag of patches. `mixing="token"` is an extension of this library, not the paper's code: the gating unit runs along
    the tokens, the same for each channel (as in MLP-Mixer), and channels mix in the MLP alone.

    Args:
        dim: D, features of a token.
        hidden_dim: M, of the gating unit and the MLP.
        dropout: of the MLP; the gating unit has none. The paper's 0.5 under-fits where D is small.
        activation: of the gate, see `GatedMLP`.
        use_mlp: the full variant, or the GLU alone.
        shared_norm: one layer norm over D for both parts, as in the official code, or one each.
        mixing: "channel" or "token".
        num_tokens: L, for `mixing="token"`, which is tied to it.
        norm: of the gating unit, see `GatedMLP`.
        token_hidden_dim: M of the gating unit along tokens; `hidden_dim` if None.

    Raises:
        ValueError: for bad names or sizes, and for `mixing="token"` without `num_tokens` or with other tokens.
    """

    def __init__(
        self,
        *,
        dim: int,
        hidden_dim: int,
        dropout: float | int = 0.5,
        activation: str = "gelu",
        use_mlp: bool = True,
        shared_norm: bool = True,
        mixing: str = "channel",
        num_tokens: int | None = None,
        norm: str | None = "shared",
        token_hidden_dim: int | None = None,
    ):
        super().__init__()
        if mixing not in MIXINGS:
            raise ValueError(f"mixing must be one of {', '.join(MIXINGS)}, got {mixing!r}")
        if mixing == "token" and num_tokens is None:
            raise ValueError("mixing='token' needs num_tokens, the number of patches")
        self.mixing, self.num_tokens = mixing, num_tokens if mixing == "token" else None
        self.norm = nn.LayerNorm(dim)
        if self.num_tokens is None:
            self.glu = GatedMLP(dim=dim, hidden_dim=hidden_dim, activation=activation, norm=norm)
        else:
            hidden = hidden_dim if token_hidden_dim is None else token_hidden_dim
            self.glu = GatedMLP(dim=self.num_tokens, hidden_dim=hidden, activation=activation, norm=norm)
        self.mlp = FeedForward(dim, hidden_dim, dropout=dropout) if use_mlp else None
        self.mlp_norm = nn.LayerNorm(dim) if use_mlp and not shared_norm else None

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        if self.num_tokens is None:
            x = x + self.glu(self.norm(x))
        else:
            if x.shape[1] != self.num_tokens:
                raise ValueError(f"mixing='token' is tied to {self.num_tokens} tokens, got {x.shape[1]}")
            x = x + self.glu(self.norm(x).transpose(1, 2)).transpose(1, 2)
        if self.mlp is None:
            return x
        return x + self.mlp((self.norm if self.mlp_norm is None else self.mlp_norm)(x))

    def extra_repr(self) -> str:
        return f"mixing={self.mixing!r}"
