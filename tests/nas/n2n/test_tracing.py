"""The table of layers: order, features, what is fixed, and what is refused by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nas.n2n import chain, layer_table
from etude.nas.n2n.students import count_parameters
from etude.nn.resnet import ResNet

DIGITS = ((16, 16), (32, 32, 32), (48, 48, 48))
GREY, COLOUR = torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 16, 16)


def teacher():
    return chain(DIGITS, num_classes=10, in_channels=1, size=(8, 8))


def test_the_digits_teacher_has_27_layers_of_which_23_are_free():
    model = teacher()
    table = layer_table(model, GREY, fix=(nn.MaxPool2d,))
    assert (len(table), int((~table.fixed).sum()), count_parameters(model)) == (27, 23, 83_530)
    assert table.fixed[[0, 6, 16, 26]].all()
    assert table.features[0].tolist() == [1, 3, 1, 16, 1]
    assert table.features[6].tolist() == [2, 2, 2, 0, 0]
    assert table.features[26].tolist() == [5, 0, 0, 10, 0]
    assert int(layer_table(model, GREY).fixed.sum()) == 2


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4 * 64, 10)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.first = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, x):
        return self.last(F.relu(self.second(self.first(x))).flatten(1))


def test_layers_stand_in_the_order_in_which_they_run():
    assert layer_table(Backwards(), GREY).names == ("first", "second", "last")


def test_places_in_residual_blocks_count_from_both_ends_and_shortcuts_are_no_layers():
    model = ResNet(blocks=[1, 1], widths=[4, 8], num_classes=10, small_images=True)
    table = layer_table(model, COLOUR, skip_support=True)
    rows = dict(zip(table.names, table.features.tolist()))
    assert rows["layer1.0.conv1"] == [1, 3, 1, 4, 1, 1, 4]
    assert rows["layer1.0.bn2"] == [4, 0, 0, 0, 0, 4, 1]
    assert rows["conv1"][5:] == rows["fc"][5:] == [0, 0]
    assert not any("downsample" in name for name in table.names)
    assert [block.shortcut for block in table.blocks] == [(), ("layer2.0.downsample.0", "layer2.0.downsample.1")]
    fixed = dict(zip(table.names, table.fixed.tolist()))
    assert fixed["layer2.0.conv1"]  # its stride is 2
    assert fixed["avgpool"]
    assert not fixed["layer2.0.conv2"]


def test_in_blocks_only_filters_shrink_and_a_bare_shortcut_ties_the_last_ones():
    model = ResNet(blocks=[1, 1], widths=[4, 8], num_classes=10, small_images=True)
    table = layer_table(model, COLOUR)
    free = dict(zip(table.names, table.adjustable.tolist()))
    assert free["conv1"] == [False, True, False, True, True]
    assert free["layer1.0.conv1"] == [False, False, False, True, False]
    assert free["layer1.0.conv2"] == [False] * 5
    assert free["layer2.0.conv1"] == [False] * 5  # strided
    assert free["layer2.0.conv2"] == [False, False, False, True, False]
    assert free["fc"] == free["avgpool"] == [False] * 5


class Twice(nn.Module):
    """One ReLU, or one convolution, that runs twice."""

    def __init__(self, weighted):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(256, 10)
        self.weighted = weighted

    def forward(self, x):
        x = self.relu(self.second(self.relu(self.first(x))))
        return self.head((self.second(x) if self.weighted else x).flatten(1))


def test_weights_used_twice_are_refused_and_a_relu_used_twice_is_kept():
    with pytest.raises(ValueError, match=r"'second' runs 2 times"):
        layer_table(Twice(True), GREY)
    table = layer_table(Twice(False), GREY)
    assert table.names == ("first", "relu", "second", "head")
    assert table.fixed.tolist() == [True, True, False, True]


class Branches(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), how
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = self.a(x)
        if self.how == "cat":
            return torch.cat([x, self.b(x)], 1)
        if self.how == "gate":
            return x * self.b(x)
        if self.how == "weight":
            return self.b(x) * self.scale
        return x if x.sum() > 0 else self.b(x)


@pytest.mark.parametrize(
    ("how", "message"),
    [("cat", "joins 2 paths"), ("gate", "joins 2 paths"), ("weight", "'scale'"), ("flow", "cannot be traced")],
)
def test_what_is_no_chain_is_refused_by_name(how, message):
    with pytest.raises(ValueError, match=message):
        layer_table(Branches(how), GREY)


def test_unsupported_modules_are_named():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 1))
    with pytest.raises(ValueError, match=r"0 \(Conv2d of 4 groups\), 1 \(ConvTranspose2d\)"):
        layer_table(model, torch.zeros(1, 4, 8, 8))


def test_an_example_of_another_shape_or_device_is_refused():
    with pytest.raises(ValueError, match=r"does not take an input of shape \(2, 3, 16, 16\)"):
        layer_table(teacher(), COLOUR)
    with pytest.raises(ValueError, match="example_input is on meta, the model on cpu"):
        layer_table(teacher(), GREY.to("meta"))


def test_a_softmax_at_the_end_is_noticed():
    assert not layer_table(teacher(), GREY).softmax
    assert layer_table(nn.Sequential(teacher(), nn.LogSoftmax(1)), GREY).softmax
