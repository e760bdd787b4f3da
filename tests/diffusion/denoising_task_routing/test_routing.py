"""The masks of the paper's equation, and the router's identity, limits and refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from etude.diffusion.denoising_task_routing import Routing, TaskRouter, routing_mask


def starts(mask):
    return mask.int().argmax(dim=1).tolist()


def by_hand(num_tasks, dim, alpha, beta):
    active = int(beta * dim)
    mask = np.zeros((num_tasks, dim), dtype=bool)
    for t in range(num_tasks):
        start = int(np.round((dim - active) * (t / (num_tasks - 1)) ** alpha))
        mask[t, start : start + active] = True
    return torch.from_numpy(mask)


def test_a_small_mask_is_the_table_of_the_equation():
    mask = routing_mask(5, 10, alpha=2.0, beta=0.6)
    assert starts(mask) == [0, 0, 1, 2, 4]
    assert mask.dtype == torch.bool
    assert torch.equal(mask, by_hand(5, 10, 2.0, 0.6))


@pytest.mark.parametrize(("dim", "active"), [(64, 51), (384, 307), (1152, 921)])
def test_published_widths_have_the_published_numbers_of_active_channels(dim, active):
    mask = routing_mask(1000, dim)
    assert mask.shape == (1000, dim)
    assert torch.equal(mask.sum(dim=1), torch.full((1000,), active))
    assert torch.equal(mask, by_hand(1000, dim, 4.0, 0.8))
    first = starts(mask)
    assert first[0] == 0
    assert first[-1] == dim - active
    assert first == sorted(first)
    # At alpha = 4 half of the tasks have moved by a sixteenth of the way.
    assert first[500] <= round((dim - active) * 0.07)


def test_windows_share_less_the_further_apart_they_are():
    mask = routing_mask(200, 40, alpha=1.5, beta=0.5).double()
    first = torch.tensor(starts(mask))
    overlap, apart = mask @ mask.T, (first[:, None] - first[None]).abs()
    assert torch.equal(overlap, (20 - apart).clamp(min=0).double())


def test_an_alpha_of_one_slides_evenly():
    assert starts(routing_mask(5, 10, alpha=1, beta=0.6)) == [0, 1, 2, 3, 4]


def test_random_masks_are_uniform_subsets_of_the_same_size():
    mask = routing_mask(4000, 10, beta=0.35, method="random", generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask.sum(dim=1), torch.full((4000,), 3))
    assert float((mask.double().mean(dim=0) - 0.3).abs().max()) < 0.03
    again = routing_mask(4000, 10, beta=0.35, method="random", generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask, again)


def test_no_routing_has_all_channels():
    assert bool(routing_mask(3, 4, method="none").all())
    for method in ("dtr", "random"):
        assert bool(routing_mask(3, 4, beta=1, method=method, generator=torch.Generator()).all())


def test_blocks_share_masks_unless_they_are_random():
    shared = Routing().routers([8, 16, 8])
    assert shared[0] is shared[2]
    assert shared[1].mask.shape == (1000, 16)
    first, second = Routing(method="random").routers([8, 8])
    assert not torch.equal(first.mask, second.mask)
    assert torch.equal(first.mask, Routing(method="random").routers([8])[0].mask)
    assert list(nn.ModuleList(shared).state_dict()) == []
    assert list(first.state_dict()) == ["mask"]


@pytest.mark.parametrize(("shape", "channel_dim"), [((3, 5, 10), -1), ((3, 10, 2, 4), 1)])
def test_the_block_reads_active_channels_and_what_it_does_not_read_passes_by(shape, channel_dim):
    torch.manual_seed(0)
    router = TaskRouter(num_tasks=7, dim=10, alpha=2, beta=0.6, channel_dim=channel_dim)
    x, t = torch.randn(shape), torch.tensor([0, 3, 6])
    seen = []

    def block(z, scale):
        seen.append(z)
        return z + scale * z.sin().cumsum(dim=channel_dim)

    out = router(x, t, block, 2.0)
    mask = router.mask[t].float()
    mask = mask[:, None] if channel_dim == -1 else mask[:, :, None, None]
    assert torch.equal(seen[0], x * mask)
    torch.testing.assert_close(out - x, block(x * mask, 2.0) - x * mask, rtol=0, atol=1e-6)


def test_masks_stay_booleans_when_the_router_is_cast():
    for cast in (torch.bfloat16, torch.float16, torch.float64):
        router = TaskRouter(num_tasks=5, dim=10, beta=0.6).to(cast)
        rows = router.rows(torch.ones(5, 2, 10, dtype=cast), torch.arange(5))
        assert router.mask.dtype == torch.bool
        assert rows.dtype == cast
        assert torch.equal(rows[:, 0].double(), router.mask.double())


def test_half_a_share_is_not_scaled_up():
    router = TaskRouter(num_tasks=2, dim=10, beta=0.5)
    x = torch.randn(2, 1, 10)
    assert torch.equal(router(x, torch.tensor([0, 1]), lambda z: z), x)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"beta": 0}, "beta must lie in .* got 0"),
        ({"beta": 1.1}, "got 1.1"),
        ({"beta": float("nan")}, "got nan"),
        ({"alpha": 0}, "alpha must be positive, got 0"),
        ({"beta": 0.05}, "beta = 0.05 of 10 channels"),
        ({"method": "learned"}, "'learned'"),
        ({"method": "random"}, "give a generator"),
        ({"num_tasks": 0}, "got 0 and 10"),
        ({"channel_dim": 2}, "got 2"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, text):
    with pytest.raises(ValueError, match=text):
        TaskRouter(**{"num_tasks": 5, "dim": 10, **arguments})


def test_bad_inputs_are_refused_with_what_was_expected():
    router, x = TaskRouter(num_tasks=5, dim=10), torch.randn(2, 3, 10)
    for t, error, text in (
        (torch.tensor([0.0, 1.0]), TypeError, r"0\.\.4, got float32"),
        (torch.tensor([0, 5]), IndexError, r"0\.\.4, got 0\.\.5"),
        (torch.tensor([-1, 1]), IndexError, r"0\.\.4, got -1\.\.1"),
        (torch.tensor([1]), ValueError, "each of 2 rows"),
    ):
        with pytest.raises(error, match=text):
            router(x, t, lambda z: z)
    with pytest.raises(ValueError, match="for 10 channels, got 9"):
        router(x[..., :9], torch.tensor([0, 1]), lambda z: z)
    with pytest.raises(ValueError, match="beta"):
        Routing(beta=2)
    with pytest.raises(ValueError, match="num_tasks"):
        Routing(num_tasks=0)
