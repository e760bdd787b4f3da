"""Graphs of any module: words, shapes, kernels, what is left out and what is unknown."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from etude.nas.aiop import graph_from_module

IMAGE = torch.zeros(2, 3, 16, 16)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2))
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        y = self.depth(x)
        z = torch.cat([x + y, y * 2], dim=1)
        return self.linear(self.drop(z.mean((2, 3)).view(x.shape[0], -1)))


def rows(graph):
    return {
        (word, tuple(map(int, shape)), tuple(kernel), tuple(map(int, bias)))
        for word, shape, kernel, bias in zip(
            graph.words, graph.shape.tolist(), graph.kernel.tolist(), graph.bias.tolist()
        )
    }


EXPECTED = {
    ("input", (16, 16, 16, 16, 3, 3), (0, 0), (0, 0)),
    ("conv", (16, 8, 16, 8, 3, 8), (3, 5), (0, 1)),
    ("batchnorm", (8, 8, 8, 8, 8, 8), (0, 0), (0, 0)),
    ("relu", (8, 8, 8, 8, 8, 8), (0, 0), (0, 0)),
    ("depthwise", (8, 8, 8, 8, 8, 8), (3, 3), (1, 0)),
    ("add", (8, 8, 8, 8, 8, 8), (0, 0), (0, 0)),
    ("mul", (8, 8, 8, 8, 8, 8), (0, 0), (0, 0)),
    ("concat", (8, 8, 8, 8, 16, 16), (0, 0), (0, 0)),
    ("mean", (8, 1, 8, 1, 16, 16), (0, 0), (0, 0)),
    ("matmul", (1, 1, 1, 1, 16, 5), (0, 0), (0, 1)),
    ("output", (1, 1, 1, 1, 5, 5), (0, 0), (0, 0)),
}


@pytest.mark.parametrize("tracer", ["fx", "export"])
def test_both_ways_of_tracing_give_the_same_graph(tracer):
    model = Small().train()
    graph = graph_from_module(model, IMAGE, tracer=tracer)
    assert rows(graph) == EXPECTED
    assert len(graph) == 11
    words = graph.words
    edges = {(words[a], words[b]) for a, b in graph.edge_index.T.tolist()}
    assert edges == {
        ("input", "conv"), ("conv", "batchnorm"), ("batchnorm", "relu"), ("relu", "depthwise"), ("relu", "add"),
        ("depthwise", "add"), ("depthwise", "mul"), ("add", "concat"), ("mul", "concat"), ("concat", "mean"),
        ("mean", "matmul"), ("matmul", "output"),
    }  # fmt: skip
    assert graph.flops == 8 * 8 * (3 * 8 * 15 + 8 * 9) + 16 * 5
    assert all(module.training for module in model.modules())
    assert not model.norm.num_batches_tracked


def test_a_network_that_fx_cannot_follow_goes_through_export():
    class Looping(nn.Module):
        def forward(self, x):
            for _ in range(int(x.shape[1])):
                x = F.relu(x)
            return x

    assert graph_from_module(Looping(), IMAGE).words.count("relu") == 3
    with pytest.raises(ValueError, match=r"Looping cannot be traced: torch.fx: "):
        graph_from_module(Looping(), IMAGE, tracer="fx")


def test_what_cannot_be_traced_is_refused_with_the_reason():
    class Hopeless(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ValueError, match=r"Hopeless cannot be traced: torch.fx: .*; torch.export: "):
        graph_from_module(Hopeless(), IMAGE)


def test_unknown_modules_become_oov_with_one_warning_that_names_them():
    model = nn.Sequential(nn.Flatten(2), nn.LayerNorm(256), nn.Softmax(-1), nn.LayerNorm(256), nn.ReLU())
    with pytest.warns(UserWarning, match="LayerNorm, Softmax are no word of the vocabulary") as caught:
        graph = graph_from_module(model, IMAGE)
    assert len(caught) == 1
    assert graph.words == ["input", "oov", "oov", "oov", "relu", "output"]


def test_attention_is_no_multiplication():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    with pytest.warns(UserWarning, match="MultiheadAttention is no word"):
        assert graph_from_module(Attending(), torch.zeros(1, 4, 8)).words == ["input", "oov", "output"]


def test_sums_of_sums_are_one_node_and_residual_sums_stay():
    class Sums(nn.Module):
        def forward(self, x):
            y = F.relu(x) + torch.sigmoid(x) + torch.tanh(x)
            z = y + F.relu(y)
            return z

    graph = graph_from_module(Sums(), IMAGE)
    assert graph.words.count("add") == 2
    first = graph.words.index("add")
    assert int((graph.edge_index[1] == first).sum()) == 3


def test_a_leaf_of_the_users_own_is_kept_whole():
    class MyConvBlock(nn.Sequential):
        pass

    model = nn.Sequential(MyConvBlock(nn.Conv2d(3, 4, 1), nn.ReLU()), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = graph_from_module(model, IMAGE, is_leaf=lambda module: isinstance(module, MyConvBlock), tracer="fx")
    assert graph.words == ["input", "conv", "relu", "output"]


def test_several_inputs_are_several_nodes():
    class Two(nn.Module):
        def forward(self, x, y):
            return x + y

    assert graph_from_module(Two(), (IMAGE, IMAGE)).words == ["input", "input", "add", "output"]


def test_what_is_no_module_is_refused():
    with pytest.raises(Exception, match=r"expected a torch.nn.Module, got function|type-check|Type-check"):
        graph_from_module(F.relu, IMAGE)
    with pytest.raises(Exception, match=r"tracer must be auto, fx or export|type-check|Type-check"):
        graph_from_module(Small(), IMAGE, tracer="jit")
