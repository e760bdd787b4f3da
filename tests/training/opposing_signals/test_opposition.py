"""Opposition of groups: against gradients computed one example at a time, and its limits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training.opposing_signals import (
    cross_entropy,
    flat_gradient,
    group_opposition,
    random_group_baseline,
    sharpness,
)


def naive_gradient(model, x, y):
    total = 0
    for row, label in zip(x, y):
        loss = F.cross_entropy(model(row[None]), label[None])
        total = total + torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    return total / len(x)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_cosine_is_that_of_the_groups_mean_gradients(problem, batch_size):
    model, x, y = problem
    a, b = (x[:5], y[:5]), (x[5:12], y[5:12])
    ours, theirs = naive_gradient(model, *a), naive_gradient(model, *b)
    found = group_opposition(model, cross_entropy, a, b, batch_size=batch_size, direction=ours)
    assert found.cosine == pytest.approx(float(F.cosine_similarity(ours, theirs, dim=0)), rel=1e-9)
    assert found.norm_a == pytest.approx(float(ours.norm()), rel=1e-9)
    assert found.norm_b == pytest.approx(float(theirs.norm()), rel=1e-9)
    assert found.along_a == pytest.approx(1.0)
    assert found.along_b == pytest.approx(found.cosine)
    torch.testing.assert_close(flat_gradient(model, cross_entropy, b, batch_size=batch_size), theirs)


def test_a_group_agrees_with_itself(problem):
    model, x, y = problem
    assert group_opposition(model, cross_entropy, (x, y), (x, y)).cosine == pytest.approx(1.0)


def test_one_input_with_two_labels_and_even_odds_opposes_itself():
    model = nn.Linear(3, 2, bias=False)
    nn.init.zeros_(model.weight)
    x = torch.ones(1, 3)
    found = group_opposition(model, cross_entropy, (x, torch.tensor([0])), (x, torch.tensor([1])))
    assert found.cosine == pytest.approx(-1.0)


def test_gradients_project_on_the_sharpest_direction(problem):
    model, x, y = problem
    top = sharpness(model, cross_entropy, (x, y)).vectors[0]
    a, b = (x[:5], y[:5]), (x[5:12], y[5:12])
    found = group_opposition(model, cross_entropy, a, b, direction=3 * top)
    expected = float(F.cosine_similarity(naive_gradient(model, *a), top, dim=0))
    assert found.along_a == pytest.approx(expected, rel=1e-6)


def test_some_parameters_can_be_looked_at_alone(problem):
    model, x, y = problem
    a, b = (x[:5], y[:5]), (x[5:12], y[5:12])
    last = slice(25, None)
    expected = F.cosine_similarity(naive_gradient(model, *a)[last], naive_gradient(model, *b)[last], dim=0)
    found = group_opposition(model, cross_entropy, a, b, params=model[2].parameters())
    assert found.cosine == pytest.approx(float(expected))


def test_a_group_without_gradient_has_cosine_zero(problem):
    model, x, y = problem
    no_loss = (x[:1], torch.tensor([-100]))  # cross-entropy's ignored label
    assert group_opposition(model, cross_entropy, no_loss, (x, y)).cosine == 0.0


def test_random_groups_are_disjoint_of_the_size_and_follow_the_generator(problem, monkeypatch):
    model, _, y = problem
    seen = []

    def watching(inputs):
        seen.append(inputs)
        return nn.Sequential.forward(model, inputs)

    monkeypatch.setattr(model, "forward", watching)
    data = (torch.arange(160, dtype=torch.float64).view(40, 4) / 160, y)
    one = random_group_baseline(model, cross_entropy, data, 8, n_draws=3)
    assert one.shape == (3,)
    for a, b in zip(seen[::2], seen[1::2]):
        assert len({tuple(row) for row in torch.cat([a, b]).tolist()}) == 16
    again = random_group_baseline(model, cross_entropy, data, 8, n_draws=3)
    other = random_group_baseline(model, cross_entropy, data, 8, n_draws=3, generator=torch.Generator().manual_seed(9))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_no_gradient_is_left_behind(problem):
    model, x, y = problem
    group_opposition(model, cross_entropy, (x[:3], y[:3]), (x[3:], y[3:]))
    random_group_baseline(model, cross_entropy, (x, y), 4)
    assert all(p.grad is None for p in model.parameters())


def test_bad_arguments_are_refused(problem):
    model, x, y = problem
    with pytest.raises(ValueError, match="two groups of 21 examples do not fit into 40"):
        random_group_baseline(model, cross_entropy, (x, y), 21)
    with pytest.raises(ValueError, match="n_draws must be positive, got 0"):
        random_group_baseline(model, cross_entropy, (x, y), 4, n_draws=0)
    with pytest.raises(ValueError, match="no examples"):
        group_opposition(model, cross_entropy, (x[:0], y[:0]), (x, y))
    with pytest.raises(ValueError, match=r"direction must have shape \(49,\), got \(3,\)"):
        group_opposition(model, cross_entropy, (x, y), (x, y), direction=torch.ones(3))
