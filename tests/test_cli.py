"""The command line as a user meets it: output, exit statuses, and one clear line for what goes wrong."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def etude(*arguments, cwd=None, check=None, **variables):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tests" / "plugin"),
        "NO_COLOR": "1",
        "COLUMNS": "200",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-m", "etude", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def one_line(done, status=2):
    assert done.returncode == status, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("etude: ")
    return line


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store and evidence that hold a whole run of the toy paper."""
    folder = tmp_path_factory.mktemp("cli")
    done = etude(
        "run", "toy_shrinkage", "--store", "runs", "--evidence", "runs/evidence", "--engine", "inline", cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_listing_and_help_import_no_torch():
    code = (
        "import sys\nfrom etude.commands import listing\nlisting.load_registry = lambda: []\n"
        "import etude.cli\nlisting.rows()\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_run_prints_a_verdict_for_each_claim(store):
    done = etude("run", "toy_shrinkage", "--store", "runs", "--no-export", "--engine", "inline", cwd=store, check=0)
    assert "0 trials run, 25 from the store" in done.stdout
    assert "james_stein < observation (error)" in done.stdout


def test_a_run_in_json_is_json_alone(store):
    done = etude(
        "run",
        "toy_shrinkage/factor",
        "--store",
        "runs",
        "--no-export",
        "--engine",
        "inline",
        "--json",
        cwd=store,
        check=0,
    )
    (claim,) = json.loads(done.stdout)
    assert (claim["id"], claim["status"]) == ("toy_shrinkage/factor", "holds")


def test_the_list_in_json_keeps_its_contract(store):
    rows = json.loads(etude("list", "--json", cwd=store, check=0).stdout)
    row = next(row for row in rows if row["slug"] == "toy_shrinkage")
    assert set(row) == {"slug", "domain", "title", "year", "claims"}
    claim = row["claims"][0]
    assert set(claim) == {"id", "says", "status", "fresh", "n", "effect", "low", "high", "seconds"}
    assert (claim["id"], claim["status"], claim["fresh"], claim["n"]) == ("toy_shrinkage/dominates", "holds", True, 4)
    assert claim["low"] <= claim["effect"] <= claim["high"]
    statuses = {claim["status"] for row in rows for claim in row["claims"]}
    assert statuses <= {"holds", "fails", "undecided", "needs data", "none"}


def test_a_broken_plug_in_is_listed_with_its_error(store):
    done = etude("list", cwd=store, check=0)
    assert "etude_toys.missing" in done.stdout
    assert "cannot be loaded" in one_line(etude("run", "toy_broken", cwd=store))


def test_show_and_search_find_a_paper(store):
    assert "holds +" in etude("show", "toy_shrinkage", cwd=store, check=0).stdout
    rows = json.loads(etude("search", "james stein", "--json", cwd=store, check=0).stdout)
    assert rows[0]["slug"] == "toy_shrinkage"
    assert "no paper matches" in etude("search", "zebra quagga", cwd=store, check=0).stdout


def test_verdicts_recompute_from_the_evidence(store):
    assert "follow from their trials" in etude("verdict", "toy_shrinkage", "--check", cwd=store, check=0).stdout


def test_fresh_seeds_are_judged_and_leave_the_evidence_alone(store):
    before = (store / "runs/evidence/toy_shrinkage.json").read_bytes()
    done = etude(
        "run", "toy_shrinkage/dominates", "--seeds", "100-104", "--store", "runs", "--evidence", "runs/evidence",
        "--engine", "inline", "--json", cwd=store, check=0,
    )  # fmt: skip
    assert json.loads(done.stdout)[0]["seeds"] == [100, 101, 102, 103, 104]
    assert (store / "runs/evidence/toy_shrinkage.json").read_bytes() == before


def test_a_dry_run_tells_trials_and_time_and_runs_nothing(store):
    done = etude(
        "run", "toy_shrinkage/dominates", "--dry-run", "--json", "--seeds", "6", "--store", "runs", cwd=store, check=0
    )
    (row,) = json.loads(done.stdout)
    assert (row["trials"], row["stored"]) == (18, 12)
    assert row["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rnu",), "did you mean run"),
        (("run", "toy_shrinkag"), "did you mean toy_shrinkage"),
        (("run", "toy_shrinkage/dominate"), "did you mean dominates"),
        (("run", "toy_trouble/needs_data@other"), "unknown data set"),
        (("run",), "name at least one paper"),
        (("run", "toy_shrinkage", "--scale", "tiny"), "the scales are smoke, small, medium, full"),
        (("run", "toy_shrinkage/factor", "--scale", "full"), "no"),
        (("run", "toy_shrinkage", "--engine", "cloud"), "the engines are inline, process, ray"),
        (("run", "toy_shrinkage", "--workers", "0"), "at least 1"),
        (("run", "toy_shrinkage", "--seeds", "many"), "'many'"),
        (("run", "toy_shrinkage", "--seeds", "5-1"), "'5-1'"),
        (("run", "toy_shrinkage", "--device", "tpu"), "'tpu'"),
        (("show", "toy"), "unknown paper 'toy'"),
        (("list", "--domain", "thery"), "unknown domain"),
        (("data", "path"), "takes the name"),
        (("data", "path", "coraa"), "coraa"),
        (("report", "--readme", "absent.md"), "absent.md"),
    ],
)
def test_bad_usage_gets_one_line_and_status_2(arguments, message, tmp_path):
    assert message in one_line(etude(*arguments, cwd=tmp_path))


@pytest.mark.parametrize(
    ("claim", "status"),
    [("raises", 3), ("diverges", 3), ("forgets", 3), ("needs_data", 0), ("needs_extra", 2), ("steady --seeds 3", 0)],
)
def test_exit_statuses_tell_errors_from_verdicts(claim, status, tmp_path):
    name, *options = claim.split()
    done = etude(
        "run", f"toy_trouble/{name}", *options, "--engine", "inline", "--no-export", cwd=tmp_path, check=status
    )
    if name == "needs_data":
        assert "place absent.txt" in done.stdout
    if name == "needs_extra":
        assert "pip install 'etude[unobtainium]'" in done.stdout


def test_a_store_held_by_another_run_is_refused(tmp_path):
    from etude.lab.store import Store

    with Store(tmp_path / "runs"):
        line = one_line(etude("run", "toy_shrinkage/positive_part", "--engine", "inline", cwd=tmp_path))
    assert f"held by another run (process {os.getpid()}" in line


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_read_only_place_is_named(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(stat.S_IRUSR | stat.S_IXUSR)
    if os.access(closed, os.W_OK):  # root may write everywhere: a file in the way does the same
        closed.rmdir()
        closed.write_text("")
    line = one_line(
        etude("run", "toy_shrinkage/positive_part", "--engine", "inline", "--store", str(closed / "runs"), cwd=tmp_path)
    )
    assert "cannot write the store" in line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".lock").symlink_to("/dev/full")
    assert "etude: " in one_line(etude("run", "toy_shrinkage/positive_part", "--engine", "inline", cwd=tmp_path))


def test_a_torn_result_is_run_again(tmp_path):
    etude("run", "toy_shrinkage/positive_part", "--engine", "inline", "--no-export", cwd=tmp_path, check=0)
    (result,) = (tmp_path / "runs").glob("**/result.json")
    result.write_text(result.read_text()[:50])
    done = etude("run", "toy_shrinkage/positive_part", "--engine", "inline", "--no-export", cwd=tmp_path, check=0)
    assert "1 trials run, 0 from the store" in done.stdout
    assert "unreadable" in done.stderr


def test_ctrl_c_leaves_a_store_that_goes_on(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "plugin")}
    command = [sys.executable, "-m", "etude", "run", "toy_trouble/steady", "--engine", "inline", "--no-export"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/toy_trouble/**/result.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors
    stored = len(list(tmp_path.glob("runs/toy_trouble/**/result.json")))
    assert 0 < stored < 200
    done = etude("run", "toy_trouble/steady", "--engine", "inline", "--no-export", cwd=tmp_path, check=0)
    assert f"{200 - stored} trials run, {stored} from the store" in done.stdout
