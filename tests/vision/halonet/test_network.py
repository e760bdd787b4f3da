"""The family: exact parameter counts, shapes, saving; and hybrids of a user's ResNet."""

import pytest
import torch
from torch import nn

import etude.vision.halonet as halonet
from etude.vision.halonet import VARIANTS, HaloAttention, HaloBottleneck, HaloNet, convert_resnet_to_halo

COUNTS = {
    "h0": 5_488_424,
    "h1": 8_084_936,
    "h2": 9_388_328,
    "h3": 11_821_960,
    "h4": 19_082_632,
    "h5": 30_683_112,
    "h6": 43_425_544,
    "h7": 67_400_008,
}


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small(**changes):
    arguments = {
        "num_classes": 3, "widths": (16, 32), "depths": (1, 2), "block_size": 4, "halo_size": 1, "in_chans": 1,
        "small_input": True,
    }  # fmt: skip
    return HaloNet(**(arguments | changes))


@pytest.mark.parametrize("name", COUNTS)
def test_the_family_has_the_published_sizes(name):
    with torch.device("meta"):
        assert parameters(getattr(halonet, f"halonet_{name}")()) == COUNTS[name]


def test_eight_heads_in_every_stage_give_timms_count():
    with torch.device("meta"):
        assert parameters(halonet.halonet_h1(num_heads=8)) == 8_100_056


def test_the_halo_adds_parameters_to_the_tables_alone():
    with torch.device("meta"):
        counts = [parameters(halonet.halonet_h1(halo_size=halo)) for halo in (1, 2)]
    assert counts[1] - counts[0] == 19 * 2 * 4 * 16  # layers x tables x rows for one more pixel of halo x dims


def test_dim_head_sets_the_heads_of_each_stage():
    heads = [[layer.num_heads for layer in stage.modules() if isinstance(layer, HaloAttention)]
             for stage in small(num_classes=2, widths=(32, 64)).stages]  # fmt: skip
    assert heads == [[2], [4, 4]]


def test_published_maps_are_multiples_of_the_blocks_in_the_first_stage():
    assert all(variant.image_size // 4 % variant.block_size == 0 for name, variant in VARIANTS.items() if name != "h7")


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 7)])
@pytest.mark.parametrize("block_size", [4, 3])
def test_a_network_takes_images_of_any_size(size, block_size):
    model = small(block_size=block_size, final_dim=24)
    x = torch.randn(2, 1, *size)
    assert model.forward_features(x).shape == (2, 24, (size[0] + 1) // 2, (size[1] + 1) // 2)
    assert model(x).shape == (2, 3)


def test_the_large_stem_divides_the_image_by_four():
    assert small(small_input=False).forward_features(torch.randn(1, 1, 64, 64)).shape[2:] == (8, 8)


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    model = small(final_dim=8)
    for module in model.modules():  # the zero-initialised norms would hide what lies before them
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    model(torch.randn(4, 1, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_bottleneck_starts_as_its_shortcut():
    block = HaloBottleneck(dim=16, width=16, num_heads=1, block_size=4, halo_size=1)
    x = torch.randn(2, 16, 8, 8).relu()
    torch.testing.assert_close(block(x), x)


def test_values_and_outputs_have_the_widths_of_their_ratios():
    block = HaloBottleneck(dim=8, width=16, dim_out=24, num_heads=2, value_ratio=2.5, block_size=4, halo_size=1)
    assert block.attention.dim_out == 40
    assert block(torch.randn(1, 8, 8, 8)).shape == (1, 24, 8, 8)


def test_a_saved_network_comes_back(tmp_path):
    model = small(num_heads=(1, 2), final_dim=8).eval()
    model.save_pretrained(tmp_path)
    again = HaloNet.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (16,)}, "widths and depths must be as many"),
        ({"depths": (1, 0)}, "widths and depths must be as many, and positive"),
        ({"widths": (16, 40)}, r"dim_head must divide every width, got 16 and widths \[40\]"),
        ({"num_heads": (1, 2, 4)}, "num_heads must be one number or one per stage, 2"),
        ({"num_heads": 5}, "num_heads must divide dim"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"block_size": 0}, "block_size must be at least 1, got 0"),
    ],
)
def test_networks_that_do_not_fit_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


class Bottleneck(nn.Module):
    def __init__(self, dim, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.downsample = nn.Conv2d(dim, 2 * width, 1, stride=stride, bias=False)

    def forward(self, x):
        out = self.bn1(self.conv1(x)).relu()
        out = self.bn2(self.conv2(out)).relu()
        return (self.bn3(self.conv3(out)) + self.downsample(x)).relu()


class ResNet(nn.Module):
    """The names and the order of a torchvision ResNet, in small."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(Bottleneck(16, 16, 1))
        self.layer2 = nn.Sequential(Bottleneck(32, 16, 2), Bottleneck(32, 16, 1))
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.conv1(x))).mean((2, 3)))


def test_a_hybrid_has_attention_in_the_named_stages_alone():
    torch.manual_seed(0)
    resnet = ResNet()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    hybrid = convert_resnet_to_halo(resnet, stages=("layer2",), block_size=4, halo_size=1)
    assert hybrid is resnet
    attention = [name for name, part in hybrid.named_modules() if isinstance(part, HaloAttention)]
    assert attention == ["layer2.0.conv2", "layer2.1.conv2"]
    assert [hybrid.get_submodule(name).stride for name in attention] == [2, 1]
    kept = {name: value for name, value in hybrid.state_dict().items() if ".conv2." not in name or "layer1" in name}
    assert all(torch.equal(before[name], value) for name, value in kept.items())
    assert hybrid(torch.randn(2, 3, 16, 16)).shape == (2, 5)


def test_a_hybrid_keeps_dtype_and_training_mode():
    hybrid = convert_resnet_to_halo(ResNet().double().eval(), stages=("layer2.1",), block_size=4, halo_size=1)
    layer = hybrid.layer2[1].conv2
    assert layer.rel_h.dtype == torch.float64
    assert not layer.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ("layer3",)}, r"no stage 'layer3' in ResNet; its parts are \['conv1', 'layer1', 'layer2', 'fc'\]"),
        ({"stages": ("fc",)}, "stage 'fc' holds no 3x3 convolution"),
        ({"dim_head": 12}, "dim_head must divide the channels of layer2.0.conv2, got 12 and 16"),
    ],
)
def test_hybrids_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        convert_resnet_to_halo(ResNet(), **({"stages": ("layer2",), "block_size": 4, "halo_size": 1} | options))


def test_a_grouped_convolution_is_refused_and_nothing_is_changed():
    resnet = ResNet()
    resnet.layer2[1].conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=2)
    with pytest.raises(ValueError, match=r"layer2\.1\.conv2 must be a plain 3x3 convolution"):
        convert_resnet_to_halo(resnet, stages=("layer2",), block_size=4, halo_size=1)
    assert isinstance(resnet.layer2[0].conv2, nn.Conv2d)
