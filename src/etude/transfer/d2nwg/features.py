"""Frozen features of inputs, on which data sets are encoded and heads are trained."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["PrincipalFeatures"]


class PrincipalFeatures:
    """Principal components, between raw and whitened: each is divided by the root of its standard deviation.

        features = PrincipalFeatures(20).fit(images_of_training_classes)
        z = features(images)                                     # (n, 20)

    Fit it on classes from which the zoo is made and on no others. Any frozen extractor, such as the image encoder of
    CLIP, may stand in its place.

    Args:
        dim: components; fewer if there are fewer rows or entries.
        power: of the division by the standard deviation: 0 not at all, 1 whitening.
    """

    def __init__(self, dim: int, *, power: float | int = 0.5):
        if dim < 1 or not 0 <= power <= 1:
            raise ValueError(f"dim must be positive and power lie in 0..1, got {dim} and {power}")
        self.dim, self.power = dim, power
        self.mean: Tensor | None = None
        self.maps: Tensor | None = None

    def fit(self, x: Float[Tensor, "n *entries"]) -> "PrincipalFeatures":
        """Raises ValueError if there are fewer than two rows, or they do not differ."""
        flat = x.flatten(1).double()
        if len(flat) < 2 or not bool(torch.isfinite(flat).all()):
            raise ValueError(f"expected two finite rows or more, got shape {tuple(x.shape)}")
        if bool((flat == flat[0]).all()):
            raise ValueError("all rows are equal: there are no components")
        mean = flat.mean(dim=0)
        axes, variances = _principal_axes(flat - mean, min(self.dim, len(flat) - 1, flat.shape[1]))
        kept = variances > 1e-18 * variances.max()
        # Axes have no sign: the largest entry of each is positive.
        signs = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
        maps = (axes * signs)[:, kept] / variances[kept].sqrt() ** self.power
        self.mean, self.maps = mean.float(), maps.float()
        return self

    @property
    def out_dim(self) -> int:
        """Components found."""
        return self._fitted()[1].shape[1]

    def _fitted(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.maps is None:
            raise RuntimeError("fit the features first")
        return self.mean, self.maps

    def __call__(self, x: Float[Tensor, "n *entries"]) -> Float[Tensor, "n dim"]:
        mean, maps = self._fitted()
        flat = x.flatten(1)
        if flat.shape[1] != len(mean):
            raise ValueError(f"expected rows of {len(mean)} entries, got shape {tuple(x.shape)}")
        return (flat - mean.to(flat)) @ maps.to(flat)


_EXACT = 2048
"""Rows or entries up to which the spectrum is exact; beyond, randomised with seed 0."""


def _principal_axes(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first axes as columns, and the variances along them."""
    if centred.shape[1] <= _EXACT:
        values, vectors = torch.linalg.eigh(centred.T @ centred / (len(centred) - 1))
        return vectors.flip(1)[:, :count], values.flip(0)[:count].clamp_min(0)
    if len(centred) <= _EXACT:
        _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
        return axes[:count].T, singular[:count].square() / (len(centred) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, singular, axes = torch.svd_lowrank(centred, q=min(count + 10, *centred.shape), niter=4)
    return axes[:, :count], singular[:count].square() / (len(centred) - 1)
