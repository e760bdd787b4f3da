import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from etude.data.kinds import Examples
from etude.loop import ExponentialMovingAverage, cosine_schedule, fit, seeded
from etude.loop.checkpoint import load, save


class Interrupted(Exception):
    pass


def stop_at(last):
    def callback(step, total, **metrics):
        if step == last:
            raise Interrupted

    return callback


@pytest.fixture
def train():
    draw = torch.Generator().manual_seed(5)
    return Examples(torch.randn(50, 6, generator=draw), torch.arange(50) % 3)


def run(data, path=None, *, steps=23, stop=None, seed=0, width=16, **changes):
    """One training with everything that has a state; gives all that should come out the same."""
    with seeded(seed):
        model = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    ema = ExponentialMovingAverage(model, 0.9, warmup=True)
    order, noise, draw = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2), np.random.default_rng(3)

    def transform(batch):
        jitter = torch.randn(batch[0].shape, generator=noise) + draw.normal() + np.random.normal()
        return batch[0] + 0.01 * jitter.float(), batch[1]

    options = {
        "batch_size": 8,
        "generator": order,
        "schedule": cosine_schedule(optimizer, 40, warmup=3),
        "ema": ema,
        "checkpoint": path,
        "checkpoint_every": 5,
        "stateful": (noise, draw),
        "transform": transform,
        "callbacks": () if stop is None else (stop_at(stop),),
    }
    with seeded(seed + 100):
        result = fit(model, data, optimizer, steps=steps, **{**options, **changes})
    state = [*model.state_dict().values(), *ema.state_dict()["weights"].values(), order.get_state(), noise.get_state()]
    return result, torch.cat([value.double().flatten() for value in state]), draw.normal()


def resumed(data, path, **changes):
    with pytest.raises(Interrupted):
        run(data, path, stop=13, **changes)
    assert load(path)["step"] == 10
    with seeded(7):  # whatever the new process has drawn does not matter
        return run(data, path, **changes)


def assert_equal(one, other):
    assert one[0] == other[0]
    assert torch.equal(one[1], other[1])
    assert one[2] == other[2]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train, tmp_path):
    assert_equal(resumed(train, tmp_path / "run.pt"), run(train))


def test_it_does_so_with_replacement(train, tmp_path):
    assert_equal(resumed(train, tmp_path / "run.pt", replacement=True), run(train, replacement=True))


def test_it_does_so_with_accumulation(train, tmp_path):
    assert_equal(resumed(train, tmp_path / "run.pt", accumulate=4), run(train, accumulate=4))


def test_it_does_so_with_loss_scaling(train, tmp_path):
    assert_equal(resumed(train, tmp_path / "run.pt", mixed_precision="fp16"), run(train, mixed_precision="fp16"))


class Augmented(Dataset):
    """Adds noise from the global generators of torch and NumPy as it is read."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        inputs, target = self.examples[index]
        return inputs + 0.01 * torch.randn(6) + 0.01 * float(np.random.normal()), target


def test_it_does_so_with_an_augmenting_dataset(train, tmp_path):
    assert_equal(resumed(Augmented(train), tmp_path / "run.pt"), run(Augmented(train)))


@pytest.mark.parametrize("seed", [None, 4])
def test_it_does_so_with_a_shuffling_data_loader(train, tmp_path, seed):
    def loader():
        draw = None if seed is None else torch.Generator().manual_seed(seed)
        return DataLoader(Augmented(train), batch_size=9, shuffle=True, generator=draw)

    with pytest.raises(Interrupted):
        run(loader(), tmp_path / "run.pt", stop=13)
    assert_equal(run(loader(), tmp_path / "run.pt"), run(loader()))


def test_a_finished_run_is_not_trained_again(train, tmp_path):
    first = run(train, tmp_path / "run.pt")
    again = run(train, tmp_path / "run.pt")
    assert again[0] == first[0]


def test_more_steps_go_on_from_the_end(train, tmp_path):
    run(train, tmp_path / "run.pt", steps=12)
    assert_equal(run(train, tmp_path / "run.pt", steps=23), run(train, steps=23))


def test_a_checkpoint_of_another_model_is_refused_with_the_difference(train, tmp_path):
    run(train, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"another model: it has 0.weight of shape \(16, 6\), expected \(12, 6\)"):
        run(train, tmp_path / "run.pt", width=12)


def test_a_checkpoint_with_other_parts_is_refused(train, tmp_path):
    run(train, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"written by a run with .*'ema'.*, this run has"):
        run(train, tmp_path / "run.pt", ema=None)


def test_a_checkpoint_over_other_data_is_refused(train, tmp_path):
    run(train, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="written with size 50, this run has 40"):
        run(train.take(40), tmp_path / "run.pt")


def test_a_checkpoint_with_another_batch_size_is_refused(train, tmp_path):
    run(train, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="written with batch_size 8, this run has 9"):
        run(train, tmp_path / "run.pt", batch_size=9, steps=30)


def test_a_checkpoint_over_another_kind_of_data_is_refused(train, tmp_path):
    run(train, tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"an epoch|another kind of data"):
        run(DataLoader(TensorDataset(*train[:]), batch_size=8), tmp_path / "run.pt")


def test_missing_stateful_objects_are_refused(train, tmp_path):
    run(train, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="2 stateful objects, this run has 0"):
        run(train, tmp_path / "run.pt", stateful=())


def test_an_object_without_a_state_is_refused(train, tmp_path):
    with pytest.raises(TypeError, match="generators or have state_dict and load_state_dict, got object"):
        run(train, tmp_path / "run.pt", stateful=(object(),))


def test_a_torn_checkpoint_is_one_clear_line(train, tmp_path):
    run(train, tmp_path / "run.pt")
    content = (tmp_path / "run.pt").read_bytes()
    (tmp_path / "run.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"run.pt is not a readable checkpoint: [^\n]+$"):
        run(train, tmp_path / "run.pt")


class Command:
    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run(tmp_path):
    torch.save({"format": "etude checkpoint 1", "model": Command(tmp_path / "proof")}, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(tmp_path / "run.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Command(tmp_path / "proof")))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load(tmp_path / "bare.pt")
    assert not (tmp_path / "proof").exists()


def test_another_file_of_torch_is_refused(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"not a checkpoint of etude.loop.fit"):
        load(tmp_path / "model.pt")


def test_what_could_not_be_read_back_is_refused_when_written(tmp_path):
    with pytest.raises(TypeError, match=r"checkpoint\['a'\]\[1\] is a object"):
        save(tmp_path / "run.pt", {"a": [1, object()]})


def test_a_failed_writing_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    save(tmp_path / "run.pt", {"step": 1})

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "run.pt", {"step": 2})
    assert load(tmp_path / "run.pt")["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
