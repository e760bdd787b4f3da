"""Training on recall, and accuracy by width and length for any mixers.

Arora et al., arXiv:2312.04927, figure 2: AdamW, weight decay 0.1, cosine to zero, the best of a few learning rates.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import cosine_schedule, fit
from etude.loop.evaluation import device_of, mode
from etude.sequence.zoology.model import RecallLM
from etude.sequence.zoology.mqar import IGNORED, mqar
from etude.sequence.zoology.selective import collect_aux_loss

__all__ = ["RecallFit", "best_rates", "evaluate_recall", "fit_recall", "plot_recall", "recall_sweep"]


class _Scored(nn.Module):
    """(batch, 2, length), tokens and labels, to the logits of what is scored."""

    def __init__(self, model: RecallLM):
        super().__init__()
        self.model = model

    def forward(self, both: Tensor) -> Tensor:
        return self.model.scored_logits(*both.unbind(1))


class RecallFit(NamedTuple):
    """What training did.

    Args:
        steps: updates taken.
        accuracy: on the validation examples after the last.
    """

    steps: int
    accuracy: float


def fit_recall(
    model: RecallLM,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    steps: int,
    lr: float | int,
    batch_size: int = 64,
    warmup: int = 0,
    weight_decay: float | int = 0.1,
    clip: float | int | None = None,
    stop_at: float | int | None = 0.99,
    every: int = 100,
    generator: torch.Generator | None = None,
    callback: Callable[..., None] | None = None,
) -> RecallFit:
    """Trains a model on scored labels and the auxiliary losses of its selective layers.

    Args:
        model: trained in place.
        train, val: inputs and labels, as of `mqar`.
        steps: updates at most; the learning rate falls to zero at the last.
        lr: peak learning rate of AdamW.
        batch_size, warmup, weight_decay, clip: as usual; weight decay is of all parameters.
        stop_at: validation accuracy at which training ends early; None: never.
        every: updates between two looks at the validation examples.
        generator: of the order of the examples.
        callback: called as `callback(step, steps, loss=..., val_accuracy=...)` at each look.

    Raises:
        ValueError: for numbers out of range.
    """
    if steps < 1 or every < 1:
        raise ValueError(f"steps and every must be positive, got {steps} and {every}")
    device = device_of(model)
    wrapped = _Scored(model)
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(lr), weight_decay=float(weight_decay), fused=fused)
    schedule = cosine_schedule(optimizer, steps, warmup=warmup)
    examples = Examples(torch.stack(train, dim=1), train[1])
    order = torch.Generator().manual_seed(0) if generator is None else generator

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        scored = labels[labels != IGNORED]
        main = F.cross_entropy(logits, scored) if len(scored) else logits.sum() * 0.0
        return main + collect_aux_loss(model).to(main.device)

    done, reached = 0, 0.0
    while done < steps:
        part = min(every, steps - done)
        result = fit(
            wrapped, examples, optimizer, loss=loss, steps=part, batch_size=batch_size, generator=order,
            replacement=True, schedule=schedule, clip=clip,
        )  # fmt: skip
        done += part
        reached = evaluate_recall(model, val)
        if callback is not None:
            callback(done, steps, loss=sum(result.losses) / len(result.losses), val_accuracy=reached)
        if stop_at is not None and reached >= stop_at:
            break
    return RecallFit(done, reached)


@torch.no_grad()
def evaluate_recall(model: RecallLM, examples: tuple[Tensor, Tensor], *, batch_size: int = 256) -> float:
    """Accuracy on the scored labels, in evaluation mode.

    Raises:
        ValueError: if nothing is scored.
    """
    right = total = 0
    with mode(model, training=False):
        for ids, labels in zip(*(part.to(device_of(model)).split(batch_size) for part in examples)):
            answers = labels[labels != IGNORED]
            right += int((model.scored_logits(ids, labels).argmax(-1) == answers).sum())
            total += len(answers)
    if not total:
        raise ValueError(f"no label is scored: all are {IGNORED}")
    return right / total


def recall_sweep(
    mixers: Mapping[str, Mapping[str, Any]] | Sequence[str],
    dims: Iterable[int] = (64, 128),
    lengths: Iterable[tuple[int, int]] = ((64, 4), (128, 8)),
    lrs: Sequence[float | int] = (1e-4, 4.6e-4, 2.2e-3, 1e-2),
    seeds: Iterable[int] = (0, 1, 2),
    *,
    vocab_size: int = 8192,
    depth: int = 2,
    examples: tuple[int, int, int] = (20_000, 500, 1000),
    steps: int = 1500,
    device: str = "cpu",
    progress: Callable[[dict[str, Any]], None] | None = None,
    **training: Any,
) -> list[dict[str, Any]]:
    """Trains every mixer at every width, length, learning rate and seed; each rate is tried by every mixer.

        table = recall_sweep(["base_conv", "hyena"], dims=(64, 128), lengths=((64, 4),))
        plot_recall(table).savefig("recall.svg")

    Args:
        mixers: names; or name -> arguments of `RecallLM`, such as {"mixer": [...], "positions": "learned"}.
        dims: widths.
        lengths: (length, pairs).
        lrs: learning rates.
        seeds: of data, weights and order.
        vocab_size, depth: of the task and the model.
        examples: to train on, to validate and to test with.
        steps: updates at most.
        device: where to train.
        progress: called with each row.
        training: further arguments of `fit_recall`.

    Returns:
        A dictionary a run: mixer, dim, length, pairs, lr, seed, val_accuracy, accuracy, steps, parameters, state_size.

    Raises:
        ValueError: without a mixer; as `mqar`, `RecallLM` and `fit_recall`.
    """
    chosen: dict[str, Mapping[str, Any]] = (
        dict(mixers) if isinstance(mixers, Mapping) else {name: {"mixer": name} for name in mixers}
    )
    if not chosen:
        raise ValueError("a sweep needs a mixer")
    table = []
    widths, rates, draws = tuple(dims), tuple(lrs), tuple(seeds)
    for length, pairs in lengths:
        for seed in draws:
            parts = [
                mqar(vocab_size, count, length, pairs, random_non_queries=False, seed=3 * seed + index)
                for index, count in enumerate(examples)
            ]
            for dim in widths:
                for name, options in chosen.items():
                    for lr in rates:
                        row = _run(options, dim, length, lr, seed, parts, vocab_size, depth, steps, device, training)
                        row = {
                            "mixer": name,
                            "dim": dim,
                            "length": length,
                            "pairs": pairs,
                            "lr": lr,
                            "seed": seed,
                        } | row
                        table.append(row)
                        if progress is not None:
                            progress(row)
    return table


def _run(
    options: Mapping[str, Any], dim: int, length: int, lr: float, seed: int, parts: list[tuple[Tensor, Tensor]],
    vocab_size: int, depth: int, steps: int, device: str, training: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        arguments: dict[str, Any] = {"depth": depth, "max_len": length, **options}
        model = RecallLM(vocab_size, dim, **arguments).to(device)
        order = torch.Generator().manual_seed(seed)
        found = fit_recall(model, parts[0], parts[1], steps=steps, lr=lr, generator=order, **training)
    return {
        "val_accuracy": found.accuracy, "accuracy": evaluate_recall(model, parts[2]), "steps": found.steps,
        "parameters": sum(p.numel() for p in model.parameters()), "state_size": model.state_size(length),
    }  # fmt: skip


def best_rates(table: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each mixer, width and length, at the learning rate of best mean validation accuracy.

    Returns:
        mixer, dim, length, pairs, lr, and the means over seeds of val_accuracy and accuracy.
    """
    runs: dict[tuple, dict[float, list[Mapping[str, Any]]]] = {}
    for row in table:
        key = (row["mixer"], row["dim"], row["length"], row["pairs"])
        runs.setdefault(key, {}).setdefault(row["lr"], []).append(row)

    def mean(rows: list[Mapping[str, Any]], metric: str) -> float:
        return sum(row[metric] for row in rows) / len(rows)

    best = []
    for (mixer, dim, length, pairs), rates in runs.items():
        lr = max(rates, key=lambda rate: mean(rates[rate], "val_accuracy"))
        values = {metric: mean(rates[lr], metric) for metric in ("val_accuracy", "accuracy")}
        best.append({"mixer": mixer, "dim": dim, "length": length, "pairs": pairs, "lr": lr} | values)
    return best


def plot_recall(table: Iterable[Mapping[str, Any]]) -> Any:
    """Accuracy over width, a line a mixer and a panel a length, as a matplotlib figure: the paper's figure 2.

    Args:
        table: of `recall_sweep`.

    Raises:
        ValueError: if the table is empty.
        ImportError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'etude[run]'") from error
    rows = best_rates(table)
    if not rows:
        raise ValueError("there is nothing to plot: the table is empty")
    panels = sorted({(row["length"], row["pairs"]) for row in rows})
    figure = Figure(figsize=(3.2 * len(panels) + 1, 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels):
        here = [row for row in rows if (row["length"], row["pairs"]) == panel]
        for mixer in dict.fromkeys(row["mixer"] for row in here):
            points = sorted((row["dim"], row["accuracy"]) for row in here if row["mixer"] == mixer)
            axis.plot(*zip(*points), "o-", label=mixer)
        axis.set_xscale("log", base=2)
        axis.set(title=f"{panel[0]} tokens, {panel[1]} pairs", xlabel="model dimension", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("accuracy")
    axes[-1].legend()
    return figure
