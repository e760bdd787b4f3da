"""Sampling in modules of one's own, when to sample, and ensembles of the sub-networks.

Hussain, Zaki & Subramanian, arXiv:2306.01705, sections 3.3 and 3.4.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from etude.nn.transformer import SelfAttention
from etude.sequence.ssa.attention import subsampled_attention
from etude.sequence.ssa.settings import Subsampling

__all__ = ["SSASchedule", "apply_ssa", "dense_attention", "layers_of", "remove_ssa", "self_ensemble", "subsampled"]


_SDPA = F.scaled_dot_product_attention


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Modules of a model that sample their sources: `SubsampledAttention` and what `apply_ssa` was applied to.

    Raises:
        ValueError: if there is none.
    """
    found = [module for module in model.modules() if isinstance(getattr(module, "ssa", None), Subsampling)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer that samples its sources: see apply_ssa")
    return found


def _settings(model: nn.Module) -> list[Subsampling]:
    return [vars(layer)["ssa"] for layer in layers_of(model)]


class _Sampling(TorchFunctionMode):
    """Answers `scaled_dot_product_attention` by sampled sources, wherever it is called."""

    def __init__(self, settings: Subsampling):
        super().__init__()
        self.settings = settings

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if func is _SDPA:
            return self._answer(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            # A function of Python's, within which no mode is asked: it looks the name up among its globals.
            with patch.object(F, "scaled_dot_product_attention", self._answer):
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def _answer(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa and key.shape[1] != query.shape[1]:
            times = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        squeezed = query.ndim == 3
        if squeezed:  # heads and batch in one
            query, key, value = (x[:, None] for x in (query, key, value))
            attn_mask = attn_mask[:, None] if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        n, m = query.shape[2], key.shape[2]
        own = n == m
        causal = is_causal or (own and _is_causal(attn_mask))
        sets = self.settings.draw(len(query), n, causal=causal, num_sources=None if own else m, device=query.device)
        out = subsampled_attention(
            query, key, value, sets, causal=is_causal, attn_mask=attn_mask, scale=scale, dropout=dropout_p,
            self_keys=own, logit_bias=self.settings.logit_bias,
        )  # fmt: skip
        return out[:, 0] if squeezed else out


def _is_causal(attn_mask: Tensor | None) -> bool:
    """Whether a mask hides exactly what comes later, in which case blocks need not reach forwards."""
    if attn_mask is None or attn_mask.ndim != 2 or attn_mask.shape[0] != attn_mask.shape[1]:
        return False
    hidden = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask == float("-inf")
    return torch.equal(hidden, torch.ones_like(hidden).triu(1))


def _attends(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention | SelfAttention)


def apply_ssa(
    model: nn.Module,
    fraction: float | int = 0.25,
    *,
    sampler: str = "local",
    window: int | None = None,
    sigma: float | int | None = None,
    per_row: bool = True,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> list[nn.Module]:
    """Makes the attention of any model sample its sources, in place; parameters and their names stay.

        apply_ssa(model, 0.25, where=lambda name, module: name.endswith("self_attn"))

    Within the chosen modules, calls of `torch.nn.functional.scaled_dot_product_attention` are answered by sampled
    sources, masks included. Modules that compute their weights by hand are left as they are, which is refused at the
    first forward pass that samples: `nn.MultiheadAttention` must be called with need_weights=False, as
    `nn.TransformerEncoderLayer` does.

    Args:
        model: changed in place.
        fraction, sampler, window, sigma, per_row: see `Subsampling`.
        where: (name, module) -> whether a module is such an attention; those of torch and of `etude.nn.transformer` if
            None.

    Returns:
        The modules that were found.

    Raises:
        ValueError: if there is none, or one samples already.
    """
    chosen = [
        (name, module)
        for name, module in model.named_modules()
        if (where(name, module) if where is not None else _attends(module))
    ]
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no attention that could sample: say which modules with where=")
    for name, module in chosen:
        if isinstance(getattr(module, "ssa", None), Subsampling):
            raise ValueError(f"{name or type(module).__name__} samples its sources already")
    for _, module in chosen:
        settings = Subsampling(fraction, sampler, window, sigma, per_row)
        module.ssa = settings  # type: ignore[assignment]
        module._ssa_hooks = _hooked(module, settings)  # type: ignore[assignment]
    return [module for _, module in chosen]


def remove_ssa(model: nn.Module) -> None:
    """Takes back what `apply_ssa` did."""
    for module in model.modules():
        if hasattr(module, "_ssa_hooks"):
            for hook in module._ssa_hooks:  # type: ignore[union-attr]
                hook.remove()
            del module._ssa_hooks, module.ssa


def _hooked(module: nn.Module, settings: Subsampling) -> list[Any]:
    running: list[_Sampling] = []

    def enter(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if settings.samples(module.training):
            if isinstance(module, nn.MultiheadAttention) and kwargs.get("need_weights", len(args) < 5 or args[4]):
                raise ValueError("attention that samples its sources has no weights to give: need_weights=False")
            running.append(_Sampling(settings))
            running[-1].__enter__()

    def leave(*_: Any) -> None:
        if running:
            running.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter, with_kwargs=True),
        module.register_forward_hook(leave, always_call=True),
    ]


@contextlib.contextmanager
def _in_mode(model: nn.Module, mode: str, **changes: Any) -> Iterator[None]:
    wanted = {"mode": mode, **changes}
    before = [(settings, {name: getattr(settings, name) for name in wanted}) for settings in _settings(model)]
    try:
        for settings, _ in before:
            for name, value in wanted.items():
                setattr(settings, name, value)
        yield
    finally:
        for settings, values in before:
            for name, value in values.items():
                setattr(settings, name, value)


@contextlib.contextmanager
def dense_attention(model: nn.Module) -> Iterator[None]:
    """Within it no layer samples, not even while training."""
    with _in_mode(model, "never"):
        yield


@contextlib.contextmanager
def subsampled(
    model: nn.Module,
    generator: torch.Generator | None = None,
    *,
    fraction: float | int | None = None,
    window: int | None = None,
) -> Iterator[None]:
    """Within it every layer samples, in evaluation mode too; each layer and pass draws anew.

    Args:
        model: with layers that sample.
        generator: of the draws; each layer's own if None.
        fraction: instead of the layers' own; their windows and sigmas are then those that fit the fraction.
        window: with a fraction, the window of `local`.
    """
    changes: dict[str, Any] = {}
    if generator is not None:
        changes["generator"] = generator
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
        changes |= {"fraction": fraction, "window": window, "sigma": None}
    with _in_mode(model, "always", **changes):
        yield


class SSASchedule:
    """Samples until the last part of the training, which is dense: the fine-tuning of section 3.3.

        schedule = SSASchedule(model, total_steps=1_000, dense_tail=0.1)
        fit(model, ..., callbacks=[lambda step, *_, **__: schedule.step()])

    Args:
        model: with layers that sample.
        total_steps: updates of the training.
        dense_tail: share of the updates at the end that are dense, 0 to 1.
        fraction: step -> fraction, in place of the layers' own before the tail.
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        dense_tail: float | int = 0.1,
        fraction: Callable[[int], float] | None = None,
    ):
        if total_steps < 1 or not 0 <= dense_tail <= 1:
            raise ValueError(f"need total_steps >= 1 and 0 <= dense_tail <= 1, got {total_steps} and {dense_tail}")
        self.settings = _settings(model)
        self.total_steps, self.fraction = total_steps, fraction
        self.dense_from = total_steps - round(dense_tail * total_steps)
        self.steps = 0
        self._set()

    def step(self) -> None:
        """After an update."""
        self.steps += 1
        self._set()

    def _set(self) -> None:
        for settings in self.settings:
            settings.mode = "never" if self.steps >= self.dense_from else "training"
            if self.fraction is not None and self.steps < self.dense_from:
                settings.fraction = self.fraction(self.steps)


@torch.no_grad()
def self_ensemble(
    model: nn.Module,
    x: Any,
    num_samples: int = 8,
    *,
    reduce: str = "prob",
    generator: torch.Generator | None = None,
    fraction: float | int | None = None,
) -> Tensor:
    """The average over sub-networks, each one draw of the samples of all layers; no training is needed.

    Args:
        model: with layers that sample; put into evaluation mode for the time.
        x: its input.
        num_samples: draws; the paper takes 10 to 50.
        reduce: "prob": the mean of softmax(outputs) over the last dimension, not of the logits; "mean": of the outputs.
        generator: of the draws.
        fraction: instead of the layers' own.

    Returns:
        Probabilities, or mean outputs.

    Raises:
        ValueError: for another `reduce`, or no sample.
    """
    if reduce not in ("prob", "mean") or num_samples < 1:
        raise ValueError(f"need reduce 'prob' or 'mean' and num_samples >= 1, got {reduce!r} and {num_samples}")
    training = model.training
    model.eval()
    total: Tensor | None = None
    try:
        with subsampled(model, generator, fraction=fraction):
            for _ in range(num_samples):
                output = model(x)
                output = output.softmax(-1) if reduce == "prob" else output
                total = output if total is None else total + output
    finally:
        model.train(training)
    assert total is not None
    return total / num_samples
