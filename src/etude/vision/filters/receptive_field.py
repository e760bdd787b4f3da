"""Receptive fields: the theoretical one from kernels and strides, the effective one from gradients.

With kernels k_l (dilated: 1 + (k - 1) d), strides s_l and r_0 = 1,

    r_{l+1} = r_l + (k_l - 1) prod_{i < l} s_i                                                              (1)

Luo, Li, Urtasun & Zemel, "Understanding the effective receptive field in deep convolutional neural networks", 2016.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.loop.evaluation import mode

__all__ = ["ReceptiveField", "effective_receptive_field"]

_SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_WHOLE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Linear, nn.Flatten)


@dataclass(frozen=True)
class ReceptiveField:
    """What one output position in the middle of a feature map sees of the input.

    Attributes:
        theoretical: height and width by Eq. (1), if the layers were one chain.
        stride: input pixels between neighbouring outputs, down and across.
        layers: (name, height, width) of the field after each layer of the chain.
        heat: mean |gradient| of the middle output by each input pixel, summed over channels, (height, width).
        support: height and width of the box outside of which the gradient is zero.
        radius: root-mean-square distance, in pixels, of the gradient's weight from its centre.
        energy_side: side of the square about the centre that holds 95 % of the gradient's weight.
        cut: whether the support touches the border of the input, so that it may be larger than shown.
    """

    theoretical: tuple[int, int]
    stride: tuple[int, int]
    layers: tuple[tuple[str, int, int], ...]
    heat: Tensor
    support: tuple[int, int]
    radius: float
    energy_side: int
    cut: bool

    def plot(self) -> Any:
        """The gradient's weight over the input, with the theoretical field's box: a `matplotlib.figure.Figure`."""
        from etude.vision.filters.plots import plot_receptive_field

        return plot_receptive_field(self)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def effective_receptive_field(
    model: nn.Module,
    size: int | tuple[int, int] = 64,
    in_chans: int | None = None,
    *,
    samples: int = 8,
    generator: torch.Generator | None = None,
) -> ReceptiveField:
    """The receptive field of the middle of a model's last feature map.

        field = effective_receptive_field(resnet, size=224)

    Pass the convolutional part, or the whole classifier: its last output of four dimensions before a global pooling, a
    flattening or a linear layer is looked at. In a network with branches the theoretical field follows the layers as
    they are called, which is an upper bound; `support` is what is really reached.

    Args:
        model: runs on (samples, in_chans, height, width); in evaluation mode, its weights as they are.
        size: of the input, larger than the receptive field.
        in_chans: of the input; those of the first convolution if None.
        samples: standard normal inputs over which |gradient| is averaged.
        generator: source of the inputs.

    Raises:
        ValueError: if the model has no convolution, or no feature map.
    """
    height, width = _pair(size)
    if in_chans is None:
        first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
        if first is None:
            raise ValueError("the model has no Conv2d, so in_chans must be given")
        in_chans = first.in_channels
    x = torch.randn(samples, in_chans, height, width, generator=generator)
    parameter = next(model.parameters(), None)
    x = (x if parameter is None else x.to(parameter)).requires_grad_()
    reached: list[tuple[str, nn.Module]] = []
    maps: list[Tensor] = []
    ended = False

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal ended
            if isinstance(module, _WHOLE):
                ended = True
            if ended:
                return
            if isinstance(module, _SLIDING):
                reached.append((name, module))
            if isinstance(output, Tensor) and output.ndim == 4:
                maps.append(output)

        return hook

    with mode(model, training=False), torch.enable_grad(), ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, _SLIDING + _WHOLE):
                stack.callback(module.register_forward_hook(record(name)).remove)
        output = model(x)
        if not ended and isinstance(output, Tensor) and output.ndim == 4:
            maps.append(output)
        if not maps:
            raise ValueError("the model gives out no feature map of four dimensions")
        last = maps[-1]
        middle = last[:, :, last.shape[2] // 2, last.shape[3] // 2].sum()
        (gradient,) = torch.autograd.grad(middle, x)
    heat = gradient.abs().sum(dim=1).mean(dim=0).double()
    field, stride, layers = (1, 1), (1, 1), []
    for name, module in reached:
        kernel, step = _pair(module.kernel_size), _pair(module.stride)  # type: ignore[arg-type]
        dilation = _pair(getattr(module, "dilation", 1))
        field = tuple(f + d * (k - 1) * s for f, k, d, s in zip(field, kernel, dilation, stride))  # type: ignore
        stride = (stride[0] * step[0], stride[1] * step[1])
        layers.append((name, *field))
    return ReceptiveField(field, stride, tuple(layers), heat, *_measured(heat))


def _measured(heat: Tensor) -> tuple[tuple[int, int], float, int, bool]:
    rows, columns = (torch.nonzero(heat.sum(dim=axis) > 0).flatten() for axis in (1, 0))
    if not len(rows):
        raise ValueError("the output does not depend on the input: its gradient is zero everywhere")
    support = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
    cut = bool(rows[0] == 0 or columns[0] == 0 or rows[-1] == heat.shape[0] - 1 or columns[-1] == heat.shape[1] - 1)
    share = heat / heat.sum()
    down, across = torch.meshgrid(*(torch.arange(side).double() for side in heat.shape), indexing="ij")
    centre_down, centre_across = (share * down).sum(), (share * across).sum()
    radius = (share * ((down - centre_down) ** 2 + (across - centre_across) ** 2)).sum().sqrt()
    reach = torch.maximum((down - centre_down).abs(), (across - centre_across).abs()).flatten()
    order = reach.argsort()
    held = share.flatten()[order].cumsum(0)
    outer = reach[order][int(torch.searchsorted(held, torch.tensor(0.95).double()).clamp_max(len(held) - 1))]
    return support, float(radius), round(2 * float(outer) + 1), cut
