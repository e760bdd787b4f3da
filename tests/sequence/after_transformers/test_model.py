import pytest
import torch

from etude.sequence import load_mixers
from etude.sequence.after_transformers.model import SequenceModel, match_parameters, parameter_groups

load_mixers()
STEPPED = ["attention", "window", "retention", "rwkv", "s4d", "mamba", "mamba2", "mlstm", "min_gated"]


def built(mixer="retention", dim=8, **options):
    torch.manual_seed(0)
    head = options.pop("head", "lm")
    outputs = {} if head == "lm" else {"num_outputs": 3}
    return SequenceModel(mixer, dim, 2, vocab=11, head=head, max_len=32, **outputs, **options).double().eval()


def tokens(batch=2, length=7, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mixer", STEPPED)
def test_steps_and_pieces_equal_the_whole(mixer):
    model, ids = built(mixer, positions="learned"), tokens()
    with torch.no_grad():
        whole, state = model(ids), model.init_state(2)
        first, state = model.read(ids[:, :4], state)
        outputs = [first]
        for token in ids[:, 4:].unbind(1):
            y, state = model.step(token, state)
            outputs.append(y[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-8, atol=1e-8)
    assert state["read"] == 7


BLOCKS = [{"residual": "post"}, {"residual": "rezero"}, *({"channel": name} for name in ("rwkv", "moe", "kan", None))]


@pytest.mark.parametrize("options", BLOCKS)
def test_every_block_steps_as_it_reads(options):
    model, ids = built("mamba2", **options), tokens()
    if options.get("residual") == "rezero":
        for block in model.blocks:
            torch.nn.init.normal_(block.gains)
    with torch.no_grad():
        y, state = model.read(ids, model.init_state(2))
        torch.testing.assert_close(y, model(ids), rtol=1e-8, atol=1e-8)
        y, _ = model.step(ids[:, 0], state)
        longer = model(torch.cat([ids, ids[:, :1]], 1))[:, -1]
    torch.testing.assert_close(y, longer, rtol=1e-8, atol=1e-8)


def test_rezero_starts_as_the_identity():
    model, ids = built(residual="rezero"), tokens()
    with torch.no_grad():
        embedded = model.embedding(ids)
        torch.testing.assert_close(model.blocks[0](embedded), embedded)


@pytest.mark.parametrize("mixer", ["attention", "mamba", "hyena"])
def test_greedy_decoding_takes_the_likeliest_of_a_full_pass(mixer):
    model, ids = built(mixer), tokens()
    out = model.generate(ids, 6, temperature=0)
    assert out.shape == (2, 13)
    assert torch.equal(out[:, :7], ids)
    with torch.no_grad():
        assert torch.equal(model(out[:, :-1])[:, 6:].argmax(-1), out[:, 7:])
    assert model.has_step == (mixer != "hyena")


def test_draws_follow_the_generator_and_keep_to_the_top():
    model, ids = built(), tokens(64)
    draws = [model.generate(ids, 1, generator=torch.Generator().manual_seed(3), top_k=2) for _ in range(2)]
    assert torch.equal(*draws)
    with torch.no_grad():
        best = model(ids)[:, -1].topk(2).indices
    assert (draws[0][:, -1:] == best).any(1).all()
    assert model.generate(ids, 0) is ids
    model.train()
    model.generate(ids, 1)
    assert model.training


def test_a_classifier_reads_no_padding():
    model, ids = built("fnet", head="classify"), tokens()
    mask = torch.arange(7).expand(2, 7) < 5
    other = ids.clone()
    other[:, 5:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids, mask=mask), model(other, mask=mask))
        causal = built("gru", head="classify")
        torch.testing.assert_close(causal(ids, mask=mask), causal(ids[:, :5]))
    with pytest.raises(TypeError, match="reads whole sequences"):
        causal.init_state(2)


def test_vectors_and_tags():
    torch.manual_seed(0)
    model = SequenceModel("s4d", 8, 1, input_dim=2, head="tag", num_outputs=5)
    assert model(torch.randn(3, 4, 2)).shape == (3, 4, 5)


def test_layers_take_mixers_in_turn():
    model = built([{"name": "window", "window": 3}, "mamba"])
    assert [type(mixer).__name__ for mixer in model.mixers()] == ["WindowAttention", "Mamba"]
    assert model.mixers()[0].window == 3
    assert model.state_size(100) == sum(mixer.state_size(100) for mixer in model.mixers())


def test_sizes_are_matched():
    names = ["attention", "mamba", "s4d", "gru"]
    options = {"dim": 32, "depth": 2, "vocab": 50}
    ratios = match_parameters(names, 60_000, **options)
    for name, ratio in ratios.items():
        count = sum(p.numel() for p in SequenceModel(name, mlp_ratio=ratio, **options).parameters())
        assert abs(count - 60_000) < 0.03 * 60_000
    with pytest.raises(ValueError, match="parameters at best"):
        match_parameters(["mamba"], 1000, **options)


def test_exponents_learn_slowly_and_do_not_decay():
    model = built("s4d")
    decayed, undecayed, slow = parameter_groups(model, lr=1e-2, weight_decay=0.1)
    layer = model.mixers()[0]
    assert {id(p) for p in (layer.log_dt, layer.log_decay, layer.frequency)} <= {id(p) for p in slow["params"]}
    assert (slow["lr"], slow["weight_decay"]) == (1e-3, 0.0)
    assert undecayed["weight_decay"] == 0
    assert decayed["weight_decay"] == 0.1
    assert sum(len(g["params"]) for g in (decayed, undecayed, slow)) == len(list(model.parameters()))
    mamba = built("mamba").mixers()[0]
    group = next(g for g in parameter_groups(mamba, lr=1e-2) if any(p is mamba.a_log for p in g["params"]))
    assert (group["lr"], group["weight_decay"]) == (1e-2, 0.0)


def test_what_sees_later_tokens_is_no_language_model():
    for name in ("fnet", "mlp_mixer"):
        with pytest.raises(ValueError, match="must not see later tokens"):
            built(name)
    built({"name": "mlp_mixer", "causal": True})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab": 5, "input_dim": 2}, "give one of vocab and input_dim"),
        ({}, "give one of vocab and input_dim"),
        ({"vocab": 5, "head": "other"}, "head must be"),
        ({"input_dim": 5}, "needs a vocabulary"),
        ({"vocab": 5, "head": "tag"}, "num_outputs"),
        ({"vocab": 5, "depth": 0}, "must be positive"),
        ({"vocab": 5, "positions": "sine"}, "positions must be"),
        ({"vocab": 5, "residual": "none"}, "residual must be"),
        ({"vocab": 5, "channel": "none"}, "channel must be one of"),
    ],
)
def test_bad_models_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SequenceModel("gru", 8, **options)


def test_other_refusals():
    for spec, message in (([], "must not be empty"), ({"window": 3}, "needs a name"), ("selective", "asks for tokens")):
        with pytest.raises(ValueError, match=message):
            built(spec)
    model = built(positions="learned")
    with pytest.raises(ValueError, match="positions for 32 tokens, got 33"):
        model(tokens(1, 33))
    for prompt, new, options in ((tokens(2, 0), 1, {}), (tokens(), -1, {}), (tokens(), 1, {"temperature": -1}),
                                 (tokens(), 1, {"top_k": 0})):  # fmt: skip
        with pytest.raises(ValueError, match="need a prompt"):
            model.generate(prompt, new, **options)
    with pytest.raises(ValueError, match="does not generate"):
        built(head="tag").generate(tokens(), 1)


@pytest.mark.parametrize(
    ("inputs", "head", "scale"),
    [({"vocab": 50}, "lm", 0.02), ({"vocab": 50}, "tag", 64**-0.5), ({"input_dim": 1}, "classify", 0.5)],
)
def test_positions_start_at_the_scale_of_the_tokens(inputs, head, scale):
    outputs = None if head == "lm" else 4
    model = SequenceModel(
        "attention", 64, 1, head=head, num_outputs=outputs, max_len=256, positions="learned", **inputs
    )  # fmt: skip
    assert abs(model.positions.weight.std().item() / scale - 1) < 0.05
    if "vocab" in inputs:
        assert abs(model.embedding.weight.std().item() / scale - 1) < 0.05
