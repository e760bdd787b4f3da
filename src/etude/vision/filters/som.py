"""The self-organising map: units on a grid, of which neighbours come to resemble each other.

Kohonen, "Self-organized formation of topologically correct feature maps", Biological Cybernetics, 1982. In step t of
T, with b(x) the unit nearest to x, g_u the place of unit u and h_u(x) = exp(-|g_u - g_b(x)|^2 / (2 r_t^2)),

    w_u <- w_u + eta_t (sum_x h_u(x) x - w_u sum_x h_u(x)) / max(1, sum_x h_u(x))                          (1)

over a mini-batch of inputs x; radius r and rate eta decay geometrically. With one input a step this is Kohonen's rule.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["SelfOrganizingMap"]


class SelfOrganizingMap:
    """A map of rows x columns units.

        som = SelfOrganizingMap(6, 6).fit(patches, generator=torch.Generator().manual_seed(0))
        som.weight                                    # (36, dim), row by row

    Args:
        rows, columns: of the grid.
        steps: mini-batches. batch_size: inputs in each.
        radius: of the neighbourhood at the first and the last step, in units of the grid; the first is half the longer
            side (at least 1) if None.
        rate: eta at the first and the last step, each in (0, 1].

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        steps: int = 500,
        batch_size: int = 64,
        radius: tuple[float | int | None, float | int] = (None, 0.5),
        rate: tuple[float | int, float | int] = (0.5, 0.05),
    ):
        if min(rows, columns, steps, batch_size) < 1:
            raise ValueError(
                f"rows, columns, steps and batch_size must be positive, got {rows}, {columns}, {steps}, {batch_size}"
            )
        first = max(max(rows, columns) / 2, 1.0) if radius[0] is None else radius[0]
        if not (first > 0 and radius[1] > 0):
            raise ValueError(f"radius must be positive, got {radius}")
        if not (0 < rate[0] <= 1 and 0 < rate[1] <= 1):
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        self.rows, self.columns, self.steps, self.batch_size = rows, columns, steps, batch_size
        self.radius, self.rate = (first, radius[1]), rate
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        self.places = torch.stack([row.flatten(), column.flatten()], dim=1).float()
        self.weight = torch.empty(0, 0)

    def fit(self, data: Float[Tensor, "n dim"], generator: torch.Generator | None = None) -> "SelfOrganizingMap":
        """Starts the units on drawn inputs and runs all steps of Eq. (1)."""
        units = self.rows * self.columns
        if len(data) < 1:
            raise ValueError("there are no inputs to map")
        start = torch.randint(0, len(data), (units,), generator=generator)
        self.weight = data[start].clone()
        apart = torch.cdist(self.places, self.places).square()
        for step in range(self.steps):
            done = step / max(self.steps - 1, 1)
            radius, rate = (ends[0] * (ends[1] / ends[0]) ** done for ends in (self.radius, self.rate))
            batch = data[torch.randint(0, len(data), (self.batch_size,), generator=generator)]
            near = torch.exp(-apart[self.nearest(batch)[:, 0]] / (2 * radius**2))
            total = near.sum(dim=0)[:, None]
            self.weight += rate * (near.T @ batch - total * self.weight) / total.clamp_min(1)
        return self

    def nearest(self, data: Float[Tensor, "n dim"], count: int = 1) -> Int64[Tensor, "n count"]:
        """The `count` units nearest to each input, the nearest first."""
        return torch.cdist(data, self.weight).topk(count, dim=1, largest=False).indices

    def quantisation_error(self, data: Float[Tensor, "n dim"]) -> float:
        """Mean distance of an input to its nearest unit."""
        return float(torch.cdist(data, self.weight).amin(dim=1).mean())

    def topographic_error(self, data: Float[Tensor, "n dim"]) -> float:
        """Share of inputs whose nearest two units are not neighbours on the grid (diagonals count as neighbours)."""
        first, second = self.places[self.nearest(data, 2)].unbind(dim=1)
        return float(((first - second).abs().amax(dim=1) > 1).float().mean())
