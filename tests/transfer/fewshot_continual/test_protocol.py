"""The stream: disjoint parts, the same for every arm; and what is measured along it."""

import pytest
import torch
from torch import nn

from etude.transfer.fewshot_continual import (
    EpisodeSampler,
    FewShotContinualLearner,
    FewShotStream,
    baseline,
    one_shot_error,
    plot_curves,
    run_stream,
    tasks_by_column,
    unseen_episodes,
)
from etude.transfer.streams import average_accuracy, forgetting

LABELS = torch.arange(40).repeat(6)
GROUPS = [f"alphabet {label // 5}" for label in range(40)]
GENERATOR = torch.Generator().manual_seed(0)
CENTRES = torch.randn(40, 6, generator=GENERATOR)
X = CENTRES[LABELS] + 0.3 * torch.randn(240, 6, generator=GENERATOR)
TEST = CENTRES[LABELS] + 0.3 * torch.randn(240, 6, generator=GENERATOR)


def drawn(seed=0, **options):
    arguments = {"n_way": 5, "k_shot": 3, "groups": GROUPS} | options
    return FewShotStream.draw(LABELS, **arguments, generator=torch.Generator().manual_seed(seed))


def learner(**options):
    torch.manual_seed(0)
    return FewShotContinualLearner(nn.Linear(6, 4), **{"iters": 2} | options)


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_base_tasks_and_unseen_classes_share_nothing(groups):
    for seed in range(10):
        stream = drawn(seed, groups=groups)
        every = torch.cat([stream.base, *stream.tasks, stream.unseen])
        assert len(every.unique()) == len(every) == 40
        assert (len(stream.base), len(stream.tasks), len(stream.unseen)) == (10, 4, 10)
        used = torch.cat([stream.base_rows, *stream.support_rows])
        assert len(used.unique()) == len(used)
        assert not bool(torch.isin(LABELS[used], stream.unseen).any())
        for task, rows in zip(stream.tasks, stream.support_rows):
            assert torch.equal(LABELS[rows].view(5, 3), task[:, None].expand(5, 3))


def test_whole_groups_go_to_one_part():
    stream = drawn()
    parts = [{GROUPS[label] for label in part.tolist()} for part in (stream.base, stream.seen, stream.unseen)]
    assert [len(part) for part in parts] == [2, 4, 2]
    assert len(set.union(*parts)) == 8


def test_a_seed_gives_one_stream_and_another_another():
    one, same, other = drawn(1), drawn(1), drawn(2)
    assert torch.equal(one.seen, same.seen)
    assert all(torch.equal(a, b) for a, b in zip(one.support_rows, same.support_rows))
    assert not torch.equal(one.seen, other.seen)


def test_learners_of_one_seed_see_the_same_episodes_of_the_same_tasks():
    seen = {}

    def recorded(name):
        def augment(inputs, generator):
            seen.setdefault(name, []).append(inputs.clone())
            return inputs

        return augment

    stream = drawn(num_tasks=2)
    for name in ("finetune", "er"):
        torch.manual_seed(0)
        arm = baseline(name, nn.Linear(6, 4), iters=3, augment=recorded(name), seed=5)
        for rows in stream.support_rows:
            arm.learn_task(X[rows], LABELS[rows])
    # Those of replay come between, and shift nothing.
    own = seen["er"][:3] + seen["er"][3::2]
    assert len(own) == len(seen["finetune"]) == 6
    assert all(torch.equal(a, b) for a, b in zip(own, seen["finetune"]))


def test_the_unseen_episodes_hold_unseen_classes_only():
    stream = drawn()
    rows = torch.isin(LABELS, stream.unseen).nonzero()[:, 0]
    episodes = unseen_episodes(LABELS, stream, n_way=4, n_query=2, n_episodes=50)
    used = LABELS[rows[episodes.episodes().unique()]]
    assert set(used.tolist()) == set(stream.unseen.tolist())


def test_the_curves_are_the_accuracies_of_the_learner_after_each_task():
    stream = drawn(num_tasks=3)
    episodes = unseen_episodes(LABELS, stream, n_way=4, n_query=2, n_episodes=10)
    result = run_stream(learner(), stream, (X, LABELS), (TEST, LABELS), episodes)
    again = learner()
    unseen = TEST[torch.isin(LABELS, stream.unseen)]
    assert result.few_shot[0] == again.few_shot_accuracy(unseen, episodes)
    for t, rows in enumerate(stream.support_rows):
        again.learn_task(X[rows], LABELS[rows])
        known = torch.isin(LABELS, torch.cat(stream.tasks[: t + 1]))
        assert result.seen[t] == pytest.approx(again.score(TEST[known], LABELS[known]), abs=1e-12)
        assert result.seen_fast[t] == pytest.approx(again.score(TEST[known], LABELS[known], "fast"), abs=1e-12)
        assert result.few_shot[t + 1] == again.few_shot_accuracy(unseen, episodes)
        for i in range(3):
            own = torch.isin(LABELS, stream.tasks[i])
            right = (again.predict(TEST[own]) == LABELS[own]).double().mean().item()
            assert result.matrix[t, i].item() == pytest.approx(right if i <= t else 0.0, abs=1e-12)
    # Tasks are equally large, so that A_T is the average accuracy of the continual-learning papers.
    assert average_accuracy(result.matrix) == pytest.approx(result.seen[-1], abs=1e-12)
    assert -1 <= forgetting(result.matrix) <= 1
    assert result.steps == [2, 2, 2]


def test_without_curves_the_last_measurement_is_the_only_one():
    stream = drawn(num_tasks=3)
    episodes = unseen_episodes(LABELS, stream, n_way=4, n_query=2, n_episodes=10)
    whole, last = (
        run_stream(learner(), stream, (X, LABELS), (TEST, LABELS), episodes, curves=curves) for curves in (True, False)
    )
    assert (last.seen, last.few_shot) == (whole.seen[-1:], whole.few_shot[-1:])
    assert torch.equal(last.matrix[-1], whole.matrix[-1])


def test_measuring_changes_nothing():
    stream = drawn(num_tasks=2)
    measured, plain = learner(), learner()
    run_stream(measured, stream, (X, LABELS), (TEST, LABELS))
    for rows in stream.support_rows:
        plain.learn_task(X[rows], LABELS[rows])
    assert all(torch.equal(a, b) for a, b in zip(measured.pair.parameters(), plain.pair.parameters()))


def test_one_shot_error_is_that_of_the_nearest_training_example():
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(3):
        training = torch.randn(5, 4, generator=generator)
        labels = torch.randperm(5, generator=generator)
        runs.append((training, training[labels] + 0.8 * torch.randn(5, 4, generator=generator), labels))
    wrong = [
        int((training - x).square().sum(dim=1).argmin()) != label
        for training, test, labels in runs
        for x, label in zip(test, labels.tolist())
    ]
    assert one_shot_error(nn.Identity(), runs) == pytest.approx(sum(wrong) / 15)
    assert 0 < sum(wrong) < 15


def test_a_column_parts_rows_into_tasks_in_the_order_of_its_values():
    tasks = tasks_by_column(["may", "june", "may", "april", "june"])
    assert {name: rows.tolist() for name, rows in tasks.items()} == {"may": [0, 2], "june": [1, 4], "april": [3]}
    assert list(tasks) == ["may", "june", "april"]


def test_the_picture_has_both_curves_of_every_learner():
    pytest.importorskip("matplotlib")
    stream = drawn(num_tasks=2)
    result = run_stream(
        learner(), stream, (X, LABELS), (TEST, LABELS), unseen_episodes(LABELS, stream, n_way=4, n_episodes=5)
    )
    seen, few_shot = plot_curves({"one": result, "two": result}).axes
    assert [list(line.get_ydata()) for line in seen.lines] == [result.seen, result.seen]
    assert list(few_shot.lines[0].get_xdata()) == [0, 1, 2]
    with pytest.raises(ValueError, match="no results"):
        plot_curves({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_way": 1}, "a stream needs n_way >= 2"),
        ({"k_shot": 0}, "k_shot >= 1"),
        ({"base": 0.6, "unseen": 0.4}, "positive shares below 1 together, got 0.6 and 0.4"),
        ({"num_tasks": 5}, "5 tasks of 5 classes need 25, there are 20"),
        ({"n_way": 21}, "leave 20 for the tasks, fewer than 21"),
        ({"k_shot": 7}, "has 6 examples, fewer than 7 shots"),
        ({"groups": GROUPS[:7]}, "groups names 7 classes, the labels go up to 39"),
    ],
)
def test_streams_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        drawn(**options)


def test_a_stream_whose_parts_overlap_is_refused():
    part = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="class 1 stands in more than one part"):
        FewShotStream(part, (torch.tensor([1, 2]),), torch.tensor([3]), part, (part,))


def test_tasks_without_queries_and_episodes_of_other_rows_are_refused():
    stream = drawn(num_tasks=2)
    held = stream.tasks[1][0] != LABELS
    run_stream(learner(), stream, (X, LABELS), (TEST[held], LABELS[held]))
    none = ~torch.isin(LABELS, stream.tasks[1])
    with pytest.raises(ValueError, match="there are no test examples of the classes"):
        run_stream(learner(), stream, (X, LABELS), (TEST[none], LABELS[none]))
    with pytest.raises(ValueError, match="the episodes go beyond the 60 rows of unseen classes"):
        run_stream(learner(), stream, (X, LABELS), (TEST, LABELS), EpisodeSampler(LABELS, 3, 1, 1, 20))
    with pytest.raises(ValueError, match="there are no runs"):
        one_shot_error(nn.Identity(), [])
