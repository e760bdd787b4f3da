import numpy as np
import pandas as pd
import pytest
import torch

from etude.data import tables
from etude.data.kinds import Examples, TableData


@pytest.fixture
def frame():
    draw = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": [*draw.integers(20, 60, 38).astype(float), np.nan, np.nan],
            "member": draw.random(40) < 0.5,
            "city": draw.choice(["Rome", "Oslo"], 40),
            "churned": draw.choice(["no", "yes"], 40),
            "spent": draw.normal(size=40),
        }
    )


def written(frame, path):
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("load", "rows", "features", "classes"),
    [(tables.breast_cancer, 569, 30, 2), (tables.wine, 178, 13, 3), (tables.diabetes, 442, 10, 0)],
)
def test_embedded_tables_hold_every_row_once(load, rows, features, classes):
    data = load()
    assert len(data.train) + len(data.val) + len(data.test) == rows
    assert (data.num_features, data.num_classes) == (features, classes)
    again = load()
    assert torch.equal(data.train.inputs, again.train.inputs)


def test_classes_are_spread_alike_over_the_splits():
    data = tables.breast_cancer()
    shares = [split.targets.double().mean().item() for split in (data.train, data.val, data.test)]
    assert max(shares) - min(shares) < 0.02


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_users_file_becomes_features_and_classes(frame, tmp_path, ending):
    data = tables.table(written(frame, tmp_path / f"people{ending}"), target="churned")
    assert data.columns == ("age", "age missing", "member", "city = Oslo", "city = Rome", "spent")
    assert data.classes == ("no", "yes")
    assert data.name == "people"
    assert len(data.train) == 24
    assert len(data.test) == 8


def test_missing_numbers_take_the_median_of_the_training_rows(frame, tmp_path):
    data = tables.table(written(frame, tmp_path / "people.csv"), target="churned")
    known = data.train.inputs[data.train.inputs[:, 1] == 0, 0]
    for split in (data.train, data.val, data.test):
        filled = split.inputs[split.inputs[:, 1] == 1, 0]
        assert bool((filled == float(np.median(known.numpy()))).all())


def test_the_values_of_held_out_rows_change_no_feature_of_the_training_rows(frame, tmp_path):
    first = tables.table(written(frame, tmp_path / "a.csv"), target="churned")
    train = {row.tobytes() for row in first.train.inputs.numpy()[:, [2, 3, 4, 5]]}
    spent = frame["spent"].to_numpy().astype(np.float32)
    held = [i for i in range(40) if not any(spent[i].tobytes() == row[-4:] for row in train)]
    frame.loc[held, "age"] = 1000.0
    second = tables.table(written(frame, tmp_path / "b.csv"), target="churned")
    column = second.columns.index("age")
    assert torch.equal(first.train.inputs[:, 0], second.train.inputs[:, column])


def test_a_numeric_target_of_many_values_is_a_value_to_predict(frame, tmp_path):
    data = tables.table(written(frame, tmp_path / "people.csv"), target="spent")
    assert data.classes == ()
    assert data.train.targets.dtype == torch.float32


def test_whole_numbers_of_few_values_are_classes_unless_told(frame, tmp_path):
    frame["grade"] = np.arange(40) % 3
    path = written(frame, tmp_path / "people.csv")
    assert tables.table(path, target="grade").classes == ("0", "1", "2")
    assert tables.table(path, target="grade", task="regression").classes == ()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"target": "churn"}, "has no column 'churn'; it has age, member"),
        ({"churned": "no"}, {"target": "churned"}, r"has 1 value\(s\); classes must be 2 to 100"),
        ({"city": [f"city {i}" for i in range(120)]}, {"target": "churned"}, "the column city has 72 different values"),
        ({}, {"target": "churned", "task": "regression"}, "is no number, got 'no'"),
        ({}, {"target": "churned", "task": "ranking"}, "task must be classification or regression, got 'ranking'"),
    ],
)
def test_a_table_that_cannot_serve_is_refused(frame, tmp_path, change, options, message):
    if any(not isinstance(value, str) for value in change.values()):
        frame = pd.concat([frame] * 3, ignore_index=True)
    with pytest.raises(ValueError, match=message):
        tables.table(written(frame.assign(**change), tmp_path / "people.csv"), **options)


def test_a_missing_file_and_an_unknown_ending_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table at .*absent\.csv"):
        tables.table(tmp_path / "absent.csv", target="y")
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(ValueError, match=r"must end in \.csv, \.tsv, \.parquet, got notes\.txt"):
        tables.table(tmp_path / "notes.txt", target="y")


def table_data(**changes):
    part = Examples(torch.rand(6, 2), torch.arange(6) % 2)
    fields = {"train": part, "val": part, "test": part, "columns": ("a", "b"), "classes": ("x", "y"), "name": "toy"}
    return TableData(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ("a",)}, "has 2 features, columns names 1"),
        ({"classes": ("x",)}, "at least two classes, or none for a value"),
        ({"classes": ()}, r"targets must be float32 of shape \(n,\), got int64"),
        ({"val": Examples(torch.rand(6, 2, 1), torch.zeros(6))}, r"must be float32 of shape \(n, features\)"),
        ({"test": Examples(torch.full((2, 2), torch.nan), torch.tensor([0, 1]))}, "TableData.test inputs hold NaN"),
        ({"train": Examples(torch.rand(2, 2), torch.tensor([0, 2]))}, r"must lie in 0\.\.1"),
    ],
)
def test_table_data_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        table_data(**changes)


def test_standardizing_uses_the_training_rows_and_leaves_a_constant_column_centred():
    data = table_data(train=Examples(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([0, 1]))).standardized()
    assert torch.allclose(data.train.inputs, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    assert bool((data.test.inputs[:, 1] < 0).all())


def test_a_table_serves_where_images_do():
    data = tables.wine().standardized()
    images = data.as_images()
    assert images.train.inputs.shape == (len(data.train), 1, 1, 13)
    assert torch.equal(images.test.inputs.flatten(1), data.test.inputs)
    assert images.classes == data.classes
    with pytest.raises(ValueError, match="the target of diabetes is a value"):
        tables.diabetes().as_images()
