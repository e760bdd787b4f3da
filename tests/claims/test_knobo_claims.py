"""What the claims of KnoBo do before and after they train."""

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("bm25s")
pytest.importorskip("PIL")

from etude.claims.science import knobo as claims
from etude.lab import Trial


def trial(arm, claim="survives_confounding", seed=0, **tuned):
    return Trial(f"knobo/{claim}", arm, seed, "smoke", claims.PAPER.claims[claim].setups["smoke"], tuned)


def test_arms_of_a_seed_share_a_world_and_seeds_have_others():
    one, same, other = (claims.world(trial(*a)) for a in (("knobo",), ("linear_probe",), ("knobo", "prior_helps")))
    assert one is same
    assert not torch.equal(one.parts["train"].images, other.parts["train"].images)
    assert not torch.equal(one.parts["id"].images, one.parts["ood"].images)


def test_the_hospital_goes_with_the_label_except_in_the_shifted_test_and_the_annotated_images():
    w = claims.world(trial("knobo"))
    for part in ("train", "val", "id"):
        assert torch.equal(w.parts[part].hospital, w.parts[part].labels)
    assert torch.equal(w.parts["ood"].hospital, 1 - w.parts["ood"].labels)
    told = w.parts["annotated"]
    assert (told.hospital == told.labels).double().mean() == 0.5
    free = claims.world(trial("knobo", "unconfounded"))
    assert (free.parts["id"].hospital == free.parts["id"].labels).double().mean() == 0.5


def test_the_leaking_bottleneck_has_two_leaks_and_ten_random_concepts_without_a_prior():
    w = claims.world(trial("knobo", "prior_helps"))
    names = w.leaking.questions_
    assert set(claims.LEAKS) <= set(names)
    assert sum(name.startswith("Random") for name in names) == 10
    prior = w.prior.extended(names[len(w.grounding.questions_) :]).aligned(claims.CLASSES, names)
    assert not prior[:, len(w.grounding.questions_) :].any()
    assert prior[:, : len(w.grounding.questions_)].abs().min() == 1


def test_few_shots_are_balanced_and_nested():
    w = claims.world(trial("knobo"))
    rows = claims.few(w, 16)
    assert w.parts["train"].labels[rows].sum() == 8
    assert set(rows.tolist()) <= set(claims.few(w, 40).tolist())
    assert len(claims.few(w, 0)) == len(w.parts["train"])


def test_tuning_looks_at_validation_alone():
    one = Trial("knobo/survives_confounding", "knobo", 1000, "smoke", claims.SMOKE, {"lr": 1e-3}, tuning=True)
    assert set(claims.survives_confounding(one)) == {"val_accuracy"}


def test_the_drawn_study_is_read_in_the_authors_layout():
    study = claims.drawn()
    assert study.features.classes == claims.CLASSES
    assert study.features.splits["train"][0].shape == (60, 48)
    assert study.annotated.answers.shape == (300, 8)
    setup = claims.PAPER.claims["official_sets"].setups["smoke"]
    values = claims.official_sets(Trial("knobo/official_sets", "knobo", 0, "smoke", setup), study)
    assert values["average"] == pytest.approx((values["id"] + values["ood"]) / 2)


def test_official_sets_that_are_not_here_say_what_to_place(monkeypatch, tmp_path):
    (tmp_path / "knobo" / "data" / "bottlenecks").mkdir(parents=True)
    (tmp_path / "knobo" / "data" / "bottlenecks" / "skin_PubMed.txt").write_text("Is it red?\n")
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"features.zip"):
        claims.official("skin", "ISIC-sex")
