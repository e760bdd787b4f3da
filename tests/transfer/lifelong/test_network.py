"""Owners, groups, growth and release."""

import pytest
import torch
from torch import nn

from etude.transfer.lifelong import FREE, ConsolidatedNet, Consolidation, OwnerNorm, layer_owners

KINDS = {
    "two layers": {"in_features": 6, "num_layers": 2},
    "normed": {"in_features": 6, "num_layers": 2, "norm": True},
    "convolutions": {"in_features": (2, 8, 8), "num_layers": 2},
    "normed convolutions": {"in_features": (2, 8, 8), "num_layers": 2, "norm": True},
}


def network(kind, **options):
    net = ConsolidatedNet(**KINDS[kind], units_per_task=3, seed=0, **options)
    net.recruit("a", None, 2)
    net.recruit("b", None, 3)
    return scrambled(net)


def scrambled(net, seed=0):
    """Some weights everywhere except from later units to earlier ones."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    consolidation = Consolidation(net, owners=net.owners())
    for later in range(2, len(net.tasks) + 1):
        for earlier in range(1, later):
            consolidation.set(f"*[{later}->{earlier}]", "masked")
    consolidation.apply({"*[free->*]": "masked"})
    return net


def inputs(net, n=5):
    return torch.randn(n, *net.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", [None, 9])
def test_recruiting_changes_no_old_output(kind, pool):
    net = network(kind, pool=pool)
    x = (8 * inputs(net)).round() / 8
    with torch.no_grad():
        for p in net.parameters():
            # Eighths add up exactly in any order, and kernels for larger layers add in another.
            p.copy_((8 * p).round() / 8)
    before = [net(x, task).detach() for task in ("a", "b")]
    net.recruit("c", 3, 2)
    for task, old in zip(("a", "b"), before):
        if "normed" in kind and pool is None:
            torch.testing.assert_close(net(x, task), old, rtol=0, atol=1e-5)
        else:
            assert torch.equal(net(x, task), old)
    assert net(x).shape == (5, 7)
    assert net(x, "c").shape == (5, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_hold_every_weight_once(kind):
    net = network(kind)
    assert sum(net.groups().values()) == sum(p.numel() for p in net.parameters())


def test_a_group_is_what_its_name_says():
    net = ConsolidatedNet(5, 2, 2, pool=7, seed=0)
    net.recruit("a", 2, 2)
    net.recruit("b", 3, 2)
    counted = {}
    first, second, out = net.unit_owner(0).tolist(), net.unit_owner(1).tolist(), net.output_owner.tolist()
    for kind, reads, writes in (("G", None, first), ("G", first, second), ("H", second, out)):
        for j in writes:
            for i in reads if reads else [j] * 5:
                counted[f"{kind}[{i}->{j}]"] = counted.get(f"{kind}[{i}->{j}]", 0) + 1
            counted[f"{kind}[{j}->{j}]"] = counted.get(f"{kind}[{j}->{j}]", 0) + 1  # the bias
    assert net.groups() == counted


def test_a_table_is_spread_over_a_layer_by_owner_pairs():
    net = network("two layers")
    consolidation = Consolidation(net, owners=net.owners())
    consolidation.apply({"G[1->2]": 0.5, "G[2->2]": 2.0, "G[2->1]": "masked", "H[1->2]": 7.0})
    owner = net.unit_owner(0)
    expected = {(1, 1): 0.0, (1, 2): 0.5, (2, 2): 2.0, (2, 1): float("inf")}
    strength = consolidation.strength("layers.1.weight")
    for row in range(6):
        for column in range(6):
            assert strength[row, column] == expected[int(owner[column]), int(net.unit_owner(1)[row])]
    assert bool((net.layers[1].weight[owner_is(net, 1, 1)][:, owner_is(net, 0, 2)] == 0).all())
    assert consolidation.table("H")[1, 2] == 7.0
    assert bool(torch.isnan(consolidation.table("G")[2, 1]))
    assert consolidation.rules()["G[1->2]"] == 0.5
    assert consolidation.rules()["G[2->1]"] == "masked"


def owner_is(net, layer, number):
    return net.unit_owner(layer) == number


def test_rules_read_back_set_the_same_table():
    net = network("convolutions")
    one = Consolidation(net, owners=net.owners())
    one.apply({"G[1->2]": 0.5, "layers.1.weight:G[2->2]": 3.0, "*[2->1]": "masked", "H[1->1]": float("inf")})
    two = Consolidation(net, owners=net.owners())
    two.apply(one.rules())
    for name, _ in net.named_parameters():
        assert torch.equal(one.strength(name), two.strength(name))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_an_old_head_with_respect_to_new_units_is_zero(kind):
    net = network(kind)
    net(inputs(net), "a").square().sum().backward()
    for layer in range(2):
        assert not bool(net.layers[layer].weight.grad[owner_is(net, layer, 2)].any())
        assert not bool(net.layers[layer].bias.grad[owner_is(net, layer, 2)].any())
        assert bool(net.layers[layer].weight.grad[owner_is(net, layer, 1)].any())


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_unit_is_read_by_nobody_and_drawn_anew_when_recruited(kind):
    net = network(kind, pool=6)
    x = inputs(net)
    before, old = net(x, "b").detach(), net.layers[0].weight[owner_is(net, 0, 1)].detach().clone()
    where = owner_is(net, 0, 1)
    assert net.num_free() == 0
    assert net.release("a") == 6
    assert net.num_free() == 3
    for layer in range(2):
        assert not bool(net._outgoing(layer)[:, owner_is(net, layer, FREE)].any())
    assert not torch.equal(net(x, "b"), before), "b has read units of a"
    net.recruit("c", 3, 2)
    assert not bool((net.layers[0].weight[where] == old).any())
    assert not bool(net.layers[0].bias[where].any())


def test_single_units_can_be_released():
    net = network("two layers")
    mine = torch.nonzero(owner_is(net, 1, 1)).squeeze(1)
    assert net.release("a", mine[:1], layer=1) == 1
    assert net.unit_owner(1)[mine].tolist() == [FREE, 1, 1]
    with pytest.raises(ValueError, match="are not of 'a'"):
        net.release("a", torch.nonzero(owner_is(net, 1, 2)).squeeze(1), layer=1)
    with pytest.raises(ValueError, match="give the layer too"):
        net.release("a", mine)


def test_owners_of_grouped_convolutions_follow_their_groups():
    inp, out = torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 1, 2, 1, 2])
    owners = layer_owners(nn.Conv2d(4, 6, 3, groups=2), out, inp)["weight"]
    assert owners.src.tolist() == [[1, 1]] * 3 + [[2, 2]] * 3
    dense = layer_owners(nn.Conv2d(4, 6, 3), out, inp)["weight"]
    assert dense.src.tolist() == [inp.tolist()] * 6


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Conv1d(3, 4, 3)])
def test_norms_and_biases_belong_to_their_unit(layer):
    owners = layer_owners(layer, torch.tensor([1, 1, 2, 2]), torch.tensor([1, 2, 2]))
    assert set(owners) == {"weight", "bias"}
    assert owners["bias"].src is None
    assert owners["bias"].dst.tolist() == [1, 1, 2, 2]


def test_layers_without_owners_are_refused():
    with pytest.raises(TypeError, match="must be linear, convolutional or a norm, got Embedding"):
        layer_owners(nn.Embedding(3, 4), torch.tensor([1, 1, 1, 1]))
    with pytest.raises(TypeError, match="transposed convolution"):
        layer_owners(nn.ConvTranspose2d(3, 4, 3), torch.tensor([1, 1, 1, 1]))
    with pytest.raises(ValueError, match="owners of 4 units, got 3"):
        layer_owners(nn.Linear(2, 4), torch.tensor([1, 1, 1]))


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 4, 3)])
def test_owner_norm_is_a_group_norm_within_each_owner(shape):
    owner = torch.tensor([2, 1, 2, 0, 1])
    norm = OwnerNorm(owner).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = norm(x)
    for number in (0, 1, 2):
        units = owner == number
        alone = nn.functional.group_norm(x[:, units], 1, eps=1e-5)
        torch.testing.assert_close(got[:, units], alone, rtol=0, atol=1e-12)


def test_a_network_is_saved_and_loaded_at_its_size(tmp_path):
    net = network("normed convolutions")
    net.recruit(7, 2, 2)
    net.save_pretrained(tmp_path)
    other = ConsolidatedNet.from_pretrained(tmp_path)
    assert other.tasks == ["a", "b", 7]
    assert torch.equal(other(inputs(net)), net(inputs(net)))
    assert torch.equal(other(inputs(net), 7), net(inputs(net), 7))


def test_bad_requests_are_refused():
    net = ConsolidatedNet(4, 1, 3, pool=4, seed=0)
    net.recruit("a", None, 2)
    with pytest.raises(ValueError, match=r"wants 3 units of layer 0, but of 4 only 1 are free: release .* or .*grow"):
        net.recruit("b", None, 2)
    assert net.tasks == ["a"]
    with pytest.raises(ValueError, match="no task 'z'; the network knows"):
        net(torch.zeros(1, 4), "z")
    with pytest.raises(ValueError, match="needs at least two outputs, got 1"):
        net.recruit("b", 1, 1)
    with pytest.raises(TypeError, match="named by a string or a whole number"):
        net.recruit((1, 2), 1, 2)
    with pytest.raises(ValueError, match=r"must have shape \(batch, 4\), got \(1, 5\)"):
        net(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="leave nothing of 2 x 2 pixels"):
        ConsolidatedNet((1, 2, 2), 2)
    with pytest.raises(ValueError, match="must be at least 1"):
        ConsolidatedNet(4, 0)
