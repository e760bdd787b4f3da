"""Sharpness: the largest eigenvalues of the Hessian of the full-batch loss, by Hessian-vector products.

Rosenfeld & Risteski, "Outliers with Opposing Signals Have an Outsized Effect on Neural Network Optimization", ICLR
2024, arXiv:2311.04163; measured as in Cohen, Kaur, Li, Kolter & Talwalkar, "Gradient Descent on Neural Networks
Typically Occurs at the Edge of Stability", ICLR 2021, arXiv:2103.00065.

Gradient descent with step size eta is stable on a quadratic if and only if its largest eigenvalue lies below

    2 / eta                                                                                               (1)

An adaptive optimizer that divides the gradient by P, entry by entry, is gradient descent on the coordinates
P^(1/2) theta, where the Hessian is

    P^(-1/2) H P^(-1/2)                                                                                   (2)
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from etude.training.opposing_signals.examples import (
    FixedSet,
    LossFn,
    chunk_losses,
    flatten,
    trainable,
    warn_of_coupling,
)

__all__ = [
    "HessianOperator",
    "Spectrum",
    "adam_preconditioner",
    "hessian_vector_product",
    "sharpness",
    "stability_threshold",
]

_ADAMS = (torch.optim.Adam, torch.optim.AdamW)


def hessian_vector_product(
    loss_closure: Callable[[], Tensor | Iterable[Tensor]],
    params: Iterable[Tensor],
    vec: Float[Tensor, " params"],
) -> Float[Tensor, " params"]:
    """The product of the loss's Hessian with a vector, by differentiating twice.

    Args:
        loss_closure: computes the loss, or yields its parts (of chunks of the data), whose sum it is; one part's
            graph is kept at a time.
        params: the tensors to differentiate by.
        vec: as many entries as they have together, in their order.

    Raises:
        ValueError: if `vec` has another length.
    """
    params = list(params)
    _check_length("vec", vec, sum(p.numel() for p in params))
    total = torch.zeros_like(flatten(params)).detach()
    with torch.enable_grad():
        value = loss_closure()
        for part in [value] if isinstance(value, Tensor) else value:
            total += _product(_gradient(part, params), params, vec, keep=False)
    return total


class HessianOperator:
    """The Hessian of a model's mean loss over a fixed set, as a linear map of flat vectors.

    With the examples in one chunk, the gradient's graph is built once and each product is one pass through it; with
    several, each product goes forward and backward anew and holds one chunk's graph at a time.

    Args:
        model: in the mode in which it is trained.
        loss_fn: (outputs, targets) -> one loss per example.
        data, batch_size: as for `FixedSet`; the rows of a group give the curvature of that group's mean loss.
        params: the parameters; all that require a gradient if None.
        preconditioner: P of Eq. (2), > 0, with one entry per parameter, to look at P^(-1/2) H P^(-1/2) instead.

    Raises:
        ValueError: if the preconditioner has another length or an entry that is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: Any,
        *,
        batch_size: int | None = None,
        params: Iterable[Tensor] | None = None,
        preconditioner: Tensor | None = None,
    ):
        self.params = trainable(model, params)
        self.size = sum(p.numel() for p in self.params)
        self.products = 0
        self._examples = FixedSet(data, batch_size)
        self._model, self._loss_fn = model, loss_fn
        self._scale: Tensor | None = None
        if preconditioner is not None:
            _check_length("preconditioner", preconditioner, self.size)
            if not bool((preconditioner > 0).all()):
                raise ValueError(f"preconditioner must be positive, its least entry is {float(preconditioner.min())}")
            self._scale = preconditioner.rsqrt()
        self._gradient: list[Tensor] | None = None
        warn_of_coupling(model, self._examples.chunks)
        if self._examples.chunks == 1:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                (loss,) = chunk_losses(model, loss_fn, self._examples)
                self._gradient = _gradient(loss, self.params)

    def __call__(self, vec: Float[Tensor, " params"]) -> Float[Tensor, " params"]:
        self.products += 1
        first = self.params[0]
        vec = vec.to(first)
        scaled = vec if self._scale is None else self._scale * vec
        # Fused attention has no second derivative; its plain form has.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            if self._gradient is not None:
                product = _product(self._gradient, self.params, scaled, keep=True)
            else:
                product = hessian_vector_product(
                    lambda: chunk_losses(self._model, self._loss_fn, self._examples), self.params, scaled
                )
        if not bool(torch.isfinite(product).all()):
            raise FloatingPointError("a Hessian-vector product is not finite: the parameters have diverged")
        return product if self._scale is None else self._scale * product

    def dense(self) -> Float[Tensor, "params params"]:
        """The whole matrix, for small models."""
        return torch.stack([self(row) for row in torch.eye(self.size)])


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The upper end of a Hessian's spectrum.

    Attributes:
        values: the largest eigenvalues, descending.
        vectors: their unit eigenvectors, one a row, in the order of the parameters.
        residuals: norms of H v - value v.
        products: Hessian-vector products spent.
    """

    values: Float[Tensor, " neigs"]
    vectors: Float[Tensor, "neigs params"]
    residuals: Float[Tensor, " neigs"]
    products: int

    def __float__(self) -> float:
        return float(self.values[0])


def sharpness(
    model: nn.Module,
    loss_fn: LossFn,
    data: Any,
    *,
    n_iter: int = 20,
    v0: Tensor | None = None,
    neigs: int = 1,
    method: str = "lanczos",
    preconditioner: Tensor | None = None,
    params: Iterable[Tensor] | None = None,
    batch_size: int | None = None,
    tol: float = 1e-2,
    max_products: int = 1000,
    generator: torch.Generator | None = None,
) -> Spectrum:
    """The largest eigenvalues of the Hessian of the mean loss over `data`; `float(...)` is the sharpness.

        value = float(sharpness(model, cross_entropy, (x, y), batch_size=1024))

    The most positive eigenvalues are found, also where the largest in magnitude is negative. A product costs about
    two gradients; Lanczos needs `n_iter` of them or a few times that.

    Args:
        model, loss_fn, data, batch_size, params, preconditioner: as for `HessianOperator`.
        n_iter: for "lanczos", the Krylov vectors kept before a restart (at least `2 * neigs + 1` are). A model with no
            more parameters than that is solved densely.
        v0: where to start, such as the eigenvector of an earlier step; random if None.
        neigs: how many eigenvalues; one for "power".
        method: "lanczos" (ARPACK's, through scipy), or "power" for power iteration, which needs no memory beyond one
            vector but many more products where eigenvalues lie close together.
        tol: residual at which an eigenpair is accepted, relative to its eigenvalue.
        max_products: when to give up.
        generator: of the random start; seeded with 0 if None, so that a measurement repeats itself.

    Raises:
        ValueError: for arguments out of range.
        RuntimeError: if `max_products` products do not reach `tol`. In float32 eigenvalues below 1e-3 often do not.
        FloatingPointError: if the curvature is not finite.
    """
    if method not in ("lanczos", "power"):
        raise ValueError(f"method must be lanczos or power, got {method!r}")
    if neigs < 1 or n_iter < 1 or max_products < 1:
        raise ValueError(f"neigs, n_iter and max_products must be positive, got {neigs}, {n_iter} and {max_products}")
    if method == "power" and neigs > 1:
        raise ValueError(f"power iteration finds one eigenvalue, got neigs={neigs}; use method='lanczos'")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
    operator = HessianOperator(
        model, loss_fn, data, batch_size=batch_size, params=params, preconditioner=preconditioner
    )
    if neigs > operator.size:
        raise ValueError(f"neigs must be at most {operator.size}, the number of parameters, got {neigs}")
    start = _start(operator, v0, generator)
    if method == "power":
        values, vectors = _power(operator, start, tol, max_products)
    elif operator.size <= max(n_iter, 2 * neigs + 1):
        ascending, columns = torch.linalg.eigh(_symmetric(operator.dense().double()))
        values, vectors = ascending.flip(0)[:neigs], columns.T.flip(0)[:neigs]
    else:
        values, vectors = _lanczos(operator, start, neigs, n_iter, tol, max_products)
    products = operator.products
    vectors = vectors.to(operator.params[0])
    values = values.to(vectors)
    residuals = torch.stack([(operator(v) - value * v).norm() for value, v in zip(values, vectors)])
    return Spectrum(values, vectors, residuals, products)


def stability_threshold(optimizer: Optimizer) -> float | None:
    """The sharpness at which a quadratic becomes unstable under the optimizer's full-batch steps.

    Eq. (1) with momentum (Cohen et al. 2021, appendix B, and 2022): with step size eta, momentum beta and dampening d

        SGD 2 (1 + beta) / (eta (1 - d)),  Nesterov 2 (1 + beta) / (eta (1 + 2 beta)),
        Adam 2 (1 + beta) / (eta (1 - beta))  for the preconditioned Hessian of Eq. (2).

    The first parameter group speaks for all. None for an optimizer of another kind.
    """
    group = optimizer.param_groups[0]
    lr = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        beta, dampening = group["momentum"], group["dampening"] if group["momentum"] else 0.0
        scale = 1 + 2 * beta if group["nesterov"] else 1 - dampening
    elif isinstance(optimizer, _ADAMS):
        beta = float(group["betas"][0])
        scale = 1 - beta
    else:
        return None
    return math.inf if lr * scale == 0 else 2 * (1 + beta) / (lr * scale)


def adam_preconditioner(optimizer: Optimizer, params: Iterable[Tensor] | None = None) -> Float[Tensor, " params"]:
    """P of Eq. (2) for Adam or AdamW at its coming step, as one vector.

    With t steps taken, second moments nu and the bias corrections of both moments (Cohen et al., "Adaptive Gradient
    Methods at the Edge of Stability", arXiv:2207.14484, 2022):

        P = (1 - beta1^t) (sqrt(nu / (1 - beta2^t)) + eps)

    Args:
        optimizer: has taken at least one step.
        params: the parameters, in the order of the vector; all of the optimizer's if None.

    Raises:
        TypeError: if the optimizer is not Adam or AdamW.
        ValueError: if a parameter has no second moment yet.
    """
    if not isinstance(optimizer, _ADAMS):
        raise TypeError(f"the preconditioner is that of Adam or AdamW, got {type(optimizer).__name__}")
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    parts = []
    for p in groups if params is None else params:
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" not in state:
            raise ValueError(f"a parameter of shape {tuple(p.shape)} has no second moment: take a step first")
        group, step = groups[p], float(state["step"])
        beta1, beta2 = (float(beta) for beta in group["betas"])
        moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        parts.append((1 - beta1**step) * ((moment / (1 - beta2**step)).sqrt() + group["eps"]))
    return flatten(parts)


def _check_length(name: str, vec: Tensor, size: int) -> None:
    if vec.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), one entry per parameter, got {tuple(vec.shape)}")


def _gradient(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    if loss.numel() != 1:
        raise ValueError(f"the loss must be a single number, got shape {tuple(loss.shape)}")
    return list(torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True))


def _product(gradient: Sequence[Tensor], params: Sequence[Tensor], vec: Tensor, *, keep: bool) -> Tensor:
    slices = [part.view_as(p) for part, p in zip(vec.split([p.numel() for p in params]), params)]
    # A gradient without a graph does not depend on the parameters: the loss is linear in that one.
    pairs = [(g, v) for g, v in zip(gradient, slices) if g.requires_grad]
    if not pairs:
        return torch.zeros_like(vec)
    gradients, vectors = zip(*pairs)
    parts = torch.autograd.grad(gradients, params, vectors, retain_graph=keep, materialize_grads=True)
    return flatten(parts).detach()


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _start(operator: HessianOperator, v0: Tensor | None, generator: torch.Generator | None) -> Tensor:
    first = operator.params[0]
    if v0 is None:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        return torch.randn(operator.size, generator=generator, device=generator.device).to(first)
    _check_length("v0", v0, operator.size)
    if not 0 < float(v0.norm()) < math.inf:
        raise ValueError(f"v0 must have a finite norm above zero, got {float(v0.norm())}")
    return v0.detach().to(first)


def _lanczos(
    operator: HessianOperator, start: Tensor, neigs: int, n_iter: int, tol: float, max_products: int
) -> tuple[Tensor, Tensor]:
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    def product(vec: np.ndarray) -> np.ndarray:
        return operator(torch.from_numpy(vec.reshape(-1))).double().cpu().numpy()

    basis = max(n_iter, 2 * neigs + 1)
    # What ARPACK draws to leave an invariant subspace must not come from the global generator.
    own = {"rng": np.random.default_rng(0)} if "rng" in inspect.signature(eigsh).parameters else {}
    try:
        ascending, columns = eigsh(
            LinearOperator((operator.size, operator.size), matvec=product, dtype=np.float64),
            k=neigs, which="LA", v0=start.double().cpu().numpy(), ncv=basis, tol=tol,
            maxiter=max(1, max_products // basis), **own,
        )  # fmt: skip
    except ArpackNoConvergence:
        raise _gave_up(operator, tol) from None
    order = np.argsort(ascending)[::-1].copy()
    return torch.from_numpy(ascending[order]), torch.from_numpy(columns.T[order].copy())


def _power(operator: HessianOperator, start: Tensor, tol: float, max_products: int) -> tuple[Tensor, Tensor]:
    """Power iteration; where the dominant eigenvalue is negative, or none dominates, once more on H + shift I."""
    value, vector, size, converged = _iterate(operator, start, 0.0, tol, max_products // 2)
    if not converged or value < 0:
        # `size` is the norm of H v at the dominant v: shifted by it, no eigenvalue is far below zero.
        value, vector, _, converged = _iterate(operator, start, size, tol, max_products)
    if not converged:
        raise _gave_up(operator, tol)
    return torch.tensor([value], dtype=torch.float64), vector[None]


def _iterate(
    operator: HessianOperator, start: Tensor, shift: float, tol: float, limit: int
) -> tuple[float, Tensor, float, bool]:
    vector, value, size = start / start.norm(), 0.0, 0.0
    while operator.products < limit:
        image = operator(vector)
        grown = float(image.norm()) > (1 + 1e-6) * size
        value, size = float(vector @ image), float(image.norm())
        if float((image - value * vector).norm()) <= tol * abs(value):
            return value, vector, size, True
        image = image + shift * vector
        # The norm of H v grows to the largest magnitude; where it has and v still turns, both signs share it.
        if float(image.norm()) == 0 or not (grown or shift):
            break
        vector = image / image.norm()
    return value, vector, size, False


def _gave_up(operator: HessianOperator, tol: float) -> RuntimeError:
    return RuntimeError(
        f"no eigenpair reached the relative residual {tol:g} in {operator.products} Hessian-vector products; raise "
        "tol, n_iter or max_products, or compute in float64"
    )
