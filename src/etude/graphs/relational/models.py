"""The heterogeneous GraphSAGE over sampled pasts, and the whole relational model.

Fey et al., arXiv:2312.04615, section 3.3, as in the benchmark's code. One layer updates every row v of a table from its
neighbours along each edge type r into that table:

    x_v <- ReLU(LayerNorm(sum_r  W_self^r x_v + W_nbr^r AGG_{u in N_r(v)} x_u + b^r))

The convolution is PyG's `SAGEConv` for every edge type, summed over edge types (`lin_r` is W_self, `lin_l` is W_nbr
with b). A table that no edge type leads to keeps its vectors. Of a sampled batch only the rows that the seeds still
need are computed.
"""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.graphs.relational.encoders import HeteroEncoder, RelativeTimeEncoder, graph_schema
from etude.graphs.relational.graph import EdgeType, RelationalGraph
from etude.graphs.relational.sampler import HeteroBatch

__all__ = ["HeteroGraphSAGE", "HeteroSAGEConv", "RelationalModel"]


class HeteroSAGEConv(nn.Module):
    """One convolution: every edge type with weights of its own, summed over the edge types into a table.

    Args:
        edge_types: (source, relation, target) of each.
        channels: C, in and out.
        aggr: "sum" or "mean" over the neighbours of one edge type.
    """

    lin_nbr: Any
    lin_self: Any

    def __init__(self, edge_types: list[EdgeType], channels: int, aggr: str = "sum"):
        super().__init__()
        if aggr not in ("sum", "mean"):
            raise ValueError(f'aggr must be "sum" or "mean", got {aggr!r}')
        self.edge_types: list[EdgeType] = [(kind[0], kind[1], kind[2]) for kind in edge_types]
        self.aggr = aggr
        self.lin_nbr = nn.ModuleList(nn.Linear(channels, channels) for _ in edge_types)
        self.lin_self = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in edge_types)
        self.into: dict[str, list[int]] = {}
        for place, kind in enumerate(self.edge_types):
            self.into.setdefault(kind[2], []).append(place)

    def forward(
        self, x: dict[str, Tensor], edge_index: dict[EdgeType, Tensor], num_targets: dict[str, int]
    ) -> dict[str, Tensor]:
        """The new vectors of the first `num_targets` rows of every table.

        Args:
            x: table -> (nodes, C).
            edge_index: edge type -> (2, edges), sources and targets; a missing type has no edges.
            num_targets: table -> rows wanted.
        """
        out = {}
        for table, rows in num_targets.items():
            own = x[table][:rows]
            if table not in self.into or not rows:
                out[table] = own
                continue
            # The sum over edge types of W_self x is one product with the sum of the matrices.
            weight = torch.stack([self.lin_self[place].weight for place in self.into[table]]).sum(0)
            total = own @ weight.T
            for place in self.into[table]:
                index = edge_index.get(self.edge_types[place])
                if index is None or not index.shape[1]:
                    total = total + self.lin_nbr[place].bias
                else:
                    total = total + self.lin_nbr[place](self._aggregate(x[self.edge_types[place][0]], index, rows))
            out[table] = total
        return out

    def _aggregate(
        self, x: Float[Tensor, "sources channels"], index: Tensor, rows: int
    ) -> Float[Tensor, "rows channels"]:
        summed = x.new_zeros(rows, x.shape[1]).index_add_(0, index[1], x[index[0]])
        if self.aggr == "sum":
            return summed
        counts = torch.bincount(index[1], minlength=rows).clamp(min=1)
        return summed / counts[:, None].to(x.dtype)


class HeteroGraphSAGE(nn.Module):
    """Layers of `HeteroSAGEConv`, each with LayerNorm per table and ReLU.

    Args:
        tables: node types.
        edge_types: (source, relation, target) of each.
        channels: C.
        num_layers: L; 0 leaves the vectors as they are.
        aggr: "sum" or "mean".
    """

    convs: Any
    norms: Any

    def __init__(
        self,
        tables: list[str],
        edge_types: list[EdgeType],
        channels: int = 128,
        num_layers: int = 2,
        aggr: str = "sum",
    ):
        super().__init__()
        if num_layers < 0:
            raise ValueError(f"num_layers must not be negative, got {num_layers}")
        self.tables = list(tables)
        self.convs = nn.ModuleList(HeteroSAGEConv(edge_types, channels, aggr) for _ in range(num_layers))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.LayerNorm(channels) for _ in self.tables) for _ in range(num_layers)
        )

    def forward(
        self,
        x: dict[str, Tensor],
        edge_index: dict[EdgeType, Tensor],
        num_sampled_nodes: dict[str, list[int]],
        num_sampled_edges: dict[EdgeType, list[int]],
        trim: bool = True,
    ) -> dict[str, Tensor]:
        """The vectors after all layers; with `trim`, of the seeds only.

        Args:
            x: table -> (nodes, C), nodes by hop.
            edge_index: edge type -> (2, edges), edges by hop.
            num_sampled_nodes, num_sampled_edges: see `HeteroBatch`.
            trim: leave out what the seeds do not need; False computes every layer for all nodes.
        """
        depth = len(self.convs)
        for layer, (conv, norms) in enumerate(zip(self.convs, self.norms)):
            left = depth - layer  # edges of so many hops matter still
            edges = edge_index
            targets = {table: len(x[table]) for table in x}
            if trim:
                edges = {kind: index[:, : sum(num_sampled_edges[kind][:left])] for kind, index in edge_index.items()}
                targets = {table: sum(num_sampled_nodes[table][:left]) for table in x}
            new = conv(x, edges, targets)
            x = {
                table: norms[self.tables.index(table)](vectors).relu() if table in conv.into else vectors
                for table, vectors in new.items()
            }
        if trim:
            return {table: vectors[: num_sampled_nodes[table][0]] for table, vectors in x.items()}
        return x


class RelationalModel(nn.Module, PyTorchModelHubMixin):
    """Row encoders, relative time, GraphSAGE and a linear head on the seeds.

        model = RelationalModel(graph, channels=128, num_layers=2, out_dim=1)
        out = model(sampler.sample(entity, seed_time))         # (seeds, out_dim)

    A saved model carries its statistics: `from_pretrained` needs no graph.

    Args:
        graph: a `RelationalGraph`, or what `graph_schema` makes of one.
        channels: C, even.
        num_layers: of GraphSAGE; as many hops as the sampler's, or fewer.
        out_dim: of the head.
        aggr: "sum", the default as in the benchmark's example, or "mean".
        num_blocks, dropout: of the row encoders.
        relative_time: add the age of rows.
        identity: add a learned vector to the seeds, for an ID-aware readout of other rows.
        shallow: table -> its number of rows, for tables whose rows have a learned vector each, added to the encoder's
            (normal, deviation 0.1); later rows have none.
    """

    shallow: Any

    def __init__(
        self,
        graph: Any,
        channels: int = 128,
        num_layers: int = 2,
        out_dim: int = 1,
        aggr: str = "sum",
        num_blocks: int = 4,
        dropout: float | int = 0.2,
        relative_time: bool = True,
        identity: bool = False,
        shallow: dict[str, int] | None = None,
    ):
        super().__init__()
        self.schema = graph_schema(graph) if isinstance(graph, RelationalGraph) else graph
        tables = list(self.schema["tables"])
        self.encoder = HeteroEncoder(self.schema, channels, num_blocks=num_blocks, dropout=dropout)
        self.timed = [name for name in tables if relative_time and self.schema["tables"][name]["timed"]]
        self.times = nn.ModuleList(RelativeTimeEncoder(channels) for _ in self.timed)
        edge_types: list[EdgeType] = [(kind[0], kind[1], kind[2]) for kind in self.schema["edge_types"]]
        self.gnn = HeteroGraphSAGE(tables, edge_types, channels, num_layers, aggr)
        self.identity = nn.Parameter(torch.randn(channels)) if identity else None
        self.shallow_tables = list(shallow or {})
        self.shallow = nn.ModuleList(nn.Embedding(rows, channels) for rows in (shallow or {}).values())
        for embedding in self.shallow:
            nn.init.normal_(embedding.weight, std=0.1)
        self.head = nn.Linear(channels, out_dim)

    def __new__(cls, *args: Any, **kwargs: Any) -> "RelationalModel":
        # What the hub stores as configuration must be plain data, not a graph.
        given = args[0] if args else kwargs.get("graph")
        if isinstance(given, RelationalGraph):
            schema = graph_schema(given)
            args, kwargs = ((schema, *args[1:]), kwargs) if args else (args, {**kwargs, "graph": schema})
        return super().__new__(cls, *args, **kwargs)

    def embed(self, batch: HeteroBatch, trim: bool = True) -> dict[str, Tensor]:
        """Table -> vectors (nodes, C) after all layers: of the seeds only, or with `trim=False` of every node."""
        hops = len(self.gnn.convs)
        x = {}
        for table, index in batch.node_index.items():
            rows = sum(batch.num_sampled_nodes[table][: hops + 1]) if trim else len(index)
            vectors = self.encoder(batch.graph, table, index[:rows])
            if table in self.timed and rows:
                age = batch.age_in_days(table)
                assert age is not None
                vectors = vectors + self.times[self.timed.index(table)](age[:rows])
            if table in self.shallow_tables:
                embedding = self.shallow[self.shallow_tables.index(table)]
                known = index[:rows] < embedding.num_embeddings
                own = embedding(index[:rows].clamp(max=embedding.num_embeddings - 1))
                vectors = vectors + own * known[:, None].to(own.dtype)
            if table == batch.entity_table and self.identity is not None:
                flag = vectors.new_zeros(rows, 1)
                flag[: len(batch)] = 1
                vectors = vectors + flag * self.identity
            x[table] = vectors
        return self.gnn(x, batch.edge_index, batch.num_sampled_nodes, batch.num_sampled_edges, trim)

    def forward(self, batch: HeteroBatch) -> Float[Tensor, "seeds out_dim"]:
        """The head's outputs for the seeds, in their order."""
        return self.head(self.embed(batch)[batch.entity_table])
