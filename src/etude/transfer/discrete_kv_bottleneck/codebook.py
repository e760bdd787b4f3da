"""Codebooks of keys: nearest keys, and their placement by moving averages.

van den Oord, Vinyals & Kavukcuoglu, "Neural Discrete Representation Learning", NeurIPS 2017, appendix A.1, for every
codebook by itself. A batch of heads h assigns each to its nearest key; with n_j of them at key j, and their sum s_j,

    N_j <- g N_j + (1 - g) n_j        M_j <- g M_j + (1 - g) s_j                                             (1)
    N~_j = (N_j + eps) / (sum N + K eps) * sum N        k_j = M_j / N~_j                                      (2)

starting from N = 0 and M = the first keys. A key of N_j < `dead_threshold` * heads / K is then put at a random head.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

__all__ = ["EMACodebook"]


class EMACodebook(nn.Module):
    """C codebooks of K keys each, in buffers: no gradient and no optimizer ever moves them.

        codebook = EMACodebook(32, 256, 8)
        for heads in batches:                  # (n, 32, tokens, 8)
            codebook.update(heads)
        indices = codebook.assign(heads)       # (n, 32, 1, tokens)

    Args:
        num_codebooks, num_pairs, dim_key: C, K and the dimension of keys.
        decay: g of Eq. (1), in [0, 1).
        eps: of Eq. (2), > 0.
        dead_threshold: share of an even load below which a key is replaced; 0 replaces none.
        reset_ema_on_replace: whether a replaced key also starts afresh in M and N, at the load of the threshold. The
            official code moves the key only, so that the next batch undoes it unless the key wins a head.
        init: "normal", or "kmeans" of the first batch. The averages then start at the clusters found (M = N k), where
            those of the official code start at M = 0 and pull all keys to the origin.
        kmeans_iters: of Lloyd's iteration.
        memory_bytes: what the distances may take at a time; larger work is tiled. The default keeps a tile in the cache
            of a CPU core; a GPU wants more.
        generator: source of first keys, k-means starts and replacements; the default generator if None.

    Raises:
        ValueError: if a size is not positive, or a number lies outside its range.
    """

    keys: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    initialized: Tensor

    def __init__(
        self,
        num_codebooks: int,
        num_pairs: int,
        dim_key: int,
        *,
        decay: float | int = 0.95,
        eps: float = 1e-5,
        dead_threshold: float | int = 0.1,
        reset_ema_on_replace: bool = False,
        init: str = "normal",
        kmeans_iters: int = 10,
        memory_bytes: int = 2**21,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        sizes = {"num_codebooks": num_codebooks, "num_pairs": num_pairs, "dim_key": dim_key}
        for name, value in (sizes | {"kmeans_iters": kmeans_iters, "memory_bytes": memory_bytes}).items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        if not 0 <= dead_threshold <= 1:
            raise ValueError(f"dead_threshold must lie in [0, 1], got {dead_threshold}")
        if init not in ("normal", "kmeans"):
            raise ValueError(f"init must be normal or kmeans, got {init!r}")
        self.num_codebooks, self.num_pairs, self.dim_key = num_codebooks, num_pairs, dim_key
        self.decay, self.eps, self.dead_threshold = decay, eps, dead_threshold
        self.reset_ema_on_replace, self.kmeans_iters = reset_ema_on_replace, kmeans_iters
        self.memory_bytes = memory_bytes
        self._generator = generator
        keys = torch.randn(num_codebooks, num_pairs, dim_key, generator=generator)
        self.register_buffer("keys", keys)
        self.register_buffer("ema_sums", keys.clone())
        self.register_buffer("ema_counts", torch.zeros(num_codebooks, num_pairs))
        self.register_buffer("initialized", torch.tensor(init == "normal"))

    @torch.no_grad()
    def assign(
        self,
        heads: Float[Tensor, "n codebooks tokens dim_key"],
        topk: int = 1,
        allowed: Bool[Tensor, "codebooks pairs"] | None = None,
        *,
        temperature: float | int = 0.0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "n codebooks topk tokens"]:
        """Each head's nearest keys by Euclidean distance, nearest first; of equally near ones that of lowest index.

        Distances are in float32, under autocast too.

        Args:
            heads: of a batch.
            topk: how many keys, 1..K.
            allowed: keys that may be chosen; all if None.
            temperature: > 0 draws keys without replacement, from softmax(-squared distance / temperature), by Gumbel
                noise; 0 takes the nearest.
            generator: of the Gumbel noise; the default generator if None.

        Raises:
            ValueError: if the heads do not fit, hold NaN, or a codebook allows fewer than `topk` keys.
        """
        flat = self._flat(heads)
        if not 1 <= topk <= self.num_pairs:
            raise ValueError(f"topk must lie in 1..{self.num_pairs}, the keys of a codebook, got {topk}")
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        if allowed is not None:
            counts = allowed.sum(dim=1)
            if int(counts.min()) < topk:
                poor = int(counts.argmin())
                raise ValueError(
                    f"codebook {poor} allows {int(counts[poor])} of its {self.num_pairs} keys, {topk} are fetched; "
                    "only keys that training used serve at evaluation: train the values first"
                )
        found = torch.empty(*flat.shape[:2], topk, dtype=torch.int64, device=flat.device)
        for books, rows, distance in self._distances(flat):
            if allowed is not None:
                distance.masked_fill_(~allowed[books, None], math.inf)
            if temperature:
                where = distance.device if generator is None else generator.device
                uniform = torch.rand(distance.shape, generator=generator, device=where).to(distance.device)
                gumbel = -(-uniform.clamp_(min=torch.finfo(torch.float32).tiny).log()).log()
                distance = distance / temperature - gumbel
            found[books, rows] = _smallest(distance, topk)
        n, _, tokens, _ = heads.shape
        return found.view(self.num_codebooks, n, tokens, topk).permute(1, 0, 3, 2)

    @torch.no_grad()
    def update(
        self, heads: Float[Tensor, "n codebooks tokens dim_key"], *, batch_size: int | None = None
    ) -> Int[Tensor, "n codebooks one tokens"]:
        """Moves the keys by one batch, Eqs. (1) and (2), and replaces dead ones.

        Args:
            heads: of the batch.
            batch_size: samples of a full batch, which the threshold of dead keys is measured by; those here if None.

        Returns:
            The keys to which the heads were nearest before the update.
        """
        flat = self._flat(heads)
        if not bool(self.initialized):
            self._start_from_clusters(flat)
        nearest = self._nearest(flat)
        counts, sums = self._gathered(flat, nearest)
        self.ema_counts.lerp_(counts, 1 - self.decay)
        self.ema_sums.lerp_(sums, 1 - self.decay)
        total = self.ema_counts.sum(dim=1, keepdim=True)
        smoothed = (self.ema_counts + self.eps) / (total + self.num_pairs * self.eps) * total
        self.keys.copy_(self.ema_sums / smoothed[..., None])
        if self.dead_threshold:
            load = (heads.shape[0] if batch_size is None else batch_size) * heads.shape[2] / self.num_pairs
            self._replace_dead(flat, self.dead_threshold * load)
        n, _, tokens, _ = heads.shape
        return nearest.view(self.num_codebooks, n, 1, tokens).transpose(0, 1)

    def _flat(self, heads: Tensor) -> Tensor:
        """(codebooks, n * tokens, dim_key) in float32."""
        expected = (self.num_codebooks, self.dim_key)
        if heads.ndim != 4 or (heads.shape[1], heads.shape[3]) != expected:
            raise ValueError(
                f"heads must have shape (n, {expected[0]}, tokens, {expected[1]}), got {tuple(heads.shape)}"
            )
        if not bool(torch.isfinite(heads).all()):
            raise ValueError("heads hold NaN or infinite values")
        return heads.float().transpose(0, 1).reshape(self.num_codebooks, -1, self.dim_key)

    def _distances(self, flat: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Tiles of |k|^2 - 2 h.k: what does not depend on the key, |h|^2, changes no choice."""
        room = max(self.memory_bytes // (4 * self.num_pairs), 1)
        rows_at_once = min(flat.shape[1], room)
        books_at_once = max(room // max(rows_at_once, 1), 1)
        with torch.autocast(flat.device.type, enabled=False):
            norms = self.keys.square().sum(dim=-1)
            for first in range(0, self.num_codebooks, books_at_once):
                books = slice(first, min(first + books_at_once, self.num_codebooks))
                for start in range(0, flat.shape[1], max(rows_at_once, 1)):
                    rows = slice(start, min(start + rows_at_once, flat.shape[1]))
                    keys = self.keys[books].transpose(1, 2)
                    yield books, rows, torch.baddbmm(norms[books, None], flat[books, rows], keys, alpha=-2)

    def _nearest(self, flat: Tensor) -> Tensor:
        found = torch.empty(flat.shape[:2], dtype=torch.int64, device=flat.device)
        for books, rows, distance in self._distances(flat):
            found[books, rows] = _smallest(distance, 1)[..., 0]
        return found

    def _gathered(self, flat: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Counts and sums of the heads at each key."""
        offsets = self.num_pairs * torch.arange(self.num_codebooks, device=flat.device)[:, None]
        at = (indices + offsets).flatten()
        size = self.num_codebooks * self.num_pairs
        counts = torch.bincount(at, minlength=size).float().view_as(self.ema_counts)
        sums = flat.new_zeros(size, self.dim_key).index_add_(0, at, flat.flatten(0, 1))
        return counts, sums.view_as(self.keys)

    def _drawn(self, flat: Tensor) -> Tensor:
        """K random heads for each codebook, with replacement."""
        shape = (self.num_codebooks, self.num_pairs)
        device = "cpu" if self._generator is None else self._generator.device
        rows = torch.randint(flat.shape[1], shape, generator=self._generator, device=device).to(flat.device)
        return flat.gather(1, rows[..., None].expand(-1, -1, self.dim_key))

    def _replace_dead(self, flat: Tensor, threshold: float) -> None:
        dead = self.ema_counts < threshold
        if not bool(dead.any()):
            return
        self.keys.copy_(torch.where(dead[..., None], self._drawn(flat), self.keys))
        if self.reset_ema_on_replace:
            self.ema_counts.masked_fill_(dead, threshold)
            self.ema_sums.copy_(torch.where(dead[..., None], threshold * self.keys, self.ema_sums))

    def _start_from_clusters(self, flat: Tensor) -> None:
        self.keys.copy_(self._drawn(flat))
        counts = self.ema_counts
        for _ in range(self.kmeans_iters):
            nearest = self._nearest(flat)
            counts, sums = self._gathered(flat, nearest)
            means = sums / counts.clamp(min=1)[..., None]
            self.keys.copy_(torch.where(counts[..., None] > 0, means, self.keys))
        self.ema_counts.copy_(counts)
        self.ema_sums.copy_(counts[..., None] * self.keys)
        self.initialized.fill_(True)


def _smallest(distance: Tensor, topk: int) -> Tensor:
    """Indices of the `topk` smallest along the last axis, equal ones in the order of their index."""
    if topk == 1:
        return distance.min(dim=-1, keepdim=True).indices  # twice as fast as argmin
    return distance.sort(dim=-1, stable=True).indices[..., :topk]
