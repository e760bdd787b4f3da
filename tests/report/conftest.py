"""A small made-up catalogue: one paper with everything a page can show, one without curves, one never run."""

import math
from typing import Any

import pytest

from etude.lab.contrast import Contrast
from etude.lab.expect import equivalent, higher, lower, shown, threshold
from etude.lab.verdict import claim_verdict, judge

PICTURE = (
    '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20">'
    '<rect width="40" height="20" fill="#eee"/><path d="M2 18L20 4L38 12" stroke="#1f5fa8" fill="none"/></svg>'
)


def trial(arm: str, seed: int, metrics: dict[str, float], *, status: str = "done", reason: str = "") -> dict[str, Any]:
    return {
        "id": f"{arm}-{seed}", "arm": arm, "seed": seed, "status": status, "reason": reason, "metrics": metrics,
        "seconds": 6.5 + 0.1 * seed, "cpu_seconds": 6.4, "peak_memory_mb": 310.0, "tuned": {"lr": 0.1},
        "fingerprint": "ab12",
    }  # fmt: skip


def record(
    says: str, trials: list[dict[str, Any]], contrasts: list[Contrast], seeds: range, **fields: Any
) -> dict[str, Any]:
    """The evidence of a claim, judged as the lab judges it."""
    results: dict[str, dict[int, Any]] = {}
    for one in trials:
        results.setdefault(one["arm"], {})[one["seed"]] = one
    worst = fields.pop("worst", {})
    verdicts = [judge(contrast, results, list(seeds), worst=worst) for contrast in contrasts]
    status, reason = claim_verdict(verdicts)
    return {
        "version": 1, "scale": "small", "says": says, "seeds": list(seeds), "status": status, "reason": reason,
        "reported": "", "notes": "", "setup": {}, "data": None, "measured": [], "arms": list(results), "shown": [],
        "worst": worst, "resplit": None, "contrasts": [verdict.to_json() for verdict in verdicts], "tuning": {},
        "trials": trials, "series": {}, "figures": {},
        "cost": {"seconds": sum(one["seconds"] for one in trials), "tuning_seconds": 31.0}, **fields,
    }  # fmt: skip


def curve(final: float, seed: int, rate: float) -> list[list[float]]:
    """A hundred points from chance up to `final`, each seed with its own wobble."""
    steps = range(0, 3000, 30)
    return [
        [step, 0.1 + (final - 0.1) * (1 - math.exp(-rate * step)) + 0.012 * math.sin(step / 90 + 2.1 * seed)]
        for step in steps
    ]


def gradient_noise() -> dict[str, Any]:
    seeds = range(1, 7)
    finals = {
        "zero_plain": [0.089, 0.091, 0.089, 0.089, 0.09, 0.089],
        "zero_noise": [0.93, 0.839, 0.943, 0.97, 0.921, 0.958],
        "simple_plain": [0.089, 0.089, 0.099, 0.089, 0.089, 0.094],
        "simple_noise": [0.96, 0.916, 0.946, 0.936, 0.951, 0.94],
        "he_plain": [0.95, 0.947, 0.956, 0.941, 0.953, 0.949],
    }
    trials = [
        trial(arm, seed, {"accuracy": value, "loss": 2.4 * (1 - value), "seconds_a_step": 0.0021})
        for arm, values in finals.items()
        for seed, value in zip(seeds, values)
    ]
    lost = next(one for one in trials if one["arm"] == "zero_plain" and one["seed"] == 3)
    lost.update(status="failed", reason="the loss is not finite at step 412", metrics={})
    side = shown("he_plain", higher("zero_noise", than="he_plain", metric="accuracy"))
    rescue = record(
        "Annealed gradient noise lets a 20-layer network train by plain SGD from a bad initialisation",
        trials,
        [
            higher("zero_noise", than="zero_plain", metric="accuracy", margin=0.1),
            higher("simple_noise", than="simple_plain", metric="accuracy", margin=0.1),
            *side.contrasts,
        ],
        seeds,
        worst={"accuracy": 0.0, "loss": 2.4},
        shown=["he_plain"],
        data="digits",
        measured=["seconds_a_step"],
        setup={"steps": 2970, "width": 32, "depth": 20, "clip": 10.0, "batch_size": 128, "fixed_split": True},
        reported="MNIST, zero initialisation, clip 10: mean accuracy 10.1 without noise, 49.7 with it (table 1).",
        notes="He's initialisation without noise reaches .95: noise repairs a bad start, it does not beat a good one.",
        tuning={
            arm: {
                "by": "val_accuracy", "goal": "max", "chosen": {"lr": best}, "seconds": 15.5,
                "table": [
                    {"values": {"lr": lr}, "scores": {"1000": score, "1001": None}, "mean": score}
                    for lr, score in zip([0.01, 0.1, 1.0, 10.0, 100.0], scores)
                ],
            }
            for arm, best, scores in [
                ("zero_noise", 0.1, [0.1, 0.93, 0.9, 0.2, 0.1]),
                ("zero_plain", 100.0, [0.09, 0.09, 0.091, 0.092, 0.093]),
            ]
        },
        series={
            arm: {
                "accuracy": {str(seed): curve(value, seed, 0.0016) for seed, value in zip(seeds, values)},
                "loss": {str(seed): [[s, 2.4 * (1 - v)] for s, v in curve(value, seed, 0.0016)]
                         for seed, value in zip(seeds, values)},
            }
            for arm, values in finals.items()
        },
        figures={"weights (zero_noise)": {"arm": "zero_noise", "seed": 1, "svg": PICTURE}},
    )  # fmt: skip
    errors = {"plain": [0.472, 0.322, 0.373, 0.301, 0.344], "noise": [0.277, 0.469, 0.327, 0.284, 0.33]}
    memory = record(
        "Gradient noise lowers the test error of a memory network",
        [trial(arm, seed, {"error": value}) for arm, values in errors.items() for seed, value in enumerate(values)],
        [lower("noise", than="plain", metric="error")],
        range(5),
        reported="bAbI, one-stage training: validation error 19.5 % without noise, 16.6 % with it (table 2).",
    )
    trials = [
        trial(arm, seed, {"gain": base + 0.02 * seed, "drift": 0.004 * (seed - 2)})
        for arm, base in {"a": 0.55, "b": 0.55, "control": 0.2}.items()
        for seed in range(5)
    ]
    trials[1].update(status="timeout", reason="stopped after 600 s", metrics={})
    other = record(
        "The draws are the same in both forms",
        trials,
        [
            equivalent("b", to="a", metric="gain", margin=0.05, control="control"),
            threshold("control", metric="gain", above=0.1),
        ],
        range(5),
    )
    return {
        "schema": 1, "slug": "gradient_noise", "scale": "small", "fingerprint": "ab12", "exported": "2026-01-05",
        "environment": {"python": "3.11.9", "torch": "2.13.0", "numpy": "2.4.6", "platform": "Linux",
                        "machine": "x86_64, 2 cores", "threads": 1},
        "cost": {"seconds": 412.0, "cpu_seconds": 398.0},
        "claims": {
            "gradient_noise/poor_initialisation": rescue,
            "gradient_noise/memory_network": memory,
            "gradient_noise/forms@sbm": other,
        },
    }  # fmt: skip


def card(slug: str, domain: str, title: str, claims: list[tuple[str, str]], **fields: Any) -> dict[str, Any]:
    return {
        "slug": slug, "domain": domain, "title": title, "authors": "Someone et al.", "year": 2015,
        "arxiv": "1511.06807", "venue": "", "summary": "", "usage": "", "notes": "", "code": "", "methods": [],
        "extra": "run",
        "claims": [{"id": claim_id, "says": says, "version": 1} for claim_id, says in claims], **fields,
    }  # fmt: skip


@pytest.fixture
def evidence() -> dict[str, dict[str, Any]]:
    halonet = record(
        "A halo of four pixels beats none",
        [trial(arm, seed, {"accuracy": 0.8 + shift + 0.004 * ((seed * 7) % 5)})
         for arm, shift in {"none": 0.02, "halo": 0.0}.items() for seed in range(3)],
        [higher("halo", than="none", metric="accuracy")],
        range(3),
    )  # fmt: skip
    return {
        "gradient_noise": gradient_noise(),
        "halonet": {
            "schema": 1, "slug": "halonet", "scale": "small", "exported": "2026-01-04", "environment": {},
            "cost": {"seconds": 40.0, "cpu_seconds": 39.0}, "claims": {"halonet/halo": halonet},
        },
    }  # fmt: skip


@pytest.fixture
def registry() -> list[dict[str, Any]]:
    usage = """
import torch
from etude.training.gradient_noise import GradientNoise

optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
noise = GradientNoise(optimizer, eta=0.3)
"""
    return [
        card(
            "gradient_noise",
            "training",
            "Adding Gradient Noise Improves Learning for Very Deep Networks",
            [
                ("gradient_noise/poor_initialisation", "Annealed gradient noise lets a 20-layer network train by plain "
                 "SGD from a bad initialisation"),
                ("gradient_noise/memory_network", "Gradient noise lowers the test error of a memory network"),
                ("gradient_noise/forms@sbm", "The draws are the same in both forms"),
                ("gradient_noise/restarts", "Noise doubles the share of restarts that learn to multiply"),
            ],
            authors="Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach & Martens",
            summary="Annealed Gaussian noise on the gradient lets badly initialised, very deep networks train.",
            usage=usage,
            notes="Clip the gradients before the optimizer's step, as usual: the noise comes after the clipping.",
            code="https://github.com/someone/noise",
            methods=["etude.training.gradient_noise"],
        ),
        card("halonet", "vision", "Scaling Local Attention", [("halonet/halo", "A halo of four pixels beats none")]),
        card("dagnn", "graphs", "Towards Deeper Graph Neural Networks",
             [("dagnn/depth@cora", "Depth 16 is no worse than depth 2"), ("dagnn/depth@sbm", "Depth 16 beats depth 2")],
             summary="Propagation apart from transformation, with a learned weight for each depth."),
        card("broken", "plugin", "broken", [], error="ModuleNotFoundError: No module named 'elsewhere'"),
    ]  # fmt: skip


@pytest.fixture
def freshness() -> dict[str, bool]:
    return {"gradient_noise": True, "halonet": False}
