"""`etude new` writes files that say what to do; `etude audit` tells how often verdicts err."""

import json
import os
import subprocess
import sys
from math import comb

import pytest
from typer.testing import CliRunner

from etude.cli import app
from etude.commands import auditing, creating
from etude.commands.parsing import BadUsage
from etude.lab.task import Outcome


def etude(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """An empty checkout with one room."""
    (tmp_path / "src/etude/claims/vision").mkdir(parents=True)
    (tmp_path / "src/etude/claims/vision/__init__.py").write_text("")
    (tmp_path / "src/etude/vision").mkdir()
    monkeypatch.setattr(creating, "checkout", lambda: tmp_path)
    return tmp_path


def written(folder):
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "__init__.py"
    }


def test_new_writes_method_claims_and_tests_and_says_what_comes_next(tree):
    done = etude("new", "my_net", "--domain", "vision")
    assert done.exit_code == 0, done.output
    assert written(tree) == {
        "src/etude/vision/my_net.py", "src/etude/claims/vision/my_net.py", "tests/vision/test_my_net.py",
    }  # fmt: skip
    assert "What to do next:" in done.output
    assert "etude run my_net --scale smoke" in done.output
    assert "class MyNet(nn.Module)" in (tree / "src/etude/vision/my_net.py").read_text()


@pytest.mark.parametrize("folder", ["src/etude/vision", "src/etude/claims/vision", "tests/vision"])
def test_new_writes_nothing_where_a_file_stands(tree, folder):
    name = "test_my_net.py" if folder.startswith("tests") else "my_net.py"
    (tree / folder).mkdir(parents=True, exist_ok=True)
    (tree / folder / name).write_text("mine")
    done = etude("new", "my_net", "--domain", "vision")
    assert done.exit_code == 2
    assert "exists already; nothing was written" in done.stderr
    assert written(tree) == {f"{folder}/{name}"}
    assert (tree / folder / name).read_text() == "mine"


def test_new_sees_that_the_method_is_a_package(tree):
    (tree / "src/etude/vision/my_net").mkdir()
    with pytest.raises(BadUsage, match="exists already"):
        creating.create("my_net", "vision", None)


@pytest.mark.parametrize(
    ("slug", "domain", "message"),
    [
        ("My-Net", "vision", "got 'My-Net'"),
        ("../my_net", "vision", "got '../my_net'"),
        ("2net", "vision", "got '2net'"),
        ("class", "vision", "got 'class'"),
        ("", "vision", "got ''"),
        ("my_net", "visoin", "unknown domain 'visoin'; the domains are vision"),
        ("my_net", "../vision", "got '../vision'"),
        ("toy_descent", "vision", "the slug toy_descent is taken by etude_toys.descent:PAPER"),
        ("toy_broken", "vision", "is taken by etude_toys.missing:PAPER"),
    ],
)
def test_new_refuses_bad_names_with_one_line(tree, slug, domain, message):
    done = etude("new", slug, "--domain", domain)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert message in line
    assert not written(tree)


def test_outside_a_checkout_new_says_what_it_can_do(monkeypatch, tmp_path):
    monkeypatch.setattr(creating, "__file__", str(tmp_path / "a/b/c/d.py"))
    with pytest.raises(FileNotFoundError, match="with --output FOLDER it writes a plug-in"):
        creating.create("my_net", "vision", None)


def test_a_new_plug_in_runs_at_smoke_and_its_tests_fail_until_written(tmp_path):
    done = etude("new", "my_net", "--domain", "vision", "--output", str(tmp_path))
    assert done.exit_code == 0, done.output
    # What an installation does: the package on the path, and its entry point beside it.
    info = tmp_path / "src" / "etude_my_net-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: etude-my-net\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[etude.papers]\nmy_net = etude_my_net.claims:PAPER\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    code = (
        "import sys, pytest\nfrom etude.cli import app\n"
        "app(['run', 'my_net', '--scale', 'smoke', '--engine', 'inline'], standalone_mode=False)\n"
        "sys.exit(pytest.main(['tests', '-p', 'no:cacheprovider', '--tb=line', '-q']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 trials run" in done.stdout
    assert "4 failed, 1 passed" in done.stdout
    for expected in (
        "write the equations",
        "which value of which argument",
        "does this reach",
        "the summary must be a sentence",
    ):
        assert expected in done.stdout
    (project,) = tmp_path.glob("pyproject.toml")
    assert 'my_net = "etude_my_net.claims:PAPER"' in project.read_text()


def test_the_files_of_a_new_paper_keep_the_house_rules(tree):
    etude("new", "my_net", "--domain", "vision")
    ruff = [sys.executable, "-m", "ruff"]
    files = [str(tree / name) for name in written(tree)]
    options = ["--config", str(creating.Path(__file__).parents[1] / "pyproject.toml"), "--no-cache"]
    for command in (["check", *options], ["format", "--check", *options]):
        done = subprocess.run([*ruff, *command, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_audit_prints_a_line_for_each_check_and_passes():
    done = etude("audit", "--claims", "60")
    assert done.exit_code == 0, done.output
    for check in ("null", "power", "coverage", "looks", "mirror", "units"):
        assert f"{check:<10} passed" in done.output
    assert "all checks passed" in done.output


def test_audit_in_json_is_json_alone():
    report = json.loads(etude("audit", "--claims", "40", "--json").stdout)
    assert report["claims"] == 40
    assert set(report["checks"]) == {"null", "power", "coverage", "looks", "mirror", "units"}


def test_audit_tells_a_check_that_does_not_pass(monkeypatch):
    monkeypatch.setattr("etude.lab.statistics._t_quantile", lambda df, level: 1.96)
    done = etude("audit", "--claims", "100")
    assert done.exit_code == 1
    assert "null       NOT PASSED" in done.output
    assert "not all checks passed" in done.output


def inline(monkeypatch):
    from etude.lab.engine.inline import InlineEngine

    monkeypatch.setattr(auditing, "make_engine", lambda name, workers: InlineEngine())


def test_real_baselines_against_themselves_are_undecided(monkeypatch):
    inline(monkeypatch)
    done = etude("audit", "toy_shrinkage", "--scale", "small", "--seeds", "8", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert [(row["id"], row["arm"], row["status"]) for row in report["claims"]] == [
        ("toy_shrinkage/dominates", "observation", "undecided"), ("toy_shrinkage/factor", "one", "undecided"),
    ]  # fmt: skip
    assert all(row["n"] == 8 and row["low"] < 0 < row["high"] for row in report["claims"])
    assert (report["decided"], report["expected"]) == (0, 0.1)


def test_the_audit_of_baselines_reads_as_a_table_and_names_what_failed(monkeypatch):
    inline(monkeypatch)
    done = etude("audit", "toy_trouble/raises", "toy_trouble/needs_data", "toy_trouble/steady", "--seeds", "3")
    assert done.exit_code == 3, done.output
    rows = {line[:11].strip(): line for line in done.output.splitlines() if "toy_trouble" in line}
    assert "ArithmeticError" in rows["failed"]
    assert "place absent.txt" in rows["needs data"]
    assert "toy_trouble/steady" in rows["undecided"]


def test_more_decisions_than_chance_gives_fail_the_audit(monkeypatch):
    class Biased:
        """Gives the first half of the seeds a better score: what a verdict without pairing might do."""

        name, workers = "biased", 1

        def __init__(self):
            self.tasks = []

        @property
        def free(self):
            return 1 - len(self.tasks)

        def submit(self, task):
            self.tasks.append(task)

        def poll(self, timeout):
            task = self.tasks.pop()
            score = task.seed / 1000 + (task.seed < 3)
            yield auditing.Done(task, Outcome("done", metrics={"score": score, "error": score}))

        def close(self): ...

    monkeypatch.setattr(auditing, "make_engine", lambda name, workers: Biased())
    names = [f"toy_trouble/{name}" for name in ("raises", "diverges", "steady", "hangs", "forgets")]
    done = etude("audit", *names, "--seeds", "3")
    assert done.exit_code == 1, done.output
    assert "5 decided, 0.25 expected, at most 3 allowed: more than chance gives" in done.output


@pytest.mark.parametrize("claims", [1, 5, 20, 60])
def test_as_many_decisions_are_allowed_as_chance_exceeds_once_in_a_thousand_audits(claims):
    def exceeded(most):
        return sum(comb(claims, k) * 0.05**k * 0.95 ** (claims - k) for k in range(most + 1, claims + 1))

    most = auditing._most(claims)
    assert exceeded(most) <= 1e-3 < exceeded(most - 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--claims", "0"), "--claims must be at least 1, got 0"),
        (("toy_shrinkage", "--scale", "tiny"), "unknown scale 'tiny'"),
        (("toy_shrinkage", "--seeds", "2"), "--seeds must lie in 3..500, got 2"),
        (("toy_shrinkage/positive_part",), "sets an arm against a baseline"),
        (("toy_shrinkag",), "did you mean toy_shrinkage"),
    ],
)
def test_audit_refuses_what_makes_no_sense_with_one_line(arguments, message):
    done = etude("audit", *arguments)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert message in line
