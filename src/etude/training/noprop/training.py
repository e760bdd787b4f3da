"""Training NoProp models in a plain loop: an optimizer for each block, and the passes of algorithm 1.

Li, Teh & Pascanu, arXiv:2503.24322, 2025. An epoch of the discrete variant takes the blocks in turn and shows each of
them all minibatches, reshuffled; or it draws a block for every minibatch, as often. Either way a step trains one block
on its local loss and, with it, the head and a learned W.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from etude.data.kinds import Examples
from etude.loop.evaluation import mode
from etude.training.noprop.continuous import NoPropCT, NoPropFM
from etude.training.noprop.discrete import NoPropDT

__all__ = ["BlockOptimizers", "Minibatches", "NoPropModel", "block_optimizers", "train_noprop_epoch"]

NoPropModel = NoPropDT | NoPropCT | NoPropFM
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
ORDERS = ("sequential", "sampled")


@dataclass(frozen=True)
class BlockOptimizers:
    """One optimizer for each block and one for what blocks share.

    Args:
        blocks: of block t at index t - 1.
        shared: of the head, a learned W and a learned schedule; None if there is nothing of the kind.
    """

    blocks: list[Optimizer]
    shared: Optimizer | None

    def of(self, t: int) -> Iterator[Optimizer]:
        """Those that step after the loss of block t."""
        yield self.blocks[t - 1]
        if self.shared is not None:
            yield self.shared


def block_optimizers(model: NoPropModel, make: MakeOptimizer | None = None) -> BlockOptimizers:
    """An optimizer for each block of a model and one for its shared parameters.

    Args:
        model: any of the three variants.
        make: from a list of parameters to an optimizer. If None, the paper's: AdamW for the discrete variant, Adam
            for the continuous ones, learning rate and weight decay 1e-3.
    """
    if make is None:
        kind = torch.optim.AdamW if isinstance(model, NoPropDT) else torch.optim.Adam
        make = partial(kind, lr=1e-3, weight_decay=1e-3)
    blocks = [make(model.blockwise_parameters(t)) for t in range(1, model.num_blocks + 1)]
    shared = model.shared_parameters()
    return BlockOptimizers(blocks, make(shared) if shared else None)


class Minibatches:
    """Batches of examples in memory, in a new order each time they are gone through.

    What is left over beyond whole batches waits for another pass: a last batch of one would break batch norm.

    Args:
        examples: not empty.
        batch_size: >= 1; a set smaller than it is one batch.
        generator: CPU generator of the orders; the default generator if None.
    """

    def __init__(self, examples: Examples, batch_size: int, generator: torch.Generator | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not len(examples):
            raise ValueError("there are no examples to train on")
        self.examples, self.batch_size, self.generator = examples, min(batch_size, len(examples)), generator

    def __len__(self) -> int:
        return len(self.examples) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.examples), generator=self.generator)[: len(self) * self.batch_size]
        for rows in order.to(self.examples.inputs.device).split(self.batch_size):
            yield self.examples[rows]


def train_noprop_epoch(
    model: NoPropModel,
    loader: Iterable[Any],
    optimizers: BlockOptimizers,
    order: str = "sequential",
    generator: torch.Generator | None = None,
) -> dict[str, float]:
    """One epoch: T passes over the loader for the discrete variant, one for the continuous ones.

        optimizers = block_optimizers(model)
        for epoch in range(100):
            train_noprop_epoch(model, loader, optimizers)

    Args:
        model: trained in place, in training mode; afterwards each module is back in the mode it had.
        loader: gives batches (x, y) each time it is gone through: a `DataLoader` with `drop_last=True`, `Minibatches`.
            Batches are moved to the model's device.
        optimizers: of `block_optimizers`.
        order: "sequential": all minibatches for block 1, then for block 2, and so on; "sampled": a block drawn for
            every minibatch. The continuous variants have one block.
        generator: of the noise, of the times and of the drawn blocks; the default generator if None.

    Returns:
        The mean of each term of the loss over the epoch.

    Raises:
        ValueError: if `order` is unknown or the loader yields nothing.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    device = model.embedding.weight.device
    sums: dict[str, Tensor] = {}
    steps = 0
    with mode(model, training=True):
        for turn in range(1, model.num_blocks + 1):
            for x, y in loader:
                t = turn if order == "sequential" else _drawn_block(model.num_blocks, generator)
                x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
                if isinstance(model, NoPropDT):
                    terms = model.loss(x, y, t, generator)
                else:
                    terms = model.loss(x, y, None, generator)
                _step(terms["total"], optimizers.of(t))
                steps += 1
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
    if not steps:
        raise ValueError("the loader yields no batch")
    return {name: value.item() / steps for name, value in sums.items()}


def _drawn_block(num_blocks: int, generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(1, num_blocks + 1, (), generator=generator, device=device))


def _step(loss: Float[Tensor, ""], optimizers: Iterable[Optimizer]) -> None:
    """Backward pass and update of the given optimizers' parameters, whose gradients it clears on both sides."""
    optimizers = list(optimizers)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def predict_in_batches(
    predict: Callable[[Tensor], Tensor], x: Float[Tensor, "n channels height width"], batch_size: int
) -> Float[Tensor, "n classes"] | Int64[Tensor, " n"]:
    """`predict` over many images, some at a time."""
    return torch.cat([predict(part) for part in x.split(batch_size)])
