"""Training all sub-models at once: one of them drawn for every micro-batch, gradients accumulated.

Valipour et al., "SortedNet", arXiv:2309.00255, 2023, section 3. The objective is the mean loss of the sub-models,

    min over theta of  E_{b ~ P} alpha_b E_{(x, y)} L(y, f(x; theta_b)),                                  (1)

and an update descends its estimate from g_r draws of b, each with a micro-batch of its own:

    theta <- theta - lr * (1 / g_r) * sum_{r = 1}^{g_r} alpha_{b_r} grad L(y_r, f(x_r; theta_{b_r})).     (2)

P is uniform and every alpha is 1 unless said otherwise. A micro-batch costs one forward and one backward pass of the
sub-model drawn, so that training all is cheaper per example than training the whole network alone.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from etude.training.sortednet.submodels import SubModel, SubModelSpace
from etude.training.sortednet.switching import set_submodel, space_of, submodel_regions

__all__ = ["Attachment", "SortedSampler", "Step", "sorted_step"]


class SortedSampler(Iterator[tuple[SubModel, float]]):
    """Draws the sub-model of each micro-batch, endlessly, with the weight of its loss in Eq. (2).

        sampler = SortedSampler(space, accumulate=4, generator=torch.Generator().manual_seed(0))
        b, weight = next(sampler)                 # weight = alpha_b / 4

    Or let it choose the sub-model of every training forward pass of a network, in whatever loop that stands:

        handle = sampler.attach(model)
        fit(model, data.train, optimizer, steps=1000, accumulate=4)
        handle.remove()

    Args:
        space: the sub-models to draw from.
        accumulate: micro-batches per update, g_r >= 1.
        resample: "micro" draws for every micro-batch, "update" once for all of an update.
        p: probabilities of the sub-models, proportionally, in the order of the space; uniform if None.
        alpha: weight of each sub-model's loss, in the order of the space; 1 if None.
        cycle: go through the space in turn instead of at random; with `accumulate=len(space)` every update trains every
            sub-model once, as slimmable networks do.
        full_every: make every `full_every`-th draw the whole network; never by design if None, as in the paper.
        generator: CPU generator of the draws; one seeded with 0 if None. Nothing else draws from it, so that the
            order of examples and the dropout of a run do not depend on the space. Under `torch.distributed` the
            first process's draws hold for all, as replicas must train the same sub-model.

    Attributes:
        used: the sub-models drawn for the update in progress, or for the last one.

    Raises:
        ValueError: if a count is not positive, `resample` is unknown or does not go with `cycle`, or `p` or `alpha`
            does not fit the space.
    """

    def __init__(
        self,
        space: SubModelSpace,
        *,
        accumulate: int = 1,
        resample: str = "micro",
        p: Sequence[float | int] | None = None,
        alpha: Sequence[float | int] | None = None,
        cycle: bool = False,
        full_every: int | None = None,
        generator: torch.Generator | None = None,
    ):
        for name, count in (("accumulate", accumulate), ("full_every", full_every)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if resample not in ("micro", "update"):
            raise ValueError(f"resample must be 'micro' or 'update', got {resample!r}")
        if cycle and (p is not None or resample == "update"):
            raise ValueError(f"a cycle draws nothing: it goes with neither p={p} nor resample={resample!r}")
        self.space, self.accumulate, self.resample = space, accumulate, resample
        self.cycle, self.full_every = cycle, full_every
        self.p = None if p is None else space.weights(p, "p").tolist()
        self.alpha = None
        if alpha is not None:
            self.alpha = dict(zip(space, space.weights(alpha, "alpha").tolist()))
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.micro_batches = 0
        self.draws = 0
        self.used: list[SubModel] = []
        self._held: SubModel | None = None
        self._agreed = False

    def __iter__(self) -> "SortedSampler":
        return self

    def __next__(self) -> tuple[SubModel, float]:
        if self._held is None or self.resample == "micro" or self.update_due:
            self._held = self._draw()
        if self.update_due:
            self.used.clear()
        self.micro_batches += 1
        b = self._held
        self.used.append(b)
        return b, (1.0 if self.alpha is None else self.alpha[b]) / self.accumulate

    @property
    def update_due(self) -> bool:
        """Whether the micro-batches drawn so far make up whole updates: the moment for `optimizer.step()`."""
        return self.micro_batches % self.accumulate == 0

    def _draw(self) -> SubModel:
        self._agree()
        self.draws += 1
        if self.full_every is not None and self.draws % self.full_every == 0:
            return self.space.full
        if self.cycle:
            return self.space.submodels[(self.draws - 1) % len(self.space)]
        return self.space.sample(self.generator, self.p)

    def _agree(self) -> None:
        """Gives all processes of a distributed run the first one's generator, once."""
        distributed = torch.distributed
        if self._agreed or not (distributed.is_available() and distributed.is_initialized()):
            return
        state = [self.generator.get_state()]
        distributed.broadcast_object_list(state, src=0)
        self.generator.set_state(state[0])
        self._agreed = True

    def attach(self, model: nn.Module) -> "Attachment":
        """From here on each forward pass of `model` in training mode, with gradients, runs the next sub-model drawn.

        The loop does the rest: it divides the loss of each of `accumulate` micro-batches, as `etude.loop.fit` does
        with its argument of that name. After each forward pass the model is back at the sub-model that was in use.
        Blocks that recompute activations in the backward pass would run that one: use `sorted_step` for them.

        Raises:
            ValueError: if the model has another space, or losses are to be weighted, which needs the loss.
        """
        if self.alpha is not None:
            raise ValueError("alpha weighs losses, which an attached sampler does not see; use sorted_step")
        if not self.space <= space_of(model):
            raise ValueError(f"the sampler draws from {self.space}, the model holds {space_of(model)}")
        return Attachment(self, model)

    def state_dict(self) -> dict[str, Any]:
        """What is needed to continue the draws."""
        held = None if self._held is None else self.space.submodels.index(self._held)
        return {
            "micro_batches": self.micro_batches, "draws": self.draws, "held": held,
            "used": [self.space.submodels.index(b) for b in self.used], "generator": self.generator.get_state(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the draws where `state_dict` was taken."""
        self.micro_batches, self.draws = state["micro_batches"], state["draws"]
        self._held = None if state["held"] is None else self.space.submodels[state["held"]]
        self.used = [self.space.submodels[index] for index in state["used"]]
        self.generator.set_state(state["generator"])


class Attachment:
    """A sampler at work on a network; `remove()` ends it."""

    def __init__(self, sampler: SortedSampler, model: nn.Module):
        self._sampler = sampler
        self._pass: set_submodel | None = None
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Attachment":
        # A copy of the network, an average of its weights say, goes on with the same draws.
        return self

    def remove(self) -> None:
        """Detaches the sampler: from here on the network trains the sub-model in use."""
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self._pass = set_submodel(module, next(self._sampler)[0])

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._pass is not None:
            self._pass.__exit__(None, None, None)
            self._pass = None


def detach_samplers(module: nn.Module) -> None:
    """Takes the hooks of attached samplers off a copy of a network."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Attachment):
                del hooks[key]
    module._forward_hooks_always_called = type(module._forward_hooks_always_called)(
        (key, value) for key, value in module._forward_hooks_always_called.items() if key in module._forward_hooks
    )


@dataclass(frozen=True)
class Step:
    """One micro-batch of `sorted_step`.

    Args:
        loss: of the sub-model on the micro-batch, before weighting; detached.
        submodel: the sub-model drawn.
        updated: whether the optimizer stepped.
    """

    loss: Tensor
    submodel: SubModel
    updated: bool


def sorted_step(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batch: tuple[Any, Any],
    optimizer: Optimizer,
    sampler: SortedSampler,
    *,
    mask_updates: bool = False,
) -> Step:
    """One micro-batch of Eq. (2), and the update whenever `sampler.accumulate` of them are in.

        sampler = SortedSampler(space_of(model), accumulate=4)
        for batch in loader:
            sorted_step(model, F.cross_entropy, batch, optimizer, sampler)

    Weights outside the sub-models of an update have a gradient of zero, so that momentum, Adam's averages and weight
    decay still move them, as in the paper's plain loop; blocks beyond their depth have none and stay. Under
    `DistributedDataParallel` cutting the depth hence needs `find_unused_parameters=True`; width and heads do not.

    Args:
        model: made by `sorted_`, in training mode; perhaps wrapped.
        loss: (model output, targets) -> mean over the batch.
        batch: (inputs, targets) of one micro-batch.
        optimizer: over the model's parameters; its gradients are cleared after each update.
        sampler: over the model's space.
        mask_updates: leave weights outside the sub-models of an update exactly as they are, and the optimizer's
            averages of them. It costs a copy of all that per update.

    Raises:
        ValueError: if the sampler draws a sub-model that the model does not hold, or targets are no classes of the
            outputs (on the CPU; on a GPU such targets end in the device's own assertion).
    """
    b, weight = next(sampler)
    inputs, targets = batch
    with set_submodel(model, b):
        outputs = model(inputs)
        try:
            value = loss(outputs, targets)
        except IndexError as error:
            raise ValueError(
                f"targets in {int(targets.min())}..{int(targets.max())} do not fit outputs of shape "
                f"{tuple(outputs.shape)}: {error}"
            ) from error
        (value * weight).backward()
    if sampler.update_due:
        if mask_updates:
            _masked_step(model, optimizer, set(sampler.used))
        else:
            optimizer.step()
        optimizer.zero_grad()
    return Step(value.detach(), b, sampler.update_due)


@torch.no_grad()
def _masked_step(model: nn.Module, optimizer: Optimizer, used: Iterable[SubModel]) -> None:
    """`optimizer.step()`, undone wherever no sub-model of `used` reaches."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    regions = [submodel_regions(model, b) for b in used]
    kept = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            inside = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
            for part in regions:
                for region in part.get(names.get(id(parameter), ""), [()]):
                    inside[region] = True
            if not bool(inside.all()):
                averages = {
                    name: value.clone()
                    for name, value in optimizer.state.get(parameter, {}).items()
                    if isinstance(value, Tensor) and value.shape == parameter.shape
                }
                kept.append((parameter, inside, parameter.clone(), averages))
    optimizer.step()
    for parameter, inside, before, averages in kept:
        parameter.copy_(torch.where(inside, parameter, before))
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # Averages made in this very step started from zero.
                value.copy_(torch.where(inside, value, averages.get(name, torch.zeros_like(value))))
