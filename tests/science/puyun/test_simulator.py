"""Spherical harmonics, and a barotropic atmosphere against theory."""

import math

import numpy as np
import pytest
import torch

from etude.science.puyun import BarotropicSphere, Forcing, SphericalTransform
from etude.science.puyun.simulator import DAY, EARTH_OMEGA, EARTH_RADIUS


def coefficients(transform, seed=0, count=2):
    generator = torch.Generator().manual_seed(seed)
    size = transform.truncation + 1
    values = torch.view_as_complex(torch.randn(count, size, size, 2, generator=generator, dtype=torch.float64))
    values = values * transform.mask
    values[..., 0] = values[..., 0].real + 0j
    return values


def free():
    return BarotropicSphere(relaxation=None, forcing=None, diffusion_time=None)


def test_round_trip_is_exact():
    transform = SphericalTransform(32, 64, 21)
    c = coefficients(transform)
    assert (transform.forward(transform.inverse(c)) - c).abs().max() < 1e-13


def test_harmonics_are_those_of_scipy():
    from scipy.special import sph_harm_y

    transform = SphericalTransform(16, 32, 10)
    theta = np.radians(90 - transform.latitude)[:, None]
    phi = np.radians(transform.longitude)[None]
    for degree, m in ((0, 0), (3, 0), (4, 2), (7, 7), (10, 1)):
        c = torch.zeros(11, 11, dtype=torch.complex128)
        c[degree, m] = 1.0
        # A mean square of 1 over the sphere, and no sign (-1)^m.
        expected = math.sqrt(4 * math.pi) * (-1) ** m * sph_harm_y(degree, m, theta, phi)
        expected = expected.real * (1 if m == 0 else 2)
        assert np.abs(transform.inverse(c).numpy() - expected).max() < 1e-12


def test_power_sums_to_the_mean_square():
    transform = SphericalTransform(32, 64, 21)
    c = coefficients(transform)
    mean_square = ((transform.inverse(c) ** 2).mean(-1) * transform.weights).sum(-1)
    assert torch.allclose(transform.power(c).sum(-1), mean_square)


def test_divergence_of_a_gradient_is_the_laplacian():
    transform = SphericalTransform(32, 64, 21)
    c = coefficients(transform)
    laplacian = transform.divergence(*transform.cos_gradient(c))
    assert torch.allclose(laplacian, -transform.degree * (transform.degree + 1) * c, atol=1e-9)


def test_transform_agrees_with_torch_harmonics():
    harmonics = pytest.importorskip("torch_harmonics", exc_type=ImportError)
    transform = SphericalTransform(32, 64, 21)
    field = transform.inverse(coefficients(transform))
    peer = harmonics.RealSHT(32, 64, lmax=22, mmax=22, grid="legendre-gauss", norm="ortho", csphase=False).double()
    assert torch.allclose(peer(field) / math.sqrt(4 * math.pi), transform.forward(field), atol=1e-6)


def test_energy_and_enstrophy_are_conserved():
    sphere = free()
    start = sphere.mean + sphere.random_waves(3, 6e-6, (4, 12), torch.Generator().manual_seed(0))
    end = sphere.run(start, 2, 5 * 24, torch.Generator())[:, 1]
    assert (sphere.energy(end) / sphere.energy(start) - 1).abs().max() < 1e-4
    assert (sphere.enstrophy(end) / sphere.enstrophy(start) - 1).abs().max() < 1e-4
    assert not torch.allclose(start, end, atol=1e-7)
    u, v = sphere.wind(start)
    kinetic = 0.5 * ((u**2 + v**2).mean(-1) * sphere.transform.weights).sum(-1)
    assert torch.allclose(kinetic, sphere.energy(start))


def test_a_rossby_haurwitz_wave_moves_at_the_analytic_rate():
    sphere, r, w = free(), 4, 7.848e-6
    mu = sphere.transform.mu[:, None]
    longitude = torch.deg2rad(torch.from_numpy(sphere.transform.longitude))[None]
    psi = EARTH_RADIUS**2 * w * (-mu + (1 - mu**2) ** (r / 2) * mu * torch.cos(r * longitude))
    c = sphere.transform.forward(psi)
    start = -sphere.transform.degree * (sphere.transform.degree + 1) / EARTH_RADIUS**2 * c
    end = sphere.run(start[None], 2, 24, torch.Generator())[0, 1]
    moved = -math.degrees(torch.angle(end[5, 4] / start[5, 4]).item()) / r
    rate = (r * (3 + r) * w - 2 * EARTH_OMEGA) / ((1 + r) * (2 + r))
    assert math.degrees(rate * DAY) == pytest.approx(12.195, abs=1e-3)
    assert moved == pytest.approx(math.degrees(rate * DAY), abs=1e-3)


def test_rossby_waves_disperse_at_small_amplitude():
    sphere = free()
    for degree, m in ((5, 2), (9, 4), (3, 3)):
        start = torch.zeros(1, 22, 22, dtype=torch.complex128)
        start[0, degree, m] = 1e-12
        end = sphere.run(start, 2, 12, torch.Generator())[0, 1]
        frequency = -torch.angle(end[degree, m] / start[0, degree, m]).item() / (0.5 * DAY)
        assert frequency == pytest.approx(-2 * EARTH_OMEGA * m / (degree * (degree + 1)), rel=1e-5)


def test_solid_body_rotation_is_steady():
    sphere = free()
    cosine = torch.cos(torch.deg2rad(torch.from_numpy(sphere.transform.latitude)))[:, None].expand(32, 64)
    state = sphere.vorticity_of_wind(20 * cosine, torch.zeros(32, 64))[None]
    assert (sphere.run(state, 2, 48, torch.Generator())[:, 1] - state).abs().max() < 1e-16
    u, _ = sphere.wind(state)
    assert torch.allclose(u[0], 20 * cosine, atol=1e-10)


def test_relaxation_and_diffusion_decay_as_they_should():
    sphere = BarotropicSphere(relaxation=2 * DAY, forcing=None, diffusion_time=None)
    # The zonal mean flow is steady without relaxation, so its departure decays by itself.
    start = (1.001 * sphere.mean)[None]
    end = sphere.run(start, 2, 24, torch.Generator())[0, 1]
    assert ((end - sphere.mean).abs().sum() / (start[0] - sphere.mean).abs().sum()).item() == pytest.approx(
        math.exp(-0.5), rel=1e-4
    )
    sphere = BarotropicSphere(relaxation=None, forcing=None, diffusion_time=DAY)
    start = torch.zeros(1, 22, 22, dtype=torch.complex128)
    start[0, 21, 0] = 1e-7
    end = sphere.run(start, 2, 24, torch.Generator())[0, 1]
    assert (end[21, 0] / start[0, 21, 0]).real.item() == pytest.approx(math.exp(-1), rel=1e-4)


def test_stirring_has_its_amplitude_and_memory():
    sphere = BarotropicSphere()
    waves = sphere.random_waves(400, 2e-11, (4, 12), torch.Generator().manual_seed(0))
    assert sphere.transform.power(waves).sum(-1).mean().sqrt().item() == pytest.approx(2e-11, rel=0.02)
    assert waves[:, 13:].abs().max() == waves[:, :4].abs().max() == waves[:, :, 0].abs().max() == 0
    # From rest, without a mean flow, the response is the integral of the stirring over the first steps.
    still = BarotropicSphere(relaxation=None, diffusion_time=None, forcing=Forcing(amplitude=1e-16))
    one = still.run(torch.zeros(100, 22, 22, dtype=torch.complex128), 13, 1, torch.Generator().manual_seed(0))
    size = still.transform.power(one[:, 12]).sum(-1).mean().sqrt().item()
    memory = math.exp(-3600 / (1.5 * DAY))
    lags = np.abs(np.subtract.outer(np.arange(12), np.arange(12)))
    assert size == pytest.approx(3600e-16 * math.sqrt((memory**lags).sum()), rel=0.08)


def test_trajectories_are_independent_of_their_company_and_reproducible():
    sphere = BarotropicSphere(forcing=None)
    start = sphere.mean + sphere.random_waves(3, 6e-6, (4, 12), torch.Generator().manual_seed(0))
    together = sphere.run(start, 2, 6, torch.Generator())
    assert torch.allclose(sphere.run(start[1:2], 2, 6, torch.Generator())[0], together[1], atol=1e-15)
    fields = [
        BarotropicSphere().simulate(2, 3, generator=torch.Generator().manual_seed(1), spin_up_days=0.25)
        for _ in range(2)
    ]
    assert torch.equal(fields[0].values, fields[1].values)
    assert fields[0].runs.tolist() == [0, 0, 0, 1, 1, 1]
    assert fields[0].step_hours == 6
    assert fields[0].grid.channels == ("psi", "u", "v")


def test_refusals():
    with pytest.raises(ValueError, match="needs at least 22 x 43 points, got 16 x 64"):
        SphericalTransform(16, 64, 21)
    with pytest.raises(ValueError, match="at least 32 x 64 points for products without aliasing, got 24 x 48"):
        BarotropicSphere(24, 48, 21)
    with pytest.raises(ValueError, match="dt must be positive, got 0"):
        BarotropicSphere(dt=0)
    with pytest.raises(ValueError, match=r"mean_vorticity must have shape \(32, 64\), got \(2, 2\)"):
        BarotropicSphere(mean_vorticity=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"multiple of the time step of 3600 s, got 1.5"):
        BarotropicSphere().simulate(1, 2, generator=torch.Generator(), hours=1.5)
    with pytest.raises(ValueError, match=r"must end in \(32, 64\)"):
        SphericalTransform(32, 64, 21).forward(torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match=r"degrees must overlap 1..21, got \(30, 40\)"):
        BarotropicSphere().random_waves(1, 1.0, (30, 40), torch.Generator())
