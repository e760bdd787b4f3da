"""Public tables of architecture search: reading, units, and keys that are never run."""

import json
import math

import numpy as np
import pytest

from etude.data import nas_tables
from etude.data.nas_tables import ArchitectureTable


def cell(value, **scores):
    scored = {name: {"score": score, "time": 1.0} for name, score in scores.items()}
    return {"idx": "3", "val_accuracy": value, "flops": {"score": 2.5, "time": 1.0}, "params": 0.25, **scored}


@pytest.fixture
def folder(tmp_path):
    def write(content, space="transnas_micro"):
        (tmp_path / nas_tables.SPACES[space]).write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def test_a_table_has_keys_metrics_and_whole_counts(folder):
    entries = {"(1, 0, 2)": cell(3.5, nwot=7.0), "(0, 0, 1)": cell(4.5, nwot=-1e8, snip=[1, 2])}
    table = nas_tables.load("transnas_micro", "jigsaw", folder({"jigsaw": entries, "normal": entries}))
    assert table.keys == ((1, 0, 2), (0, 0, 1))
    assert table.metric.tolist() == [3.5, 4.5]
    assert table.flops.tolist() == [2.5e6, 2.5e6]
    assert table.params.tolist() == [2.5e5, 2.5e5]
    assert table.scores["nwot"][0] == 7.0
    assert math.isnan(table.scores["nwot"][1])
    assert np.isnan(table.scores["snip"]).all()
    assert nas_tables.tasks("transnas_micro", folder({"jigsaw": entries, "normal": entries})) == ("jigsaw", "normal")
    assert table.rows([1]).keys == ((0, 0, 1),)
    assert table.name == "transnas_micro/jigsaw"


def test_nested_keys_and_the_extra_level_of_nasbench101_are_read(folder):
    nested = {"cifar10": {"[[(0, 1), (2, 3)], [(1, 0)]]": cell(90.0)}}
    assert nas_tables.load("nasbench301", "cifar10", folder(nested, "nasbench301")).keys == (
        (((0, 1), (2, 3)), ((1, 0),)),
    )
    outer = {"nasbench101": {"cifar10": {"(0, 1)": cell(90.0)}}}
    assert nas_tables.load("nasbench101", "cifar10", folder(outer, "nasbench101")).keys == ((0, 1),)


@pytest.mark.parametrize("key", ["__import__('os')", "(1, a)", "1 + 1", "(1, 2", ""])
def test_a_key_that_is_not_numbers_in_brackets_is_refused_and_not_run(folder, key):
    with pytest.raises(ValueError, match="whole numbers in brackets"):
        nas_tables.load("transnas_micro", "jigsaw", folder({"jigsaw": {key: cell(1.0)}}))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"jigsaw": {"(1,)": {"flops": 1.0, "params": 1.0}}}, "is not a table of architectures: KeyError"),
        ({"jigsaw": {"(1,)": 5}}, "is not a table of architectures"),
        ({"jigsaw": {"(1,)": cell(float("nan"))}}, "metric of transnas_micro/jigsaw must be finite, got nan"),
        ({"jigsaw": {}}, "has no architecture"),
        ({"jigsaw": {"(1, 2)": cell(1.0), "(1,2)": cell(2.0)}}, "has an architecture twice: 1 keys"),
        ([1, 2], "is not a table of tasks"),
    ],
)
def test_what_is_no_table_is_refused(folder, content, text):
    with pytest.raises(ValueError, match=text):
        nas_tables.load("transnas_micro", "jigsaw", folder(content))


def test_unknown_names_and_absent_files_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"space must be one of nasbench101, .* got 'darts'"):
        nas_tables.load("darts", "cifar10")
    with pytest.raises(ValueError, match="transnas_micro has no task 'depth': it has jigsaw"):
        nas_tables.load("transnas_micro", "depth", folder({"jigsaw": {"(1,)": cell(1.0)}}))
    with pytest.raises(FileNotFoundError, match="part of the set naslib_zc"):
        nas_tables.load("nasbench201", "cifar10", tmp_path)
    (tmp_path / nas_tables.SPACES["nasbench201"]).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is not JSON"):
        nas_tables.load("nasbench201", "cifar10", tmp_path)


def test_columns_must_fit(folder):
    with pytest.raises(ValueError, match=r"flops of s/t must have shape \(2,\), got \(1,\)"):
        ArchitectureTable("s", "t", ((1,), (2,)), np.ones(2), np.ones(1), np.ones(2))


def test_the_public_tables_have_the_published_sizes():
    try:
        sizes = {space: len(nas_tables.load(space, nas_tables.tasks(space)[0])) for space in nas_tables.SPACES}
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert sizes == {
        "nasbench101": 500, "nasbench201": 725, "nasbench301": 725, "transnas_micro": 711, "transnas_macro": 662,
    }  # fmt: skip
    assert len(nas_tables.tasks("transnas_micro")) == 7
