"""The protocol of continual learning: a stream of classes or tasks, and what is left of the early ones at its end.

Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", arXiv:1706.08840, 2017 (section 2).
Chaudhry et al., "Riemannian Walk for Incremental Learning", arXiv:1801.10112, 2018 (forgetting, Eq. 3).

A learner meets T tasks once each. R[t, i] is its accuracy on task i after task t. With b[i] the accuracy on task i of
a learner that has learned nothing,

    average accuracy = mean_i R[T-1, i]
    forgetting = mean_{i < T-1} (max_{t < T-1} R[t, i] - R[T-1, i])
    backward transfer = mean_{i < T-1} (R[T-1, i] - R[i, i])
    forward transfer = mean_{i > 0} (R[i-1, i] - b[i])
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = [
    "average_accuracy",
    "backward_transfer",
    "class_incremental_splits",
    "forgetting",
    "forward_transfer",
]


def class_incremental_splits(
    labels: Int64[Tensor, "n"], split_size: int = 2, *, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Examples parted by class: which of them each phase of the stream brings.

        phases = class_incremental_splits(data.train.targets, 2, generator=generator)
        inputs, labels = data.train[phases[0]]

    Args:
        labels: the class of each example; any whole numbers.
        split_size: classes in a phase; the last phase has what is left over.
        generator: draws the order of the classes; without one it is the order of their numbers.

    Returns:
        Row numbers of each phase, int64, ascending; every example stands in one phase.

    Raises:
        ValueError: if there are no labels, or `split_size` is not between 1 and the number of classes.
    """
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape (n,) with n > 0, got {tuple(labels.shape)}")
    classes, members = labels.unique(return_inverse=True)
    if not 1 <= split_size <= len(classes):
        raise ValueError(f"split_size must lie in 1..{len(classes)}, the number of classes, got {split_size}")
    place = torch.arange(len(classes))
    if generator is not None:
        place = torch.randperm(len(classes), generator=generator)
    phase = (place // split_size)[members.cpu()]
    return [torch.nonzero(phase == index).squeeze(1) for index in range(int(phase.max()) + 1)]


def average_accuracy(accuracies: Float[Tensor, "after on"]) -> float:
    """Mean accuracy over all tasks at the end of the stream.

    Args:
        accuracies: R, the row of a task holding the accuracies after it.
    """
    return float(_checked(accuracies)[-1].mean())


def forgetting(accuracies: Float[Tensor, "after on"]) -> float:
    """How far accuracy on the earlier tasks has fallen from its best; 0 for a stream of one task.

    Args:
        accuracies: R. What stands above its diagonal (tasks not met yet) counts too where it was the best.
    """
    matrix = _checked(accuracies)
    if len(matrix) == 1:
        return 0.0
    return float((matrix[:-1, :-1].amax(dim=0) - matrix[-1, :-1]).mean())


def backward_transfer(accuracies: Float[Tensor, "after on"]) -> float:
    """What later tasks did to the accuracy on earlier ones (negative where they were forgotten); 0 for one task.

    Args:
        accuracies: R.
    """
    matrix = _checked(accuracies)
    if len(matrix) == 1:
        return 0.0
    return float((matrix[-1, :-1] - matrix.diagonal()[:-1]).mean())


def forward_transfer(accuracies: Float[Tensor, "after on"], baseline: Float[Tensor, "on_untrained"]) -> float:
    """What earlier tasks did for the accuracy on a task before it was learned; 0 for one task.

    Args:
        accuracies: R.
        baseline: b, accuracy on each task of the untrained learner.

    Raises:
        ValueError: if `baseline` has another number of tasks.
    """
    matrix = _checked(accuracies)
    if baseline.shape != (len(matrix),):
        raise ValueError(f"baseline must have shape ({len(matrix)},), got {tuple(baseline.shape)}")
    if len(matrix) == 1:
        return 0.0
    return float((matrix.diagonal(offset=1) - baseline[1:].to(matrix)).mean())


def _checked(accuracies: Tensor) -> Tensor:
    if accuracies.ndim != 2 or accuracies.shape[0] != accuracies.shape[1] or len(accuracies) == 0:
        raise ValueError(f"accuracies must have shape (tasks, tasks), got {tuple(accuracies.shape)}")
    if not bool(torch.isfinite(accuracies).all()):
        raise ValueError("accuracies hold NaN or infinite values: every task must be evaluated after every task")
    return accuracies.double()
