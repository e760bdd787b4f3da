"""The estimator, the choice of a place, and the picture."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from etude.diffusion.diffusion_features import (
    DiffusionFeatures,
    DiffusionProbe,
    LinearHead,
    PlaceTable,
    ProbedHead,
    UNet,
    plot_places,
    select_block_timestep,
)


def network():
    torch.manual_seed(0)
    unet = UNet(1, 1, 8, (1, 2), 1, (1,), head_channels=8, norm_groups=4)
    for parameter in unet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return unet


def features(blocks=(4,), timesteps=(20,), seed=0):
    return DiffusionFeatures(
        network(), DDPMScheduler(), blocks=blocks, timesteps=timesteps, generator=torch.Generator().manual_seed(seed)
    )


def data(n=24, classes=("cat", "dog", "owl")):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % len(classes)
    x = rng.uniform(-0.3, 0.3, (n, 1, 8, 8))
    for row, label in enumerate(labels):
        x[row, 0, 2 * label : 2 * label + 3] += 0.7
    return torch.from_numpy(x).float(), np.array(classes)[labels]


def test_the_logistic_head_is_sklearns_on_the_standardised_matrix():
    x, y = data()
    probe = DiffusionProbe(features((4, 2)), C=0.3, noise_samples=2).fit(x, y)
    found = features((4, 2)).over(pool=2).extract(x, noise_samples=2, batch_size=128)
    rows = np.concatenate([maps.flatten(1).double().numpy() for maps in found.values()], axis=1)
    expected = LogisticRegression(C=0.3, max_iter=2000).fit(StandardScaler().fit_transform(rows), y)
    np.testing.assert_array_equal(probe.head_[-1].coef_, expected.coef_)
    assert probe.n_features_in_ == rows.shape[1] == (16 + 8) * 4
    assert probe.score(x, y) > 0.8


def test_one_step_of_the_linear_head_is_the_softmax_gradient_step():
    x, y = data()
    torch.manual_seed(1)
    head = LinearHead(16, 4, 3, pool=2)
    weight, bias = head.layers[-1].weight.detach().clone(), head.layers[-1].bias.detach().clone()
    probe = DiffusionProbe(features(), head, lr=0.1, epochs=1, batch_size=24).fit(x, y)
    extractor = features()
    extractor(x[:1])  # the probe looks at the map's shape first
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    rows = extractor.over(pool=2)(x[order])[20, 4].flatten(1)
    targets = torch.from_numpy(np.unique(y, return_inverse=True)[1])[order]
    wrong = torch.softmax(rows @ weight.T + bias, dim=1) - nn.functional.one_hot(targets, 3)
    torch.testing.assert_close(probe.head_.layers[-1].weight, weight - 0.1 * wrong.T @ rows / 24)
    torch.testing.assert_close(probe.head_.layers[-1].bias, bias - 0.1 * wrong.mean(dim=0))


@pytest.mark.parametrize("head", ["logistic", "linear", "mlp", "conv"])
def test_fitting_leaves_the_model_untouched(head):
    x, y = data()
    extractor = features((2,))
    before = {name: value.clone() for name, value in extractor.unet.state_dict().items()}
    probe = DiffusionProbe(extractor, head, epochs=2, batch_size=8, random_state=0).fit(x, y)
    assert all(torch.equal(value, before[name]) for name, value in extractor.unet.state_dict().items())
    assert all(parameter.grad is None for parameter in extractor.unet.parameters())
    proba = probe.predict_proba(x)
    assert proba.shape == (24, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert set(probe.predict(x)) <= {"cat", "dog", "owl"}


def test_the_rate_falls_to_a_tenth_by_the_epoch_not_by_the_batch():
    x, y = data()
    rates = []

    class Seen(LinearHead):
        def forward(self, maps):
            if self.training and torch.is_grad_enabled():
                rates.append(len(maps))
            return super().forward(maps)

    steps = []
    original = torch.optim.SGD.step

    def step(self, *args, **kwargs):
        steps.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", step)
        DiffusionProbe(features(), Seen(16, 4, 3), epochs=8, batch_size=8).fit(x, y)
    assert rates == [8] * 24
    np.testing.assert_allclose(steps, np.repeat([1e-2, 1e-3, 1e-4, 1e-5], 6), rtol=1e-6)


def test_a_random_state_repeats_fit_and_prediction():
    x, y = data()
    first, second = (
        DiffusionProbe(features(), "linear", epochs=2, batch_size=8, random_state=3).fit(x, y) for _ in "ab"
    )
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    np.testing.assert_array_equal(first.predict_proba(x), first.predict_proba(x))
    other = DiffusionProbe(features(), "linear", epochs=2, batch_size=8, random_state=4).fit(x, y)
    assert not np.array_equal(other.predict_proba(x), first.predict_proba(x))


def test_batch_norm_in_a_head_is_in_training_mode_while_fitted_and_in_evaluation_mode_in_use():
    x, y = data()
    head = nn.Sequential(nn.BatchNorm2d(16), LinearHead(16, 4, 3))
    probe = DiffusionProbe(features(), head, epochs=1, batch_size=8, random_state=0).fit(x, y)
    assert int(head[0].num_batches_tracked) == 3
    together = probe.predict_proba(x)
    assert int(head[0].num_batches_tracked) == 3
    assert together.shape == (24, 3)


def test_a_clone_shares_the_frozen_model():
    probe = DiffusionProbe(features(), C=2.0)
    other = clone(probe)
    assert other is not probe
    assert other.features is probe.features
    assert other.get_params()["C"] == 2.0


def test_bad_input_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match="head must be one of logistic, linear, mlp, conv, attention"):
        DiffusionProbe(features(), "tree").fit(x, y)
    with pytest.raises(ValueError, match=r"y must have shape \(24,\)"):
        DiffusionProbe(features()).fit(x, y[:5])
    with pytest.raises(ValueError, match="at least two classes"):
        DiffusionProbe(features()).fit(x, np.zeros(24))
    with pytest.raises(ValueError, match="the head has 5 classes, y has 3"):
        DiffusionProbe(features(), LinearHead(16, 4, 5)).fit(x, y)
    with pytest.raises(ValueError, match="one block at one timestep"):
        DiffusionProbe(features((2, 4)), "linear").fit(x, y)
    with pytest.raises(ValueError, match="uint8"):
        DiffusionProbe(features()).fit((x * 0).to(torch.uint8), y)
    with pytest.raises(ValueError, match=r"images must have shape \(n, channels, height, width\)"):
        DiffusionProbe(features()).fit(x[0], y)
    with pytest.raises(ValueError, match="as in fit"):
        DiffusionProbe(features()).fit(x, y).predict(x[:, :, :4, :4])
    with pytest.raises(ValueError, match="one block at one timestep"):
        ProbedHead(features((2, 4)), LinearHead(16, 4, 3))


def test_the_table_holds_the_accuracy_of_the_probe_at_every_place():
    x, y = data(36)
    held, held_y = data(24)
    table = select_block_timestep(
        features(), x, y, (2, 4), (0, 900), cv=(held, held_y), Cs=(0.01, 1.0), noise_samples=2
    )
    assert table.accuracy.shape == table.strength.shape == (2, 2)
    t, block = table.best
    accuracy, strength = table.at(t, block)
    assert accuracy == table.accuracy.max()
    assert strength in (0.01, 1.0)
    # By hand at one place: all features are taken in one pass, of the training and then the validation rows.
    both = torch.cat([x, held])
    found = features().over((2, 4), (0, 900), 2).extract(both, noise_samples=2)[900, 4].flatten(1).double().numpy()
    scaler = StandardScaler().fit(found[:36])
    scores = [
        LogisticRegression(C=C, max_iter=2000)
        .fit(scaler.transform(found[:36]), y)
        .score(scaler.transform(found[36:]), held_y)
        for C in (0.01, 1.0)
    ]
    assert table.at(900, 4)[0] == max(scores)
    folds = select_block_timestep(features(), x, y, [4], [0], cv=3, Cs=[1.0])
    assert folds.best == (0, 4)
    assert 0 < folds.accuracy[0, 0] <= 1


def test_less_noise_goes_before_more_among_equals():
    table = PlaceTable((0, 50), (1, 2), np.array([[0.5, 0.9], [0.9, 0.2]]), np.ones((2, 2)))
    assert table.best == (0, 2)


def test_the_map_is_drawn():
    table = PlaceTable((0, 50), (1, 2, 3), np.array([[0.5, 0.9, 0.1], [0.9, 0.2, 0.3]]), np.ones((2, 3)))
    figure = plot_places(table, middle=2)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["50", "90", "10", "90", "20", "30"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert axes.patches[0].get_xy() == (0.5, -0.5)
