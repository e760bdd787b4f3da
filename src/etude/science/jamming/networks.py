"""The networks and their training: perceptrons on features, a perceptron and a convolutional network on raw samples.

Training keeps the weights of the epoch with the least validation loss. `train_deep_cascade` trains a perceptron layer
by layer instead, after Marquez, Hare & Niranjan, "Deep Cascade Learning", IEEE TNNLS 29, 2018.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Complex, Float
from torch import Tensor, nn

__all__ = [
    "DEFAULT_SCHEDULE",
    "Perceptron",
    "RawCNN",
    "Schedule",
    "iq_channels",
    "num_parameters",
    "predict_logits",
    "train_deep_cascade",
    "train_network",
]

_HUB = {"library_name": "etude", "paper_url": "https://arxiv.org/abs/2403.02645"}


def iq_channels(signals: Complex[Tensor, "*batch samples"]) -> Float[Tensor, "*batch 2 samples"]:
    """In-phase and quadrature samples as two real channels."""
    return torch.stack([signals.real, signals.imag], dim=-2)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Perceptron(nn.Module, PyTorchModelHubMixin, **_HUB):
    """Linear layers with ReLU and dropout, then one logit.

    Args:
        in_dim: numbers in one input, whatever its shape.
        hidden: widths of the hidden layers.
        dropout: after each hidden layer, in [0, 1).

    Raises:
        ValueError: if a size is not positive or `dropout` out of range.
    """

    def __init__(self, in_dim: int, hidden: Sequence[int] = (64, 32), *, dropout: float | int = 0.1):
        super().__init__()
        if in_dim < 1 or not hidden or min(hidden) < 1:
            raise ValueError(f"in_dim and hidden must be positive, got {in_dim} and {tuple(hidden)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        widths = (in_dim, *hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.readout = nn.Linear(widths[-1], 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch"]:
        """The logit of each input."""
        return self.readout(self.hidden_output(x, len(self.hidden))).squeeze(-1)

    def hidden_output(self, x: Float[Tensor, "batch *features"], depth: int) -> Float[Tensor, "batch dim"]:
        """The output of hidden layer `depth` (0: the flattened input)."""
        x = x.flatten(start_dim=1)
        for layer in self.hidden[:depth]:
            x = self.dropout(layer(x).relu())
        return x


class RawCNN(nn.Module, PyTorchModelHubMixin, **_HUB):
    """Three strided convolutions over raw samples, their mean and maximum over time, one linear layer.

    Args:
        channels: of the three convolutions (2 -> 32 -> 64 -> 64 by default).
        kernel_size, stride: of each convolution.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 64), *, kernel_size: int = 7, stride: int = 4):
        super().__init__()
        widths = (2, *channels)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size, stride, padding=kernel_size // 2) for a, b in itertools.pairwise(widths)
        )
        self.readout = nn.Linear(2 * widths[-1], 1)

    def forward(self, x: Float[Tensor, "batch 2 samples"]) -> Float[Tensor, "batch"]:
        """The logit of each signal."""
        for convolution in self.convolutions:
            x = convolution(x).relu()
        return self.readout(torch.cat([x.mean(dim=-1), x.amax(dim=-1)], dim=-1)).squeeze(-1)


class Schedule(NamedTuple):
    """How a network is trained: AdamW with a cosine from `lr` to zero.

    With `patience`, training ends after so many epochs without a new least validation loss.
    """

    epochs: int = 30
    lr: float | int = 1e-3
    weight_decay: float | int = 1e-3
    batch_size: int = 64
    patience: int | None = None


DEFAULT_SCHEDULE = Schedule()


@torch.no_grad()
def predict_logits(
    model: nn.Module, inputs: Float[Tensor, "n *features"], batch_size: int = 4096
) -> Float[Tensor, "n"]:
    """Logits in evaluation mode."""
    training = model.training
    model.eval()
    logits = torch.cat([model(chunk) for chunk in inputs.split(batch_size)])
    model.train(training)
    return logits


def train_network(
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    schedule: Schedule = DEFAULT_SCHEDULE,
    *,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Trains with binary cross-entropy and puts back the weights of the best epoch.

    Args:
        model: from inputs to logits; trained in place. Dropout draws from the default generator.
        train, validation: inputs and their labels 0/1.
        schedule: epochs, learning rate, weight decay, batch size, patience.
        generator: order of the batches, on the CPU.
        callback: called as `callback(epoch, validation loss)`.

    Raises:
        ValueError: if a split is empty or its inputs and labels differ in number.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=schedule.lr, weight_decay=schedule.weight_decay, fused=True)
    inputs, labels = train
    for name, split in (("train", train), ("validation", validation)):
        if not len(split[0]) or len(split[0]) != len(split[1]):
            raise ValueError(f"{name} needs one label per input, got {len(split[0])} inputs, {len(split[1])} labels")
    targets, held = labels.to(inputs.dtype), validation[1].to(inputs.dtype)
    batches = -(-len(inputs) // schedule.batch_size)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.epochs * batches)
    loss_of = nn.functional.binary_cross_entropy_with_logits
    best, best_epoch, kept = float("inf"), 0, copy.deepcopy(model.state_dict())
    model.train()
    for epoch in range(schedule.epochs):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for rows in order.split(schedule.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            cosine.step()
        loss = loss_of(predict_logits(model, validation[0]), held).item()
        if loss < best:
            best, best_epoch, kept = loss, epoch, copy.deepcopy(model.state_dict())
        if callback is not None:
            callback(epoch, loss)
        if schedule.patience is not None and epoch - best_epoch >= schedule.patience:
            break
    model.load_state_dict(kept)
    return model.eval()


def train_deep_cascade(
    model: Perceptron,
    train: tuple[Tensor, Tensor],
    validation: tuple[Tensor, Tensor],
    schedule: Schedule = DEFAULT_SCHEDULE,
    *,
    joint_epochs: int = 5,
    generator: torch.Generator | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Trains layer by layer, each with a temporary linear read-out while the layers before it stand still.

    The epochs are shared out among the layers; every stage starts again from the full learning rate. The last read-out
    becomes the model's own, and `joint_epochs` of ordinary training of the whole network follow.
    """
    stages = len(model.hidden)
    epochs = [schedule.epochs // stages + (stage < schedule.epochs % stages) for stage in range(stages)]
    for stage, count in enumerate(epochs):
        inputs = [_hidden_outputs(model, split[0], stage) for split in (train, validation)]
        layer = model.hidden[stage]
        assert isinstance(layer, nn.Linear)
        part = Perceptron(inputs[0].shape[1], [layer.out_features], dropout=model.dropout.p).to(inputs[0])
        part.hidden[0] = layer
        if stage == stages - 1:
            part.readout = model.readout
        if count:
            splits = ((inputs[0], train[1]), (inputs[1], validation[1]))
            train_network(part, *splits, schedule._replace(epochs=count), generator=generator, callback=callback)
    if joint_epochs:
        joint = schedule._replace(epochs=joint_epochs)
        train_network(model, train, validation, joint, generator=generator, callback=callback)
    return model.eval()


@torch.no_grad()
def _hidden_outputs(model: Perceptron, inputs: Tensor, depth: int) -> Tensor:
    model.eval()
    return torch.cat([model.hidden_output(chunk, depth) for chunk in inputs.split(4096)])
