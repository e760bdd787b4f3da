"""Forward-forward, Lion and SAM."""

import pytest
import torch
import torch.nn.functional as F

from etude.sequence.after_transformers.forward_forward import ForwardForwardTrainer, goodness, ridge_readout
from etude.sequence.after_transformers.optimizers import SAM, Lion


def trainer(seed=0, **options):
    torch.manual_seed(0)
    return ForwardForwardTrainer(5, 3, (7, 6), generator=torch.Generator().manual_seed(seed), **options)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_layer_cannot_read_off_the_goodness_before_it():
    model, x = trainer(), draw(4, 8)
    layer = model.layers[0]
    torch.testing.assert_close(layer(x), layer(3 * x))
    scaled = x / x.norm(dim=1, keepdim=True) * 8**0.5
    torch.testing.assert_close(layer(x), F.relu(layer.linear(scaled)))


def test_the_loss_is_its_equation():
    layer, one, other = trainer().layers[0], draw(4, 7), draw(4, 7, seed=1)
    up, down = one.square().sum(1), other.square().sum(1)
    expected = (torch.log1p((7 - up).exp()) + torch.log1p((down - 7).exp())).mean()
    torch.testing.assert_close(layer.loss(one, other), expected)


def test_layers_learn_each_for_itself():
    found = []
    for depth in (1, 2):
        torch.manual_seed(0)
        model = ForwardForwardTrainer(5, 3, (7, 6)[:depth], generator=torch.Generator().manual_seed(0))
        model.fit(draw(20, 5), torch.arange(20) % 3, epochs=2, batch_size=6)
        found.append(model.layers[0].linear.weight)
    assert torch.equal(*found)  # the second layer changes nothing in the first


def test_an_update_lowers_the_loss_of_its_batch():
    model = trainer(lr=1e-3)
    positive, negative = (model.labelled(draw(9, 5), torch.full((9,), label)) for label in (0, 1))
    before = model.update(positive, negative)
    for _ in range(20):
        after = model.update(positive, negative)
    assert all(b < a for a, b in zip(before, after))


def test_prediction_is_the_label_of_most_goodness():
    model, x = trainer(), draw(6, 5)
    for label in range(3):
        h, total = model.labelled(x, torch.full((6,), label)), 0
        for layer in model.layers:
            h = layer(h)
            total = total + goodness(h)
        torch.testing.assert_close(model.goodness(x)[:, label], total.detach())
    assert torch.equal(model.predict(x), model.goodness(x).argmax(1))


def test_the_generator_decides_order_and_wrong_labels():
    x, y = draw(20, 5), torch.arange(20) % 3
    weights = [trainer(seed).fit(x, y, epochs=1, batch_size=4).layers[1].linear.weight for seed in (0, 0, 1)]
    assert torch.equal(*weights[:2])
    assert not torch.equal(weights[0], weights[2])


def test_bad_forward_forward_is_refused():
    for sizes in ((0, 3, (4,)), (5, 1, (4,)), (5, 3, ()), (5, 3, (0,))):
        with pytest.raises(ValueError, match="need in_features"):
            ForwardForwardTrainer(*sizes)
    x, y = draw(4, 5), torch.arange(4) % 3
    with pytest.raises(ValueError, match="5 features"):
        trainer().fit(draw(4, 6), y)
    with pytest.raises(ValueError, match=r"labels must lie in 0..2, got 1..4"):
        trainer().fit(x, y % 2 * 3 + 1)
    with pytest.raises(ValueError, match="epochs >= 0"):
        trainer().fit(x, y, batch_size=0)


def test_ridge_reads_what_is_linear_in_the_features():
    model, x = trainer(), draw(60, 5)
    h = model.layers[0](torch.cat([torch.full((60, 3), 1 / 3), x], 1)).detach()
    y = h[:, :3].argmax(1)
    parts = [(x[a:b], y[a:b]) for a, b in ((0, 30), (30, 45), (45, 60))]
    assert ridge_readout(model, *parts) > 0.6


def test_lion_takes_steps_of_the_sign():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer, w, m = Lion([weight], lr=0.1, weight_decay=0.5), weight.detach().clone(), torch.zeros(3)
    for seed in range(4):
        g = draw(3, seed=seed)
        weight.grad = g
        optimizer.step()
        w = w - 0.1 * ((0.9 * m + 0.1 * g).sign() + 0.5 * w)
        m = 0.99 * m + 0.01 * g
        torch.testing.assert_close(weight.detach(), w)
    with pytest.raises(ValueError, match="need lr >= 0"):
        Lion([weight], betas=(0.9, 1.0))


def test_sam_takes_the_gradient_uphill():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    scale = torch.tensor([1.0, 4.0])
    sam = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)
    before = weight.detach().clone()
    loss = sam.step(lambda: (scale * weight.square()).sum() / 2)
    up = before + 0.5 * scale * before / (scale * before).norm()
    torch.testing.assert_close(weight.detach(), before - 0.1 * scale * up)
    torch.testing.assert_close(loss, (scale * before.square()).sum() / 2)
    with pytest.raises(ValueError, match="rho"):
        SAM(torch.optim.SGD([weight], lr=0.1), rho=-1)
