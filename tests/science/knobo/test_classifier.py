"""The prior, the grounding functions, the classifiers."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from etude.science.knobo import (
    Bottleneck,
    Concept,
    DotProductBottleneck,
    GroundingFunctions,
    KnoBoClassifier,
    KnowledgePrior,
    LinearProbe,
    PosthocHybridCBM,
    plot_domains,
    plot_explanation,
    plot_weights,
    prior_loss,
    random_grounding,
    unit_features,
)
from etude.science.knobo.protocol import DomainScores
from etude.science.knobo.training import train_selected

QUESTIONS = tuple(f"Is finding {k} there?" for k in range(4))
CLASSES = ("benign", "malignant")


def annotated(n=400, dim=6, seed=0):
    """Features whose first four columns tell the concepts."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, :4] > 0).long().numpy() * 2 - 1


def grounded(**options):
    x, answers = annotated()
    return GroundingFunctions(**options).fit(x, answers, QUESTIONS)


def task(n=120, seed=1):
    x, answers = annotated(n, seed=seed)
    return x, (answers[:, :3].sum(axis=1) > 0).astype(int)


def prior(values=((-1, -1, -1, 0), (1, 1, 1, 0))):
    return KnowledgePrior(torch.tensor(values, dtype=torch.float32), CLASSES, QUESTIONS)


NAMES = {0: "benign", 1: "malignant"}
BOTTLENECK = Bottleneck(tuple(Concept(q, f"d{k}", f"sentence {k}") for k, q in enumerate(QUESTIONS)))


def knobo(grounding=None, **options):
    return KnoBoClassifier(
        BOTTLENECK, grounding or grounded(), **{"prior": prior(), "epochs": 5, "class_names": NAMES} | options
    )


def test_prior_loss_at_the_prior_and_at_zero():
    P = prior(((-1, 1, 0, 1), (1, 1, -1, 0))).values.double()
    assert prior_loss(torch.atanh(0.999 * P), P).item() == pytest.approx(0.001 * P.abs().mean().item(), rel=1e-12)
    assert prior_loss(torch.zeros_like(P), P).item() == P.abs().mean().item()


def test_prior_loss_is_the_sum_over_classes_and_concepts():
    generator = torch.Generator().manual_seed(0)
    W, P = torch.randn(3, 5, generator=generator), torch.randint(-1, 2, (3, 5), generator=generator).float()
    total = sum(abs(math.tanh(W[k, m]) - P[k, m].item()) for k in range(3) for m in range(5))
    assert prior_loss(W, P).item() == pytest.approx(total / 15, rel=1e-6)


def test_gradient_of_the_prior_loss_matches_finite_differences():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    P = torch.randint(-1, 2, (3, 4), generator=generator).double()
    assert torch.autograd.gradcheck(lambda weight: prior_loss(weight, P), W)


def test_a_transposed_prior_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 4\), got \(4, 2\); it is transposed"):
        prior_loss(torch.zeros(2, 4), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="it is transposed"):
        KnowledgePrior(torch.zeros(4, 2), CLASSES, QUESTIONS)
    with pytest.raises(ValueError, match=r"-1, 0 or 1, got \[0.5\]"):
        KnowledgePrior(torch.full((2, 4), 0.5), CLASSES, QUESTIONS)


def test_lambda_zero_is_plain_logistic_regression_bit_for_bit():
    x, y = task()
    functions = grounded()
    plain = knobo(functions, prior=None).fit(x, y)
    zero = knobo(functions, prior_weight=0).fit(x, y)
    one = knobo(functions, prior_weight=1).fit(x, y)
    assert torch.equal(plain.weights_, zero.weights_)
    assert not torch.equal(plain.weights_, one.weights_)


def test_a_heavy_prior_sets_the_signs_of_the_weights():
    x, y = task()
    signs = ((1, -1, 1, 0), (-1, 1, -1, 0))
    model = knobo(prior=prior(signs), prior_weight=100, epochs=1)
    model.fit(x, y)
    # Its loss, minimised to the end; the estimator would keep its best epoch.
    layer = torch.nn.Linear(4, 2)
    loss = model._loss(layer)
    scores, labels = model.grounding.transform(x), torch.from_numpy(y)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        loss(layer(scores), labels).backward()
        optimizer.step()
    P = model.prior.aligned(CLASSES, model.grounding.questions_)
    assert torch.equal(layer.weight.sign()[P != 0], P[P != 0])
    assert layer.weight[P == 0].abs().max() < 0.05


def test_the_prior_is_matched_by_name():
    swapped = KnowledgePrior(
        prior().values[[1, 0]][:, [3, 1, 0, 2]], CLASSES[::-1], tuple(QUESTIONS[k] for k in (3, 1, 0, 2))
    )
    assert torch.equal(swapped.aligned(CLASSES, QUESTIONS), prior().values)
    x, y = task()
    functions = grounded()
    one, other = (knobo(functions, prior=p).fit(x, y).weights_ for p in (prior(), swapped))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"lacks 1 of the concept names, first 'Is finding 9 there\?'.*did you mean"):
        prior().aligned(CLASSES, ("Is finding 9 there?",))
    with pytest.raises(ValueError, match="lacks 1 of the class names, first 'wart'"):
        prior().aligned(("benign", "wart"), QUESTIONS)


def test_priors_are_read_from_answers():
    table = {
        "maliganant": {"a?": "yes", "b?": "no", "c?": "unknown"},
        "benign": {"a?": "no", "b?": "no", "c?": "yes"},
    }
    read = KnowledgePrior.from_answers(table, ["benign", "maliganant"], ["c?", "a?", "b?"])
    assert read.values.tolist() == [[1, -1, -1], [0, 1, -1]]
    with pytest.raises(ValueError, match="no class 'malignant': did you mean 'maliganant'"):
        KnowledgePrior.from_answers(table, ["malignant"], ["a?"])
    with pytest.raises(ValueError, match=r"lacks 1 of the concepts, first 'd\?'"):
        KnowledgePrior.from_answers(table, ["benign"], ["a?", "d?"])
    with pytest.raises(ValueError, match="must answer yes, no or unknown, got 'maybe'"):
        KnowledgePrior.from_answers({"x": {"a?": "maybe"}}, ["x"], ["a?"])
    asked = KnowledgePrior.from_model(
        lambda prompt: "Yes" if "x\n" in prompt else "?", ["x", "y"], ["a?"], modality="m"
    )
    assert asked.values.tolist() == [[1.0], [0.0]]


def test_controls_of_the_prior_keep_its_entries():
    generator = torch.Generator().manual_seed(3)
    flipped, dealt = prior().random_signs(generator), prior().shuffled(generator)
    assert torch.equal(flipped.values.abs(), prior().values.abs())
    assert torch.equal(flipped.values[0], -flipped.values[1])
    assert sorted(dealt.values[1].tolist()) == sorted(prior().values[1].tolist())
    assert prior().extended(["x?"]).values[:, -1].tolist() == [0, 0]


def test_scores_lie_in_the_unit_interval_and_equal_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    functions = grounded()
    x, answers = annotated()
    scores = functions.transform(x)
    assert 0 <= scores.min() <= scores.max() <= 1
    question = functions.questions_[0]
    column = QUESTIONS.index(question)
    rows, _ = functions._rows(answers[:, column], question)
    unit = unit_features(x).numpy()
    model = LogisticRegression(max_iter=1000, class_weight="balanced").fit(unit[rows], answers[rows, column])
    np.testing.assert_allclose(scores[:, 0], model.predict_proba(unit)[:, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("yes", "no", "held"), [(99, 5000, None), (100, 5000, 10), (300, 400, 30), (900, 900, 50), (5000, 120, 12)]
)
def test_images_of_a_concept_are_drawn_by_the_papers_rule(yes, no, held):
    answers = np.concatenate([np.ones(yes), -np.ones(no), np.zeros(700)]).astype(int)
    functions = GroundingFunctions()
    functions.skipped_ = {}
    rows = functions._rows(answers, "a?")
    if held is None:
        assert rows is None
        assert "99 images of yes and 5000 of no" in functions.skipped_["a?"]
        return
    train, val = rows
    assert len(val) == 2 * held
    assert (answers[val] == 1).sum() == held
    # Balanced, disjoint, at most 2,000, and unknown answers are nowhere.
    assert len(set(train) & set(val)) == 0
    assert answers[train].sum() == 0
    assert len(train) == 2 * min(yes - held, no - held, 1000)
    assert (answers[np.concatenate([train, val])] != 0).all()


def test_concepts_with_one_answer_are_skipped_and_named():
    x, answers = annotated()
    answers[:, 1] = 1
    answers[:350, 2] = 0
    functions = GroundingFunctions(number_of_features=2).fit(x, answers, QUESTIONS)
    assert set(functions.skipped_) == {QUESTIONS[1], QUESTIONS[2]}
    assert set(functions.questions_) == {QUESTIONS[0], QUESTIONS[3]}
    with pytest.raises(ValueError, match=r"no concept can be grounded: 'Is finding 0 there\?' has 0 images of yes"):
        GroundingFunctions().fit(x, -np.ones((400, 4), dtype=int), QUESTIONS)


def test_the_best_concepts_are_kept_in_the_order_of_their_accuracy():
    x, answers = annotated()
    rng = np.random.default_rng(0)
    answers[:, 2] = rng.permutation(answers[:, 2])
    functions = GroundingFunctions(number_of_features=3).fit(x, answers, QUESTIONS)
    values = [functions.accuracy_[q] for q in functions.questions_]
    assert values == sorted(values, reverse=True)
    assert QUESTIONS[2] not in functions.questions_
    assert len(functions.accuracy_) == 4


def test_a_concept_does_not_depend_on_its_place():
    x, answers = annotated()
    one = GroundingFunctions().fit(x, answers, QUESTIONS)
    other = GroundingFunctions().fit(x, answers[:, ::-1], QUESTIONS[::-1])
    assert torch.equal(one.selected(QUESTIONS).transform(x), other.selected(QUESTIONS).transform(x))


def test_features_are_normalised_or_refused():
    x, answers = annotated()
    functions = grounded()
    assert torch.allclose(functions.transform(x), functions.transform(7 * x), atol=1e-6)
    strict = GroundingFunctions(normalize=False)
    with pytest.raises(ValueError, match="rows of norm 1, got norms"):
        strict.fit(x, answers, QUESTIONS)
    strict.fit(unit_features(x), answers, QUESTIONS)
    with pytest.raises(ValueError, match="rows of norm 1"):
        strict.transform(2 * unit_features(x))
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="finite, row 3 is not"):
        functions.transform(x)
    with pytest.raises(ValueError, match=r"shape \(n, 6\), got \(2, 5\)"):
        functions.transform(torch.ones(2, 5))
    with pytest.raises(ValueError, match="not be all zero, row 0 is"):
        functions.transform(torch.zeros(1, 6))
    with pytest.raises(ValueError, match=r"\(images, concepts\) = \(400, 4\), got \(4, 400\)"):
        GroundingFunctions().fit(annotated()[0], answers.T, QUESTIONS)


def test_contributions_and_bias_sum_to_the_logit():
    x, y = task()
    model = knobo(epochs=20).fit(x, y)
    logits = model.decision_function(x)
    for top in (2, 10):
        for row, why in enumerate(model.explain(x[:9], top=top)):
            place = model.classes_.tolist().index(why.label)
            parts = [reason.contribution for reason in why.reasons]
            assert why.bias + sum(parts) + why.rest == pytest.approx(logits[row, place].item(), abs=1e-12)
            assert why.logit == logits[row, place].item()
            assert [abs(p) for p in parts] == sorted(map(abs, parts), reverse=True)
            assert all(r.contribution == pytest.approx(r.weight * r.score, abs=1e-12) for r in why.reasons)
            if top == 10:
                assert why.rest == pytest.approx(0, abs=1e-12)
    assert why.reasons[0].document == BOTTLENECK[why.reasons[0].question].document
    assert model.explain(x[:1], labels=[1 - model.predict(x[:1])[0]])[0].label != model.predict(x[:1])[0]
    assert "the other concepts" in str(why)
    plot_explanation(why), plot_weights(model), plot_domains({"a": DomainScores(0.9, 0.2)})


def test_nothing_of_the_image_passes_beside_the_concepts():
    x, y = task()
    model = knobo(epochs=20).fit(x, y)
    # A direction that no grounding function reads, added at equal norm.
    unit = unit_features(x).double()
    normal = torch.linalg.svd(torch.from_numpy(model.grounding.coef_))[2][4:]
    spread = unit @ normal.T
    turned = unit - spread @ normal + spread.flip(1) * torch.tensor([1.0, -1.0]) @ normal
    assert (turned - unit).norm(dim=1).mean() > 0.1
    assert torch.allclose(turned.norm(dim=1), unit.norm(dim=1))
    torch.testing.assert_close(model.decision_function(turned), model.decision_function(unit), atol=1e-5, rtol=0)
    probe = LinearProbe(epochs=5).fit(x, y)
    assert not torch.allclose(probe.decision_function(turned), probe.decision_function(unit), atol=1e-3)


def test_a_hybrid_without_residual_weights_equals_the_bottleneck():
    x, y = task()
    functions = grounded()
    hybrid, plain = PosthocHybridCBM(functions, epochs=2).fit(x, y), knobo(functions, prior=None, epochs=2).fit(x, y)
    torch.nn.init.zeros_(hybrid.layer_.residual.weight)
    torch.nn.init.zeros_(hybrid.layer_.residual.bias)
    hybrid.layer_.bottleneck.load_state_dict(plain.layer_.state_dict())
    torch.testing.assert_close(hybrid.decision_function(x), plain.decision_function(x), atol=1e-12, rtol=0)


def test_dot_products_are_cosines():
    x, y = task()
    text = torch.randn(3, 6, generator=torch.Generator().manual_seed(5))
    expected = torch.nn.functional.cosine_similarity(x[:, None], text[None], dim=2)
    torch.testing.assert_close(DotProductBottleneck(text)._inputs(x), expected)
    hybrid = PosthocHybridCBM(text_features=text, epochs=1).fit(x, y)
    torch.testing.assert_close(hybrid._inputs(x)[:, :3], expected)
    with pytest.raises(ValueError, match="either grounding functions or text features"):
        PosthocHybridCBM()


def test_random_concepts_know_nothing():
    x, _ = annotated(2000)
    functions = random_grounding(x, 5, torch.Generator().manual_seed(0))
    assert len(functions.questions_) == 5
    assert abs(functions.mean_accuracy - 0.5) < 0.1


def test_a_probe_of_some_features_reads_these_alone():
    x, y = task()
    probe = LinearProbe(2, epochs=2).fit(x, y)
    assert probe.layer_.weight.shape == (2, 2)
    with pytest.raises(ValueError, match=r"lie in 1..6, got 7"):
        LinearProbe(7).fit(x, y)


def test_estimators_keep_the_contract_and_repeat_themselves():
    x, y = task()
    names = np.array(["no", "yes"])[y]
    functions = grounded()
    model = knobo(functions, class_names={"no": "benign", "yes": "malignant"}).fit(x, names)
    again = knobo(functions, class_names={"no": "benign", "yes": "malignant"}).fit(x, names)
    assert torch.equal(model.weights_, again.weights_)
    assert set(model.predict(x)) <= {"no", "yes"}
    np.testing.assert_allclose(model.predict_proba(x).sum(axis=1), 1)
    assert model.set_params(prior_weight=3).get_params()["prior_weight"] == 3
    with pytest.raises(ValueError, match="unknown parameters shade"):
        model.set_params(shade=1)
    for build in (lambda: LinearProbe(epochs=1), lambda: knobo(functions, class_names={"no": "benign"})):
        with pytest.raises(ValueError, match="at least two classes, got only"):
            build().fit(x, ["no"] * len(x))
    with pytest.raises(RuntimeError, match="call fit"):
        knobo(functions).predict(x)
    with pytest.raises(ValueError, match="'maybe' is none of the classes"):
        knobo(functions, prior=None).fit(x, names, validation=(x, ["maybe"] * len(x)))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        knobo(functions, prior_weight=-1)
    with pytest.raises(ValueError, match=r"the bottleneck lacks 3 of the grounded concepts, first"):
        KnoBoClassifier(Bottleneck((Concept(QUESTIONS[0]),)), functions)


def test_the_first_best_epoch_is_kept():
    from etude.data.kinds import Examples

    x, y = task()
    layer, seen = torch.nn.Linear(6, 2), []
    examples = Examples(x, torch.from_numpy(y))
    chosen = train_selected(
        layer, examples, examples, epochs=6, lr=0.3, batch_size=16, generator=torch.Generator().manual_seed(0),
        callback=lambda epoch, total, val_accuracy: seen.append((val_accuracy, layer.weight.clone())),
    )  # fmt: skip
    assert chosen.curve == [score for score, _ in seen]
    assert chosen.best_epoch == 1 + chosen.curve.index(max(chosen.curve))
    assert torch.equal(layer.weight, seen[chosen.best_epoch - 1][1])
