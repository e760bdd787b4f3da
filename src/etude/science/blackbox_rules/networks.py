"""The black boxes: self-attention over features, a gated and a plain perceptron, two autoencoder classifiers.

Karim, Shajalal, Grass, Döhmen, Chala, Boden, Beecks & Decker, "Interpreting Black-box Machine Learning Models for High
Dimensional Datasets", arXiv:2208.13405, 2022. Self-attention over features: Škrlj, Džeroski, Lavrač & Petkovič,
"Feature Importance Estimation with Self-Attention Networks", arXiv:2002.04464, 2020.

All take rows (batch, dim) of standardised features and give logits (batch, classes). With h heads,

    Omega(x) = d / h sum_j x * softmax(W_j x + b_j)                                                       (1)
    logits   = W'' dropout(SELU(W' Omega(x) + b')) + b''                                                  (2)

The factor d is ours: with it uniform attention is the identity, without it signals vanish as 1 / d. The paper does not
print its autoencoder layer by layer; ours has two strided convolutions each way.
"""

import logging
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["AutoencoderClassifier", "ConvAutoencoder", "DenseAutoencoder", "Perceptron", "SelfAttentionNet"]

logger = logging.getLogger(__name__)

DENSE_LIMIT = 4_096
"""Most features for which W_j is a full matrix; it has 64 MiB there, and 1.7 GB at 20,501."""
LOW_RANK = 64


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


class Perceptron(nn.Module, PyTorchModelHubMixin):
    """One hidden layer of SELU units with dropout: Eq. (2) with Omega(x) = x.

    Args:
        dim: features. num_classes: classes.
        hidden: units.
        dropout: share of units dropped while training, in [0, 1).

    Raises:
        ValueError: if a size is not positive or `dropout` lies outside [0, 1).
    """

    def __init__(self, dim: int, num_classes: int, hidden: int = 64, dropout: float | int = 0.3):
        super().__init__()
        _check_sizes(dim=dim, num_classes=num_classes, hidden=hidden)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.dim, self.num_classes = dim, num_classes
        self.encode = nn.Linear(dim, hidden)
        self.dropout = nn.Dropout(dropout)
        self.decode = nn.Linear(hidden, num_classes)

    def embed(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch hidden"]:
        """The hidden layer."""
        return F.selu(self.encode(x))

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        return self.decode(self.dropout(self.embed(x)))

    def front(self) -> tuple[Float[Tensor, "hidden dim"], Float[Tensor, "hidden"]] | None:
        """Weight and bias of the linear map that a row meets first; None if what it meets is not linear."""
        return self.encode.weight, self.encode.bias

    def back(self, z: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows classes"]:
        """Logits of what `front` gives."""
        return self.decode(self.dropout(F.selu(z)))


class SelfAttentionNet(Perceptron):
    """Self-attention over the features of a row, Eq. (1) and (2).

        network = SelfAttentionNet(2_000, num_classes=4)
        network.attention(x)          # (batch, heads, features), each summing to 1 over the features

    Args:
        dim, num_classes, hidden, dropout: as of `Perceptron`.
        num_heads: h.
        rank: of W_j = U_j V_j^T. None: a full matrix up to 4,096 features, above them rank 64, which is logged.
            0: no W_j at all; the attention is then softmax(b_j) for every row, a learned gate on each feature.

    Raises:
        ValueError: if a size is not positive, or `rank` is negative or above `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        num_heads: int = 2,
        rank: int | None = None,
        hidden: int = 64,
        dropout: float | int = 0.3,
    ):
        super().__init__(dim, num_classes, hidden, dropout)
        _check_sizes(num_heads=num_heads)
        if rank is None and dim > DENSE_LIMIT:
            rank = LOW_RANK
            logger.warning(
                "attention over %d features as %d x %d matrices would take %.1f GB a head; rank %d is used",
                dim, dim, dim, 4e-9 * dim**2, rank,
            )  # fmt: skip
        if rank is not None and not 0 <= rank <= dim:
            raise ValueError(f"rank must lie in 0..{dim}, the number of features, got {rank}")
        self.num_heads, self.rank = num_heads, rank
        self.bias = nn.Parameter(torch.zeros(num_heads, dim))
        # Logits of standard deviation about 0.1 on standardised rows: the attention starts near the identity.
        if rank is None:
            self.weight = nn.Parameter(0.1 * dim**-0.5 * torch.randn(num_heads, dim, dim))
        elif rank > 0:
            self.left = nn.Parameter(0.1 * rank**-0.5 * torch.randn(num_heads, dim, rank))
            self.right = nn.Parameter(dim**-0.5 * torch.randn(num_heads, dim, rank))

    def attention(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch heads dim"]:
        """softmax(W_j x + b_j) of each row and head; sums to 1 over the features."""
        if self.rank == 0:
            return self.bias.softmax(-1).expand(len(x), -1, -1)
        if self.rank is None:
            logits = torch.einsum("hij,bj->bhi", self.weight, x)
        else:
            # Row first: the product of the two factors would be the matrix that they stand for.
            code = torch.einsum("hjr,bj->bhr", self.right, x)
            logits = torch.einsum("hir,bhr->bhi", self.left, code)
        return (logits + self.bias).softmax(-1)

    def attend(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """Omega(x), Eq. (1)."""
        return x * self.dim * self.attention(x).mean(1)

    def embed(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch hidden"]:
        return super().embed(self.attend(x))

    def global_attention(self) -> Float[Tensor, "dim"]:
        """R_G = (1 / h) sum_j softmax(diag(W_j)); of a gate, the mean of softmax(b_j)."""
        if self.rank == 0:
            return self.bias.softmax(-1).mean(0)
        if self.rank is None:
            diagonal = self.weight.diagonal(dim1=1, dim2=2)
        else:
            diagonal = (self.left * self.right).sum(-1)
        return diagonal.softmax(-1).mean(0)

    def front(self) -> tuple[Float[Tensor, "hidden dim"], Float[Tensor, "hidden"]] | None:
        if self.rank != 0:
            return None
        return self.encode.weight * self.dim * self.bias.softmax(-1).mean(0), self.encode.bias


class ConvAutoencoder(nn.Module, PyTorchModelHubMixin):
    """1-D convolutional autoencoder of a row: (batch, dim) -> (batch, latent) -> (batch, dim).

    Each convolution (kernel 5, stride 2) is followed by batch norm and ReLU; a linear layer makes the code. The decoder
    mirrors it. A convolution reads columns in an order: bring related ones together first (`feature_order`).

    Args:
        dim: features, at least 2 to the number of convolutions.
        latent: length of the code.
        channels: of the convolutions.

    Raises:
        ValueError: if a size is not positive or there are too few features.
    """

    def __init__(self, dim: int, latent: int = 64, channels: Sequence[int] = (32, 64), kernel: int = 5):
        super().__init__()
        _check_sizes(dim=dim, latent=latent, kernel=kernel, **{"number of channels": min(channels, default=0)})
        if dim < 2 ** len(channels):
            raise ValueError(
                f"{len(channels)} strided convolutions need at least {2 ** len(channels)} features, got {dim}"
            )
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {kernel}")
        self.dim, self.latent = dim, latent
        lengths, widths = [dim], [1, *channels]
        down: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            down += [nn.Conv1d(inside, outside, kernel, 2, kernel // 2), nn.BatchNorm1d(outside), nn.ReLU()]
            lengths.append((lengths[-1] + 1) // 2)
        up: list[nn.Module] = []
        for step in range(len(channels), 0, -1):
            # A stride of 2 halves 2m and 2m - 1 alike; the padding says which of the two comes back.
            spare = lengths[step - 1] - (2 * lengths[step] - 1)
            up.append(nn.ConvTranspose1d(widths[step], widths[step - 1], kernel, 2, kernel // 2, spare))
            if step > 1:
                up += [nn.BatchNorm1d(widths[step - 1]), nn.ReLU()]
        flat = widths[-1] * lengths[-1]
        self.encoder = nn.Sequential(nn.Unflatten(1, (1, dim)), *down, nn.Flatten(), nn.Linear(flat, latent))
        self.decoder = nn.Sequential(
            nn.Linear(latent, flat), nn.ReLU(), nn.Unflatten(1, (widths[-1], lengths[-1])), *up, nn.Flatten()
        )

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return self.decoder(self.encoder(x))


class DenseAutoencoder(nn.Module, PyTorchModelHubMixin):
    """An autoencoder that knows no order of the columns: dim - hidden - latent and back, batch norm and ReLU between.

    Its code is as long as that of `ConvAutoencoder`. A dense layer as wide as the flattened convolutions would have
    16 dim^2 weights; `hidden` is a bottleneck instead.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, dim: int, latent: int = 64, hidden: int = 256):
        super().__init__()
        _check_sizes(dim=dim, latent=latent, hidden=hidden)
        self.dim, self.latent = dim, latent
        self.encoder = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        return self.decoder(self.encoder(x))


class AutoencoderClassifier(nn.Module):
    """The code of an autoencoder, and a perceptron latent - hidden - classes on it.

    Args:
        autoencoder: has `encoder`, `decoder` and `latent`.
        num_classes: classes. hidden: units of the perceptron. dropout: before its last layer.
    """

    def __init__(
        self,
        autoencoder: ConvAutoencoder | DenseAutoencoder,
        num_classes: int,
        hidden: int = 128,
        dropout: float | int = 0.3,
    ):
        super().__init__()
        _check_sizes(num_classes=num_classes, hidden=hidden)
        self.autoencoder = autoencoder
        self.head = nn.Sequential(
            nn.Linear(autoencoder.latent, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )

    def embed(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch latent"]:
        """The code of each row."""
        return self.autoencoder.encoder(x)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.embed(x))

    def front(self) -> None:
        """A row meets no linear map first that its columns could be moved through one by one."""

    def reconstruct(
        self, x: Float[Tensor, "batch dim"]
    ) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch dim"]]:
        """Logits and reconstruction from one code."""
        z = self.embed(x)
        return self.head(z), self.autoencoder.decoder(z)
