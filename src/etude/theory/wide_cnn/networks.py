"""Hierarchical convolutional networks of finite width, and their kernels.

Cagnetta, Favero & Wyart, ICML 2023, arXiv:2208.01003; the NTK parameterisation. All weights are N(0, 1), and with
width c, first patches x_i and the concatenated outputs h of a node's children

    h_1 = sqrt(2) relu(W_1 x_i),   h_(l+1) = sqrt(2) relu(W_(l+1) h / sqrt(s_(l+1) c)),   f = w^T h / sqrt(p c)    (1)

The gain sqrt(2) keeps norms, so that the kernels tend to those of `hierarchical_kernel` with no constant between. The
authors' code has no gain and divides the first layer by sqrt(s_1): its kernels are smaller by a factor for each layer.
"""

import math
from collections.abc import Callable, Sequence

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

from etude.nn.gaussian import Estimate
from etude.theory.wide_cnn.kernel import hierarchical_kernel
from etude.theory.wide_cnn.patches import check_filters, fan_outs, to_patches

__all__ = ["HierarchicalCNN", "HierarchicalLCN", "empirical_ntk", "empirical_rfk", "width_error"]

_GAIN = math.sqrt(2)


class HierarchicalCNN(
    nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/2208.01003"
):
    """A convolutional network without overlaps and biases, Eq. (1).

        HierarchicalCNN(256, 1, 8, [2, 2, 2])                       # sequences of 8 inputs
        HierarchicalCNN(256, 3, (32, 32), [2, 2, 2], out_features=10)   # colour images

    Args:
        width: c, channels of every hidden layer.
        in_channels: of the input.
        size: inputs in a sequence, or (height, width) of an image.
        filter_sizes: s_1, ..., s_L; each side is a multiple of their product.
        weight_sharing: one filter for all places of a layer (convolutional), or one for each (locally connected).
        out_features: outputs, each with a readout of its own.
        normalize: scale first patches to unit norm; a patch that is 0 stays 0.
        generator: draws the weights.

    Raises:
        ValueError: if a size is not positive, or the filters do not fit the input.
    """

    def __init__(
        self,
        width: int,
        in_channels: int,
        size: int | Sequence[int],
        filter_sizes: Sequence[int],
        *,
        weight_sharing: bool = True,
        out_features: int = 1,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        for name, value in (("width", width), ("in_channels", in_channels), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.filter_sizes = check_filters(filter_sizes)
        self.sides = (size,) if isinstance(size, int) else tuple(size)
        self.in_channels, self.width, self.normalize = in_channels, width, normalize
        self.dim = len(self.sides)
        example = to_patches(torch.empty(1, in_channels, *self.sides), self.filter_sizes, dim=self.dim)
        _, places, patch = example.shape
        self.fans = fan_outs(self.filter_sizes, places, self.dim)
        weights, inputs = [], patch
        for fan in self.fans:
            shared = () if weight_sharing else (places,)
            weights.append(nn.Parameter(torch.randn(*shared, inputs, width, generator=generator)))
            places, inputs = places // fan, fan * width
        self.weights = nn.ParameterList(weights)
        self.readout = nn.Parameter(torch.randn(inputs, out_features, generator=generator))

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch out_features"]:
        """Inputs as for `hierarchical_kernel`."""
        return self.features(x) @ self.readout

    def features(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch features"]:
        """What the readout sees, divided by the square root of its length."""
        h = self.patches(x)
        for layer in range(len(self.fans)):
            h = self.regroup(_GAIN * torch.relu(self.convolve(h, layer)), layer)
        return h.squeeze(1)

    def patches(self, x: Tensor) -> Tensor:
        found = to_patches(x, self.filter_sizes, dim=self.dim)
        if self.normalize:
            norms = found.norm(dim=2, keepdim=True)
            found = found / torch.where(norms > 0, norms, 1.0)
        return found

    def convolve(self, h: Tensor, layer: int) -> Tensor:
        """(batch, places, inputs) to pre-activations (batch, places, width)."""
        weight = self.weights[layer]
        return h @ weight if weight.ndim == 2 else torch.einsum("bpi,pio->bpo", h, weight)

    def regroup(self, h: Tensor, layer: int) -> Tensor:
        """The children of each node side by side, scaled for the next layer."""
        fan = self.fans[layer]
        return h.unflatten(1, (-1, fan)).flatten(2) / math.sqrt(fan * self.width)


class HierarchicalLCN(HierarchicalCNN):
    """The same with filters of their own at every place: `HierarchicalCNN` with `weight_sharing=False`."""

    def __init__(
        self,
        width: int,
        in_channels: int,
        size: int | Sequence[int],
        filter_sizes: Sequence[int],
        *,
        out_features: int = 1,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            width, in_channels, size, filter_sizes, weight_sharing=False, out_features=out_features,
            normalize=normalize, generator=generator,
        )  # fmt: skip


def empirical_rfk(
    network: HierarchicalCNN, x: Float[Tensor, "n *shape"], y: Float[Tensor, "m *shape"]
) -> Float[Tensor, "n m"]:
    """The covariance of the outputs over the readout: inner products of the features."""
    with torch.no_grad():
        return network.features(x) @ network.features(y).T


def empirical_ntk(
    network: HierarchicalCNN, x: Float[Tensor, "n *shape"], y: Float[Tensor, "m *shape"]
) -> Float[Tensor, "n m"]:
    """Inner products of the gradients of the first output by all weights.

    A weight's gradient is an outer product at every place, so that the kernel of a layer comes from the Gram matrices
    of what enters it and what comes back to it, and no (n, parameters) matrix is made.
    """
    kernel = empirical_rfk(network, x, y)
    for weight, (inputs, back), (inputs_y, back_y) in zip(network.weights, _factors(network, x), _factors(network, y)):
        if weight.ndim == 3:
            entering = torch.einsum("npi,mpi->pnm", inputs, inputs_y)
            returning = torch.einsum("npo,mpo->pnm", back, back_y)
            kernel = kernel + (entering * returning).sum(0)
        else:
            entering = torch.einsum("npi,mqi->pqnm", inputs, inputs_y)
            returning = torch.einsum("npo,mqo->pqnm", back, back_y)
            kernel = kernel + (entering * returning).sum((0, 1))
    return kernel


def _factors(network: HierarchicalCNN, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each layer what enters it, and the gradient of the first output by what leaves it."""
    inputs, outputs = [], []
    h = network.patches(x.detach())
    with torch.enable_grad():
        for layer in range(len(network.fans)):
            inputs.append(h.detach())
            h = network.convolve(h, layer)
            if not h.requires_grad:
                h.requires_grad_()
            outputs.append(h)
            h = network.regroup(_GAIN * torch.relu(h), layer)
        back = torch.autograd.grad((h.squeeze(1) @ network.readout[:, 0]).sum(), outputs)
    return list(zip(inputs, back))


def width_error(
    filter_sizes: Sequence[int],
    width: int,
    x: Float[Tensor, "n *shape"],
    *,
    kind: str = "ntk",
    weight_sharing: bool = False,
    draws: int = 10,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Estimate:
    """How far networks of this width are from the limit: the mean of |K_c - K| / |K|, Frobenius norms, on these inputs.

        width_error([2, 2, 2], 512, x)      # Estimate(value=0.06, error=0.004)

    Args:
        filter_sizes, x: as for `hierarchical_kernel`; images have four axes.
        width: c.
        kind: "ntk" or "rfk".
        weight_sharing: convolutional, or locally connected.
        draws: networks drawn, at least 2.
        generator: of their weights.
        progress: called with the number of draws done and of all.

    Returns:
        The mean over the draws and its standard error.

    Raises:
        ValueError: if `draws` < 2, or the filters do not fit the inputs.
    """
    if draws < 2:
        raise ValueError(f"draws must be at least 2, for an error, got {draws}")
    x = x.to(torch.float64)
    dim = 2 if x.ndim == 4 else 1
    limit = hierarchical_kernel(x, None, filter_sizes, kind, dim=dim)
    channels, size = (1, x.shape[1:]) if x.ndim == 2 else (x.shape[1], x.shape[2:])
    measure = {"ntk": empirical_ntk, "rfk": empirical_rfk}[kind]
    found = []
    for draw in range(draws):
        network = HierarchicalCNN(
            width, channels, size, filter_sizes, weight_sharing=weight_sharing, generator=generator
        ).double()
        found.append((measure(network, x, x) - limit).norm() / limit.norm())
        if progress is not None:
            progress(draw + 1, draws)
    errors = torch.stack(found).detach()
    return Estimate(errors.mean(), errors.std() / math.sqrt(draws))
