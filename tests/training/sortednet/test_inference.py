"""Early exit and self-speculative decoding: the same answers as the sub-models and the whole network give."""

from dataclasses import replace

import pytest
import torch

from etude.training.sortednet import (
    SortedMLP,
    SortedMobileNetV2,
    SortedResNet18,
    SortedTransformerEncoder,
    SortedTransformerLM,
    SubModel,
    early_exit,
    set_submodel,
    space_of,
    speculative_decode,
)

DEPTHS = [1, 2, 4]


def classifier():
    torch.manual_seed(0)
    return SortedTransformerEncoder(5, 3, 7, width=[8, 16], heads=[2, 4], depth=DEPTHS).train()


def language_model(seed=0):
    torch.manual_seed(seed)
    model = SortedTransformerLM(11, 24, width=[8], heads=[2], depth=[1, 3])
    with torch.no_grad():  # so that depths disagree now and then, and tokens do not repeat
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def at_depths(model, x, b):
    outputs = []
    for depth in DEPTHS:
        with set_submodel(model, replace(b, depth=depth)), torch.no_grad():
            outputs.append(model.eval()(x))
    return outputs


@pytest.mark.parametrize("threshold", [0, 0.36, 0.4, 0.5, 1])
def test_each_input_leaves_at_the_first_depth_that_is_confident(threshold):
    model, x = classifier(), torch.randn(30, 6, 5)
    b = SubModel(width=8, depth=4, heads=2)
    set_submodel(model, b)
    result = early_exit(model, x, threshold)
    assert model.training
    outputs = at_depths(model, x, b)
    for row in range(30):
        confident = [logits[row].softmax(0).max() > threshold for logits in outputs]
        place = next((place for place, sure in enumerate(confident) if sure), len(DEPTHS) - 1)
        assert int(result.depth[row]) == DEPTHS[place]
        torch.testing.assert_close(result.logits[row], outputs[place][row])
    expected = {0: {1}, 1: {4}}.get(threshold)
    assert expected is None or set(result.depth.tolist()) == expected


def test_some_inputs_leave_early_and_no_block_runs_twice():
    model, x = classifier(), torch.randn(30, 6, 5)
    rows = [0] * 4
    for index, block in enumerate(model.blocks.blocks()):
        block.register_forward_pre_hook(
            lambda _, args, index=index: rows.__setitem__(index, rows[index] + len(args[0]))
        )
    depth = early_exit(model, x, 0.4).depth
    assert len(set(depth.tolist())) > 1
    assert rows == [int((depth > index).sum()) for index in range(4)]


def test_early_exit_refuses_what_has_no_exits():
    with pytest.raises(ValueError, match=r"threshold is a probability in \[0, 1\], got 1\.5"):
        early_exit(classifier(), torch.randn(1, 6, 5), 1.5)
    with pytest.raises(TypeError, match="SortedResNet18 needs a sorted stack"):
        early_exit(SortedResNet18(2), torch.randn(1, 3, 8, 8), 0.5)
    with pytest.raises(ValueError, match=r"one prediction per input, got logits of shape \(1, 3, 11\)"):
        early_exit(language_model(), torch.zeros(1, 3, dtype=torch.int64), 0.5)
    openers = SortedMobileNetV2(2, width=[1.0], depth=[8, 17])
    openers.enter, openers.leave = openers.stem, openers.head
    with pytest.raises(ValueError, match="every depth keeps blocks"):
        early_exit(openers, torch.randn(1, 3, 8, 8), 0.5)


def greedy(model, prompt, new_tokens):
    tokens = prompt
    with torch.no_grad():
        for _ in range(new_tokens):
            tokens = torch.cat([tokens, model.eval()(tokens[None])[0, -1:].argmax(dim=-1)])
    return tokens


@pytest.mark.parametrize("lookahead", [1, 3, 8])
@pytest.mark.parametrize("confidence", [0, 0.3])
def test_decoding_gives_the_tokens_of_the_whole_network(lookahead, confidence):
    prompt = torch.tensor([1, 4, 2])
    agreements = set()
    for seed in range(3):
        model = language_model(seed)
        result = speculative_decode(
            model, prompt, 12, SubModel(width=8, depth=1, heads=2), lookahead=lookahead, confidence=confidence
        )
        assert torch.equal(result.tokens, greedy(model, prompt, 12))
        assert result.accepted + result.passes == 12
        assert result.passes <= 12
        agreements.add(result.accepted / result.drafted)
    assert min(agreements) < 1
    assert max(agreements) > 0


def test_a_draft_that_always_agrees_saves_all_but_every_few_passes():
    model = language_model()
    result = speculative_decode(model, torch.tensor([3]), 20, space_of(model).full, lookahead=4)
    assert result.passes == 4
    assert result.accepted == result.drafted == 16


def test_a_draft_that_is_never_confident_proposes_one_token_a_pass():
    model = language_model()
    result = speculative_decode(model, torch.tensor([3]), 10, SubModel(width=8, depth=1, heads=2), confidence=1)
    assert result.drafted <= result.passes


def test_decoding_refuses_empty_prompts_and_numbers_out_of_range():
    model = language_model()
    draft = space_of(model).smallest
    with pytest.raises(ValueError, match="got 0 tokens, 5 and 4"):
        speculative_decode(model, torch.zeros(0, dtype=torch.int64), 5, draft)
    with pytest.raises(ValueError, match="got 1 tokens, 5 and 0"):
        speculative_decode(model, torch.tensor([1]), 5, draft, lookahead=0)
    with pytest.raises(ValueError, match=r"confidence is a probability in \[0, 1\], got -0\.1"):
        speculative_decode(model, torch.tensor([1]), 5, draft, confidence=-0.1)
    with pytest.raises(ValueError, match="is none of the 2 sub-models"):
        speculative_decode(model, torch.tensor([1]), 5, SubModel(width=8, depth=2, heads=2))


def test_a_classifier_of_vectors_leaves_early_too():
    torch.manual_seed(0)
    model = SortedMLP(6, 3, width=[4, 8], depth=[1, 3])
    x = torch.randn(5, 6)
    assert torch.equal(early_exit(model, x, 1).logits, model.eval()(x).detach())
