"""Tasks for sequence mixers: generators that a seed decides, and real text and digits in the same form.

    task = selective_copy(20_000, generator=torch.Generator().manual_seed(0))
    task.inputs, task.labels            # scored where a label is not IGNORED

Copying and selective copying, induction: Gu & Dao, arXiv:2312.00752, section 4.1, and Arjovsky et al.,
arXiv:1511.06464; the adding problem: Hochreiter & Schmidhuber, 1997; ListOps: Nangia & Bowman, arXiv:1804.06028.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from etude.data.kinds import Examples
from etude.data.kinds_text import TextData

__all__ = [
    "IGNORED",
    "SequenceTask",
    "adding",
    "char_lm",
    "copying",
    "dyck",
    "from_examples",
    "induction",
    "listops",
    "majority",
    "parity",
    "selective_copy",
    "sequential_pixels",
]

IGNORED = -100
"""The label of what is not scored."""


@dataclass(frozen=True, eq=False)
class SequenceTask:
    """Examples of a task.

    Args:
        name: in tables.
        inputs: tokens, int64 (n, length), or vectors, float (n, length, features).
        labels: int64 (n, length), `IGNORED` where nothing is asked; int64 (n,), a class for each sequence; or
            float (n,), a number for each.
        num_outputs: classes of the labels, or 1.
        vocab: tokens of the inputs; None for vectors.
        causal: whether a mixer must not see later tokens.

    Raises:
        ValueError: if shapes or types are others.
    """

    name: str
    inputs: Tensor
    labels: Tensor
    num_outputs: int
    vocab: int | None = None
    causal: bool = False

    def __post_init__(self):
        if self.inputs.ndim != (3 if self.vocab is None else 2) or len(self.inputs) != len(self.labels):
            raise ValueError(
                f"expected tokens (n, length) with a vocabulary, or vectors (n, length, features), and n labels, got "
                f"inputs {tuple(self.inputs.shape)}, labels {tuple(self.labels.shape)} and vocab {self.vocab}"
            )
        if self.labels.ndim not in (1, 2) or (self.labels.ndim == 2 and self.labels.shape[1] != self.inputs.shape[1]):
            raise ValueError(f"labels must be (n,) or (n, length), got {tuple(self.labels.shape)}")
        if len(self.inputs) == 0:
            raise ValueError("a task needs examples")

    @property
    def kind(self) -> str:
        """ "tag": a class at places; "classify": one for each sequence; "regress": a number for each."""
        if self.labels.ndim == 2:
            return "tag"
        return "regress" if self.labels.is_floating_point() else "classify"

    def split(self, *sizes: int) -> tuple["SequenceTask", ...]:
        """Parts of so many examples, one after another.

        Raises:
            ValueError: if there are not enough.
        """
        if sum(sizes) > len(self.inputs) or min(sizes) < 1:
            raise ValueError(f"cannot cut {len(self.inputs)} examples into parts of {sizes}")
        parts = zip(self.inputs[: sum(sizes)].split(sizes), self.labels[: sum(sizes)].split(sizes))
        return tuple(SequenceTask(self.name, x, y, self.num_outputs, self.vocab, self.causal) for x, y in parts)

    def examples(self) -> Examples:
        """Inputs and labels for `etude.loop.fit`."""
        return Examples(self.inputs, self.labels)


def _positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def copying(
    num: int, length: int = 16, symbols: int = 8, *, generator: torch.Generator
) -> SequenceTask:  # fmt: skip
    """Random symbols 1 .. `symbols`, a delimiter 0, and blanks at which the symbols are asked in order.

    The blank is token `symbols` + 1. Twice the length, tested on the same model, asks for more than memory of places.
    """
    _positive(num=num, length=length, symbols=symbols)
    drawn = torch.randint(1, symbols + 1, (num, length), generator=generator)
    blank = torch.full((num, length), symbols + 1)
    inputs = torch.cat([drawn, torch.zeros(num, 1, dtype=torch.int64), blank], dim=1)
    labels = torch.cat([torch.full((num, length + 1), IGNORED), drawn - 1], dim=1)
    return SequenceTask("copying", inputs, labels, symbols, symbols + 2, causal=True)


def selective_copy(
    num: int, length: int = 24, marked: int = 6, symbols: int = 8, *, generator: torch.Generator
) -> SequenceTask:
    """`marked` symbols 1 .. `symbols` at random places among noise 0, then as many queries, asked in order.

    Places differ by example: with fixed ones a fixed kernel would do. The query is token `symbols` + 1.

    Raises:
        ValueError: if more are marked than there are places.
    """
    _positive(num=num, length=length, marked=marked, symbols=symbols)
    if marked > length:
        raise ValueError(f"cannot mark {marked} of {length} places")
    places = torch.rand(num, length, generator=generator).argsort(1)[:, :marked].sort(1).values
    drawn = torch.randint(1, symbols + 1, (num, marked), generator=generator)
    body = torch.zeros(num, length, dtype=torch.int64).scatter(1, places, drawn)
    inputs = torch.cat([body, torch.full((num, marked), symbols + 1)], dim=1)
    labels = torch.cat([torch.full((num, length), IGNORED), drawn - 1], dim=1)
    return SequenceTask("selective_copy", inputs, labels, symbols, symbols + 2, causal=True)


def induction(num: int, length: int = 32, symbols: int = 16, *, generator: torch.Generator) -> SequenceTask:
    """Random symbols; one stands after a trigger (token `symbols`), which comes again at the end: what followed it?

    Raises:
        ValueError: if there is no room, length < 4.
    """
    _positive(num=num, symbols=symbols)
    if length < 4:
        raise ValueError(f"length must be at least 4, got {length}")
    inputs = torch.randint(symbols, (num, length), generator=generator)
    place = torch.randint(length - 2, (num, 1), generator=generator)
    labels = torch.full((num, length), IGNORED)
    labels[:, -1] = inputs.gather(1, place + 1)[:, 0]
    inputs.scatter_(1, place, symbols)
    inputs[:, -1] = symbols
    return SequenceTask("induction", inputs, labels, symbols, symbols + 1, causal=True)


def parity(num: int, length: int = 32, *, generator: torch.Generator) -> SequenceTask:
    """Bits; at every place, whether the ones so far are odd."""
    _positive(num=num, length=length)
    bits = torch.randint(2, (num, length), generator=generator)
    return SequenceTask("parity", bits, bits.cumsum(1) % 2, 2, 2, causal=True)


def majority(num: int, length: int = 33, *, generator: torch.Generator) -> SequenceTask:
    """Bits; at every place, whether there are more ones than zeros so far."""
    _positive(num=num, length=length)
    bits = torch.randint(2, (num, length), generator=generator)
    return SequenceTask("majority", bits, ((2 * bits - 1).cumsum(1) > 0).long(), 2, 2, causal=True)


def dyck(
    num: int, length: int = 32, kinds: int = 2, max_depth: int = 4, *, generator: torch.Generator
) -> SequenceTask:  # fmt: skip
    """Well-nested brackets; at every place, which kind would close next, or `kinds`: none is open.

    Opening brackets are tokens 0 .. kinds - 1, closing ones kinds .. 2 kinds - 1. Each place opens with probability 1/2
    where both are allowed: something is open, fewer than `max_depth` are.
    """
    _positive(num=num, length=length, kinds=kinds, max_depth=max_depth)
    opens = torch.rand(num, length, generator=generator) < 0.5
    drawn = torch.randint(kinds, (num, length), generator=generator)
    stack = torch.full((num, max_depth + 1), kinds)
    depth = torch.zeros(num, dtype=torch.int64)
    rows = torch.arange(num)
    inputs, labels = torch.empty(num, length, dtype=torch.int64), torch.empty(num, length, dtype=torch.int64)
    for place in range(length):  # a stack machine: over places, all examples at once
        up = (opens[:, place] | (depth == 0)) & (depth < max_depth)
        inputs[:, place] = torch.where(up, drawn[:, place], kinds + stack[rows, depth])
        depth = depth + torch.where(up, 1, -1)
        stack[rows[up], depth[up]] = drawn[up, place]
        labels[:, place] = stack[rows, depth]
    return SequenceTask("dyck", inputs, labels, kinds + 1, 2 * kinds, causal=True)


def adding(num: int, length: int = 64, *, generator: torch.Generator) -> SequenceTask:
    """Pairs of a number in [0, 1] and a mark; the sum of the two marked numbers, one in each half.

    Raises:
        ValueError: if there is no room, length < 2.
    """
    _positive(num=num)
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    numbers = torch.rand(num, length, generator=generator)
    half = length // 2
    first = torch.randint(half, (num, 1), generator=generator)
    second = torch.randint(half, length, (num, 1), generator=generator)
    places = torch.cat([first, second], dim=1)
    marks = torch.zeros(num, length).scatter(1, places, 1.0)
    return SequenceTask("adding", torch.stack([numbers, marks], dim=-1), numbers.gather(1, places).sum(1), 1)


_OPERATORS = ("max", "min", "median", "sum")


def listops(
    num: int, length: int = 64, max_depth: int = 3, max_args: int = 4, *, generator: torch.Generator
) -> SequenceTask:
    """Nested operations on digits, such as [max 3 [sum 9 4] 1 ]; the digit that comes out, 0 .. 9.

    Tokens: digits 0 .. 9, then max, min, median (of an even number, the lower) and sum modulo 10 with their opening
    bracket, 10 .. 13; the closing bracket, 14; padding at the end, 15. An expression that would not fit is closed
    early.
    """
    _positive(num=num, max_depth=max_depth)
    if max_args < 2 or length < max_args + 2:
        raise ValueError(f"need max_args >= 2 and length >= max_args + 2, got {max_args} and {length}")
    draws = iter(torch.rand(num * length * 4, generator=generator).tolist())

    def draw(count: int) -> int:
        nonlocal draws
        value = next(draws, None)
        if value is None:
            draws = iter(torch.rand(length * 4, generator=generator).tolist())
            value = next(draws)
        return int(value * count)

    def expression(depth: int, room: int) -> tuple[list[int], int]:
        """At most `room` tokens."""
        if depth == max_depth or room < 4 or (depth and draw(2)):
            digit = draw(10)
            return [digit], digit
        kind, count = draw(4), 2 + draw(max_args - 1)
        tokens, values, left = [10 + kind], [], room - 2
        count = min(count, left)
        for argument in range(count):  # each that follows needs a token at least
            part, value = expression(depth + 1, left - (count - argument - 1))
            tokens += part
            left -= len(part)
            values.append(value)
        return tokens + [14], _applied(_OPERATORS[kind], values)

    inputs, labels = torch.full((num, length), 15), torch.empty(num, dtype=torch.int64)
    for row in range(num):  # a grammar is drawn rule by rule
        tokens, value = expression(0, length)
        inputs[row, : len(tokens)] = torch.tensor(tokens)
        labels[row] = value
    return SequenceTask("listops", inputs, labels, 10, 16)


def _applied(operator: str, values: list[int]) -> int:
    if operator == "max":
        return max(values)
    if operator == "min":
        return min(values)
    return sum(values) % 10 if operator == "sum" else sorted(values)[(len(values) - 1) // 2]


def sequential_pixels(
    images: Float[Tensor, "n channels height width"], labels: Int[Tensor, "n"], num_classes: int, name: str = "pixels"
) -> SequenceTask:
    """Images pixel by pixel, row by row, as vectors of their channels; the class of each."""
    return SequenceTask(name, images.flatten(2).transpose(1, 2).contiguous(), labels, num_classes)


def char_lm(data: TextData, part: str, length: int = 64, stride: int | None = None) -> SequenceTask:
    """Windows of a text; at every place the token that follows. Errors as `TextData.windows`."""
    windows = data.windows(part, length, stride)
    return SequenceTask("char_lm", windows.inputs, windows.targets, data.vocab_size, data.vocab_size, causal=True)


def from_examples(
    name: str, inputs: Tensor, labels: Tensor, *, num_outputs: int, vocab: int | None = None, causal: bool = False
) -> SequenceTask:
    """Your own examples as a task; shapes and errors as `SequenceTask`."""
    return SequenceTask(name, inputs, labels, num_outputs, vocab, causal)
