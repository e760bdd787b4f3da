"""The design space, what each design costs, and that every legal one trains."""

import pytest
import torch
from torch import nn

from etude.transfer.hypernetworks import (
    HypernetDesign,
    Hypernetwork,
    TargetSpec,
    count_parameters,
    design_space,
    design_table,
    table_text,
)

DESIGNS = list(design_space())


def small_target():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def options(design):
    stored = 3 if design.static_input or len(design.parts) == 2 else None
    chunked = {"chunk_size": 7} if design.generation in ("chunk", "component_chunk") else {}
    return {"num_conditions": stored, "cond_dim": 4, "hidden": (8, 8), **chunked}


def condition(design):
    stored = design.static_input or len(design.parts) == 2
    parts = [1 if (part == "task" and stored) or design.static_input else torch.randn(4) for part in design.parts]
    return parts[0] if len(parts) == 1 else tuple(parts)


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "rnn", "attention", "graph"])
@pytest.mark.parametrize("generation", ["once", "multiple", "component", "chunk", "component_chunk"])
def test_every_legal_design_trains_and_has_the_counted_parameters(generation, architecture):
    chosen = [each for each in DESIGNS if (each.generation, each.architecture) == (generation, architecture)]
    if architecture == "graph" and chosen:
        pytest.importorskip("torch_geometric")
    for design in chosen:
        torch.manual_seed(0)
        net = Hypernetwork(small_target(), design, **options(design))
        trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        wanted = {key: value for key, value in options(design).items() if key != "num_conditions"}
        learned = len(net.conditions.learned)
        assert sum(p.numel() for p in trained) == count_parameters(design, net.spec, num_conditions=learned, **wanted)
        optimizer = torch.optim.SGD(trained, lr=0.01)
        before = [parameter.detach().clone() for parameter in net.head.parameters()]
        loss = net.call(torch.randn(6, 4), condition(design)).square().mean()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        assert any(not torch.equal(old, new) for old, new in zip(before, net.head.parameters()))
        assert all(parameter.grad is None for parameter in net.target.parameters())


def test_the_space_has_every_legal_combination_once():
    assert len(DESIGNS) == len(set(DESIGNS)) == 7 * 28
    assert all(not design.validate() for design in DESIGNS)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("data", "chunk", True, True, "mlp"), "changes with the data"),
        (("task+noise", "chunk", True, True, "mlp"), "changes with every draw"),
        (("task", "once", True, False, "mlp"), "slice it"),
        (("task", "once", True, True, "rnn"), "a single piece"),
        (("task", "chunk", True, True, "graph"), "are its components"),
    ],
)
def test_illegal_pairs_are_refused_with_the_reason(values, reason):
    design = HypernetDesign(*values)
    assert any(reason in line for line in design.validate())
    with pytest.raises(ValueError, match=reason):
        Hypernetwork(small_target(), design, num_conditions=2)


def test_an_unknown_value_is_refused():
    with pytest.raises(ValueError, match=r"generation must be one of once, .*, got 'twice'"):
        HypernetDesign(generation="twice")


@pytest.mark.parametrize(
    ("generation", "more", "count"),
    [
        ("once", {}, 211_594),
        ("multiple", {}, 109_674),
        ("multiple", {"split": "layer"}, 109_674),
        ("component", {}, 209_688),
        ("chunk", {"chunk_size": 512}, 18_640),
    ],
)
def test_counts_of_the_comparison_are_exact(generation, more, count):
    target = nn.Sequential(nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 2))
    spec = TargetSpec.from_module(target)
    assert spec.numel == 6_370
    design = HypernetDesign("task", generation)
    assert count_parameters(design, spec, num_conditions=5, hidden=(32, 32), **more) == count


def test_the_table_counts_operations_by_hand():
    rows = design_table(small_target(), [HypernetDesign("task", "once")], num_conditions=2, hidden=(8,), cond_dim=4)
    # 4 x 8 and 8 x 43 multiplications, as many additions.
    assert rows[0].flops == 2 * (4 * 8 + 8 * 43)
    assert rows[0].parameters == 2 * 4 + 5 * 8 + 9 * 43
    assert "| task | once | static | static | mlp |" in table_text(rows)


def test_the_table_has_a_line_for_every_design():
    pytest.importorskip("torch_geometric")
    rows = design_table(small_target(), hidden=(8, 8), chunk_size=7)
    assert [row.design for row in rows] == DESIGNS
    assert all(row.flops > 0 and row.ratio == row.parameters / 43 for row in rows)
