"""The laboratory: papers, claims, trials, verdicts, the store and the engines. It knows no paper by name."""

from etude.lab.expect import (
    efficient,
    equivalent,
    higher,
    identity,
    interaction,
    lower,
    not_worse,
    shape,
    shown,
    threshold,
    trend,
)
from etude.lab.paper import SCALES, Claim, Paper, Setup, Source
from etude.lab.trial import Trial

__all__ = [
    "SCALES",
    "Claim",
    "Paper",
    "Setup",
    "Source",
    "Trial",
    "efficient",
    "equivalent",
    "higher",
    "identity",
    "interaction",
    "lower",
    "not_worse",
    "shape",
    "shown",
    "threshold",
    "trend",
]
