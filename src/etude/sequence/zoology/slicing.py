"""How much of a language model's loss lies on tokens that could have been recalled from the context.

Arora et al., arXiv:2312.04927, section 3. A token is an associative-recall hit if it and the one before stood next to
each other earlier in the same context, and that bigram is rare in the training text (at most 1,250 times): then it has
to be looked up, and cannot have been learned by heart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor, nn

from etude.loop.evaluation import device_of, mode

__all__ = ["BigramCounts", "RecallSlices", "ar_hits", "gap_explained", "recall_slices"]


class BigramCounts:
    """How often each pair of neighbours stands in a text.

    Args:
        ids: tokens of the training text, (n,); or rows of it, (rows, n), whose ends are no neighbours.
        vocab_size: tokens lie below it.

    Raises:
        ValueError: if a token lies outside.
    """

    def __init__(self, ids: Tensor, vocab_size: int):
        self.vocab_size = vocab_size
        self.codes, self.counts = torch.unique(self.code(ids), return_counts=True)

    def code(self, ids: Tensor) -> Tensor:
        """One number for each pair of neighbours, (..., n - 1)."""
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.vocab_size):
            raise ValueError(f"tokens must lie in 0..{self.vocab_size - 1}, got {int(ids.min())}..{int(ids.max())}")
        return ids[..., :-1] * self.vocab_size + ids[..., 1:]

    def of(self, ids: Int[Tensor, "*batch n"]) -> Int[Tensor, "*batch pairs"]:
        """How often each pair of neighbours in `ids` stands in the text."""
        code = self.code(ids).contiguous()
        if not len(self.codes):
            return torch.zeros_like(code)
        place = torch.searchsorted(self.codes, code).clamp(max=len(self.codes) - 1)
        return torch.where(self.codes[place] == code, self.counts[place], 0)


def ar_hits(
    ids: Int[Tensor, "batch length"], train_bigram_counts: BigramCounts, max_count: int = 1250
) -> Bool[Tensor, "batch length"]:
    """Whether token t is a hit: its bigram (t - 1, t) stands earlier in the row and is rare in the training text.

    Args:
        ids: contexts.
        train_bigram_counts: of the training text.
        max_count: bigrams that occur more often are no hits.
    """
    code = train_bigram_counts.code(ids)
    order = code.argsort(dim=1, stable=True)
    ranked = code.gather(1, order)
    again = F.pad(ranked[:, 1:] == ranked[:, :-1], (1, 0))[:, : code.shape[1]]
    repeated = torch.zeros_like(again).scatter(1, order, again)
    return F.pad(repeated & (train_bigram_counts.of(ids) <= max_count), (1, 0))[:, : ids.shape[1]]


@dataclass(frozen=True)
class RecallSlices:
    """A model's loss, nats a token, by slice; `exp` of a loss is a perplexity.

    Args:
        loss: of all tokens.
        hits_loss, others_loss: of the hits and of the others; 0 of an empty slice.
        hits_share: share of the tokens that are hits.
    """

    loss: float
    hits_loss: float
    others_loss: float
    hits_share: float

    @property
    def hits_part(self) -> float:
        """What hits contribute to `loss`: their share times their loss. Both parts add up to `loss`."""
        return self.hits_share * self.hits_loss

    @property
    def others_part(self) -> float:
        return (1 - self.hits_share) * self.others_loss


@torch.no_grad()
def recall_slices(
    model: nn.Module | Callable[[Tensor], Any],
    ids: Int[Tensor, "rows length"],
    train_bigram_counts: BigramCounts,
    *,
    max_count: int = 1250,
    batch_size: int = 32,
) -> RecallSlices:
    """The loss of any causal language model on hits and on other tokens.

        data = text.load("notes/", level="word", max_vocab=8000)    # etude.data.text: .txt, .jsonl, .parquet
        counts = BigramCounts(data.train, data.vocab_size)
        found = recall_slices(model, data.windows("test", 128).inputs, counts, max_count=10)
        print(found.hits_loss, found.others_loss, found.hits_share)

    Args:
        model: tokens (batch, length) -> logits of the token that follows each, a tensor or an object with `logits`
            (transformers); a module is put into evaluation mode for the time.
        ids: held-out contexts; each row's first token is not predicted.
        train_bigram_counts: of the text that the model was trained on.
        max_count: as for `ar_hits`.
        batch_size: rows of one pass.

    Raises:
        ValueError: if there is nothing to predict.
    """
    if len(ids) == 0 or ids.shape[1] < 2:
        raise ValueError(f"need a row of two tokens or more, got {tuple(ids.shape)}")
    hits = ar_hits(ids, train_bigram_counts, max_count)[:, 1:]
    losses = []
    if isinstance(model, nn.Module):
        with mode(model, training=False):
            losses = [_losses(model, rows.to(device_of(model))) for rows in ids.split(batch_size)]
    else:
        losses = [_losses(model, rows) for rows in ids.split(batch_size)]
    loss = torch.cat(losses).cpu().double()
    share = float(hits.double().mean())
    return RecallSlices(float(loss.mean()), _mean(loss[hits]), _mean(loss[~hits]), share)


def _losses(model: Callable[[Tensor], Any], rows: Tensor) -> Tensor:
    logits = model(rows[:, :-1])
    logits = logits if isinstance(logits, Tensor) else logits.logits
    return F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none").unflatten(
        0, (len(rows), -1)
    )


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else 0.0


def gap_explained(worse: RecallSlices, better: RecallSlices) -> float:
    """Share of the difference of two models' losses that lies on hits.

    Raises:
        ValueError: if the models' losses are equal, or their hits are others.
    """
    if worse.hits_share != better.hits_share:
        raise ValueError(f"the models were sliced otherwise: {worse.hits_share} and {better.hits_share} hits")
    if worse.loss == better.loss:
        raise ValueError(f"both models have the loss {worse.loss}: there is no gap to explain")
    return worse.hits_share * (worse.hits_loss - better.hits_loss) / (worse.loss - better.loss)
