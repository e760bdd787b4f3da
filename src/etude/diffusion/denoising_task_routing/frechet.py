"""Fréchet distance between sets of images, in the features of a named network.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017,
arXiv:1706.08500. With mean and covariance of the features of each set,

    d = |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))                                                 (1)

Only distances in the features of one and the same network compare: `DigitFeatures` is not Inception-v3, and its
distances are no FID.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop import fit

__all__ = ["DigitFeatures", "frechet_distance", "train_features"]


def frechet_distance(a: Float[Tensor, "rows features"], b: Float[Tensor, "others features"]) -> float:
    """Eq. (1), in float64. The trace of the root is the sum of the roots of the eigenvalues of S_1 S_2, at least 0.

    Raises:
        ValueError: if a set has fewer than two rows, or a value is not finite.
    """
    for name, rows in (("a", a), ("b", b)):
        if len(rows) < 2:
            raise ValueError(f"{name} needs at least two rows for a covariance, got {len(rows)}")
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name} holds NaN or infinite features")
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    # S_1 S_2 has the eigenvalues of the symmetric S_1^(1/2) S_2 S_1^(1/2), which are found stably.
    values, vectors = torch.linalg.eigh(cov_a)
    half = vectors * values.clamp(min=0).sqrt()
    roots = torch.linalg.eigvalsh(half.T @ cov_b @ half).clamp(min=0).sqrt()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum()
    return max(distance.item(), 0.0)


class DigitFeatures(nn.Module):
    """A small convolutional classifier, whose 64 features before the last layer are compared.

    conv 3 x 3 to 32, ReLU, conv 3 x 3 to 32, ReLU, max-pool 2, linear to 64, ReLU, linear to the classes.

    Args:
        channels, height, width: of the images, at least 2 x 2. num_classes: classes.
    """

    def __init__(self, channels: int = 1, height: int = 8, width: int = 8, num_classes: int = 10):
        super().__init__()
        if min(height, width) < 2 or channels < 1 or num_classes < 2:
            raise ValueError(
                f"images must be at least 2 x 2 with a channel and two classes, got {channels} x {height} x {width} "
                f"and {num_classes}"
            )
        self.shape = (channels, height, width)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * (height // 2) * (width // 2), 64), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.head(self.features(images))

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch 64"]:
        """What `frechet_distance` compares."""
        if images.shape[1:] != self.shape:
            raise ValueError(f"images must have shape {self.shape}, got {tuple(images.shape[1:])}")
        return self.body(images)


def train_features(
    train: Examples, num_classes: int, *, steps: int = 800, batch_size: int = 128, seed: int = 0
) -> DigitFeatures:
    """The feature network, trained by Adam at 1e-3 from a seed of its own, so that all arms share it bit for bit.

    Args:
        train: images, of the range that the samples have, and labels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        channels, height, width = train.inputs.shape[1:]
        network = DigitFeatures(channels, height, width, num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    fit(
        network, train, optimizer, steps=steps, batch_size=min(batch_size, len(train)),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return network.eval().requires_grad_(False)
