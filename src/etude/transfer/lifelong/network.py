"""A network whose units belong to tasks: free units are recruited for a task, released after it, or grown."""

import itertools
import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.transfer.lifelong.groups import FREE, Owners, layer_owners

__all__ = ["ConsolidatedNet", "OwnerNorm", "TaskView"]


class OwnerNorm(nn.Module):
    """Group normalisation whose groups are the owners: no task's units enter another's statistics.

    Batch normalisation cannot be frozen by its weights alone, since later tasks move its statistics; this can.

    Args:
        owner: owner of each unit (channel).
        eps: added to the variance.
    """

    owner: Tensor

    def __init__(self, owner: Int64[Tensor, "units"], eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(len(owner)))
        self.bias = nn.Parameter(torch.zeros(len(owner)))
        self.register_buffer("owner", owner.clone())

    def forward(self, x: Float[Tensor, "batch units *space"]) -> Float[Tensor, "batch units *space"]:
        member = F.one_hot(self.owner).to(x)
        share = member / member.sum(dim=0).clamp(min=1)
        flat = x.flatten(2) if x.ndim > 2 else x[..., None]
        mean = (flat.mean(dim=2) @ share) @ member.T
        centred = flat - mean[..., None]
        variance = (centred.square().mean(dim=2) @ share) @ member.T
        scaled = centred * torch.rsqrt(variance + self.eps)[..., None]
        return (scaled * self.weight[:, None] + self.bias[:, None]).reshape(x.shape)


class ConsolidatedNet(nn.Module, PyTorchModelHubMixin):
    """Hidden layers whose units have owners, and one head per task on the last of them.

        net = ConsolidatedNet(196, num_layers=1, units_per_task=20)
        net.recruit("odd or even", 20, num_outputs=2)
        logits = net(images, task="odd or even")                  # of this task's head
        logits = net(images)                                      # of all heads side by side

    New units start with random weights from what they read (uniform Kaiming as in `torch.nn.Linear`, biases zero) and
    zero weights into whatever was there before, so that no old output changes; outputs start at zero. A network that
    grows adds up its sums in another order, which old outputs may show in the last digit; one with a pool does not.

    Args:
        in_features: length of an input for fully connected layers, or (channels, height, width) for 3 x 3 convolutions
            with 2 x 2 max pooling after each.
        num_layers: hidden layers.
        units_per_task: units (channels) that a task recruits in each layer unless told otherwise.
        heads: task -> outputs, recruited at once with `units_per_task` units each.
        activation: class of the module after each layer.
        pool: units laid out in each layer beforehand, of which tasks recruit until none is free; None lays out none
            and grows by what each task needs.
        norm: `OwnerNorm` before each activation.
        seed: of all random weights of the network; None draws it from the default generator.

    Raises:
        ValueError: for sizes out of range, or images too small for so many poolings.
    """

    layers: Any
    norms: Any
    head: nn.Linear
    output_owner: Tensor
    task_ids: Tensor

    def __init__(
        self,
        in_features: int | Sequence[int],
        num_layers: int = 2,
        units_per_task: int = 40,
        heads: Mapping[Any, int] | None = None,
        *,
        activation: type[nn.Module] = nn.ReLU,
        pool: int | None = None,
        norm: bool = False,
        seed: int | None = None,
    ):
        super().__init__()
        if num_layers < 1 or units_per_task < 0 or (pool is not None and pool < 1):
            raise ValueError(
                f"num_layers and pool must be at least 1 and units_per_task not negative, "
                f"got {num_layers}, {pool} and {units_per_task}"
            )
        shape = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise ValueError(f"in_features must be a length or (channels, height, width), got {in_features}")
        self.shape, self.units_per_task, self.growing, self.num_layers = shape, units_per_task, pool is None, num_layers
        self.space = 1 if len(shape) == 1 else (shape[1] >> num_layers) * (shape[2] >> num_layers)
        if self.space == 0:
            raise ValueError(f"{num_layers} poolings leave nothing of {shape[1]} x {shape[2]} pixels")
        self._generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)
        self.tasks: list[Hashable] = []
        self.activation = activation()
        units = pool or 0
        widths = [shape[0], *[units] * num_layers]
        self.layers = nn.ModuleList(self._layer(i, o) for i, o in itertools.pairwise(widths))
        self.norms = nn.ModuleList(OwnerNorm(_free(units)) for _ in range(num_layers)) if norm else None
        self.head = _empty(nn.Linear, units * self.space, 0)
        for number in range(num_layers):
            self.register_buffer(f"owner_{number}", _free(units))
            self.redraw(number, torch.arange(units))
        self.register_buffer("output_owner", _free(0))
        self.register_buffer("task_ids", torch.zeros(0, dtype=torch.uint8))
        for task, outputs in (heads or {}).items():
            self.recruit(task, units_per_task, outputs)

    def _layer(self, inputs: int, outputs: int) -> Any:
        return _empty(nn.Linear if len(self.shape) == 1 else nn.Conv2d, inputs, outputs)

    def unit_owner(self, layer: int) -> Int64[Tensor, "units"]:
        """Owner of each unit of a hidden layer; negative numbers count from the last."""
        return getattr(self, f"owner_{range(self.num_layers)[layer]}")

    def number(self, task: Hashable) -> int:
        """Number of a task, from 1 up in the order of recruiting.

        Raises:
            ValueError: if the task is unknown.
        """
        if task not in self.tasks:
            raise ValueError(f"there is no task {task!r}; the network knows {self.tasks or 'none yet'}")
        return self.tasks.index(task) + 1

    def num_free(self, layer: int = -1) -> int:
        return int((self.unit_owner(layer) == FREE).sum())

    def recruit(self, task: Hashable, n_units: int | Sequence[int] | None = None, num_outputs: int = 0) -> int:
        """Gives units to a task, and outputs: from the pool, or by growth in a network without one.

        Args:
            task: a new one, or a known one, which gets more. A string or a whole number.
            n_units: in each layer, or one number per layer; `units_per_task` if None.
            num_outputs: outputs added to the task's head; a new task needs two or more.

        Returns:
            The task's number.

        Raises:
            ValueError: if the pool has too few free units, or a new task fewer than two outputs.
        """
        if isinstance(n_units, Sequence):
            counts = list(n_units)
        else:
            counts = [self.units_per_task if n_units is None else n_units] * self.num_layers
        if len(counts) != self.num_layers or min(counts) < 0 or num_outputs < 0:
            raise ValueError(f"n_units must give {self.num_layers} layers their units, got {n_units}, {num_outputs}")
        if not isinstance(task, str | int) or isinstance(task, bool):
            raise TypeError(f"a task is named by a string or a whole number, got {task!r}")
        if task not in self.tasks and num_outputs < 2:
            raise ValueError(f"task {task!r} needs at least two outputs, got {num_outputs}")
        for layer, count in enumerate(counts):
            free = self.num_free(layer)
            if count > free and not self.growing:
                raise ValueError(
                    f"task {task!r} wants {count} units of layer {layer}, but of {len(self.unit_owner(layer))} only "
                    f"{free} are free: release units of an older task, or build the network with pool=None to grow"
                )
        if task not in self.tasks:
            self.tasks.append(task)
            told = json.dumps(self.tasks).encode()
            self.task_ids = torch.tensor(list(told), dtype=torch.uint8, device=self.task_ids.device)
        number = self.number(task)
        for layer, count in enumerate(counts):
            missing = count - self.num_free(layer)
            if missing > 0:
                self._grow(layer, len(self.unit_owner(layer)) + missing)
        chosen = [
            torch.nonzero(self.unit_owner(layer) == FREE).squeeze(1)[:count] for layer, count in enumerate(counts)
        ]
        for layer, units in enumerate(chosen):
            self.unit_owner(layer)[units] = number
            self._own_norm(layer)
        for layer, units in enumerate(chosen):
            if len(units):
                self.redraw(layer, units)
        if num_outputs:
            added = torch.full((num_outputs,), number, device=self.output_owner.device)
            self.output_owner = torch.cat([self.output_owner, added])
            _resize(self.head, self.head.in_features, len(self.output_owner))
        return number

    @torch.no_grad()
    def release(self, task: Hashable, units: Int64[Tensor, "units"] | None = None, layer: int | None = None) -> int:
        """Returns units of a task to the pool; nothing reads them any more. The task keeps its outputs.

        Args:
            task: whose units.
            units: positions within `layer`; all of the task's if None.
            layer: all layers if None.

        Returns:
            How many units were released.

        Raises:
            ValueError: if the task is unknown, `units` comes without `layer`, or units are another's.
        """
        number = self.number(task)
        if units is not None and layer is None:
            raise ValueError("units are positions within a layer: give the layer too")
        count = 0
        for index in range(self.num_layers) if layer is None else [range(self.num_layers)[layer]]:
            owner = self.unit_owner(index)
            gone = torch.nonzero(owner == number).squeeze(1) if units is None else units.to(owner.device)
            if not bool((owner[gone] == number).all()):
                raise ValueError(f"units {gone[owner[gone] != number].tolist()} of layer {index} are not of {task!r}")
            owner[gone] = FREE
            self._own_norm(index)
            self._outgoing(index)[:, gone] = 0.0
            count += len(gone)
        return count

    def owners(self) -> dict[str, Owners]:
        """Owners of every parameter, for `Consolidation`."""
        found: dict[str, Owners] = {}
        for number, layer in enumerate(self.layers):
            reads = self.unit_owner(number - 1) if number else None
            parts = layer_owners(layer, self.unit_owner(number), reads)
            found |= {f"layers.{number}.{name}": owners for name, owners in parts.items()}
            if self.norms is not None:
                parts = layer_owners(self.norms[number], self.unit_owner(number))
                found |= {f"norms.{number}.{name}": owners for name, owners in parts.items()}
        parts = layer_owners(self.head, self.output_owner, self._read_by_head(), kind="H")
        return found | {f"head.{name}": owners for name, owners in parts.items()}

    def groups(self) -> dict[str, int]:
        """Number of weights in every group (see `groups`)."""
        from etude.transfer.lifelong.consolidation import Consolidation

        return Consolidation(self, owners=self.owners()).groups()

    def features(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch features"]:
        """What the heads read: all units of the last layer, whoever owns them."""
        x = x.flatten(1) if len(self.shape) == 1 else x
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"inputs must have shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms is not None:
                x = self.norms[number](x)
            x = self.activation(x)
            if len(self.shape) == 3:
                x = F.max_pool2d(x, 2)
        return x.flatten(1)

    def forward(self, x: Float[Tensor, "batch *shape"], task: Any = None) -> Float[Tensor, "batch outputs"]:
        """Logits of a task's head, or of all heads side by side.

        Raises:
            ValueError: if the task is unknown, or an input has another shape.
        """
        if task is None:
            return self.head(self.features(x))
        rows = self.outputs(task)
        return F.linear(self.features(x), self.head.weight[rows], self.head.bias[rows])

    def outputs(self, task: Hashable) -> slice | Tensor:
        """Where a task's outputs stand among all."""
        rows = torch.nonzero(self.output_owner == self.number(task)).squeeze(1)
        first, last = int(rows[0]), int(rows[-1])
        return slice(first, last + 1) if last - first + 1 == len(rows) else rows

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As usual; the network first takes on the sizes and the tasks of the state."""
        for number in range(self.num_layers):
            units = len(state_dict[f"owner_{number}"])
            if units != len(self.unit_owner(number)):
                self._grow(number, units)
        self.task_ids = torch.empty_like(state_dict["task_ids"], device=self.task_ids.device)
        if len(state_dict["output_owner"]) != len(self.output_owner):
            self.output_owner = torch.empty_like(state_dict["output_owner"], device=self.output_owner.device)
            _resize(self.head, self.head.in_features, len(self.output_owner))
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        told = bytes(self.task_ids.tolist()).decode()
        self.tasks = json.loads(told) if told else []
        return result

    def _read_by_head(self) -> Tensor:
        return self.unit_owner(-1).repeat_interleave(self.space)

    def _outgoing(self, layer: int) -> Tensor:
        """The weights that read a layer, as (readers, units, ...), a view."""
        if layer + 1 < self.num_layers:
            return self.layers[layer + 1].weight
        return self.head.weight.view(len(self.head.weight), len(self.unit_owner(-1)), self.space)

    def _own_norm(self, layer: int) -> None:
        if self.norms is not None:
            self.norms[layer].owner.copy_(self.unit_owner(layer))

    @torch.no_grad()
    def redraw(self, layer: int, units: Tensor, generator: torch.Generator | None = None) -> None:
        """Random weights into units, for as many inputs as are in use, and zero weights out of them.

        Args:
            layer: 0 up; units: positions within it.
            generator: of the weights; the network's own if None.
        """
        weight = self.layers[layer].weight
        reads = weight.shape[1] if layer == 0 else max(int((self.unit_owner(layer - 1) != FREE).sum()), 1)
        bound = (reads * weight[0, 0].numel()) ** -0.5 if weight.numel() else 0.0
        chosen = self._generator if generator is None else generator
        fresh = bound * (2 * torch.rand((len(units), *weight.shape[1:]), generator=chosen) - 1)
        weight[units] = fresh.to(weight)
        if layer:
            weight[units[:, None], torch.nonzero(self.unit_owner(layer - 1) == FREE).squeeze(1)] = 0.0
        self.layers[layer].bias[units] = 0.0
        if self.norms is not None:
            self.norms[layer].weight[units] = 1.0
            self.norms[layer].bias[units] = 0.0
        # Layers are drawn from the first up, so that units recruited together do read each other in the end.
        self._outgoing(layer)[:, units] = 0.0

    def _grow(self, layer: int, units: int) -> None:
        owner = self.unit_owner(layer)
        added = _free(units - len(owner)).to(owner.device)
        setattr(self, f"owner_{layer}", torch.cat([owner, added]))
        _resize(self.layers[layer], self.layers[layer].weight.shape[1], units)
        if layer + 1 < self.num_layers:
            _resize(self.layers[layer + 1], units, len(self.layers[layer + 1].weight))
        else:
            _resize(self.head, units * self.space, len(self.head.weight))
        if self.norms is not None:
            norm = OwnerNorm(self.unit_owner(layer)).to(owner.device)
            with torch.no_grad():
                norm.weight[: len(owner)], norm.bias[: len(owner)] = self.norms[layer].weight, self.norms[layer].bias
            self.norms[layer] = norm


class TaskView(nn.Module):
    """A network seen through one task's head, or through all: what `loop.fit` and `diagonal_fisher` take."""

    def __init__(self, net: nn.Module, task: Any = None):
        super().__init__()
        self.net, self.task = net, task

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if self.task is None else self.net(x, self.task)


def _free(units: int) -> Tensor:
    return torch.full((units,), FREE, dtype=torch.int64)


def _empty(kind: Any, inputs: int, outputs: int) -> Any:
    """A layer of zeros; sizes may be zero."""
    # Without the initialisation of its own, which would draw from the global generator.
    layer = nn.utils.skip_init(kind, 1, 1, **({} if kind is nn.Linear else {"kernel_size": 3, "padding": 1}))
    _resize(layer, inputs, outputs, keep=False)
    return layer


@torch.no_grad()
def _resize(layer: Any, inputs: int, outputs: int, keep: bool = True) -> None:
    """Gives a layer another size; what it had stays in the first rows and columns, the rest is zero."""
    weight = layer.weight.new_zeros((outputs, inputs, *layer.weight.shape[2:]))
    bias = layer.bias.new_zeros(outputs)
    if keep:
        rows, columns = min(outputs, len(layer.weight)), min(inputs, layer.weight.shape[1])
        weight[:rows, :columns] = layer.weight[:rows, :columns]
        bias[:rows] = layer.bias[:rows]
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    if isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
    else:
        layer.in_channels, layer.out_channels = inputs, outputs
