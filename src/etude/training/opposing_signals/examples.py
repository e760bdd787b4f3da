"""A fixed set of examples read in chunks, and a model's losses and gradients on it.

The diagnostics of this package look at one set of examples again and again: every loss and every gradient here is
that of the whole set, whatever the chunks. Losses are per example: `loss_fn(outputs, targets)` returns one number
(or one row of numbers, whose mean counts) for each example, such as `partial(F.cross_entropy, reduction="none")`.

Looking changes nothing: the model stays in its mode, batch norm's running statistics and `.grad` stay as they were.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.data import DataLoader, RandomSampler

from etude.data.kinds import Examples

__all__ = ["FixedSet", "LossFn", "cross_entropy", "example_losses", "flat_gradient", "full_batch_backward"]

LossFn = Callable[[Any, Any], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example."""
    return F.cross_entropy(outputs, targets, reduction="none")


class FixedSet:
    """Examples in a fixed order, read chunk by chunk as (inputs, targets, rows).

    Args:
        data: `Examples`, a pair of tensors (inputs, targets), or a `DataLoader` of batches (inputs, targets) in a
            fixed order, or of batches (inputs, targets, indices) in any order.
        batch_size: examples per chunk; all at once if None. A loader has its own.

    Raises:
        TypeError, ValueError: if the data are none of these, hold no example or unequal rows, or if a shuffling
            loader does not say which examples a batch holds.
    """

    def __init__(self, data: Any, batch_size: int | None = None):
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.loader: DataLoader | None = None
        self.x: Any = None
        self.y: Any = None
        if isinstance(data, DataLoader):
            if batch_size is not None:
                raise ValueError(f"a DataLoader has its own batch size, got batch_size={batch_size} beside it")
            self.loader = data
            self.size = len(data.dataset)  # type: ignore[arg-type]
        elif isinstance(data, Examples):
            self.x, self.y, self.size = data.inputs, data.targets, len(data)
        elif isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
            self.x, self.y = data
            if len(self.x) != len(self.y):
                raise ValueError(
                    f"inputs and targets must have equally many rows, got shapes {tuple(self.x.shape)} and "
                    f"{tuple(self.y.shape)}"
                )
            self.size = len(self.x)
        else:
            raise TypeError(f"data must be Examples, a pair of tensors or a DataLoader, got {type(data).__name__}")
        if self.size == 0:
            raise ValueError("there are no examples")
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.size

    @property
    def chunks(self) -> int:
        """How many chunks a pass reads."""
        if self.loader is not None:
            return len(self.loader)
        return 1 if self.batch_size is None else -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Any, Any, Tensor]]:
        if self.loader is not None:
            yield from self._read(self.loader)
            return
        for rows in torch.arange(self.size).split(self.batch_size or self.size):
            cut = slice(int(rows[0]), int(rows[-1]) + 1)
            yield self.x[cut], self.y[cut], rows

    def _read(self, loader: DataLoader) -> Iterator[tuple[Any, Any, Tensor]]:
        seen = 0
        for batch in loader:
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise TypeError("a batch must be (inputs, targets) or (inputs, targets, indices)")
            if len(batch) == 2 and isinstance(loader.sampler, RandomSampler):
                raise ValueError("the loader shuffles: let it yield (inputs, targets, indices), or turn shuffling off")
            rows = batch[2] if len(batch) == 3 else torch.arange(seen, seen + len(batch[1]))
            seen += len(batch[1])
            yield batch[0], batch[1], rows
        if seen != self.size:
            raise ValueError(f"the loader yielded {seen} of {self.size} examples: set drop_last=False")

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the examples at `rows`, in that order; with a loader this reads it once."""
        if self.loader is None:
            return self.x[rows.to(self.x.device)], self.y[rows.to(self.y.device)]
        found: dict[int, tuple[Tensor, Tensor]] = {}
        wanted = set(rows.tolist())
        for inputs, targets, batch_rows in self:
            for place, row in enumerate(batch_rows.tolist()):
                if row in wanted:
                    found[row] = inputs[place], targets[place]
        inputs, targets = zip(*(found[row] for row in rows.tolist()))
        return torch.stack(inputs), torch.stack([torch.as_tensor(target) for target in targets])


def trainable(model: nn.Module, params: Iterable[Tensor] | None = None) -> list[Tensor]:
    """The parameters that are looked at: those given, or all of the model that require a gradient."""
    chosen = [p for p in (model.parameters() if params is None else params) if p.requires_grad]
    if not chosen:
        raise ValueError("no parameter requires a gradient")
    return chosen


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def device_of(model: nn.Module) -> torch.device:
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def warn_of_coupling(model: nn.Module, chunks: int) -> None:
    """Warns where the losses of a pass are not those of the update: under dropout, and chunked batch norm."""
    for name, module in model.named_modules():
        if not module.training:
            continue
        rate = module.p if isinstance(module, _DropoutNd) else getattr(module, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0:
            warnings.warn(
                f"dropout is on in {name or type(module).__name__}: losses are random and their changes mean little; "
                "set p=0 or use model.eval()",
                UserWarning,
                stacklevel=3,
            )
            return
        if isinstance(module, _BatchNorm) and chunks > 1:
            warnings.warn(
                f"batch norm {name} is in training mode and the examples come in {chunks} chunks: losses and "
                "curvature are those of the chunks, not of the full batch",
                UserWarning,
                stacklevel=3,
            )
            return


def forward(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs in its present mode, with its buffers kept as they are."""
    buffers = dict(model.named_buffers())
    if not buffers or not model.training:
        return model(inputs)
    return functional_call(model, {name: buffer.clone() for name, buffer in buffers.items()}, (inputs,))


def losses_of(loss_fn: LossFn, outputs: Any, targets: Any) -> Tensor:
    """One loss per example.

    Raises:
        ValueError: if `loss_fn` reduces over the examples.
    """
    losses = loss_fn(outputs, targets)
    n = len(targets)
    if losses.ndim == 0 or len(losses) != n:
        raise ValueError(
            f"loss_fn must return one loss per example, shape ({n}, ...), got {tuple(losses.shape)}; "
            "use reduction='none'"
        )
    return losses if losses.ndim == 1 else losses.flatten(1).mean(1)


def move(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def chunk_losses(model: nn.Module, loss_fn: LossFn, examples: FixedSet) -> Iterator[Tensor]:
    """Each chunk's part of the mean loss over all examples; with gradients, and with the buffers kept."""
    device = device_of(model)
    for inputs, targets, _ in examples:
        outputs = forward(model, move(inputs, device))
        yield losses_of(loss_fn, outputs, move(targets, device)).sum() / len(examples)


@torch.no_grad()
def losses_and_predictions(model: nn.Module, loss_fn: LossFn, examples: FixedSet) -> tuple[Tensor, Tensor | None]:
    """The loss of each example, and the class predicted for it if the model's outputs are class scores (n, classes)."""
    device = device_of(model)
    losses: Tensor | None = None
    predicted: Tensor | None = None
    for inputs, targets, rows in examples:
        outputs = forward(model, move(inputs, device))
        chunk = losses_of(loss_fn, outputs, move(targets, device))
        if losses is None:
            losses = chunk.new_empty(len(examples))
            if isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1:
                predicted = torch.empty(len(examples), dtype=torch.int64, device=device)
        rows = rows.to(device)
        losses[rows] = chunk
        if predicted is not None:
            predicted[rows] = outputs.argmax(1)
    assert losses is not None
    return losses, predicted


def example_losses(
    model: nn.Module, loss_fn: LossFn, data: Any, *, batch_size: int | None = None
) -> Float[Tensor, " n"]:
    """The loss of each example, in the order of the data.

    Args:
        model: in the mode in which it is to be looked at.
        loss_fn: (outputs, targets) -> one loss per example.
        data, batch_size: as for `FixedSet`.
    """
    examples = FixedSet(data, batch_size)
    warn_of_coupling(model, examples.chunks)
    return losses_and_predictions(model, loss_fn, examples)[0]


def flat_gradient(
    model: nn.Module,
    loss_fn: LossFn,
    data: Any,
    *,
    params: Iterable[Tensor] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, " params"]:
    """The gradient of the mean loss over `data` as one vector, in the order of `params`; no `.grad` is touched."""
    chosen = trainable(model, params)
    total = torch.zeros_like(flatten(chosen))
    with torch.enable_grad():
        for loss in chunk_losses(model, loss_fn, FixedSet(data, batch_size)):
            parts = torch.autograd.grad(loss, chosen, allow_unused=True)
            total += flatten([torch.zeros_like(p) if part is None else part for p, part in zip(chosen, parts)])
    return total.detach()


def full_batch_backward(
    model: nn.Module, loss_fn: LossFn, data: Any, *, batch_size: int | None = None
) -> Float[Tensor, " n"]:
    """Adds the gradient of the mean loss over `data` to `.grad`, chunk by chunk, as one large backward pass would.

    A training step for any optimizer, whose losses a monitor can take over instead of computing them again:

        optimizer.zero_grad()
        losses = full_batch_backward(model, cross_entropy, (x, y), batch_size=512)
        optimizer.step()

    Returns:
        the loss of each example before the update.
    """
    examples, device = FixedSet(data, batch_size), device_of(model)
    losses: Tensor | None = None
    for inputs, targets, rows in examples:
        chunk = losses_of(loss_fn, model(move(inputs, device)), move(targets, device))
        (chunk.sum() / len(examples)).backward()
        losses = chunk.new_empty(len(examples)) if losses is None else losses
        losses[rows.to(device)] = chunk.detach()
    assert losses is not None
    return losses.detach()
