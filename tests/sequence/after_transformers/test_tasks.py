import pytest
import torch

from etude.data import text
from etude.sequence.after_transformers import tasks
from etude.sequence.after_transformers.tasks import IGNORED, SequenceTask


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_copying_asks_for_the_symbols_in_order():
    task = tasks.copying(5, 4, 3, generator=draw())
    assert task.inputs.shape == (5, 9)
    assert (task.inputs[:, 4] == 0).all()
    assert (task.inputs[:, 5:] == 4).all()
    assert torch.equal(task.labels[:, 5:], task.inputs[:, :4] - 1)
    assert (task.labels[:, :5] == IGNORED).all()
    assert (task.vocab, task.num_outputs, task.kind, task.causal) == (5, 3, "tag", True)


def test_selective_copy_marks_random_places():
    task = tasks.selective_copy(200, 24, 6, 8, generator=draw())
    body, queries = task.inputs[:, :24], task.inputs[:, 24:]
    assert ((body > 0).sum(1) == 6).all()
    assert (queries == 9).all()
    for row, labels in zip(body, task.labels[:, 24:]):
        assert torch.equal(row[row > 0] - 1, labels)
    share = (body > 0).double().mean(0)
    assert (share - 0.25).abs().max() < 0.12
    assert len({tuple((row > 0).tolist()) for row in body}) > 150


def test_induction_asks_what_followed_the_trigger():
    task = tasks.induction(50, 10, 5, generator=draw())
    for row, labels in zip(task.inputs, task.labels):
        places = (row == 5).nonzero()[:, 0]
        assert len(places) == 2
        assert places[1] == 9
        assert labels[9] == row[places[0] + 1]
        assert (labels[:9] == IGNORED).all()


def test_parity_and_majority_count():
    one, other = tasks.parity(20, 9, generator=draw()), tasks.majority(20, 9, generator=draw())
    for t in range(9):
        ones = one.inputs[:, : t + 1].sum(1)
        assert torch.equal(one.labels[:, t], ones % 2)
        assert torch.equal(other.labels[:, t], (other.inputs[:, : t + 1].sum(1) > (t + 1) / 2).long())


def test_dyck_is_well_nested():
    task = tasks.dyck(30, 20, 3, 2, generator=draw())
    depths = set()
    for row, labels in zip(task.inputs.tolist(), task.labels.tolist()):
        stack = []
        for token, label in zip(row, labels):
            if token < 3:
                stack.append(token)
            else:
                assert stack.pop() == token - 3
            assert label == (stack[-1] if stack else 3)
            depths.add(len(stack))
    assert depths == {0, 1, 2}


def test_adding_marks_one_in_each_half():
    task = tasks.adding(40, 9, generator=draw())
    numbers, marks = task.inputs.unbind(-1)
    assert (marks[:, :4].sum(1) == 1).all()
    assert (marks[:, 4:].sum(1) == 1).all()
    torch.testing.assert_close(task.labels, (numbers * marks).sum(1))
    assert task.kind == "regress"


def value_of(tokens):
    """By a stack machine over the tokens of a list."""
    stack = []
    for token in tokens:
        if token != 14:
            stack.append(token)
            continue
        values = []
        while stack[-1] < 10:
            values.insert(0, stack.pop())
        rule = {10: max, 11: min, 12: lambda v: sorted(v)[(len(v) - 1) // 2], 13: lambda v: sum(v) % 10}[stack.pop()]
        stack.append(rule(values))
    assert len(stack) == 1
    return stack[0]


def test_listops_evaluate_to_their_labels():
    task = tasks.listops(200, 24, generator=draw())
    kinds = set()
    for row, label in zip(task.inputs.tolist(), task.labels.tolist()):
        body = row[: row.index(15)] if 15 in row else row
        assert set(row[len(body) :]) <= {15}
        assert value_of(body) == label
        kinds |= set(body)
    assert kinds == set(range(15))


def test_pixels_and_characters():
    images = torch.arange(2 * 1 * 2 * 3).float().view(2, 1, 2, 3)
    task = tasks.sequential_pixels(images, torch.tensor([0, 1]), 2)
    assert task.inputs[1, :, 0].tolist() == [6, 7, 8, 9, 10, 11]
    data = text.from_text("abcdefgh" * 30)
    lm = tasks.char_lm(data, "train", 4)
    assert torch.equal(lm.inputs[:, 1:], lm.labels[:, :-1])
    assert lm.vocab == lm.num_outputs == data.vocab_size


@pytest.mark.parametrize("make", [tasks.copying, tasks.selective_copy, tasks.induction, tasks.parity, tasks.majority,
                                  tasks.dyck, tasks.adding, tasks.listops])  # fmt: skip
def test_a_seed_decides(make):
    one, same, other = (make(6, generator=draw(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.inputs, same.inputs)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.inputs, other.inputs)


def test_parts_follow_one_another():
    task = tasks.parity(10, 4, generator=draw())
    one, two = task.split(6, 3)
    assert torch.equal(torch.cat([one.inputs, two.inputs]), task.inputs[:9])
    with pytest.raises(ValueError, match="cannot cut 10 examples"):
        task.split(6, 5)


def test_bad_tasks_are_refused():
    for make, options, message in (
        (tasks.copying, {"length": 0}, "length must be at least 1"),
        (tasks.selective_copy, {"marked": 30}, "cannot mark 30 of 24"),
        (tasks.induction, {"length": 3}, "length must be at least 4"),
        (tasks.adding, {"length": 1}, "length must be at least 2"),
        (tasks.listops, {"max_args": 1}, "max_args"),
        (tasks.dyck, {"max_depth": 0}, "max_depth must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            make(3, generator=draw(), **options)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    for inputs, labels, vocab, message in (
        (ids, ids, None, "expected tokens"),
        (ids, ids[:1], 4, "expected tokens"),
        (ids, ids[:, :2], 4, "labels must be"),
        (ids[:0], ids[:0], 4, "needs examples"),
    ):
        with pytest.raises(ValueError, match=message):
            SequenceTask("bad", inputs, labels, 2, vocab)
