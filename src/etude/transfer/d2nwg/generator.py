"""From a zoo to a generator of weights for data sets that it has never seen.

Soro et al., arXiv:2402.18153, section 3. The order of training is

    zoo -> autoencoder of its vectors -> [alignment of the data-set encoder] -> diffusion of latents given the data set

and of generating: encode a few labelled inputs, draw a latent, decode it, undo the scaling, load it. Vectors are
divided by one number, the standard deviation of the zoo, and latents by theirs over the whole zoo, without which the
noise schedule would not fit.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from etude.loop import ExponentialMovingAverage, cosine_schedule
from etude.transfer.d2nwg.alignment import soft_contrastive_loss
from etude.transfer.d2nwg.codec import WeightCodec
from etude.transfer.d2nwg.diffusion import ddim, ddpm, noise_loss, sample
from etude.transfer.d2nwg.selection import best_on_support
from etude.transfer.d2nwg.vae import WeightVAE
from etude.transfer.d2nwg.zoo import ModelZoo

__all__ = ["D2NWG", "Supports"]

Supports = Callable[[Int64[Tensor, "batch"], torch.Generator], Any]
"""(keys, generator) -> labelled inputs of these data sets, (batch, classes, samples, features), drawn anew at every
call; or a pair of them and a mask (batch, classes, samples)."""


class D2NWG(nn.Module):
    """Draws networks for a data set.

        model = D2NWG(codec, WeightVAE(codec.chunk_size, (24,)), DatasetEncoder(20, 64, ...), MLPDenoiser(24, 64))
        model.fit_vae(zoo, steps=700, generator=generator)
        model.fit_diffusion(zoo, supports, steps=2500, generator=generator)
        nets = model.generate(nn.Linear(20, 2), support, n=4, generator=generator)

    Args:
        codec: of the networks; if it cuts them in chunks, each chunk has its own latent, and its number a learned
            vector that is added to the condition.
        vae: of chunks; `vae.dim` is `codec.chunk_size`.
        dataset_encoder: (batch, classes, samples, features), mask -> (batch, out_dim).
        denoiser: (z, t, condition) -> noise.
        timesteps: of the diffusion.

    Raises:
        ValueError: if the sizes do not fit together.
    """

    scale: Tensor
    latent_scale: Tensor

    def __init__(
        self,
        codec: WeightCodec,
        vae: WeightVAE,
        dataset_encoder: nn.Module,
        denoiser: nn.Module,
        *,
        timesteps: int = 1024,
    ):
        super().__init__()
        if vae.dim != codec.chunk_size:
            raise ValueError(f"the autoencoder must take the codec's {codec.chunk_size} numbers, it takes {vae.dim}")
        if timesteps < 1:
            raise ValueError(f"timesteps must be positive, got {timesteps}")
        self.codec, self.timesteps = codec, timesteps
        self.vae, self.dataset_encoder, self.denoiser = vae, dataset_encoder, denoiser
        self.chunks = nn.Embedding(codec.num_chunks, int(dataset_encoder.out_dim)) if codec.num_chunks > 1 else None  # type: ignore[arg-type]
        self.register_buffer("scale", torch.zeros(()))
        self.register_buffer("latent_scale", torch.zeros(()))

    @property
    def device(self) -> torch.device:
        return self.scale.device

    def _rows(self, zoo: ModelZoo) -> Float[Tensor, "rows size"]:
        """Scaled chunks, network by network."""
        if self.scale == 0:
            raise RuntimeError("fit_vae comes first: it measures the scale of the zoo")
        return (self.codec.to_chunks(zoo.vectors.to(self.device)) / self.scale).flatten(0, 1)

    def fit_vae(
        self,
        zoo: ModelZoo,
        *,
        steps: int,
        batch_size: int = 64,
        lr: float | int = 1.115e-3,
        betas: tuple[float | int, float | int] = (0.5, 0.9),
        generator: torch.Generator,
        callbacks: Iterable[Callable[..., Any]] = (),
    ) -> list[float]:
        """Trains the autoencoder by Adam with a cosine schedule; the losses of all steps.

        Args:
            zoo: whose scale is taken down, too.
            callbacks: called as callback(step, steps, loss=...) after every step, in every stage alike.
        """
        _expect_budget(zoo, steps, batch_size)
        self.scale.fill_(zoo.scale)
        rows = self._rows(zoo)

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator).to(like)

        def loss() -> Tensor:
            chosen = torch.randint(len(rows), (batch_size,), generator=generator)
            return self.vae.loss(rows[chosen.to(rows.device)], noise)

        return _descend([self.vae], loss, steps, lr, callbacks, betas=betas)

    @torch.no_grad()
    def reconstruct(self, vectors: Float[Tensor, "n params"]) -> Float[Tensor, "n params"]:
        """What the autoencoder leaves of networks; how well they still classify is the measure of the first stage."""
        chunks = (self.codec.to_chunks(vectors.to(self.device)) / self.scale).flatten(0, 1)
        decoded = self.vae(chunks).unflatten(0, (len(vectors), self.codec.num_chunks))
        return self.codec.from_chunks(decoded * self.scale)

    @torch.no_grad()
    def latents(self, zoo: ModelZoo, batch_size: int = 1024) -> Float[Tensor, "rows *latent"]:
        """Posterior means of all chunks of all networks, unscaled."""
        return torch.cat([self.vae.encode(part)[0] for part in self._rows(zoo).split(batch_size)])

    def fit_alignment(
        self,
        zoo: ModelZoo,
        supports: Supports,
        *,
        steps: int,
        batch_size: int = 20,
        lr: float | int = 1e-3,
        temperature: float | int = 1.0,
        detach_targets: bool = True,
        normalize: bool = False,
        generator: torch.Generator,
        callbacks: Iterable[Callable[..., Any]] = (),
    ) -> list[float]:
        """Trains the data-set encoder to agree with the frozen autoencoder's latents; the losses of all steps.

        Latents are divided by their standard deviation, as they are for the diffusion.

        Raises:
            ValueError: if condition and latent have unequal numbers, or networks come in chunks.
        """
        _expect_budget(zoo, steps, batch_size)
        latents = self.latents(zoo).flatten(1)
        latents = latents / latents.std(correction=0)
        if self.codec.num_chunks > 1:
            raise ValueError(f"alignment takes whole networks, these come in {self.codec.num_chunks} chunks")
        if latents.shape[1] != self.dataset_encoder.out_dim:
            raise ValueError(
                f"alignment compares latents and conditions of one size, got {latents.shape[1]} and "
                f"{self.dataset_encoder.out_dim}"
            )

        def loss() -> Tensor:
            chosen = torch.randint(len(zoo), (batch_size,), generator=generator)
            return soft_contrastive_loss(
                latents[chosen.to(latents.device)], self._embed(supports(zoo.keys[chosen], generator)), temperature,
                detach_targets=detach_targets, normalize=normalize,
            )  # fmt: skip

        return _descend([self.dataset_encoder], loss, steps, lr, callbacks)

    def fit_diffusion(
        self,
        zoo: ModelZoo,
        supports: Supports,
        *,
        steps: int,
        batch_size: int = 64,
        noise_draws: int = 1,
        lr: float | int = 1e-3,
        warmup: int = 0,
        ema_decay: float | int | None = 0.999,
        train_encoder: bool = True,
        generator: torch.Generator,
        callbacks: Iterable[Callable[..., Any]] = (),
    ) -> list[float]:
        """Trains the denoiser, and the data-set encoder with it; the losses of all steps.

        Args:
            zoo, supports: networks, and fresh inputs of their data sets for every step.
            noise_draws: noise levels for each network of a batch: the encoder runs once for all of them.
            warmup: steps in which the learning rate rises, before the cosine.
            ema_decay: of the average of the weights, which is what is kept; None keeps the last weights.
            train_encoder: False leaves the data-set encoder as it is (aligned, or frozen).
        """
        _expect_budget(zoo, steps, batch_size)
        if noise_draws < 1:
            raise ValueError(f"noise_draws must be positive, got {noise_draws}")
        if len(zoo.keys.unique()) < 2:
            warnings.warn("the zoo knows one data set: the condition can mean nothing", stacklevel=2)
        latents = self.latents(zoo)
        self.latent_scale.copy_(latents.std(correction=0))
        if self.latent_scale == 0:
            raise ValueError("all latents are equal: the autoencoder has collapsed")
        latents = latents / self.latent_scale
        chunks, scheduler = self.codec.num_chunks, ddpm(self.timesteps)
        parts = [self.denoiser, *([] if self.chunks is None else [self.chunks])]
        if train_encoder:
            parts.append(self.dataset_encoder)

        def loss() -> Tensor:
            chosen = torch.randint(len(zoo), (batch_size,), generator=generator)
            place = torch.randint(chunks, (batch_size,), generator=generator)
            with torch.set_grad_enabled(train_encoder):
                condition = self._embed(supports(zoo.keys[chosen], generator))
            if self.chunks is not None:
                condition = condition + self.chunks(place.to(self.device))
            z = latents[(chosen * chunks + place).to(self.device)]
            z, condition = (part.repeat_interleave(noise_draws, dim=0) for part in (z, condition))
            return noise_loss(self.denoiser, scheduler, z, condition, generator)

        return _descend(parts, loss, steps, lr, callbacks, warmup=warmup, ema_decay=ema_decay)

    def _embed(self, given: Any) -> Float[Tensor, "batch out_dim"]:
        x, mask = given if isinstance(given, tuple) else (given, None)
        return self.dataset_encoder(x.to(self.device), None if mask is None else mask.to(self.device))

    @torch.no_grad()
    def sample_vectors(
        self,
        support: Float[Tensor, "sets classes samples features"],
        mask: Bool[Tensor, "sets classes samples"] | None = None,
        *,
        n: int = 1,
        steps: int = 64,
        eta: float | int = 0.0,
        sampler: str = "ddim",
        generator: torch.Generator,
    ) -> Float[Tensor, "sets n params"]:
        """`n` networks for each of several data sets, as vectors.

        Args:
            support: labelled inputs; the classes stand in the order of the output units.
            mask: which of the samples are there, if the classes have unequal numbers.
            n: networks for each.
            steps: of the sampler, a divisor of the steps of training; DDPM takes all.
            eta: of DDIM.
            sampler: "ddim" or "ddpm".
            generator: of the noise.

        Raises:
            ValueError: for a budget of no samples or no steps, another sampler, or a class without a sample.
            RuntimeError: before `fit_diffusion`.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1 network, got {n}: sampling needs a budget")
        if sampler not in ("ddim", "ddpm"):
            raise ValueError(f"sampler must be 'ddim' or 'ddpm', got {sampler!r}")
        if self.latent_scale == 0:
            raise RuntimeError("fit_diffusion comes first")
        if not bool(torch.isfinite(support).all()):
            raise ValueError("the support holds NaN or infinite values")
        chunks = self.codec.num_chunks
        condition = self._embed((support, mask)).repeat_interleave(n * chunks, dim=0)
        if self.chunks is not None:
            condition = condition + self.chunks(torch.arange(chunks, device=self.device).repeat(len(support) * n))
        scheduler: Any = ddim(self.timesteps) if sampler == "ddim" else ddpm(self.timesteps)
        z = sample(
            self.denoiser, scheduler, self.vae.latent_shape, condition, steps=steps, eta=eta, generator=generator
        )
        decoded = self.vae.decode(z * self.latent_scale) * self.scale
        return self.codec.from_chunks(decoded.unflatten(0, (len(support), n, chunks)))

    @torch.no_grad()
    def generate(
        self,
        module: nn.Module,
        support: Float[Tensor, "classes samples features"],
        mask: Bool[Tensor, "classes samples"] | None = None,
        *,
        n: int = 1,
        select: str | None = None,
        inputs: Float[Tensor, "classes samples *input"] | None = None,
        steps: int = 64,
        eta: float | int = 0.0,
        generator: torch.Generator,
    ) -> list[nn.Module]:
        """Networks for one data set, ready to use.

        Args:
            module: of the architecture; copied, not changed.
            support: labelled features of the data set, class by class; never the rows to be judged on.
            n: networks drawn.
            select: None returns all, "mean" one with the mean of their weights, "support" the one with the smallest
                cross-entropy on the support.
            inputs: what the network itself takes of the support rows; the features if None.

        Raises:
            ValueError: for another rule, and what `sample_vectors` raises.
        """
        if select not in (None, "mean", "support"):
            raise ValueError(f"select must be None, 'mean' or 'support', got {select!r}")
        masks = None if mask is None else mask[None]
        vectors = self.sample_vectors(support[None], masks, n=n, steps=steps, eta=eta, generator=generator)
        if select == "mean":
            vectors = vectors.mean(dim=1, keepdim=True)
        if select == "support":
            x = support if inputs is None else inputs
            vectors = best_on_support(module, self.codec, vectors, x[None], masks)[:, None]
        return [self.codec.load(copy.deepcopy(module), vector) for vector in vectors[0]]


def _expect_budget(zoo: ModelZoo, steps: int, batch_size: int) -> None:
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps and batch_size must be positive, got {steps} and {batch_size}")
    if len(zoo) == 0:
        raise ValueError("the zoo is empty")


def _descend(
    parts: Sequence[nn.Module],
    loss: Callable[[], Tensor],
    steps: int,
    lr: float | int,
    callbacks: Iterable[Callable[..., Any]],
    *,
    betas: tuple[float | int, float | int] = (0.9, 0.999),
    warmup: int = 0,
    ema_decay: float | int | None = None,
) -> list[float]:
    group = nn.ModuleList(parts)
    optimizer = torch.optim.AdamW(
        group.parameters(), lr=lr, betas=(float(betas[0]), float(betas[1])), weight_decay=0.0, fused=True
    )
    schedule = cosine_schedule(optimizer, steps, min(warmup, steps - 1))
    ema = None if ema_decay is None else ExponentialMovingAverage(group, ema_decay, warmup=True)
    losses = []
    callbacks = tuple(callbacks)
    for step in range(1, steps + 1):
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if ema is not None:
            ema.update()
        losses.append(value.detach())
        for callback in callbacks:
            callback(step, steps, loss=value.item())
    if ema is not None:
        ema.copy_to(group)
    return torch.stack(losses).tolist()
