"""Denoising task routing: each timestep of a diffusion model reads its own channels of every block.

Park, Woo, Go, Kim & Kim, "Denoising Task Routing for Diffusion Models", ICLR 2024, arXiv:2310.07138; masks as in the
authors' code (github.com/byeongjun-park/DTR).

Of C channels n = floor(beta C) are active. The window of timestep t = 0 (least noise), .., T - 1 starts at

    start(t) = round((C - n) (t / (T - 1))^alpha),    m[t, c] = 1 iff start(t) <= c < start(t) + n          (1)

so that neighbouring tasks share channels, and the window slides faster where there is more noise. A residual block
reads the active channels and writes all of them; the inactive part of its input passes by:

    out = block(x m) + x (1 - m)                                                                           (2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from etude.nn.diffusion import check_timesteps

__all__ = ["METHODS", "Routing", "TaskRouter", "routing_mask"]

METHODS = ("dtr", "random", "none")


def routing_mask(
    num_tasks: int,
    dim: int,
    *,
    alpha: float | int = 4.0,
    beta: float | int = 0.8,
    method: str = "dtr",
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "num_tasks dim"]:
    """Which channels each timestep reads: exactly floor(beta * dim) in every row, Eq. (1).

    The power and the rounding (half to even) are in float64, as NumPy's in the authors' code.

    Args:
        num_tasks: T, the timesteps of training.
        dim: C, the channels.
        alpha: > 0; 1 slides the window evenly, more keeps the tasks of little noise together. 4 in the paper.
        beta: share of active channels, in (0, 1]; 1 routes nothing. 0.8 in the paper. Below 0.5 expect to lose.
        method: "dtr", Eq. (1); "random", a subset of that size drawn for each task, the paper's control R-TR; or
            "none", all channels.
        generator: of the random subsets, on the CPU.

    Raises:
        ValueError: if an argument is out of range, no channel would be active, or "random" has no generator.
    """
    if num_tasks < 1 or dim < 1:
        raise ValueError(f"num_tasks and dim must be positive, got {num_tasks} and {dim}")
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}")
    if not 0 < beta <= 1:
        raise ValueError(f"beta must lie in (0, 1], got {beta}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    active = int(beta * dim)
    if active == 0:
        raise ValueError(f"beta = {beta} of {dim} channels leaves none active")
    if method == "none":
        return torch.ones(num_tasks, dim, dtype=torch.bool)
    if method == "random":
        if generator is None:
            raise ValueError("random routing draws its masks: give a generator")
        # The first entries of a uniform permutation are a uniform subset.
        ranks = torch.rand(num_tasks, dim, generator=generator, dtype=torch.float64).argsort(dim=1)
        return torch.zeros(num_tasks, dim, dtype=torch.bool).scatter_(1, ranks[:, :active], True)
    times = torch.arange(num_tasks, dtype=torch.float64) / max(num_tasks - 1, 1)
    start = ((dim - active) * times ** float(alpha)).round().long()[:, None]
    channels = torch.arange(dim)
    return (start <= channels) & (channels < start + active)


@dataclass(frozen=True)
class Routing:
    """How a model routes its tasks: the arguments of `routing_mask`, and a seed for random masks.

    Args:
        method, alpha, beta, num_tasks: as for `routing_mask`.
        seed: of the masks of "random", which are other ones in every block.
    """

    method: str = "dtr"
    alpha: float | int = 4.0
    beta: float | int = 0.8
    num_tasks: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        routing_mask(2, 1000, alpha=self.alpha, beta=self.beta, method=self.method, generator=torch.Generator())
        if self.num_tasks < 1:
            raise ValueError(f"num_tasks must be positive, got {self.num_tasks}")

    def routers(
        self, dims: Sequence[int], kinds: "Sequence[type[TaskRouter]]" = (), **options: Any
    ) -> "list[TaskRouter]":
        """A router for each block, in order; but for random masks blocks of one width and kind share theirs.

        Args:
            dims: channels of each block's input.
            kinds: class of each router; `TaskRouter` if none are given.
            options: further arguments of all routers (`channel_dim`).
        """
        generator = torch.Generator().manual_seed(self.seed)
        made: dict[Any, TaskRouter] = {}
        routers = []
        for index, (dim, kind) in enumerate(zip(dims, kinds or [TaskRouter] * len(dims))):
            key = index if self.method == "random" else (dim, kind)
            if key not in made:
                made[key] = kind(
                    num_tasks=self.num_tasks, dim=dim, alpha=self.alpha, beta=self.beta, method=self.method,
                    generator=generator, **options,
                )  # fmt: skip
            routers.append(made[key])
        return routers


class TaskRouter(nn.Module):
    """Routes a residual block by timestep, Eq. (2); it has no parameters.

        router = TaskRouter(dim=384)
        out = router(x, t, block, conditioning)      # block(x * m, conditioning) + x * (1 - m)

    `fn` must be the whole residual block, input included in its output. In this order of operations `beta=1` is the
    plain block bit for bit. Nothing is divided by beta, unlike dropout. The mask is a buffer of booleans, so that
    casting the model leaves it exact; it is no part of the state dict unless it was drawn (`method="random"`), in
    which case it must be kept.

    t are the timesteps of training, 0 the least noise. A sampler on a coarser grid must pass those too, not its own
    step numbers, which look alike: `etude.nn.diffusion.sample` does. A model in continuous time u in [0, 1] takes
    round(u (T - 1)).

    Args:
        num_tasks, dim, alpha, beta, method, generator: as for `routing_mask`.
        channel_dim: where the channels are: -1 for tokens (batch, tokens, dim), 1 for maps (batch, dim, height, width).
    """

    mask: Bool[Tensor, "num_tasks dim"]

    def __init__(
        self,
        *,
        num_tasks: int = 1000,
        dim: int,
        alpha: float | int = 4.0,
        beta: float | int = 0.8,
        method: str = "dtr",
        channel_dim: int = -1,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if channel_dim not in (-1, 1):
            raise ValueError(f"channel_dim must be -1 (tokens) or 1 (maps), got {channel_dim}")
        mask = routing_mask(num_tasks, dim, alpha=alpha, beta=beta, method=method, generator=generator)
        self.register_buffer("mask", mask, persistent=method == "random")
        self.alpha, self.beta, self.method, self.channel_dim = alpha, beta, method, channel_dim

    def rows(self, x: Float[Tensor, "batch *shape"], t: Tensor) -> Float[Tensor, "batch *ones"]:
        """The masks of `t`, as numbers that broadcast over `x`.

        Raises:
            ValueError: if `x` has other channels, or `t` is not one number a row.
            TypeError, IndexError: if `t` are no timesteps (`check_timesteps`).
        """
        num_tasks, dim = self.mask.shape
        if x.shape[self.channel_dim] != dim:
            raise ValueError(
                f"the router is for {dim} channels, got {x.shape[self.channel_dim]} in an input of {tuple(x.shape)}"
            )
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must hold one timestep for each of {len(x)} rows, got shape {tuple(t.shape)}")
        check_timesteps(t, num_tasks)
        shape = [len(x)] + [1] * (x.ndim - 1)
        shape[self.channel_dim] = dim
        return self.mask.index_select(0, t).to(x.dtype).view(shape)

    def masked(self, x: Float[Tensor, "batch *shape"], t: Tensor) -> Float[Tensor, "batch *shape"]:
        """x m."""
        return x * self.rows(x, t)

    def forward(
        self, x: Float[Tensor, "batch *shape"], t: Tensor, fn: Callable[..., Tensor], *args: Any
    ) -> Float[Tensor, "batch *shape"]:
        mask = self.rows(x, t)
        return torch.addcmul(fn(x * mask, *args), x, 1 - mask)

    def extra_repr(self) -> str:
        return (
            f"{self.mask.shape[0]} tasks, dim={self.mask.shape[1]}, {self.method}, alpha={self.alpha}, beta={self.beta}"
        )
