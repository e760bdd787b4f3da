"""Batch normalisation for a network of many widths, each of which sees statistics of its own.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023, which shares all parameters. The statistics of a channel depend
on how many channels the layers before had, so that running averages taken over all sub-models fit none of them.
Re-estimating them for one sub-model after training is the "post-statistics" of Yu & Huang, "Universally Slimmable
Networks", arXiv:1903.05134, 2019; a batch norm for each width is that of Yu et al., "Slimmable Neural Networks",
arXiv:1812.08928, 2018.
"""

from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from etude.data.kinds import Examples
from etude.loop.evaluation import device_of, mode
from etude.training.sortednet.slicing import Cut, Region, SortedLayer, cut_out, prefix, prefix_region
from etude.training.sortednet.submodels import SubModel
from etude.training.sortednet.switching import set_submodel

__all__ = ["SortedBatchNorm", "batches_from", "recalibrate_batchnorm"]

_POLICIES = ("recalibrate", "shared", "per_width")


class SortedBatchNorm(SortedLayer, _BatchNorm):
    """Batch normalisation of the active channels, in one to three dimensions.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as `nn.BatchNorm2d`.
        policy: whose statistics evaluation uses.
            "recalibrate": gamma and beta are shared. The running statistics are those of the whole network, as only
            it updates them in training; other sub-models are evaluated after `recalibrate_batchnorm`, and refused
            before. Where the whole network was seldom drawn its averages lag behind: recalibrate it too.
            "shared": gamma, beta and the running statistics are shared by all sub-models. Narrow ones suffer.
            "per_width": each width below the full one has gamma, beta and running statistics of its own, which adds
            to the `state_dict` and gives up nesting for this layer.
        widths: numbers of channels that get statistics of their own under "per_width".
    """

    parts = ("private",)
    statistics: dict[Hashable, tuple[Tensor, Tensor]]
    # The class that the layer was before `sorted_`: what it becomes again when it is extracted.
    _plain: type[nn.Module] | None = None

    def __init__(
        self,
        num_features: int,
        eps: float | int = 1e-5,
        momentum: float | int | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        policy: str = "recalibrate",
        widths: Iterable[int] = (),
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)  # type: ignore[arg-type]
        self.set_policy(policy, widths)

    def set_policy(self, policy: str, widths: Iterable[int] = ()) -> None:
        """Chooses whose statistics evaluation uses, and forgets those estimated so far.

        Raises:
            ValueError: if `policy` is unknown.
        """
        if policy not in _POLICIES:
            raise ValueError(f"the policy of batch norm must be one of {', '.join(_POLICIES)}, got {policy!r}")
        self.policy = policy
        self.statistics = {}
        self._submodel: SubModel | None = None
        self._full: SubModel | None = None
        self._moments: list[tuple[Tensor, Tensor]] | None = None
        if policy == "per_width":
            own = sorted({width for width in widths if width < self.num_features})
            self.private = nn.ModuleDict({str(width): self._narrowed(width) for width in own})

    def _narrowed(self, width: int) -> "SortedBatchNorm":
        """A layer of `width` channels of its own, which starts as a copy of these leading ones."""
        narrow = SortedBatchNorm(
            width, self.eps, self.momentum, self.affine, self.track_running_stats, policy="shared", device="meta"
        )
        cut_out(self, narrow, self._leading(width))
        return narrow

    def _leading(self, width: int) -> dict[str, Tensor | None]:
        tensors = {**self._parameters, **self._buffers}
        return {name: part if part is None or part.ndim == 0 else part[:width] for name, part in tensors.items()}

    def full_sizes(self) -> tuple[int, ...]:
        return (self.num_features,)

    def tie(self, cuts: dict[str, Cut], submodels: tuple[SubModel, ...], name: str) -> None:
        super().tie(cuts, submodels, name)
        self._full = submodels[-1]
        if self.policy == "per_width":
            self.set_policy("per_width", [channels for (channels,) in self.sizes.values()])
            self._full = submodels[-1]

    def activate(self, b: SubModel) -> None:
        super().activate(b)
        self._submodel = b

    @property
    def _key(self) -> Hashable:
        """What statistics are remembered by: the sub-model, or the width of a layer used on its own."""
        return self.active if self._submodel is None else self._submodel

    @property
    def _whole(self) -> bool:
        """Whether the running averages in the `state_dict` are those of what is active."""
        full = self.active == self.full_sizes()
        return full and (self.policy != "recalibrate" or self._submodel == self._full)

    @property
    def _own(self) -> "SortedBatchNorm":
        """The layer whose parameters are in use."""
        (channels,) = self.active
        if self.policy == "per_width" and channels < self.num_features:
            if str(channels) not in self.private:
                raise ValueError(f"{self._label()} has no batch norm of {channels} channels, only {list(self.private)}")
            return self.private[str(channels)]  # type: ignore[return-value]
        return self

    def forward(self, input: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch channels *positions"]:
        """Normalises the active channels: by the batch in training, by the sub-model's statistics in evaluation.

        Raises:
            ValueError: in training, if the batch holds one value per channel.
            RuntimeError: in evaluation under "recalibrate", if the sub-model's statistics were never estimated.
        """
        self._check_input(input)
        if self._moments is not None:
            output = self._normalized(input, None)
            axes = [axis for axis in range(input.ndim) if axis != 1]
            variance, mean = torch.var_mean(input.float(), dim=axes)
            self._moments.append((mean, variance))
            return output
        if self.training:
            self.statistics.clear()  # they were those of weights that are about to change
        elif (estimated := self.statistics.get(self._key)) is not None:
            return self._normalized(input, estimated)
        if self._own is not self:
            return self._own(input)
        if self._whole:
            return _BatchNorm.forward(self, input)
        if self.policy == "shared" and self.running_mean is not None and self.running_var is not None:
            # Views, so that training updates the leading averages in place.
            (channels,) = self.active
            return self._normalized(input, (self.running_mean[:channels], self.running_var[:channels]))
        if self.training or not self.track_running_stats:
            return self._normalized(input, None)
        raise RuntimeError(
            f"{self._label()} has no statistics of the sub-model in use, {self._key}: call "
            "recalibrate_batchnorm(model, b, batches) before evaluating it"
        )

    def _check_input(self, input: Tensor) -> None:
        if not 2 <= input.ndim <= 5:
            raise ValueError(
                f"{self._label()} takes (batch, channels, ...), got an input of shape {tuple(input.shape)}"
            )
        self._expect(input, 1, *self.active)
        if (self.training or self._moments is not None) and input.numel() <= input.shape[1]:
            raise ValueError(
                f"{self._label()} normalises by the batch and needs more than one value per channel, got an input of "
                f"shape {tuple(input.shape)}: a batch of one has no variance; drop the incomplete last batch"
            )

    def _check_input_dim(self, input: Tensor) -> None:
        """Checked on entry, for any number of positions."""

    def _normalized(self, input: Tensor, running: tuple[Tensor, Tensor] | None) -> Tensor:
        """By the running statistics, which training updates in place, or by those of the batch if there are none."""
        own = self._own
        channels = input.shape[1]
        weight, bias = (None if part is None else prefix(part, channels) for part in (own.weight, own.bias))
        momentum = self.momentum
        mean, variance = (None, None) if running is None else (part.to(input.device) for part in running)
        if self.training and running is not None and self._moments is None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        by_batch = running is None or self.training
        return F.batch_norm(input, mean, variance, weight, bias, by_batch, momentum or 0.0, self.eps)

    def start_estimate(self) -> None:
        """From here on, batches are normalised by their own statistics, and these are collected."""
        self._moments = []

    def finish_estimate(self, keep: bool = True) -> None:
        """Back to normal; the mean of what was collected is kept for the sub-model in use, unless told otherwise."""
        moments, self._moments = self._moments, None
        if keep and moments:  # a layer that the sub-model skips has collected nothing
            means, variances = zip(*moments)
            self.statistics[self._key] = torch.stack(means).mean(0), torch.stack(variances).mean(0)

    def lend_statistics(self) -> bool:
        """Takes mean 0 and variance 1 for a sub-model without statistics, to time it; whether that was needed."""
        if self._key in self.statistics:
            return False
        self.statistics[self._key] = torch.zeros(self.active), torch.ones(self.active)
        return True

    def forget_statistics(self) -> None:
        """Drops the statistics of the sub-model in use."""
        self.statistics.pop(self._key, None)

    def regions(self) -> dict[str, list[Region]]:
        own, kept = self._own, [prefix_region(*self.active)]
        where = "" if own is self else f"private.{self.active[0]}."
        return {f"{where}{name}": kept for name, part in own._parameters.items() if part is not None}

    def extracted(self) -> nn.Module:
        (channels,) = self.active
        own = self._own
        kind: Any = self._plain or SortedBatchNorm
        plain = kind(channels, self.eps, self.momentum, self.affine, self.track_running_stats, device="meta")
        tensors = own._leading(channels)
        if self._key in self.statistics and self.track_running_stats:
            mean, variance = self.statistics[self._key]
            tensors |= {"running_mean": mean, "running_var": variance}
        elif self.track_running_stats and self.policy == "recalibrate" and not self._whole:
            raise RuntimeError(
                f"{self._label()} has no statistics of the sub-model to extract, {self._key}: pass "
                "calibration=batches, or call recalibrate_batchnorm first"
            )
        return cut_out(own, plain, tensors)


def batches_from(examples: Any, batch_size: int = 256) -> Iterable[Any]:
    """The inputs of each batch of `Examples`, of a loader of (inputs, targets), or of an iterable of inputs."""
    if isinstance(examples, Examples):
        for start in range(0, len(examples), batch_size):
            yield examples.inputs[start : start + batch_size]
        return
    for batch in examples:
        yield batch[0] if isinstance(batch, tuple | list) else batch


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, b: SubModel, batches: Any, limit: int | None = 10) -> None:
    """Estimates the batch-norm statistics of sub-model `b` of a network made by `sorted_`, and remembers them.

    Each layer keeps the mean over batches of the batch's mean and unbiased variance, as `nn.BatchNorm2d` does with
    `momentum=None`. All other layers are in evaluation mode, so that dropout and its like stay out. The statistics
    serve `b` until the network trains on; they are not part of the `state_dict`, but of what `extract` cuts out.

    Args:
        model: made by `sorted_`; one without batch norm is left as it is.
        b: a sub-model of its space.
        batches: training data: `Examples`, or an iterable of batches (inputs, targets) or inputs. Their order should
            be random, not by class.
        limit: batches to use, of 256 if they are `Examples`; all if None.

    Raises:
        ValueError: if there is no batch.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, SortedBatchNorm)]
    if not layers:
        return
    device = device_of(model)
    with set_submodel(model, b), mode(model, training=False):
        for layer in layers:
            layer.start_estimate()
        used = 0
        try:
            for inputs in islice(batches_from(batches), limit):
                model(inputs.to(device))
                used += 1
        except BaseException:
            used = 0
            raise
        finally:
            for layer in layers:
                layer.finish_estimate(keep=used > 0)
        if not used:
            raise ValueError("batch-norm statistics need at least one batch, got none")
