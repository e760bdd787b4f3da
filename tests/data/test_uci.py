"""The Boston splits and the banana set."""

import numpy as np
import pytest
import torch

from etude.data import uci
from etude.data.catalogue import locate


def here(name):
    try:
        return locate(name)
    except FileNotFoundError:
        pytest.skip(f"{name} is not on this machine")


def test_boston_has_thirteen_features_and_the_value_last():
    folder = here("uci_boston_splits")
    data = uci.boston(3)
    table = np.loadtxt(folder / "data.txt")
    assert (len(data.train.inputs), len(data.val.inputs), len(data.test.inputs)) == (410, 45, 51)
    rows = np.loadtxt(folder / "original" / "index_test_3.txt").astype(int)
    np.testing.assert_allclose(data.test.inputs.numpy(), table[rows, :13], rtol=1e-6)
    np.testing.assert_allclose(data.test.targets.numpy(), table[rows, 13], rtol=1e-6)
    assert data.classes == ()
    assert data.name == "boston, split 3"


def test_every_row_of_boston_is_in_one_part():
    here("uci_boston_splits")
    for split in (0, 9):
        data = uci.boston(split)
        together = torch.cat([part.inputs for part in (data.train, data.val, data.test)])
        assert len(torch.unique(together, dim=0)) == len(together) == 506


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.9, got 10"):
        uci.boston(10)


def test_files_of_another_shape_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    folder = tmp_path / "uci_boston_splits"
    (folder / "original").mkdir(parents=True)
    np.savetxt(folder / "data.txt", np.ones((5, 14)))
    with pytest.raises(ValueError, match="506 x 14 numbers, got 5 x 14"):
        uci.boston()
    np.savetxt(folder / "data.txt", np.ones((506, 14)))
    for part in ("train", "test"):
        np.savetxt(folder / "original" / f"index_{part}_0.txt", np.arange(506))
    with pytest.raises(ValueError, match=r"each of 0..505 once"):
        uci.boston()


def test_banana_is_two_classes_in_the_plane():
    here("banana")
    data = uci.banana()
    assert [len(part.inputs) for part in (data.train, data.val, data.test)] == [240, 80, 80]
    assert data.num_features == 2
    assert data.num_classes == 2
    shares = [float(part.targets.double().mean()) for part in (data.train, data.val, data.test)]
    assert max(shares) - min(shares) < 0.03


def test_bananas_of_another_shape_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    folder = tmp_path / "banana"
    folder.mkdir()
    np.savetxt(folder / "banana_X_train", np.ones((5, 2)), delimiter=",")
    np.savetxt(folder / "banana_Y_train", np.ones(5))
    with pytest.raises(ValueError, match="400 points"):
        uci.banana()
