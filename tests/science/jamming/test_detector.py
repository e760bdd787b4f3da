"""The cascade keeps its limits and its word: bands, scores, stages, and what it refuses."""

import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.base import clone

from etude.science.jamming import (
    DTDDNNClassifier,
    EnergyDetector,
    FeatureSet,
    Perceptron,
    RawCNN,
    Schedule,
    SingleNetworkClassifier,
    SSBFeatures,
    SSBScenario,
    cascade_score,
    detection_rate,
    threshold_at_false_alarm,
    train_deep_cascade,
    train_network,
    tune_eta,
)
from etude.science.jamming.decision import best_threshold, logit, uncertain
from etude.science.jamming.networks import iq_channels, num_parameters, predict_logits

QUICK = Schedule(epochs=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def records():
    return SSBScenario(looks=2).draw(400, generator())


@pytest.fixture(scope="module")
def data(records):
    """Features of one look: training, validation and test parts with their labels."""
    features = SSBFeatures().extract(records.signals)[:, 0]
    parts = {"train": slice(0, 240), "val": slice(240, 320), "test": slice(320, 400)}
    return {name: (features[rows], records.labels[rows]) for name, rows in parts.items()}


def fitted(data, **options) -> DTDDNNClassifier:
    options = {"schedule": QUICK, "tune_eta": False} | options
    return DTDDNNClassifier(**options).fit(*data["train"], validation=data["val"])


def test_equal_thresholds_leave_exactly_the_first_network(data):
    cascade = fitted(data, eta=(0.5, 0.5))
    single = SingleNetworkClassifier(schedule=QUICK).fit(*data["train"], validation=data["val"])
    test = data["test"][0]
    assert torch.equal(cascade.decision_scores(test), single.decision_scores(test))
    assert (cascade.predict(test) == single.predict(test)).all()
    assert (cascade.stage(test) == 1).all()


def test_open_thresholds_send_every_record_to_the_second_network(data):
    cascade = fitted(data, eta=(0.0, 1.0))
    assert (cascade.stage(data["test"][0]) == 2).all()
    assert cascade.band_share_ == 1.0


def test_saturated_probabilities_still_go_to_the_second_network():
    logits = torch.tensor([-200.0, -30.0, 0.0, 30.0, 200.0])
    assert uncertain(logits, (0.0, 1.0)).all()
    assert uncertain(logits, (0.1, 0.9)).tolist() == [False, False, True, False, False]
    assert not uncertain(logits, (0.5, 0.5)).any()
    assert logit(0) == -math.inf
    assert logit(1) == math.inf


def test_combined_score_is_monotone_and_agrees_with_the_decision():
    p2 = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    first, inside = torch.zeros(101), torch.ones(101, dtype=torch.bool)
    scores = cascade_score(first, torch.logit(p2).float(), (0.2, 0.7), inside)
    assert (scores.diff() > 0).all()
    assert scores.min() >= 0.2
    assert scores.max() <= 0.7
    assert ((scores >= 0.5) == (p2 >= 0.5)).all()
    ends = cascade_score(torch.zeros(3), torch.tensor([-math.inf, 0.0, math.inf]), (0.2, 0.7), inside[:3])
    torch.testing.assert_close(ends, torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64))
    outside = cascade_score(torch.tensor([2.0]), torch.tensor([-9.0]), (0.2, 0.7), torch.tensor([False]))
    torch.testing.assert_close(outside, torch.tensor([2.0]).double().sigmoid())


def test_stage_says_which_network_decided(data):
    cascade = fitted(data, eta=(0.3, 0.7))
    test = data["test"][0]
    stage = cascade.stage(test)
    p = cascade.predict_proba(test)[:, 1]
    assert set(stage) <= {1, 2}
    assert (stage == 1).mean() + (stage == 2).mean() == 1
    assert ((p[stage == 2] >= 0.3) & (p[stage == 2] <= 0.7)).all()
    assert ((p[stage == 1] <= 0.3) | (p[stage == 1] >= 0.7)).all()


def test_order_and_company_of_test_records_change_nothing(data):
    cascade = fitted(data)
    test = data["test"][0]
    order = torch.randperm(len(test), generator=generator(1))
    scores = cascade.decision_scores(test)
    torch.testing.assert_close(cascade.decision_scores(test[order]), scores[order])
    torch.testing.assert_close(cascade.decision_scores(test[3:4]), scores[3:4])


def test_the_same_seed_gives_the_same_detector(data):
    first, second, other = fitted(data), fitted(data), fitted(data, seed=5)
    test = data["test"][0]
    assert torch.equal(first.decision_scores(test), second.decision_scores(test))
    assert not torch.equal(first.decision_scores(test), other.decision_scores(test))


def test_fitting_leaves_the_global_random_state_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fitted(data)
    assert torch.equal(torch.rand(1), expected)


def test_the_band_is_measured_on_networks_that_did_not_see_the_example(data, monkeypatch):
    cascade = DTDDNNClassifier(schedule=QUICK, tune_eta=False)
    seen: list[torch.Tensor] = []
    original = DTDDNNClassifier._network

    def spy(self, hidden, train, validation, purpose):
        if purpose >= 10:
            seen.append(train[0])
        return original(self, hidden, train, validation, purpose)

    monkeypatch.setattr(DTDDNNClassifier, "_network", spy)
    cascade.fit(*data["train"], validation=data["val"])
    train = cascade.features_.transform(data["train"][0]).first
    assert [len(part) for part in seen] == [192] * 5
    counts = sum((train[:, None] == part[None]).all(dim=-1).any(dim=1).long() for part in seen)
    assert (counts == 4).all()


def test_a_thin_band_leaves_the_second_network_out_with_a_warning(data):
    with pytest.warns(UserWarning, match="the second network needs 50 of both classes"):
        cascade = fitted(data, eta=(0.4999999, 0.5))
    assert cascade.network2_ is None
    assert (cascade.stage(data["test"][0]) == 1).all()


def test_a_second_look_feeds_both_blocks_to_the_second_network(records):
    cascade = DTDDNNClassifier((0.0, 1.0), tune_eta=False, second_look=True, schedule=QUICK)
    cascade.fit(records.signals[:300], records.labels[:300])
    assert cascade.network2_.hidden[0].in_features == 2 * 706 + 1
    changed = records.signals[300:].clone()
    changed[:, 1] = changed[:, 1].flip(0)
    first, second = (cascade.decision_scores(signals) for signals in (records.signals[300:], changed))
    assert not torch.equal(first, second)
    only_first = DTDDNNClassifier((0.5, 0.5), tune_eta=False, second_look=True, schedule=QUICK)
    only_first.fit(records.signals[:300], records.labels[:300])
    assert torch.equal(*(only_first.decision_scores(signals) for signals in (records.signals[300:], changed)))


def test_records_as_arrays_and_as_features_give_the_same_detector(records):
    signals, labels = records.signals[:300, 0], records.labels[:300]
    options = {"schedule": QUICK, "tune_eta": False}
    by_array = DTDDNNClassifier(**options).fit(signals.numpy(), labels.numpy(), sample_rate=7.68e6)
    by_features = DTDDNNClassifier(**options).fit(SSBFeatures().extract(signals), labels)
    test = records.signals[300:, 0]
    torch.testing.assert_close(by_array.decision_scores(test), by_features.decision_scores(test))
    assert by_array.predict_proba(test).shape == (100, 2)
    assert by_array.score(test, records.labels[300:]) == (by_array.predict(test) == records.labels[300:].numpy()).mean()


def test_the_wide_network_has_as_many_parameters_as_both_of_the_cascade(data):
    wide = SingleNetworkClassifier(wide=True, schedule=QUICK).fit(*data["train"], validation=data["val"])
    cascade = fitted(data, eta=(0.0, 1.0))
    both = num_parameters(cascade.network1_) + num_parameters(cascade.network2_)
    assert both <= num_parameters(wide.network_) < both + 1000


def test_thresholds_are_tuned_to_the_errors_allowed():
    logits = torch.tensor([-4.0, -3.0, -2.0, -1.0, 0.5, 1.0, 2.0, 3.0])
    labels = torch.tensor([0, 0, 1, 0, 1, 0, 1, 1])
    low, high = tune_eta(logits, labels, max_error=0.01)
    assert low == pytest.approx(torch.tensor(-3.0).sigmoid().item())
    assert high == pytest.approx(torch.tensor(2.0).sigmoid().item())
    low, high = tune_eta(logits, labels, max_error=0.4)
    assert low == pytest.approx(torch.tensor(-1.0).sigmoid().item())
    assert high == pytest.approx(torch.tensor(0.5).sigmoid().item())


def test_tuned_thresholds_open_wide_where_no_region_is_safe_and_count_ties_whole():
    assert tune_eta(torch.tensor([-1.0, 1.0]), torch.tensor([1, 0])) == (0.0, 1.0)
    tied = torch.tensor([-2.0, -1.0, -1.0, 1.0])
    low, _ = tune_eta(tied, torch.tensor([0, 0, 1, 1]))
    assert low == pytest.approx(torch.tensor(-2.0).sigmoid().item())


def test_tuned_detector_keeps_its_thresholds_around_one_half(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        low, high = fitted(data, tune_eta=True).eta_
    assert 0 <= low <= 0.5 <= high <= 1


def test_detection_rate_keeps_the_false_alarm_rate():
    scores = torch.arange(200.0)
    labels = torch.tensor([0] * 100 + [1] * 100)
    assert threshold_at_false_alarm(scores, labels, 0.05) == 94.0
    assert (scores[:100] > 94).float().mean() == pytest.approx(0.05)
    assert detection_rate(scores, labels) == 1.0
    assert detection_rate(-scores, labels) == 0.0
    assert detection_rate(scores, labels, threshold=149.0) == 0.5


def test_best_threshold_is_the_most_accurate():
    scores = torch.randn(301, generator=generator())
    labels = (scores + 0.7 * torch.randn(301, generator=generator(1)) > 0.2).long()
    chosen = ((scores >= best_threshold(scores, labels)).long() == labels).double().mean()
    every = [((scores >= bar).long() == labels).double().mean() for bar in scores]
    assert chosen >= max(every)
    assert best_threshold(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([0, 0, 1])) == 1.5


def test_energy_detector_averages_looks_and_thresholds_the_mean_energy(records):
    features = SSBFeatures().extract(records.signals)
    detector = EnergyDetector().fit(features[:300], records.labels[:300])
    mean = features.energy.double().exp().mean(dim=1).log()
    torch.testing.assert_close(detector.decision_scores(features), mean)
    assert (detector.predict(features) == (mean >= detector.threshold_).long().numpy()).all()
    one = EnergyDetector().fit(records.signals[:300, 0], records.labels[:300])
    torch.testing.assert_close(one.decision_scores(features[:, 0]), features.energy[:, 0].double())


@pytest.mark.parametrize(
    "detector", [DTDDNNClassifier(eta=(0.2, 0.8)), SingleNetworkClassifier(True), EnergyDetector()]
)
def test_estimators_can_be_cloned_and_changed_as_scikit_learn_does(detector):
    copy = clone(detector)
    assert copy is not detector
    assert copy.get_params() == detector.get_params()
    assert copy.set_params(device="cpu") is copy
    with pytest.raises(ValueError, match="unknown parameters depth"):
        copy.set_params(depth=3)


def test_a_fitted_detector_survives_pickling(data):
    cascade = fitted(data)
    again = pickle.loads(pickle.dumps(cascade))
    assert torch.equal(again.decision_scores(data["test"][0]), cascade.decision_scores(data["test"][0]))


def test_training_keeps_the_epoch_with_the_least_validation_loss():
    x, y = torch.randn(128, 4, generator=generator()), torch.randint(0, 2, (128,), generator=generator(1))
    losses: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Perceptron(4, (16,))
        train_network(model, (x[:64], y[:64]), (x[64:], y[64:]), Schedule(epochs=12, lr=0.05),
                      generator=generator(), callback=lambda epoch, loss: losses.append(loss))  # fmt: skip
    logits = predict_logits(model, x[64:])
    kept = torch.nn.functional.binary_cross_entropy_with_logits(logits, y[64:].float()).item()
    assert kept == pytest.approx(min(losses), rel=1e-5)


def test_patience_ends_training_after_so_many_epochs_without_progress():
    x, y = torch.randn(64, 4, generator=generator()), torch.randint(0, 2, (64,), generator=generator(1))
    epochs: list[int] = []
    train_network(
        Perceptron(4, (64,)), (x[:32], y[:32]), (x[32:], 1 - y[:32]), Schedule(200, 0.05, patience=4),
        callback=lambda epoch, loss: epochs.append(epoch),
    )  # fmt: skip
    assert len(epochs) < 100


def test_deep_cascade_trains_one_layer_at_a_time():
    x = torch.randn(128, 5, generator=generator())
    y = (x[:, 0] > 0).long()
    torch.manual_seed(0)
    model = Perceptron(5, (8, 6))
    before = [layer.weight.detach().clone() for layer in model.hidden]
    train_deep_cascade(model, (x, y), (x, y), Schedule(epochs=1, lr=0.01), joint_epochs=0, generator=generator())
    assert not torch.equal(model.hidden[0].weight, before[0])  # the one epoch went to the first layer
    assert torch.equal(model.hidden[1].weight, before[1])
    torch.manual_seed(0)
    model = Perceptron(5, (8, 6))
    train_deep_cascade(model, (x, y), (x, y), Schedule(epochs=40, lr=0.01), joint_epochs=5, generator=generator())
    assert ((predict_logits(model, x) > 0) == (y == 1)).float().mean() > 0.9


def test_networks_give_one_logit_a_record():
    signals = SSBScenario().draw(3, generator()).signals
    x = iq_channels(signals)
    assert x.shape == (3, 2, 1096)
    assert torch.equal(torch.complex(x[:, 0], x[:, 1]), signals)
    assert RawCNN()(x).shape == (3,)
    assert Perceptron(2 * 1096, (128, 64))(x).shape == (3,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: fitted(d, eta=(0.6, 0.9)), "eta must be"),
        (lambda d: fitted(d, eta=(0.1, 1.1)), "eta must be"),
        (lambda d: fitted(d, second_look=True), "takes records of shape"),
        (lambda d: DTDDNNClassifier().fit(d["train"][0], d["train"][1][:-1]), "equally many rows"),
        (lambda d: DTDDNNClassifier().fit(d["train"][0], d["train"][1] * 0), "must hold both classes"),
        (lambda d: DTDDNNClassifier().fit(d["train"][0], d["train"][1] + 4), "labels must be 0"),
        (lambda d: DTDDNNClassifier().fit(d["train"][0], d["train"][1] * 0.5), "labels must be 0"),
        (lambda d: DTDDNNClassifier().fit(np.zeros((4, 1096)), [0, 1, 0, 1]), "signals must be complex"),
        (lambda d: detection_rate(torch.ones(3), torch.zeros(3, dtype=torch.int64)), "at least one jammed"),
        (lambda d: threshold_at_false_alarm(torch.ones(3), torch.ones(3, dtype=torch.int64)), "some labels be 0"),
        (lambda d: Perceptron(0), "must be positive"),
        (lambda d: Perceptron(3, dropout=1.0), "dropout must lie in"),
    ],
)
def test_bad_arguments_are_refused(data, call, message):
    with pytest.raises(ValueError, match=message):
        call(data)


def test_prediction_before_fit_is_refused(data):
    with pytest.raises(RuntimeError, match="call fit before"):
        DTDDNNClassifier().predict(data["test"][0])


def test_an_energy_detector_predicts_only_after_fit(data):
    with pytest.raises(RuntimeError, match="call fit before predicting"):
        EnergyDetector().predict(data["test"][0])


def test_detectors_leave_an_extractor_that_they_share_alone(data):
    extractor = SSBFeatures()
    first = fitted(data, extractor=extractor)
    before = first.decision_scores(data["test"][0])
    SingleNetworkClassifier(schedule=QUICK, extractor=extractor).fit(*data["val"], validation=data["test"])
    assert torch.equal(first.decision_scores(data["test"][0]), before)
    assert not hasattr(extractor, "means_")


def test_feature_sets_concatenate_and_index_as_one(data):
    features = data["test"][0]
    again = FeatureSet.concatenate([features[:30], features[30:]])
    assert torch.equal(again.second, features.second)
    assert len(again) == 80
