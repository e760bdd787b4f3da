"""Gaussian processes as priors over functions, on gpytorch's kernels.

Tran et al., JMLR 23, 2022, arXiv:2011.12829, section 3.2: the functions that a network's prior should look like. With a
hyperprior every function has hyperparameters of its own (the hierarchical process of the paper's experiments):

    lengthscale_d ~ LogNormal(log sqrt(2 D), 1),  variance ~ LogNormal(0.1, 1)                               (1)
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, LogNormal

if TYPE_CHECKING:
    import gpytorch

__all__ = ["GPFunctionPrior", "rbf_prior"]

_JITTERS = (0.0, 1e-6, 1e-5, 1e-4)


def _gpytorch() -> Any:
    try:
        with warnings.catch_warnings():
            # Its import compiles functions with torch.jit.script, which newer torch calls deprecated.
            warnings.simplefilter("ignore")
            import gpytorch.kernels
    except ImportError as error:
        raise ImportError('Gaussian processes need gpytorch: pip install "etude[theory]"') from error
    return gpytorch


class GPFunctionPrior:
    """A Gaussian process, or several independent ones for several outputs, to draw functions from.

        kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5))
        f = GPFunctionPrior(kernel).sample_functions(x, 100)                    # (100, M, 1), float64
        hierarchical = GPFunctionPrior(kernel, hyperprior={"base_kernel.lengthscale": LogNormal(0.0, 1.0)})

    Args:
        kernel: a gpytorch kernel, which is copied to double precision; or a function of two sets of points, (n, D) and
            (m, D), that returns (n, m).
        mean: function of points (M, D) that returns (M,); 0 if None.
        hyperprior: name of a kernel's hyperparameter (a dotted path of attributes) -> a distribution over its values,
            a scalar or of the hyperparameter's shape; drawn anew for every function.
        num_outputs: independent processes with the same kernel, one an output.

    Raises:
        ImportError: without gpytorch, if the kernel is to be gpytorch's.
        TypeError: if the kernel is neither; if there is a hyperprior for a plain function.
        ValueError: if the kernel has no such hyperparameter, or `num_outputs` < 1.
    """

    def __init__(
        self,
        kernel: "gpytorch.kernels.Kernel | Callable[[Tensor, Tensor], Tensor]",
        mean: Callable[[Tensor], Tensor] | None = None,
        hyperprior: Mapping[str, Distribution] | None = None,
        num_outputs: int = 1,
    ):
        if not callable(kernel):
            raise TypeError(f"kernel must be a gpytorch kernel or a function, got {type(kernel).__name__}")
        if num_outputs < 1:
            raise ValueError(f"num_outputs must be at least 1, got {num_outputs}")
        self._is_module = isinstance(kernel, torch.nn.Module)
        self.kernel: Any
        if hyperprior and not self._is_module:
            raise TypeError("a hyperprior needs a gpytorch kernel, whose hyperparameters it can set")
        self.kernel = copy.deepcopy(kernel).double() if isinstance(kernel, torch.nn.Module) else kernel
        self.mean, self.hyperprior, self.num_outputs = mean, dict(hyperprior or {}), num_outputs
        for name in self.hyperprior:
            owner, _, attribute = name.rpartition(".")
            if not hasattr(_at(self.kernel, owner), attribute):
                known = [path.replace("raw_", "") for path, _ in self.kernel.named_parameters()]
                raise ValueError(f"the kernel has no hyperparameter {name!r}; it has {', '.join(known)}")

    def covariance(self, x: Float[Tensor, "n *features"], other: Tensor | None = None) -> Float[Tensor, "n m"]:
        """Of the process at two sets of points, without a hyperprior, in double precision."""
        x = _rows(x)
        return self._evaluate(self.kernel, x, x if other is None else _rows(other))

    def _evaluate(self, kernel: Any, x: Tensor, other: Tensor) -> Tensor:
        if not self._is_module:
            return kernel(x, other).to(torch.float64)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kernel.to(x.device)(x, other).to_dense()

    @torch.no_grad()
    def sample_functions(
        self, x: Float[Tensor, "n *features"], n: int, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """(n, points, num_outputs) float64: n functions at the same points.

        Raises:
            ValueError: if the covariance is not positive definite even with a jitter of 1e-4 of its diagonal.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        x = _rows(x)
        if self.hyperprior:
            factor = self._factor(self._evaluate(self._drawn_kernel(n, generator), x, x), x)
        else:
            factor = self._factor(self._evaluate(self.kernel, x, x), x)
        device = x.device if generator is None else generator.device
        noise = torch.randn(n, len(x), self.num_outputs, generator=generator, dtype=torch.float64, device=device)
        f = factor @ noise.to(x.device)
        return f if self.mean is None else f + self.mean(x)[:, None]

    def _drawn_kernel(self, n: int, generator: torch.Generator | None) -> Any:
        """The kernel with a batch of n sets of hyperparameters."""
        kernel = self.kernel.expand_batch(torch.Size([n]))
        for parameter in kernel.parameters():
            parameter.data = parameter.data.clone()  # expanding has made n views of one number
        device = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        with torch.random.fork_rng(devices=[]):
            # Distributions draw from the global state alone.
            torch.default_generator.manual_seed(seed)
            for name, distribution in self.hyperprior.items():
                owner, _, attribute = name.rpartition(".")
                shape = tuple(getattr(_at(self.kernel, owner), attribute).shape)
                own = tuple(distribution.batch_shape + distribution.event_shape)
                values = distribution.sample(torch.Size((n, *shape) if not own else (n,)))
                setattr(_at(kernel, owner), attribute, values.reshape(n, *shape).double())
        return kernel

    def _factor(self, covariance: Tensor, x: Tensor) -> Tensor:
        """A Cholesky factor, by the least jitter that will do."""
        if not bool(torch.isfinite(covariance).all()):
            raise ValueError("the kernel gives NaN or infinite covariances; are its hyperparameters finite?")
        lopsided = float((covariance - covariance.mT).abs().max())
        scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
        if lopsided > 1e-6 * float(scale.abs().max()):
            raise ValueError(f"a covariance must be symmetric; k(x, y) and k(y, x) differ by up to {lopsided:.3g}")
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        for jitter in _JITTERS[1:]:
            if not bool(failed.any()):
                return factor
            # Only where it failed: the others keep theirs.
            more, still = torch.linalg.cholesky_ex(covariance + jitter * scale[..., None, None] * eye)
            factor = torch.where((failed > 0)[..., None, None], more, factor)
            failed = torch.where(failed > 0, still, failed)
        if bool(failed.any()):
            raise ValueError(self._complaint(covariance, x))
        return factor

    def _complaint(self, covariance: Tensor, x: Tensor) -> str:
        smallest = float(torch.linalg.eigvalsh(covariance).min())
        repeated = len(x) - len(torch.unique(x.flatten(1), dim=0))
        parameters = []
        if self._is_module:
            for path, _ in self.kernel.named_parameters():
                owner, _, raw = path.rpartition(".")
                value = getattr(_at(self.kernel, owner), raw.replace("raw_", ""))
                parameters.append(f"{path.replace('raw_', '')} = {[round(v, 4) for v in value.flatten().tolist()][:4]}")
        return (
            f"the covariance of {len(x)} points is not positive definite even with a jitter of {_JITTERS[-1]:g} of its "
            f"diagonal: its smallest eigenvalue is {smallest:.3g}; {repeated} of the points are duplicates"
            + (f"; the kernel has {', '.join(parameters)}" if parameters else "; is the function a kernel at all?")
            + ". A shorter lengthscale or distinct points may help"
        )

    def posterior(
        self, x: Float[Tensor, "n *features"], y: Float[Tensor, "n"], at: Tensor, noise_variance: float | int
    ) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """Mean and variance of the function at new points, given observations: exact Gaussian-process regression.

        Raises:
            ValueError: if there is a hyperprior, under which it has no closed form; if `noise_variance` is negative.
        """
        if self.hyperprior:
            raise ValueError("under a hyperprior the posterior has no closed form; leave the hyperprior out")
        if noise_variance < 0:
            raise ValueError(f"noise_variance must be >= 0, got {noise_variance}")
        x, at = _rows(x), _rows(at)
        noise = noise_variance * torch.eye(len(x), dtype=torch.float64, device=x.device)
        factor = self._factor(self.covariance(x) + noise, x)
        cross = torch.linalg.solve_triangular(factor, self.covariance(x, at), upper=False)
        centred = y.double() if self.mean is None else y.double() - self.mean(x)
        mean = cross.T @ torch.linalg.solve_triangular(factor, centred[:, None], upper=False)[:, 0]
        prior = self.covariance(at).diagonal()
        offset = 0.0 if self.mean is None else self.mean(at)
        return mean + offset, (prior - cross.square().sum(0)).clamp(min=0)


def _rows(x: Tensor) -> Tensor:
    """Points as rows in double precision; images are flattened."""
    if x.ndim < 2:
        raise ValueError(f"points must have shape (n, features), got {tuple(x.shape)}")
    return x.detach().flatten(1).to(torch.float64)


def _at(root: Any, path: str) -> Any:
    for word in filter(None, path.split(".")):
        root = getattr(root, word)
    return root


def rbf_prior(
    dim: int,
    *,
    lengthscale: float | int | None = None,
    variance: float | int = 1.0,
    hierarchical: bool = False,
    num_outputs: int = 1,
) -> GPFunctionPrior:
    """The paper's target, variance exp(-|x - x'|^2 / (2 lengthscale^2)): gpytorch's RBF kernel, a lengthscale a column.

        rbf_prior(13)                        # lengthscale sqrt(2 * 13), variance 1
        rbf_prior(13, hierarchical=True)     # Eq. (1)

    Args:
        dim: D, columns of the data.
        lengthscale: sqrt(2 D) if None.
        variance: of the function at each point; under `hierarchical` the hyperprior's.
        hierarchical: draw every function's lengthscales around `lengthscale`, and its variance, from Eq. (1).
        num_outputs: as for `GPFunctionPrior`.

    Raises:
        ImportError: without gpytorch.
        ValueError: if a number is not positive.
    """
    length = math.sqrt(2 * dim) if lengthscale is None else float(lengthscale)
    if dim < 1 or not 0 < length < math.inf or not 0 < variance < math.inf:
        raise ValueError(f"dim, lengthscale and variance must be positive, got {dim}, {length} and {variance}")
    kernels = _gpytorch().kernels
    kernel = kernels.ScaleKernel(kernels.RBFKernel(ard_num_dims=dim))
    kernel.base_kernel.lengthscale, kernel.outputscale = length, float(variance)
    priors = {"base_kernel.lengthscale": LogNormal(math.log(length), 1.0), "outputscale": LogNormal(0.1, 1.0)}
    return GPFunctionPrior(kernel, hyperprior=priors if hierarchical else None, num_outputs=num_outputs)
