"""The convolutional embedding: shapes, size, and the block that it stands for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.transfer.fewshot_continual import ConvEmbedding


def test_the_small_network_is_two_blocks_of_sixteen_channels_and_a_linear_layer():
    network = ConvEmbedding(1, 14)
    assert network(torch.rand(3, 1, 14, 14)).shape == (3, 64)
    assert network.out.in_features == 144
    assert sum(weight.numel() for weight in network.parameters()) == 160 + 2320 + 144 * 64 + 64


def test_a_block_is_convolution_relu_and_pooling():
    torch.manual_seed(0)
    network, x = ConvEmbedding(2, 8, depth=1, width=4, dim=None), torch.randn(3, 2, 8, 8)
    convolution = network.blocks[0]
    expected = F.max_pool2d(F.relu(F.conv2d(x, convolution.weight, convolution.bias, padding=1)), 2)
    torch.testing.assert_close(network(x), expected.flatten(1))
    assert network.dim == 4 * 16


def test_images_need_not_be_square_and_group_norm_does_not_couple_them():
    network = ConvEmbedding(3, (9, 13), depth=2, width=16, dim=5, norm="group")
    x = torch.rand(4, 3, 9, 13)
    torch.testing.assert_close(network(x)[:1], network(x[:1]))
    assert sum(isinstance(layer, nn.GroupNorm) for layer in network.blocks) == 2


def test_it_can_be_saved_and_loaded(tmp_path):
    network = ConvEmbedding(1, 8, depth=1, width=4, dim=3)
    network.save_pretrained(tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(ConvEmbedding.from_pretrained(tmp_path)(x), network(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"must be positive, got \(1, 0, 16, 64\)"),
        ({"norm": "batch"}, "norm must be 'none' or 'group', got 'batch'"),
        ({"size": 14, "depth": 4}, "4 blocks need images of at least 16 pixels a side, got 14 x 14"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConvEmbedding(1, **options)
