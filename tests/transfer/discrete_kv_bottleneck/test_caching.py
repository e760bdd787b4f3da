"""Embeddings and indices are computed once, and again when anything that they depend on changes."""

import pytest
import torch
from torch import nn

from etude.transfer.discrete_kv_bottleneck import KeyValueBottleneck, cached_embeddings, cached_indices


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(5, 6), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x)


def test_embeddings_are_computed_once_and_again_for_other_weights_or_inputs(tmp_path):
    encoder, x = Counting().train(), torch.randn(10, 5, generator=gen())
    first = cached_embeddings(encoder, x, tmp_path, batch_size=4)
    torch.testing.assert_close(first, encoder.layer(x).detach())
    assert encoder.calls == 3
    assert encoder.training
    assert torch.equal(cached_embeddings(encoder, x, tmp_path, batch_size=4), first)
    assert encoder.calls == 3
    cached_embeddings(encoder, x + 1, tmp_path)
    assert encoder.calls == 4
    with torch.no_grad():
        encoder.layer.bias += 1
    torch.testing.assert_close(cached_embeddings(encoder, x, tmp_path), first + 1)
    assert encoder.calls == 5


def test_a_torn_file_is_computed_again(tmp_path):
    encoder, x = Counting(), torch.randn(10, 5, generator=gen())
    first = cached_embeddings(encoder, x, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"torn")
    assert torch.equal(cached_embeddings(encoder, x, tmp_path), first)


def test_indices_are_keyed_by_embeddings_projections_keys_and_used_pairs(tmp_path):
    bottleneck = KeyValueBottleneck(6, 3, 5, 2, 4, generator=gen())
    z = torch.randn(30, 6, generator=gen(1))
    bottleneck.place_keys(z, epochs=2).train()
    indices = cached_indices(bottleneck, z, tmp_path)
    assert torch.equal(indices, bottleneck.indices(z))
    assert torch.equal(cached_indices(bottleneck, z, tmp_path), indices)
    assert len(list(tmp_path.iterdir())) == 1
    bottleneck(z[:3])
    assert torch.equal(cached_indices(bottleneck, z, tmp_path), indices)  # what was used matters in evaluation only
    masked = cached_indices(bottleneck.eval(), z, tmp_path)
    assert torch.equal(masked, bottleneck.indices(z))
    assert not torch.equal(masked, indices)
    bottleneck.train().codebook.keys += torch.randn(3, 5, 2, generator=gen(2))
    assert torch.equal(cached_indices(bottleneck, z, tmp_path), bottleneck.indices(z))
    bottleneck.splitter.projection.mul_(-1)
    assert torch.equal(cached_indices(bottleneck, z, tmp_path), bottleneck.indices(z))
    assert len(list(tmp_path.iterdir())) == 4


def test_random_choices_are_not_kept(tmp_path):
    bottleneck = KeyValueBottleneck(6, 3, 5, 2, 4, temperature=0.5)
    with pytest.raises(ValueError, match=r"random choices.*0\.5"):
        cached_indices(bottleneck, torch.randn(3, 6), tmp_path)
