"""Claims of "The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles"."""

import copy
import math
import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from etude.data import home, text
from etude.data.kinds import Examples
from etude.data.kinds_text import TextData
from etude.lab import Paper, Setup, Source, Trial, lower, shown, threshold
from etude.loop import cosine_schedule, fit, mean_loss
from etude.nn.transformer import SwiGLU
from etude.sequence.ssa import (
    SubsampledAttention,
    pathway_curve,
    sample_sources,
    self_ensemble,
    subsampled,
    subsampled_attention,
)

__all__ = ["PAPER"]

PAPER = Paper(
    slug="ssa",
    domain="sequence",
    title="The Information Pathways Hypothesis: Transformers are Dynamic Self-Ensembles",
    authors="Hussain, Zaki & Subramanian",
    year=2023,
    venue="KDD",
    arxiv="2306.01705",
    summary="While a transformer trains, each query sees a random part of the sources; at test all, or an ensemble.",
    methods=(
        "etude.sequence.ssa.analysis",
        "etude.sequence.ssa.attention",
        "etude.sequence.ssa.modes",
        "etude.sequence.ssa.sampling",
        "etude.sequence.ssa.settings",
    ),
    usage="""\
import torch
from etude.sequence.ssa import apply_ssa, self_ensemble
layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
apply_ssa(layer, fraction=0.25)                      # in training each query sees a quarter of the sources
y = layer.train()(torch.randn(2, 64, 32))
probabilities = self_ensemble(layer, torch.randn(2, 64, 32), num_samples=8)
""",
    notes=(
        "The authors' repository holds no code; details of the samplers that the text leaves open are this library's "
        "choice (blocks of the local sampler reach one block either way; a query is always given itself). Groups are "
        "gathered and attended to, so that the cost falls with the fraction; below some 256 tokens the dense kernel is "
        "faster all the same. The published gains are of networks of 12 and 16 layers. At `small` a network of three "
        "layers learns 8,000 characters, which it soon learns by heart, and every arm keeps its best step by "
        "validation: against a dense network that is stopped in time and has its dropout tuned, sampling need not "
        "win. At `full` the text is `enwik8/enwik8.txt` of the data home, as bytes."
    ),
    extra="run",
)


def enwik8() -> TextData:
    return text.load(home() / "enwik8" / "enwik8.txt", level="byte")


TEXTS = {
    "pydoc": Source(text.pydoc, scales=("smoke",)),
    "tinyshakespeare": Source(text.tinyshakespeare, scales=("small", "medium")),
    "enwik8": Source(enwik8, scales=("full",)),
}
SMALL = Setup(
    characters=8000, length=64, dim=64, layers=3, heads=4, ffn=160, steps=400, batch=16, warmup=40, every=25, val=100,
    test=200, window=8, sigma=16, lr=4e-3,
)  # fmt: skip
SETUPS = {
    "smoke": SMALL.replace(characters=400, length=16, dim=16, layers=1, ffn=24, steps=4, batch=4, warmup=1, every=2,
                           val=4, test=4, window=2, sigma=4),
    "small": SMALL,
    "medium": SMALL.replace(
        characters=200_000, length=128, dim=128, layers=6, ffn=320, steps=4000, batch=32, warmup=200, every=100,
        test=300, window=16, sigma=32, lr=2e-3,
    ),
    "full": SMALL.replace(
        characters=90_000_000, length=512, dim=512, layers=12, heads=8, ffn=1376, steps=400_000, batch=32,
        warmup=10_000, every=2000, val=2000, test=5000, window=64, sigma=128, lr=5e-4,
    ),
}  # fmt: skip
TRAINING = (
    "The first 8,000 characters of tinyshakespeare train, windows of 64; three layers, 64 wide, rotary positions; "
    "local sampler with blocks of 8 that see themselves and the one before, a quarter, perturbed by 16, fresh in every "
    "layer, step and row. 400 updates; the dense validation loss is looked at every 25, and the best step is kept in "
    "every arm. Batches of 16; losses in nats a character on 200 test windows. "
)


class _Block(nn.Module):
    def __init__(self, setup: Setup, dropout: float, attention_dropout: float):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(setup.dim), nn.RMSNorm(setup.dim)
        self.attention = SubsampledAttention(
            setup.dim, setup.heads, window=setup.window, sigma=setup.sigma, rope_theta=10_000.0,
            dropout=attention_dropout,
        )  # fmt: skip
        self.ffn = SwiGLU(setup.dim, setup.ffn)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.ffn(self.norm2(x)))


class Decoder(nn.Sequential):
    """A causal language model: embedding, blocks, norm, head."""

    def __init__(self, vocab_size: int, setup: Setup, *, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__(
            nn.Embedding(vocab_size, setup.dim),
            *(_Block(setup, dropout, attention_dropout) for _ in range(setup.layers)),
            nn.RMSNorm(setup.dim),
            nn.Linear(setup.dim, vocab_size, bias=False),
        )
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                last = name.endswith(("attention.out.weight", "ffn.down.weight"))
                nn.init.normal_(parameter, std=0.02 / (math.sqrt(2 * setup.layers) if last else 1))


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def windows(trial: Trial, data: TextData, part: str) -> Examples:
    """Evenly spread windows of a held-out part."""
    s = trial.setup
    count = getattr(s, part)
    every = data.windows(part, s.length)
    places = torch.linspace(0, len(every) - 1, min(count, len(every))).long()
    return every.subset(places)


def trained(trial: Trial, data: TextData, *, samples: bool, dropout: float, attention_dropout: float = 0.0) -> Decoder:
    """A network at its best step by dense validation loss."""
    s = trial.setup
    text_ = TextData(data.train[: s.characters], data.val, data.test, data.vocabulary, data.level, data.name)
    with trial.stream("init"):
        model = Decoder(data.vocab_size, s, dropout=dropout, attention_dropout=attention_dropout).to(trial.device)
    for module in model.modules():
        if isinstance(module, SubsampledAttention):
            module.ssa.mode = "training" if samples else "never"
            module.ssa.generator = trial.generator("method")
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    held_out = windows(trial, data, "val")
    best: tuple[float, Any] = (math.inf, None)

    def look(step: int, steps: int, loss: float, **_: float) -> None:
        nonlocal best
        held = mean_loss(model, held_out, loss=next_token_loss)
        trial.log(step, train_loss=loss, val_loss=held)
        trial.progress(step, steps, val_loss=held)
        if held < best[0]:
            best = (held, copy.deepcopy(model.state_dict()))

    with trial.stream("dropout"):
        fit(
            model, text_.windows("train", s.length, 1), optimizer, loss=next_token_loss, steps=s.steps,
            batch_size=s.batch, replacement=True, generator=trial.generator("order"), clip=1.0,
            schedule=cosine_schedule(optimizer, s.steps, warmup=s.warmup), callbacks=[look], every=s.every,
        )  # fmt: skip
    if best[1] is not None:
        model.load_state_dict(best[1])
    return model.eval()


@PAPER.claim(
    "Trained on a quarter of the sources and tested on all, a transformer generalises better than trained on all",
    arms=("dense", "attention_dropout", "ssa"),
    expect=[
        lower("ssa", than="dense", metric="loss"),
        shown(
            lower("ssa", than="attention_dropout", metric="loss"),
            lower("attention_dropout", than="dense", metric="loss"),
        ),
    ],
    setup=SETUPS,
    data=TEXTS,
    tune={"dropout": [0.0, 0.1, 0.3]},
    tune_by="val_loss",
    tune_goal="min",
    tune_seeds=1,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported=(
        "enwik8, 12 layers, 1.024 bits a character; WikiText-103, 16 layers, perplexity 17.60 against 18.7; Swin-T "
        "81.89 against 81.3; PCQM4Mv2 .0876 against .0883 to .0890"
    ),
    notes=TRAINING
    + (
        "Residual dropout is tuned for each arm over one list by validation; `attention_dropout` drops 0.3 of the "
        "weights besides. Without an early stop the sampled network wins by far, against a dense one that has learned "
        "its text by heart: a crippled baseline. `medium` has six layers and 200,000 characters."
    ),
)
def ssa_regularises(trial: Trial, data: TextData) -> dict[str, float]:
    dropped = 0.3 if trial.arm == "attention_dropout" else 0.0
    model = trained(
        trial, data, samples=trial.arm == "ssa", dropout=trial.tuned.dropout, attention_dropout=dropped
    )  # fmt: skip
    found = {"val_loss": mean_loss(model, windows(trial, data, "val"), loss=next_token_loss)}
    if not trial.tuning:
        found["loss"] = mean_loss(model, windows(trial, data, "test"), loss=next_token_loss)
        train = data.train[: trial.setup.characters]
        part = TextData(train, data.val, data.test, data.vocabulary, data.level, data.name)
        found["train_loss"] = mean_loss(model, part.windows("train", trial.setup.length), loss=next_token_loss)
    return found


def _likelihood(probabilities: Tensor, targets: Tensor) -> float:
    return float(F.nll_loss(probabilities.clamp(min=1e-12).log().flatten(0, -2), targets.flatten()))


def _temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature of least loss, on a grid."""
    grid = torch.logspace(-0.5, 0.7, 61).tolist()
    return min(grid, key=lambda t: float(next_token_loss(logits / t, targets)))


@PAPER.claim(
    "Averaging 32 sampled sub-networks of one trained network predicts better than that network does dense",
    arms=("ssa", "dense"),
    expect=[
        threshold("ssa", metric="gain", above=0.0),
        shown(
            threshold("ssa", metric="gain_over_temperature", above=0.0),
            threshold("ssa", metric="gain_over_single", above=0.0),
            threshold("ssa", metric="gain_of_8", above=0.0),
            threshold("dense", metric="gain", above=0.0),
        ),
    ],
    setup=SETUPS,
    data=TEXTS,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported="WikiText-103 perplexity 17.18 against 17.60; PCQM4Mv2 .0865 against .0876",
    notes=TRAINING
    + (
        "Residual dropout 0.1. `gain`: dense loss less that of the mean probability of 32 draws, no further training. "
        "`gain_over_temperature`: the same against dense logits at the one temperature that is best on validation "
        "windows, as averaging also softens a network that is too sure. `gain_over_single`: of 8 draws over one, which "
        "Jensen's inequality makes positive in expectation. `dense` is a densely trained network, read likewise: the "
        "control for which averaging should not help. `disagreement`: share of characters for which two draws differ."
    ),
)
def self_ensembles(trial: Trial, data: TextData) -> dict[str, float]:
    s = trial.setup
    model = trained(trial, data, samples=trial.arm == "ssa", dropout=0.1)
    val, test = (windows(trial, data, part).to(trial.device) for part in ("val", "test"))
    draws = trial.generator("ensemble")
    with torch.no_grad():
        logits, val_logits = model(test.inputs), model(val.inputs)
        dense = float(next_token_loss(logits, test.targets))
        softened = float(next_token_loss(logits / _temperature(val_logits, val.targets), test.targets))
        with subsampled(model, draws):
            one, other = (model(test.inputs).softmax(-1) for _ in range(2))
    count = 2 if trial.scale == "smoke" else 8
    eight = self_ensemble(model, test.inputs, count, generator=draws)
    many = (eight + 3 * self_ensemble(model, test.inputs, 3 * count, generator=draws)) / 4
    losses = {number: _likelihood(mean, test.targets) for number, mean in ((count, eight), (4 * count, many))}
    single = (_likelihood(one, test.targets) + _likelihood(other, test.targets)) / 2
    for number, loss in ((1, single), *losses.items()):
        trial.log(number, ensemble_loss=loss, dense_loss=dense)
    return {
        "loss": dense,
        "ensemble_loss": losses[4 * count],
        "gain": dense - losses[4 * count],
        "gain_of_8": dense - losses[count],
        "gain_over_single": single - losses[count],
        "gain_over_temperature": softened - losses[4 * count],
        "disagreement": float((one.argmax(-1) != other.argmax(-1)).double().mean()),
        "windows": float(min(s.test, len(test))),
    }


@PAPER.claim(
    "Given a quarter of the sources at test, a network that was trained so loses less than one that was trained dense",
    arms=("dense", "ssa"),
    expect=[
        lower("ssa", than="dense", metric="rise"),
        shown(lower("ssa", than="dense", metric="rise_half"), lower("ssa", than="dense", metric="rise_eighth")),
    ],
    setup=SETUPS,
    data=TEXTS,
    seeds={"smoke": 1, "small": 5, "medium": 5, "full": 3},
    timeout=86_400.0,
    reported="sub-networks can be trained on their own, and are found at inference (the hypothesis; no table)",
    notes=TRAINING
    + (
        "Residual dropout 0.1. `rise`: loss on a quarter of the sources, one draw a layer, less the dense loss, at the "
        "kept step; `rise_half` and `rise_eighth` likewise."
    ),
)
def pathways_exist(trial: Trial, data: TextData) -> dict[str, float]:
    s = trial.setup
    model = trained(trial, data, samples=trial.arm == "ssa", dropout=0.1)
    test = windows(trial, data, "test")
    curve = pathway_curve(
        model, lambda m: mean_loss(m, test, loss=next_token_loss), (1, 1 / 2, 1 / 4, 1 / 8),
        windows=(None, 2 * s.window, s.window, max(s.window // 2, 1)), generator=trial.generator("pathways"),
    )  # fmt: skip
    for fraction, loss in curve.items():
        trial.log(-math.log2(fraction), loss_by_halvings=loss)
    rises = {name: curve[f] - curve[1.0] for name, f in (("rise_half", 0.5), ("rise", 0.25), ("rise_eighth", 0.125))}
    return {"loss": curve[1.0], **rises}


@PAPER.claim(
    "A quarter of the sources takes at most half the time of attention in training and a third of its memory",
    arms=("ssa@4", "ssa@8"),
    expect=[
        threshold("ssa@4", metric="time_ratio", below=0.5, transform="log"),
        threshold("ssa@4", metric="memory_ratio", below=0.3),
        shown(
            threshold("ssa@8", metric="time_ratio", below=0.5, transform="log"),
            threshold("ssa@8", metric="memory_ratio", below=0.15),
        ),
    ],
    setup={
        "smoke": Setup(tokens=[32, 64], width=8, heads=2, repeats=1),
        "small": Setup(tokens=[2048, 4096], width=64, heads=4, repeats=5),
        "full": Setup(tokens=[2048, 4096, 8192, 16_384], width=64, heads=16, repeats=50),
    },
    seeds={"smoke": 1, "small": 5, "full": 5},
    measured=("time_ratio", "time_ratio_first", "kernel_time_ratio"),
    reported="attention's compute and memory in training fall four to eight times (abstract)",
    notes=(
        "Forward and backward of causal attention, drawing the sets included, at the most tokens; dense attention by "
        "the same two products and softmax (the math kernel of `scaled_dot_product_attention`), in one process, taking "
        "turns. `memory_ratio`: of the scores that are kept for the way back. `kernel_time_ratio`: against torch's "
        "default fused kernel, which keeps no scores, so that memory no longer tells. One thread of a CPU at `small`."
    ),
)
def cost(trial: Trial) -> dict[str, float]:
    s = trial.setup
    fraction = 1 / int(trial.arm.partition("@")[2])
    draw = trial.generator("data")
    ratios, fused = {}, 0.0
    memory = 0.0
    for n in s.tokens:
        shape = (1, s.heads, n, s.width)
        q, k, v = (torch.randn(shape, generator=draw).to(trial.device).requires_grad_() for _ in range(3))
        sets = trial.generator("method")

        def sampled(q: Tensor = q, k: Tensor = k, v: Tensor = v, sets: torch.Generator = sets) -> Tensor:
            drawn = sample_sources(q.shape[2], fraction=fraction, causal=True, generator=sets, device=q.device)
            return subsampled_attention(q, k, v, drawn, causal=True)

        def dense(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        def kernel(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        seconds: dict[str, list[float]] = {"sampled": [], "dense": [], "kernel": []}
        for repeat in range(s.repeats + 1):
            for name, run in (("sampled", sampled), ("dense", dense), ("kernel", kernel)):
                for part in (q, k, v):
                    part.grad = None
                started = time.perf_counter()
                run().sum().backward()
                if trial.device != "cpu":
                    torch.cuda.synchronize()
                if repeat:
                    seconds[name].append(time.perf_counter() - started)
        ratios[n] = median(seconds["sampled"]) / median(seconds["dense"])
        fused = median(seconds["sampled"]) / median(seconds["kernel"])
        one = sample_sources(n, fraction=fraction, causal=True)
        memory = one.queries.numel() * (one.sources.shape[1] + 1) / n**2
        trial.log(n, time_ratio=ratios[n])
    return {
        "time_ratio": ratios[s.tokens[-1]], "time_ratio_first": ratios[s.tokens[0]], "memory_ratio": memory,
        "kernel_time_ratio": fused,
    }  # fmt: skip
