"""BatchFormerV2: sample relations at every position, in two streams through a transformer.

Hou, Yu, Wang, Zhan & Tao, "BatchFormerV2: Exploring Sample Relationships for Dense Representation Learning",
arXiv:2204.01254, 2022, section 3. For tokens (B, L, C) attention runs over the B samples at each of the L positions
separately. At its first insertion the batch becomes [plain; mixed], 2B rows; later insertions change the mixed half
only. All other blocks, and the head, are shared by both streams. At test there is one stream, the plain one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.training.batchformer.mixing import BatchEncoder
from etude.training.batchformer.targets import repeat_targets, split_streams

__all__ = ["BatchFormerStream", "BatchFormerV2"]


class BatchFormerV2(BatchEncoder):
    """Attends over the batch at each token or pixel and appends the result to the batch; nothing at test.

        layer = BatchFormerV2(dim=192)
        tokens = layer(tokens)                  # (B, L, 192) -> (2B, L, 192) in training
        tokens = layer(tokens, doubled=True)    # at later places: 2B rows stay 2B rows

    What follows sees 2B rows in training: statistics of batch norms there are of both streams. Attention costs
    O(L B^2 C). `BatchFormerStream` puts the layer between blocks.

    Args:
        dim: C, entries of a token or channels of a map.
        num_heads, feedforward_dim, dropout, num_layers, gather: as for `BatchFormer`; the defaults are those of the
            authors' detectors.

    Raises:
        ValueError: as for `BatchFormer`.
    """

    def forward(self, x: Float[Tensor, "batch *shape"], doubled: bool = False) -> Float[Tensor, "rows *shape"]:
        """The plain stream and below it the mixed one.

        Args:
            x: tokens (batch, length, dim) or maps (batch, dim, height, width).
            doubled: whether `x` holds both streams already, of which only the second half is then mixed.

        Raises:
            ValueError: if the shape does not fit, or a doubled batch has an odd number of rows.
        """
        self._check(x)
        if not self.training:
            return x
        plain, mixed = split_streams(x) if doubled else (x, x)
        return torch.cat([plain, self.mix(mixed)])

    def mix(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The mixed stream alone, whatever the mode."""
        self._check(x)
        if x.ndim == 3:
            return self.encode(x)
        tokens = x.flatten(2).transpose(1, 2)
        return self.encode(tokens).transpose(1, 2).unflatten(2, x.shape[2:])

    def _check(self, x: Tensor) -> None:
        axis = {3: 2, 4: 1}.get(x.ndim)
        if axis is None or x.shape[axis] != self.dim:
            raise ValueError(
                f"expected tokens (batch, length, {self.dim}) or maps (batch, {self.dim}, height, width), "
                f"got shape {tuple(x.shape)}" + ("; for (batch, dim) use BatchFormer" if x.ndim == 2 else "")
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, gather={self.gather}"


class BatchFormerStream(nn.Module):
    """A stack of blocks with BatchFormerV2 after some of them.

        vit.blocks = BatchFormerStream(vit.blocks, insert_at=[9, 10, 11], batchformers=BatchFormerV2(192))
        loss = two_stream_loss(vit(images), labels)

    In training the output has 2B rows, plain stream first; at test it is that of the blocks alone, bit for bit.
    Blocks keep their names ("0", "1", ...), so weights of the plain stack load with `strict=False`, and weights saved
    from here fit the plain stack once the keys below "batchformers" are dropped.

    Args:
        blocks: modules that map (batch, ...) to the same shape, one after the other.
        insert_at: indices of the blocks after which to mix, each once.
        batchformers: one `BatchFormerV2` that all places share, or one for each place.

    Raises:
        ValueError: if an index is not that of a block or stands twice, or the layers are not as many as the places.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        insert_at: Sequence[int],
        batchformers: BatchFormerV2 | Sequence[BatchFormerV2] | nn.ModuleList,
    ):
        super().__init__()
        modules = list(blocks)
        if not insert_at or len(set(insert_at)) < len(insert_at):
            raise ValueError(f"insert_at must name at least one block, and none twice, got {list(insert_at)}")
        if not all(0 <= index < len(modules) for index in insert_at):
            raise ValueError(f"insert_at must lie in 0..{len(modules) - 1}, got {list(insert_at)}")
        layers = [batchformers] if isinstance(batchformers, BatchFormerV2) else list(batchformers)
        if not isinstance(batchformers, BatchFormerV2) and len(layers) != len(insert_at):
            raise ValueError(
                f"batchformers must be one layer or one for each of the {len(insert_at)} places, got {len(layers)}"
            )
        for index, block in enumerate(modules):
            self.add_module(str(index), block)
        self.batchformers = nn.ModuleList(layers)
        self.num_blocks = len(modules)
        self.insert_at = tuple(sorted(insert_at))
        by_place = layers * len(insert_at) if isinstance(batchformers, BatchFormerV2) else layers
        position = {id(layer): number for number, layer in enumerate(layers)}
        self._layer_after = {place: position[id(layer)] for place, layer in zip(insert_at, by_place)}

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> nn.Module:
        """A block."""
        return self.get_submodule(str(range(self.num_blocks)[index]))

    def __iter__(self) -> Iterator[nn.Module]:
        """The blocks, in order."""
        return (self[index] for index in range(self.num_blocks))

    def forward(self, x: Float[Tensor, "batch *shape"], *args: Any, **per_sample: Any) -> Float[Tensor, "rows *shape"]:
        """Both streams in training, the plain one at test.

        Args:
            x: tokens (batch, length, dim) or maps (batch, dim, height, width).
            args: handed to every block as they are.
            per_sample: handed to every block too; each has a row per sample (a padding mask, positions) and is
                doubled when the batch is. None stays None.
        """
        doubled = False
        for index, block in enumerate(self):
            x = block(x, *args, **per_sample)
            if self.training and index in self._layer_after:
                x = self.batchformers[self._layer_after[index]](x, doubled=doubled)
                if not doubled:
                    per_sample = repeat_targets(per_sample)
                    doubled = True
        return x
