"""Public image sets by name, through Hugging Face `datasets`."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from etude.data.images.decoding import is_grey, to_tensor
from etude.data.kinds import Examples, ImageData

__all__ = ["hub"]


class _HubImages(Dataset):
    """One split, decoded image by image as it is read."""

    def __init__(self, rows: Any, image: str, label: str, channels: int, size: tuple[int, int] | None):
        self.rows, self.image, self.label, self.channels, self.size = rows, image, label, channels, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        row = self.rows[int(index)]
        return to_tensor(row[self.image], self.channels, self.size), int(row[self.label])

    def in_memory(self) -> Examples:
        pairs = [self[index] for index in range(len(self))]
        sizes = {tuple(image.shape) for image, _ in pairs}
        if len(sizes) > 1:
            raise ValueError(f"the images differ in size ({sorted(sizes)[:3]}): give a size")
        return Examples(torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs]))


def hub(
    name: str,
    config: str | None = None,
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    in_memory: bool = False,
    revision: str | None = None,
) -> ImageData:
    """A public image set such as "uoft-cs/cifar10", downloaded once into the cache of `datasets`.

    Splits: train, validation and test where the set has them. A test split without labels does not count; without
    a test split the validation split is the test, and without another validation split an eighth of train
    (stratified, always the same) is val. A set with a train split only is refused.

    Args:
        name: on the hub, or a local folder in the same format (Parquet files, one or more a split).
        config: the set's configuration, where it has several.
        image, label: names of the columns; None for the only column of images and the only one of class labels.
        size: height and width, or one number for both, as for `image_folder`. None if all images have one size.
        channels: 1 or 3; if None, as the first training image is.
        in_memory: decode everything now and give `Examples`; else each image is decoded when it is read.
        revision: commit or tag of the set, for a result that should last.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if the columns or splits cannot be told.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("images.hub needs Hugging Face datasets: pip install 'etude[hub]'") from error
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    content = datasets.load_dataset(name, config, revision=revision)
    features = next(iter(content.values())).features
    image = image or _only(features, datasets.Image, "image", name)
    label = label or _only(features, datasets.ClassLabel, "label", name)
    for column in (image, label):
        if column not in features:
            raise ValueError(f"{name} has no column {column!r}, it has {list(features)}")
    if not isinstance(features[label], datasets.ClassLabel):
        raise ValueError(f"column {label!r} of {name} must hold class labels, it holds {features[label]}")
    splits = _splits(content, label, name)
    channels = channels or (1 if is_grey(splits["train"][0][image]) else 3)
    shape = (size, size) if isinstance(size, int) else size
    parts = {part: _HubImages(rows, image, label, channels, shape) for part, rows in splits.items()}
    return ImageData(
        train=parts["train"].in_memory() if in_memory else parts["train"],
        val=parts["val"].in_memory() if in_memory else parts["val"],
        test=parts["test"].in_memory() if in_memory else parts["test"],
        classes=tuple(features[label].names),
        name=name.rstrip("/").split("/")[-1],
    )


def _only(features: Any, kind: type, what: str, name: str) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise ValueError(f"{name} has {len(found)} {what} columns {found}: name one by {what}=, of {list(features)}")
    return found[0]


def _splits(content: Any, label: str, name: str) -> dict[str, Any]:
    usable = {split: rows for split, rows in content.items() if len(rows) and min(rows[label]) >= 0}
    aliases = {"train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)}
    found = {
        part: next(usable[split] for split in words if split in usable)
        for part, words in aliases.items()
        if any(split in usable for split in words)
    }
    if "test" not in found and "val" in found:
        found["test"] = found.pop("val")
    if not {"train", "test"} <= found.keys():
        raise ValueError(f"{name} needs a train split and a test or validation split with labels, has {list(content)}")
    if "val" not in found:
        halves = found["train"].train_test_split(test_size=1 / 8, seed=0, stratify_by_column=label)
        found["train"], found["val"] = halves["train"], halves["test"]
    return found
