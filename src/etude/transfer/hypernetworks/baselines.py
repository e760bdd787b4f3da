"""The target trained directly: what generated weights are compared with."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from etude.data.kinds import Examples, ImageData
from etude.loop.batches import IndexedBatches
from etude.nn.resnet import ResNet
from etude.transfer.hypernetworks.hypernetwork import Hypernetwork

__all__ = [
    "DirectTarget",
    "accuracy_of",
    "activation_moments",
    "classifier",
    "draw_few",
    "fit_members",
    "mlp",
    "standardised",
    "train_direct",
    "trained_numbers",
    "trunk",
]


def mlp(*widths: int, bias: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Fully connected layers of these widths on flattened inputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for one, other in pairwise(widths):
        layers += [nn.Linear(one, other, bias=bias), activation()]
    return nn.Sequential(*layers[:-1])


def trunk(shape: Sequence[int], width: int, *, more: int = 0, residual: bool = False) -> tuple[nn.Module, int]:
    """What a target does before its last layer, and how many features it gives.

    Args:
        shape: of an input. width: of the one hidden layer that reads it flattened.
        more: numbers appended to an input, planes of them for a residual network.
        residual: a ResNet-32 of 16, 32 and 64 channels with group norm instead.
    """
    if not residual:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape) + more, width), nn.ReLU()), width
    widths = (16, 32, 64)
    net = ResNet(
        blocks=(5, 5, 5), widths=widths, in_channels=shape[0] + more, num_classes=1, small_images=True, norm="group"
    )
    net.fc = nn.Identity()  # type: ignore[assignment]
    return net, widths[-1]


def classifier(shape: Sequence[int], width: int, classes: int, *, residual: bool = False) -> nn.Sequential:
    """`trunk` and a linear layer: the target whose weights are generated."""
    below, features = trunk(shape, width, residual=residual)
    return nn.Sequential(below, nn.Linear(features, classes))


class DirectTarget(nn.Module):
    """The target trained directly on several tasks.

    Args:
        kind: "fine_tune", one head for all; "task_id", the task's number among the inputs too; "multi_head", a head
            for each task on a shared trunk.
        shape, width, residual: of `trunk`.
        classes: outputs of a head.
        tasks: how many.

    Raises:
        ValueError: if the kind is another.
    """

    def __init__(
        self, kind: str, shape: Sequence[int], width: int, classes: int, tasks: int, *, residual: bool = False
    ):
        super().__init__()
        if kind not in ("fine_tune", "task_id", "multi_head"):
            raise ValueError(f"kind must be fine_tune, task_id or multi_head, got {kind!r}")
        self.kind, self.tasks, self.residual = kind, tasks, residual
        self.trunk, features = trunk(shape, width, more=tasks if kind == "task_id" else 0, residual=residual)
        self.heads = nn.ModuleList(nn.Linear(features, classes) for _ in range(tasks if kind == "multi_head" else 1))

    def forward(self, x: Float[Tensor, "batch ..."], number: int) -> Float[Tensor, "batch classes"]:
        if self.kind == "task_id":
            x = x if self.residual else x.flatten(1)
            code = F.one_hot(torch.tensor(number), self.tasks).to(x)
            planes = code.view(-1, *[1] * (x.ndim - 2)).expand(len(x), -1, *x.shape[2:])
            x = torch.cat([x, planes], dim=1)
        return self.heads[number if self.kind == "multi_head" else 0](self.trunk(x))


def train_direct(
    call: Callable[[Tensor], Tensor],
    parameters: Iterable[nn.Parameter],
    examples: Examples,
    *,
    steps: int,
    lr: float | int,
    generator: torch.Generator,
    batch_size: int = 64,
) -> None:
    """Cross-entropy by Adam, whose state starts afresh."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _, (inputs, targets, _) in zip(range(steps), IndexedBatches(examples, batch_size, generator)):
        optimizer.zero_grad()
        F.cross_entropy(call(inputs), targets).backward()
        optimizer.step()


@torch.no_grad()
def accuracy_of(call: Callable[[Tensor], Tensor], examples: Examples) -> float:
    """Share of the examples whose largest output is their label's."""
    return float((call(examples.inputs).argmax(dim=1) == examples.targets).double().mean())


def draw_few(examples: Examples, shots: int, generator: torch.Generator) -> Examples:
    """`shots` drawn examples of each class, or as many as there are.

    Raises:
        ValueError: if `shots` is not positive.
    """
    if shots < 1:
        raise ValueError(f"shots must be positive, got {shots}")
    order = torch.randperm(len(examples), generator=generator)
    labels = examples.targets.cpu()[order]
    rank = F.one_hot(labels).cumsum(0).gather(1, labels[:, None]).squeeze(1)
    return examples.subset(order[rank <= shots].to(examples.targets.device))


def standardised(data: ImageData) -> tuple[Examples, Examples]:
    """Training and validation images with mean 0 and deviation 1 in every pixel that varies over training."""
    assert isinstance(data.train, Examples)
    assert isinstance(data.val, Examples)
    mean, std = data.train.inputs.mean(dim=0), data.train.inputs.std(dim=0, correction=0)
    one, other = ((each.inputs - mean) / std.where(std > 0, 1.0) for each in (data.train, data.val))
    return Examples(one, data.train.targets), Examples(other, data.val.targets)


def trained_numbers(net: nn.Module) -> float:
    """How many parameters train."""
    return float(sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad))


@torch.no_grad()
def activation_moments(net: nn.Module, x: Tensor) -> Float[Tensor, "layers"]:
    """Second moment of the activations after each rectifier of a sequential network."""
    found = []
    for layer in net.children():
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            found.append(x.square().mean())
    return torch.stack(found)


def fit_members(
    hypernet: Hypernetwork,
    theta: Float[Tensor, "members params"],
    x: Float[Tensor, "n features"],
    y: Float[Tensor, "n"],
    *,
    noise_std: float | int,
    steps: int,
    lr: float | int = 2e-3,
) -> Float[Tensor, "members params"]:
    """Targets of a hypernetwork's shape trained directly from given weights, all at once: an ensemble, or one network.

    Args:
        hypernet: gives the target's module and the order of its weights; none of its own is used.
        theta: where the members start.
        x, y, noise_std, steps, lr: of `fit_regression`.

    Returns:
        Their trained weights.
    """
    theta = theta.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        residual = hypernet.run_each(x, theta).squeeze(-1) - y
        (0.5 * (residual / noise_std).square().sum()).backward()
        optimizer.step()
    return theta.detach()
