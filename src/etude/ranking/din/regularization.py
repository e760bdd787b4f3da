"""Mini-batch aware regularisation: an L2 penalty paid only by the embedding rows that a batch touches.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978, section 5.1:

    w_j <- w_j - eta [ 1/|B| sum_(x in B) dL/dw_j + lambda (alpha_mj / n_j) w_j ]

where alpha_mj is 1 if id j occurs in batch m, else 0, and n_j counts the samples of the whole training set in which it
occurs. The term of the loss whose gradient this is carries a half: 1/2 lambda sum_(j in batch) |w_j|^2 / n_j.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["MiniBatchAwareL2", "count_occurrences", "filter_rare"]


def count_occurrences(ids: Int64[Tensor, "samples *positions"], num_embeddings: int) -> Int64[Tensor, "rows"]:
    """In how many samples each id occurs, n_j: once a sample however often it stands there. Padding counts 0.

    Counts of parts of the samples add up.

    Args:
        ids: (samples, ...): all ids of a sample that point into one table, candidate and history; 0 is padding.
        num_embeddings: rows of the table.

    Raises:
        ValueError: if an id is not in 0..num_embeddings - 1.
    """
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < num_embeddings:
        raise ValueError(f"ids must lie in 0..{num_embeddings - 1}, got {int(ids.min())}..{int(ids.max())}")
    ordered = ids.reshape(len(ids), -1).sort(dim=1).values
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    counts = torch.bincount(ordered[first], minlength=num_embeddings)
    counts[0] = 0
    return counts


def filter_rare(counts: Int64[Tensor, "rows"], min_count: int, *, unknown: int = 1) -> Int64[Tensor, "rows"]:
    """The frequency filter: a table id -> id that sends ids of fewer than `min_count` samples to `unknown`.

    Padding stays padding.
    """
    mapped = torch.where(counts < min_count, unknown, torch.arange(len(counts)))
    mapped[0] = 0
    return mapped


class MiniBatchAwareL2(nn.Module):
    """The penalty of the update above, to be added to the loss of a batch.

        penalty = MiniBatchAwareL2(count_occurrences(train_ids, table.num_embeddings), lam=0.01)
        loss = bce + penalty(table, candidate_ids, history_ids)

    Its cost grows with the ids of the batch, not with the table, and with `nn.Embedding(sparse=True)` its gradient is
    sparse. No weight decay should act on the same table.

    Args:
        counts: n_j of each row; see `count_occurrences`.
        lam: lambda, >= 0; the paper's is 0.01.

    Raises:
        ValueError: if `lam` or a count is negative.
    """

    counts: Tensor

    def __init__(self, counts: Int64[Tensor, "rows"], lam: float | int = 0.01):
        super().__init__()
        if lam < 0:
            raise ValueError(f"lam must not be negative, got {lam}")
        if len(counts) and int(counts.min()) < 0:
            raise ValueError(f"counts must not be negative, got {int(counts.min())}")
        self.lam = float(lam)
        self.register_buffer("counts", counts)

    def forward(self, embedding: nn.Embedding, *ids: Int64[Tensor, "..."]) -> Float[Tensor, ""]:
        """1/2 lambda sum |w_j|^2 / n_j over the distinct ids of the batch, padding (id 0) left out.

        Raises:
            ValueError: if the table has another size than the counts, or an id was never counted.
        """
        if embedding.num_embeddings != len(self.counts):
            raise ValueError(f"the table has {embedding.num_embeddings} rows, the counts are of {len(self.counts)}")
        touched = torch.cat([part.reshape(-1) for part in ids]).unique()
        touched = touched[touched != 0]
        counts = self.counts[touched]
        if bool((counts == 0).any()):
            raise ValueError(f"counts do not cover ids {touched[counts == 0][:5].tolist()}")
        # Not `embedding(touched)`: hooks and max_norm are of the forward pass.
        rows = F.embedding(touched, embedding.weight, sparse=embedding.sparse)
        return 0.5 * self.lam * (rows.square().sum(1) / counts).sum()
