"""Networks that give the pieces of Theta: five trunks, with one head for all pieces or several heads.

A trunk takes the pieces as tokens, (batch, pieces, inputs), each the condition with what is told about the piece, and
gives hidden vectors (batch, pieces, width); a head turns these into numbers. All pieces go through in one pass.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from etude.transfer.hypernetworks.spec import TargetSpec

__all__ = [
    "AttentionTrunk",
    "DeconvTrunk",
    "GraphTrunk",
    "MLPTrunk",
    "RecurrentTrunk",
    "SharedHead",
    "SplitHeads",
    "Trunk",
    "head_sizes",
    "make_trunk",
    "normalise_spectra",
]

Edges = Int64[Tensor, "2 edges"]
Tokens = Float[Tensor, "batch pieces features"]
Hidden = Float[Tensor, "batch pieces width"]
_STRIDE = 4


class Trunk(nn.Module):
    """What the trunks have in common: `width`, the size of their hidden vectors."""

    width: int


class MLPTrunk(Trunk):
    """Every piece by itself through fully connected layers; without any hidden layer, the token as it is."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module], dropout: float | int):
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise([inputs, *hidden]):
            layers += [nn.Linear(width_in, width_out), activation()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.width = hidden[-1] if hidden else inputs

    def forward(self, tokens: Tokens, edges: Edges) -> Hidden:
        return self.layers(tokens)


class DeconvTrunk(Trunk):
    """Tokens of four neighbouring pieces make one point of a coarse grid; two transposed convolutions refine it."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module], dropout: float | int):
        super().__init__()
        self.width = width = hidden[-1]
        self.coarse = nn.Linear(inputs, width)
        self.up = nn.Sequential(
            activation(), nn.ConvTranspose1d(width, width, 4, stride=2, padding=1),
            activation(), nn.ConvTranspose1d(width, width, 4, stride=2, padding=1),
            activation(), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, tokens: Tokens, edges: Edges) -> Hidden:
        pieces = tokens.shape[1]
        spare = -pieces % _STRIDE
        if spare:
            tokens = torch.cat([tokens, tokens[:, -1:].expand(-1, spare, -1)], dim=1)
        grid = self.coarse(tokens.unflatten(1, (-1, _STRIDE)).mean(dim=2))
        return self.up(grid.transpose(1, 2)).transpose(1, 2)[:, :pieces]


class RecurrentTrunk(Trunk):
    """A GRU that emits the pieces in the order of Theta, as many layers as there are hidden widths."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module], dropout: float | int):
        super().__init__()
        self.width = hidden[-1]
        between = float(dropout) if len(hidden) > 1 else 0.0
        self.gru = nn.GRU(inputs, self.width, len(hidden), batch_first=True, dropout=between)

    def forward(self, tokens: Tokens, edges: Edges) -> Hidden:
        return self.gru(tokens)[0]


class AttentionTrunk(Trunk):
    """A transformer encoder over the pieces, as many layers as there are hidden widths."""

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module], dropout: float | int):
        super().__init__()
        self.width = width = hidden[-1]
        heads = next(heads for heads in (4, 2, 1) if width % heads == 0)
        self.enter = nn.Linear(inputs, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, float(dropout), batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, len(hidden), enable_nested_tensor=False)

    def forward(self, tokens: Tokens, edges: Edges) -> Hidden:
        return self.encoder(self.enter(tokens))


class GraphTrunk(Trunk):
    """Messages along the target's computation graph and against it, as many rounds as there are hidden widths.

    Needs `torch_geometric`.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], activation: Callable[[], nn.Module], dropout: float | int):
        super().__init__()
        try:
            from torch_geometric.nn import GatedGraphConv
        except ImportError as error:
            raise ImportError('architecture="graph" needs torch_geometric: pip install "etude[graphs]"') from error
        self.width = width = hidden[-1]
        self.enter = nn.Linear(inputs, width)
        self.forwards = GatedGraphConv(width, len(hidden))
        self.backwards = GatedGraphConv(width, len(hidden))
        self.leave = nn.Sequential(activation(), nn.Dropout(dropout))

    def forward(self, tokens: Tokens, edges: Edges) -> Hidden:
        batch, pieces = tokens.shape[:2]
        # A disjoint union of `batch` copies of the graph.
        offsets = pieces * torch.arange(batch, device=edges.device)
        union = (edges[:, None, :] + offsets[:, None]).flatten(1)
        nodes = self.enter(tokens).flatten(0, 1)
        nodes = self.backwards(self.forwards(nodes, union), union.flip(0))
        return self.leave(nodes).unflatten(0, (batch, pieces))


_TRUNKS: dict[str, Callable[..., Trunk]] = {
    "mlp": MLPTrunk, "cnn": DeconvTrunk, "rnn": RecurrentTrunk, "attention": AttentionTrunk, "graph": GraphTrunk,
}  # fmt: skip


def make_trunk(
    architecture: str,
    inputs: int,
    hidden: Sequence[int],
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    dropout: float | int = 0.0,
) -> Trunk:
    """A trunk by name.

    Args:
        architecture: "mlp", "cnn", "rnn", "attention" or "graph".
        inputs: numbers in a token.
        hidden: widths; all but the multilayer perceptron take the last one and the number of them.
        activation: makes a nonlinearity.
        dropout: in [0, 1).

    Raises:
        ValueError: if a width is not positive, there are none where some are needed, or dropout is out of range.
    """
    if any(width < 1 for width in hidden) or (not hidden and architecture != "mlp"):
        raise ValueError(f"hidden must be positive widths, at least one for {architecture!r}, got {tuple(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    return _TRUNKS[architecture](inputs, hidden, activation, dropout)


def normalise_spectra(module: nn.Module) -> None:
    """Divides the weight of every linear and transposed convolutional layer by its spectral norm, from now on."""
    for part in list(module.modules()):
        if type(part) in (nn.Linear, nn.ConvTranspose1d):
            spectral_norm(part)


class SharedHead(nn.Module):
    """One linear map from a piece's hidden vector to its numbers."""

    def __init__(self, width: int, size: int, *, bias: bool = True):
        super().__init__()
        self.out = nn.Linear(width, size, bias=bias)

    def hidden(self, features: Hidden) -> list[Tensor]:
        """What the last linear maps read: here one input."""
        return [features]

    def outs(self) -> list[nn.Linear]:
        return [self.out]

    def forward(self, features: Hidden) -> Float[Tensor, "batch pieces size"]:
        return self.out(features)


class SplitHeads(nn.Module):
    """K heads with a hidden layer each, h -> h_last // K -> P_k, for consecutive parts of Theta.

    Args:
        width: of the trunk, which has lost its last hidden layer.
        last: h_last, the width of that layer.
        sizes: P_k.
        activation: makes a nonlinearity.
        dropout: after it.
    """

    def __init__(
        self,
        width: int,
        last: int,
        sizes: Sequence[int],
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float | int = 0.0,
        bias: bool = True,
    ):
        super().__init__()
        inner = last // len(sizes)
        if inner < 1:
            raise ValueError(f"{len(sizes)} heads leave nothing of a hidden width of {last}; at most {last} heads")
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), activation(), nn.Dropout(dropout)) for _ in sizes
        )
        self.out = nn.ModuleList(nn.Linear(inner, size, bias=bias) for size in sizes)

    def hidden(self, features: Hidden) -> list[Tensor]:
        return [inner(features) for inner in self.inner]

    def outs(self) -> list[nn.Linear]:
        return list(self.out)  # type: ignore[arg-type]

    def forward(self, features: Hidden) -> Float[Tensor, "batch pieces size"]:
        return torch.cat([out(inner(features)) for inner, out in zip(self.inner, self.out)], dim=-1)


def head_sizes(spec: TargetSpec, num_heads: int = 2, split: str = "even") -> list[int]:
    """P_k of `multiple`: ceil(P / K) each and the rest for the last, or the sizes of the modules.

    Raises:
        ValueError: if a head would be left without weights.
    """
    if split == "layer":
        sizes: dict[str, int] = {}
        for tensor in spec.tensors:
            sizes[tensor.module] = sizes.get(tensor.module, 0) + tensor.numel
        return list(sizes.values())
    if split != "even":
        raise ValueError(f"split must be 'even' or 'layer', got {split!r}")
    if num_heads < 1:
        raise ValueError(f"num_heads must be positive, got {num_heads}")
    each = -(-spec.numel // num_heads)
    rest = spec.numel - (num_heads - 1) * each
    if rest < 1:
        raise ValueError(f"{num_heads} heads of {each} weights leave none of {spec.numel} for the last")
    return [each] * (num_heads - 1) + [rest]
