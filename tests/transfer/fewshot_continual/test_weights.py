"""The pair of fast and slow weights: its limits, its closed form, and what it does with buffers and tied weights."""

import pytest
import torch
from torch import nn

from etude.transfer.fewshot_continual import FastSlow


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def moved(pair, seed=1):
    """Other fast weights, as if a task had trained them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in pair.fast.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return pair


def values(module):
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def test_with_eta_one_the_slow_weights_equal_the_fast_ones_bit_for_bit():
    pair = FastSlow(net(), eta=1.0)
    for seed in range(3):
        moved(pair, seed).consolidate()
        assert all(torch.equal(a, b) for a, b in zip(pair.fast.parameters(), pair.slow.parameters()))


def test_with_eta_zero_the_slow_weights_never_move():
    pair = FastSlow(net(), eta=0.0)
    moved(pair).consolidate()
    assert all(torch.equal(value, values(net())[name]) for name, value in pair.slow.named_parameters())


@pytest.mark.parametrize("eta", [0.1, 0.3, 0.75])
def test_the_slow_weights_follow_the_closed_form_of_the_moving_average(eta):
    pair = moved(FastSlow(net(), eta=eta))
    fast, start = values(pair.fast), values(pair.slow)
    for n in range(1, 6):
        pair.consolidate()
        for name, slow in pair.slow.named_parameters():
            expected = fast[name] + (1 - eta) ** n * (start[name] - fast[name])
            torch.testing.assert_close(slow.detach(), expected, rtol=1e-12, atol=1e-14)


def test_an_important_weight_takes_a_smaller_step_by_equation_2():
    pair = moved(FastSlow(net(), eta=0.4, kappa=2.0))
    fast, start = values(pair.fast), values(pair.slow)
    generator = torch.Generator().manual_seed(5)
    importance = {name: torch.rand(w.shape, generator=generator).double() for name, w in start.items()}
    mean = torch.cat([value.flatten() for value in importance.values()]).mean()
    pair.consolidate(importance)
    for name, slow in pair.slow.named_parameters():
        for i in range(slow.numel()):
            rate = 0.4 / (1 + 2.0 * importance[name].flatten()[i] / mean)
            expected = start[name].flatten()[i] + rate * (fast[name].flatten()[i] - start[name].flatten()[i])
            assert slow.flatten()[i].item() == pytest.approx(expected.item(), abs=1e-13)


def test_importances_count_by_their_ratio_and_zeros_make_it_the_plain_average():
    def slow_after(scale):
        pair = moved(FastSlow(net(), eta=0.4, kappa=1.0))
        pair.consolidate({name: scale * torch.ones_like(weight) for name, weight in values(net()).items()})
        return values(pair.slow)

    plain = moved(FastSlow(net(), eta=0.4))
    plain.consolidate()
    half = moved(FastSlow(net(), eta=0.2))
    half.consolidate()
    for name, expected in values(plain.slow).items():
        torch.testing.assert_close(slow_after(0.0)[name], expected)
        torch.testing.assert_close(slow_after(3.0)[name], values(half.slow)[name])  # Omega = 1, so eta / 2
        torch.testing.assert_close(slow_after(3.0)[name], slow_after(7.0)[name])


def test_the_fast_weights_restart_between_where_they_are_and_the_slow_ones():
    pair = moved(FastSlow(net(), restart=0.25))
    fast, slow = values(pair.fast), values(pair.slow)
    pair.restart_fast()
    for name, weight in pair.fast.named_parameters():
        torch.testing.assert_close(weight.detach(), 0.75 * fast[name] + 0.25 * slow[name])
    unmoved = moved(FastSlow(net(), restart=0.0))
    unmoved.restart_fast()
    assert all(torch.equal(weight, fast[name]) for name, weight in unmoved.fast.named_parameters())
    pair.sync()
    assert all(torch.equal(weight, slow[name]) for name, weight in pair.fast.named_parameters())


def test_the_module_is_copied_and_never_changed():
    module = net()
    pair = moved(FastSlow(module, eta=0.5))
    pair.consolidate()
    assert all(torch.equal(value, values(net())[name]) for name, value in module.named_parameters())
    x = torch.ones(1, 3).double()
    assert torch.equal(pair(x, "fast"), pair.fast(x))
    assert torch.equal(pair(x), pair.slow(x))


def test_running_statistics_are_averaged_and_counters_copied():
    pair = FastSlow(nn.BatchNorm1d(2), eta=0.25)
    pair.fast.running_mean.fill_(4.0)
    pair.fast.num_batches_tracked.fill_(7)
    pair.consolidate()
    assert pair.slow.running_mean.tolist() == [1.0, 1.0]
    assert pair.slow.num_batches_tracked.item() == 7


def test_tied_weights_stay_tied_and_are_moved_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    pair = moved(FastSlow(Tied(), eta=0.5))
    fast, slow = pair.fast.embed.weight.detach().clone(), pair.slow.embed.weight.detach().clone()
    pair.consolidate()
    assert pair.slow.out.weight is pair.slow.embed.weight
    torch.testing.assert_close(pair.slow.embed.weight.detach(), (fast + slow) / 2)


def test_weights_that_are_not_trained_need_no_importance():
    module = net()
    module[0].weight.requires_grad_(False)
    pair = FastSlow(module, eta=0.5, kappa=1.0)
    pair.consolidate({n: torch.ones_like(w) for n, w in module.named_parameters() if w.requires_grad})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 1.5}, r"eta must lie in \[0, 1\], got 1.5"),
        ({"restart": -0.1}, r"restart must lie in \[0, 1\], got -0.1"),
        ({"kappa": -1.0}, "kappa must be finite and not negative, got -1.0"),
        ({"kappa": float("inf")}, "kappa must be finite"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FastSlow(net(), **options)


def test_importances_that_do_not_fit_are_refused():
    pair = FastSlow(net(), kappa=1.0)
    ones = {name: torch.ones_like(weight) for name, weight in values(net()).items()}
    with pytest.raises(ValueError, match=r"kappa is 1.0: consolidate\(\) needs the importance"):
        pair.consolidate()
    with pytest.raises(ValueError, match=r"0.bias has \(4,\), its importance None"):
        pair.consolidate({name: value for name, value in ones.items() if name != "0.bias"})
    with pytest.raises(ValueError, match=r"0.bias has \(4,\), its importance \(3,\)"):
        pair.consolidate(ones | {"0.bias": torch.ones(3)})
    with pytest.raises(ValueError, match=r"finite and not negative, its least value is -1\.0"):
        pair.consolidate(ones | {"0.bias": -ones["0.bias"]})


def test_copies_on_two_devices_are_refused():
    pair = FastSlow(net())
    pair.slow.to("meta")
    with pytest.raises(ValueError, match=r"must lie on one device, 0\.weight is on cpu and meta"):
        pair.consolidate()
    with pytest.raises(ValueError, match="must lie on one device"):
        pair.sync()
