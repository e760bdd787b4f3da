"""The smoothness metric: known values, a double loop, and what must not change it."""

import inspect
import math

import pytest
import torch

from etude.graphs.dagnn import sampled_smoothness, smoothness


def vectors(num_nodes=23, channels=5, seed=0):
    return torch.randn(num_nodes, channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double_loop(x):
    """SMV_i by the definition; a zero row stays a zero row."""
    unit = [row / row.norm() if row.norm() > 0 else row for row in x]
    distance = [[0.5 * (a - b).norm().item() for b in unit] for a in unit]
    return torch.tensor([sum(row) / max(len(x) - 1, 1) for row in distance], dtype=torch.float64)


def test_orthonormal_rows_give_half_the_root_of_two():
    torch.testing.assert_close(smoothness(torch.eye(6)), torch.tensor(math.sqrt(2) / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_equal_up_to_positive_scale_give_zero(dtype):
    scale = torch.linspace(0.01, 100, 40, dtype=torch.float64)
    rows = torch.outer(scale, torch.tensor([0.3, -1.7, 0.2], dtype=torch.float64)).to(dtype)
    assert float(smoothness(rows)) < 1e-7


def test_two_antipodal_vectors_give_one():
    torch.testing.assert_close(smoothness(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])), torch.tensor(1.0))


def test_a_zero_vector_is_half_away_from_others_and_none_from_zero():
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(smoothness(rows, reduction="node"), torch.tensor([0.25, 0.25, 0.5]))


def test_one_node_gives_zero():
    assert float(smoothness(vectors(1))) == 0
    assert smoothness(vectors(1), reduction="node").shape == (1,)
    assert sampled_smoothness(vectors(1), 5).estimate == 0


def test_values_equal_a_double_loop():
    x = vectors()
    x[4] = 0
    expected = double_loop(x)
    torch.testing.assert_close(smoothness(x, reduction="node"), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(smoothness(x), expected.mean(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 7, 23, 1000])
def test_chunks_do_not_change_the_value(chunk_size):
    x = vectors()
    torch.testing.assert_close(
        smoothness(x, chunk_size=chunk_size, reduction="node"), smoothness(x, reduction="node"), rtol=0, atol=1e-14
    )


def test_scaling_rows_does_not_change_the_value():
    x = vectors()
    torch.testing.assert_close(smoothness(x * torch.linspace(0.1, 9, 23)[:, None]), smoothness(x), rtol=0, atol=1e-13)


def test_memory_is_a_chunk_of_pairs_not_all_features_of_all_pairs():
    """No tensor larger than chunk x n is ever made."""
    largest = 0

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watching():
        smoothness(vectors(200, 50), chunk_size=60)
    assert largest <= 60 * 200


def test_gradients_match_finite_differences_where_no_rows_agree():
    x = vectors(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: smoothness(x, chunk_size=2), x)


def test_rows_that_agree_have_a_finite_gradient():
    x = torch.ones(3, 2, dtype=torch.float64).requires_grad_()
    smoothness(x).backward()
    assert x.grad is not None
    assert bool(torch.isfinite(x.grad).all())


def test_sampled_pairs_estimate_the_value_with_an_honest_standard_error():
    x = vectors(60)
    exact, generator = smoothness(x), torch.Generator().manual_seed(0)
    scores = []
    for _ in range(200):
        estimate, error = sampled_smoothness(x, 400, generator=generator)
        scores.append(float((estimate - exact) / error))
    scores = torch.tensor(scores)
    assert abs(float(scores.mean())) < 4 / 200**0.5
    assert 0.8 < float(scores.std()) < 1.2


def test_pairs_may_be_asked_for_through_the_metric():
    x = vectors()
    estimate = smoothness(x, num_pairs=50, generator=torch.Generator().manual_seed(3))
    assert estimate == sampled_smoothness(x, 50, generator=torch.Generator().manual_seed(3)).estimate


def test_bad_arguments_are_refused_with_the_value():
    x = vectors()
    for arguments, message in (
        ({"chunk_size": 0}, "chunk_size must be positive, got 0"),
        ({"num_pairs": 1}, "num_pairs must be at least 2, got 1"),
        ({"num_pairs": 9, "reduction": "node"}, "reduction must be"),
        ({"reduction": "mean"}, "got 'mean'"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(smoothness)(x, **arguments)
    with pytest.raises(ValueError, match=r"at least one node, got \(0, 3\)"):
        smoothness(torch.empty(0, 3))
