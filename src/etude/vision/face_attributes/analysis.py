"""What the networks have learnt: how localisation grows with the tags, and what single neurons stand for."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from etude.vision.face_attributes.localization import LNet
from etude.vision.face_attributes.svm import AttributeSVM, balanced_accuracy_per_attribute
from etude.vision.face_attributes.training import binary_tags

__all__ = [
    "SparseCombination",
    "attribute_count_study",
    "binarized_accuracy",
    "neuron_activation",
    "rank_neurons",
    "sparse_combinations",
    "top_images",
]


def attribute_count_study(
    train: Callable[[Int[Tensor, "n attributes"]], LNet],
    tags: Int[Tensor, "n attributes"],
    counts: Sequence[int],
    score: Callable[[LNet], float],
) -> dict[int, float]:
    """What localisers reach that were trained with the first 5, 10, ... attributes.

    Args:
        train: gives a localiser trained on the tags it is handed.
        tags: all attributes, the order in which they are added.
        counts: how many attributes.
        score: judges a localiser, `localization_recall` on held-out images for example.

    Returns:
        count -> score.

    Raises:
        ValueError: if a count lies outside 1..attributes.
    """
    for count in counts:
        if not 1 <= count <= tags.shape[1]:
            raise ValueError(f"counts must lie in 1..{tags.shape[1]}, got {count}")
    return {count: float(score(train(tags[:, :count]))) for count in counts}


def neuron_activation(
    features: Float[Tensor, "n neurons"], tags: Int[Tensor, "n attributes"], *, relative: bool = True
) -> Float[Tensor, "attributes neurons"]:
    """Mean activation of each neuron on the images that have an attribute.

    With `relative`, less its mean on the other images, in standard deviations of the neuron (0 for a dead one): a
    neuron that always fires stands for nothing. An attribute that all or no images have is NaN.

    Raises:
        ValueError: if the numbers of rows differ.
    """
    has = binary_tags(tags).to(features)
    if len(has) != len(features):
        raise ValueError(f"features and tags must have equally many rows, got {len(features)} and {len(has)}")
    with_it = has.T @ features / has.sum(0)[:, None]
    if not relative:
        return with_it
    without = (1 - has).T @ features / (1 - has).sum(0)[:, None]
    spread = features.std(0, correction=0)
    return torch.where(spread > 0, (with_it - without) / spread.clamp(min=1e-12), (with_it - without) * 0)


def rank_neurons(
    features: Float[Tensor, "n neurons"], tags: Int[Tensor, "n attributes"], *, relative: bool = True
) -> Int[Tensor, "attributes neurons"]:
    """The neurons of each attribute, the one that responds most first (`neuron_activation`)."""
    return neuron_activation(features, tags, relative=relative).argsort(dim=1, descending=True, stable=True)


def top_images(features: Float[Tensor, "n neurons"], k: int = 8) -> Int[Tensor, "neurons k"]:
    """The k images to which each neuron responds most: what it stands for, to be looked at.

    Raises:
        ValueError: if k lies outside 1..n.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f"k must lie in 1..{len(features)}, got {k}")
    return features.topk(k, dim=0).indices.T


class SparseCombination(NamedTuple):
    """An attribute as a combination of few neurons.

    Attributes:
        strength: inverse of the L1 penalty.
        nonzeros: neurons that take part.
        accuracy: balanced accuracy on held-out images.
        weights: (neurons,).
    """

    strength: float
    nonzeros: int
    accuracy: float
    weights: np.ndarray


def sparse_combinations(
    features: Float[Tensor, "n neurons"],
    tags: Int[Tensor, " n"],
    test_features: Float[Tensor, "m neurons"],
    test_tags: Int[Tensor, " m"],
    strengths: Sequence[float | int] = (0.003, 0.01, 0.03, 0.1, 1.0),
) -> list[SparseCombination]:
    """L1 logistic regressions of one attribute on the neurons, from a strong penalty to a weak one.

    Raises:
        ValueError: if the attribute has one value only, or a strength is not positive.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    y, test_y = binary_tags(tags)[:, 0].numpy(), binary_tags(test_tags)[:, 0].numpy()
    if y.min() == y.max():
        raise ValueError(f"the attribute is {y[0]} in all {len(y)} images")
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"strengths must be positive, got {tuple(strengths)}")
    scaler = StandardScaler().fit(features.numpy())
    x, test_x = scaler.transform(features.numpy()), scaler.transform(test_features.numpy())
    found = []
    for strength in strengths:
        model = LogisticRegression(
            C=float(strength), l1_ratio=1.0, solver="liblinear", class_weight="balanced", random_state=0
        ).fit(x, y)
        weights = model.coef_[0]
        accuracy = balanced_accuracy_per_attribute(model.predict(test_x), test_y)[0]
        found.append(SparseCombination(float(strength), int((weights != 0).sum()), float(accuracy), weights))
    return found


def binarized_accuracy(
    features: Float[Tensor, "n neurons"],
    tags: Int[Tensor, "n attributes"],
    test_features: Float[Tensor, "m neurons"],
    test_tags: Int[Tensor, "m attributes"],
    svm: AttributeSVM | None = None,
) -> dict[str, float]:
    """Mean balanced accuracy of the attributes from the features ("real") and from whether each fires ("binary").

    Which neurons fire says nearly all that their activations say, if features are as the paper found them.
    """
    from sklearn.base import clone

    found = {}
    for name, change in (("real", lambda x: x), ("binary", lambda x: (x > 0).to(x.dtype))):
        machine = clone(svm if svm is not None else AttributeSVM()).fit(change(features), tags)
        found[name] = machine.score(change(test_features), test_tags)
    return found
