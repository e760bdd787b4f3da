"""What the claims of hypernetworks promise beyond the method: pairing, budgets, and who chooses."""

import pytest
import torch

from etude.claims.transfer import hypernetworks as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial


def trial(name, arm, *, scale="smoke", tuning=False, **tuned):
    claim = claims.PAPER.claims[name]
    return Trial(claim.id, arm, 500, scale, claim.setups[scale], tuned, tuning=tuning)


def digits(side=28, classes=10):
    generator = torch.Generator().manual_seed(0)

    def split(n):
        labels = torch.arange(classes).repeat(n // classes)
        return Examples(torch.rand(len(labels), 1, side, side, generator=generator), labels)

    return ImageData(split(100), split(40), split(60), tuple("0123456789"[:classes]), "random")


def test_arms_of_a_seed_share_tasks_and_the_start_of_the_hypernetwork():
    one, other = (trial("hypernet_continual", arm) for arm in ("hyper", "hyper_free"))
    first, second = (claims.stream(each, digits()) for each in (one, other))
    assert [task.name for task in first] == [task.name for task in second]
    assert first[0].train.inputs.shape[1:] == (1, 14, 14)
    nets = [
        claims.hypernetwork(each, claims.bl.classifier((1, 14, 14), 4, 2), "once", 5, [4, 4], 0)
        for each in (one, other)
    ]
    assert torch.equal(nets[0].flat(3), nets[1].flat(3))


@pytest.mark.parametrize(
    ("arm", "ratio"),
    [
        ("chunk_half", 0.44),
        ("chunk_1.6", 1.6),
        ("chunk_7.5", 7.5),
        ("once", 7.0),
        ("multiple", 8.1),
        ("component", 8.0),
    ],
)
def test_budgets_are_those_of_the_comparison(arm, ratio):
    generation, width, chunk_size = claims.PARITY[arm]
    net = claims.hypernetwork(
        trial("generation_types_at_parity", arm),
        claims.bl.classifier((1, 14, 14), 32, 2),
        generation,
        5,
        [width, width],
        chunk_size,
    )
    size = sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)
    assert size / 6_370 == pytest.approx(ratio, abs=0.05)


def test_classes_that_do_not_come_in_pairs_make_larger_tasks():
    tasks = claims.stream(trial("hypernet_continual", "hyper"), digits(9, classes=9))
    assert [len(task.classes) for task in tasks] == [3, 3, 3]
    assert tasks[0].train.inputs.shape[1:] == (1, 9, 9)
    with pytest.raises(ValueError, match="5 classes cannot be parted into tasks of equally many"):
        claims.stream(trial("hypernet_continual", "hyper"), digits(9, classes=5))


def test_tuning_looks_at_no_test_image():
    data = digits()
    blind = ImageData(
        data.train, data.val, Examples(torch.zeros_like(data.test.inputs), data.test.targets), data.classes, "blind"
    )
    for name, arm in (("hypernet_continual", "multi_head"), ("few_shot_by_embedding", "scratch")):
        function = claims.PAPER.claims[name].function
        scores = [function(trial(name, arm, tuning=True, lr=0.01), each)["val_accuracy"] for each in (data, blind)]
        assert scores[0] == scores[1]


def test_the_uncalibrated_head_has_the_expected_variance():
    values = claims.hyperfan_matters(trial("hyperfan_matters", "uncalibrated"), digits(8))
    calibrated = claims.hyperfan_matters(trial("hyperfan_matters", "hyperfan"), digits(8))
    assert values["first_moment"] != calibrated["first_moment"]
    assert values["drift"] >= 0


def test_a_ranking_by_size_needs_no_training_and_all_arms_train_the_same_candidates():
    size, untrained = (claims.width_ranking(trial("width_ranking", arm), digits()) for arm in ("size", "untrained"))
    assert -1 <= size["tau"] <= 1
    assert size["regret"] >= 0
    assert untrained["regret"] >= 0


def test_a_task_id_for_images_is_planes_of_a_residual_network():
    net = claims.bl.DirectTarget("task_id", (3, 8, 8), 0, 2, 3, residual=True)
    x = torch.randn(2, 3, 8, 8)
    assert net.trunk.conv1.weight.shape[1] == 3 + 3
    assert net(x, 1).shape == (2, 2)
    assert not torch.equal(net(x, 0), net(x, 1))
    generated = claims.hypernetwork(
        trial("hypernet_continual", "chunk"),
        claims.bl.classifier((3, 8, 8), 0, 2, residual=True),
        "chunk",
        2,
        [8, 8],
        7_000,
        32,
    )
    assert generated.call(x, 1).shape == (2, 2)


@pytest.mark.parametrize(("shots", "rows"), [(1, 10), (3, 30), (99, 100)])
def test_few_examples_are_drawn_evenly_by_class(shots, rows):
    few = claims.bl.draw_few(digits().train, shots, torch.Generator().manual_seed(0))
    assert len(few) == rows
    assert few.targets.bincount().tolist() == [rows // 10] * 10


def test_a_budget_of_no_shots_is_refused():
    with pytest.raises(ValueError, match="shots must be positive, got 0"):
        claims.bl.draw_few(digits().train, 0, torch.Generator())
