"""BatchFormer: the layer of Eq. (1), how it couples samples, and that it is gone at test."""

import itertools

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

from etude.training.batchformer import BatchFormer, two_stream_loss


def features(samples: int = 6, dim: int = 16, seed: int = 1) -> torch.Tensor:
    return torch.randn(samples, dim, generator=torch.Generator().manual_seed(seed))


def layer(dim: int = 16, **options) -> BatchFormer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BatchFormer(dim, **({"dropout": 0.0} | options))


def test_training_doubles_features_and_labels_and_keeps_the_first_half():
    x, y = features(), torch.arange(6)
    doubled, labels = layer(dropout=0.5)(x, y)
    assert doubled.shape == (12, 16)
    assert torch.equal(doubled[:6], x)
    assert torch.equal(labels, torch.cat([y, y]))
    assert not torch.equal(doubled[6:], x)
    assert layer()(x).shape == (12, 16)


def test_evaluation_returns_the_same_objects_and_draws_nothing():
    x, y = features(), torch.arange(6)
    batchformer = layer(dropout=0.5).eval()
    before = torch.get_rng_state()
    out, labels = batchformer(x, y)
    assert out is x
    assert labels is y
    assert batchformer(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_defaults_are_the_papers():
    (encoder,) = BatchFormer(64).layers
    assert encoder.self_attn.num_heads == 4
    assert not encoder.self_attn.batch_first
    assert not encoder.norm_first
    assert encoder.linear1.out_features == 64
    assert [encoder.dropout.p, encoder.dropout1.p, encoder.dropout2.p, encoder.self_attn.dropout] == [0.5] * 4


@pytest.mark.parametrize(("dim", "parameters"), [(64, 25_216), (128, 6 * 128**2 + 10 * 128)])
def test_parameter_count_is_6_c_squared_plus_10_c(dim, parameters):
    assert sum(p.numel() for p in BatchFormer(dim).parameters()) == parameters


def test_mixing_equals_equation_1_written_out():
    batchformer = layer(num_heads=4, feedforward_dim=24)
    (encoder,) = batchformer.layers
    x = features()
    weight, bias = encoder.self_attn.in_proj_weight, encoder.self_attn.in_proj_bias
    q, k, v = (x @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3)))
    attended = torch.empty_like(x)
    for head in range(4):
        part = slice(4 * head, 4 * head + 4)
        for i in range(6):
            scores = torch.stack([q[i, part] @ k[j, part] / 2 for j in range(6)])
            shares = scores.exp() / scores.exp().sum()
            attended[i, part] = sum(shares[j] * v[j, part] for j in range(6))
    x1 = F.layer_norm(x + encoder.self_attn.out_proj(attended), (16,), encoder.norm1.weight, encoder.norm1.bias)
    expected = F.layer_norm(
        x1 + encoder.linear2(encoder.linear1(x1).relu()), (16,), encoder.norm2.weight, encoder.norm2.bias
    )
    torch.testing.assert_close(batchformer.mix(x), expected, atol=1e-5, rtol=1e-5)


def test_several_layers_are_a_loop_of_torch_layers_with_weights_of_their_own():
    batchformer = layer(num_layers=3)
    expected = features()[:, None]
    for encoder in batchformer.layers:
        peer = nn.TransformerEncoderLayer(16, 4, 16, 0.0)
        peer.load_state_dict(encoder.state_dict())
        expected = peer(expected)
    torch.testing.assert_close(batchformer.mix(features()), expected[:, 0])
    first, second = batchformer.layers[0].linear1.weight, batchformer.layers[1].linear1.weight
    assert not torch.equal(first, second)


def test_the_order_of_the_batch_does_not_matter():
    batchformer, x = layer().double(), features().double()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(batchformer.mix(x[order]), batchformer.mix(x)[order])


def test_samples_are_coupled_through_the_mixed_half_only():
    batchformer, classifier = layer(), nn.Linear(16, 3)
    x, y = features().requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = F.cross_entropy(classifier(batchformer(x)), torch.cat([y, y]), reduction="none")
    for i, j in itertools.product(range(6), range(6)):
        (plain,) = torch.autograd.grad(losses[i], x, retain_graph=True)
        (mixed,) = torch.autograd.grad(losses[6 + i], x, retain_graph=True)
        assert bool(plain[j].any()) == (i == j)
        assert mixed[j].any()


def test_gradients_match_finite_differences():
    batchformer = layer(dim=4, num_heads=2).double()
    assert torch.autograd.gradcheck(batchformer.mix, features(3, 4).double().requires_grad_())


def test_a_batch_of_one_attends_to_itself():
    batchformer, x = layer(), features(1)
    (encoder,) = batchformer.layers
    value = F.linear(x, encoder.self_attn.in_proj_weight[32:], encoder.self_attn.in_proj_bias[32:])
    x1 = encoder.norm1(x + encoder.self_attn.out_proj(value))
    expected = encoder.norm2(x1 + encoder.linear2(encoder.linear1(x1).relu()))
    torch.testing.assert_close(batchformer(x)[1:], expected)


def test_dropout_acts_in_training_only_on_the_mixed_half():
    batchformer, x = layer(dropout=0.5), features()
    first, second = batchformer(x), batchformer(x)
    assert torch.equal(first[:6], second[:6])
    assert not torch.equal(first[6:], second[6:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_pass(dtype):
    assert layer().to(dtype)(features().to(dtype)).dtype == dtype


def test_mixed_precision_passes():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        doubled = layer()(features())
    assert doubled.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 4}, "dim 10 and num_heads 4"),
        ({"dim": 0}, "at least 1, got 0, 4, 0 and 1"),
        ({"dim": 8, "num_layers": 0}, "8, 4, 8 and 0"),
        ({"dim": 8, "feedforward_dim": 0}, "8, 4, 0 and 1"),
        ({"dim": 8, "dropout": 1.5}, r"\[0, 1\], got 1.5"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchFormer(**options)


@pytest.mark.parametrize("shape", [(6,), (6, 5, 16), (6, 16, 2, 2)])
def test_features_that_are_not_pooled_are_refused(shape):
    with pytest.raises(ValueError, match="pool them first, or use BatchFormerV2"):
        layer()(torch.zeros(shape))


def test_features_of_another_dim_and_labels_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"16 entries each, got shape \(6, 12\)"):
        layer()(torch.zeros(6, 12))
    with pytest.raises(ValueError, match="5 labels and 6 features"):
        layer()(features(), torch.zeros(5))


def _worker(rank: int, port: int, state: dict, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        batchformer = layer(gather=True)
        batchformer.load_state_dict(state)
        mine = features()[3 * rank : 3 * rank + 3].clone().requires_grad_()
        loss = batchformer.mix(mine).square().cos().mean()
        loss.backward()
        for parameter in batchformer.parameters():
            dist.all_reduce(parameter.grad)
        refused = ""
        try:
            batchformer.mix(features(3 + rank))
        except ValueError as error:
            refused = str(error)
        gradients = [parameter.grad / 2 for parameter in batchformer.parameters()]
        torch.save({"features": mine.grad / 2, "parameters": gradients, "refused": refused}, f"{path}/{rank}")
    finally:
        dist.destroy_process_group()


def test_gathering_over_processes_equals_one_process_with_the_whole_batch(tmp_path, unused_port):
    batchformer = layer()
    x = features().requires_grad_()
    batchformer.mix(x).square().cos().mean().backward()
    mp.spawn(_worker, (unused_port, batchformer.state_dict(), str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    torch.testing.assert_close(torch.cat([result["features"] for result in results]), x.grad)
    for result in results:
        torch.testing.assert_close(result["parameters"], [parameter.grad for parameter in batchformer.parameters()])
        assert "equal batches in all processes, got [3, 4]" in result["refused"]


def test_gathering_without_processes_is_the_local_batch():
    torch.testing.assert_close(layer(gather=True).mix(features()), layer().mix(features()))


def test_both_halves_teach_the_shared_classifier():
    batchformer, classifier, y = layer(), nn.Linear(16, 6), torch.arange(6)
    halves = [F.cross_entropy(classifier(x), y) for x in (features(), batchformer.mix(features()))]
    plain, mixed = (torch.autograd.grad(half, classifier.weight)[0] for half in halves)
    (both,) = torch.autograd.grad(two_stream_loss(classifier(batchformer(features())), y), classifier.weight)
    assert plain.any()
    assert mixed.any()
    torch.testing.assert_close(both, (plain + mixed) / 2)
