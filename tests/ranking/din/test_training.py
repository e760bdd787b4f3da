"""Histories, the generator, and training by the batch."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from etude.ranking.din import (
    DIN,
    Field,
    auc,
    build_histories,
    clip_gradients,
    count_clicks,
    fit_clicks,
    interest_mixture,
    predict_clicks,
)


def mixture(n=300, **options):
    return interest_mixture(n, 8, 10, 5, generator=torch.Generator().manual_seed(0), **options)


def make(log, **options):
    torch.manual_seed(0)
    fields = [Field(name, size, 4) for name, size in log.fields.items()]
    return DIN(fields, ["item", "category"], (8,), unit_dims=(4,), **options)


def test_a_history_holds_only_what_came_strictly_before():
    rng = np.random.default_rng(0)
    n = 300
    events = {"u": rng.integers(8, size=n), "i": rng.integers(1, 50, size=n), "t": rng.integers(12, size=n)}
    ids, mask = build_histories(events, "u", "i", "t", max_len=5)
    assert ids.shape[0] == n
    for row in range(n):
        before = (events["u"] == events["u"][row]) & (events["t"] < events["t"][row])
        got = ids[row][mask[row]].tolist()
        assert len(got) == min(before.sum(), 5)
        times = np.sort(events["t"][before])[-len(got) :] if got else []
        # Among events of one time any order is right: compare what is sure.
        for time in np.unique(times)[1:]:
            at = before & (events["t"] == time)
            here = [item for item, t in zip(got, times) if t == time]
            assert sorted(here) == sorted(events["i"][at])
    assert bool((ids[~mask] == 0).all())


def test_events_of_one_time_are_not_in_each_others_histories():
    ids, mask = build_histories({"u": [1, 1, 1], "i": [4, 5, 6], "t": [7, 7, 7]}, "u", "i", "t", 3)
    assert ids.shape == (3, 0)
    assert not bool(mask.any())


def test_only_clicks_are_behaviours_where_clicks_are_given():
    log = {"u": [1, 1, 1, 2], "i": [4, 5, 6, 7], "t": [1, 2, 3, 4], "c": [1, 0, 1, 1]}
    ids, _ = build_histories(log, "u", "i", "t", 3, clicked="c")
    assert ids.tolist() == [[0], [4], [4], [0]]


def test_bad_events_are_refused():
    good = {"u": [1, 2], "i": [1, 2], "t": [1.0, 2.0]}
    for change, message in (
        ({"i": [0, 1]}, "i must be integers from 1 up"),
        ({"i": ["a", "b"]}, "i must be integers"),
        ({"t": ["2020-01-01", "2020-01-02"]}, "event_time must be numbers or datetimes, got .* such as .*2020-01-01"),
        ({"t": [1.0, np.nan]}, "event_time is missing in 1 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            build_histories(good | change, "u", "i", "t", 3)
    with pytest.raises(ValueError, match="no column 'when'; they have u, i, t"):
        build_histories(good, "u", "i", "when", 3)
    with pytest.raises(ValueError, match="max_len must be at least 1, got 0"):
        build_histories(good, "u", "i", "t", 0)


def test_the_generator_follows_its_law():
    log = interest_mixture(40_000, generator=torch.Generator().manual_seed(1))
    history = log.clicks.behaviours.reshape(40_000, 30, 2)
    m = (history[..., 1] == log.clicks.candidates[:, None, 1]).sum(1)
    assert torch.equal(m, log.matches)
    torch.testing.assert_close(log.probability, torch.sigmoid(-1.5 + 1.56 * torch.log(1 + m.double())))
    assert torch.equal((history[..., 0] - 2) // 25, history[..., 1] - 2)
    # The sheet's figures of the law, to three or two digits.
    assert log.bayes_auc == pytest.approx(0.834, abs=0.005)
    assert log.clicks.labels.mean().item() == pytest.approx(0.49, abs=0.01)
    assert (m == 0).double().mean().item() == pytest.approx(0.43, abs=0.01)
    kinds = [len(row.unique()) for row in history[:500, :, 1]]
    assert max(kinds) <= 8


def test_zipf_items_are_rarer_by_rank():
    log = interest_mixture(2000, items_per_category=4, zipf=1.0, generator=torch.Generator().manual_seed(1))
    share = torch.bincount((log.clicks.behaviours[:, 0] - 2) % 4) / len(log.clicks.behaviours)
    torch.testing.assert_close(share, torch.tensor([12, 6, 4, 3]) / 25, rtol=0, atol=0.01)


def test_bad_sizes_of_the_generator_are_refused():
    for arguments, message in (((0,), "must be positive"), ((5, 3, 4), "at least 8, got 4")):
        with pytest.raises(ValueError, match=message):
            interest_mixture(*arguments)


def test_counts_are_of_samples_of_the_whole_set():
    log = mixture()
    counts = count_clicks(make(log), log.clicks, 5, batch_size=37)
    ids, _ = log.clicks.history(torch.arange(300), 5)
    for column, name in enumerate(log.fields):
        for j in range(2, log.fields[name]):
            rows = (ids[..., column] == j).any(1) | (log.clicks.candidates[:, column] == j)
            assert counts[name][j] == rows.sum()


def test_rows_outside_the_batch_are_not_updated():
    log = mixture()
    for optimizer in ("adam", "sgd"):
        model = make(log)
        before = model.tables["item"].weight.detach().clone()
        few = log.clicks.subset(torch.arange(20))
        fit_clicks(model, few, max_len=8, epochs=2, batch_size=10, optimizer=optimizer, mba=0.1)
        ids, _ = few.history(torch.arange(20), 8)
        touched = set(ids[..., 0].flatten().tolist()) | set(few.candidates[:, 0].tolist())
        moved = (model.tables["item"].weight != before).any(1).nonzero().squeeze(1).tolist()
        assert set(moved) <= touched
        assert len(moved) > 0.9 * len(touched)


def test_memory_is_bounded_by_the_batch():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_floating_point() and not out.is_sparse:
                self.found = max(self.found, out.numel())
            return out

    found = []
    for n in (64, 640):
        log = mixture(n)
        model = make(log)
        with Largest() as largest:
            fit_clicks(model, log.clicks, max_len=8, epochs=1, batch_size=16)
        found.append(largest.found)
    # Labels and such may be of all rows, (n,); histories and what is made of them are of the batch, (16, 8, 8).
    assert found == [16 * 8 * 8, 16 * 8 * 8]


def test_a_fit_repeats_and_a_penalty_changes_it():
    log = mixture()
    fits = []
    for mba in (None, None, 1.0):
        model = make(log)
        fit_clicks(model, log.clicks, max_len=8, epochs=1, batch_size=32, mba=mba)
        fits.append(predict_clicks(model, log.clicks, 8))
    assert np.array_equal(fits[0], fits[1])
    assert not np.allclose(fits[0], fits[2])


def test_the_best_validation_epoch_is_kept():
    log = mixture()
    train, val = log.clicks.subset(torch.arange(200)), log.clicks.subset(torch.arange(200, 300))
    model = make(log)
    result = fit_clicks(model, train, val, max_len=8, epochs=4, batch_size=32, lr=0.02)
    assert result.val_auc[result.best_epoch - 1] == max(result.val_auc)
    assert auc(val.labels.numpy(), predict_clicks(model, val, 8)) == pytest.approx(max(result.val_auc), abs=1e-12)
    last = fit_clicks(make(log), train, val, max_len=8, epochs=2, batch_size=32, select="last")
    assert last.best_epoch == 2


def test_patience_ends_a_training_that_no_longer_gains():
    log = mixture()
    fit = fit_clicks(make(log), log.clicks, log.clicks, max_len=8, epochs=9, lr=1e-30, patience=2)
    assert (fit.epochs, fit.best_epoch, len(fit.val_auc)) == (3, 1, 3)
    with pytest.raises(ValueError, match="patience must be positive and needs validation"):
        fit_clicks(make(log), log.clicks, max_len=8, patience=2)


def test_a_last_batch_of_one_joins_the_one_before():
    log = mixture(33)
    assert fit_clicks(make(log), log.clicks, max_len=8, epochs=1, batch_size=32).epochs == 1


def test_the_rate_decays_and_drops(monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    log = mixture(40)
    fit_clicks(make(log), log.clicks, max_len=8, epochs=2, batch_size=20, lr=1.0, optimizer="sgd", lr_decay=0.5,
               drop_lr_at=3)  # fmt: skip
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.05])


def test_sparse_and_dense_gradients_are_clipped_to_one_global_norm():
    model = nn.ModuleDict({"table": nn.Embedding(6, 3, sparse=True), "linear": nn.Linear(3, 1)})
    model["linear"](model["table"](torch.tensor([1, 1, 4]))).square().sum().mul(1e3).backward()
    dense = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters()]
    before = torch.cat([grad.flatten() for grad in dense]).clone()
    assert clip_gradients(list(model.parameters()), 5.0) == pytest.approx(before.norm().item(), rel=1e-5)
    after = torch.cat([(p.grad.to_dense() if p.grad.is_sparse else p.grad).flatten() for p in model.parameters()])
    torch.testing.assert_close(after, before * 5 / before.norm())


def test_naive_l2_is_the_penalty_on_all_rows_and_needs_dense_gradients():
    log = mixture(40)
    with pytest.raises(ValueError, match="sparse=False"):
        fit_clicks(make(log), log.clicks, l2=0.1)
    model = make(log, sparse=False)
    unused = [j for j in range(2, 52) if count_clicks(model, log.clicks, 8)["item"][j] == 0]
    unused = [*unused, 1]
    before = model.tables["item"].weight[unused].detach().clone()
    fit_clicks(model, log.clicks, max_len=8, epochs=1, batch_size=40, lr=0.1, optimizer="sgd", l2=0.5)
    torch.testing.assert_close(model.tables["item"].weight[unused].detach(), before * (1 - 0.1 * 0.5))


def test_bad_arguments_are_refused():
    log = mixture(40)
    clicks = dataclasses.replace(log.clicks, labels=torch.ones(40))
    with pytest.raises(ValueError, match=r"all 40 labels are \[1.0\]"):
        fit_clicks(make(log), clicks)
    for options, message in (({"epochs": 0}, "got 0, 256"), ({"lr": 0.0}, "lr > 0"), ({"batch_size": 1}, "batch_size")):
        with pytest.raises(ValueError, match=message):
            fit_clicks(make(log), log.clicks, **options)
    with pytest.raises(ValueError, match="the model has 1 behaviour and 0 context fields, the clicks have 2 and 0"):
        fit_clicks(DIN([Field("item", 60)], ["item"]), log.clicks)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit_clicks(make(log), log.clicks, max_len=8, epochs=8, lr=1e30, optimizer="sgd", batch_size=10)
