"""The store: one folder a trial, written whole or not at all, by one coordinator at a time.

    runs/<claim>/<scale>/<trial id>-<fingerprint prefix>/result.json, series.jsonl

Paths inside are relative, so stores merge by copying, and a copy made in the middle of a run is a store. The index is
built in memory by reading the results. A result comes to its place in one rename, after everything in it has reached
the disk: a process that is killed and a machine that loses its power leave whole results only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from etude.lab.task import Outcome, Task

__all__ = ["Result", "Store", "StoreError", "StoreLocked"]

_log = logging.getLogger(__name__)
_PREFIX = 8
_REPLACED = ".writing-old-"
_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


class StoreError(OSError):
    """The store cannot be used: read-only, full, or not a folder."""


class StoreLocked(StoreError):
    """Another run holds the store."""


@dataclass(frozen=True)
class Result:
    """A stored trial."""

    folder: Path
    record: dict[str, Any]

    @property
    def id(self) -> str:
        return self.record["id"]

    @property
    def fingerprint(self) -> str:
        return self.record["fingerprint"]

    @property
    def trial(self) -> dict[str, Any]:
        return self.record["trial"]

    @property
    def status(self) -> str:
        return self.record["status"]

    def series(self) -> dict[str, list[tuple[float, float]]]:
        """The logged curves, read when asked for."""
        curves: dict[str, list[tuple[float, float]]] = {}
        path = self.folder / "series.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                name, step, value = json.loads(line)
                curves.setdefault(name, []).append((step, value))
        return curves


class Store:
    """Trials under one folder.

    Reading needs no lock. To write, enter the store as a context: that takes the lock, which the operating system
    releases when the process ends, however it ends.

    Raises:
        StoreLocked: if another process holds the lock.
        StoreError: if the folder cannot be written.
    """

    def __init__(self, path: str | Path = "runs"):
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._index: dict[tuple[str, str], Result] | None = None

    def __enter__(self) -> Store:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+", encoding="utf-8")
        except OSError as error:
            raise _refusal(f"cannot write the store {self.path}", error) from error
        try:
            _take(lock)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            if error.errno not in _HELD:
                raise _refusal(f"cannot lock the store {self.path}", error) from error
            raise StoreLocked(f"the store {self.path} is held by another run ({holder or 'unknown process'})") from None
        try:
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            lock.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing tries to write once more
                lock.close()
            raise _refusal(f"cannot write the store {self.path}", error) from error
        self._lock, self._index = lock, None  # another run may have written since the index was read
        for leftover in self.path.glob(f"{_REPLACED}*"):
            self._put_back(leftover)
        for leftover in self.path.glob(".writing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _put_back(self, replaced: Path) -> None:
        """Undoes a replacement that was killed between taking the old result away and putting the new one there."""
        try:
            trial = json.loads((replaced / "result.json").read_text(encoding="utf-8"))["trial"]
            home = self.path.joinpath(*trial["claim"].split("/"), trial["scale"], replaced.name.removeprefix(_REPLACED))
            if not home.exists():
                os.rename(replaced, home)
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.info("dropped the unreadable leftover %s (%s)", replaced, error)

    def results(self, claim: str | None = None) -> Iterator[Result]:
        """All trials that can be read, of one claim if named. A torn or foreign result is named in the log and left."""
        for result in self._read().values():
            if claim is None or result.trial["claim"] == claim:
                yield result

    def get(self, trial_id: str, fingerprint: str) -> Result | None:
        """The trial of that identity, obtained with that code."""
        return self._read().get((trial_id, fingerprint[:_PREFIX]))

    def put(self, task: Task, outcome: Outcome, fingerprint: str) -> Result:
        """Stores an outcome atomically and returns it; replaces an earlier one of the same trial and code.

        Raises:
            StoreError: if it cannot be written; what was stored before is untouched.
        """
        if self._lock is None:
            raise StoreError(f"the store {self.path} is open for reading only")
        lines = "".join(
            json.dumps([metric, step, value]) + "\n"
            for metric, points in outcome.series.items()
            for step, value in points
        ).encode()
        record = outcome.record(task, fingerprint) | {"series_bytes": len(lines)}
        name = f"{task.id}-{fingerprint[:_PREFIX]}"
        folder = self.path.joinpath(*task.claim.split("/"), task.scale, name)
        writing = self.path / f".writing-{name}"
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            if lines:
                _write(writing / "series.jsonl", lines)
            _write(writing / "result.json", json.dumps(record, indent=1).encode())
            _sync(writing)
            self._make(folder.parent)
            if folder.exists():
                old = self.path / f"{_REPLACED}{name}"
                shutil.rmtree(old, ignore_errors=True)
                os.rename(folder, old)
                os.rename(writing, folder)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(writing, folder)
            _sync(folder.parent)
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise _refusal(f"cannot write {folder}", error) from error
        result = Result(folder, record)
        self._read()[task.id, fingerprint[:_PREFIX]] = result
        return result

    def _make(self, folder: Path) -> None:
        """Makes a folder of the store; each new one is on the disk before anything is put into it."""
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(exist_ok=True)
            _sync(folder.parent)

    def _read(self) -> dict[tuple[str, str], Result]:
        if self._index is None:
            self._index = {}
            for path in sorted(self.path.glob("**/result.json")):
                if path.parent.name.startswith("."):
                    continue
                try:
                    record = json.loads(path.read_text(encoding="utf-8"))
                    key = (record["id"], record["fingerprint"][:_PREFIX])
                    _ = record["trial"]["claim"], record["trial"]["tuning"], record["metrics"], record["status"]
                    _check_series(path.with_name("series.jsonl"), record.get("series_bytes"))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    _log.warning("ignored the unreadable result %s (%s); the trial will run again", path, error)
                    continue
                self._index[key] = Result(path.parent, record)
        return self._index


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _sync(folder: Path) -> None:
    """Sends the names in a folder to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network disks sync files only
            raise
    finally:
        os.close(handle)


def _check_series(path: Path, size: int | None) -> None:
    """Refuses curves that a copy cut short, or that belong to another result. Early records tell no size."""
    found = path.stat().st_size if path.is_file() else 0
    if size is not None and found != size:
        raise ValueError(f"its curves have {found} bytes instead of {size}")


def _refusal(what: str, error: OSError) -> StoreError:
    full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
    return StoreError(f"{what}{full}: {error.strerror or error}")


def _take(lock: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        lock.seek(0)
        msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
