import numpy as np
import pytest
import torch

from etude.data.images import npz


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "toy.npz", **arrays)
        return tmp_path / "toy.npz"

    return write


def pictures(n=30, shape=(5, 5)):
    return np.arange(n * int(np.prod(shape))).reshape(n, *shape).astype(np.uint8)


LABELS = np.arange(30) % 3


def test_x_and_y_are_split_70_10_20(save):
    data = npz(save(x=pictures(), y=LABELS))
    assert [len(part) for part in (data.train, data.val, data.test)] == [21, 3, 6]
    assert data.test.targets.bincount().tolist() == [2, 2, 2]


def test_bytes_are_scaled_to_the_unit_interval(save):
    data = npz(save(x=np.full((30, 5, 5), 255, np.uint8), y=LABELS))
    assert torch.equal(data.train.inputs, torch.ones(21, 1, 5, 5))


def test_channels_may_stand_last(save):
    data = npz(save(x=pictures(shape=(5, 5, 3)), y=LABELS))
    assert (data.channels, data.size) == (3, (5, 5))


def test_given_parts_are_kept_and_val_is_an_eighth_of_train(save):
    data = npz(save(x_train=pictures(), y_train=LABELS, x_test=pictures(), y_test=LABELS))
    assert [len(part) for part in (data.train, data.val, data.test)] == [27, 3, 30]


def test_string_labels_become_classes(save):
    data = npz(save(x=pictures(), y=np.array(["owl", "ant", "bee"])[LABELS]))
    assert data.classes == ("ant", "bee", "owl")


def test_classes_may_be_named(save):
    data = npz(save(x=pictures(), y=LABELS, classes=np.array(["owl", "ant", "bee"])))
    assert data.classes == ("owl", "ant", "bee")


def test_floats_beyond_the_unit_interval_are_refused(save):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got 0\.\.7"):
        npz(save(x=np.where(pictures() > 3, 7.0, 0.0), y=LABELS))


def test_missing_arrays_are_named(save):
    with pytest.raises(ValueError, match=r"must hold the arrays x and y.*it has \['images'\]"):
        npz(save(images=pictures()))


def test_unequal_rows_are_refused(save):
    with pytest.raises(ValueError, match="got 30 and 29"):
        npz(save(x=pictures(), y=LABELS[:-1]))


def test_one_class_is_refused(save):
    with pytest.raises(ValueError, match="at least two classes"):
        npz(save(x=pictures(), y=np.zeros(30, int)))


def test_a_test_label_unknown_to_train_is_refused(save):
    with pytest.raises(ValueError, match=r"y_test holds \[9\]"):
        npz(save(x_train=pictures(), y_train=LABELS, x_test=pictures(2), y_test=np.array([0, 9])))


def test_pickled_arrays_are_refused(save):
    with pytest.raises(ValueError, match=r"not an .npz archive of plain arrays"):
        npz(save(x=np.array([{"a": 1}], dtype=object), y=np.array([0])))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "toy.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"not an .npz archive"):
        npz(tmp_path / "toy.npz")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no archive at"):
        npz(tmp_path / "toy.npz")
