"""What a hypernetwork reads: embeddings of tasks, noise, encoded data, or two of them side by side."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.transfer.hypernetworks.design import HypernetDesign

__all__ = ["Conditions", "SupportSetEncoder"]


class SupportSetEncoder(nn.Module):
    """A vector for a labelled set of examples that does not depend on their order: mean, then a linear map.

    Args:
        features: of an example, flattened.
        num_classes: labels are 0..num_classes - 1.
        cond_dim: size of the vector.
        width: of the hidden layer that each example goes through with its label.
    """

    def __init__(self, features: int, num_classes: int, cond_dim: int, width: int = 64):
        super().__init__()
        self.num_classes = num_classes
        self.embed = nn.Sequential(nn.Linear(features + num_classes, width), nn.ReLU(), nn.Linear(width, width))
        self.out = nn.Linear(width, cond_dim)

    def forward(
        self, support: tuple[Float[Tensor, "batch examples ..."], Int64[Tensor, "batch examples"]]
    ) -> Float[Tensor, "batch cond"]:
        inputs, labels = support
        shown = nn.functional.one_hot(labels, self.num_classes).to(inputs.dtype)
        return self.out(self.embed(torch.cat([inputs.flatten(2), shown], dim=2)).relu().mean(dim=1))


class Conditions(nn.Module):
    """Turns what a caller passes into vectors C.

    Args:
        design: says which parts C has and whether the hypernetwork stores them.
        cond_dim: E, size of each part.
        num_conditions: how many stored conditions: learned embeddings, N(0, 1) at first, for a task; fixed draws for
            noise with `static_input`. None for a task whose vectors come with each call.
        predefined: (conditions, cond_dim), stored vectors that are not learned, in place of `num_conditions`.
        encoder: of data, any module to (batch, cond_dim); None if the data are such vectors already.

    Raises:
        ValueError: if these do not fit the design.
    """

    def __init__(
        self,
        design: HypernetDesign,
        cond_dim: int,
        num_conditions: int | None = None,
        *,
        predefined: Float[Tensor, "conditions cond"] | None = None,
        encoder: nn.Module | None = None,
    ):
        super().__init__()
        self.parts, self.cond_dim, self.encoder = design.parts, cond_dim, encoder
        if cond_dim < 1:
            raise ValueError(f"cond_dim must be positive, got {cond_dim}")
        if encoder is not None and "data" not in self.parts:
            raise ValueError(f"an encoder belongs to conditioning by data, the design has {design.conditioning!r}")
        if predefined is not None:
            if predefined.ndim != 2 or predefined.shape[1] != cond_dim or num_conditions not in (None, len(predefined)):
                raise ValueError(
                    f"predefined must have shape ({num_conditions or 'conditions'}, {cond_dim}), "
                    f"got {tuple(predefined.shape)}"
                )
            num_conditions = len(predefined)
        if num_conditions is not None and num_conditions < 1:
            raise ValueError(f"num_conditions must be positive, got {num_conditions}")
        if design.static_input and num_conditions is None:
            raise ValueError("static_input=True stores its conditions: say how many with num_conditions")
        if num_conditions is not None and not design.static_input and len(self.parts) == 1:
            raise ValueError(
                f"conditioning={design.conditioning!r} with static_input=False takes its conditions with each call; "
                f"num_conditions must be None, got {num_conditions}"
            )
        self.learned = nn.ParameterList()
        self.register_buffer("fixed", None)
        if predefined is not None:
            self.fixed = predefined.detach().clone()
        elif num_conditions is not None and self.parts[0] == "noise":
            self.fixed = torch.randn(num_conditions, cond_dim)
        elif num_conditions is not None:
            self.learned.extend(nn.Parameter(torch.randn(cond_dim)) for _ in range(num_conditions))

    @property
    def count(self) -> int:
        """Stored conditions."""
        return len(self.learned) if self.fixed is None else len(self.fixed)

    @property
    def size(self) -> int:
        """Of C."""
        return self.cond_dim * len(self.parts)

    def add(self, like: Tensor | None = None) -> int:
        """Stores one more learned embedding: N(0, 1), or a copy of `like`. Returns its number."""
        if not len(self.learned):
            raise ValueError("the conditions are not learned embeddings; none can be added")
        first = self.learned[0]
        value = torch.randn(self.cond_dim).to(first) if like is None else like.detach().clone().to(first)
        if value.shape != (self.cond_dim,):
            raise ValueError(f"an embedding must have shape ({self.cond_dim},), got {tuple(value.shape)}")
        self.learned.append(nn.Parameter(value))
        return len(self.learned) - 1

    def at_hand(self, device: torch.device, draws: int = 1000) -> tuple[Tensor, Tensor | None]:
        """The stored conditions, or `draws` from N(0, I) where they come with each call, and their numbers."""
        drawn = torch.randn(draws, self.size, device=device)
        if not self.count:
            return drawn, None
        if len(self.parts) == 1:
            numbers = torch.arange(self.count)
            return self(numbers)[0], numbers
        numbers = torch.arange(draws) % self.count
        table = torch.stack(list(self.learned)) if self.fixed is None else self.fixed
        return torch.cat([table[numbers], drawn[:, self.cond_dim :]], dim=1), numbers

    def forward(self, cond: Any) -> tuple[Tensor, Tensor | None, bool]:
        """C (batch, size), the numbers of the stored conditions (batch,) if there are any, and whether it was one.

        Args:
            cond: for one part a number, an int64 tensor (batch,) of numbers, or vectors (batch, cond_dim) or
                (cond_dim,); for data what the encoder takes. For two parts a pair.

        Raises:
            ValueError: if a number is out of range or a shape does not fit. TypeError: if it is something else.
        """
        if len(self.parts) == 1:
            return self._part(self.parts[0], cond)
        if not isinstance(cond, tuple | list) or len(cond) != 2:
            raise TypeError(f"a condition of {' and '.join(self.parts)} is a pair of both, got {type(cond).__name__}")
        (one, ids, single), (other, _, alone) = (self._part(part, each) for part, each in zip(self.parts, cond))
        batch = max(len(one), len(other))
        if {len(one), len(other)} - {1, batch}:
            raise ValueError(f"{self.parts[0]} has {len(one)} conditions, {self.parts[1]} has {len(other)}")
        numbers = None if ids is None else ids.expand(batch)
        return torch.cat([one.expand(batch, -1), other.expand(batch, -1)], dim=1), numbers, single and alone

    def _part(self, part: str, cond: Any) -> tuple[Tensor, Tensor | None, bool]:
        if part == "data" and self.encoder is not None:
            return self._vectors(part, self.encoder(cond))
        if isinstance(cond, int) and not isinstance(cond, bool):
            numbers, single = torch.tensor([cond]), True
        elif isinstance(cond, Tensor) and cond.dtype == torch.int64 and cond.ndim <= 1:
            numbers, single = cond.reshape(-1), cond.ndim == 0
        elif isinstance(cond, Tensor) and cond.is_floating_point():
            return self._vectors(part, cond)
        else:
            raise TypeError(f"a condition is a number, int64 numbers or vectors, got {_described(cond)}")
        if part != self.parts[0] or self.count == 0:
            raise ValueError(f"no conditions of {part} are stored: pass vectors (batch, {self.cond_dim}), got {cond}")
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= self.count:
            raise ValueError(f"conditions are numbered 0..{self.count - 1}, got {low if low < 0 else high}")
        if single and self.fixed is None:
            return self.learned[low][None], numbers, True
        table = torch.stack(list(self.learned)) if self.fixed is None else self.fixed
        numbers = numbers.to(table.device)
        return table[numbers], numbers, single

    def _vectors(self, part: str, cond: Tensor) -> tuple[Tensor, None, bool]:
        single = cond.ndim == 1
        vectors = cond[None] if single else cond
        if vectors.ndim != 2 or vectors.shape[1] != self.cond_dim or len(vectors) == 0:
            raise ValueError(
                f"conditions of {part} must have shape (batch, {self.cond_dim}) or ({self.cond_dim},), "
                f"got {tuple(cond.shape)}"
            )
        return vectors, None, single


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
