"""Forward-forward: layers that learn each for itself, without back-propagation.

Hinton, "The forward-forward algorithm: some preliminary investigations", 2022, arXiv:2212.13345. The label stands,
one-hot, before the features: the true one makes a positive example, a wrong one, drawn uniformly, a negative. Each
layer scales its input to length sqrt(width), so that it cannot read off the goodness of the one before, and learns to
make its own goodness g, the sum of its squared activities, exceed a threshold theta for positive examples alone:

    loss = softplus(theta - g+) + softplus(g- - theta),   theta = the layer's width                                (1)

The predicted label is the one whose goodness, summed over layers, is largest.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["ForwardForwardLayer", "ForwardForwardTrainer", "ridge_readout"]


class ForwardForwardLayer(nn.Module):
    """relu(W x sqrt(width) / |x| + b)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        return F.relu(self.linear(F.normalize(x, dim=-1) * x.shape[-1] ** 0.5))

    def loss(self, positive: Float[Tensor, "batch out"], negative: Float[Tensor, "batch out"]) -> Tensor:
        """Eq. (1), the mean over the batch, from the layer's activities."""
        threshold = positive.shape[-1]
        return (F.softplus(threshold - goodness(positive)) + F.softplus(goodness(negative) - threshold)).mean()


def goodness(activities: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch"]:
    """The sum of squares."""
    return activities.square().sum(-1)


class ForwardForwardTrainer:
    """A classifier trained layer by layer, in the form of scikit-learn's.

        model = ForwardForwardTrainer(64, 10)
        print((model.fit(x, y, epochs=60).predict(x_test) == y_test).float().mean())

    Args:
        in_features: of an example.
        num_classes: labels 0 .. num_classes - 1.
        hidden: widths of the layers.
        lr: of each layer's own Adam.
        generator: of the order of the examples and of wrong labels; a fresh one of seed 0 if None.

    Raises:
        ValueError: for sizes below 1, or fewer than two classes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden: Sequence[int] = (256, 256),
        *,
        lr: float | int = 3e-3,
        generator: torch.Generator | None = None,
    ):
        if in_features < 1 or num_classes < 2 or not hidden or min(hidden) < 1:
            raise ValueError(
                f"need in_features >= 1, two classes and layers of width >= 1, got {in_features}, {num_classes} and "
                f"{tuple(hidden)}"
            )
        self.in_features, self.num_classes = in_features, num_classes
        widths = [num_classes + in_features, *hidden]
        self.layers = nn.ModuleList(ForwardForwardLayer(one, two) for one, two in pairwise(widths))
        self.optimizers = [torch.optim.Adam(layer.parameters(), lr=float(lr)) for layer in self.layers]
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def labelled(self, x: Float[Tensor, "n features"], y: Int[Tensor, "n"]) -> Float[Tensor, "n longer"]:
        """The one-hot label and the features."""
        return torch.cat([F.one_hot(y, self.num_classes).to(x.dtype), x], dim=1)

    def fit(
        self,
        x: Float[Tensor, "n features"],
        y: Int[Tensor, "n"],
        *,
        epochs: int = 60,
        batch_size: int = 100,
        callback: Callable[[int, int], None] | None = None,
    ) -> "ForwardForwardTrainer":
        """Trains all layers at once, each on its own loss; the last batch of an epoch may be smaller.

        Args:
            x, y: examples and their labels.
            epochs: passes over the examples.
            batch_size: positive, and as many negative, examples of an update.
            callback: called as `callback(epoch, epochs)` after each epoch.

        Raises:
            ValueError: for other features, labels out of range, no examples, or numbers out of range.
        """
        if x.shape[1] != self.in_features or len(x) == 0:
            raise ValueError(f"expected examples of {self.in_features} features, got shape {tuple(x.shape)}")
        if int(y.min()) < 0 or int(y.max()) >= self.num_classes:
            raise ValueError(f"labels must lie in 0..{self.num_classes - 1}, got {int(y.min())}..{int(y.max())}")
        if epochs < 0 or batch_size < 1:
            raise ValueError(f"need epochs >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
        for epoch in range(1, epochs + 1):
            order = torch.randperm(len(x), generator=self.generator).to(x.device)
            for rows in order.split(batch_size):
                off = torch.randint(1, self.num_classes, (len(rows),), generator=self.generator).to(y.device)
                wrong = (y[rows] + off) % self.num_classes
                self.update(self.labelled(x[rows], y[rows]), self.labelled(x[rows], wrong))
            if callback is not None:
                callback(epoch, epochs)
        return self

    def update(self, positive: Float[Tensor, "n longer"], negative: Float[Tensor, "n longer"]) -> list[float]:
        """One update of every layer; their losses before it."""
        losses = []
        for layer, optimizer in zip(self.layers, self.optimizers):
            positive, negative = layer(positive.detach()), layer(negative.detach())
            loss = layer.loss(positive, negative)  # type: ignore[operator]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()  # type: ignore[no-any-return]

    @torch.no_grad()
    def goodness(self, x: Float[Tensor, "n features"]) -> Float[Tensor, "n classes"]:
        """Of every label, summed over layers."""
        every = torch.eye(self.num_classes, dtype=x.dtype, device=x.device)
        h = torch.cat([every.expand(len(x), -1, -1), x[:, None].expand(-1, self.num_classes, -1)], dim=-1)
        total = torch.zeros(h.shape[:2], dtype=x.dtype, device=x.device)
        for layer in self.layers:
            h = layer(h)
            total = total + goodness(h)
        return total

    def predict(self, x: Float[Tensor, "n features"]) -> Int[Tensor, "n"]:
        """The label of largest goodness."""
        return self.goodness(x).argmax(1)


@torch.no_grad()
def ridge_readout(
    model: ForwardForwardTrainer,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    penalties: Sequence[float] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0),
) -> float:
    """Test accuracy of ridge regression on the activities of all layers, as they are, in float64.

    No label is given: each has 1 / classes. The penalty is the best on `val`; then `train` and `val` are fitted
    together.

    Args:
        model: whose layers make the features.
        train, val, test: examples and labels.
        penalties: to choose from.
    """

    def features(x: Tensor) -> Tensor:
        h = torch.cat([torch.full((len(x), model.num_classes), 1 / model.num_classes).to(x), x], dim=1)
        found = []
        for layer in model.layers:
            h = layer(h)
            found.append(h)
        return torch.cat([*found, torch.ones_like(h[:, :1])], dim=1).double()

    (a, y), (a_val, y_val), (a_test, y_test) = ((features(x), labels) for x, labels in (train, val, test))

    def right(a: Tensor, y: Tensor, penalty: float, a_test: Tensor, y_test: Tensor) -> float:
        eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        targets = F.one_hot(y, model.num_classes).to(a)
        weights = torch.linalg.solve(a.T @ a + penalty * eye, a.T @ targets)
        return float(((a_test @ weights).argmax(1) == y_test).double().mean())

    penalty = max(penalties, key=lambda one: right(a, y, one, a_val, y_val))
    return right(torch.cat([a, a_val]), torch.cat([y, y_val]), penalty, a_test, y_test)
