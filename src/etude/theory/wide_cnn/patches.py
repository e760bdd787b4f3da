"""Inputs cut into a tree of patches, and what the tree's sizes say: effective dimensions of the receptive fields.

Cagnetta, Favero & Wyart, "What Can Be Learnt With Wide Convolutional Neural Networks?", ICML 2023, arXiv:2208.01003.
A network with filters s_1, ..., s_L that do not overlap sees d = s_1 ... s_L p inputs as p trees: a unit of layer l
sees a *meta-patch* of s_1 ... s_l inputs. Where each patch of s_1 inputs lies on its own unit sphere S^(s_1 - 1), as
independent and uniform points do that `sample_multisphere` draws, a meta-patch of level l has the effective dimension

    d_eff(l) = (s_1 - 1) s_2 ... s_l                                                                        (1)

Images are cut into squares: a filter of size s has s x s places, and the first one sees all channels.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["check_filters", "effective_dimensions", "fan_outs", "sample_multisphere", "to_patches"]


def check_filters(filter_sizes: Sequence[int]) -> tuple[int, ...]:
    """The filter sizes as a tuple.

    Raises:
        ValueError: if there is none, or one is not an integer >= 1.
    """
    sizes = tuple(filter_sizes)
    if not sizes or any(isinstance(size, bool) or int(size) != size or size < 1 for size in sizes):
        raise ValueError(f"filter_sizes must be one or more integers >= 1, first layer first, got {list(sizes)}")
    return tuple(int(size) for size in sizes)


def effective_dimensions(filter_sizes: Sequence[int], *, dim: int = 1, channels: int = 1) -> tuple[int, ...]:
    """d_eff(1), ..., d_eff(L), Eq. (1): the dimension of the receptive field of each layer.

        effective_dimensions([2, 2, 2])     # (1, 2, 4)

    Args:
        filter_sizes: s_1, ..., s_L.
        dim: 1 for sequences, 2 for images, whose filters have s x s places.
        channels: of the input; they belong to the patch.

    Raises:
        ValueError: if a first patch has one input: its sphere S^0 has two points, and no dimension.
    """
    sizes = check_filters(filter_sizes)
    _check_dim(dim)
    patch = channels * sizes[0] ** dim
    if patch < 2:
        raise ValueError(f"a first patch needs at least 2 inputs, got {patch}: the sphere S^0 has dimension 0")
    found = [patch - 1]
    for size in sizes[1:]:
        found.append(found[-1] * size**dim)
    return tuple(found)


def fan_outs(filter_sizes: Sequence[int], patches: int, dim: int = 1) -> tuple[int, ...]:
    """Children of a node on each level of the tree, s_2, ..., s_L and the p of the top, for so many first patches."""
    inner = [size**dim for size in check_filters(filter_sizes)[1:]]
    return (*inner, patches // math.prod(inner))


def to_patches(
    x: Float[Tensor, "n *shape"], filter_sizes: Sequence[int], *, dim: int = 1
) -> Float[Tensor, "n patches patch_dim"]:
    """The first layer's patches, in an order in which the children of every node of the tree stand side by side.

    Args:
        x: (n, d) or (n, channels, d) for `dim` 1, (n, channels, height, width) for `dim` 2.
        filter_sizes: s_1, ..., s_L.
        dim: 1 or 2.

    Raises:
        ValueError: if the shape does not fit `dim`, or s_1 ... s_L does not divide a side of the input.
    """
    sizes = check_filters(filter_sizes)
    _check_dim(dim)
    if x.ndim == 2 and dim == 1:
        x = x[:, None]
    if x.ndim != dim + 2:
        expected = "(n, d) or (n, channels, d)" if dim == 1 else "(n, channels, height, width)"
        raise ValueError(f"x must have shape {expected} for dim={dim}, got {tuple(x.shape)}")
    product = math.prod(sizes)
    for side in x.shape[2:]:
        if side == 0 or side % product:
            raise ValueError(
                f"filter_sizes {list(sizes)} have the product {product}, which does not divide the side {side} of "
                f"inputs of shape {tuple(x.shape[1:])}"
            )
    n, channels = x.shape[:2]
    # Each side becomes (p, s_L, ..., s_1); then the levels come first, and what one first patch sees comes last.
    split = [length for side in x.shape[2:] for length in (side // product, *reversed(sizes))]
    levels = len(sizes) + 1
    x = x.reshape(n, channels, *split)
    order = [2 + axis * levels + level for level in range(levels - 1) for axis in range(dim)]
    inside = [2 + axis * levels + levels - 1 for axis in range(dim)]
    return x.permute(0, *order, 1, *inside).reshape(n, -1, channels * sizes[0] ** dim)


def sample_multisphere(
    n: int, num_patches: int, patch_dim: int, generator: torch.Generator | None = None
) -> Float[Tensor, "n inputs"]:
    """n inputs of `num_patches` patches, each uniform on its own sphere S^(patch_dim - 1); float64.

    Raises:
        ValueError: if a size is not positive, or `patch_dim` < 2.
    """
    if n < 1 or num_patches < 1:
        raise ValueError(f"n and num_patches must be at least 1, got {n} and {num_patches}")
    if patch_dim < 2:
        raise ValueError(f"patch_dim must be at least 2 (the circle S^1), got {patch_dim}: S^0 has two points")
    x = torch.randn(n, num_patches, patch_dim, generator=generator, dtype=torch.float64)
    return (x / x.norm(dim=2, keepdim=True)).flatten(1)


def in_double(x: Tensor, name: str) -> Tensor:
    """x in float64, with a warning where that has to be made of less.

    Raises:
        TypeError: if x is not floating point. ValueError: if a value is not finite.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
    if x.dtype != torch.float64:
        warnings.warn(
            f"{name} is {x.dtype} and was converted to float64: near equal patches the arc cosine of a {x.dtype} inner "
            "product is wrong by 3e-4; give float64 to silence this",
            stacklevel=4,
        )
    return x.to(torch.float64)


def _check_dim(dim: int) -> None:
    if dim not in (1, 2):
        raise ValueError(f"dim must be 1 (sequences) or 2 (images), got {dim}")
