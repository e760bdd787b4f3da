"""Gated positional self-attention: equations, limits, the local start, refusals."""

import math
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from etude.nn.transformer import SelfAttention
from etude.vision.convit import (
    GatedPositionalSelfAttention,
    gpsa_from_attention,
    gpsa_from_conv,
    grid_of,
    head_offsets,
    relative_coordinates,
)


def layer_and_tokens(*, heads=4, dim=16, grid=(4, 4), dtype=torch.float64, batch=2, **options):
    """A layer whose weights are all random and large enough to matter, and tokens for it."""
    torch.manual_seed(0)
    layer = GatedPositionalSelfAttention(dim=dim, num_heads=heads, grid_size=grid, **options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.4)
    return layer, torch.randn(batch, grid[0] * grid[1], dim, dtype=dtype)


def test_coordinates_are_those_of_a_double_loop():
    height, width = 2, 3
    found = relative_coordinates(height, width)
    for i in range(height * width):
        for j in range(height * width):
            dx, dy = j % width - i % width, j // width - i // width
            assert found[i, j].tolist() == [dx, dy, dx * dx + dy * dy]


@pytest.mark.parametrize("grid", [(3, 3), (2, 5)])
@torch.no_grad()
def test_attention_equals_a_naive_double_loop(grid):
    layer, x = layer_and_tokens(grid=grid, qkv_bias=True)
    found = layer.attention(x)
    coordinates = relative_coordinates(*grid, dtype=torch.float64)
    q, k = layer.qk(x).chunk(2, dim=-1)
    tokens, width = x.shape[1], 4
    for image in range(len(x)):
        for head in range(4):
            part = slice(head * width, (head + 1) * width)
            gate = 1 / (1 + math.exp(-layer.gate_logit[head].item()))
            for i in range(tokens):
                content = [math.exp(float(q[image, i, part] @ k[image, j, part]) / width**0.5) for j in range(tokens)]
                place = [math.exp(float(layer.pos_proj(coordinates[i, j])[head])) for j in range(tokens)]
                for j in range(tokens):
                    wanted = (1 - gate) * content[j] / sum(content) + gate * place[j] / sum(place)
                    assert abs(found[image, head, i, j].item() - wanted) < 1e-6


@pytest.mark.parametrize("grid", [(4, 4), (1, 5), (3, 6)])
def test_the_forward_pass_applies_the_attention_that_is_shown(grid):
    layer, x = layer_and_tokens(grid=grid)
    values = layer.v(x).unflatten(-1, (4, -1)).transpose(1, 2)
    wanted = layer.proj((layer.attention(x) @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), wanted, atol=1e-12, rtol=1e-12)


def test_rows_of_attention_sum_to_one_and_are_not_negative():
    layer, x = layer_and_tokens(dtype=torch.float32)
    attention = layer.attention(x)
    assert attention.min() >= 0
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 4, 16), atol=1e-6, rtol=0)


def test_closed_gates_leave_plain_self_attention():
    torch.manual_seed(0)
    plain = SelfAttention(16, 4, qkv_bias=True).double()
    gated = gpsa_from_attention(plain, gate_logit=-30.0)
    x = torch.randn(2, 16, 16, dtype=torch.float64)
    assert gated.gates.max() < 1e-13
    torch.testing.assert_close(gated(x), plain(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(gated.attention(x), plain.attention(x), atol=1e-6, rtol=0)


def test_open_gates_ignore_queries_and_keys():
    layer, x = layer_and_tokens()
    with torch.no_grad():
        layer.gate_logit.fill_(30.0)
    before = layer(x)
    before.square().sum().backward()
    assert layer.qk.weight.grad.abs().max() < 1e-10
    assert layer.v.weight.grad.abs().max() > 1e-3
    with torch.no_grad():
        layer.qk.weight.normal_()
    torch.testing.assert_close(layer(x), before, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("side", "channels_in", "channels_out"), [(3, 4, 7), (3, 4, 36), (5, 2, 3), (1, 3, 2)])
def test_sharp_open_heads_are_a_convolution_away_from_the_border(side, channels_in, channels_out):
    torch.manual_seed(0)
    kernel = torch.randn(channels_out, channels_in, side, side)
    image = torch.randn(2, channels_in, 8, 9)
    layer = gpsa_from_conv(kernel, torch.randn(channels_out), alpha=50.0)
    tokens = F.pad(image.flatten(2).transpose(1, 2), (0, layer.dim - channels_in))
    found = layer(tokens, (8, 9))[..., :channels_out].transpose(1, 2).unflatten(2, (8, 9))
    wanted = F.conv2d(image, kernel, layer.proj.bias[:channels_out], padding=side // 2)
    edge = side // 2
    inside = (..., slice(edge, 8 - edge), slice(edge, 9 - edge))
    torch.testing.assert_close(found[inside], wanted[inside], atol=1e-5, rtol=1e-5)
    assert side == 1 or (found - wanted)[..., 0, :].abs().max() > 0.1


@pytest.mark.parametrize(("heads", "offsets"), [(1, 1), (9, 9), (10, 9), (25, 25)])
def test_heads_of_an_odd_window_start_at_one_offset_each(heads, offsets):
    with pytest.warns(UserWarning, match="10 heads") if heads == 10 else nullcontext():  # else a warning is an error
        layer = GatedPositionalSelfAttention(dim=2 * heads, num_heads=heads)
    places = head_offsets(heads)
    assert len(places) == len({tuple(place) for place in places.tolist()}) == offsets
    query = 4 * 9 + 4
    for (dx, dy), row in zip(places.long().tolist(), layer.positional_attention((9, 9))[:, query]):
        assert divmod(int(row.argmax()), 9) == (4 + dy, 4 + dx)
    assert torch.equal(layer.gate_logit, torch.ones(heads))
    assert torch.equal(layer.v.weight, torch.eye(2 * heads))


@pytest.mark.parametrize("heads", [4, 16])
def test_heads_of_an_even_window_start_between_four_tokens(heads):
    layer = GatedPositionalSelfAttention(dim=heads, num_heads=heads)
    for (dx, dy), row in zip(head_offsets(heads).tolist(), layer.positional_attention((9, 9))[:, 4 * 9 + 4]):
        corners = {(math.floor(4 + dy) + down) * 9 + math.floor(4 + dx) + right for down in (0, 1) for right in (0, 1)}
        values, order = row.topk(5)
        assert set(order[:4].tolist()) == corners
        assert values[:4].max() - values[:4].min() < 1e-6 < values[3] - values[4]


def test_a_number_of_heads_that_is_no_square_warns_and_leaves_the_rest_random():
    with pytest.warns(UserWarning, match="7 heads are no square number: 3 of them"):
        layer = GatedPositionalSelfAttention(dim=14, num_heads=7, locality_strength=2.0)
    assert torch.equal(layer.pos_proj.weight[:4, 2], torch.full((4,), -2.0))
    assert 0 < layer.pos_proj.weight[4:].abs().max() < 0.2


def test_without_the_local_start_all_weights_are_small_and_random():
    layer = GatedPositionalSelfAttention(dim=36, num_heads=9, local_init=False)
    assert 0 < layer.pos_proj.weight.abs().max() <= 2
    assert layer.v.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(layer.gate_logit, torch.ones(9))


def test_positional_attention_depends_on_the_offset_alone_up_to_the_border():
    layer, _ = layer_and_tokens(grid=(6, 6))
    positional = layer.positional_attention().unflatten(1, (6, 6)).unflatten(3, (6, 6))
    # ratios of weights to that of the query itself are free of the row's sum
    ratio = {
        (row, column): positional[:, row, column, row - 1 : row + 2, column - 1 : column + 2]
        / positional[:, row, column, row, column][:, None, None]
        for row in range(1, 5)
        for column in range(1, 5)
    }
    for found in ratio.values():
        torch.testing.assert_close(found, ratio[1, 1], atol=1e-10, rtol=1e-10)


def test_the_bias_of_positions_gets_no_gradient_and_may_be_left_out():
    layer, x = layer_and_tokens()
    layer(x).square().sum().backward()
    assert layer.pos_proj.bias.grad.abs().max() < 1e-12
    assert layer.pos_proj.weight.grad.abs().max() > 1e-3
    assert GatedPositionalSelfAttention(dim=4, num_heads=1, pos_bias=False).pos_proj.bias is None
    lean, _ = layer_and_tokens(pos_bias=False)
    lean.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "pos_proj.bias"})
    torch.testing.assert_close(lean(x), layer(x))


def test_gradients_match_finite_differences():
    layer, x = layer_and_tokens(dim=4, heads=4, grid=(2, 3), batch=1)
    names, values = zip(*layer.named_parameters())

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *values))


def test_the_state_holds_parameters_alone_and_goes_round():
    layer, x = layer_and_tokens()
    names = {"gate_logit", "qk.weight", "v.weight", "pos_proj.weight", "pos_proj.bias", "proj.weight", "proj.bias"}
    assert set(layer.state_dict()) == names
    other = GatedPositionalSelfAttention(dim=16, num_heads=4).double()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_images_are_independent_and_positions_matter():
    layer, x = layer_and_tokens(batch=3)
    torch.testing.assert_close(layer(x[[2, 0, 1]]), layer(x)[[2, 0, 1]])
    order = torch.randperm(16)
    assert (layer(x[:, order]) - layer(x)[:, order]).abs().max() > 1e-3


def test_a_layer_takes_any_grid_without_new_parameters():
    layer = GatedPositionalSelfAttention(dim=18, num_heads=9)
    assert layer(torch.randn(1, 25, 18)).shape == (1, 25, 18)
    assert layer(torch.randn(1, 24, 18), (4, 6)).shape == (1, 24, 18)
    assert not torch.allclose(layer.positional_attention((4, 6)), layer.positional_attention((6, 4)))


def test_dropout_of_attention_weights_acts_in_training_alone():
    layer, x = layer_and_tokens(attn_drop=0.5)
    torch.manual_seed(1)
    trained = layer(x)
    torch.manual_seed(1)
    weights = F.dropout(layer.attention(x), 0.5)
    values = layer.v(x).unflatten(-1, (4, -1)).transpose(1, 2)
    torch.testing.assert_close(trained, layer.proj((weights @ values).transpose(1, 2).flatten(2)))
    still, _ = layer_and_tokens()
    torch.testing.assert_close(layer.eval()(x), still(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_its_softmaxes_in_single(dtype):
    layer, x = layer_and_tokens(dtype=torch.float32, grid=(16, 16))
    half, _ = layer_and_tokens(dtype=torch.float32, grid=(16, 16))
    half.load_state_dict({name: value.to(dtype) for name, value in layer.state_dict().items()})
    wanted = half(x.to(dtype).float())
    found = half.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert half.attention(x.to(dtype)).dtype == torch.float32
    assert half.positional_attention().dtype == torch.float32
    torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)


def test_autocast_runs_forward_and_backward():
    layer, x = layer_and_tokens(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    found.float().sum().backward()
    torch.testing.assert_close(found.float(), layer(x), atol=0.1, rtol=0.1)
    assert layer.pos_proj.weight.grad.dtype == torch.float32


def test_a_layer_in_place_of_another_keeps_its_weights_and_mode():
    plain = SelfAttention(18, 9, attn_drop=0.1, proj_drop=0.2).eval()
    layer = gpsa_from_attention(plain, grid_size=(3, 4))
    assert (layer.attn_drop, layer.proj_drop.p, layer.grid_size, layer.training) == (0.1, 0.2, (3, 4), False)
    assert torch.equal(torch.cat([layer.qk.weight, layer.v.weight]), plain.qkv.weight)
    assert torch.equal(layer.proj.weight, plain.proj.weight)
    assert layer.pos_proj.weight[4].tolist() == [0.0, 0.0, -1.0]
    with pytest.raises(TypeError, match="linear qkv and proj and num_heads, got Linear"):
        gpsa_from_attention(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("tokens", "grid", "message"),
    [
        (17, None, r"17 tokens fill no square grid.*a class token must join after"),
        (17, (4, 4), r"17 tokens do not fill a grid of 4 x 4 = 16; a class token"),
        (12, None, r"12 tokens fill no square grid: give grid_size=\(height, width\)$"),
        (12, (3, 5), r"12 tokens do not fill a grid of 3 x 5 = 15$"),
    ],
)
def test_tokens_that_fill_no_grid_are_refused(tokens, grid, message):
    with pytest.raises(ValueError, match=message):
        grid_of(tokens, grid)
    with pytest.raises(ValueError, match=message):
        GatedPositionalSelfAttention(dim=4, num_heads=1, grid_size=grid)(torch.randn(1, tokens, 4))


def test_bad_arguments_are_refused_with_their_values():
    with pytest.raises(ValueError, match="dim must be a multiple of num_heads, got 10 and 4"):
        GatedPositionalSelfAttention(dim=10, num_heads=4)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, 8\), got \(1, 4, 6\)"):
        GatedPositionalSelfAttention(dim=8, num_heads=4)(torch.randn(1, 4, 6))
    with pytest.raises(ValueError, match="no grid_size of its own"):
        GatedPositionalSelfAttention(dim=8, num_heads=4).positional_attention()
    with pytest.raises(ValueError, match="height and width must be at least 1, got 0 and 3"):
        relative_coordinates(0, 3)
    with pytest.warns(UserWarning, match="locality_strength -1 is not positive"):
        GatedPositionalSelfAttention(dim=8, num_heads=4, locality_strength=-1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 2, 2), "square and of odd size, got 2 x 2"),
        ((3, 3, 3, 5), "square and of odd size, got 3 x 5"),
        ((10, 1, 3, 3), "at most 9 outputs, the kernel has 10"),
    ],
)
def test_kernels_that_attention_cannot_be_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        gpsa_from_conv(torch.randn(shape))


def test_no_attention_map_is_kept_for_the_backward_pass():
    layer, x = layer_and_tokens(dtype=torch.float32, grid=(16, 16), batch=4)
    saved = []

    def pack(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert max(saved) < 4 * 256 * 256  # one map of one head for each image
