"""The scikit-learn estimator over a click log."""

import numpy as np
import pytest
import torch

from etude.data.kinds_clicks import ClickData
from etude.ranking.din import auc, gauc, interest_mixture

sklearn_base = pytest.importorskip("sklearn.base")
pd = pytest.importorskip("pandas")
from sklearn.exceptions import NotFittedError  # noqa: E402

from etude.ranking.din import DINClassifier  # noqa: E402


def log(n=240, seed=0):
    rng = np.random.default_rng(seed)
    item = rng.integers(20, size=n)
    return pd.DataFrame(
        {
            "user": [f"u{u}" for u in rng.integers(12, size=n)],
            "item": [f"i{i}" for i in item],
            "category": [f"c{i % 4}" for i in item],
            "hour": rng.integers(24, size=n),
            "time": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(500, size=n), unit="h"),
            "click": rng.integers(2, size=n),
        }
    )


def classifier(**options):
    settings = {
        "behaviours": ("category",), "context": ("hour",), "dim": 3, "hidden_dims": (6,), "epochs": 1,
        "batch_size": 32, "max_len": 6, "random_state": 0, "model_options": {"unit_dims": (4,)},
    }  # fmt: skip
    return DINClassifier(**(settings | options))


def test_parameters_are_got_set_and_cloned():
    estimator = classifier(lr=0.1)
    copy = sklearn_base.clone(estimator.set_params(dim=5))
    assert copy.get_params() == estimator.get_params()
    assert copy.get_params()["dim"] == 5


def test_every_row_has_probabilities_weights_and_a_score():
    frame = log()
    estimator = classifier().fit(frame, frame["click"])
    probabilities = estimator.predict_proba(frame)
    assert probabilities.shape == (240, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert set(estimator.predict(frame)) <= {0, 1}
    assert estimator.score(frame, frame["click"]) == auc(frame["click"], probabilities[:, 1])
    assert estimator.gauc(frame, frame["click"]) == gauc(frame["click"], probabilities[:, 1], frame["user"])
    weights = estimator.attention(frame)
    for row in range(240):
        past = (frame["user"] == frame["user"][row]) & (frame["time"] < frame["time"][row]) & (frame["click"] == 1)
        assert len(weights[row]) == min(past.sum(), 6)


def test_files_frames_dicts_and_row_order_give_the_same_predictions(tmp_path):
    frame = log()
    estimator = classifier().fit(frame, "click")
    expected = estimator.predict_proba(frame)
    frame.to_parquet(tmp_path / "log.parquet")
    columns = {name: frame[name].to_numpy() for name in frame}
    for given in (columns, tmp_path / "log.parquet", str(tmp_path / "log.parquet")):
        np.testing.assert_array_equal(classifier().fit(given, "click").predict_proba(given), expected)
    order = np.random.default_rng(1).permutation(240)
    np.testing.assert_allclose(estimator.predict_proba(frame.iloc[order]), expected[order], rtol=1e-5)
    numbers = frame.assign(time=frame["time"].astype("int64"))
    numbers.to_csv(tmp_path / "log.csv", index=False)
    np.testing.assert_array_equal(classifier().fit(tmp_path / "log.csv", "click").predict_proba(numbers), expected)


def test_unknown_values_and_users_without_a_history_are_predicted():
    frame = log()
    estimator = classifier().fit(frame, "click")
    fresh = frame.head(3).assign(user="nobody", item=["never", "seen", "i1"], hour=99)
    assert np.isfinite(estimator.predict_proba(fresh)).all()
    same = estimator.predict_proba(fresh.assign(category="none"))
    assert same[0, 1] == same[1, 1]
    assert estimator.attention(fresh)[0].size == 0


def test_labels_may_be_words_and_the_second_in_order_is_the_click():
    frame = log()
    words = np.where(frame["click"] == 1, "yes", "no")
    estimator = classifier().fit(frame, words)
    assert estimator.classes_.tolist() == ["no", "yes"]
    expected = classifier().fit(frame, "click").predict_proba(frame)
    np.testing.assert_array_equal(estimator.predict_proba(frame), expected)


def test_click_data_are_fitted_and_clicks_predicted():
    parts = [interest_mixture(60, 5, 8, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    data = ClickData(*(part.clicks for part in parts), fields=parts[0].fields, max_len=5)
    estimator = classifier(behaviours=(), context=()).fit(data)
    assert estimator.predict_proba(data.test).shape == (60, 2)
    assert estimator.score(data.test) == auc(data.test.labels.numpy(), estimator.predict_proba(data.test)[:, 1])
    with pytest.raises(ValueError, match="takes Clicks, got DataFrame"):
        estimator.predict_proba(log())


def test_a_seed_leaves_the_global_generator_alone():
    frame = log()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    classifier().fit(frame, "click")
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unfitted_estimator_says_so():
    with pytest.raises(NotFittedError):
        classifier().predict(log())


def test_bad_logs_are_refused():
    frame = log()
    for bad, y, message in (
        (frame.drop(columns="item"), "click", "no column 'item'; it has user, category"),
        (frame, "bought", "no column 'bought'"),
        (frame.assign(time=frame["time"].dt.strftime("%d.%m.%Y")), "click", "'time' must hold numbers or datetimes"),
        (frame.assign(item=frame["item"].where(frame.index != 4)), "click", "'item' has no value in 1 of 240 rows"),
        (frame.assign(user=[f"u{i}" for i in range(240)]), "click", "every history is empty: of 240 rows none"),
        (frame, np.zeros(240), r"two values, click and no click, got \[0.0\]"),
        (frame, np.arange(240) % 3, r"two values.*\[0, 1, 2\]"),
        (frame, np.arange(5) % 2, "must have 5 rows"),
        (frame, None, "fit needs y"),
        (frame.to_numpy(), frame["click"], "must be a DataFrame, a dict of columns or the path"),
    ):
        with pytest.raises(ValueError, match=message):
            classifier().fit(bad, y)
    with pytest.raises(FileNotFoundError, match="no log at"):
        classifier().fit("nowhere.csv", "click")
    with pytest.raises(ValueError, match="different columns"):
        classifier(behaviours=("item",)).fit(frame, "click")
    estimator = classifier().fit(frame, "click")
    with pytest.raises(ValueError, match="needs both labels"):
        estimator.score(frame, np.ones(240, dtype=int))
    with pytest.raises(ValueError, match=r"must hold the labels \[0, 1\], got \[5\]"):
        estimator.score(frame, np.full(240, 5))
    with pytest.raises(ValueError, match="another type"):
        estimator.predict_proba(frame.assign(item=np.arange(240)))
