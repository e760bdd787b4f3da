import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nn.mixers import build_mixer
from etude.nn.positions import apply_rotary, rotary_frequencies
from etude.sequence.sigma import (
    DiffQKVAttention,
    attention_scores,
    diff_attention,
    selective_value_attention,
)
from etude.testing import check_mixer

DIM = 24


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def heads(q_heads, k_heads, v_heads, queries=6, keys=6, width=4, v_width=5):
    return (
        draw(2, q_heads, queries, width),
        draw(2, k_heads, keys, width, seed=1),
        draw(2, v_heads, keys, v_width, seed=2),
    )


def by_loops(q, k, v):
    """Equation (3) and the softmax, one query head, one query and one key at a time."""
    batch, q_heads, queries, width = q.shape
    out = torch.zeros(batch, q_heads, queries, v.shape[-1], dtype=q.dtype)
    for b in range(batch):
        for i in range(q_heads):
            key_head, value_head = i * k.shape[1] // q_heads, i * v.shape[1] // q_heads
            for t in range(queries):
                last = k.shape[2] - queries + t
                scores = torch.stack([q[b, i, t] @ k[b, key_head, s] for s in range(last + 1)]) / width**0.5
                weights = torch.softmax(scores, 0)
                out[b, i, t] = sum(weights[s] * v[b, value_head, s] for s in range(last + 1))
    return out


@pytest.mark.parametrize("counts", [(8, 2, 4), (12, 3, 4), (8, 1, 8), (8, 8, 1)])
@pytest.mark.parametrize("queries", [6, 3, 1])
def test_heads_are_shared_as_equation_3_says(counts, queries):
    q, k, v = heads(*counts, queries=queries)
    torch.testing.assert_close(diff_attention(q, k, v), by_loops(q, k, v))


def test_a_decoding_step_equals_repeated_heads_and_copies_neither_keys_nor_values():
    q, k, v = heads(8, 2, 4, queries=1, keys=500)
    repeated = F.scaled_dot_product_attention(q, k.repeat_interleave(4, 1), v.repeat_interleave(2, 1))
    torch.testing.assert_close(diff_attention(q, k, v), repeated)
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not func.is_view:
                seen.append(out.numel())
            return out

    with Watch():
        diff_attention(q, k, v)
    assert max(seen) <= 2 * 8 * 500  # the scores; keys repeated to the query heads would have 4 times as many


@pytest.mark.parametrize("queries", [5, 1])
def test_masked_keys_are_not_seen_and_a_query_without_any_gets_zeros(queries):
    q, k, v = heads(4, 2, 4, queries=queries, keys=5)
    mask = torch.tensor([[True, True, False, True, True], [False] * 5])
    out = diff_attention(q, k, v, mask=mask)
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(out[:1, :, -1:], by_loops(q[:1, :, -1:], k[:1, :, kept], v[:1, :, kept]))
    assert not out[1].any()
    q.requires_grad_()
    diff_attention(q, k, v, mask=mask).sum().backward()
    assert q.grad.isfinite().all()


def test_attention_without_causality():
    q, k, v = heads(4, 2, 4)
    repeated = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), v)
    torch.testing.assert_close(diff_attention(q, k, v, causal=False), repeated)


def test_equal_heads_are_torchs_multi_head_attention():
    torch.manual_seed(0)
    ours = DiffQKVAttention(DIM, 4, 4, 4, rope_theta=None, bias=True).double()
    theirs = nn.MultiheadAttention(DIM, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in (ours.q_proj, ours.k_proj, ours.v_proj)]))
        theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
    x = draw(2, 7, DIM)
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=later, need_weights=False)[0])


def test_grouped_queries_with_rotary_positions_are_llamas():
    """Written out here: half-split rotation, repeated heads, no bias."""
    torch.manual_seed(0)
    layer, x = DiffQKVAttention(DIM, 6, 2, 2).double(), draw(2, 9, DIM)
    q, k, v = (
        (x @ p.weight.T).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    angle = torch.arange(9, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(0, 4, 2).double() / 4)
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()

    def turn(z):
        return z * cos + torch.cat([-z[..., 2:], z[..., :2]], -1) * sin

    out = F.scaled_dot_product_attention(
        turn(q), turn(k).repeat_interleave(3, 1), v.repeat_interleave(3, 1), is_causal=True
    )
    torch.testing.assert_close(layer(x), out.transpose(1, 2).flatten(2) @ layer.o_proj.weight.T)


LAYERS = {
    "plain": {},
    "narrow keys": {"k_head_dim": 2},
    "narrow keys by a network": {"k_head_dim": 1, "k_expand": "mlp"},
    "augmented": {"q_aug_dim": 36},
    "wide values": {"v_head_dim": 7, "rope_theta": None},
    "normalised": {"qk_norm": True, "k_head_dim": 2},
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
def test_the_layer_keeps_the_promises_of_a_mixer(options):
    torch.manual_seed(0)
    check_mixer(DiffQKVAttention(DIM, 6, 2, 3, **options), DIM)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
def test_decoding_with_a_cache_equals_the_whole_sequence(options):
    torch.manual_seed(0)
    layer, x = DiffQKVAttention(DIM, 6, 2, 3, **options).double(), draw(2, 11, DIM)
    whole = layer(x)
    for chunks in ([1] * 11, [4, 1, 5, 1], [11]):
        cache = layer.make_cache(2, 12)
        parts = [layer(part, cache=cache) for part in x.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-8, atol=1e-10)
        assert cache.length == 11


def test_an_augmented_query_costs_parameters_and_no_cache():
    plain, augmented = DiffQKVAttention(DIM, 6, 2, 3), DiffQKVAttention(DIM, 6, 2, 3, q_aug_dim=36)
    count = [sum(p.numel() for p in layer.parameters()) for layer in (plain, augmented)]
    assert count[1] - count[0] == 3 * 24 * 36
    assert plain.state_size(10) == augmented.state_size(10)
    q0 = draw(1, 1, DIM) @ augmented.q_proj.weight.double().T
    gate, up, down = (getattr(augmented, f"q_{n}_proj").weight.double() for n in ("gate", "up", "down"))
    expected = (F.silu(q0 @ gate.T) * (q0 @ up.T)) @ down.T
    torch.testing.assert_close(augmented.double().queries(draw(1, 1, DIM)), expected)


def test_gradients():
    torch.manual_seed(0)
    layer = DiffQKVAttention(4, 2, 1, 2, k_head_dim=1, q_aug_dim=3).double()
    assert torch.autograd.gradcheck(layer, draw(1, 3, 4).requires_grad_())
    layer(draw(1, 3, 4)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_selecting_every_value_is_dense_and_fewer_are_bounded_by_what_is_left_out():
    q, k, v = heads(8, 2, 4, queries=9, keys=9)
    scores, dense = attention_scores(q, k), diff_attention(q, k, v)
    for count in (9, 100):
        torch.testing.assert_close(selective_value_attention(scores, v, count).out, dense)
    for count in (1, 3):
        found = selective_value_attention(scores, v, count)
        weights = torch.softmax(scores, -1)
        assert torch.equal(found.kept, weights.topk(count).values)
        assert torch.equal(weights.gather(-1, found.places), found.kept)
        norm = v.norm(dim=-1).max()
        assert ((found.out - dense).norm(dim=-1) <= (1 - found.kept.sum(-1)) * norm + 1e-12).all()
        normed = selective_value_attention(scores, v, count, renormalise=True)
        torch.testing.assert_close(normed.kept.sum(-1), torch.ones(2, 8, 9, dtype=torch.float64))
        torch.testing.assert_close(normed.out * found.kept.sum(-1, keepdim=True), found.out)


def test_rows_loaded_are_the_union_over_the_heads_that_share_them():
    scores = torch.zeros(1, 4, 1, 6)
    for head, place in enumerate([2, 2, 0, 5]):
        scores[0, head, 0, place] = 9
    found = selective_value_attention(scores, draw(1, 2, 6, 3, dtype=torch.float32), 1)
    assert found.rows_loaded.tolist() == [[1, 2]]


def test_half_precision_takes_its_softmax_in_single():
    q, k, v = (part.bfloat16() for part in heads(4, 2, 4, queries=1))
    assert attention_scores(q, k).dtype == torch.float32
    found = selective_value_attention(attention_scores(q, k), v, 3)
    assert found.out.dtype == torch.bfloat16
    assert found.out.isfinite().all()


def test_bad_input_names_the_numbers():
    for counts, message in (((8, 3, 4), "8 query, 3 key and 4 value"), ((8, 4, 3), "4 key and 3 value")):
        with pytest.raises(ValueError, match=message):
            DiffQKVAttention(DIM, *counts)
    for options, message in (
        ({"k_head_dim": 5}, "k_head_dim"),
        ({"head_dim": 3}, "even"),
        ({"k_expand": "conv"}, "k_expand"),
    ):
        with pytest.raises(ValueError, match=message):
            DiffQKVAttention(DIM, 6, 2, 3, **options)
    with pytest.raises(ValueError, match="multiple"):
        DiffQKVAttention(25, 6, 2, 3)
    layer = DiffQKVAttention(DIM, 6, 2, 3, k_head_dim=2)
    with pytest.raises(ValueError, match="inference"):
        layer(draw(1, 2, DIM, dtype=torch.float32), select_v=2)
    with pytest.raises(ValueError, match="k = 0"):
        layer.eval()(draw(1, 2, DIM, dtype=torch.float32), select_v=0)
    with pytest.raises(ValueError, match="positions"):
        layer(draw(1, 2, DIM, dtype=torch.float32), cache=layer.make_cache(1, 4), positions=torch.arange(2))
    with pytest.raises(ValueError, match="as many values as keys"):
        diff_attention(draw(1, 2, 3, 4), draw(1, 2, 3, 4), draw(1, 2, 5, 4))


def test_it_is_built_by_name_and_positions_may_be_given():
    layer = build_mixer("diff_qkv", DIM, max_len=8, num_q_heads=6, num_k_heads=2, num_v_heads=3)
    x = draw(1, 4, DIM, dtype=torch.float32)
    torch.testing.assert_close(layer(x, positions=torch.arange(100, 104)), layer(x))  # distances alone matter
    spread = layer(x, positions=torch.tensor([[0, 3, 9, 20]]))
    assert not torch.allclose(spread, layer(x))
    assert apply_rotary(x[..., :4], torch.arange(4), rotary_frequencies(4)).shape == (1, 4, 4)
