"""The attention itself: against the naive loop, in its limits, under shifts, and in its gradients."""

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F

from etude.vision.halonet import HaloAttention, halo_attention, local_attention_reference, sasa_attention


def maps(height, width, *, heads=2, dim=3, dim_value=5, stride=1, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(channels, h, w):
        return torch.randn(batch, heads, channels, h, w, dtype=torch.float64, generator=generator)

    return (
        draw(dim, -(-height // stride), -(-width // stride)),
        draw(dim, height, width),
        draw(dim_value, height, width),
    )


def tables(block_size, halo_size, dim=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 2 * (block_size + 2 * halo_size) - 1, dim, dtype=torch.float64, generator=generator).unbind()


def dense_bias(q, rel_h, rel_w, window):
    """Relative logits of all pixels with all pixels, (batch, heads, pixels, pixels), straight from the definition."""
    height, width = q.shape[3:]
    pixels = list(itertools.product(range(height), range(width)))
    rows = torch.tensor([[key[0] - query[0] + window - 1 for key in pixels] for query in pixels])
    columns = torch.tensor([[key[1] - query[1] + window - 1 for key in pixels] for query in pixels])
    last = 2 * window - 2  # offsets out of reach belong to pairs that are masked
    embedded = rel_h[rows.clamp(0, last)] + rel_w[columns.clamp(0, last)]
    return torch.einsum("bhdi,ijd->bhij", q.flatten(3), embedded)


def dense_attention(q, k, v, bias):
    q, k, v = (x.flatten(3).transpose(2, 3) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return out.transpose(2, 3)


@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    ("block_size", "halo_size", "stride"),
    [(b, h, s) for b in (1, 2, 4) for h in (0, 1, 3) for s in (1, 2) if b % s == 0],
)
def test_attention_equals_the_naive_loop(block_size, halo_size, stride, heads, mask_padding):
    q, k, v = maps(4, 8, heads=heads, stride=stride)
    rel_h, rel_w = tables(block_size, halo_size)
    arguments = {
        "block_size": block_size, "halo_size": halo_size, "stride": stride, "mask_padding": mask_padding,
        "rel_h": rel_h, "rel_w": rel_w,
    }  # fmt: skip
    ours, naive = halo_attention(q, k, v, **arguments), local_attention_reference(q, k, v, **arguments)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mask_padding", [True, False])
@pytest.mark.parametrize("with_tables", [True, False])
def test_a_map_that_does_not_fit_the_blocks_equals_the_naive_loop(stride, mask_padding, with_tables):
    q, k, v = maps(7, 6, stride=stride)
    rel_h, rel_w = tables(4, 1) if with_tables else (None, None)
    arguments = {
        "block_size": 4, "halo_size": 1, "stride": stride, "mask_padding": mask_padding,
        "rel_h": rel_h, "rel_w": rel_w,
    }  # fmt: skip
    ours, naive = halo_attention(q, k, v, **arguments), local_attention_reference(q, k, v, **arguments)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-10)


@pytest.mark.parametrize("halo_size", [0, 1, 2])
def test_a_map_that_does_not_fit_equals_the_dense_attention_of_its_pixels(halo_size):
    q, k, v = maps(5, 7, batch=1)
    rel_h, rel_w = tables(4, halo_size)
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(5), torch.arange(7), indexing="ij"))

    def near(pixel):
        low = pixel // 4 * 4 - halo_size
        return (pixel[None] >= low[:, None]) & (pixel[None] < low[:, None] + 4 + 2 * halo_size)

    bias = dense_bias(q, rel_h, rel_w, 4 + 2 * halo_size).masked_fill(~(near(row) & near(column)), -torch.inf)
    ours = halo_attention(q, k, v, block_size=4, halo_size=halo_size, rel_h=rel_h, rel_w=rel_w)
    torch.testing.assert_close(ours, dense_attention(q, k, v, bias).reshape(ours.shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize("option", ["scale_rel", "dense_offsets"])
def test_the_options_of_the_relative_logits_equal_the_naive_loop_and_matter(option):
    q, k, v = maps(4, 8, stride=2)
    rel_h, rel_w = tables(4, 1)
    arguments = {"block_size": 4, "halo_size": 1, "stride": 2, "rel_h": rel_h, "rel_w": rel_w}
    ours = halo_attention(q, k, v, **arguments, **{option: True})
    naive = local_attention_reference(q, k, v, **arguments, **{option: True})
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-10)
    assert (ours - halo_attention(q, k, v, **arguments)).abs().max() > 0.01


def test_one_block_as_large_as_the_map_is_global_attention():
    q, k, v = maps(4, 4)
    rel_h, rel_w = tables(4, 0)
    ours = halo_attention(q, k, v, block_size=4, halo_size=0, rel_h=rel_h, rel_w=rel_w)
    expected = dense_attention(q, k, v, dense_bias(q, rel_h, rel_w, 4))
    torch.testing.assert_close(ours, expected.reshape(ours.shape), rtol=0, atol=1e-10)


@pytest.mark.parametrize("block_size", [1, 2, 4])
def test_a_halo_over_the_whole_map_is_global_attention_for_any_block(block_size):
    q, k, v = maps(4, 8)
    halo_size = 8 - block_size
    rel_h, rel_w = tables(block_size, halo_size)
    ours = halo_attention(q, k, v, block_size=block_size, halo_size=halo_size, rel_h=rel_h, rel_w=rel_w)
    bias = dense_bias(q, rel_h, rel_w, block_size + 2 * halo_size)
    torch.testing.assert_close(ours, dense_attention(q, k, v, bias).reshape(ours.shape), rtol=0, atol=1e-10)


def test_without_a_halo_every_block_attends_to_itself_alone():
    q, k, v = maps(8, 16)
    rel_h, rel_w = tables(4, 0)
    ours = halo_attention(q, k, v, block_size=4, halo_size=0, rel_h=rel_h, rel_w=rel_w).unflatten(1, (2, 5))
    for top, left in itertools.product(range(0, 8, 4), range(0, 16, 4)):
        part = (..., slice(top, top + 4), slice(left, left + 4))
        expected = dense_attention(q[part], k[part], v[part], dense_bias(q[part], rel_h, rel_w, 4))
        torch.testing.assert_close(ours[part].flatten(3), expected, rtol=0, atol=1e-10)


def test_sasa_is_attention_over_a_centred_window():
    q, k, v = maps(5, 6)
    rel_h, rel_w = tables(1, 1)
    ours = sasa_attention(q, k, v, window_size=3, rel_h=rel_h, rel_w=rel_w)
    row, column = (x.flatten() for x in torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij"))
    far = ((row[:, None] - row).abs() > 1) | ((column[:, None] - column).abs() > 1)
    bias = dense_bias(q, rel_h, rel_w, 3).masked_fill(far, -torch.inf)
    torch.testing.assert_close(ours, dense_attention(q, k, v, bias).reshape(ours.shape), rtol=0, atol=1e-10)


def shift_gap(block_size, halo_size, shift):
    """Largest difference, away from the border, between attending then shifting and shifting then attending."""
    q, k, v = maps(32, 32, batch=1)
    rel_h, rel_w = tables(block_size, halo_size)
    arguments = {"block_size": block_size, "halo_size": halo_size, "rel_h": rel_h, "rel_w": rel_w}
    still = halo_attention(q, k, v, **arguments)
    moved = halo_attention(*(x.roll((shift, shift), (3, 4)) for x in (q, k, v)), **arguments)
    inner = (..., slice(12, 20), slice(12, 20))
    return (moved[inner] - still.roll((shift, shift), (2, 3))[inner]).abs().max()


def test_a_shift_by_a_block_shifts_the_output():
    assert shift_gap(4, 2, 4) < 1e-12


def test_a_shift_by_a_pixel_does_not_shift_the_output_of_blocks():
    assert shift_gap(4, 2, 1) > 0.1


def test_a_shift_by_a_pixel_shifts_the_output_of_single_pixel_blocks():
    assert shift_gap(1, 2, 1) < 1e-12


@pytest.mark.parametrize("pixel", [(0, 0), (5, 10), (7, 15)])
def test_a_pixel_sees_exactly_the_window_of_its_block(pixel):
    torch.manual_seed(0)
    layer = HaloAttention(dim=4, num_heads=2, block_size=4, halo_size=1).double()
    x = torch.randn(1, 4, 8, 16, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0, :, pixel[0], pixel[1]].sum(), x)
    expected = torch.zeros(8, 16, dtype=torch.bool)
    top, left = pixel[0] // 4 * 4, pixel[1] // 4 * 4
    expected[max(top - 1, 0) : top + 5, max(left - 1, 0) : left + 5] = True
    assert torch.equal(grad[0].abs().sum(0) > 0, expected)


@pytest.mark.parametrize("with_tables", [False, True])
def test_the_order_of_keys_matters_through_the_tables_alone(with_tables):
    q, k, v = maps(4, 4)
    rel_h, rel_w = (table * with_tables for table in tables(4, 0))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    shuffled = [x.flatten(3)[..., order].unflatten(3, (4, 4)) for x in (k, v)]
    arguments = {"block_size": 4, "halo_size": 0, "rel_h": rel_h, "rel_w": rel_w}
    gap = (halo_attention(q, k, v, **arguments) - halo_attention(q, *shuffled, **arguments)).abs().max()
    assert gap > 0.1 if with_tables else gap < 1e-12


def test_constant_values_pass_unchanged_if_padding_is_masked_and_shrink_at_the_border_if_not():
    q, k, v = maps(12, 12)
    v = torch.ones_like(v)
    rel_h, rel_w = tables(4, 2)
    arguments = {"block_size": 4, "halo_size": 2, "rel_h": rel_h, "rel_w": rel_w}
    ones = torch.ones(2, 10, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(halo_attention(q, k, v, **arguments), ones)
    diluted = halo_attention(q, k, v, **arguments, mask_padding=False)
    border = torch.ones(12, 12, dtype=torch.bool)
    border[4:8, 4:8] = False  # the one block whose window holds no border
    torch.testing.assert_close(diluted[..., ~border], ones[..., ~border])
    assert (diluted[..., border] < 1 - 1e-9).all()


@pytest.mark.parametrize("chunk_rows", [None, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("with_tables", [True, False])
def test_gradients_match_finite_differences(chunk_rows, stride, with_tables):
    q, k, v = maps(8, 5, heads=1, dim=2, dim_value=1, stride=stride, batch=1)
    given = [q, k, v, *(tables(4, 1, dim=2) if with_tables else ())]
    inputs = [x.requires_grad_() for x in given]

    def attention(q, k, v, rel_h=None, rel_w=None):
        return halo_attention(
            q, k, v, block_size=4, halo_size=1, stride=stride, rel_h=rel_h, rel_w=rel_w, chunk_rows=chunk_rows
        )

    assert torch.autograd.gradcheck(attention, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(attention, inputs, fast_mode=True)


def test_gradients_reach_only_what_requires_them():
    q, k, v = maps(4, 4)
    k.requires_grad_()
    halo_attention(q, k, v, block_size=2, halo_size=1).sum().backward()
    assert k.grad is not None
    assert q.grad is None


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 5, 100])
def test_chunks_change_neither_outputs_nor_gradients(chunk_rows):
    rel_h, rel_w = tables(4, 1)
    inputs = [x.requires_grad_() for x in (*maps(16, 8, batch=3), rel_h, rel_w)]

    def run(chunk_rows):
        q, k, v, rel_h, rel_w = inputs
        out = halo_attention(q, k, v, block_size=4, halo_size=1, rel_h=rel_h, rel_w=rel_w, chunk_rows=chunk_rows)
        return out, torch.autograd.grad(out.square().sum(), inputs)

    whole, whole_grads = run(None)
    parts, parts_grads = run(chunk_rows)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(parts_grads, whole_grads, rtol=0, atol=1e-12)


def refused(message, *arguments, **options):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(halo_attention)(*arguments, **options)  # our own message, with the shape checker off


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"halo_size": -1}, "halo_size must be at least 0, got -1"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"block_size": 3, "stride": 2}, "stride 2 must divide block_size, got 3"),
        ({"stride": 2}, r"q must have 4 x 4, got 8 x 8"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1 or None, got 0"),
    ],
)
def test_sizes_out_of_range_are_refused(options, message):
    refused(message, *maps(8, 8), **({"block_size": 4, "halo_size": 1} | options))


def test_maps_and_tables_that_do_not_fit_together_are_refused():
    q, k, v = maps(8, 8)
    rel_h, rel_w = tables(4, 1)
    sizes = {"block_size": 4, "halo_size": 1}
    refused("q must have shape", q[0], k, v, **sizes)
    refused("q and k must share batch, heads and dim", q, k[:, :, :2], v, **sizes)
    refused("k and v may differ in dim only", q, k, v[..., :4], **sizes)
    refused("must have one dtype", q, k, v.float(), **sizes)
    refused("give both or neither", q, k, v, rel_h=rel_h, **sizes)
    refused(r"rel_w must have shape \(11, 3\)", q, k, v, rel_h=rel_h, rel_w=rel_w[1:], **sizes)


def test_an_even_sasa_window_is_refused():
    with pytest.raises(ValueError, match="positive odd number, got 4"):
        sasa_attention(*maps(4, 4), window_size=4)
