"""Size, shape and number of filters: what replaces a large kernel, and how many filters a budget buys.

Simonyan & Zisserman, arXiv:1409.1556 (stacks of 3x3); Szegedy et al., arXiv:1512.00567 (1xk and kx1); Chollet,
arXiv:1610.02357 (depthwise separable); Yu & Koltun, arXiv:1511.07122 (dilated); Han, Kim & Kim, arXiv:1610.02915
(pyramidal growth).
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

__all__ = [
    "SHAPES", "conv_block", "conv_parameters", "equivalent_stack", "factorise", "filter_count_rules", "separable_ratio",
]  # fmt: skip

SHAPES = ("single", "stack", "factorised", "separable", "dilated", "pointwise")
_RULES = ("constant", "doubling", "pyramidal")


def equivalent_stack(kernel_size: int) -> tuple[int, ...]:
    """The stack of 3x3 convolutions with the receptive field of one `kernel_size` convolution: two for 5, three for 7.

    At C channels it has 9 C^2 weights a layer against kernel_size^2 C^2: 18 to 25, 27 to 49.

    Raises:
        ValueError: if the size is even or below 3.
    """
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}")
    return (3,) * ((kernel_size - 1) // 2)


def factorise(kernel_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two kernels, 1 x k and k x 1, whose sequence covers k x k with 2 k weights instead of k^2."""
    if kernel_size < 2:
        raise ValueError(f"kernel_size must be at least 2, got {kernel_size}")
    return (1, kernel_size), (kernel_size, 1)


def separable_ratio(kernel_size: int, out_chans: int) -> float:
    """Weights of a depthwise-separable convolution as a share of the full one's: 1 / out_chans + 1 / k^2."""
    if kernel_size < 1 or out_chans < 1:
        raise ValueError(f"kernel_size and out_chans must be positive, got {kernel_size} and {out_chans}")
    return 1 / out_chans + 1 / kernel_size**2


def conv_parameters(module: nn.Module) -> int:
    """Weights of all convolutions in a module, biases left out."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))


def conv_block(
    in_chans: int, out_chans: int, kernel_size: int, shape: str = "single", *, activation: bool = True
) -> nn.Sequential:
    """Convolutions that keep the image's size and stand in for one of `kernel_size` x `kernel_size`.

        block = conv_block(16, 16, 5, "stack")         # two 3x3 convolutions with ReLUs: 18 C^2 weights, not 25 C^2

    Args:
        in_chans, out_chans: channels.
        kernel_size: odd, at least 3: the receptive field of every shape but "pointwise".
        shape: "single" (one convolution), "stack" (of 3x3), "factorised" (1xk, kx1), "separable" (depthwise, 1x1),
            "dilated" (3x3 with gaps, 9 weights a channel pair) or "pointwise" (1x1, no field at all).
        activation: a ReLU after each convolution; a depthwise one has none.

    Raises:
        ValueError: if the shape is unknown or a size out of range.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {shape!r}")
    if in_chans < 1 or out_chans < 1:
        raise ValueError(f"in_chans and out_chans must be positive, got {in_chans} and {out_chans}")
    depth = len(equivalent_stack(kernel_size))
    reach = kernel_size // 2
    if shape == "stack":
        inputs = [in_chans] + [out_chans] * (depth - 1)
        convs = [nn.Conv2d(chans, out_chans, 3, padding=1) for chans in inputs]
    elif shape == "factorised":
        across, down = factorise(kernel_size)
        convs = [
            nn.Conv2d(in_chans, out_chans, across, padding=(0, reach)),
            nn.Conv2d(out_chans, out_chans, down, padding=(reach, 0)),
        ]
    elif shape == "separable":
        depthwise = nn.Conv2d(in_chans, in_chans, kernel_size, padding=reach, groups=in_chans, bias=False)
        after = [nn.ReLU()] if activation else []
        return nn.Sequential(depthwise, nn.Conv2d(in_chans, out_chans, 1), *after)
    elif shape == "dilated":
        convs = [nn.Conv2d(in_chans, out_chans, 3, padding=reach, dilation=reach)]
    else:
        side = 1 if shape == "pointwise" else kernel_size
        convs = [nn.Conv2d(in_chans, out_chans, side, padding=side // 2)]
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [conv, nn.ReLU()] if activation else [conv]
    return nn.Sequential(*layers)


def filter_count_rules(
    rule: str,
    budget: int,
    strides: Sequence[int],
    *,
    in_chans: int = 3,
    kernel_size: int = 3,
    num_classes: int = 0,
    growth: float | int = 4.0,
) -> list[int]:
    """Filters of each layer by a rule, with as many parameters as a budget allows.

    Args:
        rule: "constant", "doubling" (at each stride above 1 but the first layer's, as in VGG and ResNet) or
            "pyramidal" (linear growth; the last layer has `growth` times the first's filters).
        budget: weights of all convolutions and of a linear head on pooled features, biases left out.
        strides: of each layer; as many as there are layers.
        in_chans: of the image. kernel_size: of all layers. num_classes: of the head; none if 0.
        growth: of "pyramidal".

    Returns:
        The largest widths of the rule within the budget.

    Raises:
        ValueError: if the rule is unknown, or not even single filters fit the budget.
    """
    if rule not in _RULES:
        raise ValueError(f"rule must be one of {', '.join(_RULES)}, got {rule!r}")
    if not strides or min(strides) < 1 or kernel_size < 1 or in_chans < 1 or growth < 1:
        raise ValueError(
            f"strides, kernel_size, in_chans and growth must be at least 1, got {list(strides)}, {kernel_size}, "
            f"{in_chans} and {growth}"
        )
    if rule == "constant":
        shares = [1.0] * len(strides)
    elif rule == "pyramidal":
        shares = [1 + (growth - 1) * place / max(len(strides) - 1, 1) for place in range(len(strides))]
    else:
        shares, share = [], 1.0
        for place, stride in enumerate(strides):
            share *= 2.0 if place and stride > 1 else 1.0
            shares.append(share)

    def widths(first: int) -> list[int]:
        return [max(1, round(first * share)) for share in shares]

    def cost(first: int) -> int:
        chans = [in_chans, *widths(first)]
        return sum(kernel_size**2 * a * b for a, b in pairwise(chans)) + num_classes * chans[-1]

    if cost(1) > budget:
        raise ValueError(
            f"the smallest widths {widths(1)} take {cost(1):,} weights, more than the budget of {budget:,}"
        )
    low, high = 1, 2
    while cost(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return widths(low)
