"""Readers of test collections: formats, grades, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest

from etude.data import catalogue, ranking
from etude.data.kinds_ranking import RankingData


def have_cranfield():
    try:
        catalogue.locate("cranfield")
    except FileNotFoundError:
        return False
    return True


@pytest.mark.skipif(not have_cranfield(), reason="the Cranfield collection is not here")
def test_cranfield_has_its_counts_and_inverted_grades():
    data = ranking.cranfield()
    assert (len(data.documents), len(data.queries), len(data.judged())) == (1400, 225, 225)
    grades = Counter(grade for row in data.judgements.values() for grade in row.values())
    # The file has 128 codes 1, 387 codes 2, 734 codes 3, 363 codes 4 and 225 codes -1.
    assert grades == {4: 128, 3: 387, 2: 734, 1: 363, 0: 225}
    assert data.documents["471"] == data.documents["995"] == ""
    assert data.documents["1"].startswith("experimental investigation of the aerodynamics")
    assert data.titles["1"].startswith("experimental investigation of the aerodynamics of a wing")


@pytest.mark.skipif(not have_cranfield(), reason="the Cranfield collection is not here")
def test_cranfield_queries_bear_their_place_and_not_their_printed_number():
    data = ranking.cranfield()
    assert list(data.queries) == [str(number) for number in range(1, 226)]
    assert data.queries["3"].startswith("what problems of heat conduction in composite slabs")  # printed as 004


def write_cranfield(folder, documents=2):
    folder.mkdir(exist_ok=True)
    records = "".join(
        f".I {n}\n.T\ntitle {n}\n.A\nx\n.B\ny\n.W\ntitle {n}\nbody {n}\n" for n in range(1, documents + 1)
    )
    (folder / "cran.all.1400").write_text(records)
    (folder / "cran.qry").write_text(".I 001\n.W\none\n.I 004\n.W\ntwo words\n")
    (folder / "cranqrel").write_text("1 1 1\n2 2 -1\n")


def test_an_edited_copy_of_cranfield_is_refused_with_its_counts(tmp_path):
    write_cranfield(tmp_path)
    with pytest.raises(ValueError, match=r"1400.*'documents': 2, 'queries': 2, 'judgements': 2"):
        ranking.cranfield(tmp_path)


def write_beir(folder, corpus=None, qrels="query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t-1\n"):
    (folder / "qrels").mkdir()
    rows = corpus or [{"_id": "d1", "title": "T", "text": "a b"}, {"_id": "d2", "text": "c"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": "q1", "text": "a"}, {"_id": "q2", "text": "of the training split"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "test.tsv").write_text(qrels)


def test_beir_folders_are_read_with_titles_and_the_queries_of_the_split(tmp_path):
    write_beir(tmp_path)
    data = ranking.beir(tmp_path, name="mine")
    assert data.documents == {"d1": "T\na b", "d2": "c"}
    assert data.titles == {"d1": "T"}
    assert data.queries == {"q1": "a"}
    assert data.judgements == {"q1": {"d1": 2, "d2": 0}}  # -1 is no grade
    assert data.name == "mine"


def test_a_document_id_that_occurs_twice_is_named(tmp_path):
    write_beir(tmp_path, corpus=[{"_id": "d1", "text": "a"}, {"_id": "d1", "text": "b"}])
    with pytest.raises(ValueError, match="'d1' occurs twice"):
        ranking.beir(tmp_path)


def test_a_judgement_of_an_unknown_document_is_named_or_dropped(tmp_path):
    write_beir(tmp_path, qrels="q1\td1\t1\nq1\tnowhere\t1\n")
    with pytest.raises(ValueError, match="'nowhere', which is not there"):
        ranking.beir(tmp_path)
    assert ranking.beir(tmp_path, unknown="drop").judgements == {"q1": {"d1": 1}}
    with pytest.raises(ValueError, match="'raise' or 'drop'"):
        ranking.beir(tmp_path, unknown="keep")


def test_a_collection_that_is_not_here_says_what_to_place_where(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"place corpus.jsonl, queries.jsonl"):
        ranking.named("robust04")
    (tmp_path / "mine").mkdir()
    write_beir(tmp_path / "mine")
    assert ranking.named("mine").name == "mine"


def test_trec_records_topics_and_qrels(tmp_path):
    (tmp_path / "docs.sgml").write_text(
        "<DOC>\n<DOCNO> A-1 </DOCNO>\n<TITLE>Wings</TITLE>\n<TEXT>lift and drag</TEXT>\n</DOC>\n"
        "<DOC><DOCNO>A-2</DOCNO><TEXT>heat</TEXT></DOC>\n"
    )
    (tmp_path / "topics").write_text(
        "<top>\n<num> Number: 301\n<title> lift of wings\n\n<desc> Description:\nx\n</top>\n"
    )
    (tmp_path / "qrels").write_text("301 0 A-1 1\n301 0 A-2 0\n")
    data = ranking.trec(tmp_path / "docs.sgml", tmp_path / "topics", tmp_path / "qrels")
    assert data.queries == {"301": "lift of wings"}
    assert data.titles == {"A-1": "Wings"}
    assert data.documents["A-1"].split() == ["Wings", "lift", "and", "drag"]
    assert data.judgements == {"301": {"A-1": 1, "A-2": 0}}


def test_tables_of_id_and_text_are_read_as_ms_marco_has_them(tmp_path):
    (tmp_path / "collection.tsv").write_text("7\tlift and\tdrag\n8\theat\n")
    (tmp_path / "queries.tsv").write_text("1\twings\n")
    (tmp_path / "qrels").write_text("1 0 7 1\n")
    data = ranking.trec(tmp_path / "collection.tsv", tmp_path / "queries.tsv", tmp_path / "qrels")
    assert data.documents == {"7": "lift and\tdrag", "8": "heat"}
    (tmp_path / "queries.tsv").write_text("1 wings\n")
    with pytest.raises(ValueError, match="line 1: expected an id, a tab and a text"):
        ranking.trec(tmp_path / "collection.tsv", tmp_path / "queries.tsv", tmp_path / "qrels")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 d1\n", "line 1: expected query, iteration, document, grade"),
        ("1 0 d1 good\n", "the grade must be a number, got 'good'"),
        ("1 0 d1 1\n1 0 d1 0\n", "line 2: query '1' judges the document 'd1' twice"),
    ],
)
def test_a_bad_qrels_line_is_named(tmp_path, text, message):
    (tmp_path / "qrels").write_text(text)
    with pytest.raises(ValueError, match=message):
        ranking.read_qrels(tmp_path / "qrels")


def test_runs_are_written_best_first_and_read_back(tmp_path):
    run = {"1": {"b": 1.5, "a": 1.5, "c": 1e-17}, "2": {"a": -3.25}}
    ranking.write_run(run, tmp_path / "run")
    lines = (tmp_path / "run").read_text().splitlines()
    assert lines[0] == "1 Q0 a 1 1.5 etude"
    assert [line.split()[2] for line in lines] == ["a", "b", "c", "a"]
    assert ranking.read_run(tmp_path / "run") == run
    (tmp_path / "run").write_text("1 Q0 a 1\n")
    with pytest.raises(ValueError, match="expected query, Q0, document, rank, score, tag"):
        ranking.read_run(tmp_path / "run")


def test_wikiqa_sentences_are_documents(tmp_path):
    head = "QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel\n"
    rows = "Q1\thow\tD1\tIt\tD1-0\tso.\t0\nQ1\thow\tD1\tIt\tD1-1\tthus.\t1\nQ2\twhy\tD2\tThat\tD2-0\tnot.\t0\n"
    (tmp_path / "qa.tsv").write_text(head + rows)
    data = ranking.wikiqa(tmp_path / "qa.tsv")
    assert data.judgements == {"Q1": {"D1-0": 0, "D1-1": 1}, "Q2": {"D2-0": 0}}
    assert data.judged() == ("Q1",)
    assert data.unjudged() == ("Q2",)
    (tmp_path / "qa.tsv").write_text("Question\tSentence\n")
    with pytest.raises(ValueError, match="the head has no QuestionID, SentenceID, Label"):
        ranking.wikiqa(tmp_path / "qa.tsv")


def test_letor_features_grades_and_query_ids(tmp_path):
    (tmp_path / "letor").write_text("2 qid:10 1:0.5 2:1 # d1\n-1 qid:10 2:3\n0 qid:11 1:1\n")
    features, grades, queries = ranking.letor(tmp_path / "letor")
    np.testing.assert_array_equal(features, [[0.5, 1], [0, 3], [1, 0]])
    np.testing.assert_array_equal(grades, [2, 0, 0])
    np.testing.assert_array_equal(queries, [10, 10, 11])


@pytest.mark.parametrize("read", [ranking.read_qrels, ranking.read_run, ranking.wikiqa, ranking.letor, ranking.beir])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="nothing-here"):
        read(tmp_path / "nothing-here")


def test_frames_make_a_collection_and_negative_grades_become_zero():
    data = RankingData.from_frames([(1, "a"), (2, "b")], [("q", "a")], [("q", 1, 1), ("q", 2, -1)], name="frames")
    assert data.judgements == {"q": {"1": 1, "2": 0}}
    with pytest.raises(ValueError, match="document id '1' occurs twice"):
        RankingData.from_frames([(1, "a"), ("1", "b")], [("q", "a")], [])
    with pytest.raises(ValueError, match="judges the document '1' twice"):
        RankingData.from_frames([(1, "a")], [("q", "a")], [("q", 1, 1), ("q", 1, 2)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"documents": {}}, ValueError, "needs documents and queries, got 0, 1"),
        ({"documents": {"d": 3}}, TypeError, "documents must map str to str, got 'd': int"),
        ({"judgements": {"x": {"d": 1}}}, ValueError, "names the query 'x'"),
        ({"judgements": {"q": {"e": 1}}}, ValueError, "names the document 'e'"),
        ({"judgements": {"q": {"d": -1}}}, ValueError, "must be >= 0, got -1"),
        ({"judgements": {"q": {"d": 0.5}}}, TypeError, "must be int, got 0.5"),
        ({"titles": {"e": "x"}}, ValueError, "titles names the document 'e'"),
    ],
)
def test_a_collection_that_contradicts_itself_is_refused(change, error, message):
    values = {"documents": {"d": "text"}, "queries": {"q": "text"}, "judgements": {"q": {"d": 1}}, "name": "x"} | change
    with pytest.raises(error, match=message):
        RankingData(**values)
