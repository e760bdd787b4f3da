import pytest
import torch

from etude.nn.mixers import mixer_names
from etude.sequence import load_mixers
from etude.sequence.zoology import (
    IGNORED,
    MQARDataset,
    RecallLM,
    accuracy_by_slice,
    best_rates,
    evaluate_recall,
    fit_recall,
    make_mixer,
    mqar,
    plot_recall,
    recall_accuracy,
    recall_sweep,
)

load_mixers()
SHORT = {"name": "base_conv", "kernel_sizes": 3}


def solved_by_hand(vocab):
    """The paper's construction: a convolution brings each token's predecessor beside it, attention looks it up.

    A token is one-hot, twice. The first layer adds the previous token to the second half; attention asks there for
    the token that is read now, and takes what stands in the first half, the value.
    """
    dim = 2 * vocab
    model = RecallLM(vocab, dim, mixer=[SHORT, "attention"], dropout=0.0).eval()
    convolution, attention = model.blocks[0].mixer, model.blocks[1].mixer
    one, zero = torch.eye(vocab), torch.zeros(vocab, vocab)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.cat([one, one], dim=1))
        convolution.projection.weight.zero_()
        convolution.projection.bias.copy_(torch.tensor([0.0, 30.0]).repeat_interleave(vocab))
        convolution.conv.conv.weight.zero_()[:, 0, 1] = 1.0  # the token before
        convolution.conv.conv.bias.zero_()
        first, second = torch.cat([one, zero], dim=1), torch.cat([zero, one], dim=1)
        nothing = torch.zeros(vocab, dim)
        query, key = torch.cat([100 * first, nothing]), torch.cat([second, nothing])
        attention.qkv.weight.copy_(torch.cat([query, key, torch.cat([first, nothing])]))
        attention.qkv.bias.zero_()
        attention.out.weight.copy_(1000 * torch.eye(dim))
        attention.out.bias.zero_()
    return model


@pytest.mark.parametrize(("length", "pairs", "random"), [(32, 4, False), (32, 8, False), (32, 4, True)])
def test_two_layers_set_by_hand_recall_without_training(length, pairs, random):
    model = solved_by_hand(48)
    inputs, labels = mqar(48, 200, length, pairs, random_non_queries=False, seed=0)
    if random:  # random tokens that are no keys: a key that stands again with another neighbour has two values
        noise = torch.randint(24, 48, inputs.shape, generator=torch.Generator().manual_seed(1))
        inputs = torch.where(inputs == 0, noise, inputs)
    assert recall_accuracy(model(inputs), labels) == 1.0
    assert evaluate_recall(model, (inputs, labels)) == 1.0


def test_sizes_and_start_are_the_papers():
    torch.manual_seed(0)
    assert sum(p.numel() for p in RecallLM(256, 64, mixer="base_conv").parameters()) == 26_496
    model = RecallLM(256, 64, mixer=[SHORT, "attention"])
    assert sum(p.numel() for p in model.parameters()) == 37_824
    attention = model.blocks[1].mixer
    assert attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert attention.out.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 0.02 / sqrt(2 * 2)
    assert not attention.qkv.bias.any()
    positions = RecallLM(256, 64, mixer="attention", positions="learned", max_len=64)
    assert sum(p.numel() for p in positions.parameters()) == 64 * (256 + 64) + 2 * (4 * 64 * 64 + 4 * 64 + 128) + 128
    mlp = RecallLM(16, 8, 1, mixer=SHORT, mlp_ratio=4)
    assert mlp.blocks[0].mlp.fc1.weight.shape == (32, 8)


def test_scored_logits_are_the_logits_that_are_scored():
    torch.manual_seed(0)
    model = RecallLM(64, 8, mixer="base_conv", max_len=32).eval()
    inputs, labels = mqar(64, 5, 32, 4, seed=0)
    torch.testing.assert_close(model.scored_logits(inputs, labels), model(inputs)[labels != IGNORED])


def test_slices_of_a_model_never_form_the_logits_that_are_not_scored(monkeypatch):
    model = solved_by_hand(48)
    data = MQARDataset(
        [{"seq_len": 32, "num_kv_pairs": pairs, "num_examples": 20} for pairs in (2, 8)], vocab_size=48,
        random_non_queries=False,
    )  # fmt: skip
    monkeypatch.setattr(RecallLM, "forward", lambda *_: pytest.fail("all logits were formed"))
    assert accuracy_by_slice(model, data) == {(32, 2): 1.0, (32, 8): 1.0}


@pytest.mark.parametrize("mixer", ["base_conv", "hyena", "h3", "based", "retention", "attention", "long_conv"])
def test_the_model_is_causal_and_takes_shorter_sequences(mixer):
    torch.manual_seed(0)
    model = RecallLM(16, 8, mixer=mixer, max_len=16, positions="learned").double().eval()
    ids = torch.randint(16, (2, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, 8:] = (other[:, 8:] + 1) % 16
    torch.testing.assert_close(model(ids)[:, :8], model(other)[:, :8], atol=1e-10, rtol=0)
    torch.testing.assert_close(model(ids[:1]), model(ids)[:1])
    torch.testing.assert_close(model(ids[:, :5]), model(ids)[:, :5], atol=1e-10, rtol=0)


def test_other_papers_mixers_are_known_by_name_alone():
    names = mixer_names()
    assert {"base_conv", "long_conv", "hyena", "h3", "based", "selective", "hybrid"} <= set(names)
    assert {"attention", "window", "retention"} <= set(names)
    for name in {"rwkv", "mamba"} & set(names):  # another paper's, which may not be there
        assert make_mixer(name, 16, max_len=8)(torch.zeros(1, 4, 16)).shape == (1, 4, 16)


def test_a_saved_model_is_the_same(tmp_path):
    torch.manual_seed(0)
    mixer = [SHORT, {"name": "selective", "k": 0.25}]
    model = RecallLM(32, 8, mixer=mixer, max_len=16).eval()
    model.save_pretrained(tmp_path)
    again = RecallLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(10)[None]
    assert torch.equal(model(ids), again(ids))


def test_training_stops_when_the_validation_is_solved():
    model = solved_by_hand(48)
    data = mqar(48, 64, 32, 4, random_non_queries=False, seed=0)
    seen = []
    found = fit_recall(
        model, data, data, steps=40, lr=1e-6, every=2, batch_size=8,
        callback=lambda step, steps, **metrics: seen.append((step, steps, set(metrics))),
    )  # fmt: skip
    assert found == (2, 1.0)
    assert seen == [(2, 40, {"loss", "val_accuracy"})]
    assert fit_recall(model, data, data, steps=3, lr=1e-6, every=2, batch_size=8, stop_at=None).steps == 3


def test_a_batch_without_labels_changes_nothing_but_weight_decay():
    torch.manual_seed(0)
    model = RecallLM(48, 8, mixer=SHORT, dropout=0.0)
    inputs, labels = mqar(48, 8, 32, 4, seed=0)
    before = [p.clone() for p in model.parameters()]
    fit_recall(
        model, (inputs, torch.full_like(labels, IGNORED)), (inputs, labels), steps=2, lr=0.1, weight_decay=0,
        batch_size=4,
    )  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters()))


def test_a_sweep_tables_every_run_and_picks_rates_by_validation():
    table = recall_sweep(
        ["based", "long_conv"], (8, 16), ((16, 2),), (1e-3, 1e-2), (0,), vocab_size=32, examples=(32, 16, 16), steps=2,
        batch_size=8,
    )  # fmt: skip
    assert len(table) == 2 * 2 * 2
    assert {"mixer", "dim", "lr", "seed", "accuracy", "val_accuracy", "parameters", "state_size"} <= set(table[0])
    rows = [
        {"mixer": "a", "dim": 8, "length": 16, "pairs": 2, "lr": lr, "val_accuracy": val, "accuracy": test}
        for lr, val, test in ((0.1, 0.5, 0.9), (0.1, 0.3, 0.9), (0.01, 0.6, 0.2), (0.01, 0.4, 0.4))
    ]
    (best,) = best_rates(rows)
    assert best["lr"] == 0.01
    assert best["accuracy"] == pytest.approx(0.3)
    figure = plot_recall(table)
    assert len(figure.axes) == 1
    assert len(figure.axes[0].lines) == 2
    with pytest.raises(ValueError, match="empty"):
        plot_recall([])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RecallLM(0), ValueError, "must be positive"),
        (lambda: RecallLM(8, positions="rotary"), ValueError, "none or learned"),
        (lambda: RecallLM(8, mixer="no_such"), ValueError, "no_such"),
        (lambda: RecallLM(8, mixer=[]), ValueError, "empty"),
        (lambda: RecallLM(8, mixer={"k": 3}), ValueError, "needs a name"),
        (lambda: RecallLM(8, mixer={"name": "based", "width": 3}), TypeError, "width"),
        (lambda: RecallLM(8)(torch.tensor([[8]])), ValueError, r"0\.\.7, got 8\.\.8"),
        (lambda: RecallLM(8, max_len=2, mixer="attention", positions="learned")(torch.zeros(1, 3).long()), ValueError,
         "positions for 2 tokens, got 3"),
        (lambda: RecallLM(8, max_len=4)(torch.zeros(1, 5).long()), ValueError, "at most 4 tokens, got 5"),
        (lambda: recall_sweep([]), ValueError, "needs a mixer"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
