"""The logic of the guidance claims that is not training: their data, networks, crops and controls."""

import pytest
import torch

from etude.claims.training.guidance import (
    PAPER,
    _distillation,
    _Distilled,
    _guide,
    _network,
    _RandomCrops,
    _right,
    canvas_digits,
)
from etude.data import images
from etude.data.kinds import Examples, ImageData
from etude.lab import Trial
from etude.nn.resnet import ResNet
from etude.training.guidance import IGNORED, DeepFCN, DeepMLP, PlainResNet, distillation_loss


def toy_images(size: int = 8, classes: int = 3) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    parts = {
        name: Examples(torch.rand(24, 3, size, size, generator=generator), torch.arange(24) % classes)
        for name in ("train", "val", "test")
    }
    return ImageData(classes=tuple("abc"[:classes]), name="toy", **parts)


def run(name: str, arm: str, scale: str, data: ImageData | None = None, **changes) -> dict[str, float]:
    claim = PAPER.claims[name]
    setup = claim.setups[scale].replace(**changes)
    trial = Trial("toy", arm, seed=2000, scale=scale, setup=setup, tuned={"lr": 1e-3})
    return claim.function(trial, *(() if data is None else (data,)))


def test_digits_lie_on_the_canvas_where_they_were_put_and_each_class_stays():
    data, digits = canvas_digits(), images.digits()
    assert data.size == (12, 12)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1000, 800, 2388]
    for split, plain in ((data.train, digits.train), (data.test, digits.test)):
        rows = torch.arange(len(split)) % len(plain)
        assert torch.equal(split.targets, plain.targets[rows])
        torch.testing.assert_close(split.inputs.sum((1, 2, 3)), plain.inputs[rows].sum((1, 2, 3)))
    assert torch.equal(data.train.inputs, canvas_digits().train.inputs)
    first = data.test.inputs[0]
    found = [
        (down, right)
        for down in range(5)
        for right in range(5)
        if torch.equal(first[:, down : down + 8, right : right + 8], digits.test.inputs[0])
    ]
    assert len(found) >= 1
    assert not torch.equal(data.test.inputs[0], data.test.inputs[597])


def test_networks_fit_the_images_of_the_user():
    data = toy_images()
    for spec, kind in (
        ({"kind": "fcn", "depth": 2, "width": 4}, DeepFCN),
        ({"kind": "mlp", "depth": 2, "width": 4}, DeepMLP),
        ({"kind": "resnet", "blocks": [1], "widths": [4]}, ResNet),
        ({"kind": "plain_resnet", "blocks": [1], "widths": [4]}, PlainResNet),
    ):
        network = _network(spec, data)
        assert isinstance(network, kind)
        assert network(data.train.inputs).shape == (24, 3)
    assert _network({"kind": "resnet", "depth": 18, "widths": [2, 2, 2, 2]}, data).conv1.stride == (1, 1)
    large = _network({"kind": "resnet", "depth": 18, "widths": [2, 2, 2, 2]}, toy_images(96))
    assert large.conv1.stride == (2, 2)


def test_random_crops_are_parts_of_the_images():
    ramp = torch.linspace(0, 1, 16).expand(400, 1, 16, 16).clone()
    cropped, targets = _RandomCrops(0.25, torch.Generator().manual_seed(0))((ramp, torch.arange(400)))
    assert torch.equal(targets, torch.arange(400))
    rows = cropped[:, 0, 8]
    assert torch.allclose(cropped, rows[:, None, None, :].expand_as(cropped), atol=1e-5)
    slopes = (rows[:, 12] - rows[:, 3]) / (9 / 15)
    assert 0.4 < (slopes < 0).double().mean() < 0.6
    assert slopes.abs().max() <= 1 + 1e-5
    assert slopes.abs().min() >= 0.25**0.5 * (3 / 4) ** 0.5 - 1e-5
    assert cropped.min() >= 0
    assert rows.mean(1).std() > 0.05


def test_distillation_asks_the_guide_and_trains_the_target_alone():
    torch.manual_seed(0)
    target, guide = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    model = _Distilled(target, guide)
    assert [id(p) for p in model.parameters()] == [id(p) for p in target.parameters()]
    x, labels = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1])
    loss = _distillation(model(x), labels)
    assert loss.item() == pytest.approx(distillation_loss(target(x), guide(x), labels).item())
    loss.backward()
    assert guide.weight.grad is None
    assert target.weight.grad is not None


def test_only_what_is_asked_for_counts():
    class Fixed(torch.nn.Module):
        def forward(self, tokens):
            return torch.nn.functional.one_hot(tokens, 4).float()

    answers = torch.tensor([[0, IGNORED, 2], [IGNORED, 3, 1]])
    assert _right(Fixed(), Examples(torch.tensor([[0, 1, 2], [2, 3, 3]]), answers)) == 0.75


@pytest.mark.parametrize("arm", PAPER.claims["shifted_digits"].arms)
def test_every_arm_of_small_runs_on_images_of_the_user(arm):
    changes = {"epochs": 2, "guide_epochs": 1, "aligned": 2, "batch_size": 12, "stop": 1}
    metrics = run("shifted_digits", arm, "small", toy_images(), **changes)
    assert metrics["gap"] == pytest.approx(metrics["train_accuracy"] - metrics["accuracy"])


@pytest.mark.parametrize("arm", ["aligned_trained", "aligned_untrained"])
def test_alignment_comes_before_training_and_depends_on_its_guide(arm):
    changes = {"epochs": 2, "guide_epochs": 1, "batch_size": 12}
    found = [run("initialization", arm, "small", toy_images(), aligned=steps, **changes) for steps in (0, 30)]
    plain = run("initialization", "unguided", "small", toy_images(), aligned=0, **changes)
    assert found[0]["accuracy"] == plain["accuracy"]
    assert found[0]["train_accuracy"] == plain["train_accuracy"]
    assert (found[1]["accuracy"], found[1]["train_accuracy"]) != (plain["accuracy"], plain["train_accuracy"])


@pytest.mark.parametrize("arm", PAPER.claims["deep_plain_net"].arms)
def test_every_arm_of_the_plain_network_runs_at_small(arm):
    changes = {"epochs": 1, "guide_epochs": 1, "batch_size": 24, "stop": 1}
    assert "val_accuracy" in run("deep_plain_net", arm, "small", toy_images(), **changes)


def test_arms_of_a_seed_start_alike():
    changes = {"epochs": 0, "guide_epochs": 0, "batch_size": 12}
    found = {arm: run("shifted_digits", arm, "small", toy_images(), **changes) for arm in ("unguided", "distill")}
    assert found["unguided"]["accuracy"] == found["distill"]["accuracy"]


def test_guides_of_a_seed_start_alike_and_only_a_trained_one_is_trained():
    setup = PAPER.claims["shifted_digits"].setups["small"].replace(guide_epochs=1, batch_size=12)
    weights = []
    for arm, trained in (("guided_trained", True), ("distill", True), ("guided_untrained", False)):
        guide = _guide(Trial("toy", arm, seed=2000, setup=setup), toy_images(), trained)
        weights.append(guide.conv1.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_batch_too_small_for_guidance_is_refused():
    with pytest.raises(ValueError, match="at least 4 examples in a batch, got 2"):
        run("shifted_digits", "guided_trained", "small", toy_images(), epochs=1, guide_epochs=0, batch_size=2)
