"""The five baselines are made of the learner's own parts, and have equal steps."""

import pytest
import torch
from torch import nn

from etude.transfer.fewshot_continual import BASELINES, FewShotContinualLearner, JointLearner, baseline

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([9, 3, 11, 0, 7, 5, 2, 1, 8, 4, 10, 6]).repeat_interleave(5)
TASKS = [(X[start : start + 20], Y[start : start + 20]) for start in (0, 20, 40)]
OPTIONS = {"iters": 4, "lr": 0.01}


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def weights(module):
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def made(name, **options):
    extra = {"penalty_strength": 1.0} if name == "ewc" else {}
    learner = baseline(name, encoder(), **OPTIONS | extra | options)
    for task in TASKS:
        learner.learn_task(*task)
    return learner


def test_every_learner_makes_as_many_steps_a_task_and_joint_training_as_many_in_all_tasks_so_far():
    assert set(BASELINES) == {"frozen", "finetune", "ewc", "er", "joint"}
    steps = {name: made(name).steps for name in BASELINES}
    two_step = FewShotContinualLearner(encoder(), **OPTIONS)
    for task in TASKS:
        two_step.learn_task(*task)
    assert two_step.steps == steps["finetune"] == steps["ewc"] == steps["er"] == [4, 4, 4]
    assert steps["frozen"] == [0, 0, 0]
    assert steps["joint"] == [4, 8, 12]


def test_frozen_is_the_nearest_class_mean_of_the_base_embedding():
    learner = made("frozen")
    assert torch.equal(weights(learner.pair.slow), weights(encoder()))
    z = encoder()(X).detach()
    means = torch.stack([z[label == Y].mean(dim=0) for label in range(12)])
    assert torch.equal(learner.predict(X), torch.cdist(z, means).argmin(dim=1))


def test_single_sets_of_weights_have_one_set_of_weights():
    for name in ("finetune", "ewc", "er", "joint"):
        learner = made(name)
        assert torch.equal(weights(learner.pair.fast), weights(learner.pair.slow))
        assert not torch.equal(weights(learner.pair.slow), weights(encoder()))


def test_the_baselines_differ_from_fine_tuning_by_what_makes_them():
    plain = weights(made("finetune").pair.slow)
    assert torch.equal(weights(baseline_after_one("ewc").pair.slow), weights(baseline_after_one("finetune").pair.slow))
    for name in ("ewc", "er"):
        assert not torch.equal(weights(made(name).pair.slow), plain)


def baseline_after_one(name):
    learner = baseline(name, encoder(), **OPTIONS, **({"penalty_strength": 1.0} if name == "ewc" else {}))
    return learner.learn_task(*TASKS[0])


def test_joint_training_begins_at_the_base_for_every_task():
    learner = made("joint")
    only_last = made("joint", train_after=[3])
    assert only_last.steps == [0, 0, 12]
    assert torch.equal(weights(only_last.pair.slow), weights(learner.pair.slow))


def test_a_linear_head_scores_the_classes_in_the_order_of_the_memory():
    learner = made("joint", head="linear", epochs=60)
    assert learner.steps == [240, 480, 720]
    # The head has learned the shots by heart only if its rows stand for the right labels.
    assert learner.score(X, Y) > 0.9
    assert learner.logits(X).shape == (60, 12)
    assert isinstance(learner, JointLearner)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("replay", {}, "baseline must be one of frozen, finetune, ewc, er, joint, got 'replay'"),
        ("finetune", {"eta": 0.5}, "finetune is defined by eta=1.0, got 0.5"),
        ("er", {"replay": "none"}, "er is defined by replay=support, got none"),
        ("ewc", {}, "ewc needs a penalty_strength above 0"),
        ("joint", {"replay": "none"}, "joint training is defined by replay=support, got none"),
        ("joint", {"meta_steps": 3}, "joint training has no meta_steps, got 3"),
        ("joint", {"head": "tree"}, "head must be 'prototype' or 'linear', got 'tree'"),
        ("joint", {"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_options_that_contradict_a_baseline_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        baseline(name, encoder(), **options)
