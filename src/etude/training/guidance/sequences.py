"""Networks and tasks of the sequence experiments: copying and parity, recurrent networks and Transformers.

Subramaniam et al., arXiv:2410.20035. Two pairs: a plain RNN copies with a Transformer as its guide, and a Transformer
tells the parity of bit strings with an RNN as its guide.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

__all__ = [
    "IGNORED",
    "PARITY_PAD",
    "ParityRNN",
    "ParityTransformer",
    "TransformerLM",
    "VanillaRNNLM",
    "copy_batch",
    "parity_batch",
]

IGNORED = -100
"""Target of a position that no answer is asked of, as `F.cross_entropy` knows it."""
PARITY_PAD = 2
"""Token after the end of a bit string."""

_PAPER = {"library_name": "etude", "paper_url": "https://arxiv.org/abs/2410.20035"}


class VanillaRNNLM(nn.Module, PyTorchModelHubMixin, **_PAPER):  # type: ignore[arg-type, misc]
    """Stacked tanh RNNs, read out at every position.

    Args:
        vocab: number of tokens, in and out.
        embedding_dim: of the tokens.
        dim: of the hidden states.
        layers: number of RNNs, each a module of its own, so that each can be tapped.
    """

    def __init__(self, vocab: int, *, embedding_dim: int = 256, dim: int = 512, layers: int = 4):
        super().__init__()
        _check_sizes(vocab=vocab, embedding_dim=embedding_dim, dim=dim, layers=layers)
        self.embedding = nn.Embedding(vocab, embedding_dim)
        self.rnns = nn.ModuleList(
            nn.RNN(embedding_dim if index == 0 else dim, dim, batch_first=True) for index in range(layers)
        )
        self.readout = nn.Linear(dim, vocab)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        x = self.embedding(tokens)
        for rnn in self.rnns:
            x, _ = rnn(x)
        return self.readout(x)


class TransformerLM(nn.Module, PyTorchModelHubMixin, **_PAPER):  # type: ignore[arg-type, misc]
    """A causal Transformer with learned positions, read out at every position.

    Args:
        vocab: number of tokens, in and out.
        dim, heads, layers, hidden: width, attention heads, layers and width of the feed-forward part.
        longest: number of positions.
        dropout: in [0, 1).

    Raises:
        ValueError: if a size is not positive or `dim` no multiple of `heads`.
    """

    def __init__(
        self,
        vocab: int,
        *,
        dim: int = 512,
        heads: int = 16,
        layers: int = 4,
        hidden: int = 2048,
        longest: int = 256,
        dropout: float = 0.1,
    ):
        super().__init__()
        _check_sizes(vocab=vocab, dim=dim, heads=heads, layers=layers, hidden=hidden, longest=longest)
        self.embedding = nn.Embedding(vocab, dim)
        self.positions = nn.Embedding(longest, dim)
        self.blocks = _transformer(dim, heads, layers, hidden, dropout)
        self.readout = nn.Linear(dim, vocab)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length vocab"]:
        length = tokens.shape[1]
        if length > self.positions.num_embeddings:
            raise ValueError(f"the network has {self.positions.num_embeddings} positions, the sequence {length}")
        x = self.embedding(tokens) + self.positions.weight[:length]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=later)
        return self.readout(x)


class ParityRNN(nn.Module, PyTorchModelHubMixin, **_PAPER):  # type: ignore[arg-type, misc]
    """A stacked tanh RNN over bit strings, read out at each string's last bit.

    Args:
        embedding_dim, dim, layers: of the tokens, of the hidden states, number of layers.
    """

    def __init__(self, *, embedding_dim: int = 3, dim: int = 512, layers: int = 4):
        super().__init__()
        _check_sizes(embedding_dim=embedding_dim, dim=dim, layers=layers)
        self.embedding = nn.Embedding(3, embedding_dim)
        self.rnn = nn.RNN(embedding_dim, dim, layers, batch_first=True)
        self.readout = nn.Linear(dim, 2)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        lengths = (tokens != PARITY_PAD).sum(dim=1).cpu()
        packed = pack_padded_sequence(self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, states = self.rnn(packed)
        return self.readout(states[-1].relu())


class ParityTransformer(nn.Module, PyTorchModelHubMixin, **_PAPER):  # type: ignore[arg-type, misc]
    """A Transformer encoder over bit strings with sinusoidal positions, averaged over the bits and read out.

    Args:
        dim, heads, layers, hidden: width (even), attention heads, layers and width of the feed-forward part.
        dropout: in [0, 1).
    """

    def __init__(self, *, dim: int = 512, heads: int = 8, layers: int = 4, hidden: int = 2048, dropout: float = 0.1):
        super().__init__()
        _check_sizes(dim=dim, heads=heads, layers=layers, hidden=hidden)
        if dim % 2:
            raise ValueError(f"dim must be even, for sine and cosine, got {dim}")
        self.embedding = nn.Embedding(3, dim)
        self.blocks = _transformer(dim, heads, layers, hidden, dropout)
        self.readout = nn.Linear(dim, 2)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        padding = tokens == PARITY_PAD
        x = self.embedding(tokens)
        x = x + _sinusoids(tokens.shape[1], x.shape[-1]).to(x)
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padding)
        bits = (~padding).unsqueeze(-1).to(x.dtype)
        return self.readout((x * bits).sum(dim=1) / bits.sum(dim=1).clamp(min=1))


def copy_batch(
    n: int, *, shortest: int = 20, longest: int = 40, symbols: int = 10, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, "n length"], Int64[Tensor, "n length"]]:
    """Sequences to copy: symbols, the sign to copy, then as many blanks, in which the symbols are to be repeated.

    Symbols are 0..symbols-1, then come the blank, the sign and the end; after the end there are blanks.

    Args:
        n: number of sequences.
        shortest, longest: bounds of the number of symbols, which is uniform between them.
        symbols: number of different symbols.
        generator: source of lengths and symbols; the default generator if None.

    Returns:
        Inputs, and targets that are `IGNORED` everywhere but in the copy and at its end.

    Raises:
        ValueError: if not 1 <= shortest <= longest or there are no symbols.
    """
    _check_range(shortest, longest)
    _check_sizes(symbols=symbols)
    device = "cpu" if generator is None else generator.device
    blank, sign, end = symbols, symbols + 1, symbols + 2
    lengths = torch.randint(shortest, longest + 1, (n, 1), generator=generator, device=device)
    drawn = torch.randint(symbols, (n, longest), generator=generator, device=device)
    place = torch.arange(2 * longest + 2, device=device)[None, :]
    first = torch.nn.functional.pad(drawn, (0, longest + 2))
    inputs = torch.where(place < lengths, first, torch.full_like(first, blank))
    inputs = inputs.masked_fill(place == lengths, sign).masked_fill(place == 2 * lengths + 1, end)
    repeated = drawn.gather(1, (place - lengths - 1).clamp(0, longest - 1))
    asked = (place > lengths) & (place <= 2 * lengths)
    targets = torch.where(asked, repeated, torch.full_like(repeated, IGNORED))
    return inputs, targets.masked_fill(place == 2 * lengths + 1, end)


def parity_batch(
    n: int, *, shortest: int = 2, longest: int = 50, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, "n length"], Int64[Tensor, " n"]]:
    """Bit strings, padded with `PARITY_PAD`, and whether each holds an odd number of ones.

    Args:
        n: number of strings.
        shortest, longest: bounds of their length, which is uniform between them.
        generator: source of lengths and bits; the default generator if None.

    Raises:
        ValueError: if not 1 <= shortest <= longest.
    """
    _check_range(shortest, longest)
    device = "cpu" if generator is None else generator.device
    lengths = torch.randint(shortest, longest + 1, (n, 1), generator=generator, device=device)
    bits = torch.randint(2, (n, longest), generator=generator, device=device)
    inside = torch.arange(longest, device=device)[None, :] < lengths
    return bits.masked_fill(~inside, PARITY_PAD), (bits * inside).sum(dim=1) % 2


def _transformer(dim: int, heads: int, layers: int, hidden: int, dropout: float) -> nn.ModuleList:
    if dim % heads:
        raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
    return nn.ModuleList(
        nn.TransformerEncoderLayer(dim, heads, hidden, dropout, batch_first=True) for _ in range(layers)
    )


def _sinusoids(length: int, dim: int) -> Float[Tensor, "length dim"]:
    frequencies = 10_000 ** (-torch.arange(0, dim, 2) / dim)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_range(shortest: int, longest: int) -> None:
    if not 1 <= shortest <= longest:
        raise ValueError(f"lengths must satisfy 1 <= shortest <= longest, got {shortest} and {longest}")
