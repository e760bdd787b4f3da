"""Dice and its limits."""

import pytest
import torch
import torch.nn.functional as F

from etude.ranking.din import Dice
from etude.ranking.din.activation import PReLU

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5.0, 0.2]) + 2


def dice(alpha, **options):
    module = Dice(3, **options)
    with torch.no_grad():
        module.alpha.copy_(torch.as_tensor(alpha).expand(3))
    return module


def by_formula(x, mean, var, alpha, eps=1e-8):
    p = torch.sigmoid((x - mean) / torch.sqrt(var + eps))
    return p * x + (1 - p) * alpha * x


def test_training_uses_the_statistics_of_the_batch():
    alpha = torch.tensor([0.1, -0.3, 2.0])
    expected = by_formula(X, X.mean(0), X.var(0, correction=0), alpha)
    torch.testing.assert_close(dice(alpha)(X), expected)


def test_evaluation_uses_moving_averages_of_past_batches():
    module = dice(0.25, momentum=0.1)
    module(X)
    module(2 * X)
    mean, var = torch.zeros(3), torch.ones(3)
    for batch in (X, 2 * X):
        mean, var = 0.9 * mean + 0.1 * batch.mean(0), 0.9 * var + 0.1 * batch.var(0)
    torch.testing.assert_close(module.eval()(X), by_formula(X, mean, var, 0.25))


def test_evaluation_does_not_move_the_statistics():
    module = dice(0.25).eval()
    module(X)
    assert module.norm.running_mean.tolist() == [0, 0, 0]
    assert module.norm.running_var.tolist() == [1, 1, 1]


def test_without_variance_it_is_prelu():
    module = dice(0.3).eval()
    module.norm.running_var.zero_()
    x = torch.linspace(-2, 2, 101)[:, None].expand(-1, 3)
    x = x[x[:, 0].abs() > 0.01]
    torch.testing.assert_close(module(x), F.prelu(x, torch.tensor([0.3])))


def test_with_alpha_1_it_is_the_identity():
    torch.testing.assert_close(dice(1.0)(X), X)


def test_at_the_mean_it_halves_the_two_slopes():
    module = dice(0.4).eval()
    module.norm.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    s = module.norm.running_mean[None]
    torch.testing.assert_close(module(s), (1 + 0.4) * s / 2)


def test_masked_rows_take_no_part_in_the_statistics():
    x = X.reshape(8, 8, 3)
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) < 0.6
    module, plain = dice(0.2), dice(0.2)
    spoilt = torch.where(mask[..., None], x, torch.tensor(1e6))
    out, expected = module(spoilt, mask), plain(x[mask])
    torch.testing.assert_close(out[mask], expected)
    assert bool((out[~mask] == 0).all())
    torch.testing.assert_close(module.norm.running_mean, plain.norm.running_mean)
    torch.testing.assert_close(module.norm.running_var, plain.norm.running_var)


def test_statistics_are_over_all_leading_dimensions():
    torch.testing.assert_close(dice(0.2)(X.reshape(4, 2, 8, 3)).reshape(64, 3), dice(0.2)(X))


def test_gradients_match_finite_differences():
    module = dice(0.2).double()
    x = X[:5].double().requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))


def test_a_single_row_in_training_is_refused_with_advice_unless_a_mask_left_it():
    with pytest.raises(ValueError, match=r"single row in training \(use larger batches, or eval\(\)\)"):
        dice(0.2)(X[:1])
    mask = torch.zeros(4, dtype=torch.bool)
    module = dice(0.2)
    assert bool((module(X[:4], mask) == 0).all())
    mask[2] = True
    torch.testing.assert_close(module(X[:4], mask)[2], by_formula(X[2], torch.zeros(3), torch.ones(3), 0.2, eps=1e-8))
    assert module.norm.running_mean.tolist() == [0, 0, 0]


def test_prelu_has_a_slope_for_each_channel_of_the_last_dimension():
    module = PReLU(3)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.0, 0.5, 1.0]))
    x = -torch.ones(2, 4, 3)
    assert torch.equal(module(x), x * torch.tensor([0.0, 0.5, 1.0]))


def test_no_channel_is_refused():
    with pytest.raises(ValueError, match="num_channels must be at least 1, got 0"):
        Dice(0)
