"""Sampling and accumulation: the sequence of sub-models, and what an update is made of."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.data.kinds import Examples
from etude.loop import fit
from etude.training.sortednet import (
    SortedMLP,
    SortedSampler,
    SubModel,
    SubModelSpace,
    active_submodel,
    extract,
    set_submodel,
    sorted_,
    sorted_step,
    space_of,
    submodel_regions,
)

SPACE = SubModelSpace(width=[4, 8], depth=[1, 2])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model(seed=0):
    torch.manual_seed(seed)
    return SortedMLP(6, 3, width=[4, 8], depth=[1, 2])


@pytest.fixture
def batches():
    draw = generator(7)
    return [(torch.randn(5, 6, generator=draw), torch.randint(3, (5,), generator=draw)) for _ in range(12)]


def weights(network):
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_draws_follow_the_generator_and_nothing_else():
    state = torch.get_rng_state()
    first, second = (SortedSampler(SPACE, generator=generator(3)) for _ in range(2))
    drawn = [next(first) for _ in range(50)]
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn == [next(second) for _ in range(50)]
    assert drawn != [next(SortedSampler(SPACE, generator=generator(4))) for _ in range(50)]
    assert {b for b, _ in drawn} == set(SPACE)


def test_losses_are_divided_by_the_micro_batches_of_an_update_once():
    sampler = SortedSampler(SPACE, accumulate=4, alpha=[1, 2, 3, 4])
    alpha = dict(zip(SPACE, [1, 2, 3, 4]))
    for index in range(1, 13):
        b, weight = next(sampler)
        assert weight == alpha[b] / 4
        assert sampler.update_due == (index % 4 == 0)


def test_a_submodel_may_be_held_for_a_whole_update():
    sampler = SortedSampler(SPACE, accumulate=3, resample="update")
    drawn = [next(sampler)[0] for _ in range(60)]
    assert all(len(set(drawn[start : start + 3])) == 1 for start in range(0, 60, 3))
    assert len(set(drawn)) == 4


def test_the_whole_network_may_be_guaranteed_every_few_draws():
    drawn = [b for _, (b, _) in zip(range(100), SortedSampler(SPACE, full_every=5, p=[1, 1, 1, 0]))]
    assert [index for index, b in enumerate(drawn, 1) if b == SPACE.full] == list(range(5, 101, 5))


def test_a_cycle_trains_every_submodel_in_turn():
    drawn = [b for _, (b, _) in zip(range(12), SortedSampler(SPACE, accumulate=4, cycle=True))]
    assert drawn == list(SPACE) * 3


def test_a_saved_sampler_continues_in_the_middle_of_an_update():
    sampler = SortedSampler(SPACE, accumulate=4, resample="update", generator=generator(1))
    for _ in range(6):
        next(sampler)
    state = copy.deepcopy(sampler.state_dict())
    expected = [next(sampler) for _ in range(20)]
    resumed = SortedSampler(SPACE, accumulate=4, resample="update", generator=generator(9))
    resumed.load_state_dict(state)
    assert [next(resumed) for _ in range(20)] == expected
    assert resumed.used == sampler.used


def test_a_space_of_the_whole_network_alone_is_ordinary_training_bit_for_bit(batches):
    ours = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
    plain = copy.deepcopy(ours)
    sorted_(ours, SubModelSpace(width=[1.0]))
    sampler = SortedSampler(space_of(ours))
    for network, step in ((ours, True), (plain, False)):
        torch.manual_seed(3)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for batch in batches:
            if step:
                assert sorted_step(network, F.cross_entropy, batch, optimizer, sampler).updated
            else:
                F.cross_entropy(network(batch[0]), batch[1]).backward()
                optimizer.step()
                optimizer.zero_grad()
    assert all(torch.equal(mine, plain.state_dict()[name]) for name, mine in ours.state_dict().items())


def test_accumulated_micro_batches_of_one_submodel_equal_a_step_on_their_union(batches):
    for b in SPACE:
        ours, whole = model(), model()
        chosen = [float(c == b) for c in SPACE]
        sampler = SortedSampler(SPACE, accumulate=4, p=chosen)
        optimizer = torch.optim.SGD(ours.parameters(), lr=0.5, momentum=0.9)
        for batch in batches[:4]:
            step = sorted_step(ours, F.cross_entropy, batch, optimizer, sampler)
            assert step.submodel == b
        assert step.updated
        assert sampler.used == [b] * 4
        inputs, targets = (torch.cat(part) for part in zip(*batches[:4]))
        optimizer = torch.optim.SGD(whole.parameters(), lr=0.5, momentum=0.9)
        with set_submodel(whole, b):
            F.cross_entropy(whole(inputs), targets).backward()
        optimizer.step()
        torch.testing.assert_close(weights(ours), weights(whole), rtol=1e-6, atol=1e-6)


def test_an_update_is_the_mean_gradient_of_the_submodels_drawn(batches):
    ours = model()
    start = weights(ours)
    alpha = [0.5, 1.0, 2.0, 3.0]
    sampler = SortedSampler(SPACE, accumulate=3, alpha=alpha, generator=generator(2))
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    steps = [sorted_step(ours, F.cross_entropy, batch, optimizer, sampler) for batch in batches[:3]]
    assert [step.updated for step in steps] == [False, False, True]
    total = torch.zeros_like(start)
    for step, (inputs, targets) in zip(steps, batches):
        fresh = model()
        with set_submodel(fresh, step.submodel):
            loss = F.cross_entropy(fresh(inputs), targets)
            assert torch.equal(step.loss, loss.detach())
            gradients = torch.autograd.grad(loss, list(fresh.parameters()), allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(fresh.parameters(), gradients)]
        weight = dict(zip(SPACE, alpha))[step.submodel]
        total += weight / 3 * torch.cat([part.flatten() for part in flat])
    torch.testing.assert_close(weights(ours), start - 0.1 * total)


def test_targets_that_are_no_classes_are_refused():
    ours = model()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    batch = torch.randn(2, 6), torch.tensor([0, 3])
    with pytest.raises(ValueError, match=r"targets in 0\.\.3 do not fit outputs of shape \(2, 3\): .* out of bounds"):
        sorted_step(ours, F.cross_entropy, batch, optimizer, SortedSampler(SPACE))


def test_a_batch_of_one_under_batch_norm_is_refused():
    ours = sorted_(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), SubModelSpace(width=[0.5, 1.0]))
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    batch = torch.randn(1, 6), torch.tensor([0])
    for full in (0, 1):
        sampler = SortedSampler(space_of(ours), p=[1 - full, full])
        with pytest.raises(ValueError, match=r"'1' .* a batch of one has no variance"):
            sorted_step(ours, F.cross_entropy, batch, optimizer, sampler)


def only(b):
    return [float(c == b) for c in SPACE]


@pytest.mark.parametrize("mask", [False, True])
def test_masked_updates_leave_outside_weights_and_their_averages_alone(mask, batches):
    ours = model()
    optimizer = torch.optim.AdamW(ours.parameters(), lr=0.01, weight_decay=0.1)
    full = SortedSampler(SPACE, p=only(SPACE.full))
    for batch in batches[:3]:
        sorted_step(ours, F.cross_entropy, batch, optimizer, full)
    before = copy.deepcopy(dict(ours.named_parameters()))
    averages = {name: optimizer.state[part]["exp_avg"].clone() for name, part in ours.named_parameters()}
    small = SortedSampler(SPACE, p=only(SPACE.smallest))
    for batch in batches[3:6]:
        sorted_step(ours, F.cross_entropy, batch, optimizer, small, mask_updates=mask)
    regions = submodel_regions(ours, SPACE.smallest)
    for name, parameter in ours.named_parameters():
        outside = torch.ones_like(parameter, dtype=torch.bool)
        for region in regions[name]:
            outside[region] = False
        skipped = not regions[name]
        average = optimizer.state[parameter]["exp_avg"]
        still = torch.equal(parameter[outside], before[name][outside])
        assert still == (mask or skipped or not bool(outside.any()))
        if mask:
            assert torch.equal(average[outside], averages[name][outside])
        assert skipped or bool((parameter != before[name])[~outside].any())


def test_masking_with_the_whole_network_changes_nothing(batches):
    results = []
    for mask in (False, True):
        ours = model()
        optimizer = torch.optim.Adam(ours.parameters(), lr=0.01)
        sampler = SortedSampler(SPACE, p=only(SPACE.full))
        for batch in batches:
            sorted_step(ours, F.cross_entropy, batch, optimizer, sampler, mask_updates=mask)
        results.append(weights(ours))
    assert torch.equal(*results)


def test_an_attached_sampler_trains_as_sorted_step_does(batches):
    inputs, targets = (torch.cat(part) for part in zip(*batches))
    examples = Examples(inputs, targets)
    ours, stepped = model(), model()
    sampler = SortedSampler(SPACE, accumulate=2, generator=generator(5))
    handle = sampler.attach(ours)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    fit(ours, examples, optimizer, steps=6, batch_size=5, accumulate=2, generator=generator(1))
    assert sampler.micro_batches == 12
    reference = SortedSampler(SPACE, accumulate=2, generator=generator(5))
    optimizer = torch.optim.SGD(stepped.parameters(), lr=0.1)
    rows = torch.randperm(60, generator=generator(1)).split(5)
    for index in rows:
        sorted_step(stepped, F.cross_entropy, examples[index], optimizer, reference)
    torch.testing.assert_close(weights(ours), weights(stepped))
    handle.remove()
    ours(inputs)
    assert sampler.micro_batches == 12


def test_an_attached_sampler_leaves_evaluation_and_the_submodel_in_use_alone(batches):
    ours, x = model(), batches[0][0]
    sampler = SortedSampler(SPACE)
    sampler.attach(ours)
    set_submodel(ours, SubModel(width=4, depth=2))
    ours.eval()(x)
    with torch.no_grad():
        ours.train()(x)
    assert sampler.draws == 0
    ours(x)
    assert sampler.draws == 1
    assert active_submodel(ours) == SubModel(width=4, depth=2)
    with pytest.raises(ValueError, match="got an input of shape"):
        ours(x[:, :3])
    assert active_submodel(ours) == SubModel(width=4, depth=2)


def test_copies_go_on_with_the_draws_and_extracted_networks_do_not(batches):
    ours, x = model(), batches[0][0]
    sampler = SortedSampler(SPACE)
    sampler.attach(ours)
    copy.deepcopy(ours)(x)
    assert sampler.draws == 1
    small = extract(ours, SPACE.smallest)
    small.train()(x).sum().backward()
    assert sampler.draws == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"full_every": 0}, "full_every must be at least 1, got 0"),
        ({"resample": "batch"}, "resample must be 'micro' or 'update', got 'batch'"),
        ({"cycle": True, "resample": "update"}, "a cycle draws nothing"),
        ({"p": [1, 1]}, "p must have one entry for each of 4 sub-models, got 2"),
        ({"alpha": [1, -1, 1, 1]}, "alpha must be finite, not negative"),
    ],
)
def test_bad_sampler_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SortedSampler(SPACE, **arguments)


def test_samplers_of_another_space_or_with_weights_are_not_attached():
    with pytest.raises(ValueError, match="the sampler draws from"):
        SortedSampler(SubModelSpace(width=[2, 8], depth=[1, 2])).attach(model())
    with pytest.raises(ValueError, match="use sorted_step"):
        SortedSampler(SPACE, alpha=[1, 1, 1, 2]).attach(model())
    narrower = SubModelSpace(width=[8], depth=[1, 2])
    SortedSampler(narrower).attach(model())
