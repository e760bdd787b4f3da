"""Orchid as a masked language model and as a classifier of images.

Karami & Ghodsi, arXiv:2402.18508, sections 4.2 and 4.3. No training code and no configuration files are released: the
frames follow the text, and what it leaves open is said at each class.
"""

from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from etude.nn.transformer import PatchEmbedding
from etude.sequence.orchid.encoder import Encoder, OrchidEncoder

__all__ = ["OrchidForMaskedLM", "OrchidViT", "PatchClassifier", "mask_tokens", "masked_lm_loss"]

_IGNORED = -100


class OrchidForMaskedLM(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2402.18508"
):
    """Predicts masked tokens from both sides.

        model = OrchidForMaskedLM(vocab_size=30_522, dim=768, depth=12, max_len=128)   # 68M; the paper's base has 77M
        inputs, targets = mask_tokens(ids, mask_id=103, vocab_size=30_522, rate=0.3)
        loss = masked_lm_loss(model(inputs), targets)

    The head is BERT's: linear, GELU, norm, and the transposed embedding. Learned positions are added to the tokens,
    as in the recipe of Monarch Mixer that the authors follow; without them (`positions=False`) the network is
    equivariant to circular shifts.

    Args:
        vocab_size: tokens.
        dim, depth, max_len, dropout: see `OrchidEncoder`.
        mlp_blocks: of the feed-forward networks' matrices; the paper's four are our reading.
        positions: whether there are learned positions.
        orchid: further arguments of `OrchidEncoder` and `Orchid`.

    Raises:
        ValueError: for a vocabulary of fewer than two tokens.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        dim: int = 256,
        depth: int = 4,
        max_len: int = 128,
        mlp_blocks: int = 4,
        positions: bool = True,
        **orchid: Any,
    ):
        super().__init__()
        if vocab_size < 2:
            raise ValueError(f"vocab_size must be at least 2, got {vocab_size}")
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.positions = nn.Parameter(0.02 * torch.randn(max_len, dim)) if positions else None
        self.norm = nn.LayerNorm(dim)
        self.encoder = OrchidEncoder(dim, depth=depth, max_len=max_len, mlp_blocks=mlp_blocks, **orchid)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(
        self, ids: Int64[Tensor, "batch length"], *, mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits of each place; `mask` is true for real tokens. ValueError for sequences longer than `max_len`."""
        x = self.embedding(ids)
        if self.positions is not None:
            if ids.shape[1] > len(self.positions):
                raise ValueError(f"there are {len(self.positions)} positions, got {ids.shape[1]} tokens")
            x = x + self.positions[: ids.shape[1]]
        x = self.head(self.encoder(self.norm(x), mask=mask))
        return F.linear(x, self.embedding.weight, self.bias)


def mask_tokens(
    ids: Int64[Tensor, "batch length"],
    *,
    mask_id: int,
    vocab_size: int,
    rate: float | int = 0.15,
    special: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> tuple[Int64[Tensor, "batch length"], Int64[Tensor, "batch length"]]:
    """What a masked language model sees and what it is asked for (Devlin et al., arXiv:1810.04805).

    Each token is chosen with probability `rate`. Of those chosen four fifths become `mask_id`, a tenth a random
    token, and a tenth stay.

    Args:
        ids: tokens.
        mask_id: the token of masked places.
        vocab_size: random tokens are below it.
        rate: 0.15 as in BERT, 0.3 as in the paper's recipe; 0 < rate < 1.
        special: tokens that are never chosen, such as padding.
        generator: of the draws, on the CPU.

    Returns:
        Inputs and targets; targets are -100 where nothing is asked.

    Raises:
        ValueError: for a rate that is not a probability.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must lie between 0 and 1, got {rate}")
    draw = torch.rand((2, *ids.shape), generator=generator).to(ids.device)
    other = torch.randint(vocab_size, ids.shape, generator=generator).to(ids.device)
    kept = torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))
    chosen = (draw[0] < rate) & ~kept
    inputs = torch.where(chosen & (draw[1] < 0.8), mask_id, ids)
    inputs = torch.where(chosen & (draw[1] >= 0.9), other, inputs)
    return inputs, torch.where(chosen, ids, _IGNORED)


def masked_lm_loss(
    logits: Float[Tensor, "batch length vocab"], targets: Int64[Tensor, "batch length"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the places that are asked for; 0 if there are none."""
    asked = (targets != _IGNORED).sum().clamp(min=1)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum") / asked


class PatchClassifier(nn.Module):
    """Patches, an encoder, the mean over tokens, a linear classifier; no class token.

    Args:
        encoder: with any mixers.
        dim: features of a token.
        img_size: height and width in pixels, multiples of the patch, or one number for both.
        patch_size: side of a patch.
        in_chans: channels of the images.
        num_classes: of the logits.
        pos_embed: learned positions, added to the tokens.
    """

    def __init__(
        self,
        encoder: Encoder,
        dim: int,
        *,
        img_size: int | tuple[int, int] | list[int],
        patch_size: int,
        in_chans: int,
        num_classes: int,
        pos_embed: bool,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        self.patches = PatchEmbedding(in_chans, dim, patch_size)
        tokens = count_patches(img_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, dim)) if pos_embed else None
        self.encoder = encoder
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits; ValueError for images of other channels or, with positions, other sides."""
        tokens = self.patches(images)
        if self.positions is not None:
            if tokens.shape[1] != len(self.positions):
                raise ValueError(f"positions are of {len(self.positions)} patches, got {tokens.shape[1]}")
            tokens = tokens + self.positions
        return self.classifier(self.encoder(tokens).mean(1))


def count_patches(img_size: int | tuple[int, int] | list[int], patch_size: int) -> int:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if min(height, width, patch_size) < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"sides must be multiples of the patch, {patch_size}, got {height} x {width}")
    return (height // patch_size) * (width // patch_size)


class OrchidViT(
    PatchClassifier, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2402.18508"
):
    """Classifies images by Orchid layers over patches, row by row.

        model = OrchidViT(img_size=32, patch_size=4, dim=128, depth=6)
        logits = model(images)                                             # (batch, 10)

    Without positions the network is invariant to circular shifts of the sequence of patches, and only the order of
    tokens along that circle tells it where a patch lies; give it `pos_embed=True` if that is too little.

    Args:
        img_size, patch_size, in_chans, num_classes, pos_embed: see `PatchClassifier`.
        dim, depth, mlp_ratio, mlp_blocks, dropout, drop_path: see `OrchidEncoder`.
        orchid: of `Orchid`.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] | list[int] = 32,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        dim: int = 128,
        depth: int = 6,
        mlp_ratio: float | int = 4,
        mlp_blocks: int = 1,
        dropout: float | int = 0.0,
        drop_path: float | int = 0.0,
        pos_embed: bool = False,
        **orchid: Any,
    ):
        encoder = OrchidEncoder(
            dim, depth=depth, max_len=count_patches(img_size, patch_size), mlp_ratio=mlp_ratio, mlp_blocks=mlp_blocks,
            dropout=dropout, drop_path=drop_path, **orchid,
        )  # fmt: skip
        super().__init__(
            encoder, dim, img_size=img_size, patch_size=patch_size, in_chans=in_chans, num_classes=num_classes,
            pos_embed=pos_embed,
        )  # fmt: skip
