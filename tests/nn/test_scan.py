import pytest
import torch

from etude.nn.scan import scan


def by_loop(a, b, initial=None):
    h = torch.zeros_like(b[:, 0]) if initial is None else initial
    states = []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return torch.stack(states, dim=1)


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 64, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_equals_a_loop_over_time(length, dtype):
    a, b, initial = draw(2, length, 3, dtype=dtype), draw(2, length, 3, dtype=dtype, seed=1), draw(2, 3, dtype=dtype)
    a = a / a.abs().clamp(min=1)
    torch.testing.assert_close(scan(a, b), by_loop(a, b))
    torch.testing.assert_close(scan(a, b, initial), by_loop(a, b, initial))


def test_a_decay_of_zero_forgets_and_of_one_sums():
    b = draw(1, 9, 2)
    assert torch.equal(scan(torch.zeros_like(b), b), b)
    torch.testing.assert_close(scan(torch.ones_like(b), b), b.cumsum(1))


def test_decays_broadcast_and_real_decays_meet_complex_inputs():
    a, b = draw(1, 6, 1).sigmoid(), draw(3, 6, 4, dtype=torch.complex128)
    torch.testing.assert_close(scan(a, b), by_loop(a.expand(3, 6, 4).to(b.dtype), b))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_of_first_and_second_order(dtype):
    a = (draw(2, 5, 2, dtype=dtype) / 2).requires_grad_()
    b = draw(2, 5, 2, dtype=dtype, seed=1).requires_grad_()
    initial = draw(2, 2, dtype=dtype, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(scan, (a, b, initial))
    assert torch.autograd.gradgradcheck(scan, (a, b))


def test_no_token_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 0, 3\)"):
        scan(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3))
