import pytest
import torch

from etude.nn.convolution import ImplicitFilter
from etude.nn.mixers import build_mixer
from etude.sequence.orchid import Orchid, parameter_groups, shift_errors
from etude.testing import check_mixer

BOTH = pytest.mark.parametrize("kind", ["type1", "type2"])
LENGTHS = pytest.mark.parametrize("length", [12, 13])


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(dim=4, max_len=16, **options):
    torch.manual_seed(1)
    return Orchid(dim, max_len, **{"filter_dim": 8, **options}).double()


def circulant(y, kernel):
    """y[t] = sum_s kernel[t - s mod L] y[s] for each channel, one product at a time."""
    length = y.shape[-1]
    matrix = torch.stack([kernel[..., (t - torch.arange(length)) % length] for t in range(length)], dim=-2)
    return (matrix @ y[..., None])[..., 0]


def reference(m, u):
    """Gates, circulant products and the residual, from the layer's own parameters."""
    p = m.in_proj(u)
    *gates, v = m.short(p).mT.chunk(m.order + 1, dim=1)
    y = v
    for at in range(m.order - 1):
        y = y * gates[m.order - 1 - at]
        kernel = torch.zeros(())
        if m.filter is not None:
            kernel = kernel + m.filter(u.shape[1]).unflatten(0, (m.order - 1, m.dim))[at]
        if len(m.kernels):
            kernel = kernel + m.alpha * m.kernels[at].time_kernel(p[..., -m.dim :])
        y = circulant(y, kernel) + m.skip[at, :, None] * y
    y = y * gates[0]
    if m.residual_filter is not None:
        y = y + circulant(u.mT, m.residual_filter(u.shape[1])) + m.residual_skip[:, None] * u.mT
    return m.out_proj(y.mT)


@LENGTHS
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "type2"},
        {"adaptive": False},
        {"static": False, "alpha": 0.5},
        {"residual_conv": False},
        {"order": 4},
    ],
)
def test_the_layer_equals_gated_circulant_products(length, options):
    m, u = layer(**options), draw(2, length, 4)
    torch.testing.assert_close(m(u), reference(m, u), atol=1e-10, rtol=0)


def test_a_delta_for_a_kernel_leaves_the_gates():
    m, u = layer(static=False, residual_conv=False), draw(2, 9, 4)
    m.out_proj = torch.nn.Identity()
    m.kernels[0].forward = lambda v, mask=None: torch.ones(2, 4, 5, dtype=torch.complex128)
    x0, x1, v = m.short(m.in_proj(u)).mT.chunk(3, dim=1)
    torch.testing.assert_close(m(u), (x0 * (x1 * v) * (1 + m.skip[0, :, None])).mT)


@BOTH
@LENGTHS
@pytest.mark.parametrize("order", [2, 3])
def test_a_circular_shift_of_the_input_shifts_the_output(kind, length, order):
    m, u = layer(kind=kind, order=order), draw(2, length, 4)
    assert float(shift_errors(m, u).max()) < 1e-12
    assert float(shift_errors(m.float(), u.float()).max()) < 1e-4


@BOTH
@LENGTHS
@pytest.mark.parametrize("broken", [{"padding": "zeros"}, {"causal_short": True}, {"official": True}])
def test_zeros_at_a_border_break_the_equivariance(kind, length, broken):
    assert float(shift_errors(layer(kind=kind, **broken), draw(2, length, 4)).max()) > 1e-3


def test_a_linear_convolution_breaks_the_equivariance(monkeypatch):
    def linear(self, y, static, adaptive, at):
        kernel = torch.fft.irfft(static[at] + adaptive[at], n=y.shape[-1])
        size = 2 * y.shape[-1]
        return torch.fft.irfft(torch.fft.rfft(y, n=size) * torch.fft.rfft(kernel, n=size), n=size)[..., : y.shape[-1]]

    monkeypatch.setattr(Orchid, "_product", linear)
    assert float(shift_errors(layer(), draw(2, 12, 4)).max()) > 1e-2


@BOTH
def test_gradients_match_finite_differences(kind):
    m = layer(2, 6, kind=kind)
    assert torch.autograd.gradcheck(m, (draw(1, 6, 2).requires_grad_(),))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "type2"},
        {"order": 3},
        {"transform": "dct"},
        {"kind": "type2", "transform": "dct"},
        {"official": True},
        {"kind": "type2", "official": True},
        {"adaptive": False},
        {"static": False, "residual_conv": False},
    ],
)
def test_it_keeps_the_promises_of_mixers(options):
    check_mixer(layer(**options), 4)


def test_it_is_known_by_name_and_says_that_it_is_not_causal():
    m = build_mixer("orchid", 4, max_len=16)
    assert not m.causal
    assert not m.has_step
    assert m.length_bound == 16
    x = draw(1, 10, 4).float()
    later = x.clone()
    later[:, 9] += 1
    assert float((m(later) - m(x))[:, :9].detach().abs().max()) > 1e-3


def test_causal_use_is_refused():
    with pytest.raises(ValueError, match="cannot be causal without a leak"):
        Orchid(4, 16, causal=True)
    with pytest.raises(TypeError, match="no step form"):
        Orchid(4, 16).init_state(1)


def test_parameters_do_not_depend_on_the_length():
    sizes = {sum(p.numel() for p in layer(max_len=length).parameters()) for length in (8, 4096)}
    assert len(sizes) == 1
    d, h = 4, 8
    filters = (3 * h + h) + 2 * (h * h + h) + h * d + h
    time, freq = (3 * d + d) + 2 * d, (3 * 2 * d + 2 * d) + 4 * d
    linear, short = (d * 3 * d + 3 * d) + (d * d + d), 3 * 3 * d + 3 * d
    assert sizes == {linear + short + 2 * (filters + d) + time + freq}


@BOTH
@pytest.mark.parametrize("length", [64, 1024])
def test_the_adaptive_kernel_has_a_say_at_any_length(kind, length):
    m, u = layer(8, length, kind=kind).float(), draw(2, length, 8).float()
    assert 0.05 < m.kernel_ratio(u) < 1000
    m(u).square().mean().backward()
    norms = [sum(p.grad.square().sum() for p in part.parameters()).sqrt() for part in (m.kernels, m.in_proj)]
    assert float(norms[0] / norms[1]) > 1e-3


def test_alpha_weighs_the_adaptive_kernel():
    u = draw(2, 9, 4)
    one, none, fixed = layer(), layer(alpha=0.0), layer(adaptive=False)
    fixed.load_state_dict({k: v for k, v in none.state_dict().items() if not k.startswith("kernels")})
    torch.testing.assert_close(none(u), fixed(u))
    assert layer(alpha=3.0).kernel_ratio(u) == pytest.approx(3 * one.kernel_ratio(u))


def test_half_precision_transforms_in_single():
    m, u = layer(8), draw(2, 16, 8)
    expected = m(u)
    half = m.bfloat16()(u.bfloat16())
    assert half.dtype == torch.bfloat16
    assert float((half.double() - expected).detach().abs().max() / expected.detach().abs().max()) < 0.05


def test_operations_grow_almost_linearly():
    m = layer(32, 16)
    assert 2 < m.flops(8192) / m.flops(4096) < 2.2
    assert m.state_size(100) == 3200
    assert layer(32, 16, kind="type2").flops(4096) > m.flops(4096) > layer(32, 16, adaptive=False).flops(4096)


def test_filters_have_a_rate_of_their_own_and_no_decay():
    m = torch.nn.Sequential(layer(), torch.nn.Linear(4, 4))
    rest, filters = parameter_groups(m, lr=0.1, weight_decay=0.05)
    expected = {id(p) for part in m.modules() if isinstance(part, ImplicitFilter) for p in part.parameters()}
    assert {id(p) for p in filters["params"]} == expected
    assert (filters["lr"], filters["weight_decay"]) == (1e-3, 0.0)
    assert len(rest["params"]) + len(expected) == len(list(m.parameters()))
    assert parameter_groups(m, lr=0.1, filter_lr=None)[1]["lr"] == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "must be positive, got 0 and 16"),
        ({"order": 1}, r"at least 2.*got 1"),
        ({"order": 3, "official": True}, "2 in the released block, got 3"),
        ({"static": False, "adaptive": False}, "got neither"),
        ({"alpha": float("nan")}, "alpha must be finite, got nan"),
        ({"transform": "dst", "adaptive": False}, "fft or dct, got 'dst'"),
        ({"emb_dim": 4}, "emb_dim must be odd"),
        ({"short_kernel": 4}, "odd to be centred, got 4"),
        ({"kind": "type3"}, "type1 or type2"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Orchid(**{"dim": 4, "max_len": 16, **options})


def test_what_is_too_long_or_has_no_ratio_is_refused():
    with pytest.raises(ValueError, match="at most 16 tokens, got 17"):
        layer()(draw(1, 17, 4))
    with pytest.raises(ValueError, match="one kernel only"):
        layer(adaptive=False).kernel_ratio(draw(1, 8, 4))
