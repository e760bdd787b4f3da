"""GradientNoise: the schedule of Eq. (1), what is perturbed and when, and the traps of step hooks."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from etude.training.gradient_noise import GradientNoise, annealed_std


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter_with_gradient(*shape: int, value: float = 0.0) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(*shape))
    parameter.grad = torch.full(shape, value)
    return parameter


def small_problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = seeded(5)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def train(model, x, y, optimizer, steps: int, clip: float = math.inf) -> list[torch.Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("t", "std"), [(0, 1.0), (9, 10**-0.275), (999, 1000**-0.275)])
def test_annealed_std_follows_equation_1(t, std):
    assert annealed_std(t, eta=1.0, gamma=0.55) == pytest.approx(std, rel=1e-12)
    assert annealed_std(t, eta=0.01, gamma=0.55) == pytest.approx(0.1 * std, rel=1e-12)


def test_annealed_std_equals_optax_add_noise_at_every_count():
    # optax increments its count before it uses it: sqrt(eta / count^gamma) with count = 1, 2, 3, ...
    for t in range(1000):
        assert annealed_std(t, 0.3, 0.55) == pytest.approx(math.sqrt(0.3 / (t + 1) ** 0.55), rel=1e-12)


def test_noise_variance_follows_equation_1():
    parameter = parameter_with_gradient(1000, 1000)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    noise = GradientNoise(optimizer, eta=0.3, generator=seeded())
    for t in range(3):
        parameter.grad.zero_()
        assert noise.std == annealed_std(t, 0.3, 0.55)
        optimizer.step()
        assert parameter.grad.var().item() == pytest.approx(0.3 / (1 + t) ** 0.55, rel=0.01)
        assert abs(parameter.grad.mean().item()) < 5 * annealed_std(t) / 1000


def test_a_given_std_is_constant():
    parameter = parameter_with_gradient(1000, 100)
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    noise = GradientNoise(optimizer, std=1e-3, generator=seeded())
    for _ in range(3):
        parameter.grad.zero_()
        assert noise.std == 1e-3
        optimizer.step()
        assert parameter.grad.std().item() == pytest.approx(1e-3, rel=0.02)


def test_noise_is_independent_across_parameters_and_steps():
    parameters = [parameter_with_gradient(100_000) for _ in range(2)]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    GradientNoise(optimizer, generator=seeded())
    draws = []
    for _ in range(2):
        for parameter in parameters:
            parameter.grad.zero_()
        optimizer.step()
        draws += [parameter.grad.clone() for parameter in parameters]
    correlation = torch.corrcoef(torch.stack(draws))
    assert (correlation - torch.eye(4)).abs().max() < 5 / math.sqrt(100_000)


def test_every_group_is_perturbed_and_the_noise_is_not_scaled_by_the_learning_rate():
    parameters = [parameter_with_gradient(50_000) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 1.0}, {"params": [parameters[1]], "lr": 1e-3}])
    GradientNoise(optimizer, eta=0.25, generator=seeded())
    optimizer.step()
    for parameter in parameters:
        assert parameter.grad.std().item() == pytest.approx(0.5, rel=0.02)


def test_noise_comes_after_clipping():
    model, x, y = small_problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    GradientNoise(optimizer, eta=1.0, generator=seeded())
    train(model, x, y, optimizer, steps=1, clip=1e-6)
    assert math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters())) > 1.0


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.Adam, torch.optim.Adagrad]
)
def test_a_step_equals_the_optimizer_fed_with_gradients_perturbed_by_hand(make):
    by_hook, x, y = small_problem()
    by_hand, _, _ = small_problem()
    optimizer = make(by_hook.parameters())
    GradientNoise(optimizer, eta=0.3, generator=seeded(3))
    reached = train(by_hook, x, y, optimizer, steps=4)

    optimizer, generator = make(by_hand.parameters()), seeded(3)
    for t in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(x), y).backward()
        for parameter in by_hand.parameters():
            parameter.grad += annealed_std(t, 0.3) * torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    for ours, expected in zip(reached, by_hand.parameters()):
        torch.testing.assert_close(ours, expected.detach())


def test_after_remove_the_trajectory_is_the_plain_one_bit_for_bit():
    noisy, x, y = small_problem()
    plain, _, _ = small_problem()
    optimizer = torch.optim.Adam(noisy.parameters())
    GradientNoise(optimizer).remove()
    reached = train(noisy, x, y, optimizer, steps=3)
    expected = train(plain, x, y, torch.optim.Adam(plain.parameters()), steps=3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(reached, expected))


def test_remove_stops_the_count_and_can_be_called_twice():
    parameter = parameter_with_gradient(3)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    noise = GradientNoise(optimizer)
    noise.remove()
    noise.remove()
    optimizer.step()
    assert noise.step == 0
    assert torch.equal(parameter.grad, torch.zeros(3))


def test_a_parameter_without_a_gradient_is_untouched():
    with_gradient, without = parameter_with_gradient(3), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([with_gradient, without], lr=0.1)
    GradientNoise(optimizer)
    optimizer.step()
    assert without.grad is None
    assert torch.equal(without, torch.ones(3))
    assert not torch.equal(with_gradient, torch.zeros(3))


def test_a_seeded_generator_reproduces_the_noise_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    gradients = []
    for _ in range(2):
        parameter = parameter_with_gradient(10)
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        GradientNoise(optimizer, generator=seeded(7))
        optimizer.step()
        gradients.append(parameter.grad)
    assert torch.equal(*gradients)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_resumed_noise_continues_the_same_sequence():
    whole, x, y = small_problem()
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    GradientNoise(optimizer, generator=seeded(7))
    expected = train(whole, x, y, optimizer, steps=5)

    first, _, _ = small_problem()
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    noise = GradientNoise(optimizer, generator=seeded(7))
    train(first, x, y, optimizer, steps=2)
    state = noise.state_dict()
    second = nn.Linear(4, 3)
    second.load_state_dict(first.state_dict())
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    noise = GradientNoise(optimizer, generator=seeded(0))
    noise.load_state_dict(state)
    assert noise.step == 2
    reached = train(second, x, y, optimizer, steps=3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(reached, expected))


def test_a_bare_closure_is_refused():
    parameter = parameter_with_gradient(3)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    noise = GradientNoise(optimizer)
    other = GradientNoise(torch.optim.SGD([parameter], lr=0.1))
    for closure in (lambda: torch.tensor(0.0), other.closure(lambda: torch.tensor(0.0))):
        with pytest.raises(ValueError, match=r"noise\.closure\(fn\)"):
            optimizer.step(closure)
        with pytest.raises(ValueError, match=r"noise\.closure\(fn\)"):
            optimizer.step(closure=closure)
    assert noise.step == 0


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.LBFGS(p, max_iter=1)])
def test_a_wrapped_closure_equals_perturbing_by_hand(make):
    def closure_of(model, optimizer, perturb=lambda: None):
        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            perturb()
            return loss

        return closure

    by_hook, x, y = small_problem()
    optimizer = make(by_hook.parameters())
    noise = GradientNoise(optimizer, eta=0.3, generator=seeded(3))
    for _ in range(3):
        optimizer.step(noise.closure(closure_of(by_hook, optimizer)))
    assert noise.step == 3

    by_hand, _, _ = small_problem()
    optimizer, generator = make(by_hand.parameters()), seeded(3)

    def perturb(std):
        for parameter in by_hand.parameters():
            parameter.grad += std * torch.randn(parameter.shape, generator=generator)

    for t in range(3):
        optimizer.step(closure_of(by_hand, optimizer, partial(perturb, annealed_std(t, 0.3))))
    for ours, expected in zip(by_hook.parameters(), by_hand.parameters()):
        torch.testing.assert_close(ours.detach(), expected.detach())


def test_a_wrapped_closure_adds_nothing_after_remove():
    parameter = parameter_with_gradient(3)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    noise = GradientNoise(optimizer)
    closure = noise.closure(lambda: torch.tensor(1.5))
    noise.remove()
    assert optimizer.step(closure).item() == 1.5
    assert torch.equal(parameter.grad, torch.zeros(3))


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_does_not_count(fused):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=fused)
    noise = GradientNoise(optimizer, generator=seeded())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, steps in ((1.0, 1), (math.inf, 1), (1.0, 2)):
        optimizer.zero_grad()
        scaler.scale((factor * parameter).sum()).backward()
        scaler.unscale_(optimizer)
        before = parameter.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert noise.step == steps
        assert torch.equal(parameter, before) == math.isinf(factor)


def test_gradients_that_a_fused_optimizer_would_unscale_itself_are_refused():
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=True)
    GradientNoise(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(parameter.sum()).backward()
    with pytest.raises(RuntimeError, match="unscale_"):
        scaler.step(optimizer)


def test_half_precision_gradients_receive_noise_of_the_right_size():
    parameter = nn.Parameter(torch.zeros(100_000, dtype=torch.bfloat16))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    GradientNoise(optimizer, eta=0.25, generator=seeded())
    optimizer.step()
    assert parameter.grad.dtype == torch.bfloat16
    assert parameter.grad.float().std().item() == pytest.approx(0.5, rel=0.02)


def test_complex_gradients_receive_noise_in_both_parts():
    parameter = nn.Parameter(torch.zeros(100_000, dtype=torch.complex64))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    GradientNoise(optimizer, eta=0.25, generator=seeded())
    optimizer.step()
    for part in (parameter.grad.real, parameter.grad.imag):
        assert part.std().item() == pytest.approx(0.5, rel=0.02)


def sparse_step(*, sparse_rows_only: bool) -> torch.Tensor:
    embedding = nn.Embedding(6, 4, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    GradientNoise(optimizer, sparse_rows_only=sparse_rows_only, generator=seeded())
    embedding(torch.tensor([1, 3, 3])).sum().backward()
    optimizer.step()
    gradient = embedding.weight.grad
    assert gradient.is_sparse == sparse_rows_only
    return gradient.to_dense()


def test_sparse_embeddings_are_perturbed_in_every_row_by_default():
    assert (sparse_step(sparse_rows_only=False) != 0).all()


def test_sparse_rows_only_perturbs_each_present_row_once():
    gradient = sparse_step(sparse_rows_only=True)
    noise = annealed_std(0) * torch.randn(2, 4, generator=seeded())
    torch.testing.assert_close(gradient[[1, 3]], torch.tensor([[1.0], [2.0]]) + noise)
    assert torch.equal(gradient[[0, 2, 4, 5]], torch.zeros(4, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 0.0}, "eta must be positive, got 0.0"),
        ({"eta": -0.3}, "eta must be positive, got -0.3"),
        ({"eta": math.nan}, "eta must be positive, got nan"),
        ({"gamma": -0.1}, "gamma must be >= 0, got -0.1"),
        ({"std": 0.0}, "std must be positive, got 0.0"),
        ({"std": -1.0}, "std must be positive, got -1.0"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_attached(arguments, message):
    parameter = parameter_with_gradient(3)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with pytest.raises(ValueError, match=message):
        GradientNoise(optimizer, **arguments)
    optimizer.step()
    assert torch.equal(parameter.grad, torch.zeros(3))


def test_a_negative_t_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        annealed_std(-1)


def test_a_step_without_any_gradient_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    GradientNoise(optimizer)
    with pytest.raises(RuntimeError, match=r"loss\.backward"):
        optimizer.step()


def test_a_state_with_a_generator_does_not_load_into_a_noise_without_one():
    parameter = parameter_with_gradient(3)
    saved = GradientNoise(torch.optim.SGD([parameter], lr=0.1), generator=seeded()).state_dict()
    with pytest.raises(ValueError, match="saved with a generator and is loaded into a noise without one"):
        GradientNoise(torch.optim.SGD([parameter], lr=0.1)).load_state_dict(saved)
