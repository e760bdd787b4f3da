import pytest
import torch

from etude.nn.mixers import build_mixer
from etude.sequence import load_mixers
from etude.sequence.zoology import RecallLM, SelectiveAttention, collect_aux_loss, mqar, occurred_before
from etude.sequence.zoology.mqar import IGNORED

load_mixers()


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer_of(dim=8, seed=0, **options):
    torch.manual_seed(seed)
    return SelectiveAttention(dim, **options).double().eval()


def attention_of(layer):
    """Ordinary attention with the layer's weights."""
    attention = build_mixer("attention", layer.dim, max_len=1, num_heads=layer.num_heads).double().eval()
    attention.load_state_dict({k: v for k, v in layer.state_dict().items() if k in attention.state_dict()})
    return attention


@pytest.mark.parametrize("mask", [None, torch.arange(11) < torch.tensor([[11], [7]])])
def test_selecting_all_is_attention(mask):
    layer = layer_of(select="all", num_heads=2)
    x = draw(2, 11, 8)
    torch.testing.assert_close(layer(x, mask=mask), attention_of(layer)(x, mask=mask))


def test_keeping_every_token_with_weight_one_is_attention(monkeypatch):
    layer = layer_of(k=11, num_heads=2)
    x = draw(2, 11, 8)
    monkeypatch.setattr(torch, "sigmoid", torch.ones_like)
    torch.testing.assert_close(layer(x), attention_of(layer)(x))


def test_programmatic_selection_equals_the_double_loop():
    ids = torch.randint(0, 6, (20, 15), generator=torch.Generator().manual_seed(0))
    found = occurred_before(ids)
    for row in range(20):
        for t in range(15):
            expected = any(ids[row, s] == ids[row, t] for s in range(t)) and ids[row, t] != 0
            assert found[row, t] == expected
    assert occurred_before(torch.zeros(1, 3, dtype=torch.int64), filler=None).tolist() == [[False, True, True]]


def test_programmatic_selection_is_an_oracle_where_nothing_is_random():
    inputs, labels = mqar(64, 50, 32, 4, random_non_queries=False, seed=1)
    assert torch.equal(occurred_before(inputs), labels != IGNORED)
    inputs, labels = mqar(64, 50, 32, 4, random_non_queries=True, seed=1)
    assert not torch.equal(occurred_before(inputs), labels != IGNORED)


OPTIONS = [
    {"select": "programmatic"}, {"select": "random", "k": 4}, {"k": 0.3}, {"rule": "threshold"},
    {"select": "programmatic", "num_heads": 2},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("padded", [False, True])
def test_gathered_computation_equals_the_masked_dense_one(options, padded):
    layer = layer_of(**options)
    x = draw(3, 12, 8)
    ids = torch.randint(0, 5, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(12) < torch.tensor([[12], [6], [9]]) if padded else None
    results = []
    for gather in (True, False):
        layer.generator = torch.Generator().manual_seed(3)
        results.append(layer(x, ids, mask=mask, gather=gather))
        chosen = layer.selected
        assert not results[-1][~chosen].any()
        assert mask is None or not (chosen & ~mask).any()
    torch.testing.assert_close(*results)
    dense = attention_of(layer)(x, mask=mask)
    weight = 1 if layer.selecting is None else torch.sigmoid(layer.selecting(x))
    torch.testing.assert_close(results[0], dense * weight * chosen[..., None])


def test_gathered_gradients_equal_dense_ones():
    gradients = []
    for gather in (True, False):
        layer = layer_of(k=3)
        layer(draw(2, 9, 8), gather=gather).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_exactly_k_tokens_of_largest_weight_are_kept():
    layer = layer_of(k=None)
    x = draw(4, 10, 8)
    layer(x)
    weight = torch.sigmoid(layer.selecting(x))[..., 0]
    assert layer.kept(10) == 4  # ceil(sqrt(10))
    assert (layer.selected.sum(1) == 4).all()
    for row in range(4):
        assert weight[row][layer.selected[row]].min() > weight[row][~layer.selected[row]].max()
    assert layer_of(k=0.25).kept(64) == 16
    assert layer_of(k=99).kept(64) == 64


def test_training_is_soft_and_counts_what_is_too_much():
    layer = layer_of(k=3, penalty=0.5).train()
    x = draw(4, 12, 8)
    y = layer(x)
    weight = torch.sigmoid(layer.selecting(x))
    torch.testing.assert_close(y, attention_of(layer)(x) * weight)
    torch.testing.assert_close(layer.aux_loss, 0.5 * (weight.mean() - 3 / 12))
    assert collect_aux_loss(layer) > 0
    assert layer.aux_loss is None
    assert collect_aux_loss(layer) == 0
    layer.k = 1.0
    layer(x)
    assert collect_aux_loss(layer) == 0  # mean(s) <= k / L


def test_auxiliary_losses_of_a_network_add_up_and_reach_the_weights():
    torch.manual_seed(0)
    model = RecallLM(16, 8, mixer={"name": "selective", "k": 1, "penalty": 1.0}, max_len=16, dropout=0.0).train()
    model(torch.randint(16, (2, 8)))
    parts = [block.mixer.aux_loss.item() for block in model.blocks]
    total = collect_aux_loss(model)
    assert total.item() == pytest.approx(sum(parts))
    total.backward()
    assert model.blocks[1].mixer.selecting.weight.grad.any()


def test_random_selection_is_fresh_uniform_and_reproducible():
    layer = layer_of(select="random", k=3)
    layer.generator = torch.Generator().manual_seed(0)
    x = draw(4000, 12, 8)
    layer(x)
    first = layer.selected
    assert (first.sum(1) == 3).all()
    assert first.double().mean(0).allclose(torch.tensor(0.25, dtype=torch.float64), atol=0.03)
    layer(x)
    assert not torch.equal(first, layer.selected)
    layer.generator = torch.Generator().manual_seed(0)
    layer(x)
    assert torch.equal(first, layer.selected)


def test_the_threshold_lets_k_tokens_through_on_average():
    layer = layer_of(k=3, rule="threshold")
    x = draw(200, 12, 8)
    layer.calibrate(x)
    layer(x)
    assert layer.selected.double().sum(1).mean() == pytest.approx(3, abs=0.01)
    assert layer.causal
    assert not layer_of(k=3).causal


def test_programmatic_selection_goes_token_by_token():
    layer = layer_of(select="programmatic")
    x, ids = draw(2, 9, 8), torch.randint(0, 4, (2, 9), generator=torch.Generator().manual_seed(0))
    expected, state = layer(x, ids), layer.init_state(2)
    for t in range(9):
        y, state = layer.step(x[:, t], state, ids[:, t])
        torch.testing.assert_close(y, expected[:, t])


def test_cost_follows_the_number_of_queries(monkeypatch):
    shapes = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watch(q, k, v, **options):
        shapes.append((q.shape[2], k.shape[2]))
        return original(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    layer = layer_of(k=4)
    layer(draw(2, 64, 8))
    assert shapes == [(4, 64)]
    assert layer.flops(64) < layer_of(select="all").flops(64) / 1.8


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SelectiveAttention(8, 3), ValueError, "multiple of num_heads"),
        (lambda: SelectiveAttention(8, select="some"), ValueError, "'some'"),
        (lambda: SelectiveAttention(8, k=0), ValueError, "k must be"),
        (lambda: SelectiveAttention(8, k=1.5), ValueError, "1.5"),
        (lambda: SelectiveAttention(8, penalty=-1), ValueError, "penalty"),
        (lambda: layer_of(select="programmatic")(draw(1, 4, 8)), ValueError, "needs ids of shape"),
        (lambda: layer_of(select="all").calibrate(draw(1, 4, 8)), TypeError, "only learned"),
        (lambda: layer_of().init_state(1), TypeError, "whole sequence"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
