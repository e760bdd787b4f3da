"""A user's own data, whatever they are: the loader of each kind is chosen by what lies at the path.

    from etude.data import user
    data = user.load("photos/")                          # a folder of images, one sub-folder a class
    data = user.load("customers.csv", target="churned")

    what lies there                                       kind
    a folder with one sub-folder of images per class      ImageData
    `.npz` with the arrays x, y                           ImageData
    `.csv`, `.tsv`, `.parquet` and the name of a column   TableData
    a folder with `nodes.csv` and `edges.csv`             GraphData
    a folder with one sub-folder of IQ recordings a class SignalData
    `.nc` or `.zarr`, fields on the globe over time       FieldData
    a folder or `.json` of boxes, COCO's or Pascal VOC's  DetectionData

Nothing that is read is executed: no pickles, no code.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from etude.data.kinds import Examples, GraphData, ImageData, SignalData, TableData
from etude.data.kinds_detection import DetectionData
from etude.data.kinds_fields import FieldData

__all__ = ["UserData", "digest", "keep", "load", "load_rows_as_images", "rows"]

UserData = ImageData | TableData | GraphData | SignalData | FieldData | DetectionData

_TABLES = (".csv", ".tsv", ".parquet")
_FIELDS = (".nc", ".zarr")
_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_RECORDINGS = {".npy", ".sigmf-meta", ".iq", ".cfile", ".bin", ".dat", ".raw"}
_LARGEST_SIDE = 64
_SIDE = 32
_LONGER_SIDE = 320
"""Of pictures with boxes."""
_KEPT = "kept.json"


def load(
    path: str | os.PathLike,
    target: str | None = None,
    task: str | None = None,
    size: int | None = None,
    window: int | None = None,
    sample_rate: float | int | None = None,
) -> UserData:
    """The data at `path`, as the kind that fits them.

    Args:
        path: a file or folder; see the module's table.
        target: of a table or of the nodes of a graph, the column to predict.
        task: of a table, "classification" or "regression"; decided by the target if None.
        size: of images, the side to which they are scaled; if None, images larger than 64 pixels or of differing
            sizes come at 32 x 32. Of pictures with boxes, the longer side; 320 if None.
        window: of recordings, samples in one window; 1,024 if None.
        sample_rate: of recordings that do not say theirs, in Hz.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: if it is none of these kinds, or an option belongs to another kind; and what the loaders raise.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is nothing at {place}")
    kind = _kind(place)
    options = {"target": target, "task": task, "size": size, "window": window, "sample_rate": sample_rate}
    foreign = [name for name, value in options.items() if value is not None and name not in _OPTIONS[kind]]
    if foreign:
        raise ValueError(f"{place} holds {_WORDS[kind]}, which take no {', '.join(foreign)}")
    if kind == "kept":
        return _load_kept(place)
    if kind == "table":
        from etude.data import tables

        if target is None:
            raise ValueError(f"{place.name} is a table: name the column to predict with target (--target)")
        return tables.table(place, target, task=task)
    if kind == "graph":
        from etude.data import graphs

        return graphs.edge_list(place, target)
    if kind == "recordings":
        from etude.data import signals

        return signals.iq_folder(place, 1024 if window is None else window, sample_rate=sample_rate)
    if kind == "detection":
        from etude.data import detection

        return detection.load(place, size=_LONGER_SIDE if size is None else size)
    if kind == "fields":
        from etude.data import fields as fields_on_the_globe

        return fields_on_the_globe.load(place)
    from etude.data import images

    if kind == "npz":
        return images.npz(place)
    return images.image_folder(place, size if size is not None else _side(place))


_OPTIONS = {
    "kept": (), "npz": (), "table": ("target", "task"), "graph": ("target",), "images": ("size",),
    "recordings": ("window", "sample_rate"), "fields": (), "detection": ("size",),
}  # fmt: skip
_WORDS = {
    "kept": "kept data", "npz": "images in an archive", "table": "a table", "graph": "a graph",
    "images": "images", "recordings": "recordings", "fields": "fields on the globe", "detection": "pictures with boxes",
}  # fmt: skip


def _kind(place: Path) -> str:
    if place.suffix.lower() in _FIELDS:
        return "fields"
    if place.is_file():
        if place.suffix.lower() in _TABLES:
            return "table"
        if place.suffix.lower() == ".npz":
            return "npz"
        if place.suffix.lower() == ".json":
            return "detection"
        raise ValueError(f"data end in .npz, .json (COCO), {', '.join((*_TABLES, *_FIELDS))}; got {place.name}")
    if (place / _KEPT).is_file():
        return "kept"
    if (place / "edges.csv").is_file() and (place / "nodes.csv").is_file():
        return "graph"
    if _annotated(place):
        return "detection"
    endings = {file.suffix.lower() for file in _files(place)}
    if endings & _IMAGES:
        return "images"
    if endings & _RECORDINGS:
        return "recordings"
    raise ValueError(
        f"{place} holds neither a folder of images or IQ recordings per class nor nodes.csv and edges.csv; "
        f"it has files ending in {', '.join(sorted(endings)) or 'nothing'}"
    )


def _annotated(place: Path) -> bool:
    from etude.data import detection

    return detection.is_annotated(place)


def _files(folder: Path) -> Iterator[Path]:
    """Files under a folder, in a fixed order; hidden ones are passed over, but for the metadata of a Zarr store."""
    every = folder.suffix.lower() == ".zarr"
    for file in sorted(folder.rglob("*")):
        if file.is_file() and (every or not any(part.startswith(".") for part in file.relative_to(folder).parts)):
            yield file


def _side(folder: Path) -> int | None:
    """32 if the images are large or of several sizes, None if they can stay as they are."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'etude[run]'") from error
    sizes = set()
    for file in _files(folder):
        if file.suffix.lower() in _IMAGES:
            try:
                with Image.open(file) as image:
                    sizes.add(image.size)
            except (OSError, ValueError, SyntaxError) as error:
                raise ValueError(f"{file} cannot be read as an image: {error}") from error
    return None if len(sizes) == 1 and max(max(size) for size in sizes) <= _LARGEST_SIDE else _SIDE


def load_rows_as_images(**arguments: Any) -> ImageData:
    """A table of classes, each row as an image of one line; the arguments are those of `load`."""
    data = load(**arguments)
    if not isinstance(data, TableData):
        raise ValueError(f"rows of a table were expected, got {type(data).__name__}")
    return data.standardized().as_images()


def digest(path: str | os.PathLike, **options: Any) -> str:
    """SHA-256, in hex, of the files at `path` (names and content) and of the options that they are loaded with."""
    place = Path(path)
    whole = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for file in [place] if place.is_file() else _files(place):
        whole.update(f"\0{file.relative_to(place) if place.is_dir() else file.name}\0".encode())
        with open(file, "rb") as content:
            whole.update(hashlib.file_digest(content, "sha256").digest())
    return whole.hexdigest()


def rows(data: UserData) -> tuple[int, int, int]:
    """How many examples (nodes of a graph, frames of fields) train, validation and test have."""
    if isinstance(data, GraphData):
        return int(data.train_mask.sum()), int(data.val_mask.sum()), int(data.test_mask.sum())
    train, val, test = (len(split) for split in (data.train, data.val, data.test))  # type: ignore[arg-type]
    return train, val, test


def keep(data: UserData, folder: str | os.PathLike) -> Path:
    """Writes data that are in memory into a folder which `load` reads: safetensors, and JSON for the rest.

    Raises:
        TypeError: if they are none of the kinds, or not in memory.
    """
    from safetensors.torch import save_file

    if not isinstance(data, UserData):
        raise TypeError(f"data must be ImageData, TableData, GraphData or SignalData, got {type(data).__name__}")
    if isinstance(data, FieldData):
        raise TypeError("fields are not kept: pass the path of the .nc or .zarr that they come from")
    if isinstance(data, DetectionData):
        raise TypeError("pictures with boxes are not kept: pass the path of their COCO or VOC folder")
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {}
    for item in fields(data):
        value = getattr(data, item.name)
        if isinstance(value, Examples):
            tensors |= {f"{item.name}.inputs": value.inputs, f"{item.name}.targets": value.targets}
        elif isinstance(value, torch.Tensor):
            tensors[item.name] = value.to_dense() if value.layout != torch.strided else value
        elif isinstance(value, torch.utils.data.Dataset):
            raise TypeError(f"{item.name} must be Examples in memory, got {type(value).__name__}")
        else:
            rest[item.name] = list(value) if isinstance(value, tuple) else value
    real = {name: torch.view_as_real(t) if t.is_complex() else t for name, t in tensors.items()}
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in real.items()}, str(place / "kept.safetensors"))
    described = {
        "kind": type(data).__name__,
        "fields": rest,
        "complex": [n for n, t in tensors.items() if t.is_complex()],
    }
    (place / _KEPT).write_text(json.dumps(described, indent=1), encoding="utf-8")
    return place


def _load_kept(folder: Path) -> UserData:
    from safetensors.torch import load_file

    described = json.loads((folder / _KEPT).read_text(encoding="utf-8"))
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (ImageData, TableData, GraphData, SignalData)}
    tensors = load_file(str(folder / "kept.safetensors"))
    for name in described["complex"]:
        tensors[name] = torch.view_as_complex(tensors[name])
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in described["fields"].items()}
    for name in {name.partition(".")[0] for name in tensors if "." in name}:
        values[name] = Examples(tensors.pop(f"{name}.inputs"), tensors.pop(f"{name}.targets"))
    return kinds[described["kind"]](**values, **tensors)
