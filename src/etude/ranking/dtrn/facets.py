"""A generator of behaviours on which two tasks need different interests, by a degree that is set.

An item has two facets (a, b). A user has sequences of M types of behaviour; every event is an item and whether it was
liked (+1) or not (-1). Given the target item, s_a and s_b sum the signs over the events that share the target's facet a
and over those that share its facet b, in each sequence. With weights v over the behaviour types

    logit of task 1 = v_1 . s_a
    logit of task 2 = v_2 . (conflict s_b + (1 - conflict) s_a)

and labels are Bernoulli. At conflict 0 both tasks ask for the same events, at 1 for others in the same sequence: one
interest for both is then a compromise. What a sequence tells is in which of its items one looks at, and in nothing that
a tower above a common interest could undo.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from etude.data.kinds_clicks import UNKNOWN
from etude.data.kinds_multitask import MultiTaskRows

__all__ = ["TwoFacets", "two_facet_behaviours"]

_STRONG, _WEAK = 1.2, 0.4


class TwoFacets(NamedTuple):
    """Impressions of two tasks, and what a model can know of them at best.

    Args:
        rows: the impressions; every row is a user of its own.
        probability: of each task's label, float64: the best score that there is.
        item_fields: rows of the tables of facets, {"a": ..., "b": ...}.
        event_fields: rows of the table of signs, {"liked": ...}.
    """

    rows: MultiTaskRows
    probability: Float[Tensor, "n 2"]
    item_fields: dict[str, int]
    event_fields: dict[str, int]


def two_facet_behaviours(
    n: int,
    conflict: float | int = 1.0,
    length: int = 10,
    num_behaviors: int = 2,
    *,
    facets: int = 12,
    planted: int = 4,
    generator: torch.Generator | None = None,
) -> TwoFacets:
    """Draws n impressions.

    Args:
        n: how many.
        conflict: in [0, 1]; see the module.
        length: T, events of each sequence.
        num_behaviors: M; the first type counts 1.2 for task 1 and 0.4 for task 2, the second the other way round, and
            so on in turn.
        facets: values of each facet, so that there are facets^2 items.
        planted: events of each sequence that share facet a or facet b (each alike) with the target; else hardly any
            would.
        generator: source of randomness; the default generator if None.

    Raises:
        ValueError: for a size out of range.
    """
    if n < 1 or length < 1 or num_behaviors < 1 or facets < 2:
        raise ValueError(
            f"n, length and num_behaviors must be positive and facets at least 2, got {n}, {length}, {num_behaviors} "
            f"and {facets}"
        )
    if not 0 <= conflict <= 1 or not 0 <= planted <= length:
        raise ValueError(f"conflict must lie in [0, 1] and planted in 0..{length}, got {conflict} and {planted}")
    shape = (n, num_behaviors, length)
    target = torch.randint(facets, (n, 2), generator=generator)
    events = torch.randint(facets, (*shape, 2), generator=generator)
    sign = 2 * torch.randint(2, shape, generator=generator) - 1
    # The planted positions are the first of a random order.
    place = torch.rand(shape, generator=generator).argsort(dim=-1) < planted
    which = torch.randint(2, shape, generator=generator)
    shares = place[..., None] & (which[..., None] == torch.arange(2))
    wanted = target[:, None, None].expand_as(events)
    events = torch.where(shares, wanted, events)

    sums = ((events == wanted) * sign[..., None]).sum(2).double()
    weights = torch.tensor([[_STRONG, _WEAK], [_WEAK, _STRONG]], dtype=torch.float64)
    weights = weights[:, torch.arange(num_behaviors) % 2]
    of_a, of_b = sums[..., 0], sums[..., 1]
    logits = torch.stack([of_a @ weights[0], (conflict * of_b + (1 - conflict) * of_a) @ weights[1]], dim=1)
    probability = logits.sigmoid()
    labels = (torch.rand(n, 2, generator=generator, dtype=torch.float64) < probability).float()

    starts = torch.arange(n * num_behaviors).reshape(n, num_behaviors) * length
    coded = torch.cat([events, (sign[..., None] + 1) // 2], dim=-1) + UNKNOWN + 1
    rows = MultiTaskRows(
        targets=target + UNKNOWN + 1,
        events=coded.reshape(-1, 3),
        starts=starts,
        stops=starts + length,
        labels=labels,
        users=torch.arange(n),
        context=torch.empty(n, 0, dtype=torch.int64),
    )
    size = UNKNOWN + 1 + facets
    return TwoFacets(rows, probability, {"a": size, "b": size}, {"liked": UNKNOWN + 3})
