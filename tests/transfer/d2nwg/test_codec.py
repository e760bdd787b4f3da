import itertools

import pytest
import torch
from torch import nn

from etude.transfer.d2nwg import WeightCodec, match_units, remove_gauge, sort_units


def mlp(seed=0, sizes=(6, 8, 7, 3)):
    torch.manual_seed(seed)
    layers = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("chunk_size", "pad_to"), [(None, None), (None, 200), (50, None), (1, None), (1000, None)])
def test_round_trip_is_bit_exact_and_the_tail_is_zero(chunk_size, pad_to):
    net, other = mlp(0), mlp(1)
    codec = WeightCodec(net, chunk_size=chunk_size, pad_to=pad_to)
    vector = codec.flatten(net)
    assert vector.dtype == torch.float32
    assert codec.num_params == len(vector) == sum(p.numel() for p in net.parameters())
    chunks = codec.to_chunks(vector)
    assert chunks.shape == (codec.num_chunks, codec.chunk_size)
    assert not chunks.flatten()[codec.num_params :].any()
    assert torch.equal(codec.from_chunks(chunks), vector)
    codec.load(other, codec.from_chunks(chunks))
    x = torch.randn(5, 6)
    assert torch.equal(net(x), other(x))


def test_entries_stand_in_the_order_of_the_state_dict():
    net = mlp()
    expected = torch.cat([value.flatten() for value in net.state_dict().values()])
    codec = WeightCodec(net)
    assert torch.equal(codec.flatten(net), expected)
    assert codec.names == tuple(net.state_dict())


def test_unflatten_and_gather_are_inverse_with_batch_dimensions_and_scalars():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(2.0))
            self.map = nn.Linear(3, 2)

    codec = WeightCodec(Scaled())
    vectors = torch.randn(4, 5, codec.num_params)
    tensors = codec.unflatten(vectors)
    assert tensors["gain"].shape == (4, 5)
    assert tensors["map.weight"].shape == (4, 5, 2, 3)
    assert torch.equal(codec.gather(tensors), vectors)
    assert codec.load(Scaled(), vectors[1, 2]).gain == vectors[1, 2, 0]


def test_half_precision_survives():
    net = nn.Linear(3, 2).half()
    other = WeightCodec(net).load(nn.Linear(3, 2).half(), WeightCodec(net).flatten(net))
    assert torch.equal(net.weight, other.weight)


def test_running_statistics_are_refused_unless_encoded():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match=r"buffers.*1.running_mean.*include_buffers=True"):
        WeightCodec(net)
    codec = WeightCodec(net, include_buffers=True)
    net(torch.randn(8, 1, 5, 5))  # moves the statistics
    other = codec.load(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), codec.flatten(net))
    x = torch.randn(2, 1, 5, 5)
    assert torch.equal(net.eval()(x), other.eval()(x))
    assert codec.num_params == 2 * 9 + 2 + 4 * 2
    assert "1.num_batches_tracked" not in codec.names


def test_tied_weights_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match=r"0.weight and 1.weight are tied"):
        WeightCodec(net)


def test_other_bad_networks_are_refused():
    net = mlp()
    codec = WeightCodec(net)
    with pytest.raises(ValueError, match="another architecture"):
        codec.flatten(mlp(sizes=(6, 8, 3)))
    with pytest.raises(ValueError, match="float64"):
        WeightCodec(nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="no weights"):
        WeightCodec(nn.ReLU())
    with pytest.raises(ValueError, match="pad_to must be at least"):
        WeightCodec(net, pad_to=5)
    with pytest.raises(ValueError, match="chunk_size must be positive"):
        WeightCodec(net, chunk_size=-1)
    with pytest.raises(ValueError, match="143 weights"):
        codec.to_chunks(torch.zeros(7))
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        codec.flatten(net)
    with pytest.raises(ValueError, match="finite"):
        codec.load(mlp(), torch.full((codec.num_params,), float("inf")))


def test_without_the_gauge_predictions_are_the_same_and_output_units_have_mean_zero():
    net = mlp()
    codec = WeightCodec(net)
    free = remove_gauge(codec.flatten(net), codec, layer="4")
    other = codec.load(mlp(1), free)
    x = torch.randn(9, 6)
    torch.testing.assert_close(net(x).softmax(1), other(x).softmax(1))
    assert other[4].weight.mean(dim=0).abs().max() < 1e-7
    assert other[4].bias.mean().abs() < 1e-7
    assert torch.equal(other[0].weight, net[0].weight)
    shifted = codec.flatten(net)[None].clone()
    tensors = codec.unflatten(shifted)
    tensors["4.bias"] = tensors["4.bias"] + 3.0
    torch.testing.assert_close(remove_gauge(codec.gather(tensors), codec, layer="4")[0], free)
    with pytest.raises(ValueError, match="no layer 'head'"):
        remove_gauge(codec.flatten(net), codec, layer="head")


def permuted(net, seed):
    g = torch.Generator().manual_seed(seed)
    other = mlp()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        for a, b in ((0, 2), (2, 4)):
            order = torch.randperm(len(other[a].bias), generator=g)
            other[a].weight.copy_(other[a].weight[order].clone())
            other[a].bias.copy_(other[a].bias[order].clone())
            other[b].weight.copy_(other[b].weight[:, order].clone())
    return other


def test_sorting_and_matching_undo_a_permutation_and_keep_the_function():
    net = mlp()
    x = torch.randn(9, 6)
    codec = WeightCodec(net)
    for seed in range(3):
        other = permuted(net, seed)
        torch.testing.assert_close(other(x), net(x))
        assert not torch.allclose(codec.flatten(other), codec.flatten(net))
        torch.testing.assert_close(codec.flatten(sort_units(other)), codec.flatten(sort_units(net)))
        torch.testing.assert_close(sort_units(other)(x), net(x))
        noisy = permuted(net, seed)
        with torch.no_grad():
            for weight in noisy.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
        matched = match_units(noisy, net)
        torch.testing.assert_close(matched(x), noisy(x))
        assert (codec.flatten(matched) - codec.flatten(net)).norm() < 0.3


def test_networks_whose_units_cannot_be_moved_are_refused():
    with pytest.raises(ValueError, match="no permutations"):
        sort_units(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(TypeError, match="LayerNorm"):
        sort_units(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="Sequential"):
        sort_units(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="one architecture"):
        match_units(mlp(), mlp(sizes=(6, 9, 7, 3)))
