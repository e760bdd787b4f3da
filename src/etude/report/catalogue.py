"""What the index, the README and the terminal say about every paper: one line a claim, and the totals.

Reads cards and evidence, never a series, a trial or a figure: these are many, and no summary needs them.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from etude.lab.contrast import transformed
from etude.lab.statistics import benjamini_hochberg, expected_false_holds
from etude.lab.verdict import deciding
from etude.report.formatting import STATUSES, finite

__all__ = ["Catalogue", "ClaimLine", "PaperLine", "anchors", "catalogue", "reference", "zone"]

SUPERIORITY = ("higher", "lower", "interaction")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class ClaimLine:
    """A claim of a card with the verdict of its evidence, if there is any."""

    id: str
    anchor: str
    says: str
    status: str
    reason: str
    stale: str
    scale: str
    seconds: float | None
    primaries: tuple[Mapping[str, Any], ...]
    scales: tuple[str, ...] = ("small",)
    p: float | None = None
    q: float | None = None

    @property
    def fresh(self) -> bool:
        """Whether the evidence is that of today's code; `stale` says why not."""
        return not self.stale

    @property
    def awaited(self) -> bool:
        """Whether evidence is there or can be made without a cluster; other claims wait for a run at full."""
        return self.status != "none" or bool({"small", "medium"} & set(self.scales))

    @property
    def data(self) -> str:
        """The data set of a claim that runs on several; empty otherwise."""
        return self.id.partition("@")[2]

    @property
    def contrast(self) -> Mapping[str, Any]:
        """The primary contrast that decides the verdict; empty without one."""
        return deciding(self.primaries, self.status)

    @property
    def reference(self) -> float:
        """The value around which the bar of that contrast is drawn."""
        return reference(self.contrast)


@dataclass(frozen=True)
class PaperLine:
    """A card with its claims."""

    card: Mapping[str, Any]
    claims: tuple[ClaimLine, ...] = ()
    fresh: bool = False
    seconds: float | None = None
    exported: str = ""

    @property
    def slug(self) -> str:
        return str(self.card.get("slug") or "")

    @property
    def error(self) -> str:
        """Why the paper could not be loaded; empty if it was."""
        return str(self.card.get("error") or "")


@dataclass(frozen=True)
class Catalogue:
    """All papers by domain, and what they add up to."""

    domains: Mapping[str, tuple[PaperLine, ...]]
    counts: Mapping[str, int] = field(default_factory=dict)
    claims: int = 0
    stale: int = 0
    superiority: int = 0
    seconds: float = 0.0
    orphans: tuple[str, ...] = ()

    @property
    def papers(self) -> tuple[PaperLine, ...]:
        return tuple(paper for papers in self.domains.values() for paper in papers)

    @property
    def false_holds(self) -> float:
        """How many superiority contrasts would come out as `holds` if no method had any effect."""
        return expected_false_holds(self.superiority)


def catalogue(
    registry: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Mapping[str, Any]],
    freshness: Mapping[str, bool],
) -> Catalogue:
    """Joins cards and evidence.

    Evidence whose freshness is not given counts as stale, and so does a claim whose card has moved on to another
    version. A claim's p is the largest of its primary contrasts (all of them must hold); its q is Benjamini and
    Hochberg's over all claims that have a p.

    A card with an `error` (a plug-in that cannot be loaded) is listed without claims, whatever its slug.

    Raises:
        ValueError: if a card has no usable slug, or two cards share one.
    """
    papers: list[PaperLine] = []
    taken: set[str] = set()
    for card in registry:
        slug = str(card.get("slug") or "")
        if card.get("error"):
            papers.append(PaperLine(card))
            continue
        if not _SLUG.fullmatch(slug):
            raise ValueError(f"slug must be letters, digits, underscores and hyphens, got {slug!r}")
        if slug.lower() in taken:
            raise ValueError(f"two cards share the slug {slug!r}")
        taken.add(slug.lower())
        papers.append(_paper_line(card, evidence.get(slug), freshness.get(slug, False)))
    papers = _with_q(papers)
    domains: dict[str, list[PaperLine]] = {}
    for paper in sorted(papers, key=lambda paper: (str(paper.card.get("domain") or "other"), paper.slug)):
        domains.setdefault(str(paper.card.get("domain") or "other"), []).append(paper)
    claims = [claim for paper in papers for claim in paper.claims]
    known = {paper.slug for paper in papers}
    return Catalogue(
        domains={domain: tuple(lines) for domain, lines in domains.items()},
        counts=_counts(claims),
        claims=len(claims),
        stale=sum(not claim.fresh for claim in claims),
        superiority=sum(contrast.get("kind") in SUPERIORITY for claim in claims for contrast in claim.primaries),
        seconds=math.fsum(paper.seconds or 0.0 for paper in papers),
        orphans=tuple(sorted(slug for slug in evidence if slug not in known)),
    )


def zone(contrast: Mapping[str, Any]) -> tuple[float | None, float | None] | None:
    """Where the whole interval of a contrast must lie for it to hold; None where its kind has no such range."""
    spec: Mapping[str, Any] = contrast.get("spec") or {}
    margin = finite(contrast.get("margin"))
    if margin is None:
        margin = finite(spec.get("margin")) or 0.0
    match contrast.get("kind"):
        case "higher" | "lower" | "interaction":
            return (margin, None)
        case "shape":
            return (0.0, None)
        case "not_worse" | "efficient":
            return (-margin, None)
        case "equivalent":
            return (-margin, margin)
        case "identity":
            tolerance = finite(spec.get("tolerance")) or 0.0
            return (-tolerance, tolerance)
        case "threshold":
            ends = (finite(spec.get("above")), finite(spec.get("below")))
            scale = str(spec.get("transform") or "none")
            low, high = (None if end is None else finite(transformed(end, scale)) for end in ends)
            return (low, high)
        case "trend":
            low, high = spec.get("slope") or (None, None)
            return (finite(low), finite(high))
        case _:
            return None


def reference(contrast: Mapping[str, Any]) -> float:
    """Where the solid line of a contrast's chart stands: at zero, for a threshold at its value."""
    edges = zone(contrast) if contrast.get("kind") == "threshold" else None
    return next((edge for edge in edges or () if edge is not None), 0.0)


def anchors(slug: str, ids: Iterable[str]) -> dict[str, str]:
    """A fragment for each claim id, unique on the paper's page: `dagnn/depth@cora` becomes `depth-cora`."""
    taken: dict[str, str] = {}
    for claim_id in ids:
        name = claim_id.removeprefix(f"{slug}/")
        plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-")
        anchor = plain or "claim"
        while anchor in taken.values():
            anchor += "-"
        taken[claim_id] = anchor
    return taken


def _paper_line(card: Mapping[str, Any], evidence: Mapping[str, Any] | None, fresh: bool) -> PaperLine:
    stored: Mapping[str, Any] = (evidence or {}).get("claims") or {}
    declared = {str(claim["id"]): claim for claim in card.get("claims") or ()}
    names = anchors(str(card.get("slug")), [*declared, *(claim_id for claim_id in stored if claim_id not in declared)])
    claims = []
    for claim_id, anchor in names.items():
        claim, record = declared.get(claim_id), stored.get(claim_id) or {}
        contrasts = tuple(one for one in record.get("contrasts") or () if one.get("role", "primary") == "primary")
        status = str(record.get("status") or "none")
        claims.append(
            ClaimLine(
                id=claim_id,
                anchor=anchor,
                says=str((claim or record).get("says") or claim_id),
                status=status if status in STATUSES else "none",
                reason=str(record.get("reason") or ""),
                stale=_stale(claim, record, fresh),
                scale=str(record.get("scale") or ""),
                seconds=_seconds(record.get("cost") or {}),
                primaries=contrasts,
                scales=tuple((claim or {}).get("scales") or ("small",)),
                p=_largest_p(contrasts),
            )
        )
    return PaperLine(
        card=card,
        claims=tuple(claims),
        fresh=bool(stored) and all(claim.fresh for claim in claims),
        seconds=_seconds((evidence or {}).get("cost") or {}),
        exported=str((evidence or {}).get("exported") or ""),
    )


def _stale(claim: Mapping[str, Any] | None, record: Mapping[str, Any], fresh: bool) -> str:
    """Why the record of a claim is not evidence for today's code; empty if it is, or if there is none."""
    if not record:
        return ""
    if claim is None:
        return "The paper no longer makes this claim."
    today, then = claim.get("version", 1), record.get("version", 1)
    if today != then:
        return f"The claim's protocol is at version {today}; this evidence is of version {then}."
    return "" if fresh else "The code has changed since this evidence was made."


def _seconds(cost: Mapping[str, Any]) -> float | None:
    """Processor seconds of a claim, its tuning included; the wall clock where only that is known."""
    processor = finite(cost.get("cpu_seconds"))
    if processor is not None:
        return processor
    seconds = finite(cost.get("seconds"))
    return None if seconds is None else seconds + (finite(cost.get("tuning_seconds")) or 0.0)


def _largest_p(contrasts: Sequence[Mapping[str, Any]]) -> float | None:
    values = [finite(contrast.get("p")) for contrast in contrasts if contrast.get("kind") != "identity"]
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def _with_q(papers: list[PaperLine]) -> list[PaperLine]:
    """The papers with the q of every claim that has a p."""
    values = [claim.p for paper in papers for claim in paper.claims if claim.p is not None]
    adjusted = iter(benjamini_hochberg(values) if values else ())
    return [
        replace(
            paper,
            claims=tuple(claim if claim.p is None else replace(claim, q=next(adjusted)) for claim in paper.claims),
        )
        for paper in papers
    ]


def _counts(claims: Iterable[ClaimLine]) -> dict[str, int]:
    found = dict.fromkeys(STATUSES, 0)
    for claim in claims:
        found[claim.status] += 1
    return {status: count for status, count in found.items() if count}
