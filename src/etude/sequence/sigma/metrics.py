"""Scorers in the manner of AIMicius, the paper's benchmark of tasks around the running of AI systems.

Lin et al., arXiv:2501.13629, section 5 and appendix: commands (CMDGen), choices of hardware and workload (Infrawise),
optimisation plans (Optiflow) and queries in Kusto's language (NL2KQL). The data are not public; `toy_items` makes some
to try the scorers with.
"""

import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "KQLScore",
    "command_scores",
    "infrawise_scores",
    "kql_scores",
    "kql_syntax_problem",
    "optiflow_scores",
    "run_code",
    "toy_items",
]

Embed = Callable[[Sequence[str]], Any]


def _same_command(given: str, wanted: str) -> bool:
    def parts(command: str) -> list[str]:
        try:
            return shlex.split(command)
        except ValueError:  # an open quotation
            return command.split()

    return parts(given) == parts(wanted)


def command_scores(
    given: Sequence[str],
    wanted: Sequence[str],
    *,
    embed: Embed,
    threshold: float | int = 0.95,
    same_effect: Callable[[str, str], bool] | None = None,
) -> dict[str, float]:
    """CMDGen: shares of commands that are right.

    Args:
        given, wanted: commands; they are compared word by word as a shell would split them.
        embed: texts -> vectors (n, d); the paper takes a sentence encoder.
        threshold: cosine from which two commands are alike.
        same_effect: whether two commands do the same when run; by `exact` alone if None.

    Returns:
        exact; similarity, the mean cosine; calibration, the share at or above the threshold; accuracy, exact or of the
        same effect.

    Raises:
        ValueError: if there are none, or not as many as wanted.
    """
    if len(given) != len(wanted) or not wanted:
        raise ValueError(f"need as many commands as wanted, at least one, got {len(given)} and {len(wanted)}")
    exact = np.array([_same_command(a, b) for a, b in zip(given, wanted)])
    one, other = (np.asarray(embed(texts), dtype=np.float64) for texts in (given, wanted))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (one * other).sum(1) / np.where(norms > 0, norms, 1)
    effect = exact if same_effect is None else exact | [same_effect(a, b) for a, b in zip(given, wanted)]
    return {
        "exact": float(exact.mean()),
        "similarity": float(cosine.mean()),
        "calibration": float((cosine >= threshold).mean()),
        "accuracy": float(np.mean(effect)),
    }


_DCW = ("baseline", "target", "criterion", "workload")


def infrawise_scores(given: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Infrawise: shares of answers whose parts are exactly the wanted ones.

    Args:
        given, wanted: answers with the texts `baseline`, `target`, `criterion` and `workload`, and the collection
            `benchmarks` of retrieved results.

    Returns:
        A share for each part; `dcw`, all four; `recall`, all wanted benchmarks retrieved; `accuracy`, these and no
        other.
    """
    if len(given) != len(wanted) or not wanted:
        raise ValueError(f"need as many answers as wanted, at least one, got {len(given)} and {len(wanted)}")
    parts = {key: np.array([a.get(key) == b[key] for a, b in zip(given, wanted)]) for key in _DCW}
    sets = [(set(a.get("benchmarks", ())), set(b["benchmarks"])) for a, b in zip(given, wanted)]
    scores = {key: float(right.mean()) for key, right in parts.items()}
    scores["dcw"] = float(np.logical_and.reduce(list(parts.values())).mean())
    scores["recall"] = float(np.mean([b <= a for a, b in sets]))
    scores["accuracy"] = float(np.mean([a == b for a, b in sets]))
    return scores


_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def run_code(code: str, *, seconds: float | int = 10.0) -> tuple[bool, str]:
    """Runs Python in a process of its own, without site packages or the caller's environment.

    The process is not a sandbox: run what you trust, or run this where nothing can be harmed.

    Returns:
        Whether it ended well in time, and what it printed (or the last line of what went wrong).
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code],
            capture_output=True,
            text=True,
            timeout=seconds,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no end within {seconds:g} s"
    if done.returncode:
        return False, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return True, done.stdout


def optiflow_scores(
    answers: Sequence[str],
    *,
    is_valid: Callable[[str], bool],
    latency: Callable[[str], float],
    reference: float | int,
    seconds: float | int = 10.0,
) -> dict[str, float]:
    """Optiflow: shares of answers that reach each stage; a stage counts only after those before it.

    Args:
        answers: texts with a fenced block of Python that prints a plan.
        is_valid: whether a printed plan is one.
        latency: of a valid plan.
        reference: latency that a plan must beat.
        seconds: that a program may take.

    Returns:
        code, a block was found; executable; valid; improved.
    """
    if not answers:
        raise ValueError("there are no answers to score")
    reached = {"code": 0, "executable": 0, "valid": 0, "improved": 0}
    for answer in answers:
        block = _FENCE.search(answer)
        if block is None:
            continue
        reached["code"] += 1
        well, plan = run_code(block[1], seconds=seconds)
        if not well:
            continue
        reached["executable"] += 1
        if not is_valid(plan):
            continue
        reached["valid"] += 1
        reached["improved"] += latency(plan) < reference
    return {stage: count / len(answers) for stage, count in reached.items()}


@dataclass(frozen=True)
class KQLScore:
    """How near a query is to the wanted one.

    Args:
        similarity: Jaccard index of the sets of tokens.
        syntax: whether no problem was found.
        cluster, database, table, column: share of the wanted names that are there; 1 if none is wanted.
    """

    similarity: float
    syntax: bool
    cluster: float
    database: float
    table: float
    column: float


_TOKEN = re.compile(r"'[^']*'|\"[^\"]*\"|\w+(?:\.\d+)?|[^\w\s]")
_OPERATORS = {
    "count", "distinct", "evaluate", "extend", "facet", "getschema", "join", "limit", "lookup", "make", "mv", "order",
    "parse", "project", "render", "sample", "search", "serialize", "sort", "summarize", "take", "top", "union", "where",
}  # fmt: skip


def kql_syntax_problem(query: str) -> str | None:
    """The first thing wrong with a query, if something is: a light check, not a parser.

    Quotations and brackets must close, and every part after a bar must begin with a known operator.
    """
    bare = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", " x ", query)
    if "'" in bare or '"' in bare:
        return "a quotation does not end"
    pairs, open_ = {")": "(", "]": "[", "}": "{"}, []
    pieces = [""]
    for character in bare:
        if character in "([{":
            open_.append(character)
        elif character in pairs and (not open_ or open_.pop() != pairs[character]):
            return f"{character!r} closes nothing"
        if character == "|" and not open_:
            pieces.append("")
        else:
            pieces[-1] += character
    if open_:
        return f"{open_[-1]!r} is not closed"
    if not pieces[0].strip():
        return "there is no table"
    for piece in pieces[1:]:
        word = re.match(r"\s*(\w+)", piece)
        if word is None or word[1] not in _OPERATORS:
            return f"{piece.strip()[:20]!r} begins with no operator"
    return None


def kql_scores(given: str, wanted: str, names: Mapping[str, Sequence[str]]) -> KQLScore:
    """NL2KQL: a query against the wanted one.

    Args:
        given, wanted: queries.
        names: those that the wanted query uses: of `cluster`, `database`, `table` and `column`.
    """
    one, other = (set(_TOKEN.findall(query)) for query in (given, wanted))
    bare = {token.strip("'\"") for token in one}

    def recall(kind: str) -> float:
        asked = list(names.get(kind, ()))
        return sum(name in bare for name in asked) / len(asked) if asked else 1.0

    return KQLScore(
        similarity=len(one & other) / len(one | other) if one | other else 1.0,
        syntax=kql_syntax_problem(given) is None,
        cluster=recall("cluster"),
        database=recall("database"),
        table=recall("table"),
        column=recall("column"),
    )


def toy_items(n: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """Made-up items to try the scorers with: a request, the wanted command, and the wanted query with its names.

    Args:
        n: how many.
        seed: of the draws.
    """
    rng = random.Random(seed)
    items = []
    for _ in range(n):
        size, region = rng.choice(("ND96", "NC24", "HB120")), rng.choice(("eastus", "westeurope", "japaneast"))
        hours, table = rng.randrange(1, 48), rng.choice(("Jobs", "Nodes", "Events"))
        items.append(
            {
                "request": f"create a {size} machine in {region}",
                "command": f"az vm create --size {size} --location {region}",
                "question": f"how many {table.lower()} failed in the last {hours} hours?",
                "query": f"{table} | where Time > ago({hours}h) and State == 'failed' | summarize count()",
                "names": {"table": [table], "column": ["Time", "State"]},
            }
        )
    return items
