"""Which papers there are: ours from `registry.json`, others' from the entry-point group `etude.papers`.

`registry.json` is generated from the claims files, so that listing and searching import no torch.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from etude.lab.fingerprint import own_package
from etude.lab.paper import Paper
from etude.lab.worker import load_paper

__all__ = ["UnknownName", "build_registry", "card", "load_registry", "registry_file", "resolve"]

_log = logging.getLogger(__name__)
ENTRY_POINTS = "etude.papers"


class UnknownName(ValueError):
    """No paper, claim or data set of that name; the message offers the nearest."""


def registry_file() -> Path:
    return Path(__file__).resolve().parents[1] / "registry.json"


def card(paper: Paper, module: str) -> dict[str, Any]:
    """A paper as plain data: its card, and a row for each claim id."""
    claims = [
        {
            "id": claim_id, "name": claim.name, "data": data, "says": claim.says, "kind": claim.kind,
            "version": claim.version,
            "scales": [scale for scale in claim.setups if data is None or claim.data[data].serves(scale)],
            "superiority": sum(
                contrast.role == "primary" and contrast.kind in ("higher", "lower", "interaction")
                for contrast in claim.contrasts
            ),
        }
        for claim_id, claim, data in paper.claim_ids()
    ]  # fmt: skip
    return {
        "slug": paper.slug, "domain": paper.domain, "title": paper.title, "authors": paper.authors, "year": paper.year,
        "arxiv": paper.arxiv, "venue": paper.venue, "summary": paper.summary, "methods": list(paper.methods),
        "usage": paper.usage, "notes": paper.notes, "code": paper.code, "extra": paper.extra, "module": module,
        "claims": claims,
    }  # fmt: skip


def build_registry(package: str = "etude.claims") -> list[dict[str, Any]]:
    """The cards of all papers under `package`, by domain and slug.

    Raises:
        ValueError: if a claims file bears another name than its slug, or two papers have one slug.
    """
    cards: dict[str, dict[str, Any]] = {}
    root = importlib.import_module(package)
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        if info.ispkg:
            continue
        paper = load_paper(info.name)
        if info.name != f"{package}.{paper.domain}.{paper.slug}":
            raise ValueError(f"{info.name} holds {paper.domain}/{paper.slug}; the names must agree")
        if paper.slug in cards:
            raise ValueError(f"two papers are named {paper.slug}")
        cards[paper.slug] = card(paper, info.name)
    return sorted(cards.values(), key=lambda row: (row["domain"], row["slug"]))


def load_registry(*, plugins: bool = True) -> list[dict[str, Any]]:
    """All cards. A plug-in that cannot be loaded has `error` in its card; it harms nothing else."""
    path = registry_file()
    cards = json.loads(path.read_text(encoding="utf-8"))["papers"] if path.is_file() else []
    if plugins:
        taken = {row["slug"]: row["module"] for row in cards}
        for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
            row = _plugin(point.name, point.value)
            if point.name in taken:
                row = _broken(point.name, point.value, f"{point.value} has the slug of {taken[point.name]}")
            taken.setdefault(point.name, point.value)
            cards.append(row)
    return cards


def _plugin(slug: str, module: str) -> dict[str, Any]:
    own_package(module)
    try:
        paper = load_paper(module)
        if paper.slug != slug:
            raise ValueError(f"the entry point is named {slug}, the paper {paper.slug}")
        return card(paper, module)
    except (Exception, SystemExit) as error:  # someone else's code: whatever it raises is told, not passed on
        return _broken(slug, module, f"{type(error).__name__}: {error}")


def _broken(slug: str, module: str, error: str) -> dict[str, Any]:
    _log.info("plug-in %s (%s): %s", slug, module, error)
    return {
        "slug": slug, "domain": "plugin", "title": slug, "authors": "", "year": 0, "arxiv": "", "venue": "",
        "summary": "", "methods": [], "usage": "", "notes": "", "code": "", "extra": "", "module": module,
        "claims": [], "error": error,
    }  # fmt: skip


def resolve(names: list[str], cards: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str | None, str | None]]:
    """(card, claim name, data set) of each `slug`, `slug/claim` or `slug/claim@data`; `all` is every paper.

    Raises:
        UnknownName: for a name that there is not, with the nearest names; or for a plug-in that is broken.
    """
    by_slug = {row["slug"]: row for row in reversed(cards)}  # of two with one slug, the first has it
    for slug in {name.partition("/")[0] for name in names} - set(by_slug) - {"all"}:
        found = _unregistered(slug)
        if found is not None:
            by_slug[slug] = found
    chosen: list[tuple[dict[str, Any], str | None, str | None]] = []
    for name in names:
        if name == "all":
            chosen.extend((row, None, None) for row in cards if "error" not in row)
            continue
        slug, _, rest = name.partition("/")
        claim, _, data = rest.partition("@")
        if slug not in by_slug:
            raise UnknownName(_unknown("paper", slug, list(by_slug)))
        row = by_slug[slug]
        if "error" in row:
            raise UnknownName(f"the paper {slug} cannot be loaded: {row['error']}")
        claims = {entry["name"] for entry in row["claims"]}
        if claim and claim not in claims:  # perhaps newer than the registry
            row = card(load_paper(row["module"]), row["module"])
            claims = {entry["name"] for entry in row["claims"]}
        if claim and claim not in claims:
            raise UnknownName(_unknown(f"claim of {slug}", claim, sorted(claims)))
        sets = {entry["data"] for entry in row["claims"] if entry["name"] == claim and entry["data"]}
        if data and data not in sets:
            raise UnknownName(_unknown(f"data set of {slug}/{claim}", data, sorted(sets)))
        chosen.append((row, claim or None, data or None))
    return chosen


def _unregistered(slug: str) -> dict[str, Any] | None:
    """The card of a claims file that is not in the registry yet."""
    root = Path(__file__).resolve().parents[1]
    for path in root.glob(f"claims/*/{slug}.py"):
        module = f"etude.claims.{path.parent.name}.{slug}"
        return card(load_paper(module), module)
    return None


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known[:12]) or 'none'}"
    return f"unknown {what} {name!r}; {hint}"
