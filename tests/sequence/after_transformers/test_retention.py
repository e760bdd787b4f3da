import pytest
import torch

from etude.sequence.after_transformers.retention import Retention, chunked_retention, parallel_retention
from etude.testing import check_mixer


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{}, {"chunk": 4, "value_dim": 24}, {"rope_theta": None, "gate": False}])
def test_retention_keeps_the_promises_of_a_mixer(options):
    torch.manual_seed(0)
    check_mixer(Retention(12, 2, **options), 12)


def test_the_weights_fade_by_the_distance():
    q, k, v = draw(1, 2, 6, 4), draw(1, 2, 6, 4, seed=1), draw(1, 2, 6, 3, seed=2)
    decay = torch.tensor([0.9, 0.5], dtype=torch.float64)
    y = torch.zeros(1, 2, 6, 3, dtype=torch.float64)
    for head in range(2):
        for n in range(6):
            for m in range(n + 1):
                y[0, head, n] += decay[head] ** (n - m) * (q[0, head, n] @ k[0, head, m]) * v[0, head, m]
    torch.testing.assert_close(parallel_retention(q, k, v, decay), y)


@pytest.mark.parametrize("length", [1, 7, 64])
@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
def test_chunks_change_nothing_and_carry_the_state(length, chunk):
    q, k, v = draw(2, 2, length, 4), draw(2, 2, length, 4, seed=1), draw(2, 2, length, 3, seed=2)
    decay = torch.tensor([0.9, 0.5], dtype=torch.float64)
    whole = parallel_retention(q, k, v, decay)
    chunked, state = chunked_retention(q, k, v, decay, chunk)
    torch.testing.assert_close(chunked, whole, rtol=1e-8, atol=1e-8)
    half = length // 2
    if half:
        _, before = chunked_retention(q[:, :, :half], k[:, :, :half], v[:, :, :half], decay, chunk)
        rest, after = chunked_retention(q[:, :, half:], k[:, :, half:], v[:, :, half:], decay, chunk, before)
        torch.testing.assert_close(rest, whole[:, :, half:])
        torch.testing.assert_close(after, state)


def test_without_fading_it_is_linear_attention_without_a_normaliser():
    torch.manual_seed(0)
    layer = Retention(8, 2, rope_theta=None, normalize=False, gate=False).double()
    layer.decay.fill_(1)
    x = draw(2, 9, 8)
    q, k, v = (part(x).unflatten(-1, (2, 4)) for part in (layer.q, layer.k, layer.v))
    sums = torch.einsum("blhd,blhe->blhde", k, v).cumsum(1)
    expected = layer.out(torch.einsum("blhd,blhde->blhe", q, sums).flatten(2) / 2)
    torch.testing.assert_close(layer(x), expected)


def test_published_rates_and_refusals():
    assert Retention(8, 2).decay.tolist() == [1 - 1 / 32, 1 - 1 / 64]
    for arguments in ({"num_heads": 3}, {"num_heads": 2, "value_dim": 7}):
        with pytest.raises(ValueError, match="multiples"):
            Retention(8, **arguments)
    with pytest.raises(ValueError, match="chunk"):
        chunked_retention(*(draw(1, 1, 2, 2) for _ in range(3)), torch.ones(1, dtype=torch.float64), 0)
