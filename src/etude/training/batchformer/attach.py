"""BatchFormer in a model that stays as it is written, by hooks; and the optimizer's parameter groups.

Hou et al., "BatchFormer", CVPR 2022, arXiv:2203.01522.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from etude.training.batchformer.mixing import BatchFormer

__all__ = ["BatchFormerHandle", "attach_batchformer", "param_groups_with_batchformer"]

_NAME = "batchformer"


class BatchFormerHandle:
    """A BatchFormer attached to a model; made by `attach_batchformer`.

    Attributes:
        model: the model it is attached to.
        batchformer: the layer.
    """

    def __init__(
        self, model: nn.Module, batchformer: BatchFormer, feature_module: nn.Module | None, classifier: nn.Module
    ):
        self.model, self.batchformer = model, batchformer
        self._home = _leaf(classifier)
        self._home.add_module(_NAME, batchformer)
        self._rows = 0
        # Hooks are bound methods, not closures: a deep copy of the model then has a handle of its own.
        if feature_module is None:
            self._hooks = [classifier.register_forward_pre_hook(self._double_input)]
        else:
            self._hooks = [
                feature_module.register_forward_hook(self._double_output),
                classifier.register_forward_pre_hook(self._check_input),
            ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the layer."""
        return self.batchformer.parameters()

    def remove(self) -> None:
        """Takes the layer out of the model, whose `state_dict` then has its original keys again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if getattr(self._home, _NAME, None) is self.batchformer:
            delattr(self._home, _NAME)

    def _double(self, features: Any) -> Tensor:
        if not isinstance(features, Tensor):
            raise TypeError(f"BatchFormer needs features as one tensor, got {type(features).__name__}")
        pooled = features.ndim == 4 and features.shape[2:] == (1, 1)
        doubled = self.batchformer(features.flatten(1) if pooled else features)
        self._rows = len(doubled)
        return doubled[..., None, None] if pooled else doubled

    def _double_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self._double(output) if self.model.training else None

    def _double_input(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not self.model.training:
            return None
        if not args:
            raise TypeError("the classifier must receive the features as its first positional argument")
        return (self._double(args[0]), *args[1:])

    def _check_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.model.training and (not args or not isinstance(args[0], Tensor) or len(args[0]) != self._rows):
            got = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else "no tensor"
            raise ValueError(
                f"the classifier must receive the {self._rows} rows of the doubled features, got {got}: it does not "
                "read the feature module's output"
            )


def attach_batchformer(
    model: nn.Module,
    feature_module: nn.Module | str | None,
    classifier_module: nn.Module | str,
    dim: int | None = None,
    **options: Any,
) -> BatchFormerHandle:
    """Puts a BatchFormer between the features and the classifier of a model, in training only.

        handle = attach_batchformer(resnet, "avgpool", "fc")
        optimizer = torch.optim.SGD(param_groups_with_batchformer(resnet, handle.batchformer, lr=0.1), momentum=0.9)
        loss = two_stream_loss(resnet(images), labels)      # 2N rows while resnet.training
        ...
        handle.remove()                                     # before saving for use elsewhere

    The layer becomes a part of the classifier's first leaf, `fc.batchformer` here: it moves, trains, saves and
    synchronises with the model (attach before wrapping in `DistributedDataParallel`), and no `nn.Sequential` takes
    it for one of its steps. It acts while `model.training`; in evaluation the model's output is bit for bit what it
    was. Feature modules that the model calls for several views are doubled at each call.

    Args:
        model: any module.
        feature_module: a part of the model, or its name, whose output are the pooled features, (N, C) or
            (N, C, 1, 1); None doubles the first input of the classifier instead.
        classifier_module: the part, or its name, that reads them. It must see both halves: this is checked.
        dim: C; None reads it from the classifier's first linear layer.
        options: of `BatchFormer`.

    Returns:
        The handle, which owns the layer.

    Raises:
        ValueError: if a part is not in the model or stands in it under several names, `dim` cannot be told, or the
            classifier has a `batchformer` already.
    """
    classifier = _part(model, classifier_module)
    if hasattr(_leaf(classifier), _NAME):
        raise ValueError(f"the classifier has a {_NAME!r} already: remove the other handle first")
    features = None if feature_module is None else _part(model, feature_module)
    if features is classifier:
        raise ValueError("feature_module and classifier_module must be two modules, or feature_module None")
    if dim is None:
        linear = next((module for module in classifier.modules() if isinstance(module, nn.Linear)), None)
        if linear is None:
            raise ValueError(
                f"the classifier {type(classifier).__name__} has no linear layer to read dim from: give dim"
            )
        dim = linear.in_features
    batchformer = BatchFormer(dim, **options)
    like = next(model.parameters(), None)
    if like is not None:
        batchformer.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)
    batchformer.train(model.training)
    return BatchFormerHandle(model, batchformer, features, classifier)


def _leaf(module: nn.Module) -> nn.Module:
    """The first part without parts of its own, but for an attached layer: no forward pass runs over its children."""
    return next(part for part in module.modules() if all(name == _NAME for name, _ in part.named_children()))


def _part(model: nn.Module, part: nn.Module | str) -> nn.Module:
    named = list(model.named_modules(remove_duplicate=False))
    found = dict(named).get(part) if isinstance(part, str) else part
    if found is None:
        raise ValueError(f"the model has no module {part!r}, it has {[name for name, _ in named if name][:12]}")
    names = [name for name, module in named if module is found]
    if not names:
        raise ValueError(f"the given {type(found).__name__} is no part of the model")
    if len(names) > 1:
        raise ValueError(
            f"the module stands in the model under several names, {', '.join(map(repr, names))}: its batch would be "
            "doubled at each of them"
        )
    if names == [""]:
        raise ValueError("the features and the classifier must be parts of the model, got the model itself")
    return found


def param_groups_with_batchformer(
    model: nn.Module, batchformer: nn.Module, lr: float | int, bf_lr_scale: float | int = 0.1
) -> list[dict[str, Any]]:
    """Parameter groups in which the layer learns at a rate of its own; the authors' long-tailed runs use a tenth.

    Args:
        model: everything else; may contain `batchformer`.
        batchformer: the layer, or a `ModuleList` of layers.
        lr: learning rate of the model's own parameters.
        bf_lr_scale: what the layer's rate is multiplied by, >= 0.

    Returns:
        Two groups, the model's and the layer's, without a parameter in both.

    Raises:
        ValueError: if a rate is negative, or a parameter of the layer is tied to one elsewhere in the model.
    """
    if lr < 0 or bf_lr_scale < 0:
        raise ValueError(f"lr and bf_lr_scale must not be negative, got {lr} and {bf_lr_scale}")
    own = list(batchformer.parameters())
    inside = {id(module) for module in batchformer.modules()}
    ours = {id(parameter) for parameter in own}
    rest: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        # A container that merely holds the layer has no parameter of its own here.
        for name, parameter in module.named_parameters(recurse=False):
            if id(module) in inside:
                continue
            if id(parameter) in ours:
                full = f"{path}.{name}" if path else name
                raise ValueError(f"{full} is tied to a parameter of the BatchFormer layer: it cannot have two rates")
            rest[id(parameter)] = parameter
    return [
        {"params": list(rest.values()), "lr": float(lr)},
        {"params": own, "lr": float(lr) * float(bf_lr_scale)},
    ]
