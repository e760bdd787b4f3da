"""A user's own data: the kind is seen from what lies at the path, and what does not fit is refused with a reason."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from etude.data import graphs, tables, user
from etude.data.kinds import Examples, FieldData, GraphData, ImageData, SignalData, TableData


def photos(folder, sizes=((8, 8),), classes=("cat", "dog"), each=6):
    rng = np.random.default_rng(0)
    for label in classes:
        (folder / label).mkdir(parents=True)
        for number in range(each):
            size = sizes[number % len(sizes)]
            Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(folder / label / f"{number}.png")
    return folder


def network(folder, *, nodes=None, edges=None):
    folder.mkdir(exist_ok=True)
    people = pd.DataFrame({"name": [f"n{i}" for i in range(20)], "age": range(20), "label": ["a", "b"] * 10})
    ties = pd.DataFrame({"from": [f"n{i}" for i in range(19)], "to": [f"n{i + 1}" for i in range(19)]})
    (people if nodes is None else nodes).to_csv(folder / "nodes.csv", index=False)
    (ties if edges is None else edges).to_csv(folder / "edges.csv", index=False)
    return folder


def test_a_folder_of_images(tmp_path):
    data = user.load(photos(tmp_path / "photos"))
    assert isinstance(data, ImageData)
    assert (data.size, data.channels, data.classes) == ((8, 8), 1, ("cat", "dog"))


@pytest.mark.parametrize("sizes", [((90, 80),), ((8, 8), (9, 8))])
def test_large_or_differing_images_come_small(tmp_path, sizes):
    assert user.load(photos(tmp_path / "photos", sizes)).size == (32, 32)
    assert user.load(tmp_path / "photos", size=16).size == (16, 16)


def test_an_archive_of_images(tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((20, 4, 4), np.uint8), y=np.arange(20) % 2)
    assert isinstance(user.load(tmp_path / "x.npz"), ImageData)


def test_a_table(tmp_path):
    frame = pd.DataFrame({"a": range(30), "b": ["u", "v", "w"] * 10, "c": [0, 1] * 15})
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = user.load(tmp_path / "t.csv", target="c")
    assert isinstance(data, TableData)
    assert data.columns == ("a", "b = u", "b = v", "b = w")
    images = user.load_rows_as_images(path=str(tmp_path / "t.csv"), target="c")
    assert images.size == (1, 4)
    assert torch.allclose(images.train.inputs.mean(dim=0), torch.zeros(()), atol=1e-6)
    with pytest.raises(ValueError, match="name the column to predict"):
        user.load(tmp_path / "t.csv")


def test_recordings(tmp_path):
    for label in ("noise", "signal"):
        (tmp_path / label).mkdir()
        np.save(tmp_path / label / "0.npy", np.ones(1000, np.complex64))
    data = user.load(tmp_path, window=16, sample_rate=1e6)
    assert isinstance(data, SignalData)
    assert data.num_samples == 16


@pytest.mark.parametrize("name", ["world.nc", "world.zarr"])
def test_fields_on_the_globe(tmp_path, name):
    xr = pytest.importorskip("xarray")
    times = np.datetime64("2020-01-01", "ns") + np.arange(40) * np.timedelta64(6, "h")
    axes = {
        "time": times,
        "latitude": ("latitude", np.linspace(75, -75, 6), {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(8) * 45.0, {"units": "degrees_east"}),
    }
    values = np.random.default_rng(0).normal(size=(40, 6, 8)).astype(np.float32)
    world = xr.Dataset({"t2m": (("time", "latitude", "longitude"), values, {"units": "K"})}, axes)
    if name.endswith("nc"):
        world.to_netcdf(tmp_path / name)
    else:
        world.to_zarr(tmp_path / name, zarr_format=2)
    data = user.load(tmp_path / name)
    assert isinstance(data, FieldData)
    assert sum(user.rows(data)) == 40
    before = user.digest(tmp_path / name)
    assert user.digest(tmp_path / name) == before
    if name.endswith("zarr"):
        hidden = next(tmp_path.joinpath(name).rglob("*.json"), None) or next(tmp_path.joinpath(name).rglob(".z*"))
        hidden.write_text(hidden.read_text() + " ")
        assert user.digest(tmp_path / name) != before
    with pytest.raises(ValueError, match="fields on the globe, which take no target"):
        user.load(tmp_path / name, target="t2m")
    with pytest.raises(TypeError, match=r"pass the path of the \.nc or \.zarr"):
        user.keep(data, tmp_path / "kept")


def test_a_graph_of_two_tables(tmp_path):
    data = user.load(network(tmp_path / "net"))
    assert isinstance(data, GraphData)
    assert (data.num_nodes, data.num_edges, data.num_features, data.classes) == (20, 38, 1, ("a", "b"))
    pairs = {tuple(pair) for pair in data.edge_index.T.tolist()}
    assert pairs == {(i, j) for i in range(20) for j in range(20) if abs(i - j) == 1}
    assert [int(mask.sum()) for mask in (data.train_mask, data.val_mask, data.test_mask)] == [4, 4, 12]
    assert data.x.squeeze(1).tolist() == list(range(20))


def test_loops_and_repetitions_are_dropped_and_direction_can_be_kept(tmp_path):
    edges = pd.DataFrame({"s": ["n0", "n0", "n1", "n2"], "t": ["n1", "n1", "n0", "n2"]})
    assert graphs.edge_list(network(tmp_path, edges=edges)).edge_index.tolist() == [[0, 1], [1, 0]]
    one_way = pd.DataFrame({"s": ["n0", "n0", "n2"], "t": ["n1", "n1", "n2"]})
    assert graphs.edge_list(network(tmp_path, edges=one_way), directed=True).edge_index.tolist() == [[0], [1]]


def test_nodes_without_features_or_class(tmp_path):
    nodes = pd.DataFrame({"name": [f"n{i}" for i in range(20)], "kind": ["a", "b"] * 8 + [None] * 4})
    data = graphs.edge_list(network(tmp_path, nodes=nodes), "kind")
    assert data.x[:, 0].tolist() == [1, *[2] * 18, 1]
    known = data.train_mask | data.val_mask | data.test_mask
    assert known.tolist() == [True] * 16 + [False] * 4


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"edges": pd.DataFrame({"s": ["n0", "n0"], "t": ["n1", "who"]})}, "row 2 of edges.csv names 'who'"),
        ({"edges": pd.DataFrame({"s": ["n0"]})}, "edges.csv two columns"),
        ({"nodes": pd.DataFrame({"name": ["n0", "n0"], "label": ["a", "b"]})}, "names the node 'n0' twice"),
        ({"nodes": pd.DataFrame({"name": ["n0", "n1"], "age": [1, 2]})}, "a column 'label'"),
        ({"nodes": pd.DataFrame({"name": [f"n{i}" for i in range(20)], "label": ["a"] * 20})}, "at least two classes"),
    ],
)
def test_wrong_graphs_are_refused(tmp_path, change, match):
    with pytest.raises(ValueError, match=match):
        graphs.edge_list(network(tmp_path, **change))


def test_what_is_no_data_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing at"):
        user.load(tmp_path / "absent")
    (tmp_path / "model.pkl").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"got model\.pkl"):
        user.load(tmp_path / "model.pkl")
    with pytest.raises(ValueError, match=r"files ending in \.pkl"):
        user.load(tmp_path)


def test_an_option_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds images, which take no target, window"):
        user.load(photos(tmp_path / "photos"), target="x", window=3)


def test_the_digest_follows_content_names_and_options(tmp_path):
    folder = photos(tmp_path / "photos")
    before = user.digest(folder)
    assert user.digest(folder) == before
    assert user.digest(folder, size=16) != before
    (folder / ".hidden").write_text("x")
    assert user.digest(folder) == before
    (folder / "cat" / "0.png").rename(folder / "cat" / "9.png")
    renamed = user.digest(folder)
    (folder / "cat" / "1.png").write_bytes((folder / "cat" / "2.png").read_bytes())
    assert len({before, renamed, user.digest(folder)}) == 3


def signals():
    def part(n):
        return Examples(torch.randn(n, 5, dtype=torch.complex64), torch.arange(n) % 2)

    return SignalData(part(6), part(2), part(3), 1e6, {"classes": ["a", "b"]}, "radio")


def small_graph(folder):
    return graphs.edge_list(network(folder))


@pytest.mark.parametrize(
    "make", [lambda _: tables.wine(), lambda _: tables.diabetes(), lambda _: signals(), small_graph]
)
def test_data_in_memory_are_kept_and_read_again(tmp_path, make):
    data = make(tmp_path / "source")
    again = user.load(user.keep(data, tmp_path / "kept"))
    assert type(again) is type(data)
    assert user.rows(again) == user.rows(data)
    for name, value in vars(data).items():
        read = getattr(again, name)
        if isinstance(value, Examples):
            assert torch.equal(read.inputs, value.inputs)
            assert torch.equal(read.targets, value.targets)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(read, value)
        else:
            assert read == value


def test_only_the_kinds_in_memory_are_kept(tmp_path):
    with pytest.raises(Exception, match=r"got list|Actual value: \[1, 2\]"):  # the type checker may be first
        user.keep([1, 2], tmp_path)
    wine = tables.wine().as_images()
    lazy = torch.utils.data.TensorDataset(wine.train.inputs, wine.train.targets)
    with pytest.raises(TypeError, match="train must be Examples in memory, got TensorDataset"):
        user.keep(ImageData(lazy, wine.val, wine.test, wine.classes, "w"), tmp_path)
