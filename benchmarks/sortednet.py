"""What a step of SortedNet costs beside one of the whole network: drawn sub-models are smaller, so steps are cheaper.

One call of `ours` trains every sub-model once, which is what as many draws are on average; the peer takes as many
steps of the plain network of the same weights.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.training.sortednet import (
    SortedMLP,
    SortedResNet18,
    SortedSampler,
    SubModelSpace,
    extract,
    set_submodel,
    sorted_,
    sorted_step,
    space_of,
)

_MLP = {"width": [8, 16, 32, 48, 64, 80, 96, 112, 128], "depth": [1, 2, 3, 4]}


def _sorted_steps(model: nn.Module, x: Tensor, y: Tensor, steps: int, **sampling: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    sampler = SortedSampler(space_of(model), **sampling)  # type: ignore[arg-type]

    def run() -> None:
        for _ in range(steps):
            sorted_step(model, F.cross_entropy, (x, y), optimizer, sampler)

    return run


def _plain_steps(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    plain = extract(model, space_of(model).full)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        for _ in range(steps):
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def _whole_alone() -> Comparison:
    """The same work on both sides: what the machinery itself costs."""
    torch.manual_seed(0)
    net = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(256, 256), nn.ReLU())), nn.Linear(256, 10))
    sorted_(net, SubModelSpace(width=[1.0]))
    x, y = torch.randn(256, 256), torch.randint(10, (256,))
    return Comparison(
        name="10 training steps of a 6-layer MLP, batch 256, whole",
        ours=_sorted_steps(net, x, y, 10),
        peer=_plain_steps(net, x, y, 10),
        peer_name="the plain network",
        note="a ratio of at most 1.05 is the aim: sampling and slicing that cut nothing",
    )


def _forward(model: nn.Module, x: Tensor) -> Comparison:
    space = space_of(model)
    b = space.submodels[len(space) // 2]
    model.eval()
    small = extract(model, b).eval()
    set_submodel(model, b)

    def run(network: nn.Module) -> Callable[[], None]:
        def forward() -> None:
            with torch.no_grad():
                for _ in range(20):
                    network(x)

        return forward

    return Comparison(
        name=f"20 forward passes of the sub-model ({b})",
        ours=run(model),
        peer=run(small),
        peer_name="the same, extracted",
        note="what slicing at every pass costs beside weights cut once",
    )


def comparisons() -> list[Comparison]:
    torch.manual_seed(0)
    images, labels = torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    digits, classes = torch.randn(64, 64), torch.randint(10, (64,))
    resnet, mlp = SortedResNet18(10), SortedMLP(64, 10, **_MLP)  # type: ignore[arg-type]
    return [
        Comparison(
            name="4 training steps of ResNet-18, widths 1/4 to 1, batch 16, 32 x 32",
            ours=_sorted_steps(resnet, images, labels, 4, cycle=True),
            peer=_plain_steps(resnet, images, labels, 4),
            peer_name="4 steps of the plain ResNet-18",
            note="0.47 of the whole network's multiplications on average",
        ),
        Comparison(
            name="36 training steps of the MLP of the claims, batch 64",
            ours=_sorted_steps(mlp, digits, classes, 36, cycle=True),
            peer=_plain_steps(mlp, digits, classes, 36),
            peer_name="36 steps of the plain MLP",
            note="so small that the calls cost more than the multiplications",
        ),
        _whole_alone(),
        _forward(SortedMLP(64, 10, **_MLP), digits),  # type: ignore[arg-type]
    ]
