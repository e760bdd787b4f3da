"""`etude try` as a user meets it, and its Python twin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import etude
from etude.commands.parsing import BadUsage
from etude.commands.trying import Request, _luck, ask, seconds_of, text
from etude.data import tables
from etude.lab.trying import Finding
from etude.lab.verdict import ContrastVerdict

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    from sklearn.datasets import load_breast_cancer

    file = tmp_path_factory.mktemp("data") / "my tumours.csv"
    load_breast_cancer(as_frame=True).frame.to_csv(file, index=False)
    return file


def command(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "plugin"), "NO_COLOR": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "etude", "try", *arguments],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=300,
    )  # fmt: skip


def test_a_table_gets_a_ranked_answer(table, tmp_path):
    done = command("toy_users", "--data", str(table), "--target", "target", "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("my-tumours: TableData, 343 rows to train, 113 to validate, 113 to test; 4 questions")
    ranked = [line.split()[0] for line in lines if "toy_users/" in line and "  " in line and "@" not in line]
    assert ranked[:4] == ["helps", "keeps", "hurts", "does"]
    assert "3 contrast(s) came to a verdict on fresh seeds" in done.stdout
    assert "about 0.075 of them would hold by chance" in done.stdout
    assert "print('the nearest mean')" in done.stdout
    again = command("toy_users", "--data", str(table), "--target", "target", "--json", cwd=tmp_path)
    answer = json.loads(again.stdout)
    assert answer["data"] | {"digest": ""} == {
        "name": "my-tumours", "kind": "TableData", "digest": "", "train": 343, "val": 113, "test": 113,
    }  # fmt: skip
    assert [finding["status"] for finding in answer["findings"]] == ["helps", "keeps up", "hurts", "does not fit"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name your data: etude try --data PATH"),
        (["--data", "absent.csv"], "there is nothing at"),
        (["--data", "few.csv", "--target", "y"], "24 training and 8 test rows are too few"),
        (["--data", "few.csv"], "name the column to predict"),
        (["--data", "few.csv", "--target", "y", "--budget", "soon"], "--budget takes a time"),
        (["--data", "few.csv", "--target", "y", "--engine", "ray"], "the data lie on this machine"),
        (["--data", "few.csv", "--target", "y", "--scale", "smoke"], "smoke gives no verdicts"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(tmp_path, arguments, said):
    pd.DataFrame({"x": range(40), "y": [0, 1] * 20}).to_csv(tmp_path / "few.csv", index=False)
    done = command(*arguments, cwd=tmp_path)
    (line,) = done.stderr.strip().splitlines()
    assert (done.returncode, said in line) == (2, True), line


def test_claims_of_other_kinds_are_named(table, tmp_path):
    with pytest.raises(BadUsage, match="no claim takes TableData; claims with a question for other kinds: dagnn"):
        ask(Request(table, ["dagnn"], target="target", store=tmp_path), quiet=True)
    with pytest.raises(BadUsage, match="names a data set of ours"):
        ask(Request(table, ["dagnn/depth@cora"], target="target", store=tmp_path), quiet=True)


def test_data_in_memory_can_be_tried(tmp_path):
    answer = etude.try_on(tables.breast_cancer(), "toy_users/means", store=tmp_path, engine="inline")
    (finding,) = answer.findings
    assert finding.status == "helps"
    assert answer.material.name == "breast_cancer"
    assert answer.tested == 1
    with pytest.raises(ValueError, match="too few"):
        etude.try_on(tables.wine().__class__(**{**vars(tables.wine()), "test": tables.wine().test.take(10)}))
    with pytest.raises(AttributeError, match="no attribute 'attempt'"):
        _ = etude.attempt


def test_without_a_verdict_a_larger_budget_is_named(table, tmp_path):
    request = Request(table, ["toy_users"], target="target", store=tmp_path, engine="inline", budget=1e-9)
    answer = ask(request, quiet=True)
    assert "Nothing came to a verdict; a larger --budget" in text(answer)


@pytest.mark.parametrize(("said", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), (" 20 m", 1200)])
def test_a_budget_is_a_time(said, seconds):
    assert seconds_of(said) == seconds


@pytest.mark.parametrize("said", ["", "0", "-3", "ten", "5d"])
def test_what_is_no_time_is_refused(said):
    with pytest.raises(BadUsage, match="--budget takes a time"):
        seconds_of(said)


def test_the_luck_of_a_test_set():
    def finding(metric, baseline):
        verdict = ContrastVerdict("higher", "primary", "", {"metric": metric}, "holds", effect=0.1)
        return Finding("c", "p", "t", "s", "x", verdict=verdict, baseline=baseline)

    assert _luck(finding("accuracy", 0.5), 50) == pytest.approx(1.96 * 0.1)
    assert _luck(finding("accuracy", 1.0), 50) == 0
    assert _luck(finding("loss", 0.5), 50) is None
    assert _luck(finding("accuracy", None), 50) is None
