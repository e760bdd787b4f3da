"""The loss over what is known, the fit, the metrics, and the kind of data below them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.data.kinds_multitask import (
    MultiTaskData,
    MultiTaskRows,
    behaviour_spans,
    joint_outcomes,
    untouched_items,
)
from etude.ranking.dtrn import (
    DTRN,
    fit_multitask,
    mtl_gain,
    multitask_loss,
    predict_multitask,
    task_aucs,
    task_log_losses,
    two_facet_behaviours,
)

NAN = float("nan")


def test_the_loss_of_each_task_is_a_mean_over_its_known_labels():
    logits = torch.tensor([[0.3, -1.0, 0.2], [2.0, 0.5, 0.1], [-0.7, 0.0, 0.4]], requires_grad=True)
    labels = torch.tensor([[1.0, NAN, NAN], [0.0, 1.0, NAN], [NAN, NAN, NAN]])
    first = F.binary_cross_entropy_with_logits(logits[:2, 0], labels[:2, 0])
    second = F.binary_cross_entropy_with_logits(logits[1, 1], labels[1, 1])
    torch.testing.assert_close(multitask_loss(logits, labels), first + second)
    torch.testing.assert_close(multitask_loss(logits, labels, (2, 0.5, 7)), 2 * first + 0.5 * second)
    multitask_loss(logits, labels).backward()
    assert (logits.grad != 0).tolist() == [[True, False, False], [True, True, False], [False, False, False]]
    with pytest.raises(ValueError, match="each of 3 tasks"):
        multitask_loss(logits, labels, (1.0, 2.0))


def small(conflict=1.0, n=300, seed=0):
    log = two_facet_behaviours(n, conflict, 4, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    fields = [(name, size, 4) for name, size in log.item_fields.items()]
    model = DTRN(fields, 2, 2, event_fields=list(log.event_fields.items()), dim=8, max_len=4)
    return model, log


def test_a_fit_learns_keeps_its_best_epoch_and_repeats():
    results = []
    for _ in range(2):
        model, log = small()
        val = two_facet_behaviours(200, 1.0, 4, generator=torch.Generator().manual_seed(1)).rows
        seen: list[tuple] = []

        def callback(epoch, epochs, seen=seen, **metrics):
            seen.append((epoch, epochs, *metrics))

        result = fit_multitask(
            model, log.rows, val, max_len=4, epochs=4, batch_size=64, lr=0.01,
            callback=callback,
        )  # fmt: skip
        assert seen[-1] == (4, 4, "loss", "val_auc")
        means = [np.mean(scores) for scores in result.val_auc]
        assert result.best_epoch == 1 + int(np.argmax(means))
        assert result.best_val_auc == max(means)
        kept = task_aucs(val.labels.numpy(), predict_multitask(model, val, 4))
        assert kept == result.val_auc[result.best_epoch - 1]
        assert result.train_loss[-1] < result.train_loss[0]
        results.append(result)
    assert results[0] == results[1]


def test_patience_stops_the_fit():
    model, log = small()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.head.towers.out.bias.requires_grad_(True)  # moves no rank
    result = fit_multitask(model, log.rows, log.rows, max_len=4, epochs=9, batch_size=64, patience=2)
    assert (result.epochs, result.best_epoch) == (3, 1)


def test_weight_decay_shrinks_w2_alone():
    weights = []
    for decay in (0.0, 100.0):
        model, log = small()
        fit_multitask(model, log.rows, max_len=4, epochs=1, batch_size=100, weight_decay=decay)
        weights.append(
            [model.interest.hyper.out.weight.norm().item(), model.interest.hyper.hidden.weight.norm().item()]
        )
    assert weights[1][0] < 0.8 * weights[0][0]
    assert weights[1][1] == pytest.approx(weights[0][1], rel=0.05)


def test_the_rate_rises_to_its_value_and_stays():
    moved = {}
    for warmup, updates in ((0, 1), (3, 1), (3, 2)):
        model, log = small()
        before = model.head.towers.out.bias.detach().clone()
        fit_multitask(model, log.rows, max_len=4, epochs=1, batch_size=-(-300 // updates), lr=0.01, warmup=warmup)
        moved[warmup, updates] = (model.head.towers.out.bias - before).abs().max().item()
    # Adam's first update is the rate, whatever the gradient.
    assert moved[0, 1] == pytest.approx(0.01, rel=1e-3)
    assert moved[3, 1] == pytest.approx(0.01 / 4, rel=1e-3)
    assert moved[3, 2] <= 0.01 / 4 + 0.01 / 2 + 1e-6


def test_a_task_of_one_class_is_named():
    model, log = small()
    log.rows.labels[:, 1] = torch.where(torch.arange(300) < 5, torch.tensor(NAN), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"task 1 needs both labels in the training rows, its known ones are \[1.0\]"):
        fit_multitask(model, log.rows, max_len=4)
    for options, message in (
        ({"epochs": 0}, "got 0"),
        ({"lr": 0.0}, "0.0"),
        ({"patience": 0}, "and 0"),
        ({"warmup": -1}, "-1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_multitask(model, log.rows, **options)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.bias = nn.Dropout(0.5), nn.Parameter(torch.zeros(2))

    def forward(self, target, sequences, mask, context):
        return self.dropout(torch.ones(len(target), 2)) + self.bias


def test_predictions_are_in_evaluation_mode_and_the_mode_is_given_back():
    model, (_, log) = Constant(), small()
    p = predict_multitask(model, log.rows, 4, batch_size=7)
    assert p.shape == (300, 2)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-1)))
    assert model.training


def test_auc_and_log_loss_leave_unknown_labels_out():
    labels = np.array([[1, NAN], [0, 1], [1, 0], [0, 1.0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.8], [0.4, 0.3]])
    # Task 0: pairs (.9, .2) (.9, .4) (.4, .2) won, (.4, .4) tied. Task 1: (.8, .8) tied, (.3, .8) lost.
    assert task_aucs(labels, scores) == (3.5 / 4, 0.25)
    want = -np.mean(np.log([0.8, 0.2, 0.3]))
    assert task_log_losses(labels, scores)[1] == pytest.approx(want)
    assert mtl_gain((0.9, 0.6), (0.8, 0.8)) == pytest.approx((0.125 - 0.25) / 2)
    with pytest.raises(ValueError, match="task 0 needs both labels, its 2 known ones"):
        task_aucs(labels[[0, 2]], scores[[0, 2]])
    with pytest.raises(ValueError, match=r"\(n, tasks\), got \(4,\)"):
        task_aucs(labels[:, 0], scores[:, 0])
    with pytest.raises(ValueError, match="must be finite, 1 are not"):
        task_aucs(labels, np.where(scores == 0.9, np.inf, scores))
    with pytest.raises(ValueError, match="got 2 and 1"):
        mtl_gain((0.9, 0.8), (0.5,))


def test_histories_of_each_type_are_of_the_same_user_and_strictly_before():
    rng = np.random.default_rng(0)
    user, time, kind = rng.integers(4, size=60), rng.integers(20, size=60), rng.integers(3, size=60)
    order, starts, stops = behaviour_spans(user, time, kind, 3, user, time)
    assert sorted(order.tolist()) == list(range(60))
    for row in range(60):
        for k in range(3):
            got = order[starts[row, k] : stops[row, k]]
            want = np.flatnonzero((user == user[row]) & (time < time[row]) & (kind == k))
            assert sorted(got) == want.tolist()
            assert (np.diff(time[got]) >= 0).all()
    with pytest.raises(ValueError, match=r"0..2, got 0..3"):
        behaviour_spans(user, time, kind + (kind == 2), 3, user, time)
    with pytest.raises(ValueError, match="must be integers"):
        behaviour_spans(user, time, kind.astype(float), 3, user, time)


def test_events_at_one_time_with_one_item_are_one_row():
    user, item, time = np.array([1, 0, 1, 1, 1]), np.array([5, 5, 5, 5, 6]), np.array([9, 9, 9, 8, 9])
    first, outcomes = joint_outcomes(user, item, time, np.array([0, 0, 2, 1, 1]), 3)
    assert first.tolist() == [0, 1, 3, 4]
    assert outcomes.tolist() == [[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_untouched_items_are_of_no_row_of_the_user_and_follow_popularity():
    user = np.repeat(np.arange(200), 3)
    item = np.tile([0, 1, 1], 200)
    item[:30] = 2
    drawn = untouched_items(user, item, np.random.default_rng(0))
    taken = set(zip(user.tolist(), item.tolist()))
    assert not any(pair in taken for pair in zip(user.tolist(), drawn.tolist()))
    assert (drawn[30:] == 2).all()
    assert (drawn[:30] == 1).sum() > (drawn[:30] == 0).sum()
    with pytest.raises(ValueError, match="1 users have nearly every item"):
        untouched_items(np.zeros(4, dtype=int), np.arange(4), np.random.default_rng(0))


def rows(**changes):
    parts = {
        "targets": torch.ones(2, 1, dtype=torch.int64), "events": torch.ones(3, 1, dtype=torch.int64),
        "starts": torch.zeros(2, 1, dtype=torch.int64), "stops": torch.full((2, 1), 3), "labels": torch.ones(2, 1),
        "users": torch.zeros(2, dtype=torch.int64), "context": torch.empty(2, 0, dtype=torch.int64),
    }  # fmt: skip
    return MultiTaskRows(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": torch.zeros(2, 1, dtype=torch.int64)}, r"targets must hold ids from 1 up .*got 0"),
        ({"events": torch.ones(3, 0, dtype=torch.int64)}, "at least the 1 columns"),
        ({"stops": torch.full((2, 1), 4)}, r"a stretch of 0..3, row 0 has 0..4 for behaviour 0"),
        ({"labels": torch.tensor([[0.5], [1.0]])}, "0, 1 or NaN, got 0.5"),
        ({"labels": torch.ones(3, 1)}, r"float32 of shape \(2, tasks\), got float32 of shape \(3, 1\)"),
        ({"users": torch.zeros(2)}, r"int64 of shape \(2,\), got float32"),
        ({"stops": torch.full((2, 2), 3)}, r"shape \(2, 1\), got int64 of shape \(2, 2\)"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rows(**changes)


def test_data_whose_parts_do_not_fit_are_refused():
    part = rows()

    def data(**changes):
        options = {"item_fields": {"item": 3}, "behaviours": ("click",), "tasks": ("buy",), **changes}
        return MultiTaskData(part, part, part, **options)

    assert data().max_len == 20
    for changes, message in (
        ({"max_len": 0}, "at least 1, got 0"),
        ({"tasks": ("buy", "cart")}, r"2 tasks buy, cart, got \(1, 1\)"),
        ({"item_fields": {"item": 1}}, "ids of item must lie below 1, got 1"),
        ({"context": {"hour": 5}}, "must have the 1 columns hour, got 0"),
        ({"event_fields": {"item": 5}}, "different names"),
    ):
        with pytest.raises(ValueError, match=message):
            data(**changes)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        part.batch(torch.tensor([0]), 0)
