"""Images in a folder with one sub-folder per class."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.images.decoding import is_grey, to_tensor
from etude.data.kinds import Examples, ImageData
from etude.data.splitting import cut, stratified_order

__all__ = ["image_folder"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def image_folder(
    path: str | os.PathLike,
    size: int | tuple[int, int] | None = None,
    *,
    channels: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Images from `path/CLASS/FILE`, or from `path/train/CLASS/FILE` with `test` and perhaps `val` beside it.

    Without part folders the images are split 70 / 10 / 20 %, stratified and fixed by `seed`; with `train` and
    `test` only, an eighth of train becomes val. All images are decoded into memory (see `decoding.to_tensor` for
    transparency, grey, and 16 bits); files that are no images by their suffix, and hidden ones, are passed over.

    Args:
        path: the folder.
        size: height and width, or one number for both: images are scaled to cover it and cut in the middle. None
            if all have the same size.
        channels: 1 or 3; if None, 1 where all images are grey and else 3.
        seed: of the split.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for no images, fewer than two classes, an unreadable file (named), or differing sizes.
    """
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    shape = (size, size) if isinstance(size, int) else size
    if shape is not None and min(shape) < 1:
        raise ValueError(f"size must be positive, got {size}")
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of images at {root}")
    names, parts = _listing(root)
    files = [file for listed in parts.values() for file, _ in listed]
    if channels is None:
        channels = 1 if all(_open(file, is_grey) for file in files) else 3
    wanted = channels
    loaded = {
        part: Examples(_stacked([file for file, _ in listed], wanted, shape), torch.tensor([k for _, k in listed]))
        for part, listed in parts.items()
    }
    if "train" not in loaded:
        labels = loaded["all"].targets.numpy()
        val, test = max(len(labels) // 10, 1), max(len(labels) // 5, 1)
        if len(labels) < 3:
            raise ValueError(f"three parts need at least three images, {root} has {len(labels)}")
        rows = cut(stratified_order(labels, seed), len(labels) - val - test, val, test)
        loaded = {part: loaded["all"].subset(torch.from_numpy(r)) for part, r in zip(("train", "val", "test"), rows)}
    elif "val" not in loaded:
        order = torch.from_numpy(np.ascontiguousarray(stratified_order(loaded["train"].targets.numpy(), seed)))
        val = max(len(order) // 8, 1)
        loaded["val"] = loaded["train"].subset(order[:val])
        loaded["train"] = loaded["train"].subset(order[val:])
    return ImageData(**loaded, classes=names, name=root.name)


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not child.name.startswith("."))


def _listing(root: Path) -> tuple[tuple[str, ...], dict[str, list[tuple[Path, int]]]]:
    """Names of the classes, and for each part (or "all") the files with their labels."""
    children = _folders(root)
    parts = {_PARTS[child.name.lower()]: child for child in children if child.name.lower() in _PARTS}
    if not {"train", "test"} <= parts.keys():
        parts = {"all": root}
    names = tuple(folder.name for folder in _folders(parts.get("train", root)))
    if len(names) < 2:
        where = parts.get("train", root)
        raise ValueError(f"{where} must hold one sub-folder per class, at least two, got {list(names)}")
    listing = {}
    for part, folder in parts.items():
        unknown = sorted({child.name for child in _folders(folder)} - set(names))
        if unknown:
            raise ValueError(f"{folder} has the classes {unknown[:3]}, which train has not")
        listed = []
        for label, name in enumerate(names):
            files = sorted(f for f in (folder / name).rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
            files = [file for file in files if not file.name.startswith(".")]
            if not files and part in ("all", "train"):
                raise ValueError(f"{folder / name} holds no images ({', '.join(sorted(_SUFFIXES))})")
            listed += [(file, label) for file in files]
        if not listed:
            raise ValueError(f"{folder} holds no images")
        listing[part] = listed
    return names, listing


def _open(file: Path, read: Any) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'etude[run]'") from error
    try:
        with Image.open(file) as image:
            return read(image)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways of saying that a file is broken
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _stacked(files: list[Path], channels: int, size: tuple[int, int] | None) -> Tensor:
    images = [_open(file, lambda image: to_tensor(image, channels, size)) for file in files]
    for file, image in zip(files, images):
        if image.shape != images[0].shape:
            raise ValueError(
                f"images must have one size unless `size` is given: {files[0].name} is {tuple(images[0].shape[1:])}, "
                f"{file.name} is {tuple(image.shape[1:])}"
            )
    return torch.stack(images)
