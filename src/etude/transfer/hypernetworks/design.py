"""The five design criteria of a hypernetwork as one record, and the rules of which values go together.

Chauhan, Zhou, Lu, Molaei & Clifton, "A Brief Review of Hypernetworks in Deep Learning", arXiv:2306.06955, 2024,
section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product

__all__ = ["ARCHITECTURES", "CONDITIONINGS", "GENERATIONS", "HypernetDesign", "design_space"]

CONDITIONINGS = ("task", "data", "noise", "task+noise", "task+data")
GENERATIONS = ("once", "multiple", "component", "chunk", "component_chunk")
ARCHITECTURES = ("mlp", "cnn", "rnn", "attention", "graph")
PIECEWISE = ("component", "chunk", "component_chunk")
"""Generations that call one generator for several pieces, in one batched pass."""


@dataclass(frozen=True)
class HypernetDesign:
    """What a hypernetwork reads, how it gives weights, and what it is made of.

        HypernetDesign("task", "chunk").validate()          # [] : legal
        HypernetDesign("data", "chunk", static_input=True).validate()

    Args:
        conditioning: what the condition C is: of a `task` (a learned embedding or a vector of the user's), of `data`
            (encoded examples), `noise`, or two of them side by side.
        generation: `once` gives all weights by one head; `multiple` by several heads on a shared trunk; `component`
            calls one generator for each component of the target, `chunk` for each run of equally many weights,
            `component_chunk` for each such run inside each component.
        static_input: whether the conditions are a fixed set that the hypernetwork stores (learned or given
            embeddings; with noise, a fixed set of draws, that is an ensemble), or come with each call.
        static_output: whether the target is one fixed architecture, or an argument of each call; in the second case
            pieces are named by descriptors of their layers and not looked up.
        architecture: of the hypernetwork: `mlp`; `cnn`, transposed convolutions over the grid of pieces; `rnn`,
            emitting pieces in order; `attention` over pieces; `graph`, messages along the target's computation graph.

    Raises:
        ValueError: if a value is none of those. That the values go together is asked of `validate`.
    """

    conditioning: str = "task"
    generation: str = "chunk"
    static_input: bool = True
    static_output: bool = True
    architecture: str = "mlp"

    def __post_init__(self) -> None:
        for name, known in _VALUES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {getattr(self, name)!r}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of condition that stand side by side."""
        return tuple(self.conditioning.split("+"))

    @property
    def piecewise(self) -> bool:
        return self.generation in PIECEWISE

    def validate(self) -> list[str]:
        """Why the values do not go together, a line for each pair; empty for a legal design."""
        reasons = []
        if self.static_input and "data" in self.parts:
            reasons.append(
                f"conditioning={self.conditioning!r} with static_input=True: a condition computed from data changes "
                "with the data"
            )
        if self.static_input and self.conditioning == "task+noise":
            reasons.append(
                "conditioning='task+noise' with static_input=True: the noise changes with every draw; a fixed set of "
                "draws is conditioning='noise'"
            )
        if not self.static_output and not self.piecewise:
            reasons.append(
                f"generation={self.generation!r} with static_output=False: its heads have as many outputs as the "
                "target has weights, which are not known; generate a maximal target and slice it "
                "(slice_parameters), or generate by pieces"
            )
        if self.architecture in ("cnn", "rnn", "attention") and not self.piecewise:
            reasons.append(
                f"architecture={self.architecture!r} with generation={self.generation!r}: there is a single piece, "
                "hence no grid, order or set to work on"
            )
        if self.architecture == "graph" and self.generation != "component":
            reasons.append(
                f"architecture='graph' with generation={self.generation!r}: the nodes of the target's graph are its "
                "components"
            )
        return reasons

    def check(self) -> None:
        """Refuses an illegal design.

        Raises:
            ValueError: with the reasons of `validate`.
        """
        reasons = self.validate()
        if reasons:
            raise ValueError("illegal design: " + "; ".join(reasons))


_VALUES = {
    "conditioning": CONDITIONINGS,
    "generation": GENERATIONS,
    "static_input": (True, False),
    "static_output": (True, False),
    "architecture": ARCHITECTURES,
}
assert tuple(_VALUES) == tuple(field.name for field in fields(HypernetDesign))


def design_space() -> Iterator[HypernetDesign]:
    """All legal designs, in a fixed order."""
    for values in product(*_VALUES.values()):
        design = HypernetDesign(**dict(zip(_VALUES, values)))  # type: ignore[arg-type]
        if not design.validate():
            yield design
