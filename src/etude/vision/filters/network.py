"""A plain CNN in which every choice about filters can be made from outside."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.vision.filters.bank import FilterBank
from etude.vision.filters.fixed import filter_bank
from etude.vision.filters.initialisers import init_filters, init_network

__all__ = ["SmallCNN"]


class SmallCNN(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2410.21644"):
    """Convolutions with ReLUs, average pooling, a linear head.

        model = SmallCNN(1, 10, widths=[16] * 13, strides=[2] + [1] * 12, init="he")
        model = SmallCNN(3, 10, kernel_sizes=[7, 3, 3], first_layer=bank, freeze_first=True)

    Args:
        in_chans: of the images.
        num_classes: outputs.
        widths: filters of each layer.
        kernel_sizes: of each layer, odd; one number for all. A last layer or middle ones may be 1.
        strides: of each layer; one number for all.
        init: scheme of all layers, the head included; see `init_filters`.
        init_arguments: further arguments of `init_filters`.
        head_init: scheme of the head; that of the layers if None ("orthogonal" for "bank" and "identity").
        norm: "none" or "batch", after each convolution.
        pool: the last maps are averaged to pool x pool cells.
        first_layer: the first layer's filters: a `FilterBank`, or a name of `filter_bank`; tiled over the channels,
            centred, and scaled to the norm of "he", so that only their shape differs.
        freeze_first: the first layer's filters do not learn.
        generator: source of the initial weights; the default generator if None.

    Raises:
        ValueError: if sizes are not positive, lists differ in length, or the bank does not fit.
    """

    def __init__(
        self,
        in_chans: int,
        num_classes: int,
        *,
        widths: Sequence[int] = (16, 32, 32),
        kernel_sizes: int | Sequence[int] = 3,
        strides: int | Sequence[int] = (1, 2, 2),
        init: str = "he",
        init_arguments: dict[str, Any] | None = None,
        head_init: str | None = None,
        norm: str = "none",
        pool: int = 2,
        first_layer: FilterBank | str | None = None,
        freeze_first: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        widths = list(widths)
        kernels = [kernel_sizes] * len(widths) if isinstance(kernel_sizes, int) else list(kernel_sizes)
        steps = [strides] * len(widths) if isinstance(strides, int) else list(strides)
        if not len(widths) == len(kernels) == len(steps) > 0:
            raise ValueError(
                "widths, kernel_sizes and strides must be of one length, "
                f"got {len(widths)}, {len(kernels)}, {len(steps)}"
            )
        for name, values in (("widths", widths), ("strides", steps), ("in_chans, num_classes and pool",
                                                                        [in_chans, num_classes, pool])):  # fmt: skip
            if min(values) < 1:
                raise ValueError(f"{name} must be positive, got {values}")
        if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernel_sizes must be odd, got {kernels}")
        if norm not in ("none", "batch"):
            raise ValueError(f"norm must be none or batch, got {norm!r}")
        self.in_chans = in_chans
        layers: list[nn.Module] = []
        chans = in_chans
        for width, kernel, step in zip(widths, kernels, steps):
            layers.append(nn.Conv2d(chans, width, kernel, stride=step, padding=kernel // 2))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            chans = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.head = nn.Linear(chans * pool * pool, num_classes)
        arguments = init_arguments or {}
        init_network(self.features, init, generator=generator, **arguments)
        if head_init is None:
            head_init = "orthogonal" if init in ("bank", "identity", "delta_orthogonal") else init
        init_network(self.head, head_init, generator=generator, **(arguments if head_init == init else {}))
        if first_layer is not None:
            first = self.first
            bank = filter_bank(first_layer, kernels[0], widths[0]) if isinstance(first_layer, str) else first_layer
            init_filters(first.weight, "bank", bank=bank)
        if freeze_first:
            self.first.weight.requires_grad_(False)

    @property
    def first(self) -> nn.Conv2d:
        """The first convolution."""
        layer = self.features[0]
        assert isinstance(layer, nn.Conv2d)
        return layer

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        if x.shape[1] != self.in_chans:
            raise ValueError(f"the network takes images of {self.in_chans} channels, got shape {tuple(x.shape)}")
        return self.head(self.pool(self.features(x)).flatten(1))
