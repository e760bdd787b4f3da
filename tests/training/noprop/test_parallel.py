"""Blocks trained apart, in processes and on Ray, have the weights of algorithm 1 in one process, bit for bit."""

import os
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.data.kinds import Examples
from etude.training.noprop import LabelEmbedding, NoPropBlock, NoPropDT, parallel, train_blocks
from etude.training.noprop.discrete import parameters_of

T, CLASSES = 3, 3
MAKE = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)


def model(kind="one_hot"):
    torch.manual_seed(0)
    embedding = LabelEmbedding(CLASSES, None if kind == "one_hot" else 5, kind)
    # Dropout and batch norm are left on: their draws and statistics must agree too.
    return NoPropDT([NoPropBlock(1, 8, CLASSES, embedding.dim, hidden=8, channels=(2, 4)) for _ in range(T)], embedding)


def examples():
    g = torch.Generator().manual_seed(1)
    return Examples(torch.rand(30, 1, 8, 8, generator=g), torch.randint(CLASSES, (30,), generator=g))


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(engine, **options):
    net = model()
    report = train_blocks(net, examples(), epochs=2, batch_size=8, make=MAKE, seed=3, engine=engine, **options)
    return net, report


def assert_equal(one, other):
    (net, report), (again, reported) = one, other
    states = net.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert report.losses == reported.losses
    assert report.head_losses == pytest.approx(reported.head_losses)


def test_processes_give_the_weights_of_one_process_bit_for_bit(one_thread):
    inline = trained("inline")
    start = dict(model().named_parameters())
    assert all(not torch.equal(value, start[name]) for name, value in inline[0].named_parameters())
    assert_equal(inline, trained("process", workers=2))


@pytest.mark.slow  # starting Ray takes longer than all other tests of the paper
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(os.name == "nt", reason="Ray's processes are for POSIX")
def test_ray_gives_the_weights_of_one_process_bit_for_bit_and_is_stopped(one_thread):
    ray = pytest.importorskip("ray")
    assert_equal(trained("inline"), trained("ray", workers=2))
    assert not ray.is_initialized()


def test_inline_training_is_algorithm_1_with_named_streams(one_thread):
    """A step of the combined loss moves a block and the head as their own losses do."""
    net, other = model().train(), model().train()
    x, y = examples()[:8]
    for number, net_ in enumerate((net, other)):
        torch.manual_seed(7)
        noise, head = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        if number == 0:
            net_.loss(x, y, 2, noise, head)["total"].backward()
        else:
            net_.denoising_loss(x, y, 2, noise).backward()
            u = F.one_hot(y, CLASSES).float()
            F.cross_entropy(net_.head(net_.schedule.noised(u, T, head)), y).backward()
    for one, two in zip(net.parameters(), other.parameters()):
        assert (one.grad is None) == (two.grad is None)
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_training_is_seeded_and_draws_nothing_from_the_global_generator(one_thread):
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = model().eval()
    torch.set_rng_state(state)
    train_blocks(first, examples(), epochs=1, batch_size=8, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.training
    second, third = model(), model()
    train_blocks(second, examples(), epochs=1, batch_size=8, seed=1)
    train_blocks(third, examples(), epochs=1, batch_size=8, seed=2)
    assert torch.equal(first.blocks[0].fusion[0].weight, second.blocks[0].fusion[0].weight)
    assert not torch.equal(first.blocks[0].fusion[0].weight, third.blocks[0].fusion[0].weight)


def test_a_head_without_parameters_is_left_as_it_is(one_thread):
    net = model()
    net.head = nn.Identity()
    report = train_blocks(net, examples(), epochs=1, batch_size=8)
    recipe = parallel._Recipe(1, 8, MAKE, seed=0, threads=None)
    assert parallel._train_part(net.train(), 0, examples(), recipe) == pytest.approx(report.head_losses)
    assert not parameters_of(net.head)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"engine": "threads"}, ValueError, "engine must be one of inline, process, ray, got 'threads'"),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"threads": 0}, ValueError, "threads must be at least 1, got 0"),
        ({"batch_size": 1}, ValueError, "batch norm cannot train on a batch of 1 image"),
        ({"engine": "process", "make": lambda p: torch.optim.SGD(p, lr=1.0)}, TypeError, "make must be sent"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        train_blocks(model(), examples(), epochs=1, **options)


def test_learned_embeddings_are_refused_because_all_blocks_train_them():
    with pytest.raises(ValueError, match="blocks train apart only under a fixed embedding, this one is learned"):
        train_blocks(model("learned"), examples(), epochs=1)
