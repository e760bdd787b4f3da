"""The block's attention beside `nn.MultiheadAttention`; the builder's grids and wide networks beside plain ways."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.theory.uat_transformer import (
    SingleLayerTransformer,
    build_with_modes,
    outputs_in_blocks,
    prod_sin_target,
    ridge_expansion,
    sort_target,
    to_multihead_attention,
    uniform_sequences,
)


class _Peer(nn.Module):
    """The same block with PyTorch's module in place of ours."""

    def __init__(self, ours: SingleLayerTransformer):
        super().__init__()
        self.ours, self.attention = ours, to_multihead_attention(ours)

    def forward(self, x: Tensor) -> Tensor:
        h = self.ours.embed(x) + self.ours.positions
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.ours.ffn_out(torch.relu(self.ours.ffn_in(h)))


def _step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    (model(x) - y).square().mean().backward()


def _inference(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def _through_grid(expansion, axis: np.ndarray) -> float:
    return max(float(np.abs(values).max()) for _, values in expansion.slabs(axis))


def _point_by_point(expansion, axis: np.ndarray) -> float:
    grid = np.stack(np.meshgrid(*[axis] * expansion.D, indexing="ij"), axis=-1).reshape(-1, expansion.D)
    return float(np.abs(expansion(grid)).max())


def _attention(batch: int, seq_len: int, dim: int, heads: int) -> list[Comparison]:
    torch.manual_seed(0)
    ours = SingleLayerTransformer(8, dim, seq_len, heads, 4 * dim, 8)
    peer = _Peer(ours)
    x, y = torch.rand(batch, seq_len, 8), torch.rand(batch, seq_len, 8)
    torch.testing.assert_close(ours(x), peer(x), rtol=1e-4, atol=1e-5)
    calls: list[tuple[str, Callable[[nn.Module], Tensor | None]]] = [
        ("training pass", partial(_step, x=x, y=y)),
        ("inference", partial(_inference, x=x)),
    ]
    return [
        Comparison(
            f"{what}, dim {dim}, {heads} heads, {batch} x {seq_len} tokens", partial(call, ours), partial(call, peer),
            "nn.MultiheadAttention in the same block", "the same weights and outputs",
        )
        for what, call in calls
    ]  # fmt: skip


def comparisons() -> list[Comparison]:
    found = _attention(256, 3, 32, 4) + _attention(8, 128, 256, 8)
    expansion = ridge_expansion(lambda u: u.sort(dim=1).values, 3, 6)
    axis = np.linspace(0, 1, 33)
    assert abs(_through_grid(expansion, axis) - _point_by_point(expansion, axis)) < 1e-12
    found.append(
        Comparison(
            f"a series of {len(expansion.vectors)} ridge functions on 33^3 points, float64",
            partial(_through_grid, expansion, axis), partial(_point_by_point, expansion, axis),
            "NumPy, every ridge at every point", "axis by axis; the same numbers",
        )
    )  # fmt: skip
    target = prod_sin_target(2)
    block, report = build_with_modes(target, 2, 1, 1, K=16, spline_error=0.002, points=10)
    x = uniform_sequences(2_000, 2, 1)
    assert torch.allclose(outputs_in_blocks(block, x), _inference(block, x), atol=1e-12)
    found.append(
        Comparison(
            f"a constructed block of {report.hidden:,} hidden units on 2,000 sequences, float64",
            partial(outputs_in_blocks, block, x), partial(_inference, block, x), "one forward pass",
            "in blocks that stay in the cache; the peer holds all activations at once",
        )
    )  # fmt: skip
    sort = sort_target(2)
    found.append(
        Comparison(
            "finding the series of sorting two numbers, K = 32",
            partial(ridge_expansion, lambda u: sort(u[..., None])[..., 0], 2, 32),
            partial(_coefficients_by_sums, 32), "NumPy, sums of cosines over the grid", "ours by scipy.fft.dctn",
        )
    )  # fmt: skip
    return found


def _coefficients_by_sums(K: int) -> np.ndarray:
    n = max(3 * K, 96)
    axis = (np.arange(n) + 0.5) / n
    values = np.sort(np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1), axis=-1)
    cosines = np.cos(np.pi * np.outer(np.arange(K + 1), axis)) * np.where(np.arange(K + 1) == 0, 1, 2)[:, None] / n
    return np.einsum("ka,lb,abp->klp", cosines, cosines, values, optimize=True)
