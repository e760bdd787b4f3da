"""The whole way in one object: labelled rows in, heads for unseen classes out."""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.transfer.d2nwg.codec import WeightCodec
from etude.transfer.d2nwg.diffusion import MLPDenoiser, UNetDenoiser
from etude.transfer.d2nwg.encoders import DatasetEncoder
from etude.transfer.d2nwg.features import PrincipalFeatures
from etude.transfer.d2nwg.generator import D2NWG
from etude.transfer.d2nwg.symmetry import remove_gauge
from etude.transfer.d2nwg.tasks import TaskSampler, as_support
from etude.transfer.d2nwg.vae import WeightVAE
from etude.transfer.d2nwg.zoo import ModelZoo, batched_accuracy, initial_weights, train_networks

__all__ = ["GeneratedClassifier", "HeadGenerator"]

_SIZES: dict[str, dict[str, Any]] = {
    "compact": {
        "encoder": {"dim": 64, "depth": 1, "num_inducing": None, "depth_after": 0, "class_dim": 64},
        "loss": {"l1_weight": 0.0, "mse_weight": 1.0}, "betas": (0.9, 0.999),
    },
    "published": {"encoder": {}, "loss": {}, "betas": (0.5, 0.9)},
}  # fmt: skip


class HeadGenerator:
    """Learns to generate linear classifiers for k-way tasks, from rows of many classes.

        generator = HeadGenerator(ways=2, seed=0).fit(data.train.inputs, data.train.targets)
        classifier = generator.adapt(few_inputs, few_labels)             # two classes that it has never seen
        classifier.score(more_inputs, more_labels)

    `fit` makes the zoo (thousands of heads on frozen features, trained in one optimisation), the autoencoder and the
    diffusion; `adapt` draws weights without a gradient step.

    Args:
        ways: classes of a task.
        dim: principal components, if `features` is None.
        features: frozen extractor, inputs -> (n, features); principal components of the rows of `fit` if None.
        shots: rows of each class that the data-set encoder sees.
        zoo_size, zoo_shots, zoo_steps, zoo_lr, zoo_l2: heads, rows of each class for each, and their training, from
            zero; a class with fewer rows gives what it has.
        latent_dim: numbers of a latent of the compact form; half the weights, and 8 at least, if None.
        vae_steps, vae_lr: training of the autoencoder.
        steps, batch_size, noise_draws, lr, warmup, ema_decay: training of the diffusion.
        timesteps: of the diffusion; `sample_steps` of the sampler, a divisor.
        class_order: of `DatasetEncoder`.
        align_steps, align_batch, align_lr: of the contrastive alignment before the diffusion; no steps leave it out.
        train_encoder: whether the diffusion trains the data-set encoder.
        arch: "compact" (perceptrons) or "published" (convolutional autoencoder, U-Net, latents of 1,024).
        seed: of everything that `fit` draws.
        device: where to train.

    Attributes:
        zoo, model: the `ModelZoo` and the `D2NWG`.
        sampler, tasks: the `TaskSampler`, and the classes of each network of the zoo, by its key.
        losses: of the stages, by name.
    """

    def __init__(
        self,
        ways: int = 2,
        *,
        dim: int = 20,
        features: Callable[[Tensor], Tensor] | None = None,
        shots: int = 5,
        zoo_size: int = 4000,
        zoo_shots: int = 15,
        zoo_steps: int = 40,
        zoo_lr: float | int = 0.05,
        zoo_l2: float | int = 1e-3,
        latent_dim: int | None = None,
        vae_steps: int = 700,
        vae_lr: float | int = 2e-3,
        steps: int = 2000,
        batch_size: int = 32,
        noise_draws: int = 4,
        lr: float | int = 2e-3,
        warmup: int = 0,
        ema_decay: float | int | None = None,
        timesteps: int = 1024,
        sample_steps: int = 64,
        class_order: str = "position",
        align_steps: int = 0,
        align_batch: int = 20,
        align_lr: float | int = 1e-3,
        train_encoder: bool = True,
        arch: str = "compact",
        seed: int = 0,
        device: str = "cpu",
    ):
        if arch not in _SIZES:
            raise ValueError(f"arch must be one of {', '.join(_SIZES)}, got {arch!r}")
        for name, value in (("shots", shots), ("zoo_size", zoo_size), ("zoo_shots", zoo_shots)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.ways, self.dim, self.features, self.shots = ways, dim, features, shots
        self.zoo_size, self.zoo_shots, self.zoo_steps, self.zoo_lr, self.zoo_l2 = (
            zoo_size, zoo_shots, zoo_steps, zoo_lr, zoo_l2,
        )  # fmt: skip
        self.latent_dim, self.vae_steps, self.vae_lr = latent_dim, vae_steps, vae_lr
        self.steps, self.batch_size, self.noise_draws = steps, batch_size, noise_draws
        self.lr, self.warmup, self.ema_decay = lr, warmup, ema_decay
        self.timesteps, self.sample_steps, self.class_order = timesteps, sample_steps, class_order
        self.align_steps, self.align_batch, self.align_lr = align_steps, align_batch, align_lr
        self.train_encoder = train_encoder
        self.arch, self.seed, self.device = arch, seed, device
        self.losses: dict[str, list[float]] = {}

    def fit(
        self,
        x: Float[Tensor, "n *entries"],
        labels: Any,
        *,
        column: Any = None,
        only: Sequence[Any] | None = None,
        callbacks: Iterable[Callable[..., Any]] = (),
    ) -> "HeadGenerator":
        """All stages, on rows of the classes that may be seen.

        Args:
            x: inputs, one row each.
            labels: class of each row, whole numbers or strings.
            column: value of a column for each row: tasks take their classes from one value. Any classes meet if None.
            only: the labels, or values of the column, that may be seen; all if None.
            callbacks: called as callback(step, steps, loss=...) in the training of autoencoder and diffusion.

        Raises:
            ValueError: if a task would have one class, or a class fewer than two rows.
        """
        callbacks = tuple(callbacks)
        self.make_zoo(x, labels, column=column, only=only)
        self.fit_vae(callbacks)
        return self.fit_diffusion(callbacks)

    def _generator(self, stage: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + stage) % 2**63)

    def make_zoo(
        self, x: Tensor, labels: Any, *, column: Any = None, only: Sequence[Any] | None = None
    ) -> "HeadGenerator":
        """The first stage: features, tasks, and a head for each, without the gauge."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError("x holds NaN or infinite values")
        generator = self._generator(1)
        self.sampler = TaskSampler(labels, self.ways, column=column, only=only)
        fewest = int(self.sampler.counts.min())
        if fewest < 2:
            poor = self.sampler.classes[int(self.sampler.counts.argmin())]
            raise ValueError(f"class {poor!r} has one row; every class needs two or more")
        seen = self.sampler.all_rows
        if self.features is None:
            self.features = PrincipalFeatures(self.dim).fit(x[seen])
        features = self.features(x[seen]).detach().float()
        self.rows = torch.zeros(len(x), features.shape[1])
        self.rows[seen] = features
        self.tasks = self.sampler.draw(self.zoo_size, generator)
        chosen = self.sampler.rows(self.tasks, min(self.zoo_shots, fewest), generator)
        with torch.random.fork_rng(devices=[]):  # its values do not matter, and no one else's draws shall move
            self.head = nn.Linear(features.shape[1], self.ways)
        self.codec = WeightCodec(self.head)
        inputs = self.rows[chosen].flatten(1, 2)
        targets = outputs_of(self.ways, chosen.shape[2]).expand(self.zoo_size, -1)
        start = initial_weights(self.head, self.codec, self.zoo_size, kind="zero", generator=generator)
        vectors = train_networks(
            self.head, self.codec, start, inputs, targets, steps=self.zoo_steps, lr=self.zoo_lr, l2=self.zoo_l2
        )
        vectors = remove_gauge(vectors, self.codec)
        self.zoo = ModelZoo(self.codec)
        self.zoo.add(
            vectors, torch.arange(self.zoo_size),
            accuracy=batched_accuracy(self.head, self.codec, vectors, inputs, targets),
        )  # fmt: skip
        self.class_means = inputs.unflatten(1, (self.ways, -1)).mean(dim=2)
        self.model = self._model().to(self.device)
        return self

    def _model(self) -> D2NWG:
        sizes, width, weights = _SIZES[self.arch], self.codec.chunk_size, self.codec.num_params
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self._generator(2))))
            # The condition is as long as the latent, as published: alignment compares the two.
            if self.arch == "compact":
                size = self.latent_dim or max(8, weights // 2)
                vae = WeightVAE(width, (size,), **sizes["loss"])
                denoiser: nn.Module = MLPDenoiser(size, size)
            else:
                size = 1024
                vae = WeightVAE(width, (4, 16, 16), arch="conv", **sizes["loss"])
                denoiser = UNetDenoiser((4, 16, 16), size)
            encoder = DatasetEncoder(
                self.head.in_features, size, num_classes=self.ways, class_order=self.class_order, **sizes["encoder"]
            )
            return D2NWG(self.codec, vae, encoder, denoiser, timesteps=self.timesteps)

    def branch(self, **options: Any) -> "HeadGenerator":
        """A copy with other options, which shares the zoo and takes over what is trained, but the data-set encoder.

        Serves ablations: `generator.branch(class_order="none").fit_diffusion()`.

        Raises:
            ValueError: if an option is none of `class_order`, `align_steps`, `train_encoder`, `steps` and `lr`.
        """
        unknown = sorted(options.keys() - {"class_order", "align_steps", "train_encoder", "steps", "lr"})
        if unknown:
            raise ValueError(f"a branch does not change {', '.join(unknown)}")
        other = copy.copy(self)
        vars(other).update(options, losses=dict(self.losses))
        other.model = other._model().to(self.device)
        other.model.vae.load_state_dict(self.model.vae.state_dict())
        other.model.scale.copy_(self.model.scale)
        return other

    def fit_vae(self, callbacks: Iterable[Callable[..., Any]] = ()) -> "HeadGenerator":
        """The second stage."""
        self.losses["vae"] = self.model.fit_vae(
            self.zoo, steps=self.vae_steps, lr=self.vae_lr, betas=_SIZES[self.arch]["betas"],
            generator=self._generator(3), callbacks=callbacks,
        )  # fmt: skip
        return self

    def fit_diffusion(self, callbacks: Iterable[Callable[..., Any]] = ()) -> "HeadGenerator":
        """Alignment, if there are steps for it, and the diffusion."""
        if self.align_steps:
            self.losses["alignment"] = self.model.fit_alignment(
                self.zoo, self.supports, steps=self.align_steps, batch_size=self.align_batch, lr=self.align_lr,
                generator=self._generator(4),
            )  # fmt: skip
        self.losses["diffusion"] = self.model.fit_diffusion(
            self.zoo, self.supports, steps=self.steps, batch_size=self.batch_size, noise_draws=self.noise_draws,
            lr=self.lr, warmup=self.warmup, ema_decay=self.ema_decay, train_encoder=self.train_encoder,
            generator=self._generator(5), callbacks=callbacks,
        )  # fmt: skip
        return self

    def supports(
        self, keys: Int64[Tensor, "batch"], generator: torch.Generator
    ) -> Float[Tensor, "batch ways shots features"]:
        """Fresh rows of the data sets of networks of the zoo."""
        shots = min(self.shots, int(self.sampler.counts.min()))
        return self.rows[self.sampler.rows(self.tasks[keys], shots, generator)]

    def vectors_for(
        self, support: Float[Tensor, "sets ways shots features"], *, generator: torch.Generator
    ) -> Float[Tensor, "sets params"]:
        """A head for each of many supports of features, as vectors."""
        return self.model.sample_vectors(
            support.to(self.device), steps=self.sample_steps, generator=generator
        )[:, 0].cpu()  # fmt: skip

    def adapt(
        self,
        x: Float[Tensor, "n *entries"],
        labels: Any,
        *,
        n: int = 1,
        select: str | None = "support",
        seed: int = 0,
    ) -> "GeneratedClassifier":
        """A classifier for the classes of a few labelled rows.

        Args:
            x: inputs.
            labels: their classes, `ways` different ones; sorted, they are the output units.
            n: heads drawn; `select`: how one of them is chosen, "support" or "mean".
            seed: of the noise.

        Raises:
            ValueError: if there is one class, another number of classes than `ways`, or no budget.
        """
        if not hasattr(self, "zoo") or "diffusion" not in self.losses:
            raise RuntimeError("fit comes first")
        if select not in ("support", "mean"):
            raise ValueError(f"select must be 'support' or 'mean', got {select!r}")
        given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        classes = sorted(set(given))
        if len(classes) != self.ways:
            what = "one class" if len(classes) == 1 else f"{len(classes)} classes"
            raise ValueError(f"the task has {what} ({classes[:5]}); this generator makes {self.ways}-way heads")
        assert self.features is not None
        numbers = torch.tensor([classes.index(label) for label in given])
        support, mask = as_support(self.features(x).detach().float(), numbers, self.ways)
        (head,) = self.model.generate(
            self.head, support.to(self.device), mask.to(self.device), n=n, select=select, steps=self.sample_steps,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return GeneratedClassifier(self.features, head.cpu(), classes)


class GeneratedClassifier:
    """Features, a generated head, and the labels of its outputs.

    Attributes:
        head: the `nn.Linear`, which may be trained further.
        classes: label of each output unit.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], head: nn.Module, classes: Sequence[Any]):
        self.features, self.head, self.classes = features, head, list(classes)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "n *entries"]) -> list[Any]:
        """Label of each row."""
        return [self.classes[index] for index in self.head(self.features(x)).argmax(dim=1).tolist()]

    def score(self, x: Float[Tensor, "n *entries"], labels: Any) -> float:
        """Share of right answers.

        Raises:
            ValueError: if a label is none of the head's classes.
        """
        given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        unseen = sorted(set(given) - set(self.classes), key=str)
        if unseen:
            raise ValueError(f"labels {unseen[:3]} are none of the head's classes {self.classes}")
        if not given:
            raise ValueError("there are no rows to judge")
        return sum(a == b for a, b in zip(self.predict(x), given)) / len(given)


def outputs_of(ways: int, shots: int) -> Int64[Tensor, "rows"]:
    """The output unit of each row of a flattened (ways, shots) support."""
    return torch.arange(ways).repeat_interleave(shots)
