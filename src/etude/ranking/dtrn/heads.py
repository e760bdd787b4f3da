"""Multi-task heads, each on one input that the tasks share or on one for every task.

Shared bottom: Caruana, "Multitask Learning", Machine Learning 28, 1997. MMoE: Ma et al., "Modeling Task Relationships
in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018. PLE: Tang et al., "Progressive Layered Extraction
(PLE): A Novel Multi-Task Learning (MTL) Model for Personalized Recommendations", RecSys 2020. Cross-stitch: Misra et
al., "Cross-stitch Networks for Multi-task Learning", arXiv:1604.03539.

Their inputs need not be alike for all tasks: with the bottoms of Liu et al., arXiv:2308.05996, experts, gates and
towers of task k work on the input of task k.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.ranking.dtrn.layers import BankedLinear, BankedMLP

__all__ = ["PLE", "CrossStitch", "Head", "MMoE", "SharedBottom", "SingleTask"]

Inputs = Float[Tensor, "batch dim"] | Float[Tensor, "batch inputs dim"] | Sequence[Float[Tensor, "batch dim"]]


class Head(nn.Module, ABC):
    """What all heads have: the towers, one a task, and the reading of their input.

    Args:
        dim: D of the input.
        num_tasks: K.
        tower_in, tower_dims: what a tower gets, and its hidden layers.

    Raises:
        ValueError: for a size that is not positive.
    """

    def __init__(self, dim: int, num_tasks: int, tower_in: int, tower_dims: Sequence[int]):
        super().__init__()
        if dim < 1 or num_tasks < 1:
            raise ValueError(f"dim and num_tasks must be positive, got {dim} and {num_tasks}")
        self.dim, self.num_tasks = dim, num_tasks
        self.towers = BankedMLP(num_tasks, tower_in, tower_dims, out_dim=1)

    def forward(self, x: Inputs) -> Float[Tensor, "batch tasks"]:
        """Logits.

        Args:
            x: (B, D) for all tasks; or K of them, as a sequence or as (B, K, D).

        Raises:
            ValueError: if the number of inputs or their size does not fit.
        """
        inputs = x if isinstance(x, Tensor) else torch.stack(list(x), dim=1)
        if inputs.ndim == 2:
            inputs = inputs[:, None]
        if inputs.shape[1] not in (1, self.num_tasks) or inputs.shape[2] != self.dim:
            raise ValueError(
                f"the input must be (batch, {self.dim}), or one such for each of {self.num_tasks} tasks, "
                f"got (batch, inputs, dim) = {tuple(inputs.shape)}"
            )
        return self.towers(self.represent(inputs))[..., 0]

    @abstractmethod
    def represent(self, inputs: Float[Tensor, "batch inputs dim"]) -> Float[Tensor, "batch outputs hidden"]:
        """What the towers get: one for all tasks, or one for each."""

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Those through which the tasks act on each other."""


def _output_dim(hidden_dims: Sequence[int]) -> int:
    if not hidden_dims or min(hidden_dims) < 1:
        raise ValueError(f"hidden layers must be at least one, of positive sizes, got {tuple(hidden_dims)}")
    return hidden_dims[-1]


class SharedBottom(Head):
    """One perceptron for all tasks, then a tower for each.

    Args:
        dim: D.
        num_tasks: K.
        hidden_dims: of the shared perceptron.
        tower_dims: hidden layers of each tower.
    """

    def __init__(
        self, dim: int, num_tasks: int, hidden_dims: Sequence[int] = (256, 128), tower_dims: Sequence[int] = (64,)
    ):
        super().__init__(dim, num_tasks, _output_dim(hidden_dims), tower_dims)
        self.bottom = BankedMLP(1, dim, hidden_dims)

    def represent(self, inputs: Float[Tensor, "batch inputs dim"]) -> Float[Tensor, "batch outputs hidden"]:
        return self.bottom(inputs.flatten(0, 1)[:, None])[:, 0].unflatten(0, inputs.shape[:2])

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.bottom.parameters())


class MMoE(Head):
    """Experts for all tasks, mixed by a softmax gate of every task.

    Args:
        dim: D.
        num_tasks: K.
        num_experts: E.
        expert_dims: hidden layers of each expert, the last of which is its output.
        tower_dims: hidden layers of each tower.

    With an input for each task, the experts are applied to each of them, and the gate of a task sees its own.
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        num_experts: int = 4,
        expert_dims: Sequence[int] = (128,),
        tower_dims: Sequence[int] = (64,),
    ):
        super().__init__(dim, num_tasks, _output_dim(expert_dims), tower_dims)
        self.experts = BankedMLP(num_experts, dim, expert_dims)
        self.gates = BankedLinear(num_tasks, dim, num_experts, bias=False)

    def gate_weights(self, inputs: Float[Tensor, "batch inputs dim"]) -> Float[Tensor, "batch tasks experts"]:
        """How each task mixes the experts."""
        return self.gates(inputs).softmax(-1)

    def represent(self, inputs: Float[Tensor, "batch inputs dim"]) -> Float[Tensor, "batch outputs hidden"]:
        experts = self.experts(inputs.flatten(0, 1)[:, None]).unflatten(0, inputs.shape[:2])
        weights = self.gate_weights(inputs)
        if inputs.shape[1] == 1:
            return weights @ experts[:, 0]
        return (weights[:, :, None] @ experts)[:, :, 0]

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.experts.parameters())


class _Extraction(nn.Module):
    """One level of PLE: the experts of each task and the shared ones, and a gate for each task over its own and the
    shared. Below the last level a further gate mixes all experts for the next level's shared ones."""

    def __init__(self, dim: int, num_tasks: int, shared: int, specific: int, expert_dims: Sequence[int], last: bool):
        super().__init__()
        self.num_tasks, self.specific = num_tasks, specific
        self.own = BankedMLP(num_tasks * specific, dim, expert_dims) if specific else None
        self.shared = BankedMLP(shared, dim, expert_dims) if shared else None
        self.gates = BankedLinear(num_tasks, dim, specific + shared, bias=False)
        self.shared_gate = None if last else nn.Linear(dim, num_tasks * specific + shared, bias=False)

    def forward(self, inputs: Tensor, common: Tensor) -> tuple[Tensor, Tensor]:
        tasks, groups, every = self.num_tasks, [], []
        if self.own is not None:
            own = self.own(inputs)
            every.append(own)
            groups.append(own.unflatten(1, (tasks, self.specific)))
        if self.shared is not None:
            shared = self.shared(common[:, None])
            every.append(shared)
            groups.append(shared[:, None].expand(-1, tasks, -1, -1))
        weights = self.gates(inputs).softmax(-1)
        mixed = (weights[:, :, None] @ torch.cat(groups, dim=2))[:, :, 0]
        if self.shared_gate is None:
            return mixed, common
        return mixed, (self.shared_gate(common).softmax(-1)[:, None] @ torch.cat(every, dim=1))[:, 0]


class PLE(Head):
    """Experts of each task beside shared ones, in levels.

    Args:
        dim: D.
        num_tasks: K.
        levels: how many.
        shared, specific: experts that all tasks share, and of each task.
        expert_dims: hidden layers of each expert.
        tower_dims: hidden layers of each tower.

    Gates read the input of their level. With an input for each task, the shared experts of the first level get the mean
    of them (this file's choice), through which a task's loss reaches the bottoms of the others.
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        levels: int = 2,
        shared: int = 2,
        specific: int = 2,
        expert_dims: Sequence[int] = (128,),
        tower_dims: Sequence[int] = (64,),
    ):
        if levels < 1 or shared < 0 or specific < 0 or shared + specific < 1:
            raise ValueError(
                f"levels >= 1 and an expert that each task can reach are needed, got levels={levels}, "
                f"shared={shared}, specific={specific}"
            )
        super().__init__(dim, num_tasks, _output_dim(expert_dims), tower_dims)
        sizes = [dim] + [expert_dims[-1]] * (levels - 1)
        self.levels = nn.ModuleList(
            _Extraction(size, num_tasks, shared, specific, expert_dims, last=index == levels - 1)
            for index, size in enumerate(sizes)
        )

    def represent(self, inputs: Float[Tensor, "batch inputs dim"]) -> Float[Tensor, "batch outputs hidden"]:
        common = inputs.mean(1)
        for level in self.levels:
            inputs, common = level(inputs, common)
        return inputs

    def shared_parameters(self) -> list[nn.Parameter]:
        found: list[nn.Parameter] = []
        for index, level in enumerate(self.levels):
            parts = [level.shared, level.shared_gate]
            if index < len(self.levels) - 1:
                parts.append(level.own)  # reaches the other tasks through the next level's shared input
            found += [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]
        return found


class CrossStitch(Head):
    """A perceptron for each task; after every layer the tasks' outputs are mixed by a learned K x K matrix.

    Args:
        dim: D.
        num_tasks: K.
        hidden_dims: of each perceptron.
        tower_dims: hidden layers of each tower.
        own: weight of a task's own output at the start; the others share the rest.
    """

    def __init__(
        self,
        dim: int,
        num_tasks: int,
        hidden_dims: Sequence[int] = (256, 128),
        tower_dims: Sequence[int] = (64,),
        own: float | int = 0.9,
    ):
        super().__init__(dim, num_tasks, _output_dim(hidden_dims), tower_dims)
        self.layers = nn.ModuleList(BankedLinear(num_tasks, a, b) for a, b in pairwise([dim, *hidden_dims]))
        rest = (1 - float(own)) / max(num_tasks - 1, 1)
        start = torch.full((num_tasks, num_tasks), rest).fill_diagonal_(float(own) if num_tasks > 1 else 1.0)
        self.stitches = nn.ParameterList(nn.Parameter(start.clone()) for _ in hidden_dims)

    def represent(self, inputs: Float[Tensor, "batch inputs dim"]) -> Float[Tensor, "batch outputs hidden"]:
        for layer, stitch in zip(self.layers, self.stitches):
            inputs = stitch @ layer(inputs).relu()
        return inputs

    def shared_parameters(self) -> list[nn.Parameter]:
        return [*self.layers.parameters(), *self.stitches.parameters()]


class SingleTask(nn.Module):
    """K models of one task each behind the face of one of K tasks: what multi-task learning is measured against.

        single = SingleTask([DTRN(fields, behaviors, 1) for _ in range(num_tasks)])

    Args:
        models: each gives (batch, 1) logits; they share nothing.
    """

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        if not models:
            raise ValueError("SingleTask needs at least one model")
        self.models = nn.ModuleList(models)

    def forward(self, *args: Tensor) -> Float[Tensor, "batch tasks"]:
        """The logits of all models on the same input."""
        return torch.cat([model(*args) for model in self.models], dim=1)

    def shared_parameters(self) -> list[nn.Parameter]:
        return []
