import numpy as np
import pytest
import scipy.fft
import torch

from etude.sequence.orchid import dct, idct


@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_the_cosine_transform_is_scipys_and_its_matrix_orthonormal(length):
    matrix = dct(torch.eye(length, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(length, dtype=torch.float64), atol=1e-12, rtol=0)
    x = np.random.default_rng(0).normal(size=(2, 3, length))
    expected = torch.from_numpy(scipy.fft.dct(x, norm="ortho"))
    torch.testing.assert_close(dct(torch.from_numpy(x)), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(idct(expected), torch.from_numpy(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("transform", [dct, idct])
def test_gradients_of_the_cosine_transform_match_finite_differences(transform):
    x = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(transform, (x,))
