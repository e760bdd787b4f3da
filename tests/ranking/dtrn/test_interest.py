"""The task-specific interest module: read-outs, padding, empty sequences, memory."""

import pytest
import torch
from torch import nn

from etude.ranking.dtrn import ActivationReadout, TaskInterestModule, keep_latest

K, M, T, D = 3, 2, 6, 8


def batch(size=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, M, T, D, generator=generator, dtype=dtype)
    length = torch.randint(1, T, (size, M), generator=generator)
    target = torch.randn(size, D, generator=generator, dtype=dtype)
    return x, torch.arange(T) < length[..., None], target


def module(seed=0, **options):
    torch.manual_seed(seed)
    tim = TaskInterestModule(D, K, M, 10, **options).double()
    if tim.hyper is not None:
        nn.init.normal_(tim.hyper.out.weight, std=0.3)
    return tim


def test_with_w2_zero_all_tasks_have_the_interests_of_the_plain_module():
    tim, plain = module(), module(conditional=False)
    nn.init.zeros_(tim.hyper.out.weight)
    x, mask, target = batch()
    got, want = tim(x, mask, target), plain(x, mask, target)
    assert got.shape == (5, K, M, D)
    assert want.shape == (5, 1, M, D)
    # The weights of both are the same draws.
    plain.load_state_dict({k: v for k, v in tim.state_dict().items() if "hyper" not in k}, strict=False)
    torch.testing.assert_close(got, plain(x, mask, target).expand_as(got), atol=1e-6, rtol=0)


@pytest.mark.parametrize("readout", ["target", "mean", "din"])
def test_interests_equal_a_loop_over_rows_tasks_and_behaviours(readout):
    tim = module(readout=readout)
    x, mask, target = batch()
    got, weights = tim(x, mask, target, return_attention=True)
    affine = tim.hyper()
    for row in range(5):
        for task in range(K):
            for kind in range(M):
                length = int(mask[row, kind].sum())
                alone = (x[row, kind, :length] + tim.position[:length])[None]
                hidden = tim.transformer(alone, affine[task, kind])[0]
                if readout == "target":
                    w = (hidden @ (tim.readout.query.weight @ target[row]) / D**0.5).softmax(0)
                elif readout == "mean":
                    w = torch.full((length,), 1 / length, dtype=torch.float64)
                else:
                    unit = tim.readout
                    first = unit.per_query(target[row]) + unit.per_element(hidden)
                    first = first + unit.per_product(target[row] * hidden)
                    w = unit.out(unit.activation(first))[:, 0]
                torch.testing.assert_close(weights[row, task, kind, :length], w, atol=1e-10, rtol=0)
                assert bool((weights[row, task, kind, length:] == 0).all())
                torch.testing.assert_close(got[row, task, kind], w @ hidden, atol=1e-10, rtol=0)


def test_the_din_unit_is_a_linear_layer_of_query_element_difference_and_product():
    torch.manual_seed(0)
    unit = ActivationReadout(D, 7).double()
    wide = nn.Linear(4 * D, 7).double()
    a, b, c, d = wide.weight.detach().chunk(4, dim=1)
    with torch.no_grad():
        unit.per_query.weight.copy_(a + c)
        unit.per_element.weight.copy_(b - c)
        unit.per_product.weight.copy_(d)
        unit.per_query.bias.copy_(wide.bias)
    q, h = torch.randn(2, D, dtype=torch.float64), torch.randn(2, K, M, T, D, dtype=torch.float64)
    spread = q[:, None, None, None].expand_as(h)
    want = unit.out(unit.activation(wide(torch.cat([spread, h, spread - h, spread * h], dim=-1))))[..., 0]
    torch.testing.assert_close(unit(q, h, torch.ones(2, M, T, dtype=torch.bool)), want)


@pytest.mark.parametrize("readout", ["target", "mean", "din"])
def test_padding_and_what_stands_in_it_change_nothing(readout):
    tim = module(readout=readout)
    x, mask, target = batch()
    want = tim(x, mask, target)
    scrambled = torch.where(mask[..., None], x, 1e3)
    torch.testing.assert_close(tim(scrambled, mask, target), want, atol=1e-10, rtol=0)
    more = torch.cat([x, torch.ones(5, M, 3, D, dtype=torch.float64)], dim=2)
    longer = torch.cat([mask, torch.zeros(5, M, 3, dtype=torch.bool)], dim=2)
    torch.testing.assert_close(tim(more, longer, target), want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("readout", ["target", "mean", "din"])
def test_an_empty_sequence_gives_its_learned_vector_and_finite_gradients(readout):
    tim = module(readout=readout)
    x, mask, target = batch()
    mask[2, 0] = False
    x.requires_grad_()
    got = tim(x, mask, target)
    torch.testing.assert_close(got[2, :, 0], tim.empty[0].expand(K, D))
    got.square().sum().backward()
    assert bool(x.grad.isfinite().all())
    assert bool((x.grad[2, 0] == 0).all())
    assert all(bool(p.grad.isfinite().all()) for p in tim.parameters())
    assert bool((tim.empty.grad[0] != 0).any())


def test_the_order_of_events_matters_through_the_positions_alone():
    tim = module()
    x, _, target = batch()
    mask = torch.ones(5, M, T, dtype=torch.bool)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert (tim(x[:, :, order], mask, target) - tim(x, mask, target)).abs().max() > 1e-3
    nn.init.zeros_(tim.position)
    torch.testing.assert_close(tim(x[:, :, order], mask, target), tim(x, mask, target), atol=1e-10, rtol=0)


def test_of_a_longer_sequence_the_latest_events_are_kept():
    x = torch.arange(12.0).reshape(1, 2, 6)
    mask = torch.arange(6) < torch.tensor([6, 3])[None, :, None]
    kept, there = keep_latest(x, mask, 4)
    assert kept[0, 0].tolist() == [2, 3, 4, 5]
    assert kept[0, 1, :3].tolist() == [6, 7, 8]
    assert there.tolist() == [[[True] * 4, [True, True, True, False]]]
    tim = module()
    long, far, target = (
        torch.randn(5, M, 15, D, dtype=torch.float64),
        torch.ones(5, M, 15, dtype=torch.bool),
        batch()[2],
    )
    torch.testing.assert_close(tim(long, far, target), tim(long[:, :, 5:], far[:, :, 5:], target))


def test_chunks_of_tasks_give_the_same_values_and_gradients():
    whole, parts = module(), module(task_chunk=2)
    x, mask, target = batch()
    results = []
    for tim in (whole, parts):
        got = tim(x, mask, target)
        got.square().sum().backward()
        results.append((got, [p.grad for p in tim.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-10, rtol=1e-8)


def test_ids_are_looked_up_in_the_module_s_own_table():
    torch.manual_seed(0)
    tim = TaskInterestModule(D, K, M, 10, num_items=20)
    ids, target = torch.randint(1, 20, (4, M, T)), torch.randint(1, 20, (4,))
    mask = torch.arange(T) < torch.tensor([[3, 6]] * 4)[..., None]
    ids = ids * mask
    torch.testing.assert_close(tim(ids, mask, target), tim(tim.items(ids), mask, tim.items(target)))
    assert tim(ids, mask, target).shape == (4, K, M, D)


def test_one_task_is_enough():
    tim = TaskInterestModule(D, 1, 1)
    assert tim(torch.randn(2, 1, T, D), torch.ones(2, 1, T, dtype=torch.bool), torch.randn(2, D)).shape == (2, 1, 1, D)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TaskInterestModule(D, K, M, 0), "max_len must be positive, got 0"),
        (lambda: TaskInterestModule(D, K, M, task_chunk=0), "task_chunk must be positive, got 0"),
        (
            lambda: TaskInterestModule(D, K, M)(
                torch.ones(2, M, T, dtype=torch.int64), torch.ones(2, M, T, dtype=torch.bool), torch.ones(2, D)
            ),
            "ids need num_items",
        ),
        (
            lambda: TaskInterestModule(D, K, M)(
                torch.ones(2, 3, T, D), torch.ones(2, 3, T, dtype=torch.bool), torch.ones(2, D)
            ),
            r"must be \(B, 2, T, ...\)",
        ),
        (
            lambda: TaskInterestModule(D, K, M)(
                torch.ones(2, M, T, D), torch.ones(2, M, T, dtype=torch.bool), torch.ones(2, D + 1)
            ),
            "must have 8 columns, got 8 and 9|dim",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(Exception, match=message):
        call()
