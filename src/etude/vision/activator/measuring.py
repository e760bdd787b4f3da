"""What the blocks cost, and whether they see how patches are arranged."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from etude.loop.evaluation import device_of, mode

__all__ = ["count_macs", "count_parameters", "shuffle_patches"]


def count_macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one forward pass: of matrix products, convolutions and attention, counted as they run.

    What works element by element (activations, norms, skips, the gate's product) is not counted.

    Args:
        model: in any mode; it runs in evaluation mode, without gradient, on zeros.
        input_shape: (batch, channels, height, width); with a batch of 1 the cost of one image.
    """
    # The counter does not know the CPU's fused attention; written out, attention is two matrix products.
    counter = FlopCounterMode(display=False)
    with mode(model, training=False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(torch.zeros(*input_shape, device=device_of(model)))
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Numbers that are learned."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def shuffle_patches(
    images: Float[Tensor, "batch channels height width"], patch_size: int, generator: torch.Generator | None = None
) -> Float[Tensor, "batch channels height width"]:
    """The images with their patches in a random order, another for each image: what is left is the bag of patches.

    Args:
        images: whose sides are multiples of the patch.
        patch_size: side of a patch.
        generator: CPU generator of the orders; the global one if None.

    Raises:
        ValueError: if a side is no multiple of the patch.
    """
    batch, _, height, width = images.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"sides must be multiples of the patch, {patch_size}, got {height} x {width}")
    rows = images.unflatten(2, (-1, patch_size)).unflatten(4, (-1, patch_size))
    patches = rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(batch, patches.shape[1], generator=generator).argsort(1).to(images.device)
    patches = patches[torch.arange(batch, device=images.device)[:, None], order]
    grid = patches.unflatten(1, (height // patch_size, width // patch_size))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
