"""Networks of stacked cells for CIFAR and ImageNet, with the auxiliary head and ScheduledDropPath."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from etude.nas.nasnet.cell import NASNetCell
from etude.nas.nasnet.genotype import NASNET_A, Genotype
from etude.nas.nasnet.operations import initialize

__all__ = [
    "AuxiliaryHead",
    "DropPathSchedule",
    "NASNet",
    "auxiliary_loss",
    "nasnet_a_cifar",
    "nasnet_a_large",
    "nasnet_a_mobile",
]

_UNSET = -1.0


@dataclass(frozen=True)
class DropPathSchedule:
    """Probability that a path is kept, over training and depth.

        keep_c = 1 - ((c + 1) / C) (1 - final_keep)                     the official code's, at the end of training
        keep(t) = 1 - min(1, t / T) (1 - keep_c)                        section 3

    Args:
        final_keep: of the last cell at the end, in (0, 1].
        total_steps: T > 0, in any unit.
        scale_by_depth: False keeps all cells alike, as in the paper's text.

    Raises:
        ValueError: for arguments out of range, or a `final_keep` below 1 without `total_steps`.
    """

    final_keep: float = 1.0
    total_steps: float | int | None = None
    scale_by_depth: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.final_keep <= 1:
            raise ValueError(f"the probability to keep a path must lie in (0, 1], got {self.final_keep}")
        if self.total_steps is None and self.final_keep < 1:
            raise ValueError(f"total_steps is unset: paths are kept with {self.final_keep} only at its end")
        if self.total_steps is not None and not self.total_steps > 0:
            raise ValueError(f"total_steps must be positive, got {self.total_steps}")

    def keep(self, step: float | int, cell: int, num_cells: int) -> float:
        """The probability at `step` in cell number `cell` of `num_cells`."""
        if not 0 <= cell < num_cells:
            raise ValueError(f"cell must lie in 0..{num_cells - 1}, got {cell}")
        depth = (cell + 1) / num_cells if self.scale_by_depth else 1.0
        past = 0.0 if self.total_steps is None else min(1.0, step / self.total_steps)
        return 1 - past * depth * (1 - self.final_keep)


class AuxiliaryHead(nn.Module):
    """A second classifier half-way up, for training alone: its logits join the loss with weight 0.4.

    Args:
        in_dim: channels of the map.
        num_classes: logits.
        size: height and width of the map, at least 5: the last convolution covers all that the pooling leaves.

    Raises:
        ValueError: if the map is smaller than 5 x 5.
    """

    def __init__(self, in_dim: int, num_classes: int, size: tuple[int, int]):
        super().__init__()
        if min(size) < 5:
            raise ValueError(f"the auxiliary head pools 5 x 5 pixels, its map has {size[0]} x {size[1]}")
        left = ((size[0] - 5) // 3 + 1, (size[1] - 5) // 3 + 1)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.AvgPool2d(5, 3), nn.Conv2d(in_dim, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 768, left, bias=False), nn.BatchNorm2d(768), nn.ReLU(), nn.Flatten(),
            nn.Linear(768, num_classes),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.layers(x)


def auxiliary_loss(
    outputs: Tensor | tuple[Tensor, Tensor],
    targets: Tensor,
    weight: float | int = 0.4,
    label_smoothing: float | int = 0.0,
) -> Tensor:
    """Cross-entropy of what `NASNet` gives while training: of the logits, plus `weight` times that of the second head.

    fit(model, data.train, optimizer, loss=auxiliary_loss, callbacks=[model.follow], epochs=600)
    """
    logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    for other in others:
        loss = loss + weight * F.cross_entropy(other, targets, label_smoothing=label_smoothing)
    return loss


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms leave their running statistics alone: a forward pass that is repeated counts once."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    before = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(norms, before):
            layer.momentum = momentum


class NASNet(nn.Module, PyTorchModelHubMixin):
    """N normal cells, a reduction, N normal cells, a reduction, N normal cells; filters double at each reduction.

        model = NASNet(num_classes=10)                                  # NASNet-A, 6 @ 768
        model = NASNet(Genotype.random(0), num_classes=5, cells_per_stage=2, filters=16)

    "N @ P" of the paper is `cells_per_stage` @ 24 `filters`.

    Args:
        genotype: the two cells.
        num_classes: logits.
        in_chans: channels of the images.
        cells_per_stage: N.
        filters: F of the first stage, a multiple of 4 for the stem "imagenet".
        stem: "cifar": a 3 x 3 convolution; "imagenet": one of stride 2 without padding, then two reduction cells.
        stem_multiplier: width of the stem's convolution, in units of `filters` ("cifar") or 32 ("imagenet").
        skip_reduction: the h_prev of the cell behind a reduction is the output two cells before it; without, the
            output before it.
        aux_head: while training, `forward` gives (logits, logits of the second head); see `auxiliary_loss`.
        image_size: height and width of the images; needed by the second head.
        drop_path_keep: ScheduledDropPath; below 1, training needs `set_progress` or `follow`.
        scale_by_depth: as for `DropPathSchedule`.
        dropout: before the last layer.
        bn_momentum, bn_eps: of all batch norms. PyTorch's momentum is 1 - TensorFlow's decay.
        activation_checkpointing: cells keep no inner activations for the backward pass and compute them again.

    Raises:
        ValueError: for arguments out of range, or a second head without `image_size`.
    """

    def __init__(
        self,
        genotype: Genotype = NASNET_A,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        cells_per_stage: int = 6,
        filters: int = 32,
        stem: str = "cifar",
        stem_multiplier: float | int = 3,
        skip_reduction: bool = False,
        aux_head: bool = False,
        image_size: int | tuple[int, int] | None = None,
        drop_path_keep: float | int = 1.0,
        scale_by_depth: bool = True,
        dropout: float | int = 0.0,
        bn_momentum: float | int = 0.1,
        bn_eps: float | int = 1e-5,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem must be 'cifar' or 'imagenet', got {stem!r}")
        for name, value in (("num_classes", num_classes), ("in_chans", in_chans), ("cells_per_stage", cells_per_stage)):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        if filters < 1 or (stem == "imagenet" and filters % 4):
            raise ValueError(f"filters must be positive, and a multiple of 4 for the stem 'imagenet', got {filters}")
        if aux_head and image_size is None:
            raise ValueError("the second head covers its whole map: aux_head needs image_size")
        if not stem_multiplier > 0:
            raise ValueError(f"stem_multiplier must be positive, got {stem_multiplier}")
        self.genotype, self.activation_checkpointing = genotype, activation_checkpointing
        self.schedule = DropPathSchedule(float(drop_path_keep), 1.0, scale_by_depth)
        self.progress = _UNSET
        imagenet = stem == "imagenet"
        dim = int((32 if imagenet else filters) * stem_multiplier)
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dim, 3, 2 if imagenet else 1, 0 if imagenet else 1, bias=False), nn.BatchNorm2d(dim)
        )
        plan = _plan(cells_per_stage, filters, imagenet, skip_reduction)
        widths, halvings = [dim], [int(imagenet)]
        self.cells = nn.ModuleList()
        self.inputs: list[tuple[int, int | None]] = []
        for reduction, width, back in plan:
            here = len(widths) - 1
            prev = None if here == 0 else here - back
            cell = NASNetCell(
                genotype, reduction=reduction, dim=widths[here], filters=width,
                prev_dim=None if prev is None else widths[prev],
                prev_larger=prev is not None and halvings[prev] < halvings[here],
            )  # fmt: skip
            self.cells.append(cell)
            self.inputs.append((here, prev))
            widths.append(cell.out_dim)
            halvings.append(halvings[here] + reduction)
        self.halvings = halvings[-1]
        # The last normal cell before the last reduction.
        self.aux_place = len(plan) - cells_per_stage - 2
        self.aux_head = None
        if aux_head:
            assert image_size is not None
            sides = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
            for number in range(halvings[self.aux_place + 1]):
                valid = imagenet and number == 0
                sides = [(side - 3) // 2 + 1 if valid else -(-side // 2) for side in sides]
            self.aux_head = AuxiliaryHead(widths[self.aux_place + 1], num_classes, (sides[0], sides[1]))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum, layer.eps = bn_momentum, bn_eps
        for part in (self.stem, self.aux_head, self.head):
            if part is not None:
                initialize(part)
        if drop_path_keep == 1:
            self.set_progress(0.0)

    def set_progress(self, progress: float | int) -> None:
        """Says how much of training is done, in [0, 1]: t / T of the schedule.

        Raises:
            ValueError: if it is outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise ValueError(f"progress must lie in [0, 1], got {progress}")
        self.progress = float(progress)
        for number, cell in enumerate(self.cells):
            assert isinstance(cell, NASNetCell)
            cell.drop_path.rate = 1 - self.schedule.keep(self.progress, number, len(self.cells))

    def follow(self, step: int, total: int, **metrics: Any) -> None:
        """`set_progress(step / total)`, as a callback of `etude.loop.fit`; call `set_progress(0)` before."""
        self.set_progress(step / total)

    def features(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim height2 width2"]:
        """The last cell's output."""
        return self._run(x)[0]

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"] | tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Logits; while training with a second head, its logits too.

        Raises:
            ValueError: for images too small to be halved so often.
            RuntimeError: in training with `drop_path_keep` < 1, if `set_progress` was never called.
        """
        last, middle = self._run(x)
        logits = self.head(self.dropout(last.relu().mean(dim=(2, 3))))
        if self.training and self.aux_head is not None:
            return logits, self.aux_head(middle)
        return logits

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if min(x.shape[2:]) < 2**self.halvings:
            raise ValueError(
                f"images must have at least {2**self.halvings} pixels a side to be halved {self.halvings} times, "
                f"got {x.shape[2]} x {x.shape[3]}"
            )
        if self.training and self.progress == _UNSET:
            raise RuntimeError(
                f"total_steps is unset: with drop_path_keep={self.schedule.final_keep} call set_progress(t / T) "
                "before each update, or give model.follow to fit as a callback after set_progress(0)"
            )
        outputs: list[Tensor | None] = [self.stem(x)]
        last_use = {n: place for place, pair in enumerate(self.inputs) for n in pair if n is not None}
        middle = None
        for place, (cell, (here, prev)) in enumerate(zip(self.cells, self.inputs)):
            given = (outputs[here], None if prev is None else outputs[prev])
            if self.activation_checkpointing and torch.is_grad_enabled():
                outputs.append(checkpoint(cell, *given, use_reentrant=False, context_fn=_contexts(cell)))
            else:
                outputs.append(cell(*given))
            if place == self.aux_place:
                middle = outputs[-1]
            for n in (here, prev):
                if n is not None and last_use[n] == place:
                    outputs[n] = None  # freed as soon as no cell will read it
        last = outputs[-1]
        assert last is not None
        assert middle is not None
        return last, middle

    def get_extra_state(self) -> Tensor:
        """Progress, and a digest of the genotype: cells that differ in their poolings alone have equal weights."""
        return torch.tensor([self.progress, float(self.genotype.digest())], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        progress, digest = state.tolist()
        if digest != float(self.genotype.digest()):
            raise ValueError(f"the checkpoint is of another architecture than this model's {self.genotype.to_json()}")
        if progress != _UNSET:
            self.set_progress(progress)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's.

        Raises:
            ValueError: for the weights of another architecture.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            first = [line.strip() for line in str(error).splitlines()[1:2]]
            raise ValueError(f"the checkpoint is of another architecture: {' '.join(first)[:300]}") from error


def _contexts(cell: nn.Module) -> Callable[[], tuple[AbstractContextManager, AbstractContextManager]]:
    return lambda: (nullcontext(), _statistics_kept(cell))


def _plan(n: int, filters: int, imagenet: bool, skip: bool) -> list[tuple[bool, int, int]]:
    """(is a reduction, F, how many outputs before h the h_prev lies) of every cell."""
    cells = [(True, filters // 4, 1), (True, filters // 2, 1)] if imagenet else []
    for stage in range(3):
        if stage:
            cells.append((True, filters * 2**stage, 1))
        width = filters * 2**stage
        cells += [(False, width, 2 if skip and stage and not place else 1) for place in range(n)]
    return cells


_IMAGENET = {"stem": "imagenet", "num_classes": 1000, "bn_momentum": 0.0003, "bn_eps": 1e-3, "dropout": 0.5}


def nasnet_a_cifar(**options: Any) -> NASNet:
    """NASNet-A 6 @ 768 for 32 x 32 images: 3,346,538 parameters at 10 classes. ScheduledDropPath to 0.6 is
    `drop_path_keep=0.6`, the second head `aux_head=True, image_size=32`."""
    return NASNet(**{"cells_per_stage": 6, "filters": 32, **options})


def nasnet_a_mobile(**options: Any) -> NASNet:
    """NASNet-A 4 @ 1056 for 224 x 224 images: 5,289,978 parameters, 564 million multiply-adds."""
    return NASNet(**{"cells_per_stage": 4, "filters": 44, "stem_multiplier": 1, **_IMAGENET, **options})


def nasnet_a_large(**options: Any) -> NASNet:
    """NASNet-A 6 @ 4032 for 331 x 331 images: 88,753,150 parameters. The paper keeps paths with 0.7 at the end."""
    return NASNet(**{"cells_per_stage": 6, "filters": 168, "skip_reduction": True, **_IMAGENET, **options})
