"""From embeddings to heads."""

import pytest
import torch

from etude.transfer.discrete_kv_bottleneck import ChunkHeads, LearnedProjectionHeads, RandomProjectionHeads


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_heads_are_the_embedding_times_the_projection_of_each_codebook():
    splitter = RandomProjectionHeads(12, 5, 3, generator=gen())
    z = torch.randn(4, 2, 12, generator=gen(1))
    heads = splitter(z)
    assert heads.shape == (4, 5, 2, 3)
    for book in range(5):
        for token in range(2):
            torch.testing.assert_close(heads[:, book, token], z[:, token] @ splitter.projection[book])


def test_every_column_of_a_projection_has_unit_norm():
    projection = RandomProjectionHeads(100, 7, 4, generator=gen()).projection
    torch.testing.assert_close(projection.norm(dim=1), torch.ones(7, 4))


def test_a_random_projection_is_a_buffer_and_a_learned_one_a_parameter():
    random, learned = RandomProjectionHeads(6, 2, 3), LearnedProjectionHeads(6, 2, 3)
    assert list(random.parameters()) == []
    assert "projection" in random.state_dict()
    assert [p.shape for p in learned.parameters()] == [(6, 6)]


def test_a_learned_projection_is_one_linear_map_without_bias():
    splitter = LearnedProjectionHeads(6, 2, 3, generator=gen())
    z = torch.randn(4, 1, 6, generator=gen(1))
    torch.testing.assert_close(splitter(z)[:, :, 0].flatten(1), z[:, 0] @ splitter.weight.T)
    splitter(z).sum().backward()
    assert bool((splitter.weight.grad != 0).any())


def test_chunks_are_contiguous():
    z = torch.arange(12.0).view(1, 1, 12)
    heads = ChunkHeads(12, 3)(z)
    assert heads[0, :, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_the_same_generator_gives_the_same_projection():
    one, other = (RandomProjectionHeads(6, 2, 3, generator=gen(3)).projection for _ in range(2))
    assert torch.equal(one, other)


def test_chunks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="divisible by num_codebooks, got 10 and 3"):
        ChunkHeads(10, 3)
    with pytest.raises(ValueError, match="num_codebooks must be positive, got 0"):
        RandomProjectionHeads(10, 0, 3)
