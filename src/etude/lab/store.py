"""The store: one folder a trial, written whole or not at all, by one coordinator at a time.

    runs/<claim>/<scale>/<trial id>-<fingerprint prefix>/result.json, series.jsonl, figures/*.svg

Paths inside are relative, so stores merge by copying. The index is built in memory by reading the results.
"""

from __future__ import annotations

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
        except OSError:
            lock.seek(0)
            holder = lock.read().strip()
            lock.close()
            raise StoreLocked(f"the store {self.path} is held by another run ({holder or 'unknown process'})") from None
        try:
            lock.seek(0)
            lock.truncate()
            lock.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            lock.flush()
        except OSError as error:
            raise _refusal(f"cannot write the store {self.path}", error) from error
        self._lock = lock
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
        record = outcome.record(task, fingerprint)
        name = f"{task.id}-{fingerprint[:_PREFIX]}"
        folder = self.path.joinpath(*task.claim.split("/"), task.scale, name)
        writing = self.path / f".writing-{name}"
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            if outcome.series:
                lines = (
                    json.dumps([metric, step, value]) + "\n"
                    for metric, points in outcome.series.items()
                    for step, value in points
                )
                (writing / "series.jsonl").write_text("".join(lines), encoding="utf-8")
            with open(writing / "result.json", "w", encoding="utf-8") as handle:
                json.dump(record, handle, indent=1)
                handle.flush()
                os.fsync(handle.fileno())
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                old = self.path / f"{_REPLACED}{name}"
                shutil.rmtree(old, ignore_errors=True)
                os.rename(folder, old)
                os.rename(writing, folder)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(writing, folder)
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise _refusal(f"cannot write {folder}", error) from error
        result = Result(folder, record)
        self._read()[task.id, fingerprint[:_PREFIX]] = result
        return result

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
                except (OSError, ValueError, KeyError, TypeError) as error:
                    _log.warning("ignored the unreadable result %s (%s); the trial will run again", path, error)
                    continue
                self._index[key] = Result(path.parent, record)
        return self._index


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
