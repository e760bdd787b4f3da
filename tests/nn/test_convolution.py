import math

import pytest
import torch
import torch.nn.functional as F

from etude.nn.convolution import ImplicitFilter, ShortConv, long_conv


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 6, 7])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
def test_long_conv_equals_the_double_loop(length, circular, per_sample):
    x, kernel = draw(2, 3, length), draw(*((2,) if per_sample else ()), 3, length, seed=1)
    expected = torch.zeros_like(x)
    for t in range(length):
        for s in range(length):
            if circular or s <= t:
                expected[..., t] += kernel[..., s] * x[..., (t - s) % length]
    torch.testing.assert_close(long_conv(x, kernel, circular=circular), expected)


def test_long_conv_has_gradients_and_refuses_other_lengths():
    x, kernel = draw(1, 2, 6).requires_grad_(), draw(2, 6, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: long_conv(*args, circular=True), (x, kernel))
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        long_conv(x, kernel[:, :5])
    assert long_conv(x.bfloat16(), kernel.bfloat16()).dtype == torch.bfloat16


def test_short_conv_reaches_back_only_when_causal():
    torch.manual_seed(0)
    conv, x = ShortConv(4, 3), torch.randn(2, 9, 4)
    other = x.clone()
    other[:, 5] += 1
    changed = (conv(other) != conv(x)).any(-1).any(0)
    assert changed.tolist() == [False] * 5 + [True] * 3 + [False]
    state, outputs = conv.init_state(2), []
    for t in range(9):
        y, state = conv.step(x[:, t], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), conv(x))


def test_centred_short_convs():
    torch.manual_seed(0)
    around, zeros, x = ShortConv(4, 5, padding="circular"), ShortConv(4, 5, padding="zeros"), torch.randn(2, 9, 4)
    torch.testing.assert_close(around(x.roll(3, 1)), around(x).roll(3, 1))
    torch.testing.assert_close(zeros(x), zeros.conv(F.pad(x.transpose(1, 2), (2, 2))).transpose(1, 2))
    assert around(x[:, :1]).shape == (2, 1, 4)
    with pytest.raises(TypeError, match="circular"):
        around.init_state(1)
    for size, padding in ((4, "zeros"), (0, "causal"), (3, "reflect")):
        with pytest.raises(ValueError):
            ShortConv(4, size, padding=padding)


def test_implicit_filter_by_its_formula():
    torch.manual_seed(0)
    filter = ImplicitFilter(3, 10, hidden_dim=8, emb_dim=5, num_inner=1, freq=2.0)
    kernel = filter(7)
    n, channel = 4, 2
    t, w = n / 9, 2 * math.pi * n / 10
    bands = (1e-4, 1.0)
    z = torch.tensor([t] + [math.cos(f * w) for f in bands] + [-math.sin(f * w) for f in bands])
    for layer in filter.layers:
        z = torch.sin(2 * layer(z))
    rate = abs(math.log(0.01) / 0.3)
    assert kernel.shape == (3, 7)
    assert kernel[channel, n].item() == pytest.approx((filter.out(z)[channel] * math.exp(-t * rate)).item(), abs=1e-6)
    torch.testing.assert_close(filter()[:, :7], kernel)
    with pytest.raises(ValueError, match="1 to 10"):
        filter(11)
    for emb_dim in (4, 1):
        with pytest.raises(ValueError, match="emb_dim"):
            ImplicitFilter(3, 10, emb_dim=emb_dim)


def test_without_decay_the_filter_is_the_network():
    torch.manual_seed(0)
    plain = ImplicitFilter(3, 10, decay=False)
    decaying = ImplicitFilter(3, 10)
    decaying.load_state_dict(plain.state_dict())
    torch.testing.assert_close(plain() * torch.exp(-decaying.rates[:, None] * decaying.time[:, 0]), decaying())


def test_implicit_filter_holds_nothing_that_depends_on_the_length():
    short, long = ImplicitFilter(3, 10), ImplicitFilter(3, 1000)
    assert short.state_dict().keys() == long.state_dict().keys()
    assert sum(p.numel() for p in short.parameters()) == sum(p.numel() for p in long.parameters())
