"""The table of properties, and the picture of an accuracy matrix."""

import pytest

from etude.transfer.lifelong import (
    FineTune,
    NonForgetting,
    learn_stream,
    plot_accuracies,
    property_table,
    shared_latent_tasks,
    table_text,
)


def test_every_property_has_its_policy_and_a_measured_effect():
    rows = property_table(1, examples=20, steps=2, few=6)
    names = [row.name for row in rows]
    for wanted in (
        "no forgetting", "forward transfer", "few-shot learning", "backward transfer", "confusion reduction",
        "graceful forgetting", "'rain man'", "sleep deprivation", "multi-task training", "refinement",
    ):  # fmt: skip
        assert wanted in names
    assert rows[0].value == 0.0, "nothing is forgotten"
    text = table_text(rows)
    assert len(text.splitlines()) == len(rows) + 1
    assert "ConfusionReduction" in text
    with pytest.raises(ValueError, match="seeds must be positive, got 0"):
        property_table(0)


def test_the_accuracy_matrix_is_drawn():
    pytest.importorskip("matplotlib")
    tasks = shared_latent_tasks(3, 20, features=5, latent=2, val=0, test=10)
    figure = plot_accuracies(learn_stream(tasks, FineTune(), steps=1), "fine-tuning")
    (axis,) = figure.axes
    assert len(axis.texts) == 9
    assert learn_stream(tasks, NonForgetting(), steps=1).accuracies.shape == (3, 3)
