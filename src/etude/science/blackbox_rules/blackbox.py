"""Training a black box on a wide table, and what the explainer needs of any black box.

The network sees columns at mean 0 over the training rows, divided by their standard deviation plus `sd_offset`, with
Gaussian noise on them while it trains. Networks of attention and the perceptrons minimise cross entropy. Autoencoder
classifiers first reconstruct the clean row from the noisy one; then code and head minimise together

    CE(logits, y) + alpha MSE(reconstruction, x).                                                         (3)
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import fit
from etude.science.blackbox_rules.inputs import as_labels, as_matrix, check_memory, varying_columns
from etude.science.blackbox_rules.networks import (
    DENSE_LIMIT,
    LOW_RANK,
    AutoencoderClassifier,
    ConvAutoencoder,
    DenseAutoencoder,
    Perceptron,
    SelfAttentionNet,
)

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError('blackbox_rules needs scikit-learn: pip install "etude[run]"') from error

__all__ = ["KINDS", "BlackBoxClassifier", "column_predictions", "feature_order", "predictor"]

logger = logging.getLogger(__name__)

KINDS = ("gated", "mlp", "san", "cae", "dae")
_ORDERS = ("corr", "given", "random")
_ROWS = 4_096
"""Rows of one pass through a network."""
_CLUSTERED = 4_096
"""Most columns whose correlations, d (d - 1) / 2 of them, are clustered."""

Predict = Callable[[np.ndarray], np.ndarray]


def feature_order(X: Any, order: str = "corr", generator: torch.Generator | None = None) -> np.ndarray:
    """An order of the columns in which a convolution meets related ones together.

    Args:
        X: (n, d).
        order: "corr": the leaves of an average-linkage tree on 1 - correlation; above 4,096 columns, whose pairs are
            too many, by angle in the plane of the first two principal directions. "given": as they come. "random".
        generator: of "random".

    Returns:
        (d,) numbers of the columns.

    Raises:
        ValueError: for an unknown order or a bad matrix.
    """
    if order not in _ORDERS:
        raise ValueError(f"order must be one of {', '.join(_ORDERS)}, got {order!r}")
    values, _ = as_matrix(X)
    d = values.shape[1]
    if order == "given" or d < 3:
        return np.arange(d)
    if order == "random":
        return torch.randperm(d, generator=generator).numpy()
    centred = values - values.mean(axis=0, dtype=np.float64)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-12)
    if d > _CLUSTERED:
        _, _, directions = torch.svd_lowrank(torch.from_numpy(centred), q=min(6, *centred.shape), niter=4)
        return np.argsort(np.arctan2(directions[:, 1].numpy(), directions[:, 0].numpy()), kind="stable")
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - centred.T @ centred, 0, 2)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), method="average"))


class BlackBoxClassifier(ClassifierMixin, BaseEstimator):
    """A network that classifies the rows of a wide table, d >> n if need be.

        box = BlackBoxClassifier("gated", random_state=0).fit(X, y)
        box.predict_proba(X_new)

    Args:
        kind: "gated" (a learned gate on each feature, then a perceptron), "mlp", "san" (self-attention over features),
            "cae" (convolutional autoencoder, the paper's main one) or "dae" (dense autoencoder).
        hidden: units of the perceptron. dropout: before the last layer.
        num_heads, rank: of the attention; see `SelfAttentionNet`.
        latent: length of the autoencoders' code. alpha: weight of their reconstruction in Eq. (3).
        pretrain_epochs: of reconstruction alone. order: of the columns of "cae"; see `feature_order`.
        epochs, batch_size, lr, weight_decay: of Adam. gate_lr: its rate for the attention, `lr` times 30 if None:
            at `lr` a gate would hardly move in so few steps.
        input_noise: standard deviation of the noise on standardised inputs while training.
        sd_offset: added to each column's standard deviation before dividing by it, in the unit of the columns. It
            keeps columns that hardly vary from being blown up; 0.2 suits log2 intensities, 0 columns of mixed units.
        random_state: seed of weights, batches and noise. device: where to train.
        memory: bytes that weights and optimizer may take; what is free if None.

    Attributes:
        classes_: the labels, sorted. feature_names_in_: the columns' names.
        kept_: numbers of the columns that the network sees, in its order: constant ones are left out, with a note.
        network_: the trained network. notes_: what was done without being asked.
        losses_: cross entropy (and reconstruction) of every update.
    """

    def __init__(
        self,
        kind: str = "gated",
        *,
        hidden: int = 64,
        dropout: float = 0.3,
        num_heads: int = 2,
        rank: int | None = None,
        latent: int = 64,
        alpha: float = 0.1,
        pretrain_epochs: int = 20,
        order: str = "corr",
        epochs: int = 40,
        batch_size: int = 32,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        gate_lr: float | None = None,
        input_noise: float = 0.1,
        sd_offset: float = 0.0,
        random_state: int = 0,
        device: str = "cpu",
        memory: int | None = None,
    ):
        self.kind = kind
        self.hidden = hidden
        self.dropout = dropout
        self.num_heads = num_heads
        self.rank = rank
        self.latent = latent
        self.alpha = alpha
        self.pretrain_epochs = pretrain_epochs
        self.order = order
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.gate_lr = gate_lr
        self.input_noise = input_noise
        self.sd_offset = sd_offset
        self.random_state = random_state
        self.device = device
        self.memory = memory

    def fit(self, X: Any, y: Any, progress: Callable[..., Any] | None = None) -> "BlackBoxClassifier":
        """Trains on rows.

        Args:
            X: (n, d) numbers: an array, a tensor or a data frame. y: (n,) classes of any type.
            progress: called as `progress(step, total, loss=..., lr=...)` while the classifier trains.

        Raises:
            ValueError: for text, NaN or infinite columns, one class, a class of fewer than two rows, or an option out
                of range.
            MemoryError: if the weights do not fit.
        """
        self._check_options()
        values, names = as_matrix(X)
        self.classes_, codes = as_labels(y, len(values))
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = values.shape[1]
        self.notes_: list[str] = []
        self.kept_ = varying_columns(values)
        constant = values.shape[1] - len(self.kept_)
        if constant:
            gone = np.setdiff1d(np.arange(values.shape[1]), self.kept_)
            listed = ", ".join(names[j] for j in gone[:5]) + (", ..." if constant > 5 else "")
            self._note(f"{constant} constant columns were left out: {listed}")
        self._check_memory(len(self.kept_))
        seed = int(np.random.SeedSequence([self.random_state, 2208]).generate_state(1)[0])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            if self.kind == "cae":
                self.kept_ = self.kept_[feature_order(values[:, self.kept_], self.order)]
            part = values[:, self.kept_].astype(np.float64)
            self.mean_, self.scale_ = part.mean(axis=0), part.std(axis=0) + self.sd_offset
            self._train(self.standardize(values), torch.from_numpy(codes), progress)
        return self

    def standardize(self, X: Any) -> Tensor:
        """The rows as the network sees them: (n, kept) float32 on the device."""
        values, _ = as_matrix(X, self.n_features_in_)
        part = (values[:, self.kept_] - self.mean_) / self.scale_
        return torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32)).to(self.device)

    @torch.no_grad()
    def predict_proba(self, X: Any) -> np.ndarray:
        """(n, classes) probabilities, float64."""
        check_is_fitted(self)
        parts = [self.network_(part).softmax(-1) for part in self.standardize(X).split(_ROWS)]
        return torch.cat(parts).double().cpu().numpy()

    def predict(self, X: Any) -> np.ndarray:
        """(n,) labels."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    @torch.no_grad()
    def embed(self, X: Any) -> np.ndarray:
        """(n, latent or hidden): the code of an autoencoder, else the hidden layer."""
        check_is_fitted(self)
        return torch.cat([self.network_.embed(part) for part in self.standardize(X).split(_ROWS)]).cpu().numpy()

    @torch.no_grad()
    def predict_columns(self, X: Any, features: np.ndarray, values: np.ndarray) -> np.ndarray | None:
        """Probabilities of rows with one column changed, for many columns at once; None if there is no short cut.

        A network whose first map is linear needs no pass over all d columns for that: the hidden layer moves by the
        change times one column of the weights.

        Args:
            X: (n, d). features: (m,) the column changed in each of m copies of the rows. values: (m, n) its values.

        Returns:
            (m, n, classes), or None.
        """
        front = self.network_.front()
        if front is None:
            return None
        weight, bias = front
        x = self.standardize(X)
        z = F.linear(x, weight, bias)
        place = np.full(self.n_features_in_, -1)
        place[self.kept_] = np.arange(len(self.kept_))
        out = np.empty((*values.shape, len(self.classes_)))
        per_pass = max(1, 4 * _ROWS // len(x))
        for start in range(0, len(features), per_pass):
            columns = place[features[start : start + per_pass]]
            seen = torch.from_numpy(columns >= 0).to(x.device)
            scaled = (values[start : start + per_pass] - self.mean_[columns, None]) / self.scale_[columns, None]
            index = torch.from_numpy(np.maximum(columns, 0)).to(x.device)
            change = torch.from_numpy(scaled).to(x) - x.T[index]
            moved = z + torch.where(seen[:, None], change, 0.0)[..., None] * weight.T[index][:, None, :]
            out[start : start + per_pass] = self.network_.back(moved).softmax(-1).double().cpu().numpy()
        return out

    def spread(self, importance: np.ndarray) -> np.ndarray:
        """(..., kept) as the network has them -> (..., d) as the table has them, 0 at columns that were left out."""
        out = np.zeros((*importance.shape[:-1], self.n_features_in_))
        out[..., self.kept_] = importance
        return out

    def _note(self, text: str) -> None:
        self.notes_.append(text)
        logger.warning(text)

    def _check_options(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("input_noise", "sd_offset", "alpha", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("epochs", "batch_size", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    def _check_memory(self, d: int) -> None:
        """Weights, gradients and Adam's two moments, 16 bytes a weight."""
        rank = self.rank if self.rank is not None else (d if d <= DENSE_LIMIT else LOW_RANK)
        weights = {
            "gated": d * (self.hidden + self.num_heads),
            "mlp": d * self.hidden,
            "san": d * self.hidden + self.num_heads * d * (rank if rank in (0, d) else 2 * rank),
            "cae": 2 * self.latent * 64 * -(-d // 4),
            "dae": 2 * 256 * d,
        }[self.kind]
        if self.kind == "san" and self.rank is None and d > DENSE_LIMIT:
            self._note(
                f"{d} features: attention has rank {LOW_RANK}, full matrices would take {4e-9 * d * d:.1f} GB a head"
            )
        instead = "drop columns first, or use kind='gated'" + (" or a lower rank" if self.kind == "san" else "")
        check_memory(16 * weights, f"kind {self.kind!r} on {d} features", instead, self.memory)

    def _network(self, d: int) -> nn.Module:
        classes = len(self.classes_)
        if self.kind == "mlp":
            return Perceptron(d, classes, self.hidden, self.dropout)
        if self.kind in ("gated", "san"):
            rank = 0 if self.kind == "gated" else self.rank
            if self.kind == "san" and rank is None and d > DENSE_LIMIT:
                rank = LOW_RANK
            return SelfAttentionNet(d, classes, self.num_heads, rank, self.hidden, self.dropout)
        autoencoder = ConvAutoencoder(d, self.latent) if self.kind == "cae" else DenseAutoencoder(d, self.latent)
        return AutoencoderClassifier(autoencoder, classes, dropout=self.dropout)

    def _train(self, x: Tensor, codes: Tensor, progress: Callable[..., Any] | None) -> None:
        network: Any = self._network(x.shape[1]).to(self.device)
        data = Examples(x, codes.to(x.device))
        order = torch.Generator().manual_seed(int(torch.randint(2**62, ())))

        def noisy(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
            return batch[0] + self.input_noise * torch.randn_like(batch[0]), batch[1]

        def noisy_and_clean(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
            return noisy(batch)[0], batch

        options: dict[str, Any] = {"batch_size": self.batch_size, "generator": order}
        if isinstance(network, AutoencoderClassifier):
            if self.pretrain_epochs:
                fit(
                    network.autoencoder, data, self._adam(network.autoencoder), epochs=self.pretrain_epochs,
                    loss=lambda found, target: F.mse_loss(found, target[0]), transform=noisy_and_clean, **options,
                )  # fmt: skip

            def joint(found: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
                return F.cross_entropy(found[0], target[1]) + self.alpha * F.mse_loss(found[1], target[0])

            trained: nn.Module = _Reconstructing(network)
            options |= {"loss": joint, "transform": noisy_and_clean}
        else:
            trained = network
            options |= {"transform": noisy}
        callbacks = () if progress is None else (progress,)
        found = fit(trained, data, self._adam(network), epochs=self.epochs, callbacks=callbacks, every=10, **options)
        self.losses_ = found.losses
        self.network_ = network.eval().requires_grad_(False)

    def _adam(self, network: nn.Module) -> torch.optim.Optimizer:
        fast = {"bias", "weight", "left", "right"} if isinstance(network, SelfAttentionNet) else set()
        gate = [value for name, value in network.named_parameters() if name in fast]
        rest = [value for name, value in network.named_parameters() if name not in fast]
        groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": self.weight_decay}]
        if gate:
            rate = self.gate_lr if self.gate_lr is not None else self.lr * (30 if network.rank == 0 else 1)
            groups.append({"params": gate, "lr": rate})
        return torch.optim.Adam(groups, lr=self.lr)


class _Reconstructing(nn.Module):
    """An autoencoder classifier whose forward pass gives logits and reconstruction."""

    def __init__(self, network: AutoencoderClassifier):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.reconstruct(x)


def predictor(black_box: Any) -> Predict:
    """The function (n, d) -> (n, classes) of a black box: its `predict_proba`, or itself if it can be called.

    Raises:
        TypeError: if it is neither.
    """
    if hasattr(black_box, "predict_proba"):
        return black_box.predict_proba
    if callable(black_box):
        return black_box
    raise TypeError(f"a black box has predict_proba or can be called, got {type(black_box).__name__}")


def column_predictions(black_box: Any, X: np.ndarray, features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Probabilities of m copies of the rows, in each of which one column is changed.

    Black boxes with `predict_columns` do it without passing over all columns; any other sees the copies, some
    thousands of rows at a time.

    Args:
        X: (n, d). features: (m,) the column changed in each copy. values: (m, n) its values.

    Returns:
        (m, n, classes) float64.
    """
    quick = getattr(black_box, "predict_columns", None)
    found = None if quick is None else quick(X, features, values)
    if found is not None:
        return found
    predict, (n, d) = predictor(black_box), X.shape
    per_pass = max(1, min(_ROWS, 2**26 // d) // n)
    parts = []
    for start in range(0, len(features), per_pass):
        chosen = features[start : start + per_pass]
        copies = np.repeat(X[None], len(chosen), axis=0)
        copies[np.arange(len(chosen)), :, chosen] = values[start : start + per_pass]
        parts.append(np.asarray(predict(copies.reshape(-1, d))).reshape(len(chosen), n, -1))
    return np.concatenate(parts)
