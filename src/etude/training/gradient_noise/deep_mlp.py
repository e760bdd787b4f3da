"""The very deep fully connected network of the paper's MNIST experiments, with good and poor initialisations.

Neelakantan et al., "Adding Gradient Noise Improves Learning for Very Deep Networks", arXiv:1511.06807, 2015.
"""

from itertools import pairwise

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["DeepMLP", "critical_eta"]

_INITS = ("he", "simple", "zero")


class DeepMLP(nn.Module, PyTorchModelHubMixin, library_name="etude", paper_url="https://arxiv.org/abs/1511.06807"):
    """A stack of equally wide ReLU layers without skips or normalisation, then a linear read-out.

        model = DeepMLP(in_dim=784, out_dim=10, init="zero")

    Args:
        in_dim: numbers in one input, whatever its shape.
        out_dim: number of classes.
        hidden: width of each hidden layer.
        depth: number of hidden layers.
        init: weights of all layers, the read-out included; biases are always zero.
            "he": N(0, 2 / fan_in), which keeps the signal's scale from layer to layer.
            "simple": N(0, std^2). Each layer scales the signal by sqrt(hidden / 2) * std, so at width 50 it vanishes
            for std 0.1 (half a layer) and explodes for the variance 0.1 (1.6 a layer); the paper's "0.1" can be read
            as either.
            "zero": all zero, so that no gradient reaches any weight.
        std: standard deviation of the "simple" weights, > 0.

    Raises:
        ValueError: if a size is not positive, `init` is unknown or `std` is not positive.
    """

    def __init__(
        self, in_dim: int, out_dim: int, *, hidden: int = 50, depth: int = 20, init: str = "he", std: float = 0.1
    ):
        super().__init__()
        for name, size in (("in_dim", in_dim), ("out_dim", out_dim), ("hidden", hidden), ("depth", depth)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if init not in _INITS:
            raise ValueError(f"init must be one of {', '.join(_INITS)}, got {init!r}")
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}; for all-zero weights use init='zero'")
        widths = [in_dim] + [hidden] * depth
        self.hidden = nn.ModuleList(nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(widths))
        self.readout = nn.Linear(hidden, out_dim)
        for layer in (*self.hidden, self.readout):
            nn.init.zeros_(layer.bias)
            if init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif init == "simple":
                nn.init.normal_(layer.weight, std=std)
            else:
                nn.init.zeros_(layer.weight)

    def forward(self, x: Float[Tensor, "batch *features"]) -> Float[Tensor, "batch classes"]:
        """Logits of each input, which is flattened first."""
        x = x.flatten(start_dim=1)
        for layer in self.hidden:
            x = layer(x).relu()
        return self.readout(x)


def critical_eta(width: int, lr: float, steps: int, gamma: float = 0.55) -> float:
    """The noise variance `eta` that carries zero weights to the scale where signals flow, just as training ends.

    While gradients vanish, plain gradient descent moves each weight by the noise alone, so after T steps its
    variance is lr^2 * eta * sum_t (1 + t)^-gamma, close to lr^2 * eta * T^(1 - gamma) / (1 - gamma). A ReLU layer
    passes a signal on unshrunk at the weight variance 2 / width. Setting the two equal gives eta. Noise much weaker
    never reaches that scale; noise much stronger passes it early and drowns the signal.

    Args:
        width: of the hidden layers.
        lr: learning rate of plain gradient descent.
        steps: number of updates of the training run.
        gamma: decay exponent of the noise, in [0, 1).

    Raises:
        ValueError: if an argument lies outside its range.
    """
    if width < 1 or steps < 1 or not lr > 0:
        raise ValueError(f"width, lr and steps must be positive, got {width}, {lr} and {steps}")
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1), got {gamma}")
    return 2 / width * (1 - gamma) / (lr**2 * steps ** (1 - gamma))
