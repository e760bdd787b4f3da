"""Retrieval, proposals, gates, and the reading of reports."""

import math

import numpy as np
import pytest

pytest.importorskip("bm25s")

from etude.science.knobo import (
    BM25Retriever,
    Bottleneck,
    ClassNameGate,
    Concept,
    Corpus,
    DenseRetriever,
    Document,
    GroundableGate,
    ModelAnnotator,
    PhraseAnnotator,
    RuleBasedModel,
    UniqueGate,
    VisibleGate,
    annotate_reports,
    generate_bottleneck,
    parse_concepts,
    prompted_bottleneck,
    standard_gates,
    textbook,
)
from etude.science.knobo.language import answer_of, prior_prompt, propose_prompt
from etude.science.knobo.text import content, jaccard, lemma, sentences

WORDS = [
    "lesion",
    "border",
    "irregular",
    "dark",
    "pigment",
    "streak",
    "dot",
    "veil",
    "scale",
    "color",
    "radial",
    "shape",
]


def corpus(n=20):
    rng = np.random.default_rng(0)
    return Corpus(Document(f"d{i}", " ".join(rng.choice(WORDS, rng.integers(3, 12)))) for i in range(n))


def reference(documents, query, k1, b):
    """Equation (1), word by word."""
    texts = [content(document.text) for document in documents]
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for text in texts:
        score = 0.0
        for word in content(query):
            df = sum(word in other for other in texts)
            tf = text.count(word)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(text) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4)])
def test_bm25_equals_the_formula_on_20_documents(k1, b):
    documents = corpus()
    retriever = BM25Retriever(documents, k1=k1, b=b)
    for query in ("irregular border", "dark dark pigment streaks", "blue-white veil of the lesion", "veil unheard"):
        expected = reference(documents, query, k1, b)
        np.testing.assert_allclose(retriever.scores(query), expected, rtol=1e-12)
        hits = retriever.retrieve(query, 5)
        best = sorted((s for s in expected if s > 0), reverse=True)[:5]
        np.testing.assert_allclose([hit.score for hit in hits], best, rtol=1e-12)


def test_an_empty_query_and_unknown_words_score_zero_and_return_nothing():
    retriever = BM25Retriever(corpus())
    for query in ("", "the of", "unheard words"):
        assert not retriever.scores(query).any()
        assert retriever.retrieve(query, 5) == []


def test_dense_retrieval_ranks_by_cosine():
    documents = Corpus([Document("a", "left"), Document("b", "right"), Document("c", "both")])
    table = {"left": (2, 0), "right": (0, 1), "both": (1, 1), "query": (3, 0.1)}
    found = DenseRetriever(documents, lambda texts: [table[text] for text in texts]).retrieve("query", 2)
    assert [hit.document.id for hit in found] == ["a", "c"]


def test_corpora_read_jsonl_and_text(tmp_path):
    path = tmp_path / "pubmed.jsonl"
    path.write_text('{"id": 7, "contents": "One."}\n\n{"id": "x", "contents": "Two."}\n')
    assert Corpus.from_jsonl(path)["7"].text == "One."
    assert [d.text for d in Corpus.from_text("One. Two.\nThree.\n\nFour.")] == ["One. Two. Three.", "Four."]
    assert [d.id for d in Corpus.from_text("One. Two.\n\nThree.", by="sentence")] == ["d0", "d1", "d2"]
    path.write_text('{"id": 7}\n')
    with pytest.raises(ValueError, match="line 1: expected an object with 'id' and 'contents'"):
        Corpus.from_jsonl(path)
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Corpus([Document("a", "x"), Document("a", "y")])
    with pytest.raises(ValueError, match="at least one document"):
        Corpus([])


def test_lines_of_another_form_are_dropped_and_counted():
    documents = [Document("d1", "It shows dots."), Document("d2", "None.")]
    text = "\n".join(
        [
            "- Does it show dots? | [d1] | It shows dots.",
            "1. Is it dark? | d2 | None.",
            "Here are the questions:",
            "Does it show veils? | d9 | no such document",
            "It shows dots | d1 | not a question",
            "Is it red? | d1",
            "",
        ]
    )
    concepts, dropped = parse_concepts(text, documents, "melanoma")
    assert concepts == [
        Concept("Does it show dots?", "d1", "It shows dots.", "melanoma"),
        Concept("Is it dark?", "d2", "None.", "melanoma"),
    ]
    assert dropped == 4


def test_used_documents_never_return_and_accepted_concepts_become_queries():
    documents = Corpus(
        [Document(f"m{i}", f"A melanoma shows sign{i} pigment.") for i in range(12)]
        + [Document("s", "Sign3 pigment goes with a streak.")]
    )
    asked = []

    def model(prompt):
        asked.append(prompt)
        shown = [line[1:].partition("]")[0] for line in prompt.splitlines() if line.startswith("[")]
        return "\n".join(f"Is there pigment of {name}? | {name} | quoted" for name in shown)

    made = generate_bottleneck(["melanoma"], BM25Retriever(documents), model, [], modality="photograph")
    given = [line for prompt in asked for line in prompt.splitlines() if line.startswith("[")]
    assert len(given) == len(set(given)) == len(made)
    assert asked[0].count("\n[") == 10
    assert "Query: melanoma" in asked[0]
    assert any("Query: Is there pigment" in prompt for prompt in asked[1:])
    assert made["Is there pigment of m0?"] == Concept("Is there pigment of m0?", "m0", "quoted", "melanoma")


def test_generation_stops_at_the_number_of_concepts_and_of_rounds():
    model = RuleBasedModel()
    options = {"modality": "photograph"}
    assert len(generate_bottleneck(["malignant"], BM25Retriever(textbook()), model, [], num_concepts=3, **options)) == 3
    one = generate_bottleneck(["malignant"], BM25Retriever(textbook()), model, [], max_rounds=1, **options)
    assert one.report.rounds == 1
    with pytest.raises(ValueError, match="no concept passed"):
        generate_bottleneck(["melanoma"], BM25Retriever(corpus()), lambda prompt: "", [], **options)
    with pytest.raises(ValueError, match="num_concepts must be positive, got 0"):
        generate_bottleneck(["x"], BM25Retriever(corpus()), model, [], num_concepts=0, **options)


def test_concepts_prompted_without_documents_have_no_provenance():
    made = prompted_bottleneck(["malignant"], RuleBasedModel(textbook()), [], modality="photograph")
    assert "Does the lesion show radial streaks?" in made.questions
    assert {concept.document for concept in made} == {""}


@pytest.mark.parametrize(("yes", "passes"), [(9, False), (10, True), (90, True), (91, False)])
def test_the_groundable_gate_asks_for_a_tenth_of_the_rarer_answer(yes, passes):
    gate = GroundableGate(["There is ulceration."] * yes + ["No ulceration."] * (100 - yes))
    assert gate("Does the lesion show ulceration?", []) is passes


def test_a_question_that_no_report_answers_is_not_groundable():
    gate = GroundableGate(["Nothing to say."] * 100)
    assert gate.share("Is there ulceration?") == 0.0
    assert not gate("Is there ulceration?", [])
    with pytest.raises(ValueError, match="at least one report"):
        GroundableGate([])


def test_the_gates_reject_what_they_are_for():
    model = RuleBasedModel()
    assert VisibleGate(model, "photograph")("Is the border irregular?", [])
    assert not VisibleGate(model, "photograph")("Does the lesion itch?", [])
    unique = UniqueGate(model)
    assert not unique("Does the lesion have irregular borders?", ["Is the border of the lesion irregular?"])
    assert unique("Does the lesion show dark pigment?", ["Is the border of the lesion irregular?"])
    named = ClassNameGate(["basal cell carcinoma", "nevus"])
    assert not named("Is this a carcinoma of basal cells?", [])
    assert named("Are there cells?", [])
    order = [gate.name for gate in standard_gates(model, ["a"], ["b"], modality="photograph")]
    assert order == ["visible", "unique", "class name", "groundable"]


@pytest.mark.parametrize(
    ("report", "answer"),
    [
        ("Ulceration.", 1),
        ("There is marked ulceration of the lesion.", 1),
        ("No ulceration is seen.", -1),
        ("Without crusts or ulceration.", -1),
        ("Absence of ulceration.", -1),
        ("The patient denies ulceration.", -1),
        ("Ulceration is absent.", -1),
        ("Ulceration was not seen.", -1),
        ("No crusts, but ulceration is seen.", 1),
        ("No one of the many small old crusts hides ulceration.", 1),
        ("Not only crusts: ulceration.", 1),
        ("Ulcers? A border.", 0),
        ("", 0),
        ("Ulceration at the rim. No ulceration in the middle.", 0),
    ],
)
def test_negation_is_read(report, answer):
    assert annotate_reports([report], ["Does the lesion show ulceration?"]).tolist() == [[answer]]


def test_all_words_asked_about_must_stand_together():
    read = PhraseAnnotator(synonyms={"edge": "border"})
    question = "Is the border of the lesion irregular?"
    assert read("Borders are irregular.", question) == 1
    assert read("An irregular edge.", question) == 1
    assert read("An irregular shape, seen next to a sharp and well drawn border.", question) == 0
    assert read("Irregular. A border.", question) == 0
    assert read("There is a lesion.", "Is there a lesion?") == 0


def test_annotators_must_answer_with_three_values():
    with pytest.raises(ValueError, match=r"answers -1, 0 or 1, got \[2\]"):
        annotate_reports(["x"], ["y?"], lambda report, question: 2)
    with pytest.raises(TypeError, match="report 1 must be a text, got float"):
        annotate_reports(iter(["x", float("nan")]), ["Is it red?"])
    assert annotate_reports([], ["Is it red?"]).shape == (0, 1)


def test_a_language_model_annotates_and_unclear_answers_count_as_unknown():
    read = ModelAnnotator(lambda prompt: "Yes." if "Report: red" in prompt else "I cannot say")
    assert annotate_reports(["red", "pale"], ["Is it red?"], read).tolist() == [[1], [0]]
    assert read.unclear == 1
    assert [answer_of(text) for text in ("No, never", " **unknown**", "notable", "")] == ["no", "unknown", None, None]


def test_the_rules_answer_the_five_prompts_and_no_others():
    model = RuleBasedModel(textbook())
    assert model(prior_prompt("photograph", "malignant", "Does the lesion show radial streaks?")) == "yes"
    assert model(prior_prompt("photograph", "benign", "Does the lesion show radial streaks?")) == "no"
    assert model(prior_prompt("photograph", "benign", "Does the lesion show a halo?")) == "unknown"
    documents = [Document("d", "A wart has thick scale, dark dots and often no hair.")]
    lines = model(propose_prompt("photograph", "lesion", "wart", documents)).splitlines()
    assert [line.partition(" | ")[0] for line in lines] == [
        "Does the lesion show thick scale?", "Does the lesion show dark dots?", "Does the lesion show hair?",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="the rules answer the prompts"):
        model("Write a poem.")


def test_bottlenecks_are_saved_with_provenance_and_refuse_repetitions(tmp_path):
    model = RuleBasedModel(textbook())
    made = generate_bottleneck(["benign"], BM25Retriever(textbook()), model, [UniqueGate(model)], modality="photograph")
    made.save(tmp_path / "b.json")
    assert Bottleneck.load(tmp_path / "b.json") == made
    with pytest.raises(ValueError, match="occurs twice"):
        Bottleneck((Concept("a?"), Concept("a?")))
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(ValueError, match="is no bottleneck"):
        Bottleneck.load(tmp_path / "b.json")
    (tmp_path / "q.txt").write_text("Is it red?\nIs it dark?\n\nIs it red?\n")
    read = Bottleneck.from_questions(tmp_path / "q.txt")
    assert (read.questions, read.duplicates, read.name) == (("Is it red?", "Is it dark?"), ("Is it red?",), "q")
    with pytest.raises(FileNotFoundError, match="one question a line"):
        Bottleneck.from_questions(tmp_path / "none.txt")


def test_words():
    assert [lemma(w) for w in ("borders", "biopsies", "patches", "gas", "colours", "pus", "loss")] == [
        "border", "biopsy", "patch", "gas", "colours"[:4] and "color", "pus", "loss",
    ]  # fmt: skip
    assert sentences("It is 6.5 mm. Dark; round.") == ["It is 6.5 mm.", "Dark;", "round."]
    assert jaccard("Is the border irregular?", "Does the lesion show irregular borders?") == 1.0
