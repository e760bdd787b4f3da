"""`etude verdict`: the committed verdicts, and whether they follow from their trials."""

from __future__ import annotations

import json
from typing import Any

from etude.commands.listing import evidence_folders
from etude.lab.evidence import check as check_evidence
from etude.lab.evidence import load_evidence
from etude.lab.registry import load_registry, resolve

__all__ = ["check", "table"]


def _chosen(names: list[str]) -> dict[str, dict[str, Any]]:
    evidence = load_evidence(evidence_folders())
    if not names:
        return evidence
    slugs = {card["slug"] for card, _, _ in resolve(names, load_registry())}
    return {slug: content for slug, content in evidence.items() if slug in slugs}


def check(names: list[str], as_json: bool) -> tuple[str, int]:
    """Recomputes every committed verdict; exit status 1 if one disagrees."""
    problems: list[str] = []
    claims = 0
    for content in _chosen(names).values():
        claims += len(content["claims"])
        problems.extend(check_evidence(content))
    if as_json:
        return json.dumps({"claims": claims, "problems": problems}, indent=1), int(bool(problems))
    if problems:
        return "\n".join(problems), 1
    return f"{claims} committed verdicts follow from their trials", 0


def table(names: list[str], as_json: bool) -> tuple[str, int]:
    """The committed verdicts, a line each."""
    rows = [
        {"id": claim_id, "status": claim["status"], "reason": claim["reason"]}
        for content in _chosen(names).values()
        for claim_id, claim in content["claims"].items()
    ]
    if as_json:
        return json.dumps(rows, indent=1), 0
    return "\n".join(f"{row['status']:<12} {row['id']}" for row in rows) or "no evidence", 0
