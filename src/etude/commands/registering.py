"""`etude registry`: writes or checks registry.json."""

from __future__ import annotations

import json

import typer

from etude.lab.registry import build_registry, registry_file

__all__ = ["check", "write"]


def _text() -> str:
    return json.dumps({"papers": build_registry()}, indent=1, ensure_ascii=False) + "\n"


def write() -> str:
    """Generates the file from the claims files."""
    path = registry_file()
    text = _text()
    path.write_text(text, encoding="utf-8")
    return f"wrote {path.name}: {len(json.loads(text)['papers'])} papers"


def check() -> str:
    """Says whether the file is what the claims files would generate; exit status 1 if not."""
    path = registry_file()
    if not path.is_file() or path.read_text(encoding="utf-8") != _text():
        typer.echo(f"{path.name} is out of step with the claims files: run `etude registry`", err=True)
        raise typer.Exit(1)
    return f"{path.name} is in step"
