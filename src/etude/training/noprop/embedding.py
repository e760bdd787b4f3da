"""Embeddings of the classes, the targets of every block, and the heads that read a class off a noised embedding.

Li, Teh & Pascanu, arXiv:2503.24322, 2025. W has a row u_y for every class y:

- fixed one-hot: W = I;
- learned: few dimensions, rows orthogonal to start from where possible;
- learned prototypes: as many dimensions as an image; a row starts as the training image of its class whose median
  distance to the other images of the class is smallest.

The divergence between the noisiest embedding and the prior, per example, is

    KL(q(z_0 | y) || N(0, I)) = (abar_0 ||u_y||^2 - d abar_0 - d log(1 - abar_0)) / 2.                     (1)
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

__all__ = ["LabelEmbedding", "RadialHead", "aligned_head", "prior_kl", "prototypes"]

_KINDS = ("one_hot", "learned", "prototype")
_LEARNED_DIM = 20


class LabelEmbedding(nn.Module):
    """The matrix W of class embeddings.

        embedding = LabelEmbedding(10, kind="learned")
        u = embedding(y)

    Args:
        num_classes: m >= 1.
        dim: d; if None, m for one-hot and 20 for learned embeddings. Prototypes have channels * height * width.
        kind: "one_hot" (fixed), "learned" or "prototype". Prototypes must be set by `init_prototypes` before use.

    Raises:
        ValueError: if `kind` is unknown, a size is not positive or missing, or one-hot has another dim than classes.
    """

    weight: Tensor
    initialized: Tensor

    def __init__(self, num_classes: int, dim: int | None = None, kind: str = "one_hot"):
        super().__init__()
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if dim is None:
            if kind == "prototype":
                raise ValueError("dim of prototypes must be given: channels * height * width of the images")
            dim = num_classes if kind == "one_hot" else _LEARNED_DIM
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if kind == "one_hot" and dim != num_classes:
            raise ValueError(f"one-hot embeddings of {num_classes} classes have dim {num_classes}, got {dim}")
        self.num_classes, self.dim, self.kind = num_classes, dim, kind
        if kind == "one_hot":
            self.register_buffer("weight", torch.eye(num_classes))
        else:
            self.weight = nn.Parameter(torch.empty(num_classes, dim))
            if kind == "learned" and dim >= num_classes:
                nn.init.orthogonal_(self.weight)
            else:  # rows of unit length on average, as orthonormal ones are
                nn.init.normal_(self.weight, std=dim**-0.5)
        if kind == "prototype":
            self.register_buffer("initialized", torch.tensor(False))
        self._usable = kind != "prototype"

    @property
    def learned(self) -> bool:
        """Whether W is trained."""
        return self.kind != "one_hot"

    @torch.no_grad()
    def init_prototypes(self, x: Float[Tensor, "n channels height width"], y: Int64[Tensor, " n"]) -> None:
        """Sets each row to its class's prototype among training images, scaled as the network will see them.

        Raises:
            ValueError: if the embedding is of another kind, the images have not `dim` values, or a class has none.
        """
        if self.kind != "prototype":
            raise ValueError(f"only prototype embeddings start from images, this one is {self.kind}")
        if x[0].numel() != self.dim:
            raise ValueError(f"images must have {self.dim} values, the embedding's dim, got shape {tuple(x.shape[1:])}")
        self.weight.copy_(prototypes(x, y, self.num_classes))
        self.initialized.fill_(True)

    def check_labels(self, y: Shaped[Tensor, "..."]) -> None:
        """Refuses labels that name no class."""
        if y.dtype != torch.int64 or y.ndim != 1:
            raise ValueError(f"y must be int64 of shape (batch,), got {y.dtype} of shape {tuple(y.shape)}")
        # On an accelerator looking would stall every step; there the lookup itself asserts.
        if y.device.type == "cpu" and len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"y must lie in 0..{self.num_classes - 1} ({self.num_classes} classes), "
                f"got {int(y.min())}..{int(y.max())}"
            )

    def matrix(self) -> Float[Tensor, "classes dim"]:
        """W.

        Raises:
            RuntimeError: if prototypes have not been set.
        """
        if not self._usable:
            self._usable = bool(self.initialized)
            if not self._usable:
                raise RuntimeError("call init_prototypes(x, y) with training images before prototypes are used")
        return self.weight

    def forward(self, y: Int64[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        self.check_labels(y)
        return F.embedding(y, self.matrix())


def prototypes(
    x: Float[Tensor, "n channels height width"], y: Int64[Tensor, " n"], num_classes: int
) -> Float[Tensor, "classes dim"]:
    """For each class its flattened image with the smallest median distance to the other images of the class.

    Raises:
        ValueError: if a class has no image.
    """
    flat = x.flatten(1)
    rows = []
    for label in range(num_classes):
        images = flat[y == label]
        if not len(images):
            raise ValueError(f"class {label} has no image to be its prototype")
        if len(images) > 1:
            medians = []
            for start in range(0, len(images), 1024):
                distance = torch.cdist(images[start : start + 1024], images)
                own = torch.arange(len(distance), device=x.device)
                others = torch.ones_like(distance, dtype=torch.bool)
                others[own, own + start] = False
                medians.append(distance[others].view(len(distance), -1).median(dim=1).values)
            images = images[torch.cat(medians).argmin()][None]
        rows.append(images[0])
    return torch.stack(rows)


class RadialHead(nn.Module):
    """A head that measures distances to the embeddings: p(y | z) ~ exp(-||v - u_y||^2 / (2 sigma^2)),
    v = softmax(linear(z)) W.

    Args:
        embedding: whose classes are read off; shared, not copied.
        sigma: > 0. The paper does not state it.
    """

    def __init__(self, embedding: LabelEmbedding, sigma: float = 1.0):
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"sigma must be positive, got {sigma}")
        self.embedding, self.sigma = embedding, sigma
        self.linear = nn.Linear(embedding.dim, embedding.num_classes)

    def forward(self, z: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        matrix = self.embedding.matrix()
        v = self.linear(z).softmax(dim=1) @ matrix
        return -squared_distances(v, matrix) / (2 * self.sigma**2)


@torch.no_grad()
def aligned_head(embedding: LabelEmbedding, scale: float = 5.0) -> nn.Linear:
    """A linear head that starts by reading each class off its own embedding, with a logit of `scale` there.

    The blocks of a chain answer in embeddings of the classes. A head of random weights prefers some embedding for every
    class, often one for several; trained end to end from there, the chain merges these classes and can stay so.

    Args:
        embedding: the class embeddings; the head starts from them as they are now.
        scale: the mean logit of a class at its own embedding, > 0.
    """
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    matrix = embedding.matrix()
    head = nn.Linear(embedding.dim, embedding.num_classes)
    head.weight.copy_(scale * matrix / matrix.square().sum(dim=1).mean())
    head.bias.zero_()
    return head


def squared_distances(
    z: Float[Tensor, "batch dim"], matrix: Float[Tensor, "classes dim"]
) -> Float[Tensor, "batch classes"]:
    """||z - u_y||^2 for every class y."""
    # Expanded, since the differences themselves would fill batch * classes * dim numbers.
    return z.square().sum(dim=1, keepdim=True) - 2 * z @ matrix.T + matrix.square().sum(dim=1)


def prior_kl(u: Float[Tensor, "batch dim"], alpha_bar: Float[Tensor, ""] | float) -> Float[Tensor, ""]:
    """The divergence from the prior, Eq. (1), averaged over the batch."""
    abar = torch.as_tensor(alpha_bar, dtype=u.dtype, device=u.device)
    return (abar * u.square().sum(dim=1).mean() - u.shape[1] * (abar + torch.log1p(-abar))) / 2
