import pytest
import torch
from torch.utils.data import TensorDataset

from etude.data.kinds import Examples, GraphData, ImageData, Recording, SignalData


def examples(n=6, classes=3, shape=(1, 4, 4)):
    return Examples(torch.rand(n, *shape), torch.arange(n) % classes)


def image_data(**changes):
    fields = {"train": examples(), "val": examples(), "test": examples(), "classes": ("a", "b", "c"), "name": "toy"}
    return ImageData(**{**fields, **changes})


def graph(**changes):
    fields = {
        "x": torch.eye(4),
        "edge_index": torch.tensor([[0, 1], [1, 0]]),
        "y": torch.tensor([0, 1, 0, 1]),
        "train_mask": torch.tensor([True, False, False, False]),
        "val_mask": torch.tensor([False, True, False, False]),
        "test_mask": torch.tensor([False, False, True, False]),
        "classes": ("a", "b"),
        "name": "toy",
    }
    return GraphData(**{**fields, **changes})


def signals(**changes):
    part = Examples(torch.randn(4, 8, dtype=torch.complex64), torch.tensor([0, 1, 0, 1]))
    fields = {"train": part, "val": part, "test": part, "sample_rate": 1e6}
    return SignalData(**{**fields, **changes})


def test_indexing_gives_inputs_and_targets():
    data = examples()
    inputs, targets = data[torch.tensor([4, 1])]
    assert torch.equal(inputs, data.inputs[[4, 1]])
    assert targets.tolist() == [1, 1]


def test_a_subset_takes_indices_and_masks():
    data = examples()
    assert data.subset([5, 0]).targets.tolist() == [2, 0]
    assert len(data.subset(data.targets == 1)) == 2


def test_take_without_a_generator_takes_the_first():
    data = examples()
    assert torch.equal(data.take(2).inputs, data.inputs[:2])


def test_take_with_a_generator_draws_distinct_examples():
    data = Examples(torch.arange(50.0), torch.arange(50))
    drawn = data.take(20, torch.Generator().manual_seed(1)).targets
    assert len(drawn.unique()) == 20
    assert not torch.equal(drawn, torch.arange(20))


def test_taking_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.6.*got 7"):
        examples().take(7)


def test_unequal_rows_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4,\)"):
        Examples(torch.zeros(3, 2), torch.zeros(4))


def test_image_data_tell_channels_size_and_classes():
    data = image_data()
    assert (data.channels, data.size, data.num_classes) == (1, (4, 4), 3)


def test_images_of_another_dtype_are_refused():
    wrong = Examples(torch.zeros(6, 1, 4, 4, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ImageData.train .*uint8 of shape \(6, 1, 4, 4\)"):
        image_data(train=wrong)


def test_images_of_another_size_in_one_split_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 5, 5\)"):
        image_data(val=examples(shape=(1, 5, 5)))


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.1 \(2 classes\), got 0\.\.2"):
        image_data(classes=("a", "b"))


def test_images_with_nan_are_refused():
    bad = examples()
    bad.inputs[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        image_data(test=bad)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="val is empty"):
        image_data(val=examples(n=0))


def test_a_split_may_be_a_torch_dataset():
    split = TensorDataset(torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64))
    data = image_data(train=split, val=split, test=split)
    assert (data.channels, data.size) == (3, (8, 8))


def test_standardized_channels_have_mean_0_and_deviation_1_on_train():
    data = examples(60, shape=(3, 4, 4))
    scaled = image_data(train=data, val=data, test=data).standardized().train.inputs
    torch.testing.assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_a_constant_channel_is_only_centred():
    flat = Examples(torch.full((6, 1, 4, 4), 0.5), torch.arange(6) % 3)
    data = image_data(train=flat, val=flat, test=flat).standardized()
    assert torch.equal(data.test.inputs, torch.zeros(6, 1, 4, 4))


def test_a_graph_tells_its_sizes():
    data = graph()
    assert (data.num_nodes, data.num_features, data.num_classes, data.num_edges) == (4, 4, 2, 2)


def test_an_edge_to_a_node_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.3, got 0\.\.4"):
        graph(edge_index=torch.tensor([[0, 4], [4, 0]]))


def test_an_edge_index_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, edges\), got int64 of shape \(3, 2\)"):
        graph(edge_index=torch.zeros(3, 2, dtype=torch.int64))


def test_overlapping_masks_are_refused():
    with pytest.raises(ValueError, match="1 nodes stand in more than one"):
        graph(val_mask=torch.tensor([True, False, False, False]))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="test_mask selects no node"):
        graph(test_mask=torch.zeros(4, dtype=torch.bool))


def test_node_features_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        graph(x=torch.full((4, 2), float("nan")))


def test_a_pyg_graph_becomes_graph_data():
    pyg = pytest.importorskip("torch_geometric.data")
    ours = graph()
    masks = {name: getattr(ours, name) for name in ("train_mask", "val_mask", "test_mask")}
    taken = GraphData.from_pyg(pyg.Data(x=ours.x, edge_index=ours.edge_index, y=ours.y[:, None], **masks))
    assert torch.equal(taken.y, ours.y)
    assert taken.classes == ("0", "1")


def test_a_pyg_graph_without_masks_is_refused_by_name():
    pyg = pytest.importorskip("torch_geometric.data")
    with pytest.raises(ValueError, match="lack train_mask, val_mask, test_mask"):
        GraphData.from_pyg(pyg.Data(x=torch.eye(2), edge_index=torch.zeros(2, 0).long(), y=torch.zeros(2).long()))


def test_windows_of_a_recording_leave_out_the_rest():
    samples = torch.arange(10).to(torch.complex64)
    windows = Recording(samples).windows(4, hop=3)
    assert windows.real.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]


def test_real_samples_are_no_recording():
    with pytest.raises(ValueError, match=r"complex64 .*got float32"):
        Recording(torch.zeros(4))


def test_signals_of_unequal_length_are_refused():
    other = Examples(torch.zeros(4, 9, dtype=torch.complex64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="9 samples"):
        signals(val=other)


def test_real_signals_are_refused():
    real = Examples(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="complex64"):
        signals(train=real)


def test_a_sample_rate_of_zero_is_refused():
    with pytest.raises(ValueError, match="positive number of Hz, got 0"):
        signals(sample_rate=0.0)
