"""Schedules: the identities that make a chain of steps the noising law, and the learned schedule's shape."""

import math

import pytest
import torch

from etude.training.noprop import CosineLabelSchedule, LabelSchedule, LearnedLabelSchedule

STEPS = [1, 5, 10, 100, 1000]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def before(schedule):
    return schedule.alpha_bar[:-1]


def after(schedule):
    return schedule.alpha_bar[1:]


@pytest.mark.parametrize("steps", STEPS)
def test_a_step_keeps_the_mean_and_the_variance_of_the_noising_law(steps):
    s = CosineLabelSchedule(steps)
    torch.testing.assert_close(s.a + s.b * before(s).sqrt(), after(s).sqrt(), **TIGHT)
    torch.testing.assert_close(s.b**2 * (1 - before(s)) + s.c, 1 - after(s), **TIGHT)


@pytest.mark.parametrize("steps", STEPS)
def test_the_weight_of_a_step_is_half_the_gain_in_signal_to_noise(steps):
    s = CosineLabelSchedule(steps)
    alpha = before(s) / after(s)
    weight = after(s) * (1 - alpha) ** 2 / (2 * s.c * (1 - before(s)) ** 2)
    gains = torch.tensor([s.snr_gain(t) for t in range(1, steps + 1)], dtype=torch.float64)
    torch.testing.assert_close(weight, gains / 2, rtol=1e-8, atol=0)


@pytest.mark.parametrize("steps", STEPS)
def test_signal_to_noise_rises_at_every_step_and_the_gains_add_up(steps):
    s = CosineLabelSchedule(steps)
    gains = [s.snr_gain(t) for t in range(1, steps + 1)]
    assert min(gains) > 0
    assert s.c.min() > 0
    assert math.fsum(gains) == pytest.approx(998.9999, abs=1e-4)
    assert (s.alpha_bar[0].item(), s.alpha_bar[-1].item()) == pytest.approx((1e-4, 0.999), abs=1e-12)


def test_a_chain_with_true_embeddings_follows_the_noising_law():
    s, g = CosineLabelSchedule(5), torch.Generator().manual_seed(0)
    u = torch.tensor([[1.0, -2.0]], dtype=torch.float64).expand(100_000, 2)
    z = s.noised(u, 0, g)
    for t in range(1, 6):
        z = s.step(t, z, u, g)
        abar = s.alpha_bar[t].item()
        std = math.sqrt(1 - abar)
        torch.testing.assert_close(z.mean(0), math.sqrt(abar) * u[0], atol=4 * std / math.sqrt(1e5), rtol=0)
        torch.testing.assert_close(z.var(0), torch.full((2,), 1 - abar).double(), rtol=0.02, atol=0)


def test_noise_is_drawn_with_the_stated_mean_and_variance():
    s = CosineLabelSchedule(4)
    u = torch.full((50_000, 1), 3.0)
    z = s.noised(u, 2, torch.Generator().manual_seed(0))
    abar = s.alpha_bar[2].item()
    assert z.mean().item() == pytest.approx(3 * math.sqrt(abar), abs=0.02)
    assert z.var().item() == pytest.approx(1 - abar, rel=0.03)


def learned(**options):
    torch.manual_seed(0)
    schedule = LearnedLabelSchedule(hidden=8, **options)
    with torch.no_grad():
        for parameter in schedule.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return schedule


def test_learned_gamma_falls_from_gamma_1_to_gamma_0_whatever_the_weights():
    schedule = learned()
    gamma = schedule.gamma(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (gamma.diff() < 0).all()
    assert gamma[0].item() == pytest.approx(schedule.gamma_1.item(), abs=1e-6)
    assert gamma[-1].item() == pytest.approx(schedule.gamma_0.item(), abs=1e-6)


def test_learned_schedule_starts_at_the_given_ends():
    schedule = LearnedLabelSchedule(gamma_0=-4.0, gamma_1=3.0)
    ends = schedule.gamma(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(ends, torch.tensor([3.0, -4.0]))
    torch.testing.assert_close(schedule.alpha_bar(torch.tensor([1.0])), torch.sigmoid(torch.tensor([4.0])))


def test_the_slope_of_signal_to_noise_and_its_gradients_equal_autograd():
    schedule = learned().double()
    t = torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    (slope,) = torch.autograd.grad(schedule.snr(t).sum(), t, create_graph=True)
    torch.testing.assert_close(schedule.snr_grad(t), slope)
    parameters = list(schedule.parameters())
    ours = torch.autograd.grad(schedule.snr_grad(t).log().sum(), parameters)
    theirs = torch.autograd.grad(slope.log().sum(), parameters)
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)
        assert mine.abs().sum() > 0


def test_learned_steps_obey_the_identities_of_the_fixed_ones():
    schedule = learned()
    times = torch.linspace(0, 1, 1001, dtype=torch.float64)
    a, b, c = schedule.step_coefficients(times[:-1], times[1:])
    fixed = LabelSchedule(schedule.alpha_bar(times).detach())
    for mine, other in ((a, fixed.a), (b, fixed.b), (c, fixed.c)):
        torch.testing.assert_close(mine.detach(), other, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CosineLabelSchedule(0), "num_steps must be at least 1, got 0"),
        (lambda: CosineLabelSchedule(5, s=-1.0), "s must be >= 0, got -1.0"),
        (lambda: CosineLabelSchedule(5, low=0.5, high=0.4), "0 < low < high < 1, got 0.5 and 0.4"),
        (lambda: CosineLabelSchedule(5, high=1.0), "0 < low < high < 1, got 0.0001 and 1.0"),
        (lambda: LabelSchedule([0.1, 0.5, 0.5]), r"alpha_bar must increase strictly .* got \[0.1, 0.5, 0.5\]"),
        (lambda: LabelSchedule([0.1, 0.5, 0.2]), "alpha_bar must increase strictly"),
        (lambda: LabelSchedule([0.1, math.nan]), "alpha_bar must increase strictly"),
        (lambda: LabelSchedule([0.1]), "alpha_bar needs at least 2 values, for one step, got 1"),
        (lambda: CosineLabelSchedule(5).snr_gain(6), r"t must lie in 1..5, got 6"),
        (lambda: LearnedLabelSchedule(gamma_0=1.0, gamma_1=1.0), "gamma_0 must be below gamma_1, got 1.0 and 1.0"),
        (lambda: LearnedLabelSchedule(hidden=0), "hidden must be at least 1, got 0"),
        (
            lambda: LearnedLabelSchedule().step_coefficients(torch.tensor([0.5]), torch.tensor([0.5])),
            "t must be later than t_prev",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
