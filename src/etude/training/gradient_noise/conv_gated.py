"""The convolutional gated recurrent network ("Neural GPU") and the binary multiplication it learns.

Kaiser & Sutskever, "Neural GPUs Learn Algorithms", arXiv:1511.08228, 2015. A state s of shape (width, length,
channels) passes through convolutional gated recurrent units as many times as the input is long:

    CGRU(s) = u * s + (1 - u) * tanh(U (r * s) + B),    u = gate(U' s + B'),    r = gate(U'' s + B'')      (1)
"""

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["PAD", "SYMBOLS", "ConvGatedRecurrent", "ConvGatedUnit", "binary_multiplication_batch"]

PAD = 0
"""Index of the empty symbol."""
SYMBOLS = ("", "0", "1", "*")
"""Symbols of binary multiplication, by index."""

_ZERO, _ONE, _TIMES = 1, 2, 3


class ConvGatedUnit(nn.Module):
    """One convolutional gated recurrent unit, Eq. (1).

    Args:
        channels: of the state.
        kernel_size: of the three convolutions, odd.
        cutoff: c >= 1 stretches the gates to clamp(c * sigmoid - (c - 1) / 2, 0, 1), so that they can close or open
            wholly; Kaiser & Sutskever use 1.2, and 1 is the plain sigmoid.
    """

    def __init__(self, channels: int, kernel_size: int = 3, cutoff: float = 1.0):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if cutoff < 1:
            raise ValueError(f"cutoff must be at least 1, got {cutoff}")
        self.cutoff = cutoff
        self.gates = nn.Conv2d(channels, 2 * channels, kernel_size, padding="same")
        self.candidate = nn.Conv2d(channels, channels, kernel_size, padding="same")
        # Gates open at the start, so that the state survives as many steps as the input is long.
        for convolution, bias in ((self.gates, 1.0), (self.candidate, 0.0)):
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.constant_(convolution.get_parameter("bias"), bias)

    def forward(
        self, state: Float[Tensor, "batch channels width length"]
    ) -> Float[Tensor, "batch channels width length"]:
        gates = self.cutoff * self.gates(state).sigmoid() - (self.cutoff - 1) / 2
        update, reset = gates.clamp(0, 1).chunk(2, dim=1)
        return update * state + (1 - update) * self.candidate(reset * state).tanh()


class ConvGatedRecurrent(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/1511.08228"
):
    """Reads a sequence into row 0 of a state, applies its units once per symbol, and reads row 0 out.

        model = ConvGatedRecurrent(symbols=len(SYMBOLS))
        logits = model(tokens)

    The parameters do not depend on the length: a model trained on short sequences runs on any.

    Args:
        symbols: number of input and of output symbols.
        channels: of the state.
        width: rows of the state.
        layers: units applied in each step, each with its own weights.
        kernel_size: of the convolutions, odd.
        cutoff: of the gates; see `ConvGatedUnit`.
        dropout: probability of dropping an entry of the state before a step.

    Raises:
        ValueError: if a size is not positive, the kernel is even, `cutoff` below 1 or `dropout` outside [0, 1).
    """

    def __init__(
        self,
        symbols: int = len(SYMBOLS),
        *,
        channels: int = 24,
        width: int = 4,
        layers: int = 2,
        kernel_size: int = 3,
        cutoff: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name, size in (("symbols", symbols), ("channels", channels), ("width", width), ("layers", layers)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.width, self.dropout = width, dropout
        self.embedding = nn.Embedding(symbols, channels)
        self.units = nn.ModuleList(ConvGatedUnit(channels, kernel_size, cutoff) for _ in range(layers))
        self.readout = nn.Linear(channels, symbols)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch length symbols"]:
        """Logits of the output symbol at every position."""
        embedded = self.embedding(tokens).transpose(1, 2)
        state = F.pad(embedded[:, :, None, :], (0, 0, 0, self.width - 1))
        for _ in range(tokens.shape[1]):
            state = F.dropout(state, self.dropout, self.training)
            for unit in self.units:
                state = unit(state)
        return self.readout(state[:, :, 0, :].transpose(1, 2))


def binary_multiplication_batch(
    length: int, n: int, generator: torch.Generator | None = None
) -> tuple[Int64[Tensor, "n length"], Int64[Tensor, "n length"]]:
    """Products of random binary numbers, as sequences of `SYMBOLS`, least significant bit first.

    The input is one number, the sign "*" and the other number, of (length - 1) // 2 bits each; the target is their
    product in twice as many bits. Both are padded to `length`. Works at any length: no product is formed as one
    machine number.

    Args:
        length: of the sequences, at least 3.
        n: number of products.
        generator: source of the bits; the default generator if None. Tensors are made on its device.

    Returns:
        Inputs and targets.

    Raises:
        ValueError: if `length` is below 3 or `n` negative.
    """
    if length < 3:
        raise ValueError(f"length must be at least 3, two one-bit numbers and their sign, got {length}")
    if n < 0:
        raise ValueError(f"n must be >= 0, got {n}")
    bits = (length - 1) // 2
    device = "cpu" if generator is None else generator.device
    first, second = torch.randint(0, 2, (2, n, bits), generator=generator, device=device)
    inputs = torch.full((n, length), PAD, device=device)
    inputs[:, :bits] = first + _ZERO
    inputs[:, bits] = _TIMES
    inputs[:, bits + 1 : 2 * bits + 1] = second + _ZERO
    targets = torch.full((n, length), PAD, device=device)
    targets[:, : 2 * bits] = _product(first, second) + _ZERO
    return inputs, targets


def _product(first: Int64[Tensor, "n bits"], second: Int64[Tensor, "n bits"]) -> Int64[Tensor, "n double"]:
    """Bits of the product: the columns of long multiplication, then the carries."""
    n, bits = first.shape
    columns = torch.zeros(n, 2 * bits, dtype=torch.int64, device=first.device)
    for place in range(bits):
        columns[:, place : place + bits] += first * second[:, place : place + 1]
    carry = torch.zeros(n, dtype=torch.int64, device=first.device)
    for place in range(2 * bits):
        carry += columns[:, place]
        columns[:, place] = carry % 2
        carry //= 2
    return columns
