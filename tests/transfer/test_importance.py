import pytest
import torch
from torch import nn

from etude.transfer.importance import ImportanceAccumulator, QuadraticPenalty, diagonal_fisher, mas


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))


def examples(n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=generator), torch.randint(2, (n,), generator=generator)


def one_by_one(module, inputs, scalar, magnitude):
    total = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    for index in range(len(inputs)):
        module.zero_grad()
        scalar(module(inputs[index : index + 1]), index).backward()
        for name, weight in module.named_parameters():
            total[name] += magnitude(weight.grad) / len(inputs)
    return total


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_fisher_is_the_mean_squared_gradient(chunk_size):
    module, (inputs, targets) = network(), examples()
    naive = one_by_one(
        module, inputs, lambda out, i: nn.functional.cross_entropy(out, targets[i : i + 1]), torch.square
    )
    for name, value in diagonal_fisher(module, inputs, targets, chunk_size=chunk_size).items():
        torch.testing.assert_close(value, naive[name])


def test_mas_is_the_mean_absolute_gradient_of_the_squared_norm():
    module, (inputs, _) = network(), examples()
    naive = one_by_one(module, inputs, lambda out, _: out.square().sum(), torch.abs)
    for name, value in mas(module, inputs, chunk_size=2).items():
        torch.testing.assert_close(value, naive[name])


def test_without_targets_classes_come_from_the_model():
    module, (inputs, _) = network(), examples(4)
    with torch.no_grad():
        module[2].bias.copy_(torch.tensor([100.0, -100.0]))
    certain = diagonal_fisher(module, inputs, generator=torch.Generator().manual_seed(0))
    given = diagonal_fisher(module, inputs, torch.zeros(4, dtype=torch.int64))
    assert all(torch.equal(certain[name], given[name]) for name in given)


def test_the_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    module[0].weight.requires_grad_(False)
    module[2].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    importance = mas(module, examples()[0])
    assert "0.weight" not in importance
    assert module.training
    assert module[1].training
    assert not module[2].training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(weight.grad is None for weight in module.parameters())


def test_importances_need_examples_and_as_many_targets():
    module, (inputs, targets) = network(), examples()
    with pytest.raises(ValueError, match="at least one example"):
        mas(module, inputs[:0])
    with pytest.raises(ValueError, match="got 7 and 3"):
        diagonal_fisher(module, inputs, targets[:3])
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        mas(module, inputs, chunk_size=0)


@pytest.mark.parametrize(
    ("mode", "expected"), [("mean", 2.0), ("sum", 6.0), ("ema", 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 3)]
)
def test_accumulation(mode, expected):
    accumulated = ImportanceAccumulator(mode)
    for value in (1.0, 2.0, 3.0):
        accumulated.update({"weight": torch.tensor([value])})
    assert accumulated.value["weight"].item() == pytest.approx(expected)
    assert accumulated.count == 3


def test_accumulators_refuse_what_they_cannot_add():
    with pytest.raises(ValueError, match="mean, sum, ema, got 'max'"):
        ImportanceAccumulator("max")
    with pytest.raises(ValueError, match=r"\[0, 1\], got 2"):
        ImportanceAccumulator("ema", decay=2)
    accumulated = ImportanceAccumulator()
    accumulated.update({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="a, b"):
        accumulated.update({"b": torch.ones(1)})


def test_the_penalty_and_its_gradient_by_hand():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 2.0]]))
    penalty = QuadraticPenalty(module, {"weight": torch.tensor([[3.0, 0.5]])}, strength=2)
    assert penalty().item() == 0
    with torch.no_grad():
        module.weight.add_(torch.tensor([[1.0, -2.0]]))
    penalty().backward()
    assert penalty().item() == pytest.approx(2 * (3 * 1 + 0.5 * 4))
    torch.testing.assert_close(module.weight.grad, 2 * 2 * torch.tensor([[3.0, -1.0]]))


def test_the_reference_may_be_elsewhere_and_parameters_without_importance_are_free():
    module = nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(3)
    penalty = QuadraticPenalty(module, {"weight": torch.ones(1, 1)}, reference={"weight": torch.ones(1, 1)})
    assert penalty().item() == 4
    assert torch.autograd.grad(penalty(), module.bias, allow_unused=True) == (None,)
    assert QuadraticPenalty(module, {})().item() == 0


def test_penalties_refuse_what_is_not_the_modules():
    module = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="no parameter 'other'; it has weight, bias"):
        QuadraticPenalty(module, {"other": torch.ones(1)})
    with pytest.raises(ValueError, match=r"\(1, 2\), got \(2,\)"):
        QuadraticPenalty(module, {"weight": torch.ones(2)})
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        QuadraticPenalty(module, {"weight": -torch.ones(1, 2)})
    with pytest.raises(ValueError, match="strength must be finite and not negative, got -1"):
        QuadraticPenalty(module, {}, strength=-1)
    with pytest.raises(ValueError, match="on one side only: weight"):
        QuadraticPenalty(module, {"weight": torch.ones(1, 2)}, reference={"bias": torch.ones(1)})
