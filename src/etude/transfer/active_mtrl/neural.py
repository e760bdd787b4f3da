"""The same protocol with a learned encoder: one network for all tasks, a linear head without bias for each.

    y_t = <w_t, phi(x)>,  phi and W by SGD on the pooled samples of all tasks, each sample of equal weight       (1)

The head of a new task is a ridge regression on phi. In the paper's experiments on corrupted digits phi is a
convolutional network; here it is any module.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from etude.transfer.active_mtrl.linear import head_noise

__all__ = ["NeuralMTR", "digit_encoder"]


def digit_encoder(size: int = 28, features: int = 50) -> nn.Sequential:
    """Two convolutions and a linear layer for grey images given as rows of size^2 pixels.

    Args:
        size: side of the images, divisible by 4. features: of the output.
    """
    if size % 4:
        raise ValueError(f"size must be divisible by 4, got {size}")
    return nn.Sequential(
        nn.Unflatten(1, (1, size, size)),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * (size // 4) ** 2, features), nn.ReLU(),
    )  # fmt: skip


class NeuralMTR(nn.Module):
    """A shared encoder and a linear head for each task, Eq. (1); the protocol of `LinearMTR`.

        model = NeuralMTR(digit_encoder(28), num_tasks=60, feature_dim=50)
        ActiveMTRL(model, "l1", n_explore=50, budget=10_000).run(oracle, X, y)

    Every `fit` begins at the weights with which the model was made, so that all strategies and all rounds start alike.

    Args:
        encoder: (n, ...) -> (n, feature_dim).
        num_tasks: heads. feature_dim: of the encoder's output.
        steps, batch_size, lr: of Adam on the pooled samples.
        ridge: of the head of a new task, relative to the mean of the squared features.
        generator: of the heads and the order of samples.

    Raises:
        ValueError: if a number is below 1 or not positive.
    """

    def __init__(
        self,
        encoder: nn.Module,
        num_tasks: int,
        feature_dim: int,
        *,
        steps: int = 500,
        batch_size: int = 128,
        lr: float | int = 1e-3,
        ridge: float | int = 1e-2,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if min(num_tasks, feature_dim, steps, batch_size) < 1 or not lr > 0 or ridge < 0:
            raise ValueError(
                "num_tasks, feature_dim, steps and batch_size must be at least 1, lr positive and ridge not negative, "
                f"got {num_tasks}, {feature_dim}, {steps}, {batch_size}, {lr} and {ridge}"
            )
        self.encoder = encoder
        heads = torch.randn(num_tasks, feature_dim, generator=generator) / feature_dim**0.5
        self.heads = nn.Parameter(heads)
        self.steps, self.batch_size, self.lr, self.ridge = steps, batch_size, lr, ridge
        self.generator = generator
        self._first = copy.deepcopy({name: value.detach() for name, value in self.state_dict().items()})

    @property
    def heads_(self) -> Float[np.ndarray, "features tasks"]:
        """W, in float64."""
        return self.heads.detach().double().cpu().numpy().T

    def forward(self, x: Float[Tensor, "n *shape"], tasks: Tensor) -> Float[Tensor, "n"]:
        """The label of each sample, by the head of its own task.

        Args:
            x: samples. tasks: int64 (n,).
        """
        return (self.encoder(x) * self.heads[tasks]).sum(dim=1)

    def fit(self, X: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> "NeuralMTR":
        """Trains from the first weights on all samples of all tasks.

        Args:
            X: for each task (n_t, ...). y: for each task (n_t,).

        Raises:
            ValueError: if there are not as many tasks as heads.
        """
        if len(X) != len(self.heads) or len(y) != len(self.heads):
            raise ValueError(f"there are {len(self.heads)} heads, got {len(X)} tasks and {len(y)} lists of labels")
        device = self.heads.device
        inputs = torch.cat([torch.as_tensor(np.asarray(rows), dtype=torch.float32) for rows in X]).to(device)
        labels = torch.cat([torch.as_tensor(np.asarray(aims), dtype=torch.float32) for aims in y]).to(device)
        counts = torch.tensor([len(np.asarray(aims)) for aims in y])
        tasks = torch.repeat_interleave(torch.arange(len(counts)), counts).to(device)
        self.load_state_dict(self._first)
        self.train()
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        place, order = len(labels), torch.arange(0)
        for _ in range(self.steps):
            if place + self.batch_size > len(labels):
                order, place = torch.randperm(len(labels), generator=self.generator).to(device), 0
            rows = order[place : place + self.batch_size]
            place += self.batch_size
            optimizer.zero_grad()
            F.mse_loss(self(inputs[rows], tasks[rows]), labels[rows]).backward()
            optimizer.step()
        return self

    def fit_head(self, X: ArrayLike, y: ArrayLike) -> Float[np.ndarray, "features"]:
        """Ridge regression of a new task's labels on the encoder's features.

        Args:
            X: (n, ...). y: (n,).
        """
        features = self._features(X)
        gram = features.T @ features
        penalty = self.ridge * np.trace(gram) / len(gram)
        right = features.T @ np.asarray(y, dtype=np.float64)
        return np.linalg.lstsq(gram + penalty * np.eye(len(gram)), right, rcond=None)[0]

    def head_noise(self, X: ArrayLike, y: ArrayLike, head: ArrayLike) -> float:
        """Standard error of an entry of a head that was fitted to these samples, root mean square over entries.

        Args:
            X: (n, ...). y: (n,). head: (features,).
        """
        features = self._features(X)
        penalty = self.ridge * float(np.square(features).sum()) / features.shape[1]
        residuals = np.asarray(y, dtype=np.float64) - features @ np.asarray(head, dtype=np.float64)
        return head_noise(features, residuals, penalty)

    def predict(self, X: ArrayLike, task: Any) -> Float[np.ndarray, "n"]:
        """Labels at X by the head of a task, or by a head that is given.

        Args:
            X: (n, ...). task: number of a task, or a head (features,).
        """
        head = self.heads_[:, task] if isinstance(task, int) else np.asarray(task, dtype=np.float64)
        return self._features(X) @ head

    @torch.no_grad()
    def _features(self, X: ArrayLike) -> np.ndarray:
        self.eval()
        rows = torch.as_tensor(np.asarray(X), dtype=torch.float32, device=self.heads.device)
        return torch.cat([self.encoder(part) for part in rows.split(1024)]).double().cpu().numpy()
