"""K-Adapters: small networks that learn other tasks beside a frozen predictor.

Mills et al., arXiv:2211.17228, and the authors' code. With h_0, ..., h_L the base's node features, adapter k computes

    a_0 = h_0,   a_i = tanh(GraphConv_{k,i}([h_i ; a_{i-1}])),   i = 1..L                                        (1)
    prediction_k = head_k([mean_v h_L(v) ; mean_v a_L(v)])                                                      (2)

and with several adapters the prediction is their mean. h_i, the base's feature after layer i, stands first.
"""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nas.aiop.graph import GraphBatch
from etude.nas.aiop.predictor import GraphPredictor, check_states, make_conv, pool_nodes, regression_head

__all__ = ["AdaptedPredictor", "KAdapter", "Rescale"]


class KAdapter(nn.Module):
    """The side network of one task, Eq. (1), with its head, Eq. (2).

    Args:
        base: whose width, depth, kind of layer and pooling it shares; no weight of it is kept.
    """

    def __init__(self, base: GraphPredictor):
        super().__init__()
        self.pool = base.pool
        self.layers = nn.ModuleList(make_conv(base.conv, 2 * base.dim, base.dim) for _ in base.layers)
        self.head = regression_head(2 * base.dim, base.dim)

    def forward(self, states: list[Float[Tensor, "n dim"]], batch: GraphBatch) -> Float[Tensor, "graphs"]:
        """The adapter's prediction.

        Args:
            states: the base's node features h_0, ..., h_L.
            batch: the graphs they belong to.

        Raises:
            ValueError: if there are not L + 1 features.
        """
        if len(states) != len(self.layers) + 1:
            raise ValueError(f"expected h_0 to h_{len(self.layers)}, got {len(states)} node features")
        a = states[0]
        for layer, h in zip(self.layers, states[1:]):
            a = torch.tanh(layer(torch.cat([h, a], dim=1), batch.edge_index))
        pooled = [pool_nodes(x, batch, self.pool) for x in (states[-1], a)]
        return self.head(torch.cat(pooled, dim=1)).squeeze(-1)


class Rescale(nn.Module):
    """A linear layer whose weights are learnt no more but stretched: w' = (alpha + b) * w, column by column.

    The bias becomes (alpha + b_last) * bias. It starts at alpha = 1 and b = 0, where it changes nothing; the authors'
    code draws both from N(0, 1), which destroys the trained layer.

    Args:
        linear: the layer, which is frozen.

    Raises:
        ValueError: if it has no bias.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        if linear.bias is None:
            raise ValueError("Rescale stretches a bias too: the layer has none")
        self.linear = linear.requires_grad_(False)
        self.alpha = nn.Parameter(linear.weight.new_ones(()))
        self.b = nn.Parameter(linear.weight.new_zeros(linear.in_features + 1))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        scale = self.alpha + self.b
        return nn.functional.linear(x, scale[:-1] * self.linear.weight, scale[-1] * self.linear.bias)

    def penalty(self, kind: Literal["l1", "l2"] = "l1") -> Float[Tensor, ""]:
        """Sum over b of |b| or b^2."""
        if kind not in ("l1", "l2"):
            raise ValueError(f"kind must be l1 or l2, got {kind!r}")
        return self.b.abs().sum() if kind == "l1" else self.b.square().sum()


class AdaptedPredictor(nn.Module):
    """A frozen base with K adapters.

    Args:
        base: trained on the cheap task. It is held, frozen, not copied.
        num_adapters: K to begin with; `add_adapter` adds more.

    Attributes:
        active: the adapter that predicts, or None for the mean of all.

    Raises:
        ValueError: if the number is negative.
    """

    def __init__(self, base: GraphPredictor, num_adapters: int = 0):
        super().__init__()
        if num_adapters < 0:
            raise ValueError(f"num_adapters must not be negative, got {num_adapters}")
        self.base = base.requires_grad_(False)
        self.adapters = nn.ModuleList(KAdapter(base) for _ in range(num_adapters))
        self.active: int | None = None

    def add_adapter(self) -> KAdapter:
        """A new adapter, on the base's device."""
        adapter = KAdapter(self.base).to(next(self.base.parameters()).device)
        self.adapters.append(adapter)
        return adapter

    def predictions(self, batch: GraphBatch) -> Float[Tensor, "adapters graphs"]:
        """What each adapter predicts.

        Raises:
            ValueError: if there is none.
        """
        self._check()
        states = self.base.node_states(batch)
        return torch.stack([adapter(states, batch) for adapter in self.adapters])

    def forward(self, batch: GraphBatch) -> Float[Tensor, "graphs"]:
        """The prediction of the active adapter, or the mean of all.

        Raises:
            ValueError: if there is no adapter, or no such one.
        """
        self._check()
        if self.active is None:
            return self.predictions(batch).mean(dim=0)
        return self.adapters[self.active](self.base.node_states(batch), batch)

    def _check(self) -> None:
        count = len(self.adapters)
        if count == 0:
            raise ValueError("there is no adapter yet: add_adapter() makes one")
        if self.active is not None and not 0 <= self.active < count:
            raise ValueError(f"active must be None or lie in 0..{count - 1}, got {self.active}")

    def finetune_parameters(self, mode: int = 1) -> list[nn.Parameter]:
        """What a fine-tuning trains; everything else is frozen, embeddings always.

        Args:
            mode: all heads of the adapters and 0: nothing else; 1: the base's graph layers, the authors' choice; 2:
                those and the adapters' graph layers; 3 and above: the adapters' graph layers.

        Raises:
            ValueError: if the mode is negative or there is no adapter.
        """
        if mode < 0:
            raise ValueError(f"mode must be 0, 1, 2 or 3, got {mode}")
        self._check()
        self.requires_grad_(False)
        adapters: list[Any] = list(self.adapters)
        parts: list[nn.Module] = [adapter.head for adapter in adapters]
        if mode in (1, 2):
            parts.append(self.base.layers)
        if mode >= 2:
            parts += [adapter.layers for adapter in adapters]
        return _thaw(parts)

    def rescale_parameters(self) -> list[nn.Parameter]:
        """Puts a `Rescale` into the last layer of each head and freezes all but its alpha and b, which are returned."""
        self._check()
        self.requires_grad_(False)
        found: list[nn.Parameter] = []
        adapters: list[Any] = list(self.adapters)
        for adapter in adapters:
            if not isinstance(adapter.head[-1], Rescale):
                adapter.head[-1] = Rescale(adapter.head[-1])
            last = adapter.head[-1]
            found += [last.alpha.requires_grad_(), last.b.requires_grad_()]
        return found

    def rescale_penalty(self, kind: Literal["l1", "l2"] = "l1") -> Tensor:
        """The penalty on b, summed over the heads; 0 before `rescale_parameters`."""
        adapters: list[Any] = list(self.adapters)
        last = [adapter.head[-1] for adapter in adapters]
        parts = [layer.penalty(kind) for layer in last if isinstance(layer, Rescale)]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch.

        Raises:
            ValueError: if the weights are those of another architecture or number of adapters.
        """
        check_states(self, state_dict, strict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _thaw(parts: Iterable[nn.Module]) -> list[nn.Parameter]:
    thawed = [parameter for part in parts for parameter in part.parameters()]
    for parameter in thawed:
        parameter.requires_grad_()
    return thawed
