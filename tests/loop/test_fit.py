import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etude.data.kinds import Examples
from etude.loop import ExponentialMovingAverage, cosine_schedule, fit, seeded


def make(dropout=0.0, seed=0):
    with seeded(seed):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


@pytest.fixture
def train():
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(50, 6, generator=draw)
    return Examples(inputs, inputs[:, :3].argmax(dim=1))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_fit_equals_a_bare_loop_bit_for_bit(train):
    ours, bare = make(), make()
    result = fit(
        ours, train, torch.optim.SGD(ours.parameters(), lr=0.1), steps=9, batch_size=16, generator=torch.manual_seed(3)
    )
    optimizer, losses, draw = torch.optim.SGD(bare.parameters(), lr=0.1), [], torch.Generator().manual_seed(3)
    while len(losses) < 9:
        for index in torch.randperm(50, generator=draw)[:48].split(16):
            loss = F.cross_entropy(bare(train.inputs[index]), train.targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert result.losses == losses
    assert torch.equal(weights(ours), weights(bare))


def test_training_lowers_the_loss(train):
    model = make()
    result = fit(model, train, torch.optim.Adam(model.parameters(), lr=0.01), epochs=30, batch_size=10)
    assert result.steps == 150
    assert sum(result.losses[-5:]) < 0.5 * sum(result.losses[:5])


def test_an_epoch_uses_every_example_at_most_once(train):
    seen = []

    def watch(batch):
        seen.append(batch[0])
        return batch

    model = make()
    fit(model, train, torch.optim.SGD(model.parameters()), epochs=1, batch_size=10, transform=watch)
    assert len(torch.cat(seen).unique(dim=0)) == 50


def test_a_set_smaller_than_a_batch_is_one_batch(train):
    model = make()
    assert fit(model, train, torch.optim.SGD(model.parameters()), epochs=2, batch_size=999).steps == 2


def test_replacement_draws_examples_anew(train):
    seen = []

    def watch(batch):
        seen.append(batch[0])
        return batch

    model = make()
    optimizer = torch.optim.SGD(model.parameters())
    fit(model, train, optimizer, epochs=1, batch_size=10, transform=watch, replacement=True)
    assert len(torch.cat(seen).unique(dim=0)) < 50


def test_the_default_order_is_the_same_every_time(train):
    first, second = make(), make()
    losses = [fit(m, train, torch.optim.SGD(m.parameters(), lr=0.1), steps=5).losses for m in (first, second)]
    assert losses[0] == losses[1]


def test_accumulated_batches_equal_one_large_batch(train):
    small, large = make(), make()
    fit(small, train, torch.optim.SGD(small.parameters(), lr=0.1), steps=2, batch_size=25, accumulate=2)
    fit(large, train, torch.optim.SGD(large.parameters(), lr=0.1), steps=2, batch_size=50)
    torch.testing.assert_close(weights(small), weights(large))


def test_step_pre_hooks_see_clipped_gradients(train):
    model, norms = make(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def hook(optimizer, args, kwargs):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat(gradients).norm().item())

    optimizer.register_step_pre_hook(hook)
    fit(model, train, optimizer, steps=3, clip=0.01)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_the_schedule_steps_once_an_update(train):
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rates = []
    fit(
        model,
        train,
        optimizer,
        steps=4,
        schedule=cosine_schedule(optimizer, 4),
        callbacks=[lambda step, total, **m: rates.append(m["lr"])],
    )
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)])


def test_the_average_follows_every_update(train):
    model = make()
    ema = ExponentialMovingAverage(model, decay=0.5)
    fit(model, train, torch.optim.SGD(model.parameters(), lr=0.1), steps=7, ema=ema)
    assert ema.updates == 7


def test_callbacks_get_step_total_and_loss(train):
    model, calls = make(), []
    result = fit(
        model,
        train,
        torch.optim.SGD(model.parameters()),
        steps=7,
        every=3,
        callbacks=[lambda step, total, **metrics: calls.append((step, total, metrics["loss"]))],
    )
    assert calls == [(3, 7, result.losses[2]), (6, 7, result.losses[5]), (7, 7, result.losses[6])]


def test_label_smoothing_comes_with_the_loss(train):
    model = make()
    smooth = partial(F.cross_entropy, label_smoothing=0.1)
    first = fit(model, train, torch.optim.SGD(model.parameters(), lr=0.0), steps=1, batch_size=50, loss=smooth)
    expected = smooth(model(train.inputs), train.targets).item()
    assert first.losses[0] == pytest.approx(expected, rel=1e-5)


def test_bf16_runs_the_forward_pass_in_bf16(train):
    model, dtypes = make(), []
    model[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    result = fit(model, train, torch.optim.SGD(model.parameters(), lr=0.1), steps=3, mixed_precision="bf16")
    assert set(dtypes) == {torch.bfloat16}
    assert all(math.isfinite(loss) for loss in result.losses)
    assert weights(model).dtype == torch.float32


def test_fp16_hands_the_optimizer_unscaled_gradients(train):
    plain, half, seen = make(), make(), {}
    for name, model, precision in (("plain", plain, "no"), ("half", half, "fp16")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_pre_hook(lambda *_, m=model, n=name: seen.update({n: m[0].weight.grad.clone()}))
        fit(model, train, optimizer, steps=1, mixed_precision=precision)
    torch.testing.assert_close(seen["half"], seen["plain"], rtol=0.05, atol=1e-3)


def test_every_module_gets_its_mode_back(train):
    model = make(dropout=0.5)
    model.eval()
    model[3].train()
    fit(model, train, torch.optim.SGD(model.parameters()), steps=1, callbacks=[lambda *a, **m: check(model)])
    assert not model.training
    assert not model[2].training
    assert model[3].training


def check(model):
    assert model.training


def test_fit_draws_nothing_from_the_global_generators(train):
    model = make()
    torch.manual_seed(1)
    # Python's own generator is left out: the type checker of the tests draws from it.
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())
    fit(model, train, torch.optim.SGD(model.parameters()), steps=3)
    fit(model, TensorDataset(*train[:]), torch.optim.SGD(model.parameters()), steps=3, batch_size=10)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])


def test_a_dataset_trains_like_the_same_examples(train):
    ours, other = make(), make()
    first = fit(ours, train, torch.optim.SGD(ours.parameters(), lr=0.1), steps=6, batch_size=16)
    second = fit(other, TensorDataset(*train[:]), torch.optim.SGD(other.parameters(), lr=0.1), steps=6, batch_size=16)
    assert first == second


def test_a_data_loader_keeps_its_batches(train):
    model, sizes = make(), []

    def watch(batch):
        sizes.append(len(batch[0]))
        return batch

    loader = DataLoader(TensorDataset(*train[:]), batch_size=20)
    assert fit(model, loader, torch.optim.SGD(model.parameters()), epochs=2, transform=watch).steps == 6
    assert sizes == [20, 20, 10] * 2


def test_a_number_of_steps_of_zero_does_nothing(train):
    model = make()
    before = weights(model).clone()
    assert fit(model, train, torch.optim.SGD(model.parameters()), steps=0).losses == []
    assert torch.equal(before, weights(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either steps or epochs"),
        ({"steps": 1, "epochs": 1}, "either steps or epochs"),
        ({"steps": -1}, "steps must not be negative, got -1"),
        ({"steps": 1, "batch_size": 0}, "batch_size must be positive, got 0"),
        ({"steps": 1, "accumulate": 0}, "accumulate must be positive, got 0"),
        ({"steps": 1, "every": 0}, "every must be positive, got 0"),
        ({"steps": 1, "clip": 0}, "clip must be a positive norm, got 0"),
        ({"steps": 1, "mixed_precision": "int8"}, "must be one of no, bf16, fp16, got 'int8'"),
        ({"epochs": 1, "accumulate": 9}, "less than accumulate=9"),
    ],
)
def test_bad_arguments_are_refused(train, arguments, message):
    model = make()
    with pytest.raises(ValueError, match=message):
        fit(model, train, torch.optim.SGD(model.parameters()), **arguments)


def test_an_empty_set_is_refused():
    model = make()
    with pytest.raises(ValueError, match="no examples to train on"):
        fit(model, Examples(torch.zeros(0, 6), torch.zeros(0)), torch.optim.SGD(model.parameters()), steps=1)


def test_data_of_another_kind_are_refused(train):
    model = make()
    with pytest.raises(TypeError, match="map-style dataset or a DataLoader, got generator"):
        fit(model, (item for item in [1]), torch.optim.SGD(model.parameters()), steps=1)


def test_a_batch_that_is_no_pair_is_refused(train):
    model = make()
    loader = DataLoader(TensorDataset(train.inputs), batch_size=5)
    with pytest.raises(TypeError, match=r"pair \(inputs, targets\)"):
        fit(model, loader, torch.optim.SGD(model.parameters()), steps=1)


def test_a_schedule_that_needs_a_metric_is_refused(train):
    model = make()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(TypeError, match="ReduceLROnPlateau"):
        fit(model, train, optimizer, steps=1, schedule=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
