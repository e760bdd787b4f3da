"""Both stages on a user's teacher: what comes back, limits, transfer, resuming, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from etude.data.kinds import Examples, ImageData
from etude.loop import accuracy
from etude.nas.n2n import RemovalPolicy, chain, count_parameters, plot_rewards, plot_trade_off, two_stage
from etude.nas.n2n.networks import VGG19
from etude.nn.resnet import ResNet

QUICK = {"removal_steps": 2, "shrink_steps": 1, "rollouts": 3, "epochs": 1, "final_epochs": 1, "batch_size": 20,
         "min_channels": 2, "distill_lr": 5e-3}  # fmt: skip


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)

    def part(count):
        labels = torch.arange(count) % 3
        inputs = 0.1 * torch.rand(count, 1, 8, 8, generator=generator)
        inputs[torch.arange(count), 0, labels] += 0.8
        return Examples(inputs, labels)

    return ImageData(part(60), part(30), part(30), ("a", "b", "c"), "stripes")


@pytest.fixture(scope="module")
def teacher(data):
    torch.manual_seed(0)
    model = chain(((4, 4), (8, 8)), num_classes=3, in_channels=1, size=(8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.train.inputs), data.train.targets).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def found(data, teacher):
    before = copy.deepcopy(teacher.state_dict())
    student = two_stage(teacher, data, **QUICK)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    return student


def test_a_student_is_an_ordinary_smaller_module_with_a_report(data, teacher, found, tmp_path):
    student = found
    assert type(student.model) is nn.Sequential
    assert student.params == count_parameters(student.model) < count_parameters(teacher) == student.teacher_params
    assert student.accuracy == accuracy(student.model, data.val)
    assert student.model(data.test.inputs).shape == (30, 3)
    assert [len(student.history[stage]) for stage in ("removal", "shrinkage")] == [6, 3]
    lines = student.report().splitlines()
    assert f"-> {student.params:,} parameters ({student.compression:.1f} times fewer)" in lines[0]
    assert any(line.startswith("  removed ") for line in lines)
    removed = [line.split()[1] for line in student.changes if line.startswith("removed")]
    assert all(isinstance(student.model.get_submodule(name), nn.Identity) for name in removed)
    torch.save(student.model, tmp_path / "student.pt")
    again = torch.load(tmp_path / "student.pt", weights_only=False)
    assert torch.equal(again(data.test.inputs), student.model(data.test.inputs))
    plot_rewards(student.history)
    plot_trade_off(student.history, teacher=(student.teacher_params, student.teacher_accuracy))
    with pytest.raises(ValueError, match="at least one student"):
        plot_rewards({})


def test_the_test_split_is_never_looked_at(data, teacher, found):
    spoilt = ImageData(data.train, data.val, Examples(torch.rand(9, 1, 8, 8), torch.zeros(9).long()), data.classes, "x")
    other = two_stage(teacher, spoilt, **QUICK)
    assert other.changes == found.changes
    assert all(torch.equal(a, b) for a, b in zip(other.model.parameters(), found.model.parameters()))


def test_limits_are_kept_or_nothing_is_returned(data, teacher):
    most = count_parameters(teacher) // 2
    assert two_stage(teacher, data, max_params=most, **QUICK).params <= most
    with pytest.raises(RuntimeError, match="no student within 3 parameters"):
        two_stage(teacher, data, max_params=3, **QUICK)


def test_a_stopped_compression_goes_on_from_its_folder(data, teacher, found, tmp_path):
    def stop(stage, tried):
        if stage == "shrinkage":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_stage(teacher, data, save=tmp_path, on_step=stop, **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["removal.pt", "shrinkage.pt"]
    resumed = two_stage(teacher, data, save=tmp_path, **QUICK)
    assert resumed.changes == found.changes
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), found.model.parameters()))


def test_a_policy_is_carried_to_a_larger_teacher(data, teacher):
    quick = QUICK | {"shrink_steps": 0}
    policy = two_stage(teacher, data, **quick).removal_policy
    state = copy.deepcopy(policy.state_dict())
    torch.manual_seed(1)
    larger = chain(((4, 4, 4), (8, 8)), num_classes=3, in_channels=1, size=(8, 8))
    with pytest.warns(UserWarning, match="no better than chance among 3 classes"):
        found = two_stage(larger, data, removal_policy=policy, **quick)
    assert found.removal_policy is policy
    assert any(not torch.equal(state[name], value) for name, value in policy.state_dict().items())
    fresh = RemovalPolicy()
    fresh.load_state_dict(state)


def test_a_residual_teacher_stays_residual(data):
    torch.manual_seed(0)
    model = ResNet(blocks=[1, 1], widths=[4, 8], num_classes=3, in_channels=1, small_images=True)
    with pytest.warns(UserWarning, match="no better than chance") if accuracy(model, data.val) <= 1 / 3 else none():
        student = two_stage(model, data, reference="parent", **QUICK)
    assert type(student.model) is ResNet
    assert student.removal_policy.feature_dim == 7


class none:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def test_bad_arguments_are_refused(data, teacher):
    with pytest.raises(TypeError, match="data"):
        two_stage(teacher, (data.train, data.val))
    with pytest.raises(ValueError, match="ends in a softmax"):
        two_stage(nn.Sequential(teacher, nn.LogSoftmax(1)), data)
    with pytest.raises(ValueError, match=r"unsupported modules: 1 \(PReLU\)"):
        two_stage(nn.Sequential(nn.Flatten(), nn.PReLU(), nn.Linear(64, 3)), data)
    with pytest.raises(ValueError, match="reference must be"):
        two_stage(teacher, data, reference="student")
    with pytest.raises(ValueError, match="removal_steps must be positive"):
        two_stage(teacher, data, removal_steps=0)
    with pytest.raises(ValueError, match="stages must be lists of positive widths"):
        chain([[]], num_classes=2)
    with pytest.raises(ValueError, match="4 pools leave nothing"):
        chain([[1]] * 5, num_classes=2, size=(8, 8))


def test_vgg19_has_its_sixteen_convolutions():
    with torch.device("meta"):
        model = chain(VGG19, num_classes=10, last_pool=True)
    assert sum(isinstance(module, nn.Conv2d) for module in model) == 16
    assert count_parameters(model) == 20_040_522
