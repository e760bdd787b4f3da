"""Edge-of-stability tracking: the sharpness beside the optimizer's threshold, while any loop trains."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from etude.training.opposing_signals.curvature import adam_preconditioner, sharpness, stability_threshold
from etude.training.opposing_signals.examples import FixedSet, LossFn, trainable

__all__ = ["SharpnessRecord", "SharpnessTracker"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharpnessRecord:
    """One measurement.

    Attributes:
        step: updates made before it.
        values: the largest eigenvalues, descending; NaN where they could not be found.
        threshold: the sharpness at which the optimizer's steps become unstable, NaN if unknown.
        products: Hessian-vector products it took.
    """

    step: int
    values: tuple[float, ...]
    threshold: float
    products: int

    @property
    def ratio(self) -> float:
        """Sharpness over threshold: 1 at the edge of stability."""
        return self.values[0] / self.threshold


class SharpnessTracker:
    """Measures the sharpness every few updates of a training loop.

    Attach it to the optimizer and leave the loop as it was; it measures before updates 0, `every`, 2 `every`, ...:

        tracker = SharpnessTracker(model, cross_entropy, (x, y), every=10).attach(optimizer)
        train(...)
        tracker.values, tracker.ratios, tracker.peak

    Without an optimizer to hook into, call `tracker.step()` once before each update instead.

    Each measurement starts from the eigenvector of the one before, so that a single small Krylov space of `n_iter`
    products, about `2 n_iter` gradients of the whole set, usually does. Nothing of the run is touched.

    Args:
        model, loss_fn, data, batch_size, params: as for `sharpness`. `data` is the whole training set, or a group: a
            mini-batch has another Hessian than the loss that is descended.
        every: updates between two measurements.
        neigs, method, n_iter, tol, max_products: as for `sharpness`.
        preconditioned: with Adam or AdamW attached, look at P^(-1/2) H P^(-1/2), whose edge the threshold is.
        generator: of the random parts of the starts; seeded with 0 if None.

    Raises:
        ValueError: if `every` is not positive.
        FloatingPointError: while training, if the parameters have diverged; the message names the update.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Any,
        *,
        every: int = 10,
        neigs: int = 1,
        method: str = "lanczos",
        n_iter: int = 8,
        tol: float = 1e-2,
        max_products: int = 1000,
        batch_size: int | None = None,
        params: Iterable[Tensor] | None = None,
        preconditioned: bool = False,
        generator: torch.Generator | None = None,
    ):
        if every < 1:
            raise ValueError(f"every must be positive, got {every}")
        FixedSet(data, batch_size)
        self.every, self.preconditioned = every, preconditioned
        self.records: list[SharpnessRecord] = []
        self.vector: Tensor | None = None
        self._model, self._loss_fn, self._data = model, loss_fn, data
        self._params = trainable(model, params)
        self._neigs = neigs
        self._arguments: dict[str, Any] = {
            "neigs": neigs, "method": method, "n_iter": n_iter, "tol": tol, "max_products": max_products,
            "batch_size": batch_size,
        }  # fmt: skip
        self._generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._optimizer: Optimizer | None = None
        self._handle: Any = None
        self._count = 0

    def attach(self, optimizer: Optimizer) -> "SharpnessTracker":
        """From here on every `optimizer.step()` counts; the threshold is the optimizer's at its learning rate then."""
        if self._handle is not None:
            raise RuntimeError("the tracker is attached already; remove() it first")
        self._optimizer = optimizer

        def before(*_: Any) -> None:
            self.step()

        self._handle = optimizer.register_step_pre_hook(before)
        return self

    def remove(self) -> None:
        """Detaches the tracker; its records stay."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def step(self) -> SharpnessRecord | None:
        """Counts an update that is about to be made, and measures if it is one of every `every`."""
        due = self._count % self.every == 0
        record = self.measure() if due else None
        self._count += 1
        return record

    def measure(self) -> SharpnessRecord | None:
        """Measures now. None before Adam's first step, when there is no preconditioner yet."""
        preconditioner = None
        if self.preconditioned:
            if self._optimizer is None:
                raise RuntimeError("preconditioned=True needs the optimizer: attach(optimizer) first")
            if not self._optimizer.state:
                return None
            preconditioner = adam_preconditioner(self._optimizer, self._params)
        limit = None if self._optimizer is None else stability_threshold(self._optimizer)
        try:
            found = sharpness(
                self._model, self._loss_fn, self._data, params=self._params, v0=self._next_start(),
                preconditioner=preconditioner, generator=self._generator, **self._arguments,
            )  # fmt: skip
        except FloatingPointError as error:
            raise FloatingPointError(f"before update {self._count}: {error}") from None
        except RuntimeError as error:
            # A training run must not end for want of a diagnostic.
            _log.warning("step %d: %s", self._count, error)
            values, products = (math.nan,) * self._neigs, 0
        else:
            values, products = tuple(found.values.tolist()), found.products
            self.vector = found.vectors[0]
        record = SharpnessRecord(self._count, values, math.nan if limit is None else limit, products)
        self.records.append(record)
        return record

    def _next_start(self) -> Tensor | None:
        """The last eigenvector with a tenth of noise: from an exact one Lanczos sees no direction that overtook it."""
        if self.vector is None:
            return None
        noise = torch.randn(self.vector.shape, generator=self._generator, device=self._generator.device)
        return self.vector + 0.1 * (noise / noise.norm()).to(self.vector)

    @property
    def steps(self) -> list[int]:
        return [record.step for record in self.records]

    @property
    def values(self) -> Float[Tensor, " records"]:
        """The sharpness of each record."""
        return torch.tensor([record.values[0] for record in self.records])

    @property
    def ratios(self) -> Float[Tensor, " records"]:
        """Sharpness over threshold of each record: above 1, steps along the sharpest direction grow."""
        return torch.tensor([record.ratio for record in self.records])

    @property
    def peak(self) -> float:
        """The largest sharpness measured.

        Raises:
            ValueError: if nothing has been measured.
        """
        found = [record.values[0] for record in self.records if not math.isnan(record.values[0])]
        if not found:
            raise ValueError("no sharpness has been measured yet")
        return max(found)

    @property
    def edge_step(self) -> int | None:
        """The first measured step at which the sharpness had reached the threshold; None if it never did."""
        return next((record.step for record in self.records if record.ratio >= 1), None)
