"""The README's examples run, its table is in step, and the site that the committed evidence makes is sound."""

import re
import subprocess
import sys
from pathlib import Path

import html5lib
import pytest

from etude.commands import reporting
from etude.lab.evidence import check, evidence_folder, load_evidence
from etude.lab.registry import load_registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
CARDS = load_registry(plugins=False)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.sub(r"\W+", "_", text.splitlines()[-1])[:40])
def test_an_example_of_the_readme_runs(example, tmp_path):
    subprocess.run([sys.executable, "-W", "error", "-c", example], check=True, timeout=120, cwd=tmp_path)


def test_the_readme_opens_with_how_to_run_and_test():
    assert re.search(r"^make run$", README, flags=re.MULTILINE)
    assert re.search(r"^make test$", README, flags=re.MULTILINE)
    assert len(EXAMPLES) >= 3


def test_all_evidence_belongs_to_a_claim_of_today_and_recomputes():
    evidence = load_evidence([evidence_folder()])
    declared = {claim["id"] for card in CARDS for claim in card["claims"]}
    assert evidence
    assert {claim_id for content in evidence.values() for claim_id in content["claims"]} <= declared
    assert [line for content in evidence.values() for line in check(content)] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    reporting.site(folder)
    return folder


def test_the_site_has_a_page_for_every_paper(site):
    assert (site / "index.html").is_file()
    assert {path.stem for path in (site / "papers").glob("*.html")} >= {card["slug"] for card in CARDS}


def test_every_page_is_valid_small_and_asks_nothing_of_the_network(site):
    for page in site.glob("**/*.html"):
        text = page.read_text(encoding="utf-8")
        html5lib.HTMLParser(strict=True).parse(text)
        assert len(text.encode()) < 100_000, f"{page.name} has {len(text.encode()):,} bytes"
        assert not re.search(r"""(src|data|action)=["']?(https?:)?//""", text), page.name
        assert not re.search(r"""<link[^>]+href=["']?(https?:)?//""", text), page.name
        assert "<script" not in text
