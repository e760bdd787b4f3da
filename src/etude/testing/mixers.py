"""What every mixer of sequences passes.

from etude.testing import check_mixer

def test_my_mixer():
    check_mixer(MyMixer(16), 16)
"""

from __future__ import annotations

import torch
from torch import Tensor

from etude.nn.mixers import Mixer

__all__ = ["check_mixer"]


def check_mixer(
    mixer: Mixer,
    dim: int,
    *,
    length: int = 13,
    batch: int = 3,
    tolerance: float | int = 1e-8,
    seed: int = 0,
) -> None:
    """Checks, in float64 and evaluation mode, that a mixer keeps the promises of `etude.nn.mixers.Mixer`.

    - The output has the shape of the input and is finite; gradients reach the input and every parameter.
    - Samples do not meet: each alone gives what it gives in the batch.
    - A causal mixer's outputs do not move when later tokens do; another's do.
    - `step`, if it exists, gives what `forward` gives, from the first token and after any; the state that it is given
      stays as it was; a recurrent mixer's state has `state_size` numbers, the same after every token, and what keeps
      all it has read says how much that is.
    - Padding at the end, masked out, changes no real token's output.
    - A sequence longer than `length_bound` is refused.

    Args:
        mixer: the one to check; it is converted to float64 and left in evaluation mode.
        dim: features of a token.
        length, batch: of the sequences that it is tried with.
        tolerance: absolute, for all that must agree.
        seed: of the inputs.

    Raises:
        AssertionError: saying what does not hold.
    """
    mixer = mixer.double().eval()
    name = type(mixer).__name__
    x = torch.randn(batch, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        y = mixer(x)
    assert y.shape == x.shape, f"{name} maps {tuple(x.shape)} to {tuple(y.shape)}"
    assert bool(y.isfinite().all()), f"{name} gives numbers that are not finite"
    _check_gradients(mixer, x, name)
    with torch.no_grad():
        alone = torch.cat([mixer(one) for one in x.split(1)])
        _agree(alone, y, tolerance, f"{name}: samples of a batch change one another")
        _check_causality(mixer, x, y, tolerance, name)
        if mixer.has_step:
            _check_steps(mixer, x, y, tolerance, name)
        padded = torch.cat([x, 100 * torch.ones(batch, 3, dim, dtype=x.dtype)], dim=1)
        mask = (torch.arange(length + 3) < length).expand(batch, -1)
        if mixer.length_bound is None or mixer.length_bound >= length + 3:
            unpadded = mixer(x, mask=mask[:, :length])
            _agree(unpadded, y, tolerance, f"{name}: a mask that hides nothing changes the output")
            if mixer.causal:
                _agree(mixer(padded, mask=mask)[:, :length], y, tolerance, f"{name}: padding changes real tokens")
            else:
                other = torch.cat([x, -padded[:, length:]], dim=1)
                _agree(mixer(padded, mask=mask)[:, :length], mixer(other, mask=mask)[:, :length], tolerance,
                       f"{name}: what stands in the padding changes real tokens")  # fmt: skip
        if mixer.length_bound is not None:
            _check_bound(mixer, dim, name)
    assert mixer.flops(length) > 0, f"{name}.flops({length}) is {mixer.flops(length)}"


def _agree(given: Tensor, expected: Tensor, tolerance: float | int, complaint: str) -> None:
    apart = float((given - expected).abs().max())
    assert apart <= tolerance, f"{complaint}, by {apart:.2g}"


def _check_gradients(mixer: Mixer, x: Tensor, name: str) -> None:
    x = x.clone().requires_grad_()
    mixer.zero_grad(set_to_none=True)
    mixer(x).square().sum().backward()
    assert x.grad is not None, f"{name}: no gradient reaches the input"
    assert bool(x.grad.isfinite().all()), f"{name}: the gradient of the input is not finite"
    for parameter, value in mixer.named_parameters():
        if value.requires_grad:
            assert value.grad is not None, f"{name}: no gradient reaches {parameter}"
            assert bool(value.grad.isfinite().all()), f"{name}: the gradient of {parameter} is not finite"
    mixer.zero_grad(set_to_none=True)


def _check_causality(mixer: Mixer, x: Tensor, y: Tensor, tolerance: float | int, name: str) -> None:
    length = x.shape[1]
    seen = False
    for place in (length // 2, length - 1):
        other = x.clone()
        other[:, place] += 1.0
        before = float((mixer(other) - y)[:, :place].abs().max())
        seen |= before > tolerance
        if mixer.causal:
            assert before <= tolerance, f"{name} is not causal: token {place} moves earlier outputs by {before:.2g}"
    assert mixer.causal or seen, f"{name} says that it is not causal, but no output depends on a later token"


def _check_steps(mixer: Mixer, x: Tensor, y: Tensor, tolerance: float | int, name: str) -> None:
    state = mixer.init_state(len(x))
    for place in range(x.shape[1]):
        given = [part.clone() for part in _tensors(state)]
        output, following = mixer.step(x[:, place], state)
        _agree(output, y[:, place], tolerance, f"{name}: step {place} differs from forward")
        for now, then in zip(_tensors(state), given):
            assert torch.equal(now, then), f"{name}: step {place} changed its state"
        state = following
        kept = sum(part.numel() * (2 if part.is_complex() else 1) for part in _tensors(state)) // len(x)
        said = mixer.state_size(place + 1)
        assert kept == said, f"{name} keeps {kept} numbers after {place + 1} tokens, state_size says {said}"
    if mixer.recurrent:
        sizes = {mixer.state_size(length) for length in (1, 10, 1000)}
        assert len(sizes) == 1, f"{name} is recurrent, but its state grows: {sorted(sizes)}"


def _check_bound(mixer: Mixer, dim: int, name: str) -> None:
    assert mixer.length_bound is not None
    too_long = torch.zeros(1, mixer.length_bound + 1, dim, dtype=torch.float64)
    try:
        mixer(too_long)
    except ValueError:
        return
    raise AssertionError(f"{name} takes a sequence longer than its length_bound, {mixer.length_bound}")


def _tensors(state: object) -> list[Tensor]:
    """Floating-point and complex tensors of a state; counters are no state in the sense of `state_size`."""
    if isinstance(state, Tensor):
        return [state] if state.is_floating_point() or state.is_complex() else []
    if isinstance(state, dict):
        return [part for value in state.values() for part in _tensors(value)]
    if isinstance(state, tuple | list):
        return [part for value in state for part in _tensors(value)]
    return []
