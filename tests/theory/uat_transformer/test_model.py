"""The trainable block: Eq. (1) as it stands, its symmetries, and its ways to other modules."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.theory.uat_transformer import (
    SingleLayerTransformer,
    build_with_modes,
    outputs_in_blocks,
    padded,
    sort_target,
    to_multihead_attention,
)


def block(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"in_dim": 2, "dim": 12, "seq_len": 3, "num_heads": 4, "ffn_dim": 17, "out_dim": 5, "dtype": "float64"}
    return SingleLayerTransformer(**{**sizes, **options})


def tokens(n=6, seq_len=3, in_dim=2, seed=1):
    return torch.rand(n, seq_len, in_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(model, x):
    """Eq. (1), one token, head and score at a time."""
    state = dict(model.named_parameters())
    out = torch.zeros(len(x), model.seq_len, model.out_dim, dtype=x.dtype)
    inner, width = model.num_heads * model.head_dim, model.head_dim
    for b, sequence in enumerate(x):
        h = [state["embed.weight"] @ token + state["embed.bias"] for token in sequence]
        if model.pos == "learned":
            h = [token + place for token, place in zip(h, state["positions"])]
        normed = h
        if model.norm:
            normed = [F.layer_norm(t, t.shape, state["norm_attention.weight"], state["norm_attention.bias"]) for t in h]
        projected = [state["in_proj.weight"] @ token + state["in_proj.bias"] for token in normed]
        for i, token in enumerate(h):
            heads = []
            for r in range(model.num_heads):
                cut = slice(r * width, (r + 1) * width)
                query = projected[i][:inner][cut]
                scores = [math.exp(query @ p[inner : 2 * inner][cut] / math.sqrt(width)) for p in projected]
                values = [p[2 * inner :][cut] for p in projected]
                heads.append(sum(s * v for s, v in zip(scores, values)) / sum(scores))
            a = token + state["out_proj.weight"] @ torch.cat(heads) + state["out_proj.bias"]
            if model.norm:
                a = F.layer_norm(a, a.shape, state["norm_ffn.weight"], state["norm_ffn.bias"])
            hidden = [
                max(float(row @ a + bias), 0.0) for row, bias in zip(state["ffn_in.weight"], state["ffn_in.bias"])
            ]
            out[b, i] = state["ffn_out.weight"] @ torch.tensor(hidden, dtype=x.dtype) + state["ffn_out.bias"]
    return out


@pytest.mark.parametrize(
    "options", [{}, {"head_dim": 2}, {"norm": True}, {"pos": "none"}, {"num_heads": 1}, {"head_dim": 7, "norm": True}]
)
def test_the_forward_pass_is_equation_1(options):
    model = block(**options)
    with torch.no_grad():
        assert torch.allclose(model(tokens()), naive(model, tokens()), atol=1e-12)


def test_a_constructed_block_is_equation_1_too():
    model, _ = build_with_modes(sort_target(2), 2, 1, 1, K=4, spline_error=0.1)
    assert type(model) is SingleLayerTransformer
    x = tokens(5, 2, 1)
    with torch.no_grad():
        assert torch.allclose(model(x), naive(model, x), atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_without_positions_the_block_is_permutation_equivariant(norm):
    model, x = block(pos="none", norm=norm), tokens()
    for order in ([1, 0, 2], [2, 0, 1]):
        assert torch.allclose(model(x[:, order]), model(x)[:, order], atol=1e-6)
    placed = block(norm=norm)
    assert not torch.allclose(placed(x[:, [1, 0, 2]]), placed(x)[:, [1, 0, 2]], atol=1e-6)


def test_without_heads_an_output_depends_on_its_own_token_alone():
    model, x = block(num_heads=0), tokens()
    moved = x.clone()
    moved[:, 0] += 1
    assert torch.equal(model(moved)[:, 1:], model(x)[:, 1:])
    assert not torch.allclose(model(moved)[:, 0], model(x)[:, 0])
    assert not torch.allclose(block()(moved)[:, 1:], block()(x)[:, 1:])


def test_every_weight_gets_a_gradient_and_it_is_right():
    model, x = block(norm=True), tokens(2)
    model(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters())
    assert torch.autograd.gradcheck(model, (tokens(2).requires_grad_(),))


def test_the_number_of_weights():
    # dim 32, 4 heads, ReLU network 256, two tokens: embedding, positions, attention, network
    count = sum(p.numel() for p in SingleLayerTransformer(1, 32, 2, 4, 256, 1).parameters())
    assert count == 64 + 64 + 4 * (32 * 32 + 32) + (32 * 256 + 256) + 257


@pytest.mark.parametrize("options", [{}, {"head_dim": 2}, {"head_dim": 7}, {"pos": "none", "dim": 10, "head_dim": 1}])
def test_padding_keeps_the_function_and_fits_multihead_attention(options):
    model, x = block(**options), tokens()
    wide = padded(model)
    assert wide.num_heads * wide.head_dim == wide.dim
    assert torch.allclose(wide(x), model(x), atol=1e-12)
    h = wide.embed(x) if wide.positions is None else wide.embed(x) + wide.positions
    mha = to_multihead_attention(wide)
    assert isinstance(mha, torch.nn.MultiheadAttention)
    assert torch.allclose(h + mha(h, h, h, need_weights=False)[0], wide.attend(x), atol=1e-12)


def test_the_construction_fits_multihead_attention_only_when_padded():
    model, _ = build_with_modes(sort_target(3), 3, 1, 1, K=2, spline_error=0.2)
    with pytest.raises(ValueError, match=r"3 \* 1 and 8; use padded"):
        to_multihead_attention(model)
    wide = padded(model)
    h = wide.embed(tokens(9, 3, 1)) + wide.positions
    mha = to_multihead_attention(wide)
    assert torch.allclose(h + mha(h, h, h)[0], wide.attend(tokens(9, 3, 1)), atol=1e-13)
    assert torch.allclose(wide(tokens(9, 3, 1)), model(tokens(9, 3, 1)), atol=1e-12)


def test_it_survives_saving(tmp_path):
    model, _ = build_with_modes(sort_target(2), 2, 1, 1, K=2, spline_error=0.2)
    model.save_pretrained(tmp_path)
    again = SingleLayerTransformer.from_pretrained(tmp_path)
    assert again.embed.weight.dtype == torch.float64
    assert torch.equal(again(tokens(7, 2, 1)), model(tokens(7, 2, 1)))


def test_outputs_in_blocks_are_the_outputs_and_hold_few_activations():
    model, x = block(), tokens(23)
    sizes = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    found = outputs_in_blocks(model, x, elements=3 * 17 * 4)
    assert max(sizes) == 4
    assert torch.allclose(found, model(x), atol=1e-13)
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10}, "dim = 10 is not a multiple of num_heads = 4: give head_dim"),
        ({"seq_len": 0}, "seq_len must be at least 1, got 0"),
        ({"num_heads": -1}, "num_heads must be at least 0"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
        ({"pos": "sine"}, "'learned' or 'none', got 'sine'"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        block(**options)


def test_another_length_is_refused():
    with pytest.raises(ValueError, match=r"seq_len=3, in_dim=2\), got \(6, 4, 2\): a model is built for one length"):
        block()(tokens(seq_len=4))


def test_what_has_no_attention_or_normalises_is_not_converted():
    with pytest.raises(ValueError, match="num_heads = 0"):
        to_multihead_attention(block(num_heads=0))
    with pytest.raises(ValueError, match="num_heads = 0"):
        padded(block(num_heads=0))
    with pytest.raises(ValueError, match="norm=True cannot be padded"):
        padded(block(norm=True))
