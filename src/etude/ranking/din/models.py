"""The Deep Interest Network and, by another pooling, its base model.

Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, arXiv:1706.06978, section 4.

A behaviour has several fields (item, shop, category), each with a table of embeddings, and is the concatenation of its
embeddings; the candidate is looked up in the same tables. The base model sums the behaviours into one vector, whatever
the candidate; DIN weighs them by the candidate first. Either vector, the candidate and the other features enter an MLP.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from etude.data.kinds_clicks import PADDING, ClickData
from etude.ranking.din.activation import Activation, activation_of
from etude.ranking.din.attention import Interaction, InterestPooling, Normalization

__all__ = ["DIN", "Field", "Pooling"]

Pooling = Literal["attention", "sum", "mean"]


class Field(NamedTuple):
    """A categorical feature and its table.

    Args:
        name: of the feature.
        size: rows of the table, ids 0 (padding) and 1 (unknown) counted.
        dim: columns; the paper's 12.
    """

    name: str
    size: int
    dim: int = 12


class DIN(nn.Module, PyTorchModelHubMixin):
    """Deep Interest Network.

        model = DIN([Field("item", 10_000), Field("category", 50), Field("age", 12)], ["item", "category"])
        logits = model(candidate, history, mask, context)

    Args:
        fields: all features.
        sequence_fields: names of those that a behaviour and the candidate have; the rest, one id a sample, are context
            (user profile, place, hour). The first is the item.
        hidden_dims: hidden layers of the MLP; the paper's 200 and 80.
        pooling: "attention" is DIN; "sum" (the paper's base model) and "mean" do not look at the candidate.
        activation: of the MLP, "prelu" or "dice".
        unit_dims: hidden layers of the local activation unit.
        unit_activation: of the unit; that of the MLP if None.
        interaction, normalize, layer_norm: see `InterestPooling`.
        user_item_product: v_U * e_A is a further input of the MLP.
        item_bias: a number for each item is added to the logit.
        input_norm: batch normalisation at the input of the MLP.
        project_user: batch normalisation and a linear layer on v_U.
        id_dropout: in training, the share of ids whose embedding is dropped, candidate and history alike.
        sparse: gradients of the tables hold only the rows of the batch: for `torch.optim.SGD` and `SparseAdam`.
        momentum: of batch normalisation and Dice; TensorFlow's decay 0.99 is 0.01 here.

    Raises:
        ValueError: if names repeat or do not agree, a size is not positive, or an option is unknown.
    """

    def __init__(
        self,
        fields: Sequence[Field | Sequence[Any]],
        sequence_fields: Sequence[str],
        hidden_dims: Sequence[int] = (200, 80),
        *,
        pooling: Pooling = "attention",
        activation: Activation = "dice",
        unit_dims: Sequence[int] = (80, 40),
        unit_activation: Activation | None = None,
        interaction: Interaction = "difference",
        normalize: Normalization = "none",
        layer_norm: bool = False,
        user_item_product: bool = False,
        item_bias: bool = False,
        input_norm: bool = False,
        project_user: bool = False,
        id_dropout: float | int = 0.0,
        sparse: bool = True,
        momentum: float | int = 0.1,
    ):
        super().__init__()
        if pooling not in ("attention", "sum", "mean"):
            raise ValueError(f'pooling must be "attention", "sum" or "mean", got {pooling!r}')
        if not 0 <= id_dropout < 1:
            raise ValueError(f"id_dropout must lie in [0, 1), got {id_dropout}")
        self.fields = _checked_fields([Field(*field) for field in fields], sequence_fields)
        self.sequence_fields = tuple(sequence_fields)
        self.context_fields = tuple(name for name in self.fields if name not in self.sequence_fields)
        self.pooling_kind, self.id_dropout, self.user_item_product = pooling, float(id_dropout), user_item_product

        self.tables = nn.ModuleDict({name: _table(size, dim, sparse) for name, size, dim in self.fields.values()})
        dim = sum(self.fields[name].dim for name in self.sequence_fields)
        self.pooling = (
            InterestPooling(
                dim, unit_dims, unit_activation or activation, interaction,
                normalize=normalize, layer_norm=layer_norm, momentum=momentum,
            )
            if pooling == "attention"
            else None
        )  # fmt: skip
        self.project_user = (
            nn.Sequential(nn.BatchNorm1d(dim, momentum=momentum), nn.Linear(dim, dim)) if project_user else None
        )
        inputs = (3 if user_item_product else 2) * dim + sum(self.fields[name].dim for name in self.context_fields)
        self.input_norm = nn.BatchNorm1d(inputs, momentum=momentum) if input_norm else None
        sizes = [inputs, *hidden_dims]
        self.mlp = nn.ModuleList()
        for before, after in pairwise(sizes):
            self.mlp += [nn.Linear(before, after), activation_of(activation, after, momentum=momentum)]
        self.out = nn.Linear(sizes[-1], 1)
        self.item_bias = _table(self.fields[self.sequence_fields[0]].size, 1, sparse, std=0.0) if item_bias else None

    @classmethod
    def for_data(cls, data: ClickData, dim: int = 12, **options: Any) -> "DIN":
        """A model of the fields of `data`, each with `dim` columns."""
        fields = [Field(name, size, dim) for name, size in (*data.fields.items(), *data.context.items())]
        return cls(fields, list(data.fields), **options)

    @classmethod
    def demo(cls, sizes: Mapping[str, int], **options: Any) -> "DIN":
        """The authors' demo for Amazon Electronics: 64 columns a field, softmax, batch norm, product and item bias.

            model = DIN.demo({"item": 63_003, "category": 803})

        Its MLP has 80 and 40 hidden units with sigmoids, as its unit has; `activation="dice"` is its other variant.

        Args:
            sizes: rows of the table of each behaviour field, the item first.
            options: of `DIN`, in place of the demo's.
        """
        defaults: dict[str, Any] = {
            "hidden_dims": (80, 40), "activation": "sigmoid", "unit_activation": "sigmoid", "normalize": "softmax",
            "user_item_product": True, "item_bias": True, "input_norm": True, "project_user": True, "momentum": 0.01,
        }  # fmt: skip
        fields = [Field(name, size, 64) for name, size in sizes.items()]
        return cls(fields, list(sizes), **(defaults | options))

    def forward(
        self,
        candidate: Mapping[str, Tensor],
        history: Mapping[str, Tensor],
        mask: Tensor | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Logits (batch,), or (batch, candidates) if several candidates a user are given.

        Args:
            candidate: ids by sequence field, each (batch,) or (batch, candidates).
            history: ids by sequence field, each (batch, time); time may be 0.
            mask: bool (batch, time), True for behaviours; where the item's id is not 0 if None.
            context: ids by context field, each (batch,).

        Raises:
            ValueError: if a field is unknown or missing, ids are no integers or outside their table, or shapes differ.
        """
        return self._score(candidate, history, mask, context)[0]

    def attention(
        self, candidate: Mapping[str, Tensor], history: Mapping[str, Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """The weights of the behaviours, (batch, time) or (batch, candidates, time), 0 for padding.

        A fixed pooling has weights too: 1, or one over the length of the history.
        """
        self._check(candidate, history, None)
        return self._pool(*self._embed(candidate, history, mask))[1]

    def _score(
        self,
        candidate: Mapping[str, Tensor],
        history: Mapping[str, Tensor],
        mask: Tensor | None,
        context: Mapping[str, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        context = {} if context is None else context
        self._check(candidate, history, context)
        query, keys, valid = self._embed(candidate, history, mask)
        user, weights = self._pool(query, keys, valid)
        if self.project_user is not None:
            user = self.project_user(user.reshape(-1, user.shape[-1])).reshape(user.shape)
        parts = [user, query, user * query] if self.user_item_product else [user, query]
        for name in self.context_fields:
            row = self._look_up(name, context[name])
            parts.append(row if query.ndim == 2 else row[:, None].expand(-1, query.shape[1], -1))
        x = torch.cat(parts, dim=-1)
        lead, x = x.shape[:-1], x.reshape(-1, x.shape[-1])
        if self.input_norm is not None:
            x = self.input_norm(x)
        for layer in self.mlp:
            x = layer(x)
        logits = self.out(x).reshape(lead)
        if self.item_bias is not None:
            logits = logits + self.item_bias(candidate[self.sequence_fields[0]]).squeeze(-1)
        return logits, weights

    def _embed(
        self, candidate: Mapping[str, Tensor], history: Mapping[str, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        item = history[self.sequence_fields[0]]
        if mask is None:
            mask = item != PADDING
        elif mask.dtype != torch.bool or mask.shape != item.shape:
            raise ValueError(f"mask must be bool of shape {tuple(item.shape)}, got {mask.dtype} {tuple(mask.shape)}")
        elif bool((mask & (item == PADDING)).any()):
            warnings.warn("the mask lets padding (id 0) through as a behaviour", stacklevel=4)
        query = torch.cat([self._look_up(name, candidate[name]) for name in self.sequence_fields], dim=-1)
        keys = torch.cat([self._look_up(name, history[name]) for name in self.sequence_fields], dim=-1)
        return query, keys, mask

    def _look_up(self, name: str, ids: Tensor) -> Tensor:
        rows = self.tables[name](ids)
        if not self.training or not self.id_dropout:
            return rows
        return rows * F.dropout(rows.new_ones(*ids.shape, 1), self.id_dropout)

    def _pool(self, query: Tensor, keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.pooling is not None:
            return self.pooling(query, keys, mask, return_weights=True)
        weights = mask.to(keys.dtype)
        if self.pooling_kind == "mean":
            weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
        pooled = (weights[:, None] @ keys)[:, 0]
        if query.ndim == 2:
            return pooled, weights
        several = query.shape[1]
        return pooled[:, None].expand(-1, several, -1), weights[:, None].expand(-1, several, -1)

    def _check(
        self, candidate: Mapping[str, Tensor], history: Mapping[str, Tensor], context: Mapping[str, Tensor] | None
    ) -> None:
        groups: list[tuple[str, Mapping[str, Tensor], Iterable[str]]] = [
            ("candidate", candidate, self.sequence_fields),
            ("history", history, self.sequence_fields),
        ]
        if context is not None:
            groups.append(("context", context, self.context_fields))
        for what, given, wanted in groups:
            missing, unknown = [n for n in wanted if n not in given], [n for n in given if n not in wanted]
            if missing or unknown:
                raise ValueError(
                    f"{what} must have the fields {', '.join(wanted) or '(none)'}: "
                    f"missing are {missing}, unknown are {unknown}"
                )
            for name in wanted:
                _check_ids(f"{what} field {name!r}", given[name], self.fields[name].size)
        shapes = [tuple(candidate[name].shape) for name in self.sequence_fields]
        times = [tuple(history[name].shape) for name in self.sequence_fields]
        rest = [tuple(context[name].shape) for name in self.context_fields] if context is not None else []
        batch = shapes[0][:1]
        good = len(set(shapes)) == 1 and len(shapes[0]) in (1, 2) and len(set(times)) == 1 and len(times[0]) == 2
        if not good or times[0][:1] != batch or any(shape != batch for shape in rest):
            raise ValueError(
                "ids must be (batch,) or (batch, candidates) for the candidate, (batch, time) for the history and "
                f"(batch,) for the context, got {shapes}, {times} and {rest}"
            )


def _table(size: int, dim: int, sparse: bool, std: float = 0.05) -> nn.Embedding:
    table = nn.Embedding(size, dim, padding_idx=PADDING, sparse=sparse)
    nn.init.normal_(table.weight, std=std)
    with torch.no_grad():
        table.weight[PADDING] = 0
    return table


def _checked_fields(fields: list[Field], sequence_fields: Sequence[str]) -> dict[str, Field]:
    named = {field.name: field for field in fields}
    if len(named) < len(fields) or len(set(sequence_fields)) < len(sequence_fields):
        raise ValueError(f"names of fields must differ, got {[f.name for f in fields]}, {list(sequence_fields)}")
    if not sequence_fields or not set(sequence_fields) <= set(named):
        raise ValueError(f"sequence_fields must name some of {', '.join(named)}, got {list(sequence_fields)}")
    for field in fields:
        if field.size < 2 or field.dim < 1:
            raise ValueError(f"field {field.name!r} needs at least 2 rows and 1 column, got {field.size}, {field.dim}")
    return named


def _check_ids(where: str, ids: Tensor, size: int) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"ids of {where} must be integers in 0..{size - 1}, got {ids.dtype}")
    if ids.numel() and not torch.compiler.is_compiling():
        least, most = torch.stack(ids.aminmax()).tolist()
        if least < 0 or most >= size:
            raise ValueError(f"ids of {where} must lie in 0..{size - 1}, got {least}..{most}")
