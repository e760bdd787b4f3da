"""Networks whose weights carry the prior: the scaling by the fan-in stands in the forward pass.

Tran, Rossi, Milios & Filippone, JMLR 23, 2022, arXiv:2011.12829, Eq. 1:

    f_l(x) = W_l phi(f_(l-1)(x)) / sqrt(D_(l-1)) + b_l                                                       (1)

so that a prior of standard deviation 1 means the same at every width, and a wide network tends to a Gaussian process.
Convolutions are scaled by their fan-in alike.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "MLP", "LeNet5", "PreResNet", "ScaledConv2d", "ScaledLinear", "activation_function"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "erf": torch.erf,
    "sin": torch.sin,
    "softplus": F.softplus,
}


def activation_function(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function by its name, or the function itself.

    Raises:
        ValueError: if the name is unknown.
    """
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be a function or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]


class ScaledLinear(nn.Module):
    """x W^T / sqrt(in) + b, Eq. (1); W and b start as draws from N(0, 1).

    Args:
        in_features, out_features: sizes. bias: whether there is a b.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        if min(in_features, out_features) < 1:
            raise ValueError(f"in_features and out_features must be positive, got {in_features} and {out_features}")
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.randn(out_features)) if bias else None
        self.scale = in_features**-0.5

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        return F.linear(x, self.weight * self.scale, self.bias)


class ScaledConv2d(nn.Module):
    """A convolution by W / sqrt(in size^2), plus b; W and b start as draws from N(0, 1).

    Args:
        in_channels, out_channels: of the images.
        size: of the square kernel.
        stride, padding: as for `torch.nn.functional.conv2d`.
        bias: whether there is a b.
    """

    def __init__(
        self, in_channels: int, out_channels: int, size: int, stride: int = 1, padding: int = 0, bias: bool = True
    ):
        super().__init__()
        if min(in_channels, out_channels, size, stride) < 1 or padding < 0:
            raise ValueError(
                "channels, size and stride must be positive and padding not negative, got "
                f"{in_channels}, {out_channels}, {size}, {stride} and {padding}"
            )
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.randn(out_channels)) if bias else None
        self.scale = (in_channels * size * size) ** -0.5
        self.stride, self.padding = stride, padding

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out_channels h w"]:
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class MLP(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2011.12829"):
    """A fully connected network, Eq. (1).

        MLP(13, [100])                       # the paper's network for tables: one hidden layer of 100 tanh
        MLP(2, [50, 50], out_features=3)     # logits of three classes

    Args:
        in_features: columns of the data.
        hidden: widths of the hidden layers; empty for a linear model.
        out_features: outputs.
        activation: "tanh", "relu", "erf", "sin" or "softplus", or an elementwise function.

    Raises:
        ValueError: if a size is not positive or the activation unknown.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (100,),
        out_features: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
    ):
        super().__init__()
        self.activation = activation_function(activation)
        sizes = [in_features, *hidden, out_features]
        self.layers = nn.ModuleList([ScaledLinear(n, m) for n, m in pairwise(sizes)])

    def forward(self, x: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


class LeNet5(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2011.12829"):
    """Two convolutions of 5 x 5 with 2 x 2 max pooling and three linear layers, scaled as in Eq. (1).

    LeCun, Bottou, Bengio & Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998; with ReLU.

    Args:
        in_channels: of the images. num_classes: of the logits.
        size: height and width of the images, at least 16.

    Raises:
        ValueError: if a number is not positive or the images are too small.
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, size: int = 28):
        super().__init__()
        if size < 16:
            raise ValueError(f"size must be at least 16 for two convolutions and poolings, got {size}")
        side = ((size - 4) // 2 - 4) // 2
        self.conv1, self.conv2 = ScaledConv2d(in_channels, 6, 5), ScaledConv2d(6, 16, 5)
        self.fc1, self.fc2 = ScaledLinear(16 * side * side, 120), ScaledLinear(120, 84)
        self.fc3 = ScaledLinear(84, num_classes)

    def forward(self, x: Float[Tensor, "batch in_channels size size"]) -> Float[Tensor, "batch num_classes"]:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


class _PreActivationBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = ScaledConv2d(channels, width, 3, stride, 1, bias=False)
        self.conv2 = ScaledConv2d(width, width, 3, 1, 1, bias=False)
        changed = stride != 1 or channels != width
        self.shortcut = ScaledConv2d(channels, width, 1, stride, bias=False) if changed else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(_normalized(x).relu())
        out = self.conv2(_normalized(out).relu())
        return out + (x if self.shortcut is None else self.shortcut(x))


class PreResNet(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2011.12829"):
    """A residual network with pre-activation for small images; PreResNet(20) is the paper's for CIFAR-10.

    He, Zhang, Ren & Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, with convolutions as in Eq. (1).
    As in the paper's experiments the normalisation has neither weights nor memory: each channel is brought to mean 0
    and variance 1 over the batch at hand, in training and prediction alike, so that a prediction depends a little on
    what it is batched with.

    Args:
        depth: 6 n + 2, for n blocks in each of three stages.
        num_classes: of the logits. in_channels: of the images.
        widths: channels of the stages.

    Raises:
        ValueError: if the depth is not 6 n + 2 or a number is not positive.
    """

    def __init__(
        self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64)
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6 n + 2 with n >= 1, such as 8, 14 or 20, got {depth}")
        channels = widths[0]
        self.conv1 = ScaledConv2d(in_channels, channels, 3, padding=1, bias=False)
        blocks = []
        for stage, width in enumerate(widths):
            for place in range((depth - 2) // 6):
                blocks.append(_PreActivationBlock(channels, width, 2 if stage and not place else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = ScaledLinear(channels, num_classes)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch num_classes"]:
        x = _normalized(self.blocks(self.conv1(x))).relu()
        return self.fc(x.mean(dim=(2, 3)))


def _normalized(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(0, 2, 3), keepdim=True, correction=0)
    return (x - mean) * torch.rsqrt(variance + math.ulp(1.0))
