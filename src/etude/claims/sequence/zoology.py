"""Claims of "Zoology: Measuring and Improving Recall in Efficient Language Models"."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etude.data import home, text
from etude.data.kinds_text import TextData
from etude.lab import Paper, Setup, Source, Trial, higher, interaction, lower, shown, threshold
from etude.loop import cosine_schedule, fit
from etude.sequence import load_mixers
from etude.sequence.zoology import (
    IGNORED,
    BigramCounts,
    RecallLM,
    SelectiveAttention,
    ar_classic,
    collect_aux_loss,
    evaluate_recall,
    fit_recall,
    mqar,
    recall_slices,
)

__all__ = ["PAPER"]

load_mixers()

PAPER = Paper(
    slug="zoology",
    domain="sequence",
    title="Zoology: Measuring and Improving Recall in Efficient Language Models",
    authors="Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra & Ré",
    year=2024,
    venue="ICLR",
    arxiv="2312.04927",
    code="https://github.com/HazyResearch/zoology",
    summary=(
        "A synthetic recall task that attention solves and gated convolutions do not, attention at a few chosen tokens "
        "that closes the gap, and a language model's loss split by recall."
    ),
    methods=(
        "etude.sequence.zoology.based",
        "etude.sequence.zoology.convolutions",
        "etude.sequence.zoology.model",
        "etude.sequence.zoology.mqar",
        "etude.sequence.zoology.selective",
        "etude.sequence.zoology.slicing",
        "etude.sequence.zoology.state_space",
        "etude.sequence.zoology.sweep",
    ),
    usage="""\
from etude.sequence.zoology import RecallLM, fit_recall, mqar
train, val = (mqar(64, n, 32, 4, random_non_queries=False, seed=seed) for n, seed in ((512, 0), (64, 1)))
mixers = [{"name": "base_conv", "kernel_sizes": 3}, {"name": "selective", "k": 0.25, "penalty": 0.1}]
model = RecallLM(64, 32, mixer=mixers, max_len=32)
print(fit_recall(model, train, val, steps=4, lr=3e-3, clip=1.0))    # 1500 steps or so solve the task
""",
    notes=(
        "Arms have equal width, as in the paper, not equal size: at width 64 and a vocabulary of 256, BaseConv has "
        "26,496 parameters, attention behind a short convolution 37,824; `base_conv@wide` has width 80. The paper's "
        "own attention arm, two layers with learned positions, needs longer training than `small` has, and stands in "
        "the curves by dimension. Any mixer that is registered can be measured with `recall_sweep`. Learned selection "
        "is soft while it trains and takes exactly k tokens of a sequence in evaluation, which reads ahead; the rule "
        "`threshold` does not."
    ),
    extra="run",
)

SHORT: dict[str, Any] = {"name": "base_conv", "kernel_sizes": 3}
MIXERS: dict[str, Any] = {
    "base_conv": "base_conv",
    "base_conv@wide": "base_conv",
    "hyena": "hyena",
    "h3": "h3",
    "retention": [SHORT, "retention"],
    "conv_window": [SHORT, {"name": "window", "window": 16}],
    "conv_attention": [SHORT, "attention"],
    "attention": {"name": "attention", "dropout": 0.1},
}
SMALL = Setup(
    vocab=256, length=64, pairs=8, dim=64, wide=80, train=20_000, val=512, test=1000, steps=2000, tuning_steps=500,
    batch=32, warmup=50, clip=1.0, every=100, dropout=0.0, stop_at=0.99, lr=3e-3, penalty=0.1, kept=0.25,
    classic_vocab=20, classic_length=32,
)  # fmt: skip
SMOKE = SMALL.replace(
    vocab=32, length=16, pairs=2, dim=8, wide=10, train=32, val=8, test=8, steps=2, tuning_steps=1, batch=4, warmup=0,
    every=1, classic_length=8,
)  # fmt: skip
MEDIUM = SMALL.replace(
    vocab=8192, length=128, train=100_000, val=1000, test=3000, steps=12_000, tuning_steps=12_000, batch=128,
    warmup=400, every=500, dropout=0.1,
)  # fmt: skip
FULL = MEDIUM.replace(
    length=256, pairs=16, dim=128, wide=160, steps=25_000, tuning_steps=25_000, batch=256, warmup=0, clip=None,
    every=390, penalty=1e-3,
)  # fmt: skip
TASK = (
    "20,000 examples of 64 tokens with 8 pairs over 256 tokens, no random filler, 512 to validate, 1,000 to test, "
    "drawn apart; two layers of width 64, no feed-forward network. 2,000 updates of AdamW, batches of 32, warm-up 50, "
    "cosine to zero, clipping at 1, weight decay 0.1, all arms alike; training ends when 99 % of validation answers "
    "are right, in exploration after 500 to 1,300 updates. No dropout of embeddings "
    "at `small`, which only delays the jump (1,050 updates with 0.1, 650 without, "
    "attention, seed 500); 0.1, the paper's, above it. "
)


def splits(trial: Trial, task: str = "mqar") -> list[tuple[Tensor, Tensor]]:
    """Examples to train on, to validate and to test with, the same in every arm of a seed."""
    s = trial.setup
    draw = trial.generator("data")
    if task == "classic":
        make = partial(ar_classic, s.classic_vocab, seq_len=s.classic_length, seed=draw)
    else:
        make = partial(mqar, s.vocab, seq_len=s.length, num_kv_pairs=s.pairs, random_non_queries=False, seed=draw)
    return [make(num_examples=count) for count in (s.train, s.val, s.test)]


def trained(
    trial: Trial, parts: list[tuple[Tensor, Tensor]], mixer: Any, *, lr: float, dim: int = 0, curve: str = "",
    **options: Any,
) -> tuple[RecallLM, dict[str, float]]:  # fmt: skip
    """A model and what its training took; weights and order are the same whenever a seed asks again.

    `curve` begins the names of its curves; "-" keeps none.
    """
    s = trial.setup
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trial.stream_seed("init"))
        model = RecallLM(
            options.pop("vocab", s.vocab), dim or s.dim, mixer=mixer, max_len=parts[0][0].shape[1], dropout=s.dropout,
            **options,
        ).to(trial.device)  # fmt: skip
    order = torch.Generator().manual_seed(trial.stream_seed("order"))

    def look(step: int, steps: int, loss: float, val_accuracy: float) -> None:
        if curve != "-":
            trial.log(step, **{f"{curve}val_accuracy": val_accuracy, f"{curve}train_loss": loss})
        trial.progress(step, steps, val_accuracy=val_accuracy)

    with trial.stream("dropout"):
        found = fit_recall(
            model, parts[0], parts[1], steps=s.tuning_steps if trial.tuning else s.steps, lr=lr, batch_size=s.batch,
            warmup=s.warmup, clip=s.clip, stop_at=s.stop_at, every=s.every, generator=order,
            callback=look,
        )  # fmt: skip
    size = float(sum(p.numel() for p in model.parameters()))
    return model, {"val_accuracy": found.accuracy, "steps": float(found.steps), "parameters": size}


@PAPER.claim(
    "On MQAR attention behind a short convolution recalls at a width at which gated convolutions fail",
    arms=("base_conv", "base_conv@wide", "hyena", "retention", "conv_attention"),
    expect=[
        higher("conv_attention", than="base_conv", metric="accuracy"),
        higher("conv_attention", than="hyena", metric="accuracy"),
        shown(
            higher("conv_attention", than="base_conv@wide", metric="accuracy"),
            higher("conv_attention", than="retention", metric="accuracy"),
            threshold("conv_attention", metric="accuracy", above=0.95),
        ),
    ],
    setup={"smoke": SMOKE, "small": SMALL, "medium": MEDIUM, "full": FULL},
    tune={
        "lr": {
            "base_conv": [1e-3, 3e-3, 1e-2], "hyena": [1e-3, 3e-3, 1e-2], "retention": [1e-3, 3e-3, 1e-2],
            "conv_attention": [3e-3],
        }
    },
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"base_conv@wide": "base_conv"},
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported="figure 2: attention 100 % at every width and length; the others fall as the length grows past the width",
    notes=TASK
    + (
        "The rate 3e-3 solves the task with attention, which cannot gain by more; the other arms choose among three by "
        "validation, on one tuning seed and a quarter of the updates. Chance among the values of the context is 1 / 8. "
        "`retention` (behind the same short convolution) is a recurrence of fixed decay. `base_conv@wide`: width 80."
    ),
)  # fmt: skip
def attention_recalls(trial: Trial) -> dict[str, float]:
    wide = trial.arm == "base_conv@wide"
    parts = splits(trial)
    model, found = trained(
        trial, parts, MIXERS[trial.arm], lr=trial.tuned.lr, dim=trial.setup.wide if wide else 0
    )  # fmt: skip
    if not trial.tuning:
        found["accuracy"] = evaluate_recall(model, parts[2])
        found["state_size"] = float(model.state_size(trial.setup.length))
    return found


@PAPER.claim(
    "Attention at a quarter of the tokens, chosen by the input, closes four fifths of the gap to attention",
    arms=("four_fifths", "learned", "programmatic", "random"),
    expect=[
        higher("learned", than="four_fifths", metric="accuracy"),
        higher("programmatic", than="four_fifths", metric="accuracy"),
        higher("learned", than="random", metric="accuracy"),
        shown(
            lower("random", than="four_fifths", metric="accuracy"),
            threshold("learned", metric="hits_at_k", above=0.95),
        ),
    ],
    setup={"smoke": SMOKE, "small": SMALL, "medium": MEDIUM, "full": FULL},
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported="the Pile: BaseConv with learned selection closes 97.4 % of the gap to attention (abstract)",
    notes=TASK
    + (
        "`four_fifths` is a mark, not a model: it trains `base_conv` and `conv_attention` at the seed and lies at "
        "conv_accuracy + 0.8 (attention_accuracy - conv_accuracy), so that an arm above it closes more than 0.8 of "
        "the gap. The others are attention at chosen tokens behind the same short convolution. `programmatic` asks "
        "where a token stands again, which here are the scored places: an oracle. `random` takes a fresh quarter of "
        "the tokens in every pass, and can be right at a quarter of the places at most, but for luck. `hits_at_k`: "
        "share of the scored places that are among the chosen. Penalty 0.1; 1e-3 at `full`."
    ),
)
def selection_closes_the_gap(trial: Trial) -> dict[str, float]:
    s = trial.setup
    parts = splits(trial)
    if trial.arm == "four_fifths":
        ends, steps = {}, 0.0
        for name in ("base_conv", "conv_attention"):
            model, found = trained(trial, parts, MIXERS[name], lr=s.lr, curve=f"{name}_")
            ends[name] = evaluate_recall(model, parts[2])
            steps += found["steps"]
        gap = ends["conv_attention"] - ends["base_conv"]
        return {
            "accuracy": ends["base_conv"] + 0.8 * gap, "conv_accuracy": ends["base_conv"],
            "attention_accuracy": ends["conv_attention"], "gap": gap, "steps": steps,
        }  # fmt: skip
    layer = {"name": "selective", "select": trial.arm, "k": s.kept, "penalty": s.penalty}
    if trial.arm == "random":
        layer["generator"] = trial.generator("method")
    model, found = trained(trial, parts, [SHORT, layer], lr=s.lr)
    found["accuracy"] = evaluate_recall(model, parts[2])
    found["hits_at_k"] = _hits(model, parts[2])
    return found


@torch.no_grad()
def _hits(model: RecallLM, examples: tuple[Tensor, Tensor]) -> float:
    """Share of the scored places at which the selective layer queries."""
    layer = next(part for part in model.modules() if isinstance(part, SelectiveAttention))
    model.eval()
    hit = total = 0
    for ids, labels in zip(*(part.to(model.embedding.weight.device).split(256) for part in examples)):
        model.features(ids)
        scored = labels != IGNORED
        assert layer.selected is not None
        hit, total = hit + int((layer.selected & scored).sum()), total + int(scored.sum())
    return hit / total


@PAPER.claim(
    "The older task, one query over a tiny vocabulary, hides the gap between attention and gated convolutions",
    arms=("base_conv", "conv_attention", "base_conv@classic", "conv_attention@classic"),
    expect=[
        interaction(
            ("conv_attention", "base_conv"), minus=("conv_attention@classic", "base_conv@classic"), metric="accuracy"
        ),
        shown(
            higher("conv_attention", than="base_conv", metric="accuracy"),
            higher("conv_attention@classic", than="base_conv@classic", metric="accuracy"),
        ),
    ],
    setup={"smoke": SMOKE, "medium": MEDIUM, "full": FULL},
    seeds={"smoke": 1, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported="one query over 20 tokens: every architecture solves it (section 4)",
    notes=(
        "A key of 1 to 9, a value of 10 to 19, 15 pairs that may recur, one question at the end of 32 tokens. In a "
        "short training the convolution need not have solved it, so that the claim begins at `medium`. Rate 3e-3."
    ),
)
def old_task_hides_it(trial: Trial) -> dict[str, float]:
    s = trial.setup
    name, _, task = trial.arm.partition("@")
    parts = splits(trial, task or "mqar")
    model, found = trained(
        trial, parts, MIXERS[name], lr=s.lr, vocab=s.classic_vocab if task else s.vocab
    )  # fmt: skip
    return found | {"accuracy": evaluate_recall(model, parts[2])}


GRID = Setup(
    vocab=8192, lengths=[[64, 4], [128, 8]], dims=[32, 64, 128], lrs=[1e-3, 3e-3], train=100_000, val=1000, test=3000,
    steps=12_000, tuning_steps=12_000, batch=128, warmup=400, clip=1.0, every=500, dropout=0.1, stop_at=0.99, dim=0,
)  # fmt: skip


@PAPER.claim(
    "Attention recalls at every width and length; what a gated convolution recalls grows with its width",
    arms=("attention", "conv_attention", "conv_window", "base_conv", "hyena", "h3", "retention"),
    expect=[
        higher("attention", than="base_conv", metric="accuracy"),
        higher("attention", than="hyena", metric="accuracy"),
        threshold("base_conv", metric="gain_with_width", above=0.0),
        shown(
            "conv_attention",
            "conv_window",
            higher("attention", than="h3", metric="accuracy"),
            higher("attention", than="retention", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": GRID.replace(
            vocab=32, lengths=[[16, 2]], dims=[8, 16], lrs=[1e-3], train=32, val=8, test=8, steps=2, tuning_steps=2,
            batch=4, warmup=0, every=1,
        ),
        "medium": GRID,
        "full": GRID.replace(
            lengths=[[64, 4], [128, 8], [256, 16], [512, 64]], dims=[64, 128, 256, 512],
            lrs=[1e-4, 4.6416e-4, 2.15443e-3, 1e-2], steps=25_000, tuning_steps=25_000, batch=256, warmup=0, clip=None,
            every=390,
        ),
    },
    seeds={"smoke": 1, "medium": 3, "full": 3},
    timeout=864_000.0,
    reported="figure 2: attention 100 % everywhere; gated convolutions need a width of about the length",
    notes=(
        "The paper's grid at `full`; at each point the learning rate is the best by validation. `attention` is the "
        "paper's: two layers, learned positions, dropout 0.1 of the weights. `accuracy` is the mean over the grid, "
        "`gain_with_width` what the greatest width has over the least. Curves: accuracy over width for each length. "
        "`conv_window` sees 16 tokens: the control for attention that the position chooses, not the input."
    ),
)  # fmt: skip
def accuracy_by_width(trial: Trial) -> dict[str, float]:
    s = trial.setup
    found: dict[str, float] = {}
    positions = "learned" if trial.arm == "attention" else "none"
    draw = trial.generator("data")
    for length, pairs in s.lengths:
        parts = [mqar(s.vocab, n, length, pairs, random_non_queries=False, seed=draw) for n in (s.train, s.val, s.test)]
        for dim in s.dims:
            best = (-1.0, 0.0)
            for lr in s.lrs:
                model, fitted = trained(
                    trial, parts, MIXERS[trial.arm], lr=lr, dim=dim, curve="-", positions=positions
                )  # fmt: skip
                if fitted["val_accuracy"] > best[0]:
                    best = fitted["val_accuracy"], evaluate_recall(model, parts[2])
            found[f"accuracy_{length}_{dim}"] = best[1]
            trial.log(dim, **{f"accuracy_by_width_{length}": best[1]})

    def mean(dims: list[int]) -> float:
        values = [found[f"accuracy_{length}_{dim}"] for length, _ in s.lengths for dim in dims]
        return sum(values) / len(values)

    return found | {"accuracy": mean(s.dims), "gain_with_width": mean(s.dims[-1:]) - mean(s.dims[:1])}


def big_text() -> TextData:
    return text.load(home() / "fineweb", level="word", max_vocab=50_000)


TEXT = Setup(
    tokens=200_000, length=128, dim=64, layers=2, mlp=4, steps=3000, batch=16, warmup=100, every=200, dropout=0.1,
    rare=10, windows=400, penalty=1e-3,
)  # fmt: skip


@PAPER.claim(
    "Most of what a convolution model loses against attention on real text lies on repeated rare bigrams",
    arms=("base_conv", "learned", "conv_attention"),
    expect=[
        higher("base_conv", than="conv_attention", metric="loss"),
        higher("base_conv", than="conv_attention", metric="hits_excess"),
        shown(
            higher("base_conv", than="conv_attention", metric="hits_loss"),
            higher("base_conv", than="conv_attention", metric="others_loss"),
            lower("learned", than="base_conv", metric="loss"),
            lower("learned", than="base_conv", metric="hits_loss"),
        ),
    ],
    setup={
        "smoke": TEXT.replace(tokens=2000, length=16, dim=8, steps=2, batch=2, warmup=0, every=1, windows=8),
        "medium": TEXT,
        "full": TEXT.replace(
            tokens=10_000_000_000, length=2048, dim=768, layers=12, steps=40_000, batch=128, warmup=2000, every=500,
            rare=1250, windows=2000, dropout=0.0,
        ),
    },
    data={
        "pydoc": Source(partial(text.pydoc, "word"), scales=("smoke",)),
        "wikitext2": Source(text.wikitext2_heldout, scales=("medium",)),
        "fineweb": Source(big_text, scales=("full",)),
    },
    tune={"lr": [1e-3, 3e-3]},
    tune_by="val_loss",
    tune_goal="min",
    tune_seeds=1,
    seeds={"smoke": 1, "medium": 5, "full": 3},
    timeout=864_000.0,
    helps=lower("learned", than="base_conv", metric="loss"),
    reported="the Pile, up to 2.1 of perplexity, of which recall explains 82 % (abstract); 40 to 100 % by architecture",
    notes=(
        "Hits: the bigram stood earlier in the window and at most `rare` times in the training text (1,250 at `full`, "
        "10 of some 200,000 words at `medium`). `hits_part` and `others_part` add up to the loss; with `hits_excess`, "
        "the first less the second, an arm is ahead exactly if hits explain more than half of its lead in loss. "
        "`wikitext2` is its validation file, words, the test file held out; `full` reads Parquet files at "
        "`fineweb/` of the data home. Feed-forward networks of four times the width in every arm."
    ),
)  # fmt: skip
def recall_explains_the_gap(trial: Trial, data: TextData) -> dict[str, float]:
    s = trial.setup
    mixer: Any = MIXERS.get(trial.arm, [SHORT, {"name": "selective", "penalty": s.penalty}])
    with trial.stream("init"):
        model = RecallLM(
            data.vocab_size, s.dim, s.layers, mixer=mixer, max_len=s.length, mlp_ratio=s.mlp, dropout=s.dropout
        ).to(trial.device)  # fmt: skip
    words = data.train[: s.tokens]
    train = TextData(words, data.val, data.test, data.vocabulary, data.level, data.name).windows("train", s.length, 1)
    counts = BigramCounts(words, data.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=trial.tuned.lr, weight_decay=0.1, fused=True)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()) + collect_aux_loss(model).to(logits.device)

    def held_out(part: str) -> Tensor:
        rows = getattr(data, part).unfold(0, s.length + 1, s.length)
        return rows[torch.linspace(0, len(rows) - 1, min(s.windows, len(rows))).long()]

    def look(step: int, steps: int, loss: float, **_: float) -> None:
        trial.log(step, train_loss=loss)
        trial.progress(step, steps, loss=loss)

    with trial.stream("dropout"):
        fit(
            model, train, optimizer, loss=loss, steps=s.steps, batch_size=s.batch, replacement=True, clip=1.0,
            generator=trial.generator("order"), schedule=cosine_schedule(optimizer, s.steps, warmup=s.warmup),
            callbacks=[look], every=s.every,
        )  # fmt: skip
    result = {"val_loss": recall_slices(model, held_out("val"), counts, max_count=s.rare).loss}
    if not trial.tuning:
        test = recall_slices(model, held_out("test"), counts, max_count=s.rare)
        result |= {
            "loss": test.loss, "hits_loss": test.hits_loss, "others_loss": test.others_loss,
            "hits_share": test.hits_share, "hits_part": test.hits_part, "others_part": test.others_part,
            "hits_excess": test.hits_part - test.others_part,
        }  # fmt: skip
    return result
