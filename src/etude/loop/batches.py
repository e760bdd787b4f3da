"""The order of the examples: a stream of batches that can be cut anywhere and taken up again.

Every process draws the same order from the same generator and takes its share of each batch, so the batches do not
depend on the number of processes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from etude.data.kinds import Examples
from etude.loop.processes import Processes
from etude.loop.seeding import random_state, set_random_state

__all__ = ["Batches", "IndexedBatches", "LoaderBatches", "batches_of", "to_device"]


def to_device(value: Any, device: torch.device) -> Any:
    """Moves the tensors of a nested value."""
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(to_device(item, device) for item in value)
    return value


class IndexedBatches:
    """An endless stream of batches of `Examples` or a map-style dataset, in an order drawn from `generator`.

    It yields (inputs, targets, weight): this process's part of a batch, and the part's weight in the batch's mean.
    Each epoch is a permutation cut into batches of `batch_size`; what is left over (fewer than `batch_size`
    examples, others in every epoch) is not used, so that every update weighs its examples alike. A set smaller than
    `batch_size` is one batch. With `replacement`, every batch is drawn anew from the whole set.

    Args:
        data: `Examples`, indexed directly, or a dataset, read through a `DataLoader`.
        batch_size: of all processes together.
        generator: CPU generator of the order.
        replacement: draw with replacement.
        peers: the processes that share each batch.
        num_workers: of the `DataLoader`; `Examples` need none.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        generator: torch.Generator,
        *,
        replacement: bool = False,
        peers: Processes | None = None,
        num_workers: int = 0,
    ):
        peers = Processes() if peers is None else peers
        if len(data) == 0:
            raise ValueError("there are no examples to train on")
        self.size = len(data)
        self.batch_size = min(batch_size, self.size)
        if self.batch_size < peers.count:
            raise ValueError(f"a batch of {self.batch_size} examples cannot be shared by {peers.count} processes")
        self.per_epoch: int | None = self.size // self.batch_size
        self._data, self._generator, self._replacement = data, generator, replacement
        self._share = peers.share(self.batch_size)
        # The processes' mean gradients are averaged with equal weights; this makes it the mean over the examples.
        self._weight = (self._share.stop - self._share.start) * peers.count / self.batch_size
        self._num_workers = num_workers
        self._epoch_start = generator.get_state()
        self._seed = 0
        self._done = 0
        self._skip = 0
        self._resumed: Tensor | None = None

    def _epoch(self) -> list[Tensor]:
        self._epoch_start = self._generator.get_state()
        used = self.size // self.batch_size * self.batch_size
        if self._replacement:
            order = torch.randint(self.size, (used,), generator=self._generator)
        else:
            order = torch.randperm(self.size, generator=self._generator)[:used]
        self._seed = int(order[0]) * self.size + int(order[-1])
        if isinstance(self._data, Examples):
            order = order.to(self._data.inputs.device)
        parts = list(order.split(self.batch_size))
        return parts if len(parts[0]) == self._share.stop - self._share.start else [part[self._share] for part in parts]

    def _read(self, parts: list[Tensor]) -> Iterator[tuple[Any, Any]]:
        if isinstance(self._data, Examples):
            inputs, targets = self._data.inputs, self._data.targets
            return ((inputs[part], targets[part]) for part in parts)
        # The loader's own generator keeps the seeding of its workers out of the global one.
        seeding = torch.Generator().manual_seed(self._seed)
        indices = [part.tolist() for part in parts]
        return iter(DataLoader(self._data, batch_sampler=indices, num_workers=self._num_workers, generator=seeding))

    def __iter__(self) -> Iterator[tuple[Any, Any, float]]:
        weight = self._weight
        while True:
            parts = self._epoch()[self._skip :]
            if self._resumed is not None:
                self._generator.set_state(self._resumed)
                self._resumed = None
            self._done, self._skip = self._skip, 0
            if not parts:
                continue
            for inputs, targets in self._read(parts):
                self._done += 1
                yield inputs, targets, weight

    def state_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "batch_size": self.batch_size,
            "replacement": self._replacement,
            "generator": self._epoch_start,
            "generator_now": self._generator.get_state(),
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mine = {"size": self.size, "batch_size": self.batch_size, "replacement": self._replacement}
        for key, value in mine.items():
            if state.get(key) != value:
                raise ValueError(f"the checkpoint was written with {key} {state.get(key)}, this run has {value}")
        self._generator.set_state(state["generator"])
        self._epoch_start, self._done, self._skip = state["generator"], state["done"], state["done"]
        # The order of the epoch is drawn again; then the generator goes on from where it was.
        self._resumed = state["generator_now"]


class LoaderBatches:
    """An endless stream of the batches of a `DataLoader` of the caller's, in its own order, as `IndexedBatches`.

    In several processes accelerate shares each of its batches among them; a last, incomplete batch is then filled
    up with examples from the epoch's beginning unless the loader has `drop_last`. A position inside an epoch is
    taken up again by restoring the random state of the epoch's beginning and reading up to the position.
    """

    def __init__(self, loader: DataLoader, *, peers: Processes | None = None):
        self._generator = loader.generator
        self._peers = Processes() if peers is None else peers
        if self._peers.count > 1:
            from accelerate.data_loader import prepare_data_loader

            loader = prepare_data_loader(
                loader,
                num_processes=self._peers.count,
                process_index=self._peers.index,
                split_batches=True,
                rng_types=[],
                dispatch_batches=False,
            )
            # A sampler that had no generator has been given one.
            self._generator = getattr(loader, "synchronized_generator", None) or self._generator
        self._loader = loader
        try:
            self.per_epoch: int | None = len(loader)
        except TypeError:
            self.per_epoch = None
        if self.per_epoch == 0:
            raise ValueError("the data loader yields no batch")
        self._epoch_start = self._random_state()
        self._done = 0
        self._resumed = False

    def _random_state(self) -> dict[str, Any]:
        own = None if self._generator is None else self._generator.get_state()
        return {"global": random_state(), "loader": own}

    def __iter__(self) -> Iterator[tuple[Any, Any, float]]:
        # The reading up to a resumed position happens here and now, not with the first batch: the caller puts the
        # random state of the checkpoint back afterwards.
        resumed = None
        if self._resumed:
            resumed = iter(self._loader)
            for _ in range(self._done):
                next(resumed)
            self._resumed = False
        return self._stream(resumed)

    def _stream(self, epoch: Iterator[Any] | None) -> Iterator[tuple[Any, Any, float]]:
        while True:
            if epoch is None:
                if self._generator is not None and self._peers.count > 1:
                    self._generator.set_state(self._peers.broadcast(self._generator.get_state()))
                self._epoch_start, self._done = self._random_state(), 0
                epoch = iter(self._loader)
            for batch in epoch:
                self._done += 1
                if not isinstance(batch, tuple | list) or len(batch) != 2:
                    raise TypeError(f"a batch must be a pair (inputs, targets), got {type(batch).__name__}")
                yield batch[0], batch[1], 1.0
            if self._done == 0:
                raise ValueError("the data loader yields no batch")
            epoch = None

    def state_dict(self) -> dict[str, Any]:
        return {"per_epoch": self.per_epoch, "start": self._epoch_start, "done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("per_epoch") != self.per_epoch:
            raise ValueError(
                f"the checkpoint was written with {state.get('per_epoch')} batches an epoch, "
                f"this run has {self.per_epoch}"
            )
        set_random_state(state["start"]["global"])
        if self._generator is not None and state["start"]["loader"] is not None:
            self._generator.set_state(state["start"]["loader"])
        self._epoch_start, self._done, self._resumed = state["start"], state["done"], True


Batches = IndexedBatches | LoaderBatches


def batches_of(
    train: Any,
    batch_size: int,
    generator: torch.Generator,
    *,
    replacement: bool,
    peers: Processes,
    num_workers: int,
) -> Batches:
    """The stream of batches of `train`: `Examples`, a map-style dataset, or a `DataLoader`."""
    if isinstance(train, DataLoader):
        return LoaderBatches(train, peers=peers)
    if not hasattr(train, "__len__") or not hasattr(train, "__getitem__"):
        raise TypeError(f"train must be Examples, a map-style dataset or a DataLoader, got {type(train).__name__}")
    return IndexedBatches(train, batch_size, generator, replacement=replacement, peers=peers, num_workers=num_workers)
