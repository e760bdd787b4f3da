"""Claims of "What comes after transformers? A selective survey connecting ideas in deep learning"."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from etude.data import images, text
from etude.data.kinds import Examples, ImageData
from etude.data.kinds_text import TextData
from etude.lab import Paper, Setup, Source, Trial, higher, identity, interaction, lower, not_worse, shown, threshold
from etude.loop import accuracy, fit
from etude.nn.mixers import build_mixer
from etude.sequence import load_mixers
from etude.sequence.after_transformers import (
    Budget,
    ForwardForwardTrainer,
    MoE,
    SequenceModel,
    SequenceTask,
    matched_ratio,
    meter,
    model_for,
    ridge_readout,
    tasks,
)
from etude.sequence.zoology import RecallLM, evaluate_recall, fit_recall, mqar

__all__ = ["PAPER"]

load_mixers()

MODULES = (
    "attention", "channels", "comparison", "forward_forward", "gated", "linear_attention", "mamba", "matrix_state",
    "meter", "model", "optimizers", "retention", "rwkv", "s4d", "stateful", "tasks", "token_mixing", "xlstm",
)  # fmt: skip
PAPER = Paper(
    slug="after_transformers",
    domain="sequence",
    title="What comes after transformers? A selective survey connecting ideas in deep learning",
    authors="Schneider",
    year=2024,
    arxiv="2408.00386",
    summary=(
        "The survey's mixers, from linear attention to Mamba and xLSTM, behind one interface, in parallel and step by "
        "step, measured on the same tasks for quality, speed, memory and state."
    ),
    methods=tuple(f"etude.sequence.after_transformers.{module}" for module in MODULES),
    usage="""\
import torch
from etude.sequence.after_transformers import Budget, compare, selective_copy
task = selective_copy(640, generator=torch.Generator().manual_seed(0)).split(512, 64, 64)
table = compare(["attention", "mamba2"], {"copy": task}, seeds=1, budget=Budget(dim=16, steps=4, warmup=0, timing=1))
print(table.markdown())             # 2,000 steps or so tell the mixers apart
""",
    notes=(
        "Times are of this library's code: products of matrices in chunks for linear_attention, mamba2 and mlstm, a "
        "scan of log2(L) passes for mamba, rwkv and min_gated, the FFT for s4d, PyTorch's own for attention, gru and "
        "lstm, and a loop for slstm, whose gates see its last output. Hyena, long_conv, base_conv, h3 and based are "
        "Zoology's, built by name. Exponents and time steps of S4D learn at 1e-3 at most and do not decay."
    ),
    extra="run",
)

HEADS = ("linear_attention", "retention", "mlstm", "slstm")
RECURRENT = (
    "retention", "linear_attention", "rwkv", "s4d", "mamba", "mamba2", "mlstm", "slstm", "gru", "lstm", "min_gated"
)  # fmt: skip
SPECS: dict[str, Any] = {
    name: {"name": name, "num_heads": 2} if name in HEADS else name for name in ("attention", *RECURRENT, "hyena")
} | {"window": {"name": "window", "window": 16}}
POSITIONED = ("attention", "window", "fnet")


def fitted(
    trial: Trial, task: SequenceTask, spec: Any, *, lr: float, learned: bool, steps: int, channel: Any = "mlp",
    ratio: float | None = None, **options: Any,
) -> SequenceModel:  # fmt: skip
    """A model trained on a task; weights and order are the same whenever a seed asks again."""
    s = trial.setup
    budget = Budget(s.dim, s.depth, channel=channel, mlp_ratio=s.ratio if ratio is None else ratio)
    with trial.stream("init"):
        model = model_for(task, spec, budget, learned=learned, **options).to(trial.device)

    def look(step: int, steps: int, loss: float, **_: float) -> None:
        trial.log(step, train_loss=loss)
        trial.progress(step, steps, loss=loss)

    with trial.stream("dropout"):
        meter.train(
            model, task, steps=steps, lr=lr, batch_size=s.batch, warmup=s.warmup, weight_decay=0.01, clip=1.0,
            generator=trial.generator("order"), every=max(1, steps // 40), callbacks=[look],
        )  # fmt: skip
    return model


def size(model: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in model.parameters()))


COPY = Setup(
    length=24, marked=6, symbols=8, dim=32, depth=2, ratio=2, state=8, train=20_000, val=500, test=1000, steps=2000,
    tuning_steps=500, batch=32, warmup=50,
)  # fmt: skip


@PAPER.claim(
    "Input-dependent recurrence (Mamba) recalls more of a selective copy than a fixed state-space model at equal steps",
    arms=("s4d", "mamba", "attention", "retention"),
    expect=[higher("mamba", than="s4d", metric="accuracy"), shown("attention", "retention")],
    setup={
        "smoke": COPY.replace(
            length=6, marked=2, dim=8, state=2, train=32, val=8, test=8, steps=2, tuning_steps=1, batch=4, warmup=0
        ),
        "small": COPY,
        "medium": COPY.replace(length=256, marked=16, symbols=16, dim=64, state=16, steps=20_000, tuning_steps=20_000),
        "full": COPY.replace(
            length=4096, marked=16, symbols=16, dim=64, state=64, steps=400_000, tuning_steps=40_000, batch=64
        ),
    },
    tune={
        "lr": {"s4d": [3e-3, 5e-3], "mamba": [3e-3, 5e-3], "attention": [3e-3], "retention": [3e-3]},
    },
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 4, "medium": 5, "full": 3},
    timeout=864_000.0,
    reported="length 4,096, 16 tokens: S4 18 %, H3 57 %, Hyena 31 %, S6 97 to 99.8 % (Mamba, table 1)",
    notes=(
        "24 places with 6 marked symbols of 8 at random, then 6 queries; accuracy of the symbols in order, chance "
        "1/8. Width 32, two layers with a GELU network of ratio 2, state 8, Mamba with expand 1, so that sizes are "
        "near (they are reported). 2,000 updates of AdamW, batches of 32, warm-up 50, cosine, clipping at 1, weight "
        "decay 0.01; exponents and time steps of s4d learn at 1e-3. Rates by validation after 500 updates; the "
        "references have 3e-3, and attention alone has positions. With networks between, a fixed model copies in "
        "part: the claim is the difference."
    ),
)  # fmt: skip
def selection_beats_fixed(trial: Trial) -> dict[str, float]:
    s = trial.setup
    task = tasks.selective_copy(
        s.train + s.val + s.test, s.length, s.marked, s.symbols, generator=trial.generator("data")
    )  # fmt: skip
    parts = task.split(s.train, s.val, s.test)
    spec = {
        "s4d": {"name": "s4d", "state": s.state}, "mamba": {"name": "mamba", "state": s.state, "expand": 1},
    }.get(trial.arm, SPECS[trial.arm])  # fmt: skip
    model = fitted(
        trial, parts[0], spec, lr=trial.tuned.lr, learned=trial.arm in POSITIONED,
        steps=s.tuning_steps if trial.tuning else s.steps,
    )  # fmt: skip
    found = {"val_accuracy": meter.quality(model, parts[1])["accuracy"], "parameters": size(model)}
    if not trial.tuning:
        found |= {"accuracy": meter.quality(model, parts[2])["accuracy"], "state_size": float(model.state_size(1))}
    return found


SHORT: dict[str, Any] = {"name": "base_conv", "kernel_sizes": 3}
RECALL = Setup(
    vocab=256, length=64, dim=64, train=20_000, val=512, test=1000, steps=2000, tuning_steps=500, batch=32, warmup=50,
    every=100, lr=3e-3, few=4, many=16,
)  # fmt: skip
RATES = [1e-3, 3e-3, 1e-2]


@PAPER.claim(
    "A mixer of fixed state falls behind attention as the pairs to be recalled grow from 4 to 16",
    arms=("conv_attention@many", "retention@many", "conv_attention@few", "retention@few"),
    expect=[
        interaction(
            ("conv_attention@many", "retention@many"), minus=("conv_attention@few", "retention@few"), metric="accuracy"
        ),
        shown(
            higher("conv_attention@many", than="retention@many", metric="accuracy"),
            higher("conv_attention@few", than="retention@few", metric="accuracy"),
        ),
    ],
    setup={
        "smoke": RECALL.replace(
            vocab=32, length=16, dim=8, train=32, val=8, test=8, steps=2, tuning_steps=1, batch=4, warmup=0, every=1,
            few=1, many=2,
        ),
        "small": RECALL,
        "medium": RECALL.replace(vocab=8192, length=128, train=100_000, steps=12_000, tuning_steps=3000, batch=128),
        "full": RECALL.replace(
            vocab=8192, length=256, dim=128, train=100_000, steps=25_000, tuning_steps=25_000, batch=256, many=64
        ),
    },
    tune={"lr": {"retention@many": RATES}},
    tune_by="val_accuracy",
    tune_seeds=1,
    tuned_like={"retention@few": "retention@many"},
    untuned=("conv_attention@many", "conv_attention@few"),
    seeds={"smoke": 1, "small": 3, "medium": 5, "full": 3},
    timeout=864_000.0,
    notes=(
        "MQAR of Zoology: 64 tokens over 256, no random filler; two layers of width 64, a short gated convolution and "
        "then attention or retention (4 heads, 1,024 numbers of state). Up to 2,000 updates as there, until 99 % of "
        "validation answers are right. Rates of retention by validation after 500 updates; attention has 3e-3, with "
        "which it solves the task. At `full` 4 and 64 pairs, and the panel of all mixers."
    ),
)  # fmt: skip
def fixed_state_falls_behind(trial: Trial) -> dict[str, float]:
    s = trial.setup
    name, _, pairs = trial.arm.partition("@")
    draw = trial.generator("data")
    parts = [
        mqar(s.vocab, count, s.length, s.few if pairs == "few" else s.many, random_non_queries=False, seed=draw)
        for count in (s.train, s.val, s.test)
    ]
    with trial.stream("init"):
        model = RecallLM(
            s.vocab, s.dim, mixer=[SHORT, "attention" if name == "conv_attention" else "retention"],
            max_len=s.length, dropout=0.0,
        ).to(trial.device)  # fmt: skip
    rate = getattr(trial.tuned, "lr", None) or s.lr

    def look(step: int, steps: int, loss: float, val_accuracy: float) -> None:
        trial.log(step, train_loss=loss, val_accuracy=val_accuracy)
        trial.progress(step, steps, val_accuracy=val_accuracy)

    fit_seen = fit_recall(
        model, parts[0], parts[1], steps=s.tuning_steps if trial.tuning else s.steps, lr=rate, batch_size=s.batch,
        warmup=s.warmup, clip=1.0, every=s.every, generator=trial.generator("order"), callback=look,
    )  # fmt: skip
    found = {"val_accuracy": fit_seen.accuracy, "steps": float(fit_seen.steps), "parameters": size(model)}
    return found if trial.tuning else found | {"accuracy": evaluate_recall(model, parts[2])}


DECODE = Setup(dim=128, batch=8, lengths=[256, 1024, 4096], repeats=100, train_dim=32, train_lengths=[512, 1024, 2048])


@PAPER.claim(
    "Recurrent mixers decode in memory and time that do not grow with what was read; attention's grow",
    arms=(*RECURRENT, "attention"),
    expect=[
        *(identity(arm, metric="bytes_ratio", value=1.0, tolerance=0.0) for arm in RECURRENT),
        *(threshold(arm, metric="time_ratio", below=1.3) for arm in RECURRENT),
        shown(*(threshold(arm, metric="train_slope", below=1.25) for arm in RECURRENT)),
        threshold("attention", metric="time_ratio", above=1.5),
        identity("attention", metric="bytes_ratio", value=16.0, tolerance=0.0),
    ],
    setup={
        "smoke": DECODE.replace(dim=8, batch=2, lengths=[2, 4, 32], repeats=1, train_dim=8, train_lengths=[4, 8]),
        "small": DECODE,
        "full": DECODE.replace(dim=1024, batch=32, lengths=[1024, 4096, 16384], repeats=100),
    },
    seeds={"smoke": 1, "small": 3, "full": 5},
    measured=("time_ratio", "train_slope", "microseconds_short", "microseconds_middle", "microseconds_long"),
    reported="RetNet 6.7B: 8.4 times the decoding speed, 70 % less memory than a transformer with 8k tokens kept",
    notes=(
        "One layer, width 128, a batch of 8; one step from states as large as after 256, 1,024 and 4,096 tokens, "
        "filled with random numbers; least of 100 repeats, all lengths in turn. The ratios are of the longest to the "
        "shortest. `train_slope`: of log time over log length, forward and backward at width 32, 512 to 2,048 tokens; "
        "retention in chunks of 64."
    ),
)
def decoding_is_constant(trial: Trial) -> dict[str, float]:
    s = trial.setup
    with trial.stream("init"):
        mixer = build_mixer(trial.arm, s.dim, max_len=max(s.lengths)).to(trial.device)
        narrow = build_mixer(
            trial.arm, s.train_dim, max_len=max(s.train_lengths), **{"chunk": 64} if trial.arm == "retention" else {}
        ).to(trial.device)
    costs = meter.decode_cost(
        mixer, s.dim, s.lengths, batch=s.batch, repeats=s.repeats, generator=trial.generator("data")
    )  # fmt: skip
    for length, cost in costs.items():
        trial.log(length, microseconds=1e6 * cost.seconds, state_bytes=cost.memory)
    short, middle, long = (costs[length] for length in s.lengths)
    draw = trial.generator("data")
    return {
        "train_slope": meter.training_growth(narrow, s.train_dim, s.train_lengths, repeats=5, generator=draw),
        "bytes_ratio": long.memory / short.memory, "time_ratio": long.seconds / short.seconds,
        "state_kilobytes": long.memory / s.batch / 1024, "microseconds_short": 1e6 * short.seconds,
        "microseconds_middle": 1e6 * middle.seconds, "microseconds_long": 1e6 * long.seconds,
    }  # fmt: skip


PIXELS = Setup(dim=32, depth=2, ratio=2, epochs=15, tuning_epochs=5, batch=32, warmup=20)


@PAPER.claim(
    "On images read pixel by pixel a state-space model is not worse than attention",
    arms=("attention", "s4d", "gru", "fnet"),
    expect=[
        not_worse("s4d", than="attention", metric="accuracy", margin=0.02),
        shown("gru", "fnet", higher("s4d", than="attention", metric="accuracy")),
    ],
    setup={
        "smoke": PIXELS.replace(dim=8, epochs=1, tuning_epochs=1, batch=500, warmup=0),
        "small": PIXELS,
        "full": PIXELS.replace(dim=256, depth=6, epochs=100, tuning_epochs=10, batch=64, warmup=500),
    },
    data={
        "digits": Source(images.digits, scales=("smoke", "small")),
        "cifar10": Source(lambda: images.hub("uoft-cs/cifar10", in_memory=True), scales=("full",)),
    },
    tune={"lr": RATES},
    tune_by="val_accuracy",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "full": 3},
    timeout=864_000.0,
    reported="Long Range Arena, mean: transformer 53 to 59, S4 86",
    helps=higher("s4d", than="attention", metric="accuracy"),
    notes=(
        "Digits of 8 x 8 as 64 numbers, 1,000 to train, 200 to validate, 597 to test, of which one is 0.17 points. "
        "Width 32, two layers, 15 epochs, mean over tokens; attention and fnet see all pixels and have learned "
        "positions, s4d and gru see earlier ones. Rates by validation after 5 epochs."
    ),
)
def long_signals(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    data = data.standardized()
    splits: Any = (data.train, data.val, data.test)
    task, val, test = (tasks.sequential_pixels(p.inputs, p.targets, data.num_classes) for p in splits)
    epochs = s.tuning_epochs if trial.tuning else s.epochs
    spec = {"name": "attention", "causal": False} if trial.arm == "attention" else trial.arm
    model = fitted(
        trial, task, spec, lr=trial.tuned.lr, learned=trial.arm in POSITIONED,
        steps=epochs * math.ceil(len(task.inputs) / s.batch),
    )  # fmt: skip
    found = {"val_accuracy": meter.quality(model, val)["accuracy"]}
    if not trial.tuning:
        found |= {
            "accuracy": meter.quality(model, test)["accuracy"], "parameters": size(model),
            "mixer_megaflops": model.flops(task.inputs.shape[1]) / 1e6,
        }  # fmt: skip
    return found


@PAPER.claim(
    "Forward-forward learns digits without back-propagation",
    arms=("forward_forward", "untrained", "ridge", "backprop"),
    expect=[
        threshold("forward_forward", metric="accuracy", above=0.90),
        higher("forward_forward", than="untrained", metric="accuracy"),
        higher("forward_forward", than="ridge", metric="accuracy"),
        shown(higher("backprop", than="forward_forward", metric="accuracy")),
    ],
    setup={
        "smoke": Setup(hidden=[16, 16], epochs=1, batch=500, lr=3e-3),
        "small": Setup(hidden=[256, 256], epochs=60, batch=100, lr=3e-3),
        "full": Setup(hidden=[2000, 2000, 2000, 2000], epochs=60, batch=100, lr=3e-3),
    },
    data={
        "digits": Source(images.digits, scales=("smoke", "small")),
        "mnist": Source(lambda: images.hub("ylecun/mnist", in_memory=True), scales=("full",)),
    },
    seeds={"smoke": 1, "small": 5, "full": 3},
    timeout=86_400.0,
    reported="MNIST, four layers of 2,000: 1.36 % errors after 60 epochs (Hinton, section 3.3)",
    notes=(
        "Two layers of 256 behind the one-hot label and 64 pixels, Adam 3e-3, batches of 100, 60 epochs, all 1,200 "
        "training images. `untrained` is the same network read out alike. `ridge`: regression from the activities of "
        "its untrained layers, with no label given (each 1/10), its penalty chosen by validation among seven. "
        "`backprop`: the same widths, the pixels alone, cross-entropy, the same optimizer and epochs."
    ),
)
def forward_forward_learns(trial: Trial, data: ImageData) -> dict[str, float]:
    s = trial.setup
    parts: Any = (data.train, data.val, data.test)
    (x, y), (x_val, y_val), (x_test, y_test) = (
        (part.inputs.flatten(1).to(trial.device), part.targets.to(trial.device)) for part in parts
    )
    x_all, y_all = torch.cat([x, x_val]), torch.cat([y, y_val])
    with trial.stream("init"):
        if trial.arm == "backprop":
            widths = [x.shape[1], *s.hidden]
            layers = [part for one, two in pairwise(widths) for part in (nn.Linear(one, two), nn.ReLU())]
            network = nn.Sequential(*layers, nn.Linear(widths[-1], data.num_classes)).to(trial.device)
        else:
            model = ForwardForwardTrainer(
                x.shape[1], data.num_classes, s.hidden, lr=s.lr, generator=trial.generator("order")
            )
            model.layers.to(trial.device)
    if trial.arm == "backprop":
        optimizer = torch.optim.Adam(network.parameters(), lr=s.lr)
        fit(
            network, Examples(x_all.cpu(), y_all.cpu()), optimizer, epochs=s.epochs, batch_size=s.batch,
            generator=trial.generator("order"), callbacks=[trial.progress],
        )  # fmt: skip
        return {"accuracy": accuracy(network, Examples(x_test.cpu(), y_test.cpu()))}
    if trial.arm == "ridge":
        return {"accuracy": ridge_readout(model, (x, y), (x_val, y_val), (x_test, y_test))}
    if trial.arm == "forward_forward":

        def look(epoch: int, epochs: int) -> None:
            trial.progress(epoch, epochs)
            if epoch % 5 == 0 or epoch == epochs:
                trial.log(epoch, train_accuracy=float((model.predict(x_all) == y_all).float().mean()))

        model.fit(x_all, y_all, epochs=s.epochs, batch_size=s.batch, callback=look)
    return {"accuracy": float((model.predict(x_test) == y_test).double().mean())}


TEXT = Setup(
    dim=64, depth=2, ratio=8 / 3, length=128, steps=20_000, batch=64, warmup=200, windows=400,
    experts=8, lr=3e-3, train=20_000, held=1000, repeats=20, stride=1,
)  # fmt: skip
TINY_TEXT = TEXT.replace(
    dim=8, length=16, steps=2, batch=4, warmup=0, windows=4, ratio=1, train=8, held=8, repeats=1, stride=400
)  # fmt: skip
TEXTS = {
    "pydoc": Source(text.pydoc, scales=("smoke",)),
    "tinyshakespeare": Source(text.tinyshakespeare, scales=("medium", "full")),
}


def windows_of(data: TextData, part: str, s: Setup) -> SequenceTask:
    task = tasks.char_lm(data, part, s.length, s.stride if part == "train" else None)
    if part == "train":
        return task
    rows = torch.linspace(0, len(task.inputs) - 1, min(s.windows, len(task.inputs))).long()
    return SequenceTask(task.name, task.inputs[rows], task.labels[rows], task.num_outputs, task.vocab, True)


@PAPER.claim(
    "At equal active parameters one of eight experts for each token lowers the loss of a language model",
    arms=("dense", "moe"),
    expect=[lower("moe", than="dense", metric="loss")],
    setup={"smoke": TINY_TEXT.replace(experts=2), "full": TEXT.replace(dim=256, depth=4, length=256)},
    data=TEXTS,
    seeds={"smoke": 1, "full": 5},
    timeout=864_000.0,
    reported="Mixtral 8x7B, 13 of 47 billion parameters active, is as good as Llama 2 70B or better",
    notes=(
        "Retention and SwiGLU on characters. `balance` is E sum f P, 1 where experts have equal shares; `entropy` of "
        "the shares over its largest value. At width 64 and 500 updates the effect, .01 to .03, is below the spread "
        "of seeds: the claim is for `full`."
    ),
)
def experts_help(trial: Trial, data: TextData) -> dict[str, float]:
    s = trial.setup
    task = windows_of(data, "train", s)
    moe = {"name": "moe", "num_experts": s.experts, "top_k": 1}
    model = fitted(
        trial, task, SPECS["retention"], lr=s.lr, learned=False, steps=s.steps, head="lm", num_outputs=None,
        channel=moe if trial.arm == "moe" else "swiglu",
    )  # fmt: skip
    found = {"loss": meter.quality(model, windows_of(data, "test", s))["loss"], "parameters": size(model)}
    parts = [part for part in model.modules() if isinstance(part, MoE)]
    for part in parts:
        assert part.load is not None
        assert part.balance is not None
        shares = part.load.double().clamp(min=1e-12)
        entropy = float(-(shares * shares.log()).sum()) / math.log(s.experts)
        found["entropy"] = found.get("entropy", 0.0) + entropy / len(parts)
        found["balance"] = found.get("balance", 0.0) + float(part.balance) / len(parts)
    return found


@PAPER.claim(
    "On characters Mamba-2 is not worse than attention; and every mixer on four tasks, with what it costs",
    arms=tuple(SPECS),
    expect=[not_worse("mamba2", than="attention", metric="bpc", margin=0.05, better="lower"), shown(*SPECS)],
    setup={
        "smoke": TINY_TEXT,
        "medium": TEXT.replace(steps=3000),
        "full": TEXT.replace(dim=256, depth=4, length=256),
    },
    data=TEXTS,
    seeds={"smoke": 1, "medium": 3, "full": 3},
    measured=("step_milliseconds", "step_megabytes"),
    timeout=864_000.0,
    notes=(
        "Models of one size, to 3 %, by the width of their GELU networks; rate 3e-3 (`compare` tunes it). "
        "Every task at the text's length, lists as one class of ten. `step_megabytes`: kept for the backward pass "
        "(CUDA: the peak). `compare(...)` makes the same table on any tasks, with ranks, intervals and Pareto marks, "
        "and its plot."
    ),
)
def panel(trial: Trial, data: TextData) -> dict[str, float]:
    s = trial.setup
    draw, count, budget = trial.generator("data"), s.train + s.held, Budget(s.dim, s.depth)
    recall = mqar(256, count, s.length, max(1, s.length // 8), random_non_queries=False, seed=draw)
    sets = {
        "recall": SequenceTask("recall", *recall, 256, 256, True),
        "copying": tasks.selective_copy(count, s.length - s.length // 4, s.length // 4, generator=draw),
        "listops": tasks.listops(count, s.length, generator=draw),
    }
    parts = {name: task.split(s.train, s.held) for name, task in sets.items()}
    parts["char_lm"] = windows_of(data, "train", s), windows_of(data, "test", s)
    found: dict[str, float] = {}
    for name, (task, test) in parts.items():
        ratio = None
        if trial.scale != "smoke":
            sizes = [matched_ratio(task, SPECS[n], None, budget, learned=n in POSITIONED)[1] for n in SPECS]
            ratio, _ = matched_ratio(task, SPECS[trial.arm], max(sizes), budget, learned=trial.arm in POSITIONED)
        model = fitted(
            trial, task, SPECS[trial.arm], lr=s.lr, learned=trial.arm in POSITIONED, steps=s.steps, ratio=ratio
        )  # fmt: skip
        what = "bpc" if name == "char_lm" else "accuracy"
        found[what if name == "char_lm" else f"{name}_{what}"] = meter.quality(model, test)[what]
    cost = meter.step_cost(model, task.inputs[: s.batch], task.labels[: s.batch], repeats=s.repeats)
    return found | {
        "parameters": float(cost.parameters), "step_milliseconds": 1e3 * cost.seconds,
        "step_megabytes": cost.memory / 1e6, "state_size": float(model.state_size(s.length)),
    }  # fmt: skip
