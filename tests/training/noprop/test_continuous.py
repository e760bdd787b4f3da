"""NoProp-CT and NoProp-FM: their losses written out, the limit of many blocks, Euler's method on a straight path."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training.noprop import (
    LabelEmbedding,
    LabelSchedule,
    LearnedLabelSchedule,
    NoPropBlock,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    prior_kl,
)

CLASSES = 3


def parts(kind="one_hot"):
    torch.manual_seed(0)
    embedding = LabelEmbedding(CLASSES, None if kind == "one_hot" else 5, kind)
    return NoPropBlock(1, 8, CLASSES, embedding.dim, hidden=8, channels=(2, 4), time_embed=4), embedding


def batch(n=6):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(CLASSES, (n,), generator=g)


def gen(seed=2):
    return torch.Generator().manual_seed(seed)


def grads(module):
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("kind", ["one_hot", "learned"])
def test_the_ct_loss_trains_block_head_schedule_and_a_learned_w(kind):
    net = NoPropCT(*parts(kind))
    net.loss(*batch(), generator=gen())["total"].backward()
    for module in (net.block, net.head, net.schedule):
        assert all(gradient is not None for gradient in grads(module))
    assert sum(gradient.abs().sum() for gradient in grads(net.schedule)) > 0
    assert len(grads(net.embedding)) == (kind == "learned")
    listed = net.blockwise_parameters(1) + net.shared_parameters()
    assert len({id(p) for p in listed}) == len(listed) == len(list(net.parameters()))


def test_the_ct_loss_equals_algorithm_2_written_out():
    net = NoPropCT(*parts("learned"), eta=0.5).eval()
    x, y = batch()
    t = torch.rand(6, generator=gen(5)).requires_grad_()
    u, s, g = net.embedding.weight[y], net.schedule, gen()
    abar = torch.sigmoid(-s.gamma(t))
    z = abar.sqrt()[:, None] * u + (1 - abar).sqrt()[:, None] * torch.randn(u.shape, generator=g)
    predicted = net.block(x, z, t).softmax(1) @ net.embedding.weight
    (slope,) = torch.autograd.grad(torch.exp(-s.gamma(t)).sum(), t)
    end = torch.sigmoid(-s.gamma(torch.tensor(1.0)))
    z_end = end.sqrt() * u + (1 - end).sqrt() * torch.randn(u.shape, generator=g)
    expected = {
        "denoise": 0.5 / 2 * (slope * (predicted - u).square().sum(1)).mean(),
        "ce": F.cross_entropy(net.head(z_end), y),
        "kl": prior_kl(u, torch.sigmoid(-s.gamma(torch.tensor(0.0))).item()),
    }
    found = net.loss(x, y, t.detach(), gen())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["total"], sum(expected.values()), rtol=1e-4, atol=1e-5)


class Sure(nn.Module):
    """A block whose mistake depends smoothly on z and nothing else."""

    def forward(self, x, z, t=None):
        return 3 * z.sin()


def test_many_blocks_of_one_schedule_approach_the_continuous_loss():
    torch.manual_seed(0)
    embedding, schedule = LabelEmbedding(CLASSES), LearnedLabelSchedule(gamma_0=-2.0, gamma_1=2.0)
    y = torch.arange(4_000) % CLASSES
    x = torch.zeros(len(y), 1, 1, 1)
    continuous = NoPropCT(Sure(), embedding, schedule=schedule, eta=1.0)
    grid = (torch.arange(len(y)) + 0.5) / len(y)
    shuffled = grid[torch.randperm(len(y), generator=gen())]
    with torch.no_grad():
        expected = continuous.loss(x, y, shuffled, gen())["denoise"].item()
        gaps = []
        for steps in (2, 50):
            abar = schedule.alpha_bar(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
            discrete = NoPropDT([Sure()] * steps, embedding, schedule=LabelSchedule(abar), eta=1.0)
            g = gen()
            terms = [discrete.denoising_loss(x, y, t, g).item() for t in range(1, steps + 1)]
            gaps.append(abs(sum(terms) / steps - expected) / expected)
    assert gaps[1] < 0.05 < gaps[0]


def test_ct_inference_equals_the_steps_written_out():
    net = NoPropCT(*parts()).eval()
    x, _ = batch()
    g = gen()
    z = torch.randn(6, CLASSES, generator=g)
    times = torch.linspace(0, 1, 8, dtype=torch.float64)
    fixed = LabelSchedule(net.schedule.alpha_bar(times).detach())
    with torch.no_grad():
        for step in range(1, 8):
            t = torch.full((6,), (step - 1) / 7)
            z = fixed.step(step, z, net.block(x, z, t).softmax(1) @ net.embedding.weight, g)
        expected = net.head(z).softmax(1)
    torch.testing.assert_close(net.predict_proba(x, num_steps=7, generator=gen()), expected, rtol=1e-4, atol=1e-5)


class Straight(nn.Module):
    """Exact coordinates of the velocity z_1 - z_0 at any point of the straight path to the rows of W, W = I."""

    def __init__(self, y):
        super().__init__()
        self.y = y

    def forward(self, x, z, t):
        return (F.one_hot(self.y, CLASSES) - z) / (1 - t[:, None])


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_euler_steps_along_a_straight_path_land_on_the_embedding(steps):
    x, y = batch(20)
    net = NoPropFM(Straight(y), LabelEmbedding(CLASSES))
    end = net.transport(x, num_steps=steps, generator=gen())
    torch.testing.assert_close(end, F.one_hot(y, CLASSES).float(), atol=1e-4, rtol=0)
    assert torch.equal(net.predict(x, num_steps=steps, generator=gen()), y)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_fm_loss_equals_algorithm_3_written_out(sigma):
    net = NoPropFM(*parts("learned"), sigma=sigma).eval()
    x, y = batch()
    t, g = torch.rand(6, generator=gen(5)), gen()
    u = net.embedding.weight[y]
    start = torch.randn(u.shape, generator=g)
    z = t[:, None] * u + (1 - t)[:, None] * start
    if sigma:
        z = z + sigma * torch.randn(u.shape, generator=g)
    v = net.block(x, z, t) @ net.embedding.weight
    found = net.loss(x, y, t, gen())
    denoise = sum((v[i] - (u[i] - start[i])).square().sum() for i in range(6)) / 6
    torch.testing.assert_close(found["denoise"], denoise, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["ce"], F.cross_entropy(net.head(z + (1 - t)[:, None] * v), y))
    torch.testing.assert_close(found["total"], found["ce"] + found["denoise"])


def test_fm_with_fixed_embeddings_has_no_anchor_and_no_head():
    net = NoPropFM(*parts())
    assert set(net.loss(*batch(), generator=gen())) == {"total", "denoise"}
    assert net.shared_parameters() == []


def test_the_velocity_is_not_confined_to_the_simplex():
    net = NoPropFM(*parts()).eval()
    x, _ = batch()
    v = net.velocity(x, torch.randn(6, CLASSES), torch.rand(6))
    assert (v < 0).any()
    assert not torch.allclose(v.sum(1), torch.ones(6), atol=1e-3)


def test_fm_probabilities_fall_with_the_distance_to_the_embeddings():
    net = NoPropFM(*parts("learned")).eval()
    x, _ = batch()
    z, p = net.transport(x, 3, gen()), net.predict_proba(x, 3, gen())
    for row in range(6):
        weights = [math.exp(-(z[row] - u).square().sum().item() / 2) for u in net.embedding.weight]
        assert p[row].tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-4)


class Counting(nn.Module):
    """A block of the user's own, without `image_features`."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls = nn.Linear(64 + CLASSES + 1, CLASSES), 0

    def forward(self, x, z, t):
        self.calls += 1
        return self.linear(torch.cat([x.flatten(1), z, t[:, None]], 1))


@pytest.mark.parametrize("variant", [NoPropCT, NoPropFM])
def test_any_module_is_a_block_and_predictions_are_seeded(variant):
    net, (x, y) = variant(Counting(), LabelEmbedding(CLASSES)), batch(20)
    net.loss(x, y)["total"].backward()
    first = net.predict_proba(x, 4, gen(0))
    assert net.block.calls == 5
    assert torch.equal(first, net.predict_proba(x, 4, gen(0)))
    assert not torch.equal(first, net.predict_proba(x, 4, gen(1)))
    torch.testing.assert_close(first.sum(1), torch.ones(20))


def test_images_are_read_once_for_all_steps():
    block, embedding = parts()
    read = []
    block.image.register_forward_hook(lambda *_: read.append(1))
    NoPropCT(block, embedding).predict(batch()[0], 9, gen())
    assert len(read) == 1


@pytest.mark.parametrize("variant", [NoPropCT, NoPropFM])
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net.loss(*batch(), torch.full((6,), 1.5)), r"t must hold 6 times in \[0, 1\]"),
        (lambda net: net.loss(*batch(), torch.full((6,), math.nan)), r"t must hold 6 times in \[0, 1\]"),
        (lambda net: net.loss(batch()[0], torch.full((6,), 3)), r"y must lie in 0\.\.2 \(3 classes\), got 3\.\.3"),
        (lambda net: net.predict(batch()[0], 0), "num_steps must be at least 1, got 0"),
        (lambda net: net.blockwise_parameters(2), "there is one block, t must be 1, got 2"),
    ],
)
def test_bad_input_is_refused(variant, call, message):
    with pytest.raises(ValueError, match=message):
        call(variant(*parts()))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"eta must be positive, got -1\.0"):
        NoPropCT(*parts(), eta=-1.0)
    with pytest.raises(ValueError, match=r"sigma must be >= 0, got -0\.1"):
        NoPropFM(*parts(), sigma=-0.1)
