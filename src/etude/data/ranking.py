"""Test collections for search from the formats in which they are published.

    from etude.data import ranking
    data = ranking.cranfield()
    data = ranking.beir("scifact/", split="test")

    what lies there                                                 reader
    the Cranfield collection (.I .T .A .B .W records)               `cranfield`
    BEIR: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv              `beir`
    TREC: <DOC> records or TSV, topics or TSV, a qrels file         `trec`
    MS MARCO: id TAB text, id TAB text, a qrels file                `trec`, too
    WikiQA: one TSV of question, sentence, label                    `wikiqa`
    LETOR / SVMlight features with query ids                        `letor`

Grades below 0 (spam, "no interest") become 0. A judgement of a document that is not there is an error that names it, or
with `unknown="drop"` left out, as for a part of a collection.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from etude.data.catalogue import home, locate
from etude.data.kinds_ranking import RankingData

__all__ = ["beir", "cranfield", "letor", "named", "read_qrels", "read_run", "trec", "wikiqa", "write_run"]

_CRANFIELD_COUNTS = {"documents": 1400, "queries": 225, "judgements": 1837}
_CRANFIELD_GAIN = {1: 4, 2: 3, 3: 2, 4: 1}  # code 1 is the best; 5 and -1 say "of no interest"
PathLike = str | os.PathLike


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; empty ones are passed over."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def _add(texts: dict[str, str], key: str, text: str, what: str, path: Path) -> None:
    if key in texts:
        raise ValueError(f"{path}: the {what} id {key!r} occurs twice")
    texts[key] = text


def read_qrels(path: PathLike) -> dict[str, dict[str, int]]:
    """Judgements from a TREC qrels file: query, iteration, document, grade. Negative grades become 0.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line has not four fields, a grade is no integer, or a pair is judged twice.
    """
    grades: dict[str, dict[str, int]] = {}
    for number, line in _lines(Path(path)):
        fields = line.split()
        if len(fields) != 4:
            raise ValueError(f"{path}, line {number}: expected query, iteration, document, grade, got {line!r}")
        _judge(grades, fields[0], fields[2], fields[3], f"{path}, line {number}")
    return grades


def _judge(grades: dict[str, dict[str, int]], query: str, document: str, grade: str, where: str) -> None:
    try:
        value = int(float(grade))
    except ValueError:
        raise ValueError(f"{where}: the grade must be a number, got {grade!r}") from None
    row = grades.setdefault(query, {})
    if document in row:
        raise ValueError(f"{where}: query {query!r} judges the document {document!r} twice")
    row[document] = max(value, 0)


def read_run(path: PathLike) -> dict[str, dict[str, float]]:
    """A run from a TREC run file (query, Q0, document, rank, score, tag): query -> document -> score.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line has not six fields, a score is no number, or a document occurs twice for a query.
    """
    run: dict[str, dict[str, float]] = {}
    for number, line in _lines(Path(path)):
        fields = line.split()
        if len(fields) != 6:
            raise ValueError(f"{path}, line {number}: expected query, Q0, document, rank, score, tag, got {line!r}")
        row = run.setdefault(fields[0], {})
        if fields[2] in row:
            raise ValueError(f"{path}, line {number}: the document {fields[2]!r} occurs twice for query {fields[0]!r}")
        try:
            row[fields[2]] = float(fields[4])
        except ValueError:
            raise ValueError(f"{path}, line {number}: the score must be a number, got {fields[4]!r}") from None
    return run


def write_run(run: Mapping[str, Mapping[str, float]], path: PathLike, *, tag: str = "etude") -> None:
    """Writes a run as TREC tools read it, each query best first, ties by document id."""
    lines = []
    for query, scores in run.items():
        ordered = sorted(scores, key=lambda document: (-scores[document], document))
        lines += [
            f"{query} Q0 {document} {rank} {scores[document]!r} {tag}" for rank, document in enumerate(ordered, start=1)
        ]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _records(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(id, field -> text) of a file of .I .T .A .B .W records."""
    key, field, fields = "", "", dict[str, list[str]]()
    for number, line in _lines(path):
        head = line[:2]
        if head == ".I":
            if fields:
                yield key, {name: "\n".join(texts) for name, texts in fields.items()}
            key, field, fields = line[2:].strip(), "", {"I": []}
        elif head in (".T", ".A", ".B", ".W") and not line[2:].strip():
            field = head[1]
            fields[field] = []
        elif field:
            fields[field].append(line)
        else:
            raise ValueError(f"{path}, line {number}: text outside of a record: {line!r}")
    if fields:
        yield key, {name: "\n".join(texts) for name, texts in fields.items()}


def cranfield(root: PathLike | None = None) -> RankingData:
    """The Cranfield collection: 1,400 abstracts on aerodynamics, 225 queries, 1,837 judgements of grades 0 to 4.

    The codes of the judgements are turned round (code 1, the best, is grade 4; 4 is 1; -1 is 0). Queries bear the
    numbers 1 to 225 by their order in the file, as the judgements do. The text of a document is its `.W`
    field, which begins with the title; two documents (471, 995) have none.

    Args:
        root: folder of cran.all.1400, cran.qry and cranqrel; the data set `cranfield` if None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the counts are not those above: edited copies are about.
    """
    folder = locate("cranfield") if root is None else Path(root)
    documents: dict[str, str] = {}
    titles: dict[str, str] = {}
    for key, fields in _records(folder / "cran.all.1400"):
        _add(documents, key, fields.get("W", ""), "document", folder / "cran.all.1400")
        titles[key] = " ".join(fields.get("T", "").split())
    queries = {
        str(number): " ".join(fields.get("W", "").split())
        for number, (_, fields) in enumerate(_records(folder / "cran.qry"), start=1)
    }
    grades: dict[str, dict[str, int]] = {}
    for number, line in _lines(folder / "cranqrel"):
        parts = line.split()
        if len(parts) != 3:
            raise ValueError(f"{folder / 'cranqrel'}, line {number}: expected query, document, code, got {line!r}")
        gain = _CRANFIELD_GAIN.get(int(parts[2]), 0)
        _judge(grades, parts[0], parts[1], str(gain), f"{folder / 'cranqrel'}, line {number}")
    counts = {
        "documents": len(documents), "queries": len(queries), "judgements": sum(len(row) for row in grades.values()),
    }  # fmt: skip
    if counts != _CRANFIELD_COUNTS:
        raise ValueError(f"the Cranfield collection has {_CRANFIELD_COUNTS}, the files in {folder} have {counts}")
    return RankingData(documents, queries, grades, "cranfield", titles)


def beir(folder: PathLike, *, split: str = "test", name: str = "", unknown: str = "raise") -> RankingData:
    """A collection in the layout of BEIR: `corpus.jsonl`, `queries.jsonl` and `qrels/SPLIT.tsv`.

    The text of a document is its title and text. Only the queries that the split judges are kept.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a line cannot be read, an id occurs twice, or a judgement names what is not there.
    """
    place = Path(folder)
    documents: dict[str, str] = {}
    titles: dict[str, str] = {}
    for row in _json_lines(place / "corpus.jsonl"):
        title = str(row.get("title") or "")
        _add(documents, row["_id"], f"{title}\n{row['text']}".strip(), "document", place / "corpus.jsonl")
        if title:
            titles[row["_id"]] = title
    queries: dict[str, str] = {}
    for row in _json_lines(place / "queries.jsonl"):
        _add(queries, row["_id"], row["text"], "query", place / "queries.jsonl")
    grades: dict[str, dict[str, int]] = {}
    path = place / "qrels" / f"{split}.tsv"
    for number, line in _lines(path):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{path}, line {number}: expected query, document, grade between tabs, got {line!r}")
        if number == 1 and fields[2].strip() == "score":
            continue
        _judge(grades, fields[0], fields[1], fields[2], f"{path}, line {number}")
    grades = _known(grades, queries, documents, unknown)
    asked = {query: queries[query] for query in queries if query in grades}
    return RankingData(documents, asked, grades, name or place.name, titles)


def _json_lines(path: Path) -> Iterator[dict]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            row = row | {"_id": str(row["_id"]), "text": str(row["text"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected an object with _id and text: {error}") from None
        yield row


def _known(
    grades: dict[str, dict[str, int]], queries: Mapping[str, str], documents: Mapping[str, str], unknown: str
) -> dict[str, dict[str, int]]:
    if unknown not in ("raise", "drop"):
        raise ValueError(f"unknown must be 'raise' or 'drop', got {unknown!r}")
    if unknown == "raise":
        return grades
    kept = {
        query: {document: grade for document, grade in row.items() if document in documents}
        for query, row in grades.items()
        if query in queries
    }
    return {query: row for query, row in kept.items() if row}


def trec(
    documents: PathLike, queries: PathLike, qrels: PathLike, *, name: str = "trec", unknown: str = "raise"
) -> RankingData:
    """A collection from a file of documents, one of queries and one of judgements.

    Args:
        documents: `id TAB text` lines (`.tsv`, as MS MARCO has them), else <DOC> records with <DOCNO>; or a folder of
            files with such records.
        queries: `id TAB text` lines, else <top> topics with <num> and <title>.
        qrels: query, iteration, document, grade.
        name: what the collection is called in tables.
        unknown: "raise", or "drop" judgements of queries and documents that are not there.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file cannot be read as said, an id occurs twice, or a judgement names what is not there.
    """
    place = Path(documents)
    files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
    texts: dict[str, str] = {}
    titles: dict[str, str] = {}
    for file in files:
        if file.suffix == ".tsv":
            for key, text in _tsv(file):
                _add(texts, key, text, "document", file)
            continue
        for body in _tagged("DOC", file):
            key = _first("DOCNO", body)
            if not key:
                raise ValueError(f"{file}: a <DOC> without <DOCNO>: {body[:60]!r}")
            title = " ".join(part for tag in ("TITLE", "HEADLINE", "HL") if (part := _first(tag, body)))
            rest = re.sub(r"<DOCNO>.*?</DOCNO>", " ", body, flags=re.S | re.I)
            _add(texts, key, re.sub(r"<[^>]+>", " ", rest).strip(), "document", file)
            if title:
                titles[key] = title
    asked: dict[str, str] = {}
    if Path(queries).suffix == ".tsv":
        for key, text in _tsv(Path(queries)):
            _add(asked, key, text, "query", Path(queries))
    else:
        for body in _tagged("top", Path(queries)):
            number = re.search(r"<num>\s*(?:Number:)?\s*(\S+)", body, flags=re.I)
            asked_for = re.search(r"<title>\s*(?:Topic:)?(.*?)(?=<|\Z)", body, flags=re.S | re.I)
            if not number or not asked_for:
                raise ValueError(f"{queries}: a topic without <num> or <title>: {body[:60]!r}")
            _add(asked, number.group(1), " ".join(asked_for.group(1).split()), "query", Path(queries))
    grades = _known(read_qrels(qrels), asked, texts, unknown)
    return RankingData(texts, asked, grades, name, titles)


def _tsv(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path):
        key, tab, text = line.partition("\t")
        if not tab:
            raise ValueError(f"{path}, line {number}: expected an id, a tab and a text, got {line[:60]!r}")
        yield key, text


def _tagged(tag: str, path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    text = path.read_text(encoding="utf-8", errors="replace")
    return re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.S | re.I)


def _first(tag: str, body: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", body, flags=re.S | re.I)
    return " ".join(re.sub(r"<[^>]+>", " ", found.group(1)).split()) if found else ""


def wikiqa(path: PathLike, *, name: str = "wikiqa") -> RankingData:
    """WikiQA's table (QuestionID, Question, DocumentID, DocumentTitle, SentenceID, Sentence, Label), tab-separated.

    Sentences are the documents. Questions without an answer stay, and are what `RankingData.unjudged` counts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing or a line has not as many fields as the head.
    """
    place = Path(path)
    lines = _lines(place)
    _, head = next(lines, (0, ""))
    columns = head.split("\t")
    missing = [
        column for column in ("QuestionID", "Question", "SentenceID", "Sentence", "Label") if column not in columns
    ]
    if missing:
        raise ValueError(f"{place}: the head has no {', '.join(missing)}: {head[:80]!r}")
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    grades: dict[str, dict[str, int]] = {}
    for number, line in lines:
        fields = dict(zip(columns, line.split("\t")))
        if len(fields) != len(columns):
            raise ValueError(f"{place}, line {number}: expected {len(columns)} fields, got {len(fields)}")
        _add(documents, fields["SentenceID"], fields["Sentence"], "sentence", place)
        queries[fields["QuestionID"]] = fields["Question"]
        _judge(grades, fields["QuestionID"], fields["SentenceID"], fields["Label"], f"{place}, line {number}")
    return RankingData(documents, queries, grades, name)


def letor(path: PathLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (n, f) float32, grades (n,) and query ids (n,) of a LETOR / SVMlight file with `qid:` fields.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if scikit-learn is missing.
        ValueError: if it cannot be read so.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        from sklearn.datasets import load_svmlight_file
    except ImportError as error:
        raise ImportError('reading LETOR files needs scikit-learn: pip install "etude[run]"') from error
    features, grades, queries = load_svmlight_file(str(path), query_id=True, dtype=np.float32)
    return features.toarray(), np.maximum(grades, 0).astype(np.int64), queries


def named(name: str) -> RankingData:
    """A collection in the layout of BEIR, placed by the user as the folder NAME of the data home.

    Raises:
        FileNotFoundError: if it is not there; the message says what to place where.
    """
    place = home() / name
    if not (place / "corpus.jsonl").is_file():
        raise FileNotFoundError(
            f"collection {name} is not here: place corpus.jsonl, queries.jsonl and qrels/test.tsv into {place}"
        )
    return beir(place, name=name)
