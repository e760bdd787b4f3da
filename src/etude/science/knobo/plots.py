"""Pictures: why an image got its class, accuracy in and out of the domain, and the weights beside the prior."""

from collections.abc import Mapping
from typing import Any

import torch

from etude.science.knobo.classifier import Explanation, KnoBoClassifier
from etude.science.knobo.protocol import DomainScores

__all__ = ["plot_domains", "plot_explanation", "plot_weights"]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'etude[run]'") from error
    figure = Figure(figsize=(width, height), layout="tight")
    return figure, figure.subplots()


def plot_explanation(explanation: Explanation) -> Any:
    """A bar for the contribution of each concept to the logit; a `matplotlib.figure.Figure`."""
    reasons = explanation.reasons[::-1]
    figure, axis = _figure(9.0, 1.2 + 0.32 * len(reasons))
    colours = ["tab:red" if reason.contribution < 0 else "tab:blue" for reason in reasons]
    axis.barh([reason.question for reason in reasons], [reason.contribution for reason in reasons], color=colours)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(
        title=f"{explanation.label} (p = {explanation.probability:.2f})",
        xlabel=f"contribution to the logit {explanation.logit:+.2f}; bias {explanation.bias:+.2f}",
    )
    return figure


def plot_domains(scores: Mapping[str, DomainScores]) -> Any:
    """In-domain and shifted accuracy of several classifiers, joined by their gap."""
    figure, axis = _figure(5.5, 0.9 + 0.32 * len(scores))
    for place, score in enumerate(list(scores.values())[::-1]):
        axis.plot([score.ood, score.id], [place, place], color="grey", linewidth=1)
        axis.plot(score.id, place, "o", color="tab:blue", label="in domain" if not place else None)
        axis.plot(score.ood, place, "s", color="tab:red", label="shifted" if not place else None)
    axis.set_yticks(range(len(scores)), list(scores)[::-1])
    axis.set(xlim=(-0.02, 1.02), xlabel="accuracy")
    axis.legend(loc="lower left", fontsize="small")
    return figure


def plot_weights(classifier: KnoBoClassifier) -> Any:
    """tanh(W) by class and concept; a dot marks where the prior has the other sign."""
    values = torch.tanh(classifier.weights_)
    questions = classifier.grounding.questions_
    figure, axis = _figure(6.5 + 0.7 * len(values), 1.2 + 0.28 * len(questions))
    picture = axis.imshow(values.T.numpy(), vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    figure.colorbar(picture, ax=axis, label="tanh of the weight")
    names = classifier.class_names or {}
    labels = [names.get(label, str(label)) for label in classifier.classes_.tolist()]
    axis.set_xticks(range(len(labels)), labels)
    axis.set_yticks(range(len(questions)), questions)
    if classifier.prior is not None:
        against = classifier.prior.aligned(labels, questions) * values < 0
        for row, column in against.nonzero().tolist():
            axis.plot(row, column, "k.")
    return figure
