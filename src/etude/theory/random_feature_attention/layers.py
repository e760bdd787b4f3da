"""Attention with frozen random query-key matrices, and the random-feature networks it is compared with.

Fu, Guo, Bai & Mei, "What can a Single Attention Layer Learn? A Study Through the Random Features Lens", NeurIPS 2023,
arXiv:2307.11353. With tokens xt = [x; 1], a query x_0, keys x_1..x_N and heads m = 1..M,

    phi_m = (1/N) sum_i relu(xt_0^T W_m xt_i) xt_i,   f = (1/M) sum_m <v_m, phi_m>                            (1)
    W_m ~ N(W_0, 1/4) entrywise,                      W_0 = bias [[I_d, 0], [0, 0]]                           (2)

W_m is frozen and v_m trained, so that f is linear in its parameters. The weights of the average are a ReLU, not a
softmax: 1/N is the normaliser. Beside it stand, with the same f = (1/M') sum_m v_m phi_m,

    phi_m = relu(<w_m, z>),                   z = [xt_0, xt_1, .., xt_N],   w_m ~ N(0, I / dim z)             (3)
    phi_m = (1/N) sum_i relu(<w_m, z_i>),     z_i = [xt_0, xt_i],           w_m ~ N(0, I / dim z_i)           (4)

the network on the concatenated tokens, and one that like attention is a mean over keys, but of neurons.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.theory.random_feature_attention.tokens import Tokens, augment, check_tokens, warn_if_long

__all__ = ["RandomFeatureAttention", "RandomFeatureDeepSet", "RandomFeatureMLP", "RandomFeatures"]

_HUB = {"library_name": "etude", "paper_url": "https://arxiv.org/abs/2307.11353"}

BLOCK_BYTES = 1 << 24
"""Features held at a time: 16 MB, of which the product that follows reads every number hundreds of times."""

_COLUMNS = 256
"""Features that a block has at least: with fewer, a product would cost less than the pass over the Gram matrix."""

_STRIP = 256
"""Rows of a symmetric matrix worked on at a time: large enough for products at full speed, and half are spared."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "exp": torch.exp}


class RandomFeatures(nn.Module, ABC):
    """A linear model in frozen random features: what the layers of this module share.

    Subclasses give the features of a range of their `num_units` units; a unit has one value of `unit_dim` numbers for
    each output. Features take the dtype of the tokens, whatever that of the parameters.

    Attributes:
        values: the only parameters, zero at the start: descent from there finds the smallest of equally good ones.
    """

    values: nn.Parameter

    def __init__(self, dim: int, num_units: int, unit_dim: int, out_dim: int):
        super().__init__()
        for name, number in (("dim", dim), ("the number of units", num_units), ("out_dim", out_dim)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.dim = dim
        self.num_units, self.unit_dim, self.out_dim = num_units, unit_dim, out_dim
        self.values = nn.Parameter(torch.zeros(num_units, unit_dim, out_dim))

    @property
    def num_features(self) -> int:
        """Trained numbers an output: M (d + 1) for attention."""
        return self.num_units * self.unit_dim

    @abstractmethod
    def _features(self, query: Tensor, keys: Tensor, key_mask: Tensor | None, units: slice) -> Tensor:
        """phi of the units, (batch, units, unit_dim), unchecked."""

    def _check(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> None:
        check_tokens(query, keys, key_mask, self.dim)
        warn_if_long(query, keys, key_mask)

    def features(
        self,
        query: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch num_keys dim"],
        key_mask: Bool[Tensor, "batch num_keys"] | None = None,
        *,
        units: slice = slice(None),
    ) -> Float[Tensor, "batch units unit_dim"]:
        """phi_m of Eq. (1), (3) or (4), without the factor 1/M; of a range of units if `units` says so."""
        self._check(query, keys, key_mask)
        return self._features(query, keys, key_mask, units)

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch num_keys dim"],
        key_mask: Bool[Tensor, "batch num_keys"] | None = None,
    ) -> Float[Tensor, "batch out_dim"]:
        """f of Eq. (1).

        Args:
            query: one token an example.
            keys: its set of tokens, at least one.
            key_mask: True where a key counts.
        """
        phi = self.features(query, keys, key_mask)
        return torch.einsum("nmu,muo->no", phi, self.values.to(phi.dtype)) / self.num_units

    @torch.no_grad()
    def predict(self, tokens: Tokens, *, block_bytes: int = BLOCK_BYTES) -> Float[Tensor, "n out_dim"]:
        """f without gradients, over blocks of examples that hold no more than `block_bytes` of features."""
        self._check(tokens.query, tokens.keys, tokens.key_mask)
        values = self.values.to(tokens.query.dtype).flatten(0, 1) / self.num_units
        size = self.block_rows(tokens, block_bytes)
        parts = [self.flat_features(tokens[start : start + size]) @ values for start in range(0, len(tokens), size)]
        return torch.cat(parts) if parts else tokens.query.new_empty(0, self.out_dim)

    @torch.no_grad()
    def gram(
        self, tokens: Tokens, other: Tokens | None = None, *, block_bytes: int = BLOCK_BYTES
    ) -> Float[Tensor, "n m"]:
        """sum_m <phi_m(x), phi_m(x')> / M in float64, accumulated over blocks of units.

        Args:
            tokens: the rows.
            other: the columns; None for the rows again, of which half the products are spared.
            block_bytes: of the features held at a time, which are 256 at least.
        """
        tokens = tokens.to(torch.float64)
        self._check(tokens.query, tokens.keys, tokens.key_mask)
        if other is None:
            return self._symmetric_gram(tokens, block_bytes)
        other = other.to(torch.float64)
        self._check(other.query, other.keys, other.key_mask)
        found = tokens.query.new_zeros(len(tokens), len(other))
        for units in self._unit_blocks(
            len(tokens) * self._bytes(tokens) + len(other) * self._bytes(other), block_bytes
        ):
            found.addmm_(self.flat_features(tokens, units), self.flat_features(other, units).T)
        return found.div_(self.num_units)

    def _symmetric_gram(self, tokens: Tokens, block_bytes: int) -> Tensor:
        n = len(tokens)
        found = tokens.query.new_zeros(n, n)
        strips = [slice(start, min(start + _STRIP, n)) for start in range(0, n, _STRIP)]
        for units in self._unit_blocks(n * self._bytes(tokens), block_bytes):
            phi = self.flat_features(tokens, units)
            for rows in strips:
                found[rows, : rows.stop].addmm_(phi[rows], phi[: rows.stop].T)
        return found.tril_().add_(found.tril(-1).T).div_(self.num_units)

    @torch.no_grad()
    def covariance(
        self, tokens: Tokens, targets: Float[Tensor, "n outputs"], *, block_bytes: int = BLOCK_BYTES
    ) -> tuple[Float[Tensor, "features features"], Float[Tensor, "features outputs"]]:
        """Psi^T Psi and Psi^T y in float64 for Psi = phi / sqrt(M), accumulated over blocks of examples."""
        tokens, p = tokens.to(torch.float64), self.num_features
        matrix, moment = tokens.query.new_zeros(p, p), tokens.query.new_zeros(p, targets.shape[1])
        self._check(tokens.query, tokens.keys, tokens.key_mask)
        size = self.block_rows(tokens, block_bytes)
        for start in range(0, len(tokens), size):
            phi = self.flat_features(tokens[start : start + size])
            matrix.addmm_(phi.T, phi)
            moment.addmm_(phi.T, targets[start : start + size].to(phi.dtype))
        return matrix.div_(self.num_units), moment.div_(math.sqrt(self.num_units))

    @torch.no_grad()
    def flat_features(self, tokens: Tokens, units: slice = slice(None)) -> Float[Tensor, "n features"]:
        """phi of all units side by side, in the order of `values`; tokens are not checked again."""
        return self._features(tokens.query, tokens.keys, tokens.key_mask, units).flatten(1)

    def block_rows(self, tokens: Tokens, block_bytes: int = BLOCK_BYTES) -> int:
        """Examples whose features fit into a block, at least one."""
        return max(block_bytes // (self._bytes(tokens) * self.num_units), 1)

    def penalty(self, ridge: float | int) -> Float[Tensor, ""]:
        """ridge |u|^2, u = v / sqrt(M): added to the mean squared error it makes descent find the ridge solution."""
        return ridge / self.num_units * self.values.square().sum()

    def _bytes(self, tokens: Tokens) -> int:
        """Of one unit of one example, with what its features are made from."""
        return (2 * self.unit_dim + tokens.num_keys) * tokens.query.element_size()

    def _unit_blocks(self, unit_bytes: int, block_bytes: int) -> list[slice]:
        size = max(block_bytes // max(unit_bytes, 1), math.ceil(_COLUMNS / self.unit_dim))
        return [slice(start, min(start + size, self.num_units)) for start in range(0, self.num_units, size)]


class RandomFeatureAttention(RandomFeatures, PyTorchModelHubMixin, **_HUB):
    """Random-feature attention, Eq. (1): many heads with frozen query-key matrices and trained values.

        layer = RandomFeatureAttention(dim=16, num_heads=1000)
        layer(query, keys)                                   # (batch, 16), (batch, N, 16) -> (batch, 1)
        fit_ridge(layer, Tokens(query, keys), y, ridge=1e-4)     # the optimum, without descent

    The output does not change if keys change places, nor if the whole list of keys is repeated.

    Args:
        dim: d, of the tokens, >= 1; lengths of about 1 are expected.
        num_heads: M.
        out_dim: number of outputs.
        weight_std: standard deviation of the entries of W_m around W_0; at the paper's 1/2 scores of unit tokens have
            variance 1.
        bias: factor of W_0 in Eq. (2); 0 is the plain layer, 1 the paper's biased one.
        rank: None for dense W_m; r for W_m = W_0 + Q_m K_m^T / sqrt(r) with frozen Gaussian Q_m and K_m, (d + 1) x r,
            as in a layer with separate query and key matrices. The entries keep their variance.
        activation: "relu", the paper's; "exp"; "softmax" over the keys, in place of the average; or an elementwise
            function.
        generator: source of the frozen weights; the default generator if None.

    Raises:
        ValueError: if a size is below 1, `weight_std` is not positive, or a name is unknown.
    """

    weight: Tensor
    query_weight: Tensor
    key_weight: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        out_dim: int = 1,
        weight_std: float | int = 0.5,
        bias: float | int = 0.0,
        rank: int | None = None,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        generator: torch.Generator | None = None,
    ):
        if not 0 < weight_std < math.inf or not math.isfinite(bias):
            raise ValueError(f"weight_std must be positive and bias finite, got {weight_std} and {bias}")
        if rank is not None and rank < 1:
            raise ValueError(f"rank must be at least 1, or None, got {rank}")
        if isinstance(activation, str) and activation not in (*ACTIVATIONS, "softmax"):
            raise ValueError(f'activation must be "relu", "exp", "softmax" or a function, got {activation!r}')
        super().__init__(dim, num_heads, dim + 1, out_dim)
        self.num_heads, self.weight_std, self.bias = num_heads, float(weight_std), float(bias)
        self.rank, self.activation = rank, activation
        if rank is None:
            weight = torch.randn(num_heads, dim + 1, dim + 1, generator=generator).mul_(weight_std)
            weight.diagonal(dim1=1, dim2=2)[:, :dim] += bias
            self.register_buffer("weight", weight)
        else:
            # The variance of an entry of Q K^T / sqrt(r) is the product of theirs.
            for name in ("query_weight", "key_weight"):
                factor = torch.randn(num_heads, dim + 1, rank, generator=generator).mul_(math.sqrt(weight_std))
                self.register_buffer(name, factor)

    def _features(self, query: Tensor, keys: Tensor, key_mask: Tensor | None, units: slice) -> Tensor:
        keys = augment(keys)
        if key_mask is not None:
            keys = keys.masked_fill(~key_mask[:, :, None], 0.0)  # whatever stands in a masked key, even NaN
        scores = self._mixed(query, units) @ keys.mT
        if self.activation == "softmax":
            if key_mask is not None:
                scores = scores.masked_fill(~key_mask[:, None, :], -math.inf)
            return scores.softmax(dim=-1) @ keys
        activation = ACTIVATIONS[self.activation] if isinstance(self.activation, str) else self.activation
        # A masked key is zero and adds nothing; the keys are fewer numbers to divide than the features.
        count = keys.shape[1] if key_mask is None else key_mask.sum(1)[:, None, None]
        return activation(scores) @ (keys / count)

    def _mixed(self, query: Tensor, units: slice) -> Tensor:
        """xt_0^T W_m, (batch, units, d + 1)."""
        x = augment(query)
        if self.rank is None:
            weight = self.weight[units].to(x.dtype)
            return (x @ weight.transpose(0, 1).flatten(1)).unflatten(1, (len(weight), -1))
        left, right = self.query_weight[units].to(x.dtype), self.key_weight[units].to(x.dtype)
        mixed = torch.einsum("ne,mer,mfr->nmf", x, left, right) / math.sqrt(left.shape[2])
        return mixed + F.pad(self.bias * query, (0, 1))[:, None, :] if self.bias else mixed

    def _save_pretrained(self, save_directory: Path) -> None:
        if not isinstance(self.activation, str):
            raise ValueError(
                f"the activation {self.activation!r} is a function and would come back as the ReLU: keep the "
                "state_dict instead, and give the function again"
            )
        super()._save_pretrained(save_directory)

    def head_matrices(self) -> Float[Tensor, "num_heads augmented augmented"]:
        """W_m of Eq. (2), whether stored or made from its factors."""
        if self.rank is None:
            return self.weight
        product = self.query_weight @ self.key_weight.mT / math.sqrt(self.rank)
        product.diagonal(dim1=1, dim2=2)[:, : self.dim] += self.bias
        return product

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, out_dim={self.out_dim}, bias={self.bias:g}, rank={self.rank}"
        )


class RandomFeatureMLP(RandomFeatures, PyTorchModelHubMixin, **_HUB):
    """A network of one hidden layer with frozen random weights on the concatenated tokens, Eq. (3).

    With `width` = M (d + 1) it has as many trained parameters as attention with M heads. A masked key is zero.

    Args:
        dim: d, of the tokens.
        num_keys: N; it cannot change, and keys are not exchangeable.
        width: M', of neurons.
        out_dim: number of outputs.
        generator: source of the frozen weights; the default generator if None.
    """

    weight: Tensor

    def __init__(self, dim: int, num_keys: int, width: int, out_dim: int = 1, generator: torch.Generator | None = None):
        if num_keys < 1:
            raise ValueError(f"num_keys must be at least 1, got {num_keys}")
        super().__init__(dim, width, 1, out_dim)
        self.num_keys, self.width = num_keys, width
        inputs = (num_keys + 1) * (dim + 1)
        self.register_buffer("weight", torch.randn(width, inputs, generator=generator) / math.sqrt(inputs))

    def _check(self, query: Tensor, keys: Tensor, key_mask: Tensor | None) -> None:
        super()._check(query, keys, key_mask)
        if keys.shape[1] != self.num_keys:
            raise ValueError(f"this network takes {self.num_keys} keys, got {keys.shape[1]}")

    def _features(self, query: Tensor, keys: Tensor, key_mask: Tensor | None, units: slice) -> Tensor:
        z = concatenated(query, keys, key_mask)
        return torch.relu(z @ self.weight[units].to(z.dtype).T)[:, :, None]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_keys={self.num_keys}, width={self.width}, out_dim={self.out_dim}"


class RandomFeatureDeepSet(RandomFeatures, PyTorchModelHubMixin, **_HUB):
    """A mean over keys of random neurons on the query and one key, Eq. (4): the symmetry of attention without it.

    Not in the paper. Its distance from `RandomFeatureMLP` is what averaging over keys gains by itself.

    Args:
        dim: d, of the tokens.
        width: M', of neurons.
        out_dim: number of outputs.
        generator: source of the frozen weights; the default generator if None.
    """

    weight: Tensor

    def __init__(self, dim: int, width: int, out_dim: int = 1, generator: torch.Generator | None = None):
        super().__init__(dim, width, 1, out_dim)
        self.width = width
        inputs = 2 * (dim + 1)
        self.register_buffer("weight", torch.randn(width, inputs, generator=generator) / math.sqrt(inputs))

    def _features(self, query: Tensor, keys: Tensor, key_mask: Tensor | None, units: slice) -> Tensor:
        left, right = self.weight[units].to(query.dtype).split(self.dim + 1, dim=1)
        scores = (augment(query) @ left.T)[:, None, :] + augment(keys) @ right.T
        neurons = torch.relu(scores)
        if key_mask is None:
            return neurons.mean(1)[:, :, None]
        neurons = neurons.masked_fill(~key_mask[:, :, None], 0.0)
        return (neurons.sum(1) / key_mask.sum(1, keepdim=True))[:, :, None]

    def _bytes(self, tokens: Tokens) -> int:
        return 2 * (1 + tokens.num_keys) * tokens.query.element_size()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, width={self.width}, out_dim={self.out_dim}"


def concatenated(query: Tensor, keys: Tensor, key_mask: Tensor | None) -> Float[Tensor, "batch inputs"]:
    """z of Eq. (3); a masked key is zero, its 1 too."""
    keys = augment(keys)
    if key_mask is not None:
        keys = keys.masked_fill(~key_mask[:, :, None], 0.0)
    return torch.cat([augment(query), keys.flatten(1)], dim=1)
