"""REINFORCE: the gradient of the expected reward, credit, baselines, invalid students, the cache and resuming."""

import itertools

import pytest
import torch
from torch import nn

from etude.nas.n2n import NetworkCompressor, RemovalPolicy, chain
from etude.nas.n2n.students import InvalidStudent, Removal
from etude.nas.n2n.tracing import layer_table

GREY = torch.zeros(2, 1, 8, 8)
STRINGS = torch.tensor(list(itertools.product((0, 1), repeat=3)))


class Bandit:
    """Five layers of which three are free; a "student" holds its actions and is always smaller."""

    def __init__(self):
        self.model = nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(72, 10)
        )
        self.table = layer_table(self.model, GREY)
        self.fixed, self.params = self.table.fixed, 10

    def __call__(self, actions):
        student = nn.Linear(1, 1)
        student.actions = actions[1:4]
        student.extra_repr = lambda: str(actions.tolist())
        return student


TABLE = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.7, 0.2, 0.8, 0.4], dtype=torch.float64)


def by_table(student):
    return float(TABLE[int((student.actions * torch.tensor([4, 2, 1])).sum())])


def compressor(reward=by_table, policy=None, **options):
    torch.manual_seed(0)
    policy = RemovalPolicy() if policy is None else policy
    return NetworkCompressor(policy, Bandit(), reward, lambda accuracy, params, epoch: accuracy, **options)


def rows(strings):
    return torch.cat([torch.ones(len(strings), 1), strings, torch.ones(len(strings), 1)], 1).long()


def flat(policy):
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])


def scores(search):
    """The gradient of the log-probability of each of the eight strings, (8, weights), and their probabilities."""
    rowwise = []
    for string in STRINGS:
        search.policy.zero_grad()
        search.policy.log_prob(search._features, search._fixed, rows(string[None])).sum().backward()
        rowwise.append(flat(search.policy))
    with torch.no_grad():
        chances = search.policy.log_prob(search._features, search._fixed, rows(STRINGS)).exp()
    return torch.stack(rowwise), chances


def expected(search, count):
    """The mean of an update's direction, and of its square, over all rollouts of `count` strings."""
    gradients, chances = scores(search)
    mean, square = 0.0, 0.0
    for picks in itertools.product(range(8), repeat=count):
        chosen = list(picks)
        direction = (search.advantages(TABLE[chosen])[:, None] * gradients[chosen]).mean(0)
        mean = mean + chances[chosen].prod() * direction
        square = square + chances[chosen].prod() * direction.square()
    return mean, square


def analytic(search):
    search.policy.zero_grad()
    chances = search.policy.log_prob(search._features, search._fixed, rows(STRINGS)).exp()
    (chances * TABLE.to(chances)).sum().backward()
    return flat(search.policy)


def doubled(**options):
    torch.manual_seed(0)
    search = compressor(policy=RemovalPolicy(hidden=2, layers=1).double(), **options)
    search.means = [0.4]  # a baseline from before
    search.epoch = 1
    return search


def test_the_expected_update_is_the_gradient_of_the_expected_reward_whatever_the_baseline():
    search = doubled()
    true = analytic(search)
    assert true.abs().max() > 1e-4
    for baseline in (0.4, 0.0, -3.0):
        search.means = [baseline]
        mean, _ = expected(search, 1)
        assert (mean - true).abs().max() < 1e-6
    search.means = [0.4]
    mean, _ = expected(search, 2)
    assert (mean - true).abs().max() < 1e-6


def test_the_baseline_of_the_first_step_leaves_the_gradient_unbiased():
    search = doubled()
    search.means, search.epoch = [], 0
    mean, _ = expected(search, 2)
    assert (mean - analytic(search)).abs().max() < 1e-6


@pytest.mark.parametrize("count", [2, 3])
def test_shared_credit_has_a_gradient_as_many_times_smaller_and_noisier_once_rescaled(count):
    own, shared = doubled(), doubled(credit="shared")
    true = analytic(own)
    own_mean, own_square = expected(own, count)
    mean, square = expected(shared, count)
    assert (own_mean - true).abs().max() < 1e-6
    assert (mean - true / count).abs().max() < 1e-6
    own_variance, variance = (own_square - own_mean**2).sum(), (square - mean**2).sum()
    assert variance < own_variance < count**2 * variance


def test_an_update_goes_where_the_formula_says():
    """Plain SGD in place of Adam: the step is the mean of advantage times score."""
    search = doubled(rollouts=3)
    gradients, _ = scores(search)
    chosen = [1, 6, 6]
    before = torch.cat([parameter.detach().flatten().clone() for parameter in search.policy.parameters()])
    search.optimizer = torch.optim.SGD(search.policy.parameters(), lr=0.1)
    search._learn(search.policy, rows(STRINGS[chosen]), TABLE[chosen])
    after = torch.cat([parameter.detach().flatten() for parameter in search.policy.parameters()])
    step = ((TABLE[chosen] - 0.4)[:, None] * gradients[chosen]).mean(0)
    assert torch.allclose(after - before, 0.1 * step, atol=1e-12)


def test_both_credits_coincide_for_one_rollout():
    one, other = doubled(), doubled(credit="shared")
    assert torch.equal(one.advantages(TABLE[3:4]), other.advantages(TABLE[3:4]))


def test_baselines_hold_past_rewards_only():
    search = compressor()
    rewards = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert search.advantages(rewards).tolist() == [-3.0, -1.5, 4.5]  # the means of the others: 4, 3.5, 1.5
    search.means, search.epoch = [1.0, 2.0, 4.0], 3
    average = 0.8 * (0.8 * 1 + 0.2 * 2) + 0.2 * 4
    assert torch.allclose(search.advantages(rewards), rewards - average)
    code = compressor(baseline="mean", credit="shared")
    assert code.advantages(rewards).tolist() == [3.0, 3.0, 3.0]  # b = 0 at the first step
    code.means, code.epoch = [1.0, 2.0, 4.0], 3
    assert torch.allclose(code.advantages(rewards), torch.full((3,), 3 - 7 / 4).double())


class Logits(RemovalPolicy):
    """A logit a layer, all 0 at first: every string has probability 1/8."""

    def __init__(self):
        super().__init__(hidden=1, layers=1)
        self.logits = nn.Parameter(torch.zeros(5))

    def forward(self, features):
        return torch.stack([torch.zeros(5), self.logits], 1).log_softmax(1)


def test_the_best_string_of_an_additive_reward_is_learnt():
    weights = torch.tensor([0.5, -0.3, 0.4])

    def reward(student):
        return float((student.actions * weights).sum()) + 1

    search = compressor(reward, policy=Logits(), lr=0.05)

    def best():
        return search.policy.log_prob(search._features, search._fixed, rows(torch.tensor([[1, 0, 1]]))).exp().item()

    assert best() == pytest.approx(1 / 8)
    for _ in range(300):
        search.step()
    assert best() > 0.9


def real(evaluate, reward=None, **options):
    torch.manual_seed(0)
    model = chain(((4, 4), (6, 6)), num_classes=10, in_channels=1, size=(8, 8))
    build = Removal(model, GREY, fix=(nn.MaxPool2d,))
    return NetworkCompressor(RemovalPolicy(), build, evaluate, reward or (lambda a, p, e: a - p / 1e5), **options)


class Counting:
    """An accuracy that depends on the architecture; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, student):
        self.calls += 1
        return 1 / (1 + sum(1 for module in student if isinstance(module, nn.Identity)))


def test_invalid_and_larger_students_are_rewarded_with_minus_1_and_not_trained():
    counting = Counting()
    search = real(counting, rollouts=2)
    search.policy.sample = lambda *args, **kwargs: (torch.ones(2, 14).long(), torch.zeros(2))
    tried = search.step()
    assert [each.reward for each in tried] == [-1.0, -1.0]
    assert "parameters are no fewer than" in tried[0].reason
    assert tried[0].accuracy is None
    assert counting.calls == 0
    assert search.best is None

    def broken(actions):
        raise InvalidStudent("no network")

    broken.table, broken.fixed, broken.params = search.build.table, search.build.fixed, search.build.params
    other = NetworkCompressor(RemovalPolicy(), broken, counting, lambda a, p, e: a)
    assert {(each.reward, each.reason, each.params) for each in other.step()} == {(-1.0, "no network", None)}


def test_equal_architectures_are_evaluated_once():
    for cache, calls in ((True, 1), (False, 2)):
        counting = Counting()
        search = real(counting, rollouts=3, cache=cache)
        keep = torch.ones(3, 14).long()
        keep[:, 3] = 0
        search.policy.sample = lambda *args, keep=keep, **kwargs: (keep, torch.zeros(3))
        search.step()
        search.step()
        assert counting.calls == calls


def test_the_reward_sees_accuracy_parameters_and_epoch():
    seen = []

    def reward(accuracy, params, epoch):
        seen.append((accuracy, params, epoch))
        return 0.0

    search = real(Counting(), reward)
    tried = search.step() + search.step()
    valid = [each for each in tried if not each.reason]
    assert seen == [(each.accuracy, each.params, each.step) for each in valid]
    assert {each.step for each in tried} == {0, 1}


def test_a_nan_is_a_clear_error_and_nothing_is_learnt_from_it():
    search = real(Counting(), lambda accuracy, params, epoch: float("nan"))
    before = {name: value.clone() for name, value in search.policy.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"the reward of student \d is nan \(accuracy .* epoch 0\); its actions: \[1, "
    ):
        search.step()
    assert all(torch.equal(before[name], value) for name, value in search.policy.state_dict().items())
    with pytest.raises(ValueError, match=r"the accuracy of student \d is nan"):
        real(lambda student: float("nan")).step()


def test_a_resumed_search_goes_on_bit_for_bit():
    whole = real(Counting())
    for _ in range(5):
        whole.step()
    part = real(Counting())
    part.step()
    part.step()
    part.ask()  # stopped in the middle of an update
    other = real(Counting(), seed=77)
    other.load_state_dict(part.state_dict())
    for _ in range(3):
        other.step()
    assert [(t.id, t.step, t.reward, t.actions.tolist()) for t in other.history] == [
        (t.id, t.step, t.reward, t.actions.tolist()) for t in whole.history
    ]
    state = whole.policy.state_dict()
    assert all(torch.equal(state[name], value) for name, value in other.policy.state_dict().items())


def test_a_uniform_policy_keeps_half_and_learns_nothing():
    build = Removal(chain(((4, 4),), num_classes=10, in_channels=1, size=(8, 8)), GREY)
    search = NetworkCompressor(None, build, Counting(), lambda a, p, e: a, rollouts=400)
    actions = torch.stack([rollout.actions for rollout in search.ask()])
    assert (actions[:, build.fixed] == 1).all()
    assert (actions[:, ~build.fixed].float().mean() - 0.5).abs() < 0.03


def test_bad_arguments_are_refused():
    for options, message in (
        ({"rollouts": 0}, "rollouts must be positive"),
        ({"credit": "own"}, "credit must be"),
        ({"baseline": "none"}, "baseline must be"),
        ({"decay": 1.0}, "decay must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            compressor(**options)
    search = compressor()
    with pytest.raises(ValueError, match="0 students were asked for, got 1"):
        search.tell([0.5])
    with pytest.raises(ValueError, match="another network, policy or setting"):
        search.load_state_dict(real(Counting()).state_dict())
    with pytest.raises(ValueError, match="not the state of an N2N search"):
        search.load_state_dict({})
    with pytest.raises(ValueError, match="reads 7 features"):
        compressor(policy=RemovalPolicy(7))
