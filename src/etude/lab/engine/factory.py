"""Engines by name."""

from __future__ import annotations

import os

from etude.lab.engine.base import Engine

__all__ = ["ENGINES", "make_engine"]

ENGINES = ("inline", "process", "ray")


def make_engine(name: str, *, workers: int | None = None, address: str | None = None) -> Engine:
    """The engine `name`, ready for work.

    Args:
        name: inline, process or ray.
        workers: worker processes of `process`, and tasks in flight of `ray`; the number of cores if None.
        address: of a Ray cluster; a local one is started if None.

    Raises:
        ValueError: for an unknown name or fewer than one worker.
        ImportError: if Ray is asked for and not installed.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if name == "inline":
        from etude.lab.engine.inline import InlineEngine

        return InlineEngine()
    if name == "process":
        from etude.lab.engine.process import ProcessEngine

        return ProcessEngine(workers or os.cpu_count() or 1)
    if name == "ray":
        from etude.lab.engine.ray import RayEngine

        return RayEngine(workers=workers, address=address)
    raise ValueError(f"unknown engine {name!r}; the engines are {', '.join(ENGINES)}")
