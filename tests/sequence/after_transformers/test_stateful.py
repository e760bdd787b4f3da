"""Every recurrent mixer gives the same in parallel, in pieces, and token by token, and stays finite."""

import pytest
import torch

from etude.nn.mixers import build_mixer
from etude.sequence.after_transformers.mixers import StatefulMixer
from etude.testing import check_mixer

DIM = 8
MIXERS = {
    "linear_attention": {"num_heads": 2, "inner_chunk": 4},
    "rwkv": {"layer": 1, "depth": 3},
    "s4d": {"state": 6},
    "mamba": {"state": 3},
    "mamba2": {"state": 4, "head_dim": 4, "inner_chunk": 4},
    "mlstm": {"num_heads": 2, "inner_chunk": 4},
    "slstm": {"num_heads": 2},
    "gru": {},
    "lstm": {},
    "min_gated": {},
}
MATRIX = ("linear_attention", "mamba2", "mlstm")


def built(name, dim=DIM, **changes):
    torch.manual_seed(0)
    mixer = build_mixer(name, dim, max_len=64, **(MIXERS[name] | changes))
    with torch.no_grad():  # gates that start at the same place for all inputs must see them here
        for part in ("gates",):
            if hasattr(mixer, part):
                getattr(mixer, part).weight.normal_()
    return mixer


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def steps(mixer, x):
    state, outputs = mixer.init_state(len(x)), []
    for token in x.unbind(1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def tensors(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


@pytest.mark.parametrize("name", MIXERS)
def test_each_keeps_the_promises_of_a_mixer(name):
    mixer = built(name)
    assert isinstance(mixer, StatefulMixer)
    check_mixer(mixer, DIM)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("length", [1, 7, 64])
def test_parallel_equals_steps(name, length):
    x = draw(2, length, DIM)
    for dtype, tolerance in ((torch.float64, 1e-8), (torch.float32, 1e-4)):
        mixer = built(name).to(dtype)
        with torch.no_grad():
            one_by_one, last = steps(mixer, x.to(dtype))
            whole, state = mixer.read(x.to(dtype), mixer.init_state(2))
            torch.testing.assert_close(mixer(x.to(dtype)), one_by_one, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(whole, one_by_one, rtol=tolerance, atol=tolerance)
        after = draw(2, 5, DIM, seed=1).to(dtype)
        with torch.no_grad():  # a state from one form serves the other
            onward = mixer.read(after, last)[0]
            torch.testing.assert_close(mixer.read(after, state)[0], onward, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("chunk", [1, 3, 16, 33])
def test_pieces_of_any_size_equal_the_whole(name, chunk):
    mixer, x = built(name).double(), draw(2, 33, DIM)
    with torch.no_grad():
        whole = mixer(x)
        mixer.chunk = chunk
        torch.testing.assert_close(mixer(x), whole, rtol=1e-8, atol=1e-8)
        if name in MATRIX:
            mixer.chunk, mixer.inner_chunk = None, chunk
            torch.testing.assert_close(mixer(x), whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_through_pieces_equal_those_of_the_whole(name):
    found = []
    for chunk in (None, 3):
        mixer, x = built(name).double(), draw(2, 7, DIM).requires_grad_()
        mixer.chunk = chunk
        mixer(x).square().sum().backward()
        found.append([x.grad] + [p.grad for p in mixer.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MIXERS)
def test_padding_anywhere_is_never_read(name):
    mixer, x = built(name).double(), draw(1, 6, DIM)
    mask = torch.tensor([[False, True, True, False, True, True, False, True, True]])
    padded = torch.full((1, 9, DIM), 50.0, dtype=torch.float64)
    padded[mask] = x[0]
    with torch.no_grad():
        torch.testing.assert_close(mixer(padded, mask=mask)[mask], mixer(x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["rwkv", "mlstm", "mamba", "mamba2"])
def test_large_inputs_over_long_sequences_stay_finite(name):
    mixer = built(name, inner_chunk=64) if name in MATRIX else built(name)
    x = (50 * draw(1, 4096, DIM)).float().requires_grad_()
    y = mixer(x)
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(part.isfinite().all() for part in [x.grad, *(p.grad for p in mixer.parameters())])


@pytest.mark.parametrize("name", MIXERS)
def test_state_is_as_large_as_said_after_any_length(name):
    mixer = built(name)
    for length in (1, 40):
        with torch.no_grad():
            state = mixer.read(torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(0)),
                               mixer.init_state(2))[1]  # fmt: skip
        kept = sum(part.numel() * (2 if part.is_complex() else 1) for part in tensors(state))
        assert kept == 2 * mixer.state_size(length)


@pytest.mark.parametrize("name", MIXERS)
def test_nothing_to_read_is_refused(name):
    for shape in ((0, 3, DIM), (2, 0, DIM)):
        with pytest.raises(ValueError, match="samples with tokens"):
            built(name)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear_attention", {"num_heads": 3}, "multiple of num_heads"),
        ("linear_attention", {"inner_chunk": 0}, "chunk must be at least 1"),
        ("rwkv", {"chunk": 0}, "chunk must be at least 1"),
        ("s4d", {"state": 3}, "state must be even"),
        ("s4d", {"dt_min": 0.5}, "dt_min"),
        ("mamba", {"state": 0}, "must be positive"),
        ("mamba", {"dt_min": 0}, "dt_min"),
        ("mamba2", {"head_dim": 5}, "head_dim must divide"),
        ("mamba2", {"expand": 0}, "must be positive"),
        ("mlstm", {"num_heads": 3}, "multiple of num_heads"),
        ("slstm", {"num_heads": 0}, "multiple of num_heads"),
        ("min_gated", {"chunk": 0}, "chunk must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_mixer(name, DIM, max_len=16, **options)


@pytest.mark.parametrize("name", MIXERS)
def test_no_attribute_hides_a_method_of_modules(name):
    mixer = built(name)
    assert mixer.half() is mixer
    assert mixer.float() is mixer
