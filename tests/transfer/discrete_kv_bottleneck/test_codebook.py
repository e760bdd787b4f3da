"""Nearest keys, and their placement by moving averages."""

import pytest
import torch

from etude.transfer.discrete_kv_bottleneck import EMACodebook


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def small(keys, **options):
    """A codebook of given keys (codebooks, pairs, dim)."""
    keys = torch.tensor(keys)
    codebook = EMACodebook(*keys.shape, **{"dead_threshold": 0.0} | options)
    codebook.keys.copy_(keys)
    codebook.ema_sums.copy_(keys)
    return codebook


def column(*values):
    """Heads of one codebook, one token, dimension 1."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def naive(heads, keys, topk, allowed=None):
    n, books, tokens, _ = heads.shape
    found = torch.empty(n, books, topk, tokens, dtype=torch.int64)
    for i in range(n):
        for c in range(books):
            for t in range(tokens):
                scores = []
                for k, key in enumerate(keys[c]):
                    if allowed is None or allowed[c, k]:
                        scores.append((((heads[i, c, t] - key).double() ** 2).sum().item(), k))
                found[i, c, :, t] = torch.tensor([k for _, k in sorted(scores)[:topk]])
    return found


@pytest.mark.parametrize("topk", [1, 3])
def test_assignment_equals_a_naive_loop_and_ties_go_to_the_lowest_index(topk):
    # Small whole numbers: distances are exact, and many are equal.
    codebook = EMACodebook(3, 7, 2, generator=gen())
    codebook.keys.copy_(torch.randint(-2, 3, (3, 7, 2), generator=gen(1)))
    heads = torch.randint(-2, 3, (5, 3, 2, 2), generator=gen(2)).float()
    assert torch.equal(codebook.assign(heads, topk), naive(heads, codebook.keys, topk))
    allowed = torch.rand(3, 7, generator=gen(3)) < 0.6
    assert torch.equal(codebook.assign(heads, topk, allowed), naive(heads, codebook.keys, topk, allowed))


def test_assignment_does_not_depend_on_the_memory_it_may_take():
    heads = torch.randn(50, 4, 3, 5, generator=gen(1))
    found = [EMACodebook(4, 9, 5, generator=gen(), memory_bytes=b).assign(heads, 2) for b in (1, 100, 2000, 2**30)]
    assert all(torch.equal(one, found[0]) for one in found)


def test_assignment_is_in_single_precision_under_autocast_too():
    codebook = small([[[1.0], [1.001]]])
    heads = column(1.0011, 0.9999)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert codebook.assign(heads).flatten().tolist() == [1, 0]


def test_one_batch_computed_by_hand():
    codebook = small([[[0.0], [10.0]]], decay=0.5)
    indices = codebook.update(column(1.0, 2.0, 9.0))
    assert indices.flatten().tolist() == [0, 0, 1]
    assert codebook.ema_counts.tolist() == [[1.0, 0.5]]
    assert codebook.ema_sums.flatten().tolist() == [1.5, 9.5]
    eps = 1e-5
    smoothed = [(n + eps) / (1.5 + 2 * eps) * 1.5 for n in (1.0, 0.5)]
    torch.testing.assert_close(codebook.keys.flatten(), torch.tensor([1.5 / smoothed[0], 9.5 / smoothed[1]]))
    torch.testing.assert_close(codebook.keys.flatten(), torch.tensor([1.5, 19.0]), rtol=2e-5, atol=0)
    codebook.update(column(1.0, 2.0, 9.0))
    # The nearest of 1.5 and 19 is 1.5 for all: N = (.5 + 1.5, .25), M = (.75 + 6, 4.75).
    torch.testing.assert_close(codebook.ema_counts, torch.tensor([[2.0, 0.25]]))
    torch.testing.assert_close(codebook.ema_sums.flatten(), torch.tensor([6.75, 4.75]))


def test_without_memory_winners_become_batch_means_and_the_others_vanish():
    codebook = EMACodebook(2, 6, 3, decay=0, dead_threshold=0, generator=gen())
    codebook.keys[:, 5] = 100.0
    heads = torch.randn(40, 2, 1, 3, generator=gen(1))
    won = codebook.update(heads)
    for book in range(2):
        for key in range(6):
            mine = heads[won[:, book, 0, 0] == key, book, 0]
            expected = mine.mean(dim=0) if len(mine) else torch.zeros(3)
            torch.testing.assert_close(codebook.keys[book, key], expected, rtol=1e-4, atol=1e-5)


def test_smoothing_keeps_the_total_of_the_counts():
    codebook = EMACodebook(2, 5, 3, dead_threshold=0, eps=0.3, generator=gen())
    codebook.update(torch.randn(20, 2, 2, 3, generator=gen(1)))
    smoothed = codebook.ema_sums / codebook.keys
    torch.testing.assert_close(smoothed.mean(dim=2).sum(dim=1), codebook.ema_counts.sum(dim=1))
    torch.testing.assert_close(codebook.ema_counts.sum(dim=1), torch.full((2,), 0.05 * 40))


def test_dead_keys_move_to_heads_of_the_batch_and_live_ones_do_not():
    options = {"decay": 0.5, "generator": gen()}
    codebook, plain = small([[[0.0], [50.0], [60.0]]], dead_threshold=0.1, **options), small([[[0.0], [50.0], [60.0]]],
                                                                                           decay=0.5)  # fmt: skip
    heads = column(1.0, 2.0, 3.0)
    codebook.update(heads)
    plain.update(heads)
    assert codebook.keys[0, 0] == plain.keys[0, 0]
    assert all(key in (1.0, 2.0, 3.0) for key in codebook.keys[0, 1:].flatten().tolist())
    # As in the official code the averages are those without replacement.
    assert torch.equal(codebook.ema_sums, plain.ema_sums)
    assert torch.equal(codebook.ema_counts, plain.ema_counts)


def test_the_threshold_is_a_share_of_an_even_load_of_a_full_batch():
    for batch_size, dead in ((3, False), (3000, True)):
        codebook = small([[[0.0], [10.0]]], decay=0.5, dead_threshold=0.1, generator=gen())
        codebook.update(column(1.0, 2.0, 9.0), batch_size=batch_size)
        assert (codebook.keys[0, 1].item() < 10) == dead


def test_averages_start_afresh_at_a_replaced_key_if_asked():
    codebook = small([[[0.0], [50.0]]], decay=0.5, dead_threshold=0.5, reset_ema_on_replace=True, generator=gen())
    codebook.update(column(1.0, 1.0, 1.0, 1.0))
    threshold = 0.5 * 4 / 2
    assert codebook.ema_counts[0, 1] == threshold
    assert codebook.ema_sums[0, 1, 0] == threshold * 1.0
    codebook.update(column(1.0, 1.0, 1.0, 1.0))
    assert codebook.keys[0, 1] == pytest.approx(1.0, abs=1e-4)


def test_kmeans_starts_at_the_clusters_of_the_first_batch():
    codebook = EMACodebook(2, 2, 1, init="kmeans", generator=gen(2))
    heads = torch.tensor([0.0, 0.2, 10.0, 10.2]).view(4, 1, 1, 1).repeat(1, 2, 1, 1)
    codebook.update(heads)
    torch.testing.assert_close(codebook.keys.flatten(1).sort(dim=1).values, torch.tensor([[0.1, 10.1]] * 2), rtol=1e-4,
                               atol=1e-4)  # fmt: skip
    torch.testing.assert_close(codebook.ema_counts, torch.full((2, 2), 2.0))


def test_temperature_chooses_keys_by_their_softmax():
    codebook = small([[[0.0], [1.0], [2.0]]])
    heads = torch.full((20_000, 1, 1, 1), 0.5)
    drawn = codebook.assign(heads, temperature=0.7, generator=gen()).flatten()
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    expected = (-torch.tensor([0.25, 0.25, 2.25]) / 0.7).softmax(dim=0)
    torch.testing.assert_close(share, expected, atol=0.015, rtol=0)
    several = codebook.assign(heads[:50], topk=3, temperature=0.7, generator=gen())
    assert bool((several.sort(dim=2).values.flatten(1) == torch.arange(3)).all())


def test_keys_are_buffers():
    assert list(EMACodebook(2, 3, 4).parameters()) == []


def test_bad_input_is_refused():
    codebook = EMACodebook(2, 3, 4)
    with pytest.raises(ValueError, match=r"heads must have shape \(n, 2, tokens, 4\), got \(5, 2, 1, 3\)"):
        codebook.assign(torch.zeros(5, 2, 1, 3))
    with pytest.raises(ValueError, match="NaN"):
        codebook.update(torch.full((1, 2, 1, 4), float("nan")))
    with pytest.raises(ValueError, match=r"topk must lie in 1\.\.3"):
        codebook.assign(torch.zeros(1, 2, 1, 4), 4)
    allowed = torch.tensor([[True, True, True], [False, False, True]])
    with pytest.raises(ValueError, match="codebook 1 allows 1 of its 3 keys, 2 are fetched"):
        codebook.assign(torch.zeros(1, 2, 1, 4), 2, allowed)
    for options, message in (
        ({"decay": 1}, "decay must lie"), ({"eps": 0.0}, "eps"), ({"dead_threshold": -1}, "dead_threshold"),
        ({"init": "zeros"}, "normal or kmeans, got 'zeros'"), ({"memory_bytes": 0}, "memory_bytes"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            EMACodebook(2, 3, 4, **options)
