"""The paper's picture: accuracy on what was seen and on what was not, along the stream."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from etude.transfer.fewshot_continual.protocol import StreamResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_curves"]


def plot_curves(results: Mapping[str, StreamResult]) -> "Figure":
    """A_t and F_t of several learners side by side.

        plot_curves({"two-step": run_stream(...), "single": run_stream(...)}).savefig("curves.svg")

    Args:
        results: by the name of the learner.

    Raises:
        ValueError: if there are no results.
        ImportError: if matplotlib is not installed.
    """
    if not results:
        raise ValueError("there are no results to draw")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_curves needs matplotlib: pip install 'etude[run]'") from error
    figure = Figure(figsize=(8.0, 3.2), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    for name, result in results.items():
        panels[0].plot(range(1, len(result.seen) + 1), result.seen, marker="o", label=name)
        panels[1].plot(range(len(result.few_shot)), result.few_shot, marker="o", label=name)
    for panel, title in zip(panels, ("all classes seen so far, $A_t$", "few shots of unseen classes, $F_t$")):
        panel.set(xlabel="tasks learned", ylabel="accuracy", title=title)
    panels[0].legend()
    return figure
