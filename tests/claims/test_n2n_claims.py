"""What the claims of N2N train on, count and leave unseen."""

import pytest
import torch

pytest.importorskip("sklearn")

from etude.claims.nas import n2n as claims
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.nas.n2n import Distillation, NetworkCompressor, Tried, count_parameters


def trial(arm="reinforce", claim="policy_learns", seed=0, scale="smoke", **changes):
    setup = claims.PAPER.claims[claim].setups[scale]
    tuned = {"lr": 5e-3} if claim == "distillation_helps" else {}
    return Trial(f"n2n/{claim}", arm, seed, "smoke", setup.replace(**changes), tuned)


@pytest.fixture(scope="module")
def data():
    return claims.digits600()


def test_the_split_is_fixed_and_loses_no_digit(data):
    assert [len(part) for part in (data.train, data.val, data.test)] == [600, 500, 697]
    for part in (data.train, data.val, data.test):
        assert (part.targets.bincount(minlength=10) / len(part) - 0.1).abs().max() < 0.02


def test_teachers_have_the_sizes_of_the_protocol(data):
    assert count_parameters(claims.teacher_of("eight", data)) == 83_530
    twelve = claims.teacher_of("twelve", data)
    assert sum(isinstance(module, torch.nn.Conv2d) for module in twelve) == 12


def test_the_uniform_student_is_the_widest_within_the_limit(data):
    student = claims.narrowed("eight", data, 8353)
    assert count_parameters(student) <= 8353
    widths = [module.out_channels for module in student if isinstance(module, torch.nn.Conv2d)]
    factor = next(step for step in range(1000, 0, -1) if [int(out * step / 1000) for out in (16, 32, 48)] == [
        widths[0], widths[2], widths[5]
    ])  # fmt: skip
    assert count_parameters(claims.teacher_of("eight", data, (factor + 1) / 1000)) > 8353


def test_metrics_are_what_their_names_say(data, monkeypatch):
    rewards = [0.1, 0.9, 0.5, 0.3]

    def history(self, policy, build, limits, steps, **options):
        keep = torch.ones(len(build.table)).long()
        tried = []
        for place, reward in enumerate(rewards):
            keep = keep.clone()
            keep[1 + place] = 0
            tried.append(Tried(place, place // 2, keep, reward, 0.5, 300, ""))
        return tried

    monkeypatch.setattr(claims.Bench, "search", history)
    run = trial("random")
    found = claims.policy_learns(run, data)
    assert found["late_reward"] == pytest.approx(0.4)
    assert found["early_reward"] == pytest.approx(0.1)
    assert found["invalid"] == 0
    assert found["compression"] > 1
    assert list(run.figures) == ["trade_off"]


def test_test_rows_choose_nothing(data):
    spoilt = ImageData(
        data.train, data.val, Examples(data.test.inputs.flip(3), data.test.targets.roll(1)), data.classes, "spoilt"
    )
    runs = [trial(), trial()]
    for run, which in zip(runs, (data, spoilt)):
        claims.policy_learns(run, which)
    assert runs[0].series["reward"] == runs[1].series["reward"]


def test_arms_share_teacher_students_and_proposals(data):
    seen = []

    def accuracy(self, student):
        weights = torch.cat([parameter.detach().flatten() for parameter in self.teacher.parameters()])
        seen.append((self.seed, float(weights.sum())))
        return 0.5

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distillation, "__call__", accuracy)
        for arm in ("random", "reinforce"):
            run = trial(arm)
            claims.learnt(run, data)
    assert len(set(seen)) == 1


def test_only_the_transferred_policy_has_learnt_before(data):
    steps = []
    original = NetworkCompressor.tell

    def tell(self, accuracies):
        steps.append(len(self.build.table))
        return original(self, accuracies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkCompressor, "tell", tell)
        fresh = claims.policy_transfers(trial("fresh", "policy_transfers"), data)
        count = len(steps)
        run = trial("transferred", "policy_transfers")
        claims.policy_transfers(run, data)
    assert set(fresh) == {"reward", "first_reward", "best_reward"}
    assert count == 1
    assert len(steps) == 1 + 2 + 1
    assert steps[1] < steps[0] == steps[-1]
    assert len(run.series["reward"]) == 1


def test_the_student_kept_lies_within_the_limit(data):
    found = claims.compress_tenfold(trial("n2n", "compress_tenfold"), data)
    assert found["within_limit"] == float(found["compression"] >= 10)
    uniform = claims.compress_tenfold(trial("uniform", "compress_tenfold", teacher="eight"), data)
    assert uniform["within_limit"] == 1
