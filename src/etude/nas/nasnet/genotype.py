"""The search space as data: cells of blocks, what a block may choose, and the published NASNet-A."""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["COMBINATIONS", "NASNET_A", "OPS", "Block", "Genotype", "SearchSpace"]

OPS = (
    "identity", "conv_1x3_3x1", "conv_1x7_7x1", "conv_1x1", "conv_3x3", "sep_3x3", "sep_5x5", "sep_7x7", "dil_3x3",
    "avg_3x3", "max_3x3", "max_5x5", "max_7x7",
)  # fmt: skip
"""The 13 operations of section 3."""
COMBINATIONS = ("add", "concat")


@dataclass(frozen=True)
class Block:
    """Two states, an operation on each, and how the two results become one new state.

    Args:
        first, second: indices of states: 0 is the cell's present input h, 1 the input before it h_prev, 2 + b what
            block b made.
        first_op, second_op: of `OPS`.
        combine: "add" or "concat".

    Raises:
        ValueError: for an unknown operation or combination, or a negative index.
    """

    first: int
    second: int
    first_op: str
    second_op: str
    combine: str = "add"

    def __post_init__(self) -> None:
        for op in (self.first_op, self.second_op):
            if op not in OPS:
                raise ValueError(f"operation must be one of {', '.join(OPS)}, got {op!r}")
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine must be one of {', '.join(COMBINATIONS)}, got {self.combine!r}")
        if min(self.first, self.second) < 0:
            raise ValueError(f"states must not be negative, got {self.first} and {self.second}")

    @property
    def arms(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """(state, operation) of both sides."""
        return (self.first, self.first_op), (self.second, self.second_op)

    def swapped(self) -> "Block":
        return Block(self.second, self.first, self.second_op, self.first_op, self.combine)


def _unused(blocks: Sequence[Block]) -> tuple[int, ...]:
    used = {state for block in blocks for state, _ in block.arms}
    return tuple(state for state in range(2 + len(blocks)) if state not in used)


def _checked(name: str, blocks: Iterable[Any], concat: Iterable[int] | None) -> tuple[tuple[Block, ...], tuple]:
    blocks = tuple(Block(**block) if isinstance(block, Mapping) else block for block in blocks)
    if not blocks:
        raise ValueError(f"the {name} cell has no blocks")
    for index, block in enumerate(blocks):
        if max(block.first, block.second) >= 2 + index:
            raise ValueError(f"block {index} of the {name} cell may read states 0..{1 + index}, got {block}")
    unused = _unused(blocks)
    if concat is None:
        return blocks, unused
    concat = tuple(concat)
    states = 2 + len(blocks)
    if not concat or len(set(concat)) < len(concat) or not all(0 <= state < states for state in concat):
        raise ValueError(f"{name}_concat must be distinct states of 0..{states - 1}, at least one, got {concat}")
    lost = [state for state in unused if state >= 2 and state not in concat]
    if lost:
        raise ValueError(f"states {lost} of the {name} cell are neither read by a block nor in {name}_concat {concat}")
    return blocks, concat


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell.

        Genotype.random(seed=0)
        Genotype.from_json(NASNET_A.to_json()) == NASNET_A

    Args:
        normal, reduction: their blocks, at least one.
        normal_concat, reduction_concat: the states that are joined into the output; if None those that no block
            reads, the paper's rule. NASNet-A's normal cell departs from it: it joins h_prev too.

    Raises:
        ValueError: if a block reads a state that does not exist yet, or makes one that nothing reads.
    """

    # Lists, and blocks as dicts, are what a saved configuration makes of a genotype.
    normal: tuple[Block, ...] | list
    reduction: tuple[Block, ...] | list
    normal_concat: tuple[int, ...] | list | None = None
    reduction_concat: tuple[int, ...] | list | None = None

    def __post_init__(self) -> None:
        for name in ("normal", "reduction"):
            blocks, concat = _checked(name, getattr(self, name), getattr(self, f"{name}_concat"))
            object.__setattr__(self, name, blocks)
            object.__setattr__(self, f"{name}_concat", concat)

    def cell(self, reduction: bool) -> tuple[tuple[Block, ...], tuple[int, ...]]:
        """Blocks and joined states of one of the cells."""
        concat = self.reduction_concat if reduction else self.normal_concat
        assert concat is not None
        return tuple(self.reduction if reduction else self.normal), tuple(concat)

    @classmethod
    def random(cls, seed: int, blocks: int = 5) -> "Genotype":
        """Every choice uniform over the paper's space."""
        return SearchSpace(blocks=blocks).random(random.Random(seed))

    def canonical(self) -> "Genotype":
        """The same pair of cells with the arms of every block in order: equal for equal networks up to swapped arms."""

        def ordered(blocks: Iterable[Block]) -> tuple[Block, ...]:
            return tuple(block if block.arms[0] <= block.arms[1] else block.swapped() for block in blocks)

        return replace(self, normal=ordered(self.normal), reduction=ordered(self.reduction))

    def to_json(self) -> str:
        def listed(blocks: Iterable[Block]) -> list[list]:
            return [[block.first, block.second, block.first_op, block.second_op, block.combine] for block in blocks]

        return json.dumps({
            "normal": listed(self.normal), "reduction": listed(self.reduction),
            "normal_concat": self.normal_concat, "reduction_concat": self.reduction_concat,
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """What `to_json` wrote.

        Raises:
            ValueError: if the text is no genotype, or not a valid one.
        """
        try:
            content: Mapping[str, Any] = json.loads(text)
            normal, reduction = (tuple(Block(*block) for block in content[name]) for name in ("normal", "reduction"))
            concats = [tuple(content[name]) for name in ("normal_concat", "reduction_concat")]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"not a genotype: {text[:60]!r} ({type(error).__name__}: {error})") from error
        return cls(normal, reduction, *concats)

    def digest(self) -> int:
        """48 bits that tell genotypes apart, the same in every process; equal up to swapped arms."""
        return int.from_bytes(hashlib.sha256(self.canonical().to_json().encode()).digest()[:6], "big")


@dataclass(frozen=True)
class SearchSpace:
    """What the two cells may consist of; a genotype is `2 * 5 * blocks` choices, in the order normal, reduction.

    Block b makes five choices: its two states among 2 + b, the operation on each, and the combination.

        space = SearchSpace(blocks=3, ops=("sep_3x3", "max_3x3", "identity"))
        space.size(), space.decode([0] * len(space.choices))

    Args:
        blocks: B; the paper's 5.
        ops: operations to choose from.
        combinations: of "add" and "concat".

    Raises:
        ValueError: if the space is empty, or names what does not exist or the same twice.
    """

    blocks: int = 5
    ops: tuple[str, ...] = OPS
    combinations: tuple[str, ...] = COMBINATIONS

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"the search space is empty: a cell needs at least one block, got blocks={self.blocks}")
        for name, known in (("ops", OPS), ("combinations", COMBINATIONS)):
            given = tuple(getattr(self, name))
            object.__setattr__(self, name, given)
            if not given:
                raise ValueError(f"the search space is empty: {name} has nothing to choose from")
            if len(set(given)) < len(given) or not set(given) <= set(known):
                raise ValueError(f"{name} must be distinct and of {', '.join(known)}, got {given}")

    @property
    def choices(self) -> tuple[int, ...]:
        """How many alternatives each choice has."""
        ops, ways = len(self.ops), len(self.combinations)
        cell = [n for b in range(self.blocks) for n in (2 + b, 2 + b, ops, ops, ways)]
        return (*cell, *cell)

    def cell_size(self) -> int:
        """Number of single cells, before symmetries: 2.29e18 for the paper's."""
        return math.prod(self.choices[: 5 * self.blocks])

    def size(self) -> int:
        """Number of pairs of cells, before symmetries."""
        return self.cell_size() ** 2

    def decode(self, actions: Sequence[int]) -> Genotype:
        """The genotype of a list of choices.

        Raises:
            ValueError: for a list of another length, or a choice out of its range.
        """
        choices = self.choices
        if len(actions) != len(choices):
            raise ValueError(f"a genotype of this space is {len(choices)} choices, got {len(actions)}")
        for step, (action, n) in enumerate(zip(actions, choices)):
            if not 0 <= action < n:
                raise ValueError(f"choice {step} must lie in 0..{n - 1}, got {action}")
        rows = [actions[start : start + 5] for start in range(0, len(choices), 5)]
        blocks = [Block(a, b, self.ops[c], self.ops[d], self.combinations[e]) for a, b, c, d, e in rows]
        return Genotype(tuple(blocks[: self.blocks]), tuple(blocks[self.blocks :]))

    def encode(self, genotype: Genotype) -> tuple[int, ...]:
        """The choices that make a genotype; the inverse of `decode`.

        Raises:
            ValueError: if the genotype is not of this space.
        """
        actions: list[int] = []
        for reduction in (False, True):
            blocks, concat = genotype.cell(reduction)
            name = "reduction" if reduction else "normal"
            if len(blocks) != self.blocks:
                raise ValueError(f"cells of this space have {self.blocks} blocks, the {name} cell has {len(blocks)}")
            if concat != _unused(blocks):
                raise ValueError(f"in this space the states that no block reads are joined, not {name}_concat {concat}")
            for block in blocks:
                missing = {block.first_op, block.second_op} - set(self.ops) or {block.combine} - set(self.combinations)
                if missing:
                    raise ValueError(f"{', '.join(sorted(missing))} is not in this space")
                ops = (self.ops.index(block.first_op), self.ops.index(block.second_op))
                actions += [block.first, block.second, *ops, self.combinations.index(block.combine)]
        return tuple(actions)

    def random(self, rng: random.Random) -> Genotype:
        """Every choice uniform."""
        return self.decode([rng.randrange(n) for n in self.choices])


NASNET_A = Genotype(
    normal=(
        Block(0, 1, "sep_5x5", "sep_3x3"),
        Block(1, 1, "sep_5x5", "sep_3x3"),
        Block(0, 1, "avg_3x3", "identity"),
        Block(1, 1, "avg_3x3", "avg_3x3"),
        Block(0, 0, "sep_3x3", "identity"),
    ),
    reduction=(
        Block(0, 1, "sep_5x5", "sep_7x7"),
        Block(0, 1, "max_3x3", "sep_7x7"),
        Block(0, 1, "avg_3x3", "sep_5x5"),
        Block(3, 2, "identity", "avg_3x3"),
        Block(2, 0, "sep_3x3", "max_3x3"),
    ),
    normal_concat=(1, 2, 3, 4, 5, 6),
    reduction_concat=(3, 4, 5, 6),
)
"""The best cells of the paper, as the official code has them."""
