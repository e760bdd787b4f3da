import math

import pytest
import torch

from etude.nn.positions import apply_rotary, rotary_frequencies


def test_pairs_are_turned_by_the_angle_of_their_place():
    frequencies = rotary_frequencies(6, 100.0)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)], dtype=torch.float64))
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned = apply_rotary(x, torch.tensor([0, 1, 5, 7]), frequencies)
    angle = 5 * frequencies[1].item()
    pair = x[1, 2, 1] * math.cos(angle) - x[1, 2, 4] * math.sin(angle)
    assert turned[1, 2, 1].item() == pytest.approx(pair.item())
    assert torch.equal(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_products_depend_on_the_distance_alone():
    generator, frequencies = torch.Generator().manual_seed(0), rotary_frequencies(8)
    q, k = (torch.randn(1, 8, dtype=torch.float64, generator=generator) for _ in range(2))

    def product(i, j):
        return (apply_rotary(q, torch.tensor([i]), frequencies) * apply_rotary(k, torch.tensor([j]), frequencies)).sum()

    torch.testing.assert_close(product(3, 1), product(1003, 1001))
    assert not torch.isclose(product(3, 1), product(3, 2))


def test_positions_may_differ_by_sample():
    x, frequencies = torch.randn(2, 3, 4, 8), rotary_frequencies(8)
    positions = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    turned = apply_rotary(x, positions[:, None], frequencies)
    torch.testing.assert_close(turned[1], apply_rotary(x[1], positions[1], frequencies))
    assert apply_rotary(x.bfloat16(), positions[:, None], frequencies).dtype == torch.bfloat16


def test_bad_widths_are_refused():
    for dim in (5, 0):
        with pytest.raises(ValueError, match="even"):
            rotary_frequencies(dim)
    with pytest.raises(ValueError, match="theta"):
        rotary_frequencies(4, 0)
    with pytest.raises(ValueError, match=r"\(3, 6\)"):
        apply_rotary(torch.randn(3, 6), torch.arange(3), rotary_frequencies(4))
