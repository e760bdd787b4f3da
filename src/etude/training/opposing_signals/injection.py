"""Planting opposing signals in data, and taking examples out.

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163. In natural data the paper finds one large feature in images of different classes: a sky behind
planes, and behind birds and boats. Planted, the groups are known, so that what finds them can be checked.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["PatchedImages", "colour_shift", "inject_opposing_patch", "remove_examples"]


@dataclass(frozen=True, eq=False)
class PatchedImages:
    """Images of which some carry a planted feature.

    Attributes:
        x, y: all images and their labels, in the order given.
        groups: the rows that carry the feature, one tensor for each class.
        pattern: the feature, of unit norm; each of the rows had `amplitude * pattern` added.
    """

    x: Float[Tensor, "n *image"]
    y: Int64[Tensor, " n"]
    groups: tuple[Int64[Tensor, " members"], ...]
    pattern: Float[Tensor, "*image"]

    @property
    def rows(self) -> Int64[Tensor, " planted"]:
        """All rows that carry the feature."""
        return torch.cat(self.groups)


def inject_opposing_patch(
    x: Float[Tensor, "n *image"],
    y: Int64[Tensor, " n"],
    *,
    classes: Iterable[int],
    fraction: float,
    amplitude: float,
    mask: Bool[Tensor, "..."] | None = None,
    generator: torch.Generator | None = None,
) -> PatchedImages:
    """Adds one large feature to equally many images of each of several classes, labels unchanged.

    Two classes oppose each other; with one class the same outliers agree on their label, which is the control.

    Args:
        x: images (n, channels, height, width), or rows of features.
        y: their classes.
        classes: which classes receive the feature; at least one.
        fraction: of all n images, for each class.
        amplitude: norm of what is added to an image, finite; its sign counts.
        mask: of one image's shape: the entries that are shifted, all by one amount; if None the top quarter of an
            image, or the first quarter of a row of features.
        generator: of the choice of images; seeded with 0 if None.

    Raises:
        ValueError: if a class has too few images, or an argument is out of range.
    """
    labels = list(dict.fromkeys(int(label) for label in classes))
    if not labels:
        raise ValueError("classes must name at least one class")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if not abs(amplitude) < float("inf"):
        raise ValueError(f"amplitude must be finite, got {amplitude}")
    if len(x) != len(y) or x.ndim < 2:
        raise ValueError(f"x must have a row per label and a feature axis, got {tuple(x.shape)} and {tuple(y.shape)}")
    count = max(1, round(fraction * len(x)))
    pattern = _pattern(x, mask)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    groups = []
    for label in labels:
        members = torch.nonzero(y.cpu() == label).squeeze(1)
        if len(members) < count:
            raise ValueError(
                f"class {label} has {len(members)} images; a fraction of {fraction:g} of {len(x)} needs {count}"
            )
        groups.append(members[torch.randperm(len(members), generator=generator)[:count]].sort().values)
    patched = x.clone()
    patched[torch.cat(groups).to(x.device)] += amplitude * pattern
    return PatchedImages(patched, y, tuple(groups), pattern)


def remove_examples(
    x: Float[Tensor, "n *image"], y: Tensor, rows: Iterable[int] | Tensor
) -> tuple[Float[Tensor, "m *image"], Tensor, Int64[Tensor, " m"]]:
    """The examples without those at `rows`, and the rows that are left.

    Raises:
        ValueError: if a row does not exist, or none would be left.
    """
    index = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), dtype=torch.int64).cpu()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(x):
        raise ValueError(f"rows must lie in 0..{len(x) - 1}, got {int(index.min())}..{int(index.max())}")
    keep = torch.ones(len(x), dtype=torch.bool)
    keep[index] = False
    kept = torch.nonzero(keep).squeeze(1)
    if not len(kept):
        raise ValueError(f"removing {len(index)} of {len(x)} examples leaves none")
    return x[kept.to(x.device)], y[kept.to(y.device)], kept


def colour_shift(
    x: Float[Tensor, "n channels height width"],
    colour: Iterable[float] = (0.53, 0.81, 0.92),
    strength: float = 0.5,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "n channels height width"]:
    """Images whose background is drawn towards one colour, to see how predictions follow it.

    Args:
        x: images in [0, 1].
        colour: one value for each channel; a sky blue by default.
        strength: 0 leaves the image, 1 replaces it.
        mask: the pixels that count as background, (height, width) or (n, height, width); all of them if None.

    Raises:
        ValueError: if the colour has not one value for each channel, or the strength lies outside [0, 1].
    """
    values = torch.as_tensor(list(colour), dtype=x.dtype, device=x.device)
    if len(values) != x.shape[1]:
        raise ValueError(f"colour must have one value for each of {x.shape[1]} channels, got {len(values)}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must lie in [0, 1], got {strength}")
    weight = x.new_tensor(strength)
    if mask is not None:
        if mask.shape not in (x.shape[2:], (len(x), *x.shape[2:])):
            raise ValueError(
                f"mask must have shape {tuple(x.shape[2:])} or {(len(x), *x.shape[2:])}, got {tuple(mask.shape)}"
            )
        weight = strength * mask.to(x).reshape(-1, 1, *x.shape[2:])
    return x + weight * (values[:, None, None] - x)


def _pattern(x: Tensor, mask: Tensor | None) -> Tensor:
    shape = x.shape[1:]
    if mask is None:
        mask = torch.zeros(shape, dtype=torch.bool)
        axis = max(len(shape) - 2, 0)
        mask.narrow(axis, 0, max(1, shape[axis] // 4)).fill_(True)
    if mask.shape != shape:
        raise ValueError(f"mask must have the shape of one image, {tuple(shape)}, got {tuple(mask.shape)}")
    if not bool(mask.any()):
        raise ValueError("mask selects no entry")
    pattern = mask.to(x)
    return pattern / pattern.norm()
