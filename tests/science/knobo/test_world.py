"""The confounded protocol, the drawn lesions, the encoders, and the whole on images and reports."""

import itertools
import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("bm25s")

from etude.science.knobo import (
    CLASSES,
    FINDINGS,
    RISK,
    BM25Retriever,
    ContrastivePretrainer,
    ConvEncoder,
    DomainScores,
    ImageClassifier,
    KnoBo,
    KnowledgePrior,
    LesionScenes,
    OpenCLIPEncoder,
    RuleBasedModel,
    TextEncoder,
    annotate_reports,
    ceiling,
    confounded_split,
    contrastive_loss,
    encode_images,
    generate_bottleneck,
    language_shaped_encoder,
    lesion_bottleneck,
    lesion_prior,
    standard_gates,
    textbook,
    untrained_feature_probe,
)
from etude.science.knobo.text import asked


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rho_train", "rho_test"), [(1.0, 0.0), (0.9, 0.25), (0.5, 0.5)])
def test_the_confounder_agrees_at_the_rates_asked_for(rho_train, rho_test):
    rng = np.random.default_rng(0)
    y, a = rng.integers(0, 2, 3000), rng.integers(0, 2, 3000)
    sizes = {"train": 400, "val": 80, "id": 200, "ood": 200}
    split = confounded_split(y, a, rho_train, rho_test, seed=3, sizes=sizes)
    for part, rows in split.items():
        rho = rho_test if part == "ood" else rho_train
        assert len(rows) == sizes[part]
        assert abs((y[rows] == 1).mean() - (y == 1).mean()) <= 1 / len(rows)
        for label in (0, 1):
            own = rows[y[rows] == label]
            assert (a[own] == label).sum() == round(rho * len(own))
    together = np.concatenate(list(split.values()))
    assert len(set(together)) == len(together)


def test_without_sizes_the_largest_parts_are_made():
    y = np.array([0, 1] * 100)
    a = np.where(np.arange(200) < 150, y, 1 - y)
    split = confounded_split(y, a)
    assert len(split["ood"]) == pytest.approx(50, abs=3)
    assert len(split["train"]) == pytest.approx(80, abs=4)
    assert np.array_equal(split["train"], confounded_split(y, a)["train"])


def test_a_cell_without_examples_is_named():
    y, a = np.array([0, 0, 1, 1] * 10), np.array([0, 1, 1, 1] * 10)
    with pytest.raises(ValueError, match=r"\(y=1, a=0\) lacks examples: 5 wanted, 0 there"):
        confounded_split(y, a, sizes={"ood": 10})
    with pytest.raises(ValueError, match=r"rho_test must lie in \[0, 1\], got 2"):
        confounded_split(y, a, 1, 2)
    with pytest.raises(ValueError, match=r"a must take the labels' values \[0, 1\], got 5"):
        confounded_split(y, a + 5)
    with pytest.raises(ValueError, match="at least two labels"):
        confounded_split(np.zeros(4), np.zeros(4))


def test_gap_and_average():
    scores = DomainScores(0.9, 0.3)
    assert (scores.gap, scores.average) == (pytest.approx(0.6), pytest.approx(0.6))


def test_the_ceiling_of_the_findings_is_85_percent():
    share, best, total = {0: 0.0, 1: 0.0}, 0.0, []
    for present in itertools.product((0, 1), repeat=8):
        weight = math.prod(0.4 if c else 0.6 for c in present)
        p = 1 / (1 + math.exp(-2.5 * (sum(r * c for r, c in zip(RISK, present)) - 1.6)))
        total.append((weight * (1 - p), weight * p))
        share[0] += weight * (1 - p)
        share[1] += weight * p
    best = sum(max(zero / share[0], one / share[1]) for zero, one in total) / 2
    assert ceiling() == pytest.approx(best, abs=1e-6)
    assert ceiling() == pytest.approx(0.850, abs=5e-4)


def test_scenes_follow_their_recipe():
    scenes = LesionScenes(16, noise=0)
    part = scenes.draw(3001, 1.0, seeded())
    assert (part.labels == 0).sum() == 1501
    assert torch.equal(part.hospital, part.labels)
    assert part.images.shape == (3001, 3, 16, 16)
    assert 0 <= part.images.min() <= part.images.max() <= 1
    # Given the label, findings have the frequencies of the balanced model.
    y = part.labels.bool()
    for k in (0, 7):
        every = torch.tensor(list(itertools.product((False, True), repeat=8)))
        weight = torch.where(every, 0.4, 0.6).double().prod(dim=1)
        p = torch.sigmoid(2.5 * (every.double() @ torch.tensor(RISK).double() - 1.6))
        expected = ((weight * p)[every[:, k]].sum() / (weight * p).sum()).item()
        assert part.concepts[y, k].double().mean().item() == pytest.approx(expected, abs=4 * 0.5 / 1500**0.5)
    reverse = scenes.draw(100, 0.0, seeded())
    assert torch.equal(reverse.hospital, 1 - reverse.labels)
    half = scenes.draw(400, 0.5, seeded())
    assert ((half.hospital == half.labels) & (half.labels == 1)).sum() == 100
    with pytest.raises(ValueError, match="agreement in"):
        scenes.draw(5, 1.5, seeded())


def test_each_finding_and_the_hospital_change_the_picture():
    scenes = LesionScenes(32, noise=0)
    base = scenes.render(torch.zeros(1, 8, dtype=torch.bool), torch.zeros(1, dtype=torch.int64), seeded())
    for k in range(8):
        with_it = torch.zeros(1, 8, dtype=torch.bool)
        with_it[0, k] = True
        picture = scenes.render(with_it, torch.zeros(1, dtype=torch.int64), seeded())
        assert (picture - base).abs().max() > 0.1, FINDINGS[k]
        # Corners are skin, whatever the finding.
        assert torch.equal(picture[..., :2, :2], base[..., :2, :2])
    other = scenes.render(torch.zeros(1, 8, dtype=torch.bool), torch.ones(1, dtype=torch.int64), seeded())
    assert other[..., :3, :].mean() < 0.3 * base[..., :3, :].mean()
    assert other[:, 0, 5:].mean() > base[:, 0, 5:].mean()
    assert other[:, 2, 5:].mean() < base[:, 2, 5:].mean()


def test_reports_tell_the_truth_and_leave_some_out():
    part = LesionScenes(16).draw(1000, 0.5, seeded(), reports=True)
    answers = torch.from_numpy(annotate_reports(part.reports, lesion_bottleneck()))
    told = answers != 0
    assert torch.equal((answers == 1)[told], part.concepts[told])
    assert told.double().mean().item() == pytest.approx(0.7, abs=0.02)
    assert sum("hospital" in r for r in part.reports) / 1000 == pytest.approx(0.5, abs=0.06)
    north = torch.tensor(["north" in r for r in part.reports])
    assert not part.hospital[north].any()


def test_the_textbook_yields_the_eight_findings_and_their_signs():
    part = LesionScenes(16).draw(100, 0.5, seeded(), reports=True)
    knowledge = textbook()
    assert 60 <= len(knowledge) <= 100
    model = RuleBasedModel(knowledge)
    modality = "skin lesion photograph"
    gates = standard_gates(model, CLASSES, part.reports, modality=modality)
    made = generate_bottleneck(CLASSES, BM25Retriever(knowledge), model, gates, modality=modality)
    assert {frozenset(asked(q)) for q in made.questions} == {frozenset(asked(name)) for name in FINDINGS}
    for concept in made:
        assert concept.sentence in knowledge[concept.document].text
        assert set(asked(concept.question)) <= set(asked(concept.sentence))
    rejected = made.report.rejected
    assert all(rejected[gate] for gate in ("visible", "unique", "class name", "groundable"))
    assert "Does the lesion show ulceration?" in rejected["groundable"]
    assert "Does the lesion show rapid growth?" in rejected["visible"]
    read = KnowledgePrior.from_model(model, CLASSES, made.questions, modality=modality)
    names = {frozenset(asked(q)): q for q in lesion_bottleneck().questions}
    truth = lesion_prior().aligned(CLASSES, [names[frozenset(asked(q))] for q in made.questions])
    assert torch.equal(read.values, truth)


def test_contrastive_loss_is_the_mean_of_both_directions():
    generator = seeded()
    u, v = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1) for _ in range(2))
    total = 0.0
    for i in range(5):
        rows = [math.exp(3 * float(u[i] @ v[j])) for j in range(5)]
        columns = [math.exp(3 * float(u[j] @ v[i])) for j in range(5)]
        total -= math.log(rows[i] / sum(rows)) + math.log(columns[i] / sum(columns))
    assert contrastive_loss(2 * u, v, 3.0).item() == pytest.approx(total / 10, rel=1e-5)


def small_clip(part):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ContrastivePretrainer(ConvEncoder(16, 4), TextEncoder(part.reports, 16, 8))


def test_training_an_encoder_lowers_the_loss_and_leaves_the_rest_of_the_world_alone():
    part = LesionScenes(16).draw(128, 0.5, seeded(), reports=True)
    clip = small_clip(part)
    state = torch.get_rng_state()
    losses = clip.fit(part.images, part.reports, epochs=6, batch_size=32, generator=seeded())
    assert torch.equal(state, torch.get_rng_state())
    assert np.mean(losses[-4:]) < np.mean(losses[:4])
    assert clip.encode_text(["no dots", "unheard"]).shape == (2, 16)
    with pytest.raises(ValueError, match="equally many, got 128 and 3"):
        clip.fit(part.images, ["a", "b", "c"])
    with pytest.raises(FileNotFoundError, match="place the file"):
        OpenCLIPEncoder("/nowhere/weights.bin")


def test_baselines_that_train_the_backbone_leave_the_given_one_alone():
    part = LesionScenes(16).draw(64, 1.0, seeded(), reports=True)
    clip = small_clip(part)
    before = [p.clone() for p in clip.parameters()]
    answers = annotate_reports(part.reports, lesion_bottleneck())
    tuned = language_shaped_encoder(clip, part.images, answers, lesion_bottleneck().questions, batch_size=32)
    model = ImageClassifier(clip.image_encoder, 16, epochs=2).fit(
        part.images, part.labels, validation=(part.images, part.labels)
    )
    assert all(torch.equal(a, b) for a, b in zip(before, clip.parameters()))
    assert not torch.equal(tuned.head.weight, clip.image_encoder.head.weight)
    assert model.predict_proba(part.images).shape == (64, 2)
    assert model.score(part.images, part.labels) == pytest.approx(
        (model.predict(part.images) == part.labels.numpy()).mean()
    )
    with pytest.raises(ValueError, match="no question has both answers"):
        language_shaped_encoder(clip, part.images, np.ones((64, 1)), ["a?"])


def test_the_study_of_untrained_backbones_compares_features_and_pixels():
    part = LesionScenes(16).draw(60, 1.0, seeded())
    pair = (part.images, part.labels)
    found = untrained_feature_probe(ConvEncoder(8, 4), pair, pair, pair, epochs=3)
    assert found["gain"] == pytest.approx(found["features"] - found["pixels"])


def test_the_whole_runs_on_images_and_reports_and_explains_itself():
    scenes = LesionScenes(16)
    told = scenes.draw(160, 0.5, seeded(0), reports=True)
    part = scenes.draw(40, 1.0, seeded(1))
    options = {"modality": "skin lesion photograph", "epochs": 3, "pretrain_epochs": 1, "min_val": 2}
    model = KnoBo(textbook(), class_names={0: "benign", 1: "malignant"}, **options)
    model.fit(part.images, part.labels, annotated=(told.images, told.reports))
    assert model.prior_.classes == CLASSES
    assert len(model.explain(part.images[:2], top=3)[1].reasons) == 3
    assert np.array_equal(
        model.predict(part.images), model.classifier_.predict(encode_images(model.encoder_, part.images))
    )
    given = KnoBo(bottleneck=lesion_bottleneck(), prior=lesion_prior(), encoder=model.encoder_, **options)
    given.fit(part.images, [CLASSES[k] for k in part.labels], annotated=(told.images, told.reports))
    assert set(given.predict(part.images)) <= set(CLASSES)
    with pytest.raises(ValueError, match="give a corpus as knowledge"):
        KnoBo(modality="x")
    with pytest.raises(ValueError, match="no annotated image has a report"):
        model.fit(part.images, part.labels, annotated=(told.images, [""] * 160))
    with pytest.raises(ValueError, match="equally many, got 160 and 1"):
        model.fit(part.images, part.labels, annotated=(told.images, ["x"]))
