"""Text as a stream of tokens: characters, bytes or words, with the vocabulary that says what each number means."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etude.data.kinds import Examples

__all__ = ["UNKNOWN", "TextData"]

UNKNOWN = "<unk>"
"""The token that stands for all that the vocabulary lacks."""
_LEVELS = ("character", "word", "byte")


@dataclass(frozen=True, eq=False)
class TextData:
    """Running text in three parts, as numbers of tokens.

        data = text.tinyshakespeare()
        windows = data.windows("train", 64)          # inputs and the tokens that follow them, (n, 64) each
        print(data.decode(windows.inputs[0]))

    Args:
        train, val, test: int64 (n,): the parts of the text, none with fewer than two tokens.
        vocabulary: what the numbers 0, 1, ... stand for, each once; of bytes, the numbers 0 to 255 as characters.
        level: "character", "word" or "byte".
        name: what the data are called in tables.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    vocabulary: tuple[str, ...]
    level: str
    name: str

    def __post_init__(self):
        if self.level not in _LEVELS:
            raise ValueError(f"TextData.level must be one of {', '.join(_LEVELS)}, got {self.level!r}")
        if len(set(self.vocabulary)) != len(self.vocabulary) or not self.vocabulary:
            raise ValueError(f"TextData.vocabulary must have tokens, each once, got {len(self.vocabulary)} of them")
        for part in ("train", "val", "test"):
            ids: Any = getattr(self, part)
            if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
                given = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
                raise ValueError(f"TextData.{part} must be int64 of shape (n,), got {given}")
            if len(ids) < 2:
                raise ValueError(f"TextData.{part} must have two tokens or more, got {len(ids)}")
            if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
                raise ValueError(
                    f"TextData.{part} must lie in 0..{self.vocab_size - 1} ({self.vocab_size} tokens), "
                    f"got {int(ids.min())}..{int(ids.max())}"
                )

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def windows(self, part: str, length: int, stride: int | None = None) -> Examples:
        """Windows of a part, and for each token the one that follows it.

        Args:
            part: "train", "val" or "test".
            length: tokens of a window.
            stride: tokens from one window's start to the next's; `length`, so that they tile the text, if None.

        Returns:
            Inputs and targets, int64 (n, length); what is left at the end is dropped. They share the text's memory.

        Raises:
            ValueError: if the part is none of the three, or too short for a window.
        """
        if part not in ("train", "val", "test"):
            raise ValueError(f"part must be train, val or test, got {part!r}")
        stride = length if stride is None else stride
        ids: Tensor = getattr(self, part)
        if not 1 <= length < len(ids) or stride < 1:
            raise ValueError(
                f"windows need 1 <= length < {len(ids)}, the tokens of {part}, and stride >= 1, got {length}, {stride}"
            )
        return Examples(ids[:-1].unfold(0, length, stride), ids[1:].unfold(0, length, stride))

    def encode(self, text: str) -> Tensor:
        """Numbers of the tokens of a text, int64 (n,).

        Raises:
            ValueError: for a token that the vocabulary lacks, if it has no `UNKNOWN`.
        """
        if self.level == "byte":
            return torch.tensor(list(text.encode("utf-8")), dtype=torch.int64)
        known = {token: number for number, token in enumerate(self.vocabulary)}
        tokens = list(text) if self.level == "character" else text.split()
        if UNKNOWN not in known and (foreign := [token for token in tokens if token not in known]):
            raise ValueError(f"{foreign[0]!r} is not in the vocabulary of {self.vocab_size} {self.level}s")
        return torch.tensor([known.get(token, known.get(UNKNOWN, 0)) for token in tokens], dtype=torch.int64)

    def decode(self, ids: Tensor | Iterable[int]) -> str:
        """The text of tokens, words with a space between; bytes that are no UTF-8 are shown as U+FFFD."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.level == "byte":
            return bytes(numbers).decode("utf-8", errors="replace")
        return ("" if self.level == "character" else " ").join(self.vocabulary[number] for number in numbers)
