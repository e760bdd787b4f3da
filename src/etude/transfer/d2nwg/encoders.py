"""A labelled data set as one vector, the condition of the diffusion.

Soro et al., arXiv:2402.18153, section 3.3: features of a few images of each class, by a frozen extractor, go through a
set transformer within each class, and the class vectors through a second one.

That second one, as published, does not see which class is which output unit: two tasks that differ in nothing but the
order of their classes have one condition, and no generator can know the order of the output units from it. Where a
data set has one fixed order of labels this does no harm; with random tasks it leaves chance. Hence `class_order`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.transfer.d2nwg.sets import SetTransformer

__all__ = ["DatasetEncoder", "MLPDatasetEncoder"]


class DatasetEncoder(nn.Module):
    """Set transformers within the classes and over them.

        encoder = DatasetEncoder(512, 1024, num_classes=5)
        condition = encoder(features)                # (batch, classes, samples, 512) -> (batch, 1024)

    The default sizes are the published ones (512 features of an image encoder, 1,024 numbers of a latent).

    Args:
        feature_dim: features of a sample.
        out_dim: numbers of the condition.
        num_classes: length of the table of positions, the most classes of a data set.
        class_order: "position" adds a learned vector for each output unit to its class; "none", as published, makes the
            condition independent of the order of the classes.
        dim, num_heads, depth, num_inducing, depth_after: of both set transformers.
        class_dim: features of a class vector.
    """

    def __init__(
        self,
        feature_dim: int,
        out_dim: int,
        *,
        num_classes: int = 5,
        class_order: str = "position",
        dim: int = 128,
        num_heads: int = 2,
        depth: int = 2,
        num_inducing: int | None = 32,
        depth_after: int = 2,
        class_dim: int = 512,
    ):
        super().__init__()
        if class_order not in ("position", "none"):
            raise ValueError(f"class_order must be 'position' or 'none', got {class_order!r}")
        if num_classes < 2:
            raise ValueError(f"a data set needs two classes or more, got num_classes={num_classes}")
        self.num_classes, self.class_order, self.feature_dim, self.out_dim = (
            num_classes,
            class_order,
            feature_dim,
            out_dim,
        )

        def over(dim_in: int) -> SetTransformer:
            return SetTransformer(
                dim_in, class_dim, dim=dim, num_heads=num_heads, depth=depth, num_inducing=num_inducing,
                depth_after=depth_after,
            )  # fmt: skip

        self.intra, self.inter = over(feature_dim), over(class_dim)
        self.head = nn.Linear(class_dim, out_dim)
        # Class vectors are of order one: a position must be heard beside them.
        self.positions = nn.Parameter(torch.randn(num_classes, class_dim)) if class_order == "position" else None

    def forward(
        self,
        x: Float[Tensor, "batch classes samples features"],
        mask: Bool[Tensor, "batch classes samples"] | None = None,
    ) -> Float[Tensor, "batch out_dim"]:
        """Raises ValueError if there are more classes than positions, other features, or a class without a sample."""
        _check(x, mask, self.feature_dim, self.num_classes)
        vectors = self.intra(x.flatten(0, 1), None if mask is None else mask.flatten(0, 1)).unflatten(0, x.shape[:2])
        if self.positions is not None:
            vectors = vectors + self.positions[: x.shape[1]]
        return self.head(self.inter(vectors))


class MLPDatasetEncoder(nn.Module):
    """Samples and classes in a row: the order of both counts.

    A linear map brings each of the classes * samples feature vectors to `width` numbers (4 as published), and a second
    one all of them to the condition. Takes a fixed number of classes and samples; samples that are missing count as 0.
    """

    def __init__(self, feature_dim: int, out_dim: int, *, num_classes: int = 5, num_samples: int = 5, width: int = 4):
        super().__init__()
        self.num_classes, self.num_samples, self.feature_dim, self.out_dim = (
            num_classes,
            num_samples,
            feature_dim,
            out_dim,
        )
        self.reduce = nn.Linear(feature_dim, width)
        self.head = nn.Linear(num_classes * num_samples * width, out_dim)

    def forward(
        self,
        x: Float[Tensor, "batch classes samples features"],
        mask: Bool[Tensor, "batch classes samples"] | None = None,
    ) -> Float[Tensor, "batch out_dim"]:
        """Raises ValueError if classes, samples or features are others."""
        _check(x, mask, self.feature_dim, self.num_classes)
        if x.shape[1:3] != (self.num_classes, self.num_samples):
            raise ValueError(f"expected {self.num_classes} classes of {self.num_samples} samples, got {tuple(x.shape)}")
        small = nn.functional.leaky_relu(self.reduce(x))
        if mask is not None:
            small = small * mask[..., None]
        return self.head(small.flatten(1))


def _check(x: Tensor, mask: Tensor | None, feature_dim: int, num_classes: int) -> None:
    if x.ndim != 4 or x.shape[-1] != feature_dim:
        raise ValueError(f"expected (batch, classes, samples, {feature_dim}), got shape {tuple(x.shape)}")
    if x.shape[1] > num_classes:
        raise ValueError(f"the encoder has positions for {num_classes} classes, got {x.shape[1]}")
    if mask is not None and not bool(mask.any(dim=2).all()):
        raise ValueError("a class of a data set has no sample")
