"""Prototypes of classes and the labels that they correct.

Jin et al., arXiv:2006.10141, section 4, after Han, Luo & Wang, "Deep Self-Learning From Noisy Labels", ICCV 2019. With
S the cosine similarities among the nodes of a class and S_c their 40th percentile, a node has the density

    rho_i = sum_j sign(S_ij - S_c)

and the likeness to denser nodes eta_i = max over j with rho_j > rho_i of S_ij (min_j S_ij if none is denser). Nodes too
close to a denser one are dropped; the densest of the others are the prototypes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

__all__ = ["class_prototypes", "nearest_prototype"]


@torch.no_grad()
def class_prototypes(
    embeddings: Float[Tensor, "nodes dim"],
    labels: Int64[Tensor, "nodes"],
    *,
    num_classes: int | None = None,
    num_prototypes: int = 8,
    max_per_class: int = 320,
    percentile: float | int = 40,
    max_similarity: float | None = 0.95,
    generator: torch.Generator | None = None,
) -> list[Int64[Tensor, "prototypes"]]:
    """The prototypes of each class, as node numbers, the densest first; none for a class without nodes.

    Args:
        embeddings: of the nodes.
        labels: of the nodes; they may be wrong for some.
        num_classes: c; the largest label + 1 if None.
        num_prototypes: so many, or as many as are left.
        max_per_class: nodes looked at in a class, drawn at random where it has more.
        percentile: that defines S_c, in 0..100.
        max_similarity: a node whose eta reaches it is dropped; the densest node of a class always stays, even in a
            class as tight as that, which would else have no prototype. None drops nobody.
        generator: draws the nodes.

    Raises:
        ValueError: if a number is out of range.
    """
    if num_prototypes < 1 or max_per_class < 1:
        raise ValueError(f"prototypes and nodes per class must be >= 1, got {num_prototypes} and {max_per_class}")
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in 0..100, got {percentile}")
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    unit = F.normalize(embeddings, dim=1)
    found = []
    for label in range(classes):
        members = torch.nonzero(labels == label).squeeze(1)
        if len(members) > max_per_class:
            drawn = torch.randperm(len(members), generator=generator)[:max_per_class]
            members = members[drawn.to(members.device)]
        found.append(members[_densest(unit[members], num_prototypes, percentile, max_similarity)])
    return found


def _densest(
    unit: Float[Tensor, "nodes dim"], count: int, percentile: float | int, max_similarity: float | None
) -> Int64[Tensor, "prototypes"]:
    if len(unit) == 0:
        return torch.zeros(0, dtype=torch.int64, device=unit.device)
    similarity = unit @ unit.t()
    density = torch.sign(similarity - _percentile(similarity.flatten(), percentile)).sum(dim=1)
    order = torch.argsort(density, descending=True, stable=True)
    if max_similarity is not None:
        denser = density[None, :] > density[:, None]
        nearest = torch.where(denser, similarity, -torch.inf).amax(dim=1)
        likeness = torch.where(denser.any(dim=1), nearest, similarity.amin(dim=1))
        kept = likeness < max_similarity
        kept[order[0]] = True
        order = order[kept[order]]
    return order[:count]


def _percentile(values: Float[Tensor, "values"], percentile: float | int) -> Float[Tensor, ""]:
    """Interpolated linearly between order statistics; NumPy's selection is ten times as quick as torch's here."""
    place = percentile / 100 * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    ordered = np.partition(values.cpu().numpy(), (low, high))
    return values.new_tensor(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


@torch.no_grad()
def nearest_prototype(
    embeddings: Float[Tensor, "nodes dim"],
    prototypes: list[Int64[Tensor, "_"]],
    nodes: Int64[Tensor, "asked"] | None = None,
) -> Int64[Tensor, "labelled"]:
    """For the asked nodes, or all, the class to whose prototypes they are most similar on average.

    Raises:
        ValueError: if no class has a prototype.
    """
    there: Bool[Tensor, "classes"] = torch.tensor([len(members) > 0 for members in prototypes])
    if not bool(there.any()):
        raise ValueError("no class has a prototype")
    unit = F.normalize(embeddings, dim=1)
    # The mean of cosines is the product with the mean of the unit vectors.
    mean = torch.stack(
        [unit[members].mean(dim=0) if len(members) else unit.new_zeros(unit.shape[1]) for members in prototypes]
    )
    similarity = (unit if nodes is None else unit[nodes]) @ mean.t()
    return torch.where(there.to(unit.device), similarity, -torch.inf).argmax(dim=1)
