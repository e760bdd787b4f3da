"""Sliced layers: the plain layer when whole, its prefix when cut, and nothing of the rest."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.training.sortednet import (
    SortedBatchNorm,
    SortedConv2d,
    SortedEmbedding,
    SortedLayerNorm,
    SortedLinear,
    SortedMultiheadAttention,
)


def conv(groups):
    return SortedConv2d(8, 16, 3, padding=1, groups=groups)


def attend(layer, x):
    return layer(x, x, x)[0]


# (sorted layer, plain layer, whole input, active sizes, cut input)
CASES = {
    "linear": (
        lambda: SortedLinear(6, 5),
        lambda: nn.Linear(6, 5),
        lambda: torch.randn(3, 6),
        (4, 2),
        lambda x: x[:, :4],
    ),
    "linear without bias": (
        lambda: SortedLinear(6, 5, bias=False),
        lambda: nn.Linear(6, 5, bias=False),
        lambda: torch.randn(3, 2, 6),
        (1, 1),
        lambda x: x[..., :1],
    ),
    "convolution": (
        lambda: conv(1),
        lambda: nn.Conv2d(8, 16, 3, padding=1),
        lambda: torch.randn(2, 8, 5, 5),
        (3, 7),
        lambda x: x[:, :3],
    ),
    "grouped convolution": (
        lambda: conv(4),
        lambda: nn.Conv2d(8, 16, 3, padding=1, groups=4),
        lambda: torch.randn(2, 8, 5, 5),
        (4, 8),
        lambda x: x[:, :4],
    ),
    "depthwise convolution": (
        lambda: SortedConv2d(8, 8, 3, groups=8, bias=False),
        lambda: nn.Conv2d(8, 8, 3, groups=8, bias=False),
        lambda: torch.randn(2, 8, 5, 5),
        (3, 3),
        lambda x: x[:, :3],
    ),
    "circular convolution": (
        lambda: SortedConv2d(4, 4, 3, padding=1, padding_mode="circular"),
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        lambda: torch.randn(2, 4, 5, 5),
        (2, 3),
        lambda x: x[:, :2],
    ),
    "embedding": (
        lambda: SortedEmbedding(9, 6, padding_idx=0),
        lambda: nn.Embedding(9, 6, padding_idx=0),
        lambda: torch.randint(9, (3, 4)),
        (2,),
        lambda x: x,
    ),
    "layer norm": (
        lambda: SortedLayerNorm(6),
        lambda: nn.LayerNorm(6),
        lambda: torch.randn(3, 4, 6),
        (4,),
        lambda x: x[..., :4],
    ),
    "batch norm": (
        lambda: SortedBatchNorm(6, policy="shared"),
        lambda: nn.BatchNorm2d(6),
        lambda: torch.randn(7, 6, 3, 3),
        (4,),
        lambda x: x[:, :4],
    ),
    "attention": (
        lambda: SortedMultiheadAttention(8, 4, batch_first=True),
        lambda: nn.MultiheadAttention(8, 4, batch_first=True),
        lambda: torch.randn(2, 5, 8),
        (6, 3),
        lambda x: x[..., :6],
    ),
    "attention with features apart from heads": (
        lambda: SortedMultiheadAttention(8, 2, batch_first=True, bias=False),
        lambda: nn.MultiheadAttention(8, 2, batch_first=True, bias=False),
        lambda: torch.randn(2, 5, 8),
        (3, 1),
        lambda x: x[..., :3],
    ),
}


def run(layer, x):
    return layer(x, x, x)[0] if hasattr(layer, "in_proj_weight") else layer(x)


def randomized(layer):
    """Biases and scales start at constants that would hide mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    return layer


@pytest.fixture(params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request):
    torch.manual_seed(0)
    make, plain, inputs, active, cut = CASES[request.param]
    layer, reference, x = randomized(make()), plain(), inputs()
    reference.load_state_dict(layer.state_dict())
    return layer, reference, x, active, cut(x)


def test_the_whole_layer_is_the_plain_layer_bit_for_bit(case):
    layer, plain, x, _, _ = case
    assert {name: part.shape for name, part in layer.state_dict().items()} == {
        name: part.shape for name, part in plain.state_dict().items()
    }
    ours, theirs = run(layer, x), run(plain, x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for mine, its in zip(layer.parameters(), plain.parameters()):
        assert torch.equal(mine.grad, its.grad)


def test_an_extracted_layer_gives_the_outputs_of_the_prefix_in_use(case):
    layer, _, _, active, x = case
    layer.active = active
    expected = run(layer, x)
    state = torch.get_rng_state()
    small = layer.extracted()
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(run(small, x), expected, rtol=1e-6, atol=1e-6)
    assert sum(part.numel() for part in small.parameters()) == sum(
        layer.get_parameter(name)[region].numel() for name, kept in layer.regions().items() for region in kept
    )


def test_linear_and_convolution_prefixes_are_bit_equal_to_extracted_ones(case):
    layer, _, _, active, x = case
    layer.active = active
    if isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
        assert torch.equal(run(layer.extracted(), x), run(layer, x))


def test_gradients_are_zero_outside_the_prefix_and_not_within(case):
    layer, _, _, active, x = case
    layer.active = active
    run(layer, x).pow(3).sum().backward()
    for name, parameter in layer.named_parameters():
        inside = torch.zeros_like(parameter, dtype=torch.bool)
        for region in layer.regions()[name]:
            inside[region] = True
        assert not inside.all()
        assert bool((parameter.grad[~inside] == 0).all())
        if name != "in_proj_bias":  # the key's bias shifts all scores of a query alike
            assert bool((parameter.grad[inside] != 0).any())


def test_outputs_do_not_depend_on_weights_outside_the_prefix(case):
    layer, _, _, active, x = case
    layer.active = active
    before = run(layer, x).detach()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            inside = torch.zeros_like(parameter, dtype=torch.bool)
            for region in layer.regions()[name]:
                inside[region] = True
            parameter[~inside] = 1e6
    assert torch.equal(run(layer, x), before)


def test_sliced_linear_is_a_product_with_the_leading_block():
    layer = SortedLinear(6, 5)
    layer.active = (4, 2)
    x = torch.randn(3, 4)
    expected = torch.stack(
        [
            torch.stack([sum(layer.weight[o, i] * row[i] for i in range(4)) + layer.bias[o] for o in range(2)])
            for row in x
        ]
    )
    torch.testing.assert_close(layer(x), expected)


def test_layer_norm_takes_mean_and_variance_of_the_active_features():
    layer = randomized(SortedLayerNorm(6, eps=1e-3))
    layer.active = 4
    x = torch.randn(5, 4)
    scaled = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-3).sqrt()
    torch.testing.assert_close(layer(x), scaled * layer.weight[:4] + layer.bias[:4])


def test_sliced_attention_is_a_loop_over_the_first_heads():
    torch.manual_seed(0)
    layer = randomized(SortedMultiheadAttention(8, 4, batch_first=True)).eval()
    features, heads, head_dim = 6, 3, 2
    layer.active = (features, heads)
    q, k = torch.randn(2, 5, features), torch.randn(2, 7, features)
    hidden = torch.zeros(2, 7, dtype=torch.bool)
    hidden[0, 5:] = True
    output, weights = layer(q, k, k, key_padding_mask=hidden)
    expected = layer.out_proj.bias[:features].clone().expand(2, 5, -1)
    mean_weights = torch.zeros(2, 5, 7)
    for head in range(heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        projected = []
        for part, x in enumerate((q, k, k)):
            weight, bias = layer.in_proj_weight[part * 8 : part * 8 + 8], layer.in_proj_bias[part * 8 : part * 8 + 8]
            projected.append(x @ weight[rows, :features].T + bias[rows])
        scores = projected[0] @ projected[1].transpose(1, 2) / head_dim**0.5
        share = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
        mean_weights += share / heads
        expected = expected + share @ projected[2] @ layer.out_proj.weight[:features, rows].T
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(weights, mean_weights)
    torch.testing.assert_close(layer(q, k, k, key_padding_mask=hidden, need_weights=False)[0], expected)


def test_sliced_attention_takes_every_layout_and_mask_that_the_plain_one_takes():
    torch.manual_seed(0)
    layer = SortedMultiheadAttention(8, 4).eval()
    layer.active = (4, 2)
    plain = layer.extracted()
    assert type(plain) is nn.MultiheadAttention
    x = torch.randn(5, 3, 4)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    per_head = torch.randn(6, 5, 5)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for arguments in (
        {"attn_mask": causal, "is_causal": True, "need_weights": False},
        {"attn_mask": later},
        {"attn_mask": per_head},
        {"average_attn_weights": False},
        {"key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3), "attn_mask": later},
    ):
        ours, theirs = layer(x, x, x, **arguments), plain(x, x, x, **arguments)
        torch.testing.assert_close(ours[0], theirs[0])
        assert (ours[1] is None) == (theirs[1] is None)
        if ours[1] is not None:
            torch.testing.assert_close(ours[1], theirs[1])
    single = torch.randn(5, 4)
    torch.testing.assert_close(layer(single, single, single)[0], plain(single, single, single)[0])
    with pytest.raises(ValueError, match=r"one for each of 2 active heads of each sequence, got \(12, 5, 5\)"):
        layer(x, x, x, attn_mask=torch.zeros(12, 5, 5))


def test_attention_drops_weights_in_training_only():
    layer = SortedMultiheadAttention(8, 4, dropout=0.5, batch_first=True)
    layer.active = (8, 2)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(attend(layer, x), attend(layer, x))
    layer.eval()
    assert torch.equal(attend(layer, x), attend(layer, x))


@pytest.mark.parametrize("active", [(0, 1), (7, 5), (4, 6), (4,), 4])
def test_active_sizes_out_of_range_are_refused(active):
    with pytest.raises(ValueError, match=r"active of SortedLinear takes inputs in 1\.\.6, outputs in 1\.\.5, got"):
        SortedLinear(6, 5).active = active


def test_a_grouped_convolution_is_cut_by_whole_groups_only():
    with pytest.raises(ValueError, match="4 groups of 2 input and 4 output channels"):
        conv(4).active = (3, 8)
    with pytest.raises(ValueError, match="2 inputs and 8 outputs are not"):
        conv(4).active = (2, 8)


def test_an_input_that_does_not_fit_the_prefix_is_named_with_its_shape():
    layer = SortedLinear(6, 5)
    layer.active = (4, 2)
    with pytest.raises(ValueError, match=r"has 4 of 6 inputs active .* got an input of shape \(3, 6\)"):
        layer(torch.randn(3, 6))


def test_layers_whose_parameters_have_no_prefix_are_refused():
    with pytest.raises(ValueError, match="only the last can be cut"):
        SortedLayerNorm((3, 4)).active = 2
    with pytest.raises(ValueError, match="only with keys and values as wide as queries"):
        SortedMultiheadAttention(8, 2, kdim=4).active = (4, 1)
    layer = SortedEmbedding(4, 6, max_norm=1.0)
    layer.active = 2
    with pytest.raises(ValueError, match=r"cannot be cut with max_norm=1\.0"):
        layer(torch.tensor([1]))


def test_no_activation_is_rescaled():
    layer = SortedLinear(6, 5, bias=False)
    layer.active = (3, 5)
    x = torch.randn(2, 3)
    torch.testing.assert_close(layer(x), F.linear(F.pad(x, (0, 3)), layer.weight))
