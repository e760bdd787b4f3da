"""Batches of sampled pasts with their targets, in this process or in workers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from etude.graphs.relational.sampler import HeteroBatch, TemporalNeighborSampler

__all__ = ["TemporalLoader"]


class TemporalLoader:
    """Iterates over rows of a training table in batches `(HeteroBatch, target)`.

        for batch, target in TemporalLoader(sampler, task.rows("train"), batch_size=512, shuffle=True):
            ...

    Order and samples depend on `seed` and the epoch only: not on workers, nor on anything drawn elsewhere. Every pass
    is a new epoch where the order is shuffled; otherwise every pass is the same.

    Args:
        sampler: with an `entity_table`.
        table: (entity, time, target) arrays as `EntityTask.rows` gives them; the target may be None.
        batch_size: seeds a batch.
        shuffle: another order and other samples in every epoch.
        seed: of the order.
        max_batches: end an epoch early; never if None.
        num_workers: processes that sample ahead; 0 samples here.
    """

    def __init__(
        self,
        sampler: TemporalNeighborSampler,
        table: tuple[Any, Any, Any],
        batch_size: int = 512,
        shuffle: bool = False,
        *,
        seed: int = 0,
        max_batches: int | None = None,
        num_workers: int = 0,
    ):
        entity, time, target = table
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        if len(entity) != len(time) or (target is not None and len(target) != len(entity)):
            raise ValueError(f"entity, time and target must be alike in length, got {[len(part) for part in table]}")
        if not len(entity):
            raise ValueError("there are no rows to iterate over")
        self.sampler, self.batch_size, self.shuffle, self.seed = sampler, batch_size, shuffle, seed
        self.entity, self.time = np.asarray(entity), np.asarray(time)
        self.target = None if target is None else torch.from_numpy(np.array(target))  # a copy: targets may be read-only
        self.max_batches, self.num_workers, self.epoch = max_batches, num_workers, 0

    def __len__(self) -> int:
        batches = -(-len(self.entity) // self.batch_size)
        return batches if self.max_batches is None else min(batches, self.max_batches)

    def __iter__(self) -> Iterator[tuple[HeteroBatch, Tensor | None]]:
        order, draw = np.arange(len(self.entity)), 0
        if self.shuffle:
            self.epoch += 1
            order, draw = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.entity)), self.epoch
        parts = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)][: len(self)]
        if not self.num_workers:
            for rows in parts:
                yield self._sample(rows, draw), None if self.target is None else self.target[rows]
            return
        # The graph goes to the workers once, with their start, and not back with every batch.
        source = _Batches(self, parts, draw)
        loader = DataLoader(
            source, batch_size=None, num_workers=self.num_workers, generator=torch.Generator().manual_seed(self.seed)
        )
        for rows, batch in zip(parts, loader):
            batch.graph = self.sampler.graph
            yield batch, None if self.target is None else self.target[rows]

    def _sample(self, rows: np.ndarray, draw: int) -> HeteroBatch:
        return self.sampler.sample(self.entity[rows], self.time[rows], draw=draw)


class _Batches(Dataset):
    def __init__(self, loader: TemporalLoader, parts: list[np.ndarray], draw: int):
        self.loader, self.parts, self.draw = loader, parts, draw

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> HeteroBatch:
        batch = self.loader._sample(self.parts[index], self.draw)
        batch.graph = None  # type: ignore[assignment]
        return batch
