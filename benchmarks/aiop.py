"""The base predictor against the authors' layout of batches, at equal weights and equal predictions.

The peer follows the official code in what costs time: a `torch_geometric.data.Batch` is built from lists of graphs at
every forward pass and cut into one piece per graph again before pooling. Ours indexes graphs that were laid out once.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.compare import Comparison
from etude.nas.aiop import GraphBatch, GraphPredictor, nasbench201, transnas_micro

_GRAPHS = 32


def comparisons() -> list[Comparison]:
    from torch_geometric.data import Batch, Data

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    found = []
    spaces: list[tuple[str, Callable, int]] = [("NAS-Bench-201", nasbench201, 5), ("TransNAS micro", transnas_micro, 4)]
    for space, build, codes in spaces:
        cells = torch.randint(codes, (4 * _GRAPHS, 6), generator=generator).tolist()
        graphs = GraphBatch.of([build(cell, units=1) for cell in cells])
        rows = torch.arange(0, 4 * _GRAPHS, 4)
        base = GraphPredictor()
        starts = graphs.nodes.cumsum(0) - graphs.nodes
        firsts = graphs.edges.cumsum(0) - graphs.edges
        edges = [
            graphs.edge_index[:, firsts[row] : firsts[row] + graphs.edges[row]] - starts[row]
            for row in range(len(graphs))
        ]

        def embedded(chosen: Tensor, base: GraphPredictor = base, graphs: GraphBatch = graphs) -> list[Tensor]:
            part = graphs[chosen]
            return list(base.embedding(part).split(part.nodes.tolist()))

        def base_peer(chosen: Tensor, base: GraphPredictor = base, edges: list[Tensor] = edges) -> Tensor:
            pieces = [Data(x=x, edge_index=edges[row]) for x, row in zip(embedded(chosen), chosen.tolist())]
            batch = Batch.from_data_list(pieces)
            h = batch.x
            for layer in base.layers:
                h = torch.tanh(layer(h, batch.edge_index))
            cut = [h[batch.batch == number] for number in range(len(chosen))]
            return base.head(torch.stack([piece.mean(dim=0) for piece in cut])).squeeze(-1)

        ours = lambda chosen, base=base, graphs=graphs: base(graphs[chosen])  # noqa: E731
        torch.testing.assert_close(ours(rows), base_peer(rows), rtol=1e-4, atol=1e-5)
        note = f"{int(graphs.nodes[rows].sum())} nodes; the same numbers from both"
        for mode in (_forward, _training_step):
            name = f"base, {_GRAPHS} graphs of {space}, {mode.__name__[1:].replace('_', ' ')}"
            found.append(
                Comparison(
                    name, partial(mode, base, ours, rows), partial(mode, base, base_peer, rows),
                    "Batch from a list of graphs", note,
                )
            )  # fmt: skip
    return found


@torch.no_grad()
def _forward(model: nn.Module, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return call(rows)


def _training_step(model: nn.Module, call: Callable[[Tensor], Tensor], rows: Tensor) -> None:
    model.zero_grad()
    call(rows).square().mean().backward()
