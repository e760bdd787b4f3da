"""Block-parallel training: every block of NoProp-DT by itself, in processes of this machine or on Ray.

With a fixed embedding nothing in the loss of one block depends on another block, nor the head's on any. So the blocks
and the head are T + 1 separate trainings, here called parts. They talk to nobody while they train: a worker receives
its parts and the examples once and returns the trained weights. Every pass of a part draws its order, noise and dropout
from streams named after (seed, epoch, block), so it does not matter where or beside what it trains: all engines give
the same weights bit for bit on equal devices at equal numbers of threads. A learned W trains with every block and would
have to be synchronised at each step; it is refused.
"""

import copy
import hashlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop.evaluation import mode
from etude.training.noprop.discrete import NoPropDT, parameters_of
from etude.training.noprop.training import MakeOptimizer, Minibatches, _step, block_optimizers

__all__ = ["BlockTraining", "train_blocks"]

_ENGINES = ("inline", "process", "ray")
_HEAD = 0  # the part that is no block; blocks are 1..T
_OBJECT_STORE_BYTES = 200 * 1024**2


@dataclass(frozen=True)
class BlockTraining:
    """What `train_blocks` did.

    Attributes:
        losses: of block t at index t - 1, the mean denoising loss of each epoch.
        head_losses: the head's mean cross-entropy of each epoch.
    """

    losses: list[list[float]]
    head_losses: list[float]


@dataclass(frozen=True)
class _Recipe:
    epochs: int
    batch_size: int
    make: MakeOptimizer
    seed: int
    threads: int | None

    def generator(self, epoch: int, t: int, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.stream_seed(epoch, t, name))

    def stream_seed(self, epoch: int, t: int, name: str) -> int:
        digest = hashlib.sha256(f"{self.seed}\0{epoch}\0{t}\0{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


def train_blocks(
    model: NoPropDT,
    train: Examples,
    *,
    epochs: int,
    batch_size: int = 128,
    make: MakeOptimizer | None = None,
    seed: int = 0,
    engine: str = "inline",
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0.0,
    address: str | None = None,
) -> BlockTraining:
    """Trains all blocks and the head, one after another or in parallel, to the same weights.

        train_blocks(model, data.train, epochs=100, engine="process", workers=4)

    "inline" is algorithm 1 in this process: epochs outside, blocks inside, the head with every block. "process" and
    "ray" deal the parts out to workers. "process" starts fresh interpreters, so a script calls it under
    `if __name__ == "__main__"`, and its modules must be importable. "ray" uses the Ray that runs, the one at `address`,
    or starts one of this machine and stops it again; on a cluster, etude must be installed on every node.

    Args:
        model: a discrete variant with one-hot embeddings, trained in place; afterwards in the mode it had.
        train: in memory; sent to every worker once.
        epochs: passes of every block over the examples.
        batch_size: of every step; what is left over of a pass is not used in it.
        make: from a list of parameters to an optimizer; AdamW at 1e-3 with weight decay 1e-3 if None. It is sent to
            the workers: a `functools.partial` of an optimizer, no lambda.
        seed: of all draws.
        engine: "inline", "process" or "ray".
        workers: at most; one for each part, but no more than the machine has cores, if None.
        threads: of torch, in each worker. "inline" keeps this process's number.
        gpus: share of a GPU that a worker on Ray reserves; if positive, it trains there.
        address: of a Ray cluster.

    Raises:
        ValueError: if the embedding is learned, a number lies out of range or the engine is unknown.
        TypeError: if a worker could not receive `make`.
        ImportError: if Ray is asked for and not installed.
    """
    if model.embedding.learned:
        raise ValueError(
            f"blocks train apart only under a fixed embedding, this one is {model.embedding.kind}: a learned W is "
            "trained by all blocks at every step; use train_noprop_epoch"
        )
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("threads", threads), ("workers", workers)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if engine not in _ENGINES:
        raise ValueError(f"engine must be one of {', '.join(_ENGINES)}, got {engine!r}")
    make = partial(torch.optim.AdamW, lr=1e-3, weight_decay=1e-3) if make is None else make
    if engine == "inline":
        return _train_inline(model, train, _Recipe(epochs, batch_size, make, seed, None))
    try:
        pickle.dumps(make)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"make must be sent to the workers, as a functools.partial can be: {error}") from None
    recipe = _Recipe(epochs, batch_size, make, seed, threads)
    count = min(model.num_blocks + 1, workers or os.cpu_count() or 1)
    dealt = [list(range(model.num_blocks + 1))[start::count] for start in range(count)]
    device = str(model.embedding.weight.device)
    # Bytes, not tensors: torch would pass those through shared memory, which small machines have little of.
    task = pickle.dumps((copy.deepcopy(model).cpu(), train.to("cpu"), recipe))
    trained = _on_processes(task, dealt, device) if engine == "process" else _on_ray(task, dealt, gpus, address)
    return _gather(model, trained)


def _train_inline(model: NoPropDT, train: Examples, recipe: _Recipe) -> BlockTraining:
    """Algorithm 1: a step trains one block and the head on the sum of their losses."""
    optimizers = block_optimizers(model, recipe.make)
    losses: list[list[float]] = [[] for _ in model.blocks]
    head_losses = []
    with mode(model, training=True):
        for epoch in range(recipe.epochs):
            of_head = []
            for t in range(1, model.num_blocks + 1):
                noise, head_noise = (recipe.generator(epoch, t, name) for name in ("noise", "head"))

                def step(x: Tensor, y: Tensor, t: int = t, noise=noise, head_noise=head_noise) -> Tensor:
                    terms = model.loss(x, y, t, noise, head_noise)
                    _step(terms["total"], optimizers.of(t))
                    return torch.stack([terms["denoise"].detach(), terms["ce"].detach()])

                block, head = _one_pass(step, train, recipe, epoch, t).tolist()
                losses[t - 1].append(block)
                of_head.append(head)
            head_losses.append(sum(of_head) / len(of_head))
    return BlockTraining(losses, head_losses)


def _train_part(model: NoPropDT, part: int, train: Examples, recipe: _Recipe) -> list[float]:
    """All epochs of one block, or of the head, by itself; its mean loss in each."""
    module: nn.Module = model.head if part == _HEAD else model.blocks[part - 1]
    parameters = parameters_of(module)
    optimizers = [recipe.make(parameters)] if parameters else []
    losses = []
    for epoch in range(recipe.epochs):
        turns = range(1, model.num_blocks + 1) if part == _HEAD else (part,)
        means = []
        for t in turns:
            noise = recipe.generator(epoch, t, "head" if part == _HEAD else "noise")

            def step(x: Tensor, y: Tensor, noise=noise) -> Tensor:
                loss = model.head_loss(y, noise)[0] if part == _HEAD else model.denoising_loss(x, y, part, noise)
                if optimizers:
                    _step(loss, optimizers)
                return loss.detach()

            means.append(_one_pass(step, train, recipe, epoch, t).item())
        losses.append(sum(means) / len(means))
    return losses


def _one_pass(step: Callable[[Tensor, Tensor], Tensor], train: Examples, recipe: _Recipe, epoch: int, t: int) -> Tensor:
    """One pass over the examples in the order of (epoch, t); the mean of what `step` returns."""
    batches = Minibatches(train, recipe.batch_size, recipe.generator(epoch, t, "order"))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.stream_seed(epoch, t, "dropout"))
        return torch.stack([step(x, y) for x, y in batches]).mean(dim=0)


Trained = dict[int, tuple[dict[str, Tensor], list[float]]]


def _train_parts(model: NoPropDT, parts: Sequence[int], train: Examples, recipe: _Recipe, device: str) -> Trained:
    """What a worker does: the weights and losses of its parts."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    model.to(device).train()
    train = train.to(device)
    trained: Trained = {}
    for part in parts:
        losses = _train_part(model, part, train, recipe)
        module = model.head if part == _HEAD else model.blocks[part - 1]
        trained[part] = {name: value.cpu() for name, value in module.state_dict().items()}, losses
    return trained


def _on_processes(task: bytes, dealt: list[list[int]], device: str) -> list[Trained]:
    # Fresh interpreters: a forked one inherits locks of threads that it has not.
    with ProcessPoolExecutor(len(dealt), mp_context=get_context("spawn")) as pool:
        return [pickle.loads(done) for done in pool.map(partial(_serve, task, device=device), dealt)]


def _serve(task: bytes, parts: list[int], device: str) -> bytes:
    model, train, recipe = pickle.loads(task)
    return pickle.dumps(_train_parts(model, parts, train, recipe, device))


def _on_ray(task: bytes, dealt: list[list[int]], gpus: float, address: str | None) -> list[Trained]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise ImportError("engine='ray' needs Ray: pip install 'etude[ray]'") from None
    owns = not ray.is_initialized()
    if owns and address is not None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    elif owns:
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        ray.init(
            address="local", num_cpus=len(dealt), include_dashboard=False, log_to_driver=False,
            object_store_memory=_OBJECT_STORE_BYTES, logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
        )  # fmt: skip
    try:
        serve = ray.remote(_serve).options(num_cpus=1, num_gpus=gpus)
        sent, device = ray.put(task), "cuda" if gpus else "cpu"
        return [pickle.loads(done) for done in ray.get([serve.remote(sent, parts, device) for parts in dealt])]
    finally:
        if owns:
            ray.shutdown()


def _gather(model: NoPropDT, trained: Sequence[Trained]) -> BlockTraining:
    parts: Trained = {part: result for some in trained for part, result in some.items()}
    for part, (state, _) in parts.items():
        (model.head if part == _HEAD else model.blocks[part - 1]).load_state_dict(state)
    losses = [parts[t][1] for t in range(1, model.num_blocks + 1)]
    return BlockTraining(losses, parts[_HEAD][1])
