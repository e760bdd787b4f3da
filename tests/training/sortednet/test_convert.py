"""sorted_: which layers it cuts and how, what it leaves alone, and which networks it refuses."""

import copy

import pytest
import torch
from torch import nn

from etude.training.sortednet import (
    Rule,
    SortedLinear,
    SubModel,
    SubModelSpace,
    active_submodel,
    count_parameters,
    extract,
    set_submodel,
    sorted_,
    space_of,
    submodel_regions,
)

SHARES = SubModelSpace(width=[0.25, 0.5, 1.0])


def mlp(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def images():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 8), nn.ReLU(), nn.Linear(8, 3))


class Branches(nn.Module):
    """Two stacks and a head, in the way of many networks that are not an nn.Sequential."""

    def __init__(self, layers=3):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.head(x)


def encoder(norm_first=False):
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.Sequential(
        nn.Linear(5, 16), nn.TransformerEncoder(layer, 3, enable_nested_tensor=not norm_first), nn.Linear(16, 3)
    )


def test_conversion_keeps_parameters_state_and_outputs():
    model, x = mlp(), torch.randn(4, 6)
    parameters, state, expected = list(model.parameters()), copy.deepcopy(model.state_dict()), model(x)
    assert sorted_(model, SHARES) is model
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters))
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model(x), expected)
    assert active_submodel(model) == SHARES.full
    fresh = sorted_(mlp(), SHARES)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), expected)


def test_inputs_of_the_first_and_outputs_of_the_last_layer_stay_whole():
    model = sorted_(mlp(), SHARES)
    set_submodel(model, SubModel(width=0.25))
    assert [layer.active for layer in model if isinstance(layer, SortedLinear)] == [(6, 2), (2, 2), (2, 3)]


def test_numbers_of_channels_scale_layers_that_are_a_multiple_as_wide():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 3))
    sorted_(model, SubModelSpace(width=[2, 8]))
    set_submodel(model, SubModel(width=2))
    assert [layer.active for layer in model] == [(6, 2), (2, 8), (8, 2), (2, 3)]


def test_shares_are_rounded_to_whole_channels_and_keep_at_least_one():
    model = sorted_(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), SubModelSpace(width=[0.05, 0.5, 1.0]))
    kept = []
    for b in space_of(model):
        with set_submodel(model, b):
            kept.append(model[0].active[1])
    assert kept == [1, 3, 5]


def test_a_flattened_convolution_is_cut_by_whole_channels():
    model = sorted_(images(), SHARES, rules={"3": Rule(inputs_unit=4)})
    for b in SHARES:
        with set_submodel(model, b):
            assert model(torch.randn(2, 1, 4, 4)).shape == (2, 3)
            assert model[3].active[0] == 4 * model[0].active[1]


def test_rules_choose_layers_by_pattern_and_sides():
    model = sorted_(
        Branches(),
        SHARES,
        rules={"layers.1": Rule("width", "width"), "layers.*": None, "stem": Rule(None, None), "head": None},
    )
    set_submodel(model, SubModel(width=0.25))
    assert type(model.stem) is nn.Linear
    assert model.layers[1].active == (2, 2)
    assert type(model.layers[0]) is type(model.layers[2]) is nn.Linear


def test_heads_may_follow_separate_projections():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
            self.output = nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = (part(x).unflatten(-1, (-1, 2)).transpose(1, 2) for part in (self.query, self.key, self.value))
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
            return self.output(mixed.transpose(1, 2).flatten(2))

    rules = {"output": Rule("heads", None, inputs_unit=2), "*": Rule(None, "heads", outputs_unit=2)}
    model = sorted_(Attention(), SubModelSpace(heads=[1, 4]), rules=rules)
    b, x = SubModel(heads=1), torch.randn(2, 3, 8)
    with set_submodel(model, b):
        expected = model(x)
        assert model.query.active == (8, 2)
    torch.testing.assert_close(extract(model, b)(x), expected)


def test_depth_runs_the_first_blocks_of_a_list_or_a_sequence():
    x = torch.randn(2, 6)
    model, plain = Branches(), Branches()
    plain.load_state_dict(model.state_dict())
    sorted_(model, SubModelSpace(depth=[1, 3]), depth="layers")
    plain.layers = plain.layers[:1]
    with set_submodel(model, SubModel(depth=1)):
        assert torch.equal(model(x), plain(x))
        assert len(model.layers) == 1
        assert len(model.layers[:5]) == 1
        assert model.layers[-1] is model.layers[0]
    stack = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 2))
    expected = nn.Sequential(stack[0], *list(stack[1])[:2], stack[2])(x)
    sorted_(stack, SubModelSpace(depth=[2, 3]), depth="1")
    with set_submodel(stack, SubModel(depth=2)):
        assert torch.equal(stack(x), expected)
        assert isinstance(stack[1][:2], nn.Sequential)


def test_blocks_that_change_shapes_are_kept_by_every_depth():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 2))
    outer = nn.Sequential(nn.Identity(), model)
    sorted_(outer, SubModelSpace(depth=[2, 3, 4]), depth={"1": [0, 2]})
    kept = []
    for b in space_of(outer):
        with set_submodel(outer, b):
            kept.append(model.kept())
            assert outer(torch.randn(3, 6)).shape == (3, 2)
    assert kept == [(0, 2), (0, 1, 2), (0, 1, 2, 3)]
    with pytest.raises(ValueError, match=r"depth must lie in 2\.\.4.* 2 change shapes .* got 1"):
        model.depth = 1


@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_encoders_are_cut_in_training_and_evaluation_alike(norm_first):
    torch.manual_seed(0)
    space = SubModelSpace(width=[8, 16], heads=[2, 4], depth=[1, 3])
    model = sorted_(encoder(norm_first), space, depth="1.layers", rules={"1.layers.*.linear1": Rule()})
    x = torch.randn(2, 7, 5)
    for b in space:
        with set_submodel(model, b):
            trained = model.train()(x)
            with torch.no_grad():
                torch.testing.assert_close(model.eval()(x), trained)
                torch.testing.assert_close(extract(model, b)(x), trained, rtol=1e-5, atol=1e-6)


def test_switching_is_undone_after_a_block_even_on_error():
    model = sorted_(mlp(), SHARES)

    def fail():
        with set_submodel(model, SHARES.smallest):
            assert active_submodel(model) == SHARES.smallest
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert active_submodel(model) == SHARES.full
    set_submodel(model, SubModel(width=0.5))
    assert active_submodel(model) == SubModel(width=0.5)


def test_regions_cover_the_network_and_are_nested():
    torch.manual_seed(0)
    space = SubModelSpace(width=[4, 8], depth=[1, 3])
    model = sorted_(Branches(), space, depth="layers")

    def inside(b):
        masks = {name: torch.zeros_like(part, dtype=torch.bool) for name, part in model.named_parameters()}
        for name, kept in submodel_regions(model, b).items():
            for region in kept:
                masks[name][region] = True
        return torch.cat([mask.flatten() for mask in masks.values()])

    assert bool(inside(space.full).all())
    for b in space:
        assert int(inside(b).sum()) == count_parameters(model, b)
        for c in space:
            if b <= c:
                assert not bool((inside(b) & ~inside(c)).any())
    assert submodel_regions(model, space.smallest)["layers.1.weight"] == []


def test_gradients_and_outputs_of_a_submodel_are_confined_to_its_weights():
    torch.manual_seed(0)
    space = SubModelSpace(width=[4, 8], depth=[1, 3])
    model = sorted_(Branches(), space, depth="layers")
    x = torch.randn(5, 6)
    for b in space:
        model.zero_grad()
        with set_submodel(model, b):
            before = model(x)
            before.square().sum().backward()
        regions = submodel_regions(model, b)
        changed = copy.deepcopy(model)
        for name, parameter in changed.named_parameters():
            outside = torch.ones_like(parameter, dtype=torch.bool)
            for region in regions[name]:
                outside[region] = False
            gradient = model.get_parameter(name).grad
            assert gradient is None or bool((gradient[outside] == 0).all())
            with torch.no_grad():
                parameter[outside] += 1e6
        with set_submodel(changed, b):
            assert torch.equal(changed(x), before)


def test_a_copy_switches_apart_from_the_original():
    model = sorted_(mlp(), SHARES)
    other = copy.deepcopy(model)
    set_submodel(other, SHARES.smallest)
    assert model[0].active == (6, 8)
    assert active_submodel(model) == SHARES.full


def tied():
    model = Branches()
    model.layers[2].weight = model.layers[0].weight
    return model


def refused(model, message, space=SHARES, **arguments):
    before = {name: type(part) for name, part in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        sorted_(model, space, **arguments)
    assert {name: type(part) for name, part in model.named_modules()} == before
    assert not any("sorted_space" in part.__dict__ or "_active" in part.__dict__ for part in model.modules())


def test_tied_weights_are_refused_where_they_would_be_cut():
    message = "'layers.0.weight' and 'layers.2.weight' are one tied tensor"
    refused(tied(), message)
    refused(tied(), message, rules={"layers.0": None})
    shared = Branches()
    shared.layers[1] = shared.layers[0]
    refused(shared, "'layers.0.weight' and 'layers.1.weight' are one tied tensor")
    sorted_(tied(), SubModelSpace(depth=[1, 3]), depth="layers")


def test_spaces_that_do_not_fit_the_network_are_refused():
    refused(mlp(), "'0' has 8 channels on one side, and the space's width ends at 6", SubModelSpace(width=[3, 6]))
    refused(Branches(), "'layers' has 3 blocks", SubModelSpace(depth=[1, 2]), depth="layers")
    refused(Branches(), r"positions|numbered 0\.\.2", SubModelSpace(depth=[2, 3]), depth={"layers": [3]})
    refused(Branches(), "depth must lie in 2", SubModelSpace(depth=[1, 3]), depth={"layers": [0, 1]})
    refused(encoder(), "has 4 heads, and the space must end at that number, not at 3", SubModelSpace(heads=[1, 3]))
    refused(Branches(), "no stack of blocks is named", SubModelSpace(depth=[1, 3]))
    refused(Branches(), "give both or neither", depth="layers")
    refused(Branches(), "has no stack of blocks 'blocks'", SubModelSpace(depth=[1, 3]), depth="blocks")
    refused(Branches(), "must be an nn.Sequential or an nn.ModuleList", SubModelSpace(depth=[1, 3]), depth="head")


def test_groups_that_a_width_would_split_are_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 3, 1))
    refused(model, "'1' has 2 groups of 4 input and 4 output channels")
    sorted_(model, SubModelSpace(width=[0.5, 1.0]))


def test_layers_that_cannot_be_cut_are_refused_unless_a_rule_leaves_them_whole():
    grouped = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1))
    refused(grouped, "'1' is a GroupNorm")
    sorted_(grouped, SHARES, rules={"1": None, "0": None, "2": None})

    class Positions(Branches):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.zeros(8))

    refused(Positions(), r"'' is a Positions, whose parameters \['position'\] cannot be cut")


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_reparametrized_weights_are_refused(norm, old):
    model = mlp()
    getattr(nn.utils if old else nn.utils.parametrizations, norm)(model[2])
    refused(model, "the weights of '2' are computed from others")


def test_layers_that_carry_something_attached_are_refused():
    model = mlp()
    model[4].add_module("mixer", nn.Linear(8, 8))
    refused(model, "'4' carries mixer, .* call sorted_ first, and attach afterwards")


def test_what_is_attached_to_a_sorted_layer_is_part_of_every_submodel():
    model = sorted_(mlp(), SHARES)
    model[4].add_module("mixer", nn.Linear(8, 8))
    assert submodel_regions(model, SHARES.smallest)["4.mixer.weight"] == [()]


def test_rules_that_match_nothing_and_second_conversions_are_refused():
    refused(mlp(), r"rules for \['head'\] match no layer", rules={"head": None})
    refused(mlp(), "not a multiple of the unit 3", rules={"2": Rule(outputs_unit=3)})
    model = sorted_(mlp(), SHARES)
    with pytest.raises(ValueError, match="holds a space of sub-models already"):
        sorted_(model, SHARES)
    with pytest.raises(ValueError, match="follows 'width', 'heads' or None, got 'depth'"):
        Rule(inputs="depth")


def test_a_submodel_outside_the_space_is_refused():
    model = sorted_(mlp(), SHARES)
    with pytest.raises(ValueError, match=r"SubModel\(width=0\.3, .* is none of the 3 sub-models"):
        set_submodel(model, SubModel(width=0.3))
    with pytest.raises(ValueError, match="holds 0 networks with a space"):
        space_of(mlp())


def test_layers_that_were_cut_differently_say_so():
    model = sorted_(mlp(), SHARES, rules={"0": None})
    with set_submodel(model, SHARES.smallest), pytest.raises(ValueError, match=r"'2' has 2 of 8 inputs active"):
        model(torch.randn(2, 6))


def test_torchvision_networks_are_cut_without_rules():
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # its compiled operators are not everywhere
        pytest.skip(f"torchvision does not load: {error}")
    model = sorted_(models.resnet18(num_classes=5), SubModelSpace(width=[0.25, 1.0]), bn="shared").eval()
    with set_submodel(model, SubModel(width=0.25)):
        expected = model(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        assert expected.shape == (1, 5)
        assert model.layer4[1].conv2.active == (128, 128)
