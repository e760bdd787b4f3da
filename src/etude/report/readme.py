"""The verdict table of the README, between two markers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.report.catalogue import ClaimLine, PaperLine, catalogue
from etude.report.files import replace_file
from etude.report.formatting import arxiv_url, finite, format_effect, format_seconds, format_status

__all__ = ["BEGIN", "END", "readme_in_sync", "update_readme", "verdict_table"]

BEGIN = "<!-- verdicts:begin -->"
END = "<!-- verdicts:end -->"
HEADER = (
    "| Paper | Year | Claim | Verdict | Effect [interval] | n | Processor time |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def verdict_table(
    registry: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Mapping[str, Any]],
    freshness: Mapping[str, bool],
) -> str:
    """A row for each claim of each paper, in GitHub's Markdown; claims that only `full` can decide are left out.

    The effect is that of the primary contrast that decides the verdict; where there are several, their number
    stands behind it.
    """
    papers = catalogue(registry, evidence, freshness).papers
    rows = [_row(paper, claim) for paper in papers for claim in paper.claims if claim.awaited]
    return "\n".join([*HEADER, *rows])


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


def _row(paper: PaperLine, claim: ClaimLine) -> str:
    contrast = claim.contrast
    effect = format_effect(*(finite(contrast.get(name)) for name in ("effect", "low", "high")))
    if len(claim.primaries) > 1 and contrast:
        effect += f" (1 of {len(claim.primaries)})"
    title, link = _plain(str(paper.card.get("title") or paper.slug)), arxiv_url(paper.card.get("arxiv"))
    cells = [
        f"[{title}]({link})" if link else title,
        _plain(str(paper.card.get("year") or "")),
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
