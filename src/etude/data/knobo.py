"""Images with reports, and the files of KnoBo's authors (concept lists, priors, splits, features, annotations).

    from etude.data.knobo import image_reports
    data = image_reports("clinic", "clinic/reports.csv", size=224)      # columns file, report, label

The authors' files (github.com/YueYANG1996/KnoBo, MIT) lie in the set `knobo` in their own layout: `data/bottlenecks`,
and where they are placed by hand `data/features` (features.zip), `data/datasets/MIMIC-CXR` and `data/datasets/ISIC`.
Pickles among them are read without running anything: lists, texts, numbers and arrays only.
"""

import csv
import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.data.catalogue import locate
from etude.data.images.decoding import is_grey, to_tensor
from etude.data.splitting import stratified_order

__all__ = [
    "AnnotatedFeatures",
    "FeatureSplits",
    "ImageReports",
    "image_reports",
    "official_annotations",
    "official_answers",
    "official_features",
    "official_questions",
    "official_split",
]

MODALITIES = {"xray": ("MIMIC-CXR", "whyxrayclip"), "skin": ("ISIC", "whylesionclip")}
SOURCES = ("PubMed", "StatPearls", "Textbooks", "Wikipedia", "prompt")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, eq=False)
class ImageReports:
    """Images, the report of each, and its label, where there are any.

    Args:
        images: float32 (n, channels, height, width) in [0, 1].
        reports: n texts; empty where there is none. labels: n names; empty where there is none.
        files: where each was read, relative to the folder.
    """

    images: Tensor
    reports: tuple[str, ...]
    labels: tuple[str, ...]
    files: tuple[str, ...]

    def __post_init__(self):
        n = len(self.images)
        if self.images.dtype != torch.float32 or self.images.ndim != 4:
            raise ValueError(
                f"images must be float32 (n, channels, height, width), got {self.images.dtype} "
                f"of shape {tuple(self.images.shape)}"
            )
        if not n == len(self.reports) == len(self.labels) == len(self.files):
            raise ValueError(
                f"images, reports, labels and files must be equally many, got {n}, {len(self.reports)}, "
                f"{len(self.labels)} and {len(self.files)}"
            )

    def __len__(self) -> int:
        return len(self.files)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels) - {""}))

    def subset(self, rows: Sequence[int] | np.ndarray) -> "ImageReports":
        chosen = [int(row) for row in rows]
        columns = ((column[row] for row in chosen) for column in (self.reports, self.labels, self.files))
        return ImageReports(self.images[torch.tensor(chosen, dtype=torch.int64)], *map(tuple, columns))

    def parts(self, seed: int = 0) -> dict[str, "ImageReports"]:
        """Four disjoint parts: `annotated` (reports, to learn concepts from), and `train`, `val` and `test` (labels).

        Concepts are learned apart from the task. Images with a report and no label are the annotated ones; if there
        are none, half of those with both are, drawn by label. The other labelled images are split 60 / 20 / 20.

        Raises:
            ValueError: if there are no reports, or fewer than three images of a label are left.
        """
        told, labelled = (np.array([bool(value) for value in v]) for v in (self.reports, self.labels))
        if not told.any():
            raise ValueError("no image has a report: concepts cannot be learned")
        names = np.array(self.labels)
        rows = np.flatnonzero(told & ~labelled)
        if not len(rows):
            both = np.flatnonzero(told & labelled)
            rows = both[np.asarray(stratified_order(np.unique(names[both], return_inverse=True)[1], seed))]
            rows = rows[: len(both) // 2]
        task = np.setdiff1d(np.flatnonzero(labelled), rows)
        found, counts = np.unique(names[task], return_counts=True)
        if len(found) < 2 or counts.min() < 3:
            raise ValueError(
                f"the task needs two labels with three images each beside the annotated ones, "
                f"got {dict(zip(found.tolist(), counts.tolist()))}"
            )
        order = task[np.asarray(stratified_order(np.unique(names[task], return_inverse=True)[1], seed))]
        val, test = max(len(order) // 5, 1), max(len(order) // 5, 1)
        cuts = {"train": order[val + test :], "val": order[:val], "test": order[val : val + test]}
        return {"annotated": self.subset(rows)} | {part: self.subset(r) for part, r in cuts.items()}


def image_reports(
    folder: str | os.PathLike,
    table: str | os.PathLike | None = None,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    columns: tuple[str, str, str] = ("file", "report", "label"),
) -> ImageReports:
    """Images of a folder with their reports and labels.

    Args:
        folder: holds the images, at any depth.
        table: CSV, TSV or JSONL with a row an image: the file (relative to the folder), the report, the label; the
            last two may be absent or empty. Images that it does not name are passed over. If None, the report of
            `a/b.png` is `a/b.txt`, where there is one, and its label the sub-folder `a`, where there is one.
        size: height and width, or one number for both: images are scaled to cover it and cut in the middle; None if
            all have one size.
        channels: 1 or 3; if None, 1 where all images are grey and else 3.
        columns: what file, report and label are called in the table.

    Raises:
        FileNotFoundError: if the folder, the table or an image that it names is missing.
        ValueError: for a table without its columns, an image named twice, an unreadable one, or differing sizes.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder of images at {root}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    rows = list(_beside(root) if table is None else _table(Path(table), columns))
    if not rows:
        where = f"{root} holds no images ({', '.join(sorted(_SUFFIXES))})" if table is None else f"{table} has no rows"
        raise ValueError(where)
    files = [name for name, _, _ in rows]
    twice = next((name for name in files if files.count(name) > 1), None) if len(set(files)) < len(files) else None
    if twice is not None:
        raise ValueError(f"the image {twice!r} occurs twice")
    absent = [name for name in files if not (root / name).is_file()]
    if absent:
        raise FileNotFoundError(f"{len(absent)} images of the table are not in {root}, first {absent[0]!r}")
    shape = (size, size) if isinstance(size, int) else size
    wanted = channels or (1 if all(_opened(root / name, is_grey) for name in files) else 3)
    images = [_opened(root / name, lambda image: to_tensor(image, wanted, shape)) for name in files]
    for name, image in zip(files, images):
        if image.shape != images[0].shape:
            raise ValueError(
                f"images must have one size unless `size` is given: {files[0]} is {tuple(images[0].shape[1:])}, "
                f"{name} is {tuple(image.shape[1:])}"
            )
    reports, labels = tuple(report for _, report, _ in rows), tuple(label for _, _, label in rows)
    return ImageReports(torch.stack(images), reports, labels, tuple(files))


def _beside(root: Path) -> Iterator[tuple[str, str, str]]:
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.suffix.lower() in _SUFFIXES and file.is_file() and not any(p.startswith(".") for p in name.parts):
            note = file.with_suffix(".txt")
            report = note.read_text(encoding="utf-8").strip() if note.is_file() else ""
            yield name.as_posix(), report, name.parts[0] if len(name.parts) > 1 else ""


def _table(path: Path, columns: tuple[str, str, str]) -> Iterator[tuple[str, str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no table of reports at {path}: expected CSV, TSV or JSONL with {', '.join(columns)}")
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(f"a table of reports ends in .csv, .tsv or .jsonl, got {path.name}")
    text = path.read_text(encoding="utf-8-sig")
    rows: list[Mapping[str, Any]] = []
    if kind == ".jsonl":
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    rows.append(dict(json.loads(line)))
                except (json.JSONDecodeError, TypeError, ValueError) as error:
                    raise ValueError(f"{path.name}, line {number}: expected a JSON object") from error
    else:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ","))
    have = {key for row in rows for key in row}
    name, report, label = columns
    if rows and (name not in have or not {report, label} & have):
        raise ValueError(
            f"{path.name} must have the column {name!r} and {report!r} or {label!r}, got {sorted(map(str, have))}"
        )
    for number, row in enumerate(rows, start=1):
        if not row.get(name):
            raise ValueError(f"{path.name}, row {number}: no {name}")
        told, label_of = ("" if row.get(key) is None else str(row[key]).strip() for key in (report, label))
        yield str(row[name]), told, label_of


def _opened(file: Path, read: Any) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'etude[run]'") from error
    try:
        with Image.open(file) as image:
            return read(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error


def _modality(name: str) -> tuple[str, str]:
    if name not in MODALITIES:
        raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, got {name!r}")
    return MODALITIES[name]


def official_questions(modality: str, source: str = "PubMed") -> list[str]:
    """The authors' concepts, one question a line, as they stand in the file (repetitions included).

    Args:
        modality: "xray" or "skin". source: "PubMed", "StatPearls", "Textbooks", "Wikipedia" or "prompt".
    """
    _modality(modality)
    if source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    path = locate("knobo") / "data" / "bottlenecks" / f"{modality}_{source}.txt"
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def official_answers(modality: str) -> dict[str, dict[str, str]]:
    """The authors' prior: class (in the file's own spelling) -> question -> yes or no."""
    _modality(modality)
    path = locate("knobo") / "data" / "bottlenecks" / "concept_priors" / f"{modality}_class2concept2answer.json"
    return json.loads(path.read_text(encoding="utf-8"))


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def official_split(path: str | os.PathLike) -> dict[str, list[str]]:
    """Class -> image paths, from one of the authors' `class2images_*.p`; refuses a pickle of anything else."""
    try:
        with open(path, "rb") as stream:
            table = _Plain(stream).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is no pickle of plain lists and texts: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(rows, list) for rows in table.values()):
        raise ValueError(f"{path} must hold class -> list of images, got {type(table).__name__}")
    return table


@dataclass(frozen=True, eq=False)
class FeatureSplits:
    """Features of a data set on which a backbone was run.

    Args:
        splits: train, val (in-domain) and test (shifted, where the set is confounded) -> features float32 (n, dim)
            and labels int64 (n,).
        classes: names in the order of the labels.
        name: of the data set.
    """

    splits: dict[str, tuple[Tensor, Tensor]]
    classes: tuple[str, ...]
    name: str


@dataclass(frozen=True, eq=False)
class AnnotatedFeatures:
    """Features of the images whose reports were annotated: float32 (n, dim), answers (n, questions) in {-1, 0, 1}."""

    features: Tensor
    answers: np.ndarray
    questions: tuple[str, ...]


def _safely_loaded(path: Path) -> Any:
    """A file of torch.save that holds tensors, arrays and plain values; nothing else is unpickled."""
    reconstruct: Any = np._core.multiarray._reconstruct if hasattr(np, "_core") else None
    allowed: list[Any] = [np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in ("float16", "float32", "float64"))]
    if reconstruct is not None:
        # Arrays name NumPy's module as it was called when they were written.
        allowed += [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors, arrays and plain values") from error


def _rows(value: Any, path: Path) -> Tensor:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        value = torch.stack([torch.as_tensor(row) for row in value])
    rows = torch.as_tensor(value).float()
    if rows.ndim != 2:
        raise ValueError(f"{path} must hold features (n, dim), got shape {tuple(rows.shape)}")
    return rows


def official_features(root: str | os.PathLike, dataset: str, model: str) -> FeatureSplits:
    """`root/features/MODEL/DATASET/{train,val,test}/CLASS/*.pt` and `MODEL/DATASET_label.pt`, the authors' layout.

    Args:
        root: the `data` folder. dataset: as "NIH-sex". model: as "whyxrayclip".

    Raises:
        FileNotFoundError: saying what to place where. ValueError: if a class has no features or widths differ.
    """
    base = Path(root) / "features" / model
    names = base / f"{dataset}_label.pt"
    if not names.is_file():
        raise FileNotFoundError(
            f"no features of {dataset} at {names}: place the authors' features.zip "
            f"(knowledge-bottlenecks.s3.amazonaws.com/features.zip) under {Path(root)}, or write your own so"
        )
    index = {str(name): int(place) for name, place in _safely_loaded(names).items()}
    splits = {}
    for part in ("train", "val", "test"):
        features, labels = [], []
        for name, place in index.items():
            files = sorted((base / dataset / part / name).glob("*.pt"))
            if not files:
                raise ValueError(f"{base / dataset / part / name} holds no *.pt with features")
            for file in files:
                features.append(_rows(_safely_loaded(file), file))
                labels.append(torch.full((len(features[-1]),), place))
        widths = {f.shape[1] for f in features}
        if len(widths) > 1:
            raise ValueError(f"features of {dataset} differ in width: {sorted(widths)}")
        splits[part] = (torch.cat(features), torch.cat(labels))
    classes = tuple(sorted(index, key=lambda name: index[name]))
    return FeatureSplits(splits, classes, dataset)


def official_annotations(root: str | os.PathLike, modality: str, questions: Sequence[str]) -> AnnotatedFeatures:
    """Features of the annotated images and the answers of their reports, from `root/datasets/MIMIC-CXR` or `ISIC`.

    The files are SET_MODEL.pt (image -> features), SET_metadata.json (report -> images) and
    SET_concept_annotations.json (question -> positive and negative reports). Of X-rays the views AP and PA count.

    Raises:
        FileNotFoundError: saying what to place where. ValueError: if no question is annotated.
    """
    name, model = _modality(modality)
    base = Path(root) / "datasets" / name
    paths = [base / f"{name}_{model}.pt", base / f"{name}_metadata.json", base / f"{name}_concept_annotations.json"]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"no annotations at {path}: place the authors' {name}.zip "
                f"(knowledge-bottlenecks.s3.amazonaws.com/{name}.zip) under {base.parent}"
            )
    vectors = _safely_loaded(paths[0])
    reports, annotations = (json.loads(path.read_text(encoding="utf-8")) for path in paths[1:])
    known = tuple(question for question in questions if question in annotations)
    if not known:
        raise ValueError(f"{paths[2].name} annotates none of the {len(questions)} questions")
    images = list(vectors)
    place = {image: row for row, image in enumerate(images)}
    answers = np.zeros((len(images), len(known)), dtype=np.int8)
    for column, question in enumerate(known):
        for side, value in (("positive", 1), ("negative", -1)):
            for report in annotations[question][side]:
                for entry in reports[report]["images"]:
                    image, view = (entry, None) if isinstance(entry, str) else (entry[0], entry[1])
                    if image in place and (modality != "xray" or view in ("AP", "PA")):
                        answers[place[image], column] = value
    return AnnotatedFeatures(_rows(vectors, paths[0]), answers, known)
