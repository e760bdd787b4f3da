"""Baselines that train the backbone: end to end, fine-tuned, and language-shaped; and the study of untrained ones.

Language-shaped learning (Mu, Liang & Goodman, ACL 2020, as the paper runs it): the image-text model is tuned on the
annotated images to answer the concepts' questions, p(yes) = sigmoid(w . [text; image] + b) with both encoders free,
and a linear probe on the tuned image encoder classifies.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import fit, outputs_of
from etude.science.knobo.baselines import LinearProbe
from etude.science.knobo.encoders import ContrastivePretrainer, encode_images
from etude.science.knobo.training import Selected, labels_of, train_selected

__all__ = ["ImageClassifier", "language_shaped_encoder", "untrained_feature_probe"]


class ImageClassifier:
    """A network trained on images: from scratch ("end to end") or from a pretrained encoder (fine-tuned).

    Args:
        network: images -> class scores, or -> (n, dim) with `dim` given, on which a linear layer is put. It is
            copied. A ViT-L/14 or DenseNet-121 of timm, torchvision or open_clip is passed here.
        dim: width of the network's output where it is a backbone.
        lr, epochs, batch_size: of Adam; the epoch of the best in-domain validation accuracy is kept.
        seed: of the linear layer and the order.

    Attributes:
        network_, classes_, selected_: as for the other classifiers.
    """

    def __init__(
        self,
        network: nn.Module,
        dim: int | None = None,
        *,
        lr: float | int = 1e-3,
        epochs: int = 20,
        batch_size: int = 64,
        seed: int = 0,
    ):
        self.network, self.dim, self.lr, self.epochs, self.batch_size = network, dim, lr, epochs, batch_size
        self.seed = seed

    def fit(
        self,
        images: Float[Tensor, "n channels height width"],
        y: Any,
        *,
        validation: tuple[Any, Any],
        generator: torch.Generator | None = None,
        callback: Callable[..., Any] | None = None,
    ) -> "ImageClassifier":
        """Trains a copy of the network; arguments as for `FeatureClassifier.fit`."""
        self.classes_, labels = labels_of(y)
        held = labels_of(validation[1], self.classes_)[1]
        draws = torch.Generator().manual_seed(self.seed) if generator is None else generator
        network: nn.Module = copy.deepcopy(self.network)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
            if self.dim is not None:
                network = nn.Sequential(network, nn.Linear(self.dim, len(self.classes_)))
            self.selected_: Selected = train_selected(
                network, Examples(images, labels), Examples(validation[0], held), epochs=self.epochs,
                batch_size=self.batch_size, lr=self.lr, generator=draws, callback=callback,
            )  # fmt: skip
        self.network_ = network
        return self

    def predict_proba(self, images: Float[Tensor, "n channels height width"]) -> np.ndarray:
        if not hasattr(self, "network_"):
            raise RuntimeError("call fit before using this ImageClassifier")
        return outputs_of(self.network_, Examples(images, torch.zeros(len(images))))[0].softmax(1).cpu().numpy()

    def predict(self, images: Float[Tensor, "n channels height width"]) -> np.ndarray:
        return self.classes_[self.predict_proba(images).argmax(axis=1)]

    def score(self, images: Float[Tensor, "n channels height width"], y: Any) -> float:
        """Accuracy."""
        return float((self.predict(images) == np.asarray(y)).mean())


class _ConceptHead(nn.Module):
    """p(yes) of a question for an image, from both vectors; the input is the place of image and question."""

    def __init__(self, clip: ContrastivePretrainer, images: Tensor, ids: Tensor, dim: int):
        super().__init__()
        self.clip, self.images, self.ids = clip, images, ids
        self.linear = nn.Linear(2 * dim, 1)

    def forward(self, places: Int64[Tensor, "batch 2"]) -> Float[Tensor, "batch"]:
        # Every question's text once a batch, not once an example.
        texts = self.clip.text_encoder(self.ids)[places[:, 1]]
        vectors = self.clip.image_encoder(self.images[places[:, 0]])
        return self.linear(torch.cat([texts, vectors], dim=1))[:, 0]


def language_shaped_encoder(
    clip: ContrastivePretrainer,
    images: Float[Tensor, "n channels height width"],
    answers: Any,
    questions: Sequence[str],
    *,
    epochs: int = 1,
    batch_size: int = 64,
    lr: float | int = 1e-3,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The image encoder of a copy of `clip` tuned to answer the questions on the annotated images.

    Args:
        clip: a trained image-text model.
        images: (n, ...). answers: (n, concepts) in {-1, 0, 1}; 0 is left out, and the rarer answer of each question is
            repeated up to the other's number.
        questions: the columns of `answers`.
        epochs, batch_size, lr: of Adam on the binary cross-entropy.
        generator: of the head's weights, the balancing and the order.

    Raises:
        ValueError: if the shapes do not agree or no question has both answers.
    """
    table = torch.as_tensor(np.asarray(answers)).long()
    if table.shape != (len(images), len(questions)):
        raise ValueError(f"answers must have shape ({len(images)}, {len(questions)}), got {tuple(table.shape)}")
    draws = torch.Generator().manual_seed(0) if generator is None else generator
    places, targets = [], []
    for column in range(table.shape[1]):
        sides = [(table[:, column] == value).nonzero()[:, 0] for value in (-1, 1)]
        if not min(map(len, sides)):
            continue
        most = max(map(len, sides))
        for target, side in enumerate(sides):
            rows = side.repeat(-(-most // len(side)))[:most]
            places.append(torch.stack([rows, torch.full_like(rows, column)], dim=1))
            targets.append(torch.full((most,), float(target)))
    if not places:
        raise ValueError("no question has both answers, yes and no")
    tuned = copy.deepcopy(clip)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=draws)))
        ids = tuned.text_encoder.ids(questions)  # type: ignore[operator]
        width = encode_images(tuned.image_encoder, images[:1]).shape[1]
        head = _ConceptHead(tuned, images, ids, width)
        fit(
            head, Examples(torch.cat(places), torch.cat(targets)), torch.optim.Adam(head.parameters(), lr=float(lr)),
            loss=F.binary_cross_entropy_with_logits, epochs=epochs, batch_size=batch_size, generator=draws,
        )  # fmt: skip
    return tuned.image_encoder


def untrained_feature_probe(
    backbone: nn.Module,
    train: tuple[Any, Any],
    val: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    epochs: int = 200,
    seed: int = 0,
) -> dict[str, float]:
    """The deep-image-prior study: a linear probe on the features of an untrained backbone, and one on the pixels.

    On natural photographs the untrained features help; on X-rays and skin the paper finds that they do not.

    Args:
        backbone: images -> (n, dim), as initialised.
        train, val, test: images (n, channels, height, width) with labels.
        epochs, seed: of the probes.

    Returns:
        test accuracies `features`, `pixels` and their difference `gain`.
    """
    scores = {}
    views: dict[str, Callable[[Tensor], Tensor]] = {
        "features": lambda images: encode_images(backbone, images),
        "pixels": lambda images: images.flatten(1),
    }
    for name, view in views.items():
        probe = LinearProbe(epochs=epochs, seed=seed).fit(view(train[0]), train[1], validation=(view(val[0]), val[1]))
        scores[name] = probe.score(view(test[0]), test[1])
    return scores | {"gain": scores["features"] - scores["pixels"]}
