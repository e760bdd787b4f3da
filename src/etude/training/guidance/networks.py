"""Targets of the image experiments: fully connected networks, and ResNets without their skips.

Subramaniam et al., arXiv:2410.20035; He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition",
arXiv:1512.03385, 2015.
"""

from itertools import pairwise
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.resnet import ResNet

__all__ = ["DeepFCN", "DeepMLP", "PlainResNet", "WideFCN"]

_PAPER = {"library_name": "etude", "paper_url": "https://arxiv.org/abs/2410.20035"}


class DeepFCN(nn.Module, PyTorchModelHubMixin, **_PAPER):  # type: ignore[arg-type, misc]
    """A deep stack of Linear - BatchNorm - ReLU - Dropout blocks on flattened images.

        DeepFCN(in_dim=3 * 224 * 224, out_dim=1000)          # the paper's, 48 layers before the logits

    Args:
        in_dim: numbers in one input, whatever its shape.
        out_dim: number of classes.
        depth: number of blocks.
        width: of the blocks, except the first.
        first_width: of the first block; `width` if None.
        dropout: probability of dropping a unit, in [0, 1).

    Raises:
        ValueError: if a size is not positive or `dropout` out of range.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        depth: int = 48,
        width: int = 1024,
        first_width: int | None = 2048,
        dropout: float = 0.1,
    ):
        super().__init__()
        first_width = width if first_width is None else first_width
        _check_sizes(in_dim=in_dim, out_dim=out_dim, depth=depth, width=width, first_width=first_width)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        widths = [in_dim, first_width] + [width] * (depth - 1)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU(), nn.Dropout(dropout))
                for fan_in, fan_out in pairwise(widths)
            )
        )
        self.classifier = nn.Linear(widths[-1], out_dim)

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.blocks(x.flatten(1)))


class WideFCN(DeepFCN):
    """The paper's wide network: three blocks of width 8192 without dropout."""

    def __init__(self, in_dim: int, out_dim: int, *, depth: int = 3, width: int = 8192):
        super().__init__(in_dim, out_dim, depth=depth, width=width, first_width=None, dropout=0.0)


class _Layer(nn.Module):
    """A ReLU layer, to whose output its input may be added."""

    def __init__(self, fan_in: int, fan_out: int, skip: bool):
        super().__init__()
        self.linear, self.skip = nn.Linear(fan_in, fan_out), skip

    def forward(self, x: Float[Tensor, "batch fan_in"]) -> Float[Tensor, "batch fan_out"]:
        activation = self.linear(x).relu()
        return x + activation if self.skip else activation


class DeepMLP(nn.Module, PyTorchModelHubMixin, **_PAPER):  # type: ignore[arg-type, misc]
    """A stack of ReLU layers without normalisation on flattened inputs, with or without skips.

    Weights are He-initialised, biases zero. With skips a layer computes x + relu(W x + b); the first one, which
    changes the width, has none.

    Args:
        in_dim, out_dim: numbers in one input, number of classes.
        depth: number of hidden layers.
        width: of each.
        skips: add each layer's input to its output.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, in_dim: int, out_dim: int, *, depth: int = 50, width: int = 64, skips: bool = False):
        super().__init__()
        _check_sizes(in_dim=in_dim, out_dim=out_dim, depth=depth, width=width)
        self.layers = nn.Sequential(
            *(
                _Layer(fan_in, fan_out, skips and index > 0)
                for index, (fan_in, fan_out) in enumerate(pairwise([in_dim] + [width] * depth))
            )
        )
        self.classifier = nn.Linear(width, out_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch classes"]:
        return self.classifier(self.layers(x.flatten(1)))


class PlainResNet(ResNet):
    """A ResNet without its skips, which at depth 50 trains badly: the paper's other target.

    Args:
        depth, options: as for `etude.nn.resnet.ResNet`, which with its skips is the guide.
    """

    def __init__(self, depth: int | None = None, **options: Any):
        super().__init__(depth, skips=False, **options)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
