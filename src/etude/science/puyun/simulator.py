"""A barotropic atmosphere on the sphere: the smallest world with jets, Rossby waves and predictability of days.

The absolute vorticity zeta + f of a layer without divergence is carried by its own wind,

    d zeta / dt = - div( u (zeta + f) ) - (zeta - zeta_clim) / tau + F - nu_T (l (l + 1) / (T (T + 1)))^4 zeta      (1)

with f = 2 Omega sin(latitude), u = k x grad(psi), zeta = laplacian(psi). F is random in space and an AR(1) process in
time. Spectral, truncated to a triangle (T21 on 32 x 64 points), without aliasing, stepped by Runge-Kutta of fourth
order; all trajectories advance together. The generator of this paper's small claims, ours and not the paper's.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Complex128, Float, Float64
from torch import Tensor

from etude.data.kinds_fields import FieldGrid, Fields
from etude.science.puyun.spectral import SphericalTransform

__all__ = ["DAY", "EARTH_OMEGA", "EARTH_RADIUS", "BarotropicSphere", "Forcing", "jet_profile"]

EARTH_RADIUS = 6.37122e6
EARTH_OMEGA = 7.292e-5
DAY = 86_400.0


def jet_profile(latitude: Float64[Tensor, "rows"]) -> Float64[Tensor, "rows"]:
    """Zonal wind in m/s with a jet in mid-latitudes of each hemisphere: 25 c - 30 c^3 + 300 s^2 c^6."""
    c, s = torch.cos(torch.deg2rad(latitude)), torch.sin(torch.deg2rad(latitude))
    return 25 * c - 30 * c**3 + 300 * s**2 * c**6


class Forcing(NamedTuple):
    """Random stirring: an AR(1) process in each coefficient.

    Attributes:
        amplitude: root mean square over the sphere, in 1/s^2.
        decay: e-folding time in s.
        degrees: lowest and highest degree l that is stirred; the zonal means (m = 0) are not.
    """

    amplitude: float = 2e-11
    decay: float = 1.5 * DAY
    degrees: tuple[int, int] = (4, 12)


class BarotropicSphere:
    """The model of Eq. (1), in SI units.

        sphere = BarotropicSphere()
        fields = sphere.simulate(trajectories=32, frames=60, generator=torch.Generator().manual_seed(0))

    Args:
        nlat, nlon, truncation: the Gaussian grid and the triangle.
        dt: time step in s.
        relaxation: tau in s, or None for none.
        forcing: the stirring, or None for none.
        diffusion_time: 1 / nu_T in s, the e-folding time of the smallest waves; None for none.
        mean_vorticity: zeta_clim on the grid, 1/s, (nlat, nlon); that of `jet_profile` if None.
        device: where it runs.

    Raises:
        ValueError: for a grid on which products alias, times that are not positive, or a mean of another shape.
    """

    def __init__(
        self,
        nlat: int = 32,
        nlon: int = 64,
        truncation: int = 21,
        dt: float | int = 3600.0,
        *,
        relaxation: float | int | None = 10 * DAY,
        forcing: Forcing | None = Forcing(),  # noqa: B008 (a tuple does not change)
        diffusion_time: float | int | None = 0.25 * DAY,
        mean_vorticity: Float[Tensor, "nlat nlon"] | None = None,
        device: torch.device | str = "cpu",
    ):
        transform = SphericalTransform(nlat, nlon, truncation, device)
        if not transform.is_alias_free:
            raise ValueError(
                f"T{truncation} needs at least {-(-(3 * truncation + 1) // 2)} x {3 * truncation + 1} points for "
                f"products without aliasing, got {nlat} x {nlon}"
            )
        for name, value in (("dt", dt), ("relaxation", relaxation), ("diffusion_time", diffusion_time)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if mean_vorticity is not None and tuple(mean_vorticity.shape) != (nlat, nlon):
            raise ValueError(f"mean_vorticity must have shape ({nlat}, {nlon}), got {tuple(mean_vorticity.shape)}")
        self.transform, self.dt, self.forcing, self.device = transform, float(dt), forcing, torch.device(device)
        laplacian = -transform.degree * (transform.degree + 1) / EARTH_RADIUS**2
        self._laplacian = laplacian
        self._inverse_laplacian = torch.where(transform.degree > 0, 1 / laplacian.clamp(max=-1e-30), 0.0)
        self.coriolis = (2 * EARTH_OMEGA * transform.mu)[:, None].expand(nlat, nlon)
        self._coriolis = transform.forward(self.coriolis)
        scaled = transform.degree * (transform.degree + 1) / (truncation * (truncation + 1))
        damping = torch.zeros_like(scaled) if diffusion_time is None else scaled**4 / diffusion_time
        self._relaxation = 0.0 if relaxation is None else 1 / relaxation
        self._damping = damping + self._relaxation
        if mean_vorticity is None:
            wind = jet_profile(torch.from_numpy(transform.latitude).to(device))
            self.mean = self.vorticity_of_wind(wind[:, None].expand(nlat, nlon), torch.zeros(nlat, nlon).to(wind))
        else:
            self.mean = transform.forward(mean_vorticity.to(device).double())
        self.mean = self.mean.clone()
        self.mean[0, 0] = 0  # no vorticity in the mean over a sphere

    def vorticity_of_wind(
        self, u: Float[Tensor, "*batch nlat nlon"], v: Float[Tensor, "*batch nlat nlon"]
    ) -> Complex128[Tensor, "*batch l m"]:
        """Coefficients of the vorticity, 1/s, of a wind in m/s: the divergence of (v, -u)."""
        cosine = torch.sqrt(1 - self.transform.mu**2)[:, None]
        return self.transform.divergence(v.double() * cosine, -u.double() * cosine) / EARTH_RADIUS

    def streamfunction(self, vorticity: Complex128[Tensor, "*batch l m"]) -> Complex128[Tensor, "*batch l m"]:
        """Coefficients of psi, m^2/s."""
        return self._inverse_laplacian * vorticity

    def wind(
        self, vorticity: Complex128[Tensor, "*batch l m"]
    ) -> tuple[Float64[Tensor, "*batch nlat nlon"], Float64[Tensor, "*batch nlat nlon"]]:
        """(u, v) on the grid, in m/s."""
        east, north = self.transform.cos_gradient(self.streamfunction(vorticity))
        cosine = EARTH_RADIUS * torch.sqrt(1 - self.transform.mu**2)[:, None]
        return -north / cosine, east / cosine

    def energy(self, vorticity: Complex128[Tensor, "*batch l m"]) -> Float64[Tensor, "*batch"]:
        """Mean kinetic energy of the unit of mass, J/kg."""
        return -0.5 * self.transform.power(vorticity).mul(self._inverse_laplacian[:, 0]).sum(-1)

    def enstrophy(self, vorticity: Complex128[Tensor, "*batch l m"]) -> Float64[Tensor, "*batch"]:
        """Mean of (zeta + f)^2 / 2, 1/s^2."""
        return 0.5 * self.transform.power(vorticity + self._coriolis).sum(-1)

    def tendency(
        self, vorticity: Complex128[Tensor, "*batch l m"], stirring: Tensor | float = 0.0
    ) -> Complex128[Tensor, "*batch l m"]:
        """d zeta / dt, Eq. (1)."""
        transform = self.transform
        east, north = transform.cos_gradient(self.streamfunction(vorticity))
        absolute = transform.inverse(vorticity + self._coriolis)
        advection = transform.divergence(-north * absolute, east * absolute) / EARTH_RADIUS**2
        return stirring - advection - self._damping * vorticity + self._relaxation * self.mean

    def step(
        self, vorticity: Complex128[Tensor, "*batch l m"], stirring: Tensor | float = 0.0
    ) -> Complex128[Tensor, "*batch l m"]:
        """One step of `dt`, the stirring held fast."""
        dt = self.dt
        k1 = self.tendency(vorticity, stirring)
        k2 = self.tendency(vorticity + dt / 2 * k1, stirring)
        k3 = self.tendency(vorticity + dt / 2 * k2, stirring)
        k4 = self.tendency(vorticity + dt * k3, stirring)
        return vorticity + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    def random_waves(
        self, count: int, rms: float, degrees: tuple[int, int], generator: torch.Generator
    ) -> Complex128[Tensor, "count l m"]:
        """Coefficients of random fields without zonal mean, isotropic over `degrees`, of a given root mean square."""
        low, high = degrees
        degree, order = self.transform.degree, self.transform.order
        chosen = (degree >= max(low, 1)) & (degree <= high) & (order >= 1) & self.transform.mask
        if not bool(chosen.any()):
            raise ValueError(f"degrees must overlap 1..{self.transform.truncation}, got {degrees}")
        # 2 m-sides times the real and imaginary parts of variance one each.
        size = rms / math.sqrt(4 * int(chosen.sum()))
        draws = torch.randn(count, *chosen.shape, 2, generator=generator, dtype=torch.float64).to(self.device)
        return torch.view_as_complex(draws) * chosen * size

    def run(
        self,
        vorticity: Complex128[Tensor, "count l m"],
        frames: int,
        steps_per_frame: int,
        generator: torch.Generator,
        spin_up: int = 0,
        callback: Callable[[int, int], None] | None = None,
    ) -> Complex128[Tensor, "count frames l m"]:
        """Trajectories from these states, with stirring if there is some.

        Args:
            vorticity: first states.
            frames: states that are kept, one every `steps_per_frame` steps; the first comes after the spin-up.
            steps_per_frame: steps between two frames.
            generator: of the stirring.
            spin_up: steps before the first frame.
            callback: called as callback(steps done, steps in all).
        """
        if frames < 1 or steps_per_frame < 1 or spin_up < 0:
            raise ValueError(f"frames and steps must be positive, got {frames}, {steps_per_frame}, {spin_up}")
        forcing = self.forcing
        stirring: Tensor | float = 0.0
        memory = 0.0
        if forcing is not None:
            stirring = self.random_waves(len(vorticity), forcing.amplitude, forcing.degrees, generator)
            memory = math.exp(-self.dt / forcing.decay)
        kept = []
        total = spin_up + (frames - 1) * steps_per_frame
        for done in range(total + 1):
            if done >= spin_up and (done - spin_up) % steps_per_frame == 0:
                kept.append(vorticity)
            if done == total:
                break
            vorticity = self.step(vorticity, stirring)
            if forcing is not None:
                fresh = self.random_waves(len(vorticity), forcing.amplitude, forcing.degrees, generator)
                stirring = memory * stirring + math.sqrt(1 - memory**2) * fresh
            if callback is not None:
                callback(done + 1, total)
        return torch.stack(kept, dim=1)

    def simulate(
        self,
        trajectories: int,
        frames: int,
        *,
        generator: torch.Generator,
        hours: float | int = 6,
        spin_up_days: float | int = 4,
        wave_rms: float | int = 6e-6,
        callback: Callable[[int, int], None] | None = None,
    ) -> Fields:
        """Frames of psi (m^2/s), u and v (m/s), one run a trajectory.

        Each begins with the mean flow and random waves of degrees 4 to 12 of root mean square vorticity `wave_rms`
        (1/s). The dates are made up: a run a year from 2000 on.

        Args:
            trajectories: how many. frames: of each, `hours` apart.
            generator: CPU generator of everything random.
            hours: between frames, a multiple of `dt`.
            spin_up_days: before the first frame. wave_rms: of the first random waves.
            callback: as of `run`.

        Raises:
            ValueError: for a step that does not divide `hours`, or counts that are not positive.
        """
        every = 3600 * hours / self.dt
        if abs(every - round(every)) > 1e-9 or every < 1:
            raise ValueError(f"hours must be a multiple of the time step of {self.dt:g} s, got {hours}")
        if trajectories < 1:
            raise ValueError(f"trajectories must be positive, got {trajectories}")
        start = self.mean + self.random_waves(trajectories, wave_rms, (4, 12), generator)
        spin_up = round(spin_up_days * DAY / self.dt)
        states = self.run(start, frames, round(every), generator, spin_up, callback)
        psi = self.transform.inverse(self.streamfunction(states))
        u, v = self.wind(states)
        values = torch.stack([psi, u, v], dim=2).flatten(0, 1).float().cpu()
        year = np.datetime64("2000-01-01T00", "s") + np.arange(trajectories) * np.timedelta64(366 * 86_400, "s")
        lead = (np.arange(frames) * round(3600 * hours)).astype("timedelta64[s]")
        times = (year[:, None] + lead).reshape(-1)
        return Fields(values, times, self.grid, np.repeat(np.arange(trajectories), frames))

    @property
    def grid(self) -> FieldGrid:
        """The axes of what `simulate` returns."""
        return FieldGrid(
            self.transform.latitude, self.transform.longitude, ("psi", "u", "v"), (None, None, None),
            ("m2 s-1", "m s-1", "m s-1"),
        )  # fmt: skip
