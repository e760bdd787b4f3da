"""Learning task after task: each has an embedding, and the regulariser keeps what earlier ones generate."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from etude.data.kinds import Examples
from etude.loop.batches import IndexedBatches
from etude.transfer.hypernetworks.hypernetwork import Hypernetwork
from etude.transfer.hypernetworks.regularisation import HypernetSnapshot, lookahead_step, output_regularizer
from etude.transfer.hypernetworks.tasks import Task

__all__ = ["learn_condition", "learn_jointly", "learn_stream", "learn_task", "task_accuracy"]

Report = Callable[[int, int], None]


def learn_task(
    hypernet: Hypernetwork,
    number: int,
    examples: Examples,
    *,
    beta: float | int = 0.1,
    steps: int = 150,
    batch_size: int = 64,
    lr: float | int = 2e-3,
    generator: torch.Generator | None = None,
    lookahead: bool = False,
    subsample: int | None = None,
    masks: Tensor | None = None,
) -> None:
    """Trains Phi and the embedding of one task by Adam, earlier embeddings frozen.

    Args:
        hypernet: conditioned by stored tasks.
        number: t - 1; conditions 0..number - 1 are the earlier tasks.
        examples: inputs and labels from 0.
        beta: of the regulariser, >= 0; 0 leaves it out.
        steps, batch_size, lr: of Adam, whose state starts afresh with every task.
        generator: of the order of the examples.
        lookahead: whether the regulariser looks one step ahead.
        subsample: earlier tasks drawn for the regulariser at each step; all if None.
        masks: (number, params), of `output_regularizer`.

    Raises:
        ValueError: if beta or steps are negative, or the labels do not fit the target's outputs.
    """
    if beta < 0 or steps < 0:
        raise ValueError(f"beta and steps must not be negative, got {beta} and {steps}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    optimizer = torch.optim.Adam([*hypernet.shared_parameters(), *hypernet.condition_parameters(number)], lr=lr)
    earlier = list(range(number))
    snapshot = HypernetSnapshot(hypernet) if earlier and beta else None
    hypernet.train()
    for _, (inputs, targets, _) in zip(range(steps), IndexedBatches(examples, batch_size, generator)):
        optimizer.zero_grad()
        loss = F.cross_entropy(hypernet.call(inputs, number), targets)
        if snapshot is not None:
            step = lookahead_step(hypernet, loss, lr) if lookahead else None
            kept = output_regularizer(
                hypernet, snapshot, earlier, masks=masks, lookahead=step, subsample=subsample, generator=generator
            )
            loss = loss + beta * kept
        loss.backward()
        optimizer.step()
    hypernet.eval()


def learn_stream(
    hypernet: Hypernetwork, tasks: Sequence[Task], *, part: str = "test", report: Report | None = None, **options
) -> Float[Tensor, "after on"]:
    """Learns the tasks in their order and evaluates all of them after each.

        R = learn_stream(hypernet, tasks, beta=0.1, generator=generator)
        average_accuracy(R), forgetting(R)                  # of etude.transfer.streams

    Args:
        hypernet: with one stored condition for each task.
        tasks: condition i is that of task i.
        part: "val" or "test", what is evaluated.
        report: is told how many tasks of how many are done.
        options: of `learn_task`.

    Returns:
        R[t, i], the accuracy on task i after task t.

    Raises:
        ValueError: if there are fewer conditions than tasks.
    """
    if hypernet.num_conditions < len(tasks):
        raise ValueError(f"{len(tasks)} tasks need as many conditions, the hypernetwork has {hypernet.num_conditions}")
    rows = []
    for number, task in enumerate(tasks):
        learn_task(hypernet, number, task.train, **options)
        rows.append([task_accuracy(hypernet, each, getattr(one, part)) for each, one in enumerate(tasks)])
        if report is not None:
            report(number + 1, len(tasks))
    return torch.tensor(rows, dtype=torch.float64)


def learn_jointly(
    hypernet: Hypernetwork,
    tasks: Sequence[Task],
    *,
    steps: int = 750,
    batch_size: int = 64,
    lr: float | int = 2e-3,
    generator: torch.Generator | None = None,
    each_step: Callable[[int], None] | None = None,
) -> None:
    """Trains all tasks together by Adam: step i is a batch of task i mod the number of tasks."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    optimizer = torch.optim.Adam([p for p in hypernet.parameters() if p.requires_grad], lr=lr)
    streams = [iter(IndexedBatches(task.train, batch_size, generator)) for task in tasks]
    hypernet.train()
    for step in range(steps):
        number = step % len(tasks)
        inputs, targets, _ = next(streams[number])
        optimizer.zero_grad()
        F.cross_entropy(hypernet.call(inputs, number), targets).backward()
        optimizer.step()
        if each_step is not None:
            each_step(step + 1)
    hypernet.eval()


def learn_condition(
    hypernet: Hypernetwork,
    examples: Examples,
    *,
    steps: int = 150,
    lr: float | int = 1e-2,
    like: Tensor | None = None,
) -> int:
    """Adds a condition and learns its embedding alone, Phi frozen, by Adam on all examples at once.

    Args:
        hypernet: conditioned by stored tasks.
        examples: few will do; the embedding has cond_dim numbers.
        steps, lr: of Adam.
        like: where the embedding starts; the mean of the learned ones if None.

    Returns:
        The condition's number.
    """
    if like is None:
        like = torch.stack([each.detach() for each in hypernet.conditions.learned]).mean(dim=0)
    number = hypernet.add_condition(like)
    parameters = hypernet.condition_parameters(number)
    optimizer = torch.optim.Adam(parameters, lr=lr)
    hypernet.train()
    for _ in range(steps):
        loss = F.cross_entropy(hypernet.call(examples.inputs, number), examples.targets)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        optimizer.step()
    hypernet.eval()
    return number


@torch.no_grad()
def task_accuracy(hypernet: Hypernetwork, number: int, examples: Examples) -> float:
    """Share of the examples that the target generated for a condition classifies rightly."""
    hypernet.eval()
    return float((hypernet.call(examples.inputs, number).argmax(dim=1) == examples.targets).double().mean())
