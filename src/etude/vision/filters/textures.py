"""Texture banks: Schmid's, Leung and Malik's, and the maximum-response bank MR8.

Schmid, "Constructing models for content-based image retrieval", CVPR 2001; Leung & Malik, "Representing and
recognizing the visual appearance of materials using three-dimensional textons", IJCV 2001; Varma & Zisserman, "A
statistical approach to texture classification from single images", IJCV 2005. All were published on 49 x 49 pixels;
here widths shrink in proportion to the size asked for.
"""

from typing import Any

import numpy as np

__all__ = ["leung_malik", "mr8", "schmid"]

_PUBLISHED = 49
_SCHMID = ((2, 1), (4, 1), (4, 2), (6, 1), (6, 2), (6, 3), (8, 1), (8, 2), (8, 3), (10, 1), (10, 2), (10, 3), (10, 4))


def _first(filters: list[np.ndarray], facts: dict[str, list], num: int | None, name: str) -> tuple[np.ndarray, Any]:
    if num is not None and num > len(filters):
        raise ValueError(f"{name}: there are {len(filters)} filters, got num={num}")
    count = len(filters) if num is None else num
    return np.stack(filters[:count]), {key: np.asarray(value[:count]) for key, value in facts.items()}


def _plane(size: int) -> tuple[np.ndarray, np.ndarray]:
    axis = (np.arange(size) - (size - 1) / 2) * _PUBLISHED / size
    return np.meshgrid(axis, axis)


def _oriented(size: int, angle: float, sigma: float, order: int) -> np.ndarray:
    """A Gaussian three times as long as wide, differentiated `order` times across its length."""
    x, y = _plane(size)
    across, along = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    z = across / sigma
    envelope = np.exp(-(z**2) / 2 - (along / (3 * sigma)) ** 2 / 2)
    return (-z if order == 1 else z**2 - 1) * envelope


def _spot(size: int, sigma: float, laplacian: bool) -> np.ndarray:
    x, y = _plane(size)
    square = (x**2 + y**2) / sigma**2
    return (square - 2 if laplacian else 1) * np.exp(-square / 2)


def schmid(size: int, num: int | None, dc: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """cos(pi tau r / sigma) exp(-r^2 / (2 sigma^2)) for the 13 published pairs (sigma, tau)."""
    x, y = _plane(size)
    r = np.hypot(x, y)
    filters = [np.cos(np.pi * tau * r / sigma) * np.exp(-(r**2) / (2 * sigma**2)) for sigma, tau in _SCHMID]
    facts: dict[str, list] = {"sigma": [s * size / _PUBLISHED for s, _ in _SCHMID], "tau": [tau for _, tau in _SCHMID]}
    return _first(filters, facts, num, "schmid")


def leung_malik(size: int, num: int | None, dc: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """First and second derivatives at 3 scales and 6 orientations (36), 8 Laplacians of Gaussians, 4 Gaussians."""
    sigmas = [2 ** (step / 2) for step in range(4)]
    angles = [np.pi * step / 6 for step in range(6)]
    filters, kinds, orientations = [], [], []
    for order, kind in ((1, "edge"), (2, "bar")):
        for sigma in sigmas[:3]:
            for angle in angles:
                filters.append(_oriented(size, angle, sigma, order))
                kinds.append(kind)
                orientations.append(angle)
    spots = [(sigma * factor, True) for factor in (1, 3) for sigma in sigmas] + [(sigma, False) for sigma in sigmas]
    for sigma, laplacian in spots:
        filters.append(_spot(size, sigma, laplacian))
        kinds.append("spot" if laplacian else "gaussian")
        orientations.append(0.0)
    stacked, facts = _first(filters, {"orientation": orientations}, num, "leung_malik")
    return stacked, facts | {"kind": kinds[: len(stacked)]}


def mr8(size: int, num: int | None, dc: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Edges and bars at 3 scales and 6 orientations, a Gaussian and its Laplacian: 38 filters in 8 groups."""
    filters, groups, orientations = [], [], []
    for order in (1, 2):
        for scale, sigma in enumerate((1.0, 2.0, 4.0)):
            for step in range(6):
                filters.append(_oriented(size, np.pi * step / 6, sigma, order))
                groups.append(3 * (order - 1) + scale)
                orientations.append(np.pi * step / 6)
    for group, laplacian in ((6, False), (7, True)):
        filters.append(_spot(size, 10.0, laplacian))
        groups.append(group)
        orientations.append(0.0)
    return _first(filters, {"group": groups, "orientation": orientations}, num, "mr8")
