"""The layers: naive loops, symmetries, limits in which they become something known, and refusals."""

import math
import warnings

import pytest
import torch

from etude.theory.random_feature_attention import (
    RandomFeatureAttention,
    RandomFeatureDeepSet,
    RandomFeatureMLP,
    Tokens,
)
from etude.theory.random_feature_attention.layers import concatenated

DIM, KEYS, HEADS = 3, 4, 7


def unit(*shape, seed=0):
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x / x.norm(dim=-1, keepdim=True)


def examples(n=6, keys=KEYS, dim=DIM, seed=0):
    x = unit(n, keys + 1, dim, seed=seed)
    return x[:, 0], x[:, 1:]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attention(values=True, **options):
    layer = RandomFeatureAttention(DIM, HEADS, generator=generator(), **options).double()
    if values:
        with torch.no_grad():
            layer.values.normal_(generator=generator(1))
    return layer


def every_layer():
    layers = [
        attention(), attention(bias=2.0), attention(rank=2, bias=1.0), attention(activation="softmax"),
        attention(activation="exp"), attention(activation=torch.nn.functional.gelu),
        RandomFeatureMLP(DIM, KEYS, 12, generator=generator()).double(),
        RandomFeatureDeepSet(DIM, 12, generator=generator()).double(),
    ]  # fmt: skip
    for layer in layers:
        with torch.no_grad():
            layer.values.normal_(generator=generator(1))
    return layers


@pytest.mark.parametrize("bias", [0.0, 2.0])
@pytest.mark.parametrize("rank", [None, 2])
def test_attention_equals_a_triple_loop(rank, bias):
    layer = attention(rank=rank, bias=bias, out_dim=2)
    query, keys = examples()
    matrices = layer.head_matrices()
    one = torch.ones(1, dtype=torch.float64)
    for n in range(len(query)):
        q, output = torch.cat([query[n], one]), torch.zeros(2, dtype=torch.float64)
        for m in range(HEADS):
            phi = torch.zeros(DIM + 1, dtype=torch.float64)
            for i in range(KEYS):
                k = torch.cat([keys[n, i], one])
                phi += max(float(q @ matrices[m] @ k), 0.0) * k / KEYS
            torch.testing.assert_close(layer.features(query, keys)[n, m], phi, rtol=1e-12, atol=1e-14)
            output += phi @ layer.values[m] / HEADS
        torch.testing.assert_close(layer(query, keys)[n], output, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ["softmax", "exp"])
def test_other_weights_than_relu(activation):
    layer = attention(activation=activation)
    query, keys = examples()
    x0, x = (torch.nn.functional.pad(part, (0, 1), value=1.0) for part in (query, keys))
    scores = torch.einsum("ne,mef,nif->nmi", x0, layer.weight, x)
    weights = scores.softmax(2) if activation == "softmax" else scores.exp() / KEYS
    torch.testing.assert_close(layer.features(query, keys), torch.einsum("nmi,nif->nmf", weights, x))


def test_the_mlp_is_a_hidden_layer_on_the_concatenated_tokens():
    layer = every_layer()[6]
    query, keys = examples()
    z = torch.cat([torch.cat([x, torch.ones(1)]) for x in (query[2], *keys[2])])
    assert len(z) == (KEYS + 1) * (DIM + 1)
    torch.testing.assert_close(concatenated(query, keys, None)[2], z)
    expected = (layer.weight @ z).relu() @ layer.values[:, 0] / 12
    torch.testing.assert_close(layer(query, keys)[2], expected)


def test_the_deep_set_is_a_mean_of_networks_on_pairs():
    layer = every_layer()[7]
    query, keys = examples()
    pairs = [torch.cat([query[2], torch.ones(1), key, torch.ones(1)]) for key in keys[2]]
    expected = sum((layer.weight @ z).relu() @ layer.values[:, 0] / 12 for z in pairs) / KEYS
    torch.testing.assert_close(layer(query, keys)[2], expected)


def test_keys_may_change_places_the_query_may_not():
    query, keys = examples()
    order = torch.tensor([2, 0, 3, 1])
    swapped = torch.cat([query[:, None], keys[:, 1:]], dim=1)
    for layer in every_layer():
        base = layer(query, keys)
        moved = (layer(query, keys[:, order]) - base).abs().max()
        assert (moved > 1e-3) if isinstance(layer, RandomFeatureMLP) else (moved < 1e-6)
        assert (layer(keys[:, 0], swapped) - base).abs().max() > 1e-3


def test_the_whole_list_of_keys_twice_changes_nothing():
    query, keys = examples()
    for layer in every_layer():
        if not isinstance(layer, RandomFeatureMLP):
            torch.testing.assert_close(layer(query, torch.cat([keys, keys], 1)), layer(query, keys))


def test_masked_keys_are_as_if_they_were_not_there():
    query, keys = examples()
    mask = torch.tensor([True, False, True, True]).expand(len(query), KEYS)
    spoilt = keys.masked_fill(~mask[:, :, None], math.nan)
    for layer in every_layer():
        found = layer(query, spoilt, mask)
        if isinstance(layer, RandomFeatureMLP):
            z = concatenated(query, keys, None).clone()
            z[:, 2 * (DIM + 1) : 3 * (DIM + 1)] = 0
            torch.testing.assert_close(found, (z @ layer.weight.T).relu() @ layer.values[:, 0] / 12)
        else:
            torch.testing.assert_close(found, layer(query, keys[:, [0, 2, 3]]))


def test_masks_may_differ_between_examples():
    query, keys = examples()
    mask = torch.rand(len(query), KEYS, generator=generator(3)) > 0.4
    mask[:, 0] = True
    for layer in every_layer()[:6]:
        together = layer(query, keys, mask)
        for n in range(len(query)):
            alone = layer(query[n : n + 1], keys[n : n + 1, mask[n]])
            torch.testing.assert_close(together[n : n + 1], alone)


def test_with_one_constant_key_it_is_a_random_feature_model_of_the_query():
    key = unit(DIM, seed=5)
    layer = RandomFeatureAttention(DIM, 20_000, generator=generator()).double()
    query = unit(5, DIM)
    xt = torch.cat([key, torch.ones(1)])
    w = layer.weight @ xt
    expected = (torch.nn.functional.pad(query, (0, 1), value=1.0) @ w.T).relu()[:, :, None] * xt
    torch.testing.assert_close(layer.features(query, key.expand(5, 1, DIM)), expected)
    # w ~ N(0, |xt|^2 / 4); the standard error of a variance of 80,000 numbers is half a percent.
    torch.testing.assert_close(w.var(), xt.square().sum() / 4, rtol=2e-2, atol=0.0)


@pytest.mark.parametrize("rank", [None, 1, 8])
def test_scores_of_unit_tokens_have_variance_one(rank):
    layer = RandomFeatureAttention(DIM, 100_000, rank=rank, generator=generator()).double()
    query, keys = (torch.nn.functional.pad(unit(1, DIM, seed=s), (0, 1), value=1.0)[0] for s in (1, 2))
    scores = torch.einsum("e,mef,f->m", query, layer.head_matrices(), keys)
    assert float(scores.var()) == pytest.approx(0.25 * 2 * 2, rel=0.05)
    assert float(scores.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(layer.head_matrices().std()) == pytest.approx(0.5, rel=0.02)


def test_a_bias_moves_scores_by_the_dot_product():
    plain, biased = attention(), attention(bias=4.0)
    centre = torch.zeros(DIM + 1, DIM + 1, dtype=torch.float64)
    centre[:DIM, :DIM] = 4 * torch.eye(DIM)
    torch.testing.assert_close(biased.weight - plain.weight, centre.expand(HEADS, -1, -1), rtol=0.0, atol=1e-6)


def test_parameters_are_the_values_alone_and_as_many_as_the_paper_says():
    layer = RandomFeatureAttention(16, 1000)
    mlp = RandomFeatureMLP(16, 16, 1000 * 17)
    for model in (layer, mlp, RandomFeatureDeepSet(16, 17_000)):
        assert [name for name, _ in model.named_parameters()] == ["values"]
        assert sum(p.numel() for p in model.parameters()) == model.num_features == 17_000
    assert layer.values.shape == (1000, 17, 1)
    assert not any(buffer.requires_grad for buffer in layer.buffers())


def test_frozen_matrices_receive_no_gradient_and_values_the_features():
    layer = attention()
    query, keys = examples()
    layer(query, keys).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(layer.values.grad[:, :, 0], layer.features(query, keys).sum(0) / HEADS)


def test_gradients_pass_through_to_the_tokens():
    query, keys = examples(n=2)
    for layer in every_layer():
        inputs = query.clone().requires_grad_(), keys.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda q, k, layer=layer: layer(q, k), inputs)


@pytest.mark.parametrize("rank", [None, 2])
def test_state_dict_holds_the_frozen_matrices(rank):
    query, keys = examples()
    layer = attention(rank=rank, bias=1.0)
    other = RandomFeatureAttention(DIM, HEADS, rank=rank, bias=1.0, generator=generator(9)).double()
    assert (other(query, keys) - layer(query, keys)).abs().max() > 1e-3
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(query, keys), layer(query, keys))


def test_a_saved_layer_comes_back(tmp_path):
    query, keys = examples()
    for layer in (attention(bias=1.0, values=True), every_layer()[6], every_layer()[7]):
        layer.save_pretrained(tmp_path)
        again = type(layer).from_pretrained(tmp_path).double()
        torch.testing.assert_close(again(query, keys), layer(query, keys), rtol=1e-6, atol=1e-6)


def test_a_layer_whose_activation_would_be_lost_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="is a function and would come back as the ReLU"):
        attention(activation=torch.tanh).save_pretrained(tmp_path)


def test_features_follow_the_dtype_of_the_tokens():
    query, keys = examples()
    layer = RandomFeatureAttention(DIM, HEADS, generator=generator())
    assert layer.features(query, keys).dtype == torch.float64
    assert layer(query.float(), keys.float()).dtype == torch.float32


@pytest.mark.parametrize("block", [1, 3000, 1 << 24])
def test_blocks_change_no_result(block):
    query, keys = examples(n=9)
    tokens, other = Tokens(query, keys), Tokens(*examples(n=5, seed=1))
    y = unit(9, 2, seed=4)
    for layer in every_layer():
        phi, psi = (layer.features(part.query, part.keys).flatten(1) for part in (tokens, other))
        torch.testing.assert_close(layer.predict(tokens, block_bytes=block), layer(query, keys))
        torch.testing.assert_close(layer.gram(tokens, block_bytes=block), phi @ phi.T / layer.num_units)
        torch.testing.assert_close(layer.gram(tokens, other, block_bytes=block), phi @ psi.T / layer.num_units)
        matrix, moment = layer.covariance(tokens, y, block_bytes=block)
        torch.testing.assert_close(matrix, phi.T @ phi / layer.num_units)
        torch.testing.assert_close(moment, phi.T @ y / math.sqrt(layer.num_units))


def test_a_large_symmetric_gram_matrix_is_the_product_in_full():
    layer = RandomFeatureAttention(2, 3, generator=generator())
    tokens = Tokens(*examples(n=1100, keys=2, dim=2))
    torch.testing.assert_close(layer.gram(tokens), layer.gram(tokens, tokens))


def test_memory_of_a_gram_matrix_is_bounded_by_blocks(monkeypatch):
    layer = RandomFeatureAttention(DIM, 500, generator=generator())
    seen = []
    original = layer.flat_features
    monkeypatch.setattr(layer, "flat_features", lambda *args: seen.append(original(*args)) or seen[-1])
    layer.gram(Tokens(*examples(n=200)), block_bytes=1 << 19)
    assert len(seen) == 8
    assert max(part.numel() * 8 for part in seen) <= 1 << 19
    assert sum(part.shape[1] for part in seen) == layer.num_features


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(6, 2)}, r"same batch and dim, got \(6, 2\) and \(6, 4, 3\)"),
        ({"query": torch.zeros(6, 2), "keys": torch.zeros(6, 4, 2)}, "tokens must have dim 3, got 2"),
        ({"query": torch.zeros(5, 3)}, r"got \(5, 3\) and \(6, 4, 3\)"),
        ({"keys": torch.zeros(6, 0, 3)}, "at least one key"),
        ({"key_mask": torch.ones(6, 3, dtype=torch.bool)}, r"key_mask must have shape \(6, 4\), got \(6, 3\)"),
        (
            {"key_mask": torch.arange(6)[:, None].expand(6, 4) != 2},
            "1 of 6 examples have all their keys masked, the first being 2",
        ),
    ],
)  # fmt: skip
def test_tokens_that_do_not_fit_are_refused(change, message):
    query, keys = examples()
    inputs = {"query": query, "keys": keys, "key_mask": None} | change
    # Unchecked, as a caller without the checker of types sees it.
    with pytest.raises(ValueError, match=message):
        attention()._check(**inputs)
    with pytest.raises(ValueError):
        RandomFeatureMLP(DIM, KEYS, 4)._check(**inputs)


def test_the_mlp_refuses_another_number_of_keys():
    query, keys = examples(keys=5)
    with pytest.raises(ValueError, match="takes 4 keys, got 5"):
        RandomFeatureMLP(DIM, KEYS, 4)(query, keys)


def test_a_mask_of_numbers_is_refused():
    query, keys = examples()
    with pytest.raises(TypeError, match="key_mask must be bool"):
        Tokens(query, keys, torch.ones(6, 4))


def test_long_tokens_are_warned_of_and_unit_tokens_are_not():
    query, keys = examples()
    with pytest.warns(UserWarning, match="root-mean-square norm of 10"):
        attention()(10 * query, 10 * keys)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention()(query, keys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"num_heads": 0}, "the number of units must be at least 1, got 0"),
        ({"out_dim": 0}, "out_dim must be at least 1"),
        ({"weight_std": 0.0}, "weight_std must be positive"),
        ({"bias": math.inf}, "bias finite"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"activation": "sigmoid"}, "activation must be"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandomFeatureAttention(**({"dim": 3, "num_heads": 4} | options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: X[:, 0], r"X must have shape \(n, 1 \+ num_keys, dim\)"),
        (lambda X: X[:, :1], "at least one key"),
        (lambda X: X.index_put((torch.tensor(2), torch.tensor(0), torch.tensor(1)), torch.tensor(math.nan).double()),
         "the query of example 2 has NaN"),
        (lambda X: X.index_put((torch.tensor(1), torch.tensor(2), torch.tensor(1)), torch.tensor(math.nan).double()),
         "1 keys have some NaN entries, the first in example 1"),
        (lambda X: torch.where(torch.arange(6)[:, None, None] == 3, math.inf, X), "must be finite"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_tokens_are_refused(change, message):
    X = unit(6, 5, DIM)
    with pytest.raises(ValueError, match=message):
        Tokens.from_array(change(X).numpy())


def test_an_array_of_tokens_and_its_masked_keys():
    X = unit(6, 5, DIM)
    X[1, 3] = math.nan
    tokens = Tokens.from_array(X.numpy())
    assert torch.equal(tokens.query, X[:, 0])
    assert tokens.key_mask.sum() == 23
    assert not tokens.key_mask[1, 2]
    assert torch.equal(tokens[torch.tensor([1])].key_counts, torch.tensor([3.0], dtype=torch.float64))
    assert len(tokens[2:4]) == 2
    assert tokens.to(torch.float32).keys.dtype == torch.float32
