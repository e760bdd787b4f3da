"""The layer: parameters, strides, precision, memory, and agreement with timm's layer."""

import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etude.vision.halonet import HaloAttention, halo_attention


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("halo_size", [0, 1, 3, 8])
def test_parameters_are_projections_and_tables(halo_size):
    layer = HaloAttention(dim=64, num_heads=4, block_size=8, halo_size=halo_size)
    window = 8 + 2 * halo_size
    assert parameters(layer) == 64 * 64 + 2 * 64 * 64 + 2 * (2 * window - 1) * 16


def test_the_layer_starts_with_the_variance_of_the_sheet():
    torch.manual_seed(0)
    layer = HaloAttention(dim=64, num_heads=1, dim_head=64, block_size=8, halo_size=12, qkv_bias=True)
    assert abs(layer.rel_h.std() - 1 / 8) < 0.01
    assert abs(layer.kv.weight.std() - 1 / 8) < 0.01
    assert not layer.kv.bias.any()


@pytest.mark.parametrize(("height", "width"), [(8, 16), (16, 8), (7, 10)])
@pytest.mark.parametrize("avg_down", [False, True])
def test_a_stride_halves_the_map(height, width, avg_down):
    layer = HaloAttention(dim=8, dim_out=12, num_heads=2, block_size=4, halo_size=1, stride=2, avg_down=avg_down)
    assert layer(torch.randn(2, 8, height, width)).shape == (2, 12, (height + 1) // 2, (width + 1) // 2)


def test_a_strided_layer_is_the_dense_layer_at_every_second_pixel():
    torch.manual_seed(0)
    strided = HaloAttention(dim=8, num_heads=2, block_size=4, halo_size=1, stride=2).double()
    dense = HaloAttention(dim=8, num_heads=2, block_size=4, halo_size=1).double()
    dense.load_state_dict(strided.state_dict())
    x = torch.randn(1, 8, 8, 16, dtype=torch.float64)
    torch.testing.assert_close(strided(x), dense(x)[..., ::2, ::2], rtol=0, atol=1e-12)


def test_avg_down_averages_the_dense_layer():
    torch.manual_seed(0)
    pooled = HaloAttention(dim=8, num_heads=2, block_size=3, halo_size=1, stride=2, avg_down=True)
    dense = HaloAttention(dim=8, num_heads=2, block_size=3, halo_size=1)
    dense.load_state_dict(pooled.state_dict())
    x = torch.randn(1, 8, 6, 12)
    torch.testing.assert_close(pooled(x), dense(x).unflatten(3, (6, 2)).unflatten(2, (3, 2)).mean((3, 5)))


def test_heads_are_independent_and_dims_of_values_may_differ():
    torch.manual_seed(0)
    layer = HaloAttention(dim=8, dim_out=6, num_heads=2, dim_head=5, block_size=4, halo_size=1)
    x = torch.randn(1, 8, 8, 8)
    q = layer.q(x).unflatten(1, (2, 5))
    k, v = layer.kv(x).unflatten(1, (2, 8)).split((5, 3), dim=2)
    alone = [
        halo_attention(
            q[:, [head]], k[:, [head]], v[:, [head]], block_size=4, halo_size=1, rel_h=layer.rel_h, rel_w=layer.rel_w
        )
        for head in range(2)
    ]
    torch.testing.assert_close(layer(x), torch.cat(alone, dim=1))


@pytest.mark.parametrize("training", [False, True])
def test_autocast_stays_close_to_full_precision(training):
    torch.manual_seed(0)
    layer = HaloAttention(dim=16, num_heads=2, block_size=4, halo_size=1)
    x = torch.randn(1, 16, 8, 8, requires_grad=training)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)
    if training:
        (low,) = torch.autograd.grad(out.float().square().sum(), layer.rel_h, retain_graph=True)
        (high,) = torch.autograd.grad(layer(x).square().sum(), layer.rel_h)
        assert torch.cosine_similarity(low.flatten(), high.flatten(), dim=0) > 0.99


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor made under it has."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def largest(height, *, chunk_rows, batch=1):
    """Elements of the largest tensor of a training step on a map of `height` x 16 with 4 channels."""
    layer = HaloAttention(dim=4, num_heads=1, block_size=4, halo_size=4, chunk_rows=chunk_rows)
    x = torch.randn(batch, 4, height, 16, requires_grad=True)
    with Largest() as mode:
        out = layer(x)
    found = mode.elements
    with Largest() as mode:
        out.sum().backward()
    return max(found, mode.elements)


WEIGHTS_OF_A_ROW = 4 * 4**2 * 12**2  # blocks x queries x keys


@pytest.mark.parametrize(("height", "batch"), [(12, 1), (64, 1), (16, 3)])
def test_memory_beside_the_maps_is_that_of_a_chunk(height, batch):
    assert largest(height, chunk_rows=1, batch=batch) == WEIGHTS_OF_A_ROW
    assert largest(height, chunk_rows=2, batch=batch) == 2 * WEIGHTS_OF_A_ROW


def test_nothing_as_large_as_the_weights_is_stored_for_the_backward_pass():
    layer = HaloAttention(dim=4, num_heads=1, block_size=4, halo_size=4, chunk_rows=1)
    x = torch.randn(1, 4, 64, 16)
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: stored.append(t.numel()) or t, lambda t: t):
        layer(x)
    assert max(stored) <= 4 * (64 + 8) * (16 + 8)  # a padded map


def test_large_maps_are_chunked_unasked():
    layer = HaloAttention(dim=16, num_heads=1, block_size=8, halo_size=4)
    x = torch.randn(1, 16, 256, 64)
    with torch.no_grad(), Largest() as mode:
        layer(x)
    assert mode.elements < 256 * 64 * 16**2 / 4  # the attention weights of the whole map, and far less


def test_a_window_larger_than_the_map_gives_a_warning():
    with pytest.warns(UserWarning, match=r"a window of 14 x 14 pixels exceeds the map of 8 x 8"):
        HaloAttention(dim=8, num_heads=1)(torch.randn(1, 8, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HaloAttention(dim=8, num_heads=1, warn_padding=False)(torch.randn(1, 8, 8, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
        ({"halo_size": -1}, "halo_size must be at least 0, got -1"),
        ({"stride": 4}, "stride must be 1 or 2, got 4"),
        ({"num_heads": 3}, "num_heads must divide dim unless dim_head is given, got 3 and 16"),
        ({"num_heads": 3, "dim_head": 8}, "num_heads must divide dim_out, got 3 and 16"),
        ({"dim_out": 18}, "num_heads must divide dim_out, got 4 and 18"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"dim_head": 0}, "dim_head must be at least 1, got 0"),
        ({"block_size": 5, "stride": 2}, "block_size must be even with stride 2 unless avg_down=True, got 5"),
        ({"chunk_rows": 0}, "chunk_rows must be at least 1 or None, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HaloAttention(**({"dim": 16, "num_heads": 4} | options))


def test_a_map_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \(batch, 16, height, width\), got \(1, 8, 16, 16\)"):
        HaloAttention(dim=16, num_heads=4)(torch.randn(1, 8, 16, 16))


@pytest.fixture(scope="module")
def timm_layer():
    """timm's layer without the rest of timm, which needs torchvision's compiled operators."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed")
    package = types.ModuleType("timm_layers_under_test")
    package.__path__ = [str(Path(found.origin).parent / "layers")]
    sys.modules[package.__name__] = package
    yield importlib.import_module(f"{package.__name__}.halo_attn").HaloAttn
    for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
        del sys.modules[name]


def with_weights_of(peer, **options):
    layer = HaloAttention(mask_padding=False, qkv_bias=peer.q.bias is not None, **options).double()
    layer.q.load_state_dict(peer.q.state_dict())
    layer.kv.load_state_dict(peer.kv.state_dict())
    with torch.no_grad():  # timm's tables are ours moved down by the halo
        layer.rel_h.copy_(peer.pos_embed.height_rel.roll(-layer.halo_size, 0))
        layer.rel_w.copy_(peer.pos_embed.width_rel.roll(-layer.halo_size, 0))
    return layer


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 32, "num_heads": 4, "block_size": 8, "halo_size": 3},  # dim_head 8: its scale is no power of two
        {"dim": 32, "num_heads": 2, "block_size": 4, "halo_size": 1, "qkv_bias": True},
        {"dim": 24, "dim_out": 16, "num_heads": 4, "dim_head": 5, "block_size": 4, "halo_size": 3},
        {"dim": 32, "num_heads": 2, "block_size": 4, "halo_size": 1, "scale_rel": True},
        {"dim": 32, "num_heads": 2, "block_size": 4, "halo_size": 2, "stride": 2, "dense_offsets": True},
        {"dim": 32, "num_heads": 2, "block_size": 4, "halo_size": 2, "stride": 2, "avg_down": True},
    ],
)
def test_outputs_and_gradients_equal_those_of_timm(timm_layer, options):
    torch.manual_seed(0)
    peers = {name: value for name, value in options.items() if name not in ("scale_rel", "dense_offsets")}
    peer = timm_layer(**peers, scale_pos_embed=options.get("scale_rel", False)).double()
    ours = with_weights_of(peer, **{name: value for name, value in options.items() if name != "qkv_bias"})
    x = torch.randn(2, options["dim"], 16, 24, dtype=torch.float64, requires_grad=True)
    theirs = peer(x)
    torch.testing.assert_close(ours(x), theirs, rtol=0, atol=1e-12)
    upstream = torch.randn_like(theirs)
    pairs = [(x, x), (ours.kv.weight, peer.kv.weight), (ours.q.weight, peer.q.weight)]
    found = torch.autograd.grad(ours(x), [pair[0] for pair in pairs] + [ours.rel_h], upstream)
    expected = torch.autograd.grad(theirs, [pair[1] for pair in pairs] + [peer.pos_embed.height_rel], upstream)
    torch.testing.assert_close(found[:3], expected[:3], rtol=0, atol=1e-10)
    torch.testing.assert_close(found[3], expected[3].roll(-ours.halo_size, 0), rtol=0, atol=1e-10)


def test_offsets_on_the_original_grid_differ_from_those_of_timms_strided_layer(timm_layer):
    torch.manual_seed(0)
    sizes = {"dim": 32, "num_heads": 2, "block_size": 4, "halo_size": 2, "stride": 2}
    peer = timm_layer(**sizes).double()
    x = torch.randn(1, 32, 16, 16, dtype=torch.float64)
    assert (with_weights_of(peer, **sizes)(x) - peer(x)).abs().max() > 0.01
