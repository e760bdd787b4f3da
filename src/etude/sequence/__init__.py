"""Papers on sequences. `load_mixers()` makes the mixers of all of them known to `etude.nn.mixers.build_mixer`."""

import importlib.util
import pkgutil

__all__ = ["load_mixers"]


def load_mixers() -> None:
    """Imports every paper's mixers, the module `mixers` of its package, so that they are registered."""
    for paper in pkgutil.iter_modules(__path__):
        if paper.ispkg and importlib.util.find_spec(f"{__name__}.{paper.name}.mixers") is not None:
            importlib.import_module(f"{__name__}.{paper.name}.mixers")
