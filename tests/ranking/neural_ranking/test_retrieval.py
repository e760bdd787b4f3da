"""Words, vectors and the first stage against loops written out."""

import math
from collections import Counter

import bm25s
import numpy as np
import pytest
import torch

from etude.ranking.neural_ranking import (
    RM3,
    BM25Retriever,
    QueryLikelihood,
    Tokenizer,
    Vocabulary,
    letter_trigrams,
    read_embeddings,
    train_embeddings,
    trigram_table,
)
from etude.ranking.neural_ranking.text import pad

DOCUMENTS = {
    "d1": "lift lift drag of a wing wing wing", "d2": "heat transfer in slip flow flow", "d3": "wing flow",
    "d4": "heat heat heat drag drag lift flow wing", "d5": "",
}  # fmt: skip
PLAIN = Tokenizer(stem="none")


def tokens_of(documents=DOCUMENTS):
    return {name: PLAIN(text) for name, text in documents.items()}


def naive_bm25(query, k1, b):
    tokens = tokens_of()
    average = sum(map(len, tokens.values())) / len(tokens)
    scores = {}
    for name, words in tokens.items():
        total = 0.0
        for word in PLAIN(query):
            tf, df = words.count(word), sum(word in other for other in tokens.values())
            if tf == 0:
                continue
            idf = math.log(1 + (len(tokens) - df + 0.5) / (df + 0.5))
            total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(words) / average))
        scores[name] = total
    return scores


def naive_ql(query, mu):
    tokens = tokens_of()
    everything = Counter(word for words in tokens.values() for word in words)
    size = sum(everything.values())
    return {
        name: sum(
            math.log((words.count(word) + mu * everything[word] / size) / (len(words) + mu))
            for word in PLAIN(query)
            if everything[word]
        )
        for name, words in tokens.items()
    }


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (0.0, 0.0), (2, 1)])
@pytest.mark.parametrize("query", ["wing flow", "drag", "heat heat wing", "heat unknown"])
def test_bm25_scores_equal_a_double_loop(query, k1, b):
    retriever = BM25Retriever(k1, b, tokenizer=PLAIN).fit(DOCUMENTS)
    expected = list(naive_bm25(query, k1, b).values())
    np.testing.assert_allclose(retriever.scores(query), expected, rtol=1e-12, atol=1e-12)


def test_bm25_scores_are_those_of_bm25s_up_to_its_constant():
    engine = bm25s.BM25(k1=1.2, b=0.75, method="lucene", dtype="float64")
    engine.index(list(tokens_of().values()), show_progress=False)
    ours = BM25Retriever(tokenizer=PLAIN).fit(DOCUMENTS).scores("wing flow heat")
    np.testing.assert_allclose(ours, 2.2 * engine.get_scores(["wing", "flow", "heat"]), rtol=1e-12)


@pytest.mark.parametrize("mu", [10, 1000.0])
@pytest.mark.parametrize("query", ["wing flow", "heat heat wing", "heat unknown"])
def test_query_likelihood_equals_a_double_loop(query, mu):
    retriever = QueryLikelihood(mu, tokenizer=PLAIN).fit(DOCUMENTS)
    np.testing.assert_allclose(retriever.scores(query), list(naive_ql(query, mu).values()), rtol=1e-12)


def test_idf_is_never_negative():
    vocabulary = Vocabulary([["everywhere", "here"], ["everywhere"], ["everywhere"]])
    idf = vocabulary.idf
    assert idf.min() >= 0
    assert idf[vocabulary.ids(["everywhere"])[0]] == pytest.approx(math.log(1 + 0.5 / 3.5))


def test_search_gives_the_best_first_and_ties_by_document_id():
    documents = {"b": "wing", "a": "wing", "c": "wing flow", "z": "heat"}
    run = BM25Retriever(b=0, tokenizer=PLAIN).fit(documents).search({"q": "wing", "none": "the of", "odd": "xyz"}, k=2)
    assert list(run["q"]) == ["a", "b"]
    assert run["none"] == run["odd"] == {}
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        BM25Retriever(tokenizer=PLAIN).fit(documents).search({"q": "wing"}, k=0)


def test_documents_without_a_word_of_the_query_are_not_found():
    run = QueryLikelihood(tokenizer=PLAIN).fit(DOCUMENTS).search({"q": "drag"}, k=10)
    assert set(run["q"]) == {"d1", "d4"}


def test_rm3_with_the_query_alone_keeps_the_order_and_adds_words_otherwise():
    retriever = BM25Retriever(tokenizer=PLAIN).fit(DOCUMENTS)
    plain = retriever.search({"q": "heat"}, k=5)["q"]
    assert list(RM3(retriever, original=1).search({"q": "heat"}, k=5)["q"])[: len(plain)] == list(plain)
    weights = RM3(retriever, documents=2, terms=3).expand("slip")
    words = {retriever.vocabulary_.tokens[token]: weight for token, weight in weights.items()}
    assert sum(words.values()) == pytest.approx(1)
    # d2 alone has the word; its model is tf / length: flow 2/5, the others 1/5, of which ids decide two.
    assert words["flow"] == pytest.approx(0.5 * 0.4 / 0.8)
    assert words["slip"] >= 0.5


def test_the_tokenizer_lowers_drops_stop_words_and_stems():
    assert Tokenizer(stem="none")("The Wings, of a Jet-plane!") == ["wings", "jet", "plane"]
    assert Tokenizer()("The relational conditions were flying") == ["relat", "condit", "fly"]  # Porter, 1980
    with pytest.raises(ValueError, match="'porter' or 'none', got 'light'"):
        Tokenizer(stem="light")


def test_rare_words_are_unknown_and_unknown_words_share_an_id():
    vocabulary = Vocabulary([["a", "b"], ["a", "c"], ["a", "c"]], min_df=2)
    assert vocabulary.tokens == ("", "", "a", "c")
    assert vocabulary.ids(["a", "b", "zzz", "c"]) == [2, 1, 1, 3]
    with pytest.raises(ValueError, match="min_df must be at least 1, got 0"):
        Vocabulary([["a"]], min_df=0)


def test_longer_texts_are_cut_and_the_share_is_told():
    ids, mask, cut = pad([[5, 6, 7], [8], []], 2)
    assert ids.tolist() == [[5, 6], [8, 0], [0, 0]]
    assert mask.tolist() == [[True, True], [True, False], [False, False]]
    assert cut == pytest.approx(1 / 3)


def test_letter_trigrams_of_good():
    assert letter_trigrams("good") == ["#go", "goo", "ood", "od#"]
    table = trigram_table(["", "", "good", "go"], size=1000)
    assert table.shape == (4, 4)
    assert (table[:2] == 1000).all()
    assert (table[3] == 1000).sum() == 2
    assert table[2, 0] == table[3, 0]  # both begin with #go


def test_ppmi_svd_vectors_equal_a_dense_decomposition():
    documents = [["a", "b", "a", "c"], ["b", "d", "e"], ["c", "d", "a"], ["e", "b"]]
    vocabulary = Vocabulary(documents)
    counts = np.zeros((len(vocabulary), len(vocabulary)))
    for row in (vocabulary.ids(tokens) for tokens in documents):
        for i, left in enumerate(row):
            for j, right in enumerate(row):
                counts[left, right] += 0 < abs(i - j) <= 2
    shares = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
    ppmi = np.log(np.maximum(counts, 1e-300) / np.maximum(shares, 1e-300))
    ppmi = np.maximum(np.where(counts > 0, ppmi, 0), 0)
    left, strength, _ = np.linalg.svd(ppmi)
    expected = left[:, :3] * np.sqrt(strength[:3])
    expected = expected / np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    ours = train_embeddings(documents, vocabulary, dim=3, window=2)
    assert (ours[:2] == 0).all()
    # Singular vectors are known up to their sign, cosines are not.
    np.testing.assert_allclose((ours @ ours.T)[2:, 2:], (expected @ expected.T)[2:, 2:], atol=1e-5)
    torch.testing.assert_close(ours, train_embeddings(documents, vocabulary, dim=3, window=2))


def test_words_that_never_meet_another_have_no_vector():
    vocabulary = Vocabulary([["alone"], ["a", "b"]])
    vectors = train_embeddings([["alone"], ["a", "b"]], vocabulary, dim=50)
    assert vectors.shape == (5, 50)
    assert (vectors[vocabulary.ids(["alone"])[0]] == 0).all()


def test_vectors_are_read_from_word2vec_and_glove_text(tmp_path):
    vocabulary = Vocabulary([["wing", "flow", "rare"]])
    for head in ("2 3\n", ""):
        (tmp_path / "vectors.txt").write_text(f"{head}wing 1 2 3\nother 0 0 0\nflow 4 5 6\n")
        vectors, found = read_embeddings(tmp_path / "vectors.txt", vocabulary)
        assert vectors[vocabulary.ids(["flow"])[0]].tolist() == [4, 5, 6]
        assert vectors[vocabulary.ids(["rare"])[0]].tolist() == [0, 0, 0]
        assert found == pytest.approx(2 / 3)
    (tmp_path / "vectors.txt").write_text("wing 1 2 3\nflow 4 5\n")
    with pytest.raises(ValueError, match="line 2: expected 3 values, got 2"):
        read_embeddings(tmp_path / "vectors.txt", vocabulary)
    with pytest.raises(FileNotFoundError, match="no-file"):
        read_embeddings(tmp_path / "no-file", vocabulary)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BM25Retriever(-1), "got -1 and 0.75"),
        (lambda: BM25Retriever(b=2), "got 1.2 and 2"),
        (lambda: QueryLikelihood(0), "mu must be positive, got 0"),
        (lambda: RM3(BM25Retriever(), original=2), "original in"),
        (lambda: BM25Retriever().fit({}), "there is no document"),
        (lambda: train_embeddings([["a"]], Vocabulary([["a"]]), dim=0), "got 0 and 5"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
