import json

import numpy as np
import pytest

from etude.lab.audit import audit_coverage, audit_null, run_audit


@pytest.fixture(scope="module")
def report():
    return run_audit(seed=0, claims=400)


@pytest.mark.parametrize("name", ["null", "power", "coverage", "looks", "mirror", "units"])
def test_the_verdicts_are_calibrated(report, name):
    assert report["checks"][name]["passed"], report["checks"][name]


def test_arms_without_a_difference_stay_undecided(report):
    rows = report["checks"]["null"]["rows"]
    assert {(row["draws"], row["n"]) for row in rows} == {
        (draws, n) for draws in ("normal", "t3", "lognormal") for n in (3, 5, 8)
    }
    assert min(row["undecided"] for row in rows) >= 0.91


def test_the_report_is_plain_json(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_same_seed_gives_the_same_report():
    assert run_audit(seed=1, claims=10) == run_audit(seed=1, claims=10)


def test_a_wrong_quantile_would_be_noticed(monkeypatch):
    monkeypatch.setattr("etude.lab.statistics._t_quantile", lambda df, level: 1.96)
    assert not audit_null(np.random.default_rng(0), 100)["passed"]
    assert not audit_coverage(np.random.default_rng(0), 100)["passed"]
