"""Genotypes and the search space: sizes, round trips, the rule of what is joined, refusals."""

import math
import random

import pytest

from etude.nas.nasnet import NASNET_A, OPS, Block, Genotype, SearchSpace


def test_the_space_has_the_papers_size():
    assert SearchSpace(blocks=1).cell_size() == 1352
    assert SearchSpace().cell_size() == 2_286_906_949_584_691_200
    assert SearchSpace().size() == SearchSpace().cell_size() ** 2
    assert len(OPS) == 13
    assert len(SearchSpace().choices) == 50
    assert sum(math.log(n) for n in SearchSpace().choices) == pytest.approx(84.547, abs=5e-4)


def test_genotypes_survive_json_and_their_choices():
    space = SearchSpace()
    assert Genotype.from_json(NASNET_A.to_json()) == NASNET_A
    for seed in range(50):
        genotype = Genotype.random(seed)
        assert Genotype.from_json(genotype.to_json()) == genotype
        assert space.decode(space.encode(genotype)) == genotype
    assert Genotype.random(1) == Genotype.random(1) != Genotype.random(2)
    assert len(Genotype.random(0, blocks=7).normal) == 7
    with pytest.raises(ValueError, match="normal_concat"):
        space.encode(NASNET_A)  # which joins h_prev though blocks read it


def test_every_choice_takes_every_value():
    space = SearchSpace(blocks=2, ops=("sep_3x3", "max_3x3"))
    rng = random.Random(0)
    drawn = [space.encode(space.random(rng)) for _ in range(300)]
    for step, n in enumerate(space.choices):
        assert {actions[step] for actions in drawn} == set(range(n))


def test_states_that_no_block_reads_are_joined():
    blocks = (Block(0, 0, "identity", "sep_3x3"), Block(2, 0, "avg_3x3", "identity"))
    genotype = Genotype(blocks, blocks[:1])
    assert genotype.normal_concat == (1, 3)
    assert genotype.reduction_concat == (1, 2)
    for seed in range(100):
        for reduction in (False, True):
            blocks, concat = Genotype.random(seed).cell(reduction)
            read = {state for block in blocks for state, _ in block.arms}
            assert read | set(concat) == set(range(7))  # no block is out of reach
    assert NASNET_A.normal_concat == (1, 2, 3, 4, 5, 6)
    assert NASNET_A.reduction_concat == (3, 4, 5, 6)


def test_swapped_arms_are_the_same_genotype():
    one = Block(1, 0, "sep_3x3", "identity", "concat")
    a, b = Genotype((one,), (one,)), Genotype((one.swapped(),), (one,))
    assert a != b
    assert a.canonical() == b.canonical()
    assert a.digest() == b.digest() != Genotype((one,), (Block(1, 0, "sep_5x5", "identity"),)).digest()
    assert NASNET_A.canonical().normal_concat == NASNET_A.normal_concat


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchSpace(blocks=0), "search space is empty"),
        (lambda: SearchSpace(ops=()), "search space is empty"),
        (lambda: SearchSpace(combinations=()), "search space is empty"),
        (lambda: SearchSpace(ops=("sep_3x3", "sep_9x9")), "sep_9x9"),
        (lambda: Block(0, 1, "sep_9x9", "identity"), "sep_9x9"),
        (lambda: Block(0, 1, "identity", "identity", "mul"), "'mul'"),
        (lambda: Genotype((), ()), "no blocks"),
        (lambda: Genotype((Block(0, 2, "identity", "identity"),), NASNET_A.reduction), "0..1"),
        (lambda: Genotype(NASNET_A.normal, NASNET_A.reduction, reduction_concat=(3, 4, 5)), "neither read"),
        (lambda: Genotype(NASNET_A.normal, NASNET_A.reduction, normal_concat=(7,)), "0..6"),
        (lambda: Genotype.from_json("[1]"), "not a genotype"),
        (lambda: Genotype.from_json("{"), "not a genotype"),
        (lambda: SearchSpace().decode([0] * 49), "50 choices, got 49"),
        (lambda: SearchSpace(blocks=1).decode([0, 2] + [0] * 8), "choice 1"),
        (lambda: SearchSpace(blocks=2).encode(Genotype.random(0)), "2 blocks"),
        (lambda: SearchSpace(ops=("identity",)).encode(Genotype.random(0)), "not in this space"),
    ],
)
def test_what_is_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
