"""The grid, runs that are taken up again, the paired summaries, and the estimator."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

from etude.data.kinds import Examples, ImageData
from etude.vision.shallow import (
    ShallowClassifier,
    core_grid,
    depth_gap,
    grid,
    paired_summary,
    plot_depth_gap,
    plot_losses,
    read_runs,
    run_grid,
    squared_error,
)


def data():
    draw = torch.Generator().manual_seed(0)
    part = Examples(torch.rand(20, 1, 8, 8, generator=draw), torch.arange(20) % 2)
    return ImageData(train=part, val=part, test=part, classes=("a", "b"), name="noise")


def little(**axes):
    return grid(
        **{
            "datasets": ("noise",), "num_layers": (1, 2), "channels": (2,), "kernel_sizes": (1,),
            "activations": ("relu",), "batch_norm": (False,), "optimizers": ("adamw",),
        }
        | axes
    )  # fmt: skip


def test_the_grid_has_as_many_combinations_as_the_paper_and_its_core_ninety_six():
    whole = grid()
    assert len(whole) == len({json.dumps(c) for c in whole}) == 6912
    assert len(core_grid()) == 96
    assert [c["layout"] for c in whole[:2]] == ["sequential", "parallel"]
    assert {k: v for k, v in whole[0].items() if k != "layout"} == {k: v for k, v in whole[1].items() if k != "layout"}
    with pytest.raises(ValueError, match=r"optimizers must be among .*, got \['lion'\]"):
        grid(optimizers=("lion",))


def test_an_interrupted_study_goes_on_where_it_was(tmp_path):
    path = tmp_path / "deep" / "runs.jsonl"
    wanted = little()
    run_grid(wanted[:3], {"noise": data()}, path, epochs=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # the third line is cut short
    seen = []

    def loaded():
        seen.append(1)
        return data()

    ticks = []
    run_grid(wanted, {"noise": loaded}, path, epochs=1, progress=lambda done, total: ticks.append((done, total)))
    assert path.read_bytes().startswith(whole)
    assert len(read_runs(path)) == 4
    assert seen == [1]
    assert ticks == [(1, 4), (2, 4), (3, 4), (4, 4)]
    before = path.read_bytes()
    run_grid(wanted, {"noise": loaded}, path, epochs=1)
    assert path.read_bytes() == before
    assert seen == [1]
    run_grid(wanted[:1], {"noise": loaded}, path, epochs=2)
    assert len(read_runs(path)) == 5


def test_one_layer_gives_both_layouts_the_same_losses(tmp_path):
    runs = read_runs(run_grid(little(num_layers=(1,)), {"noise": data()}, tmp_path / "r", epochs=2))
    assert runs["train_loss"].nunique() == runs["val_loss"].nunique() == 1
    assert runs["overdetermination"].tolist() == pytest.approx((40 / runs["parameters"]).tolist())


def test_bad_studies_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the grid names the data \['noise'\], given are \['other'\]"):
        run_grid(little(), {"other": data()}, tmp_path / "r", epochs=1)
    with pytest.raises(FileNotFoundError, match="no runs at"):
        read_runs(tmp_path / "none")
    (tmp_path / "bad").write_text("{}\nnonsense\n")
    with pytest.raises(ValueError, match="line 2, is no run"):
        read_runs(tmp_path / "bad")
    with pytest.raises(ValueError, match="the table lacks the columns"):
        paired_summary(pd.DataFrame({"layout": ["parallel"]}))
    lonely = pd.DataFrame({"layout": ["parallel"], "num_layers": [2], "train_loss": [1.0], "val_loss": [1.0]})
    with pytest.raises(ValueError, match="no configuration was run in both layouts"):
        paired_summary(lonely)


def table(ratios, seeds=1):
    rows = []
    for index, ratio in enumerate(ratios):
        for seed in range(seeds):
            shared = {"num_layers": 2 ** (index % 3), "lr": 0.1 * index, "clip": None, "seed": seed}
            wobble = math.exp(seed - (seeds - 1) / 2)
            rows.append(shared | {"layout": "sequential", "train_loss": 2.0, "val_loss": 1.0, "val_accuracy": 0.9})
            rows.append(
                shared
                | {"layout": "parallel", "train_loss": 2.0 * ratio * wobble, "val_loss": ratio, "val_accuracy": 0.8}
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_summary_pairs_configurations_and_averages_seeds(seeds):
    ratios = [0.5, 0.8, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0]
    found = paired_summary(table(ratios, seeds)).set_index("metric")
    assert found["configurations"].tolist() == [8, 8]
    assert found["median"].tolist() == pytest.approx([math.sqrt(1.1 * 1.25)] * 2)
    # P(Binomial(8, 1/2) <= 0) = 0.004, <= 1: 0.035: the least value but none more lies outside of nothing
    assert found["low"].tolist() == pytest.approx([0.5] * 2)
    assert found["high"].tolist() == pytest.approx([3.0] * 2)
    assert found["below"].tolist() == pytest.approx([0.25] * 2)


def test_the_interval_of_the_median_is_that_of_the_sign_test():
    found = paired_summary(table(np.linspace(0.5, 1.5, 20).tolist()), level=0.95)
    # P(Binomial(20, 1/2) <= 5) = 0.0207 and <= 6: 0.0577, so the sixth values from either end
    assert found["low"][0] == pytest.approx(np.linspace(0.5, 1.5, 20)[5])
    assert found["high"][0] == pytest.approx(np.linspace(0.5, 1.5, 20)[14])


def test_summaries_by_axis_and_the_gap_by_depth():
    runs = table([1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
    by = paired_summary(runs, by="num_layers")
    val = by[by["metric"] == "val_loss"].set_index("num_layers")
    assert val["median"].to_dict() == pytest.approx({1: 1.0, 2: 2.0, 4: 4.0})
    curve = depth_gap(runs)
    assert curve["num_layers"].tolist() == [1, 2, 4]
    assert curve["gap"].tolist() == pytest.approx([0.1] * 3)
    for figure in (plot_losses(runs), plot_depth_gap(runs)):
        assert figure.axes


def test_unpaired_and_broken_runs_are_left_out():
    runs = table([1.0, 2.0, 4.0])
    runs.loc[1, "val_loss"] = None
    assert paired_summary(runs.drop(index=2))["configurations"].tolist() == [1, 1]


def test_squared_error_is_against_the_one_hot_code():
    outputs, targets = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1])
    assert squared_error(outputs, targets).item() == pytest.approx((0 + 0 + 0.25 + 0.25) / 4)


SMALL = {"epochs": 1, "num_layers": 2, "width": 2, "batch_size": 8}


def pictures(n=24):
    draw = np.random.default_rng(0)
    return draw.random((n, 8, 8)), np.array(["cat", "dog", "emu"])[np.arange(n) % 3]


@pytest.mark.parametrize("layout", ["sequential", "parallel"])
def test_the_estimator_fits_and_predicts_labels(layout):
    x, y = pictures()
    state = torch.get_rng_state()
    classifier = ShallowClassifier(layout, random_state=0, **SMALL).fit(x, y)
    assert torch.equal(state, torch.get_rng_state())
    assert classifier.classes_.tolist() == ["cat", "dog", "emu"]
    probabilities = classifier.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (classifier.predict(x) == classifier.classes_[probabilities.argmax(1)]).all()
    assert 0 <= classifier.score(x, y) <= 1
    assert len(classifier.losses_) == 3
    again = clone(classifier).fit(torch.from_numpy(x)[:, None], y)
    assert (again.predict_proba(x) == probabilities).all()


def test_bytes_and_sixteen_bits_are_scaled():
    x, y = pictures()
    bytes_, words = (x * 255).astype(np.uint8), (x * 255).astype(np.uint16) * 257
    first, second = (ShallowClassifier(random_state=0, **SMALL).fit(a, y).predict_proba(a) for a in (bytes_, words))
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_colour_is_converted_and_whole_data_sets_are_taken():
    x, y = pictures()
    classifier = ShallowClassifier(channels=1, random_state=0, **SMALL).fit(np.stack([x, x, x], -1), y)
    assert classifier.model_.stem[0].in_channels == 1
    part = data().train
    grey = ShallowClassifier(random_state=0, **SMALL).fit(part, part.targets)
    assert grey.overdetermination_ == pytest.approx(40 / sum(p.numel() for p in grey.model_.parameters()))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: ShallowClassifier().fit(x[:, 0], y), r"pixels must have shape .* got \(24, 8\)"),
        (lambda x, y: ShallowClassifier().fit(x, y[:5]), r"y must have shape \(24,\), one label per image, got \(5,\)"),
        (lambda x, y: ShallowClassifier().fit(x, y[:1].repeat(24)), r"at least two classes, got \['cat'\]"),
        (lambda x, y: ShallowClassifier().fit(np.full_like(x, np.nan), y), "NaN or infinite values"),
        (
            lambda x, y: ShallowClassifier(**SMALL).fit(x, y).predict(x[:, :4]),
            r"images must have shape \(1, 8, 8\), as in fit, got \(1, 4, 8\)",
        ),
    ],
)
def test_the_estimator_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*pictures())
