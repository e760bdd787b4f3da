"""A generator of click logs whose best possible AUC is known: users with several interests.

A user has 4 to 8 of the categories, in shares that are Dirichlet(1), and a history of items of these categories. A
candidate is of one of them with probability 0.6 (each alike), else of any category. With m the number of behaviours of
the candidate's category,

    P(click) = sigmoid(-1.5 + 1.56 log(1 + m)).

So the click depends on how often the candidate's own category stands in the history, and on nothing else: a fixed
summary of the history must keep all categories apart, a summary made for the candidate need not.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from etude.data.kinds_clicks import Clicks
from etude.nn.auc import auc

__all__ = ["InterestMixture", "interest_mixture"]

_FIRST = 2  # 0 is padding, 1 is unknown
_FEWEST, _MOST = 4, 8


class InterestMixture(NamedTuple):
    """Impressions of fields (item, category), and what a model can know of them at best.

    Args:
        clicks: the impressions; every row is a user of its own.
        matches: m of each row.
        probability: P(click) of each row, the best score that there is.
        fields: rows of the tables: {"item": ..., "category": ...}.
    """

    clicks: Clicks
    matches: Int64[Tensor, "n"]
    probability: Float[Tensor, "n"]
    fields: dict[str, int]

    @property
    def bayes_auc(self) -> float:
        """AUC of the true probability on these labels."""
        return auc(self.clicks.labels.numpy(), self.probability.numpy())


def interest_mixture(
    n: int,
    length: int = 30,
    num_categories: int = 40,
    items_per_category: int = 25,
    *,
    zipf: float | int = 0.0,
    generator: torch.Generator | None = None,
) -> InterestMixture:
    """Draws n impressions.

    Args:
        n: how many.
        length: T, behaviours of each history.
        num_categories: at least 8.
        items_per_category: items of each category.
        zipf: the k-th item of a category is drawn in proportion to k^-zipf; 0 draws all alike.
        generator: source of randomness; the default generator if None.

    Raises:
        ValueError: for a size out of range.
    """
    if n < 1 or length < 0 or items_per_category < 1:
        raise ValueError(f"n and items_per_category must be positive, length not negative, got {n}, "
                         f"{items_per_category}, {length}")  # fmt: skip
    if num_categories < _MOST:
        raise ValueError(f"num_categories must be at least {_MOST}, got {num_categories}")
    if zipf < 0:
        raise ValueError(f"zipf must not be negative, got {zipf}")
    own = torch.rand(n, num_categories, generator=generator).argsort(dim=1)[:, :_MOST]
    count = torch.randint(_FEWEST, _MOST + 1, (n,), generator=generator)
    # Dirichlet(1): exponential draws over their sum.
    shares = -torch.rand(n, _MOST, generator=generator).clamp_min(1e-12).log()
    shares = shares.masked_fill(torch.arange(_MOST) >= count[:, None], 0.0)
    if length:
        history = own.gather(1, torch.multinomial(shares, length, replacement=True, generator=generator))
    else:
        history = own[:, :0]
    favourite = own.gather(1, (torch.rand(n, generator=generator) * count).long()[:, None])[:, 0]
    anything = torch.randint(num_categories, (n,), generator=generator)
    candidate = torch.where(torch.rand(n, generator=generator) < 0.6, favourite, anything)

    matches = (history == candidate[:, None]).sum(1)
    probability = torch.sigmoid(-1.5 + 1.56 * torch.log1p(matches.double()))
    labels = (torch.rand(n, generator=generator, dtype=torch.float64) < probability).float()

    popularity = torch.arange(1, items_per_category + 1, dtype=torch.float64) ** -float(zipf)

    def with_items(categories: Tensor) -> Tensor:
        item = torch.multinomial(popularity, max(categories.numel(), 1), replacement=True, generator=generator)
        item = item[: categories.numel()].reshape(categories.shape)
        return torch.stack([_FIRST + categories * items_per_category + item, _FIRST + categories], dim=-1)

    rows = torch.arange(n)
    clicks = Clicks(
        candidates=with_items(candidate),
        behaviours=with_items(history).reshape(-1, 2),
        starts=rows * length,
        stops=(rows + 1) * length,
        labels=labels,
        users=rows,
        context=torch.empty(n, 0, dtype=torch.int64),
    )
    sizes = {"item": _FIRST + num_categories * items_per_category, "category": _FIRST + num_categories}
    return InterestMixture(clicks, matches, probability, sizes)
