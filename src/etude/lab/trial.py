"""A trial as the claim's function sees it: one arm at one seed, with named streams of randomness."""

from __future__ import annotations

import hashlib
import io
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from etude.lab.paper import Setup

if TYPE_CHECKING:
    import numpy
    import torch

__all__ = ["Trial", "stream_seed"]

_MAX_POINTS = 2_000
_MAX_FIGURE_BYTES = 200_000


def stream_seed(claim: str, seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name`: the same in every arm, another for every claim, seed and name."""
    digest = hashlib.sha256(f"{claim}\0{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Trial:
    """One arm of a claim at one seed.

    Arms are paired: a stream gives every arm of a seed the same draws, and draws of one stream never shift another.

    Attributes:
        claim: id of the claim, with its data set.
        arm, seed, scale: what this trial is.
        setup: the numbers of the scale.
        tuned: the tuned values of this arm; a knob that the arm does not have is None.
        tuning: True in a tuning run, whose validation metric alone is looked at.
        device: "cpu" or "cuda".
    """

    def __init__(
        self,
        claim: str,
        arm: str,
        seed: int,
        scale: str = "small",
        setup: Setup | None = None,
        tuned: dict[str, Any] | None = None,
        *,
        tuning: bool = False,
        device: str = "cpu",
        report: Callable[[int, int, dict[str, float]], None] | None = None,
    ):
        self.claim, self.arm, self.seed, self.scale = claim, arm, seed, scale
        self.setup = setup if setup is not None else Setup()
        self.tuned = SimpleNamespace(**(tuned or {}))
        self.tuning, self.device = tuning, device
        self.series: dict[str, list[tuple[float, float]]] = {}
        self.figures: dict[str, str] = {}
        self._report = report
        self._generators: dict[str, torch.Generator] = {}
        self._rngs: dict[str, numpy.random.Generator] = {}
        self._states: dict[str, Any] = {}

    def stream_seed(self, name: str) -> int:
        return stream_seed(self.claim, self.seed, name)

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        """Inside, torch, numpy and random draw from the stream `name`; outside, they go on as if nothing had been.

        Entering a stream again continues it where it was left.
        """
        import numpy as np
        import torch

        outside = _global_state()
        if name in self._states:
            _restore_global_state(self._states[name])
        else:
            seed = self.stream_seed(name)
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        try:
            yield
        finally:
            self._states[name] = _global_state()
            _restore_global_state(outside)

    def generator(self, name: str) -> torch.Generator:
        """The stream `name` as a `torch.Generator` on the CPU; the same object whenever it is asked for."""
        import torch

        if name not in self._generators:
            self._generators[name] = torch.Generator().manual_seed(self.stream_seed(name))
        return self._generators[name]

    def rng(self, name: str) -> numpy.random.Generator:
        """The stream `name` as a `numpy.random.Generator`; the same object whenever it is asked for."""
        import numpy as np

        if name not in self._rngs:
            self._rngs[name] = np.random.default_rng(self.stream_seed(name))
        return self._rngs[name]

    def log(self, step: float | int, **metrics: Any) -> None:
        """Adds a point to the curve of each metric."""
        for name, value in metrics.items():
            points = self.series.setdefault(name, [])
            points.append((float(step), float(value)))
            if len(points) > 2 * _MAX_POINTS:
                del points[1::2]

    def progress(self, step: int, total: int, **metrics: Any) -> None:
        """Tells how far the trial is; fits `loop.fit` as a callback."""
        if self._report is not None:
            self._report(step, total, metrics)

    def figure(self, name: str, picture: Any) -> None:
        """Keeps a picture: SVG text, or a matplotlib figure, which is closed."""
        if not isinstance(picture, str):
            buffer = io.StringIO()
            picture.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
            import matplotlib.pyplot as plt

            plt.close(picture)
            picture = buffer.getvalue()
        start = picture.find("<svg")
        if start < 0:
            raise ValueError(f"figure {name!r} is not SVG: it starts with {picture[:40]!r}")
        if len(picture) > _MAX_FIGURE_BYTES:
            raise ValueError(f"figure {name!r} has {len(picture):,} bytes; at most {_MAX_FIGURE_BYTES:,} are kept")
        self.figures[name] = picture[start:]

    def check_metrics(self, metrics: Any, needed: set[str]) -> dict[str, float]:
        """The metrics as plain floats.

        Raises:
            TypeError: if they are not a mapping to numbers.
            ValueError: if a needed metric is missing or any is not finite.
        """
        if not hasattr(metrics, "items"):
            raise TypeError(f"a trial returns a dict of metrics, got {type(metrics).__name__}")
        values = {}
        for name, value in metrics.items():
            try:
                values[str(name)] = float(value)
            except (TypeError, ValueError):
                raise TypeError(f"metric {name!r} must be a number, got {value!r}") from None
        for name, number in values.items():
            if not math.isfinite(number):
                raise ValueError(f"metric {name!r} is {number}")
        missing = sorted(needed - set(values))
        if missing:
            raise ValueError(f"no metric {', '.join(missing)} was returned; there are {', '.join(sorted(values))}")
        return values


def _global_state() -> tuple[Any, ...]:
    import numpy as np
    import torch

    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def _restore_global_state(state: tuple[Any, ...]) -> None:
    import numpy as np
    import torch

    torch.set_rng_state(state[0])
    np.random.set_state(state[1])
    random.setstate(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])
