"""The paper's baselines on frozen features: probes, the post-hoc hybrid, and other kinds of concept scores (3.5).

Baselines that train the backbone (end to end, fine-tuned, language-shaped) stand in `backbones`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.science.knobo.classifier import FeatureClassifier
from etude.science.knobo.grounding import GroundingFunctions, unit_features

__all__ = ["DotProductBottleneck", "HybridLayer", "LinearProbe", "PosthocHybridCBM", "random_grounding"]


def _random_columns(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `dim` columns, without replacement."""
    if not 1 <= count <= dim:
        raise ValueError(f"the number of features must lie in 1..{dim}, got {count}")
    return torch.randperm(dim, generator=generator)[:count].sort().values


class LinearProbe(FeatureClassifier):
    """The baseline: a linear layer on the backbone's features themselves, L2-normalised.

    Args:
        num_features: a random choice of so many features (as many as a bottleneck has concepts); all if None.
        lr, epochs, batch_size, seed: as for `KnoBoClassifier`.
    """

    def __init__(
        self,
        num_features: int | None = None,
        *,
        lr: float | int = 1e-3,
        epochs: int = 200,
        batch_size: int = 64,
        seed: int = 0,
    ):
        self.num_features, self.lr, self.epochs, self.batch_size, self.seed = num_features, lr, epochs, batch_size, seed

    def fit(self, features: Any, y: Any, **options: Any) -> "LinearProbe":
        self.columns_ = None
        if self.num_features is not None:
            draws = torch.Generator().manual_seed(self.seed)
            self.columns_ = _random_columns(int(features.shape[1]), self.num_features, draws)
        super().fit(features, y, **options)
        return self

    def _inputs(self, features: Any) -> Tensor:
        x = unit_features(features)
        return x if self.columns_ is None else x[:, self.columns_]

    def _layer(self, inputs: Tensor, num_classes: int) -> nn.Module:
        return nn.Linear(inputs.shape[1], num_classes)


class DotProductBottleneck(FeatureClassifier):
    """Concept scores without grounding functions: the cosine of an image's and a question's vectors (CLIP).

    Args:
        text_features: (concepts, dim), of the questions, in the space of the image features.
        lr, epochs, batch_size, seed: as for `KnoBoClassifier`.
    """

    def __init__(
        self,
        text_features: Any,
        *,
        lr: float | int = 1e-3,
        epochs: int = 200,
        batch_size: int = 64,
        seed: int = 0,
    ):
        self.text_features, self.lr, self.epochs, self.batch_size, self.seed = (
            text_features,
            lr,
            epochs,
            batch_size,
            seed,
        )

    def _inputs(self, features: Any) -> Tensor:
        text = unit_features(self.text_features)
        return unit_features(features, dim=text.shape[1]) @ text.T

    def _layer(self, inputs: Tensor, num_classes: int) -> nn.Module:
        return nn.Linear(inputs.shape[1], num_classes)


class HybridLayer(nn.Module):
    """W g + b + V x + c: a linear layer on concept scores, and one on image features beside it.

    Args:
        num_concepts: the first columns of the input. num_features: the columns after them. num_classes: outputs.
    """

    def __init__(self, num_concepts: int, num_features: int, num_classes: int):
        super().__init__()
        self.num_concepts = num_concepts
        self.bottleneck = nn.Linear(num_concepts, num_classes)
        self.residual = nn.Linear(num_features, num_classes)

    def forward(self, inputs: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch classes"]:
        concepts, features = inputs[:, : self.num_concepts], inputs[:, self.num_concepts :]
        return self.bottleneck(concepts) + self.residual(features)


class PosthocHybridCBM(FeatureClassifier):
    """PCBM-h (Yuksekgonul et al., ICLR 2023): concepts, and the image features beside them to catch the rest.

    Both layers are trained together, as in the paper's code, whose concept scores are CLIP's dot products: pass
    `text_features` for these, or `grounding` for the scores that KnoBo has.

    Args:
        grounding: fitted functions. text_features: (concepts, dim). Exactly one of the two.
        lr, epochs, batch_size, seed: as for `KnoBoClassifier`.
    """

    def __init__(
        self,
        grounding: GroundingFunctions | None = None,
        *,
        text_features: Any = None,
        lr: float | int = 1e-3,
        epochs: int = 200,
        batch_size: int = 64,
        seed: int = 0,
    ):
        if (grounding is None) == (text_features is None):
            raise ValueError("give either grounding functions or text features")
        self.grounding, self.text_features = grounding, text_features
        self.lr, self.epochs, self.batch_size, self.seed = lr, epochs, batch_size, seed

    def _inputs(self, features: Any) -> Tensor:
        x = unit_features(features)
        if self.grounding is not None:
            return torch.cat([self.grounding.transform(features), x], dim=1)
        text = unit_features(self.text_features, dim=x.shape[1])
        return torch.cat([x @ text.T, x], dim=1)

    def _layer(self, inputs: Tensor, num_classes: int) -> nn.Module:
        count = len(self.text_features) if self.grounding is None else len(self.grounding.questions_)
        return HybridLayer(count, inputs.shape[1] - count, num_classes)


def random_grounding(
    features: Any, count: int, generator: torch.Generator, *, names: Sequence[str] | None = None, **options: Any
) -> GroundingFunctions:
    """A control: logistic regressions on random labels of the annotated images, as many as there were concepts.

    Args:
        features: (n, dim), of the annotated images; at least 200 with the default `min_val`.
        count: how many.
        generator: of the labels.
        names: what they are called; "Random direction 0?" and so on if None.
        options: of `GroundingFunctions`.
    """
    if count < 1:
        raise ValueError(f"count must be positive, got {count}")
    labels = torch.rand(len(features), count, generator=generator).argsort(dim=0) % 2 * 2 - 1
    questions = [f"Random direction {place}?" for place in range(count)] if names is None else list(names)
    seed = int(torch.randint(2**31, (), generator=generator))
    functions = GroundingFunctions(**{"number_of_features": count, "seed": seed} | options)
    return functions.fit(features, labels.numpy().astype(np.int8), questions)
