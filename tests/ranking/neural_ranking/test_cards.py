"""Searching cards of papers: by the ranker, by word search where the extra is missing, and without torch."""

import subprocess
import sys

import pytest

from etude.ranking.neural_ranking import cards as module
from etude.ranking.neural_ranking import rank_papers, word_search


def card(slug, title, summary, *says, authors="Someone"):
    return {
        "slug": slug, "title": title, "summary": summary, "authors": authors, "domain": "training",
        "arxiv": "1234.5678", "venue": "", "notes": "",
        "claims": [{"name": f"c{n}", "says": text} for n, text in enumerate(says)],
    }  # fmt: skip


CARDS = [
    card("gradient_noise", "Adding gradient noise", "Noise on the gradient trains deep networks.",
         "Gradient noise rescues a deep network", "Noise helps from a poor start", authors="Neelakantan"),
    card("dagnn", "Deeper graph networks", "Propagation over a graph without smoothing.",
         "A graph network keeps its accuracy with depth", "Gates choose hops"),
    card("jamming", "Jamming detection", "Detects radio jammers.",
         "A detector finds weak jammers", "Two thresholds help"),
    card("guidance", "Guiding networks", "A network learns from another's representation.",
         "Guidance trains a network"),
    card("noprop", "Training without propagation", "Each block denoises by itself.", "Blocks learn alone"),
]  # fmt: skip


def test_word_search_wants_every_word_and_weighs_fields():
    assert word_search("noise", CARDS) == ["gradient_noise", "noprop"]  # which denoises
    assert word_search("network graph", CARDS) == ["dagnn"]
    assert word_search("neelakan", CARDS) == ["gradient_noise"]
    assert word_search("network", CARDS)[0] in ("dagnn", "guidance")
    assert word_search("", CARDS) == word_search("zzz", CARDS) == []


def test_the_ranker_finds_papers_of_which_not_every_word_is_there():
    assert word_search("detection of weak interference by radio", CARDS) == []
    assert rank_papers("detection of weak interference by radio", CARDS, steps=5)[0] == "jamming"


def test_what_word_search_finds_comes_first_and_nothing_is_lost():
    ranked = rank_papers("network", CARDS, k=1, steps=5)
    assert set(word_search("network", CARDS)) <= set(ranked)
    assert rank_papers("Neelakantan", CARDS, steps=5)[0] == "gradient_noise"
    assert rank_papers("zzz", CARDS, steps=5) == []


def test_without_the_extra_word_search_answers(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "bm25s" else True)
    monkeypatch.setattr(module, "_ranked", lambda *arguments: pytest.fail("the ranker was asked"))
    assert rank_papers("network graph", CARDS) == ["dagnn"]


def test_word_search_imports_no_torch():
    code = (
        "import sys; from etude.ranking.neural_ranking import word_search; word_search('a', []); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
