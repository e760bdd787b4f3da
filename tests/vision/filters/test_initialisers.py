"""Initialisers: their variances and structures."""

import math

import pytest
import torch
from torch import nn

from etude.vision.filters import (
    SCHEMES,
    FilterBank,
    SmallCNN,
    delta_orthogonal_,
    filter_bank,
    init_filters,
    init_network,
    scheme_variance,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(
    ("scheme", "variance"),
    [("lecun", 1 / 576), ("xavier", 2 / (576 + 1800)), ("he", 2 / 576), ("normal", 1e-4), ("uniform", 1e-4)],
)
def test_variances_follow_the_formulas(scheme, variance, distribution):
    weight = init_filters(torch.empty(200, 64, 3, 3), scheme, distribution=distribution, generator=generator())
    assert weight.numel() > 100_000
    assert weight.var().item() == pytest.approx(variance, rel=0.02)
    assert abs(weight.mean().item()) < 4 * math.sqrt(variance / weight.numel())


def test_a_leaky_slope_and_a_gain_enter_the_variance():
    assert scheme_variance(torch.empty(4, 2, 3, 3), "he", 0.5) == 2 / (1.25 * 18)
    weight = init_filters(torch.empty(200, 64, 3, 3), "he", negative_slope=0.5, gain=3, generator=generator())
    assert weight.var().item() == pytest.approx(9 * 2 / (1.25 * 576), rel=0.02)


def test_xavier_and_lecun_are_one_where_the_fans_are_equal():
    weights = [init_filters(torch.empty(8, 8, 3, 3), name, generator=generator()) for name in ("xavier", "lecun")]
    torch.testing.assert_close(*weights)


def test_orthogonal_has_orthonormal_rows_or_columns():
    wide = init_filters(torch.empty(16, 4, 3, 3, dtype=torch.float64), "orthogonal", generator=generator()).flatten(1)
    tall = init_filters(torch.empty(64, 4, 3, 3, dtype=torch.float64), "orthogonal", generator=generator()).flatten(1)
    torch.testing.assert_close(wide @ wide.T, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(tall.T @ tall, torch.eye(36, dtype=torch.float64))


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_delta_orthogonal_keeps_the_norm_of_any_input(padding):
    conv = nn.Conv2d(4, 6, 3, padding=padding, bias=False, dtype=torch.float64)
    delta_orthogonal_(conv.weight, generator=generator())
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64, generator=generator(1))
    seen = x if padding else x[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(conv(x).norm(), seen.norm(), rtol=1e-12, atol=0)
    assert int((conv.weight != 0).sum()) == 24


def test_identity_copies_its_input():
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    init_filters(conv.weight, "identity")
    x = torch.randn(2, 3, 6, 6, generator=generator())
    torch.testing.assert_close(conv(x)[:, :3], x)
    assert not conv(x)[:, 3:].any()


def test_sparse_has_so_many_entries_in_each_filter():
    weight = init_filters(torch.empty(500, 8, 3, 3), "sparse", nonzeros=10, generator=generator())
    assert ((weight != 0).flatten(1).sum(dim=1) == 10).all()
    assert weight.square().sum(dim=(1, 2, 3)).mean().item() == pytest.approx(2, rel=0.05)


def test_filters_of_a_bank_are_centred_and_of_the_norm_of_he():
    bank = filter_bank("gabor", 5, 16)
    weight = init_filters(torch.empty(12, 3, 5, 5), "bank", bank=bank)
    torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.full((12,), math.sqrt(2)))
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3)), torch.zeros(12), atol=1e-6, rtol=0)
    torch.testing.assert_close(weight[:, 0], weight[:, 2])  # tiled
    he = init_filters(torch.empty(2000, 3, 5, 5), "he", generator=generator())
    assert he.flatten(1).norm(dim=1).mean().item() == pytest.approx(math.sqrt(2), rel=0.02)


def test_zeros_constant_and_draws_repeat():
    assert not init_filters(torch.empty(2, 2, 3, 3), "zeros").any()
    assert (init_filters(torch.empty(2, 2, 3, 3), "constant", value=0.3) == 0.3).all()
    for scheme in set(SCHEMES) - {"bank"}:
        one, two = (init_filters(torch.empty(6, 4, 3, 3), scheme, generator=generator(3)) for _ in range(2))
        assert torch.equal(one, two), scheme


@pytest.mark.parametrize("head", ["constant", "normal"])
def test_a_constant_start_keeps_filters_equal_as_long_as_the_layer_above_is_alike(head):
    model = SmallCNN(
        1, 3, widths=[4, 4, 4], strides=1, init="constant", init_arguments={"value": 0.05}, head_init=head,
        generator=generator(),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, y = torch.randn(12, 1, 8, 8, generator=generator()), torch.arange(12) % 3
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    # The first layer's filters see one channel each, the others equal channels: then all stay equal, bit for bit.
    weights = [layer.weight for layer in model.features if isinstance(layer, nn.Conv2d)]
    same = [bool((weight == weight[:1]).all()) for weight in weights]
    assert same == [True, True, head == "constant"]
    assert not torch.equal(weights[0], torch.full_like(weights[0], 0.05))


def test_a_network_is_initialised_throughout():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    init_network(model, "delta_orthogonal", generator=generator())
    assert not model[0].bias.any()
    torch.testing.assert_close(model[2].weight @ model[2].weight.T, torch.eye(2))


@pytest.mark.parametrize(
    ("shape", "scheme", "arguments", "words"),
    [
        ((4, 2, 3, 3), "glorot", {}, "scheme must be one of"),
        ((4,), "he", {}, r"\(4,\)"),
        ((2, 4, 3, 3), "delta_orthogonal", {}, "2 < 4"),
        ((4, 4, 2, 2), "delta_orthogonal", {}, "odd sides"),
        ((4, 2, 3, 3), "sparse", {"nonzeros": 19}, "1..18"),
        ((4, 2, 3, 3), "normal", {"std": 0.0}, "std"),
        ((4, 2, 3, 3), "he", {"distribution": "cauchy"}, "cauchy"),
        ((4, 2, 3, 3), "bank", {}, "bank="),
        ((40, 1, 5, 5), "bank", {"bank": filter_bank("gabor", 5, 16)}, "40 filters"),
        ((4, 1, 3, 3), "bank", {"bank": filter_bank("gabor", 5, 16)}, "5, 5"),
        ((2, 4, 3, 3), "bank", {"bank": FilterBank(torch.randn(2, 3, 3, 3), "three")}, "3 channels"),
        ((1, 1, 3, 3), "bank", {"bank": FilterBank(torch.ones(1, 1, 3, 3), "flat")}, "constant"),
    ],
)
def test_what_cannot_be_initialised_is_refused(shape, scheme, arguments, words):
    with pytest.raises(ValueError, match=words):
        init_filters(torch.empty(shape), scheme, **arguments)
