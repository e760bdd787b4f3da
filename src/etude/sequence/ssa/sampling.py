"""Which sources each query may look at in one layer and one step: random subsets, drawn in groups.

Hussain, Zaki & Subramanian, "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
arXiv:2306.01705, section 3. There is no public code; details that the text leaves open are this library's choice.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["SAMPLERS", "IndexSets", "local_window", "sample_sources"]

SAMPLERS = ("local", "unbiased")


class IndexSets(NamedTuple):
    """Groups of queries and the sources that each group sees; every query is in one group.

    Args:
        queries: (groups, queries of a group), or with a leading batch dimension; -1 fills up.
        sources: (groups, sources of a group), likewise.
    """

    queries: Int[Tensor, "*batch groups queries"]
    sources: Int[Tensor, "*batch groups sources"]

    def mask(self, n: int, num_sources: int | None = None) -> Bool[Tensor, "*batch n num_sources"]:
        """Whether query i sees source j, before causality and before the query is given itself."""
        num_sources = n if num_sources is None else num_sources
        lead = self.queries.shape[:-2]
        flat_q, flat_s = (
            self.queries.reshape(-1, *self.queries.shape[-2:]),
            self.sources.reshape(-1, *self.sources.shape[-2:]),
        )
        # One more row and column, which are cut off, take the -1.
        seen = torch.zeros(len(flat_q), n + 1, num_sources + 1, dtype=torch.bool, device=self.queries.device)
        row = torch.arange(len(flat_q), device=seen.device)[:, None, None, None]
        seen[row, flat_q[..., :, None], flat_s[..., None, :]] = True
        return seen[:, :n, :num_sources].reshape(*lead, n, num_sources)


def local_window(n: int, fraction: float | int, *, causal: bool = False, reach: int = 1) -> int:
    """Tokens of a block such that `fraction` of n sources are seen: a divisor of n nearest to the wanted width."""
    wanted = fraction * n / (2 if causal else 2 * reach + 1)
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    return min(divisors, key=lambda d: (abs(math.log(d / wanted)), d))


def sample_sources(
    n: int,
    *,
    fraction: float | int = 0.25,
    sampler: str = "local",
    window: int | None = None,
    sigma: float | int | None = None,
    causal: bool = False,
    batch: int | None = None,
    valid: Bool[Tensor, "batch sources"] | None = None,
    num_sources: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> IndexSets:
    """Draws the sets of one layer and one step.

    - `unbiased`: sources and queries are shuffled apart and dealt into 1 / fraction groups; group g of the queries sees
      group g of the sources, so that every pair meets with probability `fraction`.
    - `local`: the places of the sources are perturbed by N(0, sigma^2) and sorted; block b of `window` queries, which
      keep their order, sees the shuffled blocks b - 1, b, b + 1, or with `causal` b - 1 and b. Near sources are
      likelier, far ones possible. Interior blocks see 3 window / n of the sources (2 window / n).

    Args:
        n: queries.
        fraction: share of the sources that a query sees, 0 < fraction <= 1; 1 is dense. Of `unbiased`, one over a
            whole number.
        sampler: "local" or "unbiased".
        window: of `local`; `local_window(n, fraction)` if None.
        sigma: of `local`, in tokens; twice the window if None. 0 is plain attention within blocks.
        causal: whether the blocks of `local` reach back only. Causality itself is the attention's matter.
        batch: draws one sample for each row of a batch of that size; one for all if None.
        valid: which sources are real; others, padding, are never drawn. Needs `batch` rows.
        num_sources: if there are others than the queries (cross-attention, `unbiased` only).
        generator: of all draws, on the CPU.
        device: of the result.

    Raises:
        ValueError: for a fraction out of range or of no whole number of groups, fewer tokens than groups, a window
            that does not fit, or a negative sigma.
    """
    m = n if num_sources is None else num_sources
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    if min(n, m) < 1:
        raise ValueError(f"there must be queries and sources, got {n} and {m}")
    if valid is not None and (batch is None or tuple(valid.shape) != (batch, m)):
        raise ValueError(f"valid must have shape ({batch}, {m}), one row a sample, got {tuple(valid.shape)}")
    rows = 1 if batch is None else batch
    real = torch.ones(rows, m, dtype=torch.bool) if valid is None else valid.cpu()
    if sampler == "local" and num_sources not in (None, n):
        raise ValueError("the local sampler is for self-attention: sources must be the queries")
    if fraction == 1 or (sampler == "local" and window is not None and window >= n):
        queries = torch.arange(n).expand(rows, 1, n)
        sources = torch.where(real, torch.arange(m), -1)[:, None]
    elif sampler == "unbiased":
        queries, sources = _unbiased(n, m, fraction, real, generator)
    else:
        queries, sources = _local(n, fraction, window, sigma, causal, real, generator)
    if batch is None:
        queries, sources = queries[0], sources[0]
    return IndexSets(queries.to(device), sources.to(device))


def _unbiased(
    n: int, m: int, fraction: float | int, real: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    groups = round(1 / fraction)
    if abs(groups * fraction - 1) > 1e-9:
        raise ValueError(f"the unbiased sampler needs 1 / fraction to be a whole number, got fraction {fraction}")
    if min(n, m) < groups:
        raise ValueError(f"{n} queries and {m} sources cannot be dealt into {groups} groups")

    def dealt(count: int, known: Tensor) -> Tensor:
        draw = torch.rand(len(known), count, generator=generator).masked_fill(~known, 2.0)
        order = draw.argsort(dim=1)
        order = torch.where(known.gather(1, order), order, -1)
        # In turns, so that the real ones are spread evenly over the groups.
        spare = -count % groups
        return torch.nn.functional.pad(order, (0, spare), value=-1).unflatten(1, (-1, groups)).transpose(1, 2)

    return dealt(n, torch.ones(len(real), n, dtype=torch.bool)), dealt(m, real)


def _local(
    n: int,
    fraction: float | int,
    window: int | None,
    sigma: float | int | None,
    causal: bool,
    real: Tensor,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    window = local_window(n, fraction, causal=causal) if window is None else window
    if not 1 <= window <= n:
        raise ValueError(f"window must lie in 1..{n}, the tokens, got {window}")
    sigma = 2 * window if sigma is None else sigma
    if sigma < 0:
        raise ValueError(f"sigma must not be negative, got {sigma}")
    rows = len(real)
    # Padding goes to the end, for sources and queries alike, as if the real tokens stood first.
    rank = torch.where(real, real.cumsum(1) - 1, n + torch.arange(n)).double()
    queries = rank.argsort(dim=1)
    shift = sigma * torch.randn(rows, n, generator=generator, dtype=torch.float64)
    order = torch.where(real, rank + shift, math.inf).argsort(dim=1, stable=True)
    order = torch.where(real.gather(1, order), order, -1)
    blocks = -(-n // window)
    spare = blocks * window - n
    pad = torch.nn.functional.pad
    own = pad(queries, (0, spare), value=-1).unflatten(1, (blocks, window))
    shuffled = pad(order, (0, spare), value=-1).unflatten(1, (blocks, window))
    reach = (-1, 0) if causal else (-1, 0, 1)
    shifted = [pad(shuffled, (0, 0, 1, 1), value=-1)[:, 1 + step : 1 + step + blocks] for step in reach]
    return own, torch.cat(shifted, dim=2)
