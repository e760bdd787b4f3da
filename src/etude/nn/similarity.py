"""How alike two representations of the same examples are: centred kernel alignment and its relatives.

Kornblith, Norouzi, Lee & Hinton, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414, 2019.
Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?", arXiv:2010.15327, 2020 (Eq. 3, 4).
Williams, Kunz, Kornblith & Linderman, "Generalized Shape Metrics on Neural Representations", arXiv:2110.14739, 2021.

Row i of X and of Y is the same example, seen by two layers. With kernel matrices K of X and L of Y, of n examples,

    HSIC(K, L) = <HKH, HLH>,    H = I - 11^T / n                                                           (1)
    CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),    in [0, 1]                                     (2)

For K = XX^T centring the columns of X gives HKH at once. (1) is biased: independent features in high dimension get a
CKA near one. The unbiased estimator replaces HKH by the U-centred matrix, whose diagonal is zero and elsewhere

    K~_ij = K_ij - (r_i + r_j) / (n - 2) + s / ((n - 1)(n - 2)),    r_i = sum_l K_il,  s = sum_i r_i,  K_ii := 0  (3)
    HSIC_1(K, L) = <K~, L~> / (n (n - 3)),                                                                 (4)

and over mini-batches the means of (4) take the place of HSIC in (2), which then does not depend on the batch size.

All similarities are differentiable, are computed at least in float32 whatever autocast says, and accept features of
any shape, which are flattened. They ignore shifts and the scale of either side (`rsa_similarity`: the scale only).
Features that are the same for all examples (up to rounding) have no defined similarity: it is 0, with a warning.
"""

import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "MinibatchCKA",
    "cka_from_grams",
    "linear_cka",
    "linear_gram",
    "procrustes_similarity",
    "rbf_cka",
    "ridge_similarity",
    "rsa_similarity",
]

_LEAST = 4
"""Examples that Eq. (4) needs; with fewer, Eq. (2) says nothing either."""


def linear_cka(
    x: Float[Tensor, "batch *features"], y: Float[Tensor, "batch *others"], *, unbiased: bool = False
) -> Float[Tensor, ""]:
    """Linear CKA, Eq. (2) with K = XX^T and L = YY^T.

        linear_cka(hidden, guide_hidden)

    Args:
        x, y: features of the same examples, at least 4 of them.
        unbiased: use Eq. (4) instead of Eq. (1); the value may then be negative.

    Raises:
        ValueError: if the batches differ, are smaller than 4, or lie on different devices.
    """
    x, y = _paired(x, y)
    with _full_precision(x):
        return cka_from_grams(linear_gram(x), linear_gram(y), unbiased=unbiased)


def rbf_cka(
    x: Float[Tensor, "batch *features"],
    y: Float[Tensor, "batch *others"],
    *,
    sigma: float | int = 0.4,
    unbiased: bool = False,
) -> Float[Tensor, ""]:
    """CKA with Gaussian kernels exp(-d^2 / (2 (sigma m)^2)), m the median distance of two different examples.

    Args:
        x, y: features of the same examples, at least 4 of them.
        sigma: width of the kernel in median distances, > 0; Kornblith et al. try 0.2, 0.4 and 0.8. As it grows, the
            value tends to that of the linear kernel.
        unbiased: use Eq. (4) instead of Eq. (1).

    Raises:
        ValueError: if `sigma` is not positive, or as for `linear_cka`.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    x, y = _paired(x, y)
    with _full_precision(x):
        return cka_from_grams(_rbf(linear_gram(x), sigma), _rbf(linear_gram(y), sigma), unbiased=unbiased)


def linear_gram(x: Float[Tensor, "*stack batch features"]) -> Float[Tensor, "*stack batch batch"]:
    """Gram matrix of the centred features, in the unit of the features' mean square; zero for constant features.

    CKA ignores the unit, but products of features as small as 1e-20 would vanish without it.
    """
    gram, _ = _gram(x)
    return gram


def cka_from_grams(
    k: Float[Tensor, "*stack batch batch"], m: Float[Tensor, "*stack batch batch"], *, unbiased: bool = False
) -> Float[Tensor, "*stack"]:
    """CKA of kernel matrices, Eq. (2), for stacks of them at once.

    Args:
        k, m: symmetric kernel matrices, of at least 4 examples.
        unbiased: use Eq. (4) instead of Eq. (1).

    Raises:
        ValueError: if there are fewer than 4 examples.
    """
    _check_size(k.shape[-1])
    k, m = _centred(k, unbiased), _centred(m, unbiased)
    return _cosine(k, m)


def rsa_similarity(x: Float[Tensor, "batch *features"], y: Float[Tensor, "batch *others"]) -> Float[Tensor, ""]:
    """Representational similarity analysis: Pearson correlation of the two matrices of cosines between examples.

    All entries are correlated, the diagonal of ones too. Features are not centred.

    Raises:
        ValueError: as for `linear_cka`.
    """
    x, y = _paired(x, y)
    with _full_precision(x):
        matrices = []
        for features in (x, y):
            rows = torch.nn.functional.normalize(_scaled(features)[0], dim=1)
            cosines = rows @ rows.T
            matrices.append(cosines - cosines.mean())
        # What remains of a matrix of equal cosines is rounding.
        tolerance = 4 * torch.finfo(x.dtype).eps * len(x)
        matrices = [matrix * (torch.linalg.vector_norm(matrix) > tolerance) for matrix in matrices]
        return _cosine(*matrices)


def procrustes_similarity(x: Float[Tensor, "batch *features"], y: Float[Tensor, "batch *others"]) -> Float[Tensor, ""]:
    """How well a rotation carries X onto Y: the nuclear norm of X^T Y, both centred and of Frobenius norm 1.

    1 - (half the squared Procrustes distance); the cosine of the angular shape distance of Williams et al.

    Raises:
        ValueError: as for `linear_cka`.
    """
    x, y = _paired(x, y)
    with _full_precision(x):
        parts = []
        for features in (x, y):
            scaled, _ = _scaled(features)
            parts.append(scaled - scaled.mean(dim=0))
        squares = [part.square().sum() for part in parts]
        defined = _defined([square > _tolerance(x.dtype) for square in squares])
        overlap = torch.linalg.svdvals(_in_row_space(parts[0]).T @ _in_row_space(parts[1])).sum()
        norms = [torch.where(defined, square, torch.ones_like(square)).sqrt() for square in squares]
        return torch.where(defined, overlap / (norms[0] * norms[1]), torch.zeros_like(overlap))


def ridge_similarity(
    x: Float[Tensor, "batch *features"], y: Float[Tensor, "batch *others"], *, penalty: float | int = 0.01
) -> Float[Tensor, ""]:
    """How much of Y's variance a ridge regression on X explains, in sample: R^2 in [0, 1]. Not symmetric.

    Args:
        x: what predicts.
        y: what is predicted.
        penalty: of the regression, > 0, as a share of the variance of X over all directions. With more features
            than examples a small one explains everything.

    Raises:
        ValueError: if `penalty` is not positive, or as for `linear_cka`.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, got {penalty}")
    x, y = _paired(x, y)
    with _full_precision(x):
        k, m = linear_gram(x), linear_gram(y)
        traces = [gram.diagonal().sum() for gram in (k, m)]
        defined = _defined([trace > 0 for trace in traces])
        safe = [torch.where(defined, trace, torch.ones_like(trace)) for trace in traces]
        identity = torch.eye(len(x), dtype=k.dtype, device=k.device)
        # The residuals are penalty (K + penalty I)^-1 Y, with K of trace 1.
        shrink = penalty * torch.linalg.inv(k / safe[0] + penalty * identity)
        unexplained = ((shrink @ shrink) * m).sum() / safe[1]
        return torch.where(defined, 1 - unexplained, torch.zeros_like(unexplained))


class MinibatchCKA:
    """Unbiased linear CKA between two lists of layers, averaged over mini-batches, Eq. (4) in Eq. (2).

        cka = MinibatchCKA()
        for x in loader:
            cka.update(layers_of(a, x), layers_of(b, x))
        cka.compute()                                     # (layers of a, layers of b)

    The estimates of HSIC are averaged, not the ratios, so that the result does not depend on the batch size but for
    its variance. Batches may differ in size; each counts by its number of examples.
    """

    def __init__(self) -> None:
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None
        self._units: tuple[list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def update(self, xs: Sequence[Tensor], ys: Sequence[Tensor]) -> None:
        """Takes in one batch.

        Args:
            xs, ys: features of the same examples in each layer, each (batch, ...); as many layers every time.

        Raises:
            ValueError: if there are no layers, their number has changed, or batches differ or are smaller than 4.
        """
        if not xs or not ys:
            raise ValueError(f"there must be layers on both sides, got {len(xs)} and {len(ys)}")
        for x in (*xs, *ys):
            _paired(xs[0], x)
        grams = [[_gram(x.flatten(1)) for x in side] for side in (xs, ys)]
        if self._units is None:
            self._units = ([unit for _, unit in grams[0]], [unit for _, unit in grams[1]])
        if [len(units) for units in self._units] != [len(xs), len(ys)]:
            known = " and ".join(str(len(units)) for units in self._units)
            raise ValueError(f"there were {known} layers before, now {len(xs)} and {len(ys)}")
        rows, columns = (_in_unit(side, units) for side, units in zip(grams, self._units))
        rows, columns = rows.flatten(1), columns.flatten(1)
        # Eq. (4) divides by n (n - 3), and the batch counts n times.
        parts = (rows @ columns.T, rows.square().sum(1), columns.square().sum(1))
        new = tuple(part / (len(xs[0]) - 3) for part in parts)
        self._sums = new if self._sums is None else tuple(a + b for a, b in zip(self._sums, new))  # type: ignore[assignment]

    def compute(self) -> Float[Tensor, "rows columns"]:
        """The similarity of each layer of the first list with each of the second, in double precision.

        Raises:
            RuntimeError: if there has been no batch.
        """
        if self._sums is None:
            raise RuntimeError("there has been no batch: call update first")
        cross, rows, columns = self._sums
        defined = _defined(torch.broadcast_tensors((rows > 0)[:, None], (columns > 0)[None, :]))
        scale = torch.where(defined, rows[:, None] * columns[None, :], torch.ones_like(cross)).sqrt()
        return torch.where(defined, cross / scale, torch.zeros_like(cross))


def _in_unit(grams: Sequence[tuple[Tensor, Tensor]], units: Sequence[Tensor]) -> Tensor:
    """U-centred matrices in given units: means over batches need one scale."""
    return torch.stack(
        [_centred(gram.double() * (unit / first) ** 2, unbiased=True) for (gram, unit), first in zip(grams, units)]
    )


def _paired(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both as matrices of one precision, at least float32, or the reason why they cannot be compared."""
    for name, features in (("x", x), ("y", y)):
        if not features.is_floating_point():
            raise TypeError(f"{name} must hold floating-point features, got {features.dtype}")
        if features.ndim < 2:
            raise ValueError(f"{name} must have shape (batch, ...) with features, got {tuple(features.shape)}")
    if len(x) != len(y):
        raise ValueError(
            f"both sides must hold the same examples, got batches of {len(x)} and {len(y)} "
            f"(shapes {tuple(x.shape)} and {tuple(y.shape)})"
        )
    if x.device != y.device:
        raise ValueError(f"both sides must lie on one device, got {x.device} and {y.device}")
    _check_size(len(x))
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    return x.flatten(1).to(dtype), y.flatten(1).to(dtype)


def _check_size(n: int) -> None:
    if n < _LEAST:
        raise ValueError(f"a similarity of representations needs at least {_LEAST} examples in a batch, got {n}")


def _full_precision(x: Tensor) -> torch.autocast:
    return torch.autocast(device_type=x.device.type, enabled=False)


def _tolerance(dtype: torch.dtype) -> float:
    """Share of the mean square below which what varies between examples is rounding."""
    return (4 * torch.finfo(dtype).eps) ** 2


def _scaled(x: Float[Tensor, "*stack batch features"]) -> tuple[Tensor, Tensor]:
    """Features of Frobenius norm 1, and the norm; features that are all zero stay so.

    The norm is a constant to the gradient: a similarity that ignores the scale has the same gradient either way.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.no_grad():
        # In double precision, whose range no square of a single-precision number leaves.
        norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float64)
        norm = torch.where(norm > 0, norm, torch.ones_like(norm))
    return x * (1 / norm).to(x.dtype), norm


def _gram(x: Float[Tensor, "*stack batch features"]) -> tuple[Tensor, Tensor]:
    """`linear_gram`, and the norm in whose square it is measured."""
    with _full_precision(x):
        x, norm = _scaled(x)
        x = x - x.mean(dim=-2, keepdim=True)
        gram = x @ x.mT
        varies = gram.diagonal(dim1=-2, dim2=-1).sum(dim=-1) > _tolerance(x.dtype)
        return torch.where(varies[..., None, None], gram, torch.zeros_like(gram)), norm


def _in_row_space(x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch rank"]:
    """Coordinates in the space that the rows span: no more of them than examples, and the same products with others.

    The basis is a constant to the gradient, which lies in the same space.
    """
    if x.shape[1] <= len(x):
        return x
    with torch.no_grad():
        basis = torch.linalg.qr(x.T).Q
    return x @ basis


def _rbf(gram: Float[Tensor, "batch batch"], sigma: float | int) -> Float[Tensor, "batch batch"]:
    n = len(gram)
    norms = gram.diagonal()
    distances = (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0)
    above = torch.triu_indices(n, n, offset=1, device=gram.device)
    median = distances[above[0], above[1]].median()
    # More than half of the examples being equal, no width is right; a constant kernel says so to `_cosine`.
    width = torch.where(median > 0, median, torch.full_like(median, torch.inf))
    return torch.exp(-distances / (2 * sigma**2 * width))


def _centred(k: Float[Tensor, "*stack batch batch"], unbiased: bool) -> Float[Tensor, "*stack batch batch"]:
    """HKH, or the U-centred matrix of Eq. (3)."""
    n = k.shape[-1]
    if not unbiased:
        rows = k.mean(dim=-1, keepdim=True)
        return k - rows - rows.mT + rows.mean(dim=-2, keepdim=True)
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k = k * off
    rows = k.sum(dim=-1, keepdim=True)
    total = rows.sum(dim=-2, keepdim=True)
    return (k - (rows + rows.mT) / (n - 2) + total / ((n - 1) * (n - 2))) * off


def _cosine(k: Float[Tensor, "*stack batch batch"], m: Float[Tensor, "*stack batch batch"]) -> Float[Tensor, "*stack"]:
    squares = [part.square().sum(dim=(-2, -1)) for part in (k, m)]
    defined = _defined([square > 0 for square in squares])
    # Two roots, not the root of a product, which would underflow first.
    norms = [torch.where(defined, square, torch.ones_like(square)).sqrt() for square in squares]
    value = (k * m).sum(dim=(-2, -1)) / norms[0] / norms[1]
    return torch.where(defined, value, torch.zeros_like(value))


def _defined(sides: Sequence[Bool[Tensor, "*stack"]]) -> Bool[Tensor, "*stack"]:
    """Where both sides vary; a warning if that is not everywhere."""
    defined = sides[0] & sides[1]
    if not bool(defined.all()):
        warnings.warn(
            "features that are the same for all examples (up to rounding) have no defined similarity; it is set to 0",
            RuntimeWarning,
            stacklevel=4,
        )
    return defined
