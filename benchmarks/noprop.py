"""What NoProp costs: its steps beside a plain step of one block, and beside backpropagation through the same blocks.

Sizes are the paper's for MNIST: 28 x 28 grey images in batches of 128, blocks of two million parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.training.noprop import (
    BackpropChain,
    LabelEmbedding,
    NoPropBlock,
    NoPropCT,
    NoPropDT,
    block_optimizers,
    train_noprop_epoch,
)

_BATCH, _CLASSES, _BLOCKS, _STEPS = 128, 10, 4, 20


def _block(time_embed: int | None = None) -> NoPropBlock:
    return NoPropBlock(1, 28, _CLASSES, _CLASSES, time_embed=time_embed)


def _batch() -> tuple[Tensor, Tensor]:
    return torch.rand(_BATCH, 1, 28, 28), torch.randint(_CLASSES, (_BATCH,))


def _one_block() -> Callable[[], Any]:
    torch.manual_seed(0)
    model = NoPropDT([_block() for _ in range(_BLOCKS)], LabelEmbedding(_CLASSES))
    optimizers = block_optimizers(model)
    x, y = _batch()

    def step() -> None:
        for optimizer in optimizers.of(2):
            optimizer.zero_grad()
        model.loss(x, y, 2)["total"].backward()
        for optimizer in optimizers.of(2):
            optimizer.step()

    return step


def _plain_block() -> Callable[[], Any]:
    torch.manual_seed(0)
    block = _block()
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-3, weight_decay=1e-3)
    x, y = _batch()
    z = torch.randn(_BATCH, _CLASSES)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(block(x, z), y).backward()
        optimizer.step()

    return step


def _all_blocks() -> Callable[[], Any]:
    torch.manual_seed(0)
    model = NoPropDT([_block() for _ in range(_BLOCKS)], LabelEmbedding(_CLASSES))
    optimizers, loader = block_optimizers(model), [_batch()]
    return lambda: train_noprop_epoch(model, loader, optimizers)


def _chain(checkpointing: bool = False) -> Callable[[], Any]:
    torch.manual_seed(0)
    blocks = [_block() for _ in range(_BLOCKS)]
    model = BackpropChain(blocks, LabelEmbedding(_CLASSES), checkpointing=checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-3)
    x, y = _batch()

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


class _Whole(nn.Module):
    """A block that hides its image path, so that it runs at every step of inference."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return self.block(x, z, t)


def _inference(whole: bool) -> Callable[[], Any]:
    torch.manual_seed(0)
    block = _block(time_embed=64)
    model = NoPropCT(_Whole(block) if whole else block, LabelEmbedding(_CLASSES))
    x, _ = _batch()
    return lambda: model.predict(x, num_steps=_STEPS)


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            name=f"training step of one block, batch {_BATCH}, 28 x 28",
            ours=_one_block(),
            peer=_plain_block(),
            peer_name="the block alone, cross-entropy",
            note="the difference is the noise, the squared error and the head",
        ),
        Comparison(
            name=f"training step of all {_BLOCKS} blocks",
            ours=_all_blocks(),
            peer=_chain(),
            peer_name="backpropagation through the chain",
            note="the same forward and backward passes of the same blocks",
        ),
        Comparison(
            name=f"training step of all {_BLOCKS} blocks, at the memory of about one",
            ours=_all_blocks(),
            peer=_chain(checkpointing=True),
            peer_name="the chain with a checkpoint at every block",
            note="the peer runs every block forward twice",
        ),
        Comparison(
            name=f"prediction in {_STEPS} steps of continuous time",
            ours=_inference(whole=False),
            peer=_inference(whole=True),
            peer_name="the whole block at every step",
            note="ours reads the images once for all steps",
        ),
    ]
