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
    """Writes the verdict table between the README's markers, or says whether it is in step (exit status 1 if not)."""
    from etude.report import readme_in_sync, update_readme, verdict_table

    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    table = verdict_table(*_material())
    if check:
        if not readme_in_sync(path, table):
            typer.echo(f"the verdict table of {path} is out of step: run `etude report --readme {path}`", err=True)
            raise typer.Exit(1)
        return f"the verdict table of {path} is in step"
    return f"{path}: {'updated' if update_readme(path, table) else 'was in step'}"
