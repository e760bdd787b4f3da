"""Digits under sixteen conditions, and the tasks made of them: is this the digit c, seen under condition m?

The conditions are those of MNIST-C (Mu & Gilmer, "MNIST-C: A Robustness Benchmark for Computer Vision",
arXiv:1906.02337, 2019): fifteen corruptions and the identity. They are drawn here from their descriptions, so figures
on the published set need the published set.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from etude.transfer.active_mtrl.oracles import Samples

__all__ = ["CORRUPTIONS", "DigitOracle", "corrupt"]

Images = Float32[Tensor, "n channels height width"]


def _affine(images: Tensor, matrix: Tensor) -> Tensor:
    """Images resampled at `matrix` (n, 2, 3) of their coordinates in [-1, 1]."""
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _matrices(n: int, *rows: Sequence[Tensor | float]) -> Tensor:
    return torch.stack(
        [torch.stack([torch.as_tensor(entry).expand(n) for entry in row], dim=-1) for row in rows], dim=1
    ).float()


def _sign(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (n,), generator=generator).float() * 2 - 1


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _blurred(images: Tensor, kernel: Tensor) -> Tensor:
    pad = kernel.shape[-1] // 2
    return F.conv2d(F.pad(images, (pad,) * 4), kernel[None, None])


def _gaussian(sigma: float, radius: int) -> Tensor:
    axis = torch.arange(-radius, radius + 1).float()
    line = torch.exp(-axis.square() / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def _coordinates(side: int) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(side).float() + 0.5) / side * 2 - 1
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return rows, columns


def _shot_noise(x: Tensor, g: torch.Generator) -> Tensor:
    return torch.poisson(x * 5, generator=g) / 5


def _impulse_noise(x: Tensor, g: torch.Generator) -> Tensor:
    drawn = torch.rand(x.shape, generator=g)
    return torch.where(drawn < 0.1, 0.0, torch.where(drawn > 0.9, 1.0, x))


def _glass_blur(x: Tensor, g: torch.Generator) -> Tensor:
    """Pixels swapped with neighbours, then blurred."""
    n, _, side, _ = x.shape
    rows, columns = _coordinates(side)
    moved = torch.stack([columns, rows], dim=-1).expand(n, -1, -1, -1)
    shift = (torch.randint(-1, 2, moved.shape, generator=g).float()) * 2 * max(side // 14, 1) / side
    return _blurred(F.grid_sample(x, moved + shift, mode="nearest", align_corners=False), _gaussian(0.7, 2))


def _motion_blur(x: Tensor, g: torch.Generator) -> Tensor:
    """The mean of copies along a line, of an angle of its own for each image."""
    n = len(x)
    angle = _uniform(n, -math.pi / 4, math.pi / 4, g)
    copies = [
        _affine(x, _matrices(n, (1.0, 0.0, step * angle.cos()), (0.0, 1.0, step * angle.sin())))
        for step in torch.linspace(-0.25, 0.25, 7).tolist()
    ]
    return torch.stack(copies).mean(dim=0)


def _rotate(x: Tensor, g: torch.Generator) -> Tensor:
    angle = _uniform(len(x), 0.4, 0.7, g) * _sign(len(x), g)
    return _affine(x, _matrices(len(x), (angle.cos(), -angle.sin(), 0.0), (angle.sin(), angle.cos(), 0.0)))


def _shear(x: Tensor, g: torch.Generator) -> Tensor:
    return _affine(x, _matrices(len(x), (1.0, 0.6 * _sign(len(x), g), 0.0), (0.0, 1.0, 0.0)))


def _scale(x: Tensor, g: torch.Generator) -> Tensor:
    factor = _uniform(len(x), 1.5, 1.9, g)
    return _affine(x, _matrices(len(x), (factor, 0.0, 0.0), (0.0, factor, 0.0)))


def _translate(x: Tensor, g: torch.Generator) -> Tensor:
    moves = [_uniform(len(x), 0.2, 0.4, g) * _sign(len(x), g) for _ in range(2)]
    return _affine(x, _matrices(len(x), (1.0, 0.0, moves[0]), (0.0, 1.0, moves[1])))


def _brightness(x: Tensor, g: torch.Generator) -> Tensor:
    return x + _uniform(len(x), 0.3, 0.5, g)[:, None, None, None]


def _stripe(x: Tensor, g: torch.Generator) -> Tensor:
    """Inverted between two vertical lines."""
    _, columns = _coordinates(x.shape[-1])
    return torch.where(columns.abs() < 0.35, 1 - x, x)


def _fog(x: Tensor, g: torch.Generator) -> Tensor:
    """A smooth random cover of grey."""
    n, _, side, _ = x.shape
    cover: Tensor = torch.zeros_like(x)
    for cells, weight in ((2, 0.5), (4, 0.3), (8, 0.2)):
        noise = torch.rand(n, 1, cells, cells, generator=g)
        cover = cover + weight * F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=False)
    return x * 0.6 + 0.5 * cover


def _spatter(x: Tensor, g: torch.Generator) -> Tensor:
    """Blots of light."""
    n, _, side, _ = x.shape
    noise = F.interpolate(torch.rand(n, 1, side // 2, side // 2, generator=g), size=(side, side), mode="bilinear")
    return torch.where(noise > 0.72, torch.clamp(noise, max=1.0), x)


def _line(x: Tensor, g: torch.Generator, bend: float, dotted: bool) -> Tensor:
    n, _, side, _ = x.shape
    rows, columns = _coordinates(side)
    slope, place = _uniform(n, -0.6, 0.6, g), _uniform(n, -0.4, 0.4, g)
    phase = _uniform(n, 0.0, 1.0, g)[:, None, None]
    wave = bend * (2 * ((columns * 2 + phase) % 1 - 0.5).abs() - 0.5)
    middle = slope[:, None, None] * columns + place[:, None, None] + wave
    ink = (rows - middle).abs() < 2 / side
    if dotted:
        ink = ink & (((columns * 3 + phase) % 1) < 0.5)
    return torch.where(ink[:, None], 1.0, x)


def _dotted_line(x: Tensor, g: torch.Generator) -> Tensor:
    return _line(x, g, 0.0, True)


def _zigzag(x: Tensor, g: torch.Generator) -> Tensor:
    return _line(x, g, 0.4, False)


def _canny_edges(x: Tensor, g: torch.Generator) -> Tensor:
    from skimage.feature import canny

    edges = np.stack([canny(image, sigma=1.0) for image in x[:, 0].numpy()])
    return torch.from_numpy(edges.astype(np.float32))[:, None]


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "identity": lambda x, g: x,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": _dotted_line,
    "zigzag": _zigzag,
    "canny_edges": _canny_edges,
}
"""Name -> (images (n, 1, side, side) in [0, 1], generator) -> images."""


def corrupt(images: Images, name: str, generator: torch.Generator) -> Images:
    """Images under one of the `CORRUPTIONS`, in [0, 1].

    Args:
        images: in [0, 1], side at least 8.
        name: of the corruption.
        generator: of all draws.

    Raises:
        ValueError: if there is no such corruption, or images are not grey squares.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}; there are {', '.join(CORRUPTIONS)}")
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3] or images.shape[2] < 8:
        raise ValueError(f"images must have shape (n, 1, side, side), side at least 8, got {tuple(images.shape)}")
    return CORRUPTIONS[name](images, generator).clamp(0, 1)


class DigitOracle:
    """Tasks "is this class c under condition m", labels 1 and -1 in equal numbers: task m * classes + c.

    Rows of a task are given out in a fixed order, every other one of its class; where a class runs out of images it
    begins again.

    Args:
        conditions: for each condition the images as rows, (m, n, pixels).
        labels: class of each image, int64 (n,), the same images under every condition.
        seed: of the orders.
        exclude: a task that is no source, such as the target: the tasks after it move up by one.

    Raises:
        ValueError: if shapes do not fit, or a class has no images.
    """

    capacity: np.ndarray | None = None

    def __init__(
        self,
        conditions: Float32[Tensor, "m n pixels"],
        labels: Int64[Tensor, "n_labels"],
        seed: int,
        exclude: int | None = None,
    ):
        if conditions.ndim != 3 or conditions.shape[1] != len(labels):
            raise ValueError(f"conditions must have shape (m, {len(labels)}, pixels), got {tuple(conditions.shape)}")
        self.num_classes = int(labels.max()) + 1
        if bool((labels.bincount(minlength=self.num_classes) == 0).any()) or self.num_classes < 2:
            raise ValueError(f"each of at least two classes must have images, got {labels.bincount().tolist()}")
        self._pixels = conditions.double().numpy()
        self._labels, self._seed = labels.numpy(), seed
        every = range(len(conditions) * self.num_classes)
        self.tasks = [task for task in every if task != exclude]
        self.num_tasks = len(self.tasks)
        self.counts = np.zeros(self.num_tasks, dtype=np.int64)

    def __call__(self, task: int, n: int) -> Samples:
        """n more rows of a source: (n, pixels) and labels of 1 and -1 (n,)."""
        start = int(self.counts[task])
        self.counts[task] += n
        return self.rows(self.tasks[task], start, start + n)

    def rows(self, task: int, start: int, stop: int) -> Samples:
        """Rows of any task, the excluded one too, by their places in its order."""
        condition, wanted = divmod(task, self.num_classes)
        rng = np.random.default_rng([self._seed, task])
        sides = [rng.permutation(np.flatnonzero((self._labels == wanted) == side)) for side in (False, True)]
        places = np.arange(start, stop)
        index = np.where(
            places % 2 == 0, sides[1][(places // 2) % len(sides[1])], sides[0][(places // 2) % len(sides[0])]
        )
        return self._pixels[condition, index], np.where(places % 2 == 0, 1.0, -1.0)
