import math

import pytest
import torch
from torch import nn

from etude.sequence.sigma import (
    DiffKVCache,
    SigmaConfig,
    SigmaLM,
    attention_cost,
    crossover,
    decode_bench,
    generate,
)
from etude.sequence.sigma.costs import DecodeTimes

TINY = SigmaConfig(vocab_size=11, dim=16, num_layers=2, ffn_dim=20, num_q_heads=4, num_k_heads=1, num_v_heads=2)


def tiny(**changes):
    torch.manual_seed(0)
    return SigmaLM(TINY if not changes else SigmaConfig(**{**vars(TINY), **changes})).eval()


@pytest.mark.parametrize(
    ("config", "tied", "untied"),
    [
        (SigmaConfig.sigma_1_5b, 2_021_238_784, 2_283_907_072),
        (SigmaConfig.sigma_10b, 9_987_952_640, 10_513_289_216),
    ],
)
def test_the_family_has_its_parameters(config, tied, untied):
    with torch.device("meta"):
        for ties, count in ((True, tied), (False, untied)):
            assert sum(p.numel() for p in SigmaLM(config(tie_embeddings=ties)).parameters()) == count


def test_a_token_changes_no_earlier_output():
    model, ids = tiny(q_aug_dim=24, k_head_dim=2), torch.arange(10)[None] % 11
    other = ids.clone()
    other[0, 6] = 0
    moved = (model(ids) != model(other)).any(-1)[0]
    assert moved.tolist() == [False] * 6 + [True] * 4


@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"max_len": 40}])
def test_generation_with_caches_equals_generation_without(options):
    model, ids = tiny(q_aug_dim=24, k_head_dim=2), torch.tensor([[1, 2, 3], [9, 8, 7]])
    found = generate(model, ids, 12, **options)
    slow = ids
    for _ in range(12):
        slow = torch.cat([slow, model(slow)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(found, slow)


def test_draws_repeat_and_stay_among_the_likeliest():
    model, ids = tiny(), torch.tensor([[1, 2, 3]])
    one, other = (
        generate(model, ids, 8, temperature=2.0, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(one, other)
    greedy = generate(model, ids, 8)
    assert torch.equal(generate(model, ids, 8, temperature=5.0, top_k=1), greedy)
    assert torch.equal(generate(model, ids, 0), ids)
    model.train()
    generate(model, ids, 1)
    assert model.training


def test_padding_on_the_left_changes_nothing():
    model, ids = tiny(rope_theta=1e4), torch.tensor([[5, 6, 7, 8]])
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), ids], dim=1)
    mask = torch.tensor([[False, False, True, True, True, True]])
    torch.testing.assert_close(model(padded, mask=mask)[:, 2:], model(ids), rtol=1e-4, atol=1e-5)


def test_selecting_all_values_changes_nothing_and_few_do():
    model, ids = tiny(), torch.arange(9)[None] % 11
    torch.testing.assert_close(model(ids, select_v=9), model(ids))
    assert not torch.allclose(model(ids, select_v=1), model(ids))


def test_initial_scale_and_the_residual_outputs():
    model = SigmaLM(SigmaConfig(vocab_size=50, dim=128, num_layers=8, num_q_heads=8))
    block = model.blocks[0]
    assert block.attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.o_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert block.ffn.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert tiny(tie_embeddings=True).head.weight is not None


def test_a_saved_model_comes_back(tmp_path):
    model, ids = tiny(k_head_dim=2), torch.tensor([[1, 2, 3]])
    model.save_pretrained(tmp_path)
    assert torch.equal(SigmaLM.from_pretrained(tmp_path).eval()(ids), model(ids))


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.10, got 3\.\.11"):
        tiny()(torch.tensor([[3, 11]]))
    with pytest.raises(ValueError, match="need a token"):
        generate(tiny(), torch.zeros(1, 0, dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="positive"):
        SigmaConfig(vocab_size=0)


def test_the_cache_holds_what_the_formula_says():
    for counts, widths in (((4, 16), (8, 8)), ((16, 16), (8, 8)), ((2, 4), (3, 5))):
        cache = DiffKVCache(3, *counts, *widths, max_len=10)
        assert cache.nbytes() == 3 * 10 * (counts[0] * widths[0] + counts[1] * widths[1]) * 4
    assert DiffKVCache(1, 4, 16, 8, 8, 10).nbytes() / DiffKVCache(1, 16, 16, 8, 8, 10).nbytes() == 0.625
    assert DiffKVCache(1, 4, 16, 8, 8, 10, dtype=torch.bfloat16).nbytes() == 10 * 20 * 8 * 2


def test_the_cache_is_cropped_reordered_and_never_wraps():
    cache = DiffKVCache(2, 1, 2, 3, 3, 4)
    keys, values = torch.randn(2, 1, 3, 3), torch.randn(2, 2, 3, 3)
    cache.append(keys, values)
    with pytest.raises(ValueError, match="3 of 4 tokens: there is no room for 2 more"):
        cache.append(keys[:, :, :2], values[:, :, :2])
    cache.crop(2)
    assert torch.equal(cache.values, values[:, :, :2])
    cache.reorder(torch.tensor([1, 1]))
    assert torch.equal(cache.keys, keys[[1, 1], :, :2])
    with pytest.raises(ValueError, match=r"0\.\.2"):
        cache.crop(3)
    with pytest.raises(ValueError, match=r"keys must have shape \(2, 1, 3, 3\), got \(2, 2, 3, 3\)"):
        cache.append(values, values)
    with pytest.raises(ValueError, match="positive"):
        DiffKVCache(1, 1, 1, 4, 4, 0)


def test_costs_follow_from_the_sizes():
    config = SigmaConfig.sigma_1_5b()
    cost, standard = attention_cost(config, 1000), attention_cost(config.standard(), 1000)
    assert cost.cache_bytes == 26 * 1000 * (4 + 16) * 64 * 2
    assert cost.cache_bytes / standard.cache_bytes == 0.625
    assert cost.augmentation_flops == 2 * 26 * 3 * 2048 * 3072
    assert attention_cost(config, 9000).augmentation_flops == cost.augmentation_flops
    assert standard.augmentation_flops == 0
    assert cost.score_flops == 2 * 26 * 1000 * 2048
    assert attention_cost(SigmaConfig(vocab_size=9, k_head_dim=4), 7).expansion_flops == 2 * 3 * 7 * 1 * (4 * 8)
    with torch.device("meta"):
        layer = config.attention()
    assert cost.weight_bytes == 26 * 2 * sum(p.numel() for p in layer.parameters())
    with pytest.raises(ValueError, match="positive"):
        attention_cost(config, 0)


def test_layers_are_timed_in_turn():
    layers = {"standard": TINY.standard().attention(), "augmented": tiny(q_aug_dim=24).blocks[0].attention}
    found = decode_bench(layers, [4, 8], repeats=2)
    assert [time.tokens for time in found["standard"]] == [4, 8]
    assert found["standard"][0].augment == 0 < found["augmented"][0].augment
    assert all(min(t.store, t.attend, t.total) > 0 for times in found.values() for t in times)
    with pytest.raises(ValueError, match="repeats"):
        decode_bench(layers, [4], repeats=0)


def test_the_crossing_lies_between_the_measured_lengths():
    def times(*totals):
        return [DecodeTimes(t, 0.0, 0.0, 0.0, total) for t, total in zip((100, 400, 1600), totals)]

    assert crossover(times(2.0, 2.0, 1.0), times(1.0, 1.0, 2.0)) == pytest.approx(math.sqrt(400 * 1600))
    assert crossover(times(1.0, 1.0, 1.0), times(2.0, 2.0, 2.0)) == 100
    assert crossover(times(3.0, 3.0, 3.0), times(2.0, 2.0, 2.0)) == math.inf
    with pytest.raises(ValueError, match="same numbers"):
        crossover(times(1.0), times(1.0, 2.0))


def test_a_decode_step_is_the_sum_of_its_parts():
    """The step that is timed gives what the layer gives."""
    from etude.sequence.sigma.costs import _Step

    layer = tiny(q_aug_dim=24, k_head_dim=2).blocks[0].attention
    step = _Step(layer, 6, 2, torch.Generator().manual_seed(0))
    step.store()
    assert step.cache.length == 7
    step.total()
    assert step.cache.length == 7
    assert isinstance(layer, nn.Module)
