"""Which filters a network uses: how often each is active, which are dead, how many would do."""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from etude.loop.evaluation import mode

__all__ = ["FilterUsage", "filter_usage"]


@dataclass(frozen=True)
class LayerUsage:
    """One convolution's filters on data.

    Attributes:
        active: share of outputs above the threshold, (filters,).
        strength: mean of the part above the threshold, (filters,).
        selectivity: of the mean strength on each image over images, standard deviation by mean, (filters,); 0 if dead.
        effective_number: participation ratio of the correlations between filters' outputs, 1 to the filters alive:
            how many independent filters would vary as much.
    """

    active: Tensor
    strength: Tensor
    selectivity: Tensor
    effective_number: float

    @property
    def dead(self) -> Tensor:
        """Whether each filter was never active, (filters,)."""
        return self.active == 0


@dataclass(frozen=True)
class FilterUsage:
    """Usage of every convolution of a network, by its name, in the order of the calls."""

    layers: dict[str, LayerUsage]

    @property
    def dead_share(self) -> float:
        """Share of all filters that were never active."""
        dead = torch.cat([layer.dead for layer in self.layers.values()])
        return float(dead.double().mean())

    def plot(self) -> Any:
        """Sorted activity of each layer's filters: a `matplotlib.figure.Figure`."""
        from etude.vision.filters.plots import plot_filter_usage

        return plot_filter_usage(self)


@torch.no_grad()
def filter_usage(model: nn.Module, x: Tensor, *, threshold: float | int = 0.0, batch_size: int = 256) -> FilterUsage:
    """Looks at the output of every `Conv2d` (before its activation function) while the model runs on images.

    Convolutions that are followed by a normalisation are looked at after it, where the activation function is.

    Args:
        model: run in evaluation mode. Normalisations are recognised if they are registered right after the convolution
            in the same container, as in `nn.Sequential` or torchvision's ResNets (conv1, bn1).
        x: images (n, channels, height, width).
        threshold: an output above it counts as active; 0 for ReLU.
        batch_size: images at a time.

    Raises:
        ValueError: if the model calls no convolution or there are no images.
    """
    if len(x) == 0:
        raise ValueError("there are no images to look at")
    looked = _looked_at(model)
    sums: dict[str, list[Tensor]] = {}

    def record(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            values = output.double().flatten(2)
            above = (values - threshold).clamp_min(0)
            flat = values.transpose(0, 1).flatten(1)
            per_image = above.mean(dim=2)
            found = [
                (values > threshold).sum(dim=(0, 2)), above.sum(dim=(0, 2)), per_image.sum(dim=0),
                per_image.square().sum(dim=0), flat.sum(dim=1), flat @ flat.T,
                torch.tensor(flat.shape[1], device=flat.device), torch.tensor(len(values), device=flat.device),
            ]  # fmt: skip
            sums[name] = [a + b for a, b in zip(sums[name], found)] if name in sums else found

        return hook

    with mode(model, training=False), ExitStack() as stack:
        for name, module in looked:
            stack.callback(module.register_forward_hook(record(name)).remove)
        for batch in x.split(batch_size):
            model(batch)
    if not sums:
        raise ValueError("the model calls no Conv2d")
    return FilterUsage({name: _layer(*found) for name, found in sums.items()})


def _layer(active: Tensor, above: Tensor, image: Tensor, image2: Tensor, total: Tensor, outer: Tensor, n: Tensor,
           images: Tensor) -> LayerUsage:  # fmt: skip
    mean = image / images
    spread = (image2 / images - mean.square()).clamp_min(0).sqrt()
    covariance = outer / n - torch.outer(total, total) / n**2
    scale = covariance.diagonal().clamp_min(0).sqrt()
    varying = scale > 1e-9 * scale.max().clamp_min(1e-30)
    number = 0.0
    if bool(varying.any()):
        correlation = covariance[varying][:, varying] / torch.outer(scale[varying], scale[varying])
        number = float(correlation.trace() ** 2 / correlation.square().sum())
    selectivity = torch.where(mean > 0, spread / mean.clamp_min(1e-300), torch.zeros_like(mean))
    return LayerUsage(active / n, above / n, selectivity, number)


def _looked_at(model: nn.Module) -> list[tuple[str, nn.Module]]:
    norms = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)
    followed: dict[int, nn.Module] = {}
    for parent in model.modules():
        children = list(parent.children())
        for child, after in pairwise(children):
            if isinstance(child, nn.Conv2d) and isinstance(after, norms):
                followed[id(child)] = after
    return [
        (name, followed.get(id(module), module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
