"""Data: typed kinds, loaders that return them, and the catalogue of public sets.

    from etude.data import images
    data = images.digits()

`etude.data.kinds` holds one dataclass per kind; `images`, `detection`, `faces`, `characters`, `fields`, `graphs`,
`signals`, `tables`, `uci`, `expression`, `clicks`, `multitask`, `relational`, `ranking`, `knobo`, `nas_tables` and
`text` load files, embedded sets and public sets; `user` recognises what a user has; `catalogue` says which public sets
exist, where they are and how to get them.
Submodules are imported when first used, so that listing the catalogue does not import torch.
"""

import importlib
from types import ModuleType

from etude.data.catalogue import home, locate

__all__ = [
    "catalogue",
    "characters",
    "clicks",
    "detection",
    "expression",
    "faces",
    "fields",
    "graphs",
    "home",
    "images",
    "kinds",
    "knobo",
    "locate",
    "multitask",
    "nas_tables",
    "ranking",
    "relational",
    "signals",
    "tables",
    "text",
    "uci",
    "user",
]

_SUBMODULES = (
    "catalogue",
    "characters",
    "clicks",
    "detection",
    "expression",
    "faces",
    "fields",
    "graphs",
    "images",
    "kinds",
    "knobo",
    "multitask",
    "nas_tables",
    "ranking",
    "relational",
    "signals",
    "tables",
    "text",
    "uci",
    "user",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
