"""NoProp-DT: T blocks, each trained by itself to undo one step of noise on the label.

Li, Teh & Pascanu, arXiv:2503.24322, 2025, algorithm 1. Block t sees an image x and z_{t-1} ~ q(z_{t-1} | y), drawn
directly: no other block runs, forward or backward. With u_t = softmax(block_t(x, z_{t-1})) W its loss is

    L_t = E[-log p(y | z_T)] + KL(q(z_0 | y) || p(z_0)) + T/2 eta (SNR(t) - SNR(t - 1)) E ||u_t - u_y||^2   (1)

with the squared norm summed over the dimensions. The first two terms train the head and W alone; the head reads noised
true embeddings, never what a block puts out. The mean of L_t over t is the training objective, so a step may take every
t in turn or draw one. At inference z_0 ~ N(0, I) passes through the blocks by the steps of the schedule.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.loop.evaluation import mode
from etude.training.noprop.embedding import LabelEmbedding, prior_kl
from etude.training.noprop.schedule import CosineLabelSchedule, LabelSchedule, normal

__all__ = ["NoPropDT", "check_batch", "parameters_of"]


class NoPropDT(nn.Module):
    """The discrete variant.

        blocks = [NoPropBlock(1, 28, 10, embed_dim=10) for _ in range(10)]
        model = NoPropDT(blocks, LabelEmbedding(10))
        loss = model.loss(x, y, t=3)["total"]  # touches block 3, the head and a learned W only
        labels = model.predict(x)

    Give every block an optimizer of its own, or set gradients to None before each step: an optimizer over all blocks
    that saw zeros instead would let weight decay and momentum move blocks that were not trained.

    Args:
        blocks: the T blocks in order: modules with forward(x, z) -> logits of the classes.
        embedding: the class embeddings.
        head: forward(z) -> logits of the classes, from z_T; a linear layer if None. See also `RadialHead`.
        schedule: of T steps; `CosineLabelSchedule(T)` if None.
        eta: > 0, weight of the denoising term; 0.1 in the paper.

    Raises:
        ValueError: if there are no blocks, the schedule has another number of steps, or `eta` is not positive.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        embedding: LabelEmbedding,
        head: nn.Module | None = None,
        schedule: LabelSchedule | None = None,
        eta: float = 0.1,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        if not len(self.blocks):
            raise ValueError("blocks must hold at least one block, got none")
        self.schedule = CosineLabelSchedule(len(self.blocks)) if schedule is None else schedule
        if self.schedule.num_steps != len(self.blocks):
            raise ValueError(f"schedule has {self.schedule.num_steps} steps for {len(self.blocks)} blocks")
        if not eta > 0:
            raise ValueError(f"eta must be positive, got {eta}")
        self.embedding, self.eta = embedding, eta
        self.head = nn.Linear(embedding.dim, embedding.num_classes) if head is None else head

    @property
    def num_blocks(self) -> int:
        """T."""
        return len(self.blocks)

    def blockwise_parameters(self, t: int) -> list[nn.Parameter]:
        """The parameters of block t = 1..T."""
        self.schedule.check(t)
        return list(self.blocks[t - 1].parameters())

    def shared_parameters(self) -> list[nn.Parameter]:
        """The parameters that the losses of all blocks train: the head's and a learned W."""
        return parameters_of(self.head, self.embedding)

    def denoise(
        self, x: Float[Tensor, "batch channels height width"], z: Float[Tensor, "batch dim"], t: int
    ) -> Float[Tensor, "batch dim"]:
        """Block t's prediction of the clean embeddings, a convex combination of the rows of W."""
        self.schedule.check(t)
        return self.blocks[t - 1](x, z).softmax(dim=1) @ self.embedding.matrix()

    def denoising_loss(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Int64[Tensor, " batch"],
        t: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The third term of Eq. (1), the only one that trains block t."""
        self.schedule.check(t)
        check_batch(self, self.blocks[t - 1], x, y)
        u = self.embedding(y)
        error = (self.denoise(x, self.schedule.noised(u, t - 1, generator), t) - u).square().sum(dim=1).mean()
        return self.num_blocks / 2 * self.eta * self.schedule.snr_gain(t) * error

    def head_loss(
        self, y: Int64[Tensor, " batch"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The first two terms of Eq. (1), cross-entropy of the head and divergence from the prior: no block in them."""
        u = self.embedding(y)
        z = self.schedule.noised(u, self.num_blocks, generator)
        return F.cross_entropy(self.head(z), y), prior_kl(u, self.schedule.alpha_bar[0].item())

    def loss(
        self,
        x: Float[Tensor, "batch channels height width"],
        y: Int64[Tensor, " batch"],
        t: int,
        generator: torch.Generator | None = None,
        head_generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """L_t of Eq. (1) and its terms: "total", "ce", "kl", "denoise".

        Args:
            x, y: a batch.
            t: the block, 1..T.
            generator: of the noise; the default generator if None.
            head_generator: of the head's noise; `generator` if None.

        Raises:
            ValueError: if t or a label is out of range, sizes do not fit, or a block with batch norm gets one image.
        """
        denoise = self.denoising_loss(x, y, t, generator)
        ce, kl = self.head_loss(y, generator if head_generator is None else head_generator)
        return {"total": ce + kl + denoise, "ce": ce, "kl": kl, "denoise": denoise}

    @torch.no_grad()
    def predict_proba(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch classes"]:
        """Class probabilities after the chain of all blocks, in evaluation mode; noise is injected as in training.

        Args:
            x: images.
            num_steps: None or T: unlike the continuous variants, this one has a step for each block.
            generator: of the noise; the default generator if None.
        """
        if num_steps not in (None, self.num_blocks):
            raise ValueError(f"num_steps must be {self.num_blocks}, one for each block, got {num_steps}")
        with mode(self, training=False):
            z = normal((len(x), self.embedding.dim), self.embedding.weight, generator)
            for t in range(1, self.num_blocks + 1):
                z = self.schedule.step(t, z, self.denoise(x, z, t), generator)
            return self.head(z).softmax(dim=1)

    def predict(
        self,
        x: Float[Tensor, "batch channels height width"],
        num_steps: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Int64[Tensor, " batch"]:
        """The most probable class of each image; arguments as for `predict_proba`."""
        return self.predict_proba(x, num_steps, generator).argmax(dim=1)


def check_batch(model: nn.Module, block: nn.Module, x: Tensor, y: Tensor) -> None:
    """Refuses a batch that does not fit together, and one on which batch norm has no statistics."""
    if len(x) != len(y):
        raise ValueError(f"x and y must hold equally many examples, got {len(x)} images and {len(y)} labels")
    if len(x) == 0:
        raise ValueError("the batch is empty")
    if len(x) == 1 and model.training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in block.modules()):
        raise ValueError(
            "batch norm cannot train on a batch of 1 image: use larger batches, and drop_last=True in a DataLoader "
            "whose last batch may hold one"
        )


def parameters_of(*modules: nn.Module | None) -> list[nn.Parameter]:
    """The parameters of several modules, each once."""
    return list(nn.ModuleList(module for module in modules if module is not None).parameters())
