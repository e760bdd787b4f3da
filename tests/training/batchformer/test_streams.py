"""BatchFormerV2: each position by itself, two streams through the blocks, one at test."""

import copy

import pytest
import torch
from torch import nn

from etude.training.batchformer import BatchFormer, BatchFormerStream, BatchFormerV2, split_streams


def seeded(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(dim: int = 8, **options) -> BatchFormerV2:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BatchFormerV2(dim, **({"dropout": 0.0} | options))


def blocks(number: int = 4, dim: int = 8) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return [
            nn.TransformerEncoderLayer(dim, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(number)
        ]


def test_a_position_depends_on_the_same_position_of_the_other_samples_only():
    x = seeded(3, 5, 8).requires_grad_()
    out = layer().mix(x)
    for position in range(5):
        (gradient,) = torch.autograd.grad(out[0, position].square().sum(), x, retain_graph=True)
        touched = gradient.abs().sum(dim=2) > 0
        assert touched[:, position].all()
        assert touched.sum() == 3


def test_with_one_position_it_equals_the_first_version():
    first = BatchFormer(8, dropout=0.0)
    second = layer()
    second.load_state_dict(first.state_dict())
    x = seeded(6, 8)
    torch.testing.assert_close(second(x[:, None])[:, 0], first(x))


def test_it_equals_a_loop_of_torch_layers_over_positions():
    second, x = layer(), seeded(6, 3, 8)
    peer = nn.TransformerEncoderLayer(8, 4, 8, 0.0)
    peer.load_state_dict(second.layers[0].state_dict())
    expected = torch.stack([peer(x[:, position, None])[:, 0] for position in range(3)], dim=1)
    torch.testing.assert_close(second.mix(x), expected)


def test_maps_are_tokens_of_their_pixels():
    second, x = layer(), seeded(4, 8, 2, 3)
    tokens = x.permute(0, 2, 3, 1).reshape(4, 6, 8)
    expected = second(tokens).reshape(8, 2, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(second(x), expected)


def test_only_the_second_half_of_a_doubled_batch_is_mixed():
    second, x = layer(), seeded(6, 5, 8)
    out = second(x, doubled=True)
    assert out.shape == x.shape
    assert torch.equal(out[:3], x[:3])
    torch.testing.assert_close(out[3:], second.mix(x[3:]))


def test_evaluation_is_the_identity():
    x = seeded(3, 5, 8)
    second = layer(dropout=0.5).eval()
    before = torch.get_rng_state()
    assert second(x) is x
    assert second(x, doubled=True) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_the_stream_doubles_once_and_shares_all_other_blocks():
    stack, second, x = blocks(), layer(), seeded(3, 5, 8)
    out = BatchFormerStream(stack, [1, 2], second)(x)
    plain = mixed = stack[1](stack[0](x))
    mixed = second.mix(mixed)
    plain, mixed = stack[2](plain), second.mix(stack[2](mixed))
    expected = torch.cat([stack[3](plain), stack[3](mixed)])
    torch.testing.assert_close(out, expected)


def test_places_may_have_layers_of_their_own_in_any_order():
    first, second = layer(), BatchFormerV2(8, dropout=0.0)
    stack, x = blocks(3), seeded(3, 5, 8)
    out = BatchFormerStream(stack, [2, 0], [second, first])(x)
    mixed = first.mix(stack[0](x))
    mixed = second.mix(stack[2](stack[1](mixed)))
    torch.testing.assert_close(out[3:], mixed)


def test_at_test_the_stream_is_its_blocks_bit_for_bit():
    stack, x = blocks(), seeded(3, 5, 8)
    stream = BatchFormerStream(stack, [0, 3], layer(dropout=0.5)).eval()
    assert torch.equal(stream(x), nn.Sequential(*stack).eval()(x))


def test_per_sample_arguments_are_doubled_with_the_batch():
    stack, x = blocks(2), seeded(3, 5, 8)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[1, 3:] = True
    out = BatchFormerStream(stack, [0], layer())(x, None, src_key_padding_mask=mask)
    plain, mixed = split_streams(out)
    hidden = stack[0](x, src_key_padding_mask=mask)
    torch.testing.assert_close(plain, stack[1](hidden, src_key_padding_mask=mask))
    torch.testing.assert_close(mixed, stack[1](layer().mix(hidden), src_key_padding_mask=mask))


def test_blocks_keep_their_names_so_that_plain_weights_load():
    stack = nn.Sequential(*blocks())
    stream = BatchFormerStream(copy.deepcopy(stack), [1], layer())
    missing, unexpected = stream.load_state_dict(stack.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith("batchformers.") for key in missing)
    assert len(stream) == 4
    assert list(stream) == [stream[index] for index in range(4)]


def test_a_shared_layer_stands_once_in_the_state():
    shared = BatchFormerStream(blocks(), [0, 1, 2], layer())
    own = BatchFormerStream(blocks(), [0, 1, 2], [layer(), layer(), layer()])
    counts = [sum(p.numel() for p in stream.batchformers.parameters()) for stream in (shared, own)]
    assert counts[1] == 3 * counts[0]


@pytest.mark.parametrize(
    ("insert_at", "layers", "message"),
    [
        ([], 1, "at least one block"),
        ([1, 1], 1, r"none twice, got \[1, 1\]"),
        ([4], 1, r"0\.\.3, got \[4\]"),
        ([-1], 1, r"0\.\.3, got \[-1\]"),
        ([0, 1], 3, "one for each of the 2 places, got 3"),
    ],
)
def test_bad_places_are_refused(insert_at, layers, message):
    given = layer() if layers == 1 else [layer() for _ in range(layers)]
    with pytest.raises(ValueError, match=message):
        BatchFormerStream(blocks(), insert_at, given)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match=r"got shape \(3, 8\); for \(batch, dim\) use BatchFormer"):
        layer()(torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"\(batch, 8, height, width\), got shape \(3, 4, 8, 8\)"):
        layer()(torch.zeros(3, 4, 8, 8))
    with pytest.raises(ValueError, match="even number of rows"):
        layer()(torch.zeros(3, 5, 8), doubled=True)
