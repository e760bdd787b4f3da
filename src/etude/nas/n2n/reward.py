"""What a student is worth: its accuracy beside the teacher's, times how much smaller it is (paper, section 3.3)."""

import math

__all__ = ["compression_reward", "softening"]

INVALID = -1.0
"""Reward of a student that cannot be built or is not smaller than what it came from."""


def softening(epoch: int | None) -> float:
    """eps = max(0, 1 - epoch / 15)^4: 1 at the policy's first epoch, 0 from its fifteenth; 0 if `epoch` is None.

    The authors' code cuts at zero after the even power, so that constraints are off again at epoch 30.
    """
    if epoch is None:
        return 0.0
    if epoch < 0:
        raise ValueError(f"epoch must not be negative, got {epoch}")
    return max(0.0, 1 - epoch / 15) ** 4


def compression_reward(
    accuracy: float | int,
    params: int,
    *,
    reference_accuracy: float | int,
    reference_params: int,
    max_params: int | None = None,
    min_accuracy: float | int | None = None,
    epoch: int | None = None,
) -> float:
    """R = R_a R_c, with R_a = accuracy / reference_accuracy, R_c = C (2 - C) and C = 1 - params / reference_params.

    R_c is steep while little is saved and flat near C = 1, where accuracy then counts more. A student that breaks a
    constraint has eps R + (eps - 1) instead, where eps falls from 1 to 0 over the policy's first 15 epochs
    (`softening`).

    Args:
        accuracy: of the student on the validation split, in [0, 1].
        params: of the student.
        reference_accuracy, reference_params: of the network it is compared with: the teacher.
        max_params: most parameters allowed. min_accuracy: least accuracy allowed.
        epoch: updates that the policy has had; None for constraints that are hard at once.

    Raises:
        ValueError: for values that are not finite or out of range.
    """
    for name, value in (("accuracy", accuracy), ("reference_accuracy", reference_accuracy)):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    if reference_accuracy == 0 or reference_params < 1:
        raise ValueError(
            f"the reference must have some accuracy and parameters, got {reference_accuracy} and {reference_params}"
        )
    if params < 0:
        raise ValueError(f"params must not be negative, got {params}")
    compression = 1 - params / reference_params
    reward = accuracy / reference_accuracy * compression * (2 - compression)
    broken = (max_params is not None and params > max_params) or (min_accuracy is not None and accuracy < min_accuracy)
    if not broken:
        return reward
    eps = softening(epoch)
    return eps * reward + eps - 1
