"""Profiles over depth, networks of finite width, and the task with known Bayes labels."""

import math

import pytest
import torch

from etude.nn.dual import dual_activation
from etude.theory.wide_deep_optimality import (
    HermiteActivation,
    NTKNetwork,
    RareCap,
    deep_ntk,
    descent_prediction,
    empirical_ntk,
    optimal_activation,
    width_error,
)

GENTLE = HermiteActivation([0.0, 0.9, math.sqrt(0.19)])


def points(n, seed=0, d=2):
    return RareCap(d).sample(n, torch.Generator().manual_seed(seed))


def test_a_profile_over_depth_leads_to_the_rule_of_the_taxonomy():
    pytest.importorskip("sklearn")
    from etude.theory.wide_deep_optimality import depth_profile, plot_depth_profile

    (x, y, _), (new, _, _) = points(60), points(100, seed=1)
    profile = depth_profile(torch.relu, [math.inf, 3, 300], x.numpy(), y.numpy(), new.numpy())
    assert profile.depths == (3.0, 300.0, math.inf)
    assert profile.taxonomy.rule == "majority"
    assert profile.agreement["majority"][-1] == 1.0
    assert profile.agreement["majority"][0] < profile.agreement["majority"][1]
    share = profile.agreement["nearest"][0]
    assert profile.errors["nearest"][0] == pytest.approx(math.sqrt(share * (1 - share) / 100))
    figure = plot_depth_profile(profile)
    assert [line.get_label() for line in figure.axes[0].containers][::2] == ["nearest", "majority", "singular (2)"]


def test_a_depth_whose_kernel_has_no_inverse_is_left_out():
    pytest.importorskip("sklearn")
    from etude.theory.wide_deep_optimality import depth_profile

    (x, y, _), (new, _, _) = points(60), points(20, seed=1)
    profile = depth_profile(optimal_activation(2), [1, math.inf], x.numpy(), y.numpy(), new.numpy())
    assert math.isnan(profile.agreement["singular"][0])
    assert profile.agreement["singular"][1] > 0.9
    assert profile.alpha == pytest.approx(2)
    with pytest.raises(ValueError, match="depths"):
        depth_profile(torch.relu, [], x.numpy(), y.numpy(), new.numpy())


def test_the_empirical_kernel_is_that_of_the_gradients():
    network = NTKNetwork(3, [0.1, 0.6, 0.8], width=7, depth=3, generator=torch.Generator().manual_seed(0)).double()
    x, other = points(4)[0], points(5, seed=1)[0]

    def gradients(rows):
        found = [torch.autograd.grad(network(row[None])[0], list(network.parameters())) for row in rows]
        return torch.stack([torch.cat([part.flatten() for part in parts]) for parts in found])

    assert torch.allclose(empirical_ntk(network, x, other), gradients(x) @ gradients(other).T, rtol=1e-10)


def test_a_network_starts_at_zero_and_its_kernel_tends_to_the_limit():
    generator = torch.Generator().manual_seed(0)
    x = points(8)[0]
    network = NTKNetwork(3, GENTLE.coefficients.tolist(), width=50, depth=2, generator=generator).double()
    assert (network(x) == 0).all()
    assert sum(weight.numel() for weight in network.parameters()) == 50 * 3 + 50 * 50 + 50
    narrow = width_error(GENTLE, 32, 2, x, draws=10, generator=generator)
    wide = width_error(GENTLE, 512, 2, x, draws=10, generator=generator)
    # 1 / sqrt(16) of the error is expected; half tells a limit from none.
    assert float(wide.value) + 2 * float(wide.error) < float(narrow.value) / 2
    seen = []
    width_error(GENTLE, 8, 1, x, draws=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_predictions_along_descent_are_those_of_descent():
    x, observed, _ = points(20)
    new = points(6, seed=1)[0]
    dual = dual_activation(GENTLE)
    kernel = deep_ntk((x @ x.T).clamp(max=1).fill_diagonal_(1), dual, 3, scaled=False)
    kernel_new = deep_ntk(new @ x.T, dual, 3, scaled=False)
    y, lr = 2.0 * observed.double() - 1, 1.3 / float(torch.linalg.eigvalsh(kernel)[-1])
    f, f_new = torch.zeros(20, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for _ in range(50):
        residual = y - f
        f, f_new = f + lr * kernel @ residual, f_new + lr * kernel_new @ residual
    assert torch.allclose(descent_prediction(kernel, kernel_new, y, lr, 50), f_new, rtol=1e-8)
    with pytest.raises(ValueError, match="lambda_max"):
        descent_prediction(kernel, kernel_new, y, 2 * lr, 50)


def test_a_network_can_be_saved_and_loaded(tmp_path):
    network = NTKNetwork(3, GENTLE.coefficients.tolist(), width=6, depth=2)
    with torch.no_grad():
        network.weights[0].add_(0.1)
    network.save_pretrained(tmp_path)
    again = NTKNetwork.from_pretrained(tmp_path)
    x = points(5)[0].float()
    assert torch.equal(again(x), network(x))
    assert float(network(x).detach().abs().max()) > 0


def test_sizes_and_draws_out_of_range_are_refused():
    x = points(5)[0]
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        NTKNetwork(3, [0.0, 1.0], width=0, depth=1)
    with pytest.raises(ValueError, match="draws"):
        width_error(GENTLE, 8, 1, x, draws=1)
    with pytest.raises(ValueError, match="unit length"):
        width_error(GENTLE, 8, 1, 2 * x)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        width_error(GENTLE, 8, 1, torch.cat([x, -x[:1]]))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_cap_is_inside_the_orthant_and_labels_are_flipped_at_the_stated_rate(d):
    x, observed, bayes = RareCap(d, threshold=0.9, flip=0.2).sample(4000, torch.Generator().manual_seed(0))
    assert x.shape == (4000, d + 1)
    assert (x >= 0).all()
    assert torch.allclose(x.norm(dim=1), torch.ones(4000, dtype=torch.float64))
    assert float((observed != bayes).double().mean()) == pytest.approx(0.2, abs=0.025)
    center = RareCap(d).center
    assert float(center[0] / center[1]) == pytest.approx(1.2 * math.sqrt(d + 1))
    assert torch.equal(bayes == 1, x @ center > 0.9)


def test_tasks_out_of_range_are_refused():
    for bad in ({"d": 0}, {"threshold": 1.0}, {"flip": 0.5}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RareCap(**bad)
