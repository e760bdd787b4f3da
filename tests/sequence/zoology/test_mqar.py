import time

import pytest
import torch
from scipy import stats

from etude.sequence.zoology import (
    IGNORED,
    MQARDataset,
    accuracy_by_slice,
    ar_classic,
    mqar,
    mqar_from_draws,
    recall_accuracy,
    recall_loss,
    slot_probabilities,
)


def test_the_worked_case():
    inputs, labels = mqar_from_draws(
        torch.tensor([[2, 4]]), torch.tensor([[8, 7]]), torch.tensor([[4, 1]]), 16
    )  # fmt: skip
    assert inputs.tolist() == [[2, 8, 4, 7, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0, 0, 0]]
    expected = [IGNORED] * 16
    expected[6], expected[12] = 7, 8
    assert labels.tolist() == [expected]


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("random", [False, True])
def test_every_scored_label_is_the_value_paired_with_its_key(passes, random):
    inputs, labels = mqar(64, 40, 48, 5, num_passes=passes, random_non_queries=random, seed=3)
    start = 10 * passes
    for row, answers in zip(inputs.tolist(), labels.tolist()):
        pairs = dict(zip(row[0:10:2], row[1:10:2]))
        assert len(pairs) == 5
        assert len(set(pairs.values())) == 5
        assert all(1 <= key < 32 <= value < 64 for key, value in pairs.items())
        assert row[:start] == row[:10] * passes
        scored = [place for place, label in enumerate(answers) if label != IGNORED]
        assert len(scored) == 5
        assert all(place >= start and (place - start) % 2 == 0 for place in scored)
        assert all(answers[place] == pairs[row[place]] for place in scored)
        if not random:
            assert sorted(row[place] for place in scored) == sorted(pairs)
            assert sum(row[start:]) == sum(row[place] for place in scored)


@pytest.mark.parametrize("power_a", [0.01, 1.0])
def test_the_slot_of_the_first_key_follows_equation_1(power_a):
    inputs, _ = mqar(256, 20_000, 64, 8, power_a=power_a, random_non_queries=False, seed=5)
    places = (inputs[:, 16:] == inputs[:, :1]).int().argmax(1)
    assert not (places % 2).any()
    p = slot_probabilities(24, power_a)
    assert p[0] == pytest.approx(0.26 if power_a == 0.01 else 1 / 24, abs=5e-3)
    counts = torch.bincount(places // 2, minlength=24)
    assert stats.chisquare(counts.numpy(), (20_000 * p).numpy()).pvalue > 1e-3
    pooled = ((inputs[:, 16] != 0).double().mean() / 8).item()
    assert pooled == pytest.approx(0.12 if power_a == 0.01 else 1 / 24, abs=6e-3)  # drawing without replacement


def test_keys_and_values_are_uniform_and_seeds_decide():
    inputs, _ = mqar(40, 20_000, 16, 3, seed=0)
    for column, low, high in ((0, 1, 20), (2, 1, 20), (1, 20, 40)):
        counts = torch.bincount(inputs[:, column] - low, minlength=high - low)
        assert len(counts) == high - low
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    again, other = mqar(40, 20_000, 16, 3, seed=0), mqar(40, 20_000, 16, 3, seed=1)
    assert torch.equal(inputs, again[0])
    assert not torch.equal(inputs, other[0])
    assert inputs[:, 6:].eq(0).double().mean() < 0.05  # random tokens, 0 among them


def test_all_keys_can_be_asked_for_in_any_order():
    inputs, _ = mqar(18, 40_000, 16, 4, random_non_queries=False, seed=0)  # 4 of 8 keys
    orders = (inputs[:, 0:8:2] - 1) @ torch.tensor([512, 64, 8, 1])
    _, counts = orders.unique(return_counts=True)
    assert len(counts) == 8 * 7 * 6 * 5
    expected = 40_000 / 1680
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum().item(), 1679) > 1e-3


def test_many_examples_take_little_time():
    started = time.process_time()
    mqar(8192, 2000, 512, 64, seed=0)
    assert time.process_time() - started < 1  # 100,000 take fifty times as long


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_kv_pairs": 17}, "68 > 64"),
        ({"num_kv_pairs": 64}, "64 > 63"),
        ({"num_kv_pairs": 11, "num_passes": 2}, "66 > 64"),
        ({"seq_len": 63}, "even, got 63"),
        ({"vocab_size": 64}, "64 <= 64"),
        ({"power_a": 0}, "power_a must be positive, got 0"),
        ({"num_kv_pairs": 0}, "num_kv_pairs >= 1"),
        ({"num_examples": -1}, "num_examples >= 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_inequality(options, message):
    with pytest.raises(ValueError, match=message):
        mqar(**{"vocab_size": 128, "num_examples": 4, **options})


@pytest.mark.parametrize(
    ("slots", "keys", "message"),
    [([[0, 0]], [[2, 4]], "once"), ([[0, 6]], [[2, 4]], r"0\.\.5, got 0\.\.6"), ([[0, 1]], [[0, 4]], "1 or more")],
)
def test_impossible_draws_are_refused(slots, keys, message):
    with pytest.raises(ValueError, match=message):
        mqar_from_draws(torch.tensor(keys), torch.tensor([[8, 7]]), torch.tensor(slots), 16)


def test_the_old_task_asks_once_at_the_end():
    inputs, labels = ar_classic(20, 200, 32, seed=0)
    assert (labels[:, :-1] == IGNORED).all()
    for row, answers in zip(inputs.tolist(), labels.tolist()):
        pairs = {}
        for key, value in zip(row[0:30:2], row[1:30:2]):
            assert pairs.setdefault(key, value) == value
            assert 1 <= key < 10 <= value < 20
        assert row[30] == 0
        assert answers[-1] == pairs[row[-1]]
    with pytest.raises(ValueError, match="even seq_len"):
        ar_classic(20, 2, 31)


def test_nothing_scored_is_no_loss_and_no_accuracy():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.full((2, 3), IGNORED)
    loss = recall_loss(logits, labels)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    with pytest.raises(ValueError, match="no label is scored"):
        recall_accuracy(logits, labels)


def test_loss_and_accuracy_count_scored_labels():
    labels = torch.tensor([[IGNORED, 2, IGNORED], [1, IGNORED, 0]])
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 2, 0], [1, 0, 2]]), 3).float()
    assert recall_accuracy(logits, labels) == pytest.approx(2 / 3)
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(recall_loss(logits, labels), whole)


def test_a_mixture_keeps_batches_within_a_length_and_is_sliced():
    data = MQARDataset(
        [{"seq_len": 16, "num_kv_pairs": 2, "num_examples": 5}, {"seq_len": 32, "num_kv_pairs": 4, "num_examples": 7}],
        vocab_size=64, random_non_queries=False,
    )  # fmt: skip
    assert len(data) == 12
    assert data[4][0].shape == (16,)
    assert data[5][0].shape == (32,)
    shapes = sorted(tuple(inputs.shape) for inputs, _ in data.loader(4, generator=torch.Generator().manual_seed(0)))
    assert shapes == [(1, 16), (3, 32), (4, 16), (4, 32)]
    assert len(data.loader(4)) == 4
    right = torch.zeros(64)

    def oracle(ids):  # knows the value that followed the same token
        logits = torch.zeros(*ids.shape, 64)
        for row, tokens in enumerate(ids.tolist()):
            for place, token in enumerate(tokens):
                if token and len(tokens) == 32:
                    logits[row, place, tokens[tokens.index(token) + 1]] = 1
        return logits + right

    assert accuracy_by_slice(oracle, data) == {(16, 2): 0.0, (32, 4): 1.0}
    with pytest.raises(ValueError, match="segment"):
        MQARDataset([])
    with pytest.raises(IndexError):
        data[12]
