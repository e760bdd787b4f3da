"""What the claims of active multi-task learning promise beyond the method: pairing, exponents, who chooses."""

import numpy as np
import pytest
import torch

from etude.claims.transfer import active_mtrl as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.transfer.active_mtrl import allocate, l2_relevance


def trial(name, arm, *, tuning=False, **tuned):
    claim = claims.PAPER.claims[name]
    return Trial(claim.id, arm, 500, "smoke", claim.setups["smoke"], tuned, tuning=tuning)


def test_arms_of_a_seed_share_instance_target_and_streams():
    one, other = (trial("l1_beats_l2_and_uniform", arm) for arm in ("l1", "uniform"))
    (first, x), (second, y) = (claims._instance(each, 2) for each in (one, other))
    assert np.array_equal(first.heads, second.heads)
    assert np.array_equal(x[0], y[0])
    assert one.stream_seed("sources") == other.stream_seed("sources")


@pytest.mark.parametrize(("arm", "power"), [("l2_known", 2), ("l1_known", 1)])
def test_known_plans_have_their_exponents(arm, power):
    one = trial("l1_beats_l2_and_uniform", arm)
    instance, target = claims._instance(one, 2)
    history = claims._bought(one, arm, instance, target, 200, 10)
    nu = history.relevance
    assert np.array_equal(history.counts, allocate(nu, budget=200, minimum=10, power=power))
    if arm == "l2_known":
        assert nu == pytest.approx(l2_relevance(instance.heads, instance.target))


def test_crossed_arms_exchange_the_exponents():
    one = trial("l1_beats_l2_and_uniform", "l1_squared")
    instance, target = claims._instance(one, 2)
    for arm, like, power in (("l1_squared", "l1", 2), ("l2_plain", "l2", 1)):
        crossed, plain = (claims._bought(one, each, instance, target, 200, 10) for each in (arm, like))
        assert crossed.relevance == pytest.approx(plain.relevance)
        assert np.array_equal(crossed.counts, allocate(crossed.relevance, budget=200, minimum=10, power=power))


def digits():
    generator = torch.Generator().manual_seed(0)

    def split(n):
        return Examples(torch.rand(n, 1, 28, 28, generator=generator), torch.arange(10).repeat(n // 10))

    return ImageData(split(200), split(20), split(60), tuple("0123456789"), "random")


def test_tuning_looks_at_no_test_image():
    data = digits()
    blind = ImageData(
        data.train, data.val, Examples(torch.zeros_like(data.test.inputs), data.test.targets), data.classes, "blind"
    )
    scores = [
        claims.corrupted_digits(trial("corrupted_digits", "l1", tuning=True, max_tasks=5), each)
        for each in (data, blind)
    ]
    assert scores[0] == scores[1]
    tested = [claims.corrupted_digits(trial("corrupted_digits", "uniform"), each)["accuracy"] for each in (data, blind)]
    assert tested[0] != tested[1]
