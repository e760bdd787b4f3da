"""The trained counterpart of the construction, and what blocks without attention or without positions cannot do.

A block without attention sees one token at a time, and one without positions is permutation-equivariant, whatever its
width and training. Over sequences whose tokens are drawn independently and uniformly from the box, with the root mean
square over sequences, positions and outputs, they are no closer to a map f than

    without attention:  rmse^2 >= mean over i of E Var(f_i(X) | x_i)                                             (1)
    without positions:  rmse^2 >= E |f(X) - (1/L!) sum_pi pi^-1 f(pi X)|^2 / (L out_dim)                         (2)

For sorting two numbers these floors are sqrt(1/30) = .1826 and sqrt(1/24) = .2041.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from etude.data.kinds import Examples
from etude.loop import FitResult, cosine_schedule, fit
from etude.nn.gaussian import Estimate
from etude.theory.uat_transformer.assembly import Box
from etude.theory.uat_transformer.measuring import Map
from etude.theory.uat_transformer.model import SingleLayerTransformer

__all__ = ["equivariant_floor", "tokenwise_floor", "train_universal", "uniform_sequences"]


def uniform_sequences(
    n: int, seq_len: int, dim: int, *, domain: Sequence = (0.0, 1.0), generator: torch.Generator | None = None
) -> Float[Tensor, "n seq_len dim"]:
    """Sequences drawn uniformly from the box, in double precision; the generator is seeded with 0 if None."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return Box.of(domain, dim).from_unit(torch.rand(n, seq_len, dim, generator=generator, dtype=torch.float64))


def train_universal(
    module: SingleLayerTransformer,
    f: Map,
    steps: int = 1_500,
    *,
    batch_size: int = 256,
    lr: float | int = 3e-3,
    domain: Sequence = (0.0, 1.0),
    generator: torch.Generator | None = None,
    callbacks: Iterable[Callable[..., Any]] = (),
    every: int = 50,
    **options: Any,
) -> FitResult:
    """Trains a block on fresh uniform samples: Adam, half a cosine, mean squared error.

        train_universal(SingleLayerTransformer(1, 32, 2, num_heads=4, ffn_dim=256, out_dim=1), f)

    Args:
        module: trained in place.
        f: the map, on double sequences. All `steps * batch_size` samples are drawn at once; each is seen once.
        steps, batch_size: updates, and sequences of each. lr: the schedule's peak.
        domain: the box of the samples.
        generator: of the samples and of their order.
        callbacks, every, **options: as for `etude.loop.fit`.

    Raises:
        ValueError: if f's outputs do not have the module's shape.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    x = uniform_sequences(steps * batch_size, module.seq_len, module.in_dim, domain=domain, generator=generator)
    with torch.no_grad():
        y = torch.cat([f(part) for part in x.split(2**16)])
    if y.shape[1:] != (module.seq_len, module.out_dim):
        raise ValueError(
            f"f gives sequences of shape {tuple(y.shape[1:])}, the module {(module.seq_len, module.out_dim)}"
        )
    dtype = module.embed.weight.dtype
    optimizer = torch.optim.Adam(module.parameters(), lr=float(lr))
    return fit(
        module, Examples(x.to(dtype), y.to(dtype)), optimizer, loss=F.mse_loss, steps=steps, batch_size=batch_size,
        generator=generator, schedule=cosine_schedule(optimizer, steps), callbacks=callbacks, every=every, **options,
    )  # fmt: skip


def tokenwise_floor(
    f: Map,
    seq_len: int,
    dim: int,
    *,
    domain: Sequence = (0.0, 1.0),
    n: int = 100_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The smallest root mean square error of any block without attention, Eq. (1), by sampling.

        tokenwise_floor(lambda x: x.sort(dim=1).values, 2, 1)        # Estimate(.1826, .0005)

    Two sequences that share token i differ in f_i by twice the conditional variance, on average.

    Returns:
        The estimate and its standard error.
    """
    first, second = (uniform_sequences(2 * n, seq_len, dim, domain=domain, generator=generator)).chunk(2)
    squares = torch.zeros(n, dtype=torch.float64)
    value = f(first)
    for i in range(seq_len):
        other = second.clone()
        other[:, i] = first[:, i]
        squares += (value[:, i] - f(other)[:, i]).square().flatten(1).mean(1) / (2 * seq_len)
    return _root(squares)


def equivariant_floor(
    f: Map,
    seq_len: int,
    dim: int,
    *,
    domain: Sequence = (0.0, 1.0),
    n: int = 100_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The smallest root mean square error of any permutation-equivariant block, Eq. (2), by sampling.

        equivariant_floor(lambda x: x.sort(dim=1).values, 2, 1)      # Estimate(.2041, .0004)

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: if there are more than 8 tokens: all L! orders are averaged.
    """
    if seq_len > 8:
        raise ValueError(f"the floor averages over all orders of the tokens: seq_len must be at most 8, got {seq_len}")
    x = uniform_sequences(n, seq_len, dim, domain=domain, generator=generator)
    mean = torch.zeros_like(f(x))
    for order in permutations(range(seq_len)):
        index = torch.tensor(order)
        mean += f(x[:, index])[:, index.argsort()]
    return _root((f(x) - mean / math.factorial(seq_len)).square().flatten(1).mean(1))


def _root(squares: Float[Tensor, "n"]) -> Estimate:
    root = squares.mean().sqrt()
    error = squares.std() / math.sqrt(len(squares)) / (2 * root.clamp(min=1e-300))
    return Estimate(root, torch.where(root > 0, error, 0.0))
