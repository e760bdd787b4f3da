"""The kernels: against the recursion as it stands, its limits and symmetries, and what inputs are refused."""

import math
from itertools import product

import mpmath
import pytest
import torch

from etude.theory.wide_cnn import (
    effective_dimensions,
    fc_ntk,
    hierarchical_kernel,
    kernel_diagonal,
    kernel_spectrum,
    sample_multisphere,
    to_patches,
)
from etude.theory.wide_cnn.patches import in_double

KINDS = ("ntk", "rfk")
TREES = [
    ([2, 2, 2], 8, 2),
    ([2, 2], 4, 2),
    ([3, 3], 9, 3),
    ([2, 4], 8, 2),
    ([2, 2, 2], 16, 2),
    ([4], 12, 4),
    ([2], 8, 2),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def k0(t):
    return (math.pi - math.acos(max(-1.0, min(1.0, t)))) / math.pi


def k1(t):
    t = max(-1.0, min(1.0, t))
    return (math.sqrt(1 - t * t) + (math.pi - math.acos(t)) * t) / math.pi


def by_definition(x, y, filters, kind):
    """One pair, patch by patch and level by level, from the equations of the paper."""
    s = filters[0]
    c = [sum(x[i + j] * y[i + j] for j in range(s)) for i in range(0, len(x), s)]
    t = list(c)
    top = len(c)
    for size in filters[1:]:
        top //= size
    for children in (*filters[1:], top):
        groups = [range(i, i + children) for i in range(0, len(c), children)]
        t = [
            sum(k0(c[j]) * t[j] for j in group) / children + sum(k1(c[j]) for j in group) / children for group in groups
        ]
        c = [sum(k1(c[j]) for j in group) / children for group in groups]
    return t[0] if kind == "ntk" else c[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("filters", "d", "s"), TREES)
def test_blocks_equal_the_recursion_pair_by_pair(filters, d, s, kind):
    x, y = sample_multisphere(3, d // s, s, seeded(1)), sample_multisphere(3, d // s, s, seeded(2))
    expected = torch.tensor(
        [[by_definition(a, b, filters, kind) for b in y.tolist()] for a in x.tolist()], dtype=torch.float64
    )
    for chunk in (None, 2, 1):
        found = hierarchical_kernel(x, y, filters, kind, chunk=chunk)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("filters", "d", "s"), TREES)
def test_the_matrix_is_symmetric_positive_and_has_the_diagonal_that_theory_gives(filters, d, s, kind):
    x = sample_multisphere(300, d // s, s, seeded())
    K = hierarchical_kernel(x, None, filters, kind, chunk=64)
    assert torch.equal(K, K.T)
    assert torch.allclose(K, hierarchical_kernel(x, x, filters, kind, chunk=300), rtol=0, atol=1e-13)
    value = 1.0 if kind == "rfk" else len(filters) + 1.0
    assert torch.allclose(K.diagonal(), torch.full((300,), value, dtype=torch.float64), rtol=0, atol=1e-14)
    assert torch.allclose(kernel_diagonal(x, filters, kind), K.diagonal(), rtol=0, atol=1e-14)
    assert float(torch.linalg.eigvalsh(K)[0]) > -1e-9 * 300


def test_blocks_of_both_sides_and_a_copy_of_x_give_one_matrix():
    x, y = sample_multisphere(50, 4, 2, seeded(1)), sample_multisphere(37, 4, 2, seeded(2))
    whole = hierarchical_kernel(x, y, [2, 2, 2])
    assert torch.allclose(whole, hierarchical_kernel(x, y, [2, 2, 2], chunk=11), rtol=0, atol=1e-14)
    assert torch.allclose(whole.T, hierarchical_kernel(y, x, [2, 2, 2]), rtol=0, atol=1e-14)
    own = hierarchical_kernel(x, None, [2, 2], chunk=7)
    assert torch.equal(own, own.T)
    assert torch.allclose(hierarchical_kernel(x, x.clone(), [2, 2]), own, rtol=0, atol=1e-14)


@pytest.mark.parametrize("d", [3, 40])
def test_one_patch_that_is_the_whole_input_is_the_ntk_of_one_hidden_layer(d):
    x, y = torch.randn(6, d, dtype=torch.float64, generator=seeded(1)), torch.randn(5, d, generator=seeded(2)).double()
    t = (x / x.norm(dim=1, keepdim=True)) @ (y / y.norm(dim=1, keepdim=True)).T
    angle = torch.arccos(t)
    rfk = (torch.sqrt(1 - t**2) + (math.pi - angle) * t) / math.pi
    ntk = (math.pi - angle) / math.pi * t + rfk
    assert torch.allclose(hierarchical_kernel(x, y, [d]), ntk, rtol=0, atol=1e-13)
    assert torch.allclose(hierarchical_kernel(x, y, [d], "rfk"), rfk, rtol=0, atol=1e-13)
    assert torch.allclose(fc_ntk(x, y, 1), ntk, rtol=0, atol=1e-13)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_fully_connected_kernel_is_the_recursion_over_the_depth(depth):
    x, y = torch.randn(3, 6, dtype=torch.float64, generator=seeded(1)), torch.randn(4, 6, generator=seeded(2)).double()
    for i, j in product(range(3), range(4)):
        c = t = float(torch.nn.functional.cosine_similarity(x[i], y[j], dim=0))
        for _ in range(depth):
            t, c = k0(c) * t + k1(c), k1(c)
        assert float(fc_ntk(x, y, depth)[i, j]) == pytest.approx(t, abs=1e-12)
        assert float(fc_ntk(x, y, depth, "rfk")[i, j]) == pytest.approx(c, abs=1e-12)
    assert torch.allclose(fc_ntk(x, None, depth).diagonal(), torch.tensor(depth + 1.0).double(), atol=1e-14)


def exact(x, y, filters, kind):
    """The recursion in 50 digits, on unit vectors made in 50 digits."""
    with mpmath.workdps(50):
        s = filters[0]
        c = []
        for i in range(0, len(x), s):
            a, b = ([mpmath.mpf(v) for v in z[i : i + s]] for z in (x, y))
            dot = mpmath.fsum(p * q for p, q in zip(a, b))
            c.append(dot / mpmath.sqrt(mpmath.fsum(p * p for p in a) * mpmath.fsum(q * q for q in b)))
        t, top = list(c), len(c) // math.prod(filters[1:])
        for children in (*filters[1:], top):
            slope = [1 - mpmath.acos(v) / mpmath.pi for v in c]
            value = [mpmath.sqrt(1 - v * v) / mpmath.pi + w * v for v, w in zip(c, slope)]
            t = [w * v for w, v in zip(slope, t)]
            starts = range(0, len(c), children)
            c = [mpmath.fsum(value[i : i + children]) / children for i in starts]
            t = [mpmath.fsum(t[i : i + children]) / children + c[n] for n, i in enumerate(starts)]
        return float(t[0] if kind == "ntk" else c[0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("gap", [1e-2, 1e-5, 1e-8, 1e-11])
def test_nearly_equal_and_nearly_opposite_inputs_keep_all_digits(gap, sign):
    # The arc cosine of the inner product is off by 1e-8 here, and duplicates by 5e-9 from the diagonal.
    x = sample_multisphere(1, 4, 2, seeded())
    y = sign * x + gap * torch.randn(1, 8, dtype=torch.float64, generator=seeded(1))
    for kind in KINDS:
        found = float(hierarchical_kernel(x, y, [2, 2, 2], kind))
        assert found == pytest.approx(exact(x[0].tolist(), y[0].tolist(), [2, 2, 2], kind), abs=4e-15)


@pytest.mark.parametrize(("filters", "d", "s"), TREES[:4])
def test_random_pairs_are_right_to_the_last_digits(filters, d, s):
    x, y = sample_multisphere(40, d // s, s, seeded(1)), sample_multisphere(40, d // s, s, seeded(2))
    found = hierarchical_kernel(x, y, filters)
    direct = torch.tensor([[by_definition(a, b, filters, "ntk") for b in y.tolist()] for a in x.tolist()]).double()
    # The pairs in which the recursion with arc cosines differs most: it is the one that is wrong.
    for place in (found - direct).abs().flatten().topk(5).indices.tolist():
        i, j = divmod(place, 40)
        assert float(found[i, j]) == pytest.approx(exact(x[i].tolist(), y[j].tolist(), filters, "ntk"), abs=2e-15)


def test_equal_and_opposite_patches_are_exact():
    x = sample_multisphere(1, 4, 2, seeded())
    assert float(hierarchical_kernel(x, x.clone(), [2, 2, 2])) == 4.0
    for filters in ([2], [8]):
        assert float(hierarchical_kernel(x, -x, filters)) == pytest.approx(0.0, abs=1e-15)
    long = torch.randn(1, 60, dtype=torch.float64, generator=seeded())
    assert float(fc_ntk(long, long.clone(), 3)) == pytest.approx(4.0, abs=1e-14)
    assert float(fc_ntk(long, -long, 1)) == pytest.approx(0.0, abs=1e-14)


def test_long_patches_that_nearly_coincide_keep_their_digits_too():
    x = torch.randn(4, 60, dtype=torch.float64, generator=seeded())
    y = x + 1e-7 * torch.randn(4, 60, dtype=torch.float64, generator=seeded(1))
    found = fc_ntk(x, y, 1).diagonal()
    opposite = fc_ntk(x, -y, 1).diagonal()
    for i in range(4):
        assert float(found[i]) == pytest.approx(exact(x[i].tolist(), y[i].tolist(), [60], "ntk"), abs=1e-14)
        assert float(opposite[i]) == pytest.approx(exact(x[i].tolist(), (-y[i]).tolist(), [60], "ntk"), abs=1e-14)


def test_permuting_the_patches_of_a_meta_patch_in_both_inputs_changes_nothing():
    x, y = sample_multisphere(5, 4, 2, seeded(1)), sample_multisphere(5, 4, 2, seeded(2))
    K = hierarchical_kernel(x, y, [2, 2, 2])
    inside = [1, 0, 3, 2]  # patches within both meta-patches of level 2
    halves = [2, 3, 0, 1]
    for order in (inside, halves):
        moved = [z.reshape(5, 4, 2)[:, order].flatten(1) for z in (x, y)]
        assert torch.allclose(hierarchical_kernel(*moved, [2, 2, 2]), K, rtol=0, atol=1e-14)
        # In one input alone patches meet others.
        assert not torch.allclose(hierarchical_kernel(moved[0], y, [2, 2, 2]), K, atol=1e-3)
    across = [0, 2, 1, 3]  # a patch of each meta-patch changes place: the tree is another one
    moved = [z.reshape(5, 4, 2)[:, across].flatten(1) for z in (x, y)]
    assert not torch.allclose(hierarchical_kernel(*moved, [2, 2, 2]), K, atol=1e-4)


def test_a_kernel_of_few_layers_is_the_mean_over_its_meta_patches():
    x, y = sample_multisphere(5, 4, 2, seeded(1)), sample_multisphere(6, 4, 2, seeded(2))
    for filters in ([2], [2, 2]):
        size = math.prod(filters)
        parts = [
            hierarchical_kernel(x[:, i : i + size].contiguous(), y[:, i : i + size].contiguous(), filters)
            for i in range(0, 8, size)
        ]
        assert torch.allclose(hierarchical_kernel(x, y, filters), sum(parts) / len(parts), rtol=0, atol=1e-14)


def test_squares_of_an_image_are_grouped_as_the_layers_see_them():
    image = torch.arange(2 * 8 * 16, dtype=torch.float64).reshape(1, 2, 8, 16)
    patches = to_patches(image, [2, 2, 2], dim=2)[0]
    assert patches.shape == (32, 8)
    for level, side in enumerate((2, 4, 8)):
        count = 4**level
        for n in range(0, 32, count):
            block = set(patches[n : n + count].flatten().tolist())
            # The n-th group of a level must be one square of that side, through both channels.
            rows = {int(v) % 128 // 16 for v in block}
            columns = {int(v) % 16 for v in block}
            assert len(block) == 2 * side * side
            assert len(rows) == len(columns) == side
            assert min(rows) % side == min(columns) % side == 0


@pytest.mark.parametrize("kind", KINDS)
def test_images_follow_the_recursion_over_squares(kind):
    x, y = (torch.randn(2, 3, 4, 8, dtype=torch.float64, generator=seeded(s)) for s in (1, 2))
    found = hierarchical_kernel(x, y, [2, 2], kind, dim=2)

    def unit(image, i, j):
        patch = image[:, i : i + 2, j : j + 2].flatten()
        return patch / patch.norm()

    for a, b in product(range(2), range(2)):
        tops = []
        for left in (0, 4):
            cs = [float(unit(x[a], i, j) @ unit(y[b], i, j)) for i in (0, 2) for j in (left, left + 2)]
            c = sum(map(k1, cs)) / 4
            t = sum(k0(v) * v for v in cs) / 4 + c
            tops.append(k1(c) if kind == "rfk" else k0(c) * t + k1(c))
        assert float(found[a, b]) == pytest.approx(sum(tops) / 2, abs=1e-12)


def test_channels_of_a_sequence_belong_to_the_patch():
    x = torch.randn(4, 3, 8, dtype=torch.float64, generator=seeded())
    flat = x.reshape(4, 3, 4, 2).transpose(1, 2).flatten(1)  # by patch, then channel
    assert torch.allclose(
        hierarchical_kernel(x, None, [2, 2, 2]), hierarchical_kernel(flat, None, [6, 2, 2]), atol=1e-13
    )


def arc_cosine(cov, qx, qy):
    """E relu(u) relu(v) and E relu'(u) relu'(v), times 2, of Gaussians with these covariances."""
    norm = math.sqrt(qx * qy)
    return (norm * k1(cov / norm), k0(cov / norm)) if norm else (0.0, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_normalisation_norms_pass_through_the_layers(kind):
    x, y = (torch.randn(3, 8, dtype=torch.float64, generator=seeded(s)) for s in (1, 2))
    x[0, 2:4] = 0.0  # a blank patch
    y[1, :4] = 0.0  # a blank meta-patch
    found = hierarchical_kernel(x, y, [2, 2, 2], kind, normalize=False)
    for a, b in product(range(3), range(3)):
        nodes = []
        for i in range(0, 8, 2):
            u, v = x[a, i : i + 2], y[b, i : i + 2]
            nodes.append((float(u @ v), float(u @ u), float(v @ v), float(u @ v)))
        for children in (2, 2, 1):
            passed = []
            for cov, qx, qy, t in nodes:
                value, slope = arc_cosine(cov, qx, qy)
                passed.append((value, qx, qy, slope * t + value))
            nodes = [
                tuple(sum(column) / children for column in zip(*passed[i : i + children]))
                for i in range(0, len(passed), children)
            ]
        ((cov, _, _, t),) = nodes
        assert float(found[a, b]) == pytest.approx(t if kind == "ntk" else cov, abs=1e-12)
    own = hierarchical_kernel(x, None, [2, 2, 2], kind, normalize=False)
    assert torch.allclose(own.diagonal(), kernel_diagonal(x, [2, 2, 2], kind, normalize=False), atol=1e-14)
    assert float(torch.linalg.eigvalsh(own)[0]) > -1e-12
    # One factor for all norms comes out as its square.
    assert torch.allclose(
        hierarchical_kernel(3 * x, y, [2, 2], kind, normalize=False),
        3 * hierarchical_kernel(x, y, [2, 2], kind, normalize=False), atol=1e-12,
    )  # fmt: skip
    unit = sample_multisphere(5, 4, 2, seeded())
    assert torch.allclose(
        hierarchical_kernel(unit, None, [2, 2], kind, normalize=False), hierarchical_kernel(unit, None, [2, 2], kind),
        atol=1e-12,
    )  # fmt: skip


def test_a_constant_gives_blank_patches_a_direction():
    images = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=seeded())
    images[0, :, :2, :2] = 0.0
    with pytest.raises(ValueError, match="1 first patches of x have norm 0 and no direction, patch 0 of row 0"):
        hierarchical_kernel(images, None, [2, 2], dim=2)
    K = hierarchical_kernel(images, None, [2, 2], dim=2, constant=1.0)
    extended = torch.cat([to_patches(images, [2, 2], dim=2), torch.ones(3, 4, 1, dtype=torch.float64)], dim=2)
    assert torch.allclose(K, hierarchical_kernel(extended.flatten(1), None, [5, 4]), atol=1e-14)


def test_duplicates_keep_the_matrix_positive():
    x = sample_multisphere(60, 4, 2, seeded())
    doubled = torch.cat([x, x + 1e-13])
    K = hierarchical_kernel(doubled, None, [2, 2, 2])
    assert float(torch.linalg.eigvalsh(K)[0]) > -1e-13 * 120
    assert len(kernel_spectrum(K)) == 120


def test_single_precision_is_computed_in_double_and_said():
    x = sample_multisphere(4, 4, 2, seeded())
    with pytest.warns(UserWarning, match=r"x is torch.float32 and was converted to float64.*3e-4"):
        K = hierarchical_kernel(x.float(), None, [2, 2])
    assert K.dtype == torch.float64
    assert torch.equal(K, hierarchical_kernel(x.float().double(), None, [2, 2]))


def test_inputs_of_the_multisphere_have_unit_patches_and_are_reproducible():
    x = sample_multisphere(200, 5, 3, seeded())
    assert x.shape == (200, 15)
    assert torch.allclose(x.reshape(200, 5, 3).norm(dim=2), torch.ones(200, 5, dtype=torch.float64), atol=1e-15)
    assert torch.equal(x, sample_multisphere(200, 5, 3, seeded()))
    assert float(x.mean(0).abs().max()) < 5 / math.sqrt(3 * 200)


def test_effective_dimensions_multiply_up_the_tree():
    assert effective_dimensions([2, 2, 2]) == (1, 2, 4)
    assert effective_dimensions([3, 3, 3]) == (2, 6, 18)
    assert effective_dimensions([2, 2], dim=2, channels=3) == (11, 44)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: hierarchical_kernel(x, None, [3]),
            r"filter_sizes \[3\] have the product 3, which does not .* side 8",
        ),
        (lambda x: hierarchical_kernel(x, None, [2, 2, 4]), "product 16, which does not divide the side 8"),
        (lambda x: hierarchical_kernel(x, None, []), "one or more integers >= 1"),
        (lambda x: hierarchical_kernel(x, None, [2, 0]), "one or more integers >= 1"),
        (lambda x: hierarchical_kernel(x, None, [1, 2]), "a first patch of x has 1 input: .*limit is 2"),
        (lambda x: hierarchical_kernel(x, None, [2], "nngp"), 'kind must be "ntk" or "rfk", got \'nngp\''),
        (lambda x: hierarchical_kernel(x, None, [2], chunk=0), "chunk must be at least 1, got 0"),
        (lambda x: hierarchical_kernel(x, None, [2], dim=2), r"\(n, channels, height, width\) for dim=2, got \(3, 8\)"),
        (lambda x: hierarchical_kernel(x, None, [2], dim=3), "dim must be 1 .* or 2 .*, got 3"),
        (lambda x: hierarchical_kernel(x, x[:, :4], [2]), r"inputs of one shape, got \(8,\) and \(4,\)"),
        (lambda x: hierarchical_kernel(x * math.nan, None, [2]), "x holds 24 values that are NaN or infinite"),
        (lambda x: hierarchical_kernel(0 * x, None, [2]), "12 first patches of x have norm 0"),
        (lambda x: fc_ntk(x, None, 0), "depth must be at least 1 hidden layer, got 0"),
        (lambda x: sample_multisphere(3, 2, 1), r"patch_dim must be at least 2 \(the circle S\^1\), got 1"),
        (lambda x: sample_multisphere(0, 2, 2), "n and num_patches must be at least 1, got 0 and 2"),
        (lambda x: effective_dimensions([1, 2]), r"at least 2 inputs, got 1: the sphere S\^0"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample_multisphere(3, 4, 2, seeded()))


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        in_double(torch.ones(2, 4, dtype=torch.int64), "x")
