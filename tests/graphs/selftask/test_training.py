"""Encoders and the two ways of training: what is shared, what is left alone, what evaluation sees."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.graphs.selftask import (
    AttributeMask,
    ContextLabel,
    CorrectedLabel,
    Distance2Cluster,
    Distance2Labeled,
    EdgeMask,
    GCNEncoder,
    NodeProperty,
    PairwiseAttributeSimilarity,
    PairwiseDistance,
    TappedEncoder,
    accuracy,
    citation_like,
    fit_joint,
    fit_two_stage,
    pretrain,
)

pyg = pytest.importorskip("torch_geometric.nn")


@pytest.fixture(scope="module")
def data():
    return citation_like(
        150, 3, num_words=60, words_per_node=8, topics_per_class=2, train_per_class=4, num_val=40, num_test=60, seed=1
    )


def encoder(data, seed=0, **arguments):
    torch.manual_seed(seed)
    return GCNEncoder(data.num_features, data.num_classes, **({"hidden_dim": 8} | arguments))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(data, tasks, fit=fit_joint, **arguments):
    model = encoder(data)
    torch.manual_seed(7)
    return model, fit(model, tasks, data, **({"epochs": 6} | arguments))


UNCORRUPTED = (
    NodeProperty(hidden_dim=8),
    PairwiseDistance(20, hidden_dim=8),
    Distance2Cluster(4, hidden_dim=8),
    PairwiseAttributeSimilarity(hidden_dim=8),
    Distance2Labeled(hidden_dim=8),
    ContextLabel(hidden_dim=8),
    CorrectedLabel(hidden_dim=8),
)


@pytest.mark.parametrize("task", UNCORRUPTED, ids=lambda task: type(task).__name__)
def test_a_weight_of_zero_trains_bit_for_bit_as_the_plain_network(data, task):
    plain, result = fitted(data, None)
    with_task, with_result = fitted(data, {copy.deepcopy(task): 0.0})
    for name, value in plain.state_dict().items():
        assert torch.equal(value, with_task.state_dict()[name]), name
    assert result.val_loss == with_result.val_loss
    assert with_result.self_losses[0] > 0
    weighted, _ = fitted(data, {copy.deepcopy(task): 10.0})
    assert not torch.equal(plain.conv1.lin.weight, weighted.conv1.lin.weight)


def test_plain_training_equals_a_loop_written_out(data):
    model, result = fitted(data, {})
    other = encoder(data)
    torch.manual_seed(7)
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01, weight_decay=5e-4)
    states, scores = [], []
    for _ in range(6):
        other.train()
        loss = F.cross_entropy(other(data.x, data.edge_index).logits[data.train_mask], data.y[data.train_mask])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        other.eval()
        with torch.no_grad():
            scores.append(accuracy(other(data.x, data.edge_index).logits, data.y, data.val_mask))
        states.append(copy.deepcopy(other.state_dict()))
    last_best = max(range(6), key=lambda epoch: (scores[epoch], epoch))
    assert (result.best_epoch, result.val_accuracy) == (last_best + 1, scores[last_best])
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[last_best][name])
    assert not model.training


def test_the_gcn_equals_pyg_layers_and_takes_sparse_and_dense_features(data):
    model = encoder(data).eval()
    first = pyg.GCNConv(data.num_features, 8)
    second = pyg.GCNConv(8, 3)
    first.load_state_dict(model.conv1.state_dict())
    second.load_state_dict(model.conv2.state_dict())
    dense = data.x.to_dense()
    hidden = first(dense, data.edge_index).relu()
    expected = second(hidden, data.edge_index)
    for x in (data.x, dense):
        output = model(x, data.edge_index)
        torch.testing.assert_close(output.logits, expected)
        torch.testing.assert_close(output.hidden, hidden)
        assert output.dropped is output.hidden
    gradients = []
    for x in (data.x, dense):
        model.zero_grad()
        model(x, data.edge_index).logits.square().sum().backward()
        gradients.append(model.conv1.lin.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_one_dropout_mask_serves_the_classifier_and_the_tasks(data):
    model = encoder(data).train()
    torch.manual_seed(0)
    output = model(data.x, data.edge_index)
    positive = output.hidden > 0
    kept = output.dropped[positive] > 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(output.dropped[positive][kept], 2 * output.hidden[positive][kept])
    propagation = model._propagation(data.edge_index, 150)[0].to_dense()
    expected = propagation @ output.dropped @ model.conv2.lin.weight.t() + model.conv2.bias
    torch.testing.assert_close(output.logits, expected)


def test_the_propagation_is_made_anew_for_another_graph_and_not_copied_into_pickles(data):
    model = encoder(data).eval()
    whole = model(data.x, data.edge_index).logits
    fewer = data.edge_index[:, 20:]
    assert not torch.equal(model(data.x, fewer).logits, whole)
    assert torch.equal(model(data.x, data.edge_index).logits, whole)
    again = pickle.loads(pickle.dumps(model))
    assert again._seen == []
    assert torch.equal(again(data.x, data.edge_index).logits, whole)
    edges = data.edge_index.clone()
    model(data.x, edges)
    edges[:, :20] = edges[:, 20:40].clone()
    assert not torch.equal(model(data.x, edges).logits, whole)


def test_the_encoder_is_saved_and_loaded_whole(data, tmp_path):
    model = encoder(data, dropout=0.25).eval()
    model.save_pretrained(tmp_path)
    loaded = GCNEncoder.from_pretrained(tmp_path)
    assert loaded.dropout == 0.25
    assert torch.equal(loaded(data.x, data.edge_index).logits, model(data.x, data.edge_index).logits)


def test_tasks_read_the_embeddings_they_ask_for(data):
    model = encoder(data).train()
    seen = {}

    class Spy(Distance2Labeled):
        def pretext_loss(self, embeddings, epoch, generator):
            seen["dropped"] = embeddings.detach()
            return super().pretext_loss(embeddings, epoch, generator)

    class ContextSpy(ContextLabel):
        def pretext_loss(self, embeddings, epoch, generator):
            seen["hidden"] = embeddings.detach()
            return super().pretext_loss(embeddings, epoch, generator)

    fit_joint(model, {Spy(hidden_dim=8): 1.0, ContextSpy(hidden_dim=8): 1.0}, data, epochs=1)
    assert (seen["dropped"] == 0).double().mean() > (seen["hidden"] == 0).double().mean() + 0.2


def test_training_sees_the_corrupted_input_and_evaluation_the_clean_one(data):
    calls = []

    def call(model, graph):
        calls.append((model.training, graph))
        return model(graph.x, graph.edge_index)

    edge, attribute = EdgeMask(hidden_dim=8), AttributeMask(hidden_dim=8)
    fit_joint(encoder(data), [(edge, 1.0), (attribute, 1.0)], data, epochs=3, call=call)
    in_training = [graph for training, graph in calls if training]
    in_evaluation = [graph for training, graph in calls if not training]
    assert len(in_training) == len(in_evaluation) == 3
    for graph in in_training:
        assert graph.edge_index.shape[1] == data.num_edges - 2 * edge.masked.shape[1]
        assert (graph.x.to_dense()[attribute.nodes] == 0).all()
    assert all(graph is data for graph in in_evaluation)


def test_several_tasks_add_their_weighted_losses(data):
    logged = []
    tasks = [(Distance2Labeled(hidden_dim=8), 3.0), (NodeProperty(hidden_dim=8), 0.5)]
    result = fit_joint(
        encoder(data), tasks, data, epochs=4, callback=lambda epoch, epochs, **metrics: logged.append(metrics)
    )
    assert len(result.self_losses) == 2
    assert logged[-1]["self_loss"] == pytest.approx(3 * result.self_losses[0] + result.self_losses[1] / 2, rel=1e-5)
    assert set(logged[0]) == {"loss", "self_loss", "val_loss", "val_accuracy"}
    assert max(entry["val_accuracy"] for entry in logged) == result.val_accuracy


def test_pretraining_moves_the_encoder_and_leaves_the_classifier(data):
    model = encoder(data)
    before = copy.deepcopy(model.state_dict())
    losses = []
    last = pretrain(
        model, {PairwiseDistance(20, hidden_dim=8): 1.0}, data, epochs=30,
        callback=lambda epoch, epochs, self_loss: losses.append(self_loss),
    )  # fmt: skip
    assert last[0] == pytest.approx(losses[-1])
    assert sum(losses[-5:]) < sum(losses[:5])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"conv1.lin.weight", "conv1.bias"}


def test_two_stages_are_pretraining_and_then_plain_training_on_the_clean_graph(data):
    model, result = fitted(data, {EdgeMask(hidden_dim=8): 1.0}, fit_two_stage, pretrain_epochs=5)
    other = encoder(data)
    torch.manual_seed(7)
    losses = pretrain(other, {EdgeMask(hidden_dim=8): 1.0}, data, epochs=5)
    fit_joint(other, None, data, epochs=6)
    assert result.self_losses == losses
    assert result.epochs == 6
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda f, c: pyg.GAT(f, 8, 2, c, dropout=0.5), "dropout"),
        (lambda f, c: pyg.GraphSAGE(f, 8, 3, c, dropout=0.3), "dropout"),
        (lambda f, c: pyg.GIN(f, 8, 2, c), "convs.0"),
    ],
)
def test_any_pyg_model_trains_with_the_tasks(data, make, layer):
    graph = replace(data, x=data.x.to_dense())
    torch.manual_seed(0)
    model = TappedEncoder(make(data.num_features, 3), layer)
    output = model(graph.x, graph.edge_index)
    assert output.hidden.shape == output.dropped.shape == (150, 8)
    torch.manual_seed(1)
    logits = model(graph.x, graph.edge_index).logits
    torch.manual_seed(1)
    assert torch.equal(model.model(graph.x, graph.edge_index), logits)
    tasks = {Distance2Labeled(hidden_dim=8): 10.0, EdgeMask(hidden_dim=8): 1.0, CorrectedLabel(hidden_dim=8): 1.0}
    result = fit_joint(model, tasks, graph, epochs=3)
    assert len(result.self_losses) == 3
    assert fit_two_stage(model, tasks, graph, epochs=2, pretrain_epochs=2).epochs == 2


def test_tapped_dropout_gives_its_input_and_its_output(data):
    model = TappedEncoder(pyg.GCN(data.num_features, 8, 2, 3, dropout=0.5), "dropout").train()
    output = model(data.x.to_dense(), data.edge_index)
    assert (output.hidden >= 0).all()
    assert (output.dropped == 0).sum() > (output.hidden == 0).sum() + 100
    kept = output.dropped > 0
    torch.testing.assert_close(output.dropped[kept], 2 * output.hidden[kept])


def test_the_layers_of_a_model_that_lacks_the_tapped_one_are_named(data):
    with pytest.raises(ValueError, match=r"no layer 'convs\.7'; its layers are dropout, act"):
        TappedEncoder(pyg.GCN(data.num_features, 8, 2, 3), "convs.7")
    idle = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    idle.forward = lambda x: idle["used"](x)
    with pytest.raises(ValueError, match="did not call its layer 'idle'"):
        TappedEncoder(idle, "idle")(torch.zeros(3, 2))


def test_bad_arguments_are_refused_with_the_value(data):
    model, task = encoder(data), Distance2Labeled(hidden_dim=8)
    for tasks, arguments, message in (
        ({task: -1.0}, {}, "Distance2Labeled must be finite and not negative, got -1.0"),
        ({}, {"epochs": 0}, "epochs must be at least 1, got 0"),
        ({}, {"train_mask": data.val_mask}, "must not overlap, 40 nodes stand in both"),
        ({}, {"train_mask": torch.zeros(150, dtype=torch.bool)}, "train_mask selects no node"),
        ({}, {"val_mask": torch.ones(9, dtype=torch.bool)}, r"val_mask must be bool of shape \(150,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_joint(model, tasks, data, **arguments)
    with pytest.raises(ValueError, match="needs a task of positive weight"):
        pretrain(model, {task: 0.0}, data)
    with pytest.raises(TypeError, match="TappedEncoder makes one of any model"):
        fit_joint(pyg.GCN(data.num_features, 8, 2, 3), {task: 1.0}, replace(data, x=data.x.to_dense()))
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1"):
        GCNEncoder(4, 2, dropout=1)
    with pytest.raises(ValueError, match="hidden_dim must be at least 1, got 0"):
        GCNEncoder(4, 2, hidden_dim=0)


def test_a_loss_that_is_not_finite_ends_the_training(data):
    with pytest.raises(FloatingPointError, match="in epoch"):
        fit_joint(encoder(data), {}, data, lr=1e30, epochs=20)


def test_evaluation_from_the_embeddings_of_the_next_pass_changes_no_bit(data):
    class Another(GCNEncoder):
        """Of another type, which is evaluated by itself after every epoch."""

    found = []
    for kind in (GCNEncoder, Another):
        torch.manual_seed(0)
        model, seen = kind(data.num_features, data.num_classes, hidden_dim=8), []
        torch.manual_seed(1)
        fit = fit_joint(
            model, {Distance2Labeled(hidden_dim=8): 1.0}, data, epochs=7, generator=generator(),
            callback=lambda *values, seen=seen, **named: seen.append((values, named)),
        )  # fmt: skip
        found.append((fit, seen, [value.tolist() for value in model.state_dict().values()], torch.rand(1).item()))
    assert found[0] == found[1]
    assert [values for values, _ in found[0][1]] == [(epoch, 7) for epoch in range(1, 8)]


def test_the_classifier_alone_gives_the_logits_of_the_embeddings(data):
    model = encoder(data).eval()
    logits, hidden, _ = model(data.x, data.edge_index)
    assert torch.equal(model.classify(hidden, data.edge_index), logits)
