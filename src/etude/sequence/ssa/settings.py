"""How a layer samples its sources, and when."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from etude.sequence.ssa.sampling import SAMPLERS, IndexSets, sample_sources

__all__ = ["MODES", "Subsampling"]

MODES = ("training", "always", "never")


@dataclass
class Subsampling:
    """What a layer that samples its sources keeps beside its parameters.

    Args:
        fraction, sampler, window, sigma: see `sample_sources`. With a window, `fraction` says nothing to `local`.
        per_row: whether every row of a batch has a sample of its own.
        mode: "training": while the module trains; "always"; "never".
        compensate: whether log(1 / fraction) is added to the sampled scores. Not in the paper.
        generator: CPU generator of the draws; torch's global one if None.
    """

    fraction: float | int = 0.25
    sampler: str = "local"
    window: int | None = None
    sigma: float | int | None = None
    per_row: bool = True
    mode: str = "training"
    compensate: bool = False
    generator: torch.Generator | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {self.fraction}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.sigma is not None and self.sigma < 0:
            raise ValueError(f"sigma must not be negative, got {self.sigma}")

    @property
    def logit_bias(self) -> float:
        """What is added to the sampled scores."""
        return math.log(1 / self.fraction) if self.compensate else 0.0

    def samples(self, training: bool) -> bool:
        """Whether the next forward pass samples."""
        return self.fraction < 1 and (self.mode == "always" or (self.mode == "training" and training))

    def draw(
        self,
        batch: int,
        n: int,
        *,
        causal: bool,
        valid: Tensor | None = None,
        num_sources: int | None = None,
        device: torch.device | str = "cpu",
    ) -> IndexSets:
        """The sets of one forward pass."""
        rows = batch if self.per_row or valid is not None else None
        return sample_sources(
            n, fraction=self.fraction, sampler=self.sampler, window=self.window, sigma=self.sigma, causal=causal,
            batch=rows, valid=valid, num_sources=num_sources, generator=self.generator, device=device,
        )  # fmt: skip

    def __deepcopy__(self, memo: dict) -> "Subsampling":
        """Generators cannot be copied; a copy draws from the same one."""
        return Subsampling(
            self.fraction, self.sampler, self.window, self.sigma, self.per_row, self.mode, self.compensate,
            self.generator,
        )  # fmt: skip
