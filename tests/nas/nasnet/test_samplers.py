"""PPO and random search: what they learn, the order of results, states, refusals."""

import copy
import random

import numpy as np
import pytest
import torch

from etude.nas.nasnet import NASNET_A, Genotype, PPOSearch, RandomSearch, SearchSpace
from etude.nas.nasnet.samplers import checked_reward

TWO = SearchSpace(blocks=1, ops=("sep_3x3", "max_3x3"))
SPACE = SearchSpace(blocks=2, ops=("sep_3x3", "max_3x3", "identity"))


def planted(space, seed=7):
    """Fraction of the choices that equal a hidden target's."""
    rng = random.Random(seed)
    target = [rng.randrange(n) for n in space.choices]
    return lambda genotype: float(np.mean([a == b for a, b in zip(space.encode(genotype), target)]))


def run(sampler, reward, samples, batch=25):
    means = []
    for _ in range(samples // batch):
        asked = sampler.ask(batch)
        rewards = [reward(genotype) for genotype in asked]
        sampler.tell(list(zip(asked, rewards)))
        means.append(np.mean(rewards))
    return means


def test_ppo_learns_a_planted_reward_in_a_small_space():
    sampler = PPOSearch(SPACE, lr=0.01, batch_size=25, epochs=3, scale_advantage=True)
    means = run(sampler, planted(SPACE), 500)
    assert means[0] < 0.6
    assert means[-1] > 0.8
    assert sampler.updates == 20


@pytest.mark.slow
def test_ppo_learns_a_planted_reward_in_the_papers_space():
    options = {"scale_advantage": True, "max_grad_norm": 1.0, "entropy_weight": 1e-4, "baseline_decay": 0.9}
    sampler = PPOSearch(lr=0.005, batch_size=25, epochs=3, **options)
    means = run(sampler, planted(SearchSpace()), 1750)
    assert means[0] < 0.3
    assert means[-1] > 0.7


def test_random_search_stays_at_chance():
    space = SearchSpace()
    chance = np.mean([1 / n for n in space.choices])
    assert chance == pytest.approx(0.2468, abs=5e-5)
    assert np.mean(run(RandomSearch(seed=0), planted(space), 1000, 500)) == pytest.approx(chance, abs=0.01)


def test_an_update_follows_the_clipped_objective():
    sampler = PPOSearch(TWO, seed=3, lr=0.05, batch_size=4, epochs=3, entropy_weight=0.01, baseline_decay=0.8)
    peer = copy.deepcopy(sampler.controller)
    adam = torch.optim.Adam(peer.parameters(), lr=0.05)
    baseline = None
    for rewards in ([0.1, 0.9, 0.4, 0.6], [0.8, 0.2, 0.5, 0.7]):
        asked = sampler.ask(4)
        actions = torch.tensor([TWO.encode(genotype) for genotype in asked])
        before = peer.log_prob(actions).detach()
        sampler.tell(list(zip(asked, rewards)))
        baseline = np.mean(rewards) if baseline is None else baseline
        for _ in range(3):
            loss = 0.0
            for row, old, reward in zip(actions, before, rewards):
                ratio = (peer.log_prob(row[None])[0] - old).exp()
                limited = min(max(ratio.item(), 0.8), 1.2)
                gain = reward - baseline
                surrogate = ratio * gain if ratio.item() * gain <= limited * gain else torch.tensor(limited * gain)
                loss = loss - (surrogate + 0.01 * peer.entropy(row[None])[0]) / 4
            adam.zero_grad()
            loss.backward()
            adam.step()
        baseline = 0.8 * baseline + 0.2 * np.mean(rewards)
        assert sampler.baseline == pytest.approx(baseline)
        for mine, theirs in zip(sampler.controller.parameters(), peer.parameters()):
            # Adam takes steps of 0.05 even where a gradient is rounding error.
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=5e-4)


def test_results_out_of_order_give_the_same_update():
    reward = planted(SPACE)
    straight, shuffled, late = (PPOSearch(SPACE, lr=0.01, batch_size=6) for _ in range(3))
    asked = straight.ask(6)
    assert shuffled.ask(6) == late.ask(6) == asked
    told = [(genotype, reward(genotype)) for genotype in asked]
    straight.tell(told)
    shuffled.tell(told[::-1])
    late.tell(told[3:])
    assert late.updates == 0
    late.tell(told[:3])
    for other in (shuffled, late):
        for a, b in zip(straight.controller.parameters(), other.controller.parameters()):
            assert torch.equal(a, b)
    assert straight.ask(3) == shuffled.ask(3) == late.ask(3)


def test_late_results_keep_the_probability_they_were_proposed_with():
    sampler = PPOSearch(SPACE, lr=0.05, batch_size=4)
    early, others = sampler.ask(1), sampler.ask(4)
    before = sampler.state_dict()["pending"][0][2]
    sampler.tell([(genotype, 0.5 + 0.1 * n) for n, genotype in enumerate(others)])
    assert sampler.updates == 1
    actions = torch.tensor([SPACE.encode(early[0])])
    assert sampler.controller.log_prob(actions).item() != pytest.approx(before, abs=1e-4)
    sampler.tell([(early[0], 0.3)])
    assert sampler.state_dict()["results"][0][2] == before


@pytest.mark.parametrize("make", [lambda: PPOSearch(SPACE, lr=0.01, batch_size=5), lambda: RandomSearch(SPACE, seed=4)])
def test_a_state_takes_the_search_up_where_it_was(make):
    reward = planted(SPACE)
    straight = make()
    run(straight, reward, 20, 5)
    left = straight.ask(3)
    straight.tell([(left[0], 0.5)])
    resumed = make()
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    assert resumed.pending == straight.pending == left[1:]
    assert (resumed.told, resumed.asked) == (21, 23)
    for sampler in (straight, resumed):
        sampler.tell([(genotype, reward(genotype)) for genotype in left[1:]])
    assert run(straight, reward, 20, 5) == run(resumed, reward, 20, 5)


def test_a_failed_child_counts_with_reward_0():
    sampler = PPOSearch(SPACE, batch_size=2)
    first, second = sampler.ask(2)
    sampler.tell([(first, None), (second, 0.8)])
    assert (sampler.told, sampler.failed, sampler.updates) == (2, 1, 1)
    assert sampler.baseline == pytest.approx(0.4)


def test_what_cannot_be_learned_from_is_refused_whole():
    sampler = PPOSearch(SPACE, batch_size=2)
    asked = sampler.ask(2)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"finite, got {bad}"):
            sampler.tell([(asked[0], 0.5), (asked[1], bad)])
    with pytest.raises(TypeError, match="must be a number"):
        checked_reward("0.5")
    assert (sampler.told, len(sampler.pending)) == (0, 2)
    with pytest.raises(ValueError, match="not asked for"):
        sampler.tell([(asked[0], 0.5), (Genotype(asked[0].normal, asked[0].normal[::1]), 0.1), (asked[0], 0.5)])
    with pytest.raises(ValueError, match="the normal cell has 5"):
        sampler.tell([(NASNET_A, 0.5)])
    with pytest.warns(UserWarning, match=r"outside \[0, 1\]"):
        sampler.tell([(asked[0], 71.0)])
    with pytest.raises(ValueError, match="got 0"):
        sampler.ask(0)
    for options, message in (
        ({"lr": 0}, "lr > 0"), ({"clip": 0}, "clip > 0"), ({"epochs": 0}, "got 20 and 0"),
        ({"batch_size": 1, "scale_advantage": True}, "at least two"), ({"baseline_decay": 1.0}, "baseline_decay"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            PPOSearch(SPACE, **options)


def test_the_state_of_another_search_is_refused():
    state = PPOSearch(SPACE).state_dict()
    for other, message in (
        (RandomSearch(SPACE), "sampler is 'PPOSearch'"),
        (PPOSearch(TWO), "blocks is 2, here 1"),
        (PPOSearch(SPACE, lr=1.0), "lr is 0.00035, here 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
