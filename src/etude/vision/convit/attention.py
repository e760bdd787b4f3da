"""Gated positional self-attention, and the convolution that it can be.

d'Ascoli, Touvron, Leavitt, Morcos, Biroli & Sagun, "ConViT: Improving Vision Transformers with Soft Convolutional
Inductive Biases", ICML 2021, arXiv:2103.10697, sections 2 and 3. With r_ij = (dx, dy, dx^2 + dy^2) for key j relative
to query i, in steps of the grid, head h of a gated layer attends by

    C_ij = softmax_j(q_i . k_j / sqrt(d_h))                                      content
    P_ij = softmax_j(w_h . r_ij + b_h)                                           position, the same for every image
    A_ij = (1 - sigmoid(lambda_h)) C_ij + sigmoid(lambda_h) P_ij                                              (1)

each row divided by its sum, which is one already. At the start lambda_h = 1, the value map is the identity and

    w_h = alpha (2 Delta_x, 2 Delta_y, -1),  so that  w_h . r = -alpha |(dx, dy) - Delta_h|^2 + const         (2)

centres head h on one offset Delta_h of a k x k window, k = floor(sqrt(heads)).

A row's logit is a function of dx plus one of dy, so over a rectangle of keys the softmax is a product of two:

    P_ij = X_ij Y_ij,  X = softmax over columns of w_x dx + w_d dx^2,  Y = softmax over rows of w_y dy + w_d dy^2  (3)

for any w, learned or not. P is therefore applied along rows and then along columns, and never made unless asked for.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = [
    "GatedPositionalSelfAttention",
    "gpsa_from_attention",
    "gpsa_from_conv",
    "grid_of",
    "head_offsets",
    "relative_coordinates",
]


def relative_coordinates(
    height: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "tokens tokens 3"]:
    """r_ij = (dx, dy, dx^2 + dy^2) from token i to token j of a grid that is read row by row, in steps of the grid.

    Args:
        height, width: of the grid, in tokens.

    Raises:
        ValueError: if a side is not positive.
    """
    if min(height, width) < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    rows = torch.arange(height, device=device, dtype=dtype or torch.get_default_dtype())
    columns = torch.arange(width, device=device, dtype=dtype or torch.get_default_dtype())
    y, x = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    dx, dy = x[None, :] - x[:, None], y[None, :] - y[:, None]
    return torch.stack([dx, dy, dx.square() + dy.square()], dim=-1)


def head_offsets(num_heads: int) -> Float[Tensor, "heads 2"]:
    """Centres (Delta_x, Delta_y) of the first floor(sqrt(num_heads))^2 heads, in steps of the grid.

    Head a + k b looks at (b - c, a - c), with c = (k - 1) / 2 for even k and k // 2 for odd k: whole steps for an odd
    k, half steps, between four tokens, for an even one.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    side = math.isqrt(num_heads)
    place = torch.arange(side, dtype=torch.get_default_dtype()) - (side - 1) / 2
    dx, dy = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([dx.flatten(), dy.flatten()], dim=-1)


def grid_of(tokens: int, grid_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
    """Height and width of the grid that `tokens` fill: `grid_size`, or a square if that is None.

    Raises:
        ValueError: if they fill no such grid; a class token among them is one too many.
    """
    hint = "; a class token must join after the gated layers"
    if grid_size is not None:
        height, width = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        if height * width != tokens:
            raise ValueError(
                f"{tokens} tokens do not fill a grid of {height} x {width} = {height * width}"
                + (hint if tokens == height * width + 1 else "")
            )
        return height, width
    side = math.isqrt(tokens)
    if tokens < 1 or side * side != tokens:
        raise ValueError(
            f"{tokens} tokens fill no square grid: give grid_size=(height, width)"
            + (hint if side * side + 1 == tokens else "")
        )
    return side, side


class GatedPositionalSelfAttention(nn.Module):
    """Self-attention whose heads mix content and position by a learned gate, Eq. (1).

        layer = GatedPositionalSelfAttention(dim=36, num_heads=9)
        y = layer(tokens)                                           # (batch, 196, 36), from a grid of 14 x 14
        y = layer(tokens, grid_size=(7, 28))                        # any grid: no parameter depends on its size
        layer.gates                                                 # how positional each head is, in (0, 1)

    Neither C nor P is stored, save with attention dropout in training. Softmaxes of half-precision inputs are taken
    in single precision.

    Args:
        dim: features of a token, a multiple of `num_heads`.
        num_heads: heads. With `local_init` a square number starts as a square window of convolution taps; of any
            other number the heads beyond floor(sqrt(num_heads))^2 keep random positional weights.
        qkv_bias: whether queries, keys and values have a bias.
        locality_strength: alpha of Eq. (2), > 0. The larger, the narrower each head's start; the paper's is 1.
        local_init: start as Eq. (2) says, with values that are the tokens; else all weights are random and small.
        grid_size: height and width in tokens, or a side, that inputs must fill; any square if None.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.
        pos_bias: whether the positional logits have b_h. It cancels in the softmax and never gets a gradient beyond
            rounding; the published models carry it.

    Raises:
        ValueError: if `dim` is no multiple of `num_heads`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int = 9,
        qkv_bias: bool = False,
        locality_strength: float | int = 1.0,
        local_init: bool = True,
        grid_size: int | tuple[int, int] | None = None,
        attn_drop: float | int = 0.0,
        proj_drop: float | int = 0.0,
        pos_bias: bool = True,
    ):
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.dim, self.num_heads = dim, num_heads
        self.locality_strength, self.local_init = locality_strength, local_init
        self.grid_size = grid_size
        self.attn_drop = attn_drop
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.pos_proj = nn.Linear(3, num_heads, bias=pos_bias)
        self.gate_logit = nn.Parameter(torch.empty(num_heads))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights from a normal of deviation 0.02, biases zero, gates sigmoid(1); then, if asked for, Eq. (2)."""
        for linear in (self.qk, self.v, self.pos_proj, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        nn.init.ones_(self.gate_logit)
        if self.local_init:
            nn.init.eye_(self.v.weight)
            self.localize()

    @torch.no_grad()
    def localize(self) -> None:
        """Centres the first floor(sqrt(heads))^2 heads as Eq. (2) says; warns if that leaves heads out."""
        offsets = head_offsets(self.num_heads).to(self.pos_proj.weight)
        if len(offsets) < self.num_heads:
            warnings.warn(
                f"{self.num_heads} heads are no square number: {self.num_heads - len(offsets)} of them start without "
                f"a place in the window",
                stacklevel=4,
            )
        if self.locality_strength <= 0:
            warnings.warn(
                f"locality_strength {self.locality_strength} is not positive: heads start by looking away", stacklevel=4
            )
        self.pos_proj.weight[: len(offsets)] = torch.cat([2 * offsets, -torch.ones_like(offsets[:, :1])], dim=1)
        self.pos_proj.weight.mul_(self.locality_strength)

    @property
    def gates(self) -> Float[Tensor, "heads"]:
        """Share sigmoid(lambda_h) of the positional attention in each head."""
        return torch.sigmoid(self.gate_logit)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], grid_size: int | tuple[int, int] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mixes the tokens of a grid, read row by row.

        Args:
            x: tokens, without a class token.
            grid_size: of this input; the layer's own if None.

        Raises:
            ValueError: if the tokens do not fill the grid.
        """
        grid = self._grid(x, grid_size)
        if self.attn_drop and self.training:
            weights = F.dropout(self.attention(x, grid), self.attn_drop)
            values = self.v(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
            return self.proj_drop(self.proj(mixed))
        values = self.v(x).unflatten(-1, (self.num_heads, -1))
        q, k = self._queries_and_keys(x)
        content = F.scaled_dot_product_attention(q, k, values.transpose(1, 2)).transpose(1, 2)
        positional = self._by_position(values, grid)
        mixed = torch.lerp(content, positional, self.gates.to(values.dtype)[:, None])
        return self.proj_drop(self.proj(mixed.flatten(2)))

    def attention(
        self, x: Float[Tensor, "batch tokens dim"], grid_size: int | tuple[int, int] | None = None
    ) -> Float[Tensor, "batch heads tokens tokens"]:
        """The attention weights A, without dropout; row i says what token i takes from each token."""
        grid = self._grid(x, grid_size)
        q, k = self._queries_and_keys(x)
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        content = torch.softmax(logits.to(_at_least_single(logits)), dim=-1)
        gates = self.gates.to(content.dtype)[:, None, None]
        weights = torch.lerp(content, self.positional_attention(grid).to(content.dtype), gates)
        return weights / weights.sum(dim=-1, keepdim=True)

    def positional_attention(
        self, grid_size: int | tuple[int, int] | None = None
    ) -> Float[Tensor, "heads tokens tokens"]:
        """P of each head on a grid; the layer's own grid if None.

        Raises:
            ValueError: if neither the call nor the layer names a grid.
        """
        grid_size = self.grid_size if grid_size is None else grid_size
        if grid_size is None:
            raise ValueError("the layer has no grid_size of its own: give one")
        height, width = (grid_size, grid_size) if isinstance(grid_size, int) else grid_size
        by_row, by_column = self._by_axis(height, width)
        product = by_row[:, :, None, :, None] * by_column[:, None, :, None, :]
        return product.flatten(3).flatten(1, 2)

    def _grid(self, x: Tensor, grid_size: int | tuple[int, int] | None) -> tuple[int, int]:
        if x.ndim != 3 or x.shape[2] != self.dim:
            raise ValueError(f"x must have shape (batch, tokens, {self.dim}), got {tuple(x.shape)}")
        return grid_of(x.shape[1], self.grid_size if grid_size is None else grid_size)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k

    def _by_axis(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Y and X of Eq. (3), each (heads, side, side)."""
        weight = self.pos_proj.weight.to(_at_least_single(self.pos_proj.weight))
        across, down, squared = (part[:, None, None] for part in weight.unbind(1))
        dx, dy = _steps(width, weight), _steps(height, weight)
        columns = across * dx + squared * dx.square()
        if self.pos_proj.bias is not None:
            columns = columns + self.pos_proj.bias.to(weight.dtype)[:, None, None]
        rows = down * dy + squared * dy.square()
        return torch.softmax(rows, dim=-1), torch.softmax(columns, dim=-1)

    def _by_position(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """P times the values (batch, tokens, heads, features), along columns and then along rows."""
        height, width = grid
        batch, _, heads, features = values.shape
        by_row, by_column = (part.to(values.dtype) for part in self._by_axis(height, width))
        lines = values.unflatten(1, grid).permute(3, 2, 0, 1, 4).reshape(heads, width, -1)
        lines = torch.bmm(by_column, lines).view(heads, width, batch, height, features)
        lines = torch.bmm(by_row, lines.permute(0, 3, 1, 2, 4).reshape(heads, height, -1))
        return lines.view(heads, height, width, batch, features).permute(3, 1, 2, 0, 4).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.num_heads}, locality_strength={self.locality_strength}, grid={self.grid_size}"


def _steps(side: int, like: Tensor) -> Tensor:
    """Position of key minus position of query along one axis."""
    place = torch.arange(side, device=like.device, dtype=like.dtype)
    return place[None, :] - place[:, None]


def _at_least_single(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@torch.no_grad()
def gpsa_from_conv(
    weight: Float[Tensor, "channels_out channels_in kernel_height kernel_width"],
    bias: Float[Tensor, "channels_out"] | None = None,
    *,
    alpha: float | int = 50.0,
    gate_logit: float | int = 40.0,
) -> GatedPositionalSelfAttention:
    """The layer that computes a convolution of stride 1: one head a tap, each as wide as the input.

        layer = gpsa_from_conv(conv.weight)                         # 9 heads for a 3 x 3 kernel
        y = layer(F.pad(tokens, (0, layer.dim - tokens.shape[-1])))[..., : conv.out_channels]

    The tokens (batch, height * width, k^2 channels_in) hold the image in their first channels_in features, the
    output its result in the first channels_out. Tokens within k // 2 steps of the border differ from a convolution:
    attention puts the mass of a tap that falls outside on the nearest tokens inside, not on zeros.

    Args:
        weight: kernel, k odd.
        bias: of the convolution.
        alpha: how sharply heads look at their taps, Eq. (2); exp(-alpha) leaks to the next token.
        gate_logit: lambda of all heads; sigmoid(-lambda) of the attention stays with the content.

    Raises:
        ValueError: if the kernel is not square and odd, or has more than k^2 channels_in outputs.
    """
    channels_out, channels_in, side, other = weight.shape
    if side != other or side % 2 == 0:
        raise ValueError(f"the kernel must be square and of odd size, got {side} x {other}")
    heads = side * side
    dim = heads * channels_in
    if channels_out > dim:
        raise ValueError(
            f"{heads} heads of {channels_in} features make at most {dim} outputs, the kernel has {channels_out}"
        )
    layer = GatedPositionalSelfAttention(dim=dim, num_heads=heads, locality_strength=alpha)
    layer = layer.to(device=weight.device, dtype=weight.dtype)
    layer.gate_logit.fill_(gate_logit)
    layer.v.weight.zero_().unflatten(0, (heads, channels_in))[:, range(channels_in), range(channels_in)] = 1
    columns, rows = (head_offsets(heads) + side // 2).long().T
    layer.proj.weight.zero_()
    layer.proj.weight[:channels_out] = weight[:, :, rows, columns].transpose(1, 2).flatten(1)
    if bias is not None:
        layer.proj.bias[:channels_out] = bias
    return layer


@torch.no_grad()
def gpsa_from_attention(
    attention: nn.Module,
    *,
    gate_logit: float | int = 1.0,
    locality_strength: float | int = 1.0,
    grid_size: int | tuple[int, int] | None = None,
) -> GatedPositionalSelfAttention:
    """A gated layer with the queries, keys, values and output of a trained self-attention, to take its place.

        block.attn = gpsa_from_attention(block.attn)                # in a ViT that adds its class token later, or none

    Args:
        attention: with a fused `qkv` and a `proj` (linear layers) and `num_heads`: `etude.nn.transformer`'s, timm's.
        gate_logit: lambda of all heads: 1 is the published start, -30 leaves the function as it was.
        locality_strength: alpha of Eq. (2).
        grid_size: as for the layer.

    Raises:
        TypeError: if the module has not these parts.
    """
    qkv, proj = getattr(attention, "qkv", None), getattr(attention, "proj", None)
    heads = getattr(attention, "num_heads", None)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or not isinstance(heads, int):
        raise TypeError(f"expected a module with linear qkv and proj and num_heads, got {type(attention).__name__}")
    dim = proj.in_features
    attn_drop, proj_drop = (
        drop.p if isinstance(drop, nn.Dropout) else float(drop)
        for drop in (getattr(attention, "attn_drop", 0.0), getattr(attention, "proj_drop", 0.0))
    )
    layer = GatedPositionalSelfAttention(
        dim=dim, num_heads=heads, qkv_bias=qkv.bias is not None, locality_strength=locality_strength,
        grid_size=grid_size, attn_drop=attn_drop, proj_drop=proj_drop,
    ).to(device=proj.weight.device, dtype=proj.weight.dtype)  # fmt: skip
    layer.gate_logit.fill_(gate_logit)
    for mine, theirs in ((layer.qk, slice(2 * dim)), (layer.v, slice(2 * dim, None))):
        mine.weight.copy_(qkv.weight[theirs])
        if qkv.bias is not None:
            mine.bias.copy_(qkv.bias[theirs])
    layer.proj.weight.copy_(proj.weight)
    if proj.bias is not None:
        layer.proj.bias.copy_(proj.bias)
    return layer.train(attention.training)
