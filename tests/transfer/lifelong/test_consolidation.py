"""What b does to weights: nothing at 0, everything at inf, and the known fixed points between."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.transfer.lifelong import Consolidation, Owners, layer_owners

INF = math.inf
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


def two_owner_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    first, second, out = (torch.tensor(o) for o in ([1, 1, 1, 2, 2, 2], [1, 1, 2, 2], [1, 1, 2]))
    owners = {}
    for name, layer, dst, src, kind in (
        ("0", net[0], first, None, "G"), ("2", net[2], second, first, "G"), ("4", net[4], out, second, "H")
    ):  # fmt: skip
        owners |= {f"{name}.{key}": value for key, value in layer_owners(layer, dst, src, kind=kind).items()}
    return net, owners


def train(net, optimizer, steps=8, clip=None, consolidation=None):
    torch.manual_seed(1)
    detach = consolidation.attach(optimizer) if consolidation else lambda: None
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(7, 5)), torch.randint(3, (7,))).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
    detach()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["proximal", "penalty"])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_frozen_entries_stay_bit_by_bit_and_the_others_move(optimizer, mode, clip):
    net, owners = two_owner_net()
    consolidation = Consolidation(net, owners=owners, mode=mode)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    consolidation.apply({"*[1->1]": INF, "*[2->1]": INF, "*[1->2]": 0.3})
    optimizer = OPTIMIZERS[optimizer](consolidation.trainable())
    train(net, optimizer, clip=clip, consolidation=consolidation)
    for name, p in net.named_parameters():
        frozen = consolidation.freeze_mask(name)
        assert bool(frozen.any())
        assert torch.equal(p[frozen], before[name][frozen])
        assert bool((p != before[name])[~frozen].all())


def test_momentum_gathered_before_does_not_move_what_is_frozen_later():
    net, owners = two_owner_net()
    consolidation = Consolidation(net, owners=owners)
    optimizer = OPTIMIZERS["momentum"](net.parameters())
    train(net, optimizer, consolidation=consolidation)
    consolidation.set("*[1->1]", INF)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    train(net, optimizer, consolidation=consolidation)
    for name, p in net.named_parameters():
        frozen = consolidation.freeze_mask(name)
        assert torch.equal(p[frozen], before[name][frozen])


def test_frozen_gradients_do_not_count_in_the_norm_that_is_clipped():
    net, owners = two_owner_net()
    consolidation = Consolidation(net, owners=owners)
    consolidation.set("*[1->1]", INF)
    detach = consolidation.attach(torch.optim.SGD(net.parameters(), lr=0.1))
    F.cross_entropy(net(torch.randn(7, 5)), torch.randint(3, (7,))).backward()
    for name, p in net.named_parameters():
        assert not bool(p.grad[consolidation.freeze_mask(name)].any())
    detach()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["proximal", "penalty"])
def test_b_zero_everywhere_is_plain_training(optimizer, mode):
    plain, _ = two_owner_net()
    held, owners = two_owner_net()
    train(plain, OPTIMIZERS[optimizer](plain.parameters()))
    consolidation = Consolidation(held, owners=owners, mode=mode)
    train(held, OPTIMIZERS[optimizer](consolidation.trainable()), consolidation=consolidation)
    for a, b in zip(plain.parameters(), held.parameters()):
        assert torch.equal(a, b)


class Quadratic(nn.Module):
    """L = 1/2 (theta - star)' A (theta - star), from theta = target."""

    def __init__(self, a, star, target):
        super().__init__()
        self.a, self.star, self.theta = a, star, nn.Parameter(target.clone())

    def forward(self):
        return 0.5 * (self.theta - self.star) @ self.a @ (self.theta - self.star)


def minimised(a, star, target, b, mode, steps=1300, lr=0.02):
    model = Quadratic(a, star, target)
    owners = {"theta": Owners("G", torch.arange(1, len(b) + 1))}
    consolidation = Consolidation(model, owners=owners, mode=mode)
    for number, value in enumerate(b.tolist(), start=1):
        consolidation.set(f"G[{number}->{number}]", value)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    consolidation.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()
    return model.theta.detach()


@pytest.mark.parametrize("mode", ["proximal", "penalty"])
def test_a_quadratic_ends_at_its_stationary_point(mode):
    torch.manual_seed(0)
    root = torch.randn(4, 4, dtype=torch.float64)
    a = root @ root.T + torch.eye(4)
    star, target = torch.randn(2, 4, dtype=torch.float64)
    b = torch.tensor([0.0, 0.1, 1.0, 3.0], dtype=torch.float64)
    wanted = torch.linalg.solve(a + 2 * torch.diag(b), a @ star + 2 * b * target)
    torch.testing.assert_close(minimised(a, star, target, b, mode), wanted, rtol=0, atol=1e-10)


def test_distance_to_the_target_falls_with_b_to_zero_at_inf():
    a = torch.diag(torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    star, target = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.5, -1.0]], dtype=torch.float64)
    stiffness = (0.0, 0.01, 0.1, 1.0, 10.0, 1e4, INF)
    gaps = torch.stack(
        [
            (minimised(a, star, target, torch.full((3,), b, dtype=torch.float64), "proximal", 150) - target).abs()
            for b in stiffness
        ]
    )
    assert bool((gaps.diff(dim=0) < 0).all())
    assert bool((gaps[-2] < 1e-3).all())
    assert torch.equal(gaps[-1], torch.zeros(3, dtype=torch.float64))


def test_one_proximal_and_one_penalty_step_differ_by_the_square_of_lr():
    a = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    star, target = torch.tensor([[1.0, -2.0], [0.3, 0.5]], dtype=torch.float64)

    def difference(lr):
        results = []
        for mode in ("proximal", "penalty"):
            model = Quadratic(a, star, target)
            consolidation = Consolidation(model, mode=mode)
            consolidation.set("G[1->1]", 0.7)
            with torch.no_grad():
                model.theta.add_(0.2)
            optimizer = torch.optim.SGD(model.parameters(), lr=lr)
            consolidation.attach(optimizer)
            model().backward()
            optimizer.step()
            results.append(model.theta.detach())
        return (results[0] - results[1]).norm()

    assert difference(1e-3) / difference(5e-4) == pytest.approx(4.0, rel=0.01)


def test_the_proximal_step_is_equation_2():
    model = Quadratic(torch.eye(2).double(), torch.ones(2).double(), torch.zeros(2).double())
    consolidation = Consolidation(model)
    consolidation.set("G[1->1]", 2.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    consolidation.attach(optimizer)
    model().backward()
    optimizer.step()
    stepped = torch.full((2,), 0.2, dtype=torch.float64)
    torch.testing.assert_close(model.theta.detach(), (stepped + 0.0) / (1 + 2 * 0.2 * 2.5), rtol=0, atol=1e-15)


def test_a_frozen_group_with_importance_zero_has_no_nan():
    net, owners = two_owner_net()
    for mode in ("proximal", "penalty"):
        consolidation = Consolidation(net, owners=owners, mode=mode)
        consolidation.consolidate({name: torch.zeros_like(p) for name, p in net.named_parameters()})
        consolidation.apply({"*[1->1]": INF, "*[1->2]": 3.0})
        assert math.isnan(INF * 0.0)
        assert float(consolidation.penalty().detach()) == 0.0
        train(net, torch.optim.SGD(net.parameters(), lr=0.1), consolidation=consolidation)
        assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_the_penalty_is_ewcs_and_that_of_avalanche_with_half_the_lambda():
    """avalanche's EWCPlugin: ewc_lambda * sum F (theta - saved)^2, one term per past task in the mode "separate"."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    lam, fishers, saved = 7.0, [], []
    consolidation = Consolidation(model, mode="penalty")
    consolidation.set("*[*->*]", lam / 2)
    for _ in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
        fishers.append({name: torch.rand_like(p) for name, p in model.named_parameters()})
        saved.append({name: p.detach().clone() for name, p in model.named_parameters()})
        consolidation.consolidate(fishers[-1])

        def reference(ewc_lambda):
            terms = [
                (fisher[name] * (p - rest[name]).square()).sum()
                for fisher, rest in zip(fishers, saved)
                for name, p in model.named_parameters()
            ]
            return ewc_lambda * torch.stack(terms).sum()

        constants = []
        for _ in range(2):
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p))
            ours, theirs = consolidation.penalty(), reference(ewc_lambda=lam / 2)
            mine, their = (torch.autograd.grad(value, list(model.parameters())) for value in (ours, theirs))
            for a, b in zip(mine, their):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
            constants.append(float((theirs - ours).detach()))
        assert constants[0] == pytest.approx(constants[1], abs=1e-10)
        if len(saved) == 1:
            assert constants[0] == pytest.approx(0.0, abs=1e-12)
            assert consolidation.strength("weight").allclose(lam / 2 * fishers[0]["weight"], rtol=1e-12)


def test_online_importances_fade():
    model = nn.Linear(2, 2)
    consolidation = Consolidation(model)
    consolidation.set("*[*->*]", 1.0)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    consolidation.consolidate(ones)
    consolidation.consolidate(ones, decay=0.5)
    assert torch.equal(consolidation.strength("weight"), torch.full((2, 2), 1.5))


def test_frozen_weights_beside_a_training_batch_norm_are_refused():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    consolidation = Consolidation(net)
    consolidation.set("0.*:G[1->1]", INF)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    consolidation.attach(optimizer)
    net(torch.randn(5, 3)).sum().backward()
    with pytest.raises(ValueError, match=r"batch normalisation '1' still updates.*eval.*GroupNorm"):
        optimizer.step()
    net[1].eval()
    optimizer.step()


@pytest.mark.parametrize("b", [-1.0, float("nan"), "stiff"])
def test_a_senseless_b_is_refused(b):
    with pytest.raises(ValueError, match="b must"):
        Consolidation(nn.Linear(2, 2)).set("*[*->*]", b)


def test_senseless_arguments_are_refused():
    net = nn.Linear(2, 3)
    consolidation = Consolidation(net)
    with pytest.raises(ValueError, match="mode must be one of proximal, penalty, got 'hard'"):
        Consolidation(net, mode="hard")
    with pytest.raises(ValueError, match="no parameters missing"):
        Consolidation(net, owners={"missing": Owners("G", torch.ones(3, dtype=torch.int64))})
    with pytest.raises(ValueError, match="do not fit its shape"):
        Consolidation(net, owners={"weight": Owners("G", torch.ones(4, dtype=torch.int64))})
    with pytest.raises(ValueError, match="matches no parameter"):
        consolidation.set("tail.*:G[1->1]", 1.0)
    with pytest.raises(ValueError, match="no task is at hand"):
        consolidation.set("G[old->new]", 1.0)
    with pytest.raises(ValueError, match=r"there are tasks 1\.\.1"):
        consolidation.set("G[1->2]", 1.0)
    with pytest.raises(ValueError, match="a selector reads"):
        consolidation.set("weights", 1.0)
    with pytest.raises(ValueError, match="negative, infinite or NaN"):
        consolidation.consolidate({"weight": torch.full((3, 2), -1.0)})
    with pytest.raises(ValueError, match=r"must have shape \(3, 2\), got \(2, 3\)"):
        consolidation.consolidate({"weight": torch.ones(2, 3)})


def test_scalars_and_parameters_by_name_can_be_held():
    module = nn.Module()
    module.scale, module.free = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
    consolidation = Consolidation(module)
    consolidation.set("scale:*[*->*]", INF)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    consolidation.attach(optimizer)
    (module.scale * module.free).backward()
    optimizer.step()
    assert module.scale.item() == 2.0
    assert module.free.item() != 3.0
