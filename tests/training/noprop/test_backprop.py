"""The end-to-end baselines: the chain and the neural ODE, with and without checkpoints."""

import pytest
import torch
import torch.nn.functional as F

from etude.training.noprop import BackpropChain, BackpropODE, LabelEmbedding, NoPropBlock

CLASSES = 3


def blocks(n, **options):
    torch.manual_seed(0)
    return [NoPropBlock(1, 8, CLASSES, CLASSES, hidden=8, channels=(2, 4), **options) for _ in range(n)]


def batch(n=6):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=g), torch.randint(CLASSES, (n,), generator=g)


def gen(seed=2):
    return torch.Generator().manual_seed(seed)


def test_the_chain_is_a_learned_mixture_of_state_and_prediction_at_every_block():
    net = BackpropChain(blocks(3), LabelEmbedding(CLASSES)).eval()
    with torch.no_grad():
        net.w.copy_(torch.tensor([0.5, -0.2, 1.0]))
    x, _ = batch()
    z = torch.randn(6, CLASSES, generator=gen())
    for block, w in zip(net.blocks, (0.5, -0.2, 1.0)):
        alpha = torch.tensor(w).tanh()
        z = (1 - alpha) * z + alpha * block(x, z).softmax(1)
    torch.testing.assert_close(net(x, gen()), net.head(z))
    torch.testing.assert_close(net.predict_proba(x, gen()), net.head(z).softmax(1))


def test_the_chain_trains_every_block_end_to_end_from_the_stated_start():
    net = BackpropChain(blocks(3), LabelEmbedding(CLASSES), w=0.7)
    assert torch.equal(net.w, torch.full((3,), 0.7))
    x, y = batch()
    F.cross_entropy(net(x, gen()), y).backward()
    for block in net.blocks:
        assert sum(parameter.grad.abs().sum() for parameter in block.parameters()) > 0
    assert (net.w.grad != 0).all()


def test_noise_is_new_at_every_pass_and_seeded():
    net = BackpropChain(blocks(2), LabelEmbedding(CLASSES)).eval()
    x, _ = batch()
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net(x, gen(0)), net(x, gen(0)))
    assert torch.equal(net.predict(x, gen(0)), net.predict(x, gen(0)))


def test_checkpoints_change_neither_values_nor_gradients():
    x, y = batch()
    found = []
    for checkpointing in (False, True):
        net = BackpropChain(blocks(3, batch_norm=False), LabelEmbedding(CLASSES), checkpointing=checkpointing)
        torch.manual_seed(3)
        loss = F.cross_entropy(net(x, gen()), y)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in net.blocks.parameters())])
        torch.manual_seed(0)
    for plain, again in zip(*found):
        torch.testing.assert_close(plain, again)


def test_the_ode_is_solved_by_euler_steps_and_differentiated():
    (block,) = blocks(1, time_embed=4, dropout=0.0)
    net = BackpropODE(block, LabelEmbedding(CLASSES), num_steps=4)
    x, y = batch()
    z = torch.randn(6, CLASSES, generator=gen())
    for step in range(4):
        z = z + (block(x, z, torch.full((6,), step / 4)).softmax(1) - z) / 4
    expected = net.head(z)
    logits = net(x, gen())
    torch.testing.assert_close(logits, expected)
    ours = torch.autograd.grad(F.cross_entropy(logits, y), list(block.parameters()))
    theirs = torch.autograd.grad(F.cross_entropy(expected, y), list(block.parameters()))
    for mine, other in zip(ours, theirs):
        torch.testing.assert_close(mine, other)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="blocks must hold at least one block, got none"):
        BackpropChain([], LabelEmbedding(CLASSES))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        BackpropODE(blocks(1, time_embed=4)[0], LabelEmbedding(CLASSES), num_steps=0)
    with pytest.raises(ValueError, match="batch norm cannot train on a batch of 1 image"):
        BackpropChain(blocks(1), LabelEmbedding(CLASSES)).train()(batch(1)[0])
