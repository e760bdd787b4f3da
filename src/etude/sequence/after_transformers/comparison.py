"""Mixers against one another: quality, speed, memory and state on several tasks, in one table and one picture.

table = compare(["attention", "mamba"], {"copy": lambda seed: my_task(seed).split(2000, 200, 500)}, seeds=3)
print(table.markdown())
table.plot().savefig("mixers.png")
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats

from etude.loop import seeded
from etude.sequence.after_transformers.meter import decode_cost, quality, step_cost, train
from etude.sequence.after_transformers.model import MixerSpec, SequenceModel, match_parameters
from etude.sequence.after_transformers.tasks import SequenceTask

__all__ = ["Budget", "MixerTable", "compare", "matched_ratio", "model_for", "pareto"]

Parts = tuple[SequenceTask, SequenceTask, SequenceTask]
"""Examples to train on, to validate and to test with."""
_TUNING_SEED = 1000


@dataclass(frozen=True)
class Budget:
    """What every arm of a comparison has.

    Args:
        dim, depth, channel, mlp_ratio: of the models.
        parameters: of every model, which `match_parameters` reaches by the channel mixer; None: as they come.
        steps, batch_size, warmup, weight_decay, clip: of training.
        rates: learning rates; with more than one, each mixer takes its best by validation on a seed apart.
        positions: mixers that get learned positions; the others know the order of tokens by themselves.
        decode_lengths: tokens read before a step of decoding is measured.
        timing: training steps of which the median is taken; 0: nothing is timed.
    """

    dim: int = 32
    depth: int = 2
    channel: str | Mapping[str, Any] | None = "mlp"
    mlp_ratio: float | int = 2
    parameters: int | None = None
    steps: int = 1000
    batch_size: int = 32
    warmup: int = 50
    weight_decay: float | int = 0.01
    clip: float | int | None = 1.0
    rates: tuple[float, ...] = (3e-3,)
    positions: tuple[str, ...] = ("attention", "window", "fnet")
    decode_lengths: tuple[int, ...] = (256, 1024)
    timing: int = 20

    def __post_init__(self):
        if min(self.dim, self.depth, self.steps, self.batch_size) < 1 or not self.rates:
            raise ValueError(
                f"dim, depth, steps and batch_size must be positive and rates not empty, got {self.dim}, {self.depth}, "
                f"{self.steps}, {self.batch_size} and {self.rates}"
            )


def model_for(
    task: SequenceTask, spec: MixerSpec, budget: Budget, *, learned: bool = False, **options: Any
) -> SequenceModel:
    """A model whose inputs and outputs fit a task.

    Args:
        task: any part of it.
        spec: of the mixer.
        budget: its sizes.
        learned: whether it has learned positions.
        options: of `SequenceModel`, beyond the budget's.

    Raises:
        ValueError: if the task is causal and the mixer is not.
    """
    built = {
        "dim": budget.dim, "depth": budget.depth, "channel": budget.channel, "mlp_ratio": budget.mlp_ratio,
        "head": "tag" if task.kind == "tag" else "classify", "num_outputs": task.num_outputs,
        "vocab": task.vocab, "input_dim": None if task.vocab is not None else task.inputs.shape[2],
        "max_len": task.inputs.shape[1], "positions": "learned" if learned else "none",
    }  # fmt: skip
    model = SequenceModel(spec, **(built | options))
    if task.causal and not all(mixer.causal for mixer in model.mixers()):
        raise ValueError(f"{task.name} asks for what comes next: {_name(spec)} sees later tokens")
    return model


def compare(
    mixers: Mapping[str, MixerSpec] | Sequence[str],
    tasks: Mapping[str, Callable[[int], Parts] | Parts],
    seeds: int | Iterable[int] = 3,
    budget: Budget | None = None,
    *,
    progress: Callable[[str], None] | None = None,
) -> "MixerTable":
    """Trains every mixer on every task at every seed, and measures what it costs.

    Args:
        mixers: names, or names with their specifications.
        tasks: name to the three parts, or to a function of the seed that draws them.
        seeds: how many, from 0, or which.
        budget: the same for all; `Budget()` if None.
        progress: told what runs.

    Raises:
        ValueError: for no mixer, task or seed; a mixer that sees later tokens on a causal task; or models that cannot
            be matched in size.
    """
    budget = Budget() if budget is None else budget
    specs = dict(mixers) if isinstance(mixers, Mapping) else {name: name for name in mixers}
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not specs or not tasks or not chosen:
        raise ValueError(f"need mixers, tasks and seeds, got {list(specs)}, {list(tasks)} and {chosen}")
    rows = []
    for task_name, source in tasks.items():
        for name, spec in specs.items():
            rate, ratio = budget.rates[0], budget.mlp_ratio
            learned = name in budget.positions or _name(spec) in budget.positions
            parts = _parts(source, _TUNING_SEED if callable(source) else 0)
            if budget.parameters is not None:
                ratio, _ = matched_ratio(parts[0], spec, budget.parameters, budget, learned=learned)
            if len(budget.rates) > 1:
                found = {
                    lr: quality(_trained(parts, spec, budget, lr, ratio, learned, _TUNING_SEED), parts[1])["quality"]
                    for lr in budget.rates
                }
                rate = max(found, key=lambda lr: found[lr])
            for seed in chosen:
                if progress is not None:
                    progress(f"{task_name}: {name}, seed {seed}")
                parts = _parts(source, seed)
                model = _trained(parts, spec, budget, rate, ratio, learned, seed)
                rows.append(
                    {"task": task_name, "mixer": name, "seed": seed, "lr": rate}
                    | quality(model, parts[2])
                    | _costs(model, parts[0], budget)
                )
    return MixerTable(tuple(rows))


def _parts(source: Callable[[int], Parts] | Parts, seed: int) -> Parts:
    return source(seed) if callable(source) else source


def matched_ratio(
    task: SequenceTask, spec: MixerSpec, parameters: int | None, budget: Budget, *, learned: bool = False
) -> tuple[float, int]:
    """The `mlp_ratio` at which a model for a task has so many parameters, about, and its number at the budget's own.

    Args:
        task, spec, budget, learned: as for `model_for`.
        parameters: of the whole model; None: as it comes.

    Raises:
        ValueError: as `model_for` and `match_parameters`.
    """
    with torch.device("meta"):
        model = model_for(task, spec, budget, learned=learned)
    own = sum(p.numel() for p in model.parameters())
    if parameters is None:
        return float(budget.mlp_ratio), own
    ratio = match_parameters(
        {_name(spec): spec}, parameters, dim=budget.dim, depth=budget.depth, channel=budget.channel, head=model.head,
        num_outputs=task.num_outputs, vocab=task.vocab, max_len=task.inputs.shape[1],
        input_dim=None if task.vocab is not None else task.inputs.shape[2],
        positions="learned" if learned else "none",
    )  # fmt: skip
    return ratio[_name(spec)], own


def _trained(
    parts: Parts, spec: MixerSpec, budget: Budget, lr: float, ratio: float | int, learned: bool, seed: int
) -> SequenceModel:
    with seeded(seed):
        model = model_for(parts[0], spec, budget, learned=learned, mlp_ratio=ratio)
        train(
            model, parts[0], steps=budget.steps, lr=lr, batch_size=budget.batch_size, warmup=budget.warmup,
            weight_decay=budget.weight_decay, clip=budget.clip, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    return model


def _costs(model: SequenceModel, task: SequenceTask, budget: Budget) -> dict[str, float]:
    length = task.inputs.shape[1]
    found: dict[str, float] = {
        "parameters": float(sum(p.numel() for p in model.parameters())), "mixer_flops": float(model.flops(length)),
        "state_size": float(model.state_size(length)),
    }  # fmt: skip
    if budget.timing:
        cost = step_cost(
            model, task.inputs[: budget.batch_size], task.labels[: budget.batch_size], repeats=budget.timing
        )  # fmt: skip
        found |= {"step_seconds": cost.seconds, "step_bytes": float(cost.memory)}
        if model.has_step and budget.decode_lengths:
            mixer = model.mixers()[0]
            for at, decode in decode_cost(mixer, budget.dim, budget.decode_lengths, batch=1).items():
                found |= {f"decode_seconds_{at}": decode.seconds, f"state_bytes_{at}": float(decode.memory)}
    return found


def _name(spec: MixerSpec) -> str:
    if isinstance(spec, str):
        return spec
    return str(spec.get("name")) if isinstance(spec, Mapping) else "+".join(_name(part) for part in spec)


def pareto(rows: Sequence[Mapping[str, Any]], *, higher: Sequence[str], lower: Sequence[str]) -> list[bool]:
    """For each row, whether no other is as good on all columns and better on one; missing values count as infinite."""

    def values(row: Mapping[str, Any]) -> list[float]:
        good = [-float(row.get(name, -math.inf)) for name in higher]
        return good + [float(row.get(name, math.inf)) for name in lower]

    points = [values(row) for row in rows]
    return [
        not any(all(a <= b for a, b in zip(other, one)) and other != one for other in points) for one in points
    ]  # fmt: skip


@dataclass(frozen=True)
class MixerTable:
    """What `compare` found.

    Args:
        rows: one for every task, mixer and seed.
    """

    rows: tuple[dict[str, Any], ...]

    def summary(self) -> list[dict[str, Any]]:
        """One row for every task and mixer, the best first: means over seeds, the 95 % interval of quality, its rank,
        and whether no other arm is as good and as cheap in step time, memory and state (`pareto`)."""
        found: list[dict[str, Any]] = []
        for task in dict.fromkeys(row["task"] for row in self.rows):
            lines = [self._line(task, name) for name in dict.fromkeys(r["mixer"] for r in self.rows)]
            lines = sorted((line for line in lines if line), key=lambda line: -line["quality"])
            marks = pareto(lines, higher=["quality"], lower=["step_seconds", "step_bytes", "state_size"])
            found += [line | {"rank": at, "pareto": mark} for at, (line, mark) in enumerate(zip(lines, marks), 1)]
        return found

    def _line(self, task: str, mixer: str) -> dict[str, Any]:
        rows = [row for row in self.rows if row["task"] == task and row["mixer"] == mixer]
        if not rows:
            return {}
        line: dict[str, Any] = {"task": task, "mixer": mixer, "seeds": len(rows)}
        for name in rows[0]:
            if name not in ("task", "mixer", "seed"):
                line[name] = statistics.fmean(row[name] for row in rows)
        spread = math.inf
        if len(rows) > 1:
            deviation = statistics.stdev(row["quality"] for row in rows)
            spread = float(stats.t.ppf(0.975, len(rows) - 1)) * deviation / len(rows) ** 0.5
        return line | {"low": line["quality"] - spread, "high": line["quality"] + spread}

    def markdown(self) -> str:
        """The summary as a table."""
        head = ("task", "rank", "mixer", "quality", "95 %", "parameters", "ms a step", "MB a step", "state", "Pareto")
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in self.summary():
            milliseconds = f"{1e3 * row['step_seconds']:.1f}" if "step_seconds" in row else ""
            megabytes = f"{row['step_bytes'] / 1e6:.1f}" if "step_bytes" in row else ""
            cells = (
                row["task"], row["rank"], row["mixer"], f"{row['quality']:.3f}",
                f"{row['low']:.3f} .. {row['high']:.3f}",
                f"{row['parameters']:,.0f}", milliseconds, megabytes, f"{row['state_size']:,.0f}",
                "*" if row["pareto"] else "",
            )  # fmt: skip
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        return "\n".join(lines)

    def plot(self) -> Any:
        """Quality by size of state, and by time of a step where it was taken, a row for each task, by matplotlib.

        Filled marks: no other arm is as good and as cheap.
        """
        from matplotlib.figure import Figure

        summary = self.summary()
        tasks = list(dict.fromkeys(row["task"] for row in summary))
        axes_of = [("state_size", "numbers of state")]
        if all("step_seconds" in row for row in summary):
            axes_of.append(("step_seconds", "seconds a training step"))
        figure = Figure(figsize=(5 * len(axes_of), 3.2 * len(tasks)), layout="constrained")
        grid = figure.subplots(len(tasks), len(axes_of), squeeze=False)
        for task, line in zip(tasks, grid):
            for (column, label), axes in zip(axes_of, line):
                for row in (row for row in summary if row["task"] == task):
                    axes.plot(
                        row[column], row["quality"], "o", color="C0", fillstyle="full" if row["pareto"] else "none"
                    )
                    axes.annotate(
                        row["mixer"], (row[column], row["quality"]), xytext=(4, 3), textcoords="offset points",
                        fontsize=7,
                    )  # fmt: skip
                axes.set(xscale="log", xlabel=label, ylabel="quality", title=task)
        return figure
