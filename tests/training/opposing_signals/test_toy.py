"""The two-layer toy: its gradient and Hessian against autograd, its closed forms against the flow, its sampler."""

import math

import pytest
import torch

from etude.training.opposing_signals import OpposingSignalsToy, flip_count, gradient_flow


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def written_out(toy, theta):
    """The population loss with the expectation over x2 written out over its three values."""
    b1, b2, c = theta[: toy.d1], theta[toy.d1 : -1], theta[-1]
    # x1 has unit covariance, so that the signal's mean square error is the squared distance of the weights.
    signal = (c * b1 - toy.beta).square().sum()
    total = 0
    for sign, chance in ((1.0, 0.5 / toy.k), (-1.0, 0.5 / toy.k), (0.0, 1 - 1 / toy.k)):
        x2 = sign * toy.s * toy.u
        total = total + chance * (signal + (c * (b2 @ x2) - (toy.u @ x2).abs() / 2) ** 2) / 2
    return total


@pytest.mark.parametrize("alpha", [0.0, 1.0, 5.0])
def test_loss_gradient_and_hessian_equal_autograd_on_the_loss_written_out(alpha):
    toy = OpposingSignalsToy(d1=3, d2=2, k=7.0, alpha=alpha, beta_norm=2.0)
    theta = torch.randn(6, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(toy.loss(theta), written_out(toy, theta))
    gradient = torch.autograd.functional.jacobian(lambda t: written_out(toy, t), theta)
    torch.testing.assert_close(toy.grad(theta), gradient)
    torch.testing.assert_close(
        toy.hessian(theta), torch.autograd.functional.hessian(lambda t: written_out(toy, t), theta)
    )
    assert float(toy.sharpness(theta)) == pytest.approx(float(torch.linalg.eigvalsh(toy.hessian(theta))[-1]))


def test_batches_of_parameters_are_each_treated_alone():
    toy = OpposingSignalsToy()
    thetas = torch.randn(4, toy.size, generator=seeded(), dtype=torch.float64)
    for name in ("loss", "grad", "hessian", "sharpness", "group_losses", "conserved", "opposing_weight"):
        method = getattr(toy, name)
        torch.testing.assert_close(method(thetas), torch.stack([method(theta) for theta in thetas]))


def test_at_the_bottom_of_the_valley_the_groups_gradients_are_opposite():
    toy = OpposingSignalsToy()
    theta = toy.init(seeded())
    theta[toy.d1 : -1] -= (theta[toy.d1 : -1] @ toy.u) * toy.u
    plus, minus = torch.autograd.functional.jacobian(toy.group_losses, theta)[:, toy.d1 : -1]
    torch.testing.assert_close(plus, -minus)
    assert float(plus.norm()) > 0.1
    torch.testing.assert_close(toy.grad(theta)[toy.d1 : -1], torch.zeros(toy.d2).double(), rtol=0, atol=1e-12)


def test_the_loss_never_falls_below_the_floor_and_the_flow_reaches_it():
    toy = OpposingSignalsToy(alpha=5.0, beta_norm=2.0)
    assert toy.floor == 5 / 8
    thetas = 3 * torch.randn(1000, toy.size, generator=seeded(), dtype=torch.float64)
    assert float(toy.loss(thetas).min()) >= toy.floor
    assert float(toy.loss(toy.flow(toy.init(seeded())))) == pytest.approx(toy.floor, abs=1e-12)


@pytest.mark.parametrize("norm", [1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 1.9, 5.0])
def test_the_flow_ends_at_the_closed_form(norm, alpha):
    toy = OpposingSignalsToy(alpha=alpha, beta_norm=norm)
    theta = toy.init(seeded(1))
    end = toy.flow(theta)
    c_squared, top = toy.flow_end(theta)
    assert float(end[-1] ** 2) == pytest.approx(c_squared, rel=1e-3)
    assert float(toy.sharpness(end)) == pytest.approx(top, abs=1e-3)
    if alpha:
        assert abs(float(toy.opposing_weight(end))) < 1e-4


def test_the_flow_conserves_the_balance_of_the_layers_and_what_is_orthogonal_to_the_feature():
    toy = OpposingSignalsToy()
    theta = toy.init(seeded(2))
    end = gradient_flow(toy.grad, theta, time=0.5, max_step=lambda at: 0.25 / float(toy.sharpness(at)))
    assert float(toy.conserved(end)) == pytest.approx(float(toy.conserved(theta)), abs=1e-3)
    b2, b2_end = (at[toy.d1 : -1] - toy.opposing_weight(at) * toy.u for at in (theta, end))
    torch.testing.assert_close(b2, b2_end, rtol=0, atol=1e-9)
    assert float((end - theta).norm()) > 0.1


def test_the_sharpest_direction_is_the_outliers_above_alpha_two_only():
    for alpha, outliers in ((1.9, False), (2.1, True)):
        toy = OpposingSignalsToy(alpha=alpha, beta_norm=8.0)
        _, vectors = torch.linalg.eigh(toy.hessian(toy.flow(toy.init(seeded()))))
        along = vectors[toy.d1 : -1, -1] @ toy.u
        assert (abs(float(along)) > 0.9) == outliers


def test_the_opposing_weight_alternates_also_where_descent_is_stable():
    toy = OpposingSignalsToy()
    theta = toy.init(seeded())
    lr = 1.5 / toy.flow_end(theta)[1]  # below 2 / sharpness, above 1 / sharpness
    run = toy.run(theta, lambda p: torch.optim.SGD(p, lr=lr), steps=200)
    assert float(run.sharpness.max()) < 2 / lr
    assert flip_count(run.opposing_weight) > 100


def test_a_run_is_what_the_optimizer_makes_of_the_gradients():
    toy = OpposingSignalsToy()
    theta = toy.init(seeded())
    run = toy.run(theta, lambda p: torch.optim.SGD(p, lr=0.05), steps=5)
    by_hand = theta.clone()
    for step in range(5):
        torch.testing.assert_close(run.thetas[step], by_hand)
        by_hand = by_hand - 0.05 * toy.grad(by_hand)
    assert run.thetas.shape == (6, toy.size)
    torch.testing.assert_close(run.losses, toy.loss(run.thetas))
    assert not torch.equal(run.thetas, toy.run(theta, lambda p: torch.optim.Adam(p, lr=0.05), steps=5).thetas)


def test_samples_have_the_population_loss():
    toy = OpposingSignalsToy(d1=3, d2=2, k=5.0, alpha=5.0, beta_norm=1.0)
    theta = torch.randn(6, generator=seeded(), dtype=torch.float64)
    x, y = toy.sample(400_000, seeded(1))
    loss = (toy.predict(theta, x) - y).square().mean() / 2
    assert float(loss) == pytest.approx(float(toy.loss(theta)), rel=0.02)
    opposing = x[:, 3:] @ toy.u
    for sign in (1, -1):
        chosen = (sign * opposing) > 1
        assert chosen.double().mean().item() == pytest.approx(0.1, rel=0.02)
        torch.testing.assert_close((sign * opposing)[chosen].max(), torch.tensor(toy.s).double())
        group = (toy.predict(theta, x) - y)[chosen].square().mean() / 2
        assert float(group) == pytest.approx(float(toy.group_losses(theta)[0 if sign > 0 else 1]), rel=0.03)


def test_the_initialisation_has_the_published_scales_and_follows_the_generator():
    toy = OpposingSignalsToy(d1=20_000, d2=20_000)
    theta = toy.init(seeded(), std=0.1)
    b1, b2, c = toy.split(theta)
    assert float(b1.std()) == pytest.approx(0.1, rel=0.02)
    assert float(b2.std()) == pytest.approx(0.3, rel=0.02)
    assert float(c) == pytest.approx(0.3)
    assert torch.equal(theta, toy.init(seeded()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d1": 0}, "d1 and d2 must be positive, got 0 and 4"),
        ({"k": 0.0}, "k and beta_norm must be positive, got 0.0"),
        ({"beta_norm": -1.0}, "got 50.0 and -1.0"),
        ({"alpha": -0.5}, "alpha must be >= 0, got -0.5"),
        ({"alpha": math.nan}, "alpha must be >= 0, got nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OpposingSignalsToy(**arguments)


def test_parameters_of_another_size_and_a_bad_std_are_refused():
    toy = OpposingSignalsToy()
    with pytest.raises(ValueError, match=r"15 parameters .* got 3"):
        toy.loss(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"std must be positive, got 0\.0"):
        toy.init(seeded(), std=0.0)


def test_a_run_that_diverges_stops_with_the_step_number():
    toy = OpposingSignalsToy()
    with pytest.raises(FloatingPointError, match=r"not finite after step [0-9]+"):
        toy.run(toy.init(seeded()), lambda p: torch.optim.SGD(p, lr=10.0), steps=100)
