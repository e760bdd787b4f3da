"""What of a target is not generated: a frozen copy of it, and its running statistics for each condition."""

import copy
import warnings
from collections.abc import Callable

from torch import Tensor, nn

from etude.transfer.hypernetworks.spec import TargetSpec

__all__ = ["KeptStatistics", "make_template", "running_statistics", "without_statistics"]


def make_template(target: nn.Module, spec: TargetSpec, statistics: str | None) -> nn.Module:
    """A copy of a target whose generated parameters are frozen.

    Args:
        target: any module.
        spec: says what is generated.
        statistics: "batch" turns running statistics off, "condition" leaves them in; None refuses them.

    Raises:
        ValueError: if there are running statistics and nothing is said about them.
    """
    if statistics not in (None, "batch", "condition"):
        raise ValueError(f"statistics must be 'batch', 'condition' or None, got {statistics!r}")
    keepers = running_statistics(target)
    if keepers and statistics is None:
        raise ValueError(
            f"the target keeps running statistics in buffers ({', '.join(keepers[:3])}), which would mix all "
            "conditions: statistics='batch' normalises by each batch, 'condition' keeps them for each condition"
        )
    template = copy.deepcopy(target)
    if statistics == "batch":
        without_statistics(template)
    others = [name for name, value in template.named_buffers() if "running_" not in name and value.ndim]
    if others:
        warnings.warn(
            f"buffers of the target ({', '.join(others[:3])}) are shared by all conditions; one that the target "
            "changes in place mixes them",
            stacklevel=3,
        )
    generated = set(spec.names)
    for name, parameter in template.named_parameters():
        parameter.requires_grad_(name not in generated)
    return template


def running_statistics(module: nn.Module) -> list[str]:
    """Names of the modules that keep running statistics in buffers."""
    return [name for name, part in module.named_modules() if getattr(part, "running_mean", None) is not None]


def without_statistics(module: nn.Module) -> nn.Module:
    """Turns running statistics off, in place: every batch is normalised by its own mean and variance, at test too."""
    for part in module.modules():
        if getattr(part, "running_mean", None) is not None:
            part.running_mean = part.running_var = part.num_batches_tracked = None  # type: ignore[assignment]
            part.track_running_stats = False  # type: ignore[assignment]
    return module


class KeptStatistics(nn.Module):
    """Running statistics of a target, a set for each condition that it was called under; part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[int, dict[str, Tensor]] = {}

    def of(self, cond: int, module: nn.Module) -> dict[str, Tensor]:
        """The buffers of a condition; those of the module at first. The target changes them in place."""
        if cond not in self._of:
            self._of[cond] = {name: value.clone() for name, value in module.named_buffers()}
        return self._of[cond]

    def get_extra_state(self) -> dict[int, dict[str, Tensor]]:
        return self._of

    def set_extra_state(self, state: dict[int, dict[str, Tensor]]) -> None:
        self._of = {cond: {name: value.clone() for name, value in each.items()} for cond, each in state.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeptStatistics":
        super()._apply(fn, recurse)
        self._of = {cond: {name: fn(value) for name, value in each.items()} for cond, each in self._of.items()}
        return self
