"""The logic of the gradient-noise claims that is not training: how tasks are grouped and how bits are counted."""

from itertools import combinations

import torch

from etude.claims.training.gradient_noise import PAPER, QuestionTasks, _generated, _wrong_bits
from etude.lab import Trial


def test_single_training_gives_each_task_its_network_and_joint_training_one_to_all():
    single = QuestionTasks(_generated).groups([1, 2], most=10)
    joint = QuestionTasks(_generated, joint=True).groups([1, 2], most=10)
    assert [[len(part) for part in split] for split in single] == [[10, 10, 10], [10, 10, 10]]
    assert [[len(part) for part in split] for split in joint] == [[20, 20, 20]]
    for part in range(3):
        assert joint[0][part] == single[0][part] + single[1][part]


def test_generated_training_validation_and_test_share_no_long_story():
    # The first few sentences of a story may coincide by chance.
    split = [{item.story for item in part if len(item.story) >= 6} for part in _generated(2)]
    assert not any(a & b for a, b in combinations(split, 2))


def test_wrong_bits_are_counted_where_there_is_a_target():
    targets = torch.tensor([[1, 2, 0], [2, 2, 0]])
    guesses = torch.tensor([[1, 1, 3], [2, 2, 1]])
    logits = torch.nn.functional.one_hot(guesses, 4).float()
    assert _wrong_bits(logits, targets) == 0.25


def test_a_joint_network_takes_the_joint_recipe_and_reports_one_error():
    claim = PAPER.claims["two_stage_memory_network"]
    setup = claim.setups["smoke"].replace(tasks=[1, 2], questions=20, joint={"dim": 5, "epochs": 1, "halve_every": 1})
    trial = Trial("toy", arm="noise", seed=2000, setup=setup, tuned={"lr": 0.01, "std": 0.1})
    metrics = claim.function(trial, QuestionTasks(_generated, joint=True))
    assert set(metrics) == {"error", "train_error", "val_error"}
    trial = Trial("toy", arm="plain", seed=2000, setup=setup, tuned={"lr": 0.01, "std": None})
    assert {"error_task_1", "error_task_2"} < set(claim.function(trial, QuestionTasks(_generated)))
