"""Gradients and attention, against definitions and functions whose truth is known."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.science.blackbox_rules import (
    BlackBoxClassifier,
    attention_importance,
    gradient_importance,
    gradient_x_input,
    integrated_gradients,
    permutation_importance,
    probing,
    sensitivity_importance,
)


class OnlyThird(nn.Module):
    """Logits that depend on column 3 alone."""

    def forward(self, x):
        return torch.stack([torch.tanh(2 * x[:, 3]), 0.3 * x[:, 3] ** 2 - 1], dim=1)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 16), nn.SELU(), nn.Linear(16, 3)).double().eval()


def test_what_reads_only_column_3_has_all_importance_there_and_exactly_0_elsewhere():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    net = OnlyThird()

    def predict(X):
        return net(torch.from_numpy(np.asarray(X))).softmax(-1).double().numpy()

    found = {
        "ig": integrated_gradients(net, x).abs().mean(0).numpy(),
        "gradient x input": gradient_x_input(net, x).abs().mean(0).numpy(),
        "permutation": permutation_importance(predict, x, rng=np.random.default_rng(0)),
        "sensitivity": sensitivity_importance(predict, x).importance,
    }
    for name, importance in found.items():
        assert importance[3] > 0, name
        assert (np.delete(importance, 3) == 0).all(), name


def test_integrated_gradients_sum_to_the_difference_from_the_baseline():
    net = small_net()
    generator = torch.Generator().manual_seed(1)
    x = 2 * torch.randn(20, 7, generator=generator, dtype=torch.float64)
    baseline = torch.randn(7, generator=generator, dtype=torch.float64)
    target = net(x).argmax(-1)
    attribution = integrated_gradients(net, x, baseline=baseline, steps=256)

    def answer(rows):
        return net(rows).log_softmax(-1).gather(1, target[:, None])[:, 0]

    with torch.no_grad():
        difference = answer(x) - answer(baseline.expand_as(x))
    error = (attribution.sum(1) - difference).abs()
    assert (error < 0.01 * difference.abs().clamp(min=0.1)).all()


def test_integrated_gradients_equal_a_loop_over_rows_and_midpoints():
    net = small_net()
    x = torch.randn(3, 7, dtype=torch.float64)
    found = integrated_gradients(net, x, steps=5)
    for row, attribution in zip(x, found):
        label = net(row[None]).argmax().item()
        total = torch.zeros(7, dtype=torch.float64)
        for k in range(5):
            point = ((k + 0.5) / 5 * row).requires_grad_()
            net(point[None]).log_softmax(-1)[0, label].backward()
            total += point.grad / 5
        torch.testing.assert_close(attribution, row * total)


def test_passes_cut_small_give_the_same(monkeypatch):
    net, x = small_net(), torch.randn(9, 7, dtype=torch.float64)
    whole, simple = integrated_gradients(net, x, steps=6), gradient_x_input(net, x)
    monkeypatch.setattr(probing, "_NUMBERS", 14)
    torch.testing.assert_close(integrated_gradients(net, x, steps=6), whole)
    torch.testing.assert_close(gradient_x_input(net, x), simple)


def test_gradient_times_input_of_a_linear_answer_is_its_terms():
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    net = nn.Linear(3, 2, bias=False)
    net.weight.data = weight
    x = torch.tensor([[3.0, 1.0, 2.0]])
    p = net(x).softmax(-1)[0, 0].item()
    torch.testing.assert_close(gradient_x_input(net, x), (1 - p) * x * weight[0])


def fitted(kind, **options):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 10))
    X[:, 6] = 1.0
    y = (X[:, 2] > 0).astype(int)
    return BlackBoxClassifier(kind, epochs=3, pretrain_epochs=1, latent=4, **options).fit(X, y), X, y


@pytest.mark.parametrize("kind", ["gated", "san", "cae", "dae", "mlp"])
@pytest.mark.parametrize("method", ["integrated", "gradient_x_input"])
def test_the_probe_reaches_the_columns_of_the_table(kind, method):
    box, X, _ = fitted(kind)
    importance = gradient_importance(box, X, method)
    assert importance.shape == (10,)
    assert importance[6] == 0
    assert (np.delete(importance, 6) > 0).all()
    x = box.standardize(X)
    raw = integrated_gradients(box.network_, x) if method == "integrated" else gradient_x_input(box.network_, x)
    np.testing.assert_allclose(importance[box.kept_], raw.abs().mean(0).numpy(), rtol=1e-5)


def test_instance_attention_is_the_mean_over_correct_rows_and_heads():
    box, X, y = fitted("san")
    right = box.predict(X) == y
    assert 0 < right.sum() < len(y)
    x = box.standardize(X)[torch.from_numpy(right)]
    expected = box.network_.attention(x).mean((0, 1)).numpy()
    found = attention_importance(box, X, y)
    np.testing.assert_allclose(found[box.kept_], expected, rtol=1e-5)
    assert found[6] == 0
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)


def test_global_attention_does_not_see_that_the_head_ignores_a_feature():
    box, _, _ = fitted("san")
    with torch.no_grad():
        box.network_.weight[:, 0, 0] += 5
        box.network_.encode.weight[:, 0] = 0
        # Without its own influence on the others' attention, column 0 is of no use at all.
        box.network_.weight[:, 1:, 0] = 0
        box.network_.weight[:, 0, 1:] = 0
    assert attention_importance(box, scope="global").argmax() == 0


def test_what_cannot_be_probed_is_refused():
    box, X, _ = fitted("mlp")
    with pytest.raises(TypeError, match="kind san or gated, got 'mlp'"):
        attention_importance(box, X)
    with pytest.raises(ValueError, match="integrated or gradient_x_input, got 'saliency'"):
        gradient_importance(box, X, "saliency")
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        integrated_gradients(OnlyThird(), torch.zeros(1, 4), steps=0)
    gate, X, _ = fitted("gated")
    with pytest.raises(ValueError, match="instance or global, got 'local'"):
        attention_importance(gate, X, scope="local")
    with pytest.raises(ValueError, match="needs rows X"):
        attention_importance(gate)
