import json

import pytest
import torch

from etude.data import text
from etude.data.kinds_text import UNKNOWN, TextData


def test_characters_come_back():
    data = text.from_text("the cat sat on the mat, " * 10, name="cat")
    assert data.level == "character"
    assert (len(data.train), len(data.val), len(data.test)) == (216, 12, 12)
    whole = data.decode(torch.cat([data.train, data.val, data.test]))
    assert whole == "the cat sat on the mat, " * 10
    assert list(data.vocabulary) == sorted(set(whole))
    assert data.decode(data.encode("a mat")) == "a mat"
    with pytest.raises(ValueError, match="'z' is not in the vocabulary"):
        data.encode("zoo")


def test_windows_are_followed_by_their_targets():
    data = text.from_text("abcdefghij" * 10)
    windows = data.windows("train", 4)
    assert windows.inputs.shape == (22, 4)
    assert data.decode(windows.inputs[1]) == "efgh"
    assert data.decode(windows.targets[1]) == "fghi"
    assert data.decode(data.windows("train", 4, stride=3).inputs[1]) == "defg"
    for arguments in (("train", 90), ("val", 0), ("test", 2, 0)):
        with pytest.raises(ValueError, match="windows need"):
            data.windows(*arguments)
    with pytest.raises(ValueError, match="part"):
        data.windows("all", 2)


def test_words_are_ranked_and_rare_ones_unknown():
    data = text.from_text("b a b a b c d", "a e", "c b", level="word", max_vocab=3)
    assert data.vocabulary == (UNKNOWN, "b", "a")
    assert data.train.tolist() == [1, 2, 1, 2, 1, 0, 0]
    assert data.val.tolist() == [2, 0]
    assert data.decode(data.test) == "<unk> b"
    assert data.encode("a z").tolist() == [2, 0]
    assert UNKNOWN not in text.from_text("a b " * 50, level="word").vocabulary
    marked = text.from_text("a <unk> a b", "a c", "a b", level="word", max_vocab=2)
    assert marked.vocabulary == ("a", UNKNOWN)


def test_bytes_of_any_text():
    data = text.from_text("caf\u00e9 " * 20, level="byte")
    assert data.vocab_size == 256
    assert data.decode(data.encode("\u00e9")) == "\u00e9"
    assert data.decode([0xE9]) == "\ufffd"


def test_bad_arguments_are_refused():
    for given, message in (
        ({"val": "ab"}, "both"),
        ({"level": "sentence"}, "level"),
        ({"max_vocab": 1}, "max_vocab"),
        ({"shares": (0.9, 0.2)}, "shares"),
    ):
        with pytest.raises(ValueError, match=message):
            text.from_text("ab" * 50, **given)
    ids = torch.tensor([0, 1])
    for fields, message in (
        ({"train": ids.float()}, "train must be int64"),
        ({"val": torch.tensor([0, 7])}, r"0\.\.1 \(2 tokens\), got 0\.\.7"),
        ({"test": ids[:1]}, "two tokens"),
        ({"vocabulary": ("a", "a")}, "each once"),
        ({"level": "letter"}, "level"),
    ):
        values = {"train": ids, "val": ids, "test": ids, "vocabulary": ("a", "b"), "level": "character", "name": "x"}
        with pytest.raises(ValueError, match=message):
            TextData(**{**values, **fields})


def test_a_users_files(tmp_path):
    import pandas

    (tmp_path / "a.txt").write_text("first " * 20, encoding="utf-8")
    rows = [{"text": "second"}, "third", {"text": "fourth", "id": 3}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    pandas.DataFrame({"text": ["fifth", "sixth"], "n": [1, 2]}).to_parquet(tmp_path / "c.parquet")
    assert list(text.iterate(tmp_path)) == ["first " * 20, "second", "third", "fourth", "fifth", "sixth"]
    data = text.load(tmp_path)
    assert data.decode(data.train[:5]) == "first"
    assert data.decode(data.test).startswith("th\nsi")
    assert text.load(tmp_path / "a.txt", level="byte").name == "a"


def test_files_that_cannot_be_read_say_where(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{text}\n', encoding="utf-8")
    (tmp_path / "other.jsonl").write_text('{"body": "a"}\n', encoding="utf-8")
    (tmp_path / "empty.txt").write_text("", encoding="utf-8")
    (tmp_path / "notes.doc").write_text("x", encoding="utf-8")
    (tmp_path / "none").mkdir()
    for name, message in (
        ("latin.txt", "byte 3 is 0xe9"),
        ("bad.jsonl", "line 2 is no JSON"),
        ("other.jsonl", "line 1 has no text in its field 'text'"),
        ("empty.txt", "0 characters, too few"),
        ("notes.doc", r"\.txt, \.jsonl, \.parquet"),
        ("none", "has no file"),
    ):
        with pytest.raises(ValueError, match=message):
            text.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing at"):
        text.load(tmp_path / "absent.txt")


def test_one_enormous_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_LONGEST_LINE", 64)
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "x" * 100}), encoding="utf-8")
    with pytest.raises(ValueError, match="line 1 is longer"):
        list(text.iterate(tmp_path / "long.jsonl"))


def test_pythons_own_documentation_needs_no_file():
    data = text.pydoc()
    assert data.vocab_size < 128
    assert len(data.train) > 300_000


def test_tinyshakespeare_by_its_published_split():
    try:
        data = text.tinyshakespeare()
    except FileNotFoundError:
        pytest.skip("tinyshakespeare is not here")
    assert data.vocab_size == 65
    assert len(data.train) + len(data.val) + len(data.test) == 1_115_394
    assert len(data.train) == 1_003_854
    assert data.decode(data.train[:14]) == "First Citizen:"


def test_words_of_wikitext():
    try:
        data = text.wikitext2_heldout(2000)
    except FileNotFoundError:
        pytest.skip("wikitext2_heldout is not here")
    assert data.vocab_size == 2000
    assert {UNKNOWN, "<eos>"} <= set(data.vocabulary)
    assert len(data.test) > 200_000
