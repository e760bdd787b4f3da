"""Guidance: a frozen network of another architecture shows a target, layer by layer, how to represent its inputs.

Subramaniam, Mayo, Conwell, Poggio, Katz, Cheung & Barbu, "Training the Untrainable: Introducing Inductive Bias via
Representational Alignment", NeurIPS 2025, arXiv:2410.20035.

The target's loss on a batch becomes

    L = L_task + alpha sum_i (1 - CKA(T_i, G_i))                                                           (1)

over the pairs of a guide layer G_i and the target layer T_i that `layer_map` gives it, with linear CKA between the
flattened outputs for the same inputs. The sum is not a mean: alpha weighs each pair. The guide is never trained; it
may itself be trained, and then hands over what it knows, or untrained, and then only its architecture's bias.

Unlike the authors' program, we read the target's features from the forward pass that the task loss uses (a second
pass would update batch norm twice and drop other units), and a guide is in evaluation mode whatever its inputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.similarity import (
    cka_from_grams,
    linear_gram,
    procrustes_similarity,
    rbf_cka,
    ridge_similarity,
    rsa_similarity,
)
from etude.training.guidance.features import FeatureTap, Layers
from etude.training.guidance.mapping import layer_map

__all__ = ["METRICS", "Guidance"]

Similarity = Callable[[Tensor, Tensor], Tensor]

METRICS: dict[str, Similarity | None] = {
    # The linear kernels are compared from their Gram matrices, each layer's made once.
    "cka": None,
    "unbiased_cka": None,
    "rbf_cka": rbf_cka,
    "rsa": rsa_similarity,
    "procrustes": procrustes_similarity,
    "ridge": ridge_similarity,
}
"""Similarities of `etude.nn.similarity` by name; the target's features come first, the guide's second."""


class Guidance:
    """The alignment term of Eq. (1) between any two networks.

        guidance = Guidance(guide)
        with guidance.capture(target):
            for x, y in loader:
                loss = F.cross_entropy(target(x), y) + guidance()
                loss.backward()
                ...

    `guidance()` runs the guide on what the target was last given; `guidance(x)` on `x`. The block may also hold one
    step, or a whole `etude.loop.fit` whose loss adds `guidance()`. The features of a pass serve one call.

    CKA depends on the number of examples: keep the batch size fixed between runs that are compared. Gradient
    accumulation does not enlarge it.

    Args:
        guide: the network that guides. It is put into evaluation mode and no longer asks for gradients.
        target_layers, guide_layers: which layers, as for `FeatureTap`.
        mapping: "uniform" pairs the layers by `layer_map`; a dict pairs the guide's names with the target's.
        metric: one of `METRICS`, or a function (target features, guide features) -> similarity, at most 1.
        weight: alpha, >= 0. At 0 the guide never runs.
        reduction: "sum" over the pairs, as in Eq. (1), or "mean".
        stop_after: number of calls, from the first, that guide; all of them if None. Calls made while gradients are
            off measure: they do not count, and never stop. The authors stop after 300.
        on_collision: what becomes of several guide layers that fall on one target layer: "sum" keeps them all,
            "last" keeps the last, as the authors' program does.
        per_token: for sequences (batch, length, features): compare position by position and sum over positions,
            instead of flattening positions and features. Both sides must then be equally long.

    Raises:
        ValueError: if an argument is none of these.
    """

    def __init__(
        self,
        guide: nn.Module,
        *,
        target_layers: Layers = None,
        guide_layers: Layers = None,
        mapping: str | Mapping[str, str] = "uniform",
        metric: str | Similarity = "cka",
        weight: float | int = 1.0,
        reduction: str = "sum",
        stop_after: int | None = None,
        on_collision: str = "sum",
        per_token: bool = False,
    ):
        if isinstance(metric, str):
            _one_of("metric", metric, tuple(METRICS))
        if isinstance(mapping, str):
            _one_of("mapping", mapping, ("uniform",))
        elif not mapping:
            raise ValueError("mapping pairs no layers: it is empty")
        _one_of("reduction", reduction, ("sum", "mean"))
        _one_of("on_collision", on_collision, ("sum", "last"))
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and >= 0, got {weight}")
        if stop_after is not None and stop_after < 0:
            raise ValueError(f"stop_after must be >= 0 calls, or None, got {stop_after}")
        self.guide = guide.eval().requires_grad_(False)
        self.target_layers, self.guide_layers = target_layers, guide_layers
        self.mapping, self.metric, self.weight, self.reduction = mapping, metric, weight, reduction
        self.stop_after, self.on_collision, self.per_token = stop_after, on_collision, per_token
        self.calls = 0
        self.similarities: dict[tuple[str, str], Tensor] = {}
        self._guide_tap = FeatureTap(guide, guide_layers, detach=True)
        self._target_tap: FeatureTap | None = None

    @property
    def active(self) -> bool:
        """Whether the coming call, made now, would run the guide."""
        stopped = self.stop_after is not None and self.calls >= self.stop_after
        return self.weight > 0 and not (stopped and torch.is_grad_enabled())

    @contextmanager
    def capture(self, target: nn.Module, *, measure: bool = False) -> Iterator["Guidance"]:
        """Inside the block every forward pass of `target` leaves its features for the coming call.

        Args:
            target: the network that is guided.
            measure: also keep the features of passes without gradients, which evaluation makes and nobody reads.

        Raises:
            ValueError: if the target shares weights with the guide, which are frozen.
        """
        frozen = {id(parameter) for parameter in self.guide.parameters()}
        shared = next((name for name, parameter in target.named_parameters() if id(parameter) in frozen), None)
        if shared is not None:
            raise ValueError(f"the target's {shared} is the guide's own, and frozen; guide by a copy (copy.deepcopy)")
        tap = FeatureTap(
            target, self.target_layers, enabled=lambda: self.active and (measure or torch.is_grad_enabled())
        )
        self._target_tap = tap
        with tap:
            yield self

    def __call__(
        self, inputs: Tensor | tuple[Any, ...] | None = None, features: Mapping[str, Tensor] | None = None
    ) -> Float[Tensor, ""]:
        """weight * sum over pairs of (1 - similarity), Eq. (1); 0 if nothing is to be guided any more.

        Args:
            inputs: what the guide is given, a tensor or a tuple of arguments; what the target was given, if None.
            features: of the target, (batch, ...) by name in the order of the layers; the captured ones if None.

        Raises:
            RuntimeError: if there are no features.
            ValueError: if guide and target have no layers to compare, or their batches or devices differ.
        """
        if not self.active:
            return torch.zeros((), device=_device_of(self.guide))
        if torch.is_grad_enabled():
            self.calls += 1
        captured: dict[str, Tensor] | Mapping[str, Tensor] | None = features
        kwargs: dict[str, Any] = {}
        args: tuple[Any, ...] = inputs if isinstance(inputs, tuple) else (inputs,)
        tap = self._target_tap
        if captured is None or inputs is None:
            if tap is None or tap.inputs is None:
                raise RuntimeError(
                    "there are no captured features: call target(x) inside `guidance.capture(target)`, "
                    "or, where gradients are off, inside `guidance.capture(target, measure=True)`"
                )
            captured = dict(tap.features) if captured is None else captured
            if inputs is None:
                args, kwargs = tap.inputs
            tap.clear()
        loss = self._compare(captured, self._guide_features(args, kwargs))
        return self.weight * loss

    def state_dict(self) -> dict[str, Any]:
        """The number of calls made. The guide is not part of it."""
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on counting calls where `state_dict` was taken."""
        self.calls = int(state["calls"])

    def pairs(self, guide_names: Sequence[str], target_names: Sequence[str]) -> list[tuple[str, str]]:
        """The (guide layer, target layer) pairs that are compared.

        Raises:
            ValueError: if a side has no layer, or `mapping` names one that is not there.
        """
        for side, names in (("guide", guide_names), ("target", target_names)):
            if not names:
                raise ValueError(
                    f"guide and target have no layers to compare: the {side} gave none. By default convolutions, "
                    "linear and recurrent layers, layer norms and attention count, without the last one; name others "
                    f"by {side}_layers"
                )
        if isinstance(self.mapping, str):
            pairs = [
                (name, target_names[index])
                for name, index in zip(guide_names, layer_map(len(guide_names), len(target_names)))
            ]
        else:
            for side, wanted, names in (
                ("guide", self.mapping.keys(), guide_names),
                ("target", self.mapping.values(), target_names),
            ):
                absent = [name for name in wanted if name not in names]
                if absent:
                    raise ValueError(f"the {side} gave no layer {absent[0]!r}; its layers are {', '.join(names)}")
            pairs = list(self.mapping.items())
        if self.on_collision == "last":
            pairs = [(guide, target) for target, guide in {target: guide for guide, target in pairs}.items()]
        return pairs

    @torch.no_grad()
    def _guide_features(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        device = _device_of(self.guide)
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.device != device:
                raise ValueError(f"the guide lies on {device}, its inputs on {value.device}")
        if self.guide.training:
            self.guide.eval()
        with self._guide_tap as features:
            self.guide(*args, **kwargs)
        found = dict(features)
        self._guide_tap.clear()
        return found

    def _compare(self, target: Mapping[str, Tensor], guide: Mapping[str, Tensor]) -> Tensor:
        pairs = self.pairs(list(guide), list(target))
        for guide_name, target_name in pairs:
            ours, theirs = target[target_name], guide[guide_name]
            if ours.shape[0] != theirs.shape[0]:
                raise ValueError(
                    f"{target_name!r} of the target and {guide_name!r} of the guide hold {ours.shape[0]} and "
                    f"{theirs.shape[0]} examples; both must see the same batch"
                )
            if ours.device != theirs.device:
                raise ValueError(f"target and guide must lie on one device, got {ours.device} and {theirs.device}")
        # One dtype throughout: a target in double precision may have a guide in single.
        dtypes = {features.dtype for side in (target, guide) for features in side.values()}
        dtype = max({torch.promote_types(dtype, torch.float32) for dtype in dtypes}, key=lambda d: d.itemsize)
        ours_by_name = {name: self._arranged(name, target[name]).to(dtype) for _, name in pairs}
        theirs_by_name = {name: self._arranged(name, guide[name]).to(dtype) for name, _ in pairs}
        if self.per_token:
            _check_lengths(pairs, ours_by_name, theirs_by_name)
        if self.metric in ("cka", "unbiased_cka"):
            ours_grams = {name: linear_gram(features) for name, features in ours_by_name.items()}
            theirs_grams = {name: linear_gram(features) for name, features in theirs_by_name.items()}
            stacks = [
                torch.cat([grams[pair[side]] for pair in pairs]) for grams, side in ((ours_grams, 1), (theirs_grams, 0))
            ]
            values = cka_from_grams(stacks[0], stacks[1], unbiased=self.metric == "unbiased_cka")
        else:
            metric = METRICS[self.metric] if isinstance(self.metric, str) else self.metric
            assert metric is not None
            values = torch.stack(
                [
                    metric(x, y)
                    for guide_name, target_name in pairs
                    for x, y in zip(ours_by_name[target_name], theirs_by_name[guide_name])
                ]
            )
        positions = [len(ours_by_name[target_name]) for _, target_name in pairs]
        found = values.detach().split(positions)
        self.similarities = {pair: value.mean() for pair, value in zip(pairs, found)}
        return (1 - values).sum() if self.reduction == "sum" else (1 - values).mean()

    def _arranged(self, name: str, features: Tensor) -> Float[Tensor, "positions batch features"]:
        """The comparisons that a layer takes part in: one, or one a position."""
        if not features.is_floating_point():
            raise ValueError(f"the output of {name!r} must be floating point to be compared, got {features.dtype}")
        if not self.per_token:
            return features.reshape(1, len(features), -1)
        if features.ndim != 3:
            raise ValueError(
                f"per_token compares outputs of shape (batch, length, features), {name!r} gives "
                f"{tuple(features.shape)}; choose the layers of sequences"
            )
        return features.transpose(0, 1)


def _check_lengths(pairs: list[tuple[str, str]], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for guide_name, target_name in pairs:
        if len(ours[target_name]) != len(theirs[guide_name]):
            raise ValueError(
                f"per_token needs equally long sequences, {target_name!r} of the target has "
                f"{len(ours[target_name])} positions and {guide_name!r} of the guide {len(theirs[guide_name])}"
            )


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}")
