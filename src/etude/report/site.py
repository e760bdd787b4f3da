"""The site: an index of all papers and a page for each, as files that any web server or browser shows.

The pages are rendered by `Renderer`, which a live server can use as well: it needs the same data, and the paths in
the pages are relative to `root`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.report import formatting
from etude.report.catalogue import Catalogue, PaperLine, catalogue
from etude.report.charts import interval_bar
from etude.report.figures import claim_figures
from etude.report.files import replace_file
from etude.report.pages import DETAILS, paper_context

__all__ = ["PAGE_LIMIT", "STATIC_FILES", "Renderer", "build_site"]

PAGE_LIMIT = 100_000
"""Bytes that a page stays below: the index by going on to another page, a paper's page by drawing less."""

STATIC = Path(__file__).parent / "static"
STATIC_FILES = ("style.css", "icon.svg")
_FRAME = 12_000
_MINUS = re.compile(r"(?<![\w)\]-])-(?=[\d.i])")


class Renderer:
    """Turns cards and evidence into pages.

    Args:
        registry: the cards of all papers.
        evidence: slug -> evidence file.
        freshness: slug -> whether the evidence is that of today's code.
        generated: when, as it shall stand at the foot of each page; the pages hold no other date of their making.

    Raises:
        ImportError: if jinja2 is missing.
        ValueError: if a card has no usable slug, or two cards share one.
    """

    def __init__(
        self,
        registry: Sequence[Mapping[str, Any]],
        evidence: Mapping[str, Mapping[str, Any]],
        freshness: Mapping[str, bool],
        *,
        generated: str,
    ):
        self.catalogue: Catalogue = catalogue(registry, evidence, freshness)
        self.papers = {paper.slug: paper for paper in self.catalogue.papers if not paper.error}
        self._evidence = evidence
        self._templates = _templates(generated)

    def index_pages(self) -> dict[str, str]:
        """The index by file name: `index.html`, and `index-2.html` and so on where one page would grow too large."""
        card = self._templates.get_template("card.html")
        cards = [
            (domain, paper, card.render(paper=paper, root=""))
            for domain, papers in self.catalogue.domains.items()
            for paper in papers
        ]
        pages = _packed(cards, PAGE_LIMIT - _FRAME) or [[]]
        names = ["index.html", *(f"index-{number}.html" for number in range(2, len(pages) + 1))]
        places: dict[str, str] = {}
        for name, page in zip(names, pages, strict=True):
            for domain, _, _ in page:
                places.setdefault(domain, f"{name}#{_fragment(domain)}")
        template = self._templates.get_template("index.html")
        return {
            name: template.render(
                catalogue=self.catalogue, sections=_sections(page), places=places, pages=names, here=name, root=""
            )
            for name, page in zip(names, pages, strict=True)
        }

    def paper_page(self, slug: str) -> str:
        """The page of a paper, in the richest detail that stays below `PAGE_LIMIT`.

        Raises:
            KeyError: if there is no such paper.
        """
        template, page = self._templates.get_template("paper.html"), ""
        for detail in DETAILS:
            page = template.render(root="../", **paper_context(self.papers[slug], self._evidence.get(slug), detail))
            if len(page.encode()) < PAGE_LIMIT:
                break
        return page

    def figures(self, slug: str) -> dict[str, str]:
        """The pictures of a paper's page: path in the site -> safe SVG."""
        claims = (self._evidence.get(slug) or {}).get("claims") or {}
        found = [figure for record in claims.values() for figure in claim_figures(slug, record)]
        return {figure.path: figure.svg for figure in found if figure.svg}

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Every file of the site by its path; the index comes last."""
        for name in STATIC_FILES:
            yield name, (STATIC / name).read_bytes()
        for slug in self.papers:
            if slug in self._evidence:
                text = json.dumps(self._evidence[slug], indent=1, sort_keys=True, ensure_ascii=False)
                yield f"evidence/{slug}.json", text.encode()
            yield from ((path, svg.encode()) for path, svg in self.figures(slug).items())
            yield f"papers/{slug}.html", self.paper_page(slug).encode()
        for name, page in reversed(self.index_pages().items()):
            yield name, page.encode()


def build_site(
    output: Path,
    registry: Sequence[Mapping[str, Any]],
    evidence: Mapping[str, Mapping[str, Any]],
    freshness: Mapping[str, bool],
    *,
    generated: str,
) -> list[Path]:
    """Writes the site into the folder `output` and returns its files, the index first.

    Every file is replaced whole, and the index last, so that a reader never meets a link to a page not yet written.

    Raises:
        ImportError: if jinja2 is missing.
        OSError: if the folder cannot be written or the disk is full; `filename` says which file.
        ValueError: if a card has no usable slug, or two cards share one.
    """
    written = []
    for name, content in Renderer(registry, evidence, freshness, generated=generated).files():
        path = output / name
        replace_file(path, content)
        written.append(path)
    return written[::-1]


def _templates(generated: str) -> Any:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise ImportError("the report needs jinja2: pip install 'etude[run]'") from None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        generated=generated,
        symbols=formatting.STATUSES,
        labels=formatting.LABELS,
        interval_bar=interval_bar,
        arxiv_url=formatting.arxiv_url,
        format_effect=formatting.format_effect,
    )
    environment.filters.update(
        number=formatting.format_number,
        seconds=formatting.format_seconds,
        p=formatting.format_p,
        minus=lambda text: _MINUS.sub("\u2212", text),
        fragment=_fragment,
        words=formatting.format_domain,
        web=_web,
    )
    return environment


def _packed(cards: Sequence[tuple[str, PaperLine, str]], limit: int) -> list[list[tuple[str, PaperLine, str]]]:
    """The cards in their order on pages of at most `limit` bytes, at least one card a page."""
    pages: list[list[tuple[str, PaperLine, str]]] = []
    used = 0
    for card in cards:
        size = len(card[2].encode())
        if not pages or used + size > limit:
            pages.append([])
            used = 0
        pages[-1].append(card)
        used += size
    return pages


def _sections(cards: Sequence[tuple[str, PaperLine, str]]) -> list[dict[str, Any]]:
    """Domain after domain the rendered cards of one page."""
    from markupsafe import Markup

    sections: dict[str, list[str]] = {}
    for domain, _, text in cards:
        sections.setdefault(domain, []).append(text)
    return [{"domain": domain, "cards": [Markup(text) for text in texts]} for domain, texts in sections.items()]


def _fragment(domain: str) -> str:
    return "domain-" + re.sub(r"[^A-Za-z0-9]+", "-", domain)


def _web(address: Any) -> str:
    """`address` if it is one of the web, else nothing: a card must not bring a `javascript:` link."""
    text = str(address or "")
    return text if re.match(r"https?://[^\s\"'<>]+\Z", text) else ""
