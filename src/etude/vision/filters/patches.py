"""Patches: drawn at random, contrast-normalised, whitened.

Coates & Ng, "Learning Feature Representations with K-Means", 2012.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Whitening", "contrast_normalised", "sample_patches"]


def sample_patches(
    images: Float[Tensor, "n channels height width"],
    size: int,
    num: int,
    *,
    min_std: float | int = 0.02,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "patches channels size size"]:
    """Patches at random places of random images, without those that are nearly constant.

    Only the patches drawn are ever held in memory: as many draws are made as it takes, up to 20 times `num`.

    Args:
        images: where they come from.
        size: side of a patch in pixels.
        num: patches wanted.
        min_std: patches of a smaller standard deviation, in the images' unit, are dropped.
        generator: source of the draws.

    Returns:
        At most `num` patches; fewer if most of the images is constant.

    Raises:
        ValueError: if images are smaller than a patch, or none but nearly constant patches are found.
    """
    n, _, height, width = images.shape
    if size < 1 or num < 1:
        raise ValueError(f"size and num must be positive, got {size} and {num}")
    if min(height, width) < size:
        raise ValueError(f"patches of {size} x {size} do not fit into images of {height} x {width}")
    offsets = torch.arange(size, device=images.device)
    kept: list[Tensor] = []
    found = drawn = 0
    while found < num and drawn < 20 * num:
        count = max(num, 256)
        image, row, column = (
            torch.randint(0, high, (count,), generator=generator).to(images.device)
            for high in (n, height - size + 1, width - size + 1)
        )
        rows, columns = row[:, None, None] + offsets[:, None], column[:, None, None] + offsets
        patches = images[image[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
        patches = patches[patches.flatten(1).std(dim=1, correction=0) >= min_std]
        kept.append(patches)
        found, drawn = found + len(patches), drawn + count
    if found == 0:
        raise ValueError(f"all of {drawn} patches are nearly constant (standard deviation below {min_std})")
    return torch.cat(kept)[:num].contiguous()


def contrast_normalised(patches: Float[Tensor, "n *shape"], eps: float | int = 0.01) -> Float[Tensor, "n dim"]:
    """Each patch flattened, less its mean, divided by its standard deviation plus `eps`."""
    rows = patches.flatten(1)
    centred = rows - rows.mean(dim=1, keepdim=True)
    return centred / (centred.std(dim=1, correction=0, keepdim=True) + eps)


@dataclass(frozen=True)
class Whitening:
    """ZCA whitening: W = U diag(1 / sqrt(l + reg)) U^T of the covariance U diag(l) U^T of the patches.

    Whitened patches have the covariance U diag(l / (l + reg)) U^T; along the constant direction, which patches less
    their means do not have, it is 0.

    Attributes:
        mean: of the patches. matrix: W, symmetric. Both float64.
    """

    mean: Tensor
    matrix: Tensor

    @classmethod
    def fit(cls, rows: Float[Tensor, "n dim"], reg: float | int = 0.1) -> "Whitening":
        """Whitening of these rows; `reg` is in the unit of their variance.

        Raises:
            ValueError: if `reg` is negative, or 0 where the covariance is singular, or all rows are alike.
        """
        if reg < 0:
            raise ValueError(f"reg must not be negative, got {reg}")
        data = rows.double()
        mean = data.mean(dim=0)
        centred = data - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(data))
        if not bool(values[-1] > 1e-12):
            raise ValueError("the patches are all alike: there is no variance to whiten")
        if reg == 0 and bool(values[0] <= 1e-9 * values[-1]):
            raise ValueError("the patches' covariance is singular (their means are removed): reg must be positive")
        scale = (values.clamp_min(0) + reg).rsqrt()
        return cls(mean, vectors * scale @ vectors.T)

    def __call__(self, rows: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        return ((rows.double() - self.mean) @ self.matrix).to(rows.dtype)

    def filters(self, directions: Float[Tensor, "num dim"]) -> Float[Tensor, "num dim"]:
        """Filters on unwhitened patches that respond as `directions` do on whitened ones, up to a constant."""
        return (directions.double() @ self.matrix).to(directions.dtype)
