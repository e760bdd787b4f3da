"""The verdict table of the README, between two markers, and the page with every claim that it points to."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.report.catalogue import ClaimLine, PaperLine, catalogue
from etude.report.files import replace_file
from etude.report.formatting import (
    STATUSES,
    arxiv_url,
    finite,
    format_domain,
    format_effect,
    format_seconds,
    format_status,
)

__all__ = ["BEGIN", "END", "claims_page", "readme_in_sync", "update_readme", "verdict_table"]

BEGIN = "<!-- verdicts:begin -->"
END = "<!-- verdicts:end -->"
CLAIMS = "docs/verdicts.md"
"""The page with every claim, from where the README stands."""

_PAPERS = ("| Paper | Year | What it does | Claims | Processor time |", "| --- | --- | --- | --- | --- |")
_CLAIMS = ("| Claim | Verdict | Effect [interval] | n | Processor time |", "| --- | --- | --- | --- | --- |")
_HEAD = """\
# Every claim and its verdict

Obtained at the scale `small`, minutes on two CPU cores. The effect is that of the primary contrast which decides the
verdict, a mean paired difference over n seeds with its 95 % interval; where there are several, their number stands
behind it. Written from `evidence/` by `etude report --readme README.md`; `etude verdict --check` recomputes every row
from its trials, `etude run SLUG` runs them again. Claims that only `full` can decide are left out."""


def verdict_table(
    registry: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Mapping[str, Any]],
    freshness: Mapping[str, bool],
) -> str:
    """A table for each domain with a row for each paper, in GitHub's Markdown: how many of its claims hold, are
    undecided, fail or wait; claims that only `full` can decide are left out."""
    lines: list[str] = []
    for domain, papers in catalogue(registry, evidence, freshness).domains.items():
        lines += ["", f"### {_plain(format_domain(domain))}", "", *_PAPERS, *(_paper_row(paper) for paper in papers)]
    return "\n".join(lines[1:])


def claims_page(
    registry: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Mapping[str, Any]],
    freshness: Mapping[str, bool],
) -> str:
    """A page with a row for each claim of each paper, in GitHub's Markdown."""
    lines = [_HEAD]
    for paper in catalogue(registry, evidence, freshness).papers:
        title, link = _title(paper)
        lines += ["", f'<a id="{paper.slug}"></a>', "", f"## {title}", ""]
        named = f"`{paper.slug}`, {_plain(str(paper.card.get('year') or ''))}"
        lines += [f"{named}, [{link}]({link})" if link else named, "", *_CLAIMS]
        lines += [_claim_row(claim) for claim in paper.claims if claim.awaited]
    return "\n".join(lines) + "\n"


def update_readme(path: Path, table: str) -> bool:
    """Puts `table` between the markers of the file; whether that changed anything.

    Raises:
        ValueError: if the file lacks the markers, or has them twice or in the wrong order.
        OSError: if it cannot be read or written.
    """
    old = path.read_bytes().decode()
    new = _replaced(path, old, table)
    if new == old:
        return False
    replace_file(path, new.encode())
    return True


def readme_in_sync(path: Path, table: str) -> bool:
    """Whether the file holds exactly `table` between its markers.

    Raises:
        ValueError: if the file lacks the markers, or has them twice or in the wrong order.
    """
    text = path.read_bytes().decode()
    return _replaced(path, text, table) == text


def _replaced(path: Path, text: str, table: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path} must hold {BEGIN} and after it {END}, each once")
    newline = "\r\n" if "\r\n" in text else "\n"
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    return newline.join([head, "", *table.splitlines(), "", tail])


def _title(paper: PaperLine) -> tuple[str, str]:
    return _plain(str(paper.card.get("title") or paper.slug)), arxiv_url(paper.card.get("arxiv"))


def _paper_row(paper: PaperLine) -> str:
    title, link = _title(paper)
    claims = [claim for claim in paper.claims if claim.awaited]
    counts = {status: sum(claim.status == status for claim in claims) for status in STATUSES}
    found = [f"{STATUSES[status]} {count}" for status, count in counts.items() if count and status != "none"]
    stale = " (stale)" if any(claim.status != "none" and not claim.fresh for claim in claims) else ""
    cells = [
        f"[{title}]({link})" if link else title,
        _plain(str(paper.card.get("year") or "")),
        _plain(str(paper.card.get("summary") or "")),
        f"[{' · '.join(found)}]({CLAIMS}#{paper.slug}){stale}" if found else "not run",
        format_seconds(paper.seconds),
    ]
    return f"| {' | '.join(cells)} |"


def _claim_row(claim: ClaimLine) -> str:
    contrast = claim.contrast
    effect = format_effect(*(finite(contrast.get(name)) for name in ("effect", "low", "high")))
    if len(claim.primaries) > 1 and contrast:
        effect += f" (1 of {len(claim.primaries)})"
    cells = [
        _plain(f"{claim.says} ({claim.data})" if claim.data else claim.says),
        format_status(claim.status, claim.fresh),
        effect,
        _plain(str(contrast.get("n", "–"))),
        format_seconds(claim.seconds),
    ]
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """`text` on one line, with everything escaped that Markdown or HTML would act upon."""
    escaped = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
