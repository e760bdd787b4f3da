"""The conditional Transformer and the network that makes its normalisations."""

import pytest
import torch
from torch import nn

from etude.ranking.dtrn import ConditionalTransformer, HyperLayerNorm

K, M, T, D = 3, 2, 5, 8


def ordinary(hyper):
    """W2 = 0: all affine parts are those of an ordinary normalisation."""
    nn.init.zeros_(hyper.out.weight)
    return hyper


def sequences(batch=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, M, T, D, generator=generator, dtype=dtype)
    length = torch.randint(1, T + 1, (batch, M), generator=generator)
    return x, torch.arange(T) < length[..., None]


def torch_layers(transformer):
    """The same weights in PyTorch's own layers."""
    layers = []
    for qkv, proj, up, down in zip(transformer.qkv, transformer.proj, transformer.up, transformer.down):
        layer = nn.TransformerEncoderLayer(D, 2, 4 * D, dropout=0.0, batch_first=True, norm_first=transformer.pre_norm)
        layer = layer.double()
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(qkv.weight)
            layer.self_attn.in_proj_bias.copy_(qkv.bias)
            layer.self_attn.out_proj.weight.copy_(proj.weight)
            layer.self_attn.out_proj.bias.copy_(proj.bias)
            for mine, theirs in ((up, layer.linear1), (down, layer.linear2)):
                theirs.weight.copy_(mine.weight)
                theirs.bias.copy_(mine.bias)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("pre_norm", [False, True])
def test_at_the_start_it_is_an_ordinary_transformer_layer(layers, pre_norm):
    torch.manual_seed(0)
    transformer = ConditionalTransformer(D, layers, pre_norm=pre_norm).double()
    hyper = ordinary(HyperLayerNorm(D, K, M, layers)).double()
    x, mask = sequences()
    got = transformer(x, hyper(), mask)
    assert got.shape == (4, K, M, T, D)
    want = x.flatten(0, 1)
    for layer in torch_layers(transformer):
        want = layer(want, src_key_padding_mask=~mask.flatten(0, 1))
    for task in range(K):
        real = mask[..., None].expand_as(x)
        torch.testing.assert_close(got[:, task][real], want.reshape_as(x)[real], atol=1e-6, rtol=0)


def naive(transformer, x, affine, mask):
    """One task, one sequence, one layer, head after head."""
    gamma1, beta1, gamma2, beta2 = affine[0]
    q, k, v = (x @ transformer.qkv[0].weight.T + transformer.qkv[0].bias).chunk(3, dim=-1)
    heads = []
    for head in range(2):
        part = slice(head * D // 2, (head + 1) * D // 2)
        scores = q[:, part] @ k[:, part].T / (D // 2) ** 0.5
        scores[:, ~mask] = float("-inf")
        heads.append(scores.softmax(-1) @ v[:, part])
    attended = torch.cat(heads, dim=-1) @ transformer.proj[0].weight.T + transformer.proj[0].bias

    def normalised(y):
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()

    h = gamma1 * normalised(x + attended) + beta1
    up = (h @ transformer.up[0].weight.T + transformer.up[0].bias).clamp(min=0)
    return gamma2 * normalised(h + up @ transformer.down[0].weight.T + transformer.down[0].bias) + beta2


def test_all_tasks_at_once_equal_a_loop_over_tasks_and_behaviours():
    torch.manual_seed(0)
    transformer = ConditionalTransformer(D).double()
    affine = torch.randn(K, M, 1, 4, D, dtype=torch.float64)
    x, mask = sequences()
    got = transformer(x, affine, mask)
    for row in range(4):
        for task in range(K):
            for kind in range(M):
                want = naive(transformer, x[row, kind], affine[task, kind], mask[row, kind])
                torch.testing.assert_close(got[row, task, kind], want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_attention_that_tasks_share_equals_one_computed_for_each(pre_norm):
    torch.manual_seed(0)
    transformer = ConditionalTransformer(D, num_layers=2, pre_norm=pre_norm).double()
    affine = torch.randn(K, M, 2, 4, D, dtype=torch.float64)
    x, mask = sequences()
    shared = transformer(x, affine, mask)
    spread, spread_mask = x[:, None].repeat(1, K, 1, 1, 1), mask[:, None].repeat(1, K, 1, 1)
    torch.testing.assert_close(shared, transformer(spread, affine, spread_mask), atol=1e-12, rtol=0)


def test_one_sequence_and_one_condition_need_no_further_axes():
    torch.manual_seed(0)
    transformer = ConditionalTransformer(D)
    affine = HyperLayerNorm(D, K, M)()
    x = torch.randn(4, T, D)
    every = transformer(x, affine)
    assert every.shape == (4, K, M, T, D)
    torch.testing.assert_close(transformer(x, affine[1, 0]), every[:, 1, 0])


@pytest.mark.parametrize("interact", [False, True])
def test_parameters_follow_the_formula_and_not_the_data(interact):
    k, m, t, h, d, layers = 5, 3, 16, 32, 24, 2
    hyper = HyperLayerNorm(d, k, m, layers, context_dim=t, hidden_dim=h, interact=interact)
    inputs = (3 if interact else 2) * t
    want = k * t + m * t + inputs * h + h + h * 4 * d * layers + 4 * d * layers
    assert sum(p.numel() for p in hyper.parameters()) == want
    more = HyperLayerNorm(d, k + 1, m, layers, context_dim=t, hidden_dim=h, interact=interact)
    assert sum(p.numel() for p in more.parameters()) - want == t


def test_a_transformer_of_its_own_for_each_task_would_cost_many_times_more():
    d, k = 16, 2
    layer = nn.TransformerEncoderLayer(d, 2, 4 * d, bias=True)
    norms = 4 * d
    one = sum(p.numel() for p in layer.parameters()) - norms
    # Products 4 d^2 and 8 d^2, biases 4 d and 5 d.
    assert one == 4 * d * d + 4 * d + 8 * d * d + 5 * d
    extra = sum(p.numel() for p in HyperLayerNorm(d, k, 2, context_dim=8, hidden_dim=16).parameters())
    assert k * one / extra > 4
    many, of_many = 50, HyperLayerNorm(d, 50, 2, context_dim=8, hidden_dim=16)
    assert many * one / sum(p.numel() for p in of_many.parameters()) > 90


def test_tasks_differ_as_soon_as_w2_does():
    torch.manual_seed(0)
    affine = HyperLayerNorm(D, K, M)()
    assert affine.shape == (K, M, 1, 4, D)
    assert (affine[0] - affine[1]).abs().max() > 0
    # Near (1, 0, 1, 0), as they start.
    torch.testing.assert_close(affine.mean((0, 1, 2, 4)), torch.tensor([1.0, 0.0, 1.0, 0.0]), atol=0.1, rtol=0)


def test_gradients_match_finite_differences():
    torch.manual_seed(0)
    transformer = ConditionalTransformer(4, ffn_dim=6).double()
    affine = torch.randn(2, 1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[True, True, False]], [[True, True, True]]])
    assert torch.autograd.gradcheck(lambda x, affine: transformer(x, affine, mask), (x, affine))


def test_half_precision_normalises_in_single():
    transformer = ConditionalTransformer(D).bfloat16()
    x = torch.full((1, T, D), 300.0, dtype=torch.bfloat16) + torch.arange(D, dtype=torch.bfloat16)
    affine = HyperLayerNorm(D, 1, 1)()[0, 0].bfloat16()
    assert bool(transformer(x, affine).isfinite().all())
    assert transformer(x, affine).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HyperLayerNorm(D, 0, M), "num_tasks must be positive, got 0"),
        (lambda: HyperLayerNorm(D, K, M, hidden_dim=0), "hidden_dim must be positive, got 0"),
        (lambda: ConditionalTransformer(D, num_heads=3), "num_heads that divide dim=8 are needed, got 1 and 3"),
        (lambda: ConditionalTransformer(D, dropout=1.0), r"dropout must lie in \[0, 1\), got 1.0"),
        (
            lambda: ConditionalTransformer(D)(torch.zeros(2, T, D), torch.zeros(2, 4, D)),
            r"affine in \(1, 4, 8\), got \(2, 5, 8\) and \(2, 4, 8\)",
        ),
        (
            lambda: ConditionalTransformer(D)(torch.zeros(2, M, T, D), torch.zeros(K, 5, 1, 4, D)),
            r"does not fit the conditions \(3, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
