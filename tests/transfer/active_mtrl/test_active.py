"""Oracles count and give the same to all; the loop spends what it may, where its relevance says."""

import numpy as np
import pandas
import pytest
import torch

from etude.transfer.active_mtrl import (
    CORRUPTIONS,
    ActiveMTRL,
    DigitOracle,
    LinearMTR,
    LinearOracle,
    NeuralMTR,
    TableOracle,
    allocate,
    corrupt,
    digit_encoder,
    draw_instance,
    l1_relevance,
    plot_relevance,
    realised_risk,
)


def setting(noise=0.5, mixed=2):
    instance = draw_instance(10, 2, 8, np.random.default_rng(0), noise=noise, mixed=mixed)
    return instance, instance.target_samples(60, np.random.default_rng(1))


def run(strategy="l1", **options):
    instance, target = setting()
    oracle = LinearOracle(instance, 5)
    defaults = {"n_explore": 15, "budget": 400}
    history = ActiveMTRL(LinearMTR(2), strategy, **(defaults | options)).run(oracle, *target)
    return instance, oracle, history


# Oracles


def test_whoever_asks_gets_the_same_stream():
    instance, _ = setting()
    one, other = LinearOracle(instance, 3), LinearOracle(instance, 3)
    x, y = one(2, 7)
    other(1, 4)
    parts = [other(2, n) for n in (3, 0, 4)]
    assert np.array_equal(x, np.concatenate([rows for rows, _ in parts]))
    assert np.array_equal(y, np.concatenate([labels for _, labels in parts]))
    assert other.counts.tolist() == [0, 4, 7, 0, 0, 0, 0, 0]
    assert not np.array_equal(x, LinearOracle(instance, 4)(2, 7)[0])


def test_instances_are_what_they_say():
    instance, _ = setting(noise=0.0)
    assert instance.basis.T @ instance.basis == pytest.approx(np.eye(2))
    assert np.linalg.norm(instance.target) == pytest.approx(1)
    x, y = LinearOracle(instance, 0)(3, 20)
    assert y == pytest.approx(x @ instance.basis @ instance.heads[:, 3])
    assert instance.excess_risk(instance.basis, instance.target) == pytest.approx(0, abs=1e-20)
    same, _ = setting(mixed=None)
    assert l1_relevance(same.heads, same.target) == pytest.approx([1] + [0] * 7, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"), [((4, 5, 9), "rank must lie in 1..4"), ((4, 3, 2), "rank must lie in 1..2")]
)
def test_instances_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_instance(*arguments, np.random.default_rng(0))


def table():
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(rng.standard_normal((30, 3)), columns=["a", "b", "c"])
    return frame.assign(shop=["x", "y", "z"] * 10, sales=frame["a"] * 2)


def test_a_users_rows_are_given_once_and_counted():
    oracle = TableOracle.from_frame(table(), task="shop", target="sales", exclude=["y"])
    assert oracle.names == ("x", "z")
    assert oracle.capacity.tolist() == [10, 10]
    rows = np.concatenate([oracle(0, 4)[0], oracle(0, 6)[0]])
    own = table().query("shop == 'x'")[["a", "b", "c"]].to_numpy()
    assert np.array_equal(np.sort(rows, axis=0), np.sort(own, axis=0))
    with pytest.raises(ValueError, match="task 'x' has 0 rows left, 1 were asked for"):
        oracle(0, 1)


def test_tables_that_do_not_serve_are_refused():
    with pytest.raises(ValueError, match="no column 'town'"):
        TableOracle.from_frame(table(), task="town", target="sales")
    with pytest.raises(ValueError, match="encode or drop shop"):
        TableOracle.from_frame(table(), task="a", target="sales")
    with pytest.raises(ValueError, match="at least one source"):
        TableOracle({})
    with pytest.raises(ValueError, match="'s' holds missing"):
        TableOracle({"s": (np.full((2, 2), np.nan), np.ones(2))})
    with pytest.raises(ValueError, match="'t' has 3 features, others 2"):
        TableOracle({"s": (np.ones((2, 2)), np.ones(2)), "t": (np.ones((2, 3)), np.ones(2))})


def test_calls_out_of_range_are_refused():
    instance, _ = setting()
    with pytest.raises(ValueError, match=r"0\.\.7, got 8"):
        LinearOracle(instance, 0)(8, 1)
    with pytest.raises(ValueError, match="not be negative, got -1"):
        LinearOracle(instance, 0)(0, -1)


# The loop


@pytest.mark.parametrize("strategy", ["l1", "l2", "uniform"])
@pytest.mark.parametrize("rounds", [1, 3])
def test_the_budget_is_spent_exactly(strategy, rounds):
    _, oracle, history = run(strategy, rounds=rounds, budget=403)
    assert oracle.counts.sum() == history.counts.sum() == 403
    assert np.array_equal(oracle.counts, history.counts)
    assert len(history.rounds) == rounds + 1
    assert history.rounds[0].bought.tolist() == [15] * 8
    assert all((later.bought >= 0).all() for later in history.rounds)


def test_one_round_is_the_formula():
    _, _, history = run("l1", normalize=False)
    nu = history.relevance
    assert np.array_equal(history.counts, allocate(nu, budget=400, minimum=15))
    _, _, squared = run("l2", normalize=False)
    assert np.array_equal(squared.counts, allocate(squared.relevance, budget=400, minimum=15, power=2))


def test_known_relevance_needs_no_estimate():
    instance, target = setting()
    nu = l1_relevance(instance.heads, instance.target)
    active = ActiveMTRL(LinearMTR(2), "known", relevance=nu, n_explore=15, budget=400, normalize=False)
    history = active.run(LinearOracle(instance, 5), *target)
    assert np.array_equal(history.counts, allocate(nu, budget=400, minimum=15))
    assert history.relevance == pytest.approx(nu)


def test_the_plan_serves_the_target_better_than_an_even_one():
    instance, target = setting(mixed=None, noise=0.2)
    history = ActiveMTRL(LinearMTR(2), "l1", n_explore=40, budget=1_000).run(LinearOracle(instance, 5), *target)
    even = realised_risk(instance.heads, instance.target, [125] * 8)
    assert realised_risk(instance.heads, instance.target, history.counts) < 0.8 * even
    x, y = instance.target_samples(500, np.random.default_rng(9))
    assert np.square(history.predict(x) - y).mean() < 0.06


def test_units_of_labels_do_not_matter():
    """A source measured in thousandths is as relevant as before; its nu is given in its own unit."""
    instance, target = setting()

    class Rescaled(LinearOracle):
        def __call__(self, task, n):
            x, y = super().__call__(task, n)
            return x, y * (1000.0 if task == 3 else 1.0)

    plain = ActiveMTRL(LinearMTR(2), "l1", n_explore=15, budget=400).run(LinearOracle(instance, 5), *target)
    other = ActiveMTRL(LinearMTR(2), "l1", n_explore=15, budget=400).run(
        Rescaled(instance, 5), target[0], 0.01 * target[1]
    )
    assert np.array_equal(plain.counts, other.counts)
    unit = np.where(np.arange(8) == 3, 1000.0, 1.0)
    assert other.relevance * unit == pytest.approx(0.01 * plain.relevance)
    assert other.predict(target[0]) == pytest.approx(0.01 * plain.predict(target[0]))


def test_prices_and_stores_are_kept():
    oracle = TableOracle.from_frame(table(), task="shop", target="sales", exclude=["y"])
    own = table().query("shop == 'y'")
    target = own[["a", "b", "c"]].to_numpy(), own["sales"].to_numpy()
    active = ActiveMTRL(LinearMTR(1), "l1", n_explore=3, budget=20, costs=[1.0, 2.0], relevance_kw={"lam": 0.01})
    history = active.run(oracle, *target)
    assert 18 < history.counts @ [1.0, 2.0] <= 20
    assert (history.counts <= 10).all()
    # The exploration is refused before anything is drawn.
    untouched = TableOracle.from_frame(table(), task="shop", target="sales")
    with pytest.raises(ValueError, match="exceeds what the sources hold, 30"):
        ActiveMTRL(LinearMTR(1), n_explore=3, budget=31).run(untouched, *target)
    with pytest.raises(ValueError, match="does not pay 20 samples"):
        ActiveMTRL(LinearMTR(1), n_explore=20, budget=25).run(untouched, *target)
    assert not untouched.counts.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "l3"}, "l1, l2, known, uniform, got 'l3'"),
        ({"strategy": "known"}, "relevance= is given"),
        ({"relevance": [1.0]}, "relevance= is given"),
        ({"n_explore": 0}, "at least 1, got 0 and 1"),
        ({"rounds": 0}, "at least 1, got 15 and 0"),
    ],
)
def test_loops_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ActiveMTRL(LinearMTR(2), **({"n_explore": 15, "budget": 100} | options))


def test_a_target_without_rows_is_refused():
    instance, _ = setting()
    with pytest.raises(ValueError, match="got 0, 0"):
        ActiveMTRL(LinearMTR(2), n_explore=2, budget=20).run(LinearOracle(instance, 0), np.ones((0, 10)), np.ones(0))


# Networks and digits


def test_a_network_keeps_the_protocol_and_starts_alike_every_time():
    instance, target = setting()
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))

    def learner():
        copy = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
        copy.load_state_dict(encoder.state_dict())
        return NeuralMTR(copy, 8, 4, steps=30, batch_size=16, generator=torch.Generator().manual_seed(0))

    history = ActiveMTRL(learner(), "l2", n_explore=10, budget=200).run(LinearOracle(instance, 0), *target)
    assert history.counts.sum() == 200
    assert history.head.shape == (4,)
    assert history.predict(target[0]).shape == (60,)
    one, two = learner(), learner()
    two.fit([np.ones((3, 10))] * 8, [np.ones(3)] * 8)
    two.generator.manual_seed(0)
    one.generator.manual_seed(0)
    data = [np.ones((3, 10))] * 8, [np.arange(3.0)] * 8
    assert np.array_equal(one.fit(*data).heads_, two.fit(*data).heads_)
    with pytest.raises(ValueError, match="8 heads, got 1 tasks"):
        one.fit([np.ones((3, 10))], [np.ones(3)])


def test_the_head_of_a_network_is_ridge_regression():
    model = NeuralMTR(torch.nn.Identity(), 2, 3, ridge=0.1)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)).astype(np.float32), rng.standard_normal(20)
    gram = x.T.astype(float) @ x
    by_hand = np.linalg.solve(gram + 0.1 * np.trace(gram) / 3 * np.eye(3), x.T @ y)
    assert model.fit_head(x, y) == pytest.approx(by_hand, rel=1e-5)
    assert digit_encoder(8, 5)(torch.zeros(2, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_condition_gives_images_that_are_its_own(name):
    images = torch.zeros(4, 1, 28, 28)
    images[:, :, 6:22, 12:16] = 0.8
    seen, again = (corrupt(images, name, torch.Generator().manual_seed(0)) for _ in range(2))
    assert seen.shape == images.shape
    assert seen.dtype == torch.float32
    assert 0 <= seen.min() <= seen.max() <= 1
    assert torch.equal(seen, again)
    assert torch.equal(seen, images) == (name == "identity")
    assert len(CORRUPTIONS) == 16


def test_conditions_refuse_what_is_no_grey_square():
    generator = torch.Generator()
    with pytest.raises(ValueError, match="no corruption 'rain'"):
        corrupt(torch.zeros(1, 1, 28, 28), "rain", generator)
    with pytest.raises(ValueError, match=r"got \(1, 3, 28, 28\)"):
        corrupt(torch.zeros(1, 3, 28, 28), "fog", generator)


def test_digit_tasks_are_balanced_and_leave_the_target_out():
    labels = torch.tensor([0, 1, 2] * 4)
    pixels = torch.arange(24.0).reshape(2, 12, 1)
    oracle = DigitOracle(pixels, labels, seed=0, exclude=4)
    assert oracle.num_tasks == 5
    assert oracle.tasks == [0, 1, 2, 3, 5]
    x, y = oracle(1, 8)
    assert y.tolist() == [1, -1] * 4
    assert (labels[x[:, 0].astype(int)].numpy() == 1).tolist() == [True, False] * 4
    assert len(np.unique(x[::2])) == 4
    assert np.array_equal(oracle.rows(1, 0, 8)[0], x)
    condition_two = oracle.rows(4, 0, 2)[0]
    assert (condition_two >= 12).all()
    with pytest.raises(ValueError, match=r"\(m, 12, pixels\)"):
        DigitOracle(pixels[:, :5], labels, 0)
    with pytest.raises(ValueError, match="must have images"):
        DigitOracle(pixels, labels + 1, 0)


def test_relevance_and_samples_are_drawn():
    figure = plot_relevance({"l1": [0.0, 1.0]}, {"l1": [5, 9]})
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="same strategies"):
        plot_relevance({"l1": [1.0]}, {"l2": [1]})
