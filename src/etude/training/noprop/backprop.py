"""What NoProp is compared with: the same blocks trained end to end.

Li, Teh & Pascanu, arXiv:2503.24322, 2025. The chain of T blocks is a residual network over label embeddings,

    z_0 ~ N(0, I),    z_t = (1 - alpha_t) z_{t-1} + alpha_t u_t,    alpha_t = tanh(w_t) learned,             (1)

with u_t = softmax(block_t(x, z_{t-1})) W, and the head on z_T is trained by cross-entropy. Its limit of many thin
layers is the neural ODE dz/dt = u(z, x, t) - z from t = 0 to 1 with one block that takes the time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etude.loop.evaluation import mode
from etude.training.noprop.discrete import check_batch
from etude.training.noprop.embedding import LabelEmbedding
from etude.training.noprop.schedule import normal

__all__ = ["BackpropChain", "BackpropODE"]


class _EndToEnd(nn.Module, ABC):
    """A stack of layers over z that starts from noise and ends in a head."""

    def __init__(self, embedding: LabelEmbedding, head: nn.Module | None):
        super().__init__()
        self.embedding = embedding
        self.head = nn.Linear(embedding.dim, embedding.num_classes) if head is None else head

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Logits; z_0 is drawn anew at every pass, at test time too."""

    @torch.no_grad()
    def predict_proba(
        self, x: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Class probabilities, in evaluation mode."""
        with mode(self, training=False):
            return self(x, generator).softmax(dim=1)

    def predict(
        self, x: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Int64[Tensor, " batch"]:
        """The most probable class of each image."""
        return self.predict_proba(x, generator).argmax(dim=1)


class BackpropChain(_EndToEnd):
    """The blocks of NoProp-DT as one network, Eq. (1), to be trained by ordinary backpropagation.

        model = BackpropChain(blocks, LabelEmbedding(10))
        F.cross_entropy(model(x), y).backward()

    Args:
        blocks: the T blocks in order.
        embedding: the class embeddings.
        head: forward(z) -> logits of the classes, from z_T; a linear layer if None.
        w: value of every w_t to start from; alpha_t = tanh(w_t). The paper does not state it.
        checkpointing: keep z_t alone from the forward pass and run each block again in the backward pass. Running
            averages of batch norm then see every batch twice.

    Raises:
        ValueError: if there are no blocks.
    """

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        embedding: LabelEmbedding,
        head: nn.Module | None = None,
        w: float = 0.5,
        checkpointing: bool = False,
    ):
        super().__init__(embedding, head)
        self.blocks = nn.ModuleList(blocks)
        if not len(self.blocks):
            raise ValueError("blocks must hold at least one block, got none")
        self.w = nn.Parameter(torch.full((len(self.blocks),), float(w)))
        self.checkpointing = checkpointing

    def forward(
        self, x: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch classes"]:
        check_batch(self, self.blocks, x, x)
        matrix = self.embedding.matrix()
        z = normal((len(x), self.embedding.dim), self.embedding.weight, generator)
        for block, alpha in zip(self.blocks, self.w.tanh()):
            logits = checkpoint(block, x, z, use_reentrant=False) if self.checkpointing else block(x, z)
            z = (1 - alpha) * z + alpha * (logits.softmax(dim=1) @ matrix)
        return self.head(z)


class BackpropODE(_EndToEnd):
    """The continuous limit of the chain, solved by Euler steps of which the backward pass runs each again.

    Memory is that of one step and the z of all, as with the adjoint method, and gradients are those of the discretised
    equation, exactly.

    Args:
        block: forward(x, z, t) -> logits of the classes.
        embedding: the class embeddings.
        head: forward(z) -> logits of the classes, from z_1; a linear layer if None.
        num_steps: Euler steps; 1000 in the paper.

    Raises:
        ValueError: if `num_steps` is not positive.
    """

    def __init__(
        self, block: nn.Module, embedding: LabelEmbedding, head: nn.Module | None = None, num_steps: int = 1000
    ):
        super().__init__(embedding, head)
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self.block, self.num_steps = block, num_steps

    def forward(
        self, x: Float[Tensor, "batch channels height width"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch classes"]:
        check_batch(self, self.block, x, x)
        matrix = self.embedding.matrix()
        z = normal((len(x), self.embedding.dim), self.embedding.weight, generator)
        for step in range(self.num_steps):
            t = z.new_full((len(z),), step / self.num_steps)
            logits = checkpoint(self.block, x, z, t, use_reentrant=False)
            z = z + (logits.softmax(dim=1) @ matrix - z) / self.num_steps
        return self.head(z)
