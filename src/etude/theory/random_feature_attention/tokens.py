"""Queries and keys: one query token and a set of key tokens an example, with every token extended by a constant 1."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["LARGE_NORM", "Draw", "Tokens", "augment", "check_tokens", "from_arrays", "warn_if_long"]

LARGE_NORM = 3.0
"""Root-mean-square norm of tokens above which the constant 1 beside them has next to no weight."""


def augment(x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape augmented"]:
    """[x; 1]: without the 1 an attention score has neither a constant nor a term in the query or in the key alone."""
    return F.pad(x, (0, 1), value=1.0)


def check_tokens(query: Tensor, keys: Tensor, key_mask: Tensor | None, dim: int | None = None) -> None:
    """Refuses what no layer here can take.

    Raises:
        ValueError: if shapes do not fit, there is no key, or an example has all its keys masked; the message holds the
            shapes, or the first such example.
        TypeError: if the mask is not boolean.
    """
    if query.ndim != 2 or keys.ndim != 3 or keys.shape[0] != query.shape[0] or keys.shape[2] != query.shape[1]:
        raise ValueError(
            "query must be (batch, dim) and keys (batch, num_keys, dim) with the same batch and dim, "
            f"got {tuple(query.shape)} and {tuple(keys.shape)}"
        )
    if dim is not None and query.shape[1] != dim:
        raise ValueError(f"tokens must have dim {dim}, got {query.shape[1]}: query {tuple(query.shape)}")
    if keys.shape[1] == 0:
        raise ValueError(f"there must be at least one key, got keys of shape {tuple(keys.shape)}")
    if key_mask is not None:
        if key_mask.dtype != torch.bool:
            raise TypeError(f"key_mask must be bool, True where a key counts, got {key_mask.dtype}")
        if key_mask.shape != keys.shape[:2]:
            raise ValueError(f"key_mask must have shape {tuple(keys.shape[:2])}, got {tuple(key_mask.shape)}")
        empty = ~key_mask.any(dim=1)
        if bool(empty.any()):
            raise ValueError(
                f"{int(empty.sum())} of {len(keys)} examples have all their keys masked, the first being "
                f"{int(empty.int().argmax())}: the mean over no key is undefined"
            )


def warn_if_long(query: Tensor, keys: Tensor, key_mask: Tensor | None) -> None:
    """Warns of tokens far longer than 1."""
    valid = (keys if key_mask is None else keys[key_mask]).detach()
    if not query.numel():
        return
    longest = max(float(part.square().sum(-1).mean().sqrt()) for part in (query.detach(), valid))
    if longest > LARGE_NORM:
        warnings.warn(
            f"tokens have a root-mean-square norm of {longest:.3g}, scores a variance far above 1: divide the tokens "
            "by it, so that the constant 1 beside them keeps its weight",
            stacklevel=4,
        )


@dataclass(frozen=True, eq=False)
class Tokens:
    """Examples of one query and a set of keys each.

        tokens = Tokens(query, keys)                # (n, dim), (n, num_keys, dim)
        tokens = Tokens.from_array(X)               # (n, 1 + num_keys, dim), token 0 the query, NaN rows no keys
        first = tokens[:100]

    Args:
        query: floating point (n, dim).
        keys: (n, num_keys, dim).
        key_mask: bool (n, num_keys), True where a key counts; None if all do.

    Raises:
        ValueError: as for `check_tokens`, or if the query or a key that counts is not finite.
        TypeError: if tokens are not floating point, or the mask is not boolean.
    """

    query: Tensor
    keys: Tensor
    key_mask: Tensor | None = None

    def __post_init__(self) -> None:
        for name, part in (("query", self.query), ("keys", self.keys)):
            if not part.is_floating_point():
                raise TypeError(f"{name} must be floating point, got {part.dtype}")
        check_tokens(self.query, self.keys, self.key_mask)
        valid = self.keys if self.key_mask is None else self.keys[self.key_mask]
        if not bool(torch.isfinite(self.query).all()) or not bool(torch.isfinite(valid).all()):
            raise ValueError("query and keys must be finite; keys that do not count belong into key_mask")

    @classmethod
    def from_array(cls, X: Any, dtype: torch.dtype = torch.float64) -> "Tokens":
        """Token 0 is the query; a key whose entries are all NaN is masked.

        Raises:
            ValueError: if X is not (n, 1 + num_keys, dim) with at least one key, a query has NaN, or a key has some.
        """
        try:
            array = np.asarray(X, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"X must be an array of numbers (n, 1 + num_keys, dim): {error}") from None
        if array.ndim != 3 or array.shape[1] < 2 or array.shape[2] < 1:
            raise ValueError(f"X must have shape (n, 1 + num_keys, dim) with at least one key, got {array.shape}")
        missing = np.isnan(array)
        if missing[:, 0].any():
            raise ValueError(f"the query of example {np.argwhere(missing[:, 0])[0, 0]} has NaN; only keys may be NaN")
        absent = missing[:, 1:].all(2)
        partly = missing[:, 1:].any(2) & ~absent
        if partly.any():
            raise ValueError(
                f"{int(partly.sum())} keys have some NaN entries, the first in example {np.argwhere(partly)[0, 0]}; "
                "a key is masked by NaN in all of them"
            )
        tensor = torch.from_numpy(np.where(missing, 0.0, array)).to(dtype)
        mask = torch.from_numpy(~absent) if absent.any() else None
        return cls(tensor[:, 0], tensor[:, 1:], mask)

    @property
    def dim(self) -> int:
        return self.query.shape[1]

    @property
    def num_keys(self) -> int:
        return self.keys.shape[1]

    @property
    def key_counts(self) -> Tensor:
        """Number of keys that count in each example, (n,), in the dtype of the tokens."""
        if self.key_mask is None:
            return self.query.new_full((len(self),), self.num_keys)
        return self.key_mask.sum(1).to(self.query.dtype)

    def __len__(self) -> int:
        return len(self.query)

    def __getitem__(self, rows: slice | Tensor) -> "Tokens":
        return self._with(lambda part: part[rows])

    def to(self, *args: Any) -> "Tokens":
        """As `Tensor.to`, for a device or a floating dtype; the mask keeps its own."""
        moved = self._with(lambda part: part if part.dtype == torch.bool else part.to(*args))
        if moved.key_mask is not None:
            object.__setattr__(moved, "key_mask", moved.key_mask.to(moved.query.device))
        return moved

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Tokens":
        """Changed part by part, without checking again what has been checked."""
        found = object.__new__(Tokens)
        for name in ("query", "keys", "key_mask"):
            part = getattr(self, name)
            object.__setattr__(found, name, None if part is None else change(part))
        return found


Draw = Callable[[int, torch.Generator], tuple[Tokens, Tensor]]
"""Draws n examples and their targets (n,) or (n, targets)."""


def from_arrays(X: Any, y: Any) -> Draw:
    """A user's own examples as a source to draw from, without replacement.

    Args:
        X: (n, 1 + num_keys, dim), as for `Tokens.from_array`.
        y: (n,) or (n, targets).

    Raises:
        ValueError: if X is malformed or y has another length; on drawing, if more examples are wanted than there are.
    """
    tokens, targets = Tokens.from_array(X), torch.as_tensor(np.asarray(y, dtype=np.float64))
    if targets.ndim not in (1, 2) or len(targets) != len(tokens):
        raise ValueError(f"y must have shape ({len(tokens)},) or ({len(tokens)}, targets), got {tuple(targets.shape)}")

    def draw(n: int, generator: torch.Generator) -> tuple[Tokens, Tensor]:
        if n > len(tokens):
            raise ValueError(f"{n} examples are wanted, there are {len(tokens)}")
        rows = torch.randperm(len(tokens), generator=generator)[:n]
        return tokens[rows], targets[rows]

    return draw
