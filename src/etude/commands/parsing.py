"""Reading what a user typed."""

import re

__all__ = ["BadUsage", "one_line", "seeds"]


class BadUsage(ValueError):
    """An option or argument that makes no sense; the message says what would."""


def seeds(text: str | None) -> tuple[int, ...] | None:
    """Seeds from a count ("5" gives 0-4) or an inclusive range ("100-104")."""
    from etude.lab.paper import TUNING_SEED

    if text is None:
        return None
    if text.isdecimal():
        chosen = tuple(range(int(text)))
    elif match := re.fullmatch(r"(\d+)-(\d+)", text):
        chosen = tuple(range(int(match[1]), int(match[2]) + 1))
    else:
        raise BadUsage(f"--seeds takes a count such as 5 or a range such as 100-104, got {text!r}")
    if not chosen or chosen[-1] >= TUNING_SEED:
        raise BadUsage(f"--seeds must name at least one seed below {TUNING_SEED}, got {text!r}")
    return chosen


def one_line(error: BaseException) -> str:
    """The first line of an error's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
