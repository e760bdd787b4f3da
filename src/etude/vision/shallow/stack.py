"""A stack of residual layers of equal width, in sequence or side by side, with the same parameters."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from etude.vision.shallow.branches import BottleneckBranch, ConvBranch, branch_scale_of, initialize_branch, is_linear
from etude.vision.shallow.expansion import taylor_expand

__all__ = ["LAYOUTS", "ResidualStack"]

LAYOUTS = ("sequential", "parallel")
_BLOCKS: dict[str, Callable[..., nn.Module]] = {"conv": ConvBranch, "bottleneck": BottleneckBranch}


class ResidualStack(nn.Module):
    """K residual functions f_1 .. f_K in one of two layouts:

        sequential    x_{k+1} = x_k + f_k(x_k), one after the other
        parallel      y = x + sum_k f_k(x), all of the same x

    Both have the same parameters under the same names: either state dict loads into the other, and `to_parallel()`
    and `to_sequential()` give the other layout of the very same tensors. With `order` r > 1 the parallel layout
    keeps the terms up to order r of the expansion (see `taylor_expand`), which is defined for linear branches.

        deep = ResidualStack(channels=16, num_layers=8)
        shallow = deep.to_parallel()                                       # shares every weight
        linear = ResidualStack([nn.Linear(5, 5) for _ in range(4)], layout="parallel", order=2)

    The parallel layout of convolutional branches is fused: one convolution C -> K C with the joined weights, one
    activation, one sum over the K groups. It holds K maps at a time; `chunk` and `checkpoint` bound that.

    Args:
        branches: the functions, each preserving the shape of its input. Otherwise they are made from what follows.
        channels: C, of input and output.
        num_layers: K.
        kernel_size: of the convolutions, odd.
        activation: "relu", "sigmoid", "tanh", "gelu" or "identity" (linear branches).
        block: "conv" (f = sigma(conv(x)), one convolution a layer), "bottleneck", or a function channels -> module.
        batch_norm: a batch norm after each convolution, with statistics of each branch's own in either layout.
        layout: "sequential" or "parallel".
        order: of the parallel layout, at least 1; above K it is K.
        residual: without it the skips are left out: f_K(..f_1(x)), or sum_k f_k(x).
        fused: whether the parallel layout is computed at once where it can be; the numbers are the same.
        branch_scale: "init": He initialisation times 1 / sqrt(K), zero bias, under which neither the sum of K branches
            nor the stack's growth depends much on K; "he": without the factor; None: as PyTorch or `block` starts them.
            Either layout starts alike.
        chunk: at most so many branches are computed at once in the fused layout; all if None.
        checkpoint: recompute the branches' maps on the way back instead of keeping them, chunk by chunk.

    Raises:
        ValueError: if arguments contradict each other, or on the way forward if a branch changes the shape.
    """

    def __init__(
        self,
        branches: Sequence[nn.Module] | None = None,
        *,
        channels: int | None = None,
        num_layers: int | None = None,
        kernel_size: int = 3,
        activation: str = "relu",
        block: str | Callable[[int], nn.Module] = "conv",
        batch_norm: bool = False,
        layout: str = "sequential",
        order: int = 1,
        residual: bool = True,
        fused: bool = True,
        branch_scale: str | None = None,
        chunk: int | None = None,
        checkpoint: bool = False,
    ):
        super().__init__()
        _check(layout, order, branch_scale, chunk)
        if branches is None:
            if channels is None or num_layers is None:
                raise ValueError(f"give branches, or channels and num_layers; got {channels} and {num_layers}")
            if num_layers < 1:
                raise ValueError(f"num_layers must be positive, got {num_layers}")
            make = _maker(block, kernel_size, activation, batch_norm)
            branches = [make(channels) for _ in range(num_layers)]
            if branch_scale is not None:
                if callable(block):
                    raise ValueError(f"branch_scale={branch_scale!r} starts the built-in blocks; a callable its own")
                for branch in branches:
                    initialize_branch(branch, branch_scale_of(branch_scale, num_layers))
        elif channels is not None or num_layers is not None or branch_scale is not None:
            raise ValueError("branches come as they are: give no channels, num_layers or branch_scale beside them")
        if not branches:
            raise ValueError("a stack needs at least one branch, got none")
        self.branches = nn.ModuleList(branches)
        self.layout = layout
        self.order = min(order, len(self.branches))
        self.residual, self.fused, self.chunk, self.checkpoint = residual, fused, chunk, checkpoint
        if order > 1 and not residual:
            raise ValueError(f"order {order} is of the expansion of residual layers: residual must be True")
        if self.order > 1 and layout == "parallel":
            bad = [index for index, branch in enumerate(self.branches) if not is_linear(branch)]
            if bad:
                raise ValueError(
                    f"order {order} is defined for linear branches only, branch {bad[0]} is "
                    f"{type(self.branches[bad[0]]).__name__}: see second_order_residual for others"
                )
        if checkpoint and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.modules()):
            raise ValueError("checkpoint=True would count each batch twice in the running statistics of batch norms")

    def __len__(self) -> int:
        return len(self.branches)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "sequential":
            for index in range(len(self)):
                out = self._applied(index, x)
                x = x + out if self.residual else out
            return x
        if self.order > 1:
            return taylor_expand([_Checked(self, index) for index in range(len(self))], x, self.order)
        total = x if self.residual else None
        for part in self._parts():
            total = part(x) if total is None else total + part(x)
        assert total is not None
        return total

    def to_parallel(self, order: int = 1) -> "ResidualStack":
        """The parallel layout of the same modules: training one trains the other."""
        return self._as("parallel", order)

    def to_sequential(self) -> "ResidualStack":
        """The sequential layout of the same modules."""
        return self._as("sequential", 1)

    def extra_repr(self) -> str:
        return f"layout={self.layout!r}, order={self.order}, residual={self.residual}"

    def _as(self, layout: str, order: int) -> "ResidualStack":
        stack = ResidualStack(
            list(self.branches), layout=layout, order=order, residual=self.residual, fused=self.fused,
            chunk=self.chunk, checkpoint=self.checkpoint,
        )  # fmt: skip
        stack.training = self.training
        stack.branches.training = self.training
        return stack

    def _applied(self, index: int, x: Tensor) -> Tensor:
        branch = self.branches[index]
        out = recomputed(branch, x, use_reentrant=False) if self._recomputes() else branch(x)
        if out.shape != x.shape:
            raise ValueError(
                f"branch {index} ({type(branch).__name__}) turns shape {tuple(x.shape)} into {tuple(out.shape)}; "
                "residual layers keep the shape"
            )
        return out

    def _recomputes(self) -> bool:
        return self.checkpoint and torch.is_grad_enabled()

    def _parts(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Functions of x whose values add up to the sum of all branches."""
        if not (self.fused and _alike(self.branches)):
            yield from (_Checked(self, index) for index in range(len(self)))
            return
        size = self.chunk or len(self)
        for start in range(0, len(self), size):
            group: list[Any] = list(self.branches)[start : start + size]
            if self._recomputes():
                yield partial(recomputed, _fused_sum, group, use_reentrant=False)
            else:
                yield partial(_fused_sum, group)


class _Checked:
    """A branch that refuses to change the shape."""

    def __init__(self, stack: ResidualStack, index: int):
        self.stack, self.index = stack, index

    def __call__(self, x: Tensor) -> Tensor:
        return self.stack._applied(self.index, x)


def _check(layout: str, order: int, branch_scale: str | None, chunk: int | None) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    if branch_scale not in (None, "init", "he"):
        raise ValueError(f"branch_scale must be 'init', 'he' or None, got {branch_scale!r}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be positive, got {chunk}")


def _maker(
    block: str | Callable[[int], nn.Module], kernel_size: int, activation: str, batch_norm: bool
) -> Callable[[int], nn.Module]:
    if callable(block):
        return block
    if block not in _BLOCKS:
        raise ValueError(f"block must be one of {', '.join(_BLOCKS)} or a function, got {block!r}")
    return lambda channels: _BLOCKS[block](channels, kernel_size, activation, batch_norm)


def _alike(branches: nn.ModuleList) -> bool:
    """Whether one convolution can do for all branches: plain `ConvBranch`es of one shape, activation and norm."""
    kinds: set[Any] = set()
    for branch in branches:
        if type(branch) is not ConvBranch or branch._forward_hooks or branch._forward_pre_hooks:
            return False
        norm = branch.norm
        if norm is not None and (norm.momentum is None or not norm.track_running_stats or not norm.affine):
            return False
        how = None if norm is None else (norm.eps, norm.momentum, norm.training)
        kinds.add((tuple(branch.conv.weight.shape), repr(branch.activation), how))
    return len(kinds) == 1


def _joined(tensors: Sequence[Any]) -> Tensor:
    return torch.cat(list(tensors))


def _fused_sum(group: Sequence[ConvBranch], x: Tensor) -> Tensor:
    """sum_k sigma(norm_k(conv_k(x))) by one convolution with the joined weights."""
    first = group[0]
    weight = _joined([branch.conv.weight for branch in group])
    bias = _joined([branch.conv.bias for branch in group])
    if x.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"expected (batch, {weight.shape[1]}, height, width), got shape {tuple(x.shape)}")
    maps = F.conv2d(x, weight, bias, padding=first.conv.padding)
    if first.norm is not None:
        maps = _fused_norm([branch.norm for branch in group if branch.norm is not None], maps)
    return first.activation(maps).unflatten(1, (len(group), -1)).sum(1)


def _fused_norm(norms: Sequence[nn.BatchNorm2d], maps: Tensor) -> Tensor:
    """Batch norm over the channels of all branches, each with its own statistics, which are written back."""
    first = norms[0]
    mean, var = (_joined([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var"))
    weight, bias = (_joined([getattr(norm, name) for norm in norms]) for name in ("weight", "bias"))
    out = F.batch_norm(maps, mean, var, weight, bias, first.training, float(first.momentum or 0.0), first.eps)
    if first.training:
        with torch.no_grad():
            for norm, own_mean, own_var in zip(norms, mean.chunk(len(norms)), var.chunk(len(norms))):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean.copy_(own_mean)
                norm.running_var.copy_(own_var)
                if norm.num_batches_tracked is not None:
                    norm.num_batches_tracked.add_(1)
    return out
