"""From fetched values to logits."""

import pytest
import torch

from etude.transfer.discrete_kv_bottleneck import LinearDecoder, MLPDecoder, VotingDecoder, make_decoder

SHAPE = (3, 2, 5, 4)


def values(n=6):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_votes_are_averaged_over_codebooks_and_places_and_summed_over_fetched_keys():
    v = values()
    expected = torch.zeros(6, 4)
    for book in range(3):
        for key in range(2):
            for place in range(5):
                expected += v[:, book, key, place] / 15
    torch.testing.assert_close(VotingDecoder()(v), expected)
    assert list(VotingDecoder().parameters()) == []


def test_dropout_takes_whole_votes_out_in_training_only():
    decoder = VotingDecoder(0.5)
    ones = torch.ones(200, 3, 1, 5, 4)
    torch.manual_seed(0)
    dropped = decoder.train()(ones)
    assert bool((dropped == dropped[:, :1]).all())  # all classes of a vote together
    assert len(dropped[:, 0].unique()) > 3
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(decoder.eval()(ones), torch.ones(200, 4))


def test_parametric_decoders_read_all_values_concatenated():
    v = values()
    linear, bare = LinearDecoder(SHAPE, 7), LinearDecoder(SHAPE, 7, bias=False)
    torch.testing.assert_close(linear(v), v.flatten(1) @ linear.linear.weight.T + linear.linear.bias)
    torch.testing.assert_close(bare(v), v.flatten(1) @ bare.linear.weight.T)
    mlp = MLPDecoder(SHAPE, 7)
    first, last = mlp.layers[0], mlp.layers[2]
    torch.testing.assert_close(mlp(v), last(first(v.flatten(1)).clamp(min=0)))
    assert first.out_features == 128


def test_decoders_by_name():
    assert isinstance(make_decoder("voting", SHAPE, 4), VotingDecoder)
    assert make_decoder("linear", SHAPE, 4).linear.bias is not None
    assert make_decoder("linear_no_bias", SHAPE, 4).linear.bias is None
    assert isinstance(make_decoder("mlp", SHAPE, 4), MLPDecoder)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="voting needs dim_value equal to the number of classes, got 4 and 10"):
        make_decoder("voting", SHAPE, 10)
    with pytest.raises(ValueError, match="got 'attention'"):
        make_decoder("attention", SHAPE, 4)
    with pytest.raises(ValueError, match=r"values must have shape \(n, 3, 2, 5, 4\), got \(6, 3, 2, 5, 3\)"):
        LinearDecoder(SHAPE, 7)(values()[..., :3])
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        MLPDecoder(SHAPE, 1)
    with pytest.raises(ValueError, match="dropout"):
        VotingDecoder(1)
