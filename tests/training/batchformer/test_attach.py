"""BatchFormer in an untouched model by hooks, and its parameter groups."""

import copy
import io

import pytest
import torch
from torch import nn

from etude.training.batchformer import (
    BatchFormer,
    attach_batchformer,
    param_groups_with_batchformer,
    two_stream_loss,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.scale = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.scale(self.pool(self.norm(self.conv(x))).flatten(1)))


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@pytest.mark.parametrize("feature", ["pool", "scale", None])
def test_the_model_returns_both_halves_in_training(feature):
    model = network()
    plain = network()(images())
    attach_batchformer(model, feature, "head")
    logits = model(images())
    assert logits.shape == (8, 3)
    torch.testing.assert_close(logits[:4], plain)


def test_modules_may_be_given_themselves():
    model = network()
    handle = attach_batchformer(model, model.pool, model.head, num_heads=2)
    assert model(images()).shape == (8, 3)
    assert handle.batchformer.layers[0].self_attn.num_heads == 2


def test_in_evaluation_the_logits_are_bit_for_bit_the_models_own():
    model = network().eval()
    before = model(images())
    attach_batchformer(model, "pool", "head")
    assert torch.equal(model(images()), before)


def test_batch_statistics_are_those_of_the_plain_model():
    model, plain = network(), network()
    attach_batchformer(model, "pool", "head")
    model(images())
    plain(images())
    assert torch.equal(model.norm.running_mean, plain.norm.running_mean)


def test_removing_leaves_the_original_keys_and_outputs():
    model = network()
    keys = list(model.state_dict())
    handle = attach_batchformer(model, "pool", "head")
    assert any(key.startswith("head.batchformer.") for key in model.state_dict())
    handle.remove()
    handle.remove()
    assert list(model.state_dict()) == keys
    assert torch.equal(model(images()), network()(images()))
    attach_batchformer(model, "pool", "head")


def test_the_handle_owns_the_layer_and_its_gradients_flow():
    model = network()
    handle = attach_batchformer(model, "pool", "head")
    two_stream_loss(model(images()), torch.tensor([0, 1, 2, 0])).backward()
    assert all(parameter.grad is not None for parameter in handle.parameters())
    assert list(handle.parameters()) == list(model.head.batchformer.parameters())


def test_a_deep_copy_has_a_layer_of_its_own():
    model = network()
    attach_batchformer(model, "pool", "head", dropout=0.0)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images()), model(images()))
    with torch.no_grad():
        for parameter in twin.head.batchformer.parameters():
            parameter.mul_(2)
    assert not torch.equal(twin(images())[4:], model(images())[4:])
    twin.eval()
    assert len(twin(images())) == 4
    assert len(model(images())) == 8


def test_a_model_can_be_saved_whole_and_loaded():
    model = network()
    attach_batchformer(model, "pool", "head", dropout=0.0)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(images()), model(images()))


def test_the_layer_moves_with_the_model():
    model = network().double()
    attach_batchformer(model, "pool", "head")
    assert model(images().double()).dtype == torch.float64


@pytest.mark.parametrize("classifier", ["2", "3"])
def test_a_sequential_model_or_classifier_does_not_take_the_layer_for_a_step(classifier):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.0), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))
    x = images()[:, 0, 0]
    plain = model(x)
    handle = attach_batchformer(model, "1", classifier, dim=8)
    torch.testing.assert_close(model(x)[:4], plain)
    assert model(x).shape == (8, 3)
    assert torch.equal(model.eval()(x), plain)
    handle.remove()
    assert len(model) == 4
    assert len(model[3]) == 2


def test_dim_is_read_from_the_classifier_or_given():
    model = network()
    assert attach_batchformer(model, "pool", "head").batchformer.dim == 8
    bare = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    assert attach_batchformer(bare, "0", "1", dim=8).batchformer.dim == 8
    with pytest.raises(ValueError, match="ReLU has no linear layer to read dim from: give dim"):
        attach_batchformer(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), "0", "1")


def test_a_classifier_that_does_not_see_both_halves_is_refused():
    class TwoPaths(Net):
        def forward(self, x):
            self.pool(self.conv(x))
            return self.head(self.conv(x).mean(dim=(2, 3)))

    model = TwoPaths()
    attach_batchformer(model, "pool", "head")
    with pytest.raises(ValueError, match=r"the 8 rows of the doubled features, got \(4, 8\)"):
        model(images())


def test_unpooled_features_are_refused():
    model = network()
    attach_batchformer(model, "conv", "head")
    with pytest.raises(ValueError, match="pool them first"):
        model(images())


def test_a_part_that_stands_twice_in_the_model_is_refused():
    shared = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="several names, '0', '2'"):
        attach_batchformer(nn.Sequential(shared, nn.ReLU(), shared), "0", "1", dim=8)


@pytest.mark.parametrize(
    ("feature", "classifier", "message"),
    [
        ("pol", "head", "no module 'pol', it has"),
        ("head", "head", "must be two modules"),
        (nn.Linear(2, 2), "head", "given Linear is no part of the model"),
        ("", "head", "got the model itself"),
    ],
)
def test_parts_that_do_not_fit_are_refused(feature, classifier, message):
    with pytest.raises(ValueError, match=message):
        attach_batchformer(network(), feature, classifier)


def test_attaching_twice_is_refused():
    model = network()
    attach_batchformer(model, "pool", "head")
    with pytest.raises(ValueError, match="remove the other handle first"):
        attach_batchformer(model, "pool", "head")


def test_the_layer_learns_at_a_tenth_of_the_rate_and_no_parameter_stands_twice():
    model = network()
    handle = attach_batchformer(model, "pool", "head")
    groups = param_groups_with_batchformer(model, handle.batchformer, lr=0.5)
    assert [group["lr"] for group in groups] == [0.5, 0.05]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in handle.parameters()}
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    torch.optim.SGD(groups, momentum=0.9)


def test_a_layer_outside_the_model_and_tied_weights_inside_it_are_grouped_once():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 8), "readout": nn.Linear(8, 5, bias=False)})
    model["readout"].weight = model["embedding"].weight
    groups = param_groups_with_batchformer(model, BatchFormer(8), lr=1, bf_lr_scale=1)
    assert len(groups[0]["params"]) == 1


def test_a_parameter_tied_to_the_layer_is_refused():
    batchformer = BatchFormer(8)
    model = nn.Sequential(nn.Linear(8, 8), batchformer)
    model[0].weight = batchformer.layers[0].linear1.weight
    with pytest.raises(ValueError, match=r"0\.weight is tied to a parameter of the BatchFormer layer"):
        param_groups_with_batchformer(model, batchformer, lr=0.1)


def test_a_negative_rate_is_refused():
    with pytest.raises(ValueError, match=r"got 0\.1 and -1"):
        param_groups_with_batchformer(network(), BatchFormer(8), lr=0.1, bf_lr_scale=-1)
