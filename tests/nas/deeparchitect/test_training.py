"""Training of candidates, the estimator, the plots: what they do, not how well."""

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from etude.data.kinds import Examples, ImageData, TableData
from etude.loop import accuracy
from etude.nas.deeparchitect import (
    Affine,
    ArchitectureSearch,
    Bisection,
    Concat,
    Layer,
    RandomSearcher,
    ReLU,
    Training,
    UserHyperparams,
    hyperparameters,
    input_shape,
    replay,
    search,
)
from etude.nas.deeparchitect.searchers import Candidate
from etude.nas.deeparchitect.training import quality


def table(values=False, n=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=generator)
    y = x[:, 0] + 0.1 * x[:, 1] if values else (x[:, 0] > 0).long()
    parts = [Examples(x[rows], y[rows]) for rows in (slice(0, 40), slice(40, 50), slice(50, 60))]
    return TableData(*parts, columns=("a", "b", "c"), classes=() if values else ("no", "yes"), name="toy")


def candidate(space, history=(), in_shape=(3,)):
    return Candidate(0, tuple(history), replay(space, in_shape, history))


def test_equal_networks_score_equally_and_nothing_is_drawn_outside():
    space = Concat([UserHyperparams(lr=[0.1, 0.01]), Affine([4, 8]), ReLU(), Affine(2)])
    training = Training(table(), epochs=2, batch_size=10)
    before = torch.get_rng_state()
    one = training.train(candidate(space, (0, 1)))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    halved = training.train(candidate(Bisection(space), (0, 1)))
    assert one.curve == halved.curve
    for p, q in zip(one.network.parameters(), halved.network.parameters()):
        assert torch.equal(p, q)
    other = Training(table(), epochs=2, batch_size=10, seed=1).train(candidate(space, (0, 1)))
    assert not torch.equal(next(one.network.parameters()), next(other.network.parameters()))


def test_the_best_epoch_or_the_last_is_kept(monkeypatch):
    told = iter([0.5, 0.9, 0.7] * 2)
    weights = []

    def judged(network, examples, classes=True):
        weights.append([p.detach().clone() for p in network.parameters()])
        return next(told)

    monkeypatch.setattr("etude.nas.deeparchitect.training.quality", judged)
    space = Concat([UserHyperparams(lr=[0.1]), Affine(2)])
    best = Training(table(), epochs=3, batch_size=10).train(candidate(space))
    assert best.score == 0.9
    assert all(torch.equal(p, q) for p, q in zip(best.network.parameters(), weights[1]))
    last = Training(table(), epochs=3, batch_size=10, keep="last").train(candidate(space))
    assert (last.score, last.curve) == (0.7, [0.5, 0.9, 0.7])
    assert all(torch.equal(p, q) for p, q in zip(last.network.parameters(), weights[5]))


def test_rates_fall_and_training_stops_when_nothing_gets_better(monkeypatch):
    rates = []
    monkeypatch.setattr("etude.nas.deeparchitect.training.quality", lambda *_: 0.5)
    monkeypatch.setattr(
        "etude.nas.deeparchitect.training.fit",
        lambda _, __, optimizer, **___: rates.append(optimizer.param_groups[0]["lr"]),
    )
    options = UserHyperparams(lr=[1.0], rate_mult=[0.5], rate_patience=[2], optimizer=["sgd_mom"])
    Training(table(), epochs=6, batch_size=10).train(candidate(Concat([options, Affine(2)])))
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25]  # the first epoch is the best, the two after it are not
    rates.clear()
    stopping = Training(table(), epochs=9, batch_size=10, defaults={"stop_patience": 3})
    assert len(stopping.train(candidate(Affine(2))).curve) == 4
    timed = Training(table(), epochs=9, batch_size=10, max_seconds=0)
    assert len(timed.train(candidate(Affine(2))).curve) == 1


def test_the_papers_hyperparameters_are_understood():
    for name in ("light", "heavy"):
        space = Concat([hyperparameters(name), Affine(2)])
        for one in (RandomSearcher(space, (3,), seed=s).ask() for s in range(3)):
            assert 0 <= Training(table(), epochs=1, batch_size=10)(one) <= 1
    with pytest.raises(ValueError, match="'light' and 'heavy'"):
        hyperparameters("medium")


def test_a_network_that_diverges_scores_by_its_accuracy():
    space = Concat([UserHyperparams(optimizer=["sgd"], lr=[1e30]), Affine(8), Affine(2)])
    score = Training(table(), epochs=2, batch_size=10, keep="last")(candidate(space))
    assert 0 <= score <= 1


def test_the_quality_of_values_is_the_variance_explained():
    network = nn.Linear(3, 1)
    data = table(values=True)
    targets = data.test.targets.numpy()
    with torch.no_grad():
        predicted = network(data.test.inputs)[:, 0].numpy()
    expected = max(1 - ((predicted - targets) ** 2).mean() / targets.var(), 0)
    assert quality(network, data.test, False) == pytest.approx(expected, abs=1e-5)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0.1, 0.0]]))
        network.bias.zero_()
    assert quality(network, data.test, False) == pytest.approx(1)


SPACE = Concat([UserHyperparams(lr=[0.1, 0.01]), Affine([4, 8]), ReLU()])


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("searcher", ["random", "mcts", "mcts_bisect", "smbo", "smbo_names"])
def test_ten_lines_search_a_users_table(values, searcher):
    data = table(values)
    found = ArchitectureSearch(
        lambda outputs: Concat([SPACE, Affine(outputs)]), searcher, budget=3, epochs=1, batch_size=10
    )
    if searcher.startswith("smbo"):
        found.set_params(budget=4)
    found.fit(data)
    assert found.best_score_ == max(found.result_.scores)
    predicted = found.predict(data.test.inputs)
    assert predicted.shape == (10,)
    if values:
        with pytest.raises(ValueError, match="no probabilities"):
            found.predict_proba(data.test.inputs)
    else:
        assert found.score(data.test) == accuracy(found.network_, data.test)
        np.testing.assert_array_equal(found.predict_proba(data.test.inputs).argmax(1), predicted)


def test_it_is_an_estimator_that_resumes_and_never_sees_the_test_rows(tmp_path):
    data = table()
    unfitted = ArchitectureSearch(budget=5, random_state=3)
    assert clone(unfitted).get_params() == unfitted.get_params()
    with pytest.raises(NotFittedError, match="call fit"):
        unfitted.predict(data.test.inputs)
    with pytest.raises(TypeError, match=r"must be a TableData or an ImageData|Type-check"):
        unfitted.fit([[1, 2]])
    file = tmp_path / "search.json"
    options = {"epochs": 1, "batch_size": 10, "save": file}
    spoilt = TableData(
        data.train, data.val, Examples(1e6 * data.test.inputs, 1 - data.test.targets), data.columns, data.classes, "x"
    )
    first = ArchitectureSearch(Concat([SPACE, Affine(2)]), budget=2, **options).fit(data)
    told = []
    second = ArchitectureSearch(Concat([SPACE, Affine(2)]), budget=4, **options)
    second.fit(spoilt, on_result=lambda one, _: told.append(one.id))
    assert told == [2, 3]
    assert second.result_.scores[:2] == first.result_.scores
    straight = ArchitectureSearch(Concat([SPACE, Affine(2)]), budget=4, epochs=1, batch_size=10).fit(data)
    assert straight.result_.scores == second.result_.scores
    assert all(torch.equal(p, q) for p, q in zip(straight.network_.parameters(), second.network_.parameters()))


def test_images_are_flattened_by_the_default_space():
    generator = torch.Generator().manual_seed(0)
    parts = [Examples(torch.rand(20, 1, 4, 4, generator=generator), torch.arange(20) % 2) for _ in range(3)]
    data = ImageData(*parts, classes=("a", "b"), name="toy")
    assert input_shape(data) == (1, 4, 4)
    found = ArchitectureSearch(budget=2, epochs=1, batch_size=10).fit(data)
    assert found.predict(data.test.inputs).shape == (20,)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="epochs and batch_size must be positive"):
        Training(table(), epochs=0)
    with pytest.raises(ValueError, match="keep must be"):
        Training(table(), keep="worst")
    with pytest.raises(ValueError, match="optimizer must be one of adam"):
        Training(table(), epochs=1)(candidate(Concat([UserHyperparams(optimizer=["lbfgs"]), Affine(2)])))
    with pytest.raises(ValueError, match="no weights to train"):
        Training(table(), epochs=1)(candidate(Layer(nn.ReLU)))
    with pytest.raises(ValueError, match="searcher must be one of random"):
        ArchitectureSearch(searcher="genetic").fit(table())


def test_the_papers_pictures():
    plt = pytest.importorskip("matplotlib.pyplot")
    from etude.nas.deeparchitect.plots import plot_best_so_far, plot_fraction_above

    def run(seed, scale):
        draws = np.random.default_rng(seed)
        return search(RandomSearcher(SPACE, (3,), seed=seed), lambda _: scale * draws.random(), 6)

    results = {"random": [run(0, 0.5), run(1, 0.5)], "better": [run(2, 1.0)]}
    left = plot_best_so_far(results)
    lines = {line.get_label(): line.get_ydata() for line in left.lines}
    np.testing.assert_allclose(lines["better"], results["better"][0].best_so_far())
    np.testing.assert_allclose(lines["random"], np.mean([one.best_so_far() for one in results["random"]], axis=0))
    right = plot_fraction_above(results, [0.0, 0.25, 0.5])
    np.testing.assert_allclose(right.lines[1].get_ydata(), results["better"][0].fraction_above([0.0, 0.25, 0.5]))
    with pytest.raises(ValueError, match="at least one run"):
        plot_best_so_far({"random": []})
    plt.close("all")
