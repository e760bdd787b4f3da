import pytest
import torch
from torch import nn

from etude.sequence.after_transformers.attention import Attention, WindowAttention
from etude.testing import check_mixer


@pytest.mark.parametrize(
    "made",
    [
        lambda: Attention(8),
        lambda: Attention(8, 4, 2, rope_theta=100.0),
        lambda: Attention(8, 2, causal=False),
        lambda: WindowAttention(8, 2, window=4, rope_theta=100.0),
        lambda: WindowAttention(8, window=1),
    ],
)
def test_attention_keeps_the_promises_of_a_mixer(made):
    torch.manual_seed(0)
    check_mixer(made(), 8)


def test_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=later, need_weights=False)[0])


def test_shared_heads_are_repeated_ones():
    torch.manual_seed(0)
    shared, full = Attention(8, 4, 2).double(), Attention(8, 4).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            q, k, v = getattr(shared.qkv, name).split([8, 4, 4])
            repeated = [part.unflatten(0, (2, 2)).repeat_interleave(2, 0).flatten(0, 1) for part in (k, v)]
            getattr(full.qkv, name).copy_(torch.cat([q, *repeated]))
        full.out.load_state_dict(shared.out.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(shared(x), full(x))
    assert shared.state_size(5) == full.state_size(5) // 2 == 2 * 4 * 5


def test_a_wide_window_is_full_attention_and_a_narrow_one_forgets():
    torch.manual_seed(0)
    full, wide, narrow = Attention(8, 2), WindowAttention(8, 2, window=9), WindowAttention(8, 2, window=3)
    for other in (wide, narrow):
        other.load_state_dict(full.state_dict())
    x = torch.randn(1, 9, 8)
    torch.testing.assert_close(wide(x), full(x))
    changed = x.clone()
    changed[:, 0] += 1
    moved = (narrow(changed) - narrow(x)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [True] * 3 + [False] * 6
    assert narrow.state_size(100) == 2 * 8 * 3


def test_bad_heads_are_refused():
    for arguments in ((8, 3), (8, 4, 3), (8, 0)):
        with pytest.raises(ValueError, match="multiple"):
            Attention(*arguments)
    with pytest.raises(ValueError, match="even"):
        Attention(9, 3, rope_theta=10.0)
    with pytest.raises(ValueError, match="window"):
        WindowAttention(8, window=0)
    with pytest.raises(TypeError, match="later tokens"):
        Attention(8, causal=False).init_state(1)
