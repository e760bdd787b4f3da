"""Costs, quality, comparison and its table."""

import math
import time

import pytest
import torch

from etude.data import text
from etude.nn.mixers import Mixer, build_mixer
from etude.sequence.after_transformers import comparison, meter
from etude.sequence.after_transformers.comparison import Budget, MixerTable, compare, pareto
from etude.sequence.after_transformers.model import SequenceModel
from etude.sequence.after_transformers.tasks import IGNORED, adding, char_lm, from_examples, selective_copy

STEPPED = ("attention", "window", "retention", "linear_attention", "rwkv", "s4d", "mamba", "mamba2", "mlstm", "slstm",
           "gru", "lstm", "min_gated")  # fmt: skip
TINY = Budget(dim=8, depth=1, steps=2, batch_size=4, warmup=0, timing=1, decode_lengths=(2, 5))


def parts(seed=0):
    return selective_copy(24, 6, 2, 3, generator=torch.Generator().manual_seed(seed)).split(12, 6, 6)


@pytest.mark.parametrize("name", STEPPED)
def test_random_states_are_as_large_as_said_and_serve_a_step(name):
    torch.manual_seed(0)
    mixer = build_mixer(name, 8, max_len=128, **({"window": 16} if name == "window" else {}))
    for length in (1, 9, 100):
        state = meter.random_state(mixer, 2, 8, length, generator=torch.Generator().manual_seed(0))
        assert meter.state_bytes(state) == 2 * 4 * mixer.state_size(length)
        with torch.no_grad():
            y, after = mixer.step(torch.zeros(2, 8), state)
        assert y.shape == (2, 8)
        assert meter.state_bytes(after) == 2 * 4 * mixer.state_size(length + 1)


def test_decoding_is_measured_at_every_length():
    torch.manual_seed(0)
    costs = meter.decode_cost(build_mixer("attention", 8, max_len=64), 8, [4, 64], batch=3, repeats=2)
    assert costs[64].memory == 16 * costs[4].memory == 3 * 2 * 8 * 64 * 4
    assert all(0 < cost.seconds < 1 for cost in costs.values())
    with pytest.raises(ValueError, match="need lengths and repeats"):
        meter.decode_cost(build_mixer("gru", 8, max_len=64), 8, [])
    with pytest.raises(TypeError, match="no step form"):
        meter.decode_cost(build_mixer("fnet", 8, max_len=64), 8, [4])


def test_a_step_keeps_what_grows_with_the_batch():
    torch.manual_seed(0)
    task = parts()[0]
    model = SequenceModel("retention", 8, 1, vocab=5, head="tag", num_outputs=3)
    one, two = (meter.step_cost(model, task.inputs[:n], task.labels[:n], repeats=1) for n in (4, 8))
    assert 1.5 < two.memory / one.memory < 2.1
    assert one.parameters == sum(p.numel() for p in model.parameters())
    assert one.seconds > 0


class Loop(Mixer):
    """Takes time as its length squared."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, *, mask=None):
        time.sleep(2e-6 * x.shape[1] ** 2)
        return x * self.weight

    def state_size(self, length):
        return 0

    def flops(self, length):
        return length


def test_growth_of_what_is_quadratic_is_two():
    draw = torch.Generator().manual_seed(0)
    assert 1.5 < meter.training_growth(Loop(), 2, [50, 100], generator=draw) < 2.3
    with pytest.raises(ValueError, match="two different lengths"):
        meter.training_growth(Loop(), 2, [50, 50], generator=draw)


class Fixed(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = torch.nn.Parameter(outputs)

    def forward(self, x):
        return self.outputs[: len(x)]


def test_quality_counts_what_is_scored():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]]).repeat(2, 1, 1)
    labels = torch.tensor([[0, IGNORED, 1], [1, IGNORED, IGNORED]])
    task = from_examples("three", torch.zeros(2, 3, dtype=torch.int64), labels, num_outputs=2, vocab=1)
    found = meter.quality(Fixed(logits), task)
    loss = (math.log1p(math.exp(-2)) + math.log1p(math.exp(3)) + math.log1p(math.exp(2))) / 3
    assert found["accuracy"] == found["quality"] == pytest.approx(1 / 3)
    assert found["loss"] == pytest.approx(loss)
    assert found["bpc"] == pytest.approx(loss / math.log(2))
    lm = from_examples("char_lm", task.inputs, labels, num_outputs=2, vocab=1)
    assert meter.quality(Fixed(logits), lm)["quality"] == pytest.approx(-loss / math.log(2))
    empty = from_examples("none", task.inputs, torch.full_like(labels, IGNORED), num_outputs=2, vocab=1)
    with pytest.raises(ValueError, match="nothing is scored"):
        meter.quality(Fixed(logits), empty)
    numbers = adding(2, 4, generator=torch.Generator().manual_seed(0))
    mse = float(numbers.labels.square().mean())
    assert meter.quality(Fixed(torch.zeros(2, 1)), numbers)["quality"] == pytest.approx(-mse)


def test_training_follows_its_generator():
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = SequenceModel("gru", 8, 1, vocab=5, head="tag", num_outputs=3)
        draw = torch.Generator().manual_seed(seed)
        losses.append(meter.train(model, parts()[0], steps=3, lr=1e-2, batch_size=4, generator=draw))
    assert losses[0] == losses[1] != losses[2]
    assert len(losses[0]) == 3


def test_compare_has_a_row_for_every_task_mixer_and_seed():
    table = compare(["attention", "mamba2"], {"copy": parts, "same": parts(7)}, seeds=[0, 3], budget=TINY)
    assert [(r["task"], r["mixer"], r["seed"]) for r in table.rows] == [
        (task, mixer, seed) for task in ("copy", "same") for mixer in ("attention", "mamba2") for seed in (0, 3)
    ]
    row = table.rows[0]
    assert {"accuracy", "parameters", "state_size", "step_seconds", "step_bytes", "decode_seconds_5"} <= set(row)
    again = compare(["attention"], {"copy": parts}, seeds=[3], budget=TINY)
    assert again.rows[0]["loss"] == table.rows[1]["loss"]
    text = table.markdown()
    assert text.count("\n") == 5
    assert "| copy | 1 |" in text
    figure = table.plot()
    assert len(figure.axes) == 4


def test_rates_are_chosen_by_validation_and_sizes_matched():
    budget = Budget(dim=8, depth=1, steps=1, batch_size=4, warmup=0, timing=0, rates=(1e-9, 1e-1), parameters=1500)
    table = compare(["gru", "min_gated"], {"copy": parts}, seeds=1, budget=budget)
    assert {row["lr"] for row in table.rows} <= {1e-9, 1e-1}
    assert all(abs(row["parameters"] - 1500) <= 45 for row in table.rows)
    assert "step_seconds" not in table.rows[0]
    assert len(table.plot().axes) == 1


def test_summary_ranks_and_marks():
    def row(mixer, seed, quality, time):
        return {"task": "t", "mixer": mixer, "seed": seed, "quality": quality, "step_seconds": time, "state_size": 1,
                "parameters": 1}  # fmt: skip

    table = MixerTable((row("slow", 0, 0.5, 2.0), row("slow", 1, 0.7, 2.0), row("fast", 0, 0.6, 1.0),
                        row("fast", 1, 0.62, 1.0), row("bad", 0, 0.1, 1.5), row("bad", 1, 0.1, 1.5)))  # fmt: skip
    fast, slow, bad = table.summary()
    assert (fast["mixer"], fast["rank"], slow["rank"], bad["rank"]) == ("fast", 1, 2, 3)
    assert slow["quality"] == pytest.approx(0.6)
    assert slow["high"] - slow["quality"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t of one degree of freedom
    assert (fast["pareto"], slow["pareto"], bad["pareto"]) == (True, False, False)


def test_pareto_keeps_what_nothing_dominates():
    rows = [{"q": 1, "c": 1}, {"q": 2, "c": 2}, {"q": 1, "c": 2}, {"q": 2, "c": 2}, {"q": 3}]
    assert pareto(rows, higher=["q"], lower=["c"]) == [True, True, False, True, True]


def test_refusals():
    with pytest.raises(ValueError, match="need mixers, tasks and seeds"):
        compare([], {"copy": parts})
    with pytest.raises(ValueError, match="fnet sees later tokens"):
        compare(["fnet"], {"copy": parts}, budget=TINY)
    with pytest.raises(ValueError, match="must be positive"):
        Budget(steps=0)
    task = char_lm(text.from_text("abcdefgh" * 30), "train", 4)
    with pytest.raises(ValueError, match="sees later tokens"):
        comparison.model_for(task, "mlp_mixer", TINY)
