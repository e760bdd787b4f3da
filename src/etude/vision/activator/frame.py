"""One frame for every block: patches, blocks, mean over tokens, linear classifier; and the blocks compared."""

from collections.abc import Callable

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from etude.nn.transformer import FeedForward, PatchEmbedding, SelfAttention
from etude.vision.activator.gating import ActivatorBlock

__all__ = ["Activator", "MixerBlock", "PatchClassifier", "ViTBlock", "mixer_block", "vit_block"]

BlockFactory = Callable[[int, int], nn.Module]


class PatchClassifier(nn.Module):
    """Patch embedding, `depth` blocks, mean over tokens, linear classifier; no class token.

        frame = PatchClassifier(vit_block(hidden_dim=512), dim=256, depth=4, pos_embed=True)
        frame = PatchClassifier(mixer_block(hidden_dim=512), dim=256, depth=4)

    Args:
        block_factory: (dim, number of tokens) -> a block that maps (batch, tokens, dim) to the same shape.
        img_size: height and width in pixels, or one number for both; multiples of the patch. Blocks that treat tokens
            alike take images of other sizes too, unless there are positions.
        patch_size: side of a patch.
        in_chans: channels of the images.
        num_classes: of the logits.
        dim: features of a token.
        depth: blocks.
        pos_embed: learned positions, added to the tokens. The official networks have none.
        final_norm: a layer norm before the mean. The official networks have none; more than some twelve blocks need
            it, because the scale of the tokens grows with depth.

    Raises:
        ValueError: for sizes below 1, or a side that is no multiple of the patch.
    """

    def __init__(
        self,
        block_factory: BlockFactory,
        *,
        img_size: int | tuple[int, int] | list[int] = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        dim: int = 256,
        depth: int = 4,
        pos_embed: bool = False,
        final_norm: bool = False,
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width, num_classes, depth) < 1:
            raise ValueError(
                f"img_size, num_classes and depth must be positive, got {img_size}, {num_classes}, {depth}"
            )
        self.patches = PatchEmbedding(in_chans, dim, patch_size)
        if height % patch_size or width % patch_size:
            raise ValueError(f"the image's sides must be multiples of the patch, {patch_size}, got {height} x {width}")
        self.num_tokens = (height // patch_size) * (width // patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(self.num_tokens, dim)) if pos_embed else None
        self.blocks = nn.Sequential(*(block_factory(dim, self.num_tokens) for _ in range(depth)))
        self.norm: nn.Module = nn.LayerNorm(dim) if final_norm else nn.Identity()
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Shaped[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; ValueError for images of other channels or sides, TypeError for integer pixels."""
        return self.classify(self.tokens(images))

    def tokens(self, images: Shaped[Tensor, "batch in_chans height width"]) -> Float[Tensor, "batch tokens dim"]:
        """Embedded patches, row by row, with their positions where the network has them."""
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point, got {images.dtype}: divide bytes by 255")
        tokens = self.patches(images)
        if self.positions is None:
            return tokens
        if tokens.shape[1] != self.num_tokens:
            raise ValueError(f"positions are of {self.num_tokens} patches, got {tokens.shape[1]}")
        return tokens + self.positions

    def classify(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch classes"]:
        """Logits of embedded patches."""
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


class Activator(
    PatchClassifier, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2405.15953"
):
    """The paper's network: a patch classifier whose blocks are gated linear units.

        model = Activator()                              # CIFAR-10: D = 256, M = 512, 4 blocks with GLU and MLP
        model = Activator(use_mlp=False)                 # the cheaper variant: a block is one GLU

    With the default `mixing="channel"`, which is what the official code does, patches do not interact before the mean
    over tokens, and there are no positions: the class depends on the bag of patches, not on their arrangement. See
    `ActivatorBlock`.

    Args:
        img_size, patch_size, in_chans, num_classes, dim, depth, pos_embed, final_norm: see `PatchClassifier`.
        hidden_dim, dropout, activation, use_mlp, shared_norm, mixing, norm, token_hidden_dim: see `ActivatorBlock`.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] | list[int] = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        dim: int = 256,
        hidden_dim: int = 512,
        depth: int = 4,
        dropout: float | int = 0.5,
        use_mlp: bool = True,
        activation: str = "gelu",
        shared_norm: bool = True,
        mixing: str = "channel",
        pos_embed: bool = False,
        final_norm: bool = False,
        norm: str | None = "shared",
        token_hidden_dim: int | None = None,
    ):
        def block(dim: int, num_tokens: int) -> nn.Module:
            return ActivatorBlock(
                dim=dim, hidden_dim=hidden_dim, dropout=dropout, activation=activation, use_mlp=use_mlp,
                shared_norm=shared_norm, mixing=mixing, num_tokens=num_tokens, norm=norm,
                token_hidden_dim=token_hidden_dim,
            )  # fmt: skip

        super().__init__(
            block, img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes, dim=dim,
            depth=depth, pos_embed=pos_embed, final_norm=final_norm,
        )  # fmt: skip


class ViTBlock(nn.Module):
    """Self-attention over all tokens, then an MLP, each on normed input beside a skip.

    Args:
        dim: features of a token, a multiple of `num_heads`.
        hidden_dim: of the MLP.
        num_heads: of the attention.
        dropout: of the MLP, as in `ActivatorBlock`.
    """

    def __init__(self, *, dim: int, hidden_dim: int, num_heads: int = 4, dropout: float | int = 0.5):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads, qkv_bias=True)
        self.mlp = FeedForward(dim, hidden_dim, dropout=dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MixerBlock(nn.Module):
    """An MLP along the tokens, then one along the channels, each on normed input beside a skip (MLP-Mixer).

    Args:
        dim: features of a token.
        num_tokens: L, to which the block is tied.
        hidden_dim: of both MLPs.
        dropout: of both.
    """

    def __init__(self, *, dim: int, num_tokens: int, hidden_dim: int, dropout: float | int = 0.5):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.num_tokens = num_tokens
        self.token_mlp = FeedForward(num_tokens, hidden_dim, dropout=dropout)
        self.mlp = FeedForward(dim, hidden_dim, dropout=dropout)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        if x.shape[1] != self.num_tokens:
            raise ValueError(f"the block is tied to {self.num_tokens} tokens, got {x.shape[1]}")
        x = x + self.token_mlp(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


def vit_block(*, hidden_dim: int, num_heads: int = 4, dropout: float | int = 0.5) -> BlockFactory:
    """A factory of `ViTBlock`s for `PatchClassifier`. A fair ViT has `pos_embed=True` there."""
    return lambda dim, num_tokens: ViTBlock(dim=dim, hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout)


def mixer_block(*, hidden_dim: int, dropout: float | int = 0.5) -> BlockFactory:
    """A factory of `MixerBlock`s for `PatchClassifier`."""
    return lambda dim, num_tokens: MixerBlock(dim=dim, num_tokens=num_tokens, hidden_dim=hidden_dim, dropout=dropout)
