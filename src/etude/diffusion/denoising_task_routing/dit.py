"""The diffusion transformer with routed blocks.

Peebles & Xie, "Scalable Diffusion Models with Transformers" (DiT), ICCV 2023, arXiv:2212.09748. With z = x m, Eq. (2)
of `routing`, and the six modulations of adaLN(c), c = embedding of the timestep + embedding of the label,

    z = z + gate_1 Attn(LN(z) (1 + scale_1) + shift_1),    z = z + gate_2 MLP(LN(z) (1 + scale_2) + shift_2)     (1)

LN runs over all channels, zeros included. The mask is applied once, before both; embeddings and the final layer are
not routed. All gates and the output start at zero: the fresh network gives 0 and every block is the identity.
"""

from dataclasses import asdict
from typing import Any

import torch
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from etude.diffusion.denoising_task_routing.routing import Routing, TaskRouter
from etude.nn.diffusion import timestep_embedding
from etude.nn.transformer import FeedForward, PatchEmbedding, SelfAttention

__all__ = ["DiT", "RoutedDiTBlock", "dit_b_2", "dit_l_2", "dit_s_2", "dit_xl_2"]


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class RoutedDiTBlock(nn.Module):
    """A transformer block with adaLN-Zero, Eq. (1), whose input is routed.

    Args:
        dim: features of a token, a multiple of `num_heads`.
        num_heads: heads of attention.
        mlp_ratio: hidden features of the MLP per feature.
        router: of width `dim`; None gives the plain block.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float | int = 4.0, router: TaskRouter | None = None):
        super().__init__()
        if router is not None and router.mask.shape[1] != dim:
            raise ValueError(f"the router is for {router.mask.shape[1]} channels, the block has {dim}")
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = SelfAttention(dim, num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), activation=nn.GELU(approximate="tanh"))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.router = router
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for parameter in self.modulation[1].parameters():
            nn.init.zeros_(parameter)

    def block(
        self, z: Float[Tensor, "batch tokens dim"], c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Eq. (1), without the router."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        z = torch.addcmul(z, gate1[:, None], self.attn(_modulated(self.norm1(z), shift1, scale1)))
        return torch.addcmul(z, gate2[:, None], self.mlp(_modulated(self.norm2(z), shift2, scale2)))

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], t: Tensor, c: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.block(x, c) if self.router is None else self.router(x, t, self.block, c)


def _grid_positions(dim: int, height: int, width: int) -> Float[Tensor, "tokens dim"]:
    """Fixed 2-D positions: sines and cosines of the column in the first half, of the row in the second."""
    frequencies = 10_000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


class DiT(nn.Module, PyTorchModelHubMixin):
    """A diffusion transformer, called as `model(x, t)` or `model(x, t, y)`.

        model = DiT(32, 2, 3, dim=384, depth=12, num_heads=6, num_classes=10, routing=Routing())

    The parameters, and the state dict of all but random routing, are those of the plain network.

    Args:
        input_size: height and width of the (latent) image, or both as a pair; multiples of `patch_size`.
        patch_size: side of a patch. in_channels: channels of the image.
        dim: features of a token, a multiple of 4 and of `num_heads`. depth: blocks. num_heads: heads.
        num_classes: labels are 0 .. num_classes - 1, and num_classes is "no label"; 0 takes no labels.
        learn_sigma: twice the output channels, the second half for the variance.
        routing: None is the plain network. A dictionary of `Routing`'s arguments will do.
        mlp_ratio: hidden features of an MLP per feature.
        sinusoids: of the timestep.
        label_dropout: probability of "no label" in training, for classifier-free guidance.

    Raises:
        ValueError: if sizes do not divide as said.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int] | list[int] = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        dim: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        num_classes: int = 1000,
        learn_sigma: bool = False,
        routing: Routing | dict[str, Any] | None = None,
        mlp_ratio: float | int = 4.0,
        sinusoids: int = 256,
        label_dropout: float | int = 0.1,
    ):
        super().__init__()
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if patch_size < 1 or height % patch_size or width % patch_size or min(height, width) < patch_size:
            raise ValueError(f"input_size must be a multiple of patch_size, got {input_size} and {patch_size}")
        if dim < 4 or dim % 4:
            raise ValueError(f"dim must be a multiple of 4 for positions in two directions, got {dim}")
        if depth < 1 or num_classes < 0 or not 0 <= label_dropout < 1:
            raise ValueError(
                f"depth must be positive, num_classes not negative and label_dropout in [0, 1), got {depth}, "
                f"{num_classes} and {label_dropout}"
            )
        if isinstance(routing, dict):
            routing = Routing(**routing)
        self.grid, self.patch_size = (height // patch_size, width // patch_size), patch_size
        self.in_channels, self.num_classes, self.sinusoids = in_channels, num_classes, sinusoids
        self.label_dropout, self.routing, self.learn_sigma = label_dropout, routing, learn_sigma
        self.out_channels = in_channels * (1 + learn_sigma)
        self.embed = PatchEmbedding(in_channels, dim, patch_size)
        self.positions: Tensor
        self.register_buffer("positions", _grid_positions(dim, *self.grid), persistent=False)
        self.time = nn.Sequential(nn.Linear(sinusoids, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.labels = nn.Embedding(num_classes + 1, dim) if num_classes else None
        routers = [None] * depth if routing is None else routing.routers([dim] * depth)
        self.blocks = nn.ModuleList(RoutedDiTBlock(dim, num_heads, mlp_ratio, router) for router in routers)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.head = nn.Linear(dim, patch_size**2 * self.out_channels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for parameter in self.embed.parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.xavier_uniform_(parameter.flatten(1))
        for parameter in self.time.parameters():
            nn.init.zeros_(parameter) if parameter.ndim == 1 else nn.init.normal_(parameter, std=0.02)
        if self.labels is not None:
            nn.init.normal_(self.labels.weight, std=0.02)
        for parameter in (*self.modulation.parameters(), *self.head.parameters()):
            nn.init.zeros_(parameter)

    def route_(self, routing: Routing) -> "DiT":
        """Routes a plain network in place; what is saved to the hub says so.

        Raises:
            ValueError: if it is routed already.
        """
        if self.routing is not None:
            raise ValueError("the network is routed already")
        width = self.positions.shape[1]
        for block, router in zip(self.blocks, routing.routers([width] * len(self.blocks))):
            block.router = router.to(self.positions.device)
        self.routing = routing
        config: Any = getattr(self, "_hub_mixin_config", None)
        if isinstance(config, dict):
            config["routing"] = asdict(routing)
        return self

    def conditioning(self, t: Shaped[Tensor, "batch"], y: Int64[Tensor, "batch"] | None) -> Float[Tensor, "batch dim"]:
        """What the modulations are made of: the timestep and the label, dropped at random in training."""
        c = self.time(timestep_embedding(t, self.sinusoids).to(self.head.weight.dtype))
        if self.labels is None:
            if y is not None:
                raise ValueError("this network takes no labels (num_classes=0), got some")
            return c
        if y is None:
            y = torch.full_like(t, self.num_classes, dtype=torch.int64)
        self._check_labels(y)
        if self.training and self.label_dropout:
            dropped = torch.rand(len(y), device=y.device) < self.label_dropout
            y = torch.where(dropped, self.num_classes, y)
        return c + self.labels(y)

    def _check_labels(self, y: Int64[Tensor, "batch"]) -> None:
        """Refuses labels out of range, where that does not mean to wait for an accelerator."""
        if y.device.type != "cpu" or torch.compiler.is_compiling() or len(y) == 0:
            return
        low, high = (int(value) for value in torch.aminmax(y))
        if low < 0 or high > self.num_classes:
            raise ValueError(f"labels must lie in 0..{self.num_classes} ({self.num_classes}: none), got {low}..{high}")

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Tensor,
        y: Int64[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch out height width"]:
        """The prediction for noisy images `x` at timesteps `t` of training.

        Raises:
            ValueError: for images of another size, or labels out of range.
            TypeError, IndexError: if the network is routed and `t` are no timesteps.
        """
        height, width = (side * self.patch_size for side in self.grid)
        if x.shape[1:] != (self.in_channels, height, width):
            raise ValueError(f"images must have shape {(self.in_channels, height, width)}, got {tuple(x.shape[1:])}")
        c = self.conditioning(t, y)
        tokens = self.embed(x) + self.positions
        for block in self.blocks:
            tokens = block(tokens, t, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        patches = self.head(_modulated(self.norm(tokens), shift, scale))
        return rearrange(
            patches, "b (h w) (p q c) -> b c (h p) (w q)", h=self.grid[0], p=self.patch_size, q=self.patch_size
        )


def dit_s_2(**options: Any) -> DiT:
    """DiT-S/2, 33 million parameters. `options` are those of `DiT`."""
    return DiT(**{"patch_size": 2, "dim": 384, "depth": 12, "num_heads": 6, **options})


def dit_b_2(**options: Any) -> DiT:
    """DiT-B/2, 130 million parameters."""
    return DiT(**{"patch_size": 2, "dim": 768, "depth": 12, "num_heads": 12, **options})


def dit_l_2(**options: Any) -> DiT:
    """DiT-L/2, 458 million parameters."""
    return DiT(**{"patch_size": 2, "dim": 1024, "depth": 24, "num_heads": 16, **options})


def dit_xl_2(**options: Any) -> DiT:
    """DiT-XL/2, 675 million parameters."""
    return DiT(**{"patch_size": 2, "dim": 1152, "depth": 28, "num_heads": 16, **options})
