"""Drawn characters: alphabets of characters, each drawn several times, for learning from few examples."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Characters"]


def _described(tensor: Any) -> str:
    if not isinstance(tensor, Tensor):
        return type(tensor).__name__
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _expect(ok: bool, name: str, expected: str, given: Any) -> None:
    if not ok:
        raise ValueError(f"Characters.{name} must be {expected}, got {_described(given)}")


@dataclass(frozen=True, eq=False)
class Characters:
    """Drawings of characters.

        few = characters.of_alphabets([0, 1])

    Args:
        images: float32 (n, 1, height, width) in [0, 1]; ink is 1, paper 0.
        characters: int64 (n,): which character a drawing is of, from 0 up; each has drawings.
        drawers: int64 (n,): whose drawing it is; the same person draws each character once.
        alphabets: int64 (number of characters,): which alphabet a character belongs to.
        alphabet_names: in the order of their numbers.
        name: what the data are called in tables.
    """

    images: Tensor
    characters: Tensor
    drawers: Tensor
    alphabets: Tensor
    alphabet_names: tuple[str, ...]
    name: str

    def __post_init__(self):
        images = self.images
        good = isinstance(images, Tensor) and images.dtype == torch.float32 and images.ndim == 4
        _expect(good and images.shape[1] == 1 and len(images) > 0, "images", "float32 (n, 1, height, width)", images)
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise ValueError("Characters.images must lie in [0, 1]")
        for field in ("characters", "drawers"):
            given = getattr(self, field)
            good = isinstance(given, Tensor) and given.dtype == torch.int64 and given.shape == (len(images),)
            _expect(good, field, f"int64 of shape ({len(images)},)", given)
        numbers = self.characters.unique()
        if not torch.equal(numbers, torch.arange(len(numbers))):
            raise ValueError("Characters.characters must be numbered 0, 1, ... without a gap")
        good = isinstance(self.alphabets, Tensor) and self.alphabets.dtype == torch.int64
        _expect(good and self.alphabets.shape == numbers.shape, "alphabets", f"int64 of shape ({len(numbers)},)",
                self.alphabets)  # fmt: skip
        if not torch.equal(self.alphabets.unique(), torch.arange(len(self.alphabet_names))):
            raise ValueError(
                f"Characters.alphabets must use each of the {len(self.alphabet_names)} names, "
                f"got {self.alphabets.unique().tolist()}"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_characters(self) -> int:
        return len(self.alphabets)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.images.shape[2], self.images.shape[3]

    def of_alphabets(self, alphabets: Iterable[int]) -> "Characters":
        """The drawings of some alphabets, in the order in which these are given; numbers start from 0 again.

        Raises:
            ValueError: if there is no such alphabet, none is given, or one is given twice.
        """
        wanted = list(alphabets)
        known = len(self.alphabet_names)
        if not wanted or len(set(wanted)) < len(wanted) or not all(0 <= index < known for index in wanted):
            raise ValueError(f"alphabets must be different numbers in 0..{known - 1}, got {wanted}")
        chosen = torch.cat([torch.nonzero(self.alphabets == index).squeeze(1) for index in wanted])
        renumbered = torch.full((self.num_characters,), -1)
        renumbered[chosen] = torch.arange(len(chosen))
        place = torch.full((known,), -1)
        place[torch.tensor(wanted)] = torch.arange(len(wanted))
        rows = torch.nonzero(renumbered[self.characters] >= 0).squeeze(1)
        return replace(
            self,
            images=self.images[rows],
            characters=renumbered[self.characters[rows]],
            drawers=self.drawers[rows],
            alphabets=place[self.alphabets[chosen]],
            alphabet_names=tuple(self.alphabet_names[index] for index in wanted),
        )
