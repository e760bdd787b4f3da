"""Images out of one file: the CIFAR-10 subset in its zip, and NumPy's `.npz`."""

import io
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from etude.data.catalogue import cache_folder, locate, sha256
from etude.data.kinds import Examples, ImageData
from etude.data.splitting import cut, stratified_order

__all__ = ["cifar10_jpeg", "npz"]

_log = logging.getLogger(__name__)
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def cifar10_jpeg() -> ImageData:
    """16,000 CIFAR-10 images re-encoded as JPEG, 32 x 32 colour, 10 classes (`etude data path cifar10_jpeg`).

    10,000 train and 2,000 val (the archive's train part, stratified, always the same), 4,000 test (its test part);
    pixel / 255. Not bit-identical to CIFAR-10: figures on the canonical set need the canonical set.

    The archive is decoded once, in memory; the pixels are kept in the user's cache under the archive's checksum.
    """
    archive = locate("cifar10_jpeg") / "cifar10_jpeg_subset.zip"
    if not archive.is_file():
        raise FileNotFoundError(f"place cifar10_jpeg_subset.zip into {archive.parent}")
    kept = cache_folder() / "decoded" / f"cifar10_jpeg-{sha256(archive)[:16]}.npz"
    arrays = _read_kept(kept)
    if arrays is None:
        arrays = _decode(archive)
        _keep(kept, arrays)
    train, val = cut(stratified_order(arrays["train_y"]), 10_000, 2_000)

    def examples(part: str, rows: np.ndarray | slice) -> Examples:
        pixels = np.ascontiguousarray(arrays[f"{part}_x"][rows].transpose(0, 3, 1, 2))
        labels = arrays[f"{part}_y"][rows].astype(np.int64)
        return Examples(torch.from_numpy(pixels).float().div_(255), torch.from_numpy(labels))

    return ImageData(
        train=examples("train", train),
        val=examples("train", val),
        test=examples("test", slice(None)),
        classes=_CIFAR10,
        name="cifar10_jpeg",
    )


def _decode(archive: Path) -> dict[str, np.ndarray]:
    from PIL import Image

    arrays = {}
    with zipfile.ZipFile(archive) as content:
        names = sorted(name for name in content.namelist() if name.endswith(".jpg"))
        for part in ("train", "test"):
            pixels, labels = [], []
            for label, word in enumerate(_CIFAR10):
                for name in names:
                    if name.startswith(f"{part}/{word}/"):
                        with Image.open(io.BytesIO(content.read(name))) as image:
                            pixels.append(np.asarray(image.convert("RGB")))
                        labels.append(label)
            if not pixels:
                raise ValueError(f"{archive} holds no images under {part}/")
            arrays[f"{part}_x"] = np.stack(pixels)
            arrays[f"{part}_y"] = np.asarray(labels, dtype=np.uint8)
    return arrays


def _read_kept(file: Path) -> dict[str, np.ndarray] | None:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            return {name: content[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(file: Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, file)
    except OSError as error:  # a cache that cannot be written costs two seconds, no more
        temporary.unlink(missing_ok=True)
        _log.info("decoded images are not kept: %s", error)


def _as_images(pixels: np.ndarray, where: str) -> np.ndarray:
    """Float32 (n, channels, height, width) in [0, 1] out of the usual layouts."""
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[-1] in (1, 3, 4) and pixels.shape[1] not in (1, 3, 4):
        pixels = pixels.transpose(0, 3, 1, 2)
    elif pixels.ndim != 4:
        raise ValueError(f"{where} must have shape (n, h, w), (n, c, h, w) or (n, h, w, c), got {pixels.shape}")
    if pixels.dtype == np.bool_:
        scaled = pixels.astype(np.float32)
    elif pixels.dtype in (np.uint8, np.uint16):
        scaled = (pixels / np.iinfo(pixels.dtype).max).astype(np.float32)
    elif np.issubdtype(pixels.dtype, np.floating):
        scaled = pixels.astype(np.float32)
        if scaled.size and not 0 <= scaled.min() <= scaled.max() <= 1:
            raise ValueError(
                f"{where} are floats and must lie in [0, 1], got {scaled.min():g}..{scaled.max():g}; "
                "bytes are scaled by themselves"
            )
    else:
        raise ValueError(f"{where} must be uint8, uint16, bool or floats in [0, 1], got {pixels.dtype}")
    return np.ascontiguousarray(scaled)


def npz(path: str | os.PathLike, *, seed: int = 0) -> ImageData:
    """Images from a NumPy archive.

    The archive holds `x` and `y`, split here 70 / 10 / 20 % (stratified, fixed by `seed`); or `x_train`, `y_train`,
    `x_test`, `y_test` and perhaps `x_val`, `y_val`, without which an eighth of train becomes val. Images are
    (n, h, w), (n, channels, h, w) or (n, h, w, channels): uint8 and uint16 are divided by their largest value, floats
    must lie in [0, 1]. Labels are integers or strings; the sorted distinct train labels are the classes. An array
    `classes` of strings may name the labels 0, 1, ....
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no archive at {file}")
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            arrays = {name: content[name] for name in content.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is not an .npz archive of plain arrays: {error}") from error
    if {"x", "y"} <= arrays.keys():
        parts = _split_whole(arrays["x"], arrays["y"], seed)
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        parts = {part: (arrays[f"x_{part}"], arrays[f"y_{part}"]) for part in ("train", "test")}
        if {"x_val", "y_val"} <= arrays.keys():
            parts["val"] = (arrays["x_val"], arrays["y_val"])
        else:
            images, labels = parts["train"]
            order = stratified_order(labels, seed)
            val = max(len(order) // 8, 1)
            parts["train"] = images[order[val:]], labels[order[val:]]
            parts["val"] = images[order[:val]], labels[order[:val]]
    else:
        raise ValueError(
            f"{file} must hold the arrays x and y, or x_train, y_train, x_test, y_test; it has {sorted(arrays)}"
        )
    return _assemble(parts, arrays.get("classes"), file)


def _split_whole(images: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if len(images) != len(labels):
        raise ValueError(f"x and y must have equally many rows, got {len(images)} and {len(labels)}")
    if len(images) < 3:
        raise ValueError(f"three parts need at least three images, got {len(images)}")
    order = stratified_order(labels, seed)
    val, test = max(len(order) // 10, 1), max(len(order) // 5, 1)
    rows = dict(zip(("train", "val", "test"), cut(order, len(order) - val - test, val, test)))
    return {part: (images[index], labels[index]) for part, index in rows.items()}


def _assemble(parts: dict[str, tuple[np.ndarray, np.ndarray]], classes: np.ndarray | None, file: Path) -> ImageData:
    found = np.unique(parts["train"][1])
    if len(found) < 2:
        raise ValueError(f"{file} must hold at least two classes, train has {found.tolist()}")
    if classes is None:
        names, codes = tuple(str(label) for label in found), found
    else:
        names, codes = tuple(str(name) for name in classes), np.arange(len(classes))
    splits = {}
    for part, (images, labels) in parts.items():
        if labels.ndim != 1 or len(labels) != len(images):
            raise ValueError(f"{file}: y_{part} must have shape ({len(images)},), got {labels.shape}")
        unknown = np.setdiff1d(labels, codes)
        if len(unknown):
            raise ValueError(f"{file}: y_{part} holds {unknown[:3].tolist()}, not among the classes {codes.tolist()}")
        targets = np.searchsorted(codes, labels).astype(np.int64)
        splits[part] = Examples(torch.from_numpy(_as_images(images, f"{file}: x_{part}")), torch.from_numpy(targets))
    return ImageData(**splits, classes=names, name=file.stem)
