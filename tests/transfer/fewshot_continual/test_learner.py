"""The two-step learner: its limits, what it stores, equal steps, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from etude.transfer.fewshot_continual import (
    ConvEmbedding,
    EpisodeSampler,
    FewShotContinualLearner,
    PrototypeClassifier,
    random_affine,
)
from etude.transfer.importance import mas

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12).repeat_interleave(5)
TASKS = [(X[start : start + 20], Y[start : start + 20]) for start in (0, 20, 40)]


def encoder():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def learned(tasks=TASKS, **options):
    learner = FewShotContinualLearner(encoder(), **{"iters": 4, "lr": 0.01} | options)
    for task in tasks:
        learner.learn_task(*task)
    return learner


def weights(module):
    return torch.cat([weight.detach().flatten() for weight in module.parameters()])


def test_with_eta_one_both_weights_are_one_set_and_with_eta_zero_the_slow_ones_stay_the_base():
    single = learned(eta=1.0)
    assert torch.equal(weights(single.pair.fast), weights(single.pair.slow))
    frozen = learned(eta=0.0)
    assert torch.equal(weights(frozen.pair.slow), weights(encoder()))
    assert torch.equal(weights(frozen.pair.fast), weights(single.pair.fast))  # the fast ones run on, whatever eta


def test_slow_weights_are_the_moving_average_of_the_fast_ones():
    expected = weights(encoder())
    for count in range(1, 4):
        learner = learned(TASKS[:count], eta=0.3)
        expected = expected + 0.3 * (weights(learner.pair.fast) - expected)
        torch.testing.assert_close(weights(learner.pair.slow), expected)


def test_with_restart_each_task_begins_at_the_slow_weights():
    learner = learned(TASKS[:2], eta=0.0, restart=1.0, seed=1)
    alone = FewShotContinualLearner(encoder(), iters=4, lr=0.01, eta=0.0, seed=1)
    alone.steps = [4]  # so that it draws the episodes of the second task
    alone.learn_task(*TASKS[1])
    assert torch.equal(weights(learner.pair.fast), weights(alone.pair.fast))


def test_without_strength_there_is_no_penalty_and_a_huge_one_holds_the_fast_weights():
    free, none = learned(TASKS[:2]), learned(TASKS[:2], penalty_strength=0.0)
    assert torch.equal(weights(free.pair.fast), weights(none.pair.fast))
    # A long task, in which the free weights go far: the held ones only tremble by the size of Adam's steps.
    start = weights(learned(TASKS[:1]).pair.fast)
    held, loose = (learned([TASKS[0]], penalty_strength=strength).learn_task(*TASKS[1]) for strength in (1e6, 1e-6))
    assert (weights(loose.pair.fast) - start).norm() > 0
    assert (weights(held.pair.fast) - start).norm() < (weights(loose.pair.fast) - start).norm()


def test_the_first_steps_gradient_holds_the_fast_weights_where_the_last_task_left_them():
    """With one step of SGD from the slow weights, the penalty adds -lr * 2 * lambda * Omega * (slow - previous)."""

    def after(strength):
        learner = learned(TASKS[:1], restart=1.0, eta=0.0, kappa=1.0, seed=2)
        previous = weights(learner.pair.fast)
        omega = torch.cat([value.flatten() for value in learner.accumulator.value.values()])
        learner.iters, learner.lr, learner.optimizer, learner.penalty_strength = 1, 0.1, torch.optim.SGD, strength
        learner.learn_task(*TASKS[1])
        return weights(learner.pair.fast), previous, omega

    free, previous, omega = after(0.0)
    held, _, _ = after(0.3)
    torch.testing.assert_close(held - free, -0.1 * 2 * 0.3 * omega * (weights(encoder()) - previous))


def test_importances_are_the_mean_over_the_tasks_so_far():
    first = learned(TASKS[:1], penalty_strength=1.0)
    omega = {name: value.clone() for name, value in first.accumulator.value.items()}
    expected = mas(first.pair.fast, TASKS[0][0])
    for name, value in omega.items():
        torch.testing.assert_close(value, expected[name])
    first.learn_task(*TASKS[1])
    second = mas(first.pair.fast, TASKS[1][0])
    for name, value in first.accumulator.value.items():
        torch.testing.assert_close(value, (omega[name] + second[name]) / 2)


@pytest.mark.parametrize("importance", ["mas", "fisher"])
def test_importances_equal_the_gradients_of_single_examples(importance):
    learner = FewShotContinualLearner(nn.Linear(2, 3), iters=0, kappa=1.0, importance=importance)
    x, y = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.tensor([5, 5, 5, 8, 8, 8])
    learner.learn_task(x, y)
    module = copy.deepcopy(learner.pair.fast)
    prototypes = torch.stack([module(x[:3]).mean(dim=0), module(x[3:]).mean(dim=0)]).detach()
    total = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    for row in range(6):
        module.zero_grad()
        z = module(x[row : row + 1])
        if importance == "mas":
            z.square().sum().backward()
        else:
            logits = -(z - prototypes).square().sum(dim=1)
            (-logits.log_softmax(0)[int(y[row] == 8)]).backward()
        for name, weight in module.named_parameters():
            total[name] += weight.grad.abs() if importance == "mas" else weight.grad.square()
    for name, value in learner.accumulator.value.items():
        torch.testing.assert_close(value, total[name] / 6)


def test_stored_shots_make_prototypes_the_mean_under_the_weights_that_are_evaluated():
    learner = learned(replay="refresh")
    for which in ("slow", "fast"):
        module, memory = learner.pair.copy_of(which), learner.memories[which]
        assert memory.classes.tolist() == list(range(12))
        for label, prototype in zip(range(12), memory.prototypes):
            torch.testing.assert_close(prototype, module(X[label == Y]).mean(dim=0).detach())


def test_without_stored_shots_prototypes_stay_as_they_were_learned():
    learner = learned(TASKS[:1], replay="none")
    before = learner.memories["fast"].prototypes.clone()
    learner.learn_task(*TASKS[1])
    assert torch.equal(learner.memories["fast"].prototypes[:4], before)
    with pytest.raises(ValueError, match="no support examples are stored"):
        _ = learner.memories["slow"].support


def test_predictions_are_the_nearest_prototypes_among_all_classes():
    learner = learned()
    z = learner.pair.slow(X).detach()
    nearest = torch.cdist(z, learner.memories["slow"].prototypes).argmin(dim=1)
    assert torch.equal(learner.predict(X), learner.classes[nearest])
    assert learner.score(X, Y) == (learner.classes[nearest] == Y).double().mean().item()
    assert learner.score(X, Y, "fast") != learner.score(X, Y[torch.randperm(60)], "fast")


def test_few_shot_accuracy_is_that_of_the_slow_weights_on_the_samplers_episodes():
    learner, sampler = learned(), EpisodeSampler(Y, 3, 1, 4, 20)
    right = []
    for rows in sampler:
        z = learner.pair.slow(X[torch.tensor(rows)]).view(3, 5, -1)
        for label in range(3):
            for query in z[label, 1:]:
                right.append(int((z[:, 0] - query).square().sum(dim=1).argmin()) == label)
    assert learner.few_shot_accuracy(X, sampler) == pytest.approx(sum(right) / len(right), abs=1e-6)


def test_replay_and_the_prototypes_of_earlier_classes_change_training_from_the_second_task_on():
    plain = learned(TASKS[:1])
    for options in ({"replay": "support"}, {"seen_softmax": True}):
        assert torch.equal(weights(learned(TASKS[:1], **options).pair.fast), weights(plain.pair.fast))
        assert not torch.equal(weights(learned(TASKS[:2], **options).pair.fast), weights(learned(TASKS[:2]).pair.fast))


def test_meta_steps_train_the_slow_weights_alone_and_are_counted():
    def noise(x, generator):
        return x + 0.1 * torch.randn(x.shape, generator=generator)

    plain, meta = (learned(TASKS[:1], augment=noise, meta_steps=steps, meta_lr=0.01) for steps in (0, 3))
    assert torch.equal(weights(plain.pair.fast), weights(meta.pair.fast))
    assert not torch.equal(weights(plain.pair.slow), weights(meta.pair.slow))
    assert (plain.steps, meta.steps) == ([4], [7])
    near, far = (
        learned(TASKS[:1], augment=noise, meta_steps=30, meta_lr=0.01, meta_decay=decay, eta=0.0)
        for decay in (100.0, 0.0)
    )
    base = weights(encoder())
    assert (weights(near.pair.slow) - base).norm() < (weights(far.pair.slow) - base).norm()


def test_pretraining_trains_the_slow_weights_and_leaves_both_equal():
    learner = FewShotContinualLearner(encoder(), lr=0.01)
    losses = learner.pretrain(X, Y, episodes=5, n_way=3, k_shot=2, n_query=3)
    assert len(losses) == 5
    assert not torch.equal(weights(learner.pair.slow), weights(encoder()))
    assert torch.equal(weights(learner.pair.slow), weights(learner.pair.fast))
    assert torch.equal(torch.cat([value.flatten() for value in learner.base.values()]), weights(learner.pair.slow))
    learner.learn_task(*TASKS[0])
    with pytest.raises(ValueError, match="pretrain comes before the tasks; 1 were learned already"):
        learner.pretrain(X, Y)


def test_tasks_leave_batch_norm_with_the_statistics_of_the_base():
    network = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    learner = FewShotContinualLearner(network, iters=3)
    learner.pretrain(X, Y, episodes=3, n_way=3, k_shot=2, n_query=3)
    before = learner.pair.slow[1].running_mean.clone()
    assert not torch.equal(before, torch.zeros(4))
    learner.learn_task(*TASKS[0])
    assert torch.equal(learner.pair.fast[1].running_mean, before)
    torch.testing.assert_close(learner.pair.slow[1].running_mean, before)


def test_one_shot_tasks_learn_from_augmented_copies():
    images, labels = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    learner = FewShotContinualLearner(ConvEmbedding(1, 8, depth=1, width=4, dim=5), augment=random_affine, iters=2)
    assert learner.learn_task(images, labels).score(images, labels) == 1.0
    bare = FewShotContinualLearner(ConvEmbedding(1, 8, depth=1, width=4, dim=5), iters=2)
    with pytest.raises(ValueError, match="an augmentation must tell their copies apart"):
        bare.learn_task(images, labels)


def test_a_class_that_comes_again_is_merged_if_so_wished():
    learner = learned([TASKS[0]], repeated="merge")
    learner.learn_task(X[15:35], Y[15:35])
    assert learner.classes.tolist() == list(range(7))
    assert learner.memories["slow"].counts.tolist() == [5, 5, 5, 10, 5, 5, 5]


@pytest.mark.parametrize("options", [{"replay": "support"}, {"seen_softmax": True}])
def test_a_class_that_comes_again_does_not_stand_against_itself(options):
    learner = learned([TASKS[0]], repeated="merge", **options)
    alone = learned([TASKS[0]], repeated="merge")
    for one in (learner, alone):
        one.learn_task(*TASKS[0])  # no class is earlier than those of the task
    assert torch.equal(weights(learner.pair.fast), weights(alone.pair.fast))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ((X[:5], Y[:5]), r"a task needs two classes or more to tell apart, got class \[0\] only"),
        (TASKS[0], "class 0 was learned before; repeated='merge' adds its shots"),
        ((X[40:], Y[41:]), "equally many rows, at least one, got 20 and 19"),
        ((X[40:40], Y[40:40]), "equally many rows, at least one, got 0 and 0"),
        ((X[40:] * float("nan"), Y[40:]), "X holds NaN or infinite values"),
    ],
)
def test_a_bad_task_is_refused_and_changes_nothing(task, message):
    learner = learned(TASKS[:1])
    before = weights(learner.pair.fast), learner.classes.tolist()
    with pytest.raises(ValueError, match=message):
        learner.learn_task(*task)
    assert torch.equal(weights(learner.pair.fast), before[0])
    assert learner.classes.tolist() == before[1]


def test_an_unseen_label_at_test_and_a_prediction_before_any_task_are_refused():
    with pytest.raises(ValueError, match="class 4 was never learned; the classes are"):
        learned(TASKS[:1]).score(X, Y)
    with pytest.raises(ValueError, match="there is no class to tell apart yet"):
        learned([]).predict(X)


def test_an_encoder_that_gives_no_vectors_is_refused():
    learner = FewShotContinualLearner(nn.Identity(), iters=0)
    with pytest.raises(ValueError, match=r"one vector for each input, shape \(n, dim\), got \(1, 1, 8, 8\)"):
        learner.learn_task(torch.zeros(4, 1, 8, 8), torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replay": "all"}, "replay must be one of none, refresh, support, got 'all'"),
        ({"importance": "si"}, "importance must be 'mas' or 'fisher', got 'si'"),
        ({"iters": -1}, "iters must be at least 0, got -1"),
        ({"k_support": 0}, "k_support must be at least 1, got 0"),
        ({"lr": 0.0}, "lr and meta_lr must be positive, got 0.0"),
        ({"penalty_strength": -1.0}, "penalty_strength must be finite and not negative, got -1.0"),
        ({"meta_steps": 1, "replay": "none"}, "meta_steps train on stored shots"),
        ({"meta_steps": 1}, "meta_steps tell shots from their copies by an augmentation, got augment=None"),
        ({"eta": 2.0}, "eta must lie in"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FewShotContinualLearner(encoder(), **options)


def test_classifiers_share_the_scale_given():
    assert FewShotContinualLearner(encoder()).classifier.scale == PrototypeClassifier().scale == 1.0
