"""`etude report`: the static site and the README's verdict table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from etude.commands.listing import evidence_folders, freshness
from etude.lab.evidence import load_evidence
from etude.lab.registry import load_registry

__all__ = ["readme", "site"]


def _material() -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], dict[str, bool]]:
    """Cards, evidence by slug, and per slug whether all of its evidence was obtained with today's code."""
    cards = load_registry()
    evidence = load_evidence(evidence_folders())
    claims = {claim_id: claim for content in evidence.values() for claim_id, claim in content["claims"].items()}
    fresh = freshness(cards, claims)
    by_slug = {
        slug: all(fresh.get(claim_id, False) for claim_id in content["claims"]) for slug, content in evidence.items()
    }
    return cards, evidence, by_slug


def site(output: Path) -> str:
    """Writes the static site; says where."""
    from etude.lab.run import now
    from etude.report import build_site

    cards, evidence, fresh = _material()
    pages = build_site(output, cards, evidence, fresh, generated=now())
    return f"wrote {len(pages)} files: open {output / 'index.html'}"


def readme(path: Path, *, check: bool) -> str:
    """Writes the verdict table between the README's markers and the page of all claims beside it, or says whether they
    are in step (exit status 1 if not)."""
    from etude.report import claims_page, readme_in_sync, update_readme, verdict_table
    from etude.report.files import replace_file
    from etude.report.readme import CLAIMS

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    material = _material()
    table, page, beside = verdict_table(*material), claims_page(*material), path.parent / CLAIMS
    same = beside.is_file() and beside.read_text(encoding="utf-8") == page
    if check:
        if not (readme_in_sync(path, table) and same):
            typer.echo(f"the verdicts of {path} are out of step: run `etude report --readme {path}`", err=True)
            raise typer.Exit(1)
        return f"the verdicts of {path} and {beside} are in step"
    changed = update_readme(path, table)
    if not same:
        beside.parent.mkdir(parents=True, exist_ok=True)
        replace_file(beside, page.encode())
    return f"{path} and {beside}: {'were in step' if same and not changed else 'updated'}"
