"""The zoo: many small networks trained at once, each with the data set it was trained on."""

import copy
import json
import os
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from etude.transfer.d2nwg.codec import WeightCodec

__all__ = ["ModelZoo", "batched_accuracy", "batched_logits", "batched_loss", "initial_weights", "train_networks"]


class ModelZoo:
    """Networks of one architecture as vectors, each with the key of its data set.

        zoo = ModelZoo(codec)
        zoo.add(vectors, keys, accuracy=accuracies)
        train, held_out = zoo.split(test_keys)
        zoo.save("zoo.safetensors")

    Args:
        codec: of the architecture.

    Attributes:
        vectors: (n, params), float32.
        keys: (n,), int64: the data set of each network.
        metrics: name -> (n,).
    """

    def __init__(self, codec: WeightCodec):
        self.codec = codec
        self.vectors = torch.empty(0, codec.num_params)
        self.keys = torch.empty(0, dtype=torch.int64)
        self.metrics: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    def add(
        self,
        networks: nn.Module | Float[Tensor, "params"] | Float[Tensor, "n params"],
        keys: int | Int64[Tensor, "n"],
        **metrics: float | int | Tensor,
    ) -> None:
        """Adds one network or several.

        Args:
            networks: a module, or vectors.
            keys: the data set of each.
            metrics: a number for each network under each name; the same names every time.

        Raises:
            ValueError: if weights are not finite, lengths differ, or names do.
        """
        vectors = self.codec.flatten(networks) if isinstance(networks, nn.Module) else networks.detach().float()
        vectors = vectors[None] if vectors.ndim == 1 else vectors
        numbers = torch.as_tensor(keys, dtype=torch.int64).reshape(-1)
        if vectors.shape[1] != self.codec.num_params:
            raise ValueError(
                f"the zoo's networks have {self.codec.num_params} weights, got shape {tuple(vectors.shape)}"
            )
        bad = ~torch.isfinite(vectors).all(dim=1)
        if bool(bad.any()):
            raise ValueError(f"{int(bad.sum())} of {len(vectors)} networks have NaN or infinite weights")
        rows = {name: torch.as_tensor(value, dtype=torch.float32).reshape(-1) for name, value in metrics.items()}
        if len(self) and rows.keys() != self.metrics.keys():
            raise ValueError(f"the zoo keeps the metrics {sorted(self.metrics)}, got {sorted(rows)}")
        lengths = {"keys": len(numbers)} | {name: len(value) for name, value in rows.items()}
        for name, length in lengths.items():
            if length != len(vectors):
                raise ValueError(f"{name} must have one entry per network, {len(vectors)}, got {length}")
        self.vectors = torch.cat([self.vectors, vectors.cpu()])
        self.keys = torch.cat([self.keys, numbers.cpu()])
        self.metrics = {
            name: torch.cat([self.metrics.get(name, torch.empty(0)), value.cpu()]) for name, value in rows.items()
        }

    @property
    def scale(self) -> float:
        """Standard deviation of all entries of all networks: one number, by which vectors are divided."""
        if not len(self):
            raise ValueError("the zoo is empty")
        scale = float(self.vectors.double().std(correction=0))
        if scale == 0:
            raise ValueError("all weights of the zoo are equal: there is nothing to learn from")
        return scale

    @property
    def mean(self) -> Float[Tensor, "params"]:
        return self.vectors.mean(dim=0)

    def subset(self, rows: Tensor) -> "ModelZoo":
        part = ModelZoo(self.codec)
        part.vectors, part.keys = self.vectors[rows], self.keys[rows]
        part.metrics = {name: value[rows] for name, value in self.metrics.items()}
        return part

    def split(self, held_out: Int64[Tensor, "keys"]) -> tuple["ModelZoo", "ModelZoo"]:
        """Parts by data set, never by network: the rest, and the networks of the held-out data sets."""
        test = torch.isin(self.keys, held_out.cpu())
        if not bool(test.any()) or bool(test.all()):
            raise ValueError(
                f"a split must leave networks on both sides, {int(test.sum())} of {len(self)} are held out"
            )
        return self.subset(~test), self.subset(test)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a safetensors file."""
        from safetensors.torch import save_file

        tensors = {"vectors": self.vectors.contiguous(), "keys": self.keys.contiguous()}
        tensors |= {f"metric.{name}": value.contiguous() for name, value in self.metrics.items()}
        layout = {name: list(shape) for name, shape in self.codec.shapes.items()}
        save_file(tensors, str(path), metadata={"layout": json.dumps(layout)})

    @classmethod
    def load(cls, path: str | os.PathLike, codec: WeightCodec) -> "ModelZoo":
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds networks of another architecture.
        """
        from safetensors import safe_open

        with safe_open(str(path), framework="pt") as file:
            layout = json.loads((file.metadata() or {}).get("layout", "{}"))
            expected = {name: list(shape) for name, shape in codec.shapes.items()}
            if layout != expected:
                raise ValueError(f"{path} holds networks with the tensors {layout}, expected {expected}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        zoo = cls(codec)
        metrics = {name.removeprefix("metric."): value for name, value in tensors.items() if name.startswith("metric.")}
        zoo.add(tensors["vectors"], tensors["keys"], **metrics)
        return zoo


def _evaluating(module: nn.Module) -> nn.Module:
    """Copies never see running statistics change, nor dropout."""
    return copy.deepcopy(module).eval()


def batched_logits(
    module: nn.Module,
    codec: WeightCodec,
    vectors: Float[Tensor, "nets params"],
    inputs: Float[Tensor, "nets n *features"],
    *,
    chunk: int | None = None,
) -> Float[Tensor, "nets n outputs"]:
    """Outputs of many networks, each on its own inputs, at once; in evaluation mode.

    Args:
        chunk: how many networks go together; all if None.
    """
    network = _evaluating(module)
    call = vmap(lambda vector, x: functional_call(network, codec.unflatten(vector), (x,)), chunk_size=chunk)
    return call(vectors, inputs)


@torch.no_grad()
def batched_accuracy(
    module: nn.Module,
    codec: WeightCodec,
    vectors: Float[Tensor, "nets params"],
    inputs: Float[Tensor, "nets n *features"],
    targets: Int64[Tensor, "nets n"],
) -> Float[Tensor, "nets"]:
    """Share of right answers of each network on its own rows.

    Raises:
        ValueError: if a label is none of the networks' outputs.
    """
    logits = batched_logits(module, codec, vectors, inputs)
    _check_targets(targets, logits.shape[-1])
    return (logits.argmax(dim=-1) == targets).float().mean(dim=1)


@torch.no_grad()
def batched_loss(
    module: nn.Module,
    codec: WeightCodec,
    vectors: Float[Tensor, "nets params"],
    inputs: Float[Tensor, "nets n *features"],
    targets: Int64[Tensor, "nets n"],
) -> Float[Tensor, "nets"]:
    """Mean cross-entropy of each network on its own rows."""
    logits = batched_logits(module, codec, vectors, inputs)
    _check_targets(targets, logits.shape[-1])
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(dim=1)


def _check_targets(targets: Tensor, outputs: int) -> None:
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < outputs:
        given = f"{int(targets.min())}..{int(targets.max())}"
        raise ValueError(f"labels must lie in 0..{outputs - 1}, the networks' outputs, got {given}")


def initial_weights(
    module: nn.Module, codec: WeightCodec, n: int, *, kind: str = "shared", generator: torch.Generator
) -> Float[Tensor, "n params"]:
    """Where `n` networks start: "zero", "shared" (one random draw for all) or "random" (each its own).

    Random draws are those of each layer's `reset_parameters`. Only shared starts leave the units of networks in
    corresponding places; `symmetry` is for the others.

    Raises:
        ValueError: for another kind, or "zero" where hidden units would never part.
    """
    if kind == "zero":
        if sum(isinstance(part, nn.Linear | nn.modules.conv._ConvNd) for part in module.modules()) > 1:
            raise ValueError("hidden units that all start at zero stay equal; use kind='shared'")
        return torch.zeros(n, codec.num_params)
    if kind not in ("shared", "random"):
        raise ValueError(f"kind must be 'zero', 'shared' or 'random', got {kind!r}")
    network = copy.deepcopy(module).cpu()
    drawn = []
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(1 if kind == "shared" else n):
            for part in network.modules():
                if callable(getattr(part, "reset_parameters", None)):
                    part.reset_parameters()  # type: ignore[operator]
            drawn.append(codec.flatten(network))
    return torch.stack(drawn).expand(n, -1).clone()


def train_networks(
    module: nn.Module,
    codec: WeightCodec,
    start: Float[Tensor, "nets params"],
    inputs: Float[Tensor, "nets n *features"],
    targets: Int64[Tensor, "nets n"],
    *,
    steps: int,
    lr: float | int,
    l2: float | int = 0.0,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    at: Mapping[int, Callable[[Tensor], None]] | None = None,
) -> Float[Tensor, "nets params"]:
    """Trains every network on its own rows, all in one optimisation.

    The loss is the sum of the networks' mean cross-entropies, so that each network gets its own gradient; Adam works
    entry by entry, so that each takes the steps that it would take alone. Full batches.

    Args:
        module: of the architecture; runs in evaluation mode, as networks are compared at their starts, too.
        codec: of the architecture, without buffers.
        start: initial weights; not changed.
        inputs, targets: rows of each network.
        steps: updates, 0 or more.
        lr: learning rate, > 0.
        l2: `l2 * |w|^2` is added to each network's loss.
        optimizer: called as optimizer([weights], lr=lr); one that works entry by entry.
        at: step -> called with the weights after so many updates; 0 is the start.

    Raises:
        ValueError: for negative numbers, labels out of range, or a codec with buffers.
    """
    if steps < 0 or not lr > 0 or l2 < 0:
        raise ValueError(f"need steps >= 0, lr > 0 and l2 >= 0, got {steps}, {lr} and {l2}")
    if codec.include_buffers and any(True for _ in module.buffers()):
        raise ValueError("networks with buffers are not trained together; use layers without running statistics")
    network = _evaluating(module)

    def loss(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(network, codec.unflatten(vector), (x,))
        return F.cross_entropy(logits, y) + l2 * vector.square().sum()

    with torch.no_grad():
        probe = functional_call(network, codec.unflatten(start[0]), (inputs[0],))
    _check_targets(targets, probe.shape[-1])
    weights = nn.Parameter(start.detach().clone())
    stepper = optimizer([weights], lr=lr)
    gradient = vmap(grad(loss))
    seen = dict(at or {})
    for step in range(steps + 1):
        if step in seen:
            seen[step](weights.detach())
        if step < steps:
            weights.grad = gradient(weights.detach(), inputs, targets)
            stepper.step()
    return weights.detach()
