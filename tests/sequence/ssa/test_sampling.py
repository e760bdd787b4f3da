import math

import pytest
import torch

from etude.sequence.ssa import IndexSets, inclusion_probability, local_window, sample_sources


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def members(row):
    return sorted(row[row >= 0].tolist())


@pytest.mark.parametrize("n", [16, 18])
def test_unbiased_groups_partition_queries_and_sources(n):
    sets = sample_sources(n, fraction=0.25, sampler="unbiased", generator=generator())
    for part in sets:
        assert part.shape[0] == 4
        assert members(part) == list(range(n))
    sizes = (sets.sources >= 0).sum(1)
    assert int(sizes.max() - sizes.min()) <= 1


def test_unbiased_pairs_meet_with_the_fraction():
    found = inclusion_probability(12, 2000, fraction=0.25, sampler="unbiased", generator=generator())
    error = math.sqrt(0.25 * 0.75 / 2000)
    assert float((found - 0.25).abs().max()) < 5 * error


def test_local_quotas_inside_and_at_the_ends():
    sets = sample_sources(64, window=8, sigma=8, generator=generator())
    assert torch.equal(sets.queries, torch.arange(64).view(8, 8))
    assert (sets.sources >= 0).sum(1).tolist() == [16] + [24] * 6 + [16]
    causal = sample_sources(64, window=8, sigma=8, causal=True, generator=generator())
    assert (causal.sources >= 0).sum(1).tolist() == [8] + [16] * 7
    for part in (sets, causal):
        assert all(len(set(members(row))) == len(members(row)) for row in part.sources)


def test_without_noise_the_local_sampler_is_a_band_of_blocks():
    mask = sample_sources(12, window=3, sigma=0).mask(12)
    block = torch.arange(12) // 3
    assert torch.equal(mask, (block[:, None] - block).abs() <= 1)
    causal = sample_sources(12, window=3, sigma=0, causal=True).mask(12)
    assert torch.equal(causal, ((block[:, None] - block) >= 0) & ((block[:, None] - block) <= 1))


def test_near_sources_are_likelier_and_far_ones_possible():
    found = inclusion_probability(64, 2000, window=8, sigma=8, generator=generator())
    by_distance = torch.stack([found.diagonal(d)[8 : 64 - 8 - d].mean() for d in range(0, 30, 5)])
    assert (by_distance.diff() < 0).all()
    assert 0 < float(found[20, 50]) < 0.05
    assert float((found - found.T).abs().max()) > 0.2  # the shuffle is on the sources only


def test_a_large_sigma_is_a_uniform_sample_of_the_quota():
    found = inclusion_probability(32, 2000, window=4, sigma=1e6, generator=generator())
    inside = found[8:24]
    assert float((inside - 12 / 32).abs().max()) < 5 * math.sqrt(12 / 32 * 20 / 32 / 2000)


def test_windows_that_fit_a_fraction():
    assert local_window(64, 0.25, causal=True) == 8
    assert local_window(96, 0.25) == 8
    assert local_window(60, 1 / 8, causal=True) in (3, 4)
    for n, fraction in ((64, 0.25), (96, 0.5)):
        assert n % local_window(n, fraction) == 0


def test_everything_is_dense():
    for options in ({"fraction": 1}, {"window": 10}, {"fraction": 1, "sampler": "unbiased"}):
        assert sample_sources(10, **options).mask(10).all()


@pytest.mark.parametrize("sampler", ["local", "unbiased"])
def test_padding_is_never_drawn(sampler):
    valid = torch.tensor([[True] * 12 + [False] * 4, [False] * 5 + [True] * 11])
    sets = sample_sources(16, fraction=0.5, sampler=sampler, batch=2, valid=valid, generator=generator())
    for row in range(2):
        seen = set(members(sets.sources[row].flatten()))
        assert seen == set(torch.nonzero(valid[row]).flatten().tolist())
        assert members(sets.queries[row].flatten()) == list(range(16))


def test_local_padding_on_the_left_is_as_if_the_tokens_stood_first():
    padded = torch.tensor([[False] * 4 + [True] * 12])
    first = torch.tensor([[True] * 12 + [False] * 4])
    one, other = (sample_sources(16, window=4, sigma=0, batch=1, valid=valid).mask(16)[0] for valid in (padded, first))
    assert torch.equal(one[4:, 4:], other[:12, :12])


def test_rows_differ_and_the_same_seed_gives_the_same_sets():
    one = sample_sources(32, batch=2, generator=generator(1))
    assert not torch.equal(one.sources[0], one.sources[1])
    assert torch.equal(one.sources, sample_sources(32, batch=2, generator=generator(1)).sources)
    state = torch.get_rng_state()
    sample_sources(32, batch=2, generator=generator(1))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mask_of_cross_attention():
    sets = sample_sources(6, fraction=0.5, sampler="unbiased", num_sources=4, generator=generator())
    mask = sets.mask(6, 4)
    assert mask.shape == (6, 4)
    assert mask.sum(1).tolist() == [2] * 6
    filled = IndexSets(torch.tensor([[0, 1]]), torch.tensor([[2, -1]]))
    assert filled.mask(3).tolist() == [[False, False, True], [False, False, True], [False] * 3]


def test_bad_input_is_refused():
    for arguments, message in (
        ({"fraction": 0}, "fraction"),
        ({"fraction": 1.5}, "fraction"),
        ({"sampler": "random"}, "sampler"),
        ({"sampler": "unbiased", "fraction": 0.3}, "whole number"),
        ({"sampler": "unbiased", "fraction": 0.05}, "20 groups"),
        ({"window": 0}, r"window must lie in 1\.\.8"),
        ({"sigma": -1}, "sigma"),
        ({"num_sources": 4}, "self-attention"),
        ({"valid": torch.ones(1, 8, dtype=torch.bool)}, "valid"),
    ):
        with pytest.raises(ValueError, match=message):
            sample_sources(8, **arguments)
