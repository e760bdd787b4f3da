"""`LesionScenes`: drawn skin lesions with known findings, reports, diagnoses, and a hospital that leaves its mark.

Eight findings are drawn independently with probability 0.4; with risk r of each,

    y ~ Bernoulli(sigmoid(2.5 (r . c - 1.6))),    r = (1, 1, 1, 1/2, 1, 1/2, 1, -1),                            (1)

and the classes are balanced by rejection. Hospital 1 has a warm lamp and a dark frame above the picture.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from etude.science.knobo.concepts import Bottleneck
from etude.science.knobo.prior import KnowledgePrior

__all__ = [
    "CLASSES",
    "FINDINGS",
    "RISK",
    "LesionScenes",
    "Scenes",
    "ceiling",
    "lesion_bottleneck",
    "lesion_prior",
]

CLASSES = ("benign", "malignant")
FINDINGS = ("asymmetry", "irregular border", "multiple colors", "dark pigment", "radial streaks", "dots",
            "blue-white veil", "white scale")  # fmt: skip
RISK = (1.0, 1.0, 1.0, 0.5, 1.0, 0.5, 1.0, -1.0)
RATE, SLOPE, MIDDLE = 0.4, 2.5, 1.6
_AFFIRMED = ("The lesion shows {}.", "There is {}.", "Findings include {}.", "We note {}.", "Marked by {}.")
_DENIED = ("The lesion shows no {}.", "No {} is seen.", "Without {}.", "Absence of {}.", "There is no sign of {}.")
_HOSPITALS = ("Photograph from the north hospital.", "Photograph from the south hospital.")


def lesion_bottleneck() -> Bottleneck:
    """The eight findings as questions, without provenance."""
    return Bottleneck.from_questions([f"Does the lesion show {finding}?" for finding in FINDINGS], "findings")


def lesion_prior(questions: Sequence[str] | None = None) -> KnowledgePrior:
    """The signs of the risks: -sign for benign, +sign for malignant; 0 for questions about something else."""
    known = {f"Does the lesion show {finding}?": float(torch.tensor(r).sign()) for finding, r in zip(FINDINGS, RISK)}
    names = tuple(known) if questions is None else tuple(questions)
    signs = torch.tensor([known.get(name, 0.0) for name in names])
    return KnowledgePrior(torch.stack([-signs, signs]), CLASSES, names)


@dataclass(frozen=True, eq=False)
class Scenes:
    """Images with all that is known of them.

    Args:
        images: RGB in [0, 1], (n, 3, size, size).
        concepts: which findings are there, (n, 8), in the order of `FINDINGS`.
        labels: 0 benign, 1 malignant. hospital: 0 or 1.
        reports: a text for each.
    """

    images: Float32[Tensor, "n 3 size size"]
    concepts: Bool[Tensor, "n 8"]
    labels: Int64[Tensor, "n"]
    hospital: Int64[Tensor, "n"]
    reports: list[str]

    def __len__(self) -> int:
        return len(self.labels)


class LesionScenes:
    """Draws scenes.

    Args:
        size: side of the images in pixels, >= 16.
        noise: standard deviation of the camera's noise, >= 0.
        unmentioned: share of the findings (present or absent) that a report leaves out, in [0, 1).
        named: share of the reports that name the hospital, in [0, 1].

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(
        self,
        size: int = 32,
        *,
        noise: float | int = 0.02,
        unmentioned: float | int = 0.3,
        named: float | int = 0.5,
    ):
        if size < 16 or noise < 0 or not 0 <= unmentioned < 1 or not 0 <= named <= 1:
            raise ValueError(
                "size must be at least 16, noise at least 0, unmentioned in [0, 1) and named in [0, 1], "
                f"got {size}, {noise}, {unmentioned} and {named}"
            )
        self.size, self.noise, self.unmentioned, self.named = size, noise, unmentioned, named

    def draw(
        self,
        n: int,
        agreement: float | int,
        generator: torch.Generator,
        *,
        reports: bool = False,
    ) -> Scenes:
        """`n` scenes, half of each class (benign one more if n is odd).

        Args:
            n: how many, positive.
            agreement: share of each class, rounded to whole scenes, whose hospital equals the label: 1 and 0 are the
                confounded domains, 0.5 is unconfounded.
            generator: of all draws.
            reports: whether to write them (empty texts if not).
        """
        if n < 1 or not 0 <= agreement <= 1:
            raise ValueError(f"n must be positive and agreement in [0, 1], got {n} and {agreement}")
        labels = torch.arange(n) % 2
        concepts = _findings_of(labels, generator)
        hospital = labels.clone()
        for label in (0, 1):
            rows = (labels == label).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator)]
            against = rows[round(agreement * len(rows)) :]
            hospital[against] = 1 - label
        order = torch.randperm(n, generator=generator)
        labels, concepts, hospital = labels[order], concepts[order], hospital[order]
        images = self.render(concepts, hospital, generator)
        texts = self.write(concepts, hospital, generator) if reports else [""] * n
        return Scenes(images, concepts, labels, hospital, texts)

    def write(
        self, concepts: Bool[Tensor, "n 8"], hospital: Int64[Tensor, "n"], generator: torch.Generator
    ) -> list[str]:
        """A report a scene: the findings mentioned in random order, affirmed or denied in varying words."""
        n, count = concepts.shape
        told = (torch.rand(n, count, generator=generator) >= self.unmentioned).tolist()
        words = torch.randint(0, len(_AFFIRMED), (n, count), generator=generator).tolist()
        orders = torch.rand(n, count, generator=generator).argsort(dim=1).tolist()
        named = (torch.rand(n, generator=generator) < self.named).tolist()
        texts = []
        for row, present in enumerate(concepts.tolist()):
            parts = [_HOSPITALS[int(hospital[row])]] if named[row] else []
            for k in orders[row]:
                if told[row][k]:
                    parts.append((_AFFIRMED if present[k] else _DENIED)[words[row][k]].format(FINDINGS[k]))
            texts.append(" ".join(parts))
        return texts

    def render(
        self, concepts: Bool[Tensor, "n 8"], hospital: Int64[Tensor, "n"], generator: torch.Generator
    ) -> Float32[Tensor, "n 3 size size"]:
        """Draws the pictures, 500 at a time."""
        parts = zip(concepts.split(500), hospital.split(500))
        return torch.cat([self._render(c, h, generator) for c, h in parts])

    def _render(self, concepts: Tensor, hospital: Tensor, generator: torch.Generator) -> Tensor:
        n, size = len(concepts), self.size

        def uniform(low: float | int, high: float | int, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(n, *(shape or (1, 1)), generator=generator)

        def angle() -> Tensor:
            return uniform(0, 2 * math.pi)

        has = {name: concepts[:, k, None, None] for k, name in enumerate(FINDINGS)}
        # Coordinates in units of a 32-pixel picture, from the lesion's centre.
        ticks = (torch.arange(size) + 0.5) * 32 / size - 16
        dx, dy = ticks[None, None, :] - uniform(-2, 2), ticks[None, :, None] - uniform(-2, 2)
        radius, theta = (dx**2 + dy**2).sqrt(), torch.atan2(dy, dx)
        rim = uniform(7.5, 9.5) * (1 + 0.06 * torch.cos(2 * (theta - angle())))
        flat = torch.sigmoid(8 * (torch.cos(theta - angle()) - 0.2))
        rim = rim * torch.where(has["asymmetry"], 1 - 0.55 * flat, torch.ones(()))
        wave = 0.26 * torch.cos(6 * theta + angle()) + 0.10 * torch.cos(9 * theta + angle())
        rim = rim * torch.where(has["irregular border"], 1 + wave, torch.ones(()))
        inside = torch.sigmoid(2.0 * (rim - radius))

        def paint(picture: Tensor, colour: Sequence[float], where: Tensor) -> Tensor:
            return picture + (torch.tensor(colour)[:, None, None] - picture) * where[:, None]

        skin = torch.tensor([0.87, 0.70, 0.60])[:, None, None] * uniform(0.92, 1.05, 1, 1, 1)
        brown = torch.tensor([0.60, 0.42, 0.30])[:, None, None] * uniform(0.9, 1.1, 1, 1, 1)
        body = brown * torch.where(has["dark pigment"], 0.5, 1.0)[:, None]
        body = body.expand(n, 3, size, size)
        side = torch.cos(theta - angle())
        body = paint(body, (0.72, 0.30, 0.28), (has["multiple colors"] & (side > 0.35)) * 0.75)
        body = paint(body, (0.80, 0.62, 0.38), (has["multiple colors"] & (side < -0.55)) * 0.75)
        away = ((dx - uniform(-3, 3)) ** 2 + (dy - uniform(-3, 3)) ** 2).sqrt()
        body = paint(body, (0.58, 0.64, 0.80), has["blue-white veil"] * 0.9 * torch.sigmoid(2 * (4.2 - away)))
        body = paint(body, (0.05, 0.02, 0.02), has["dots"] * 0.95 * _specks(dx, dy, 10, 6.0, 1.2, generator))
        body = paint(body, (0.97, 0.96, 0.93), has["white scale"] * 0.9 * _specks(dx, dy, 7, 6.0, 1.3, generator))
        picture = skin + (body - skin) * inside[:, None]
        ring = torch.sigmoid(3 * (radius - rim)) * torch.sigmoid(3 * (rim + 3.5 - radius))
        spokes = (torch.cos(10 * theta + angle()) > 0.4) * ring
        picture = paint(picture, (0.30, 0.20, 0.15), has["radial streaks"] * 0.7 * spokes)
        warm = torch.tensor([1.12, 1.0, 0.82])[:, None, None]
        here = hospital[:, None, None, None] == 1
        picture = torch.where(here, picture * warm, picture)
        frame = (torch.arange(size) < size * 3 // 32)[:, None]
        picture = torch.where(here & frame, picture * 0.25, picture)
        picture = picture + self.noise * torch.randn(n, 3, size, size, generator=generator)
        return picture.clamp(0, 1)


def _specks(dx: Tensor, dy: Tensor, count: int, reach: float, width: float, generator: torch.Generator) -> Tensor:
    """Round specks at random places within `reach` of the centre: (n, size, size) in [0, 1]."""
    n = len(dx)
    far = reach * torch.rand(n, count, generator=generator).sqrt()
    turn = 2 * math.pi * torch.rand(n, count, generator=generator)
    x, y = (far * turn.cos())[..., None, None], (far * turn.sin())[..., None, None]
    away = ((dx[:, None] - x) ** 2 + (dy[:, None] - y) ** 2).amin(dim=1).sqrt()
    return torch.sigmoid(4 * (width - away))


def _findings_of(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Findings given the labels: rows of eq. (1) kept until every label has its own."""
    concepts = torch.zeros(len(labels), len(FINDINGS), dtype=torch.bool)
    for label in (0, 1):
        rows = (labels == label).nonzero()[:, 0]
        kept: list[Tensor] = []
        while sum(map(len, kept)) < len(rows):
            drawn = torch.rand(2 * len(rows) + 16, len(FINDINGS), generator=generator) < RATE
            y = torch.rand(len(drawn), generator=generator) < malignancy(drawn)
            kept.append(drawn[y == bool(label)])
        concepts[rows] = torch.cat(kept)[: len(rows)]
    return concepts


def malignancy(concepts: Bool[Tensor, "n 8"]) -> Float[Tensor, "n"]:
    """p(y = 1 | c), eq. (1), before balancing."""
    return torch.sigmoid(SLOPE * (concepts.float() @ torch.tensor(RISK) - MIDDLE))


def ceiling() -> float:
    """The best accuracy of a model that sees the findings alone, on balanced classes: exact, by enumeration."""
    every = torch.tensor(list(itertools.product((False, True), repeat=len(FINDINGS))))
    weight = torch.where(every, RATE, 1 - RATE).double().prod(dim=1)
    positive = malignancy(every).double()
    share = float((weight * positive).sum())
    chances = torch.stack([weight * (1 - positive) / (1 - share), weight * positive / share])
    return float(chances.amax(dim=0).sum()) / 2
