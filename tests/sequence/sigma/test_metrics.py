import numpy as np
import pytest

from etude.sequence.sigma.metrics import (
    command_scores,
    infrawise_scores,
    kql_scores,
    kql_syntax_problem,
    optiflow_scores,
    run_code,
    toy_items,
)


def letters(texts):
    return np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], dtype=float)


def test_commands():
    wanted = ["az vm create --name a", "ls -l 'my file'", "rm x"]
    given = ["az  vm create --name a", 'ls -l "my file"', "mv x y"]
    scores = command_scores(given, wanted, embed=letters, threshold=0.99)
    assert scores["exact"] == pytest.approx(2 / 3)
    assert scores["calibration"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == scores["exact"]
    assert command_scores(given, wanted, embed=letters, same_effect=lambda a, b: True)["accuracy"] == 1
    assert command_scores(["a 'b"], ["a 'b"], embed=letters)["exact"] == 1
    assert command_scores([""], ["a"], embed=letters)["similarity"] == 0
    with pytest.raises(ValueError, match="got 1 and 2"):
        command_scores(["a"], ["a", "b"], embed=letters)


def test_choices_of_hardware():
    wanted = {"baseline": "A", "target": "B", "criterion": "speed", "workload": "bert", "benchmarks": [1, 2]}
    answers = [wanted, {**wanted, "target": "C", "benchmarks": [1, 2, 3]}, {**wanted, "benchmarks": [1]}]
    scores = infrawise_scores(answers, [wanted] * 3)
    assert scores["baseline"] == 1
    assert scores["target"] == scores["dcw"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="answers"):
        infrawise_scores([], [])


def test_plans_count_stage_by_stage():
    block = "Here:\n```python\nprint({})\n```\n"
    answers = ["no code", block.format("1 / 0"), block.format("'x'"), block.format("9"), block.format("3")]
    scores = optiflow_scores(answers, is_valid=lambda plan: plan.strip().isdigit(), latency=float, reference=5)
    assert scores == {"code": 0.8, "executable": 0.6, "valid": 0.4, "improved": 0.2}
    with pytest.raises(ValueError, match="no answers"):
        optiflow_scores([], is_valid=bool, latency=float, reference=1)


def test_programs_have_a_time_limit_and_no_environment():
    assert run_code("while True: pass", seconds=0.2) == (False, "no end within 0.2 s")
    well, said = run_code("import os; print(sorted(os.environ))")
    assert well
    assert "HOME" not in said
    assert run_code("raise SystemExit(3)") == (False, "exit status 3")


def test_queries():
    wanted = "Jobs | where State == 'failed' | summarize count() by Node"
    names = {"table": ["Jobs"], "column": ["State", "Node"], "cluster": [], "database": []}
    same = kql_scores(wanted, wanted, names)
    assert (same.similarity, same.syntax, same.table, same.column, same.cluster) == (1, True, 1, 1, 1)
    other = kql_scores("Jobs | where Zone == 'failed'", wanted, names)
    assert 0 < other.similarity < 1
    assert (other.table, other.column) == (1, 0)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("T | where x == 'a|b(' | take 5", None),
        ("T | where (x > 1", "not closed"),
        ("T | where x > 1)", "closes nothing"),
        ("T | where x == 'a", "quotation"),
        ("| take 5", "no table"),
        ("T | choose x", "no operator"),
        ("T | join (U | where y > 1) on z", None),
    ],
)
def test_syntax_of_queries(query, problem):
    found = kql_syntax_problem(query)
    assert found is None if problem is None else problem in found


def test_toy_items_are_right_by_the_scorers():
    items = toy_items(20, seed=1)
    assert items == toy_items(20, seed=1)
    assert all(kql_syntax_problem(item["query"]) is None for item in items)
    assert all(kql_scores(item["query"], item["query"], item["names"]).column == 1 for item in items)
