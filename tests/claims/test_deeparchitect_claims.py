"""What the claims of DeepArchitect train on, count and leave unseen."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from etude.claims.nas import deeparchitect as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.nas.deeparchitect import Concat, Training, hyperparameters
from etude.nas.deeparchitect.layers import Affine


def trial(arm="mcts_bisect", claim="mcts_bisection_beats_random", seed=0, scale="smoke", **changes):
    setup = claims.PAPER.claims[claim].setups[scale]
    return Trial(f"deeparchitect/{claim}", arm, seed, "smoke", setup.replace(**changes))


@pytest.fixture(scope="module")
def data():
    return claims.digits800()


def test_the_split_is_fixed_and_loses_no_digit(data):
    assert [len(part) for part in (data.train, data.val, data.test)] == [800, 500, 497]
    rows = torch.cat([part.inputs for part in (data.train, data.val, data.test)]).flatten(1)
    assert len(rows) == 1797
    for part in (data.train, data.val, data.test):
        frequencies = part.targets.bincount(minlength=10) / len(part)
        assert (frequencies - 0.1).abs().max() < 0.02
    assert 0 <= rows.min() <= rows.max() == 1


def test_the_papers_space_of_small_has_its_size(data):
    assert claims.space_of(trial(scale="small").setup, 10).count() == 8_294_400
    full = trial(scale="full").setup
    assert claims.space_of(full, 10).count() == 4096 * 60_466_176


def test_metrics_are_what_their_names_say(data, monkeypatch):
    told = iter([0.2, 0.9, 0.5, 0.4, 0.85, 0.6])
    monkeypatch.setattr(Training, "__call__", lambda self, candidate: next(told))
    run = trial("random", budget=6, early=2)
    found = claims.searched(run, data)
    assert found["late_accuracy"] == pytest.approx(np.mean([0.4, 0.85, 0.6]))
    assert found["best"] == found["best_early"] == 0.9
    assert found["area"] == pytest.approx(np.mean([0.2] + 5 * [0.9]))
    assert found["above_80"] == pytest.approx(2 / 6)
    assert [value for _, value in run.series["best_so_far"]] == [0.2, 0.9, 0.9, 0.9, 0.9, 0.9]
    fractions = dict(run.series["fraction_above"])
    assert (fractions[0.0], fractions[1.0]) == (1.0, 0.0)


def test_test_rows_choose_nothing_and_arms_share_the_scores_of_equal_networks(data):
    spoilt = ImageData(
        data.train, data.val, Examples(data.test.inputs.flip(3), data.test.targets.roll(1)), data.classes, "spoilt"
    )
    runs = [trial("mcts_bisect"), trial("mcts_bisect")]
    results = [claims.searched(run, which) for run, which in zip(runs, (data, spoilt))]
    assert runs[0].series["val_accuracy"] == runs[1].series["val_accuracy"]
    assert results[0]["test_accuracy"] != results[1]["test_accuracy"]
    seen = []
    original = Training.train

    def spy(self, candidate):
        trained = original(self, candidate)
        seen.append((candidate.digest(), self.seed, trained.score))
        return trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "train", spy)
        for arm in ("random", "mcts_bisect"):
            claims.searched(trial(arm), data)
    assert len({seed for _, seed, _ in seen}) == 1


def test_a_users_rows_are_drawn_and_scaled_alike_in_all_arms():
    generator = torch.Generator().manual_seed(0)
    parts = [Examples(50 * torch.rand(300, 1, 1, 6, generator=generator), torch.arange(300) // 150) for _ in range(3)]
    data = ImageData(*parts, classes=("a", "b"), name="mine")
    one, two = (claims.prepared(trial(arm), data) for arm in ("random", "mcts_bisect"))
    assert (len(one.train), len(one.val), len(one.test)) == (200, 100, 300)
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert set(one.train.targets.tolist()) == {0, 1}
    assert one.train.inputs.mean().abs() < 1e-5
    assert one.train.inputs.std() == pytest.approx(1, abs=0.01)
    assert claims.prepared(trial(train=800, val=500), claims.digits800()).train.inputs.max() == 1


def test_a_wrong_shape_would_be_counted(monkeypatch):
    right = claims.compiles(trial("tfref", "compiles"))
    assert right["wrong"] == 0
    assert right["layers"] == 4
    monkeypatch.setattr(Affine, "shape_of", lambda self, in_shape, **values: (values["units"] + 1,))
    space = Concat([hyperparameters("light"), Affine(3)])
    monkeypatch.setitem(claims.SPACES, "tfref", lambda classes, width: space)
    assert claims.compiles(trial("tfref", "compiles"))["wrong"] == 5
