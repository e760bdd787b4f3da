"""Labels of different tasks on one scale, and back.

Mills et al., arXiv:2211.17228, and the authors' code: standardisation, y' = (y - mean) / std, or after a division by
log10(F + 1) + 1, F the multiply-adds of the network.
"""

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["TargetScaler"]

_KINDS = ("none", "standard", "standard_flops")


class TargetScaler:
    """Brings labels to mean 0 and standard deviation 1.

    Fit it on labels that may be seen: those of a task to train an adapter on, or of the few networks of a target to
    fine-tune on, never on test labels (which the authors' code does when it is given no others).

        scaler = TargetScaler().fit(y)
        scaler.inverse_transform(model_output)

    Args:
        kind: "none" changes nothing; "standard"; "standard_flops" divides by log10(F + 1) + 1 first.

    Attributes:
        mean, std: of what was fitted.
    """

    def __init__(self, kind: str = "standard"):
        if kind not in _KINDS:
            raise ValueError(f"scaling must be one of {', '.join(_KINDS)}, got {kind!r}")
        self.kind = kind
        self.mean, self.std = 0.0, 1.0

    def fit(self, y: ArrayLike, flops: ArrayLike | None = None) -> "TargetScaler":
        """Takes mean and standard deviation (over n) of labels.

        Args:
            y: (n,) labels, finite; at least 2 unless `kind` is "none".
            flops: (n,) multiply-adds, needed by "standard_flops".

        Raises:
            ValueError: if labels are NaN, fewer than 2, or all alike, or `flops` is needed and missing.
        """
        values = self._divided(check_labels(y, 1 if self.kind == "none" else 2), flops)
        if self.kind != "none":
            self.mean, self.std = float(values.mean()), float(values.std())
            if self.std <= 1e-12 * max(abs(self.mean), 1e-300):
                raise ValueError(f"the {len(values)} labels are all {values[0]:.6g}: there is nothing to learn from")
        return self

    def transform(self, y: ArrayLike, flops: ArrayLike | None = None) -> np.ndarray:
        """Labels on the common scale."""
        return (self._divided(check_labels(y), flops) - self.mean) / self.std

    def inverse_transform(self, z: ArrayLike, flops: ArrayLike | None = None) -> np.ndarray:
        """Predictions in the label's own unit."""
        z = np.asarray(z, dtype=np.float64)
        return (z * self.std + self.mean) * self._divisor(len(z), flops)

    def scale(self, n: int, flops: ArrayLike | None = None) -> np.ndarray:
        """(n,) what one unit of the common scale is worth in the label's unit."""
        return self.std * self._divisor(n, flops)

    def _divided(self, y: np.ndarray, flops: ArrayLike | None) -> np.ndarray:
        return y / self._divisor(len(y), flops)

    def _divisor(self, n: int, flops: ArrayLike | None) -> np.ndarray:
        if self.kind != "standard_flops":
            return np.ones(n)
        if flops is None:
            raise ValueError("scaling 'standard_flops' divides by the networks' FLOPs: give flops=")
        values = np.asarray(flops, dtype=np.float64)
        if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"flops must be {n} finite numbers >= 0, got {np.array2string(values, threshold=6)}")
        return np.log10(values + 1) + 1


def check_labels(y: ArrayLike, at_least: int = 0) -> np.ndarray:
    """Labels as float64 (n,).

    Raises:
        ValueError: if they are not one row of finite numbers, or too few.
    """
    values = np.asarray(y, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"labels must be (n,), got shape {values.shape}")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"label {bad[0]} is {values[bad[0]]}: labels must be finite ({len(bad)} are not)")
    if len(values) < at_least:
        raise ValueError(f"at least {at_least} labels are needed, got {len(values)}")
    return values
