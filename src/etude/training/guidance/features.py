"""Reading the layers of a network while it runs, by forward hooks.

Which layers, in the order in which they run: convolutions, linear layers, adaptive average pools, LSTMs, RNNs,
Transformer decoder layers, layer norms and multi-head attention. Their outputs come before normalisation and
activation. The last of them, the logits, is left out: matching logits would be distillation.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence
from torch.utils.hooks import RemovableHandle

__all__ = ["DEFAULT_LAYERS", "FeatureTap", "Layers"]

DEFAULT_LAYERS = (
    nn.Conv2d,
    nn.Linear,
    nn.AdaptiveAvgPool2d,
    nn.LSTM,
    nn.RNN,
    nn.TransformerDecoderLayer,
    nn.LayerNorm,
    nn.MultiheadAttention,
)
"""Types of the modules that are tapped unless others are asked for."""

Layers = Sequence[str] | Callable[[str, nn.Module], bool] | None
"""Which modules to tap: their names, a predicate of name and module, or None for `DEFAULT_LAYERS`."""


class FeatureTap:
    """Collects the outputs of a network's layers in every forward pass inside the block.

        with FeatureTap(model) as features:
            logits = model(x)
        features["layer1.0.conv1"]              # (batch, ...), in the graph of `logits`

    `features` always holds the last forward pass: each one begins it anew. A module that runs several times in a pass
    gives `name`, `name#2`, `name#3`, ...; one that returns a tuple gives `name`, `name[1]`, ..., except that recurrent
    layers give their output sequence alone, padded if it was packed. An output whose first axis does not have the
    size of the batch is turned round if exactly one other axis has it, and left out otherwise. The batch is the first
    axis of the first tensor that the network is given.

    An activation module that works in place on a tapped output gets the output, the tap a copy from before.

    Args:
        model: whose layers are read. Its forward pass must be called as `model(...)`, through its hooks.
        layers: names of the modules, a predicate of (name, module), or None for `DEFAULT_LAYERS`.
        detach: keep the outputs without their graph.
        exclude_last: leave out the output of the layer that ran last, the logits. True unless layers are named.
        enabled: asked at the beginning of each pass whether to collect; always, if None.

    Raises:
        ValueError: if a name is not that of a module.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = None,
        *,
        detach: bool = False,
        exclude_last: bool | None = None,
        enabled: Callable[[], bool] | None = None,
    ):
        self.model, self.detach = model, detach
        self.exclude_last = (layers is None or callable(layers)) if exclude_last is None else exclude_last
        self.features: dict[str, Tensor] = {}
        self.inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._modules = _chosen(model, layers)
        self._enabled = enabled
        self._handles: list[RemovableHandle] = []
        self._batch: int | None = None
        self._runs: dict[str, int] = {}
        self._last: str | None = None
        self._versions: dict[str, int] = {}

    def __enter__(self) -> dict[str, Tensor]:
        if self._handles:
            raise RuntimeError("the tap is open already; make another one for a nested block")
        self._handles.append(self.model.register_forward_pre_hook(self._begin, with_kwargs=True, prepend=True))
        for name, module in self._modules:
            self._handles.append(module.register_forward_hook(self._collector(name)))
        for module in self.model.modules():
            if getattr(module, "inplace", False) is True:
                self._handles.append(module.register_forward_pre_hook(self._before_in_place))
        self._handles.append(self.model.register_forward_hook(self._end))
        return self.features

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._batch = None

    def clear(self) -> None:
        """Lets go of the features and inputs of the last pass."""
        self.features.clear()
        self.inputs = None
        self._runs.clear()
        self._last = None
        self._versions.clear()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.clear()
        self._batch = None
        if self._enabled is not None and not self._enabled():
            return
        self._batch = _batch_size((*args, *kwargs.values()))
        self.inputs = (args, kwargs)

    def _collector(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def collect(module: nn.Module, args: Any, output: Any) -> None:
            if self._batch is None:
                return
            self._runs[name] = run = self._runs.get(name, 0) + 1
            called = name if run == 1 else f"{name}#{run}"
            if isinstance(output, tuple | list):
                outputs = output[:1] if isinstance(module, nn.RNNBase) else output
            else:
                outputs = [output]
            for index, part in enumerate(outputs):
                self._keep(called if index == 0 else f"{called}[{index}]", part)

        return collect

    def _keep(self, name: str, output: Any) -> None:
        if isinstance(output, PackedSequence):
            output, _ = pad_packed_sequence(output, batch_first=True)
        if not isinstance(output, Tensor):
            return
        self._last = name
        batch_first = _batch_first(output, self._batch)
        if batch_first is not None:
            self.features[name] = batch_first.detach() if self.detach else batch_first
            if not batch_first.is_inference():
                self._versions[name] = batch_first._version

    def _before_in_place(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        for name, kept in self.features.items():
            if args and isinstance(args[0], Tensor) and _same_storage(kept, args[0]):
                self.features[name] = kept.clone()
                self._versions.pop(name, None)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._batch is None:
            return
        self._batch = None
        if self.exclude_last and self._last is not None:
            self.features.pop(self._last, None)
        for name, kept in self.features.items():
            if name in self._versions and kept._version != self._versions[name]:
                raise RuntimeError(
                    f"the output of {name!r} was changed in place after the tap had read it; tap the module after the "
                    "change, or make it out of place"
                )


def _chosen(model: nn.Module, layers: Layers) -> list[tuple[str, nn.Module]]:
    named = {name or type(module).__name__: module for name, module in model.named_modules()}
    if layers is None:
        return [(name, module) for name, module in named.items() if isinstance(module, DEFAULT_LAYERS)]
    if callable(layers):
        return [(name, module) for name, module in named.items() if layers(name, module)]
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got the string {layers!r}")
    for name in layers:
        if name not in named:
            close = get_close_matches(name, named, n=3) or list(named)[:6]
            raise ValueError(f"{type(model).__name__} has no module {name!r}; it has, for example, {', '.join(close)}")
    return [(name, named[name]) for name in layers]


def _tensors(values: Sequence[Any]) -> Iterator[Tensor | PackedSequence]:
    for value in values:
        if isinstance(value, Tensor | PackedSequence):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _batch_size(inputs: Sequence[Any]) -> int:
    first = next(_tensors(inputs), None)
    if isinstance(first, PackedSequence):
        return int(first.batch_sizes[0])
    if first is None or first.ndim == 0:
        raise ValueError(
            f"the network was given no tensor that holds a batch, got {[type(v).__name__ for v in inputs]}"
        )
    return len(first)


def _batch_first(output: Tensor, batch: int | None) -> Tensor | None:
    """The output with the batch along its first axis; None if no axis, or more than one, could be it."""
    if output.ndim and output.shape[0] == batch:
        return output
    axes = [axis for axis, size in enumerate(output.shape) if size == batch]
    return output.swapaxes(0, axes[0]) if len(axes) == 1 else None


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
