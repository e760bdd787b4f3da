import pytest
import torch

from etude.nn.resnet import ResidualBlock, ResNet


@pytest.mark.parametrize(
    ("depth", "parameters"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160)]
)
def test_parameters_are_as_many_as_in_the_published_networks(depth, parameters):
    with torch.device("meta"):
        model = ResNet(depth)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_modules_are_named_as_torchvisions():
    with torch.device("meta"):
        names = ResNet(50).state_dict()
    for name in ("conv1.weight", "bn1.running_mean", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"):
        assert name in names


@pytest.mark.parametrize(("small_images", "size"), [(False, 2), (True, 8)])
def test_the_stem_halves_twice_unless_images_are_small(small_images, size):
    model = ResNet(blocks=[1], widths=[4], num_classes=3, small_images=small_images)
    seen = []
    model.layer1.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 3)
    assert seen == [(2, 4, size, size)]


def test_a_block_adds_its_input_and_without_skips_does_not():
    torch.manual_seed(0)
    block = ResidualBlock(4, 4).eval()
    x = torch.randn(2, 4, 6, 6)
    branch = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    assert torch.equal(block(x), (branch + x).relu())
    block.skips = False
    assert torch.equal(block(x), branch.relu())
    assert ResidualBlock(4, 8, 2, skips=False).downsample is None


def test_only_batch_norm_couples_the_images_of_a_batch():
    x = torch.randn(3, 3, 8, 8)
    for norm, coupled in (("batch", True), ("group", False), ("none", False)):
        torch.manual_seed(0)
        model = ResNet(blocks=[1, 1], widths=[8, 16], num_classes=2, small_images=True, norm=norm)
        together, alone = model(x)[:2], model(x[:2])
        assert torch.allclose(together, alone, atol=1e-5) is not coupled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either depth or blocks"),
        ({"depth": 20}, "depth must be one of 18, 34, 50, 101, got 20"),
        ({"blocks": [1], "widths": [4, 8]}, r"as many stages, got \[1\] and \[4, 8\]"),
        ({"blocks": [0], "widths": [4]}, "must be positive"),
        ({"blocks": [1], "widths": [4], "norm": "layer"}, "norm must be one of batch, group, none, got 'layer'"),
        ({"blocks": [1], "widths": [4], "norm": "group"}, "multiples of 8 channels, got 4"),
    ],
)
def test_a_network_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)
