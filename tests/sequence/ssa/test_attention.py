import pytest
import torch
import torch.nn.functional as F

from etude.nn.mixers import build_mixer
from etude.sequence.ssa import SubsampledAttention, dense_attention, sample_sources, subsampled, subsampled_attention
from etude.testing import check_mixer


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def heads(n=16, batch=2):
    return tuple(draw(batch, 3, n, 4, seed=seed) for seed in range(3))


SAMPLERS = [
    {"sampler": "unbiased", "fraction": 0.25},
    {"sampler": "local", "window": 4, "sigma": 3},
    {"sampler": "local", "window": 3, "sigma": 3},  # does not divide 16
]


@pytest.mark.parametrize("options", SAMPLERS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("batch", [None, 2])
def test_groups_equal_dense_attention_under_the_same_mask(options, causal, batch):
    q, k, v = heads()
    sets = sample_sources(16, causal=causal, batch=batch, generator=generator(), **options)
    seen = sets.mask(16) | torch.eye(16, dtype=torch.bool)
    if causal:
        seen = seen & torch.ones(16, 16, dtype=torch.bool).tril()
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen if batch is None else seen[:, None])
    torch.testing.assert_close(subsampled_attention(q, k, v, sets, causal=causal), expected)


@pytest.mark.parametrize("kind", ["bool", "float", "per head"])
def test_masks_of_the_caller_are_kept(kind):
    q, k, v = heads()
    sets = sample_sources(16, window=4, sigma=3, batch=2, generator=generator())
    seen = (sets.mask(16) | torch.eye(16, dtype=torch.bool))[:, None]
    if kind == "bool":
        given = draw(16, 16, seed=5) > -0.5
        expected = seen & given
    else:
        given = draw(*((2, 3) if kind == "per head" else ()), 16, 16, seed=5)
        expected = torch.where(seen, given, float("-inf"))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=expected)
    found = subsampled_attention(q, k, v, sets, attn_mask=given)
    alive = expected.any(-1, keepdim=True) if kind == "bool" else torch.tensor(True)
    torch.testing.assert_close(found, torch.where(alive, dense, 0.0))


def test_a_query_that_sees_nothing_gets_zeros_and_no_nan():
    q, k, v = (part.requires_grad_() for part in heads(8, 1))
    sets = sample_sources(8, window=2, sigma=0, batch=1, valid=torch.zeros(1, 8, dtype=torch.bool))
    out = subsampled_attention(q, k, v, sets, attn_mask=torch.zeros(1, 1, 1, 8, dtype=torch.bool))
    assert not out.any()
    out.sum().backward()
    assert q.grad.isfinite().all()


def test_sources_that_are_not_drawn_get_no_gradient():
    q, k, v = heads(16, 1)
    k.requires_grad_()
    sets = sample_sources(16, window=4, sigma=0)
    subsampled_attention(q, k, v, sets)[:, :, :4].sum().backward()  # the first block sees blocks 0 and 1
    assert k.grad[:, :, :8].any()
    assert not k.grad[:, :, 8:].any()


def test_scores_shrink_to_the_fraction():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket == torch.ops.aten._softmax:
                sizes.append(args[0].numel())
            return func(*args, **(kwargs or {}))

    q = torch.randn(1, 1, 2048, 4)
    with Watch():
        for fraction in (0.25, 0.125):
            subsampled_attention(q, q, q, sample_sources(2048, fraction=fraction, causal=True), causal=True)
    assert sizes[0] / 2048**2 == pytest.approx(0.25, rel=0.02)
    assert sizes[1] / 2048**2 == pytest.approx(0.125, rel=0.02)


@pytest.mark.parametrize("options", [{}, {"num_heads": 2, "rope_theta": 100.0}, {"causal": False}])
def test_the_dense_layer_keeps_the_promises_of_a_mixer(options):
    torch.manual_seed(0)
    check_mixer(SubsampledAttention(8, **options), 8)


@pytest.mark.parametrize("options", [{"fraction": 1}, {"window": 99}])
@pytest.mark.parametrize("causal", [False, True])
def test_seeing_all_is_dense_with_positions_and_padding(options, causal):
    torch.manual_seed(0)
    layer = SubsampledAttention(8, 2, causal=causal, rope_theta=100.0, **options).double()
    x = draw(2, 12, 8)
    mask = torch.arange(12) < torch.tensor([[12], [9]])
    for given in (None, mask):
        layer.eval()
        dense = layer(x, mask=given)
        layer.train()
        with subsampled(layer):
            sampled = layer(x, mask=given)
        torch.testing.assert_close(sampled, dense)


@pytest.mark.parametrize("sampler", ["local", "unbiased"])
def test_causal_under_shuffling(sampler):
    torch.manual_seed(0)
    layer = SubsampledAttention(8, 2, sampler=sampler, rope_theta=100.0).double().train()
    x = draw(2, 16, 8)
    for place in (0, 5, 15):
        other = x.clone()
        other[:, place] += 1
        outputs = []
        for given in (x, other):
            layer.ssa.generator = generator(7)
            outputs.append(layer(given))
        moved = (outputs[0] != outputs[1]).any(-1).any(0)
        assert not moved[:place].any()
        assert moved[place]


def test_each_pass_draws_anew_and_evaluation_is_dense():
    torch.manual_seed(0)
    layer, x = SubsampledAttention(8, 2).train(), torch.randn(2, 32, 8)
    layer.ssa.generator = generator()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    with dense_attention(layer.train()):
        dense = layer(x)
    torch.testing.assert_close(layer.eval()(x), dense)
    with subsampled(layer, generator(1)):
        one = layer(x)
    with subsampled(layer, generator(1)):
        assert torch.equal(layer(x), one)
    assert layer.ssa.mode == "training"


def test_parameters_are_those_of_the_dense_layer():
    layer = SubsampledAttention(8, 2, fraction=0.125)
    assert set(layer.state_dict()) == {"qkv.weight", "out.weight"}
    assert build_mixer("ssa", 8, max_len=4, num_heads=2).num_heads == 2


def test_decoding_while_sampling_and_bad_heads_are_refused():
    layer = SubsampledAttention(8, 2).train()
    with pytest.raises(RuntimeError, match="dense"):
        layer.step(torch.zeros(1, 8), layer.init_state(1))
    with pytest.raises(TypeError, match="later tokens"):
        SubsampledAttention(8, causal=False).init_state(1)
    for arguments in ({"num_heads": 3}, {"fraction": 0.0}, {"sampler": "all"}, {"window": 0}, {"sigma": -1.0}):
        with pytest.raises(ValueError):
            SubsampledAttention(8, **arguments)
    q = draw(1, 1, 6, 4)
    with pytest.raises(ValueError, match="4 sources"):
        subsampled_attention(q, q[:, :, :4], q[:, :, :4], sample_sources(6, fraction=1))
