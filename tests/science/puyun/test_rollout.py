"""Forecasts of many steps, the cascade, and training through them."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.data.kinds_fields import FieldGrid, Fields
from etude.science.puyun import (
    Cascade,
    PuYun,
    Scaling,
    SphereDataset,
    cache_stage_inputs,
    channel_weights,
    finetune_rollout,
    latitude_weights,
    next_stage,
    predict,
    rollout,
    step_features,
    train_one_step,
    weighted_loss,
)

ROWS = torch.ones(8)


class Sum(nn.Module):
    """Forecasts the sum of both frames plus a constant, and remembers what it was given."""

    time_dim = 0

    def __init__(self, constant=0.0):
        super().__init__()
        self.constant, self.given = constant, []

    def forward(self, x, time_features=None):
        self.given.append(x)
        return x[:, 0] + x[:, 1] + self.constant


def network(seed=0, **options):
    torch.manual_seed(seed)
    values = {"grid": (8, 16), "patch_size": 2, "dim": 4, "depths": (1, 1), "kernel_size": 9}
    model = PuYun(2, **(values | options))
    nn.init.normal_(model.head.weight, std=0.05)
    return model


def fields(runs=2, frames=12):
    values = torch.randn(runs * frames, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    grid = FieldGrid(np.linspace(78.75, -78.75, 8), np.arange(16) * 22.5, ("a", "b"), (None, 500.0), ("K", "K"))
    start = np.datetime64("2001-01-01T00", "s") + np.arange(runs) * np.timedelta64(366, "D")
    times = (start[:, None] + np.arange(frames) * np.timedelta64(6, "h")).reshape(-1)
    return Fields(values, times, grid, np.repeat(np.arange(runs), frames))


TIMES = np.array(["2001-02-03T06", "2010-12-31T18"], dtype="datetime64[s]")


def test_frames_passed_on_are_the_last_and_the_forecast():
    x = torch.ones(1, 2, 1, 2, 2)
    model = Sum()
    made = rollout(model, x, 5)
    assert made[0, :, 0, 0, 0].tolist() == [2, 3, 5, 8, 13]
    for step in range(1, 5):
        before = x[:, 1] if step == 1 else made[:, step - 2]
        assert torch.equal(model.given[step], torch.stack([before, made[:, step - 1]], dim=1))


def test_features_of_time_move_with_the_forecast():
    features = step_features(TIMES, 3)
    from etude.science.puyun import time_encoding

    for step in range(3):
        assert torch.equal(features[:, step], time_encoding(TIMES + np.timedelta64(6 * step, "h")))


def test_a_cascade_of_one_model_twice_is_the_plain_rollout():
    model = network().eval()
    x = torch.randn(2, 2, 2, 8, 16)
    with torch.no_grad():
        plain = rollout(model, x, 6, TIMES)
        assert torch.equal(rollout(Cascade([model, model], 3), x, 6, TIMES), plain)


def test_the_stage_switches_after_exactly_its_steps():
    first, second = Sum(), Sum(100.0)
    cascade = Cascade([first, second])
    assert [cascade.stage(step) for step in (0, 19, 20, 39, 40, 99)] == [0, 0, 1, 1, 1, 1]
    rollout(cascade, torch.zeros(1, 2, 1, 2, 2), 24)
    assert (len(first.given), len(second.given)) == (20, 4)
    x = torch.zeros(1, 2, 1, 2, 2)
    assert float(cascade(x, None, 19).max()) == 0
    assert float(cascade(x, None, 20).max()) == 100


def test_a_rollout_in_two_parts_is_the_whole():
    cascade = Cascade([network(0).eval(), network(1).eval()], 3)
    x = torch.randn(2, 2, 2, 8, 16)
    with torch.no_grad():
        whole = rollout(cascade, x, 6, TIMES)
        start = rollout(cascade, x, 4, TIMES)
        rest = rollout(cascade, start[:, -2:], 2, TIMES + np.timedelta64(24, "h"), first_step=4)
    assert torch.equal(torch.cat([start, rest], 1), whole)


def test_steps_beyond_the_cascade_warn():
    with pytest.warns(UserWarning, match="5 steps go beyond the 4 of the cascade"):
        rollout(Cascade([Sum(), Sum()], 2), torch.zeros(1, 2, 1, 2, 2), 5)


def test_recomputed_rollouts_have_the_same_gradients():
    x = torch.randn(2, 2, 2, 8, 16)
    gradients = []
    for recompute in (False, True):
        model = network()
        rollout(model, x, 4, TIMES, checkpoint=recompute).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients):
        assert torch.allclose(one, other, atol=1e-7)


def test_the_gradient_goes_through_all_steps():
    model, x = network(), torch.randn(1, 2, 2, 8, 16, requires_grad=True)
    rollout(model, x, 4, TIMES[:1])[:, -1].square().mean().backward()
    assert float(x.grad.abs().max()) > 0


def test_windows_stay_within_a_run_and_scaling_inverts():
    data = fields()
    dataset = SphereDataset(data, steps=3)
    assert len(dataset) == 2 * (12 - 5 + 1)
    assert all(start % 12 <= 7 for start in dataset.starts)
    (frames, features), following = dataset[9]
    start = int(dataset.starts[9])
    assert (frames.shape, features.shape, following.shape) == ((2, 2, 8, 16), (3, 12), (3, 2, 8, 16))
    back = dataset.scaling.invert(torch.cat([frames, following]))
    assert torch.allclose(back, data.values[start : start + 5], atol=1e-5)
    many, one = dataset.__getitems__([9, 2]), dataset[2]
    assert torch.equal(many[1][1], one[1])


def test_scaling_removes_the_mean_of_each_row_and_has_unit_variance():
    data = fields()
    shifted = Fields(data.values * 3 + torch.linspace(-50, 50, 8)[:, None], data.times, data.grid, data.runs)
    rows = latitude_weights(data.grid.latitude)
    for zonal in (True, False):
        scaled = Scaling.fit(shifted, rows, zonal=zonal, block=5).apply(shifted.values).double()
        mean = (scaled.mean((0, 3)) * rows).mean(-1)
        variance = ((scaled**2).mean((0, 3)) * rows).mean(-1)
        assert torch.allclose(mean, torch.zeros(2).double(), atol=1e-5)
        assert torch.allclose(variance, torch.ones(2).double(), atol=1e-4)
        assert (scaled.mean((0, 3)).abs().max() < 1e-5) == zonal


def test_a_dataset_comes_back_from_its_file(tmp_path):
    dataset = SphereDataset(fields(), steps=2)
    back = SphereDataset.load(dataset.save(tmp_path / "fields.npz"), steps=2)
    assert torch.equal(back[3][1], dataset[3][1])
    assert back.source.grid.channels == ("a", "b500")
    assert (back.source.times == dataset.source.times).all()


def test_loss_equals_its_definition():
    f, y = torch.randn(2, 3, 2, 2, 8, 16)
    rows, channels = latitude_weights(np.linspace(70, -70, 8)), torch.tensor([0.5, 1.5])
    for kind, power in (("l1", 1), ("l2", 2)):
        expected = ((f - y).abs() ** power * rows.float()[:, None] * channels[:, None, None]).mean()
        assert weighted_loss(f, y, rows=rows, channels=channels, kind=kind).item() == pytest.approx(
            expected.item(), rel=1e-5
        )


def test_channel_weights_follow_the_pressure():
    weights = channel_weights(["z", "z", "t2m", "msl"], [250.0, 750.0, None, None])
    assert torch.allclose(weights, torch.tensor([0.5, 1.5, 1.0, 0.1]) / 0.775)


def test_training_steps_and_curriculum():
    data = fields()
    scaling = Scaling.fit(data)
    model = network()
    assert len(train_one_step(model, SphereDataset(data, scaling), rows=ROWS, updates=3, batch_size=4)) == 3
    asked = []

    def windows(steps):
        asked.append(steps)
        return SphereDataset(data, scaling, steps=steps)

    losses = finetune_rollout(model, windows, rows=ROWS, curriculum=[(2, 2), (3, 1)], batch_size=2)
    assert (asked, len(losses)) == ([2, 3], 3)
    with pytest.raises(ValueError, match=r"must not fall, got \[3, 2\]"):
        finetune_rollout(model, windows, rows=ROWS, curriculum=[(3, 1), (2, 1)])
    with pytest.raises(ValueError, match="curriculum must hold pairs"):
        finetune_rollout(model, windows, rows=ROWS, curriculum=[])


def test_the_next_stage_learns_from_where_the_first_one_ends(tmp_path):
    model = network().eval()
    data = SphereDataset(fields(), steps=6)
    cached = cache_stage_inputs(model, data, 4, following=2, batch_size=3, file=tmp_path / "short.npz")
    assert len(cached) == len(data)
    (frames, features), following = cached[5]
    with torch.no_grad():
        (x, f), truth = data.batch([5])
        made = rollout(model, x, 4, data.initial_times([5]))
    assert torch.allclose(frames, made[0, -2:], atol=1e-5)
    assert torch.equal(following, truth[0, 4:6])
    assert torch.equal(features, f[0, 4:6])
    again = cache_stage_inputs(Sum(), data, 4, following=2, file=tmp_path / "short.npz")
    assert torch.equal(again.frames, cached.frames)  # from the file
    assert len(cached.with_steps(1)[0][1]) == 1
    with pytest.raises(ValueError, match="other steps or from other initial times"):
        cache_stage_inputs(model, data, 3, following=2, file=tmp_path / "short.npz")
    with pytest.raises(ValueError, match=r"windows of 5 \+ 2 steps were expected, got 6"):
        cache_stage_inputs(model, data, 5, following=2)


def test_the_next_stage_is_a_copy():
    model = network()
    second = next_stage(Cascade([network(3), model], 2))
    assert torch.equal(second.head.weight, model.head.weight)
    second.head.weight.data.add_(1)
    assert not torch.equal(second.head.weight, model.head.weight)


def test_predict_forecasts_every_window():
    model = network().eval()
    data = SphereDataset(fields(), steps=3)
    made = predict(model, data, batch_size=4)
    (x, _), _ = data.batch([7])
    with torch.no_grad():
        assert torch.allclose(made[7], rollout(model, x, 3, data.initial_times([7]))[0], atol=1e-5)


def test_refusals():
    with pytest.raises(ValueError, match="a cascade needs a model"):
        Cascade([])
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        rollout(Sum(), torch.zeros(1, 2, 1, 2, 2), 0)
    with pytest.raises(ValueError, match="no 14 frames follow each other in a run"):
        SphereDataset(fields(), steps=12)
    with pytest.raises(ValueError, match="no 3 frames follow each other from frame 11 on"):
        SphereDataset(fields(), starts=np.array([3, 11]))
    with pytest.raises(ValueError, match="channel 1 does not vary"):
        Scaling(torch.zeros(2, 1, 1), torch.tensor([1.0, 0.0])[:, None, None])
    with pytest.raises(ValueError, match="'l1' or 'l2', got 'huber'"):
        weighted_loss(torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2), rows=torch.ones(2), kind="huber")
    with pytest.raises(FileNotFoundError, match="no fields at"):
        SphereDataset.load("nowhere.npz")
