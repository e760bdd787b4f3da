"""What sub-models cost, the choice of one for a budget, and their evaluation."""

import pytest
import torch
from torch import nn

from etude.data.kinds import Examples
from etude.loop import accuracy
from etude.training.sortednet import (
    Cost,
    SortedMLP,
    SubModel,
    SubModelSpace,
    count_flops,
    count_parameters,
    evaluate_all,
    extract,
    measure_costs,
    measure_latency,
    pareto,
    select,
    set_submodel,
    sorted_,
    space_of,
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def mlp():
    torch.manual_seed(0)
    return SortedMLP(6, 3, width=[4, 8, 16], depth=[1, 2, 4])


def normalized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return sorted_(model, SubModelSpace(width=[0.5, 1.0]))


@pytest.fixture(scope="module")
def costs():
    return measure_costs(mlp(), X)


def test_half_the_width_has_a_quarter_of_the_operations_between_the_ends_and_half_at_them():
    model = sorted_(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        ),
        SubModelSpace(width=[0.5, 1.0]),
    )  # fmt: skip
    x = torch.randn(2, 3, 5, 5)
    ends = 2 * 2 * (3 * 8 * 9 * 25 + 8 * 10)
    between = 2 * 2 * 2 * 8 * 16 * 9 * 25
    assert count_flops(model, SubModel(width=1.0), x) == ends + between
    assert count_flops(model, SubModel(width=0.5), x) == ends / 2 + between / 4


def test_costs_are_those_of_the_extracted_network_and_grow_with_every_dimension(costs):
    model = mlp()
    for b, cost in costs.items():
        small = extract(model, b)
        assert cost.parameters == count_parameters(model, b) == sum(part.numel() for part in small.parameters())
        width, depth = b.width, b.depth
        assert cost.macs == 4 * (6 * width + depth * width**2 + 3 * width)
        assert cost.seconds is None
        for c, larger in costs.items():
            if b < c:
                assert cost.macs < larger.macs
                assert cost.parameters < larger.parameters


@pytest.mark.parametrize("budget", ["macs", "parameters"])
def test_selection_grows_with_the_budget_and_never_exceeds_it(costs, budget):
    sizes = sorted(getattr(cost, budget) for cost in costs.values())
    reached = []
    for limit in [size + extra for size in sizes for extra in (0, 1)]:
        b = select(costs, **{budget: limit})
        assert getattr(costs[b], budget) <= limit
        reached.append(costs[b].macs)
        assert reached[-1] == max(cost.macs for cost in costs.values() if getattr(cost, budget) <= limit)
    assert reached == sorted(reached)
    with pytest.raises(ValueError, match=rf"no sub-model fits .*; the least of each is {{'{budget}': {sizes[0]}}}"):
        select(costs, **{budget: sizes[0] - 1})


def test_every_budget_given_is_kept():
    narrow, deep, wide = SubModel(width=4, depth=1), SubModel(width=4, depth=4), SubModel(width=8, depth=1)
    costs = {narrow: Cost(10, 10, 0.1), deep: Cost(30, 50, 0.4), wide: Cost(40, 20, 0.2)}
    assert select(costs, seconds=1) == wide
    assert select(costs, macs=30) == deep
    assert select(costs, macs=30, seconds=0.3) == narrow
    assert select(costs, macs=30, parameters=30) == narrow
    assert select(costs, parameters=20, seconds=0.2) == wide


def test_equal_operations_go_to_more_parameters_and_then_to_the_later_submodel():
    a, b, c = (SubModel(depth=depth) for depth in (1, 2, 3))
    assert select({a: Cost(5, 2), b: Cost(5, 3), c: Cost(5, 1)}, macs=5) == b
    assert select({a: Cost(5, 2), b: Cost(5, 2)}, macs=5) == b


def test_a_budget_is_needed_and_latencies_must_have_been_measured(costs):
    with pytest.raises(ValueError, match="select needs a budget"):
        select(costs)
    with pytest.raises(ValueError, match="latencies were not measured"):
        select(costs, seconds=1.0)


def test_latency_is_measured_without_touching_the_network():
    model = normalized()
    x = torch.randn(4, 6)
    timed = measure_costs(model, x, latency=True, repeats=2)
    assert all(cost.seconds > 0 for cost in timed.values())
    assert select(timed, seconds=1e9) == SubModel(width=1.0)
    # Statistics lent for the timing are gone again.
    with set_submodel(model, SubModel(width=0.5)), pytest.raises(RuntimeError, match="no statistics"):
        model.eval()(x)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        measure_latency(model, SubModel(width=0.5), x, repeats=0)


def test_every_submodel_is_evaluated_as_the_network_it_would_be_alone():
    inputs = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    examples = Examples(inputs, torch.arange(40) % 3)
    for model in (mlp(), normalized()):
        scores = evaluate_all(model, examples, calibration=examples, batch_size=7)
        assert list(scores) == list(space_of(model))
        for b, score in scores.items():
            assert score == pytest.approx(accuracy(extract(model, b), examples))
    assert len(set(scores.values())) > 1
    means = evaluate_all(model, examples, metric=lambda outputs, targets: outputs.mean())
    assert means[SubModel(width=0.5)] != means[SubModel(width=1.0)]


def test_targets_that_are_no_classes_are_refused():
    for targets in (torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match=rf"targets must lie in 0\.\.2, got {targets.min()}\.\.{targets.max()}"):
            evaluate_all(mlp(), Examples(X[:2], targets))


def test_the_front_holds_what_no_cheaper_submodel_beats():
    draw = torch.Generator().manual_seed(0)
    names = [SubModel(depth=depth) for depth in range(1, 30)]
    costs = {b: Cost(int(torch.randint(10, (), generator=draw)), 1) for b in names}
    scores = {b: float(torch.randint(10, (), generator=draw)) for b in names}
    front = pareto(costs, scores)

    def beaten(b):
        return any(
            (costs[c].macs <= costs[b].macs and scores[c] > scores[b])
            or (costs[c].macs < costs[b].macs and scores[c] >= scores[b])
            for c in names
        )

    expected = sorted({(costs[b].macs, scores[b]) for b in names if not beaten(b)})
    assert [(costs[b].macs, scores[b]) for b in front] == expected
    with pytest.raises(ValueError, match="cost must be macs, parameters or seconds, got 'flops'"):
        pareto(costs, scores, "flops")
