"""Consolidation: every group of weights has a stiffness b in [0, inf] that holds it where it was last consolidated.

Ling & Bohn, "A Deep Learning Framework for Lifelong Machine Learning", arXiv:2105.00157, 2021.

While task t is learned, the loss is

    L(theta) = L_t(theta) + sum_i b_i (theta_i - target_i)^2                                              (1)

b = 0 leaves a weight free, a finite b ties it elastically, and b = inf holds it bit by bit: it has no gradient, and no
optimizer, momentum or weight decay moves it. b is kept per group (`groups`); an importance of the weight, such as its
Fisher information, may multiply it:  b_i = b_group * importance_i  (ours; EWC is then b_group = lambda / 2).
A masked group is held at zero.

Finite b acts in one of two modes. "penalty" adds the gradient 2 b (theta - target) of Eq. (1), which an adaptive
optimizer rescales like any other. "proximal", the default and ours, follows the optimizer's step by

    theta <- (theta + 2 lr b target) / (1 + 2 lr b),                                                      (2)

which is stable for every b and is not rescaled: against steps of size lr, weights stay within about 1 / (2 b).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from etude.transfer.lifelong.groups import KINDS, MASKED, Owners, Rules, Selector, check_b

__all__ = ["Consolidation"]

_MODES = ("proximal", "penalty")


@dataclass
class _Hold:
    """How the entries of one parameter are held; None where none is held so."""

    frozen: Tensor | None
    b: Tensor | None
    whole: bool
    share: tuple[float, Tensor] | None = None

    def pull(self, lr: float) -> Tensor:
        """2 lr b / (1 + 2 lr b), how far Eq. (2) goes towards the target; kept while lr stays."""
        if self.share is None or self.share[0] != lr:
            assert self.b is not None
            twice = 2.0 * lr * self.b
            self.share = lr, twice / (1.0 + twice)
        return self.share[1]


class Consolidation:
    """Holds the weights of any module by groups, whatever the optimizer.

        consolidation = Consolidation(model)                      # all weights belong to task 1
        consolidation.set("*[1->1]", 0.1)                         # tied to where they are now
        consolidation.set("head.*:G[*->*]", 0)                    # but not the parameters named head.*
        optimizer = torch.optim.Adam(consolidation.trainable())
        consolidation.attach(optimizer)                           # then train as ever

    Args:
        module: any; the weights held are its parameters.
        owners: parameter name -> `Owners` (see `layer_owners`); parameters without any belong to task 1 as features.
        mode: "proximal", Eq. (2), or "penalty", Eq. (1).

    Raises:
        ValueError: if the mode is unknown, or owners name no parameter or do not fit its shape.
    """

    def __init__(self, module: nn.Module, *, owners: Mapping[str, Owners] | None = None, mode: str = "proximal"):
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, got {mode!r}")
        self.module, self.mode = module, mode
        self.num_tasks = 0
        self._weights: dict[str, nn.Parameter] = {}
        self._owners: dict[str, Owners] = {}
        self._targets: dict[str, Tensor] = {}
        self._importance: dict[str, Tensor] = {}
        self._b: dict[str, Tensor] = {}
        self._open: dict[str, Tensor] = {}
        self._holds: dict[str, _Hold] | None = None
        self.refresh(owners)

    def refresh(self, owners: Mapping[str, Owners] | None = None) -> None:
        """Takes over the module's present parameters and new owners; what was known of old entries is kept.

        Call it when units have changed hands or layers have grown (new rows and columns at the end). Groups that were
        not there before are free. Entries that were not there before, or whose unit now has another owner, have their
        present value as target and no importance yet.
        """
        weights = dict(self.module.named_parameters())
        given = dict(owners or {})
        unknown = sorted(set(given) - set(weights))
        if unknown:
            raise ValueError(f"the module has no parameters {', '.join(unknown)}; it has {', '.join(weights)}")
        for name, weight in weights.items():
            if name not in given:
                given[name] = Owners("G", torch.ones(weight.shape[:1], dtype=torch.int64))
            elif not given[name].fits(weight.shape):
                raise ValueError(f"the owners of {name} do not fit its shape {tuple(weight.shape)}")
        moved = {name: self._moved(name, weight, given[name]) for name, weight in weights.items()}
        self._weights, self._owners = weights, {name: its.clone() for name, its in given.items()}
        highest = max((int(end.max()) for o in given.values() for end in o.index() if end.numel()), default=1)
        self.num_tasks = max(self.num_tasks, highest)
        size = self.num_tasks + 1
        for name, weight in weights.items():
            known = _grown(self._targets.get(name), weight.detach())
            self._targets[name] = torch.where(moved[name], weight.detach(), known)
            if name in self._importance:
                known = _grown(self._importance[name], torch.zeros_like(weight))
                self._importance[name] = known.masked_fill(moved[name], 0.0)
            self._b[name] = _grown(self._b.get(name), torch.zeros(size, size, dtype=torch.float64))
            self._open[name] = _grown(self._open.get(name), torch.ones(size, size, dtype=torch.bool))
        for kept in (self._targets, self._importance, self._b, self._open):
            for name in set(kept) - set(weights):
                del kept[name]
        self._holds = None

    def _moved(self, name: str, weight: Tensor, owners: Owners) -> Tensor:
        """Entries of a parameter whose ends do not belong to whom they belonged before; not those that are new."""
        moved = torch.zeros_like(weight, dtype=torch.bool)
        if name in self._owners:
            for past, present in zip(self._owners[name].index(), owners.index()):
                here = _spread(present, weight)
                moved |= _grown(_spread(past, self._targets[name]), here) != here
        return moved

    def set(self, selector: str, b: float | int | str, *, new: int | None = None) -> None:
        """Sets the b of the groups that `selector` names.

        Entries that become frozen are held at their present value; those of a masked group are set to zero. A number
        connects a masked group again, whose weights then start from zero.

        Args:
            selector: see the module `groups`.
            b: 0 to inf, or "masked".
            new: number of the task at hand, for selectors that say `new` or `old`.

        Raises:
            ValueError: if the selector cannot be read or names no parameter, or b is negative or NaN.
        """
        chosen, value = Selector.parse(selector), check_b(b)
        sources, targets = chosen.ends(self.num_tasks, new)
        met = [name for name, owners in self._owners.items() if chosen.covers(name, owners.kind)]
        if not met and chosen.name != "*":
            raise ValueError(f"{selector!r} matches no parameter; there are {', '.join(self._owners)}")
        if not sources or not targets:
            return
        rows = torch.tensor(sources)[:, None]
        for name in met:
            before = self._frozen(name)
            self._b[name][rows, targets] = 0.0 if value is None else value
            self._open[name][rows, targets] = value is not None
            self._settle(name, before)
        self._holds = None

    def apply(self, rules: Rules, *, new: int | None = None) -> None:
        """Sets several groups in turn; later rules override earlier ones."""
        for selector, b in rules.items():
            self.set(selector, b, new=new)

    def _frozen(self, name: str) -> Tensor:
        """Entries that cannot move, in the parameter's own shape."""
        index = self._owners[name].index()
        held = torch.isinf(self._b[name][index]) | ~self._open[name][index]
        return _spread(held, self._weights[name])

    def _settle(self, name: str, before: Tensor) -> None:
        weight = self._weights[name]
        with torch.no_grad():
            masked = _spread(~self._open[name][self._owners[name].index()], weight)
            if bool(masked.any()):
                weight.masked_fill_(masked, 0.0)
            fresh = self._frozen(name) & ~before | masked
            self._targets[name] = torch.where(fresh, weight.detach(), self._targets[name])

    def table(self, kind: str = "G", name: str | None = None) -> Float[Tensor, "tasks_and_free tasks_and_free"]:
        """b by owner of source (row) and target (column), NaN where masked; row and column 0 are the free units'.

        Args:
            kind: "G" or "H".
            name: of the parameter; by default the first of the kind.
        """
        names = [n for n, owners in self._owners.items() if owners.kind == kind and name in (None, n)]
        if kind not in KINDS or not names:
            raise ValueError(f"there is no parameter {name or ''} of kind {kind!r}")
        return self._b[names[0]].masked_fill(~self._open[names[0]], float("nan"))

    def groups(self) -> dict[str, int]:
        """Number of weights in every group that has any, over all layers."""
        counts: dict[str, int] = {}
        for name, owners in self._owners.items():
            source, target = (_spread(end, self._weights[name]).flatten() for end in owners.index())
            pairs, sizes = torch.stack([source, target]).unique(dim=1, return_counts=True)
            for (i, j), size in zip(pairs.T.tolist(), sizes.tolist()):
                key = f"{owners.kind}[{i}->{j}]"
                counts[key] = counts.get(key, 0) + size
        return counts

    def rules(self) -> dict[str, float | str]:
        """The state of every group that has weights, as data; a group whose layers differ is given layer by layer."""
        found: dict[str, dict[str, float | str]] = {}
        for name, owners in self._owners.items():
            pairs = torch.stack([end.flatten() for end in owners.index()]).unique(dim=1)
            for i, j in pairs.T.tolist():
                b = float(self._b[name][i, j]) if self._open[name][i, j] else MASKED
                found.setdefault(f"{owners.kind}[{i}->{j}]", {})[name] = b
        told: dict[str, float | str] = {}
        for group, layers in found.items():
            if len(set(layers.values())) == 1:
                told[group] = next(iter(layers.values()))
            else:
                told |= {f"{name}:{group}": b for name, b in layers.items()}
        return told

    def snapshot(self) -> None:
        """Makes the present values the targets."""
        self._targets = {name: weight.detach().clone() for name, weight in self._weights.items()}

    def targets(self) -> dict[str, Tensor]:
        return dict(self._targets)

    def consolidate(self, importance: Mapping[str, Tensor], decay: float | int = 1.0) -> None:
        """Adds a task's importances, held at the present values, to those of the tasks before it.

        With importances F_k and values theta_k of the tasks k so far, sum_k F_k (theta - theta_k)^2 is, but for a
        constant, the one term that is kept: sum_k F_k times the squared distance to their F-weighted mean.

        Args:
            importance: parameter name -> values >= 0 in its shape; absent parameters have importance 0.
            decay: factor of what was there before, in [0, 1]; below 1 older tasks fade (online EWC).

        Raises:
            ValueError: if a name, a shape or a value is none of a parameter's.
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        for name, value in importance.items():
            if name not in self._weights:
                raise ValueError(f"the module has no parameter {name!r}; it has {', '.join(self._weights)}")
            if value.shape != self._weights[name].shape:
                shape = tuple(self._weights[name].shape)
                raise ValueError(f"the importance of {name} must have shape {shape}, got {tuple(value.shape)}")
            if not bool((torch.isfinite(value) & (value >= 0)).all()):
                raise ValueError(f"the importance of {name} holds negative, infinite or NaN values")
        for name, weight in self._weights.items():
            here = weight.detach()
            past = decay * self._importance.get(name, torch.zeros_like(here))
            added = importance.get(name, torch.zeros_like(here)).detach()
            total = past + added
            kept = past / torch.where(total > 0, total, 1.0)
            self._targets[name] = here + kept * (self._targets[name] - here)
            self._importance[name] = total
        self._holds = None

    def _held(self) -> dict[str, _Hold]:
        if self._holds is None:
            self._holds = {name: self._hold(name) for name in self._weights}
        return self._holds

    def _hold(self, name: str) -> _Hold:
        weight = self._weights[name]
        frozen = self._frozen(name)
        table = torch.where(torch.isinf(self._b[name]), 0.0, self._b[name])
        b = _spread(table[self._owners[name].index()].to(weight), weight)
        if name in self._importance:
            b = b * self._importance[name]
        b = b.masked_fill(frozen, 0.0)
        some = bool(frozen.any())
        return _Hold(frozen if some else None, b if bool((b > 0).any()) else None, some and bool(frozen.all()))

    def freeze_mask(self, name: str) -> Bool[Tensor, "*shape"]:
        """True where entries of the parameter are frozen or masked."""
        return self._frozen(name)

    def strength(self, name: str) -> Float[Tensor, "*shape"]:
        """b of every entry of the parameter, importance included; inf where frozen or masked."""
        held = self._held()[name]
        b = torch.zeros_like(self._weights[name]) if held.b is None else held.b.clone()
        return b if held.frozen is None else b.masked_fill(held.frozen, float("inf"))

    def trainable(self) -> list[nn.Parameter]:
        """Parameters with at least one entry that can move."""
        return [self._weights[name] for name, held in self._held().items() if not held.whole]

    def penalty(self) -> Float[Tensor, ""]:
        """sum_i b_i (theta_i - target_i)^2 over the elastic weights; frozen ones add nothing. Differentiable."""
        terms = [
            (held.b * (self._weights[name] - self._targets[name]).square()).sum()
            for name, held in self._held().items()
            if held.b is not None
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def mask_gradients(self) -> None:
        """Sets the gradients of frozen entries to zero."""
        for name, held in self._held().items():
            gradient = self._weights[name].grad
            if held.frozen is not None and gradient is not None:
                gradient.masked_fill_(held.frozen, 0.0)

    @torch.no_grad()
    def apply_before_step(self) -> None:
        """What must happen between `backward` and `optimizer.step`: frozen gradients vanish, penalties are added.

        Raises:
            ValueError: if weights are frozen while a batch normalisation updates its running statistics.
        """
        self.mask_gradients()
        self._check_norms()
        if self.mode == "penalty":
            for name, held in self._held().items():
                weight = self._weights[name]
                if held.b is not None and weight.grad is not None:
                    weight.grad.addcmul_(held.b, weight - self._targets[name], value=2.0)

    @torch.no_grad()
    def apply_after_step(self, optimizer: Optimizer, lr: float | int | None = None) -> None:
        """What must happen after `optimizer.step`: Eq. (2) in proximal mode, and frozen entries back in place.

        Args:
            optimizer: whose groups give each parameter's lr.
            lr: used for all parameters instead.
        """
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for name, held in self._held().items():
            weight, target = self._weights[name], self._targets[name]
            if id(weight) not in rates:
                continue
            if held.b is not None and self.mode == "proximal":
                weight.lerp_(target, held.pull(rates[id(weight)] if lr is None else float(lr)))
            if held.whole:
                weight.copy_(target)
            elif held.frozen is not None:
                torch.where(held.frozen, target, weight, out=weight)

    def attach(self, optimizer: Optimizer) -> Callable[[], None]:
        """Makes every `optimizer.step()` respect the table, until the returned function is called.

        Gradients of frozen entries vanish as soon as they are computed, so that clipping does not count them.
        """

        def before(*_: Any) -> None:
            self.apply_before_step()

        def after(*_: Any) -> None:
            self.apply_after_step(optimizer)

        handles: list[Any] = [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]
        for name, weight in self._weights.items():
            if weight.requires_grad:
                handles.append(weight.register_hook(lambda gradient, name=name: self._masked(name, gradient)))

        def detach() -> None:
            for handle in handles:
                handle.remove()

        return detach

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        frozen = self._held()[name].frozen
        return gradient if frozen is None else gradient.masked_fill(frozen, 0.0)

    def _check_norms(self) -> None:
        if all(held.frozen is None for held in self._held().values()):
            return
        for name, part in self.module.named_modules():
            if isinstance(part, _BatchNorm) and part.training and part.track_running_stats:
                raise ValueError(
                    f"weights are frozen, but the batch normalisation {name!r} still updates its statistics and would "
                    "forget: put it in eval(), or use GroupNorm or OwnerNorm"
                )


def _spread(values: Tensor, weight: Tensor) -> Tensor:
    """Values over the leading dimensions of a weight, on its device, over all of its dimensions."""
    return values.to(weight.device).reshape(values.shape + (1,) * (weight.ndim - values.ndim)).expand(weight.shape)


def _grown(old: Tensor | None, new: Tensor) -> Tensor:
    """`new` with `old` in its first corner."""
    grown = new.clone()
    if old is not None:
        grown[tuple(slice(size) for size in old.shape)] = old
    return grown
