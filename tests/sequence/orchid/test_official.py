import math

import pytest
import torch
import torch.nn.functional as F

from etude.sequence.orchid import Orchid, load_official

DIM, LONGEST, WIDTH, EMB, TAPS = 3, 12, 8, 5, 5


def released_state(kind, dct=False, seed=0):
    """Random weights under the released names."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return 0.5 * torch.randn(shape, dtype=torch.float64, generator=draw)

    state = {}
    for name, rows, columns in (("in_linear", 3 * DIM, DIM), ("out_linear", DIM, DIM)):
        state |= {f"{name}.weight": normal(rows, columns), f"{name}.bias": normal(rows)}
    state |= {"conv1d_short.weight": normal(3 * DIM, 1, TAPS), "conv1d_short.bias": normal(3 * DIM)}
    parts = 1 if dct else 2
    stacks = {"nn_model": (1, 1), "nn_model2": (1, parts)}
    if kind == "type2":
        stacks = {"nn_model_k": (1, 1), "nn_model_q": (1, 1), "nn_model_frq": (parts, parts)}
    for name, (inputs, outputs) in stacks.items():
        prefix, width = f"conv_kernel_nn.{name}", outputs * DIM
        state |= {f"{prefix}.conv1d_ls.0.weight": normal(width, inputs, 3), f"{prefix}.conv1d_ls.0.bias": normal(width)}
        norm = f"{prefix}.norm_ls.0.norm_conv_kernel"
        state |= {f"{norm}.weight": normal(width), f"{norm}.bias": normal(width)}
    for name in ("fixed_conv", "fixed_conv_res"):
        time = torch.linspace(0, 1, LONGEST, dtype=torch.float64)[:, None]
        turn = 2 * math.pi * torch.arange(LONGEST)[:, None] / LONGEST * torch.linspace(1e-4, 1, 2, dtype=torch.float64)
        state[f"{name}.pos_emb.z"] = torch.cat([time, turn.cos(), -turn.sin()], dim=1)[None]
        state[f"{name}.pos_emb.t"] = time[None]
        state[f"{name}.modulation.deltas"] = torch.linspace(
            math.log(0.01) / 1.5, math.log(0.01) / 0.3, DIM, dtype=torch.float64
        )[None, None]
        freq = normal(1, WIDTH)
        mlp = f"{name}.implicit_filter"
        for at, inputs in ((0, EMB), (2, WIDTH)):
            state |= {f"{mlp}.{at}.weight": normal(WIDTH, inputs), f"{mlp}.{at}.bias": normal(WIDTH)}
            state[f"{mlp}.{at + 1}.freq"] = freq
        state[f"{mlp}.4.weight"] = normal(DIM, WIDTH)
        state[f"{name}.bias"] = normal(DIM)
    return state


def released(state, u, kind):
    """The released block on Fourier's transform, from the sheet: forward / N, 2 L, zeros, causal short convolution."""
    length = u.shape[1]

    def stack(name, x, groups):
        prefix = f"conv_kernel_nn.{name}"
        x = F.conv1d(x, state[f"{prefix}.conv1d_ls.0.weight"], state[f"{prefix}.conv1d_ls.0.bias"], padding=1,
                     groups=groups)  # fmt: skip
        norm = f"{prefix}.norm_ls.0.norm_conv_kernel"
        return F.layer_norm(x.mT, x.shape[1:2], state[f"{norm}.weight"], state[f"{norm}.bias"]).mT

    def filtered(name):
        x = state[f"{name}.pos_emb.z"][0, :length]
        for at in (0, 2):
            linear = F.linear(
                x, state[f"{name}.implicit_filter.{at}.weight"], state[f"{name}.implicit_filter.{at}.bias"]
            )
            x = torch.sin(state[f"{name}.implicit_filter.{at + 1}.freq"] * linear)
        x = x @ state[f"{name}.implicit_filter.4.weight"].T
        time, rates = state[f"{name}.pos_emb.t"][0, :length], state[f"{name}.modulation.deltas"][0].abs()
        return (x * torch.exp(-time * rates)).T

    def forward(x, n):
        return torch.fft.rfft(x, n=n) / n

    def inverse(x, n):
        return torch.fft.irfft(x, n=n) * n

    p = F.linear(u, state["in_linear.weight"], state["in_linear.bias"]).mT
    v = p[:, -DIM:]
    kernel = forward(filtered("fixed_conv"), length)
    if kind == "type1":
        spectrum = forward(stack("nn_model", v, DIM), 2 * length)
        h = stack("nn_model2", spectrum.real**2 + spectrum.imag**2, DIM)
        time = inverse(torch.complex(h[:, 0::2], h[:, 1::2]), 2 * length)[..., :length]
        kernel = forward(filtered("fixed_conv") + time, length)
    else:
        k, q = (forward(stack(f"nn_model_{name}", v, DIM), length) for name in "kq")
        product = k.conj() * q
        h = stack("nn_model_frq", torch.cat([product.real, product.imag], dim=1), DIM)
        kernel = kernel + torch.complex(h[:, :DIM], h[:, DIM:])
    short = F.conv1d(p, state["conv1d_short.weight"], state["conv1d_short.bias"], padding=TAPS - 1, groups=3 * DIM)
    x0, x1, y = short[..., :length].split(DIM, dim=1)
    y = y * x1
    y = inverse(forward(y, length) * kernel, length) + y * state["fixed_conv.bias"][:, None]
    y = y * x0
    fixed = inverse(forward(u.mT, length) * forward(filtered("fixed_conv_res"), length), length)
    y = y + fixed + u.mT * state["fixed_conv_res.bias"][:, None]
    return F.linear(y.mT, state["out_linear.weight"], state["out_linear.bias"])


def official(kind, **options):
    return Orchid(
        DIM, LONGEST, kind=kind, short_kernel=TAPS, filter_dim=WIDTH, emb_dim=EMB, num_inner=1, official=True, **options
    ).double()  # fmt: skip


@pytest.mark.parametrize("kind", ["type1", "type2"])
@pytest.mark.parametrize("length", [12, 9])
def test_it_equals_the_released_block_with_its_weights(kind, length):
    state = released_state(kind)
    u = torch.randn(2, length, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ours = load_official(official(kind), state)(u)
    torch.testing.assert_close(ours, released(state, u, kind), atol=1e-10, rtol=0)


def test_the_conditioning_reaches_twice_the_length():
    m = load_official(official("type1"), released_state("type1"))
    u = torch.randn(1, 10, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    _, (spectrum,) = m.spectra(u)
    m.kernels[0].official = False
    assert float((m.spectra(u)[1][0] - spectrum).detach().abs().max()) > 1e-2


def test_weights_load_for_the_cosine_transform_too_and_its_matrices_are_left():
    state = released_state("type1", dct=True)
    state["conv_kernel_nn.dxt.dct.Pr"] = torch.eye(LONGEST)
    m = load_official(official("type1", transform="dct"), state)
    assert torch.equal(m.in_proj.weight, state["in_linear.weight"])
    assert torch.equal(m.kernels[0].freq.convs[0].bias, state["conv_kernel_nn.nn_model2.conv1d_ls.0.bias"])


def test_states_that_do_not_fit_are_refused():
    state = released_state("type1")
    with pytest.raises(ValueError, match="official=True"):
        load_official(Orchid(DIM, LONGEST), state)
    with pytest.raises(ValueError, match=r"has no conv_kernel_nn.nn_model_k"):
        load_official(official("type2"), state)
    with pytest.raises(ValueError, match=r"no place for fixed_conv.extra"):
        load_official(official("type1"), state | {"fixed_conv.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"in_linear.bias has shape \(1,\)"):
        load_official(official("type1"), state | {"in_linear.bias": torch.zeros(1)})
