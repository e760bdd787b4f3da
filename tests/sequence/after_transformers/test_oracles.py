"""The recurrences against loops, convolutions and limits in which they become something known."""

import math

import pytest
import torch
import torch.nn.functional as F

from etude.nn.scan import scan
from etude.sequence.after_transformers.linear_attention import LinearAttention
from etude.sequence.after_transformers.mamba import Mamba, Mamba2, selective_scan
from etude.sequence.after_transformers.matrix_state import matrix_scan
from etude.sequence.after_transformers.rwkv import RWKV, RWKVChannelMix, wkv
from etude.sequence.after_transformers.s4d import S4D
from etude.sequence.after_transformers.xlstm import MLSTM, SLSTM


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(one, other, tolerance=1e-9):
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_matrix_scan_is_the_recurrence(gated, chunk):
    q, k, v = draw(2, 3, 11, 4), draw(2, 3, 11, 4, seed=1), draw(2, 3, 11, 5, seed=2)
    f, i = -draw(2, 3, 11, seed=3).abs(), 3 * draw(2, 3, 11, seed=4) if gated else None
    state, expected = torch.zeros(2, 3, 4, 5, dtype=torch.float64), []
    for t in range(11):
        weight = 1.0 if i is None else i[..., t].exp()[..., None, None]
        state = f[..., t].exp()[..., None, None] * state + weight * k[:, :, t, :, None] * v[:, :, t, None]
        expected.append(torch.einsum("bhd,bhde->bhe", q[:, :, t], state))
    y, m, (last, m_last) = matrix_scan(q, k, v, f, i, chunk=chunk)
    close(y * m.exp()[..., None], torch.stack(expected, 2))
    close(last * m_last.exp()[..., None, None], state)


def test_matrix_scan_has_the_right_gradients():
    q, k, v = draw(1, 2, 5, 2), draw(1, 2, 5, 2, seed=1), draw(1, 2, 5, 2, seed=2)
    f, i = -draw(1, 2, 5, seed=3).abs(), draw(1, 2, 5, seed=4)
    inputs = [part.requires_grad_() for part in (q, k, v, f, i)]

    def ratio(*parts):  # what is invariant to m
        y, m, _ = matrix_scan(*parts, chunk=2)
        return y * m.exp()[..., None]

    assert torch.autograd.gradcheck(ratio, inputs)


def test_matrix_scan_bounds_its_exponents():
    q, k, v = (draw(1, 1, 6, 2).float() for _ in range(3))
    i = torch.tensor([[[500.0, -500.0, 900.0, 0.0, 100.0, -900.0]]])
    y, m, (state, last) = matrix_scan(q, k, v, torch.zeros(1, 1, 6), i, chunk=4)
    assert y.isfinite().all()
    assert state.isfinite().all()
    close(m, torch.tensor([[[500.0, 500.0, 900.0, 900.0, 900.0, 900.0]]]))
    close(last, torch.tensor([[900.0]]))


def test_scan_against_a_loop_and_its_gradients():
    a, b, first = draw(2, 7, 3), draw(2, 7, 3, seed=1), draw(2, 3, seed=2)
    h, expected = first, []
    for t in range(7):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    close(scan(a, b, first), torch.stack(expected, 1))
    assert torch.autograd.gradcheck(scan, [part.requires_grad_() for part in (a, b, first)])


def test_linear_attention_is_attention_with_another_kernel():
    torch.manual_seed(0)
    layer, x = LinearAttention(6, 2, inner_chunk=3).double(), draw(2, 8, 6)
    q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-2, -1)).tril()
    y = weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v
    close(layer(x), layer.out(y.transpose(1, 2).flatten(2)))


def test_wkv_is_its_definition():
    k, v, u = draw(2, 9, 3), draw(2, 9, 3, seed=1), draw(3, seed=2)
    w = draw(3, seed=3).abs()
    y, _ = wkv(k, v, w, u)
    for t in range(9):
        weights = [torch.exp(-(t - 1 - s) * w + k[:, s]) for s in range(t)] + [torch.exp(u + k[:, t])]
        expected = sum(weight * v[:, s] for s, weight in enumerate(weights)) / sum(weights)
        close(y[:, t], expected)


def test_wkv_of_endless_decay_sees_two_tokens():
    k, v, u = draw(1, 6, 2), draw(1, 6, 2, seed=1), draw(2, seed=2)
    y, _ = wkv(k, v, torch.full((2,), 1e6, dtype=torch.float64), u)
    other, _ = wkv(k, torch.cat([draw(1, 3, 2, seed=3), v[:, 3:]], 1), torch.full((2,), 1e6, dtype=torch.float64), u)
    assert torch.equal(y[:, 4:], other[:, 4:])
    assert not torch.equal(y[:, 3], other[:, 3])
    old, new = k[:, 2].exp(), (u + k[:, 3]).exp()
    close(y[:, 3], (old * v[:, 2] + new * v[:, 3]) / (old + new))


def test_wkv_survives_keys_whose_exponential_overflows():
    k, v = 300 * draw(1, 64, 2).float(), draw(1, 64, 2, seed=1).float()
    y, _ = wkv(k, v, torch.ones(2), torch.zeros(2))
    exact, _ = wkv(k.double(), v.double(), torch.ones(2).double(), torch.zeros(2).double())
    close(y.double(), exact, 1e-4)


def test_rwkv_with_the_published_start_and_its_channel_mix():
    layer = RWKV(4, layer=0, depth=2)
    close(layer.log_decay.detach(), -5 + 8 * (torch.arange(4) / 3) ** 0.7, 1e-6)
    close(layer.mu_k.detach(), torch.arange(4) / 4, 1e-6)
    torch.manual_seed(0)
    mix, x = RWKVChannelMix(4, 6, layer=1, depth=2).double(), draw(2, 5, 4)
    state, outputs = mix.init_state(2), []
    for token in x.unbind(1):
        y, state = mix.step(token, state)
        outputs.append(y)
    close(torch.stack(outputs, 1), mix(x))


def test_s4d_kernel_is_the_discretised_recurrence():
    torch.manual_seed(0)
    layer = S4D(3, 8).double()
    a = torch.complex(-layer.log_decay.exp(), layer.frequency)
    dt = layer.log_dt.exp()[:, None]
    # Zero-order hold: the matrix exponential of [[A, 1], [0, 0]] dt holds e^{dt A} and B.
    both = torch.zeros(3, 4, 2, 2, dtype=torch.complex128)
    both[..., 0, 0], both[..., 0, 1] = a * dt, dt
    held = torch.linalg.matrix_exp(both)
    h, kernel = held[..., 0, 1], []
    for _ in range(12):
        kernel.append(2 * (torch.view_as_complex(layer.c) * h).sum(-1).real)
        h = held[..., 0, 0] * h
    close(layer.kernel(12), torch.stack(kernel, 1))
    close(layer.log_decay.exp().detach(), torch.full((3, 4), 0.5, dtype=torch.float64))
    close(layer.frequency.detach(), math.pi * torch.arange(4).double().expand(3, 4), 1e-6)
    assert ((dt >= 1e-3) & (dt <= 1e-1)).all()
    assert len(set(dt.flatten().tolist())) == 3


def test_selective_scan_is_the_recurrence():
    u, dt, a = draw(2, 7, 3), draw(2, 7, 3, seed=1).abs(), -draw(3, 4, seed=2).abs()
    b, c, h = draw(2, 7, 4, seed=3), draw(2, 7, 4, seed=4), draw(2, 3, 4, seed=5)
    y, last = selective_scan(u, dt, a, b, c, h)
    for t in range(7):
        h = torch.exp(dt[:, t, :, None] * a) * h + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        close(y[:, t], (h * c[:, t, None]).sum(-1))
    close(last, h)


def test_selective_scan_that_does_not_select_is_a_convolution():
    u, dt, a, b, c = draw(1, 9, 2), 0.3, -draw(2, 3, seed=1).abs(), draw(3, seed=2), draw(3, seed=3)
    same = [part.expand(1, 9, 3) for part in (b, c)]
    y, _ = selective_scan(u, torch.full_like(u, dt), a, *same)
    kernel = torch.stack([(c * dt * b * torch.exp(t * dt * a)).sum(-1) for t in range(9)])
    expected = [sum(kernel[s] * u[:, t - s] for s in range(t + 1)) for t in range(9)]
    close(y, torch.stack(expected, 1))


def test_mamba_starts_as_published():
    torch.manual_seed(0)
    layer = Mamba(32, 4)
    dt = F.softplus(layer.dt.bias)
    assert ((dt >= 0.999e-3) & (dt <= 1.001e-1)).all()
    close(layer.a_log.exp().detach(), torch.arange(1.0, 5).expand(64, 4), 1e-5)
    assert layer.select.out_features == 2 + 2 * 4  # B and C are shared by all channels
    dt = F.softplus(Mamba2(32).dt_bias)
    assert ((dt >= 0.999e-3) & (dt <= 1.001e-1)).all()


def test_mamba2_is_the_selective_scan_with_one_rate_a_head():
    torch.manual_seed(0)
    layer, x = Mamba2(4, 3, head_dim=4, inner_chunk=2).double(), draw(2, 7, 4)
    z, mixed, dt = layer._parts(x)
    u, b, c = F.silu(layer.conv(mixed)).split([8, 3, 3], -1)
    rates = -layer.a_log.exp().repeat_interleave(4)[:, None].expand(8, 3)
    y, _ = selective_scan(u, dt.repeat_interleave(4, -1), rates, b, c)
    y = y + layer.skip.repeat_interleave(4) * u
    close(layer(x), layer.out(layer.norm(y * F.silu(z))))


def test_mlstm_with_open_gates_is_linear_attention_with_its_normaliser():
    torch.manual_seed(0)
    layer, x = MLSTM(6, 2, normalize=False, inner_chunk=3).double(), draw(2, 8, 6)
    with torch.no_grad():
        layer.gates.bias.copy_(torch.tensor([0.0, 0, 80, 80]))  # i = 1, f = 1
    q, k, v = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in layer.qkv(x).chunk(3, -1))
    weights = (q @ k.transpose(-2, -1) * 3**-0.5).tril()
    y = weights / weights.sum(-1, keepdim=True).abs().clamp(min=1) @ v
    expected = layer.out(torch.sigmoid(layer.gate_out(x)) * y.transpose(1, 2).flatten(2))
    close(layer(x), expected)


def test_mlstm_and_slstm_without_stabilisers():
    torch.manual_seed(0)
    layer, x = MLSTM(4, 1, normalize=False).double(), draw(1, 6, 4)
    torch.nn.init.normal_(layer.gates.weight)
    c, n = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for t, token in enumerate(x[0]):
        q, k, v = layer.qkv(token).chunk(3)
        i, f = layer.gates(token)
        c = torch.sigmoid(f) * c + i.exp() * torch.outer(v, k / 2)
        n = torch.sigmoid(f) * n + i.exp() * k / 2
        y = c @ q / (n @ q).abs().clamp(min=1)
        close(layer(x)[0, t], layer.out(torch.sigmoid(layer.gate_out(token)) * y))
    small, h = SLSTM(4, 2).double(), torch.zeros(2, 2, dtype=torch.float64)
    c = n = torch.zeros(2, 2, dtype=torch.float64)
    for t, token in enumerate(x[0]):
        gates = small.inputs(token).view(2, 8) + torch.stack([h[a] @ small.recurrent_weight[a] for a in range(2)])
        z, i, f, o = gates.chunk(4, -1)
        c = torch.sigmoid(f) * c + i.exp() * z.tanh()
        n = torch.sigmoid(f) * n + i.exp()
        h = torch.sigmoid(o) * c / n
        close(small(x)[0, t], small.out(h.flatten()))
