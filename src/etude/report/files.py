"""Writing files whole: a reader sees the old content or the new one, never half of it."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Writes `content` beside `path`, then puts it in its place; makes the folder if needed.

    Raises:
        OSError: if the folder cannot be written or the disk is full; its `filename` is `path`.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
