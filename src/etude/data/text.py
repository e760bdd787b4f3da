"""Running text for language models: public sets, Python's own documentation, and a user's files.

    from etude.data import text
    data = text.tinyshakespeare()            # characters
    data = text.load("notes/", level="word") # .txt, .jsonl and .parquet files

tinyshakespeare: Karpathy, char-rnn, 2015. WikiText-2: Merity, Xiong, Bradbury & Socher, 2016, arXiv:1609.07843.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from etude.data.catalogue import locate
from etude.data.kinds_text import UNKNOWN, TextData

__all__ = ["from_text", "iterate", "load", "pydoc", "tinyshakespeare", "wikitext2_heldout"]

ENDINGS = (".txt", ".jsonl", ".parquet")
_LONGEST_LINE = 1 << 28


def from_text(
    train: str, val: str | None = None, test: str | None = None, *, level: str = "character",
    max_vocab: int | None = None, shares: tuple[float, float] = (0.9, 0.05), name: str = "text",
) -> TextData:  # fmt: skip
    """Tokens of a text.

    The vocabulary is that of the training part, in the order of code points (characters) or by falling frequency
    (words; ties alphabetically). What other parts have besides becomes `UNKNOWN`, which is in the vocabulary if they
    do, or if `max_vocab` cuts it.

    Args:
        train: the text, or its training part if `val` and `test` are given.
        val, test: the other parts; if None, they are cut from the end of the text.
        level: "character", "word" (what white space separates) or "byte" (of UTF-8).
        max_vocab: largest vocabulary, `UNKNOWN` included; None: all that occurs.
        shares: of the tokens, for training and validation, if the text is to be cut.
        name: what the data are called in tables.

    Raises:
        ValueError: if only one of `val` and `test` is given, a part has too few tokens, or `max_vocab` or the shares
            make no sense.
    """
    if (val is None) != (test is None):
        raise ValueError("give both val and test, or neither")
    if level == "byte":
        coded = [np.frombuffer(part.encode("utf-8"), dtype=np.uint8) for part in (train, val, test) if part is not None]
        ids = [torch.from_numpy(part.astype(np.int64)) for part in coded]
        if len(ids) == 1:
            first, second = _places(len(ids[0]), shares)
            ids = [ids[0][:first], ids[0][first:second], ids[0][second:]]
        return TextData(ids[0], ids[1], ids[2], tuple(map(chr, range(256))), "byte", name)
    if level not in ("character", "word"):
        raise ValueError(f"level must be character, word or byte, got {level!r}")
    if max_vocab is not None and max_vocab < 2:
        raise ValueError(f"max_vocab must be at least 2, got {max_vocab}")
    split = (lambda part: part.split()) if level == "word" else list
    tokens = [split(part) for part in (train, val, test) if part is not None]
    if len(tokens) == 1:
        first, second = _places(len(tokens[0]), shares)
        tokens = [tokens[0][:first], tokens[0][first:second], tokens[0][second:]]
    counts = Counter(tokens[0])
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    elsewhere = any(token not in counts for part in tokens[1:] for token in part)
    if UNKNOWN not in counts and (elsewhere or (max_vocab is not None and len(ranked) > max_vocab)):
        ranked.insert(0, UNKNOWN)
    if max_vocab is not None:
        kept = ranked[:max_vocab]
        ranked = kept if UNKNOWN in kept or len(kept) == len(ranked) else [*kept[:-1], UNKNOWN]
    if level == "character":
        ranked.sort()
    number = {token: i for i, token in enumerate(ranked)}
    unknown = number.get(UNKNOWN, 0)
    ids = [torch.tensor([number.get(token, unknown) for token in part], dtype=torch.int64) for part in tokens]
    return TextData(ids[0], ids[1], ids[2], tuple(ranked), level, name)


def _places(length: int, shares: tuple[float, float]) -> tuple[int, int]:
    train, val = shares
    if not (train > 0 and val > 0 and train + val < 1):
        raise ValueError(
            f"shares of training and validation must be positive and leave some for the test, got {shares}"
        )
    return int(length * train), int(length * (train + val))


@lru_cache(maxsize=2)
def tinyshakespeare(level: str = "character") -> TextData:
    """1.1 million characters of plays; the first 90 % train, 5 % validate, the last 5 % test.

    Raises:
        FileNotFoundError: if the set is not on this machine.
    """
    whole = (locate("tinyshakespeare") / "input.txt").read_text(encoding="utf-8")
    return from_text(whole, level=level, name="tinyshakespeare")


@lru_cache(maxsize=2)
def wikitext2_heldout(max_vocab: int | None = 8000) -> TextData:
    """Words of WikiText-2's validation file, of which the last 10 % validate, and of its test file.

    The training file is not part of the set: the first 90 % of the validation file train.

    Raises:
        FileNotFoundError: if the set is not on this machine.
    """
    folder = locate("wikitext2_heldout")
    words = (folder / "valid.txt").read_text(encoding="utf-8").replace("\n", " <eos> ").split()
    test = (folder / "test.txt").read_text(encoding="utf-8").replace("\n", " <eos> ")
    first = int(0.9 * len(words))
    train, val = " ".join(words[:first]), " ".join(words[first:])
    return from_text(train, val, test, level="word", max_vocab=max_vocab, name="wikitext2_heldout")


@lru_cache(maxsize=2)
def pydoc(level: str = "character") -> TextData:
    """The topics of Python's own help, half a million characters of English; they differ by version of Python.

    Characters outside ASCII are left out. The first 90 % train, 5 % validate, the last 5 % test.
    """
    from pydoc_data.topics import topics

    whole = "\n".join(topics[name] for name in sorted(topics))
    return from_text(whole.encode("ascii", errors="ignore").decode("ascii"), level=level, name="pydoc")


def iterate(path: str | os.PathLike, field: str = "text") -> Iterator[str]:
    """The documents at a path, one after another, without holding more than one.

    Args:
        path: a `.txt` file (one document), `.jsonl` (one JSON object or string a line), `.parquet`, or a folder of
            such files, read in the order of their names.
        field: of the objects or the table, the text.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: for a file of another kind, a folder without such files, bytes that are no UTF-8, a line that is
            no JSON or longer than 256 MiB, or rows without the field; the message names the place.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(f"there is nothing at {place}")
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not files:
            raise ValueError(f"{place} has no file that ends in {', '.join(ENDINGS)}")
        for file in files:
            yield from iterate(file, field)
    elif place.suffix.lower() == ".txt":
        try:
            yield place.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{place} is no UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    elif place.suffix.lower() == ".jsonl":
        yield from _json_lines(place, field)
    elif place.suffix.lower() == ".parquet":
        yield from _parquet(place, field)
    else:
        raise ValueError(f"text files end in {', '.join(ENDINGS)}, got {place.name}")


def _json_lines(place: Path, field: str) -> Iterator[str]:
    with open(place, "rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
                raise ValueError(f"{place}, line {number} is longer than {_LONGEST_LINE >> 20} MiB")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # of JSON or of UTF-8
                raise ValueError(f"{place}, line {number} is no JSON: {error}") from None
            if isinstance(row, dict):
                row = row.get(field)
            if not isinstance(row, str):
                raise ValueError(f"{place}, line {number} has no text in its field {field!r}")
            yield row


def _parquet(place: Path, field: str) -> Iterator[str]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("reading Parquet needs pyarrow: pip install 'etude[run]'") from error
    with parquet.ParquetFile(place) as table:
        if field not in table.schema_arrow.names:
            raise ValueError(f"{place} has no column {field!r}; it has {', '.join(table.schema_arrow.names)}")
        for batch in table.iter_batches(batch_size=256, columns=[field]):
            for value in batch.column(0).to_pylist():
                if not isinstance(value, str):
                    raise ValueError(f"{place}: the column {field!r} must hold text, got {type(value).__name__}")
                yield value


def load(
    path: str | os.PathLike, *, level: str = "character", field: str = "text", max_vocab: int | None = None
) -> TextData:
    """A user's text: documents in order, a line break between; the first 90 % train, 5 % validate, the last 5 % test.

    Args:
        path, field: as for `iterate`.
        level, max_vocab: as for `from_text`.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: as `iterate` and `from_text`; or if there are fewer than 100 tokens.
    """
    data = "\n".join(iterate(path, field))
    count = len(data.split()) if level == "word" else len(data)
    if count < 100:
        raise ValueError(f"{path} has {count} {level}s, too few to train on and to test: at least 100 are needed")
    return from_text(data, level=level, max_vocab=max_vocab, name=Path(path).stem)
