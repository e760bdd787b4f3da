"""The logic of the opposing-signals claims that is not training: what the arms change, what is counted, the figures."""

import pytest
import torch

from etude.claims.training.opposing_signals import (
    PAPER,
    PLANTED_ARMS,
    Look,
    _slope,
    class_pair,
    counted,
    drawn,
    mover_scores,
    network,
    plant,
)
from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.nn.resnet import ResNet
from etude.training.opposing_signals import OpposingSignalMonitor, StepRecord, cross_entropy

CLAIM = PAPER.claims["planted_groups_are_found"]


def trial_of(arm: str, seed: int = 500, **changes) -> Trial:
    return Trial("toy", arm, seed, "small", CLAIM.setups["smoke"].replace(**changes))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return images.digits()


@pytest.fixture(scope="module")
def arms(digits):
    planted = {}
    for arm in PLANTED_ARMS:
        trial = trial_of(arm)
        x, y = drawn(trial, digits)
        planted[arm] = x, y, plant(trial, x, y, 10)
    return planted


def test_every_arm_starts_from_the_same_images_of_one_scale(arms):
    x, y, _ = arms["clean"]
    assert x.shape == (200, 1, 8, 8)
    assert float(x.flatten(1).square().sum(1).mean().sqrt()) == pytest.approx(2.17, rel=1e-5)
    for other_x, other_y, _ in arms.values():
        assert torch.equal(other_x, x)
        assert torch.equal(other_y, y)


def test_each_arm_changes_what_it_says_and_equally_many_images(arms):
    x, y, clean = arms["clean"]
    assert torch.equal(clean.x, x)
    assert torch.equal(clean.y, y)
    for arm, classes in (("patched", 2), ("distant", 2), ("agreeing", 1)):
        planted = arms[arm][2]
        rows = torch.cat(planted.groups)
        assert len(rows) == 12
        assert len(set(y[rows].tolist())) == classes
        assert torch.equal(planted.y, y)
        assert set(torch.nonzero((planted.x != x).flatten(1).any(1)).flatten().tolist()) == set(rows.tolist())
    noisy = arms["label_noise"][2]
    assert torch.equal(noisy.x, x)
    assert set(torch.nonzero(noisy.y != y).flatten().tolist()) == set(torch.cat(noisy.groups).tolist())
    assert torch.equal(torch.cat(clean.groups), torch.cat(arms["patched"][2].groups))


def test_the_pair_is_the_closest_or_farthest_of_the_classes_that_are_large_enough():
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0], [5.0], [5.0], [0.1]])
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    assert class_pair(x, y, 2, 4) == [0, 1]
    assert class_pair(x, y, 2, 4, farthest=True) == [0, 2]
    assert class_pair(x, y, 1, 4) == [0, 3]
    with pytest.raises(ValueError, match="two classes of at least 3 images each, 0 are so large"):
        class_pair(x, y, 3, 4)


def test_larger_images_are_averaged_to_the_size_of_the_setup_and_colour_is_kept():
    generator = torch.Generator().manual_seed(0)
    part = Examples(torch.rand(40, 3, 20, 12, generator=generator), torch.arange(40) % 2)
    data = ImageData(train=part, val=part, test=part, classes=("a", "b"), name="colour")
    x, y = drawn(trial_of("clean"), data)
    assert x.shape == (120, 3, 8, 8)
    assert y.shape == (120,)


def test_images_that_are_alike_or_not_in_memory_are_refused():
    part = Examples(torch.ones(4, 1, 8, 8), torch.arange(4) % 2)
    data = ImageData(train=part, val=part, test=part, classes=("a", "b"), name="blank")
    with pytest.raises(ValueError, match="the images of blank are all alike"):
        drawn(trial_of("clean"), data)
    stored = torch.utils.data.TensorDataset(part.inputs, part.targets)
    data = ImageData(train=stored, val=part, test=part, classes=("a", "b"), name="stored")
    with pytest.raises(TypeError, match="stored must be in memory, as Examples; its train split is a TensorDataset"):
        drawn(trial_of("clean"), data)


def test_unstable_steps_alone_count_where_there_are_three():
    looks = [Look(unstable, 0.0, 0.0, 0.0, 0.0) for unstable in (True, False, True, False)]
    assert counted(looks) == looks
    looks = [*looks, Look(True, 1.0, 0.0, 0.0, 0.0)]
    assert [look.unstable for look in counted(looks)] == [True, True, True]


def test_movers_are_scored_by_their_changes_at_unstable_updates():
    model = torch.nn.Linear(1, 2)
    monitor = OpposingSignalMonitor(model, cross_entropy, torch.zeros(4, 1), torch.tensor([0, 1, 0, 1]), k=1)
    before = torch.tensor([1.0, 1.0, 1.0, 1.0])
    calm = torch.tensor([-9.0, -1.0, -1.0, 0.1])
    unstable = torch.tensor([0.5, -1.5, 0.25, 0.25])
    monitor.records = [StepRecord(step, before, before + d, None, None, 1) for step, d in enumerate([unstable] * 3)]
    monitor.records.append(StepRecord(3, before, before + calm, None, None, 1))
    assert mover_scores(monitor, 0.5, changes=True).tolist() == [1.5, 4.5, 0.75, 0.75]
    assert mover_scores(monitor, 0.5, changes=False).tolist() == [4.5, -1.5, 3.75, 3.75]
    del monitor.records[0]
    assert mover_scores(monitor, 0.5, changes=True)[0] == 10.0


def test_the_slope_is_that_of_least_squares():
    assert _slope([1.0, 2.0, 4.0], [3.0, 5.0, 9.0]) == pytest.approx(2.0)


def test_beyond_smoke_the_groups_are_drawn(digits):
    trial = trial_of("patched", steps=2)
    CLAIM.function(trial, digits)
    assert set(trial.figures) == {"groups", "losses"}


@pytest.mark.parametrize("name", ["planted_groups_are_found", "natural_groups", "adam_vs_sgd"])
def test_the_full_scale_trains_the_networks_it_names(name):
    setup = PAPER.claims[name].setups["full"].replace(width=8)
    trial = Trial("toy", "clean", 500, "full", setup)
    model = network(trial, torch.rand(2, 3, 32, 32), 10)
    assert isinstance(model, ResNet)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_path_of_the_full_scale_runs(digits):
    claim = PAPER.claims["adam_vs_sgd"]
    setup = claim.setups["full"].replace(n=60, width=8, steps=2, size=8, chunk=25, fraction=0.05)
    metrics = claim.function(Trial("toy", "adam", 500, "smoke", setup, {"lr": 0.01}), digits)
    assert set(claim.metrics("adam")) <= set(metrics)


def test_chunks_change_nothing_but_rounding(digits):
    values = []
    for chunk in (0, 64):
        trial = trial_of("patched", chunk=chunk)
        values.append(CLAIM.function(trial, digits))
    assert values[0] == pytest.approx(values[1], rel=1e-2, abs=1e-4)
    assert values[0] != values[1]
