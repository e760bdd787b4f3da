"""Training by logits: the teacher stays, its copy has nothing to learn, and a step is the least-squares step."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.data.kinds import Examples
from etude.nas.n2n import Distillation, chain, digest, distill, distillation_loss


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 10)


def teacher():
    torch.manual_seed(0)
    return chain(((4,), (6,)), num_classes=10, in_channels=1, size=(8, 8))


@pytest.mark.parametrize("augment", [False, True])
def test_the_teacher_is_left_as_it_was(examples, augment):
    model = teacher().train()
    before = copy.deepcopy(model.state_dict())
    transform = (lambda batch: (batch[0].flip(3), batch[1])) if augment else None
    distill(teacher(), model, examples, epochs=1, batch_size=10, transform=transform)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_copy_of_the_teacher_has_loss_and_gradient_zero(examples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    student = copy.deepcopy(model)
    with torch.no_grad():
        logits = model(examples.inputs)
    loss = distillation_loss(student(examples.inputs), logits, examples.targets)
    loss.backward()
    assert loss == 0
    assert all((parameter.grad == 0).all() for parameter in student.parameters())
    distill(student, model, examples, epochs=2, batch_size=10, weight_decay=0)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), model.parameters()))


def test_one_step_of_a_linear_student_is_the_least_squares_step():
    torch.manual_seed(0)
    x, old, new = (torch.randn(*shape, dtype=torch.float64) for shape in ((20, 6), (3, 6), (3, 6)))
    weight = new.clone().requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.01)
    distillation_loss(x @ weight.T, x @ old.T, torch.zeros(20).long(), scale=2.0).backward()
    optimizer.step()
    # The mean is over 20 x 3 differences, each divided by 2.
    by_hand = new - 0.01 * 2 / (20 * 3 * 2**2) * (new - old) @ x.T @ x
    assert torch.allclose(weight.detach(), by_hand, atol=1e-12)


def test_soft_and_hard_losses_are_what_they_are_called():
    torch.manual_seed(0)
    student, logits, labels = torch.randn(7, 4), torch.randn(7, 4), torch.arange(7) % 4
    target, own = (logits / 3).softmax(1), (student / 3).softmax(1)
    soft = 9 * (target * (target / own).log()).sum(1).mean()
    hard = F.cross_entropy(student, labels)
    found = distillation_loss(student, logits, labels, loss="kd")
    assert torch.allclose(found, 0.7 * soft + 0.3 * hard, atol=1e-5)
    assert torch.equal(distillation_loss(student, logits, labels, loss="labels"), hard)


def test_logits_are_of_evaluation_mode_and_divided_by_their_deviation(examples):
    model = teacher()
    with torch.no_grad():
        logits = model.eval()(examples.inputs)
    prepared, scale = Distillation(model.train(), examples, examples, scale=None)._data()
    assert torch.allclose(prepared.targets[:, :10], logits)
    assert prepared.targets[:, 10].tolist() == examples.targets.tolist()
    assert scale == pytest.approx(logits.std().item())


def test_the_teacher_sees_the_views_of_the_student(examples):
    seen = []
    model = teacher()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    student = teacher()
    student.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    distill(student, model, examples, epochs=1, batch_size=20, transform=lambda batch: (batch[0] + 1, batch[1]))
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1])
    assert seen[0].min() >= 1


def test_equal_architectures_score_equally_whatever_they_come_with(examples):
    evaluate = Distillation(teacher(), examples, examples, epochs=2, batch_size=10, lr=1e-2)
    one, two = teacher(), chain(((4,), (6,)), num_classes=10, in_channels=1, size=(8, 8))
    assert digest(one) == digest(two)
    state = torch.get_rng_state()
    assert evaluate(one) == evaluate(two)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))


def test_bad_arguments_are_refused(examples):
    for options, message in (
        ({"loss": "l1"}, "loss must be one of mse_logits, kd, labels, got 'l1'"),
        ({"epochs": -1}, "epochs must not be negative"),
        ({"scale": 0.0}, "scale must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(teacher(), examples, examples, **options)
