"""NoProp-CT and NoProp-FM: one block that takes the time, trained at random times.

Li, Teh & Pascanu, arXiv:2503.24322, 2025, algorithms 2 and 3. In continuous time (CT) the block is trained at
t ~ U(0, 1) under a learned schedule, u_t = softmax(block(x, z_t, t)) W:

    L = E[-log p(y | z_1)] + KL(q(z_0 | y) || p(z_0)) + 1/2 eta E[SNR'(t) ||u_t - u_y||^2]                  (1)

By flow matching (FM) it learns the velocity from noise z_0 ~ N(0, I) to z_1 = u_y, v = block(x, z_t, t) W:

    L = E ||v - (z_1 - z_0)||^2,    z_t ~ N(t z_1 + (1 - t) z_0, sigma^2 I)                                (2)

and, where W is learned, E[-log p(y | z_t + (1 - t) v)] besides, without which the embeddings would collapse.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.loop.evaluation import mode
from etude.training.noprop.discrete import check_batch, parameters_of
from etude.training.noprop.embedding import LabelEmbedding, prior_kl, squared_distances
from etude.training.noprop.schedule import LearnedLabelSchedule, normal

__all__ = ["NoPropCT", "NoPropFM", "timed_logits"]

_STEPS = 1000


class _OneBlock(nn.Module, ABC):
    """What the two continuous variants share."""

    num_blocks = 1

    def __init__(self, block: nn.Module, embedding: LabelEmbedding, head: nn.Module | None):
        super().__init__()
        self.block, self.embedding = block, embedding
        self.head: nn.Module | None = head

    def blockwise_parameters(self, t: int = 1) -> list[nn.Parameter]:
        """The parameters of the one block."""
        if t != 1:
            raise ValueError(f"there is one block, t must be 1, got {t}")
        return list(self.block.parameters())

    @abstractmethod
    def predict_proba(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Class probabilities, in evaluation mode."""

    def predict(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int64[Tensor, " batch"]:
        """The most probable class of each image; arguments as for `predict_proba`."""
        return self.predict_proba(x, num_steps, generator).argmax(dim=1)

    def _times(
        self, x: Tensor, y: Tensor, t: Float[Tensor, " batch"] | None, generator: torch.Generator | None
    ) -> Float[Tensor, " batch"]:
        check_batch(self, self.block, x, y)
        if t is None:
            device = x.device if generator is None else generator.device
            return torch.rand(len(x), generator=generator, device=device, dtype=x.dtype).to(x.device)
        if t.shape != (len(x),) or not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(
                f"t must hold {len(x)} times in [0, 1], got shape {tuple(t.shape)}, {t.flatten()[:3].tolist()}"
            )
        return t


class NoPropCT(_OneBlock):
    """The continuous variant, whose schedule is learned.

        block = NoPropBlock(1, 28, 10, embed_dim=10, time_embed=64)
        model = NoPropCT(block, LabelEmbedding(10))
        model.loss(x, y)["total"].backward()
        labels = model.predict(x, num_steps=100)

    Args:
        block: forward(x, z, t) -> logits of the classes.
        embedding: the class embeddings.
        head: forward(z) -> logits of the classes, from z_1; a linear layer if None.
        schedule: `LearnedLabelSchedule()` if None.
        eta: > 0, weight of the denoising term; 1 in the paper.

    Raises:
        ValueError: if `eta` is not positive.
    """

    def __init__(
        self,
        block: nn.Module,
        embedding: LabelEmbedding,
        head: nn.Module | None = None,
        schedule: LearnedLabelSchedule | None = None,
        eta: float = 1.0,
    ):
        super().__init__(block, embedding, nn.Linear(embedding.dim, embedding.num_classes) if head is None else head)
        if not eta > 0:
            raise ValueError(f"eta must be positive, got {eta}")
        self.schedule, self.eta = LearnedLabelSchedule() if schedule is None else schedule, eta

    def shared_parameters(self) -> list[nn.Parameter]:
        """The head's, the schedule's and a learned W."""
        return parameters_of(self.head, self.schedule, self.embedding)

    def loss(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Int64[Tensor, " batch"],
        t: Float[Tensor, " batch"] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Eq. (1) and its terms: "total", "ce", "kl", "denoise".

        Args:
            x, y: a batch.
            t: times in [0, 1], one an example; drawn uniformly if None.
            generator: of times and noise; the default generator if None.
        """
        t = self._times(x, y, t, generator)
        u = self.embedding(y)
        z = _noised(u, self.schedule.alpha_bar(t), generator)
        predicted = self.block(x, z, t).softmax(dim=1) @ self.embedding.matrix()
        denoise = self.eta / 2 * (self.schedule.snr_grad(t) * (predicted - u).square().sum(dim=1)).mean()
        start, end = self.schedule.alpha_bar(torch.tensor([0.0, 1.0], device=u.device, dtype=u.dtype))
        assert self.head is not None
        ce = F.cross_entropy(self.head(_noised(u, end.expand(len(u)), generator)), y)
        kl = prior_kl(u, start)
        return {"total": ce + kl + denoise, "ce": ce, "kl": kl, "denoise": denoise}

    @torch.no_grad()
    def predict_proba(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Class probabilities after `num_steps` equal steps from noise (1000 if None), in evaluation mode."""
        with mode(self, training=False):
            times = _grid(num_steps, x.device)
            coefficients = self.schedule.step_coefficients(times[:-1], times[1:])
            a, b, c = (values.tolist() for values in coefficients)
            logits = timed_logits(self.block, x)
            z = normal((len(x), self.embedding.dim), self.embedding.weight, generator)
            for index, time in enumerate(times[:-1].tolist()):
                u = logits(z, time).softmax(dim=1) @ self.embedding.matrix()
                z = a[index] * u + b[index] * z + c[index] ** 0.5 * normal(z.shape, z, generator)
            assert self.head is not None
            return self.head(z).softmax(dim=1)


class NoPropFM(_OneBlock):
    """The flow-matching variant.

    With fixed one-hot embeddings it is known to do badly where there are a hundred classes or more; learn them then.

    Args:
        block: forward(x, z, t) -> m numbers, the coordinates of the velocity in the rows of W.
        embedding: the class embeddings.
        head: forward(z) -> logits, for the anchor of learned embeddings only; a linear layer if None.
        sigma: noise about the path, >= 0. The paper does not state it.

    Raises:
        ValueError: if `sigma` is negative.
    """

    def __init__(self, block: nn.Module, embedding: LabelEmbedding, head: nn.Module | None = None, sigma: float = 0.0):
        if embedding.learned and head is None:
            head = nn.Linear(embedding.dim, embedding.num_classes)
        super().__init__(block, embedding, head if embedding.learned else None)
        if not sigma >= 0:
            raise ValueError(f"sigma must be >= 0, got {sigma}")
        self.sigma = sigma

    def shared_parameters(self) -> list[nn.Parameter]:
        """The head's and W if it is learned, nothing otherwise."""
        return parameters_of(self.head, self.embedding)

    def velocity(
        self,
        x: Float[Tensor, "batch channels height width"],
        z: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch dim"]:
        """v, any direction in the span of the embeddings: no softmax."""
        return self.block(x, z, t) @ self.embedding.matrix()

    def loss(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Int64[Tensor, " batch"],
        t: Float[Tensor, " batch"] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """Eq. (2) and its terms: "total", "denoise" (the flow-matching error) and, if W is learned, "ce"."""
        t = self._times(x, y, t, generator)
        u = self.embedding(y)
        noise = normal(u.shape, u, generator)
        z = t[:, None] * u + (1 - t[:, None]) * noise
        if self.sigma:
            z = z + self.sigma * normal(u.shape, u, generator)
        velocity = self.velocity(x, z, t)
        denoise = (velocity - (u - noise)).square().sum(dim=1).mean()
        if self.head is None:
            return {"total": denoise, "denoise": denoise}
        ce = F.cross_entropy(self.head(z + (1 - t[:, None]) * velocity), y)
        return {"total": denoise + ce, "denoise": denoise, "ce": ce}

    @torch.no_grad()
    def transport(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """z_1 after `num_steps` Euler steps from noise (1000 if None), in evaluation mode."""
        with mode(self, training=False):
            times = _grid(num_steps, x.device)
            logits = timed_logits(self.block, x)
            z = normal((len(x), self.embedding.dim), self.embedding.weight, generator)
            for time in times[:-1].tolist():
                z = z + logits(z, time) @ self.embedding.matrix() / (len(times) - 1)
            return z

    def predict_proba(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """exp(-||z_1 - u_y||^2 / 2), normalised over the classes: the nearest embedding is the most probable."""
        z = self.transport(x, num_steps, generator)
        return (-squared_distances(z, self.embedding.matrix().detach()) / 2).softmax(dim=1)


def timed_logits(
    block: nn.Module, x: Float[Tensor, "batch channels height width"]
) -> Callable[[Tensor, float], Tensor]:
    """The block at one batch of images, as a function of z and of a time common to the batch.

    A `NoPropBlock` reads the images once; any other block runs whole at every step.
    """
    parts: Any = block
    features = parts.image_features(x) if hasattr(block, "image_features") else None

    def logits(z: Tensor, time: float) -> Tensor:
        t = torch.full((len(z),), time, device=z.device, dtype=z.dtype)
        return parts(x, z, t) if features is None else parts.classify(features, z, t)

    return logits


def _grid(num_steps: int | None, device: torch.device) -> Float[Tensor, " times"]:
    """0..1 in equal steps, double so that short steps keep their digits."""
    steps = _STEPS if num_steps is None else num_steps
    if steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {steps}")
    return torch.linspace(0, 1, steps + 1, dtype=torch.float64, device=device)


def _noised(
    u: Float[Tensor, "batch dim"], alpha_bar: Float[Tensor, " batch"], generator: torch.Generator | None
) -> Float[Tensor, "batch dim"]:
    abar = alpha_bar[:, None]
    return abar.sqrt() * u + (1 - abar).sqrt() * normal(u.shape, u, generator)
