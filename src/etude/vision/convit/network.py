"""ConViT: a vision transformer whose first blocks are gated, and the plain one it is compared with.

d'Ascoli et al., ICML 2021, arXiv:2103.10697, section 3. Patches get a learned position, pass the gated blocks without
a class token, which joins before the first plain block and has no position of its own.
"""

from collections.abc import Iterator
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Num
from torch import Tensor, nn

from etude.nn.transformer import DropPath, FeedForward, PatchEmbedding, SelfAttention
from etude.vision.convit.attention import GatedPositionalSelfAttention
from etude.vision.convit.patches import resized_positions

__all__ = [
    "ConViT",
    "ConViTBlock",
    "convit_base",
    "convit_small",
    "convit_tiny",
    "vit_counterpart",
    "weight_decay_groups",
]


class ConViTBlock(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)); the attention is gated or plain.

    Args:
        dim, num_heads: features of a token, a multiple of the heads.
        gated: gated positional self-attention, on patches only; else plain self-attention.
        mlp_ratio: hidden features of the MLP over `dim`.
        drop: dropout of the attention's output and in the MLP.
        attn_drop: dropout of the attention weights.
        drop_path: probability that a sample skips a branch.
        qkv_bias, locality_strength, local_init, grid_size: see `GatedPositionalSelfAttention`.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        gated: bool = True,
        mlp_ratio: float | int = 4.0,
        qkv_bias: bool = False,
        drop: float | int = 0.0,
        attn_drop: float | int = 0.0,
        drop_path: float | int = 0.0,
        locality_strength: float | int = 1.0,
        local_init: bool = True,
        grid_size: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn: nn.Module
        if gated:
            self.attn = GatedPositionalSelfAttention(
                dim=dim, num_heads=num_heads, qkv_bias=qkv_bias, locality_strength=locality_strength,
                local_init=local_init, grid_size=grid_size, attn_drop=attn_drop, proj_drop=drop,
            )  # fmt: skip
        else:
            self.attn = SelfAttention(dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, int(dim * mlp_ratio), dropout=drop)
        for part in (self.mlp,) if gated else (self.attn, self.mlp):
            for linear in (module for module in part.modules() if isinstance(module, nn.Linear)):
                _init_linear(linear)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConViT(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="etude",
    paper_url="https://arxiv.org/abs/2103.10697",
    tags=["convit", "image-classification"],
):
    """A vision transformer that starts like a convolutional network and may leave locality head by head.

        model = ConViT(img_size=32, patch_size=4, num_classes=10, dim=192, depth=6, num_heads=4, local_up_to_layer=5)
        logits = model(images)                                      # (batch, 10)
        model.resize(48)                                            # larger images: positions are interpolated

    Args:
        img_size: height and width of the images, or their side, in pixels: multiples of the patch.
        patch_size: side of a patch in pixels.
        in_chans: channels of the images.
        num_classes: outputs of the classifier.
        dim, depth, num_heads: features of a token, blocks, heads of each block.
        local_up_to_layer: blocks, from the first, that are gated; 0 is the plain ViT.
        mlp_ratio, qkv_bias, attn_drop_rate, locality_strength, local_init: see `ConViTBlock`.
        drop_rate: dropout after the positions, of attention outputs and in the MLPs.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0 at the first.
        use_pos_embed: whether patches get a learned position.
        pool: "token" reads a class token, "mean" averages the patches and has none.

    Raises:
        ValueError: on sizes out of range, images that are no multiple of the patch, or a class token that no block
            would see (`local_up_to_layer` = `depth`).
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] | list[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        dim: int = 432,
        depth: int = 12,
        num_heads: int = 9,
        local_up_to_layer: int = 10,
        mlp_ratio: float | int = 4.0,
        qkv_bias: bool = False,
        drop_rate: float | int = 0.0,
        attn_drop_rate: float | int = 0.0,
        drop_path_rate: float | int = 0.0,
        locality_strength: float | int = 1.0,
        local_init: bool = True,
        use_pos_embed: bool = True,
        pool: str = "token",
    ):
        super().__init__()
        if depth < 1 or num_classes < 1:
            raise ValueError(f"depth and num_classes must be at least 1, got {depth} and {num_classes}")
        if pool not in ("token", "mean"):
            raise ValueError(f"pool must be 'token' or 'mean', got {pool!r}")
        if not 0 <= local_up_to_layer <= depth:
            raise ValueError(f"local_up_to_layer must lie in 0..{depth}, the depth, got {local_up_to_layer}")
        if local_up_to_layer == depth and pool == "token":
            raise ValueError(
                f"local_up_to_layer {local_up_to_layer} leaves none of {depth} blocks to a class token: "
                f"take at most {depth - 1}, or pool='mean'"
            )
        self.patch_embed = PatchEmbedding(in_chans, dim, patch_size)
        self.img_size, self.grid_size = _sizes(img_size, patch_size)
        self.num_classes, self.local_up_to_layer, self.pool = num_classes, local_up_to_layer, pool
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim)) if pool == "token" else None
        tokens = self.grid_size[0] * self.grid_size[1]
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, dim)) if use_pos_embed else None
        for token in (self.cls_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        self.blocks = nn.ModuleList(
            ConViTBlock(
                dim=dim, num_heads=num_heads, gated=index < local_up_to_layer, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias,
                drop=drop_rate, attn_drop=attn_drop_rate, drop_path=drop_path_rate * index / max(depth - 1, 1),
                locality_strength=locality_strength, local_init=local_init, grid_size=self.grid_size,
            )
            for index in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        _init_linear(self.head)

    def forward_features(self, images: Num[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """The normalised tokens after the last block: the class token, if there is one, then the patches."""
        return self.norm(self._blocks(images))

    def forward(self, images: Num[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of the classes.

        Raises:
            TypeError: if the pixels are integers.
            ValueError: if the images have other channels, or sides other than `img_size`.
        """
        tokens = self._blocks(images)
        if self.cls_token is not None:
            return self.head(self.norm(tokens[:, 0]))
        return self.head(self.norm(tokens).mean(dim=1))

    def _blocks(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, in the range the model was trained on, got {images.dtype}")
        x = self.patch_embed(images)
        if tuple(images.shape[2:]) != self.img_size:
            raise ValueError(
                f"the model is made for images of {self.img_size[0]} x {self.img_size[1]}, got "
                f"{images.shape[2]} x {images.shape[3]}: call resize() first"
            )
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = self.pos_drop(x)
        for index, block in enumerate(self.blocks):
            if index == self.local_up_to_layer and self.cls_token is not None:
                x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
            x = block(x)
        return x

    @torch.no_grad()
    def resize(self, img_size: int | tuple[int, int]) -> "ConViT":
        """Makes the model take images of another size: positions are interpolated, gated layers follow by themselves.

        The positions become a new parameter: make the optimizer afterwards.

        Raises:
            ValueError: if a side is no multiple of the patch.
        """
        before = self.grid_size
        self.img_size, self.grid_size = _sizes(img_size, self.patch_embed.patch_size)
        for layer in self.gated_layers():
            layer.grid_size = self.grid_size
        if self.pos_embed is not None and self.grid_size != before:
            resized = resized_positions(self.pos_embed, before, self.grid_size)
            self.pos_embed = nn.Parameter(resized, requires_grad=self.pos_embed.requires_grad)
        if self._hub_mixin_config is not None:  # what save_pretrained writes
            self._hub_mixin_config["img_size"] = list(self.img_size)  # type: ignore[index]
        return self

    def gated_layers(self) -> Iterator[GatedPositionalSelfAttention]:
        """The gated attentions, in their order."""
        return (module for module in self.modules() if isinstance(module, GatedPositionalSelfAttention))

    def gates(self) -> Float[Tensor, "layers heads"]:
        """sigmoid(lambda) of every gated layer and head; no gradient."""
        found = [layer.gates.detach() for layer in self.gated_layers()]
        return torch.stack(found) if found else torch.empty(0, 0)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone: positions, class token, gates."""
        names = {name for name, _ in self.named_parameters() if name.endswith("gate_logit")}
        return names | {name for name in ("pos_embed", "cls_token") if getattr(self, name) is not None}


def _init_linear(linear: nn.Linear) -> None:
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _sizes(img_size: int | tuple[int, int] | list[int], patch_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width) < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"img_size must be a multiple of the patch, {patch_size}, got {height} x {width}")
    return (height, width), (height // patch_size, width // patch_size)


def weight_decay_groups(model: nn.Module, weight_decay: float | int = 0.05) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer: matrices decay; gates, biases, norms, positions and tokens do not.

        optimizer = torch.optim.AdamW(weight_decay_groups(model, 0.05), lr=5e-4)

    Decay would pull the gates to one half. Of a `ConViT`, or a model of which one is a part.
    """
    kept: set[int] = set()
    for module in model.modules():
        if isinstance(module, ConViT):
            exempt = module.no_weight_decay()
            kept |= {id(parameter) for name, parameter in module.named_parameters() if name in exempt}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1 and id(parameter) not in kept]
    free = [parameter for parameter in parameters if parameter.ndim <= 1 or id(parameter) in kept]
    return [{"params": decayed, "weight_decay": float(weight_decay)}, {"params": free, "weight_decay": 0.0}]


def convit_tiny(**changes: Any) -> ConViT:
    """ConViT-Ti: 192 features, 4 heads; 5,710,512 parameters. Ti+ is `convit_tiny(dim=256)`.

    Arguments of `ConViT` override the published ones.
    """
    return ConViT(**({"dim": 192, "num_heads": 4} | changes))


def convit_small(**changes: Any) -> ConViT:
    """ConViT-S: 432 features, 9 heads; 27,777,322 parameters. S+ is `convit_small(dim=576)`."""
    return ConViT(**({"dim": 432, "num_heads": 9} | changes))


def convit_base(**changes: Any) -> ConViT:
    """ConViT-B: 768 features, 16 heads; 86,540,040 parameters. B+ is `convit_base(dim=1024)`."""
    return ConViT(**({"dim": 768, "num_heads": 16} | changes))


def vit_counterpart(**arguments: Any) -> ConViT:
    """The plain ViT of equal width and depth, the baseline: no gated block, a class token from the first on.

        vit = vit_counterpart(img_size=32, patch_size=4, num_classes=10, dim=192, depth=6, num_heads=4)

    Takes the arguments of `ConViT`, of which those of gated layers have no effect.
    """
    return ConViT(**(arguments | {"local_up_to_layer": 0}))
