"""The ready networks: their sub-models cut out, counted by closed forms, and what they refuse."""

import copy

import pytest
import torch
from torch import nn

from etude.training.sortednet import (
    SortedMLP,
    SortedMobileNetV2,
    SortedResNet18,
    SortedTransformerEncoder,
    SortedTransformerLM,
    SubModel,
    count_parameters,
    extract,
    set_submodel,
    space_of,
)
from etude.training.sortednet.slicing import SortedLayer

WIDTHS = [8, 16, 32, 48, 64, 80, 96, 112, 128]

MODELS = {
    "mlp": (lambda: SortedMLP(20, 3, width=[4, 8, 16], depth=[1, 2, 3]), lambda: torch.randn(5, 4, 5)),
    "resnet18": (lambda: SortedResNet18(4, width=[0.1, 0.5, 1.0], in_channels=1), lambda: torch.randn(4, 1, 8, 8)),
    "mobilenetv2": (
        lambda: SortedMobileNetV2(4, width=[0.125, 1.0], depth=[8, 12, 17]),
        lambda: torch.randn(4, 3, 8, 8),
    ),
    "encoder": (
        lambda: SortedTransformerEncoder(5, 3, 7, width=[8, 12, 16], heads=[1, 4], depth=[1, 3]),
        lambda: torch.randn(4, 6, 5),
    ),
    "language model": (
        lambda: SortedTransformerLM(11, 8, width=[4, 16], heads=[2, 4], depth=[1, 2]),
        lambda: torch.randint(11, (4, 6)),
    ),
}  # fmt: skip


@pytest.fixture(params=MODELS, ids=lambda name: name.replace(" ", "-"))
def case(request):
    torch.manual_seed(0)
    make, inputs = MODELS[request.param]
    return make(), inputs()


def test_every_submodel_can_be_cut_out_with_its_outputs(case):
    model, x = case
    for b in space_of(model):
        small = extract(model, b, calibration=[x]).eval()
        assert not any(isinstance(part, SortedLayer) for part in small.modules())
        assert type(small) is type(model)
        with set_submodel(model, b), torch.no_grad():
            torch.testing.assert_close(small(x), model.eval()(x), rtol=1e-6, atol=1e-6)
        assert sum(part.numel() for part in small.parameters()) == count_parameters(model, b)


def test_parameters_increase_in_each_dimension(case):
    model, _ = case
    counts = {b: count_parameters(model, b) for b in space_of(model)}
    assert all(counts[b] < counts[c] for b in counts for c in counts if b < c)
    assert counts[space_of(model).full] == sum(part.numel() for part in model.parameters())


def test_a_network_survives_saving_and_loading(case, tmp_path):
    model, x = case
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert space_of(loaded) == space_of(model)
    b = space_of(model).smallest
    outputs = []
    for network in (model, loaded):
        with set_submodel(network, b), torch.no_grad():
            outputs.append(network.train()(x))
    assert torch.equal(*outputs)


def test_the_parameters_of_the_mlp_follow_the_closed_form():
    model = SortedMLP(64, 10, width=WIDTHS, depth=[1, 2, 3, 4])
    assert len(space_of(model)) == 36
    for b in space_of(model):
        w, d = b.width, b.depth
        assert count_parameters(model, b) == 64 * w + w + d * (w**2 + w) + 10 * w + 10
    assert count_parameters(model, SubModel(width=8, depth=1)) == 682
    assert count_parameters(model, SubModel(width=128, depth=4)) == 75_658


def test_the_mlp_is_its_formula():
    torch.manual_seed(0)
    model = SortedMLP(6, 3, width=[4, 8], depth=[1, 2])
    x = torch.randn(5, 6)
    with set_submodel(model, SubModel(width=4, depth=2)):
        z = (x @ model.stem.weight[:4].T + model.stem.bias[:4]).relu()
        for block in model.blocks.blocks():
            z = z + (z @ block.linear.weight[:4, :4].T + block.linear.bias[:4]).relu()
        torch.testing.assert_close(model(x), z @ model.head.weight[:, :4].T + model.head.bias)


def test_the_convolutional_networks_have_the_known_numbers_of_parameters():
    with torch.device("meta"):
        counts = {
            11_173_962: SortedResNet18(10),
            11_689_512: SortedResNet18(1000, small_images=False),
            2_236_682: SortedMobileNetV2(10),
        }
    for expected, model in counts.items():
        assert sum(part.numel() for part in model.parameters()) == expected


def test_mobilenet_holds_160_submodels_that_keep_the_blocks_which_change_shapes():
    with torch.device("meta"):
        model = SortedMobileNetV2(10)
    assert len(space_of(model)) == 160
    stages = [1, 2, 3, 4, 3, 3, 1]
    opening = [sum(stages[:stage]) for stage in range(7)]
    for depth in (8, 12, 17):
        with set_submodel(model, SubModel(width=1.0, depth=depth)):
            kept = model.blocks.kept()
        others = [index for index in range(17) if index not in opening]
        assert kept == tuple(sorted(opening + others[: depth - 7]))


def test_resnet_takes_the_checkpoints_of_torchvision():
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # its compiled operators are not everywhere
        pytest.skip(f"torchvision does not load: {error}")
    torch.manual_seed(0)
    peer = models.resnet18(num_classes=5)
    ours = SortedResNet18(5, small_images=False)
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(ours.eval()(x), peer.eval()(x))


def test_the_language_model_sees_no_later_token_at_any_size():
    torch.manual_seed(0)
    model = SortedTransformerLM(11, 8, width=[4, 16], heads=[2, 4], depth=[1, 2]).eval()
    tokens = torch.randint(11, (2, 7))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    for b in space_of(model):
        with set_submodel(model, b), torch.no_grad():
            before, after = model(tokens), model(changed)
        torch.testing.assert_close(before[:, :4], after[:, :4])
        assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_the_encoder_tells_positions_apart():
    torch.manual_seed(0)
    model = SortedTransformerEncoder(5, 3, 7, width=[16], heads=[4], depth=[2]).eval()
    x = torch.randn(2, 6, 5)
    assert not torch.allclose(model(x), model(x.flip(1)))
    nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(x), model(x.flip(1)))


def test_a_cut_out_network_owns_its_weights_and_trains_on():
    torch.manual_seed(0)
    model = SortedMLP(6, 3, width=[4, 8], depth=[1, 2])
    model.stem.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    small = extract(model, SubModel(width=4, depth=1)).train()
    optimizer = torch.optim.SGD(small.parameters(), lr=1.0)
    small(torch.randn(5, 6)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert not torch.equal(small.head.weight, before["head.weight"][:, :4])
    assert torch.equal(small.stem.weight, before["stem.weight"][:4])
    assert small.stem.weight.untyped_storage().nbytes() == 4 * 6 * 4


def test_cutting_out_draws_no_random_numbers_and_leaves_the_network_as_it_was():
    model = SortedMobileNetV2(4, width=[0.125, 1.0], depth=[8, 17], bn="shared")
    b = SubModel(width=1.0, depth=8)
    set_submodel(model, b)
    kinds = [type(part) for part in model.modules()]
    state = torch.get_rng_state()
    extract(model, space_of(model).smallest)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(part) for part in model.modules()] == kinds
    assert len(model.blocks) == 8


def test_sizes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="full width 10 must be a multiple of the 4 heads"):
        SortedTransformerLM(11, 8, width=[10], heads=[4], depth=[1])
    with pytest.raises(ValueError, match="sequences may have 8 tokens, got 9"):
        SortedTransformerLM(11, 8, width=[8], heads=[4], depth=[1])(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ValueError, match="sequences may have 7 vectors, got 8"):
        SortedTransformerEncoder(5, 3, 7, width=[8], heads=[4], depth=[1])(torch.randn(1, 8, 5))
    with pytest.raises(ValueError, match="depth must lie in 7"):
        SortedMobileNetV2(4, depth=[6, 17])
