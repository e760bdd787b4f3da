"""Networks around a residual stack, and what the study measures of them."""

from collections.abc import Callable
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from etude.vision.shallow.branches import activation_module
from etude.vision.shallow.stack import ResidualStack

__all__ = ["ShallowNet", "count_operators", "gradient_ratio", "overdetermination_ratio"]


class ShallowNet(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2309.08414"):
    """Stem, residual stack in either layout, average pooling, linear classifier.

        deep = ShallowNet(in_chans=1, num_classes=10, channels=16, num_layers=8)                     # sequential
        shallow = ShallowNet(in_chans=1, num_classes=10, channels=16, num_layers=8, layout="parallel")
        shallow.load_state_dict(deep.state_dict())

    Stem and pooling are this library's choice, as the paper's are not known to it: a 3 x 3 convolution of stride 2
    with its activation, and averages over `pool_size` x `pool_size` fields. Images of any size do.

    Args:
        in_chans: channels of the images.
        num_classes: of the logits.
        channels: C, of the body.
        num_layers: K, residual layers.
        layout: "sequential" (deep) or "parallel" (shallow).
        kernel_size, activation, block, batch_norm, residual, order, fused, branch_scale, chunk, checkpoint: see
            `ResidualStack`; "init" is the default start of the body, in either layout.
        stem_stride: of the stem.
        pool_size: side of the map that the classifier sees.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        num_classes: int,
        channels: int = 16,
        num_layers: int = 8,
        layout: str = "sequential",
        kernel_size: int = 3,
        activation: str = "relu",
        block: str | Callable[[int], nn.Module] = "conv",
        batch_norm: bool = False,
        residual: bool = True,
        order: int = 1,
        fused: bool = True,
        branch_scale: str | None = "init",
        chunk: int | None = None,
        checkpoint: bool = False,
        stem_stride: int = 2,
        pool_size: int = 4,
    ):
        super().__init__()
        if min(in_chans, num_classes, channels, stem_stride, pool_size) < 1:
            raise ValueError(
                "in_chans, num_classes, channels, stem_stride and pool_size must be positive, "
                f"got {in_chans}, {num_classes}, {channels}, {stem_stride}, {pool_size}"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, channels, 3, stride=stem_stride, padding=1), activation_module(activation)
        )
        self.body = ResidualStack(
            channels=channels, num_layers=num_layers, kernel_size=kernel_size, activation=activation, block=block,
            batch_norm=batch_norm, layout=layout, order=order, residual=residual, fused=fused,
            branch_scale=branch_scale, chunk=chunk, checkpoint=checkpoint,
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(pool_size)
        self.classifier = nn.Linear(channels * pool_size**2, num_classes)

    def forward(self, images: Shaped[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; ValueError for images of other channels, TypeError for integer pixels."""
        expected = self.stem[0].in_channels
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}: divide bytes by 255")
        if images.shape[1] != expected:
            raise ValueError(f"expected {expected} channels, got images of shape {tuple(images.shape)}")
        return self.classifier(self.pool(self.body(self.stem(images))).flatten(1))

    def to_parallel(self) -> "ShallowNet":
        """This network with its body in the parallel layout, in place; every weight stays."""
        self.body = self.body.to_parallel()
        return self

    def to_sequential(self) -> "ShallowNet":
        """This network with its body in the sequential layout, in place; every weight stays."""
        self.body = self.body.to_sequential()
        return self


def overdetermination_ratio(n_examples: int, n_outputs: int, model: nn.Module | int) -> float:
    """Q = examples x outputs / parameters: constraints on each free parameter.

    Above 1 the training data constrain the fit; the larger Q, the closer training and validation loss should be.

    Args:
        n_examples: of the training set.
        n_outputs: numbers that the model answers each with.
        model: whose trainable parameters are counted, or their number.
    """
    if min(n_examples, n_outputs) < 1:
        raise ValueError(f"n_examples and n_outputs must be positive, got {n_examples} and {n_outputs}")
    count = model if isinstance(model, int) else sum(p.numel() for p in model.parameters() if p.requires_grad)
    if count < 1:
        raise ValueError("the model has no trainable parameter")
    return n_examples * n_outputs / count


def gradient_ratio(model: ShallowNet, loss: Callable[[nn.Module], Tensor]) -> float:
    """Norm of the weight gradient of the first body layer over that of the last: 0 where gradients vanish.

    Args:
        model: with branches that hold parameters.
        loss: gives the scalar loss of the model.
    """
    first, last = (tuple(model.body.branches[index].parameters()) for index in (0, -1))
    gradients = torch.autograd.grad(loss(model), (*first, *last))
    norms = [
        float(torch.stack([gradient.norm() for gradient, p in zip(part, parameters) if p.ndim > 1]).norm())
        for part, parameters in ((gradients[: len(first)], first), (gradients[len(first) :], last))
    ]
    return norms[0] / norms[1] if norms[1] > 0 else float("inf")


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten.detach:
            self.count += 1
        return func(*args, **(kwargs or {}))


def count_operators(work: Callable[[], Any]) -> int:
    """How many operators a call sends to the device, views left out: about the kernels that a GPU would launch."""
    with _Operators() as counter:
        work()
    return counter.count
