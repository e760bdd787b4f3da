"""CelebA and LFWA as their homes hand them out: files of annotations beside folders of photographs.

Liu, Luo, Wang & Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015. Both sets are for non-commercial
research and are not downloaded here.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from etude.data.images.decoding import to_tensor

__all__ = ["LFWA", "CelebA"]

_SPLITS = {"train": 0, "val": 1, "test": 2}


class _Photographs(Dataset):
    """Photographs read when asked for, each letterboxed into one size if a size is given."""

    def __init__(self, files: list[Path], tags: Tensor, attributes: tuple[str, ...], size: int | None, channels: int):
        if size is not None and size < 1:
            raise ValueError(f"size must be positive, got {size}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self.files, self.tags, self.attributes = files, tags, attributes
        self.size, self.channels = size, channels

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> tuple[Tensor, float]:
        """(channels, height, width) in [0, 1], and by what factor it was scaled.

        With a size, the photograph is scaled so that its longer side has it, laid to the top left, and filled up with
        zeros: a box of the photograph, times the factor, is its box in the image.
        """
        from PIL import Image

        file = self.files[index]
        if not file.is_file():
            raise FileNotFoundError(f"the annotations name {file.name}, which is not in {file.parent}")
        with Image.open(file) as photograph:
            if self.size is None:
                return to_tensor(photograph, self.channels, None), 1.0
            scale = self.size / max(photograph.size)
            shape = (max(1, round(photograph.height * scale)), max(1, round(photograph.width * scale)))
            pixels = to_tensor(photograph, self.channels, shape)
        image = torch.zeros(self.channels, self.size, self.size)
        image[:, : shape[0], : shape[1]] = pixels
        return image, scale

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The image and its tags, float32 0 or 1."""
        return self.image(index)[0], self.tags[index].float()


class CelebA(_Photographs):
    """CelebA: 202,599 photographs of 10,177 people with 40 attributes, in the official split.

        train = CelebA("celeba/", "train", size=227)
        image, tags = train[0]

    The annotations (`list_attr_celeba.txt`, `list_bbox_celeba.txt`, `identity_CelebA.txt`, `list_eval_partition.txt`)
    may lie in the root or in its folders `Anno` and `Eval`; the photographs in `img_celeba` (in the wild, the default:
    aligned ones make localisation pointless) or `img_align_celeba`, in the root or in `Img`.

    Args:
        root: the folder.
        split: "train", "val", "test" or "all".
        aligned: the aligned photographs instead; they have no boxes.
        size: side of the square that photographs are letterboxed into; their own sizes if None.
        channels: 1 or 3.

    Attributes:
        tags: int64 (n, 40), 0 or 1; the file's -1 is 0.
        boxes: float32 (n, 4), left, top, right, bottom in pixels of the photograph; NaN where the file's box is
            degenerate, as a few are; None if aligned or without the file. For scoring only.
        identities: int64 (n,), or None without the file.

    Raises:
        FileNotFoundError: if a needed file is missing.
        ValueError: if an annotation file is empty or malformed, or the files name different photographs.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "train",
        *,
        aligned: bool = False,
        size: int | None = None,
        channels: int = 3,
    ):
        if split not in (*_SPLITS, "all"):
            raise ValueError(f"split must be train, val, test or all, got {split!r}")
        base = Path(root)
        names, values, attributes = _table(_found(base, "list_attr_celeba.txt"), headed=True)
        part_names, parts, _ = _table(_found(base, "list_eval_partition.txt"), headed=False)
        _same(names, part_names, "list_eval_partition.txt")
        if not np.isin(parts, list(_SPLITS.values())).all():
            raise ValueError(f"list_eval_partition.txt must hold 0, 1 and 2, got {np.unique(parts)[:6].tolist()}")
        rows = np.flatnonzero(parts[:, 0] == _SPLITS[split]) if split != "all" else np.arange(len(names))
        if not len(rows):
            raise ValueError(f"{base} holds no photograph of the split {split}")
        folder = _found(base, "img_align_celeba" if aligned else "img_celeba")
        files = [folder / names[row] for row in rows]
        super().__init__(files, _binary(values, "list_attr_celeba.txt")[rows], tuple(attributes), size, channels)
        self.names = [names[row] for row in rows]
        self.boxes = None if aligned else _optional_boxes(base, names, rows)
        self.identities = None
        if (file := _look(base, "identity_CelebA.txt")) is not None:
            identity_names, identities, _ = _table(file, headed=False)
            _same(names, identity_names, file.name)
            self.identities = torch.from_numpy(identities[rows, 0])


class LFWA(_Photographs):
    """LFWA: the 13,143 photographs of LFW with 40 attributes, and the set's own halves.

    `lfw_att_40.mat` (label, name, AttrName) and `indices_train_test.mat` (indices_img_train, indices_img_test) are read
    with SciPy, or with h5py where they are of MATLAB's version 7.3; the photographs lie in `lfw`.

    Args:
        root: the folder.
        split: "train", "test" or "all".
        size, channels: as for `CelebA`.

    Attributes:
        tags: int64 (n, 40), 0 or 1.
        identities: int64 (n,), from the folders' names, in alphabetic order over the whole set.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the annotations are malformed.
    """

    def __init__(self, root: str | os.PathLike, split: str = "train", *, size: int | None = None, channels: int = 3):
        if split not in ("train", "test", "all"):
            raise ValueError(f"split must be train, test or all, got {split!r}")
        base = Path(root)
        content = _matlab(_found(base, "lfw_att_40.mat"), ("label", "name", "AttrName"))
        names = [name.replace("\\", "/") for name in content["name"]]
        attributes = tuple(name.strip().replace(" ", "_") for name in content["AttrName"])
        tags = np.asarray(content["label"])
        if tags.shape == (len(attributes), len(names)) and tags.shape[0] != tags.shape[1]:
            tags = tags.T  # MATLAB's order of the axes, as h5py shows it
        if tags.shape != (len(names), len(attributes)) or not names:
            raise ValueError(
                f"lfw_att_40.mat: label must have shape ({len(names)}, {len(attributes)}), got {tags.shape}"
            )
        rows = np.arange(len(names))
        if split != "all":
            key = f"indices_img_{split}"
            indices = _matlab(_found(base, "indices_train_test.mat"), (key,))[key]
            rows = np.asarray(indices, dtype=np.int64).ravel() - 1  # MATLAB counts from one
            if not len(rows) or rows.min() < 0 or rows.max() >= len(names):
                raise ValueError(f"indices_train_test.mat: {key} must lie in 1..{len(names)}")
        folder = _found(base, "lfw")
        files = [folder / names[row] for row in rows]
        super().__init__(files, _binary(tags, "lfw_att_40.mat")[rows], attributes, size, channels)
        self.names = [names[row] for row in rows]
        people = {person: k for k, person in enumerate(sorted({name.split("/")[0] for name in names}))}
        self.identities = torch.tensor([people[name.split("/")[0]] for name in self.names])


def _look(base: Path, name: str) -> Path | None:
    return next((base / sub / name for sub in ("", "Anno", "Eval", "Img") if (base / sub / name).exists()), None)


def _found(base: Path, name: str) -> Path:
    if not base.is_dir():
        raise FileNotFoundError(f"no folder at {base}")
    file = _look(base, name)
    if file is None:
        raise FileNotFoundError(f"place {name} into {base} (from the set's home page)")
    return file


def _table(file: Path, *, headed: bool) -> tuple[list[str], np.ndarray, list[str]]:
    """Names of the photographs, their whole numbers, and the names of the columns if the file has a head."""
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    columns: list[str] = []
    if headed:
        if len(lines) < 2 or len(lines[0]) != 1 or not lines[0][0].isdigit():
            raise ValueError(f"{file.name} must begin with the number of photographs and the names of its columns")
        columns, count, lines = lines[1], int(lines[0][0]), lines[2:]
        if len(lines) != count:
            raise ValueError(f"{file.name} announces {count} photographs and has {len(lines)}")
    if not lines:
        raise ValueError(f"{file.name} names no photograph")
    widths = {len(line) for line in lines}
    if len(widths) > 1 or widths == {1} or (headed and widths != {len(columns) + 1} and widths != {len(columns)}):
        raise ValueError(f"{file.name}: every line must hold a name and equally many numbers, got {sorted(widths)}")
    try:
        values = np.array([line[1:] for line in lines], dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"{file.name} must hold whole numbers: {error}") from None
    return [line[0] for line in lines], values, columns


def _same(names: list[str], others: list[str], file: str) -> None:
    if names != others:
        first = next((f"{a} and {b}" for a, b in zip(names, others) if a != b), f"{len(names)} and {len(others)} names")
        raise ValueError(f"list_attr_celeba.txt and {file} must name the same photographs in one order, got {first}")


def _binary(values: np.ndarray, file: str) -> Tensor:
    """0 and 1 out of {0, 1} or {-1, 1}."""
    found = set(np.unique(values).tolist())
    if not (found <= {0, 1} or found <= {-1, 1}):
        raise ValueError(f"{file}: attributes must be 0 and 1, or -1 and 1, got {sorted(found)[:6]}")
    return torch.from_numpy((values > 0).astype(np.int64))


def _optional_boxes(base: Path, names: list[str], rows: np.ndarray) -> Tensor | None:
    file = _look(base, "list_bbox_celeba.txt")
    if file is None:
        return None
    box_names, boxes, _ = _table(file, headed=True)
    _same(names, box_names, file.name)
    if boxes.shape[1] != 4:
        raise ValueError(f"{file.name} must hold x_1, y_1, width and height, got {boxes.shape[1]} numbers")
    corner, extent = boxes[rows, :2], boxes[rows, 2:]
    found = torch.from_numpy(np.concatenate([corner, corner + extent], axis=1)).float()
    found[torch.from_numpy((extent <= 0).any(1))] = float("nan")
    return found


def _matlab(file: Path, wanted: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(file, variable_names=list(wanted), chars_as_strings=True)
        get = content.get
    except NotImplementedError:  # SciPy's way of saying: version 7.3
        return _matlab_hdf5(file, wanted)
    missing = [name for name in wanted if get(name) is None]
    if missing:
        raise ValueError(f"{file.name} must hold {', '.join(missing)}")
    return {name: _cells(content[name]) for name in wanted}


def _cells(values: np.ndarray) -> Any:
    """Cells of strings as a list; numbers as they are."""
    return [str(cell.ravel()[0]) for cell in values.ravel()] if values.dtype == object else values


def _matlab_hdf5(file: Path, wanted: Sequence[str]) -> dict[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{file.name} is of MATLAB's version 7.3, which needs h5py: pip install h5py") from error
    with h5py.File(file) as content:
        missing = [name for name in wanted if name not in content]
        if missing:
            raise ValueError(f"{file.name} must hold {', '.join(missing)}")
        found: dict[str, Any] = {}
        for name in wanted:
            values = content[name][()]
            if values.dtype == object:
                found[name] = ["".join(map(chr, content[cell][()].ravel())) for cell in values.ravel()]
            else:
                found[name] = values
    return found
