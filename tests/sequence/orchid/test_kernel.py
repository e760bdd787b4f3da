import pytest
import torch
import torch.nn.functional as F

from etude.sequence.orchid import OrchidKernel

BOTH = pytest.mark.parametrize("kind", ["type1", "type2"])
LENGTHS = pytest.mark.parametrize("length", [12, 13])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def kernel(dim=4, kind="type1", **options):
    torch.manual_seed(1)
    return OrchidKernel(dim, kind, **options).double()


def drift(made, v):
    """The largest change of a kernel under any circular shift of the sequence."""
    h = made.time_kernel(v)
    return max(float((made.time_kernel(v.roll(s, dims=1)) - h).detach().abs().max()) for s in range(v.shape[1]))


@BOTH
@LENGTHS
@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_circular_shift_leaves_the_kernel_unchanged(kind, length, num_layers):
    v = draw(2, length, 4)
    assert drift(kernel(kind=kind, num_layers=num_layers), v) < 1e-12
    single = OrchidKernel(4, kind)
    assert drift(single, v.float()) < 1e-5


@BOTH
@LENGTHS
def test_zeros_at_the_ends_break_the_invariance(kind, length):
    assert drift(kernel(kind=kind, padding="zeros"), draw(2, length, 4)) > 1e-2
    assert drift(kernel(kind=kind, official=True), draw(2, length, 4)) > 1e-2


def test_the_cosine_transform_has_no_such_invariance():
    assert drift(kernel(transform="dct"), draw(2, 12, 4)) > 1e-2


def test_type_one_convolves_squared_magnitudes_along_frequency():
    made, v = kernel(2), draw(3, 9, 2)
    time, freq = made.key, made.freq
    a = torch.empty(3, 9, 2, dtype=torch.float64)
    for t in range(9):
        for d in range(2):
            taps = time.convs[0].weight[d, 0]
            a[:, t, d] = sum(taps[i] * v[:, (t + i - 1) % 9, d] for i in range(3)) + time.convs[0].bias[d]
    a = time.norms[0](a)
    power = (torch.fft.fft(a, dim=1, norm="ortho")[:, :5].abs() ** 2).detach()
    padded = torch.cat([torch.zeros(3, 1, 2), power, torch.zeros(3, 1, 2)], dim=1)
    h = torch.empty(3, 5, 4, dtype=torch.float64)
    for k in range(5):
        for channel in range(4):
            taps = freq.convs[0].weight[channel, 0]
            window = padded[:, k : k + 3, channel // 2]
            h[:, k, channel] = (window * taps).sum(1) + freq.convs[0].bias[channel]
    h = freq.norms[0](h)
    expected = torch.complex(h[..., 0::2], h[..., 1::2]).transpose(1, 2)
    torch.testing.assert_close(made(v), expected, atol=1e-12, rtol=0)


@LENGTHS
def test_type_two_is_the_cross_correlation_of_keys_and_queries(length):
    made, v = kernel(3, "type2"), draw(2, length, 3)
    k, q = (stack(v).mT for stack in (made.key, made.query))
    c = torch.stack([(k * q.roll(-tau, dims=-1)).sum(-1) for tau in range(length)], dim=-1)
    torch.testing.assert_close(made(v), torch.fft.rfft(c) / length, atol=1e-12, rtol=0)
    torch.testing.assert_close(made.time_kernel(v), c / length, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["tanh", "softshrink", "sigmoid", "softsign"])
def test_sigma_acts_on_parts_or_on_magnitudes(name):
    v = draw(2, 8, 3)
    function = {"tanh": torch.tanh, "softshrink": F.softshrink, "sigmoid": torch.sigmoid, "softsign": F.softsign}[name]
    plain = kernel(3, "type2", nonlinearity=name)
    k, q = (torch.fft.rfft(stack(v).mT, norm="ortho") for stack in (plain.key, plain.query))
    parts = torch.complex(function(q.real), function(q.imag))
    torch.testing.assert_close(plain(v), k.conj() * parts)
    on_size = kernel(3, "type2", nonlinearity=f"{name}_abs")
    torch.testing.assert_close(on_size(v), k.conj() * torch.polar(function(q.abs()), q.angle()))


def test_magnitudes_may_be_taken_without_the_square():
    v = draw(2, 8, 3)
    square, plain = kernel(3), kernel(3, nonlinearity="abs")
    size = torch.fft.rfft(square.key(v).mT, norm="ortho").abs()
    h = plain.freq(size.mT).mT
    torch.testing.assert_close(plain(v), torch.complex(h[:, 0::2], h[:, 1::2]))
    assert float((plain(v) - square(v)).detach().abs().max()) > 1e-3


def test_the_released_second_type_joins_neighbours_of_the_stacked_parts():
    made, v = kernel(4, "type2", freq_conv=True), draw(2, 8, 4)
    k, q = (torch.fft.rfft(stack(v).mT, norm="ortho") for stack in (made.key, made.query))
    product = k.conj() * q
    stacked = torch.cat([product.real, product.imag], dim=1)
    conv = made.freq.convs[0]
    rows = [F.conv1d(stacked[:, 2 * g : 2 * g + 2], conv.weight[2 * g : 2 * g + 2], conv.bias[2 * g : 2 * g + 2],
                     padding=1) for g in range(4)]  # fmt: skip
    h = made.freq.norms[0](torch.cat(rows, dim=1).mT).mT
    torch.testing.assert_close(made(v), torch.complex(h[:, :4], h[:, 4:]))


@BOTH
@pytest.mark.parametrize("transform", ["fft", "dct"])
def test_kernels_depend_on_their_own_sample_alone(kind, transform):
    made, v = kernel(kind=kind, transform=transform), draw(2, 10, 4)
    h = made.time_kernel(v)
    assert h.shape == (2, 4, 10)
    assert float((h[0] - h[1]).detach().abs().max()) > 1e-2
    torch.testing.assert_close(made.time_kernel(v[:1]), h[:1], atol=1e-12, rtol=0)


@BOTH
def test_gradients_of_the_kernel_match_finite_differences(kind):
    made = kernel(2, kind)
    assert torch.autograd.gradcheck(made, (draw(1, 6, 2).requires_grad_(),))


@BOTH
def test_masked_tokens_are_left_out_of_the_spectra(kind):
    made, v = kernel(kind=kind), draw(2, 10, 4)
    mask = (torch.arange(10) < 7).expand(2, -1)
    other = torch.where(mask[..., None], v, torch.tensor(9.0, dtype=v.dtype))
    torch.testing.assert_close(made(other, mask=mask), made(v, mask=mask))
    torch.testing.assert_close(made(v, mask=torch.ones(2, 10, dtype=torch.bool)), made(v))


def test_kernels_may_reach_around_more_than_the_whole_sequence():
    assert drift(kernel(kernel_size=7), draw(1, 2, 4)) < 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "type3"}, "type1 or type2, got 'type3'"),
        ({"transform": "wavelet"}, "fft or dct, got 'wavelet'"),
        ({"padding": "reflect"}, "circular or zeros, got 'reflect'"),
        ({"kernel_size": 4}, "kernel_size odd, got 4, 1 and 4"),
        ({"num_layers": 0}, "must be positive"),
        ({"nonlinearity": "tanh"}, "of type1 must be one of abs2, abs, got 'tanh'"),
        ({"kind": "type2", "nonlinearity": "abs2"}, "of type2 must be one of identity"),
        ({"freq_conv": False}, "type1 needs freq_conv"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OrchidKernel(4, **options)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="expected 4 channels"):
        OrchidKernel(4)(torch.zeros(1, 5, 3))
