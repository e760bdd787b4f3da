import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from etude.sequence.zoology import BigramCounts, RecallSlices, ar_hits, gap_explained, recall_slices


def draw(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("max_count", [0, 5, 30, 1250])
def test_hits_equal_the_dictionary(max_count):
    train, ids = draw(6, 500), draw(6, 8, 40, seed=1)
    counts = Counter(zip(train.tolist(), train[1:].tolist()))
    found = ar_hits(ids, BigramCounts(train, 6), max_count)
    for row, tokens in enumerate(ids.tolist()):
        seen = set()
        assert not found[row, 0]
        for t in range(1, len(tokens)):
            bigram = (tokens[t - 1], tokens[t])
            assert found[row, t] == (bigram in seen and counts[bigram] <= max_count)
            seen.add(bigram)


def test_counts_equal_the_counter_and_rows_do_not_meet():
    rows = draw(5, 7, 30)
    counter = Counter(pair for row in rows.tolist() for pair in itertools.pairwise(row))
    counts = BigramCounts(rows, 7)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    assert counts.of(pairs)[:, 0].tolist() == [counter[tuple(pair)] for pair in pairs.tolist()]
    assert not BigramCounts(torch.zeros(0, dtype=torch.int64), 7).of(pairs).any()
    with pytest.raises(ValueError, match=r"0\.\.6, got 0\.\.9"):
        counts.of(torch.tensor([0, 9]))


def logits_of(ids):
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(2))
    return weights[ids]


@pytest.mark.parametrize("wrap", [False, True])
def test_slices_add_up_to_the_loss(wrap):
    ids = draw(6, 9, 20, seed=1)
    counts = BigramCounts(draw(6, 300), 6)
    model = (lambda rows: SimpleNamespace(logits=logits_of(rows))) if wrap else logits_of
    found = recall_slices(model, ids, counts, max_count=8, batch_size=4)
    losses = F.cross_entropy(logits_of(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    hits = ar_hits(ids, counts, 8)[:, 1:].flatten()
    assert 0 < hits.sum() < hits.numel()
    assert found.loss == pytest.approx(losses.mean().item(), abs=1e-6)
    assert found.hits_loss == pytest.approx(losses[hits].mean().item(), abs=1e-6)
    assert found.others_loss == pytest.approx(losses[~hits].mean().item(), abs=1e-6)
    assert found.hits_part + found.others_part == pytest.approx(found.loss, abs=1e-9)


def test_a_module_keeps_its_mode_and_an_empty_slice_is_zero():
    model = torch.nn.Sequential(torch.nn.Embedding(6, 6), torch.nn.Dropout(0.9)).train()
    ids = draw(6, 3, 10)
    counts = BigramCounts(ids, 6)
    one, other = (recall_slices(model, ids, counts, max_count=-1) for _ in range(2))
    assert one == other
    assert model.training
    assert one.hits_share == one.hits_loss == one.hits_part == 0
    assert one.others_loss == pytest.approx(one.loss)


def test_the_share_of_the_gap_on_hits():
    worse, better = RecallSlices(2.0, 4.0, 1.5, 0.2), RecallSlices(1.5, 2.0, 1.375, 0.2)
    assert gap_explained(worse, better) == pytest.approx(0.2 * 2.0 / 0.5)
    with pytest.raises(ValueError, match="no gap"):
        gap_explained(worse, worse)
    with pytest.raises(ValueError, match="sliced otherwise"):
        gap_explained(worse, RecallSlices(1.0, 1.0, 1.0, 0.3))
    with pytest.raises(ValueError, match="two tokens"):
        recall_slices(logits_of, torch.zeros(2, 1, dtype=torch.int64), BigramCounts(draw(6, 30), 6))
