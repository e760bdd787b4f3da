import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline

from etude.nn.transformer import SwiGLU
from etude.sequence.after_transformers.channels import KANLinear, MoE, auxiliary_loss, build_channel


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moe(**options):
    torch.manual_seed(0)
    return MoE(4, 6, **options).double()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_moe_is_the_gated_sum_of_the_chosen(top_k):
    layer, x = moe(num_experts=3, top_k=top_k), draw(2, 5, 4)
    y = layer(x)
    for b in range(2):
        for t in range(5):
            p = layer.router(x[b, t]).softmax(-1)
            chosen = p.argsort(descending=True)[:top_k]
            gates = p[chosen] if top_k == 1 else p[chosen] / p[chosen].sum()
            expected = sum(gate * layer.experts[int(e)](x[b, t]) for gate, e in zip(gates, chosen))
            torch.testing.assert_close(y[b, t], expected)
    assert layer.dropped == 0


def test_one_expert_is_the_dense_network():
    layer, dense, x = moe(num_experts=1, top_k=1), SwiGLU(4, 6).double(), draw(2, 5, 4)
    dense.load_state_dict(layer.experts[0].state_dict())
    torch.testing.assert_close(layer(x), dense(x))


def test_all_experts_at_equal_logits_are_their_mean():
    layer, x = moe(num_experts=3, top_k=3), draw(2, 5, 4)
    torch.nn.init.zeros_(layer.router.weight)
    torch.testing.assert_close(layer(x), torch.stack([expert(x) for expert in layer.experts]).mean(0))


def test_gates_of_one_choice_are_probabilities_and_of_more_sum_to_one():
    x = draw(7, 4)
    _, gates, _ = moe(num_experts=3, top_k=2).route(x)
    torch.testing.assert_close(gates.sum(1), torch.ones(7, dtype=torch.float64))
    layer = moe(num_experts=3, top_k=1)
    _, gates, _ = layer.route(x)
    assert (gates < 1).all()
    layer(x).square().sum().backward()
    assert layer.router.weight.grad.abs().max() > 0


def test_balance_is_one_at_uniform_routing_and_the_loss_adds_up():
    layer, x = moe(num_experts=4, top_k=1), draw(8, 4)
    logits = 1e-6 * torch.eye(4, dtype=torch.float64).repeat(2, 1)  # each expert is the best of two tokens
    layer._note(logits, logits.topk(1).indices.flatten().bincount(minlength=4))
    torch.testing.assert_close(layer.balance, torch.tensor(1.0, dtype=torch.float64))
    layer(x)
    logits, _, chosen = layer.route(x)
    share = torch.stack([(chosen == e).double().mean() for e in range(4)])
    balance = 4 * (share * logits.softmax(-1).mean(0)).sum()
    expected = 0.01 * balance + 1e-3 * logits.logsumexp(-1).square().mean()
    torch.testing.assert_close(layer.aux_loss, expected)
    torch.testing.assert_close(auxiliary_loss(torch.nn.Sequential(layer)), expected)
    assert float(auxiliary_loss(torch.nn.Linear(1, 1))) == 0


def test_capacity_drops_the_later_tokens_and_counts_them():
    layer, x = moe(num_experts=2, top_k=1, capacity_factor=1.0), draw(6, 4)
    with torch.no_grad():
        layer.router.weight.copy_(torch.stack([torch.ones(4), -torch.ones(4)]))
    x = x.abs()  # all go to the first expert, which has room for three
    y = layer(x)
    assert layer.dropped == 3
    assert (y[3:] == 0).all()
    assert (y[:3] != 0).all()
    layer.capacity_factor = None
    torch.testing.assert_close(layer(x)[:3], y[:3])
    assert layer.dropped == 0


def test_jitter_moves_the_routing_in_training_alone():
    layer, x = moe(num_experts=3, jitter=0.5), draw(5, 4)
    torch.manual_seed(1)
    noisy = layer(x)
    layer.eval()
    assert not torch.equal(noisy, layer(x))
    assert torch.equal(layer(x), layer(x))


def test_bad_mixtures_are_refused():
    for options, message in (
        ({"num_experts": 2, "top_k": 3}, "top_k must lie in 1..2"),
        ({"top_k": 0}, "top_k"),
        ({"capacity_factor": 0}, "capacity_factor must be positive"),
        ({"jitter": 1.0}, "jitter"),
        ({"balance_weight": -1}, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            moe(**options)
    with pytest.raises(ValueError, match="each expert would take"):
        moe(num_experts=8, top_k=1, capacity_factor=1.0)(draw(4, 4))


def test_kan_splines_are_scipys():
    layer = KANLinear(2, 3).double()
    x = torch.linspace(-0.99, 0.99, 40, dtype=torch.float64)
    found = layer.splines(x[:, None].expand(-1, 2))
    assert found.shape == (40, 2, 8)
    for g in range(8):
        expected = BSpline(layer.knots.numpy(), torch.eye(8)[g].numpy(), 3)(x.numpy())
        torch.testing.assert_close(found[:, 1, g], torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(40, 2, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_kan_outside_its_grid_is_its_base():
    layer, x = KANLinear(2, 3).double(), torch.full((1, 2), 9.0, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer.base(F.silu(x)))
    for options in ({"grid": 0}, {"order": -1}, {"low": 1.0}):
        with pytest.raises(ValueError, match="need grid"):
            KANLinear(2, 3, **options)


@pytest.mark.parametrize("name", ["swiglu", "mlp", "moe", "kan", "rwkv"])
def test_channels_by_name_keep_the_shape(name):
    torch.manual_seed(0)
    layer, x = build_channel(name, 4, 6), torch.randn(2, 5, 4)
    assert layer(x).shape == x.shape


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="channel must be one of swiglu, mlp, moe, kan, rwkv, got 'glu'"):
        build_channel("glu", 4, 6)
    with pytest.raises(ValueError, match="must be positive"):
        build_channel("mlp", 4, 0)
