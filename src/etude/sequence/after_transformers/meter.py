"""What a mixer is worth and what it costs: training on a task, quality, time and memory of a step, and of decoding.

Times are of this library's code on this machine, not of an architecture: `Mixer.cost` and the mixer's docstring say how
each is computed (FFT, chunks of matrix products, scan, fused attention, or a loop).
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.loop import cosine_schedule, fit
from etude.loop.evaluation import device_of, mode
from etude.nn.mixers import Mixer
from etude.sequence.after_transformers.channels import auxiliary_loss
from etude.sequence.after_transformers.model import SequenceModel, parameter_groups
from etude.sequence.after_transformers.tasks import IGNORED, SequenceTask

__all__ = [
    "DecodeCost",
    "StepCost",
    "decode_cost",
    "quality",
    "random_state",
    "state_bytes",
    "step_cost",
    "train",
    "training_growth",
]


def task_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of what is scored, or the squared error of numbers."""
    if labels.is_floating_point():
        return F.mse_loss(outputs[..., 0], labels)
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def train(
    model: SequenceModel,
    task: SequenceTask,
    *,
    steps: int,
    lr: float | int,
    batch_size: int = 32,
    warmup: int = 0,
    weight_decay: float | int = 0.01,
    slow_lr: float | int = 1e-3,
    clip: float | int | None = 1.0,
    generator: torch.Generator | None = None,
    every: int = 1,
    callbacks: Sequence[Callable[..., Any]] = (),
) -> list[float]:
    """AdamW with warm-up and a cosine to zero, on the loss of the task and of mixtures of experts; the losses.

    Args:
        model: trained in place; its outputs fit the task's kind.
        task: examples to train on.
        steps, lr, batch_size, warmup, weight_decay, clip: as usual.
        slow_lr: of what mixers name slow (`parameter_groups`).
        generator: of the order of the examples; a fresh one of seed 0 if None.
        every, callbacks: as for `etude.loop.fit`.
    """
    fused = device_of(model).type in ("cpu", "cuda")
    groups = parameter_groups(model, lr=lr, weight_decay=weight_decay, slow_lr=slow_lr)
    optimizer = torch.optim.AdamW(groups, fused=fused)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return task_loss(outputs, labels) + auxiliary_loss(model).to(outputs.device)

    result = fit(
        model, task.examples(), optimizer, loss=loss, steps=steps, batch_size=batch_size, replacement=True, clip=clip,
        schedule=cosine_schedule(optimizer, steps, warmup=min(warmup, steps - 1)), every=every, callbacks=callbacks,
        generator=torch.Generator().manual_seed(0) if generator is None else generator,
    )  # fmt: skip
    return result.losses


@torch.no_grad()
def quality(model: nn.Module, task: SequenceTask, *, batch_size: int = 256) -> dict[str, float]:
    """In evaluation mode: "quality", higher is better; with its parts.

    Of classes "quality" is the "accuracy" of what is scored, of text ("char_lm") minus "bpc", the bits a token; of
    numbers minus "mse". "loss" is in nats.
    """
    right = scored = total = 0.0
    device = device_of(model)
    with mode(model, training=False):
        for x, labels in zip(task.inputs.split(batch_size), task.labels.split(batch_size)):
            outputs, labels = model(x.to(device)), labels.to(device)
            count = len(labels) if labels.is_floating_point() else int((labels != IGNORED).sum())
            if count == 0:
                continue
            total += float(task_loss(outputs, labels)) * count
            scored += count
            if not labels.is_floating_point():
                right += int(((outputs.argmax(-1) == labels) & (labels != IGNORED)).sum())
    if scored == 0:
        raise ValueError(f"nothing is scored in {task.name}")
    if task.kind == "regress":
        return {"quality": -total / scored, "mse": total / scored, "loss": total / scored}
    found = {"accuracy": right / scored, "loss": total / scored, "bpc": total / scored / math.log(2)}
    return found | {"quality": -found["bpc"] if task.name == "char_lm" else found["accuracy"]}


class StepCost(NamedTuple):
    """Of one training step.

    Args:
        seconds: median of forward, backward and update.
        memory: bytes; on CUDA the peak beyond what was there before, elsewhere what the forward pass keeps for the
            backward pass, parameters not counted.
        parameters: of the model.
    """

    seconds: float
    memory: int
    parameters: int


def step_cost(model: nn.Module, x: Tensor, labels: Tensor, *, repeats: int = 20, warmup: int = 3) -> StepCost:
    """Measures training steps of a model on one batch; its weights change."""
    device = device_of(model)
    x, labels = x.to(device), labels.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type in ("cpu", "cuda"))

    def step() -> None:
        optimizer.zero_grad()
        (task_loss(model(x), labels) + auxiliary_loss(model).to(device)).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with mode(model, training=True):
        memory = _memory(lambda: task_loss(model(x), labels), model, device)
        seconds = []
        for round_ in range(warmup + repeats):
            begun = time.perf_counter()
            step()
            if round_ >= warmup:
                seconds.append(time.perf_counter() - begun)
    return StepCost(sorted(seconds)[len(seconds) // 2], memory, sum(p.numel() for p in model.parameters()))


def _memory(loss: Callable[[], Tensor], model: nn.Module, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loss().backward()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


def state_bytes(state: Any) -> int:
    """Of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return sum(state_bytes(part) for part in parts)


@torch.no_grad()
def random_state(mixer: Mixer, batch: int, dim: int, length: int, *, generator: torch.Generator) -> Any:
    """A state as large as after `length` tokens, filled with N(0, 1) instead of being read up to.

    What grows with the tokens is found by taking one step.

    Raises:
        TypeError: if the mixer has no step form.
        ValueError: if the length is not positive.
    """
    if length < 1:
        raise ValueError(f"length must be positive, got {length}")
    start = mixer.init_state(batch)
    like = next((p for p in mixer.parameters()), torch.zeros(()))
    one = mixer.step(torch.zeros(batch, dim, dtype=like.dtype, device=like.device), start)[1]
    kept = mixer.state_size(length) // mixer.state_size(1)

    def filled(before: Any, after: Any) -> Any:
        if isinstance(after, Tensor):
            shape = [now if now == then else kept for then, now in zip(before.shape, after.shape)]
            return torch.randn(shape, dtype=after.dtype, generator=generator).to(after.device)
        if isinstance(after, dict):
            return {name: filled(before[name], after[name]) for name in after}
        if isinstance(after, tuple | list):
            return type(after)(filled(*both) for both in zip(before, after))
        return length if isinstance(after, int) else after

    return filled(start, one)


class DecodeCost(NamedTuple):
    """Of one step of decoding after so many tokens.

    Args:
        seconds: least of all repeats.
        memory: bytes of the state for all sequences of the batch.
    """

    seconds: float
    memory: int


@torch.no_grad()
def decode_cost(
    mixer: Mixer,
    dim: int,
    lengths: Sequence[int],
    *,
    batch: int = 8,
    repeats: int = 30,
    generator: torch.Generator | None = None,
) -> dict[int, DecodeCost]:
    """Cost of `step` by how much was read before, all lengths in turn, so that they meet the same weather.

    Raises:
        TypeError: if the mixer has no step form.
        ValueError: if there is no length or no repeat.
    """
    if not lengths or repeats < 1:
        raise ValueError(f"need lengths and repeats, got {list(lengths)} and {repeats}")
    draw = torch.Generator().manual_seed(0) if generator is None else generator
    with mode(mixer, training=False):
        states = {length: random_state(mixer, batch, dim, length, generator=draw) for length in lengths}
        like = next((p for p in mixer.parameters()), torch.zeros(()))
        x = torch.randn(batch, dim, generator=draw).to(like)
        best = dict.fromkeys(lengths, math.inf)
        for round_ in range(repeats + 1):
            for length, state in states.items():
                begun = time.perf_counter()
                mixer.step(x, state)
                if x.device.type == "cuda":
                    torch.cuda.synchronize(x.device)
                if round_:  # the first warms up
                    best[length] = min(best[length], time.perf_counter() - begun)
    return {length: DecodeCost(best[length], state_bytes(states[length])) for length in lengths}


def training_growth(
    mixer: Mixer, dim: int, lengths: Sequence[int], *, batch: int = 1, repeats: int = 3, generator: torch.Generator
) -> float:
    """How the time of forward and backward grows: the slope of its logarithm over that of the length.

    1 is linear. All lengths in turn, the least of `repeats` each, after one to warm up.

    Raises:
        ValueError: for fewer than two different lengths, or no repeat.
    """
    if len(set(lengths)) < 2 or repeats < 1:
        raise ValueError(f"need two different lengths and repeats, got {list(lengths)} and {repeats}")
    like = next((p for p in mixer.parameters()), torch.zeros(()))
    inputs = {length: torch.randn(batch, length, dim, generator=generator).to(like) for length in lengths}
    best = dict.fromkeys(inputs, math.inf)
    for round_ in range(repeats + 1):
        for length, x in inputs.items():
            begun = time.perf_counter()
            mixer(x.requires_grad_()).sum().backward()
            if x.device.type == "cuda":
                torch.cuda.synchronize(x.device)
            if round_:
                best[length] = min(best[length], time.perf_counter() - begun)
    mixer.zero_grad(set_to_none=True)
    at = torch.tensor([math.log(length) for length in best], dtype=torch.float64)
    took = torch.tensor([math.log(seconds) for seconds in best.values()], dtype=torch.float64)
    at, took = at - at.mean(), took - took.mean()
    return float((at * took).sum() / at.square().sum())
