"""The study of both layouts over many configurations: a grid, runs that can be taken up again, paired summaries.

The paper trained 6,912 combinations. Which ones is not known to this library in full; `grid()` has as many by a
choice of ours over the axes that the paper names. Each run is one line of JSON, so a study can be interrupted,
continued on another machine, or joined by concatenating its files.

    from etude.data import images
    path = run_grid(core_grid(), {"mnist5k": images.mnist5k()}, "runs.jsonl", epochs=25)
    print(paired_summary(read_runs(path)))
"""

import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import ImageData
from etude.loop import accuracy, cosine_schedule, fit, mean_loss, seeded
from etude.vision.shallow.network import ShallowNet, overdetermination_ratio

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "LOSSES",
    "core_grid",
    "depth_gap",
    "grid",
    "paired_summary",
    "read_runs",
    "run_grid",
    "squared_error",
    "train_once",
]

_RESULTS = ("train_loss", "val_loss", "val_accuracy", "parameters", "overdetermination")
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
    "rmsprop": torch.optim.RMSprop,
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of the outputs against the one-hot code of the classes."""
    return F.mse_loss(outputs, F.one_hot(targets, outputs.shape[-1]).to(outputs.dtype))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.cross_entropy,
    "squared_error": squared_error,
}


def grid(
    *,
    datasets: Sequence[str] = ("mnist", "cifar10"),
    layouts: Sequence[str] = ("sequential", "parallel"),
    num_layers: Sequence[int] = (1, 2, 4, 8, 16, 32),
    channels: Sequence[int] = (4, 8, 16, 32),
    kernel_sizes: Sequence[int] = (1, 3, 5, 7),
    activations: Sequence[str] = ("relu", "sigmoid", "tanh"),
    batch_norm: Sequence[bool] = (False, True),
    optimizers: Sequence[str] = ("adam", "rmsprop", "sgd"),
    lrs: Sequence[float] = (1e-3,),
    losses: Sequence[str] = ("cross_entropy",),
    seeds: Sequence[int] = (0,),
) -> list[dict[str, Any]]:
    """Every combination of the axes as a dict, the two layouts of a configuration next to each other: 6,912 by default.

    Args:
        datasets: names of data sets, given to `run_grid`.
        layouts, num_layers, channels, kernel_sizes, activations, batch_norm: of the networks.
        optimizers: among "adam", "adamw" (no decay), "rmsprop", "sgd" (momentum 0.9).
        lrs: learning rates. losses: "cross_entropy" or "squared_error" (on one-hot codes).
        seeds: of weights and batch order; layouts of one seed share both.

    Raises:
        ValueError: for an unknown optimizer or loss.
    """
    for what, names, known in (("optimizers", optimizers, _OPTIMIZERS), ("losses", losses, LOSSES)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"{what} must be among {', '.join(sorted(known))}, got {unknown}")
    order = (
        "data", "seed", "num_layers", "channels", "kernel_size", "activation", "batch_norm", "optimizer", "lr", "loss",
        "layout",
    )  # fmt: skip
    values = (
        datasets, seeds, num_layers, channels, kernel_sizes, activations, batch_norm, optimizers, lrs, losses, layouts,
    )  # fmt: skip
    return [dict(zip(order, choice)) for choice in itertools.product(*values)]


def core_grid(datasets: Sequence[str] = ("mnist", "cifar10"), seeds: Sequence[int] = (0,)) -> list[dict[str, Any]]:
    """96 runs a seed: K in {2, 8, 32}, C in {8, 32}, 3 x 3 and 5 x 5, ReLU and sigmoid, two data sets, both layouts."""
    return grid(
        datasets=datasets, num_layers=(2, 8, 32), channels=(8, 32), kernel_sizes=(3, 5),
        activations=("relu", "sigmoid"), batch_norm=(False,), optimizers=("adamw",), seeds=seeds,
    )  # fmt: skip


def train_once(
    configuration: Mapping[str, Any],
    data: ImageData,
    *,
    epochs: int,
    batch_size: int = 50,
    clip: float | int | None = 1.0,
    warmup: float | int = 0.1,
    device: str = "cpu",
    shrink: int = 1,
) -> dict[str, float]:
    """Trains one configuration and measures it.

    Weights and batch order depend on `configuration["seed"]` alone, so both layouts start and see data alike.

    Args:
        configuration: as `grid` makes it.
        data: images; the test part is not looked at.
        epochs, batch_size, clip: as in `loop.fit`. warmup: share of the updates, then half a cosine to zero.
        device: where to train.
        shrink: images are averaged over squares of this side first.

    Returns:
        Final `train_loss` and `val_loss` (in evaluation mode), `val_accuracy`, `parameters`, `overdetermination`.
    """
    c = configuration
    with seeded(c["seed"]):
        net = ShallowNet(
            in_chans=data.channels, num_classes=data.num_classes, channels=c["channels"], num_layers=c["num_layers"],
            layout=c["layout"], kernel_size=c["kernel_size"], activation=c["activation"], batch_norm=c["batch_norm"],
        )  # fmt: skip
    model = nn.Sequential(nn.AvgPool2d(shrink), net).to(device)
    optimizer = _OPTIMIZERS[c["optimizer"]](model.parameters(), lr=c["lr"])
    rows = len(data.train)  # type: ignore[arg-type]
    steps = max(1, epochs * (rows // min(batch_size, rows)))
    loss = LOSSES[c["loss"]]
    fit(
        model, data.train, optimizer, loss=loss, steps=steps, batch_size=batch_size, clip=clip,
        schedule=cosine_schedule(optimizer, steps, warmup=int(warmup * steps)),
        generator=torch.Generator().manual_seed(c["seed"]), device=device,
    )  # fmt: skip
    return {
        "train_loss": mean_loss(model, data.train, loss=loss),
        "val_loss": mean_loss(model, data.val, loss=loss),
        "val_accuracy": accuracy(model, data.val),
        "parameters": float(sum(p.numel() for p in net.parameters())),
        "overdetermination": overdetermination_ratio(rows, data.num_classes, net),
    }


def run_grid(
    configurations: Iterable[Mapping[str, Any]],
    data: Mapping[str, ImageData | Callable[[], ImageData]],
    path: str | os.PathLike,
    *,
    progress: Callable[[int, int], Any] | None = None,
    **training: Any,
) -> Path:
    """Runs what is missing of a grid, a line of JSON a run, in the order given.

    A run counts as done if the file holds a line with its configuration and training arguments; a line that an
    interruption left unfinished is cut off and its run done again. A run whose loss is not finite is kept as such
    (`null`), so that it is not tried again and again.

    Args:
        configurations: as `grid` makes them.
        data: the data sets by name, or functions without arguments that load them.
        path: of the file; made if missing.
        progress: called as `progress(done, total)` after every run.
        training: further arguments of `train_once`.

    Raises:
        ValueError: if a configuration names data that are not given.
    """
    file = Path(path)
    wanted = [dict(configuration) for configuration in configurations]
    absent = sorted({configuration["data"] for configuration in wanted} - set(data))
    if absent:
        raise ValueError(f"the grid names the data {absent}, given are {sorted(data)}")
    done = {_key(run["configuration"], run["training"]) for run in _lines(file, repair=True)}
    loaded: dict[str, ImageData] = {}
    file.parent.mkdir(parents=True, exist_ok=True)
    for index, configuration in enumerate(wanted):
        if _key(configuration, training) not in done:
            name = configuration["data"]
            if name not in loaded:
                source = data[name]
                loaded[name] = source if isinstance(source, ImageData) else source()
            found = train_once(configuration, loaded[name], **training)
            metrics = {key: value if math.isfinite(value) else None for key, value in found.items()}
            line = json.dumps({"configuration": configuration, "training": training, "metrics": metrics})
            with open(file, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
            done.add(_key(configuration, training))
        if progress is not None:
            progress(index + 1, len(wanted))
    return file


def _key(configuration: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    return json.dumps([configuration, training], sort_keys=True)


def _lines(file: Path, repair: bool = False) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if repair and len(whole) < len(content):
        with open(file, "r+b") as stream:
            stream.truncate(len(whole))
    runs = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}, is no run: {error}") from error
    return runs


def read_runs(path: str | os.PathLike) -> "pd.DataFrame":
    """The runs of a file as a table: a row a run, a column for each axis, training argument and metric."""
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no runs at {file}")
    return pd.DataFrame([run["configuration"] | run["training"] | run["metrics"] for run in _lines(file)])


def _paired(df: "pd.DataFrame", metrics: Sequence[str]) -> "pd.DataFrame":
    """A row a configuration and seed, with columns METRIC_parallel and METRIC_sequential; unpaired runs left out."""
    missing = sorted({"layout", *metrics} - set(df.columns))
    if missing:
        raise ValueError(f"the table lacks the columns {missing}; it has {sorted(df.columns)}")
    keys = [name for name in df.columns if name not in (*_RESULTS, "layout")]
    parallel, sequential = (
        df.loc[df["layout"] == layout, [*keys, *metrics]].drop_duplicates(keys, keep="last")
        for layout in ("parallel", "sequential")
    )
    both = parallel.merge(sequential, on=keys, suffixes=("_parallel", "_sequential"))
    both = both.dropna(subset=[f"{metric}_{layout}" for metric in metrics for layout in ("parallel", "sequential")])
    if both.empty:
        raise ValueError("no configuration was run in both layouts")
    return both


def paired_summary(df: "pd.DataFrame", by: str | Sequence[str] | None = None, level: float = 0.95) -> "pd.DataFrame":
    """Loss ratios parallel / sequential over configurations: median, its interval, and how often parallel is lower.

    A configuration is everything but the layout and the seed; over seeds its log ratios are averaged first. The
    interval is that of order statistics (the sign test turned round): exact whatever the distribution, and for fewer
    than six configurations from the least ratio to the largest.

    Args:
        df: as `read_runs` gives it. Runs without their pair, or with a loss that is not finite, are left out.
        by: a column, or several, to summarise apart, such as "num_layers" or "data".
        level: of the interval.

    Returns:
        A row for each metric (and value of `by`): median, low, high, below (share of ratios < 1), configurations.
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import binom

    metrics = ["train_loss", "val_loss"]
    both = _paired(df, metrics)
    axes = [name for name in df.columns if name not in (*_RESULTS, "layout", "seed")]
    groups = [] if by is None else [by] if isinstance(by, str) else list(by)
    rows = []
    for metric in metrics:
        ratio = np.log(both[f"{metric}_parallel"] / both[f"{metric}_sequential"])
        means = both[axes].assign(ratio=ratio).groupby(axes, as_index=False, dropna=False)["ratio"].mean()
        for value, part in means.groupby(groups) if groups else [((), means)]:
            ratios = np.sort(part["ratio"].to_numpy())
            n = len(ratios)
            # The largest rank k (from 0) with P(Binomial(n, 1/2) <= k) <= (1 - level) / 2.
            rank = int(binom.ppf((1 - level) / 2, n, 0.5))
            if binom.cdf(rank, n, 0.5) > (1 - level) / 2:
                rank -= 1
            rank = max(rank, 0)
            found = {
                "metric": metric,
                "median": float(np.exp(np.median(ratios))),
                "low": float(np.exp(ratios[rank])),
                "high": float(np.exp(ratios[n - 1 - rank])),
                "below": float((ratios < 0).mean()),
                "configurations": n,
            }
            rows.append(dict(zip(groups, value)) | found)
    return pd.DataFrame(rows)


def depth_gap(df: "pd.DataFrame", metric: str = "val_accuracy") -> "pd.DataFrame":
    """The curve on which equivalence breaks: sequential - parallel by the number of layers, averaged over the rest.

    Returns:
        A row for each K: num_layers, gap (mean), error (standard error over configurations), configurations.
    """
    both = _paired(df, [metric])
    gap = both.assign(gap=both[f"{metric}_sequential"] - both[f"{metric}_parallel"])
    curve = gap.groupby("num_layers")["gap"].agg(gap="mean", error="sem", configurations="count").reset_index()
    return curve.sort_values("num_layers", ignore_index=True)
