import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from etude.data.images import hub
from etude.data.kinds import Examples

datasets = pytest.importorskip("datasets")


@pytest.fixture
def save(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def write(sizes, labels=None):
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
        for split, n in sizes.items():
            images = [np.full((4, 4, 3), number, dtype=np.uint8) for number in range(n)]
            targets = [number % 2 if labels is None else labels for number in range(n)]
            rows = datasets.Dataset.from_dict({"img": images, "label": targets}, features=features)
            (tmp_path / "toy" / "data").mkdir(parents=True, exist_ok=True)
            rows.to_parquet(tmp_path / "toy" / "data" / f"{split}-00000-of-00001.parquet")
        return str(tmp_path / "toy")

    return write


def test_a_set_in_the_hubs_format_becomes_image_data(save):
    data = hub(save({"train": 16, "validation": 4, "test": 6}))
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 4, 6]
    assert data.classes == ("ant", "bee")
    assert (data.channels, data.size, data.name) == (3, (4, 4), "toy")


def test_images_are_decoded_when_they_are_read(save):
    data = hub(save({"train": 16, "validation": 4, "test": 6}))
    assert isinstance(data.train, Dataset)
    image, label = data.train[3]
    torch.testing.assert_close(image, torch.full((3, 4, 4), 3 / 255))
    assert label == 1


def test_in_memory_gives_examples(save):
    data = hub(save({"train": 16, "validation": 4, "test": 6}), in_memory=True)
    assert isinstance(data.train, Examples)
    assert data.test.inputs.shape == (6, 3, 4, 4)


def test_without_test_labels_the_validation_split_is_the_test(save):
    path = save({"train": 16, "validation": 4})
    save({"test": 6}, labels=-1)
    data = hub(path)
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]


def test_a_size_is_applied(save):
    assert hub(save({"train": 16, "test": 6}), size=2, channels=1).size == (2, 2)


def test_a_train_split_alone_is_refused(save):
    with pytest.raises(ValueError, match=r"needs a train split and a test or validation split"):
        hub(save({"train": 16}))


def test_an_unknown_column_is_refused(save):
    with pytest.raises(ValueError, match=r"no column 'kind', it has \['img', 'label'\]"):
        hub(save({"train": 16, "test": 6}), label="kind")


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'etude\[hub\]'"):
        hub("uoft-cs/cifar10")
