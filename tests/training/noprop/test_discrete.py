"""NoProp-DT: local gradients, the scale of the loss, the chain of inference."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training.noprop import LabelEmbedding, LabelSchedule, NoPropBlock, NoPropDT, RadialHead, prior_kl
from etude.training.noprop.discrete import check_batch

T, CLASSES = 4, 3


def model(kind="one_hot", **options):
    torch.manual_seed(0)
    embedding = LabelEmbedding(CLASSES, {"one_hot": None, "learned": 5, "prototype": 64}[kind], kind)
    if kind == "prototype":
        embedding.init_prototypes(torch.rand(6, 1, 8, 8), torch.arange(6) % CLASSES)
    blocks = [NoPropBlock(1, 8, CLASSES, embedding.dim, hidden=8, channels=(2, 4)) for _ in range(T)]
    return NoPropDT(blocks, embedding, **options)


def batch(n=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(CLASSES, (n,), generator=g)


def gen(seed=2):
    return torch.Generator().manual_seed(seed)


class Known(nn.Module):
    """A block that knows the labels, or is wrong by a given number of logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x, z, t=None):
        return self.logits


@pytest.mark.parametrize("kind", ["one_hot", "learned", "prototype"])
@pytest.mark.parametrize("t", [1, 3, T])
def test_a_loss_gives_gradients_to_its_block_the_head_and_a_learned_w_alone(kind, t):
    net = model(kind)
    net.loss(*batch(), t, gen())["total"].backward()
    for place, block in enumerate(net.blocks, start=1):
        present = [parameter.grad is not None for parameter in block.parameters()]
        assert all(present) if place == t else not any(present)
    assert all(parameter.grad is not None for parameter in net.head.parameters())
    if kind != "one_hot":
        assert net.embedding.weight.grad.abs().sum() > 0
    assert net.embedding.learned == (kind != "one_hot")


def test_no_other_block_runs_in_a_loss():
    net, ran = model(), []
    for place, block in enumerate(net.blocks, start=1):
        block.register_forward_hook(lambda *_, place=place: ran.append(place))
    net.loss(*batch(), 2, gen())
    assert ran == [2]


def test_the_loss_equals_algorithm_1_written_out():
    net = model("learned").eval()
    x, y = batch()
    s, u = net.schedule, net.embedding.weight[y]
    g = gen()
    z = math.sqrt(s.alpha_bar[1]) * u + math.sqrt(1 - s.alpha_bar[1]) * torch.randn(u.shape, generator=g)
    z_end = math.sqrt(s.alpha_bar[T]) * u + math.sqrt(1 - s.alpha_bar[T]) * torch.randn(u.shape, generator=g)
    predicted = net.blocks[1](x, z).softmax(1) @ net.embedding.weight
    error = sum((predicted[i] - u[i]).square().sum() for i in range(len(y))) / len(y)
    expected = {
        "ce": F.cross_entropy(net.head(z_end), y),
        "kl": prior_kl(u, s.alpha_bar[0].item()),
        "denoise": T / 2 * 0.1 * (s.snr[2] - s.snr[1]).item() * error,
    }
    found = net.loss(x, y, 2, gen())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["total"], sum(expected.values()), rtol=1e-5, atol=1e-6)


def test_the_mean_over_blocks_weighs_errors_by_half_eta_and_the_gain():
    x, y = batch(4)
    wrong = Known(torch.tensor([[30.0, 0.0, 0.0]]).expand(4, -1))  # u = class 0, an error of 2 where y is not 0
    net = NoPropDT([wrong] * T, LabelEmbedding(CLASSES), eta=0.7)
    error = 2 * (y != 0).float().mean().item()
    mean = sum(net.loss(x, y, t, gen())["denoise"].item() for t in range(1, T + 1)) / T
    assert mean == pytest.approx(0.7 / 2 * (net.schedule.snr[T] - net.schedule.snr[0]).item() * error, rel=1e-5)


def test_gradients_of_a_learned_w_flow_through_prediction_and_target():
    net = model("learned").eval()
    x, y = batch()
    loss = net.denoising_loss(x, y, 2, gen())
    (full,) = torch.autograd.grad(loss, net.embedding.weight)
    u = net.embedding(y).detach()
    fixed_target = net.denoise(x, net.schedule.noised(net.embedding(y), 1, gen()), 2) - u
    partial = T / 2 * net.eta * net.schedule.snr_gain(2) * fixed_target.square().sum(1).mean()
    (through_prediction,) = torch.autograd.grad(partial, net.embedding.weight)
    assert not torch.allclose(full, through_prediction)


@pytest.mark.parametrize("kind", ["one_hot", "learned"])
def test_predictions_of_a_block_are_convex_combinations_of_embeddings(kind):
    net = model(kind).eval()
    x, _ = batch()
    z = torch.randn(6, net.embedding.dim, generator=gen())
    weights = net.blocks[0](x, z).softmax(1)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(6))
    torch.testing.assert_close(net.denoise(x, z, 1), weights @ net.embedding.weight)


def test_a_chain_of_blocks_that_know_the_label_predicts_it():
    x, y = batch(50)
    net = NoPropDT([Known(60.0 * F.one_hot(y, CLASSES))] * T, LabelEmbedding(CLASSES), head=nn.Identity())
    assert torch.equal(net.predict(x, generator=gen()), y)


def test_prediction_equals_the_chain_written_out():
    net = model().eval()
    x, _ = batch()
    g = gen()
    z = torch.randn(6, CLASSES, generator=g)
    for t in range(1, T + 1):
        z = net.schedule.step(t, z, net.denoise(x, z, t), g)
    torch.testing.assert_close(net.predict_proba(x, generator=gen()), net.head(z).softmax(1))


def test_predictions_are_seeded_noisy_and_leave_the_mode_alone():
    net = model().train()
    net.blocks[0].eval()
    x, _ = batch(20)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net.predict_proba(x, generator=gen(0))
    assert torch.equal(first, net.predict_proba(x, generator=gen(0)))
    assert not torch.equal(first, net.predict_proba(x, generator=gen(1)))
    assert net.blocks[1].training
    assert not net.blocks[0].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_radial_head_trains_with_the_embedding_and_is_listed_once():
    embedding = LabelEmbedding(CLASSES, 5, "learned")
    net = NoPropDT([NoPropBlock(1, 8, CLASSES, 5, hidden=8, channels=(2, 4))], embedding, head=RadialHead(embedding))
    shared = net.shared_parameters()
    assert len(shared) == len({id(parameter) for parameter in shared}) == 3
    net.loss(*batch(), 1, gen())["total"].backward()
    assert all(parameter.grad is not None for parameter in shared)


def test_parameters_are_listed_by_block_without_overlap():
    net = model("learned")
    listed = [p for t in range(1, T + 1) for p in net.blockwise_parameters(t)] + net.shared_parameters()
    assert len(listed) == len({id(p) for p in listed}) == len(list(net.parameters()))


def test_batch_norm_refuses_a_batch_of_one_in_training_only():
    net = model().train()
    x, y = batch(1)
    with pytest.raises(ValueError, match="batch norm cannot train on a batch of 1 image"):
        net.loss(x, y, 1)
    net.eval()
    assert torch.isfinite(net.loss(x, y, 1)["total"])
    plain = [NoPropBlock(1, 8, CLASSES, CLASSES, hidden=8, channels=(2, 4), batch_norm=False)]
    assert torch.isfinite(NoPropDT(plain, LabelEmbedding(CLASSES)).train().loss(x, y, 1)["total"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoPropDT([], LabelEmbedding(3)), "blocks must hold at least one block, got none"),
        (lambda: model(eta=0.0), "eta must be positive, got 0.0"),
        (lambda: model(schedule=LabelSchedule([0.1, 0.9])), "schedule has 1 steps for 4 blocks"),
        (lambda: model().loss(*batch(), 0), r"t must lie in 1\.\.4, got 0"),
        (lambda: model().loss(*batch(), 5), r"t must lie in 1\.\.4, got 5"),
        (lambda: model().blockwise_parameters(0), r"t must lie in 1\.\.4, got 0"),
        (lambda: model().loss(batch()[0], torch.full((6,), 3), 1), r"y must lie in 0\.\.2 \(3 classes\), got 3\.\.3"),
        (lambda: check_batch(model(), model(), batch(5)[0], batch(6)[1]), "got 5 images and 6 labels"),
        (lambda: model().loss(*batch(0), 1), "the batch is empty"),
        (lambda: model().predict(batch()[0], num_steps=7), "num_steps must be 4, one for each block, got 7"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
