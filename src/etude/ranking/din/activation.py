"""Dice, the data adaptive activation, and PReLU with one slope a channel for channels in the last dimension.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978, section 5.2.

    f(s) = p(s) s + (1 - p(s)) alpha s,    p(s) = sigmoid((s - E[s]) / sqrt(Var[s] + eps))

per channel. E and Var are of the batch in training and moving averages in evaluation.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Activation", "Dice", "PReLU", "activation_of"]

Activation = Literal["prelu", "sigmoid", "dice"]


class Dice(nn.Module):
    """PReLU whose bend lies at the data's mean and is as soft as they are spread.

    Args:
        num_channels: size of the last dimension of the input.
        eps: added to the variance; the paper's 1e-8.
        momentum: weight of the newest batch in the moving averages. TensorFlow's decay 0.99 is 0.01 here.
        alpha_init: the slope below the bend at first, learnt for each channel.

    Raises:
        ValueError: if `num_channels` is not positive.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float | int = 1e-8,
        momentum: float | int = 0.1,
        alpha_init: float | int = 0.0,
    ):
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        self.norm = nn.BatchNorm1d(num_channels, eps=eps, momentum=momentum, affine=False)
        self.alpha = nn.Parameter(torch.full((num_channels,), float(alpha_init)))

    def forward(
        self, x: Float[Tensor, "*batch channels"], mask: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch channels"]:
        """Applies f to each channel.

        Args:
            x: any leading dimensions; statistics in training are over all of them.
            mask: rows that count. In training the others take no part in the statistics and give 0. A single row
                that counts has no variance and takes the moving averages.

        Raises:
            ValueError: if a batch of one row without a mask is given in training.
        """
        if not self.training or mask is None or bool(mask.all()):
            return self._bend(x, masked=mask is not None)
        out = torch.zeros_like(x)
        out[mask] = self._bend(x[mask], masked=True)
        return out

    def _bend(self, x: Tensor, masked: bool) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.training and masked and len(rows) < 2:
            norm = F.batch_norm(rows, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        else:
            try:
                norm = self.norm(rows) if len(rows) else rows
            except ValueError as error:
                raise ValueError(
                    f"Dice has no statistics of a single row in training (use larger batches, or eval()): {error}"
                ) from error
        p = norm.sigmoid().reshape(x.shape)
        return x * torch.lerp(self.alpha.to(p.dtype), torch.ones((), dtype=p.dtype, device=p.device), p)


class PReLU(nn.PReLU):
    """`torch.nn.PReLU` over the last dimension, one slope a channel."""

    def forward(
        self, input: Float[Tensor, "*batch channels"], mask: Bool[Tensor, "*batch"] | None = None
    ) -> Float[Tensor, "*batch channels"]:
        """Applies it; `mask` is there for the sake of `Dice` and changes nothing."""
        return super().forward(input.reshape(-1, input.shape[-1])).reshape(input.shape)


class _Sigmoid(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x.sigmoid()


def activation_of(
    name: Activation, num_channels: int, *, momentum: float | int = 0.1, alpha_init: float | int | None = None
) -> nn.Module:
    """A module of `(x, mask)`: "prelu", "sigmoid" or "dice".

    Args:
        name: which.
        num_channels: size of the last dimension.
        momentum: of Dice.
        alpha_init: slope at first; None is 0 for Dice and torch's 0.25 for PReLU.

    Raises:
        ValueError: for another name.
    """
    if name == "prelu":
        return PReLU(num_channels, init=0.25 if alpha_init is None else float(alpha_init))
    if name == "dice":
        return Dice(num_channels, momentum=momentum, alpha_init=0.0 if alpha_init is None else alpha_init)
    if name == "sigmoid":
        return _Sigmoid()
    raise ValueError(f'activation must be "prelu", "sigmoid" or "dice", got {name!r}')
