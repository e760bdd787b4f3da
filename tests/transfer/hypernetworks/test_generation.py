"""Generated weights: equal ways of giving them, gradients, batches, and targets that vary."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from etude.transfer.hypernetworks import HypernetDesign, Hypernetwork, SupportSetEncoder, TargetSpec, slice_parameters


def target(hidden=5):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def made(generation="once", architecture="mlp", net=None, **options):
    torch.manual_seed(0)
    static = {"static_output": options.pop("static_output", True), "static_input": options.pop("static_input", True)}
    options = {"num_conditions": 3, "cond_dim": 4, "hidden": (8, 8)} | options
    return Hypernetwork(target() if net is None else net, HypernetDesign("task", generation, architecture=architecture,
                        **static), **options)  # fmt: skip


@pytest.mark.parametrize("generation", ["once", "multiple", "component", "chunk", "component_chunk"])
def test_a_materialized_copy_computes_the_same(generation):
    net = made(generation, **({"chunk_size": 6} if "chunk" in generation else {}))
    x = torch.randn(7, 4)
    assert torch.allclose(net.call(x, 2), net.materialize(2)(x), atol=1e-6)
    assert all(parameter.requires_grad for parameter in net.materialize(2).parameters())


def test_the_gradient_is_that_of_the_chain_rule_through_theta():
    net, x = made(init="scaled"), torch.randn(7, 4)
    net.call(x, 1).square().sum().backward()
    theta = net.flat(1)[0].detach().requires_grad_()
    functional_call(net.target, net.spec.split(theta), (x,)).square().sum().backward()
    parameters = dict(net.named_parameters())
    name, weight = "trunk.layers.0.weight", parameters["trunk.layers.0.weight"]

    def generated(value):
        return functional_call(Flat(net), {f"net.{name}": value}, (1,))

    jacobian = torch.autograd.functional.jacobian(generated, weight.detach())
    assert torch.allclose(weight.grad, torch.einsum("p,pij->ij", theta.grad, jacobian), atol=1e-5)
    assert all(parameter.grad is None for parameter in net.target.parameters())
    assert net.conditions.learned[0].grad is None


class Flat(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, cond):
        return self.net.flat(cond)[0]


def copy_state(source, to, inputs):
    """The weights of one hypernetwork in another whose first layer has further, idle input columns."""
    state = to.state_dict()
    for name, value in source.state_dict().items():
        if name == "trunk.layers.0.weight":
            state[name][:, :inputs] = value
        elif isinstance(value, torch.Tensor):
            state[name] = value
    to.load_state_dict(state)
    with torch.no_grad():
        for place in to.places.tables:
            place.zero_()


@pytest.mark.parametrize("generation", ["chunk", "component"])
def test_one_piece_with_a_zero_embedding_is_once(generation):
    net = nn.Sequential(nn.Linear(4, 3))
    once = made(net=net, init="default")
    pieces = made(generation, net=net, init="default", **({"chunk_size": 15} if generation == "chunk" else {}))
    copy_state(once, pieces, 4)
    assert torch.allclose(once.flat(torch.arange(3)), pieces.flat(torch.arange(3)), atol=1e-6)


def test_one_head_of_multiple_is_once():
    once, multiple = made(init="default"), made("multiple", num_heads=1, init="default")
    renamed = {
        name.replace("trunk.layers.2", "head.inner.0.0").replace("head.out.", "head.out.0.") if "head.out" in name
        or "trunk.layers.2" in name else name: value
        for name, value in once.state_dict().items()
    }  # fmt: skip
    multiple.load_state_dict(renamed)
    assert torch.allclose(once.flat(torch.arange(3)), multiple.flat(torch.arange(3)), atol=1e-6)


@pytest.mark.parametrize(("bias", "share"), [(False, 1.0), (True, 0.5)])
def test_a_linear_hypernetwork_of_one_fixed_number_is_the_target_itself(bias, share):
    direct = target()
    net = made(predefined=torch.ones(1, 1), num_conditions=None, cond_dim=1, hidden=(), bias=bias, init="default")
    with torch.no_grad():
        net.head.out.weight.copy_(net.spec.flatten(dict(direct.named_parameters()))[:, None])
        if bias:
            net.head.out.bias.zero_()
    x, y = torch.randn(16, 4), torch.randn(16, 3)
    optimizers = [
        torch.optim.SGD(direct.parameters(), lr=0.1),
        torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1 * share),
    ]
    for _ in range(5):
        for optimizer, call in zip(optimizers, (direct, lambda rows: net.call(rows, 0))):
            optimizer.zero_grad()
            (call(x) - y).square().mean().backward()
            optimizer.step()
    wanted = net.spec.flatten(dict(direct.named_parameters()))
    assert torch.allclose(net.flat(0)[0], wanted, atol=1e-6)


@pytest.mark.parametrize("generation", ["chunk", "component", "component_chunk"])
def test_the_batched_pass_equals_a_loop_over_pieces(generation):
    net = made(generation, init="scaled", **({} if generation == "component" else {"chunk_size": 6}))
    embedding = net.conditions.learned[1]
    pieces = [net.head.out(net.trunk.layers(torch.cat([embedding, place]))) for place in net.places.tables[0]]
    if generation == "chunk":
        looped = torch.cat(pieces)[:43]
    else:
        counts = [25, 18]
        sizes = [-(-count // net.piece_size) for count in counts]
        looped = torch.cat([
            torch.cat(pieces[first : first + size])[:count]
            for first, size, count in zip((0, sizes[0]), sizes, counts)
        ])  # fmt: skip
    looped = 5 * net.spec.prior_std * looped
    assert torch.allclose(net.flat(1)[0], looped, atol=1e-6)


def test_channels_are_rows_of_the_weight_with_their_bias():
    net = made("component", granularity="channel", init="default")
    assert net.piece_size == 6
    assert len(net.places.tables[0]) == 5 + 3
    embedding = net.conditions.learned[0]
    rows = net.head.out(net.trunk.layers(torch.cat([embedding.expand(8, -1), net.places.tables[0]], dim=1)))
    generated = net(0)
    first = torch.cat([generated["0.bias"][:, None], generated["0.weight"]], dim=1)
    assert torch.allclose(rows[:5, :5], first, atol=1e-6)


def test_one_condition_for_each_row_equals_a_loop():
    net, x, ids = made("chunk", chunk_size=9), torch.randn(5, 4), torch.tensor([2, 0, 1, 1, 2])
    looped = torch.cat([net.call(row[None], int(number)) for row, number in zip(x, ids)])
    assert torch.allclose(net.call(x, ids), looped, atol=1e-6)
    each = torch.stack([net.call(x, number) for number in range(3)])
    assert torch.allclose(net.call_each(x, torch.arange(3)), each, atol=1e-6)


def test_support_sets_are_read_without_order():
    encoder = SupportSetEncoder(4, 2, 6)
    design = HypernetDesign("task+data", "chunk", static_input=False)
    net = Hypernetwork(target(), design, num_conditions=2, cond_dim=6, hidden=(8,), chunk_size=9, encoder=encoder)
    inputs, labels = torch.randn(2, 10, 4), torch.randint(2, (2, 10))
    order = torch.randperm(10)
    one = net.flat((1, (inputs, labels)))
    assert one.shape == (2, 43)
    assert torch.allclose(one, net.flat((1, (inputs[:, order], labels[:, order]))), atol=1e-5)
    one.square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_order_of_theta_does_not_depend_on_registration():
    class Net(nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                self.add_module(name, nn.Linear(2, 2))

    names = ["layer2", "layer10", "layer1"]
    wanted = ["layer1.bias", "layer1.weight", "layer2.bias", "layer2.weight", "layer10.bias", "layer10.weight"]
    assert list(TargetSpec.from_module(Net(names)).names) == wanted
    assert list(TargetSpec.from_module(Net(reversed(names))).names) == wanted


@pytest.mark.parametrize("generation", ["chunk", "component", "component_chunk"])
def test_a_target_never_seen_is_generated(generation):
    net = made(generation, static_output=False, **({} if generation == "component" else {"chunk_size": 6}))
    for hidden in (2, 5, 11):
        other = target(hidden)
        spec = TargetSpec.from_module(other)
        assert {name: value.shape for name, value in net(0, spec).items()} == {
            name: value.shape for name, value in other.named_parameters()
        }
        assert net.call(torch.randn(6, 4), 0, target=other).shape == (6, 3)
    # Descriptors, not the target's identity, name a piece.
    assert torch.equal(net.flat(1, TargetSpec.from_module(target(5))), net.flat(1))


def test_slicing_takes_the_leading_units():
    net = made(static_input=False, num_conditions=None)
    whole = net(torch.randn(4))
    sliced = slice_parameters(whole, TargetSpec.from_module(target(2)))
    assert torch.equal(sliced["0.weight"], whole["0.weight"][:2])
    assert torch.equal(sliced["2.weight"], whole["2.weight"][:, :2])
    assert torch.equal(sliced["2.bias"], whole["2.bias"])
    with pytest.raises(ValueError, match=r"0.bias of shape \(9,\) does not fit into the generated \(5,\)"):
        slice_parameters(whole, TargetSpec.from_module(target(9)))


def test_only_named_parameters_are_generated():
    net = made(generate=["2.*"])
    assert net.spec.names == ("2.bias", "2.weight")
    net.call(torch.randn(3, 4), 0).sum().backward()
    assert net.target[0].weight.grad is not None
    assert net.target[2].weight.grad is None
    assert any(parameter is net.target[0].weight for parameter in net.shared_parameters())


def test_the_graph_of_a_residual_target_is_traced():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.a(x)
            return self.c(x + self.b(x).relu())

    assert set(TargetSpec.from_module(Residual()).edges) == {("a", "b"), ("a", "c"), ("b", "c")}


def test_pieces_may_have_embeddings_of_their_own_for_each_condition():
    net = made("chunk", chunk_size=9, component_embedding="per_condition")
    assert len(net.places.tables) == 3
    before = net.flat(torch.arange(3))
    with torch.no_grad():
        net.places.tables[1].add_(1.0)
    changed = (net.flat(torch.arange(3)) != before).any(dim=1)
    assert changed.tolist() == [False, True, False]
    assert net.condition_parameters(1)[1] is net.places.tables[1]
