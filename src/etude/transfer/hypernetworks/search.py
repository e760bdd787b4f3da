"""One hypernetwork for many widths of a target: candidates are ranked by the accuracy of generated weights.

Brock, Lim, Ritchie & Weston, "SMASH", arXiv:1708.05344, 2017 (ranking architectures by generated weights).
Liu et al., "MetaPruning", arXiv:1903.10258, 2019 (widths as the condition, generated tensors sliced, then a search).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.data.kinds import Examples
from etude.loop.batches import IndexedBatches
from etude.transfer.hypernetworks.hypernetwork import Hypernetwork
from etude.transfer.hypernetworks.spec import TargetSpec, slice_parameters

__all__ = ["WidthSupernet", "evolve_widths"]

Widths = tuple[int, ...]


class WidthSupernet:
    """Weights of a target of any widths up to the largest, from one hypernetwork.

        supernet = WidthSupernet(build, (32, 32), hypernet)
        supernet.fit(train, [(8, 16), (32, 4), ...], steps=1000, generator=generator)
        supernet.accuracy((8, 4), validation)

    With static_output=True the hypernetwork generates the target of largest widths under the condition of keep ratios,
    width / largest, and the tensors are sliced to the leading units. With static_output=False it generates the
    narrower target itself, whose pieces it knows by the descriptors of their layers.

    Args:
        build: widths -> module; names of parameters must not depend on the widths.
        largest: the largest widths.
        hypernet: of `build(largest)`, conditioned by vectors of the user's (task, static_input=False) whose size is
            the number of widths.

    Raises:
        ValueError: if the hypernetwork's conditions do not fit.
    """

    def __init__(self, build: Callable[[Widths], nn.Module], largest: Widths, hypernet: Hypernetwork):
        design = hypernet.design
        if design.conditioning != "task" or design.static_input or hypernet.conditions.cond_dim != len(largest):
            raise ValueError(
                f"keep ratios are conditions of the task with static_input=False and cond_dim={len(largest)}, "
                f"got {design.conditioning!r}, {design.static_input} and {hypernet.conditions.cond_dim}"
            )
        self.build, self.largest, self.hypernet = build, largest, hypernet
        self._modules: dict[Widths, tuple[nn.Module, TargetSpec]] = {}

    def __call__(self, x: Tensor, widths: Widths) -> Tensor:
        """Output of the target of these widths with generated weights."""
        module, spec = self._module(widths)
        return torch.func.functional_call(module, self._parameters(widths, spec), (x,))

    def materialize(self, widths: Widths) -> nn.Module:
        """A module of these widths that holds the generated weights."""
        _, spec = self._module(widths)
        made = self.build(widths)
        with torch.no_grad():
            for name, value in self._parameters(widths, spec).items():
                made.get_parameter(name).copy_(value)
        return made

    def fit(
        self,
        examples: Examples,
        choices: Sequence[Widths],
        *,
        steps: int = 1_000,
        batch_size: int = 64,
        lr: float | int = 2e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        """Trains the hypernetwork by Adam; every step draws one of the `choices`."""
        if not choices:
            raise ValueError("choices must name at least one tuple of widths")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        optimizer = torch.optim.Adam([p for p in self.hypernet.parameters() if p.requires_grad], lr=lr)
        self.hypernet.train()
        for _, (inputs, targets, _) in zip(range(steps), IndexedBatches(examples, batch_size, generator)):
            widths = choices[int(torch.randint(len(choices), (), generator=generator))]
            optimizer.zero_grad()
            F.cross_entropy(self(inputs, widths), targets).backward()
            optimizer.step()
        self.hypernet.eval()

    @torch.no_grad()
    def accuracy(self, widths: Widths, examples: Examples) -> float:
        """Share of examples that the target of these widths classifies rightly with generated weights."""
        return float((self(examples.inputs, widths).argmax(dim=1) == examples.targets).double().mean())

    def _parameters(self, widths: Widths, spec: TargetSpec) -> dict[str, Tensor]:
        ratios = torch.tensor([width / most for width, most in zip(widths, self.largest)])
        ratios = ratios.to(self.hypernet.head.outs()[0].weight)
        if self.hypernet.design.static_output:
            return slice_parameters(self.hypernet(ratios), spec)
        return self.hypernet(ratios, spec)

    def _module(self, widths: Widths) -> tuple[nn.Module, TargetSpec]:
        if len(widths) != len(self.largest) or any(not 1 <= w <= most for w, most in zip(widths, self.largest)):
            raise ValueError(f"widths must lie in 1..{self.largest}, got {widths}")
        if widths not in self._modules:
            module = self.build(widths).to(self.hypernet.head.outs()[0].weight.device).requires_grad_(False)
            self._modules[widths] = (module, TargetSpec.from_module(module))
        return self._modules[widths]


def evolve_widths(
    score: Callable[[Widths], float],
    options: Sequence[Sequence[int]],
    *,
    cost: Callable[[Widths], float] | None = None,
    budget: float | int | None = None,
    population: int = 16,
    generations: int = 8,
    generator: torch.Generator | None = None,
) -> tuple[Widths, float]:
    """Evolutionary search for widths of the highest score: the better half stays, and has mutated and crossed children.

    With `generations=1` it is a random search of `population` candidates.

    Args:
        score: of widths, such as accuracy with generated weights on validation data.
        options: what each width may be.
        cost, budget: candidates whose cost exceeds the budget are not considered.
        population: candidates in a generation, at least 2.
        generations: how many.
        generator: of all draws.

    Returns:
        The best widths and their score.

    Raises:
        ValueError: if a size is too small, or no candidate keeps the budget in 1,000 draws.
    """
    if population < 2 or generations < 1 or not options or not all(options):
        raise ValueError(f"needs population >= 2, generations >= 1 and options, got {population}, {generations}")
    if (cost is None) != (budget is None):
        raise ValueError("cost and budget belong together")

    def pick(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    def allowed(make: Callable[[], Widths]) -> Widths:
        for _ in range(1_000):
            widths = make()
            if cost is None or budget is None or cost(widths) <= budget:
                return widths
        raise ValueError(f"no widths of cost <= {budget} were found in 1,000 draws")

    def drawn() -> Widths:
        return tuple(each[pick(len(each))] for each in options)

    scores: dict[Widths, float] = {}
    living = [allowed(drawn) for _ in range(population)]
    for generation in range(generations):
        scores.update({widths: score(widths) for widths in living if widths not in scores})
        living = sorted(dict.fromkeys(living), key=scores.__getitem__, reverse=True)[: max(population // 2, 1)]
        if generation == generations - 1:
            break

        def child(parents: tuple[Widths, ...] = tuple(living)) -> Widths:
            one, other = parents[pick(len(parents))], parents[pick(len(parents))]
            mixed = [pair[pick(2)] for pair in zip(one, other)]
            place = pick(len(options))
            mixed[place] = options[place][pick(len(options[place]))]
            return tuple(mixed)

        living = living + [allowed(child) for _ in range(population - len(living))]
    best = max(scores, key=scores.__getitem__)
    return best, float(scores[best])
