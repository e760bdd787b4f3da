"""Batch norm: whose statistics each policy keeps, and their re-estimation for one sub-model."""

import copy

import pytest
import torch
from torch import nn

from etude.data.kinds import Examples
from etude.training.sortednet import (
    SubModel,
    SubModelSpace,
    extract,
    recalibrate_batchnorm,
    set_submodel,
    sorted_,
)

HALF, FULL = SubModel(width=0.5), SubModel(width=1.0)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def sorted_network(bn="recalibrate"):
    return sorted_(network(), SubModelSpace(width=[0.5, 1.0]), bn=bn)


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(1)
    return [3 * torch.randn(16, 2, 5, 5, generator=draw) + 1 for _ in range(4)]


def test_recalibrated_statistics_are_those_that_torch_averages_over_batches(batches):
    model = sorted_network()
    recalibrate_batchnorm(model, HALF, batches)
    plain = extract(model, HALF)
    reference = copy.deepcopy(plain).eval()
    for layer in reference:
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    for name in ("1.running_mean", "1.running_var", "5.running_mean", "5.running_var"):
        torch.testing.assert_close(plain.get_buffer(name), reference.get_buffer(name), rtol=1e-5, atol=1e-5)
    assert type(plain[1]) is nn.BatchNorm2d


def test_an_extracted_network_evaluates_as_the_submodel_in_place(batches):
    model = sorted_network().eval()
    small = extract(model, HALF, calibration=batches)
    with set_submodel(model, HALF):
        torch.testing.assert_close(small(batches[0]), model(batches[0]), rtol=1e-6, atol=1e-6)


def test_recalibration_draws_nothing_and_leaves_modes_weights_and_running_averages_alone(batches):
    model = sorted_network().train()
    model[3].eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    recalibrate_batchnorm(model, HALF, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[3].training
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


def test_a_submodel_without_statistics_is_not_evaluated_with_those_of_another(batches):
    model = sorted_network().eval()
    model(batches[0])
    with set_submodel(model, HALF), pytest.raises(RuntimeError, match=r"'1' has no statistics .* width 0\.5"):
        model(batches[0])
    with pytest.raises(RuntimeError, match="no statistics of the sub-model to extract"):
        extract(model, HALF)


def test_statistics_are_forgotten_when_training_goes_on(batches):
    model = sorted_network()
    recalibrate_batchnorm(model, HALF, batches)
    model.train()(batches[0])
    model.eval()
    with set_submodel(model, HALF), pytest.raises(RuntimeError, match="call recalibrate_batchnorm"):
        model(batches[0])


def test_only_the_whole_network_updates_the_running_averages_under_recalibrate(batches):
    model = sorted_network().train()
    before = copy.deepcopy(model[1].running_mean)
    with set_submodel(model, HALF):
        model(batches[0])
    assert torch.equal(model[1].running_mean, before)
    model(batches[0])
    assert not torch.equal(model[1].running_mean, before)


def test_shared_statistics_are_updated_by_every_submodel_in_their_prefix(batches):
    model, plain = sorted_network("shared").train(), network().train()
    with set_submodel(model, HALF):
        model(batches[0])
        plain(batches[0])
        # The first convolution sees the same input at any width.
        torch.testing.assert_close(model[1].running_mean[:4], plain[1].running_mean[:4])
        torch.testing.assert_close(model[1].running_var[:4], plain[1].running_var[:4])
        assert bool((model[1].running_mean[4:] == 0).all())
        model.eval()(batches[0])
    assert int(model[1].num_batches_tracked) == 1


def test_private_batch_norm_has_parameters_and_averages_of_each_width(batches):
    model = sorted_network("per_width").train()
    assert model.get_parameter("1.private.4.weight").shape == (4,)
    before = copy.deepcopy(model.state_dict())
    with set_submodel(model, HALF):
        model(batches[0]).sum().backward()
    assert model[1].weight.grad is None
    assert bool((model.get_parameter("1.private.4.bias").grad != 0).any())
    changed = {name for name, part in model.state_dict().items() if not torch.equal(part, before[name])}
    assert changed == {f"{layer}.private.4.{part}" for layer in (1, 5) for part in BUFFERS}
    model.eval()
    with set_submodel(model, HALF):
        torch.testing.assert_close(extract(model, HALF)(batches[0]), model(batches[0]))


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def test_every_policy_leaves_the_whole_network_as_a_plain_one(batches):
    for policy in ("recalibrate", "shared", "per_width"):
        model, plain = sorted_network(policy), network()
        model[3].eval(), plain[3].eval()
        assert torch.equal(model(batches[0]), plain(batches[0]))
        assert torch.equal(model[5].running_var, plain[5].running_var)
        assert torch.equal(model.eval()(batches[1]), plain.eval()(batches[1]))
        keys = [name for name in model.state_dict() if ".private." not in name]
        assert keys == list(plain.state_dict())


def test_batches_may_come_as_examples_loaders_or_tensors(batches):
    model = sorted_network().eval()
    inputs = torch.cat(batches)
    outputs = []
    for form in (batches, [(x, torch.zeros(16)) for x in batches]):
        recalibrate_batchnorm(model, HALF, form)
        with set_submodel(model, HALF):
            outputs.append(model(inputs))
    assert torch.equal(*outputs)
    recalibrate_batchnorm(model, HALF, Examples(inputs, torch.zeros(64)))
    with set_submodel(model, HALF):
        assert not torch.equal(model(inputs), outputs[0])


def test_no_batch_and_a_batch_of_one_are_refused(batches):
    model = sorted_network()
    with pytest.raises(ValueError, match="at least one batch, got none"):
        recalibrate_batchnorm(model, HALF, [])
    flat = sorted_(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), SubModelSpace(width=[2, 4]))
    with (
        set_submodel(flat, SubModel(width=2)),
        pytest.raises(ValueError, match=r"'1' .* one value per channel.*\(1, 2\).*a batch of one has no variance"),
    ):
        flat.train()(torch.randn(1, 3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        recalibrate_batchnorm(flat, SubModel(width=2), [torch.randn(1, 3)])
    flat.train()(torch.randn(2, 3))


def test_an_unknown_policy_is_refused_and_the_network_stays_plain():
    model = network()
    with pytest.raises(ValueError, match="must be one of recalibrate, shared, per_width, got 'private'"):
        sorted_(model, SubModelSpace(width=[0.5, 1.0]), bn="private")
    assert [type(layer) for layer in model] == [type(layer) for layer in network()]
