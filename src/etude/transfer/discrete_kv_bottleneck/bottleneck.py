"""The discrete key-value bottleneck: heads, frozen keys, and the values that alone are trained.

Träuble, Goyal, Rahaman, Mozer, Kawaguchi, Bengio & Schölkopf, "Discrete Key-Value Bottleneck", ICML 2023,
arXiv:2207.11240, section 3. The official code is github.com/ftraeuble/discrete_key_value_bottleneck.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from etude.transfer.discrete_kv_bottleneck.codebook import EMACodebook
from etude.transfer.discrete_kv_bottleneck.splitters import ChunkHeads, LearnedProjectionHeads, RandomProjectionHeads

__all__ = ["KeyValueBottleneck", "fetched_pairs", "fetched_together"]

_INITS = ("zeros", "normal")


class KeyValueBottleneck(nn.Module, PyTorchModelHubMixin):
    """Snaps the heads of an embedding to their nearest keys and returns the values stored there.

        bottleneck = KeyValueBottleneck(576, num_codebooks=32, num_pairs=256, dim_key=8, dim_value=10)
        bottleneck.place_keys(unlabelled)        # moves the keys to the data, then freezes them for good
        values = bottleneck(z)                   # (n, 32, 1, 1, 10); the gradient reaches the fetched values only

    The values are the only parameter. In training mode every fetch is counted in `usage`; in evaluation mode, keys
    that were never fetched in training are passed over, as they hold nothing.

    Train the values by plain SGD: momentum, Adam's moments and weight decay also move values that were not fetched.

    Args:
        in_dim: m, of the embedding.
        num_codebooks: C.
        num_pairs: K, of each codebook.
        dim_key: of a head; for chunks m / C.
        dim_value: the number of classes where a `VotingDecoder` follows.
        splitter: "random" projections (the paper's), "chunk" or "learned".
        topk: keys that a head fetches, once keys are frozen.
        temperature: of random choice among keys, see `EMACodebook.assign`; 0 takes the nearest.
        value_init: "zeros" (the paper's experiments) or "normal".
        mask_unused: whether evaluation passes over keys that training never fetched.
        allow_unplaced: whether values may be trained under keys that were not placed.
        generator: source of projections, keys, values, and all later draws; the default generator if None.
        **codebook: of `EMACodebook`: decay, dead_threshold, init, memory_bytes, ....

    Raises:
        ValueError: if a size is not positive, chunks do not fit, or an option is unknown.
    """

    usage: Tensor
    placed: Tensor
    _frozen: Tensor

    def __init__(
        self,
        in_dim: int,
        num_codebooks: int,
        num_pairs: int,
        dim_key: int | None,
        dim_value: int,
        *,
        splitter: str = "random",
        topk: int = 1,
        temperature: float | int = 0.0,
        value_init: str = "zeros",
        mask_unused: bool = True,
        allow_unplaced: bool = False,
        generator: torch.Generator | None = None,
        **codebook: Any,
    ):
        super().__init__()
        if dim_value < 1:
            raise ValueError(f"dim_value must be positive, got {dim_value}")
        if not 1 <= topk <= num_pairs:
            raise ValueError(f"topk must lie in 1..{num_pairs}, the pairs of a codebook, got {topk}")
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        if value_init not in _INITS:
            raise ValueError(f"value_init must be one of {', '.join(_INITS)}, got {value_init!r}")
        self.splitter = _splitter(splitter, in_dim, num_codebooks, dim_key, generator)
        self.in_dim, self.num_codebooks, self.num_pairs = in_dim, num_codebooks, num_pairs
        self.dim_key, self.dim_value = self.splitter.dim_key, dim_value
        self.topk, self.temperature = topk, temperature
        self.mask_unused, self.allow_unplaced = mask_unused, allow_unplaced
        self._generator = generator
        self.codebook = EMACodebook(num_codebooks, num_pairs, self.dim_key, generator=generator, **codebook)
        shape = (num_codebooks, num_pairs, dim_value)
        start = torch.zeros(shape) if value_init == "zeros" else torch.randn(shape, generator=generator)
        self.values = nn.Parameter(start)
        self.register_buffer("usage", torch.zeros(num_codebooks, num_pairs, dtype=torch.int64))
        self.register_buffer("placed", torch.tensor(False))
        self.register_buffer("_frozen", torch.tensor(False))

    def place_keys(
        self,
        embeddings: Tensor | Iterable[Any],
        epochs: int = 10,
        *,
        batch_size: int = 256,
        generator: torch.Generator | None = None,
    ) -> "KeyValueBottleneck":
        """Moves the keys to unlabelled embeddings, then freezes them and zeroes `usage`.

        Args:
            embeddings: (n, m), (n, tokens, m) or (n, m, height, width), visited in a new order every epoch; or a
                loader of such batches, or of pairs whose first is one.
            epochs: passes over them.
            batch_size: of a tensor; for both, what dead keys are measured by.
            generator: of the order; the bottleneck's own if None.

        Raises:
            ValueError: if the keys are frozen already, `epochs` is not positive, or embeddings do not fit.
        """
        if self.keys_frozen:
            raise ValueError("the keys are frozen; unfreeze_keys() first, which makes the trained values meaningless")
        if epochs < 1 or batch_size < 1:
            raise ValueError(f"epochs and batch_size must be positive, got {epochs} and {batch_size}")
        order = self._generator if generator is None else generator
        batches = 0
        for _ in range(epochs):
            for batch in _batches(embeddings, batch_size, order):
                with torch.no_grad():
                    heads = self.heads(batch.to(self.values.device))
                self.codebook.update(heads, batch_size=batch_size)
                batches += 1
        if not batches:
            raise ValueError("there are no embeddings to place keys by")
        self.placed.fill_(True)
        return self.freeze_keys().reset_usage()

    def freeze_keys(self) -> "KeyValueBottleneck":
        """Keys stay where they are from here on."""
        self._frozen.fill_(True)
        return self

    def unfreeze_keys(self) -> "KeyValueBottleneck":
        """Allows `place_keys` again; values cannot be trained meanwhile."""
        self._frozen.fill_(False)
        return self

    def reset_usage(self) -> "KeyValueBottleneck":
        """Forgets which pairs training has fetched."""
        self.usage.zero_()
        return self

    @property
    def keys_frozen(self) -> bool:
        return bool(self._frozen)

    @property
    def fraction_unused(self) -> float:
        """Share of the pairs that training never fetched."""
        return (self.usage == 0).double().mean().item()

    def heads(self, z: Tensor) -> Float[Tensor, "n codebooks tokens dim_key"]:
        """What the codebooks read, in float32.

        Args:
            z: (n, m), (n, tokens, m), or a map (n, m, height, width) whose places are the tokens, row by row.

        Raises:
            ValueError: if the shape does not fit or a value is not finite.
        """
        tokens = z[:, None] if z.ndim == 2 else z.flatten(2).transpose(1, 2) if z.ndim == 4 else z
        if z.ndim not in (2, 3, 4) or tokens.shape[-1] != self.in_dim:
            raise ValueError(
                f"embeddings must have shape (n, {self.in_dim}), (n, tokens, {self.in_dim}) or "
                f"(n, {self.in_dim}, height, width), got {tuple(z.shape)}"
            )
        bad = int((~torch.isfinite(tokens)).sum())
        if bad:
            raise ValueError(f"embeddings hold NaN or infinite values, {bad} of them")
        with torch.autocast(z.device.type, enabled=False):
            return self.splitter(tokens.float())

    @torch.no_grad()
    def indices(self, z: Tensor, *, batch_size: int = 4096) -> Int[Tensor, "n codebooks topk tokens"]:
        """The pairs that embeddings fetch: in evaluation mode among those that training used. Counts nothing.

        While keys are frozen and training goes on, they never change: `train_values` takes them instead of embeddings.
        """
        self._check_ready()
        allowed = self._allowed()
        parts = [
            self.codebook.assign(
                self.heads(part), self.topk, allowed, temperature=self.temperature, generator=self._generator
            )
            for part in z.split(batch_size)
        ]
        return torch.cat(parts)

    def forward(self, z: Tensor) -> Float[Tensor, "n codebooks topk tokens dim_value"]:
        """Values fetched by embeddings; shapes of `z` as for `heads`."""
        return self.fetch(self.indices(z))

    def fetch(
        self, indices: Int[Tensor, "n codebooks topk tokens"]
    ) -> Float[Tensor, "n codebooks topk tokens dim_value"]:
        """Values at `indices`, differentiable in the values; in training mode each fetch counts as use."""
        flat = self.rows(indices)
        if self.training:
            self._check_ready()
            self.count(flat)
        return F.embedding(flat, self.values.flatten(0, 1))

    def rows(self, indices: Int[Tensor, "n codebooks topk tokens"]) -> Int[Tensor, "n codebooks topk tokens"]:
        """Places in the table `values.flatten(0, 1)` of (codebook, key)."""
        offsets = self.num_pairs * torch.arange(self.num_codebooks, device=indices.device)
        return indices + offsets[:, None, None]

    @torch.no_grad()
    def count(self, rows: Int[Tensor, "..."]) -> None:
        """Counts fetches of rows of the flattened table."""
        self.usage.view(-1).add_(torch.bincount(rows.flatten(), minlength=self.usage.numel()))

    def _allowed(self) -> Bool[Tensor, "codebooks pairs"] | None:
        return self.usage > 0 if self.mask_unused and not self.training else None

    def _check_ready(self) -> None:
        if not bool(self.placed) and not self.allow_unplaced:
            raise ValueError(
                "the keys have not been placed: call place_keys(unlabelled embeddings), or allow_unplaced=True"
            )
        if bool(self.placed) and self.training and not self.keys_frozen:
            raise ValueError("the keys must be frozen before values are trained: call freeze_keys()")

    def extra_repr(self) -> str:
        return f"C={self.num_codebooks}, K={self.num_pairs}, dim_key={self.dim_key}, dim_value={self.dim_value}"


def _splitter(kind: str, in_dim: int, num_codebooks: int, dim_key: int | None, generator: Any) -> Any:
    if kind == "chunk":
        chunks = ChunkHeads(in_dim, num_codebooks)
        if dim_key not in (None, chunks.dim_key):
            raise ValueError(f"chunks of {in_dim} in {num_codebooks} have dim_key {chunks.dim_key}, got {dim_key}")
        return chunks
    kinds = {"random": RandomProjectionHeads, "learned": LearnedProjectionHeads}
    if kind not in kinds:
        raise ValueError(f"splitter must be random, chunk or learned, got {kind!r}")
    if dim_key is None:
        raise ValueError("dim_key is needed, except for chunks")
    return kinds[kind](in_dim, num_codebooks, dim_key, generator=generator)


def _batches(embeddings: Any, batch_size: int, generator: torch.Generator | None) -> Iterable[Tensor]:
    if isinstance(embeddings, Tensor):
        device = "cpu" if generator is None else generator.device
        order = torch.randperm(len(embeddings), generator=generator, device=device).to(embeddings.device)
        yield from (embeddings[rows] for rows in order.split(batch_size) if len(rows))
        return
    for batch in embeddings:
        yield batch[0] if isinstance(batch, tuple | list) else batch


def fetched_together(
    one: Int[Tensor, "n codebooks topk tokens"], other: Int[Tensor, "m codebooks topk tokens"]
) -> Float[Tensor, "n m"]:
    """Share of the codebooks in which two inputs fetch a common pair: all through which learning one moves the other.

    The paper bounds the interference of an update by these pairs: where none is shared, learning from one input leaves
    the prediction for the other as it was, to the bit.
    """
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"both must come from one bottleneck, got {one.shape[1]} and {other.shape[1]} codebooks")
    shared = torch.zeros(len(one), len(other), dtype=torch.float32, device=one.device)
    for book in range(one.shape[1]):  # codebooks, not samples: the whole comparison at once would not fit
        mine, theirs = one[:, book].flatten(1), other[:, book].flatten(1)
        pairs = mine[:, None, :, None] == theirs[None, :, None, :]
        shared += pairs.flatten(2).any(dim=2)
    return shared / one.shape[1]


def fetched_pairs(indices: Int[Tensor, "n codebooks topk tokens"], num_pairs: int) -> Bool[Tensor, "codebooks pairs"]:
    """Which pairs any of the inputs fetches: the only ones that learning from them can change."""
    flat = indices.transpose(0, 1).flatten(1)
    fetched = torch.zeros(len(flat), num_pairs, dtype=torch.bool, device=indices.device)
    return fetched.scatter_(1, flat, True)
