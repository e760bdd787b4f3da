"""ScheduledDropPath: the schedule, what is dropped, what is not."""

import pytest
import torch

from etude.nas.nasnet import Block, DropPathSchedule, Genotype, NASNet, NASNetCell


def cell_of(*blocks):
    genotype = Genotype(blocks, blocks, normal_concat=(2,), reduction_concat=(2,))
    return NASNetCell(genotype, reduction=False, dim=4, filters=4, prev_dim=4).train()


def test_the_probability_falls_linearly_over_training_and_depth():
    schedule = DropPathSchedule(0.6, total_steps=1000)
    cells = 20
    for cell in (0, 7, 19):
        final = 1 - (cell + 1) / cells * 0.4
        assert schedule.keep(0, cell, cells) == 1
        assert schedule.keep(1000, cell, cells) == schedule.keep(5000, cell, cells) == pytest.approx(final)
        assert schedule.keep(250, cell, cells) == pytest.approx(1 - 0.25 * (1 - final))
    assert DropPathSchedule(0.6, 10, scale_by_depth=False).keep(10, 0, cells) == pytest.approx(0.6)
    assert DropPathSchedule(1.0).keep(5, 19, cells) == 1


def test_a_network_follows_it_and_counts_reductions_and_stems():
    model = NASNet(cells_per_stage=1, filters=4, stem="imagenet", drop_path_keep=0.7)
    model.follow(3, 4)
    rates = [cell.drop_path.rate for cell in model.cells]
    assert rates == pytest.approx([0.75 * 0.3 * (number + 1) / 7 for number in range(7)])


def test_arms_are_dropped_per_example_and_scaled_to_the_same_mean():
    cell = cell_of(Block(1, 1, "max_3x3", "max_3x3"))
    cell.drop_path.rate = 0.4
    torch.manual_seed(0)
    h = torch.ones(4000, 4, 2, 2)
    out = cell(h, h)
    levels = out[:, 0, 0, 0]
    assert bool((out == levels[:, None, None, None]).all())
    # Each arm by itself: none, one or both are kept, each 1 / 0.6.
    shares = [(levels - kept / 0.6).abs().lt(1e-5).double().mean().item() for kept in range(3)]
    assert shares == pytest.approx([0.16, 0.48, 0.36], abs=0.03)
    assert levels.mean() == pytest.approx(2, abs=0.05)
    assert torch.equal(cell.eval()(h, h), 2 * h)


def test_identity_is_never_dropped():
    cell = cell_of(Block(1, 1, "identity", "identity"))
    cell.drop_path.rate = 0.9
    h = torch.randn(50, 4, 2, 2)
    assert torch.equal(cell(h, h), 2 * h)
    mixed = cell_of(Block(1, 1, "identity", "max_3x3"))
    mixed.drop_path.rate = 0.9
    out = mixed(h.abs(), h.abs())
    assert 0 < (out == h.abs()).flatten(1).all(dim=1).sum() < 50


def test_an_unset_schedule_is_an_error_in_training_alone():
    model = NASNet(cells_per_stage=1, filters=2, drop_path_keep=0.5)
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match="total_steps is unset"):
        model(x)
    model.eval()(x)
    model.set_progress(0)
    model.train()(x)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1\.5"):
        model.set_progress(1.5)
    with pytest.raises(ValueError, match="total_steps is unset"):
        DropPathSchedule(0.6)
    with pytest.raises(ValueError, match=r"got 1\.2"):
        DropPathSchedule(1.2, 10)
    with pytest.raises(ValueError, match="got 0"):
        DropPathSchedule(0.6, 0)
