"""A small image-text model trained by contrast on image and report pairs, in place of a medical CLIP.

InfoNCE over a batch of N pairs with unit vectors u_i (image) and v_i (text) and a learned temperature t:

    L = 1/(2N) sum_i [ -log softmax_j(u_i . v_j / t)_i - log softmax_j(u_j . v_i / t)_i ]                       (1)

The paper's own WhyXrayCLIP and WhyLesionCLIP (ViT-L/14) load through `OpenCLIPEncoder`.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import fit, outputs_of
from etude.science.knobo.text import lemma, tokens

__all__ = [
    "ContrastivePretrainer",
    "ConvEncoder",
    "OpenCLIPEncoder",
    "TextEncoder",
    "contrastive_loss",
    "encode_images",
]


class ConvEncoder(nn.Module, PyTorchModelHubMixin):
    """Three strided convolutions, a pool over a 2 x 2 grid and a linear layer.

    Args:
        dim: of the output. width: channels of the first convolution; then twice and four times as many.
        channels: of the images.
    """

    def __init__(self, dim: int = 64, width: int = 16, channels: int = 3):
        super().__init__()
        self.dim = dim
        stages, before = [], channels
        for after in (width, 2 * width, 4 * width):
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            before = after
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(4 * before, dim)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        # Pixels in [0, 1] are centred, as a network without it spends its first epochs on that.
        return self.head(F.adaptive_avg_pool2d(self.stages(images * 4 - 2), 2).flatten(1))


class TextEncoder(nn.Module):
    """The mean of word and word-pair vectors, then a linear layer; pairs let "no scale" differ from "scale".

    Args:
        texts: from which the vocabulary is taken: words and pairs that occur at least twice.
        dim: of the output.
    """

    def __init__(self, texts: Sequence[str], dim: int = 64, hidden: int = 64):
        super().__init__()
        counts: dict[str, int] = {}
        for text in texts:
            for term in _terms(text):
                counts[term] = counts.get(term, 0) + 1
        self.vocabulary = {term: place for place, term in enumerate(sorted(t for t, c in counts.items() if c > 1), 1)}
        self.embedding = nn.EmbeddingBag(len(self.vocabulary) + 1, hidden, mode="mean", padding_idx=0)
        self.head = nn.Linear(hidden, dim)

    def ids(self, texts: Sequence[str]) -> Int64[Tensor, "texts length"]:
        """Places of the terms, padded with 0; what the vocabulary lacks is left out."""
        rows = [[self.vocabulary[t] for t in _terms(text) if t in self.vocabulary] for text in texts]
        table = torch.zeros(len(rows), max(max(map(len, rows), default=0), 1), dtype=torch.int64)
        for place, row in enumerate(rows):
            table[place, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return table

    def forward(self, ids: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        return self.head(self.embedding(ids))


def _terms(text: str) -> list[str]:
    words = [lemma(word) for word in tokens(text)]
    return words + [f"{one} {other}" for one, other in itertools.pairwise(words)]


def contrastive_loss(
    images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"], scale: Float[Tensor, ""] | float
) -> Float[Tensor, ""]:
    """Eq. (1); `scale` is 1 / t."""
    logits = scale * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ContrastivePretrainer(nn.Module):
    """Trains an image and a text encoder on pairs.

        clip = ContrastivePretrainer(ConvEncoder(), TextEncoder(reports))
        clip.fit(images, reports, epochs=8)
        features = encode_images(clip.image_encoder, images)

    Args:
        image_encoder: images -> (n, dim). text_encoder: ids -> (n, dim), with a method `ids` from texts to tensors.
        temperature: t at the start.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, temperature: float | int = 0.07):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        return self.image_encoder(images)

    def loss(self, vectors: Float[Tensor, "batch dim"], ids: Int64[Tensor, "batch length"]) -> Float[Tensor, ""]:
        """Eq. (1) of image vectors and the ids of their texts."""
        scale = self.log_scale.clamp(max=math.log(100.0)).exp()
        return contrastive_loss(vectors, self.text_encoder(ids), scale)

    def fit(
        self,
        images: Float[Tensor, "n channels height width"],
        reports: Sequence[str],
        *,
        epochs: int = 8,
        batch_size: int = 128,
        lr: float | int = 2e-3,
        generator: torch.Generator | None = None,
        callback: Callable[..., Any] | None = None,
    ) -> list[float]:
        """Adam on Eq. (1); the loss of every step."""
        if len(images) != len(reports):
            raise ValueError(f"images and reports must be equally many, got {len(images)} and {len(reports)}")
        if len(images) < 2:
            raise ValueError(f"contrast needs at least two pairs, got {len(images)}")
        pairs = Examples(images, self.text_encoder.ids(reports))  # type: ignore[operator]
        result = fit(
            self, pairs, torch.optim.Adam(self.parameters(), lr=float(lr)), loss=self.loss, epochs=epochs,
            batch_size=min(batch_size, len(images)), generator=generator, callbacks=[callback] if callback else [],
            every=10,
        )  # fmt: skip
        return result.losses

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        self.text_encoder.eval()
        return self.text_encoder(self.text_encoder.ids(texts))  # type: ignore[operator]


def encode_images(
    encoder: nn.Module, images: Float[Tensor, "n channels height width"], *, batch_size: int = 256
) -> Float[Tensor, "n dim"]:
    """The encoder's output for all images, in evaluation mode, on the CPU."""
    return outputs_of(encoder, Examples(images, torch.zeros(len(images))), batch_size)[0].cpu()


class OpenCLIPEncoder(nn.Module):
    """The image tower of an open_clip model read from a local checkpoint; nothing is downloaded.

    Args:
        checkpoint: a file of weights, as of the paper's WhyXrayCLIP or WhyLesionCLIP.
        name: open_clip's name of the architecture.

    Raises:
        FileNotFoundError: if there is no such file. ImportError: without open_clip.
    """

    def __init__(self, checkpoint: str | Path, name: str = "ViT-L-14"):
        super().__init__()
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"no weights at {checkpoint}: place the file open_clip_pytorch_model.bin of "
                "huggingface.co/yyupenn/whyxrayclip or yyupenn/whylesionclip there"
            )
        try:
            import open_clip
        except ImportError as error:
            raise ImportError("medical CLIP models need open_clip: pip install open_clip_torch") from error
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, pretrained=str(checkpoint))
        self.tokenizer = open_clip.get_tokenizer(name)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        return self.model.encode_image(images)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        return self.model.encode_text(self.tokenizer(list(texts)))
