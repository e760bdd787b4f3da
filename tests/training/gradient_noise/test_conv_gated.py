"""The convolutional gated recurrent network against a naive loop, and binary multiplication against Python's."""

import pytest
import torch

from etude.training.gradient_noise import ConvGatedRecurrent, ConvGatedUnit, binary_multiplication_batch
from etude.training.gradient_noise.conv_gated import PAD, SYMBOLS


def number(bits) -> int:
    return sum(int(bit) << place for place, bit in enumerate(bits))


def naive_convolution(weight, bias, state):
    """A "same" convolution of one state (channels, width, length), entry by entry."""
    out_channels, _, size, _ = weight.shape
    _, width, length = state.shape
    result = torch.zeros(out_channels, width, length)
    for row in range(width):
        for column in range(length):
            total = bias.clone()
            for i in range(size):
                for j in range(size):
                    x, y = row + i - size // 2, column + j - size // 2
                    if 0 <= x < width and 0 <= y < length:
                        total += weight[:, :, i, j] @ state[:, x, y]
            result[:, row, column] = total
    return result


@pytest.mark.parametrize("cutoff", [1.0, 1.2])
def test_a_unit_equals_equation_1(cutoff):
    torch.manual_seed(0)
    unit = ConvGatedUnit(channels=3, cutoff=cutoff)
    state = torch.randn(2, 3, 4, 5)

    def gate(x):
        return (cutoff * torch.sigmoid(x) - (cutoff - 1) / 2).clamp(0, 1)

    for before, after in zip(state, unit(state)):
        u = gate(naive_convolution(unit.gates.weight[:3], unit.gates.bias[:3], before))
        r = gate(naive_convolution(unit.gates.weight[3:], unit.gates.bias[3:], before))
        candidate = torch.tanh(naive_convolution(unit.candidate.weight, unit.candidate.bias, r * before))
        torch.testing.assert_close(after, u * before + (1 - u) * candidate, rtol=1e-4, atol=1e-5)


def test_an_open_gate_keeps_the_state_and_a_closed_gate_replaces_it():
    unit = ConvGatedUnit(channels=2, cutoff=1.2)
    state = torch.rand(1, 2, 4, 3)
    with torch.no_grad():
        unit.gates.weight.zero_()
        unit.candidate.weight.zero_()
        unit.gates.bias.fill_(5.0)
        assert torch.equal(unit(state), state)
        unit.gates.bias.fill_(-5.0)
        assert torch.equal(unit(state), torch.zeros_like(state))


def test_the_network_applies_its_units_once_per_symbol_to_row_0():
    torch.manual_seed(0)
    model = ConvGatedRecurrent(symbols=4, channels=3, width=4, layers=2)
    tokens = torch.randint(4, (2, 5))
    state = torch.zeros(2, 3, 4, 5)
    state[:, :, 0] = model.embedding.weight[tokens].transpose(1, 2)
    for _ in range(5):
        for unit in model.units:
            state = unit(state)
    expected = torch.stack([model.readout(state[:, :, 0, place]) for place in range(5)], dim=1)
    torch.testing.assert_close(model(tokens), expected)


def test_one_model_runs_at_any_length_and_draws_nothing_in_evaluation():
    model = ConvGatedRecurrent(channels=4, dropout=0.5).eval()
    for length in (1, 3, 17):
        tokens = torch.ones(2, length, dtype=torch.int64)
        assert model(tokens).shape == (2, length, len(SYMBOLS))
        assert torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("length", [3, 4, 9, 20, 201])
def test_targets_are_the_products(length):
    inputs, targets = binary_multiplication_batch(length, 50, torch.Generator().manual_seed(0))
    bits = (length - 1) // 2
    zero, times = SYMBOLS.index("0"), SYMBOLS.index("*")
    assert inputs.shape == targets.shape == (50, length)
    for x, y in zip(inputs, targets):
        assert x[bits] == times
        product = number(x[:bits] - zero) * number(x[bits + 1 : 2 * bits + 1] - zero)
        assert number(y[: 2 * bits] - zero) == product
        assert (x[2 * bits + 1 :] == PAD).all()
        assert (y[2 * bits :] == PAD).all()


def test_batches_are_seeded_and_use_every_symbol():
    batches = [binary_multiplication_batch(10, 20, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*batches))
    assert batches[0][0].unique().tolist() == [0, 1, 2, 3]
    assert binary_multiplication_batch(9, 0)[0].shape == (0, 9)


def test_a_saved_model_loads_with_its_arguments(tmp_path):
    model = ConvGatedRecurrent(channels=4, layers=1, cutoff=1.2)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(4, (2, 5))
    torch.testing.assert_close(ConvGatedRecurrent.from_pretrained(tmp_path)(tokens), model(tokens))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConvGatedRecurrent(layers=0), "layers must be at least 1, got 0"),
        (lambda: ConvGatedRecurrent(dropout=1.0), r"dropout must lie in \[0, 1\), got 1\.0"),
        (lambda: ConvGatedUnit(4, kernel_size=2), "kernel_size must be odd, got 2"),
        (lambda: ConvGatedUnit(4, cutoff=0.5), r"cutoff must be at least 1, got 0\.5"),
        (lambda: binary_multiplication_batch(2, 1), "length must be at least 3"),
        (lambda: binary_multiplication_batch(5, -1), "n must be >= 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
