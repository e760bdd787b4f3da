"""Hessian-vector products and eigenvalues against the Hessian written out, and the thresholds against quadratics."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training.opposing_signals import (
    HessianOperator,
    adam_preconditioner,
    cross_entropy,
    hessian_vector_product,
    sharpness,
    stability_threshold,
)


def explicit_hessian(model, x, y):
    """All second derivatives, through the functional interface of autograd."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(theta):
        pieces = theta.split([shape.numel() for shape in shapes])
        state = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes)}
        return F.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    return torch.autograd.functional.hessian(loss, theta)


def matrix_model(eigenvalues, dtype=torch.float64):
    """A model and data whose mean loss is the quadratic form of these eigenvalues, in a random basis."""
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    matrix = (basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T).to(dtype)

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.ones(n, dtype=dtype))

        def forward(self, x):
            return (self.theta @ matrix @ self.theta / 2).expand(len(x))

    return Quadratic(), (lambda outputs, targets: outputs), (torch.zeros(3, 1), torch.zeros(3)), matrix


def test_hessian_vector_product_equals_the_explicit_hessian(problem):
    model, x, y = problem
    expected = explicit_hessian(model, x, y)
    for seed in range(3):
        vec = torch.randn(49, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        product = hessian_vector_product(lambda: F.cross_entropy(model(x), y), model.parameters(), vec)
        torch.testing.assert_close(product, expected @ vec, rtol=1e-6, atol=1e-9)


def test_a_closure_that_yields_chunks_gives_the_product_of_their_sum(problem):
    model, x, y = problem
    vec = torch.arange(49, dtype=torch.float64)

    def chunks():
        for rows in torch.arange(40).split(7):
            yield F.cross_entropy(model(x[rows]), y[rows], reduction="sum") / 40

    expected = explicit_hessian(model, x, y) @ vec
    torch.testing.assert_close(hessian_vector_product(chunks, model.parameters(), vec), expected)


@pytest.mark.parametrize("batch_size", [None, 40, 7])
def test_the_operator_is_the_full_batch_hessian_whatever_the_chunks(problem, batch_size):
    model, x, y = problem
    operator = HessianOperator(model, cross_entropy, (x, y), batch_size=batch_size)
    torch.testing.assert_close(operator.dense(), explicit_hessian(model, x, y))
    assert operator.products == 49


def test_a_group_has_the_hessian_of_its_own_mean_loss(problem):
    model, x, y = problem
    rows = torch.tensor([3, 30, 7])
    operator = HessianOperator(model, cross_entropy, (x[rows], y[rows]))
    torch.testing.assert_close(operator.dense(), explicit_hessian(model, x[rows], y[rows]))


def test_the_curvature_of_some_parameters_is_their_block(problem):
    model, x, y = problem
    block = HessianOperator(model, cross_entropy, (x, y), params=model[2].parameters()).dense()
    torch.testing.assert_close(block, explicit_hessian(model, x, y)[25:, 25:])


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("batch_size", [None, 16])
def test_sharpness_equals_the_largest_eigenvalue(problem, method, batch_size):
    model, x, y = problem
    expected = torch.linalg.eigvalsh(explicit_hessian(model, x, y))[-1]
    found = sharpness(model, cross_entropy, (x, y), method=method, batch_size=batch_size, tol=1e-3)
    assert float(found) == pytest.approx(float(expected), rel=1e-3)
    assert found.residuals[0] <= 1e-3 * float(found)
    assert float(found.vectors[0].norm()) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize(
    "eigenvalues",
    [[*range(-30, 0), 4.0], [-100.0, *[0.0] * 40, 2.0], [-5.0, 5.0, *[0.1] * 30], [*range(-40, -1)]],
    ids=["negative dominates", "low rank", "equal magnitudes", "all negative"],
)
def test_sharpness_is_the_most_positive_eigenvalue_not_the_largest_magnitude(method, eigenvalues):
    model, loss_fn, data, _ = matrix_model([float(value) for value in eigenvalues])
    found = sharpness(model, loss_fn, data, method=method, tol=1e-4, max_products=20_000)
    assert float(found) == pytest.approx(max(eigenvalues), abs=1e-3 * abs(max(eigenvalues)))


def test_a_warm_start_at_an_eigenvector_that_was_overtaken_still_finds_the_new_top():
    model, loss_fn, data, matrix = matrix_model([1.0, 5.0, *[0.1] * 40])
    _, vectors = torch.linalg.eigh(matrix)
    found = sharpness(model, loss_fn, data, v0=vectors[:, -2] + 1e-3 * vectors[:, -1])
    assert float(found) == pytest.approx(5.0, rel=1e-3)


def test_several_eigenvalues_come_in_descending_order_with_their_vectors(problem):
    model, x, y = problem
    hessian = explicit_hessian(model, x, y)
    expected = torch.linalg.eigvalsh(hessian).flip(0)[:3]
    for n_iter in (20, 49):  # by Lanczos, and densely
        found = sharpness(model, cross_entropy, (x, y), neigs=3, n_iter=n_iter, tol=1e-6)
        torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(3).double(), rtol=0, atol=1e-5)
        torch.testing.assert_close(hessian @ found.vectors.T, found.vectors.T * found.values, rtol=0, atol=1e-4)


def test_the_preconditioned_hessian_is_scaled_from_both_sides(problem):
    model, x, y = problem
    scale = torch.linspace(0.5, 4.0, 49, dtype=torch.float64)
    expected = explicit_hessian(model, x, y) / torch.outer(scale, scale).sqrt()
    operator = HessianOperator(model, cross_entropy, (x, y), preconditioner=scale)
    torch.testing.assert_close(operator.dense(), expected)
    found = sharpness(model, cross_entropy, (x, y), preconditioner=scale, tol=1e-5)
    assert float(found) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-4)


def test_attention_can_be_differentiated_twice():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(6, 18)

        def forward(self, x):
            q, k, v = self.project(x).unsqueeze(1).chunk(3, dim=-1)
            return F.scaled_dot_product_attention(q, k, v).mean((1, 2))

    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0))
    found = sharpness(Attention(), cross_entropy, (x, torch.tensor([0, 1, 2, 3])))
    assert math.isfinite(float(found))


def test_measuring_touches_neither_gradients_nor_generators_nor_weights(problem):
    model, x, y = problem
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    for method in ("lanczos", "power"):
        sharpness(model, cross_entropy, (x, y), method=method)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_measurement_repeats_itself_and_a_generator_changes_its_start():
    model, loss_fn, data, _ = matrix_model([float(value) for value in range(60)])
    one, two = (sharpness(model, loss_fn, data, tol=0.1) for _ in range(2))
    assert torch.equal(one.vectors, two.vectors)
    other = sharpness(model, loss_fn, data, tol=0.1, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(one.vectors, other.vectors)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.9),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5, nesterov=True),
    ],
    ids=["gradient descent", "heavy ball", "dampened", "nesterov"],
)
def test_a_quadratic_diverges_exactly_above_the_stability_threshold(make):
    for factor, diverges in ((0.98, False), (1.02, True)):
        theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = make([theta])
        curvature = factor * stability_threshold(optimizer)
        for _ in range(1500):
            theta.grad = curvature * theta.detach()
            optimizer.step()
        assert (not abs(theta.item()) <= 1) == diverges


def test_adam_diverges_exactly_above_its_threshold_of_the_preconditioned_curvature():
    for factor, diverges in ((0.98, False), (1.02, True)):
        # With gradients far below eps the preconditioner is eps, and a step an average of gradients.
        theta = nn.Parameter(torch.full((1,), 1e-30, dtype=torch.float64))
        optimizer = torch.optim.Adam([theta], lr=1.0, betas=(0.9, 0.999), eps=1.0)
        curvature = factor * stability_threshold(optimizer)
        sizes = []
        for _ in range(1000):
            theta.grad = curvature * theta.detach()
            optimizer.step()
            sizes.append(abs(theta.item()))
        # The first steps are larger than the threshold reckons with, for the bias correction.
        assert (max(sizes[900:]) > max(sizes[400:500])) == diverges


def test_the_threshold_follows_the_learning_rate_and_is_unknown_for_other_optimizers():
    theta = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([theta], lr=0.1)
    assert stability_threshold(optimizer) == pytest.approx(20.0)
    optimizer.param_groups[0]["lr"] = 0.5
    assert stability_threshold(optimizer) == pytest.approx(4.0)
    assert stability_threshold(torch.optim.Adam([theta], lr=0.01)) == pytest.approx(3800.0)
    assert stability_threshold(torch.optim.Rprop([theta])) is None


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
def test_the_preconditioner_is_what_adam_divides_its_average_gradient_by(make):
    theta = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    optimizer = make([theta], lr=0.01, weight_decay=0.0)
    for step in range(3):
        theta.grad = torch.tensor([0.1, 3.0, -1.0], dtype=torch.float64) * (step + 1)
        before = theta.detach().clone()
        optimizer.step()
        average = optimizer.state[theta]["exp_avg"]
        torch.testing.assert_close(before - theta.detach(), 0.01 * average / adam_preconditioner(optimizer))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "qr"}, "lanczos or power, got 'qr'"),
        ({"neigs": 0}, "must be positive, got 0"),
        ({"neigs": 50}, "at most 49"),
        ({"neigs": 2, "method": "power"}, "neigs=2"),
        ({"tol": 0.0}, "tol must be positive, got 0.0"),
        ({"v0": torch.zeros(49)}, "norm above zero, got 0.0"),
        ({"v0": torch.ones(48)}, r"shape \(49,\), one entry per parameter, got \(48,\)"),
        ({"preconditioner": torch.ones(3)}, r"shape \(49,\)"),
        ({"preconditioner": torch.zeros(49)}, "must be positive, its least entry is 0.0"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
    ],
)
def test_bad_arguments_are_refused(problem, arguments, message):
    model, x, y = problem
    with pytest.raises(ValueError, match=message):
        sharpness(model, cross_entropy, (x, y), **arguments)


def test_a_vector_of_another_length_is_refused(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match=r"vec must have shape \(49,\)"):
        hessian_vector_product(lambda: F.cross_entropy(model(x), y), model.parameters(), torch.ones(4))


def test_too_few_products_are_an_error_that_says_what_to_change():
    model, loss_fn, data, _ = matrix_model([1.0 + 1e-4 * value for value in range(200)])
    for method in ("lanczos", "power"):
        with pytest.raises(RuntimeError, match="raise tol, n_iter or max_products"):
            sharpness(model, loss_fn, data, method=method, n_iter=3, tol=1e-12, max_products=8)


def test_diverged_parameters_are_an_error(problem):
    model, x, y = problem
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="diverged"):
        sharpness(model, cross_entropy, (x, y))


def test_the_preconditioner_needs_an_adam_that_has_stepped():
    theta = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="take a step first"):
        adam_preconditioner(torch.optim.Adam([theta]))
    with pytest.raises(TypeError, match="got SGD"):
        adam_preconditioner(torch.optim.SGD([theta], lr=0.1))
