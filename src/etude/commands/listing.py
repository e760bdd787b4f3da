"""`etude list`, `show` and `search`: from the registry and the evidence's index; imports no torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etude.lab.evidence import evidence_folder, summary
from etude.lab.fingerprint import cached_fingerprints
from etude.lab.registry import load_registry, resolve

__all__ = ["detail", "detail_text", "evidence_folders", "find", "freshness", "rows", "text"]

_SIGNS = {"holds": "+", "fails": "-", "undecided": "?", "needs data": "o", "none": "."}


def evidence_folders() -> list[Path]:
    """Where evidence is looked for: what the user's own runs left comes before what was installed."""
    return [
        path for path in (Path(os.environ.get("ETUDE_STORE", "runs")) / "evidence", evidence_folder()) if path.is_dir()
    ]


def cache_file() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache")
    return base / "etude" / "fingerprints.json"


def freshness(cards: Sequence[dict[str, Any]], evidence: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """claim id -> whether its evidence was obtained with today's code, for claims that have evidence."""
    wanted = {
        claim["id"]: (card["module"].partition(":")[0], claim["name"])
        for card in cards
        for claim in card["claims"]
        if claim["id"] in evidence
    }
    prints = cached_fingerprints(sorted(set(wanted.values())), cache_file())
    versions = {claim["id"]: claim["version"] for card in cards for claim in card["claims"]}
    return {
        claim_id: evidence[claim_id]["fingerprint"] == prints[key]
        and evidence[claim_id]["version"] == versions[claim_id]
        for claim_id, key in wanted.items()
    }


def rows(domain: str | None = None) -> list[dict[str, Any]]:
    """The papers with their claims' verdicts at small, as `etude list --json` prints them."""
    cards = [card for card in load_registry() if domain in (None, card["domain"])]
    if domain is not None and not cards:
        from etude.commands.parsing import BadUsage

        known = sorted({card["domain"] for card in load_registry()})
        raise BadUsage(f"unknown domain {domain!r}; the domains are {', '.join(known)}")
    evidence = summary(evidence_folders())
    fresh = freshness(cards, evidence)
    return [_row(card, evidence, fresh) for card in cards]


def _row(card: dict[str, Any], evidence: dict[str, dict[str, Any]], fresh: dict[str, bool]) -> dict[str, Any]:
    claims = []
    for claim in card["claims"]:
        known = evidence.get(claim["id"], {})
        status = known.get("status", "none")
        claims.append(
            {
                "id": claim["id"], "says": claim["says"],
                "status": status if status in _SIGNS else "none",
                "fresh": fresh.get(claim["id"], False),
                **{key: known.get(key) for key in ("n", "effect", "low", "high", "seconds")},
            }
        )  # fmt: skip
    row = {
        "slug": card["slug"],
        "domain": card["domain"],
        "title": card["title"],
        "year": card["year"],
        "claims": claims,
    }
    return row | ({"error": card["error"]} if "error" in card else {})


def text(papers: list[dict[str, Any]]) -> str:
    """The rows for a terminal."""
    lines = []
    for domain in dict.fromkeys(paper["domain"] for paper in papers):
        lines.append(f"{domain}")
        for paper in (entry for entry in papers if entry["domain"] == domain):
            lines.append(f"  {paper['slug']:<24} {paper['title']} ({paper['year']})")
            if "error" in paper:
                lines.append(f"      cannot be loaded: {paper['error']}")
            for claim in paper["claims"]:
                stale = "" if claim["fresh"] or claim["status"] == "none" else ", stale"
                name = claim["id"].partition("/")[2]
                lines.append(
                    f"    {_SIGNS[claim['status']]} {claim['status'] + stale:<18} {name:<36}{_interval(claim)}"
                )
    return "\n".join(lines) + ("\n" if lines else "no paper matches\n")


def _interval(claim: dict[str, Any]) -> str:
    if claim["effect"] is None:
        return ""
    return f" {claim['effect']:+.3g} [{claim['low']:+.3g}, {claim['high']:+.3g}], n = {claim['n']}"


def detail(slug: str) -> dict[str, Any]:
    """A paper's card with the verdict of each claim."""
    cards = load_registry()
    card, _, _ = resolve([slug.partition("/")[0]], cards)[0]
    evidence = summary(evidence_folders())
    fresh = freshness([card], evidence)
    verdicts = {claim["id"]: claim for claim in _row(card, evidence, fresh)["claims"]}
    claims = [claim | verdicts[claim["id"]] for claim in card["claims"]]
    return {**card, "claims": claims}


def detail_text(card: dict[str, Any]) -> str:
    """A paper's card for a terminal."""
    reference = ", ".join(
        filter(None, [card["authors"], card["venue"], f"arXiv:{card['arxiv']}" if card["arxiv"] else ""])
    )
    lines = [f"{card['title']} ({card['year']})", reference, "", card["summary"], ""]
    if card["usage"]:
        lines += ["Use it:", *(f"    {line}" for line in card["usage"].strip().splitlines()), ""]
    if card["notes"]:
        lines += [card["notes"], ""]
    lines.append("Claims:")
    for claim in card["claims"]:
        stale = "" if claim["fresh"] or claim["status"] == "none" else " (stale: the code has changed since)"
        lines.append(f"  {claim['id']}: {claim['says']}")
        lines.append(f"      {claim['status']}{_interval(claim)}{stale}")
    lines += ["", f"Run it: etude run {card['slug']}"]
    return "\n".join(lines)


def find(query: str) -> list[dict[str, Any]]:
    """Papers that answer the query, best first: by the project's own ranker, by word search where its extra is missing.

    A paper in which every word occurs stands before those that are only related.
    """
    from etude.ranking.neural_ranking.cards import rank_papers

    listed = {row["slug"]: row for row in reversed(rows())}
    return [listed[slug] for slug in rank_papers(query, load_registry()) if slug in listed]
