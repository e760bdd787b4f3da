import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib
import pytest

from etude.report import Renderer, build_site
from etude.report import site as site_module
from etude.report.site import PAGE_LIMIT, STATIC

HTML = "{http://www.w3.org/1999/xhtml}"
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)>\" onload='x' & {{ 7*7 }}"
Build = Callable[[], Path]


def parse(page: str) -> Element:
    """The tree of a page; an error of HTML syntax raises."""
    return html5lib.HTMLParser(strict=True).parse(page)


def text_of(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def section(tree: Element, anchor: str) -> Element:
    return next(element for element in tree.iter(f"{HTML}section") if element.get("id") == anchor)


def chips(element: Element) -> list[str]:
    return [text_of(chip) for chip in element.iter(f"{HTML}span") if "chip" in (chip.get("class") or "").split()]


@pytest.fixture
def build(tmp_path: Path, registry: list, evidence: dict, freshness: dict) -> Build:
    def run() -> Path:
        build_site(tmp_path / "site", registry, evidence, freshness, generated="5 January 2026")
        return tmp_path / "site"

    return run


def pages(folder: Path) -> Iterator[tuple[Path, str]]:
    return ((path, path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html")))


def test_the_site_has_an_index_a_page_a_paper_and_the_evidence(build: Build):
    site = build()
    found = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    figure = next(name for name in found if name.startswith("figures/"))
    assert found == {
        "index.html", "style.css", "icon.svg", "papers/gradient_noise.html", "papers/halonet.html",
        "papers/dagnn.html", "evidence/gradient_noise.json", "evidence/halonet.json", figure,
    }  # fmt: skip


def test_build_returns_the_files_it_wrote_index_first(tmp_path: Path, registry: list, evidence: dict, freshness: dict):
    files = build_site(tmp_path, registry, evidence, freshness, generated="")
    assert files[0] == tmp_path / "index.html"
    assert sorted(files) == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_every_page_is_valid_html(build: Build):
    for path, page in pages(build()):
        tree = parse(page)
        assert tree.get("lang") == "en", path
        assert len(list(tree.iter(f"{HTML}h1"))) == 1, path
        assert len(list(tree.iter(f"{HTML}main"))) == 1, path
        ids = [element.get("id") for element in tree.iter() if element.get("id")]
        assert len(ids) == len(set(ids)), path


def test_tables_have_scoped_headers_and_their_own_scroller(build: Build):
    for _, page in pages(build()):
        tree = parse(page)
        parents = {child: parent for parent in tree.iter() for child in parent}
        assert all(header.get("scope") in ("col", "row") for header in tree.iter(f"{HTML}th"))
        assert all(parents[table].get("class") == "scroll" for table in tree.iter(f"{HTML}table"))


def test_every_chart_and_picture_has_words(build: Build):
    for _, page in pages(build()):
        tree = parse(page)
        for svg in tree.iter("{http://www.w3.org/2000/svg}svg"):
            titled = next(svg.iter("{http://www.w3.org/2000/svg}title"), None) is not None
            assert titled or svg.get("aria-hidden") == "true"
        assert all(image.get("alt") for image in tree.iter(f"{HTML}img"))


def test_headings_do_not_skip_a_level(build: Build):
    for _, page in pages(build()):
        levels = [
            int(element.tag[-1]) for element in parse(page).iter() if re.fullmatch(rf"{HTML}h[1-6]", str(element.tag))
        ]
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_nothing_is_requested_from_elsewhere(build: Build):
    site = build()
    for path, page in pages(site):
        tree = parse(page)
        for element in tree.iter():
            assert element.tag not in (f"{HTML}script", f"{HTML}iframe", f"{HTML}object", f"{HTML}base")
            for name, value in element.attrib.items():
                if name in ("src", "href", "{http://www.w3.org/1999/xlink}href", "srcset", "poster", "action"):
                    if element.tag == f"{HTML}a" and value.startswith("https://"):
                        continue
                    assert not re.match(r"[a-z]+:|//", value, re.I), (path, name, value)
                    target, _, fragment = value.partition("#")
                    file = (path.parent / target).resolve() if target else path
                    assert file.is_file(), (path, value)
                    if fragment:
                        assert f'id="{fragment}"' in file.read_text(encoding="utf-8"), (path, value)
                assert "url(" not in value
    style = (site / "style.css").read_text(encoding="utf-8")
    assert "url(" not in style
    assert "@import" not in style


def test_pages_are_below_their_limit(build: Build):
    for path, page in pages(build()):
        assert len(page.encode()) < PAGE_LIMIT, path


def test_the_output_is_deterministic_and_dated_only_as_told(
    build: Build, tmp_path: Path, registry: list, evidence: dict, freshness: dict
):
    site = build()
    shuffled = {slug: evidence[slug] for slug in reversed(evidence)}
    build_site(tmp_path / "again", registry[::-1], shuffled, freshness, generated="5 January 2026")
    for path in site.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(site)).read_bytes(), path
    assert "5 January 2026" in (site / "index.html").read_text(encoding="utf-8")


def test_index_shows_totals_and_the_expected_false_holds(build: Build):
    text = text_of(parse((build() / "index.html").read_text(encoding="utf-8")))
    assert "of 4 superiority contrasts, about 0.1 (0.025 × 4)" in text
    for words in ("4 papers", "7 claims", "✓ holds", "✗ fails", "? undecided", "– not run", "↻ stale"):
        assert all(word in text for word in words.split())


def test_index_tells_broken_and_unrun_papers_honestly(build: Build):
    text = text_of(parse((build() / "index.html").read_text(encoding="utf-8")))
    assert "This paper could not be loaded. ModuleNotFoundError: No module named 'elsewhere'" in text
    assert "no evidence yet: etude run dagnn" in text


def test_a_claim_shows_paper_and_measurement_side_by_side(build: Build):
    tree = parse((build() / "papers" / "gradient_noise.html").read_text(encoding="utf-8"))
    claim = section(tree, "poor-initialisation")
    text = text_of(claim)
    assert "mean accuracy 10.1 without noise, 49.7 with it" in text
    assert "0.9268 ± 0.0466" in text
    assert "5 of 6 ✗ 1 failed" in text
    assert "zero_plain, seed 3: the loss is not finite at step 412" in text
    assert chips(claim)[0] == "✓ holds"
    assert "zero_noise > he_plain (accuracy) shown only" in text
    assert "scores the worst value there" in text


def test_an_undecided_claim_says_what_it_could_have_seen(build: Build):
    tree = parse((build() / "papers" / "gradient_noise.html").read_text(encoding="utf-8"))
    text = text_of(section(tree, "memory-network"))
    assert re.search(r"These 5 seeds could have seen an effect of [\d.]+", text)
    assert re.search(r"needs about \d+ seeds", text)
    assert "error: plain minus noise" in text
    assert "Learning curves" not in text


def test_a_choice_on_the_edge_of_its_grid_is_told(build: Build):
    tree = parse((build() / "papers" / "gradient_noise.html").read_text(encoding="utf-8"))
    text = text_of(section(tree, "poor-initialisation"))
    assert "lr = 100 is the largest of the 5 values tried (0.01 to 100)" in text
    assert "lr = 0.1 is the" not in text
    rows = [row for row in tree.iter(f"{HTML}tr") if row.get("class") == "chosen"]
    assert [text_of(next(iter(row))) for row in rows] == ["0.1", "100"]


def test_stale_and_unrun_claims_are_marked(build: Build):
    site = build()
    stale = parse((site / "papers" / "halonet.html").read_text(encoding="utf-8"))
    assert chips(section(stale, "halo")) == ["✗ fails", "↻ stale", "✗ fails"]
    assert "The code has changed since this evidence was made." in text_of(stale)
    noise = parse((site / "papers" / "gradient_noise.html").read_text(encoding="utf-8"))
    assert chips(section(noise, "restarts")) == ["– not run"]


def test_evidence_of_an_older_protocol_is_stale(registry: list, evidence: dict, freshness: dict):
    registry[0]["claims"][1]["version"] = 2
    page = Renderer(registry, evidence, freshness, generated="").paper_page("gradient_noise")
    text = text_of(section(parse(page), "memory-network"))
    assert "The claim's protocol is at version 2; this evidence is of version 1." in text


def test_freshness_that_is_not_known_counts_as_stale(registry: list, evidence: dict):
    catalogue = Renderer(registry, evidence, {}, generated="").catalogue
    assert catalogue.stale == 4


def test_evidence_without_a_card_is_named(registry: list, evidence: dict, freshness: dict):
    page = Renderer(registry[1:], evidence, freshness, generated="").index_pages()["index.html"]
    assert "There is evidence without a card: gradient_noise." in text_of(parse(page))


def hostile(value: Any) -> Any:
    """The same structure with every free text replaced by an attack."""
    free = {
        "says",
        "reason",
        "reported",
        "notes",
        "text",
        "title",
        "authors",
        "summary",
        "usage",
        "data",
        "venue",
        "by",
    }
    if isinstance(value, dict):
        return {key: HOSTILE if key in free and item else hostile(item) for key, item in value.items()}
    return [hostile(item) for item in value] if isinstance(value, list) else value


def test_hostile_text_stays_text(registry: list, evidence: dict, freshness: dict):
    renamed = {"zero_noise": HOSTILE, "accuracy": f"acc{HOSTILE}", "lr": f"lr{HOSTILE}", "steps": f"steps{HOSTILE}"}
    text = json.dumps(hostile(evidence))
    for old, new in renamed.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    cards = hostile(registry)
    cards[0].update(arxiv=HOSTILE, code="javascript:alert(1)", methods=[HOSTILE], extra=HOSTILE, domain=HOSTILE)
    cards[0]["claims"][1]["id"] = f"gradient_noise/{HOSTILE}"
    cards[3].update(slug=f"../{HOSTILE}", error=HOSTILE)
    renderer = Renderer(cards, json.loads(text), freshness, generated=HOSTILE)
    for page in [*renderer.index_pages().values(), *(renderer.paper_page(slug) for slug in renderer.papers)]:
        tree = parse(page)
        assert HOSTILE in "".join(tree.itertext())
        assert "{{ 7*7 }}" in page
        for element in tree.iter():
            assert element.tag not in (f"{HTML}script", "{http://www.w3.org/2000/svg}script")
            assert not any(name.startswith("on") for name in element.attrib)
            assert not str(element.get("href", "")).startswith("javascript")
        assert all(str(image.get("src")).startswith("../figures/") for image in tree.iter(f"{HTML}img"))


@pytest.mark.parametrize("slug", ["", "../escape", "a/b", "a b", ".", "ä"])
def test_a_slug_that_is_no_file_name_is_refused(registry: list, slug: str):
    registry[0]["slug"] = slug
    with pytest.raises(ValueError, match="slug must be"):
        Renderer(registry, {}, {}, generated="")


def test_two_cards_of_one_slug_are_refused(registry: list):
    registry[1]["slug"] = "Gradient_Noise"
    with pytest.raises(ValueError, match="share the slug"):
        Renderer(registry, {}, {}, generated="")


def test_an_empty_registry_gives_an_honest_index(tmp_path: Path):
    build_site(tmp_path, [], {}, {}, generated="")
    assert "No papers are registered." in text_of(parse((tmp_path / "index.html").read_text(encoding="utf-8")))


def test_a_huge_page_draws_less_instead_of_growing(registry: list, evidence: dict, freshness: dict):
    record = evidence["gradient_noise"]["claims"]["gradient_noise/poor_initialisation"]
    metrics = {seed: record["series"]["zero_noise"]["accuracy"][seed] for seed in "12"}
    record["series"] = {arm: {f"metric {k}": metrics for k in range(9)} for arm in record["arms"]}
    for number in range(5):
        evidence["gradient_noise"]["claims"][f"gradient_noise/more{number}"] = copy.deepcopy(record)
    page = Renderer(registry, evidence, freshness, generated="").paper_page("gradient_noise")
    assert len(page.encode()) < PAGE_LIMIT
    text = text_of(parse(page))
    assert "Some drawings and tables are thinned" in text
    assert "more metrics are in the evidence file" in text


class Untouchable(dict):
    """A part of the evidence that the index must not read."""

    def __getitem__(self, key: Any) -> Any:
        raise AssertionError("the index read what it must not")

    get = items = keys = values = __iter__ = __getitem__


def test_an_index_of_a_thousand_claims_is_quick_and_reads_no_series(registry: list, evidence: dict):
    record = evidence["gradient_noise"]["claims"]["gradient_noise/memory_network"]
    record = {**record, "series": Untouchable(), "trials": Untouchable(), "figures": Untouchable()}
    cards, files = [], {}
    for number in range(50):
        slug = f"paper{number}"
        ids = [f"{slug}/claim{index}" for index in range(20)]
        claims = [{"id": claim_id, "says": record["says"], "version": 1} for claim_id in ids]
        cards.append({**registry[0], "slug": slug, "domain": f"domain{number % 8}", "claims": claims})
        files[slug] = {"claims": dict.fromkeys(ids, record), "cost": {"seconds": 3.0}, "exported": "2026-01-05"}
    started = time.process_time()  # not the wall clock: other tests share the machine
    renderer = Renderer(cards, files, dict.fromkeys(files, True), generated="")
    pages = renderer.index_pages()
    assert time.process_time() - started < 1
    assert renderer.catalogue.claims == 1000
    assert len(pages) > 1
    assert all(len(page.encode()) < PAGE_LIMIT for page in pages.values())
    linked = set(re.findall(r'href="(index[^"#]*)', pages["index.html"]))
    assert linked == set(pages)


def test_a_read_only_folder_is_named(tmp_path: Path, registry: list):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError) as caught:
        build_site(tmp_path / "file" / "site", registry, {}, {}, generated="")
    assert str(tmp_path / "file") in str(caught.value.filename)


def test_a_full_disk_leaves_the_old_page_and_no_remains(
    build: Build, registry: list, evidence: dict, monkeypatch: pytest.MonkeyPatch
):
    site = build()
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}

    def full(source: str, target: Path) -> None:
        raise OSError(28, "No space left on device", str(source))

    monkeypatch.setattr("etude.report.files.os.replace", full)
    with pytest.raises(OSError, match="No space left") as caught:
        build_site(site, registry, evidence, {}, generated="later")
    assert Path(str(caught.value.filename)).parent == site
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before


def test_a_missing_jinja_names_the_extra(registry: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"etude\[run\]"):
        site_module.Renderer(registry, {}, {}, generated="")


def luminance(colour: str) -> float:
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_enough_contrast_in_both_schemes():
    style = (STATIC / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]
    )
    for colours in (light, dark):
        pairs = [("ink", "paper", 4.5), ("soft", "paper", 4.5), ("link", "paper", 4.5), ("ink", "code", 4.5)]
        states = ("holds", "fails", "undecided", "data", "none", "stale")
        pairs += [(state, back, 4.5) for state in states for back in (f"{state}-back", "paper")]
        pairs += [(f"c{arm}", "paper", 3.0) for arm in range(8)] + [("c0", "zone", 3.0), ("ink", "fails-back", 4.5)]
        for front, back, least in pairs:
            bright, dim = sorted((luminance(colours[front]), luminance(colours[back])), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= least, (front, back)
