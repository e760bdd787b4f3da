"""The estimator: units, uncertainty, what it keeps from test labels, files."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")
pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from etude.nas.aiop import ArchitecturePredictor, GraphBatch, TargetScaler, nasbench201, predict_graphs

GRAPHS = [nasbench201((a, b, 0, 2, c, 0), units=1) for a in (2, 3) for b in (2, 3, 4) for c in (0, 2)]
Y = np.array([graph.flops / 1e6 for graph in GRAPHS])
SMALL = {"dim": 20, "layers": 2, "epochs": 2, "batch_size": 4}


def fitted(**options):
    return ArchitecturePredictor(**(SMALL | options)).fit(GRAPHS, Y)


def adapted(**options):
    return fitted(**options).add_task(GRAPHS, -Y, "reversed").add_task(GRAPHS, Y**2, "squared")


def test_it_is_an_estimator_and_not_fitted_before_fit():
    predictor = ArchitecturePredictor(dim=24, lr=0.5)
    assert clone(predictor).get_params() == predictor.get_params()
    with pytest.raises(NotFittedError, match="call fit"):
        predictor.predict(GRAPHS)


def test_predictions_come_in_the_unit_of_what_was_learnt_last():
    predictor = fitted()
    batch = GraphBatch.of(GRAPHS)
    expected = predictor.base_scaler_.inverse_transform(predict_graphs(predictor.model_.base, batch))
    np.testing.assert_allclose(predictor.predict(GRAPHS), expected)
    predictor.add_task(GRAPHS, -Y).add_task(GRAPHS, Y**2)
    each = predict_graphs(predictor.model_, batch, each=True)
    np.testing.assert_allclose(predictor.predict(GRAPHS), each.mean(0))
    predictor.finetune(GRAPHS[:6], 1000 + Y[:6], mode=None)
    scaler = TargetScaler().fit(1000 + Y[:6])
    np.testing.assert_allclose(predictor.predict(GRAPHS), scaler.inverse_transform(each.mean(0)))


def test_the_uncertainty_joins_disagreement_and_held_out_error():
    predictor = adapted().finetune(GRAPHS[:10], Y[:10], epochs=1)
    mean, std = predictor.predict(GRAPHS, return_std=True)
    each = predict_graphs(predictor.model_, GraphBatch.of(GRAPHS), each=True)
    expected = np.sqrt(each.var(0) + predictor.noise_**2) * Y[:10].std()
    np.testing.assert_allclose(std, expected)
    np.testing.assert_allclose(mean, predictor.predict(GRAPHS))
    assert (std > 0).all()


def test_held_out_labels_make_the_noise():
    predictor = fitted(holdout=0.25)
    order = np.random.default_rng([0, 0]).permutation(12)
    held, train = order[:3], order[3:]
    scaler = TargetScaler().fit(Y[train])
    batch = GraphBatch.of(GRAPHS)
    error = predict_graphs(predictor.model_.base, batch)[held] - scaler.transform(Y[held])
    assert predictor.noise_ == pytest.approx(np.sqrt((error**2).mean()))
    assert predictor.base_scaler_.mean == pytest.approx(Y[train].mean())


def test_adding_a_task_leaves_base_and_other_adapters_alone():
    predictor = fitted().add_task(GRAPHS, -Y, "reversed")
    before = copy.deepcopy(predictor.model_.state_dict())
    predictor.add_task(GRAPHS, Y**2, "squared")
    after = predictor.model_.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert predictor.tasks_ == ["reversed", "squared"]


def test_the_targets_statistics_come_from_its_few_labels_and_score_and_mae_learn_nothing():
    predictor = adapted().finetune(GRAPHS[:6], Y[:6], epochs=1)
    assert (predictor.target_scaler_.mean, predictor.target_scaler_.std) == (Y[:6].mean(), Y[:6].std())
    before = predictor.predict(GRAPHS)
    error = predictor.mae(GRAPHS, Y + 7)
    assert error == pytest.approx(np.abs(before - Y - 7).mean())
    assert -1 <= predictor.score(GRAPHS, -Y) <= 1
    np.testing.assert_array_equal(predictor.predict(GRAPHS), before)


def test_a_network_of_the_users_own_is_predicted():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 900, 10))
    predictor, image = adapted(), torch.zeros(1, 3, 32, 32)
    one = predictor.predict(network, example_input=image, return_std=True)
    assert one.mean.shape == one.std.shape == (1,)
    np.testing.assert_allclose(predictor.predict([network, GRAPHS[0]], example_input=image)[0], one.mean[0], rtol=1e-5)
    with pytest.raises(ValueError, match="give example_input="):
        predictor.predict(network)


def test_equal_seeds_give_equal_predictors_and_the_global_stream_is_left_alone():
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    one = adapted()
    assert torch.equal(torch.rand(1), first)
    np.testing.assert_array_equal(one.predict(GRAPHS), adapted().predict(GRAPHS))
    assert not np.array_equal(one.predict(GRAPHS), adapted(random_state=1).predict(GRAPHS))


@pytest.mark.parametrize("mode", [None, 1, "rescale"])
def test_a_saved_predictor_predicts_the_same(tmp_path, mode):
    predictor = adapted(scaling="standard_flops").finetune(GRAPHS[:6], Y[:6], mode=mode, epochs=1)
    predictor.save(tmp_path / "predictor.pt")
    read = ArchitecturePredictor.load(tmp_path / "predictor.pt")
    for one, two in zip(read.predict(GRAPHS, return_std=True), predictor.predict(GRAPHS, return_std=True)):
        np.testing.assert_array_equal(one, two)
    assert read.tasks_ == predictor.tasks_


def test_a_file_of_another_architecture_is_refused(tmp_path):
    from etude.loop import checkpoint

    adapted().save(tmp_path / "predictor.pt")
    content = checkpoint.load(tmp_path / "predictor.pt")
    content["settings"]["dim"] = 24
    checkpoint.save(tmp_path / "other.pt", {key: value for key, value in content.items() if key != "format"})
    with pytest.raises(ValueError, match="another architecture than this AdaptedPredictor"):
        ArchitecturePredictor.load(tmp_path / "other.pt")
    checkpoint.save(tmp_path / "none.pt", {"step": 3})
    with pytest.raises(ValueError, match="no ArchitecturePredictor's: it lacks noise"):
        ArchitecturePredictor.load(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ArchitecturePredictor().fit(GRAPHS, Y[:5]), "12 graphs and 5 labels"),
        (lambda: ArchitecturePredictor().fit(GRAPHS, np.full(12, np.nan)), "label 0 is nan"),
        (lambda: ArchitecturePredictor().fit(GRAPHS, np.ones(12)), "labels are all 1"),
        (lambda: ArchitecturePredictor().fit([], []), "at least 4 labels are needed, got 0"),
        (lambda: ArchitecturePredictor(holdout=1.0).fit(GRAPHS, Y), r"holdout must lie in \[0, 1\), got 1.0"),
        (lambda: fitted().finetune(GRAPHS, Y), "add_task first"),
        (lambda: fitted().add_task(GRAPHS, Y, "a").add_task(GRAPHS, Y, "a"), "an adapter 'a' already"),
        (lambda: adapted().finetune(GRAPHS[:1], Y[:1]), "at least 2 labels are needed, got 1"),
        (lambda: adapted().finetune(GRAPHS[:4], Y[:4], mode=None).add_task(GRAPHS, Y), "add tasks before finetune"),
        (lambda: fitted().predict([]), "at least one graph"),
    ],
)
def test_bad_input_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_the_flops_scaling_needs_the_flops_of_every_graph():
    from dataclasses import replace

    bare = [replace(GRAPHS[0], flops=None), *GRAPHS[1:]]
    with pytest.raises(ValueError, match=r"needs the FLOPs of every graph: nasbench201 .* has none"):
        ArchitecturePredictor(**SMALL, scaling="standard_flops").fit(bare, Y)
