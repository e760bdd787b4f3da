"""Filters learned layer upon layer, without labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.vision.filters.bank import FilterBank
from etude.vision.filters.learning import learn_filters
from etude.vision.pixels import to_images

__all__ = ["FilterLearner", "LayerSpec"]


@dataclass(frozen=True)
class LayerSpec:
    """How one layer's filters are learned.

    Args:
        method, size, num: see `learn_filters`.
        pool: the maps are averaged over pool x pool pixels after rectification; 1 leaves them.
        maps: from the second layer on, "joint": filters look at all maps of the layer before (k * k * C entries);
            "each": one set of filters for every map by itself, as in PCANet, which gives num * C maps.
        arguments: further ones of `learn_filters`.
    """

    method: str
    size: int
    num: int
    pool: int = 2
    maps: str = "joint"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.maps not in ("joint", "each"):
            raise ValueError(f"maps must be joint or each, got {self.maps!r}")
        if self.pool < 1 or self.size % 2 == 0:
            raise ValueError(f"pool must be positive and size odd, got {self.pool} and {self.size}")


class FilterLearner:
    """Greedy layers: learn filters, encode the images, learn the next filters on their maps.

        learner = FilterLearner([LayerSpec("kmeans", 5, 16), LayerSpec("pca", 3, 32)]).fit(images)
        features = learner.transform(images)          # (n, 32, height / 4, width / 4)
        trunk = learner.to_module()                    # the same as a module to fine-tune

    A layer is a convolution with zero padding, a ReLU and average pooling; its maps are divided by their standard
    deviation over the images of `fit`, so that every layer's patches have a comparable contrast.

    Args:
        layers: from the image upwards.
        seed: of every draw.
        batch_size: images encoded at a time.

    Attributes:
        banks_: the learned banks. scales_: divisors of each layer's maps.
    """

    def __init__(self, layers: Sequence[LayerSpec], *, seed: int = 0, batch_size: int = 256):
        if not layers:
            raise ValueError("there must be at least one layer")
        self.layers, self.seed, self.batch_size = list(layers), seed, batch_size
        self.banks_: list[FilterBank] = []
        self.scales_: list[float] = []

    def fit(self, X: Any) -> "FilterLearner":
        """Learns all layers from images, see `to_images`.

        Raises:
            ValueError: if pooling has left maps smaller than the next filters.
        """
        maps = to_images(X)
        self.banks_, self.scales_ = [], []
        self._in_chans = maps.shape[1]
        for number, layer in enumerate(self.layers):
            each = number > 0 and layer.maps == "each"
            bank = learn_filters(
                maps, layer.method, layer.size, layer.num, seed=self.seed + number,
                color="per_channel" if each else "joint", **layer.arguments,
            )  # fmt: skip
            self.banks_.append(bank)
            self.scales_.append(1.0)
            maps = self._encoded(maps, number)
            self.scales_[-1] = max(float(maps.std()), 1e-8)
            maps = maps / self.scales_[-1]
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> Tensor:
        """Maps of the last layer, (n, maps, height, width)."""
        if not self.banks_:
            raise ValueError("fit comes before transform")
        maps = to_images(X)
        if maps.shape[1] != self._in_chans:
            raise ValueError(f"images must have {self._in_chans} channels, as in fit, got {maps.shape[1]}")
        for number in range(len(self.banks_)):
            maps = self._encoded(maps, number)
        return maps

    def to_module(self, trainable: bool = True) -> nn.Sequential:
        """The layers as convolutions, ReLUs and pools; the scales are in the weights."""
        modules: list[nn.Module] = []
        chans = self._in_chans
        for number in range(len(self.banks_)):
            conv = self._conv(number, chans, trainable)
            modules += [conv, nn.ReLU()]
            if self.layers[number].pool > 1:
                modules.append(nn.AvgPool2d(self.layers[number].pool))
            chans = conv.out_channels
        return nn.Sequential(*modules)

    def _conv(self, number: int, chans: int, trainable: bool = False) -> nn.Conv2d:
        bank, layer = self.banks_[number], self.layers[number]
        each = number > 0 and layer.maps == "each" and bank.channels == 1
        conv = bank.to_conv(
            chans, trainable=trainable, padding=layer.size // 2, color="per_channel" if each else "joint"
        )
        with torch.no_grad():
            conv.weight /= self.scales_[number]
        return conv

    @torch.no_grad()
    def _encoded(self, maps: Tensor, number: int) -> Tensor:
        conv = self._conv(number, maps.shape[1])
        pool = self.layers[number].pool
        parts = [F.avg_pool2d(conv(part).relu(), pool) for part in maps.split(self.batch_size)]
        return torch.cat(parts)
