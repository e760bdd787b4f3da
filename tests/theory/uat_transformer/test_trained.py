"""The floors of blocks without attention or positions, and the training routine."""

import math

import pytest
import torch

from etude.theory.uat_transformer import (
    SingleLayerTransformer,
    approximation_error,
    build_with_modes,
    cummax_target,
    equivariant_floor,
    prod_sin_target,
    sort_target,
    tokenwise_floor,
    train_universal,
    uniform_sequences,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def within(estimate, value):
    return abs(float(estimate.value) - value) < 4 * float(estimate.error) + 1e-12 and float(estimate.error) < 0.01


def test_floors_of_sorting_two_numbers():
    assert math.sqrt(1 / 30) == pytest.approx(0.1826, abs=5e-5)
    assert math.sqrt(1 / 24) == pytest.approx(0.2041, abs=5e-5)
    assert within(tokenwise_floor(sort_target(2), 2, 1, generator=generator()), math.sqrt(1 / 30))
    assert within(equivariant_floor(sort_target(2), 2, 1, generator=generator()), math.sqrt(1 / 24))


@pytest.mark.parametrize("L", [2, 3, 4])
def test_the_floor_of_an_equivariant_sort_is_the_spread_of_the_tokens(L):
    # Every order has the same sorted output, so the best equivariant map puts the mean everywhere.
    found = equivariant_floor(sort_target(L), L, 1, n=20_000, generator=generator())
    assert within(found, math.sqrt((L - 1) / (12 * L)))


def test_other_floors_in_closed_form():
    # x_1 x_2 given x_1: variance x_1^2 / 12; sin(2 pi x_1) + x_2^2 given x_2: 1/2
    assert within(tokenwise_floor(prod_sin_target(2), 2, 1, generator=generator()), math.sqrt((1 / 36 + 1 / 2) / 2))
    # max(x_1, x_2) given x_2 has the variance of the minimum; x_1 needs no attention
    assert within(tokenwise_floor(cummax_target(2), 2, 1, generator=generator()), math.sqrt(1 / 60))
    # on a box of side 3 distances are three times as large
    wide = tokenwise_floor(sort_target(2), 2, 1, domain=(-1.0, 2.0), generator=generator())
    assert within(wide, 3 * math.sqrt(1 / 30))


def test_what_the_classes_can_do_has_floor_zero():
    assert float(tokenwise_floor(lambda x: x**2, 3, 2, n=1_000).value) == 0
    assert float(equivariant_floor(lambda x: x - x.mean(dim=1, keepdim=True), 3, 2, n=1_000).value) < 1e-15
    with pytest.raises(ValueError, match="seq_len must be at most 8, got 9"):
        equivariant_floor(lambda x: x, 9, 1)


@pytest.mark.parametrize("width", [4, 64])
def test_no_block_of_the_ablated_classes_gets_below_its_floor(width):
    target = sort_target(2)
    for seed in range(3):
        torch.manual_seed(seed)
        for options, floor in (({"num_heads": 0}, 1 / 30), ({"num_heads": 2, "pos": "none"}, 1 / 24)):
            block = SingleLayerTransformer(1, 8, 2, ffn_dim=width, out_dim=1, **options)
            train_universal(block, target, 60, generator=generator(seed))
            found = approximation_error(block, target, 5_000, "random", generator=generator(seed))
            assert found.rmse > math.sqrt(floor) - 4 * found.rmse_error


def test_training_sees_every_sample_once_and_ends_at_rate_zero():
    block = SingleLayerTransformer(2, 8, 3, num_heads=2, ffn_dim=8, out_dim=2)
    seen, rates = [], []
    block.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    result = train_universal(
        block, lambda x: x, 12, batch_size=16, lr=0.01, domain=(-1.0, 3.0), generator=generator(3),
        callbacks=[lambda step, total, loss, lr: rates.append(lr)], every=1,
    )  # fmt: skip
    rows = torch.cat(seen)
    assert len(result.losses) == 12
    assert rows.shape == (192, 3, 2)
    drawn = uniform_sequences(192, 3, 2, domain=(-1.0, 3.0), generator=generator(3)).float()
    order = rows.flatten(1)[:, 0].argsort()
    assert torch.equal(rows[order], drawn[drawn.flatten(1)[:, 0].argsort()])
    assert float(rows.min()) < -0.9
    assert float(rows.max()) > 2.9
    for step, rate in enumerate(rates):
        assert rate == pytest.approx(0.005 * (1 + math.cos(math.pi * (step + 1) / 12)))


def test_training_is_reproducible():
    def trained(seed):
        torch.manual_seed(0)
        block = SingleLayerTransformer(1, 8, 2, num_heads=2, ffn_dim=16, out_dim=1)
        train_universal(block, sort_target(2), 5, generator=generator(seed))
        return block.ffn_out.weight

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_a_constructed_block_can_be_trained_further():
    block, report = build_with_modes(sort_target(2), 2, 1, 1, K=2, spline_error=0.2)
    before = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    result = train_universal(block, sort_target(2), 3, lr=1e-5, generator=generator())
    assert result.losses[0] == pytest.approx(report.measured.rmse**2, rel=0.3)
    moved = [name for name, parameter in block.named_parameters() if not torch.equal(parameter, before[name])]
    assert {"embed.weight", "in_proj.weight", "ffn_in.weight", "ffn_out.weight"} <= set(moved)


def test_the_ablation_without_attention_has_no_fewer_weights():
    def weights(heads, ffn):
        block = SingleLayerTransformer(1, 32, 2, heads, ffn, 1)
        return sum(parameter.numel() for parameter in block.parameters())

    assert weights(4, 256) <= weights(0, 416) < 1.1 * weights(4, 256)


def test_another_shape_of_outputs_is_refused():
    block = SingleLayerTransformer(1, 8, 2, num_heads=2, ffn_dim=8, out_dim=3)
    with pytest.raises(ValueError, match=r"f gives sequences of shape \(2, 1\), the module \(2, 3\)"):
        train_universal(block, sort_target(2), 2)
