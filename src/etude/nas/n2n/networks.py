"""Chains of convolutions: teachers of the paper's VGG kind."""

from collections.abc import Sequence

from torch import nn

__all__ = ["VGG19", "chain"]

VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Widths of VGG-19; with `last_pool` and 32 x 32 pixels one Linear of 512 inputs follows."""


def chain(
    stages: Sequence[Sequence[int]],
    *,
    num_classes: int,
    in_channels: int = 3,
    size: tuple[int, int] = (32, 32),
    last_pool: bool = False,
) -> nn.Sequential:
    """Stages of [3 x 3 convolution, batch norm, ReLU] with max pools of 2 between them, and a Linear.

        chain(VGG19, num_classes=10, last_pool=True)

    Args:
        stages: widths of the convolutions of each stage.
        num_classes: of the logits.
        in_channels, size: of the images.
        last_pool: whether a pool follows the last stage, too.

    Raises:
        ValueError: if a number is not positive, or the pools leave nothing of the image.
    """
    if not stages or not all(stages) or min(width for stage in stages for width in stage) < 1:
        raise ValueError(f"stages must be lists of positive widths, got {stages}")
    pools = len(stages) - 1 + last_pool
    height, width = size[0] >> pools, size[1] >> pools
    if min(num_classes, in_channels) < 1 or min(height, width) < 1:
        raise ValueError(
            f"{pools} pools leave nothing of {size} pixels, or {num_classes} classes or {in_channels} channels are few"
        )
    modules: list[nn.Module] = []
    channels = in_channels
    for place, stage in enumerate(stages):
        for out in stage:
            modules += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        if place < pools:
            modules.append(nn.MaxPool2d(2))
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels * height * width, num_classes))
