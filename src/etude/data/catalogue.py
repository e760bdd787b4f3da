"""Which public data sets there are, where they lie on this machine, and how to get them.

A set called NAME lies in the folder NAME of `home()`: the folder that the variable ETUDE_DATA names, else the user's
cache. `fetch` downloads a set from its own home, file by file, and keeps a file only if its SHA-256 is the recorded
one; nothing that is downloaded is executed or unpickled. What cannot be fetched is placed by hand, as `locate` says.

The table itself is `catalogue.json`, with kind, licence, home, and the checksum and address of every file; a set of
hundreds of files has one checksum of its manifest instead (sorted lines "SHA256  PATH").
"""

import difflib
import hashlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["cache_folder", "fetch", "home", "list_sets", "locate", "path", "sha256", "verify"]

_CHUNK = 1 << 20
# What people put beside the files of a set, outside its manifest.
_NOTES = ("SOURCE.txt", "LICENSE", "README", "README.txt", "LICENSE.txt")

Progress = Callable[[str, int, int | None], None]


@cache
def _table() -> dict[str, dict[str, Any]]:
    return json.loads((Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8"))


def cache_folder() -> Path:
    """The user's cache of etude: under LOCALAPPDATA on Windows, else under XDG_CACHE_HOME or ~/.cache."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "etude"


def home() -> Path:
    """The folder of data sets: ETUDE_DATA, else `data` in the user's cache. It need not exist."""
    given = os.environ.get("ETUDE_DATA")
    return Path(given).expanduser() if given else cache_folder() / "data"


def _entry(name: str) -> dict[str, Any]:
    table = _table()
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(table)}"
        raise ValueError(f"unknown data set {name!r}: {hint}")
    return table[name]


def _folders(name: str) -> list[Path]:
    return list(dict.fromkeys([home() / name, cache_folder() / "data" / name]))


def _here(name: str) -> Path | None:
    for folder in _folders(name):
        entry = _table().get(name, {})
        # Half a download is not a set: the folder counts once one of its files is whole.
        if folder.is_dir() and (
            any((folder / file).is_file() for file in entry["files"]) if "files" in entry else any(folder.iterdir())
        ):
            return folder
    return None


def _placing(name: str, entry: dict[str, Any]) -> str:
    if "files" in entry:
        files = list(entry["files"])
        what = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    else:
        what = f"its {entry['count']} files"
    note = f"; {entry['note']}" if "note" in entry else ""
    return f"{what} (from {entry['home']}{note}) into {home() / name}"


def _fetchable(entry: dict[str, Any]) -> bool:
    return "files" in entry and all("url" in file for file in entry["files"].values())


def locate(name: str) -> Path:
    """The folder of a set on this machine: in `home()`, or where `fetch` has put it.

    A folder of `home()` that the catalogue does not know is found, too.

    Raises:
        FileNotFoundError: if the set is not here; the message says what to place where.
        ValueError: if nobody knows the name.
    """
    folder = _here(name) if name else None
    if folder is not None:
        return folder
    entry = _entry(name)
    fetching = f"run `etude data fetch {name}`, or " if _fetchable(entry) else ""
    raise FileNotFoundError(f"data set {name} is not here: {fetching}place {_placing(name, entry)}")


path = locate


def list_sets() -> list[dict[str, Any]]:
    """Every set of the catalogue: name, kind, summary, licence, home, bytes, whether it can be fetched, where it is."""
    rows = []
    for name, entry in _table().items():
        folder = _here(name)
        row = {key: entry[key] for key in ("kind", "summary", "licence", "home", "bytes")}
        found = None if folder is None else str(folder)
        rows.append({"name": name, **row, "fetchable": _fetchable(entry), "present": folder is not None, "path": found})
    return rows


def sha256(file: str | os.PathLike) -> str:
    """Of a file's content, in hex."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(name: str) -> list[str]:
    """What is wrong with a set on this machine, one line a fault; an empty list if every checksum agrees."""
    entry, folder = _entry(name), locate(name)
    if "files" in entry:
        faults = []
        for file, facts in entry["files"].items():
            if not (folder / file).is_file():
                faults.append(f"{file} is missing")
            elif sha256(folder / file) != facts["sha256"]:
                faults.append(f"{file} differs from the recorded checksum")
        return faults
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.is_file() and file.relative_to(folder).as_posix() not in _NOTES
    )
    if len(files) != entry["count"]:
        return [f"{len(files)} files instead of {entry['count']}"]
    manifest = "".join(f"{sha256(folder / file)}  {file}\n" for file in files)
    if hashlib.sha256(manifest.encode()).hexdigest() != entry["manifest"]:
        return ["some file differs from the recorded manifest"]
    return []


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """Downloads what is missing of a set into the user's cache and gives its folder.

    Files that are there with the right checksum are left alone; a broken download is taken up where it stopped.

    Args:
        name: of the set.
        progress: called as `progress(file, bytes so far, bytes in all or None)`.

    Raises:
        FileNotFoundError: if the set has no address to fetch it from; the message says what to place where.
        ConnectionError: if its home cannot be reached.
        ValueError: if the name is unknown or a download has the wrong checksum.
    """
    entry = _entry(name)
    folder = _here(name)
    if folder is not None and not verify(name):
        return folder
    if not _fetchable(entry):
        raise FileNotFoundError(f"data set {name} has no address to fetch from: place {_placing(name, entry)}")
    target = cache_folder() / "data" / name
    for file, facts in entry["files"].items():
        if (target / file).is_file() and sha256(target / file) == facts["sha256"]:
            continue
        _download(facts["url"], target / file, facts["sha256"], progress)
    return target


def _download(url: str, target: Path, checksum: str, progress: Progress | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            resumed = start > 0 and answer.status == 206
            done = start if resumed else 0
            length = answer.headers.get("Content-Length")
            total = None if length is None else done + int(length)
            with open(part, "ab" if resumed else "wb") as stream:
                while chunk := answer.read(_CHUNK):
                    stream.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(target.name, done, total)
            if total is not None and done < total:
                raise ConnectionError(f"{url} broke off after {done} of {total} bytes: fetch again to go on")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is no beginning of this file
            part.unlink()
        raise ConnectionError(f"{url} answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, TimeoutError) as error:
        raise ConnectionError(f"{url} cannot be reached: {getattr(error, 'reason', error)}") from error
    found = sha256(part)
    if found != checksum:
        part.unlink()
        raise ValueError(f"{url} has SHA-256 {found}, expected {checksum}: nothing was kept")
    os.replace(part, target)
