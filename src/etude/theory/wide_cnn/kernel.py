"""Kernels of infinitely wide convolutional networks whose patches do not overlap, by blocks, in double precision.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003; the arc-cosine kernels are those of Cho & Saul, NIPS 2009. For
unit patches x_i, y_i and the tree of `to_patches`, from c = T = <x_i, y_i> at the leaves and once for each layer,

    c_parent = mean_j k1(c_j),    T_parent = mean_j k0(c_j) T_j + mean_j k1(c_j)                            (1)
    k0(t) = (pi - arccos t) / pi, k1(t) = (sqrt(1 - t^2) + (pi - arccos t) t) / pi

over the children j; the last mean, over the p trees, is the readout. c is the random-feature kernel (RFK, or NNGP), T
the neural tangent kernel (NTK), of nets with or without weight sharing alike. RFK(x, x) = 1 and NTK(x, x) = L + 1.

An arc cosine loses half of all digits next to 1, where equal or nearly equal patches are. So nothing here computes it:
a leaf gives the chords D = |x_i - y_i| and S = |x_i + y_i|, and every level hands on e = 1 - c and not c,

    leaf:   e = D^2 / 2,   a = 2 arctan(D / S),           sin a = D S / 2
    above:  e given,       a = 2 arcsin(sqrt(e / 2)),     sin a = sqrt(e (2 - e)),   c >= 0                  (2)
    1 - k1 = e k0 + (a - sin a) / pi,   k0 = 1 - a / pi

whose precision does not suffer where e is small or, at a leaf, near 2: equal inputs give 1 and L + 1 to the last bit,
and a kernel matrix with duplicates stays positive semi-definite.

Patches that are not unit vectors have norms: q = |x_i|^2 at a leaf, q_parent = mean_j q_j, and c is sqrt(q q') times a
correlation. With the shares u_j = sqrt(q_j / sum q), v_j likewise for y,

    e_parent = sum_j [ (u_j - v_j)^2 / 2 + u_j v_j (1 - k1)_j ]                                             (3)
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from etude.theory.wide_cnn.patches import check_filters, fan_outs, in_double, to_patches

__all__ = ["fc_ntk", "hierarchical_kernel", "kernel_diagonal"]

KINDS = ("ntk", "rfk")

_CHUNK = 160
"""Side of a block on a CPU: its dozen arrays of 0.2 MB stay in a second-level cache."""

_CHUNK_CUDA = 4096

_DIRECT = 32
"""Up to this length of a patch chords come from differences; above, from inner products, but for nearly equal ones."""


def hierarchical_kernel(
    x: Float[Tensor, "n *shape"],
    y: Float[Tensor, "m *others"] | None,
    filter_sizes: Sequence[int],
    kind: str = "ntk",
    normalize: bool = True,
    dim: int = 1,
    chunk: int | None = None,
    *,
    constant: float | int = 0.0,
) -> Float[Tensor, "n m"]:
    """The kernel matrix of an infinitely wide hierarchical convolutional network, Eq. (1).

        hierarchical_kernel(x, None, [2, 2, 2])                            # NTK of rows of 8, 16, ... inputs
        hierarchical_kernel(images, None, [2, 2], dim=2, constant=1.0)     # of images, blank patches among them

    Time grows as n m d / s_1, memory as n m for the result alone: patches are visited one by one, in blocks. Kernels
    are not differentiable where a patch of x equals its partner: the arc cosine has infinite slope there; the result
    carries no gradient.

    Args:
        x, y: (n, d) or (n, channels, d) for `dim` 1, (n, channels, height, width) for `dim` 2; None for y is x, at half
            the cost. Computed in float64; less is converted, with a warning.
        filter_sizes: s_1, ..., s_L, first layer first; each side of the input is a multiple of their product.
        kind: "ntk" or "rfk".
        normalize: scale every first patch to unit norm; without, the kernel is that of the network on the patches as
            they are, Eq. (3), and a patch may be 0.
        dim: 1 for sequences, 2 for images.
        chunk: rows and columns of a block; None for 160, or 4,096 on a GPU.
        constant: appended to every first patch as one more input, before it is normalised.

    Returns:
        float64 (n, m) on the device of x.

    Raises:
        ValueError: if the filters do not fit the inputs, a patch is 0 (or has one input) where it is to be normalised,
            or an argument is out of range.
    """
    _check_kind(kind)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    leaves = _Leaves(x, "x", filter_sizes, normalize, dim, constant)
    others = leaves if y is None or y is x else _Leaves(y, "y", filter_sizes, normalize, dim, constant)
    if y is not None and x.shape[1:] != y.shape[1:]:
        raise ValueError(f"x and y must have inputs of one shape, got {tuple(x.shape[1:])} and {tuple(y.shape[1:])}")
    side = chunk or (_CHUNK_CUDA if x.is_cuda else _CHUNK)
    result = torch.empty(len(leaves), len(others), dtype=torch.float64, device=x.device)
    block = _Block(leaves.fans, kind == "ntk", min(side, len(leaves)) * min(side, len(others)), x.device)
    for top in range(0, len(leaves), side):
        rows = slice(top, top + side)
        for left in range(top if others is leaves else 0, len(others), side):
            columns = slice(left, left + side)
            found = block.kernel(leaves, others, rows, columns)
            if others is leaves:
                result[columns, rows] = found.T
                if left == top:
                    # Vectorised and scalar code may differ in a last bit: the lower triangle is the upper one's.
                    found = found.triu() + found.triu(1).T
            result[rows, columns] = found
    return result


def fc_ntk(
    x: Float[Tensor, "n inputs"],
    y: Float[Tensor, "m inputs"] | None,
    depth: int,
    kind: str = "ntk",
    *,
    chunk: int | None = None,
) -> Float[Tensor, "n m"]:
    """The kernel of a fully connected ReLU network of `depth` hidden layers, on inputs scaled to unit norm.

    One patch that is the whole input, and filters of one place above it.

    Raises:
        ValueError: if `depth` < 1, or as for `hierarchical_kernel`.
    """
    if isinstance(depth, bool) or depth < 1:
        raise ValueError(f"depth must be at least 1 hidden layer, got {depth}")
    return hierarchical_kernel(x, y, [x.shape[1], *[1] * (depth - 1)], kind, chunk=chunk)


def kernel_diagonal(
    x: Float[Tensor, "n *shape"],
    filter_sizes: Sequence[int],
    kind: str = "ntk",
    normalize: bool = True,
    dim: int = 1,
    *,
    constant: float | int = 0.0,
) -> Float[Tensor, "n"]:
    """K(x, x) of each input: (1 for the RFK, L + 1 for the NTK) x the mean squared norm of its first patches."""
    _check_kind(kind)
    leaves = _Leaves(x, "x", filter_sizes, normalize, dim, constant)
    scale = torch.ones(len(leaves), dtype=torch.float64, device=x.device) if leaves.root is None else leaves.root**2
    return scale * (1 if kind == "rfk" else len(leaves.fans) + 1)


class _Leaves:
    """First patches as unit vectors, patches first, and where they are not units the shares of Eq. (3)."""

    def __init__(
        self, x: Tensor, name: str, filter_sizes: Sequence[int], normalize: bool, dim: int, constant: float | int
    ):
        sizes = check_filters(filter_sizes)
        patches = to_patches(in_double(x.detach(), name), sizes, dim=dim)
        if constant:
            patches = torch.cat([patches, patches.new_full((*patches.shape[:2], 1), float(constant))], dim=2)
        _, count, width = patches.shape
        self.fans = fan_outs(sizes, count, dim)
        norms = patches.norm(dim=2)
        if normalize:
            if width < 2:
                raise ValueError(
                    f"a first patch of {name} has {width} input: scaled to unit norm it is only a sign; the limit is 2"
                )
            _refuse_zeros(norms, name)
            self.root, self.shares = None, None
        else:
            self.root, self.shares = _shares(norms, self.fans)
        self.unit = (patches / torch.where(norms > 0, norms, 1.0)[..., None]).transpose(0, 1).contiguous()

    def __len__(self) -> int:
        return self.unit.shape[1]


def _refuse_zeros(norms: Tensor, name: str) -> None:
    zero = (norms == 0).nonzero()
    if len(zero):
        row, patch = zero[0].tolist()
        raise ValueError(
            f"{len(zero)} first patches of {name} have norm 0 and no direction, patch {patch} of row {row} among them: "
            "constant=1.0 appends a constant to every patch; normalize=False takes norms as they are"
        )


def _shares(norms: Tensor, fans: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """The root's amplitude, (n,), and on each level u_j of every node within its parent, (nodes, n, 1)."""
    squares, shares = norms.square(), []
    for fan in fans:
        families = squares.unflatten(1, (-1, fan))
        total = families.sum(dim=2, keepdim=True)
        inside = torch.where(total > 0, families / torch.where(total > 0, total, 1.0), 1 / fan)
        shares.append(inside.sqrt().flatten(1).T.contiguous()[:, :, None])
        squares = total[..., 0] / fan
    return squares[:, 0].sqrt(), shares


class _Block:
    """The recursion on one block of pairs, in arrays that are made once."""

    def __init__(self, fans: Sequence[int], ntk: bool, size: int, device: torch.device):
        self.fans, self.ntk = tuple(fans), ntk
        levels = len(self.fans) + 1
        self._flat = {
            name: torch.empty(count, size, dtype=torch.float64, device=device)
            for name, count in (("e", levels), ("t", levels if ntk else 0), ("work", 3))
        }

    def kernel(self, leaves: _Leaves, others: _Leaves, rows: slice, columns: slice) -> Tensor:
        x, y = leaves.unit[:, rows], others.unit[:, columns]
        shape = (x.shape[1], y.shape[1])
        arrays = {name: flat[:, : shape[0] * shape[1]].unflatten(1, shape) for name, flat in self._flat.items()}
        e, t, work = arrays["e"], arrays["t"], arrays["work"]
        for patch in range(len(x)):
            leaf(x[patch], y[patch], e[0], work[0], work[2])
            if self.ntk:
                torch.sub(_ONE, e[0], out=t[0])
            place = patch
            for level, fan in enumerate(self.fans):
                below, above, weights = level, level + 1, None
                if leaves.shares is not None and others.shares is not None:
                    weights = leaves.shares[level][place][rows], others.shares[level][place][columns].T
                add_layer(
                    e[below], t[below] if self.ntk else None, e[above], t[above] if self.ntk else None, work,
                    first=place % fan == 0, angles=level == 0, weights=weights,
                )  # fmt: skip
                if place % fan < fan - 1:
                    break
                if weights is None and fan > 1:
                    e[above].mul_(1 / fan)
                if self.ntk:
                    # Both means of Eq. (1) have the same weights, so that that of k1 is 1 - e.
                    t[above].mul_(1 if weights is not None else 1 / fan).add_(1).sub_(e[above])
                place //= fan
        found = t[-1] if self.ntk else 1 - e[-1]
        if leaves.root is not None and others.root is not None:
            found = found * leaves.root[rows, None] * others.root[columns]
        return found


_ONE = torch.ones((), dtype=torch.float64)
_TWO = torch.full((), 2.0, dtype=torch.float64)


def leaf(x: Tensor, y: Tensor, e: Tensor, half: Tensor, sine: Tensor) -> None:
    """e, a / 2 and sin a of unit vectors, Eq. (2), each to the last digits of its own."""
    near, far = _chords(x, y), _chords(x, -y)
    torch.atan2(near, far, out=half)
    torch.mul(near, far, out=sine).mul_(0.5)
    torch.mul(near, near, out=e).mul_(0.5)


def _chords(x: Tensor, y: Tensor) -> Tensor:
    if x.shape[1] <= _DIRECT:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    square = (x @ y.T).neg_().add_(1).mul_(2)
    for part in (square < 1e-3).nonzero().split(1 << 16):
        i, j = part.unbind(1)
        square[i, j] = (x[i] - y[j]).square().sum(1)
    return square.sqrt_()


def add_layer(
    e: Tensor,
    t: Tensor | None,
    e_sum: Tensor,
    t_sum: Tensor | None,
    work: Tensor,
    *,
    first: bool,
    angles: bool = False,
    weights: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Adds 1 - k1 and k0 T of a child to its parent's sums, Eq. (2), or lets it start them; `work` has three arrays.

    With `angles`, the first and the last of them hold a / 2 and sin a already; otherwise they come from e.

    With `weights`, (rows, 1) and (1, columns), the terms of Eq. (3) are added instead.
    """
    half, k0, sine = work
    if not angles:
        torch.mul(e, 0.5, out=half).sqrt_().asin_()
        torch.sub(_TWO, e, out=sine).mul_(e).sqrt_()
    torch.mul(half, -2 / math.pi, out=k0).add_(1)
    sine.sub_(half, alpha=2)
    if weights is None:
        if first:
            torch.mul(e, k0, out=e_sum)
        else:
            e_sum.addcmul_(e, k0)
        e_sum.sub_(sine, alpha=1 / math.pi)
        if t is not None and t_sum is not None:
            if first:
                torch.mul(t, k0, out=t_sum)
            else:
                t_sum.addcmul_(t, k0)
        return
    u, v = weights
    if first:
        e_sum.zero_()
    product = u * v
    torch.mul(e, k0, out=half).sub_(sine, alpha=1 / math.pi).mul_(product)
    e_sum.add_(half).add_((u - v).square_(), alpha=0.5)
    if t is not None and t_sum is not None:
        if first:
            t_sum.zero_()
        t_sum.add_(torch.mul(t, k0, out=k0).mul_(product))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f'kind must be "ntk" or "rfk", got {kind!r}')
