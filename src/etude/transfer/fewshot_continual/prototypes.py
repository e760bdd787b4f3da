"""Classification by the nearest class prototype, and the memory of the prototypes of all classes seen.

Snell, Swersky & Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017, arXiv:1703.05175. With the
prototype p_c of class c the mean embedding of its support examples,

    logit_c(x) = -scale ||f(x) - p_c||^2    or    scale cos(f(x), p_c)                                       (1)

In the notation with a temperature tau, scale = 1 / tau.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["PrototypeClassifier", "PrototypeMemory", "class_means"]

_SCALES = {"sqeuclidean": 1.0, "cosine": 10.0}


class PrototypeClassifier(nn.Module):
    """Logits of embeddings against prototypes, Eq. (1).

    Args:
        distance: "sqeuclidean" or "cosine".
        scale: of the logits, > 0; 1 for squared distances and 10 for cosines if None.

    Raises:
        ValueError: if the distance is unknown or the scale is not positive.
    """

    def __init__(self, distance: str = "sqeuclidean", scale: float | int | None = None):
        super().__init__()
        if distance not in _SCALES:
            raise ValueError(f"distance must be one of {', '.join(_SCALES)}, got {distance!r}")
        if scale is not None and not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.distance, self.scale = distance, _SCALES[distance] if scale is None else scale

    def forward(
        self, z: Float[Tensor, "*batch n dim"], prototypes: Float[Tensor, "*batch classes dim_too"]
    ) -> Float[Tensor, "*batch n classes"]:
        """Logits of each embedding for each prototype.

        Raises:
            ValueError: if embeddings and prototypes differ in their number of dimensions.
        """
        if z.shape[-1] != prototypes.shape[-1]:
            raise ValueError(
                f"embeddings have {z.shape[-1]} dimensions and prototypes {prototypes.shape[-1]}; "
                "both must come from one encoder"
            )
        if self.distance == "cosine":
            return self.scale * F.normalize(z, dim=-1) @ F.normalize(prototypes, dim=-1).mT
        # ||z||^2 - 2 z.p + ||p||^2: no (n, classes, dim) tensor is formed.
        squares = z.square().sum(-1, keepdim=True) + prototypes.square().sum(-1).unsqueeze(-2)
        return self.scale * (2 * z @ prototypes.mT - squares)

    def extra_repr(self) -> str:
        return f"distance={self.distance!r}, scale={self.scale}"


def class_means(
    z: Float[Tensor, "n dim"], labels: Int64[Tensor, "n"]
) -> tuple[Int64[Tensor, "classes"], Float[Tensor, "classes dim"], Int64[Tensor, "classes"]]:
    """The classes in ascending order, the mean embedding of each and how many embeddings it is of."""
    classes, index, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = z.new_zeros(len(classes), z.shape[1]).index_add_(0, index, z)
    return classes, sums / counts[:, None], counts


class PrototypeMemory:
    """Prototypes of the classes seen so far, with or without the examples that they are means of.

        memory = PrototypeMemory(64, store_support=5)
        memory.add(labels, encoder(x), x)
        ...                                     # the encoder is trained on: the prototypes are now stale
        memory.refresh(encoder)                 # exact again

    A prototype without stored examples stays as it was when it was learned, while the encoder drifts away from it:
    that is the forgetting of metric classifiers.

    Args:
        dim: of the embeddings.
        store_support: examples kept of each class, the first ones; 0 for none, None for all.
        repeated: what to do with a class that is added again: "raise", or "merge" the examples into its mean.

    Attributes:
        classes: labels, in the order in which they came.
        prototypes: (classes, dim).
        counts: examples behind each prototype.

    Raises:
        ValueError: if a number is negative or `repeated` is unknown.
    """

    def __init__(self, dim: int, store_support: int | None = 0, *, repeated: str = "raise"):
        if dim < 1 or (store_support is not None and store_support < 0):
            raise ValueError(
                f"dim must be positive and store_support not negative, got dim={dim} and store_support={store_support}"
            )
        if repeated not in ("raise", "merge"):
            raise ValueError(f"repeated must be 'raise' or 'merge', got {repeated!r}")
        self.dim, self.store_support, self.repeated = dim, store_support, repeated
        self.classes = torch.empty(0, dtype=torch.int64)
        self.prototypes = torch.empty(0, dim)
        self.counts = torch.empty(0, dtype=torch.int64)
        self._inputs: Tensor | None = None
        self._labels = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def support(self) -> tuple[Tensor, Tensor]:
        """The stored examples and their labels.

        Raises:
            ValueError: if none are stored.
        """
        if self._inputs is None:
            raise ValueError(f"no support examples are stored (store_support={self.store_support})")
        return self._inputs, self._labels

    @torch.no_grad()
    def add(self, classes: Int64[Tensor, "n"], z: Float[Tensor, "n dim"], inputs: Tensor | None = None) -> None:
        """Takes in examples, one row each.

        Args:
            classes: label of each example.
            z: their embeddings.
            inputs: (n, ...), the examples themselves; needed where some are stored.

        Raises:
            ValueError: if the embeddings have another dimension than the memory, a class is known already and
                `repeated` is "raise", or the inputs are missing.
        """
        if z.shape[1] != self.dim:
            raise ValueError(f"the memory holds {self.dim}-dimensional prototypes, got embeddings of {z.shape[1]}")
        known = self.classes[torch.isin(self.classes, classes.to(self.classes.device))]
        if len(known) and self.repeated == "raise":
            raise ValueError(
                f"class {int(known[0])} was learned before; give it a label of its own, or merge with repeated='merge'"
            )
        if self.store_support != 0:
            if inputs is None or len(inputs) != len(classes):
                raise ValueError(
                    f"store_support={self.store_support} needs the {len(classes)} examples themselves as inputs"
                )
            self._store(inputs, classes)
        new, means, counts = class_means(z.detach(), classes)
        if not len(self):
            self.classes, self.prototypes, self.counts = new, means, counts
            return
        place = {label: position for position, label in enumerate(self.classes.tolist())}
        old = torch.tensor([label in place for label in new.tolist()], device=new.device)
        at = torch.tensor([place[label] for label in new[old].tolist()], dtype=torch.int64, device=new.device)
        total = self.counts[at] + counts[old]
        self.prototypes[at] += (means[old] - self.prototypes[at]) * (counts[old] / total)[:, None]
        self.counts[at] = total
        self.classes = torch.cat([self.classes, new[~old]])
        self.prototypes = torch.cat([self.prototypes, means[~old]])
        self.counts = torch.cat([self.counts, counts[~old]])

    @torch.no_grad()
    def refresh(self, encoder: Callable[[Tensor], Tensor], support: tuple[Tensor, Tensor] | None = None) -> None:
        """Makes every prototype the mean embedding of its examples under the present encoder.

        Args:
            encoder: (n, ...) -> (n, dim).
            support: examples of every class and their labels; the stored ones if None.

        Raises:
            ValueError: if no examples are stored and none given, or a class has none.
        """
        inputs, labels = self.support if support is None else support
        found, means, _ = class_means(encoder(inputs), labels)
        absent = self.classes[~torch.isin(self.classes, found)]
        if len(absent):
            raise ValueError(f"class {int(absent[0])} has no examples to compute its prototype of")
        self.prototypes = means[torch.searchsorted(found, self.classes)]

    def _store(self, inputs: Tensor, labels: Tensor) -> None:
        held = inputs.detach() if self._inputs is None else torch.cat([self._inputs, inputs.detach()])
        labels = torch.cat([self._labels.to(labels.device), labels])
        if self.store_support is None:
            self._inputs, self._labels = held, labels
            return
        # The position of each example within its class; the first `store_support` stay.
        _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
        order = inverse.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        rank = torch.empty_like(labels)
        rank[order] = torch.arange(len(labels), device=labels.device) - starts.repeat_interleave(counts)
        keep = rank < self.store_support
        self._inputs, self._labels = held[keep], labels[keep]
