"""Kernels of pairs: closed forms beside quadrature and a peer's values, the recursions, and their refusals."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.theory.pdlt import (
    Activation,
    FiniteWidthFlow,
    critical_init,
    gauss_avg,
    kernel_recursion,
    ntk_recursion,
    pair_basis,
    plot_correlations,
    susceptibilities,
)
from etude.theory.pdlt import kernels as kernel_module
from etude.theory.pdlt.activations import as_activation
from etude.theory.pdlt.pairs import _Series, pair_averages
from etude.theory.pdlt.planar import planar_averages

DOUBLE = torch.float64
X = torch.tensor([[0.3, -1.2, 0.7], [1.1, 0.4, -0.5], [-0.8, 0.9, 1.6], [0.31, -1.19, 0.72]], dtype=DOUBLE)

PEER = {
    "relu": (
        torch.relu,
        [1.65895591667, 1.23558598476, 1.4861806852, 1.6606968311, 1.51975425, 1.34820811622, 1.23703432685,
         2.35148420833, 1.49047417585, 1.66264476083],
        [5.00907366667, 2.09963015788, 2.60401570458, 4.99005138569, 4.452267, 2.12167989042, 2.10338954575,
         7.77918683333, 2.62059509941, 5.02382904333],
    ),
    "erf": (
        torch.erf,
        [1.13453147508, 0.635338720004, 0.651855173318, 1.13446424608, 1.13051340222, 0.532111600918,
         0.636003439721, 1.14564963043, 0.655219030382, 1.13462472462],
        [4.16114952059, 1.12688354698, 1.21394756861, 4.16129919101, 4.05714303252, 0.71552725342, 1.1297720569,
         4.54028536727, 1.22832958027, 4.16371577613],
    ),
    "gelu": (
        nn.GELU(),
        [1.3185615776, 0.880712559648, 1.09138849, 1.32027833691, 1.18367572175, 0.959375180669, 0.881941122627,
         2.01516856764, 1.09561885706, 1.32217532299],
        [4.06840162586, 1.52074033946, 1.96102992061, 4.07539397184, 3.49455020305, 1.49756079398, 1.52410838509,
         7.02430538755, 1.97760481404, 4.08377452636],
    ),
    "leaky": (
        nn.LeakyReLU(0.2),
        [1.79762279625, 1.17550202041, 1.40908560234, 1.79958070523, 1.64103985267, 1.1882897028, 1.17717974396,
         2.57662294052, 1.41591046744, 1.80177224425],
        [5.52565438498, 2.08813186287, 2.63226085856, 5.5154741583, 4.89932261069, 1.80574137983, 2.0932647033,
         8.64165496209, 2.65926817282, 5.542252177],
    ),
    "sin": (
        torch.sin,
        [1.04722146501, 0.594664689673, 0.602333421532, 1.04709603591, 1.04614294624, 0.543996652012,
         0.595110054558, 1.0487721278, 0.603912759726, 1.04724318838],
        [4.21061945332, 1.03643752829, 1.07840865984, 4.21149081398, 4.04135486672, 0.821213370146, 1.03845798002,
         5.03860560248, 1.08558129852, 4.21504466426],
    ),
}  # fmt: skip
"""NNGP and NTK of the rows of X (upper triangle), by neural-tangents 0.6.5 on jax 0.4.28 in float64: four dense layers
of W_std^2 = 1.7 and b_std^2 = 0.3 in its NTK parameterisation, for which lambda = C."""


@pytest.mark.parametrize("name", PEER)
def test_kernels_are_those_of_neural_tangents(name):
    activation, nngp, ntk = PEER[name]
    found = ntk_recursion(activation, 0.3, 1.7, X, 4, lambda_b=0.3, lambda_W=1.7)
    upper = torch.triu_indices(4, 4)
    assert found.kernel[-1][upper[0], upper[1]].tolist() == pytest.approx(nngp, rel=1e-10)
    assert found.value[-1][upper[0], upper[1]].tolist() == pytest.approx(ntk, rel=1e-10)
    bare = ntk_recursion(activation, 0.3, 1.7, X, 4, lambda_b=0.3, lambda_W=1.7, with_kernel=False)
    assert torch.equal(bare.value, found.value)
    assert bare.kernel.shape == (0, 4, 4)
    alone = kernel_recursion(activation, 0.3, 1.7, X, 4, keep="last")
    assert torch.allclose(alone.value[0], found.kernel[-1], rtol=1e-13)


def plane(f, Ka, Kb, rho, cuts=(0.0,)):
    """<f(z_a) f(z_b)> by brute force: a product of trapezoids, cut at f's kinks in neither direction."""
    u = torch.linspace(-9, 9, 1501, dtype=DOUBLE)
    w = torch.exp(-u.square() / 2) / math.sqrt(2 * math.pi) * float(u[1] - u[0])
    inner = (w * f(math.sqrt(Kb) * (rho * u[:, None] + math.sqrt(1 - rho**2) * u))).sum(1)
    return float((w * f(math.sqrt(Ka) * u) * inner).sum())


PAIRS = [(0.7, 2.0, 0.4), (1.3, 0.2, -0.8), (3.0, 3.0, 0.97)]


@pytest.mark.parametrize(
    ("activation", "slope", "digits"),
    [
        (nn.GELU(), None, 1e-9),
        (torch.erf, lambda z: 2 / math.sqrt(math.pi) * torch.exp(-z.square()), 1e-9),
        (torch.sin, torch.cos, 1e-9),
        (torch.cos, torch.sin, 1e-9),
        (nn.LeakyReLU(0.3), lambda z: torch.where(z > 0, 1.0, 0.3), 3e-3),
        (torch.abs, torch.sign, 3e-3),
        (nn.Identity(), torch.ones_like, 1e-9),
    ],
)
def test_closed_forms_equal_brute_force_over_the_plane(activation, slope, digits):
    act = as_activation(activation)
    closed = pair_averages(act, 1e-8)
    assert not isinstance(closed, _Series)
    for Ka, Kb, rho in PAIRS:
        a, b = (closed.rows(torch.tensor([K], dtype=DOUBLE)) for K in (Ka, Kb))
        Kab = torch.tensor([[rho * math.sqrt(Ka * Kb)]], dtype=DOUBLE)
        found = closed.block(Kab, a, b, True)
        expected = plane(act, Ka, Kb, rho)
        assert float(found.value) == pytest.approx(expected, rel=digits, abs=1e-9)
        assert float(found.slope) == pytest.approx(plane(slope or act.slope, Ka, Kb, rho), rel=digits, abs=digits)


@pytest.mark.parametrize(
    "activation", [torch.relu, nn.LeakyReLU(0.2), torch.abs, torch.erf, nn.GELU(), torch.sin, torch.cos]
)
def test_series_and_plane_agree_with_closed_forms_within_their_bounds(activation, monkeypatch):
    closed = ntk_recursion(activation, 0.1, 1.5, X, 4)
    kinks = (0.0,) if as_activation(activation).homogeneous_slopes() else ()
    hidden = Activation(as_activation(activation).function, kinks=kinks)
    monkeypatch.setattr(kernel_module, "pair_averages", lambda act, tol: _Series(hidden, tol))
    series = ntk_recursion(activation, 0.1, 1.5, X, 4)
    for mine, other, error, other_error in (
        (series.kernel, closed.kernel, series.kernel_error, closed.kernel_error),
        (series.value, closed.value, series.error, closed.error),
    ):
        off = (mine - other).abs().amax((1, 2))
        assert bool((off <= error + other_error + 1e-13).all())
        assert float(error.max()) < 1e-6


def test_a_close_pair_of_a_kinked_activation_goes_over_the_plane():
    rho = 0.9999
    closed = pair_averages(as_activation(torch.relu), 1e-8)
    rows = closed.rows(torch.tensor([1.0, 2.0], dtype=DOUBLE))
    a, b = rows.at(slice(0, 1)), rows.at(slice(1, 2))
    expected = closed.block(torch.tensor([[rho * math.sqrt(2)]], dtype=DOUBLE), a, b, True)
    K = torch.ones(1, dtype=DOUBLE)
    found = planar_averages(Activation(torch.relu, kinks=(0.0,)), K, 2 * K, rho * K)
    assert float(found.value) == pytest.approx(float(expected.value), rel=1e-9)
    assert float(found.slope) == pytest.approx(float(expected.slope), rel=1e-6)
    assert abs(float(found.slope) - float(expected.slope)) <= float(found.slope_error) + 1e-12


def test_any_activation_has_a_kernel_with_an_error_bound():
    for activation in (torch.tanh, nn.SiLU(), nn.ELU(), lambda z: z + torch.sin(z)):
        found = ntk_recursion(activation, 0.1, 1.0, X, 4)
        assert float(found.error.max()) < 1e-6
        a, b = float(found.kernel[0, 0, 0]), float(found.kernel[0, 1, 1])
        rho = float(found.kernel[0, 0, 1]) / math.sqrt(a * b)
        act = as_activation(activation)
        assert float(found.kernel[1, 0, 1]) == pytest.approx(0.1 + plane(act, a, b, rho), rel=1e-6)


def test_the_diagonal_is_the_flow_of_one_input():
    flow = FiniteWidthFlow(nn.SiLU(), 0.2, 1.9)
    for activation in (nn.SiLU(), nn.GELU()):
        flow = FiniteWidthFlow(activation, 0.2, 1.9)
        found = ntk_recursion(activation, 0.2, 1.9, X, 5)
        size = X.square().mean(1)
        table = flow.run(0.2 + 1.9 * size, 1 + size, 5)
        assert torch.allclose(found.kernel.diagonal(dim1=1, dim2=2), table.K, rtol=1e-9)
        assert torch.allclose(found.value.diagonal(dim1=1, dim2=2), table.Theta, rtol=1e-9)


def test_two_sets_of_inputs_are_a_corner_of_all():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 5, generator=generator, dtype=DOUBLE)
    rows[200:] *= 2  # other variances, so that a series needs another degree for them
    for activation, size, digits in (
        (torch.relu, 300, 1e-12), (nn.GELU(), 300, 1e-12), (torch.erf, 300, 1e-12), (torch.tanh, 205, 1e-8),
    ):  # fmt: skip
        whole = ntk_recursion(activation, 0.1, 1.5, rows[:size], 3)
        part = ntk_recursion(activation, 0.1, 1.5, rows[:200], 3, other=rows[200:size])
        assert torch.allclose(part.value, whole.value[:, :200, 200:], rtol=digits, atol=digits)
        assert torch.allclose(part.kernel, whole.kernel[:, :200, 200:], rtol=digits, atol=digits)
        assert torch.equal(whole.value, whole.value.transpose(1, 2))


def test_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(20, 5, generator=generator, dtype=DOUBLE)
    for activation in (torch.relu, torch.tanh):
        whole = kernel_recursion(activation, 0.1, 1.5, rows, 3)
        monkeypatch.setattr(kernel_module, "_BLOCK", 9)
        parts = kernel_recursion(activation, 0.1, 1.5, rows, 3)
        monkeypatch.undo()
        assert torch.allclose(whole.value, parts.value, rtol=1e-12)


def test_a_given_kernel_starts_the_recursion():
    found = ntk_recursion(torch.relu, 0.3, 1.7, X, 3)
    again = ntk_recursion(torch.relu, 0.3, 1.7, None, 3, K1=found.kernel[0], Theta1=found.value[0])
    assert torch.allclose(found.value, again.value, rtol=1e-13)
    one = kernel_recursion(torch.relu, 0.0, 2.0, None, 4, K1=torch.tensor([[0.7]], dtype=DOUBLE))
    assert torch.allclose(one.value, torch.full((4, 1, 1), 0.7, dtype=DOUBLE), rtol=1e-13)


def test_a_nearby_pair_moves_by_its_susceptibilities():
    # From the fixed point of GELU moved off criticality, where chi_par and chi_perp differ.
    C_b, C_W, K = 0.3, 1.7, 1.0
    for _ in range(300):
        K = C_b + C_W * float(gauss_avg(lambda z: F.gelu(z) ** 2, K).value)
    chi = susceptibilities(nn.GELU(), C_W, K)
    small = 1e-5
    start = torch.tensor([[K + small, K], [K, K - small]], dtype=DOUBLE)
    start[0, 1] = start[1, 0] = K - 2 * small
    basis = pair_basis(kernel_recursion(nn.GELU(), C_b, C_W, None, 2, K1=start).value)
    assert basis.midpoint.tolist() == pytest.approx([K, K], rel=1e-4)
    assert float(basis.size[1] / basis.size[0]) == pytest.approx(float(chi.par), rel=1e-4)
    assert float(basis.angle[1] / basis.angle[0]) == pytest.approx(float(chi.perp), rel=1e-4)
    point = critical_init(nn.GELU())
    same = kernel_recursion(nn.GELU(), point.C_b, point.C_W, None, 2, K1=torch.full((1, 1), point.K_star, dtype=DOUBLE))
    assert float(same.value[1]) == pytest.approx(point.K_star, rel=1e-12)


def test_kernels_are_of_networks():
    """The kernel of a wide random network over its neurons."""
    generator = torch.Generator().manual_seed(2)
    n = 6_000
    z = X @ torch.randn(3, n, generator=generator, dtype=DOUBLE) * math.sqrt(1.7 / 3) + 0.3**0.5 * torch.randn(
        n, generator=generator, dtype=DOUBLE
    )
    expected = kernel_recursion(F.silu, 0.3, 1.7, X, 2).value
    second = 0.3 + 1.7 * F.silu(z) @ F.silu(z).T / n
    np.testing.assert_allclose(z @ z.T / n, expected[0], atol=0.15)
    np.testing.assert_allclose(second, expected[1], atol=0.1)


def test_bad_input_is_refused_with_its_value():
    bad = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=DOUBLE)
    with pytest.raises(ValueError, match="least eigenvalue is -1"):
        kernel_recursion(torch.relu, 0.0, 2.0, None, 2, K1=bad)
    with pytest.raises(ValueError, match="must be symmetric"):
        kernel_recursion(torch.relu, 0.0, 2.0, None, 2, K1=torch.tensor([[1.0, 0.5], [0.1, 1.0]], dtype=DOUBLE))
    with pytest.raises(ValueError, match="row 1 of X has no signal"):
        kernel_recursion(torch.relu, 0.0, 2.0, torch.tensor([[1.0], [0.0]], dtype=DOUBLE), 2)
    with pytest.raises(ValueError, match="row 1 is not"):
        kernel_recursion(torch.relu, 0.0, 2.0, torch.tensor([[1.0], [math.nan]], dtype=DOUBLE), 2)
    with pytest.raises(ValueError, match="got both"):
        kernel_recursion(torch.relu, 0.0, 2.0, X, 2, K1=torch.eye(2, dtype=DOUBLE))
    with pytest.raises(ValueError, match="belong together"):
        ntk_recursion(torch.relu, 0.0, 2.0, None, 2, K1=torch.eye(2, dtype=DOUBLE))
    with pytest.raises((ValueError, TypeError), match=r"as many columns, got 3 and 2|typechecking parameter .other."):
        kernel_recursion(torch.relu, 0.0, 2.0, X, 2, other=X[:, :2])
    with pytest.raises(ValueError, match="that jumps"):
        ntk_recursion(torch.sign, 0.0, 2.0, X, 2)
    with pytest.raises(ValueError, match="the kernel explodes"):
        kernel_recursion(torch.relu, 0.0, 1e40, X, 8)
    with pytest.raises(ValueError, match="got -1"):
        ntk_recursion(torch.relu, 0.0, 2.0, X, 2, lambda_W=-1.0)
    with pytest.raises(ValueError, match="depth"):
        kernel_recursion(torch.relu, 0.0, 2.0, X, 0)


def test_correlations_are_drawn():
    figure = plot_correlations({"ReLU": kernel_recursion(torch.relu, 0.0, 2.0, X, 4)})
    assert len(figure.axes[0].lines) == 1
