"""The long-tailed setting of the paper's recognition experiments: the split, the loss and the figures.

Hou et al., "BatchFormer", CVPR 2022, arXiv:2203.01522, section 4; the exponential profile is that of Cui et al.,
"Class-Balanced Loss", CVPR 2019, arXiv:1901.05555, the loss that of Ren et al., "Balanced Meta-Softmax for
Long-Tailed Visual Recognition", NeurIPS 2020, arXiv:2007.10740.

With K classes, the most frequent of n_max samples, and an imbalance rho, the class of rank c = 0 .. K - 1 has

    n_c = int(n_max (1 / rho)^(c / (K - 1)))                                                              (1)

samples. The balanced softmax is the cross-entropy of the logits plus log n_c; at test the logits are used as they
are.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

__all__ = ["BalancedSoftmaxLoss", "long_tailed_counts", "long_tailed_indices", "shot_accuracy"]


class BalancedSoftmaxLoss(nn.Module):
    """Cross-entropy under the training set's class frequencies, for a classifier that is to be used without them.

        loss = BalancedSoftmaxLoss(torch.bincount(labels))
        loss(logits, labels)

    With equal counts it is the cross-entropy. On a batch doubled by BatchFormer the prior acts on both halves.

    Args:
        class_counts: training samples n_c of each class, > 0.
        tau: strength of the prior, >= 0; tau * log n_c is added to the logits.

    Raises:
        ValueError: if a count is not positive, or `tau` is negative.
    """

    log_prior: Tensor

    def __init__(self, class_counts: Tensor | Sequence[int] | Sequence[float], tau: float | int = 1.0):
        super().__init__()
        counts = torch.as_tensor(class_counts, dtype=torch.float64)
        if counts.ndim != 1 or not len(counts):
            raise ValueError(f"class_counts must be one number per class, got shape {tuple(counts.shape)}")
        if not bool((counts > 0).all()):
            where = (~(counts > 0)).nonzero().flatten().tolist()
            raise ValueError(
                f"class_counts must be positive, got {counts[where[0]]:g} for class {where[0]}"
                + (f" and {len(where) - 1} more" if len(where) > 1 else "")
                + ": a class that never occurs has no prior"
            )
        if not 0 <= tau < math.inf:
            raise ValueError(f"tau must be finite and >= 0, got {tau}")
        self.tau = float(tau)
        self.register_buffer("log_prior", (self.tau * counts.log()).float())

    def forward(self, logits: Float[Tensor, "batch *classes"], targets: Tensor) -> Float[Tensor, ""]:
        """Mean loss over the batch.

        Args:
            logits: (batch, classes).
            targets: labels (batch,), or soft labels (batch, classes) as of mixup.

        Raises:
            ValueError: if the classes do not fit, or a label lies outside them. Labels on a GPU are not looked at,
                since that would wait for it; PyTorch stops there by an assertion.
        """
        classes = len(self.log_prior)
        if logits.ndim != 2 or logits.shape[1] != classes:
            raise ValueError(f"logits must have shape (batch, {classes}), got {tuple(logits.shape)}")
        if len(targets) != len(logits):
            raise ValueError(f"targets must be as many as logits, got {len(targets)} and {len(logits)}")
        if targets.ndim == 1 and targets.device.type == "cpu":
            _check_labels(targets, classes)
        return F.cross_entropy(logits + self.log_prior.to(logits.dtype), targets)


def long_tailed_counts(
    max_per_class: int, num_classes: int, imbalance: float | int = 100.0, profile: str = "exp"
) -> list[int]:
    """Samples of each class, the most frequent first.

    Args:
        max_per_class: n_max, >= 1.
        num_classes: K, >= 2.
        imbalance: rho, the most over the fewest samples, >= 1.
        profile: "exp" for Eq. (1); "step" for n_max in the first K // 2 classes and int(n_max / rho) in the rest.

    Raises:
        ValueError: if an argument is out of range, or the last class would be empty.
    """
    if max_per_class < 1 or num_classes < 2:
        raise ValueError(
            f"max_per_class must be at least 1 and num_classes at least 2, got {max_per_class} and {num_classes}"
        )
    if not 1 <= imbalance < math.inf:
        raise ValueError(f"imbalance must be at least 1, got {imbalance}")
    if profile == "exp":
        shares = [imbalance ** (-rank / (num_classes - 1)) for rank in range(num_classes)]
    elif profile == "step":
        shares = [1.0 if rank < num_classes // 2 else 1 / imbalance for rank in range(num_classes)]
    else:
        raise ValueError(f"profile must be 'exp' or 'step', got {profile!r}")
    # The hair above keeps 49 * (1 / 49) from rounding down to nothing.
    counts = [int(max_per_class * share + 1e-9) for share in shares]
    if counts[-1] == 0:
        raise ValueError(
            f"the rarest class would have no sample: imbalance {imbalance:g} must not exceed max_per_class "
            f"{max_per_class}"
        )
    return counts


def long_tailed_indices(
    labels: Int[Tensor, "samples"],
    imbalance: float | int = 100.0,
    max_per_class: int | None = None,
    profile: str = "exp",
    class_order: Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "chosen"]:
    """A random long-tailed part of a data set.

        rare = long_tailed_indices(labels, imbalance=100, generator=torch.Generator().manual_seed(0))

    Args:
        labels: of all samples, 0 .. K - 1.
        imbalance, profile: as for `long_tailed_counts`.
        max_per_class: samples of the most frequent class; as many as the smallest class has if None.
        class_order: classes from the most to the least frequent; 0, 1, ... if None.
        generator: of the choice within each class (CPU); the default generator if None.

    Returns:
        Indices into `labels`, ascending.

    Raises:
        ValueError: if labels are negative, a class has too few samples, or `class_order` is no order of the classes.
    """
    if not len(labels):
        raise ValueError("there are no labels")
    labels = labels.cpu().long()
    order = list(range(int(labels.max()) + 1)) if class_order is None else [int(c) for c in class_order]
    _check_labels(labels, len(order))
    if sorted(order) != list(range(len(order))):
        raise ValueError(f"class_order must hold each of 0..{len(order) - 1} once, got {order}")
    available = torch.bincount(labels, minlength=len(order)).tolist()
    counts = long_tailed_counts(
        min(available) if max_per_class is None else max_per_class, len(order), imbalance, profile
    )
    chosen = []
    for label, count in zip(order, counts):
        if available[label] < count:
            raise ValueError(f"class {label} has {available[label]} samples, the profile asks for {count}")
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def shot_accuracy(
    pred: Int[Tensor, "predictions"],
    y: Int[Tensor, "samples"],
    counts: Tensor | Sequence[int],
    many: int = 100,
    few: int = 20,
) -> dict[str, float]:
    """Accuracy on the classes of many, medium and few training samples.

    Args:
        pred: predicted labels.
        y: true labels.
        counts: training samples of each class.
        many: classes of more than this many training samples are "many".
        few: classes of fewer than this many are "few"; the others are "medium".

    Returns:
        Mean over the classes of each group, and over "all" classes, of the accuracy on that class. Classes without a
        sample in `y` do not count; a group without a class is NaN.

    Raises:
        ValueError: if `few` exceeds `many` or the labels do not fit the counts.
    """
    if few > many + 1:
        raise ValueError(f"few must not exceed many + 1, got few {few} and many {many}")
    if len(pred) != len(y):
        raise ValueError(f"pred and y must be equally many, got {len(pred)} and {len(y)}")
    sizes = torch.as_tensor(counts).cpu()
    pred, y = pred.cpu(), y.cpu()
    _check_labels(y, len(sizes))
    present = torch.bincount(y, minlength=len(sizes))
    correct = torch.bincount(y[pred == y], minlength=len(sizes))
    accuracy = correct.double() / present
    groups = {
        "all": torch.ones_like(sizes, dtype=torch.bool),
        "many": sizes > many,
        "medium": (sizes <= many) & (sizes >= few),
        "few": (sizes < few) & (sizes <= many),
    }
    return {name: accuracy[group & (present > 0)].mean().item() for name, group in groups.items()}


def _check_labels(labels: Tensor, classes: int) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels must lie in 0..{classes - 1} ({classes} classes), got {int(labels.min())}..{int(labels.max())}"
        )
