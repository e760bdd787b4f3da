"""Targets with buffers, norms and tied weights, and what is refused at the door."""

import pytest
import torch
from torch import nn

from etude.transfer.hypernetworks import HypernetDesign, Hypernetwork, TargetSpec

TASK = HypernetDesign("task", "once")


def made(net=None, design=TASK, **options):
    net = nn.Linear(3, 2) if net is None else net
    return Hypernetwork(net, design, **({"num_conditions": 2, "hidden": (4,)} | options))


def normed():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def test_running_statistics_are_refused_unless_something_is_said_about_them():
    with pytest.raises(ValueError, match=r"running statistics in buffers \(1\).*statistics='batch'.*'condition'"):
        made(normed())


def test_batch_statistics_are_used_at_test_too():
    net, x = made(normed(), statistics="batch"), 5 + torch.randn(20, 3)
    assert torch.allclose(net.train().call(x, 0), net.eval().call(x, 0))
    assert torch.allclose(net.call(x, 0), net.materialize(0)(x), atol=1e-6)


def test_statistics_are_kept_for_each_condition():
    net = made(normed(), statistics="condition").train()
    before = net.target[1].running_mean.clone()
    for _ in range(3):
        net.call(5 + torch.randn(20, 3), 0)
    net.call(torch.randn(20, 3), 1)
    assert torch.equal(net.target[1].running_mean, before)
    first, second = (net.materialize(number)[1] for number in range(2))
    assert (int(first.num_batches_tracked), int(second.num_batches_tracked)) == (3, 1)
    x = torch.randn(5, 3)
    net.eval()
    assert torch.allclose(net.call(x, 0), net.materialize(0)(x), atol=1e-6)
    again = made(normed(), statistics="condition").eval()
    again.load_state_dict(net.state_dict())
    wanted = net.call(x, 0)
    assert torch.equal(again.call(x, 0), wanted)
    net.train().call(5 + torch.randn(20, 3), 0)
    assert torch.equal(again.call(x, 0), wanted)
    assert again.double().call(x.double(), 0).dtype == torch.float64
    with pytest.raises(ValueError, match="needs the number of one condition"):
        net.call(x, torch.zeros(5, dtype=torch.int64))


def test_statistics_for_each_condition_need_stored_conditions():
    with pytest.raises(ValueError, match="statistics='condition' needs stored conditions"):
        made(normed(), HypernetDesign("task+noise", "once", static_input=False), statistics="condition")
    dynamic = made(design=HypernetDesign("task", "component", static_output=False))
    with pytest.raises(ValueError, match=r"must keep no running statistics, got those of \['1'\]"):
        dynamic.call(torch.randn(4, 3), 0, target=normed())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


def test_tied_weights_are_refused_or_generated_once():
    with pytest.raises(ValueError, match=r"a.weight and b.weight are one tensor; tied='share'"):
        made(Tied())
    net = made(Tied(), tied="share")
    assert net.spec.names == ("a.bias", "a.weight", "b.bias")
    x, generated = torch.randn(4, 3), net(0)
    wanted = (x @ generated["a.weight"].T + generated["a.bias"]) @ generated["a.weight"].T + generated["b.bias"]
    assert torch.allclose(net.call(x, 0), wanted, atol=1e-6)


def test_other_buffers_are_warned_about():
    net = nn.Linear(3, 2)
    net.register_buffer("seen", torch.zeros(3))
    with pytest.warns(UserWarning, match=r"buffers of the target \(seen\) are shared by all conditions"):
        made(net)


def test_complex_parameters_are_not_generated():
    net = nn.Linear(3, 2)
    net.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"phase is torch.complex64: only real numbers"):
        made(net)
    assert made(net, generate=["weight", "bias"]).spec.names == ("bias", "weight")


@pytest.mark.parametrize(
    ("cond", "error", "message"),
    [
        (2, ValueError, r"numbered 0\.\.1, got 2"),
        (torch.tensor([0, -1]), ValueError, r"numbered 0\.\.1, got -1"),
        (torch.zeros(3, 5), ValueError, r"\(batch, 8\) or \(8,\), got \(3, 5\)"),
        ("first", TypeError, "got str"),
        (True, TypeError, "got bool"),
        (torch.tensor([True]), TypeError, "got torch.bool of shape"),
    ],
)
def test_conditions_that_do_not_exist_are_refused(cond, error, message):
    with pytest.raises(error, match=message):
        made().flat(cond)


def test_a_number_is_refused_where_conditions_come_with_each_call():
    net = made(design=HypernetDesign("noise", "once", static_input=False), num_conditions=None)
    with pytest.raises(ValueError, match=r"no conditions of noise are stored: pass vectors \(batch, 8\), got 1"):
        net.flat(1)
    with pytest.raises(ValueError, match="num_conditions must be None, got 2"):
        made(design=HypernetDesign("noise", "once", static_input=False))
    with pytest.raises(ValueError, match="say how many with num_conditions"):
        made(num_conditions=None)


def test_a_budget_of_no_draws_is_refused():
    net = made(design=HypernetDesign("noise", "once", static_input=False), num_conditions=None)
    with pytest.raises(ValueError, match="number of draws must be positive, got 0"):
        net.draw(0)


def test_a_fixed_set_of_draws_is_an_ensemble_that_does_not_learn():
    net = made(design=HypernetDesign("noise", "once"), num_conditions=5)
    assert net.num_conditions == 5
    assert not len(net.conditions.learned)
    assert torch.equal(net.flat(3), net.flat(net.conditions.fixed[3]))


def test_a_pair_of_conditions_must_match():
    net = made(design=HypernetDesign("task+noise", "once", static_input=False))
    assert net.flat((1, torch.randn(6, 8))).shape == (6, 8)
    with pytest.raises(TypeError, match="a pair of both, got int"):
        net.flat(1)
    with pytest.raises(ValueError, match="task has 2 conditions, noise has 3"):
        net.flat((torch.tensor([0, 1]), torch.randn(3, 8)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest_head": 31}, r"a head of 4 x 8 weights exceeds largest_head=31; generation='chunk'"),
        ({"chunk_size": 3}, "chunk_size belongs to generation by chunks"),
        ({"design": HypernetDesign("task", "chunk")}, "needs chunk_size"),
        ({"design": HypernetDesign("task", "chunk"), "chunk_size": 0}, "chunk_size must be positive, got 0"),
        ({"init": "xavier"}, "init must be one of hyperfan, .*, got 'xavier'"),
        ({"hidden": (4, 0)}, r"hidden must be positive widths.*got \(4, 0\)"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"generate": ["w*", "head.*"]}, r"no parameter of the target fits 'head.\*'; there are weight, bias"),
        ({"design": HypernetDesign("task", "multiple"), "num_heads": 9}, "9 heads of 1 weights leave none of 8"),
        ({"component_embedding": "per_condition"}, "needs pieces that are looked up"),
        ({"encoder": nn.Identity()}, "an encoder belongs to conditioning by data"),
        ({"predefined": torch.zeros(2, 3)}, r"predefined must have shape \(2, 8\), got \(2, 3\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_fixed_target_takes_no_other():
    net = made()
    with pytest.raises(ValueError, match="static_output=True generates the target given at first"):
        net.flat(0, TargetSpec.from_module(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="takes no other"):
        net.call(torch.randn(1, 4), 0, target=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="one condition or one for each of 5 rows, got 2"):
        net.call(torch.randn(5, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="there is no module to call"):
        made(TargetSpec.from_module(nn.Linear(3, 2))).call(torch.randn(1, 3), 0)
    with pytest.raises(ValueError, match="one condition makes one module, got 2"):
        net.materialize(torch.tensor([0, 1]))
