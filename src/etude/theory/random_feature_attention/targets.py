"""Functions of a query and a set of keys, and what theory says of learning them.

Fu, Guo, Bai & Mei, NeurIPS 2023, arXiv:2307.11353. Random-feature attention learns means over keys,

    f(x) = (1/N) sum_i F(x_0, x_i),   F = sum_rs <x_0^(r) x_i^(s), f_rs>,                                     (1)

with a number of samples that their complexity tells, x^(r) being the r-fold tensor power:

    B(f) = sum_k C_k sum_(max(r, s) = k) |f_rs|^2,   C_k = max(k^4.5 4^k, 1)                                  (2)
    squared error of the best f with M heads  <=  O((d^2 + log M) B / (delta M))                              (3)
    excess risk after n samples               ~   sqrt(B / n), up to logarithms                               (4)

A polynomial of degree p costs a network on the concatenated tokens about N^p times as many samples. The orders are the
paper's; the constants, those of C_k too, have not been checked against its text: compare values, do not plan with them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from etude.theory.random_feature_attention.tokens import Tokens

__all__ = [
    "KINDS",
    "Target",
    "TokenTask",
    "approximation_bound",
    "complexity",
    "excess_risk_bound",
    "permutation_invariant_targets",
    "rfmlp_sample_ratio",
]

KINDS = ("mean_power", "correlation", "similarity", "query_mean", "key_mean")


@dataclass(frozen=True)
class Target:
    """One function of a query and a set of keys; xbar is the mean of the keys.

    | kind | function | a mean over keys, Eq. (1) |
    | --- | --- | --- |
    | `mean_power` | (1/N) sum_i <beta, x_i>^p | yes |
    | `correlation` | (1/N) sum_i <x_0, x_i>^p <beta, x_i> | yes |
    | `similarity` | (1/N) sum_i <x_0, x_i>^p | yes |
    | `query_mean` | <x_0, xbar>^p | for p = 1 only |
    | `key_mean` | <beta, xbar>^p | for p = 1 only |

    Args:
        kind: of the table.
        power: p >= 1.

    Raises:
        ValueError: if `kind` is unknown or `power` is not a positive integer.
    """

    kind: str
    power: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if isinstance(self.power, bool) or int(self.power) != self.power or self.power < 1:
            raise ValueError(f"power must be an integer >= 1, got {self.power!r}")

    @property
    def name(self) -> str:
        return f"{self.kind}{self.power}"

    @property
    def is_mean_over_keys(self) -> bool:
        """Whether the target has the form of Eq. (1), the class that attention learns easily."""
        return self.kind not in ("query_mean", "key_mean") or self.power == 1

    def __call__(
        self,
        query: Float[Tensor, "n dim"],
        keys: Float[Tensor, "n num_keys dim"],
        beta: Float[Tensor, "beta_dim"],
        key_mask: Bool[Tensor, "n num_keys"] | None = None,
    ) -> Float[Tensor, "n"]:
        """The value for each example, as it is: standardise before fitting, since even powers have a large mean."""
        if beta.shape != query.shape[1:]:
            raise ValueError(f"beta must have shape {tuple(query.shape[1:])}, got {tuple(beta.shape)}")
        along = keys @ beta
        similar = torch.einsum("nd,nid->ni", query, keys)
        p = self.power
        if self.kind == "query_mean":
            return _mean(similar, key_mask) ** p
        if self.kind == "key_mean":
            return _mean(along, key_mask) ** p
        value = {"mean_power": lambda: along**p, "correlation": lambda: similar**p * along,
                 "similarity": lambda: similar**p}[self.kind]()  # fmt: skip
        return _mean(value, key_mask)


def _mean(values: Tensor, key_mask: Tensor | None) -> Tensor:
    if key_mask is None:
        return values.mean(1)
    return values.masked_fill(~key_mask, 0.0).sum(1) / key_mask.sum(1)


def permutation_invariant_targets(
    query: Float[Tensor, "n dim"],
    keys: Float[Tensor, "n num_keys dim"],
    beta: Float[Tensor, "dim"],
    targets: Sequence[Target | tuple[str, int]],
    *,
    key_mask: Bool[Tensor, "n num_keys"] | None = None,
) -> Float[Tensor, "n targets"]:
    """Several targets side by side, each given as a `Target` or as (kind, power).

    permutation_invariant_targets(query, keys, beta, [("mean_power", 2), ("correlation", 1)])
    """
    if not targets:
        raise ValueError("targets must name at least one target")
    chosen = [target if isinstance(target, Target) else Target(*target) for target in targets]
    return torch.stack([target(query, keys, beta, key_mask) for target in chosen], dim=1)


@dataclass(frozen=True)
class TokenTask:
    """Independent tokens, uniform on the unit sphere, and targets along a random unit direction beta.

        task = TokenTask(dim=8, num_keys=8, targets=(Target("mean_power", 2),))
        tokens, y = task(1000, generator)                   # y: (1000, targets), along a direction of its own

    Args:
        dim: d >= 1; on the sphere of d = 1 there are two tokens only, and every even power is constant.
        num_keys: N >= 1.
        targets: one or more.

    Raises:
        ValueError: if a size is below 1, there is no target, or d = 1 leaves a target constant.
    """

    dim: int
    num_keys: int
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        if self.dim < 1 or self.num_keys < 1 or not self.targets:
            raise ValueError(
                f"dim, num_keys and the number of targets must be at least 1, got {self.dim}, {self.num_keys} and "
                f"{len(self.targets)}"
            )
        constant = [t.name for t in self.targets if self.dim == 1 and t.is_mean_over_keys and _degree(t) % 2 == 0]
        if constant:
            raise ValueError(f"at dim = 1 all tokens are +-1, and {', '.join(constant)} is constant; dim must be >= 2")

    def direction(self, generator: torch.Generator) -> Float[Tensor, "dim"]:
        """A random beta of length 1, float64."""
        return _unit(torch.randn(self.dim, dtype=torch.float64, generator=generator))

    def sample(
        self, n: int, beta: Float[Tensor, "dim"], generator: torch.Generator
    ) -> tuple[Tokens, Float[Tensor, "n targets"]]:
        """n examples in float64 and their targets, without noise."""
        x = _unit(torch.randn(n, self.num_keys + 1, self.dim, dtype=torch.float64, generator=generator))
        tokens = Tokens(x[:, 0], x[:, 1:])
        return tokens, permutation_invariant_targets(tokens.query, tokens.keys, beta, self.targets)

    def __call__(self, n: int, generator: torch.Generator) -> tuple[Tokens, Float[Tensor, "n targets"]]:
        """A direction, and n examples: a source to draw from, as `sample_complexity` takes one."""
        return self.sample(n, self.direction(generator), generator)


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _degree(target: Target) -> int:
    return target.power + (target.kind == "correlation")


def complexity(target: Target, dim: int) -> float:
    """B(f) of Eq. (2) for unit beta; infinite for a target that is no mean over keys.

    |f_rs|^2 is 1 for `mean_power` (r, s) = (0, p); it is d^p for `similarity` (p, p) and `correlation` (p, p + 1),
    whose tensors hold the identity p times.

    Args:
        target: which function.
        dim: d.
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, got {dim}")
    if not target.is_mean_over_keys:
        return math.inf
    # For p = 1 the two functions of the mean key are means over keys themselves.
    k = _degree(target)
    size = 1.0 if target.kind in ("mean_power", "key_mean") else float(dim) ** target.power
    return max(k**4.5 * 4**k, 1.0) * size


def approximation_bound(
    B: float | int, dim: int, num_heads: int, *, delta: float = 0.1, constant: float | int = 1.0
) -> float:
    """Eq. (3): squared error that M heads cannot be worse than with probability 1 - delta, up to `constant`."""
    if not 0 < delta < 1 or num_heads < 1 or dim < 1 or B < 0:
        raise ValueError(f"need 0 < delta < 1, heads, dim >= 1 and B >= 0, got {delta}, {num_heads}, {dim} and {B}")
    return constant * (dim**2 + math.log(num_heads)) * B / (delta * num_heads)


def excess_risk_bound(B: float | int, n: int, *, constant: float | int = 1.0) -> float:
    """Eq. (4): excess risk after n samples with many heads, up to logarithms and `constant`."""
    if n < 1 or B < 0:
        raise ValueError(f"need n >= 1 and B >= 0, got {n} and {B}")
    return constant * math.sqrt(B / n)


def rfmlp_sample_ratio(target: Target, num_keys: int) -> float:
    """N^p for a target of degree p: the order in which the MLP on concatenated tokens needs more samples."""
    if num_keys < 1:
        raise ValueError(f"num_keys must be at least 1, got {num_keys}")
    if not target.is_mean_over_keys:
        raise ValueError(f"{target.name} is no mean over keys: the comparison does not apply")
    return float(num_keys) ** _degree(target)
