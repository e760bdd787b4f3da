"""The policies: what they see, what counts, and that every weight learns."""

import pytest
import torch

from etude.nas.n2n import CODE_FACTORS, RemovalPolicy, ShrinkPolicy, normalised

FEATURES = torch.tensor([
    [1.0, 3, 1, 64, 1], [4, 0, 0, 0, 0], [3, 0, 0, 0, 0], [1, 3, 1, 128, 1], [2, 2, 2, 0, 0], [5, 0, 0, 10, 0]
])  # fmt: skip
FIXED = torch.tensor([True, False, False, False, False, True])
FREE = torch.zeros(6, 5, dtype=torch.bool)
FREE[0, [1, 3, 4]] = FREE[3, [1, 3, 4]] = FREE[4, 1] = True


@pytest.fixture(params=["removal", "shrink"])
def case(request):
    torch.manual_seed(0)
    return (RemovalPolicy(), FIXED) if request.param == "removal" else (ShrinkPolicy(), ~FREE)


def test_log_prob_of_a_sample_is_that_of_its_actions(case):
    policy, fixed = case
    actions, log_prob = policy.sample(FEATURES, fixed, count=4, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(log_prob, policy.log_prob(FEATURES, fixed, actions), atol=1e-6)
    assert (log_prob < 0).all()


def test_every_parameter_gets_a_gradient(case):
    policy, fixed = case
    actions, _ = policy.sample(FEATURES, fixed, count=3)
    policy.log_prob(FEATURES, fixed, actions).sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_fixed_positions_are_kept_and_count_for_nothing(case):
    policy, fixed = case
    actions, _ = policy.sample(FEATURES, fixed, count=20)
    whole = 1 if isinstance(policy, RemovalPolicy) else 9
    assert (actions[:, fixed] == whole).all()
    _, nothing = policy.sample(FEATURES, torch.ones_like(fixed), count=2)
    assert (nothing == 0).all()


def test_probabilities_over_all_actions_sum_to_one():
    torch.manual_seed(0)
    policy = RemovalPolicy()
    rows = torch.cartesian_prod(*[torch.arange(2)] * 4)
    actions = torch.ones(16, 6).long()
    actions[:, 1:5] = rows
    assert policy.log_prob(FEATURES, FIXED, actions).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_sampled_frequencies_are_the_probabilities():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    policy = RemovalPolicy()
    actions, _ = policy.sample(FEATURES, FIXED, count=20_000, generator=generator)
    assert (actions[:, 1:5].float().mean(0) - policy(FEATURES)[1:5, 1].exp()).abs().max() < 0.015
    shrink = ShrinkPolicy()
    actions, _ = shrink.sample(FEATURES, ~FREE, count=20_000, generator=generator)
    first = shrink(FEATURES, actions[:1])[0, 0, 1].exp()
    assert (actions[:, 0, 1].bincount(minlength=10) / 20_000 - first).abs().max() < 0.015


@pytest.mark.parametrize("bidirectional", [True, False])
def test_later_layers_matter_only_in_both_directions(bidirectional):
    torch.manual_seed(0)
    policy = RemovalPolicy(bidirectional=bidirectional)
    other = FEATURES.clone()
    other[4, 1] = 7
    changed = (policy(FEATURES) - policy(other)).abs().amax(1) > 1e-7
    assert changed.tolist() == ([True] * 6 if bidirectional else [False] * 4 + [True] * 2)


def test_a_factor_changes_later_distributions_only():
    torch.manual_seed(0)
    policy = ShrinkPolicy()
    actions = torch.full((1, 6, 5), 9)
    other = actions.clone()
    other[0, 3, 3] = 0
    changed = ((policy(FEATURES, actions) - policy(FEATURES, other)).abs().amax(-1) > 1e-8)[0].flatten().tolist()
    step = 3 * 5 + 3
    assert not any(changed[: step + 1])
    assert all(changed[step + 1 :])


def test_the_factor_of_the_type_changes_nothing():
    policy = ShrinkPolicy()
    actions = torch.full((1, 6, 5), 9)
    other = actions.clone()
    other[0, :, 0] = 0
    assert torch.equal(policy(FEATURES, actions), policy(FEATURES, other))


def test_steps_read_what_was_shrunk_before_them():
    """Step by step, with LSTM cells in a loop, as the paper tells it."""
    torch.manual_seed(0)
    policy = ShrinkPolicy()
    actions, _ = policy.sample(FEATURES, ~FREE, count=1, generator=torch.Generator().manual_seed(2))
    cells = [torch.nn.LSTMCell(5, 30), torch.nn.LSTMCell(30, 30)]
    for place, cell in enumerate(cells):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(cell, name).data = getattr(policy.lstm, f"{name}_l{place}").data
    states = [(torch.zeros(1, 30), torch.zeros(1, 30)) for _ in cells]
    total = torch.zeros(())
    for layer in range(6):
        now = FEATURES[layer].clone()
        for attribute in range(5):
            x = normalised(now)[None]
            for place, cell in enumerate(cells):
                states[place] = cell(x, states[place])
                x = states[place][0]
            action = int(actions[0, layer, attribute])
            if FREE[layer, attribute]:
                total = total + policy.head(x).log_softmax(-1)[0, action]
            if attribute > 0:
                now[attribute] = now[attribute] * policy.factors[action]
    assert policy.log_prob(FEATURES, ~FREE, actions).item() == pytest.approx(total.item(), abs=1e-5)


def test_features_are_scaled_as_declared():
    row = normalised(torch.tensor([8.0, 7, 2, 1023, 3, 2, 4]))
    assert torch.allclose(row, torch.tensor([1, 1, 1, 1, 1, 0.4, 0.8]))
    assert normalised(torch.zeros(7)).tolist() == [0] * 7
    raw = RemovalPolicy(normalise=False)
    assert torch.equal(raw._read(FEATURES), FEATURES)


def test_bad_arguments_are_refused():
    assert len(ShrinkPolicy(factors=CODE_FACTORS).factors) == 11
    with pytest.raises(ValueError, match="with 1 among them"):
        ShrinkPolicy(factors=(0.5, 0.9))
    with pytest.raises(ValueError, match="feature_dim must be 5"):
        RemovalPolicy(6)
    with pytest.raises(ValueError, match="reads 7 features of a layer, got 5"):
        RemovalPolicy(7)(FEATURES)
