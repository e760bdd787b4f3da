"""Routed residual blocks of U-Nets.

The authors' code has no U-Net; this is our reading of the paper. A residual block of a U-Net may change channels or
resolution, so that its input cannot be added to its output as it is. What routing keeps is that the residual branch F
reads the active channels of the block's input and the skip sees all of them:

    out = skip(x) + F(x m, emb)                                                                             (1)

which is Eq. (2) of `routing` where the skip is the identity. The mask has the width of the block's own input, one for
each width. Blocks that change resolution, and attention, are routed alike; plain convolutions between are not.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from etude.diffusion.denoising_task_routing.routing import Routing, TaskRouter
from etude.nn.unet import AttentionBlock, ResBlock, UNet

__all__ = ["ResidualRouter", "RoutedResBlock", "route_unet_"]


class ResidualRouter(TaskRouter):
    """Routes a `ResBlock` as its `router`, Eq. (1). Arguments as for `TaskRouter`, with `channel_dim=1`."""

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Tensor,
        fn: Callable[..., Tensor],
        *args: Any,
    ) -> Float[Tensor, "batch out rows columns"]:
        """`fn` is the bound method `block` of the residual block.

        Raises:
            TypeError: if it is anything else: Eq. (1) needs the skip and the residual apart.
        """
        block: Any = getattr(fn, "__self__", None)
        if not isinstance(block, ResBlock):
            raise TypeError(f"fn must be the method `block` of a ResBlock, got {fn!r}")
        return block.shortcut(x) + block.residual(self.masked(x, t), *args)


class RoutedResBlock(ResBlock):
    """A residual block of a U-Net with its router, Eq. (1); called as `block(x, t, emb)`.

    Args:
        in_channels, out_channels, emb_dim: as for `ResBlock`.
        routing: None is the plain block.
        resample, norm_groups, dropout: as for `ResBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_dim: int,
        *,
        routing: Routing | None = None,
        **options: Any,
    ):
        super().__init__(in_channels, out_channels, emb_dim, **options)
        if routing is not None:
            self.router = routing.routers([in_channels], [ResidualRouter], channel_dim=1)[0]


def route_unet_(unet: UNet, routing: Routing) -> UNet:
    """Routes all residual and attention blocks of our U-Net, in place.

    Raises:
        ValueError: if a block has a router already.
    """
    blocks = [module for module in unet.modules() if isinstance(module, ResBlock | AttentionBlock)]
    if any(block.router is not None for block in blocks):
        raise ValueError("the network is routed already")
    kinds = [ResidualRouter if isinstance(block, ResBlock) else TaskRouter for block in blocks]
    for block, router in zip(blocks, routing.routers([block.in_channels for block in blocks], kinds, channel_dim=1)):
        block.router = router.to(next(block.parameters()).device)
    return unet
