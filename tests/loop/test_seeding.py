import random

import numpy as np
import pytest
import torch

from etude.loop import seeded
from etude.loop.seeding import random_state, set_random_state


def draw():
    return torch.rand(1).item(), float(np.random.rand()), random.random(), float(np.random.normal())


def test_the_same_seed_gives_the_same_draws():
    with seeded(3):
        first = draw()
    with seeded(3):
        assert draw() == first


def test_a_seeded_block_leaves_no_trace():
    with seeded(1):
        expected = draw(), draw()
    with seeded(1):
        first = draw()
        with seeded(2):
            draw()
        assert (first, draw()) == expected


def test_a_failing_block_leaves_no_trace_either():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"), seeded(1):
        raise RuntimeError("inside")
    assert torch.equal(before, torch.get_rng_state())


def test_the_random_state_survives_a_safe_file(tmp_path):
    with seeded(0):
        np.random.normal()  # leaves NumPy with a spare normal number
        random.gauss(0, 1)
        torch.save(random_state(), tmp_path / "state.pt")
        expected = draw()
        set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert draw() == expected
