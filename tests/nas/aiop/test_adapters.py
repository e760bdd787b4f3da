"""K-Adapters: their equations, what they leave alone, what a fine-tuning changes."""

import copy

import pytest
import torch

pytest.importorskip("torch_geometric")

from etude.nas.aiop import (
    AdaptedPredictor,
    GraphBatch,
    GraphPredictor,
    KAdapter,
    Rescale,
    finetune,
    nasbench201,
    train_adapter,
)

LABELS = [0.3, -1.0, 0.9, 0.1, -0.4, 1.2]
OPTIONS = {"epochs": 2, "batch_size": 3, "lr": 1e-3}


@pytest.fixture(scope="module")
def graphs():
    cells = [(0, 2, 3, 2, 3, 1), (4, 0, 4, 1, 2, 0), (2, 2, 2, 2, 2, 2), (3, 3, 0, 0, 2, 1), (0,) * 6, (3,) * 6]
    return GraphBatch.of([nasbench201(cell, units=1) for cell in cells])


@pytest.fixture
def base():
    torch.manual_seed(0)
    return GraphPredictor(24, 3)


def adapted(base, count=2):
    torch.manual_seed(1)
    return AdaptedPredictor(base, count)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_an_adapter_follows_its_equations(base, graphs):
    model = adapted(base, 1)
    adapter = model.adapters[0]
    h = base.node_states(graphs)
    matrix = torch.zeros(len(h[0]), len(h[0]))
    matrix[graphs.edge_index[1], graphs.edge_index[0]] = 1
    a = h[0]
    for layer, feature in zip(adapter.layers, h[1:]):
        joined = torch.cat([feature, a], dim=1)
        a = torch.tanh(joined @ layer.lin_root.weight.T + matrix @ joined @ layer.lin_rel.weight.T + layer.lin_rel.bias)
    means = torch.stack([torch.cat([h[-1][graphs.batch == g].mean(0), a[graphs.batch == g].mean(0)]) for g in range(6)])
    torch.testing.assert_close(model(graphs), adapter.head(means).squeeze(-1), rtol=1e-4, atol=1e-5)


def test_an_adapter_of_zeros_is_a_plain_head_on_the_bases_embedding(base, graphs):
    model = adapted(base, 1)
    adapter = model.adapters[0]
    with torch.no_grad():
        for parameter in adapter.layers.parameters():
            parameter.zero_()
        adapter.head[0].weight[:, base.dim :] = 0
    plain = copy.deepcopy(adapter.head)
    plain[0].weight = torch.nn.Parameter(adapter.head[0].weight[:, : base.dim].clone())
    torch.testing.assert_close(model(graphs), plain(base.embed(graphs)).squeeze(-1))


def test_an_adapter_has_the_parameters_of_the_paper():
    expected = 6 * (2 * 64 * 32 + 32) + (64 * 32 + 32) + 3 * (32 * 32 + 32) + 33
    assert sum(p.numel() for p in KAdapter(GraphPredictor()).parameters()) == expected


def test_training_an_adapter_leaves_base_and_other_adapters_bit_identical(base, graphs):
    model = adapted(base)
    before = state(model)
    losses = train_adapter(model, graphs, LABELS, adapter=1, **OPTIONS)
    assert len(losses) == 4
    found = changed(before, state(model))
    assert found
    assert all(name.startswith("adapters.1.") for name in found)
    assert model.active is None
    assert not any(p.requires_grad for p in model.parameters())


def test_adapters_trained_in_any_order_are_the_same(base, graphs):
    found = []
    for order in ((0, 1), (1, 0)):
        model = adapted(base)
        for index in order:
            generator = torch.Generator().manual_seed(index)
            train_adapter(model, graphs, LABELS, adapter=index, generator=generator, **OPTIONS)
        found.append(state(model))
    assert not changed(*found)


def test_without_an_active_adapter_the_prediction_is_the_mean(base, graphs):
    model = adapted(base, 3)
    each = []
    for model.active in range(3):
        each.append(model(graphs))
    model.active = None
    torch.testing.assert_close(model(graphs), torch.stack(each).mean(0))
    torch.testing.assert_close(model.predictions(graphs), torch.stack(each))


MODES = {
    0: ("adapters.0.head", "adapters.1.head"),
    1: ("adapters.0.head", "adapters.1.head", "base.layers"),
    2: ("adapters.0", "adapters.1", "base.layers"),
    3: ("adapters.0", "adapters.1"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_finetuning_changes_what_its_mode_says_and_nothing_else(base, graphs, mode):
    model = adapted(base)
    before = state(model)
    finetune(model, graphs, LABELS, mode=mode, **OPTIONS)
    wanted = {name for name in before if name.startswith(MODES[mode])}
    assert changed(before, state(model)) == wanted
    assert not any(name.startswith("base.embedding") for name in wanted)


def test_rescaling_starts_as_the_identity_and_trains_alpha_and_b_alone(base, graphs):
    model = adapted(base)
    before = model(graphs)
    parameters = model.rescale_parameters()
    torch.testing.assert_close(model(graphs), before, rtol=0, atol=0)
    assert sum(p.numel() for p in parameters) == 2 * (1 + base.dim + 1)
    first = state(model)
    finetune(model, graphs, LABELS, mode="rescale", rescale=0.1, **OPTIONS)
    assert changed(first, state(model)) == {f"adapters.{k}.head.5.{name}" for k in (0, 1) for name in ("alpha", "b")}


def test_rescaling_follows_its_formula_and_its_penalty():
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 1)
    layer, x = Rescale(linear), torch.randn(5, 3)
    with torch.no_grad():
        layer.alpha.fill_(2.0)
        layer.b.copy_(torch.tensor([1.0, -1.0, 0.5, 3.0]))
    weight, bias = linear.weight * torch.tensor([3.0, 1.0, 2.5]), linear.bias * 5.0
    torch.testing.assert_close(layer(x), x @ weight.T + bias)
    assert layer.penalty("l1").item() == 5.5
    assert layer.penalty("l2").item() == 11.25


def test_a_large_penalty_holds_b_at_zero(base, graphs):
    held = []
    for weight in (0.0, 1e6):
        model = adapted(copy.deepcopy(base))
        finetune(model, graphs, LABELS, mode="rescale", rescale=weight, penalty="l2", epochs=5, batch_size=3, lr=1e-3)
        held.append(float(model.rescale_penalty("l2")))
    assert held[1] < held[0] / 10


def test_bad_input_is_refused(base, graphs):
    with pytest.raises(ValueError, match="no adapter yet"):
        AdaptedPredictor(base)(graphs)
    model = adapted(base)
    model.active = 2
    with pytest.raises(ValueError, match=r"active must be None or lie in 0..1, got 2"):
        model(graphs)
    model.active = None
    with pytest.raises(ValueError, match="mode must be 0, 1, 2 or 3, got -1"):
        model.finetune_parameters(-1)
    with pytest.raises(ValueError, match="label 1 is nan"):
        finetune(model, graphs, [0.0, float("nan"), 0, 0, 0, 0], **OPTIONS)
    with pytest.raises(ValueError, match="6 graphs and 2 labels"):
        train_adapter(model, graphs, [0.0, 1.0], **OPTIONS)
    with pytest.raises(ValueError, match=r"expected h_0 to h_3, got 2"):
        model.adapters[0](base.node_states(graphs)[:2], graphs)
    with pytest.raises(ValueError, match=r"another architecture than this AdaptedPredictor: it also has adapters.1"):
        adapted(base, 1).load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match="Rescale stretches a bias"):
        Rescale(torch.nn.Linear(2, 1, bias=False))
