"""The loops: which parameters move, in which order, how often; and what autograd keeps."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from etude.data.kinds import Examples
from etude.training.noprop import (
    BackpropChain,
    LabelEmbedding,
    Minibatches,
    NoPropBlock,
    NoPropCT,
    NoPropDT,
    NoPropFM,
    block_optimizers,
    saved_tensor_bytes,
    train_noprop_epoch,
)

T, CLASSES = 3, 3


def dt(kind="one_hot"):
    torch.manual_seed(0)
    embedding = LabelEmbedding(CLASSES, None if kind == "one_hot" else 5, kind)
    blocks = [NoPropBlock(1, 8, CLASSES, embedding.dim, hidden=8, channels=(2, 4)) for _ in range(T)]
    return NoPropDT(blocks, embedding)


def continuous(variant):
    torch.manual_seed(0)
    return variant(
        NoPropBlock(1, 8, CLASSES, CLASSES, hidden=8, channels=(2, 4), time_embed=4), LabelEmbedding(CLASSES)
    )


def examples(n=20):
    g = torch.Generator().manual_seed(1)
    return Examples(torch.rand(n, 1, 8, 8, generator=g), torch.randint(CLASSES, (n,), generator=g))


def gen(seed=2):
    return torch.Generator().manual_seed(seed)


def copies(module):
    return [value.clone() for value in module.state_dict().values()]


def moved(module, before):
    return any(not torch.equal(new, old) for new, old in zip(module.state_dict().values(), before))


def spy(net):
    """The blocks whose loss was taken, in order."""
    taken, loss = [], net.loss

    def watched(x, y, t, *rest):
        taken.append(t)
        return loss(x, y, t, *rest)

    net.loss = watched
    return taken


def test_the_sequential_order_takes_each_block_through_all_minibatches():
    net = dt()
    taken = spy(net)
    train_noprop_epoch(net, Minibatches(examples(), 5, gen()), block_optimizers(net), generator=gen())
    assert taken == [1] * 4 + [2] * 4 + [3] * 4


def test_the_sampled_order_draws_blocks_uniformly_and_takes_as_many_steps():
    net = dt()
    taken = spy(net)
    for seed in range(10):
        train_noprop_epoch(net, Minibatches(examples(), 4, gen()), block_optimizers(net), "sampled", gen(seed))
    assert len(taken) == 10 * 5 * T
    assert all(30 < taken.count(t) < 70 for t in range(1, T + 1))


def test_a_step_leaves_the_other_blocks_and_their_buffers_alone():
    net = dt("learned")
    optimizers = block_optimizers(net, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    for optimizer in optimizers.blocks:  # moments that would carry a block on
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    before = [copies(block) for block in net.blocks]
    shared = copies(net.head), copies(net.embedding)
    terms = net.train().loss(*examples()[:6], 2, gen())
    for optimizer in optimizers.of(2):
        optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    for optimizer in optimizers.of(2):
        optimizer.step()
    assert [moved(block, old) for block, old in zip(net.blocks, before)] == [False, True, False]
    assert moved(net.head, shared[0])
    assert moved(net.embedding, shared[1])


def test_an_epoch_equals_the_plain_loop():
    one, other = dt(), dt()
    torch.manual_seed(5)
    report = train_noprop_epoch(one, Minibatches(examples(), 5, gen(3)), block_optimizers(one), generator=gen())
    torch.manual_seed(5)
    opt = [torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=1e-3) for block in other.blocks]
    opt_head = torch.optim.AdamW(other.head.parameters(), lr=1e-3, weight_decay=1e-3)
    other.train()
    loader, noise, total = Minibatches(examples(), 5, gen(3)), gen(), []
    for t in range(1, T + 1):
        for x, y in loader:
            loss = other.loss(x, y, t, noise)["total"]
            opt[t - 1].zero_grad(set_to_none=True)
            opt_head.zero_grad(set_to_none=True)
            loss.backward()
            opt[t - 1].step()
            opt_head.step()
            total.append(loss.item())
    assert all(torch.equal(a, b) for a, b in zip(copies(one), copies(other)))
    assert report["total"] == pytest.approx(sum(total) / len(total), rel=1e-5)


@pytest.mark.parametrize("variant", [NoPropCT, NoPropFM])
def test_the_continuous_variants_make_one_pass_and_train_all_their_parts(variant):
    net = continuous(variant)
    before, calls = [copies(part) for part in net.children()], spy(net)
    report = train_noprop_epoch(net, Minibatches(examples(), 5, gen()), block_optimizers(net), generator=gen())
    assert len(calls) == 4
    names = [name for name, _ in net.named_children()]
    assert [name for name, part, old in zip(names, net.children(), before) if moved(part, old)] == [
        name for name in names if name != "embedding"
    ]
    assert {"total", "denoise"} <= set(report)


def test_a_data_loader_serves_and_modes_are_restored():
    net, data = dt().eval(), examples()
    net.blocks[0].train()
    loader = DataLoader(TensorDataset(data.inputs, data.targets), batch_size=6, shuffle=True, drop_last=True)
    train_noprop_epoch(net, loader, block_optimizers(net))
    assert net.blocks[0].training
    assert not net.blocks[1].training


def test_default_optimizers_are_the_papers():
    assert type(block_optimizers(dt()).blocks[0]) is torch.optim.AdamW
    made = block_optimizers(continuous(NoPropCT))
    assert type(made.shared) is torch.optim.Adam
    assert made.shared.param_groups[0]["weight_decay"] == made.shared.param_groups[0]["lr"] == 1e-3
    assert block_optimizers(continuous(NoPropFM)).shared is None


def test_minibatches_are_reshuffled_whole_and_seeded():
    data = Examples(torch.arange(10.0)[:, None], torch.arange(10))
    batches = Minibatches(data, 4, gen())
    first, second = ([y.tolist() for _, y in batches] for _ in range(2))
    assert [len(rows) for rows in first] == [4, 4]
    assert first != second
    assert len({label for rows in first for label in rows}) == 8
    assert [y.tolist() for _, y in Minibatches(data, 4, gen())] == first
    assert len(Minibatches(data, 100)) == 1


def test_bad_arguments_are_refused():
    net = dt()
    with pytest.raises(ValueError, match="order must be one of sequential, sampled, got 'random'"):
        train_noprop_epoch(net, [], block_optimizers(net), "random")
    with pytest.raises(ValueError, match="the loader yields no batch"):
        train_noprop_epoch(net, [], block_optimizers(net))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Minibatches(examples(), 0)
    with pytest.raises(ValueError, match="there are no examples to train on"):
        Minibatches(Examples(torch.empty(0, 1), torch.empty(0)), 4)
    with pytest.raises(ValueError, match="batch norm cannot train on a batch of 1 image"):
        train_noprop_epoch(net, Minibatches(examples(), 1), block_optimizers(net))


def test_saved_bytes_count_each_storage_once_and_no_parameter():
    layer, x = nn.Linear(10, 7, bias=False), torch.randn(5, 10, requires_grad=True)

    def compute():
        hidden = layer(x)  # keeps x and the weight
        return (hidden.exp() * hidden.view(7, 5).T.sigmoid()).sum()  # keeps exp once, the sigmoid once

    assert saved_tensor_bytes(compute, layer.parameters()) == 4 * (50 + 35 + 35)
    assert saved_tensor_bytes(compute) == 4 * (50 + 35 + 35 + 70)


def test_a_step_of_one_block_keeps_as_much_however_many_blocks_there_are():
    x, y = examples()[:16]
    kept = {}
    for blocks in (2, 4):
        made = [NoPropBlock(1, 8, CLASSES, CLASSES, hidden=8, channels=(2, 4)) for _ in range(blocks)]
        local, chain = NoPropDT(made, LabelEmbedding(CLASSES)), BackpropChain(made, LabelEmbedding(CLASSES))
        kept["local", blocks] = saved_tensor_bytes(lambda net=local: net.loss(x, y, 1), local.parameters())
        kept["chain", blocks] = saved_tensor_bytes(lambda net=chain: net(x), chain.parameters())
    assert kept["local", 2] == kept["local", 4]
    assert kept["chain", 4] > 1.8 * kept["chain", 2]
