import pytest
import torch
import torch.nn.functional as F

from etude.nn.mixers import build_mixer
from etude.nn.scan import scan
from etude.sequence import load_mixers
from etude.sequence.zoology import (
    H3,
    BaseConv,
    Based,
    DiagonalSSM,
    Hyena,
    ImplicitLongConv,
    LongConv,
    hybrid,
    taylor_features,
)
from etude.testing import check_mixer

load_mixers()


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def direct(x, kernel):
    """sum_s kernel[s] x[t - s], term by term; x (batch, length, dim), kernel (dim, taps)."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        for s in range(min(t + 1, kernel.shape[1])):
            y[:, t] += kernel[:, s] * x[:, t - s]
    return y


MIXERS = [
    ("base_conv", {"layer": 0}),
    ("base_conv", {"layer": 1}),
    ("base_conv", {"layer": 1, "implicit": False}),
    ("base_conv", {"kernel_sizes": 1}),
    ("long_conv", {}),
    ("hyena", {}),
    ("h3", {}),
    ("h3", {"head_dim": 4, "d_state": 6}),
    ("based", {}),
    ("based", {"num_heads": 2, "feature_dim": 4}),
    ("based", {"chunk": 4}),
    ("hybrid", {"configs": ["based", {"name": "base_conv", "kernel_sizes": 3}], "layer": 1}),
    ("selective", {"select": "all", "num_heads": 2}),
    ("selective", {"rule": "threshold"}),
    ("selective", {"k": 0.5}),
]


@pytest.mark.parametrize(("name", "options"), MIXERS)
def test_every_mixer_keeps_its_promises(name, options):
    torch.manual_seed(0)
    mixer = build_mixer(name, 8, max_len=16, **options)
    if name == "selective" and options.get("rule") == "threshold":
        mixer.calibrate(draw(8, 13, 8).float())
    check_mixer(mixer, 8)


def test_state_sizes():
    sizes = {
        "attention": 2 * 16 * 64, "long_conv": 16 * 64, "hyena": 16 * 64, "selective": 2 * 16 * 64,
        "based": (1 + 16 + 136) * 17, "h3": 63 * 16 + 16 * 2 * 64,
    }  # fmt: skip
    for name, size in sizes.items():
        assert build_mixer(name, 16, max_len=64).state_size(64) == size
    for name in ("retention", "based", "h3"):
        mixer = build_mixer(name, 16, max_len=64)
        assert mixer.state_size(64) == mixer.state_size(4096)


def test_base_conv_with_a_delta_kernel():
    x = draw(2, 7, 4)
    short = BaseConv(4, 8).double()
    with torch.no_grad():
        short.conv.conv.weight.zero_()[:, 0, -1] = 1
        short.conv.conv.bias.zero_()
    torch.testing.assert_close(short(x), short.projection(x) * x + x)
    long = BaseConv(4, 8, layer=1, implicit=False).double()
    with torch.no_grad():
        long.conv.filter.zero_()[:, 0] = 1
    torch.testing.assert_close(long(x), long.projection(x) * 2 * x + x)


@pytest.mark.parametrize("make", [LongConv, ImplicitLongConv])
def test_long_convolutions_by_fft_equal_direct_ones(make):
    torch.manual_seed(0)
    conv = make(4, 12).double()
    x = draw(2, 9, 4)
    torch.testing.assert_close(conv(x), direct(x, conv.kernel(9)) + x, atol=1e-10, rtol=0)
    assert conv.kernel(9).shape == (4, 9)


def test_the_implicit_kernel_is_a_network_of_the_time():
    torch.manual_seed(0)
    conv = ImplicitLongConv(4, 12).double()
    n = torch.arange(12, dtype=torch.float64)
    angle = 1e-4 * 2 * torch.pi * n / 12
    z = torch.stack([n / 11, angle.cos(), -angle.sin()], dim=1)
    first, _, second = conv.network
    torch.testing.assert_close(conv.kernel(12), second(F.relu(first(z))).T, atol=1e-6, rtol=0)
    assert sum(p.numel() for p in conv.parameters()) == 3 * 16 + 16 + 16 * 4 + 4


def test_hyena_equals_its_equation():
    torch.manual_seed(0)
    layer = Hyena(4, 12).double()
    x = draw(2, 9, 4)
    taps = layer.short.conv.weight[:, 0].flip(1)
    x1, x2, v = (direct(layer.in_proj(x), taps) + layer.short.conv.bias).split(4, dim=-1)
    u = x1 * v
    expected = layer.out(x2 * (direct(u, layer.filter(9)) + layer.skip * u))
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_h3_equals_its_equation_by_scan():
    torch.manual_seed(0)
    layer = H3(8, 12, head_dim=2).double()
    x = draw(2, 9, 8)
    q, k, v = layer.q(x), layer.k(x), layer.v(x)
    k = direct(k, layer.shift) + layer.shift_skip * k
    q, k, v = (part.unflatten(-1, (4, 2)) for part in (q, k, v))
    u = k[..., :, None] * v[..., None, :]  # (batch, length, heads, d, d)
    decay, gain = layer.diagonal.coefficients()
    h = scan(decay[:, None, None].expand(2, 9, -1, 2, 2, -1), u[..., None].to(decay.dtype))
    y = 2 * (gain[:, None, None] * h).sum(-1).real + layer.diagonal.skip[:, None, None] * u
    expected = layer.out((q[..., :, None] * y).sum(-2).flatten(2))
    torch.testing.assert_close(layer(x), expected, atol=1e-10, rtol=0)


def test_the_diagonal_kernel_is_that_of_the_continuous_system():
    torch.manual_seed(0)
    model = DiagonalSSM(2, 4).double()
    dt, c = model.log_dt.exp(), torch.view_as_complex(model.c)
    for channel in range(2):
        for t in range(5):
            total = 0
            for n in range(2):
                a = torch.complex(torch.tensor(-0.5, dtype=torch.float64), torch.tensor(torch.pi * n).double())
                da = torch.exp(a * dt[channel])
                total += 2 * (c[channel, n] * (da - 1) / a * da**t).real
            torch.testing.assert_close(model.kernel(5)[channel, t], total, atol=1e-6, rtol=1e-6)


def test_h3_reads_longer_sequences_than_it_has_taps():
    torch.manual_seed(0)
    layer = H3(4, 4).double()
    x = draw(1, 9, 4)
    state, outputs = layer.init_state(1), []
    for token in x.unbind(1):
        y, state = layer.step(token, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), layer(x), atol=1e-10, rtol=0)


def test_taylor_features_expand_exp():
    q, k = draw(5, 6), draw(5, 6, seed=1)
    s = (q * k).sum(-1) / 6**0.5
    phi_q, phi_k = taylor_features(q), taylor_features(k)
    assert phi_q.shape == (5, 1 + 6 + 21)
    torch.testing.assert_close((phi_q * phi_k).sum(-1), 1 + s + s**2 / 2)


@pytest.mark.parametrize("chunk", [1, 4, 5, 13])
@pytest.mark.parametrize("hidden", [False, True])
def test_based_in_chunks_equals_the_parallel_form(chunk, hidden):
    torch.manual_seed(0)
    layer = Based(8, 2, feature_dim=4).double()
    x = draw(2, 13, 8)
    mask = torch.arange(13) >= torch.tensor([[2], [0]]) if hidden else None
    expected = layer(x, mask=mask)
    layer.chunk = chunk
    torch.testing.assert_close(layer(x, mask=mask), expected, atol=1e-10, rtol=0)
    assert not hidden or not expected[0, :2].any()  # sees padding alone


def test_based_equals_its_naive_sum():
    torch.manual_seed(0)
    layer = Based(4, feature_dim=3).double()
    x = draw(1, 6, 4)
    q, k, v = (part(x)[0].detach() for part in (layer.q, layer.k, layer.v))
    rows = []
    for t in range(6):
        s = [float(q[t] @ k[i]) / 3**0.5 for i in range(t + 1)]
        weights = torch.tensor([1 + one + one**2 / 2 for one in s], dtype=torch.float64)
        rows.append(weights @ v[: t + 1] / weights.sum())
    torch.testing.assert_close(layer(x)[0], layer.out(torch.stack(rows)), atol=1e-10, rtol=0)


def test_retention_without_decay_is_linear_attention():
    layer = build_mixer(
        "retention", 4, max_len=8, num_heads=1, rope_theta=None, normalize=False, gate=False
    ).double()  # fmt: skip
    layer.decay.fill_(1.0)
    x = draw(2, 6, 4)
    scores = (layer.q(x) @ layer.k(x).transpose(1, 2) / 2).tril()
    torch.testing.assert_close(layer(x), layer.out(scores @ layer.v(x)))


@pytest.mark.parametrize(
    ("name", "options"),
    [("base_conv", {"layer": 1}), ("base_conv", {}), ("hyena", {}), ("h3", {}), ("based", {"chunk": 2})],
)
def test_padding_before_the_text_is_not_read(name, options):
    """What the mask hides changes no real token, wherever it stands."""
    torch.manual_seed(0)
    mixer = build_mixer(name, 4, max_len=8, **options).double().eval()
    x, other = draw(1, 8, 4), draw(1, 8, 4)
    other[:, :3] = 7.0
    mask = (torch.arange(8) >= 3)[None]
    torch.testing.assert_close(mixer(x, mask=mask)[:, 3:], mixer(other, mask=mask)[:, 3:])


def test_layers_take_their_kernels_in_turn():
    assert [BaseConv(4, 8, layer=layer).kernel_size for layer in range(5)] == [3, -1, 3, -1, 3]
    assert not BaseConv(4, 8, layer=1).has_step
    with pytest.raises(TypeError, match="long kernel"):
        BaseConv(4, 8, layer=1).init_state(1)
    assert isinstance(hybrid(8, 16, 3, configs=["hyena", "based"]), Based)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BaseConv(4, 8, kernel_sizes=[]), "kernel_sizes"),
        (lambda: BaseConv(4, 8, kernel_sizes=-2), "-2"),
        (lambda: LongConv(4, 0), "max_len"),
        (lambda: ImplicitLongConv(4, 8, emb_dim=4), "emb_dim must be odd"),
        (lambda: H3(4, 8, d_state=3), "even and at least 2, got 3"),
        (lambda: H3(5, 8), "multiple of head_dim"),
        (lambda: Based(4, 3), "multiple of num_heads"),
        (lambda: Based(4, chunk=0), "chunk must be positive"),
        (lambda: hybrid(4, 8, configs=[]), "must not be empty"),
        (lambda: Hyena(4, 8)(torch.zeros(1, 9, 4)), "at most 8 tokens, got 9"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
