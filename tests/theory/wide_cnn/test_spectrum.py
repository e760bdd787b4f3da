"""Spectra: circles by Fourier, sectors by quadrature and by sampling, the exponents, and what is refused."""

import math
from itertools import pairwise, product

import pytest
import torch
from scipy.integrate import quad

from etude.theory.wide_cnn import (
    fit_power_law,
    hierarchical_kernel,
    kernel_spectrum,
    mean_interval,
    plot_sectors,
    plot_spectra,
    predict_beta,
    predict_spectrum,
    sample_multisphere,
    sector_shares,
    sector_spectrum,
    spectrum_study,
)

KINDS = ("ntk", "rfk")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def circle(n):
    angles = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_on_equispaced_angles_eigenvalues_are_a_fourier_transform(kind):
    K = hierarchical_kernel(circle(512), None, [2], kind)
    # Circulant: every row is the first one, shifted.
    assert torch.allclose(K[100], K[0].roll(100), rtol=0, atol=1e-13)
    expected = torch.fft.fft(K[0]).real.sort(descending=True).values / 512
    assert torch.allclose(kernel_spectrum(K), expected, rtol=0, atol=1e-11)


def closed_form(k, kind):
    """Fourier coefficients of k1(cos a), and of cos a k0(cos a) + k1(cos a), by hand."""

    def slope(j):
        return 0.5 if j == 0 else 2 / (math.pi * j) ** 2 if j % 2 else 0.0

    value = 0.25 if k == 1 else 0.0 if k % 2 else 4 / (math.pi * (k * k - 1)) ** 2
    return value if kind == "rfk" else value + (slope(abs(k - 1)) + slope(k + 1)) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_on_the_circle_has_its_closed_form(kind):
    spectrum = sector_spectrum([2], kind, degree=256)
    nu = 0.5 if kind == "ntk" else 1.5
    for k in (0, 1, 2, 3, 4, 7, 10, 20):
        expected = closed_form(k, kind)
        # Degrees beyond the nodes fold back: a relative error of (k / 2 degree)^(1 + 2 nu).
        tolerance = expected * 2 * (k / 512) ** (1 + 2 * nu) + 2e-6 * (kind == "ntk") + 1e-10
        assert float(spectrum.eigenvalues[k]) == pytest.approx(expected, abs=tolerance)
    assert spectrum.levels.tolist()[:3] == [0, 1, 1]
    assert spectrum.multiplicities[:3].tolist() == [1, 2, 2]
    assert abs(spectrum.missing) < 5e-4
    values = [closed_form(k, kind) for k in range(256)]
    assert torch.allclose(spectrum.of_one_patch(), torch.tensor(values).double(), atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_levels_on_circles_are_the_transform_over_the_torus(kind):
    n = 96
    grid = torch.cat([circle(n)[:, None].expand(n, n, 2), circle(n)[None].expand(n, n, 2)], dim=2).reshape(-1, 4)
    row = hierarchical_kernel(grid[:1].contiguous(), grid, [2, 2], kind).reshape(n, n)
    expected = torch.fft.fft2(row).real / n**2
    spectrum = sector_spectrum([2, 2], kind, degree=n // 2)
    found = spectrum.eigenvalues.reshape(n // 2, n // 2)
    # Both fold degrees above 48 back, at nodes that are offset: low degrees agree.
    scale = 1e-4 if kind == "ntk" else 1e-7
    assert torch.allclose(found[:8, :8], expected[:8, :8], rtol=0.03 if kind == "ntk" else 1e-3, atol=scale)
    levels = spectrum.levels.reshape(n // 2, n // 2)
    assert int(levels[0, 0]) == 0
    assert set(levels[0, 1:].tolist()) == set(levels[1:, 0].tolist()) == {1}
    assert set(levels[1:, 1:].flatten().tolist()) == {2}


def test_spheres_follow_the_formula_of_funk_and_hecke():
    def k(t):
        return 2 * t * (1 - math.acos(t) / math.pi) + math.sqrt(1 - t * t) / math.pi

    spectrum = sector_spectrum([3], "ntk", degree=128)
    legendre = [lambda t: 1.0, lambda t: t, lambda t: (3 * t * t - 1) / 2, lambda t: (5 * t**3 - 3 * t) / 2]
    for degree, polynomial in enumerate(legendre):
        expected = quad(lambda t, p=polynomial: k(t) * p(t) / 2, -1, 1)[0]
        assert float(spectrum.eigenvalues[degree]) == pytest.approx(expected, abs=1e-6)
    assert spectrum.multiplicities[:4].tolist() == [1, 3, 5, 7]
    assert sector_spectrum([4], degree=8).multiplicities.tolist() == [(k + 1) ** 2 for k in range(8)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("filters", "top"), [([2], 1), ([2, 2], 1), ([2, 2], 3), ([3, 2], 2), ([2, 4], 1)])
def test_the_sectors_add_up_to_the_diagonal(filters, top, kind):
    spectrum = sector_spectrum(filters, kind, top=top, degree=16)
    total = 1.0 if kind == "rfk" else len(filters) + 1.0
    assert float(spectrum.trace.sum()) == pytest.approx(total, rel=0.02)
    assert spectrum.missing == pytest.approx(1 - float(spectrum.trace.sum()) / total, abs=1e-12)
    assert (spectrum.trace[1:] > 0).all()


def test_the_sectors_are_the_eigenvalues_of_a_kernel_matrix():
    x = sample_multisphere(1000, 2, 2, seeded())
    for kind, top in product(KINDS, (1, 2)):
        filters = [2, 2] if top == 1 else [2]
        measured = kernel_spectrum(hierarchical_kernel(x, None, filters, kind))
        exact = sector_spectrum(filters, kind, top=top).ranked(count=25)
        groups = [0, 1, 5] if top == 1 else [0, 1, 5, 9]
        for start, stop in pairwise(groups):
            # Equal eigenvalues repel in a sample: their mean is compared.
            assert float(measured[start:stop].mean()) == pytest.approx(float(exact[start:stop].mean()), rel=0.05)


def test_a_single_patch_in_a_deep_network_falls_by_the_law_of_its_sector():
    for filters, degree in (([2, 2, 2], [256, 8, 8, 8]), ([2, 2], [256, 64])):
        one = sector_spectrum(filters, "ntk", degree=degree).of_one_patch()
        k = torch.arange(60, 120, 2, dtype=torch.float64)
        # Lambda_k ~ k^(-2 nu - d_eff(1)) = k^-2, whatever the depth.
        assert fit_power_law(one[60:120:2], against=k).exponent == pytest.approx(2.0, abs=0.06)


def test_ranks_repeat_eigenvalues_by_their_multiplicity():
    spectrum = sector_spectrum([2, 2])
    values = spectrum.ranked(count=60)
    assert len(values) == 60
    assert torch.equal(values, values.sort(descending=True).values)
    assert torch.equal(spectrum.ranked(0, 5), spectrum.eigenvalues[:1])
    first = spectrum.ranked(1, 8)
    assert torch.allclose(first[:4], first[:1].expand(4), rtol=1e-12)  # two patches, cosine and sine
    assert spectrum.predicted(1) == 2.0
    assert spectrum.predicted() == 1.5
    assert spectrum.fit(1).exponent > spectrum.fit(2).exponent > 1


def test_measured_eigenvectors_are_attributed_to_their_sectors():
    x = sample_multisphere(600, 4, 2, seeded())
    values, shares = sector_shares(x, [2, 2, 2], count=21, draws=2000, generator=seeded(1))
    assert torch.allclose(values, kernel_spectrum(hierarchical_kernel(x, None, [2, 2, 2]))[:21], rtol=1e-9)
    assert torch.allclose(shares.value.sum(1), torch.ones(21, dtype=torch.float64), atol=1e-9)
    exact = sector_spectrum([2, 2, 2], degree=12)
    order = exact.eigenvalues.sort(descending=True).indices
    level = exact.levels[order].repeat_interleave(exact.multiplicities[order].long())[:21]
    for rank in (*range(1, 9), *range(9, 17), 18, 19):  # the constant has no variance to attribute
        own = int(level[rank]) - 1
        assert abs(float(shares.value[rank, own]) - 1) < 5 * float(shares.error[rank, own]) + 0.1
    assert float(shares.error[1:].max()) < 0.15


def test_a_target_on_one_of_several_trees_has_all_its_variance_there():
    x = sample_multisphere(300, 4, 2, seeded())
    _, shares = sector_shares(x, [2], count=9, draws=3000, generator=seeded(1))
    for rank in range(1, 9):
        assert float(shares.value[rank, 0]) == pytest.approx(1.0, abs=5 * float(shares.error[rank, 0]) + 1e-12)


def test_exponents_of_spectra():
    assert [predict_spectrum([2] * depth) for depth in (1, 2, 3)] == [2.0, 1.5, 1.25]
    assert predict_spectrum([2, 2], 1.5) == 2.5
    assert predict_spectrum([2, 2, 2], level=2) == 1.5
    assert predict_spectrum([3, 3], level=1) == 1.5


def test_exponents_of_learning_curves_are_those_of_the_paper():
    assert predict_beta([2], [2, 2, 2]) == pytest.approx(0.625, abs=1e-15)
    assert predict_beta([2, 2], [2, 2, 2]) == pytest.approx(5 / 12, abs=1e-15)
    assert predict_beta([2, 2, 2], [2, 2, 2]) == pytest.approx(0.25, abs=1e-15)
    for filters, d in (([2], 1), ([3, 3], 6), ([2, 4], 4)):
        assert predict_beta(filters, filters) == pytest.approx(1 / d)  # a student that is the teacher: beta = 1 / d


def test_a_smooth_target_saturates():
    d, top, nu_s = 1, 4, 0.5
    for nu_t in (0.5, 1.0, 1.9, 2.1, 5.0):
        general = min(2 * nu_t / d, 2 * (1 + 2 * nu_s / d)) * (1 + 2 * nu_s / top) / (1 + 2 * nu_s / d)
        assert predict_beta([2], [2, 2, 2], nu_t, nu_s) == pytest.approx(general)
    assert predict_beta([2], [2, 2, 2], 2.0) == predict_beta([2], [2, 2, 2], 50.0) == pytest.approx(2.5)


def test_a_target_in_no_meta_patch_of_the_student_is_not_learnt():
    assert predict_beta([2, 2, 2], [2]) == 0.0
    assert predict_beta([2, 3], [2, 2, 2]) == 0.0
    # Four inputs within the student's meta-patch of eight: it is learnt at the rate of that sector.
    assert predict_beta([2, 2], [2, 4]) == pytest.approx(predict_beta([2, 4], [2, 4]))


def test_a_power_law_is_recovered_with_its_error():
    ranks = torch.arange(1, 401, dtype=torch.float64)
    law = fit_power_law(0.3 * ranks**-1.7, 15, 250)
    assert (law.exponent, law.prefactor) == pytest.approx((1.7, 0.3))
    assert law.error < 1e-10
    assert torch.allclose(law(ranks), 0.3 * ranks**-1.7)
    found = [
        fit_power_law(ranks**-1.0 * (0.1 * torch.randn(400, generator=seeded(s)).double()).exp()) for s in range(200)
    ]
    spread = torch.tensor([fit.exponent for fit in found]).std()
    assert float(spread) == pytest.approx(found[0].error, rel=0.25)
    assert fit_power_law([1.0, 0.25], against=[10, 20]).exponent == pytest.approx(2.0)


def test_an_interval_over_repetitions():
    found = mean_interval([1.0, 2.0, 4.0])
    assert (found.mean, found.error) == pytest.approx((7 / 3, math.sqrt(7 / 3) / math.sqrt(3)))
    assert found.high - found.mean == pytest.approx(4.302653 * found.error, rel=1e-6)
    assert math.isnan(mean_interval([1.0]).low)


def test_a_study_of_spectra_returns_numbers_with_error_bars():
    calls = []
    study = spectrum_study([2, 2], 300, seeds=[3, 4], ranks=(10, 60), progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)]
    assert study.eigenvalues.shape == (2, 300)
    x = sample_multisphere(300, 2, 2, seeded(4))
    values = kernel_spectrum(hierarchical_kernel(x, None, [2, 2]))
    assert torch.equal(study.eigenvalues[1], values)
    assert study.fits[1] == fit_power_law(values, 10, 60)
    assert study.exponent == mean_interval([fit.exponent for fit in study.fits])
    assert study.predicted == 1.5
    assert len(plot_spectra({"study": study, "values": values}).axes[0].lines) == 3


def test_sectors_are_drawn_with_their_laws():
    figure = plot_sectors(sector_spectrum([2, 2]), count=100)
    assert len(figure.axes[0].lines) == 4


def _asymmetric():
    K = torch.eye(4, dtype=torch.float64)
    K[0, 1] = 0.1
    return K


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kernel_spectrum(torch.diag(torch.tensor([1.0, 1.0, -0.5])).double()),
         r"not positive semi-definite: its lowest eigenvalue is -0\.5, the limit for 3 points -1\.5e-09"),
        (lambda: kernel_spectrum(_asymmetric()), r"symmetric: K and its transpose differ by 0\.1, limit 1e-08"),
        (lambda: kernel_spectrum(torch.full((2, 2), math.nan).double()), "K holds 4 values that are NaN"),
        (lambda: fit_power_law([1.0, 0.5, 0.0], 1, 3), r"positive values; number 3 is 0"),
        (lambda: fit_power_law([1.0, 0.5], 1, 5), "1 <= lo < hi <= 2, got lo=1 and hi=5"),
        (lambda: fit_power_law([1.0, 0.5], against=[1.0]), "one x for each of 2 values"),
        (lambda: fit_power_law([1.0, 0.5], against=[2.0, 2.0]), "two different x"),
        (lambda: mean_interval([]), "n >= 1"),
        (lambda: predict_beta([3], [2, 2]), r"same first filter, got \[3\] and \[2, 2\]"),
        (lambda: predict_beta([1], [1, 2]), r"sphere S\^0 has dimension 0"),
        (lambda: predict_beta([2], [2], nu_t=0.0), "nu_t must be positive and finite, got 0"),
        (lambda: predict_spectrum([2, 2], level=3), "level must lie in 1..2, got 3"),
        (lambda: sector_spectrum([1, 2]), r"sphere S\^0 has dimension 0"),
        (lambda: sector_spectrum([2], "rbf"), "kind must be"),
        (lambda: sector_spectrum([2], top=0), "top must be at least 1, got 0"),
        (lambda: sector_spectrum([2, 2], degree=1), r"at least 2, .* got \[1, 1\]"),
        (lambda: sector_spectrum([2, 2, 2], degree=64), r"at most 8,388,608 nodes \(one degree of 2..26 for all\)"),
        (lambda: sector_spectrum([2, 2], degree=[4]), "one for each of 2 patches"),
        (lambda: sector_spectrum([2]).ranked(2), r"level must lie in 0..1, got 2"),
        (lambda: sector_spectrum([2]).of_one_patch(1), r"patch must lie in 0..0, got 1"),
        (lambda: sector_shares(sample_multisphere(5, 2, 2), [2], count=6), "count must lie in 1..5, got 6"),
        (lambda: sector_shares(sample_multisphere(5, 2, 2), [2], count=2, draws=1), "draws must be at least 2"),
        (lambda: spectrum_study([2, 2], 100), "n must reach the last rank fitted, 250, got 100"),
        (lambda: spectrum_study([2, 2], 300, seeds=[]), "at least one seed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
