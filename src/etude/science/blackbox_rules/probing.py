"""Importance from inside the black box: its attention, and the gradient of its answer.

- attention, instance: softmax(W_j x + b_j) averaged over heads, over the rows that are classified correctly. Global:
  R_G, read off the diagonal of W_j. Neither looks at what the head makes of a feature, so that a feature which the head
  ignores may rank first: one voice among several, never the only one.
- gradients: of the log-probability of the class that the network predicts for a row, times the row's distance from a
  baseline; integrated gradients average the gradient along the straight line from the baseline b to x,

      IG_i(x) = (x_i - b_i) (1 / m) sum_k d_i log p_c(b + (k - 1/2) / m (x - b)),   k = 1..m.            (4)
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from etude.science.blackbox_rules.blackbox import BlackBoxClassifier
from etude.science.blackbox_rules.networks import SelfAttentionNet

__all__ = ["attention_importance", "gradient_importance", "gradient_x_input", "integrated_gradients"]

_NUMBERS = 1 << 23
"""Most inputs of one backward pass."""


def _log_probability_gradient(
    network: nn.Module, x: Float[Tensor, "batch dim"], target: Int64[Tensor, "batch"]
) -> Float[Tensor, "batch dim"]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        chosen = network(x).log_softmax(-1).gather(1, target[:, None]).sum()
        (gradient,) = torch.autograd.grad(chosen, x)
    return gradient


def _predicted(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x).argmax(-1)


def gradient_x_input(
    network: nn.Module,
    x: Float[Tensor, "batch dim"],
    target: Int64[Tensor, "batch"] | None = None,
    baseline: Float[Tensor, "dim"] | None = None,
) -> Float[Tensor, "batch dim"]:
    """(x - b) d log p_c(x) / dx, in evaluation mode of the network, which the caller sets.

    Args:
        network: rows -> logits.
        target: class c of each row; the one predicted if None.
        baseline: b; zero, the training mean of standardised columns, if None.
    """
    target = _predicted(network, x) if target is None else target
    away = x if baseline is None else x - baseline
    parts = zip(x.split(_rows(x)), target.split(_rows(x)))
    return away * torch.cat([_log_probability_gradient(network, rows, classes) for rows, classes in parts])


def _rows(x: Tensor) -> int:
    return max(1, _NUMBERS // x.shape[1])


def integrated_gradients(
    network: nn.Module,
    x: Float[Tensor, "batch dim"],
    target: Int64[Tensor, "batch"] | None = None,
    baseline: Float[Tensor, "dim"] | None = None,
    steps: int = 32,
) -> Float[Tensor, "batch dim"]:
    """Eq. (4). The class is that of x all along the line; many points of many rows go through the network together.

    Args:
        network, target, baseline: as of `gradient_x_input`.
        steps: m, > 0.

    Raises:
        ValueError: if `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be positive, got {steps}")
    target = _predicted(network, x) if target is None else target
    start = torch.zeros_like(x[0]) if baseline is None else baseline
    away = x - start
    places = (torch.arange(steps, device=x.device, dtype=x.dtype) + 0.5) / steps
    total = torch.zeros_like(x)
    per_pass = max(1, _rows(x) // len(x))
    for part in places.split(per_pass):
        rows = max(1, _rows(x) // len(part))
        for first in range(0, len(x), rows):
            chosen = slice(first, first + rows)
            points = start + part[:, None, None] * away[chosen]
            classes = target[chosen].repeat(len(part))
            gradient = _log_probability_gradient(network, points.flatten(0, 1), classes)
            total[chosen] += gradient.view_as(points).sum(0)
    return away * total / steps


def gradient_importance(
    black_box: BlackBoxClassifier, X: Any, method: str = "integrated", steps: int = 32
) -> Float[np.ndarray, "d"]:
    """Mean absolute attribution of each column over rows; 0 for columns that the network does not see.

    The baseline is the mean of the training rows. Through an autoencoder classifier the gradient reaches the inputs.

    Args:
        X: (n, d), in the table's own units.
        method: "integrated" or "gradient_x_input".
        steps: of "integrated".

    Raises:
        ValueError: for an unknown method.
    """
    if method not in ("integrated", "gradient_x_input"):
        raise ValueError(f"method must be integrated or gradient_x_input, got {method!r}")
    x = black_box.standardize(X)
    if method == "integrated":
        found = integrated_gradients(black_box.network_, x, steps=steps)
    else:
        found = gradient_x_input(black_box.network_, x)
    return black_box.spread(found.abs().double().mean(0).cpu().numpy())


@torch.no_grad()
def attention_importance(
    black_box: BlackBoxClassifier, X: Any = None, y: Any = None, scope: str = "instance"
) -> Float[np.ndarray, "d"]:
    """Attention on each column; it sums to 1 over the columns that the network sees.

    Args:
        black_box: of kind "san" or "gated".
        X, y: of scope "instance": rows, and their labels, which say what counts as classified correctly; all rows
            count if `y` is None or nothing is correct.
        scope: "instance" or "global".

    Raises:
        TypeError: if the black box has no attention.
        ValueError: for an unknown scope, or scope "instance" without rows.
    """
    network = black_box.network_
    if not isinstance(network, SelfAttentionNet):
        raise TypeError(f"attention needs a black box of kind san or gated, got {black_box.kind!r}")
    if scope not in ("instance", "global"):
        raise ValueError(f"scope must be instance or global, got {scope!r}")
    if scope == "global":
        return black_box.spread(network.global_attention().double().cpu().numpy())
    if X is None:
        raise ValueError("scope 'instance' needs rows X")
    x = black_box.standardize(X)
    if y is not None:
        right = black_box.predict(X) == np.asarray(y)
        x = x[torch.from_numpy(right).to(x.device)] if right.any() else x
    total = torch.stack([network.attention(part).mean(1).double().sum(0) for part in x.split(512)]).sum(0)
    return black_box.spread((total / len(x)).cpu().numpy())
