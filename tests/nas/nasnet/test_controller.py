"""The controller: a distribution over genotypes."""

import itertools
import math

import pytest
import torch

from etude.nas.nasnet import NASNetController, SearchSpace

TWO = SearchSpace(blocks=1, ops=("sep_3x3", "max_3x3"))


def test_probabilities_of_all_genotypes_add_up_to_one():
    torch.manual_seed(0)
    controller = NASNetController(TWO).double()
    with torch.no_grad():
        controller.weight.mul_(20)  # far from uniform
        actions = torch.tensor(list(itertools.product(*(range(n) for n in TWO.choices))))
        assert len(actions) == TWO.size() == 1024
        probabilities = controller.log_prob(actions).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-10)
    assert probabilities.max() > 3 / 1024


def test_the_log_probability_of_a_sample_is_the_one_returned_with_it():
    torch.manual_seed(0)
    controller = NASNetController()
    generator = torch.Generator().manual_seed(1)
    actions, log_probs = controller.sample_actions(6, generator)
    torch.testing.assert_close(controller.log_prob(actions), log_probs, rtol=1e-5, atol=1e-5)
    genotypes, again = controller.sample(6, torch.Generator().manual_seed(1))
    assert [list(controller.space.encode(genotype)) for genotype in genotypes] == actions.tolist()
    assert torch.equal(again, log_probs)


def test_samples_are_as_frequent_as_their_probability():
    torch.manual_seed(3)
    controller = NASNetController(SearchSpace(blocks=1, ops=("sep_3x3",), combinations=("add",)))
    with torch.no_grad():
        controller.weight.mul_(30)
        actions, _ = controller.sample_actions(4000, torch.Generator().manual_seed(0))
        kinds, counts = actions.unique(dim=0, return_counts=True)
        expected = controller.log_prob(kinds).exp()
    assert len(kinds) == 16
    assert ((counts / 4000 - expected).abs() < 4 * (expected / 4000).sqrt()).all()


def test_at_first_all_choices_are_almost_equally_likely():
    torch.manual_seed(0)
    controller = NASNetController()
    actions, _ = controller.sample_actions(8, torch.Generator().manual_seed(0))
    uniform = sum(math.log(n) for n in controller.space.choices)
    assert uniform == pytest.approx(84.547, abs=5e-4)
    entropy = controller.entropy(actions)
    assert bool((entropy <= uniform + 1e-4).all())
    assert bool((entropy > 0.99 * uniform).all())
    assert all(-0.1 <= parameter.min() < -0.09 < 0.09 < parameter.max() <= 0.1 for parameter in controller.parameters())


def test_illegal_choices_have_no_probability():
    torch.manual_seed(0)
    controller = NASNetController(SearchSpace(blocks=3, ops=("sep_3x3", "identity", "max_3x3")))
    with torch.no_grad():
        controller.weight.mul_(50)
        actions, _ = controller.sample_actions(500, torch.Generator().manual_seed(0))
    alternatives = torch.tensor(controller.space.choices)
    assert bool((actions < alternatives).all())
    assert controller.distribution(actions[:5]).probs[:, ~controller.legal].max() == 0
    bad = actions[:1].clone()
    bad[0, 0] = 2
    with pytest.raises(ValueError, match="outside its range"):
        controller.log_prob(bad)
    with pytest.raises(ValueError, match="30 choices"):
        controller.log_prob(actions[:, :20])
    with pytest.raises(ValueError, match="got 0"):
        controller.sample(0)
    with pytest.raises(ValueError, match="got 0"):
        NASNetController(hidden_dim=0)
