"""The blocks: sizes of figure 6, the shared image path, what they refuse."""

import pytest
import torch
from torch import nn

from etude.training.noprop import ImageClassifier, NoPropBlock


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_discrete_block_for_mnist_has_the_parameters_of_figure_6():
    with torch.device("meta"):
        block = NoPropBlock(1, 28, 10, 10)
    assert [count(part) for part in (block.image, block.label, block.fusion)] == [1_699_072, 135_936, 166_282]
    assert count(block) == 2_001_290


def test_the_continuous_block_has_no_batch_norm_and_takes_the_time():
    with torch.device("meta"):
        block = NoPropBlock(1, 28, 10, 10, time_embed=64)
    assert not any(isinstance(module, nn.BatchNorm1d) for module in block.modules())
    image = 320 + 18_496 + 73_856 + 6272 * 256 + 256
    fusion = 768 * 256 + 256 + 256 * 128 + 128 + 128 * 10 + 10
    assert [count(part) for part in (block.image, block.label, block.time, block.fusion)] == [
        image, 10 * 256 + 256, 64 * 256 + 256, fusion,
    ]  # fmt: skip


def test_an_embedding_as_large_as_an_image_goes_through_convolutions_of_its_own():
    block = NoPropBlock(1, 8, 10, 64, hidden=8, channels=(2, 4))
    assert block.label_as_image
    assert isinstance(block.label[0][0], nn.Conv2d)
    assert block.label[0][0] is not block.image[0][0]
    assert block(torch.rand(3, 1, 8, 8), torch.rand(3, 64)).shape == (3, 10)


@pytest.mark.parametrize("time_embed", [None, 8])
def test_a_block_equals_its_image_path_followed_by_the_rest(time_embed):
    torch.manual_seed(0)
    block = NoPropBlock(3, (8, 6), 5, 5, hidden=8, channels=(2, 4), time_embed=time_embed).eval()
    x, z = torch.rand(4, 3, 8, 6), torch.randn(4, 5)
    t = None if time_embed is None else torch.rand(4)
    whole = block(x, z) if t is None else block(x, z, t)
    assert torch.equal(whole, block.classify(block.image_features(x), z, t))
    if t is not None:
        assert not torch.equal(whole, block(x, z, t + 0.1))


def test_the_plain_classifier_is_a_block_without_its_label_path():
    torch.manual_seed(0)
    block = NoPropBlock(1, 8, 10, 10, hidden=16, channels=(2, 4))
    plain = ImageClassifier(1, 8, 10, hidden=16, channels=(2, 4))
    assert count(plain) == count(block) - count(block.label) - 16 * 16
    assert plain(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_saved_block_loads_with_its_arguments(tmp_path):
    block = NoPropBlock(1, 8, 3, 3, hidden=8, channels=(2, 4), time_embed=4).eval()
    block.save_pretrained(tmp_path)
    x, z, t = torch.rand(2, 1, 8, 8), torch.rand(2, 3), torch.rand(2)
    torch.testing.assert_close(NoPropBlock.from_pretrained(tmp_path).eval()(x, z, t), block(x, z, t))


SMALL = {"hidden": 4, "channels": (2, 2)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoPropBlock(1, 3, 2, 2), "image_size must be at least 4 x 4, since it is halved twice, got 3 x 3"),
        (lambda: NoPropBlock(1, (8, 2), 2, 2), "got 8 x 2"),
        (lambda: NoPropBlock(0, 8, 2, 2), "in_channels must be at least 1, got 0"),
        (lambda: NoPropBlock(1, 8, 2, 0), "embed_dim must be at least 1, got 0"),
        (lambda: NoPropBlock(1, 8, 2, 2, time_embed=3), "time_embed must be even and at least 2, got 3"),
        (lambda: NoPropBlock(1, 8, 2, 2, channels=(4,)), r"channels must name at least two convolutions, got \(4,\)"),
        (
            lambda: NoPropBlock(1, 8, 2, 2, **SMALL)(torch.rand(2, 1, 9, 8), torch.rand(2, 2)),
            r"x must have shape \(batch, 1, 8, 8\), got \(2, 1, 9, 8\)",
        ),
        (
            lambda: NoPropBlock(1, 8, 2, 2, **SMALL)(torch.rand(2, 1, 8, 8), torch.rand(2, 3)),
            r"z must have 2 columns, the block's embed_dim, got shape \(2, 3\)",
        ),
        (
            lambda: NoPropBlock(1, 8, 2, 2, **SMALL)(torch.rand(2, 1, 8, 8), torch.rand(2, 2), torch.rand(2)),
            "takes no time t, got one",
        ),
        (
            lambda: NoPropBlock(1, 8, 2, 2, time_embed=4, **SMALL)(torch.rand(2, 1, 8, 8), torch.rand(2, 2)),
            "takes a time t, got None",
        ),
        (lambda: ImageClassifier(1, 8, 2, **SMALL)(torch.rand(2, 3, 8, 8)), r"x must have shape \(batch, 1, 8, 8\)"),
    ],
)
def test_bad_sizes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
