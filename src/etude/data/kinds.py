"""The kinds of data: one frozen dataclass for each, holding tensors and checking them where they enter.

Nothing here loads anything; the loaders of `etude.data` return these kinds, and methods take them as arguments.
A kind that exists is valid: shapes, dtypes and ranges are checked once, when it is made, in every use and not only
under a type checker (hence the plain annotations); a refusal shows what was given and what was expected.

A split of images or signals is an `Examples` (tensors in memory); at full scale it may be any map-style
`torch.utils.data.Dataset` that yields `(input, target)`, whose items are then the caller's responsibility.
"""

import importlib
from collections.abc import Iterable, Sized
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Complex64
from torch import Tensor
from torch.utils.data import Dataset

__all__ = [
    "Characters",  # noqa: F822 (loaded when asked for)
    "ClickData",  # noqa: F822
    "DetectionData",  # noqa: F822
    "Examples",
    "FieldData",  # noqa: F822
    "GraphData",
    "ImageData",
    "MultiTaskData",  # noqa: F822
    "RankingData",  # noqa: F822
    "Recording",
    "RelationalDatabase",  # noqa: F822
    "SignalData",
    "TableData",
    "TextData",  # noqa: F822
]

_ELSEWHERE = {
    "Characters": "etude.data.kinds_characters",
    "ClickData": "etude.data.kinds_clicks",
    "DetectionData": "etude.data.kinds_detection",
    "FieldData": "etude.data.kinds_fields",
    "MultiTaskData": "etude.data.kinds_multitask",
    "RankingData": "etude.data.kinds_ranking",
    "RelationalDatabase": "etude.data.kinds_relational",
    "TextData": "etude.data.kinds_text",
}
"""Kinds with modules of their own: characters, logs, boxes, weather, collections of texts, databases, text."""


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"{where} must be int64 of shape (n,), got {_described(labels)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{where} must lie in 0..{num_classes - 1} ({num_classes} classes), "
            f"got {int(labels.min())}..{int(labels.max())}"
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their targets, row by row, as two tensors in memory.

        examples = Examples(images, labels)
        inputs, targets = examples[torch.tensor([3, 1])]

    Args:
        inputs: (n, ...), one row an example.
        targets: (n, ...): labels, values, or whole target tensors.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self):
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
            if tensor.ndim == 0:
                raise ValueError(f"{name} must have one row per example, got a single number")
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"inputs and targets must have equally many rows, "
                f"got shapes {tuple(self.inputs.shape)} and {tuple(self.targets.shape)}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def subset(self, indices: Tensor | Iterable[int]) -> "Examples":
        """The examples at `indices` (integers or a boolean mask), in that order."""
        index = indices if isinstance(indices, Tensor) else torch.as_tensor(list(indices), dtype=torch.int64)
        return Examples(self.inputs[index], self.targets[index])

    def take(self, n: int, generator: torch.Generator | None = None) -> "Examples":
        """The first `n` examples, or `n` drawn without replacement if a `generator` is given."""
        if not 0 <= n <= len(self):
            raise ValueError(f"n must lie in 0..{len(self)}, the number of examples, got {n}")
        if generator is None:
            return Examples(self.inputs[:n], self.targets[:n])
        return self.subset(torch.randperm(len(self), generator=generator)[:n])

    def to(self, device: torch.device | str) -> "Examples":
        return Examples(self.inputs.to(device), self.targets.to(device))


def _check_splits(kind: str, splits: dict[str, Examples | Dataset]) -> None:
    for name, split in splits.items():
        if not isinstance(split, Examples | Dataset):
            raise TypeError(f"{kind}.{name} must be Examples or a map-style torch Dataset, got {type(split).__name__}")
        if not isinstance(split, Sized):
            raise TypeError(f"{kind}.{name} must have a length, {type(split).__name__} has none")
        if len(split) == 0:
            raise ValueError(f"{kind}.{name} is empty")


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images and their classes, in a fixed split.

    Args:
        train, val, test: inputs float32 (n, channels, height, width), in [0, 1] as the loaders give them,
            targets int64 (n,).
        classes: names of the classes, in the order of the labels.
        name: what the data are called in tables.
    """

    train: Examples | Dataset
    val: Examples | Dataset
    test: Examples | Dataset
    classes: tuple[str, ...]
    name: str

    def __post_init__(self):
        splits = {"train": self.train, "val": self.val, "test": self.test}
        _check_splits("ImageData", splits)
        if len(self.classes) < 2:
            raise ValueError(f"ImageData needs at least two classes, got {self.classes}")
        shape = None
        for name, split in splits.items():
            if not isinstance(split, Examples):
                continue
            if split.inputs.dtype != torch.float32 or split.inputs.ndim != 4:
                raise ValueError(
                    f"ImageData.{name} inputs must be float32 of shape (n, channels, height, width), "
                    f"got {_described(split.inputs)}"
                )
            if shape is not None and split.inputs.shape[1:] != shape:
                raise ValueError(
                    f"ImageData.{name} images have shape {tuple(split.inputs.shape[1:])}, "
                    f"those of the split before have {tuple(shape)}"
                )
            shape = split.inputs.shape[1:]
            if not bool(torch.isfinite(split.inputs).all()):
                raise ValueError(f"ImageData.{name} inputs hold NaN or infinite values")
            _check_labels(split.targets, len(self.classes), f"ImageData.{name} targets")

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def channels(self) -> int:
        return self._image_shape()[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self._image_shape()
        return height, width

    def _image_shape(self) -> tuple[int, int, int]:
        image = self.train.inputs[0] if isinstance(self.train, Examples) else self.train[0][0]
        channels, height, width = image.shape
        return channels, height, width

    def standardized(self) -> "ImageData":
        """The same data with each channel at mean 0 and standard deviation 1 over the train split.

        A channel that is constant over the train split is only centred.
        """
        if not isinstance(self.train, Examples):
            raise TypeError(f"standardized() needs Examples in memory, train is a {type(self.train).__name__}")
        mean = self.train.inputs.mean(dim=(0, 2, 3), keepdim=True)
        std = self.train.inputs.std(dim=(0, 2, 3), keepdim=True, correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))

        def scaled(name: str) -> Examples:
            split = getattr(self, name)
            if not isinstance(split, Examples):
                raise TypeError(f"standardized() needs Examples in memory, {name} is a {type(split).__name__}")
            return Examples((split.inputs - mean) / std, split.targets)

        return replace(self, train=scaled("train"), val=scaled("val"), test=scaled("test"))


@dataclass(frozen=True, eq=False)
class GraphData:
    """One graph with features and classes of its nodes, split by node masks.

    Args:
        x: node features, floating point (nodes, features), dense or sparse CSR.
        edge_index: int64 (2, edges): source and target of each edge; an undirected graph holds both directions.
        y: class of each node, int64 (nodes,).
        train_mask, val_mask, test_mask: bool (nodes,), disjoint, none empty; they need not cover the graph.
        classes: names of the classes, in the order of the labels.
        name: what the graph is called in tables.
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self):
        if self.x.ndim != 2 or not self.x.is_floating_point():
            raise ValueError(f"x must be floating point of shape (nodes, features), got {_described(self.x)}")
        if self.x.layout not in (torch.strided, torch.sparse_csr):
            raise ValueError(f"x must be dense or sparse CSR, got layout {self.x.layout}")
        values = self.x.values() if self.x.layout == torch.sparse_csr else self.x
        if not bool(torch.isfinite(values).all()):
            raise ValueError("x holds NaN or infinite values")
        nodes = self.x.shape[0]
        if self.edge_index.dtype != torch.int64 or self.edge_index.ndim != 2 or self.edge_index.shape[0] != 2:
            raise ValueError(f"edge_index must be int64 of shape (2, edges), got {_described(self.edge_index)}")
        if self.edge_index.numel() and not 0 <= int(self.edge_index.min()) <= int(self.edge_index.max()) < nodes:
            raise ValueError(
                f"edge_index must name nodes 0..{nodes - 1}, "
                f"got {int(self.edge_index.min())}..{int(self.edge_index.max())}"
            )
        _check_labels(self.y, len(self.classes), "y")
        if len(self.y) != nodes:
            raise ValueError(f"y must have one label per node, {nodes}, got {len(self.y)}")
        masks = {"train_mask": self.train_mask, "val_mask": self.val_mask, "test_mask": self.test_mask}
        for name, mask in masks.items():
            if mask.dtype != torch.bool or mask.shape != (nodes,):
                raise ValueError(f"{name} must be bool of shape ({nodes},), got {_described(mask)}")
            if not bool(mask.any()):
                raise ValueError(f"{name} selects no node")
        shared = int((torch.stack(list(masks.values())).sum(dim=0) > 1).sum())
        if shared:
            raise ValueError(f"the masks must not overlap, {shared} nodes stand in more than one")

    @property
    def num_nodes(self) -> int:
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        return self.x.shape[1]

    @property
    def num_edges(self) -> int:
        """Directed edges: an undirected edge counts twice."""
        return self.edge_index.shape[1]

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @classmethod
    def from_pyg(cls, data: Any, *, classes: Iterable[str] | None = None, name: str = "graph") -> "GraphData":
        """Takes a `torch_geometric.data.Data` with `x`, `edge_index`, `y` and the three masks."""
        wanted = ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask")
        absent = [key for key in wanted if getattr(data, key, None) is None]
        if absent:
            raise ValueError(f"the PyG data lack {', '.join(absent)}; needed: {', '.join(wanted)}")
        y = data.y.squeeze(-1) if data.y.ndim == 2 and data.y.shape[1] == 1 else data.y
        if classes is None:
            classes = [str(label) for label in range(int(y.max()) + 1)]
        masks = {key: getattr(data, key) for key in wanted[3:]}
        return cls(x=data.x, edge_index=data.edge_index, y=y, classes=tuple(classes), name=name, **masks)


@dataclass(frozen=True, eq=False)
class Recording:
    """One stretch of complex baseband samples.

    Args:
        samples: the signal, complex64 (samples,).
        sample_rate: samples per second in Hz, > 0; None if nobody knows it.
        meta: what the file said besides (centre frequency, annotations, ...).
        name: what the recording is called in tables.
    """

    samples: Tensor
    sample_rate: float | int | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    name: str = "recording"

    def __post_init__(self):
        if self.samples.dtype != torch.complex64 or self.samples.ndim != 1:
            raise ValueError(f"samples must be complex64 of shape (samples,), got {_described(self.samples)}")
        if self.sample_rate is not None and not 0 < self.sample_rate < float("inf"):
            raise ValueError(f"sample_rate must be a positive number of Hz, got {self.sample_rate}")

    def __len__(self) -> int:
        return len(self.samples)

    def windows(self, length: int, hop: int | None = None) -> Complex64[Tensor, "windows length"]:
        """Stretches of `length` samples, one every `hop` samples (`length` if None); a rest is left out."""
        hop = length if hop is None else hop
        if length < 1 or hop < 1:
            raise ValueError(f"length and hop must be positive, got {length} and {hop}")
        if length > len(self):
            raise ValueError(f"length {length} exceeds the recording's {len(self)} samples")
        return self.samples.unfold(0, length, hop)


@dataclass(frozen=True, eq=False)
class SignalData:
    """Complex baseband signals of one length and their labels, in a fixed split.

    Args:
        train, val, test: inputs complex64 (n, samples), targets (n,).
        sample_rate: samples per second in Hz, > 0.
        meta: whatever else is known; `meta["classes"]` names the labels where they are classes.
        name: what the data are called in tables.
    """

    train: Examples | Dataset
    val: Examples | Dataset
    test: Examples | Dataset
    sample_rate: float | int
    meta: dict[str, Any] = field(default_factory=dict)
    name: str = "signals"

    def __post_init__(self):
        splits = {"train": self.train, "val": self.val, "test": self.test}
        _check_splits("SignalData", splits)
        if not 0 < self.sample_rate < float("inf"):
            raise ValueError(f"sample_rate must be a positive number of Hz, got {self.sample_rate}")
        length = None
        for name, split in splits.items():
            if not isinstance(split, Examples):
                continue
            if split.inputs.dtype != torch.complex64 or split.inputs.ndim != 2:
                raise ValueError(
                    f"SignalData.{name} inputs must be complex64 of shape (n, samples), got {_described(split.inputs)}"
                )
            if split.targets.ndim != 1:
                raise ValueError(f"SignalData.{name} targets must have shape (n,), got {_described(split.targets)}")
            if length is not None and split.inputs.shape[1] != length:
                raise ValueError(
                    f"SignalData.{name} signals have {split.inputs.shape[1]} samples, "
                    f"those of the split before have {length}"
                )
            length = split.inputs.shape[1]
            if not bool(torch.isfinite(torch.view_as_real(split.inputs)).all()):
                raise ValueError(f"SignalData.{name} inputs hold NaN or infinite values")

    @property
    def num_samples(self) -> int:
        """Samples in one signal."""
        signal = self.train.inputs[0] if isinstance(self.train, Examples) else self.train[0][0]
        return signal.shape[-1]


@dataclass(frozen=True, eq=False)
class TableData:
    """Rows of a table as numbers, and one target for each, in a fixed split.

    Args:
        train, val, test: inputs float32 (n, features); targets int64 (n,), the class, or float32 (n,), a value.
        columns: name of each feature, in the order of the inputs.
        classes: names of the classes, in the order of the labels; empty if the target is a value.
        name: what the data are called in tables.
    """

    train: Examples
    val: Examples
    test: Examples
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    name: str

    def __post_init__(self):
        splits: dict[str, Examples | Dataset] = {"train": self.train, "val": self.val, "test": self.test}
        _check_splits("TableData", splits)
        if len(self.classes) == 1:
            raise ValueError(f"TableData needs at least two classes, or none for a value, got {self.classes}")
        for name, split in splits.items():
            if not isinstance(split, Examples):
                raise TypeError(f"TableData.{name} must be Examples, got {type(split).__name__}")
            if split.inputs.dtype != torch.float32 or split.inputs.ndim != 2:
                raise ValueError(
                    f"TableData.{name} inputs must be float32 of shape (n, features), got {_described(split.inputs)}"
                )
            if split.inputs.shape[1] != len(self.columns):
                raise ValueError(
                    f"TableData.{name} has {split.inputs.shape[1]} features, columns names {len(self.columns)}"
                )
            if not bool(torch.isfinite(split.inputs).all()):
                raise ValueError(f"TableData.{name} inputs hold NaN or infinite values")
            if self.classes:
                _check_labels(split.targets, len(self.classes), f"TableData.{name} targets")
            elif split.targets.dtype != torch.float32 or split.targets.ndim != 1:
                raise ValueError(
                    f"TableData.{name} targets must be float32 of shape (n,), got {_described(split.targets)}"
                )
            elif not bool(torch.isfinite(split.targets).all()):
                raise ValueError(f"TableData.{name} targets hold NaN or infinite values")

    @property
    def num_features(self) -> int:
        return len(self.columns)

    @property
    def num_classes(self) -> int:
        """0 if the target is a value."""
        return len(self.classes)

    def as_images(self) -> ImageData:
        """Each row as an image of one channel and one line of pixels, for what takes images and flattens them.

        Raises:
            ValueError: if the target is a value.
        """
        if not self.classes:
            raise ValueError(f"images have classes, the target of {self.name} is a value")
        train, val, test = (
            Examples(split.inputs[:, None, None, :], split.targets) for split in (self.train, self.val, self.test)
        )
        return ImageData(train=train, val=val, test=test, classes=self.classes, name=self.name)

    def standardized(self) -> "TableData":
        """The same data with each feature at mean 0 and standard deviation 1 over the train split.

        A feature that is constant over the train split is only centred.
        """
        mean = self.train.inputs.mean(dim=0)
        std = self.train.inputs.std(dim=0, correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))

        def scaled(split: Examples) -> Examples:
            return Examples((split.inputs - mean) / std, split.targets)

        return replace(self, train=scaled(self.train), val=scaled(self.val), test=scaled(self.test))
