"""The local activation unit and the pooling by its weights."""

import pytest
import torch
from torch import nn

from etude.ranking.din import InterestPooling, LocalActivationUnit


def case(batch=4, time=6, dim=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, dim, generator=generator, dtype=dtype)
    keys = torch.randn(batch, time, dim, generator=generator, dtype=dtype)
    mask = torch.arange(time) < torch.tensor([time, 3, 1, 0])[:batch, None]
    return query, keys, mask


def make(kind, *arguments, **options):
    torch.manual_seed(1)
    return kind(*arguments, **options).double().eval()


@pytest.mark.parametrize("interaction", ["difference", "outer"])
@pytest.mark.parametrize("activation", ["prelu", "sigmoid", "dice"])
def test_the_unit_equals_a_double_loop_over_the_concatenated_input(interaction, activation):
    query, keys, mask = case()
    unit = make(LocalActivationUnit, 5, (7, 3), activation, interaction)
    expected = torch.zeros(mask.shape, dtype=torch.float64)
    for b in range(len(mask)):
        for t in range(mask.shape[1]):
            q, k = query[b], keys[b, t]
            both = [q - k, q * k] if interaction == "difference" else [torch.outer(q, k).flatten()]
            x = torch.cat([q, k, *both])
            for layer, act in zip(unit.hidden, unit.activations):
                x = act(layer(x))
            expected[b, t] = unit.out(x)[0] if mask[b, t] else 0.0
    torch.testing.assert_close(unit(query, keys, mask), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_pooling_equals_a_double_loop(normalize):
    query, keys, mask = case()
    pooling = make(InterestPooling, 5, (7,), normalize=normalize)
    raw = pooling.unit(query, keys, mask)
    expected = torch.zeros_like(query)
    for b in range(len(mask)):
        steps = [t for t in range(mask.shape[1]) if mask[b, t]]
        total = sum((raw[b, t] / 5**0.5).exp() for t in steps)
        for t in steps:
            weight = (raw[b, t] / 5**0.5).exp() / total if normalize == "softmax" else raw[b, t]
            expected[b] += weight * keys[b, t]
    pooled, weights = pooling(query, keys, mask, return_weights=True)
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-12)
    assert bool((weights[~mask] == 0).all())


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_gradients_match_finite_differences(normalize):
    query, keys, mask = case(dim=3)
    pooling = make(InterestPooling, 3, (4,), "dice", normalize=normalize).train()
    with torch.no_grad():
        pooling.unit.activations[0].alpha.fill_(0.3)
    inputs = (query.requires_grad_(), keys.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k: pooling(q, k, mask), inputs)


def test_a_softmax_of_constant_logits_is_the_mean():
    query, keys, mask = case()
    pooling = make(InterestPooling, 5, normalize="softmax")
    nn.init.zeros_(pooling.unit.out.weight)
    mean = (keys * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(pooling(query, keys, mask), mean)


def test_a_unit_of_constant_1_is_the_sum_and_training_starts_without_it():
    query, keys, mask = case()
    assert make(InterestPooling, 5).unit.out.bias.item() == 0
    pooling = make(InterestPooling, 5, bias_init=1.0)
    assert pooling.unit.out.bias.item() == 1
    nn.init.zeros_(pooling.unit.out.weight)
    torch.testing.assert_close(pooling(query, keys, mask), (keys * mask[..., None]).sum(1))


def test_twice_the_history_is_twice_the_interest_without_softmax_and_the_same_with_it():
    query, keys, mask = case()
    for normalize, factor in (("none", 2), ("softmax", 1)):
        pooling = make(InterestPooling, 5, normalize=normalize)
        doubled = pooling(query, keys.repeat(1, 2, 1), mask.repeat(1, 2))
        torch.testing.assert_close(doubled, factor * pooling(query, keys, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("activation", ["prelu", "dice"])
@pytest.mark.parametrize("training", [False, True])
def test_padding_and_order_of_the_history_change_nothing(normalize, activation, training):
    query, keys, mask = case()
    pooling = make(InterestPooling, 5, activation=activation, normalize=normalize).train(training)
    expected = pooling(query, keys, mask)
    padded = torch.cat([torch.full((4, 3, 5), 1e3, dtype=torch.float64), keys], dim=1)
    longer = torch.cat([torch.zeros(4, 3, dtype=torch.bool), mask], dim=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(pooling(query, padded[:, order], longer[:, order]), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("normalize", ["none", "softmax"])
def test_an_empty_history_gives_zeros_and_finite_gradients(normalize):
    query, keys, mask = case()
    pooling = make(InterestPooling, 5, activation="dice", normalize=normalize).train()
    keys.requires_grad_()
    pooled = pooling(query, keys, mask)
    assert bool((pooled[3] == 0).all())
    pooled.sum().backward()
    assert bool(torch.isfinite(keys.grad).all())
    assert bool((pooling(query, keys[:, :0], mask[:, :0]) == 0).all())


def test_several_candidates_are_as_many_single_ones():
    _, keys, mask = case()
    queries = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for options in ({"normalize": "softmax"}, {"interaction": "outer"}, {"activation": "dice"}):
        pooling = make(InterestPooling, 5, **options)
        pooled, weights = pooling(queries, keys, mask, return_weights=True)
        for n in range(3):
            one, its = pooling(queries[:, n], keys, mask, return_weights=True)
            torch.testing.assert_close(pooled[:, n], one)
            torch.testing.assert_close(weights[:, n], its)


def test_half_precision_does_not_overflow():
    query, keys, mask = case(dtype=torch.float16)
    pooling = InterestPooling(5, normalize="softmax").half().eval()
    assert bool(torch.isfinite(pooling(query, keys, mask)).all())


def test_layer_norm_bounds_the_interest_of_a_long_history():
    query, keys, mask = case()
    pooling = make(InterestPooling, 5, layer_norm=True)
    many = pooling(query, keys.repeat(1, 100, 1), mask.repeat(1, 100))
    assert many.norm(dim=1).max() <= 5**0.5 + 1e-6


def test_the_concatenated_input_never_stands_in_memory():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.found = max(self.found, out.numel())
            return out

    batch, time, dim = 3, 50, 40
    unit = LocalActivationUnit(dim, (8,))
    with Largest() as largest:
        unit(torch.randn(batch, dim), torch.randn(batch, time, dim), torch.ones(batch, time, dtype=torch.bool))
    assert largest.found == batch * time * dim


def test_bad_arguments_are_refused():
    query, keys, mask = case()
    # Under a type checker a wrong name is a TypeError.
    for arguments, message in (
        ({"dim": 0}, "must be positive, got 0"),
        ({"dim": 5, "hidden_dims": ()}, "must be positive"),
        ({"dim": 5, "interaction": "product"}, "'product'"),
        ({"dim": 5, "activation": "relu"}, "'relu'"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            LocalActivationUnit(**arguments)
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        InterestPooling(5, scale=0)
    with pytest.raises(ValueError, match="must have 6 columns, got 5, 5"):
        make(LocalActivationUnit, 6)(query, keys, mask)
