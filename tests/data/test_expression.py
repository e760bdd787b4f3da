"""The gene-expression tables and their splits."""

import builtins

import numpy as np
import pytest
import torch

from etude.data import expression, tables
from etude.data.catalogue import locate


@pytest.fixture(autouse=True)
def _rdata():
    pytest.importorskip("rdata")


def here():
    try:
        return locate("microarray")
    except FileNotFoundError:
        pytest.skip("microarray is not on this machine")


def rows_of(data):
    return torch.cat([part.inputs for part in (data.train, data.val, data.test)])


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("alon", (62, 2_000), {"n": 22, "t": 40}),
        ("golub", (72, 7_129), {"ALL": 47, "AML": 25}),
        ("khan", (63, 2_308), {"BL": 8, "EWS": 23, "NB": 12, "RMS": 20}),
        ("su", (102, 5_565), {"1": 25, "2": 26, "3": 28, "4": 23}),
    ],
)
def test_tables_have_the_published_samples_genes_and_classes(name, shape, classes):
    here()
    data = expression.microarray(name)
    assert tuple(rows_of(data).shape) == shape
    labels = torch.cat([part.targets for part in (data.train, data.val, data.test)])
    assert dict(zip(data.classes, torch.bincount(labels).tolist())) == classes
    assert data.name == f"{name}, split 0"


def test_raw_intensities_are_logarithms_with_a_floor_and_the_others_stay():
    here()
    golub = rows_of(expression.microarray("golub"))
    assert golub.min() == pytest.approx(np.log2(20), rel=1e-6)
    assert golub.max() == pytest.approx(np.log2(71_369), rel=1e-6)
    khan = rows_of(expression.microarray("khan"))
    assert khan.min() == pytest.approx(-5.991464547, rel=1e-6)


def test_genes_keep_their_names():
    here()
    assert expression.microarray("golub").columns[:2] == ("AFFX-BioB-5_at", "AFFX-BioB-M_at")
    assert expression.microarray("khan").columns[0] == "GENE1"
    assert expression.microarray("su").columns[0] == "gene 1"


def test_splits_are_stratified_differ_and_hold_every_row_once():
    here()
    one, other = expression.microarray("khan", 0), expression.microarray("khan", 1)
    assert [len(part.inputs) for part in (one.train, one.val, one.test)] == [33, 8, 22]
    for data in (one, other):
        assert len(torch.unique(rows_of(data), dim=0)) == 63
        for part in (data.train, data.val, data.test):
            share = torch.bincount(part.targets, minlength=4).double() / len(part.targets)
            whole = torch.tensor([8, 23, 12, 20]).double() / 63
            assert (share - whole).abs().max() < 0.08
    assert not torch.equal(one.test.inputs, other.test.inputs)
    assert torch.equal(expression.microarray("khan", 1).test.inputs, other.test.inputs)


def test_splitting_anew_does_not_depend_on_the_split_before():
    data = tables.wine()
    one = expression.resplit(data, 4)
    again = expression.resplit(expression.resplit(data, 9), 4)
    assert torch.equal(one.test.inputs, again.test.inputs)
    assert one.name == again.name == "wine, split 4"
    assert len(one.test.inputs) / (len(one.train.inputs) + len(one.val.inputs)) == pytest.approx(
        expression.RESPLIT, abs=0.01
    )


def test_what_is_no_table_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="alon, golub, gordon, khan, singh, su, got 'tcga'"):
        expression.microarray("tcga")
    with pytest.raises(ValueError, match="split must not be negative, got -1"):
        expression.resplit(tables.wine(), -1)
    folder = tmp_path / "microarray" / "data"
    folder.mkdir(parents=True)
    source = here() / "data"
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    (folder / "alon.RData").write_bytes((source / "khan.RData").read_bytes())
    with pytest.raises(ValueError, match=r"must hold an R list alon with x and y, got \['khan'\]"):
        expression.microarray("alon")
    with pytest.raises(FileNotFoundError, match="etude data fetch microarray"):
        expression.microarray("golub")
    monkeypatch.setitem(expression.MICROARRAYS, "khan", (60, 2_308, False))
    (folder / "khan.RData").write_bytes((source / "khan.RData").read_bytes())
    with pytest.raises(ValueError, match="60 samples x 2308 genes, got"):
        expression.microarray("khan")


def test_without_rdata_the_message_says_what_to_install(monkeypatch):
    here()
    original = builtins.__import__

    def refusing(name, *args, **kwargs):
        if name == "rdata":
            raise ImportError("No module named 'rdata'")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refusing)
    with pytest.raises(ImportError, match="pip install rdata"):
        expression.microarray("alon")
