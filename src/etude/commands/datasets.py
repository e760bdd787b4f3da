"""`etude data`: the catalogue of public data sets."""

from __future__ import annotations

import json

from etude.commands.parsing import BadUsage

__all__ = ["act"]


def act(action: str, name: str | None, *, as_json: bool) -> str:
    """Lists the sets, says where one lies, or fetches it."""
    from etude.data import catalogue

    if action == "list":
        rows = catalogue.list_sets()
        if as_json:
            return json.dumps(rows, indent=1)
        return "\n".join(
            f"{'+' if row['present'] else '.'} {row['name']:<20} {row['kind']:<10} {row['summary']}" for row in rows
        )
    if action not in ("path", "fetch"):
        raise BadUsage(f"unknown action {action!r}; etude data takes list, path or fetch")
    if name is None:
        raise BadUsage(f"etude data {action} takes the name of a set; `etude data list` shows them")
    try:
        folder = catalogue.path(name) if action == "path" else catalogue.fetch(name)
    except ValueError as error:
        raise BadUsage(str(error)) from None
    return json.dumps({"name": name, "path": str(folder)}) if as_json else str(folder)
