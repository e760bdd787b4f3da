"""The logic of the SortedNet claims that is not training: equal samples and sizes, augmentation, averages."""

import pytest
import torch

from etude.claims.training import sortednet
from etude.claims.training.sortednet import PAPER, _alone, _network, _regret, _summary
from etude.data import images
from etude.lab import Trial
from etude.training.sortednet import Cost, SortedSampler, SubModel, count_parameters, space_of


def trial(claim, arm, **changes):
    setup = PAPER.claims[claim].setups["small"].replace(width=[4, 8], depth=[1, 2], evaluated=20, batch=4, **changes)
    return Trial("toy", arm=arm, seed=2000, setup=setup, tuned={"lr_scale": 1.0})


@pytest.fixture
def fits(monkeypatch):
    """What every call of `fit` is told, without training."""
    calls = []

    class Result:
        losses = (0.0,) * 100

    def fit(model, train, optimizer, **options):
        calls.append({"model": model, "lr": optimizer.param_groups[0]["lr"], **options})
        return Result

    monkeypatch.setattr(sortednet, "fit", fit)
    return calls


def test_arms_of_accumulation_see_equally_many_samples_but_for_the_one_of_equal_updates(fits):
    updates = {}
    for arm in PAPER.claims["accumulation"].arms:
        PAPER.claims["accumulation"].function(trial("accumulation", arm, micro_batches=16), images.digits())
        updates[arm] = (fits[-1]["steps"], fits[-1]["accumulate"])
    # There are four sub-models, so that `every` accumulates four micro-batches too.
    assert updates == {
        "single": (16, 1),
        "accumulate": (4, 4),
        "held": (4, 4),
        "every": (4, 4),
        "equal_updates": (16, 4),
    }


def test_individual_networks_have_the_sizes_of_every_few_submodels(fits):
    data = images.digits()
    run = trial("many_in_one", "individual", updates=10, individual_every=2)
    PAPER.claims["many_in_one"].function(run, data)
    whole = _network(run.setup, data)
    expected = [count_parameters(whole, b) for b in list(space_of(whole))[::2]]
    assert [sum(part.numel() for part in call["model"].parameters()) for call in fits] == expected
    # Initialised at their own size: with half of the inputs a linear layer's weights are larger.
    narrow = fits[0]["model"]
    assert float(narrow.head.weight.detach().abs().max()) > 8**-0.5
    full = PAPER.claims["many_in_one"].setups["full"]
    with torch.device("meta"):
        resnet = _network(full, data)
        for b in space_of(resnet):
            alone = _alone(full, data, b)
            assert sum(part.numel() for part in alone.parameters()) == count_parameters(resnet, b)


def test_the_subset_of_a_network_of_many_is_that_of_the_individual_networks():
    found = _summary([0.5, 0.25, 1.0, 0.75, 0.0], every=2)
    assert found == {"accuracy": 0.5, "minimum": 0.0, "full": 0.0, "subset": 0.5}


def test_regret_is_what_the_choice_by_size_loses_against_the_best_that_fits():
    small, middle, large = (SubModel(depth=depth) for depth in (1, 2, 3))
    costs = {small: Cost(1, 1), middle: Cost(2, 2), large: Cost(3, 3)}
    assert _regret({small: 0.5, middle: 0.6, large: 0.9}, costs) == 0
    # The middle one loses 0.2 to the small one at a budget of 2; the large one 0.1 at a budget of 3.
    assert _regret({small: 0.8, middle: 0.6, large: 0.7}, costs) == pytest.approx(0.3 / 3)


def test_only_the_arms_that_sample_have_a_sampler(monkeypatch, fits):
    attached = []
    monkeypatch.setattr(SortedSampler, "attach", lambda self, model: attached.append(self.accumulate) or Handle())

    class Handle:
        def remove(self):
            """Nothing was attached."""

    for arm in ("standard", "truncated", "sorted", "sorted_accumulate"):
        run = trial("many_in_one", arm, updates=10, individual_every=1)
        metrics = PAPER.claims["many_in_one"].function(run, images.digits())
        assert fits[-1]["steps"] == 10
        if arm == "standard":
            assert metrics["accuracy"] == metrics["full"] == metrics["minimum"]
    assert attached == [1, 4]


def test_the_160_sizes_are_160_at_small_and_full():
    data = images.digits()
    for scale in ("small", "full"):
        with torch.device("meta"):
            assert len(space_of(_network(PAPER.claims["hundred_sixty"].setups[scale], data))) == 160
