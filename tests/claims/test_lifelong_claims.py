"""What the claims of lifelong learning do to a stream before and after they train."""

import math

import pytest
import torch

pytest.importorskip("mlxtend")

from etude.claims.transfer import lifelong as claims
from etude.data import characters, images
from etude.lab import Trial


def trial(claim, arm, seed=0, **tuned):
    return Trial(f"lifelong/{claim}", arm, seed, "smoke", claims.PAPER.claims[claim].setups["smoke"], tuned)


def test_arms_of_a_seed_see_the_same_digits_and_start_from_the_same_weights():
    data = images.mnist5k()
    one, same, other = (
        claims.small_images(trial("non_forgetting", arm, seed), data)
        for arm, seed in (("fine_tune", 0), ("non_forgetting", 0), ("fine_tune", 1))
    )
    assert torch.equal(one.train.inputs, same.train.inputs)
    assert not torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.test.inputs, other.test.inputs)
    assert torch.bincount(one.train.targets).tolist() == [10] * 10
    assert one.train.inputs.shape[1:] == (1, 14, 14)
    first, second = (claims.network(trial("non_forgetting", arm), 196, 4, pool=8) for arm in ("fine_tune", "ewc"))
    assert torch.equal(first.layers[0].weight, second.layers[0].weight)


def test_the_first_task_is_learned_alike_by_every_stiffness():
    data = images.mnist5k()
    values = {arm: claims.non_forgetting(trial("non_forgetting", arm), data) for arm in ("fine_tune", "b=1", "b=inf")}
    assert len({value["first_task_learned"] for value in values.values()}) == 1
    assert values["b=inf"]["forgetting"] == 0.0
    assert values["b=inf"]["first_task"] == values["b=inf"]["first_task_learned"]
    assert math.isinf(claims.CURVE["b=inf"])


def test_the_earlier_tasks_are_the_same_whoever_learns_the_last():
    found = {arm: claims.rain_man(trial("rain_man", arm)) for arm in ("few_shot", "rain_man")}
    assert all(values["forgetting"] == 0.0 for values in found.values())
    streams = [claims.latent_stream(trial("rain_man", arm), [10, 10]) for arm in ("few_shot", "rain_man")]
    assert torch.equal(streams[0][1].train.inputs, streams[1][1].train.inputs)


def test_exemplars_alone_stand_on_units_that_nobody_trained():
    data = images.mnist5k()
    arms = ("separate", "exemplars_only")
    values = {arm: claims.confusion_reduction(trial("confusion_reduction", arm), data) for arm in arms}
    again = claims.confusion_reduction(trial("confusion_reduction", "exemplars_only", lr=1.0), data)
    assert again == values["exemplars_only"], "the rate of a training that does not happen changes nothing"
    assert claims.confusion_reduction(trial("confusion_reduction", "separate", lr=1.0), data) != values["separate"]


def test_backward_transfer_starts_alike_and_leaves_the_later_tasks_alone():
    values = {arm: claims.backward_transfer(trial("backward_transfer", arm)) for arm in ("frozen", "restarted")}
    assert values["frozen"]["others"] == values["restarted"]["others"]
    assert values["frozen"]["just_after"] == values["restarted"]["just_after"]
    assert values["frozen"]["linked"] == 0.0


def test_alphabets_are_drawn_by_other_people_in_every_part():
    data = characters.strokes(2, 4, 10, size=14)
    setup = claims.PAPER.claims["character_few_shot"].setups["smoke"]
    tasks = claims.alphabets(Trial("lifelong/character_few_shot", "few_shot", 0, "smoke", setup), data)
    assert len(tasks) == 2
    for task in tasks:
        assert torch.bincount(task.train.targets - task.train.targets.min()).tolist() == [5] * 4
        assert (len(task.val), len(task.test)) == (2 * 4, 3 * 4)


def test_the_rank_correlation_is_spearmans():
    assert claims.rank_correlation([0, 1, 2], [0.1, 0.5, 0.4]) == pytest.approx(0.5)
    assert claims.rank_correlation([0, 1, 2], [0.3, 0.3, 0.3]) == 0.0


def test_classes_that_cannot_be_parted_are_refused():
    data = images.shapes(40)
    with pytest.raises(ValueError, match="5 classes cannot be parted into tasks of equally many, two or more"):
        claims.confusion_reduction(trial("confusion_reduction", "separate"), data)
