"""Faces and their attributes: drawn scenes with everything known, and the real faces that are bundled or placed here.

    from etude.data.faces import FaceScenes
    world = FaceScenes(size=64)
    generator = torch.Generator().manual_seed(0)
    scenes = world.scenes(world.people(100, generator), 5, generator)   # Faces: images, tags, boxes, identities

Readers of CelebA and LFWA are in `etude.data.faces_public` and are handed out here.
"""

import importlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from etude.data.catalogue import locate
from etude.data.kinds import Examples, ImageData

__all__ = [
    "ATTRIBUTES",
    "LFWA",  # noqa: F822
    "CelebA",  # noqa: F822 (loaded when asked for)
    "FaceScenes",
    "Faces",
    "lfw_faces",
    "lfw_mosaics",
    "orl_faces",
]

ATTRIBUTES = (
    "glasses", "hat", "smile", "mouth_open", "beard", "dark_hair", "bald", "big_nose", "thick_brows", "narrow_eyes",
)  # fmt: skip
_HABITS = 4  # the first attributes may vary within a person, the others are the person's
_GEOMETRY = 12


def __getattr__(name: str) -> Any:
    if name in ("CelebA", "LFWA"):
        return getattr(importlib.import_module("etude.data.faces_public"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, eq=False)
class Faces:
    """Images of one face each, with tags, and perhaps with boxes and identities.

    Args:
        images: float32 (n, channels, height, width) in [0, 1].
        tags: int64 (n, attributes), 0 or 1.
        attributes: names of the tags, in order.
        boxes: float32 (n, 4): left, top, right, bottom in pixels, pixel p covering [p, p + 1); for scoring only.
        identities: int64 (n,), the person of each image.
        name: what the faces are called in tables.

    Raises:
        ValueError: if shapes disagree, a tag is neither 0 nor 1, or a box is degenerate or lies outside its image.
    """

    images: Tensor
    tags: Tensor
    attributes: tuple[str, ...]
    boxes: Tensor | None = None
    identities: Tensor | None = None
    name: str = "faces"

    def __post_init__(self):
        if self.images.ndim != 4 or self.images.dtype != torch.float32:
            raise ValueError(
                f"images must be float32 (n, channels, height, width), got {self.images.dtype} of shape "
                f"{tuple(self.images.shape)}"
            )
        if self.tags.dtype != torch.int64 or self.tags.shape != (len(self.images), len(self.attributes)):
            raise ValueError(
                f"tags must be int64 of shape {(len(self.images), len(self.attributes))}, got {self.tags.dtype} of "
                f"shape {tuple(self.tags.shape)}"
            )
        if not bool(((self.tags == 0) | (self.tags == 1)).all()):
            raise ValueError(f"tags must be 0 or 1, got {self.tags.unique()[:5].tolist()}")
        if self.boxes is not None:
            self._check_boxes(self.boxes)
        if self.identities is not None and self.identities.shape != (len(self.images),):
            raise ValueError(f"identities must have shape ({len(self.images)},), got {tuple(self.identities.shape)}")

    def _check_boxes(self, boxes: Tensor) -> None:
        if boxes.shape != (len(self.images), 4):
            raise ValueError(f"boxes must have shape ({len(self.images)}, 4), got {tuple(boxes.shape)}")
        height, width = self.images.shape[2:]
        good = (boxes[:, :2] < boxes[:, 2:]).all(1) & (boxes[:, :2] >= 0).all(1)
        good &= (boxes[:, 2] <= width) & (boxes[:, 3] <= height)
        if not bool(good.all()):
            row = int((~good).nonzero()[0])
            raise ValueError(
                f"boxes are (left, top, right, bottom) with left < right and top < bottom inside the {height} x "
                f"{width} image, got {boxes[row].tolist()} in row {row}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Tensor | slice) -> "Faces":
        """The rows asked for (integers, a boolean mask or a slice)."""
        return replace(
            self, images=self.images[rows], tags=self.tags[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            identities=None if self.identities is None else self.identities[rows],
        )  # fmt: skip

    def without_boxes(self) -> "Faces":
        """The same with no box to look at: what learning from tags alone is given."""
        return replace(self, boxes=None)


@dataclass(frozen=True)
class FaceScenes:
    """A world of drawn grey faces among clutter, in which identity, attributes and place of every face are known.

    A person has twelve numbers of geometry and tone, uniform in [0, 1], which decide six of the attributes (beard, dark
    hair, bald, big nose, thick brows, narrow eyes), and a habit for each of the other four (glasses, hat, smile, open
    mouth). A scene is a background of `clutter` ellipses and rectangles, one face of random size and place, and noise.

    Args:
        size: height and width of a scene.
        side: least and largest height of a face in pixels.
        clutter: shapes in the background.
        noise: standard deviation of the noise of a pixel.
        consistency: how often a picture shows what the person's habits are; 0.5: glasses, hat, smile and open mouth
            are drawn afresh for every picture, whoever it is.
        nuisance: 0 to 1, strength of what hides a face: lighting ramps, contrast, blur and a bar across.

    Raises:
        ValueError: if a number lies outside its range.
    """

    size: int = 64
    side: tuple[int, int] = (22, 32)
    clutter: int = 7
    noise: float = 0.05
    consistency: float = 0.5
    nuisance: float = 0.0

    def __post_init__(self):
        if not 12 <= self.side[0] <= self.side[1] <= 0.8 * self.size:
            raise ValueError(
                f"side must be (least, largest), at least 12 and at most 0.8 of the size {self.size}, got {self.side}"
            )
        if self.clutter < 0 or self.noise < 0:
            raise ValueError(f"clutter and noise must not be negative, got {self.clutter} and {self.noise}")
        for name, value, least in (("consistency", self.consistency, 0.5), ("nuisance", self.nuisance, 0.0)):
            if not least <= value <= 1:
                raise ValueError(f"{name} must lie in [{least:g}, 1], got {value}")

    def people(self, n: int, generator: torch.Generator) -> Float32[Tensor, "people 16"]:
        """n persons: twelve numbers in [0, 1], then four habits, 0 or 1."""
        if n < 1:
            raise ValueError(f"there must be at least one person, got {n}")
        geometry = torch.rand(n, _GEOMETRY, generator=generator)
        return torch.cat([geometry, (torch.rand(n, _HABITS, generator=generator) < 0.5).float()], dim=1)

    def scenes(
        self,
        people: Float32[Tensor, "people 16"],
        pictures: int,
        generator: torch.Generator,
        *,
        first_identity: int = 0,
    ) -> Faces:
        """`pictures` scenes of each person; identities count from `first_identity`.

        Raises:
            ValueError: if `pictures` is not positive.
        """
        if pictures < 1:
            raise ValueError(f"pictures must be positive, got {pictures}")
        who = torch.arange(len(people)).repeat_interleave(pictures)
        person = people[who]
        keeps = torch.rand(len(who), _HABITS, generator=generator) < self.consistency
        shown = torch.where(keeps, person[:, _GEOMETRY:], 1 - person[:, _GEOMETRY:])
        g = person[:, :_GEOMETRY]
        own = torch.stack([g[:, 0] > 0.6, g[:, 1] < 0.5, g[:, 2] > 0.6, g[:, 3] > 0.55, g[:, 4] > 0.5, g[:, 5] < 0.45])
        tags = torch.cat([shown > 0.5, own.T], dim=1)
        low, high = self.side
        side = low + (high - low) * torch.rand(len(who), generator=generator)
        across = side * (0.76 + 0.2 * g[:, 6])
        left = (self.size - across) * torch.rand(len(who), generator=generator)
        top = (self.size - side) * torch.rand(len(who), generator=generator)
        boxes = torch.stack([left, top, left + across, top + side], dim=1)
        images = self._background(len(who), generator)
        tone = torch.rand(len(who), generator=generator)
        images = _draw_faces(images, boxes, g, tags, tone)
        images = self._hidden(images, boxes, generator)
        images = images + self.noise * torch.randn(images.shape, generator=generator)
        return Faces(
            images=images.clamp(0, 1)[:, None], tags=tags.long(), attributes=ATTRIBUTES, boxes=boxes,
            identities=who + first_identity, name="face_scenes",
        )  # fmt: skip

    def _background(self, n: int, generator: torch.Generator) -> Tensor:
        y, x = _pixels(self.size)

        def uniform(low: float | int, high: float | int) -> Tensor:
            return low + (high - low) * torch.rand(n, 1, 1, generator=generator)

        image = uniform(0.2, 0.8) + uniform(-0.2, 0.2) * (x / self.size - 0.5) + torch.zeros(n, self.size, self.size)
        for _ in range(self.clutter):
            dx = (x - uniform(0, self.size)) / (self.size * uniform(0.06, 0.22))
            dy = (y - uniform(0, self.size)) / (self.size * uniform(0.06, 0.22))
            ellipse = uniform(0, 1) < 0.5
            inside = torch.where(ellipse, dx**2 + dy**2 < 1, torch.maximum(dx.abs(), dy.abs()) < 1)
            image = torch.where(inside, uniform(0.15, 0.85), image)
        return image

    def _hidden(self, images: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
        if not self.nuisance:
            return images
        y, x = _pixels(self.size)
        left, top, right, bottom = boxes.T[..., None, None]

        def uniform(low: float | int, high: float | int) -> Tensor:
            return low + (high - low) * torch.rand(len(images), 1, 1, generator=generator)

        angle = uniform(0, 2 * np.pi)
        across = (x - (left + right) / 2) * angle.cos() + (y - (top + bottom) / 2) * angle.sin()
        ramp = self.nuisance * uniform(0, 0.5) * across / (bottom - top)
        contrast = 1 + 0.4 * self.nuisance * uniform(-1, 1)
        lit = 0.5 + contrast * (images - 0.5) + ramp
        blurred = torch.nn.functional.avg_pool2d(lit[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
        lit = torch.where(uniform(0, 1) < 0.5 * self.nuisance, blurred, lit)
        middle = left + (right - left) * uniform(0, 1)
        bar = ((x - middle).abs() < 0.09 * (right - left)) & (y > top) & (y < bottom)
        return torch.where(bar & (uniform(0, 1) < 0.5 * self.nuisance), uniform(0, 1), lit)


def _pixels(size: int) -> tuple[Tensor, Tensor]:
    centres = torch.arange(size) + 0.5
    return centres[None, :, None], centres[None, None, :]


def _draw_faces(images: Tensor, boxes: Tensor, geometry: Tensor, tags: Tensor, hat_tone: Tensor) -> Tensor:
    """Lays a face over each image, in coordinates u, v that run from -1 to 1 across its box."""
    y, x = _pixels(images.shape[-1])
    left, top, right, bottom = boxes.T[..., None, None]
    u = (2 * x - left - right) / (right - left)
    v = (2 * y - top - bottom) / (bottom - top)
    g = [column[:, None, None] for column in geometry.T]
    glasses, hat, smile, mouth_open, beard, dark_hair, bald, big_nose, thick, narrow = (
        column[:, None, None] for column in tags.T
    )
    soft = 3.0 / (bottom - top)  # edges are between one and two pixels wide

    def ellipse(cu: Any, cv: Any, ru: Any, rv: Any) -> Tensor:
        distance = (((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2).sqrt() - 1
        return torch.sigmoid(-distance * rv * 4 / soft)

    def bar(cu: Any, cv: Any, ru: Any, rv: Any) -> Tensor:
        outside = torch.maximum((u - cu).abs() - ru, (v - cv).abs() - rv)
        return torch.sigmoid(-outside * 4 / soft)

    def lay(under: Tensor, mask: Tensor, tone: Any) -> Tensor:
        return under + mask * (tone - under)

    skin = 0.5 + 0.25 * g[7]
    hair_tone = torch.where(dark_hair, 0.05 + 0.2 * g[1], 0.75 + 0.2 * g[1])
    head = ellipse(0.0, 0.0, 1.0, 1.0)
    image = lay(images, head, skin + 0.08 * u)
    hairline = -0.55 + 0.2 * g[8]
    hair = head * torch.maximum(torch.sigmoid((hairline - v) * 4 / soft), bar(0.0, -0.4, 2.0, 0.4) * (u.abs() > 0.8))
    image = lay(image, torch.where(bald, hair * (u.abs() > 0.85), hair), hair_tone)
    chin = head * torch.sigmoid((v - 0.35 - 0.25 * (1 - u.abs())) * 4 / soft)
    image = lay(image, chin * beard * 0.9, 0.12 + 0.15 * g[0])
    eye_u, eye_v = 0.34 + 0.14 * g[9], -0.2 + 0.1 * g[10]
    aperture = torch.where(narrow, 0.05, 0.14) + 0.03 * g[5]
    thickness = torch.where(thick, 0.08, 0.03) + 0.03 * g[4]
    for sign in (-1, 1):
        image = lay(image, ellipse(sign * eye_u, eye_v, 0.19, aperture), 0.95)
        image = lay(image, ellipse(sign * eye_u, eye_v, 0.08, torch.minimum(aperture, torch.tensor(0.1))), 0.05)
        image = lay(image, bar(sign * eye_u, eye_v - 0.24, 0.2, thickness), 0.3 * hair_tone)
        ring = ellipse(sign * eye_u, eye_v, 0.34, 0.26) - ellipse(sign * eye_u, eye_v, 0.24, 0.17)
        image = lay(image, ring.clamp(min=0) * glasses, 0.02)
    image = lay(image, bar(0.0, eye_v, eye_u - 0.28, 0.04) * glasses, 0.02)
    nose = torch.where(big_nose, 0.2, 0.1) + 0.05 * g[3]
    image = lay(image, ellipse(0.0, 0.18, nose, 0.16 + 0.08 * g[11]), 0.55 * skin)
    mouth = 0.56 - smile * 1.5 * (u**2 - 0.05)
    height = torch.where(mouth_open, 0.15, 0.045)
    width = 0.3 + 0.12 * g[2] + 0.1 * smile
    lips = torch.sigmoid(-torch.maximum((v - mouth).abs() - height * (1 - (u / width) ** 2).clamp(min=0).sqrt(),
                                        u.abs() - width) * 4 / soft)  # fmt: skip
    image = lay(image, lips, torch.where(mouth_open, 0.08, 0.25))
    brim = torch.maximum(bar(0.0, -0.56, 1.1, 0.09), bar(0.0, -0.85, 0.78, 0.3))
    return lay(image, brim * hat, 0.05 + 0.9 * hat_tone[:, None, None])


@lru_cache(maxsize=1)
def _lfw() -> Tensor:
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise ImportError("lfw_faces needs scikit-image: pip install 'etude[run]'") from error
    return torch.from_numpy(lfw_subset()).float()[:, None]


def lfw_faces() -> ImageData:
    """100 real faces and 100 patches without one, 25 x 25 grey (LFW, bundled with scikit-image); face is class 1.

    70 of each train, 10 validate, 20 test, always the same.
    """
    patches = _lfw()
    labels = torch.cat([torch.ones(100, dtype=torch.int64), torch.zeros(100, dtype=torch.int64)])

    def part(start: int, stop: int) -> Examples:
        rows = torch.cat([torch.arange(start, stop), 100 + torch.arange(start, stop)])
        return Examples(patches[rows], labels[rows])

    return ImageData(part(0, 70), part(70, 80), part(80, 100), ("other", "face"), "lfw_faces")


def lfw_mosaics(n: int = 100, size: int = 64, *, generator: torch.Generator) -> Faces:
    """The real faces of `lfw_faces`, each at a random place of a mosaic of its patches without faces; no tags.

    Args:
        n: scenes; the faces take turns.
        size: height and width, at least 25.
        generator: of places and patches.

    Raises:
        ValueError: if n is not positive or the size is less than a face's.
    """
    if n < 1 or size < 25:
        raise ValueError(f"n must be positive and size at least 25, got {n} and {size}")
    patches = _lfw()[:, 0]
    tiles = -(-size // 25)
    others = patches[100 + torch.randint(100, (n, tiles, tiles), generator=generator)]
    images = others.permute(0, 1, 3, 2, 4).reshape(n, tiles * 25, tiles * 25)[:, :size, :size].clone()
    corners = torch.randint(size - 24, (n, 2), generator=generator)
    for row, (left, top) in enumerate(corners.tolist()):
        images[row, top : top + 25, left : left + 25] = patches[row % 100]
    boxes = torch.cat([corners, corners + 25], dim=1).float()
    return Faces(images[:, None], torch.zeros(n, 0, dtype=torch.int64), (), boxes, torch.arange(n) % 100, "lfw_mosaics")


@lru_cache(maxsize=4)
def orl_faces(size: int | None = None) -> ImageData:
    """40 people, 10 grey portraits each, as classes s1 .. s40 (AT&T/ORL, `etude data path orl_faces`).

    Portraits 1 to 6 of each person train, 7 and 8 validate, 9 and 10 test.

    Args:
        size: height and width to scale to (averaged over areas); the portraits' own, 112 x 92, if None.

    Raises:
        FileNotFoundError: if the set is not here; the message says what to place where.
        ValueError: if a portrait is missing or has another size.
    """
    from PIL import Image

    folder = locate("orl_faces")
    portraits = []
    for person in range(1, 41):
        for index in range(1, 11):
            file = folder / f"s{person}" / f"{index}.pgm"
            if not file.is_file():
                raise ValueError(f"{folder} should hold s1/1.pgm .. s40/10.pgm; {file.relative_to(folder)} is missing")
            with Image.open(file) as image:
                if image.size != (92, 112):
                    raise ValueError(f"{file} should be 92 x 112 pixels, got {image.size[0]} x {image.size[1]}")
                portraits.append(np.asarray(image.convert("L"), dtype=np.float32) / 255)
    images = torch.from_numpy(np.stack(portraits))[:, None]
    if size is not None:
        images = torch.nn.functional.adaptive_avg_pool2d(images, size)
    labels, number = torch.arange(40).repeat_interleave(10), torch.arange(10).repeat(40)

    def part(start: int, stop: int) -> Examples:
        chosen = (number >= start) & (number < stop)
        return Examples(images[chosen], labels[chosen])

    names = tuple(f"s{person}" for person in range(1, 41))
    return ImageData(part(0, 6), part(6, 8), part(8, 10), names, "orl_faces")
