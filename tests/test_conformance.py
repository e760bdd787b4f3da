"""Every paper passes the conformance suite, the suite finds what is wrong, and a bad plug-in harms nothing."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch

from etude.lab import registry
from etude.lab.registry import UnknownName, load_registry, resolve
from etude.testing import check_paper

TROUBLED = {"toy_broken", "toy_trouble"}  # one does not load, the trials of the other kill their process


@pytest.mark.parametrize("slug", sorted({card["slug"] for card in load_registry()} - TROUBLED))
def test_every_paper_conforms(slug):
    # Twice the budget and more: the checker of types and a busy machine slow the trials down.
    assert check_paper(slug, budget=60.0).trials > 0


def problems(slug, **options):
    with pytest.raises(AssertionError) as caught:
        check_paper(slug, module=f"etude_toys.rogues:{slug.upper()}", **options)
    head, *lines = str(caught.value).split("\n  - ")
    assert head == f"{slug} does not conform:"
    return lines


@pytest.mark.parametrize(
    ("slug", "message"),
    [
        ("stray", "stray/stray: the arm method draws outside of the trial's streams: score "),
        ("fickle", "fickle/fickle: the arm baseline is not deterministic: score "),
        ("leaky", "leaky/leaky: the arm baseline "),
        (
            "spoiling",
            "spoiling/spoiling: the arm baseline depends on what ran before it in the same process: score 3.0 -> 0.0",
        ),
        ("deaf", "deaf/deaf: the arm baseline runs without its setup"),
        ("untunable", "untunable/untunable: a tuning trial of baseline failed: ValueError: no metric val_score"),
        ("falling", "falling/falling: the arm method failed: KeyError"),
    ],
)
def test_a_rule_that_is_broken_is_named_with_claim_and_arm(slug, message):
    (line,) = problems(slug)
    assert line.startswith(message)


def test_an_arm_that_changes_settings_of_torch_is_named():
    try:
        assert (
            "the arm method leaves other settings behind: default dtype torch.float32 -> torch.float64"
            in problems("doubling")[0]
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_incomplete_card_and_careless_claims_are_listed_in_full():
    text = "\n".join(problems("careless"))
    for expected in (
        "the summary must be a sentence",
        "arxiv must be an identifier such as 1511.06807, got 'cs/1'",
        "the method etude_toys.absent does not import: ModuleNotFoundError",
        "the usage does not run: ImportError",
        "careless/hasty: the claim says nothing",
        "careless/hasty: 2 seeds at small",
        "careless/hasty: worst= names ['loss']",
        "careless/hasty: measured= names ['seconds']",
        "careless/idle: no primary contrast",
        "careless/idle: no scale beyond smoke",
    ):
        assert expected in text


def test_a_budget_that_is_not_kept_is_named():
    with pytest.raises(AssertionError, match=r"the smoke trials take \d+\.\d s of one core, more than 1e-06 s"):
        check_paper("toy_descent", budget=1e-6)


def test_missing_data_are_said_and_hold_nothing_against_the_paper():
    found = check_paper("lacking", module="etude_toys.rogues:LACKING")
    (line,) = found.skipped
    assert line.startswith("lacking/lacking: needs data: the set `absent` is missing")


def test_the_suite_leaves_the_random_state_as_it_was():
    # Python's own generator is left out: the checker of types draws from it.
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    check_paper("toy_descent")
    assert (torch.rand(1), np.random.rand()) == before


@pytest.mark.parametrize(
    ("slug", "message"), [("toy_broken", "No module named"), ("nowhere", "unknown paper 'nowhere'")]
)
def test_a_paper_that_does_not_load_is_a_problem_and_no_crash(slug, message):
    with pytest.raises(AssertionError, match=message):
        check_paper(slug)


def discovered(monkeypatch, **points):
    found = [EntryPoint(name.partition("__")[0], value, "etude.papers") for name, value in points.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    return {card["module"]: card for card in load_registry() if card["module"] in points.values()}


def test_a_plug_in_that_ends_the_process_on_import_is_listed_and_harms_nothing(monkeypatch):
    cards = discovered(monkeypatch, exits="etude_toys.exits:PAPER", toy_descent="etude_toys.descent:PAPER")
    assert cards["etude_toys.exits:PAPER"]["error"] == "SystemExit: exits: goodbye"
    assert "error" not in cards["etude_toys.descent:PAPER"]
    assert resolve(["toy_descent"], list(cards.values()))
    with pytest.raises(UnknownName, match="goodbye"):
        resolve(["exits"], list(cards.values()))


def test_two_papers_of_one_slug_are_an_error_that_names_both_and_the_first_still_runs(monkeypatch):
    first, second = "etude_toys.descent:PAPER", "etude_toys.shrinkage:PAPER"
    cards = discovered(monkeypatch, toy_descent=first, toy_descent__again=second)
    assert cards[second]["error"] == f"{second} has the slug of {first}"
    ((card, _, _),) = resolve(["toy_descent"], list(cards.values()))
    assert card["module"] == first


def test_a_plug_in_cannot_take_the_slug_of_a_paper_of_ours(monkeypatch):
    ours = load_registry(plugins=False)[:1]
    if not ours:
        pytest.skip("registry.json holds no paper")
    slug, module = ours[0]["slug"], ours[0]["module"]
    cards = discovered(monkeypatch, **{slug: "etude_toys.descent:PAPER"})
    assert cards["etude_toys.descent:PAPER"]["error"] == f"etude_toys.descent:PAPER has the slug of {module}"
    ((card, _, _),) = resolve([slug], load_registry())
    assert card["module"] == module
