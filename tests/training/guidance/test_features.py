"""FeatureTap: which outputs it reads, in which order, and the traps of hooks."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from etude.nn.resnet import ResNet
from etude.training.guidance import FeatureTap, TransformerLM


def network(inplace: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 5),
        nn.ReLU(inplace), nn.Linear(5, 3),
    )  # fmt: skip


IMAGES = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)


def test_default_layers_are_read_in_order_without_the_logits():
    model = network()
    with FeatureTap(model) as features:
        model(IMAGES)
    assert list(features) == ["0", "3", "5"]
    torch.testing.assert_close(features["0"], model[0](IMAGES))


def test_features_are_in_the_graph_of_the_outputs_unless_detached():
    model = network()
    for detach in (False, True):
        with FeatureTap(model, detach=detach) as features:
            model(IMAGES)
        assert features["5"].requires_grad is not detach
        assert all(feature.requires_grad is not detach for feature in features.values())


def test_order_is_that_of_execution_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(self.c(x)))

    model = Backwards()
    with FeatureTap(model) as features:
        model(torch.ones(4, 3))
    assert list(features) == ["c", "a"]


def test_a_module_that_runs_twice_is_read_twice():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, layer, layer)
    x = torch.ones(4, 3)
    with FeatureTap(model) as features:
        model(x)
    assert list(features) == ["0", "0#2"]
    torch.testing.assert_close(features["0#2"], layer(layer(x)))


def test_named_layers_and_predicates_are_read_whole():
    model = network()
    with FeatureTap(model, ["2", "7"]) as features:
        logits = model(IMAGES)
    assert list(features) == ["2", "7"]
    assert features["7"] is logits
    with FeatureTap(model, lambda name, module: isinstance(module, nn.ReLU), exclude_last=False) as features:
        model(IMAGES)
    assert list(features) == ["2", "6"]


def test_every_pass_begins_anew_and_a_closed_tap_reads_nothing():
    model = network()
    with FeatureTap(model) as features:
        model(IMAGES)
        first = features["0"]
        model(IMAGES[:3])
        assert len(features["0"]) == 3
        assert len(first) == 4
    model(IMAGES)
    assert len(features["0"]) == 3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_hooks_go_when_the_network_raises():
    model = network()
    with pytest.raises(RuntimeError), FeatureTap(model):
        model(torch.ones(4, 2, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_activation_in_place_does_not_reach_the_features():
    torch.manual_seed(0)
    model = network(inplace=True)
    with FeatureTap(model) as features:
        model(IMAGES)
    assert (features["5"] < 0).any()
    features["5"].sum().backward()
    outputs = []
    for inplace in (False, True):
        torch.manual_seed(0)
        twin = network(inplace)
        with FeatureTap(twin) as features:
            outputs.append(twin(IMAGES))
        outputs.append(features["5"])
    torch.testing.assert_close(outputs[:2], outputs[2:])


def test_a_change_in_place_that_is_not_a_module_is_refused():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x).relu_())

    model = Hidden()
    with pytest.raises(RuntimeError, match="output of 'a' was changed in place"), FeatureTap(model):
        model(torch.ones(4, 3))


def test_an_axis_that_holds_the_batch_comes_first_and_others_are_left_out():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.time_first, self.ambiguous, self.last = nn.Linear(3, 6), nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            self.time_first(x.transpose(0, 1))
            flat = self.ambiguous(x.reshape(-1, 3)).reshape(*x.shape[:2], 5)
            return self.last(flat)

    model = Turned()
    x = torch.arange(4 * 2 * 3.0).reshape(4, 2, 3)
    with FeatureTap(model) as features:
        model(x)
    assert {name: tuple(value.shape) for name, value in features.items()} == {"time_first": (4, 2, 6)}
    torch.testing.assert_close(features["time_first"], model.time_first(x))


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_recurrent_layers_give_their_output_sequence_alone(kind):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.readout = kind(3, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x, lengths=None):
            if lengths is None:
                return self.readout(self.rnn(x)[0][:, -1])
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.readout(self.rnn(packed)[1][0].reshape(-1, 6)[: len(x)])

    model, x = Reader(), torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    with FeatureTap(model) as features:
        model(x)
    assert list(features) == ["rnn"]
    torch.testing.assert_close(features["rnn"], model.rnn(x)[0])
    lengths = torch.tensor([2, 5, 1, 3])
    with FeatureTap(model) as features:
        model(x, lengths)
    assert features["rnn"].shape == (4, 5, 6)
    torch.testing.assert_close(features["rnn"][1], model.rnn(x)[0][1])
    assert features["rnn"][0, 2:].abs().max() == 0


def test_attention_weights_are_features_where_they_are_given():
    class Attending(nn.Module):
        def __init__(self, weights):
            super().__init__()
            self.weights = weights
            self.attention, self.readout = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.readout(self.attention(x, x, x, need_weights=self.weights)[0])

    for weights, names in ((True, ["attention", "attention[1]"]), (False, ["attention"])):
        model = Attending(weights)
        with FeatureTap(model) as features:
            model(torch.ones(4, 3, 6))
        assert list(features) == names


def test_transformers_are_read_in_evaluation_mode_too():
    model = TransformerLM(7, dim=8, heads=2, layers=2, hidden=12, longest=6)
    tokens = torch.zeros(4, 6, dtype=torch.int64)
    names = []
    for mode in (True, False):
        with FeatureTap(model.train(mode)) as features, torch.no_grad():
            model(tokens)
        names.append(list(features))
    assert names[0] == names[1]
    assert "blocks.1.linear2" in names[0]


def test_resnet_layers_are_its_convolutions_and_its_pool():
    model = ResNet(18, in_channels=1, num_classes=5, widths=(4, 4, 8, 8))
    with FeatureTap(model) as features:
        model(torch.zeros(4, 1, 32, 32))
    assert len(features) == 1 + 16 + 3 + 1 - 1 + 1
    assert next(iter(features)) == "conv1"
    assert list(features)[-1] == "avgpool"


def test_a_disabled_tap_reads_nothing():
    model, wanted = network(), [False]
    tap = FeatureTap(model, enabled=lambda: wanted[0])
    with tap as features:
        model(IMAGES)
        assert not features
        assert tap.inputs is None
        wanted[0] = True
        model(IMAGES)
        assert features


def test_a_tap_is_opened_once():
    tap = FeatureTap(network())
    with tap, pytest.raises(RuntimeError, match="open already"):
        tap.__enter__()


def test_unknown_names_are_refused_with_those_that_are_near():
    with pytest.raises(ValueError, match=r"ResNet has no module 'layer1.0.conv9'; it has, for example, layer1.0.conv"):
        FeatureTap(ResNet(18, widths=(2, 2, 2, 2)), ["layer1.0.conv9"])
    with pytest.raises(TypeError, match="the string 'conv1'"):
        FeatureTap(network(), "conv1")


def test_inputs_without_a_batch_are_refused():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, count):
            return self.layer(torch.ones(count, 2))

    model = Constant()
    with pytest.raises(ValueError, match=r"no tensor that holds a batch, got \['int'\]"), FeatureTap(model):
        model(4)
