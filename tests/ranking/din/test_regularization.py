"""Mini-batch aware regularisation: which rows it touches, and by how much."""

import pytest
import torch
from torch import nn

from etude.ranking.din import MiniBatchAwareL2, count_occurrences, filter_rare

IDS = torch.tensor([[2, 2, 5, 0], [5, 3, 0, 0], [2, 5, 5, 5]])


def table(sparse=False, rows=8):
    torch.manual_seed(0)
    return nn.Embedding(rows, 3, padding_idx=0, sparse=sparse).double()


def test_an_id_counts_once_a_sample_and_padding_never():
    assert count_occurrences(IDS, 8).tolist() == [0, 0, 2, 1, 0, 3, 0, 0]
    parts = count_occurrences(IDS[:1], 8) + count_occurrences(IDS[1:], 8)
    assert torch.equal(parts, count_occurrences(IDS, 8))
    assert count_occurrences(torch.empty(2, 0, dtype=torch.int64), 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("sparse", [False, True])
def test_the_gradient_is_lambda_over_n_times_the_row_for_rows_of_the_batch_and_zero_else(sparse):
    embedding = table(sparse)
    counts = count_occurrences(IDS, 8)
    MiniBatchAwareL2(counts, lam=0.7)(embedding, IDS[0], IDS[1]).backward()
    grad = embedding.weight.grad
    assert grad.is_sparse == sparse
    if sparse:
        assert sorted(grad.coalesce().indices()[0].tolist()) == [2, 3, 5]
        grad = grad.to_dense()
    expected = torch.zeros_like(grad)
    for j in (2, 3, 5):
        expected[j] = 0.7 / counts[j].item() * embedding.weight[j].detach()
    torch.testing.assert_close(grad, expected, rtol=1e-14, atol=0)


def test_repeats_of_an_id_in_the_batch_change_nothing():
    penalty = MiniBatchAwareL2(count_occurrences(IDS, 8))
    once = penalty(table(), torch.tensor([2, 5]))
    assert torch.equal(penalty(table(), torch.tensor([2, 5, 2, 2]), torch.tensor([[5, 0]])), once)


def test_an_epoch_of_single_samples_is_plain_l2():
    embedding = table()
    penalty = MiniBatchAwareL2(count_occurrences(IDS, 8), lam=0.3)
    total = sum(penalty(embedding, sample) for sample in IDS)
    torch.testing.assert_close(total, 0.5 * 0.3 * embedding.weight[[2, 3, 5]].square().sum())


def test_padding_is_never_penalised():
    embedding = table()
    with torch.no_grad():
        embedding.weight[0] = 9.0
    assert MiniBatchAwareL2(count_occurrences(IDS, 8))(embedding, torch.zeros(4, dtype=torch.int64)).item() == 0


def test_an_sgd_step_is_the_update_of_the_paper():
    embedding = table(sparse=True)
    before = embedding.weight.detach().clone()
    counts = count_occurrences(IDS, 8)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    loss = embedding(torch.tensor([2, 3])).sum(1).mean() + MiniBatchAwareL2(counts, 0.5)(
        embedding, torch.tensor([2, 3])
    )
    loss.backward()
    optimizer.step()
    expected = before.clone()
    for j in (2, 3):
        expected[j] -= 0.1 * (0.5 + 0.5 / counts[j].item() * before[j])
    torch.testing.assert_close(embedding.weight.detach(), expected)


def test_the_cost_is_of_the_batch_and_not_of_the_table():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for part in out if isinstance(out, tuple) else (out,):
                if isinstance(part, torch.Tensor) and not part.is_sparse and part.numel() < 100_000 * 3:
                    self.found = max(self.found, part.numel())
            return out

    embedding = nn.Embedding(100_000, 3, padding_idx=0, sparse=True)
    penalty = MiniBatchAwareL2(torch.ones(100_000, dtype=torch.int64))
    with Largest() as largest:
        penalty(embedding, torch.arange(1, 20)).backward()
    assert largest.found <= 64


def test_the_frequency_filter_sends_rare_ids_to_unknown():
    assert filter_rare(count_occurrences(IDS, 8), 2).tolist() == [0, 1, 2, 1, 1, 5, 1, 1]


def test_bad_arguments_are_refused():
    counts = count_occurrences(IDS, 8)
    with pytest.raises(ValueError, match=r"counts do not cover ids \[4, 7\]"):
        MiniBatchAwareL2(counts)(table(), torch.tensor([4, 2, 7]))
    with pytest.raises(ValueError, match="the table has 9 rows, the counts are of 8"):
        MiniBatchAwareL2(counts)(table(rows=9), torch.tensor([2]))
    with pytest.raises(ValueError, match="lam must not be negative, got -1"):
        MiniBatchAwareL2(counts, lam=-1)
    with pytest.raises(ValueError, match=r"must lie in 0\.\.4, got 0\.\.5"):
        count_occurrences(IDS, 5)
    with pytest.raises(ValueError, match="counts must not be negative, got -2"):
        MiniBatchAwareL2(torch.tensor([0, -2]))
