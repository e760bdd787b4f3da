"""Filters compared on a user's own images: options paired by seed, with intervals of the differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from etude.data.kinds import Examples
from etude.loop import accuracy, fit
from etude.vision.filters.estimator import FixedBankClassifier, labelled_images, make_bank
from etude.vision.filters.network import SmallCNN

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FilterComparison", "compare_filters"]

PROTOCOLS = ("readout", "cnn")
OPTIONS = ("random", "gabor", "dct", "pca", "kmeans", "kmeans_nowhite")


@dataclass(frozen=True)
class FilterComparison:
    """What `compare_filters` found.

    Attributes:
        table: one row for each option and seed: option, seed, accuracy, filters, n_train, n_test.
        options: in the order in which they were given.
    """

    table: "pd.DataFrame"
    options: tuple[str, ...]

    def scores(self, option: str) -> np.ndarray:
        """Accuracies of an option, in the order of the seeds."""
        rows = self.table[self.table["option"] == option].sort_values("seed")
        return rows["accuracy"].to_numpy()

    def summary(self, against: str | None = None) -> "pd.DataFrame":
        """Mean accuracy of each option, and its paired lead over `against` (the first if None) with a 95 % t interval.

        The seeds draw other training and test rows from the same images, so that they are not independent: the
        variance is corrected after Nadeau & Bengio (2003), by 1 / n + n_test / n_train in place of 1 / n.
        """
        import pandas as pd
        from scipy import stats

        base = self.options[0] if against is None else against
        if base not in self.options:
            raise ValueError(f"against must be one of {', '.join(self.options)}, got {base!r}")
        reference = self.scores(base)
        ratio = float(self.table["n_test"].iloc[0] / self.table["n_train"].iloc[0])
        rows = []
        for option in self.options:
            lead = self.scores(option) - reference
            n = len(lead)
            half = np.nan
            if n > 1 and option != base:
                half = stats.t.ppf(0.975, n - 1) * lead.std(ddof=1) * np.sqrt(1 / n + ratio)
            rows.append(
                {
                    "option": option, "accuracy": self.scores(option).mean(), "lead": lead.mean(),
                    "low": lead.mean() - half, "high": lead.mean() + half, "seeds": n,
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def plot(self) -> Any:
        """Accuracies, a dot a seed: a `matplotlib.figure.Figure`."""
        from etude.vision.filters.plots import plot_comparison

        return plot_comparison(self)


def compare_filters(
    X: Any,
    y: Any = None,
    options: Sequence[str] | Mapping[str, Mapping[str, Any]] = OPTIONS,
    protocol: str = "readout",
    seeds: int | Sequence[int] = 5,
    *,
    size: int = 7,
    num: int = 32,
    n_train: int | None = None,
    n_test: int | None = None,
    channels: int | None = None,
    arguments: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FilterComparison:
    """Which filters serve these images best, at equal number and size?

        found = compare_filters(data.train, options=["random", "gabor", "kmeans"], n_train=300, seeds=5)
        print(found.summary(against="random"))

    Every seed splits the images anew into training and test rows, the same for all options. Methods that learn filters
    see all images but the test rows, without labels.

    Args:
        X: images, see `to_images`, or `Examples`. y: their labels.
        options: names of banks or methods, see `FixedBankClassifier`; or name -> that estimator's arguments (of
            "readout") or {"bank": ..., "size": ..., "num": ..., "frozen": ...} (of "cnn").
        protocol: "readout": a frozen bank and a linear read-out. "cnn": a `SmallCNN` whose first layer starts from the
            bank ("frozen": True keeps it), trained by AdamW.
        seeds: how many, or which.
        size, num: of the filters, where an option does not say.
        n_train: labelled rows; half of the images if None. n_test: a quarter if None.
        channels: 1 or 3 to turn all images into grey or RGB.
        arguments: of `FixedBankClassifier`; or of "cnn": widths, strides, epochs, lr, batch_size.
        progress: called with (done, total).

    Raises:
        ValueError: if the protocol is unknown, there are no options, or too few images.
    """
    import pandas as pd

    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    named = dict(options) if isinstance(options, Mapping) else {name: {"bank": name} for name in options}
    if not named:
        raise ValueError("there must be at least one option")
    images, labels = labelled_images(X, y, channels)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, got {classes.tolist()}")
    train = len(images) // 2 if n_train is None else n_train
    test = len(images) // 4 if n_test is None else n_test
    if train < len(classes) or test < 1 or train + test > len(images):
        raise ValueError(
            f"{len(images)} images of {len(classes)} classes do not give {train} to train and {test} to test"
        )
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    run = _readout if protocol == "readout" else _cnn
    rows: list[dict[str, Any]] = []
    for seed in chosen:
        order = _stratified(codes, np.random.default_rng(seed))
        held, learned, rest = order[:test], order[test : test + train], order[test + train :]
        for name, option in named.items():
            settings = {"size": size, "num": num} | dict(arguments or {}) | dict(option)
            settings.setdefault("bank", name)
            parts = [Examples(images[index], torch.from_numpy(codes[index])) for index in (learned, held)]
            score, filters = run(parts[0], parts[1], images[rest], settings, seed, len(classes))
            rows.append(
                {
                    "option": name, "seed": seed, "accuracy": score, "filters": filters, "n_train": train,
                    "n_test": test,
                }
            )  # fmt: skip
            if progress is not None:
                progress(len(rows), len(chosen) * len(named))
    return FilterComparison(pd.DataFrame(rows), tuple(named))


def _stratified(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of which every stretch holds the classes in proportion."""
    shuffled = rng.permutation(len(codes))
    place = np.empty(len(codes))
    for code in np.unique(codes):
        members = shuffled[codes[shuffled] == code]
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(place, kind="stable")


def _readout(
    train: Examples, test: Examples, rest: Tensor, settings: dict[str, Any], seed: int, classes: int
) -> tuple[float, int]:
    model = FixedBankClassifier(random_state=seed, **settings)
    model.fit(train, unlabelled=rest if len(rest) else None)
    return model.score(test), len(model.bank_)


def _cnn(
    train: Examples, test: Examples, rest: Tensor, settings: dict[str, Any], seed: int, classes: int
) -> tuple[float, int]:
    known = {"bank", "size", "num", "frozen", "widths", "strides", "epochs", "lr", "batch_size", "bank_arguments"}
    if set(settings) - known:
        raise ValueError(f"cnn does not take {sorted(set(settings) - known)}; it takes {sorted(known)}")
    size, num = settings["size"], settings["num"]
    bank = make_bank(
        settings["bank"], torch.cat([train.inputs, rest]), size=size, num=num, seed=seed,
        **settings.get("bank_arguments", {}),
    )  # fmt: skip
    widths = list(settings.get("widths", (32, 32)))
    batch_size = settings.get("batch_size", 50)
    generator = torch.Generator().manual_seed(seed)
    model = SmallCNN(
        train.inputs.shape[1], classes, widths=[num, *widths], kernel_sizes=[size] + [3] * len(widths),
        strides=settings.get("strides", [2] * (1 + len(widths))), first_layer=bank,
        freeze_first=settings.get("frozen", False), generator=generator,
    )  # fmt: skip
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=settings.get("lr", 1e-3))
    fit(model, train, optimizer, epochs=settings.get("epochs", 10), batch_size=batch_size, generator=generator)
    return accuracy(model, test), num
