"""Match matrices, kernels, histograms and pooling against loops written out."""

import math

import pytest
import torch

from etude.ranking.neural_ranking import (
    dynamic_pool,
    gaussian_kernels,
    identical,
    kernel_levels,
    match_histogram,
    match_matrix,
)

MU, SIGMA = (torch.tensor(values, dtype=torch.float64) for values in kernel_levels())


def masks(batch=2, query=4, doc=7):
    q_mask = torch.arange(query) < torch.tensor([[query], [2]])
    d_mask = torch.arange(doc) < torch.tensor([[5], [doc]])
    return q_mask[:batch], d_mask[:batch]


def cosines(seed=0, **sizes):
    q_mask, d_mask = masks(**sizes)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 4, 7, generator=generator, dtype=torch.float64) * 2 - 1, q_mask, d_mask


def test_the_cosine_equals_a_loop_and_padding_is_zero():
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    d = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    q_mask, d_mask = masks()
    cosine = match_matrix(q, d, q_mask, d_mask, "cosine")
    dot = match_matrix(q, d, q_mask, d_mask, "dot")
    for b in range(2):
        for i in range(4):
            for j in range(7):
                real = bool(q_mask[b, i] and d_mask[b, j])
                product = float(q[b, i] @ d[b, j])
                assert dot[b, i, j].item() == pytest.approx(product if real else 0, abs=1e-12)
                scaled = product / float(q[b, i].norm() * d[b, j].norm())
                assert cosine[b, i, j].item() == pytest.approx(scaled if real else 0, abs=1e-12)


def test_the_cosine_with_a_zero_vector_is_zero_and_its_gradient_finite():
    q = torch.zeros(1, 1, 3, requires_grad=True)
    d = torch.ones(1, 1, 3, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    cosine = match_matrix(q, d, mask, mask)
    assert cosine.item() == 0
    cosine.sum().backward()
    assert torch.isfinite(q.grad).all()


def test_identical_words_are_told_by_their_id_and_unknown_words_are_not_identical():
    q_ids, d_ids = torch.tensor([[5, 1, 7]]), torch.tensor([[5, 1, 8, 5]])
    q_mask, d_mask = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, True, False]])
    exact = identical(q_ids, d_ids, q_mask, d_mask)
    assert exact.nonzero().tolist() == [[0, 0, 0]]
    vectors = torch.zeros(1, 3, 2), torch.zeros(1, 4, 2)  # words without a vector
    assert match_matrix(*vectors, q_mask, d_mask, exact=exact)[0, 0].tolist() == [1, 0, 0, 0]
    assert match_matrix(q_ids, d_ids, q_mask, d_mask, "indicator").sum() == 1


def test_kernel_levels_are_the_papers():
    mu, sigma = kernel_levels(11)
    assert mu == pytest.approx([1, 0.9, 0.7, 0.5, 0.3, 0.1, -0.1, -0.3, -0.5, -0.7, -0.9])
    assert sigma == pytest.approx([1e-3] + [0.1] * 10)


def test_the_exact_kernel_counts_matches():
    M = torch.tensor([[[1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]], dtype=torch.float64)
    q_mask, d_mask = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    phi = gaussian_kernels(M, MU, SIGMA, q_mask, d_mask)
    expected = 0.01 * (math.log(3) + math.log(1) + math.log(1e-10))  # ln 1e-10 = -23.03 where nothing matches
    assert phi[0, 0].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("log", ["clamped", "log1p"])
def test_kernels_equal_a_loop(log):
    M, q_mask, d_mask = cosines()
    phi = gaussian_kernels(M, MU, SIGMA, q_mask, d_mask, log=log)
    for b in range(2):
        for k in range(11):
            total = 0.0
            for i in range(int(q_mask[b].sum())):
                soft = sum(
                    math.exp(-((M[b, i, j].item() - MU[k].item()) ** 2) / (2 * SIGMA[k].item() ** 2))
                    for j in range(int(d_mask[b].sum()))
                )
                total += 0.01 * math.log(max(soft, 1e-10)) if log == "clamped" else math.log1p(soft)
            assert phi[b, k].item() == pytest.approx(total, abs=1e-12)


def test_gradients_of_the_kernels_match_finite_differences():
    M, q_mask, d_mask = cosines()
    M.requires_grad_()
    assert torch.autograd.gradcheck(lambda m: gaussian_kernels(m, MU[1:], SIGMA[1:], q_mask, d_mask), (M,))


def test_the_histogram_counts_the_words_of_the_document():
    M, q_mask, d_mask = cosines()
    counts = match_histogram(M, 30, "count", q_mask=q_mask, d_mask=d_mask)
    assert torch.equal(counts.sum(dim=2), d_mask.sum(dim=1, keepdim=True) * q_mask.double())
    normal = match_histogram(M, 30, "normalized", q_mask=q_mask, d_mask=d_mask)
    torch.testing.assert_close(normal.sum(dim=2), q_mask.double())
    torch.testing.assert_close(match_histogram(M, 30, "log", q_mask=q_mask, d_mask=d_mask), torch.log1p(counts))


def test_one_is_in_the_last_bin_alone_and_minus_one_in_the_first():
    M = torch.tensor([[[1.0, -1.0, 0.0, 0.999]]])
    full = {"q_mask": torch.ones(1, 1, dtype=torch.bool), "d_mask": torch.ones(1, 4, dtype=torch.bool)}
    counts = match_histogram(M, 30, "count", **full)[0, 0]
    assert counts.nonzero().squeeze(1).tolist() == [0, 14, 28, 29]
    # A cosine of 1 between different words belongs to the last of the even bins.
    none = torch.zeros(1, 1, 4, dtype=torch.bool)
    assert match_histogram(M, 30, "count", **full, exact=none)[0, 0].nonzero().squeeze(1).tolist() == [0, 14, 28]


def test_histograms_equal_a_loop():
    M, q_mask, d_mask = cosines(seed=3)
    counts = match_histogram(M, 6, "count", q_mask=q_mask, d_mask=d_mask)
    expected = torch.zeros(2, 4, 6, dtype=torch.float64)
    for b in range(2):
        for i in range(int(q_mask[b].sum())):
            for j in range(int(d_mask[b].sum())):
                expected[b, i, min(math.floor((M[b, i, j].item() + 1) / 2 * 5), 4)] += 1
    assert torch.equal(counts, expected)


@pytest.mark.parametrize("mode", ["max", "mean"])
@pytest.mark.parametrize(
    ("rows", "columns", "size"), [(5, 9, (3, 4)), (1, 2, (3, 10)), (8, 3, (2, 2)), (3, 10, (3, 10))]
)
def test_dynamic_pooling_divides_the_real_part_alone(rows, columns, size, mode):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 11, generator=generator, dtype=torch.float64)
    pooled = dynamic_pool(x, torch.tensor([rows, 8]), torch.tensor([columns, 11]), size, mode=mode)
    for b, (n, m) in enumerate([(rows, columns), (8, 11)]):
        for a in range(size[0]):
            for c in range(size[1]):
                cell = x[
                    b, :, a * n // size[0] : math.ceil((a + 1) * n / size[0]),
                    c * m // size[1] : math.ceil((c + 1) * m / size[1]),
                ].flatten(1)  # fmt: skip
                expected = cell.amax(dim=1) if mode == "max" else cell.mean(dim=1)
                torch.testing.assert_close(pooled[b, :, a, c], expected)


def test_an_empty_matrix_pools_to_zeros():
    pooled = dynamic_pool(torch.ones(1, 2, 4, 4), torch.tensor([0]), torch.tensor([3]), (2, 2))
    assert (pooled == 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda M, q, d: match_histogram(M, 1, q_mask=q, d_mask=d), "bins must be at least 2, got 1"),
        (lambda M, q, d: dynamic_pool(M[:, None], torch.tensor([1, 1]), torch.tensor([1, 1]), (0, 1)), "size positive"),
        (lambda M, q, d: kernel_levels(1), "at least 2 kernels, got 1"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(*cosines())
