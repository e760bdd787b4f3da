"""Windows, the relative position bias, and the attention that uses them."""

import pytest
import torch

from etude.vision.moat import RelPosAttention2d, relative_position_bias, window_merge, window_partition


def attention(**options):
    torch.manual_seed(0)
    layer = RelPosAttention2d(**({"dim": 8, "head_dim": 4, "rel_pos_size": 4} | options))
    for parameter in layer.parameters():  # 0.02 would hide mistakes
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def naive(layer, x):
    """One query and one key at a time over the whole map, with the layer's table as it is."""
    _, channels, height, width = x.shape
    pixels = [(row, column) for row in range(height) for column in range(width)]
    wq, wk, wv = layer.qkv.weight.chunk(3)
    bq, bk, bv = layer.qkv.bias.chunk(3)
    out = torch.zeros_like(x)
    for i, (row, column) in enumerate(pixels):
        mixed = x.new_zeros(len(x), channels)
        for head in range(layer.num_heads):
            part = slice(head * layer.head_dim, (head + 1) * layer.head_dim)
            q = x[:, :, row, column] @ wq[part].T + bq[part]
            logits, values = [], []
            for other_row, other_column in pixels:
                key = x[:, :, other_row, other_column]
                logit = (q * (key @ wk[part].T + bk[part])).sum(1) / layer.head_dim**0.5
                if layer.rel_pos is not None:
                    dy, dx = other_row - row, other_column - column
                    logit = logit + layer.rel_pos[head, dy + height - 1, dx + width - 1]
                logits.append(logit)
                values.append(key @ wv[part].T + bv[part])
            weights = torch.stack(logits).softmax(0)
            mixed[:, part] = (weights[..., None] * torch.stack(values)).sum(0)
        out[:, :, pixels[i][0], pixels[i][1]] = mixed @ layer.proj.weight.T + layer.proj.bias
    return out


@pytest.mark.parametrize("size", [4, None])
@pytest.mark.parametrize("graded", [True, False])
def test_attention_equals_a_loop_over_queries_and_keys(size, graded):
    layer = attention(rel_pos_size=size).double()
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64)
    with torch.set_grad_enabled(graded):
        torch.testing.assert_close(layer(x), naive(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
def test_the_bias_equals_a_loop_over_pairs_of_pixels(size):
    height, width = size
    table = torch.randn(3, 2 * height - 1, 2 * width - 1)
    bias = relative_position_bias(table, height, width)
    for query in range(height * width):
        for key in range(height * width):
            dy, dx = key // width - query // width, key % width - query % width
            assert torch.equal(bias[:, query, key], table[:, dy + height - 1, dx + width - 1])


def test_the_offset_is_that_of_the_key_from_the_query():
    table = torch.zeros(1, 3, 3)
    table[0, 2, 1] = 1.0  # one row down, same column
    bias = relative_position_bias(table, 2, 2)[0]
    assert bias.nonzero().tolist() == [[0, 2], [1, 3]]


def test_a_table_of_the_windows_size_is_used_bit_for_bit():
    table = torch.randn(2, 7, 7)
    assert torch.equal(relative_position_bias(table, 4, 4)[:, 0, 0], table[:, 3, 3])
    assert torch.equal(relative_position_bias(table, 4, 4)[:, 15, 0], table[:, 0, 0])
    assert torch.equal(relative_position_bias(table, 4, 4)[:, 0, 15], table[:, 6, 6])


def test_a_table_is_resized_with_half_pixel_centres_and_no_antialiasing():
    """A linear table stays linear inside: sample t of n lies at (t + 1/2) p / n - 1/2 of p."""
    table = torch.arange(7.0).expand(7, 7)[None]
    bias = relative_position_bias(table, 4, 2)[0]  # 7 x 3 offsets
    wanted = [(offset + 0.5) * 7 / 3 - 0.5 for offset in range(3)]
    assert bias[0, :2].tolist() == pytest.approx(wanted[1:], abs=1e-6)
    assert float(bias[1, 0]) == pytest.approx(wanted[0], abs=1e-6)


def test_a_network_position_table_serves_other_maps():
    layer = attention(rel_pos_size=3)
    assert layer(torch.randn(1, 8, 5, 6)).shape == (1, 8, 5, 6)
    assert layer.rel_pos.shape == (2, 5, 5)


def test_merging_undoes_partition():
    x = torch.randn(2, 6, 8, 3)
    windows = window_partition(x, (3, 4))
    assert windows.shape == (8, 3, 4, 3)
    assert torch.equal(windows[1], x[0, :3, 4:])
    assert torch.equal(windows[4], x[1, :3, :4])
    assert torch.equal(window_merge(windows, (6, 8)), x)


def test_a_window_as_large_as_the_map_is_global_attention():
    whole, windowed = attention(), attention(window=(4, 6))
    x = torch.randn(2, 8, 4, 6)
    assert torch.equal(whole(x), windowed(x))


def test_windows_attend_to_themselves_alone():
    layer = attention(window=2)
    x = torch.randn(1, 8, 4, 4)
    parts = window_merge(
        torch.cat([attention(window=2)(part.permute(2, 0, 1)[None]).permute(0, 2, 3, 1)
                   for part in window_partition(x.permute(0, 2, 3, 1), 2)]), (4, 4)
    )  # fmt: skip
    torch.testing.assert_close(layer(x), parts.permute(0, 3, 1, 2))


def test_gradients_match_finite_differences():
    layer = attention(dim=4, head_dim=2, rel_pos_size=3, window=(2, 3)).double()
    x = torch.randn(1, 4, 2, 6, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters())

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *values))


def test_training_and_evaluation_compute_the_same():
    layer = attention(window=2)
    x = torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        evaluated = layer(x)
    torch.testing.assert_close(layer(x), evaluated)


@pytest.mark.parametrize("graded", [True, False])
def test_weights_of_half_precision_are_normalised_in_float32(graded):
    """Sixty-four equal weights: a softmax summed in bfloat16 would stop growing before their sum."""
    layer = attention(dim=4, head_dim=4, rel_pos_size=32).bfloat16()
    torch.nn.init.zeros_(layer.qkv.weight)
    torch.nn.init.zeros_(layer.rel_pos)
    torch.nn.init.eye_(layer.proj.weight)
    torch.nn.init.zeros_(layer.proj.bias)
    with torch.no_grad():
        layer.qkv.bias[8:] = 1.0
    with torch.set_grad_enabled(graded):
        out = layer(torch.randn(1, 4, 32, 32).bfloat16())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), torch.ones_like(out, dtype=torch.float32), rtol=0.01, atol=0.0)


def test_training_keeps_no_more_for_the_backward_pass_than_the_plain_way():
    layer = attention(dim=32, head_dim=8, rel_pos_size=8)
    x = torch.randn(2, 32, 8, 8)

    def plain():
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (part.unflatten(2, (4, 8)).transpose(1, 2) for part in layer.qkv(tokens).chunk(3, dim=2))
        bias = relative_position_bias(layer.rel_pos, 8, 8)
        mixed = torch.softmax(q * 8**-0.5 @ k.transpose(2, 3) + bias, dim=-1) @ v
        return layer.proj(mixed.transpose(1, 2).flatten(2))

    def kept(run):
        stored = {}

        def pack(tensor):
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = run()  # alive while storages are told apart by their addresses
        return sum(stored.values()), out

    (ours, _), (theirs, _) = kept(lambda: layer(x)), kept(plain)
    assert 0 < ours <= theirs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10}, "dim must be a multiple of head_dim, got 10 and 4"),
        ({"rel_pos_size": 0}, "rel_pos_size must be at least 1 or None, got 0"),
        ({"window": 0}, "window must be a positive height and width"),
        ({"window": (2, 2, 2)}, "window must be a positive height and width"),
    ],
)
def test_layers_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        attention(**options)


def test_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a window of 3 x 3 must divide the map, got 4 x 6"):
        attention(window=3)(torch.randn(1, 8, 4, 6))
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 8, height, width\), got \(1, 4, 4, 4\)"):
        attention()(torch.randn(1, 4, 4, 4))
    with pytest.raises(ValueError, match="3 windows of 2 x 2 do not make up maps of 4 x 4"):
        window_merge(torch.randn(3, 2, 2, 1), (4, 4))
