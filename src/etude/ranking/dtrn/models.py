"""The whole network, and without its two modules the plain multi-task recommender that it is measured against.

Liu et al., "Deep Task-specific Bottom Representation Network for Multi-Task Recommendation", CIKM 2023,
arXiv:2308.05996. Embeddings and a shared Transformer over every sequence of behaviours; per task and behaviour type an
interest (`TaskInterestModule`); per task a gate over all features (`TaskRefinement`); on top any multi-task head, whose
experts, gates and towers get the features of their task.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from etude.data.kinds_multitask import MultiTaskData
from etude.ranking.dtrn.heads import PLE, CrossStitch, Head, MMoE, SharedBottom
from etude.ranking.dtrn.interest import TaskInterestModule, keep_latest
from etude.ranking.dtrn.refinement import TaskRefinement

__all__ = ["DTRN", "Bottom", "Field", "HeadName"]

HeadName = Literal["shared_bottom", "mmoe", "ple", "cross_stitch"]
_HEADS: dict[str, type[Head]] = {
    "shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE, "cross_stitch": CrossStitch
}  # fmt: skip


class Field(NamedTuple):
    """A categorical feature and its table.

    Args:
        name: of the feature.
        size: rows of the table, ids 0 (padding) and 1 (unknown) counted.
        dim: columns; those of the model if None.
    """

    name: str
    size: int
    dim: int | None = None


class Bottom(NamedTuple):
    """What lies below the head.

    Args:
        features: (B, K, F, d), or (B, 1, F, d) where all tasks share them: context fields, target item, interests.
        interests: (B, K, M, d) or (B, 1, M, d).
        attention: weights of the read-out, (B, K, M, T) or (B, 1, M, T).
        weights: a of the refinement; None without it.
    """

    features: Tensor
    interests: Tensor
    attention: Tensor
    weights: Tensor | None


class DTRN(nn.Module, PyTorchModelHubMixin):
    """Deep task-specific bottom representation network.

        model = DTRN([("item", 10_000), ("category", 50)], behaviors=("click", "buy"), num_tasks=2, head="ple")
        logits = model(target, sequences, mask)        # (B, 2), (B, 2, T, 2), (B, 2, T) -> (B, 2)

    Args:
        fields: of an item, (name, size[, dim]). The embeddings of an item's fields stand side by side; where their
            sizes do not add up to `dim`, a linear layer brings them there. Target and sequences share the tables.
        behaviors: names of the types of behaviour, or their number M.
        num_tasks: K.
        head: "shared_bottom", "mmoe", "ple" or "cross_stitch".
        interest: task-specific interests; False: the same Transformer and read-out with ordinary layer normalisations,
            one set for each behaviour type, shared by all tasks.
        refinement: task-specific gates; False: none.
        context: fields of the user and the impression, each a feature.
        event_fields: what only an event has (its rating, its time of day); added to the event's item.
        dim: d.
        max_len: T; of longer sequences the latest T are kept.
        init_std: of all embeddings at the start. With 0.01 it takes epochs until the read-out tells items apart.
        head_options: further arguments of the head.
        interest_options: of `TaskInterestModule`. refinement_options: of `TaskRefinement`.

    With both flags off a head gets one input that all tasks share, by the same code.

    Raises:
        ValueError: if names repeat, a size is not positive, or an option is unknown.
    """

    def __init__(
        self,
        fields: Sequence[Field | Sequence[Any]],
        behaviors: Sequence[str] | int,
        num_tasks: int,
        head: HeadName = "mmoe",
        interest: bool = True,
        refinement: bool = True,
        *,
        context: Sequence[Field | Sequence[Any]] = (),
        event_fields: Sequence[Field | Sequence[Any]] = (),
        dim: int = 16,
        max_len: int = 50,
        init_std: float | int = 0.1,
        head_options: Mapping[str, Any] | None = None,
        interest_options: Mapping[str, Any] | None = None,
        refinement_options: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        items, extra, around = ([Field(*field) for field in group] for group in (fields, event_fields, context))
        names = [field.name for field in (*items, *extra, *around)]
        if not items or len(set(names)) < len(names):
            raise ValueError(f"DTRN needs item fields, and fields of different names, got {names}")
        for field in (*items, *extra, *around):
            if field.size < 2 or (field.dim is not None and field.dim < 1):
                raise ValueError(f"the field {field.name} needs at least the rows 0 and 1 and a column, got {field}")
        for field in (*extra, *around):
            if field.dim not in (None, dim):
                raise ValueError(f"the field {field.name} is not one of an item: it has {dim} columns, got {field.dim}")
        if head not in _HEADS:
            raise ValueError(f"head must be one of {', '.join(_HEADS)}, got {head!r}")
        count = behaviors if isinstance(behaviors, int) else len(behaviors)
        if count < 1 or num_tasks < 1:
            raise ValueError(f"at least one behaviour and one task are needed, got {count} and {num_tasks}")
        self.num_tasks, self.num_behaviors, self.dim, self.max_len = num_tasks, count, dim, max_len
        self.behaviors = tuple(map(str, range(count))) if isinstance(behaviors, int) else tuple(behaviors)
        self.item_fields, self.event_fields, self.context_fields = (
            tuple(field.name for field in group) for group in (items, extra, around)
        )
        # A list, as not every name of a column may name a module.
        self.tables = nn.ModuleList(
            _table(field.size, field.dim or dim, init_std) for field in (*items, *extra, *around)
        )
        self._place = {name: index for index, name in enumerate(names)}
        width = sum(field.dim or dim for field in items)
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim, bias=False)
        self.interest = TaskInterestModule(
            dim, num_tasks, count, max_len, conditional=interest, init_std=init_std, **dict(interest_options or {})
        )
        self.num_fields = len(around) + 1 + count
        self.refinement = (
            TaskRefinement(num_tasks, self.num_fields, dim, **dict(refinement_options or {})) if refinement else None
        )
        self.head = _HEADS[head](self.num_fields * dim, num_tasks, **dict(head_options or {}))

    @classmethod
    def for_data(cls, data: MultiTaskData, dim: int = 16, **options: Any) -> "DTRN":
        """A model with the fields, behaviours and tasks of some data."""
        item, event, context = (
            [Field(name, size) for name, size in sizes.items()]
            for sizes in (data.item_fields, data.event_fields, data.context)
        )
        return cls(
            item, tuple(data.behaviours), len(data.tasks), context=context, event_fields=event, dim=dim,
            max_len=data.max_len, **options,
        )  # fmt: skip

    def forward(
        self,
        target: Int64[Tensor, "batch item_fields"],
        sequences: Int64[Tensor, "batch behaviors time event_fields"],
        mask: Bool[Tensor, "batch behaviors time"],
        context: Int64[Tensor, "batch context_fields"] | None = None,
    ) -> Float[Tensor, "batch tasks"]:
        """Logits.

        Args:
            target: ids of the item in question.
            sequences: ids of the events of each behaviour type, oldest first, padding last: the columns of `target`,
                then the event fields.
            mask: True where there is an event.
            context: ids of the context fields.

        Raises:
            ValueError: if the number of columns does not fit.
        """
        return self.head(self.bottom(target, sequences, mask, context).features.flatten(2))

    def bottom(self, target: Tensor, sequences: Tensor, mask: Tensor, context: Tensor | None = None) -> Bottom:
        """All that lies below the head; arguments as for `forward`."""
        self._check(target, sequences, context)
        sequences, mask = keep_latest(sequences, mask, self.max_len)
        item = self._items(target)
        events = self._items(sequences[..., : len(self.item_fields)])
        for column, name in enumerate(self.event_fields, start=len(self.item_fields)):
            events = events + self.table(name)(sequences[..., column])
        interests, attention = self.interest(events, mask, item, return_attention=True)
        around = [] if context is None else [self.table(n)(context[:, i]) for i, n in enumerate(self.context_fields)]
        common = torch.stack([*around, item], dim=1)[:, None].expand(-1, interests.shape[1], -1, -1)
        features, weights = torch.cat([common, interests], dim=2), None
        if self.refinement is not None:
            features, weights = self.refinement(features, return_weights=True)
        return Bottom(features, interests, attention, weights)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those through which the tasks act on each other: all but gates, towers and what makes a task's interests."""
        below = [*self.tables.parameters(), *self.project.parameters()]
        task = None if self.interest.hyper is None else self.interest.hyper.task
        below += [p for p in self.interest.parameters() if p is not task]
        return below + self.head.shared_parameters()

    def table(self, name: str) -> nn.Embedding:
        """The table of a field."""
        table = self.tables[self._place[name]]
        assert isinstance(table, nn.Embedding)
        return table

    def _items(self, ids: Tensor) -> Tensor:
        parts = [self.table(name)(ids[..., column]) for column, name in enumerate(self.item_fields)]
        return self.project(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    def _check(self, target: Tensor, sequences: Tensor, context: Tensor | None) -> None:
        events = (*self.item_fields, *self.event_fields)
        columns = 0 if context is None else context.shape[1]
        for what, got, names in (
            ("target", target.shape[-1], self.item_fields), ("sequences", sequences.shape[-1], events),
            ("context", columns, self.context_fields),
        ):  # fmt: skip
            if got != len(names):
                raise ValueError(f"{what} must have the {len(names)} columns {', '.join(names) or '(none)'}, got {got}")
        if sequences.shape[1] != self.num_behaviors:
            raise ValueError(
                f"sequences must have one for each of the {self.num_behaviors} behaviours "
                f"{', '.join(self.behaviors)}, got {sequences.shape[1]}"
            )


def _table(size: int, dim: int, std: float | int) -> nn.Embedding:
    table = nn.Embedding(size, dim, padding_idx=0)
    with torch.no_grad():
        table.weight[1:].normal_(std=float(std))
    return table
