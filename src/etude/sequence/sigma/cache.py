"""Keys and values of the tokens read so far, in two tensors, as they have different head counts and widths.

Lin et al., arXiv:2501.13629, Eq. (1): a layer keeps batch * tokens * (n_k d_k + n_v d_v) numbers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from etude.sequence.sigma.functional import check_heads

__all__ = ["DiffKVCache"]


class DiffKVCache:
    """Room for `max_len` tokens of one layer.

    Args:
        batch: sequences.
        num_k_heads, num_v_heads: heads of keys and values.
        k_head_dim, v_head_dim: widths of a head.
        max_len: tokens.
        dtype, device: of the tensors.

    Attributes:
        length: tokens in it.
    """

    def __init__(
        self,
        batch: int,
        num_k_heads: int,
        num_v_heads: int,
        k_head_dim: int,
        v_head_dim: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        check_heads(num_k_heads * num_v_heads, num_k_heads, num_v_heads)
        if min(batch, k_head_dim, v_head_dim, max_len) < 1:
            raise ValueError(
                f"batch, widths and max_len must be positive, got {batch}, {k_head_dim}, {v_head_dim} and {max_len}"
            )
        self._keys = torch.zeros(batch, num_k_heads, max_len, k_head_dim, dtype=dtype, device=device)
        self._values = torch.zeros(batch, num_v_heads, max_len, v_head_dim, dtype=dtype, device=device)
        self.length = 0

    @property
    def max_len(self) -> int:
        return self._keys.shape[2]

    @property
    def keys(self) -> Float[Tensor, "batch k_heads length k_width"]:
        """Those in it; a view."""
        return self._keys[:, :, : self.length]

    @property
    def values(self) -> Float[Tensor, "batch v_heads length v_width"]:
        """Those in it; a view."""
        return self._values[:, :, : self.length]

    @torch.no_grad()
    def append(
        self, keys: Float[Tensor, "batch k_heads new k_width"], values: Float[Tensor, "batch v_heads new v_width"]
    ) -> None:
        """Adds tokens at the end.

        Raises:
            ValueError: if there is no room left, or shapes do not fit.
        """
        new = keys.shape[2]
        for name, given, own in (("keys", keys, self._keys), ("values", values, self._values)):
            expected = (*own.shape[:2], new, own.shape[3])
            if tuple(given.shape) != expected:
                raise ValueError(f"{name} must have shape {expected}, got {tuple(given.shape)}")
        if self.length + new > self.max_len:
            raise ValueError(f"the cache holds {self.length} of {self.max_len} tokens: there is no room for {new} more")
        self._keys[:, :, self.length : self.length + new] = keys
        self._values[:, :, self.length : self.length + new] = values
        self.length += new

    def crop(self, length: int) -> None:
        """Forgets all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"length must lie in 0..{self.length}, the tokens in the cache, got {length}")
        self.length = length

    def reorder(self, index: Int[Tensor, "batch"]) -> None:
        """Row i becomes what row index[i] was, as beam search wants it."""
        self._keys, self._values = self._keys[index], self._values[index]

    def nbytes(self) -> int:
        """Bytes of the two tensors' storage, all `max_len` tokens."""
        return self._keys.untyped_storage().nbytes() + self._values.untyped_storage().nbytes()
